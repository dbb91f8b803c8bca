//! The folder of receipts, `receipts` in the data directory: one JSON file each, written atomically; the oldest are removed
//! when there are too many. This file does not judge what is in them.

use std::path::{Path, PathBuf};

use pangea_client::{Error, ErrorKind, Result};
use serde::Serialize;

use super::Receipt;
use crate::storage::whole_file;
use pangea_control::trust::Verdict;

/// Maximum receipts in the folder.
const RECEIPTS_MAX: usize = 1000;

/// Maximum bytes of all receipts together: dozens of those with opened rows, which are the largest.
const BYTES_MAX: u64 = 256 << 20;

/// Maximum bytes of one receipt: one with a context of 128 Ki tokens is smaller than 1 MiB, beside the rows that stages opened. A
/// larger file is refused.
pub const RECEIPT_BYTES_MAX: u64 = 8 << 20;

/// Digits of the time at the start of a file name, so that names sort by time.
const TIME_DIGITS: usize = 13;

/// The receipts of a data directory. Every method blocks on the disk.
#[derive(Clone, Debug)]
pub struct ReceiptStore {
    folder: PathBuf,
}

/// A receipt's line in a list.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Id of the receipt.
    pub id: String,
    /// Id of the request.
    pub request: String,
    /// When the answer ended, in milliseconds since 1970.
    pub unix_ms: u64,
    /// Name of the model.
    pub model: String,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the answer.
    pub answer_tokens: usize,
    /// Stages of the last segment.
    pub stages: usize,
    /// Failovers: segments minus one.
    pub failovers: usize,
    /// Verdict, as the coordinator wrote it.
    #[serde(serialize_with = "super::verdict::serialize")]
    pub verdict: Verdict,
}

impl From<&Receipt> for Summary {
    fn from(receipt: &Receipt) -> Summary {
        Summary {
            id: receipt.id.clone(),
            request: receipt.request.clone(),
            unix_ms: receipt.unix_ms,
            model: receipt.model.name.clone(),
            prompt_tokens: receipt.prompt_tokens.len(),
            answer_tokens: receipt.answer_tokens.len(),
            stages: receipt.segments.last().map_or(0, |segment| segment.stages.len()),
            failovers: receipt.segments.len().saturating_sub(1),
            verdict: receipt.verdict,
        }
    }
}

impl ReceiptStore {
    /// The receipts of this data directory; the folder is created with the first receipt.
    pub fn new(data_dir: &Path) -> ReceiptStore {
        ReceiptStore { folder: data_dir.join("receipts") }
    }

    /// Path of the folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Stores a receipt, replacing an earlier one with the same id. The oldest receipts are removed when there are too many.
    ///
    /// # Errors
    /// `InvalidInput` for an invalid id or a receipt that is too large; `Internal` if the disk fails.
    pub fn put(&self, receipt: &Receipt) -> Result<()> {
        if !Receipt::is_id(&receipt.id) {
            return Err(Error::new(ErrorKind::InvalidInput, format!("{:?} is not a receipt id", receipt.id)));
        }
        let json = receipt.to_json()?;
        if json.len() as u64 > RECEIPT_BYTES_MAX {
            let why = format!("receipt {} has {} bytes; the maximum is {RECEIPT_BYTES_MAX}", receipt.id, json.len());
            return Err(Error::new(ErrorKind::InvalidInput, why));
        }
        let write = || -> std::io::Result<()> {
            whole_file::private_folder(&self.folder)?;
            let before: Vec<PathBuf> =
                self.files()?.into_iter().filter(|file| file.id == receipt.id).map(|file| file.path).collect();
            let path = self.folder.join(format!("{:0TIME_DIGITS$}-{}.json", receipt.unix_ms, receipt.id));
            whole_file::replace(&path, &json)?;
            before.iter().filter(|old| **old != path).try_for_each(std::fs::remove_file)?;
            self.make_room()
        };
        write().map_err(|error| self.failed(&error))
    }

    /// The receipt with this id, or the only one whose id starts with it.
    ///
    /// # Errors
    /// `NotFound`; `InvalidInput` if several ids start so or the file is damaged; `Internal` if the disk fails.
    pub fn get(&self, id: &str) -> Result<Receipt> {
        let files = self.files().map_err(|error| self.failed(&error))?;
        let mut named: Vec<&File> = files.iter().filter(|file| !id.is_empty() && file.id.starts_with(id)).collect();
        named.sort_by_key(|file| file.id != id);
        match named[..] {
            [] => {
                let why = format!("no receipt {id:?} in {}; `pangea receipts list` lists all", self.folder.display());
                Err(Error::new(ErrorKind::NotFound, why))
            }
            [first, second, ..] if first.id != id => {
                let why = format!("{id} is ambiguous: {} and {} start with it; give more digits", first.id, second.id);
                Err(Error::new(ErrorKind::InvalidInput, why))
            }
            [file, ..] => read(&file.path),
        }
    }

    /// The `limit` latest receipts, latest first; damaged files are skipped.
    ///
    /// # Errors
    /// `Internal` if the disk fails.
    pub fn list(&self, limit: usize) -> Result<Vec<Summary>> {
        let files = self.files().map_err(|error| self.failed(&error))?;
        let receipts = files.iter().rev().filter_map(|file| read(&file.path).ok());
        Ok(receipts.take(limit).map(|receipt| Summary::from(&receipt)).collect())
    }

    /// Every receipt's file, oldest first. A missing folder counts as empty.
    fn files(&self) -> std::io::Result<Vec<File>> {
        let entries = match std::fs::read_dir(&self.folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut files = Vec::new();
        for entry in entries {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let id = name.strip_suffix(".json").and_then(|name| name.split_once('-')).map(|(_, id)| id.to_owned());
            if let Some(id) = id.filter(|id| Receipt::is_id(id)) {
                files.push(File { id, path });
            }
        }
        files.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(files)
    }

    fn make_room(&self) -> std::io::Result<()> {
        let files = self.files()?;
        let sizes: Vec<u64> =
            files.iter().map(|file| std::fs::metadata(&file.path).map_or(0, |facts| facts.len())).collect();
        let (mut count, mut bytes) = (files.len(), sizes.iter().sum::<u64>());
        for (file, size) in files.iter().zip(sizes) {
            // The latest receipt is never removed, however large.
            if count <= 1 || (count <= RECEIPTS_MAX && bytes <= BYTES_MAX) {
                break;
            }
            std::fs::remove_file(&file.path)?;
            count -= 1;
            bytes -= size;
        }
        Ok(())
    }

    fn failed(&self, error: &std::io::Error) -> Error {
        let why = format!("cannot read or write the receipts in {}: {error}", self.folder.display());
        Error::new(ErrorKind::Internal, why)
    }
}

/// A receipt's file.
struct File {
    id: String,
    path: PathBuf,
}

/// Reads the receipt in a file.
///
/// # Errors
/// `NotFound`; `InvalidInput` for a file that is not a receipt; `Internal` if it cannot be read.
pub fn read(path: &Path) -> Result<Receipt> {
    let failed = |error: std::io::Error| {
        let kind = match error.kind() {
            std::io::ErrorKind::NotFound => ErrorKind::NotFound,
            _ => ErrorKind::Internal,
        };
        Error::new(kind, format!("cannot read {}: {error}", path.display()))
    };
    let wrong = |why: String| Error::new(ErrorKind::InvalidInput, format!("{}: {why}", path.display()));
    if std::fs::metadata(path).map_err(failed)?.len() > RECEIPT_BYTES_MAX {
        return Err(wrong("the file is too large for a receipt".to_owned()));
    }
    Receipt::parse(&std::fs::read(path).map_err(failed)?).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::receipt::tests::receipt;

    fn numbered(n: u64) -> Receipt {
        Receipt { id: format!("{n:012x}"), unix_ms: 1_000 + n, ..receipt() }
    }

    #[test]
    fn receipts_are_stored_found_and_listed_latest_first() {
        let folder = tempfile::tempdir().unwrap();
        let store = ReceiptStore::new(folder.path());
        assert!(store.list(10).unwrap().is_empty() && !store.folder().exists());
        for n in [3, 1, 0xa000_0000_0002] {
            store.put(&numbered(n)).unwrap();
        }
        let ids: Vec<String> = store.list(2).unwrap().into_iter().map(|summary| summary.id).collect();
        assert_eq!(ids, ["a00000000002", "000000000003"]);
        assert_eq!(store.get("000000000001").unwrap(), numbered(1));
        assert_eq!(store.get("a0").unwrap().id, "a00000000002");
        assert_eq!(store.get("0000").unwrap_err().kind(), ErrorKind::InvalidInput);
        for none in ["", "b", "../node", "000000000001.json"] {
            assert_eq!(store.get(none).unwrap_err().kind(), ErrorKind::NotFound, "{none}");
        }
        // A later version of the first receipt replaces it.
        let mut again = numbered(1);
        again.unix_ms += 500_000;
        store.put(&again).unwrap();
        assert_eq!(store.get("000000000001").unwrap(), again);
        assert_eq!(store.list(10).unwrap().len(), 3);
        std::fs::write(store.folder().join("0000000000009-00000000000f.json"), b"{").unwrap();
        assert_eq!(store.list(10).unwrap().len(), 3, "a damaged file is left out");
        assert_eq!(store.get("00000000000f").unwrap_err().kind(), ErrorKind::InvalidInput);
        assert!(store.put(&Receipt { id: "../x".into(), ..receipt() }).is_err());
    }

    #[test]
    fn the_oldest_receipts_are_removed_when_there_are_too_many() {
        let folder = tempfile::tempdir().unwrap();
        let store = ReceiptStore::new(folder.path());
        std::fs::create_dir_all(store.folder()).unwrap();
        // Sparse files: only their lengths count.
        for n in 0..=BYTES_MAX / RECEIPT_BYTES_MAX {
            let path = store.folder().join(format!("{n:013}-{n:012x}.json"));
            std::fs::File::create(path).unwrap().set_len(RECEIPT_BYTES_MAX).unwrap();
        }
        store.put(&numbered(100)).unwrap();
        let left: Vec<String> = store.files().unwrap().into_iter().map(|file| file.id).collect();
        assert_eq!(left.len() as u64, BYTES_MAX / RECEIPT_BYTES_MAX, "{left:?}");
        assert_eq!(left.last().unwrap(), "000000000064");
        assert!(!left.contains(&format!("{:012x}", 0)));
    }
}
