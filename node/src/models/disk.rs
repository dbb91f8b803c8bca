//! Free space on the disk of the models, checked before and during a download. This file frees nothing.

use std::path::Path;

use pangea_client::{Error, ErrorKind, Result};

use super::description::size;

/// Bytes that a download leaves free: a full disk stops more than this program.
const SPARE_BYTES: u64 = 64 << 20;

/// Checks that `bytes` more fit on the disk of `folder`.
///
/// # Errors
/// `Overloaded` if they do not. A disk whose free space is unknown is assumed to have room.
pub(crate) fn need(folder: &Path, bytes: u64) -> Result<()> {
    let Ok(facts) = rustix::fs::statvfs(folder) else { return Ok(()) };
    let free = facts.f_bavail.saturating_mul(facts.f_frsize);
    if free >= bytes.saturating_add(SPARE_BYTES) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Overloaded,
        format!(
            "the disk of {} has {} free, {} needed; free some space, or choose another disk with --data-dir or PANGEA_HOME",
            folder.display(),
            size(free),
            size(bytes.saturating_add(SPARE_BYTES)),
        ),
    ))
}

/// The error of writing to `path`.
pub(crate) fn writing(path: &Path, error: &std::io::Error) -> Error {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    let kind = match error.kind() {
        StorageFull | QuotaExceeded => ErrorKind::Overloaded,
        _ => ErrorKind::Internal,
    };
    Error::new(kind, format!("cannot write {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_any_disk_has_is_refused_before_anything_is_written() {
        let folder = tempfile::tempdir().unwrap();
        need(folder.path(), 0).unwrap();
        let error = need(folder.path(), u64::MAX).unwrap_err();
        assert!(error.kind() == ErrorKind::Overloaded && error.message().contains("free some"), "{error}");
    }
}
