//! Mapped files: read-only views of a file's bytes, and pages given back to the system. Memory is mapped here and
//! nowhere else; what the bytes mean is the caller's.
#![allow(unsafe_code)]

use crate::Error;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

/// A mapped file, from some byte on.
#[derive(Clone)]
pub(crate) struct Mapping {
    map: Arc<memmap2::Mmap>,
    from: usize,
}

impl Mapping {
    /// All of the file at `path`; `None` where the file is empty, since an empty range cannot be mapped. As for
    /// [`NpyFile::open`](crate::NpyFile::open), the file must not be truncated while it is in use.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Invalid`] for what is not a regular file.
    pub(crate) fn open(path: &Path, format: &'static str) -> Result<Option<Mapping>, Error> {
        let io = |e| Error::io(path, e);
        let file = File::open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        if !metadata.is_file() {
            return Err(Error::invalid(format, format!("{} is not a regular file", path.display())));
        }
        if metadata.len() == 0 {
            return Ok(None);
        }
        Mapping::of(&file, 0).map(Some).map_err(io)
    }

    /// All of `file` from byte `from` on, which must exist.
    pub(crate) fn of(file: &File, from: usize) -> std::io::Result<Mapping> {
        // SAFETY: the mapping is private and read-only, and lives as long as everything over it. That the file is not
        // truncated meanwhile is the documented condition of the functions that open files.
        let map = unsafe { memmap2::MmapOptions::new().map_copy_read_only(file) }?;
        Ok(Mapping { map: Arc::new(map), from })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map[self.from..]
    }

    /// Gives the pages that `bytes`, a part of this mapping, lie on back to the system. A later read, of what else lies on them
    /// too, loads them from the file again. Does nothing for other bytes, or where the system has no such call.
    pub(crate) fn release(&self, bytes: &[u8]) {
        #[cfg(unix)]
        {
            let Some(begin) = (bytes.as_ptr() as usize).checked_sub(self.map.as_ptr() as usize) else { return };
            let end = begin + bytes.len();
            if end > self.map.len() {
                return;
            }
            // Outwards: what remained at the edges of thousands of small matrices was a seventh of a file.
            let begin = begin / RELEASED_PAGE_BYTES * RELEASED_PAGE_BYTES;
            let end = end.next_multiple_of(RELEASED_PAGE_BYTES).min(self.map.len());
            // SAFETY: the mapping is read-only and backed by its file, so a page that is dropped comes back with the
            // same bytes; nothing was ever written to it. The range lies inside the mapping, as just checked.
            let released =
                unsafe { self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, begin, end - begin) };
            // The call is advice: where the system ignores it, the memory stays in use.
            drop(released);
        }
        #[cfg(not(unix))]
        let _ = bytes;
    }
}

/// Granularity of released ranges. No page of a supported system is larger: Apple's are 16 KiB, some ARM kernels' 64
/// KiB.
#[cfg(unix)]
const RELEASED_PAGE_BYTES: usize = 64 << 10;

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    /// Bytes of the mapping that are in memory, as the system counts them for this process.
    fn resident(mapping: &Mapping) -> usize {
        let start = format!("{:x}-", mapping.map.as_ptr() as usize);
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = maps.lines().skip_while(|line| !line.starts_with(&start));
        let rss = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
        rss.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
    }

    #[test]
    fn small_parts_that_are_released_leave_nothing_in_memory() {
        let bytes: Vec<u8> = (0..3 << 20).map(|i| (i % 251) as u8).collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        let mapping = Mapping::open(file.path(), "test").unwrap().unwrap();
        assert!(mapping.bytes() == bytes);
        assert_eq!(resident(&mapping), bytes.len());
        // As the rows of experts: smaller than what is released at a time, and aligned to nothing.
        mapping.bytes().chunks(10_007).for_each(|part| mapping.release(part));
        assert_eq!(resident(&mapping), 0);
        assert!(mapping.bytes() == bytes);
    }
}
