//! Owned memory for tensors: aligned to a cache line, large buffers on huge pages; some dropped buffers are kept for reuse.
//! Running out of memory is an error, never an abort. A buffer is bytes and knows no element type.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::Error;

/// Alignment of every buffer: a cache line, which is also the size of an AVX-512 register.
pub const ALIGN_BYTES: usize = 64;

/// Buffers of at least this size are mapped from the system, on huge pages where available: fewer page faults than with an
/// allocator's 4 KiB pages, and dropped memory returns to the system. For smaller ones the allocator's reuse is faster.
const MAP_FROM_BYTES: usize = 4 << 20;

/// Sizes of dropped buffers that are kept for [`Buffer::unspecified`]: tiles, bands and panels. Fresh pages, cleared by the
/// system, took a tenth of a distributed product's time.
const KEPT_SIZES: std::ops::RangeInclusive<usize> = (256 << 10)..=(16 << 20);

/// Bytes of dropped buffers that are kept, until [`keep_dropped`] is called: a few tiles.
static KEEP_BYTES: AtomicUsize = AtomicUsize::new(4 << 20);

/// Sets how many bytes of dropped buffers this process keeps for reuse.
pub fn keep_dropped(bytes: usize) {
    KEEP_BYTES.store(bytes, Ordering::Relaxed);
}

/// A kept buffer is reused for a request that fills at least this share of it.
const KEPT_FILLED: f64 = 0.75;

/// The kept buffers, oldest first.
static KEPT: Mutex<Vec<Memory>> = Mutex::new(Vec::new());

/// `len` bytes of owned memory, aligned to [`ALIGN_BYTES`].
pub struct Buffer {
    memory: Memory,
    len: usize,
}

enum Memory {
    /// The first aligned byte is at `start`.
    Heap {
        bytes: Vec<u8>,
        start: usize,
    },
    Pages(memmap2::MmapMut),
}

impl Buffer {
    /// `len` zero bytes.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn zeroed(len: usize) -> Result<Buffer, Error> {
        let out_of_memory = || Error::OutOfMemory { bytes: len as u64, what: "a tensor" };
        // No allocation can exceed half the address space.
        if len > isize::MAX as usize - ALIGN_BYTES {
            return Err(out_of_memory());
        }
        if len >= MAP_FROM_BYTES {
            let pages = memmap2::MmapMut::map_anon(len).map_err(|_| out_of_memory())?;
            #[cfg(target_os = "linux")]
            {
                // A hint: without huge pages everything still works.
                let _ = pages.advise(memmap2::Advice::HugePage);
            }
            return Ok(Buffer { memory: Memory::Pages(pages), len });
        }
        let mut bytes: Vec<u8> = Vec::new();
        bytes.try_reserve_exact(len + ALIGN_BYTES).map_err(|_| out_of_memory())?;
        bytes.resize(len + ALIGN_BYTES, 0);
        let start = bytes.as_ptr().align_offset(ALIGN_BYTES).min(ALIGN_BYTES);
        Ok(Buffer { memory: Memory::Heap { bytes, start }, len })
    }

    /// `len` bytes of unspecified content, for callers that write every byte before any is read. Reuses a dropped buffer of
    /// about this size, if one is kept.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn unspecified(len: usize) -> Result<Buffer, Error> {
        let mut kept = kept();
        let fits = |memory: &Memory| len <= memory.capacity() && len as f64 >= memory.capacity() as f64 * KEPT_FILLED;
        if let Some(at) = kept.iter().rposition(fits) {
            return Ok(Buffer { memory: kept.remove(at), len });
        }
        drop(kept);
        Buffer::zeroed(len)
    }

    /// A copy of `bytes`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn copy_of(bytes: &[u8]) -> Result<Buffer, Error> {
        let mut buffer = Buffer::unspecified(bytes.len())?;
        buffer.as_mut_slice().copy_from_slice(bytes);
        Ok(buffer)
    }

    /// The size in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        match &self.memory {
            Memory::Heap { bytes, start } => &bytes[*start..*start + self.len],
            Memory::Pages(pages) => &pages[..self.len],
        }
    }

    /// The bytes, to be written.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Memory::Heap { bytes, start } => &mut bytes[*start..*start + self.len],
            Memory::Pages(pages) => &mut pages[..self.len],
        }
    }
}

impl Memory {
    /// Bytes of the longest buffer that fits.
    fn capacity(&self) -> usize {
        match self {
            Memory::Heap { bytes, start } => bytes.len() - start,
            Memory::Pages(pages) => pages.len(),
        }
    }
}

fn kept() -> MutexGuard<'static, Vec<Memory>> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let memory = std::mem::replace(&mut self.memory, Memory::Heap { bytes: Vec::new(), start: 0 });
        if !KEPT_SIZES.contains(&memory.capacity()) {
            return;
        }
        let mut kept = kept();
        kept.push(memory);
        let mut total: usize = kept.iter().map(Memory::capacity).sum();
        while total > KEEP_BYTES.load(Ordering::Relaxed) {
            total -= kept.remove(0).capacity();
        }
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} bytes)", self.len)
    }
}
