//! The node's identity: an ed25519 key in `node.key`, in libp2p's protobuf encoding, readable by its owner only.
//! The file is created once and never replaced; an ephemeral identity uses no file.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use libp2p::identity::Keypair;
use thiserror::Error;

use crate::storage::whole_file;

/// Read and write for the owner only.
const MODE: u32 = 0o600;

/// Maximum bytes of a key file; a key takes 68.
const MAX_FILE_BYTES: u64 = 1024;

/// Why `node.key` cannot be used.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// The file cannot be read or written.
    #[error("cannot use the identity {}: {source}; check the folder's permissions, or run with --ephemeral", path.display())]
    Io {
        /// Path of the file.
        path: PathBuf,
        /// Error of the system.
        source: io::Error,
    },
    /// The file does not contain an ed25519 key in libp2p's encoding.
    #[error("the identity {} is damaged ({why}); restore it, or move it away to get a new identity", path.display())]
    Damaged {
        /// Path of the file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// A new identity that is not stored.
pub fn ephemeral() -> Keypair {
    Keypair::generate_ed25519()
}

/// Loads the identity in `path`, or creates it. Two nodes that start at once on one folder get the same identity.
///
/// # Errors
/// [`IdentityError`]: the file can be neither read nor created, or contains no key. Nothing is ever overwritten.
pub fn load_or_create(path: &Path) -> Result<Keypair, IdentityError> {
    match load(path) {
        Err(IdentityError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
        result => return result,
    }
    let failed = |source| IdentityError::Io { path: path.to_owned(), source };
    let keypair = Keypair::generate_ed25519();
    let bytes = keypair.to_protobuf_encoding().map_err(|error| failed(io::Error::other(error)))?;
    match whole_file::create(path, &bytes) {
        Ok(()) => Ok(keypair),
        // Another node created the file first; its identity is this folder's.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => load(path),
        Err(error) => Err(failed(error)),
    }
}

/// The identity in `path`, if there is one. The file is not changed, whoever may read it.
///
/// # Errors
/// [`IdentityError`]: the file cannot be read or contains no key.
pub fn load_as_it_is(path: &Path) -> Result<Option<Keypair>, IdentityError> {
    let failed = |source| IdentityError::Io { path: path.to_owned(), source };
    let damaged = |why: String| IdentityError::Damaged { path: path.to_owned(), why };
    let length = match std::fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    if length > MAX_FILE_BYTES {
        return Err(damaged(format!("{length} bytes")));
    }
    let bytes = std::fs::read(path).map_err(failed)?;
    let keypair = Keypair::from_protobuf_encoding(&bytes).map_err(|error| damaged(error.to_string()))?;
    if keypair.key_type() != libp2p::identity::KeyType::Ed25519 {
        return Err(damaged("not an ed25519 key".to_owned()));
    }
    Ok(Some(keypair))
}

fn load(path: &Path) -> Result<Keypair, IdentityError> {
    let failed = |source| IdentityError::Io { path: path.to_owned(), source };
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if metadata.permissions().mode() & 0o077 != 0 {
        tracing::warn!(event = "identity_exposed", path = %path.display(), "the identity could be read by others; its permissions are now 0600");
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(MODE)).map_err(failed)?;
    }
    load_as_it_is(path)?.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_created_once_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.key");
        let first = load_or_create(&path).unwrap();
        assert_eq!(load_or_create(&path).unwrap().public(), first.public());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "the temporary file is gone");
    }

    #[test]
    fn nodes_that_start_together_get_one_identity() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.key");
        let start = std::sync::Barrier::new(8);
        let keys: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        start.wait();
                        load_or_create(&path).unwrap().public()
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(keys.iter().all(|key| *key == keys[0]));
    }

    #[test]
    fn a_damaged_identity_is_an_error_and_is_not_changed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.key");
        std::fs::write(&path, b"not a key").unwrap();
        assert!(matches!(load_or_create(&path), Err(IdentityError::Damaged { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"not a key");
    }

    #[test]
    fn permissions_are_tightened() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.key");
        load_or_create(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        load_or_create(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
    }

    #[test]
    fn a_missing_folder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = load_or_create(&folder.path().join("missing/node.key")).unwrap_err();
        assert!(error.to_string().contains("missing/node.key"), "{error}");
    }
}
