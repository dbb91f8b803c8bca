//! The folder `evidence` of a data directory: one folder for each convicted peer, `evidence/<seconds>-<peer>-<name>`, with the
//! record `evidence.json` and the files that prove the lie. What is there is never removed to make room: a record keeps its
//! peer quarantined. Every method blocks on the disk.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use libp2p::PeerId;
use pangea_compute::Digest;
use pangea_control::trust::accusations::{Accusation, EvidenceKind};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::bundle;
use crate::storage::whole_file;

/// Maximum records: as many as the directory of peers remembers. Further liars stay quarantined until the node restarts.
const RECORDS_MAX: usize = 4096;

/// Maximum bytes of the files beside the records. Beyond it the record alone is kept, and this node cannot prove that lie to
/// others.
const FILES_BYTES_MAX: u64 = 2 << 30;

/// Maximum bytes of evidence that waits here although this node cannot check it: receipts of usual answers. Other members have
/// the larger ones.
const WAITING_BYTES_MAX: u64 = 1 << 20;

/// Maximum bytes of a record that is read: one with all its fields takes some hundred.
const RECORD_BYTES_MAX: u64 = 64 << 10;

/// Name of the record.
const RECORD: &str = "evidence.json";

/// The evidence of a data directory.
#[derive(Clone, Debug)]
pub struct EvidenceFolder {
    root: PathBuf,
}

/// Facts about one lie, for the record.
pub(super) struct Facts<'f> {
    /// The liar.
    pub(super) peer: PeerId,
    /// Kind of the evidence.
    pub(super) kind: EvidenceKind,
    /// What the peer did, for people.
    pub(super) why: &'f str,
    /// Last part of the folder's name.
    pub(super) name: &'f str,
    /// Whether this node checked the evidence itself and so tells it to others.
    pub(super) is_shared: bool,
    /// More about it, for people.
    pub(super) more: Value,
}

/// A record that was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Kept {
    /// The folder.
    pub folder: PathBuf,
    /// The convicted peer.
    pub peer: PeerId,
    /// What it did.
    pub why: String,
    /// Kind, hash and size of the evidence, if this node has its files and checked them itself.
    pub evidence: Option<(EvidenceKind, Digest, u64)>,
}

/// Evidence of another node that is on this disk and not yet checked.
#[derive(Debug)]
pub(super) struct Arrived {
    folder: PathBuf,
}

impl Arrived {
    /// The folder with its files.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether it may wait here until others confirm it.
    pub(super) fn is_small(&self) -> bool {
        bytes_in(&self.folder) <= WAITING_BYTES_MAX
    }
}

impl Drop for Arrived {
    fn drop(&mut self) {
        // Whatever is left of it is swept when the node starts again.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl EvidenceFolder {
    /// The evidence of a data directory; the folder is created with the first record.
    pub fn new(data_dir: &Path) -> EvidenceFolder {
        EvidenceFolder { root: data_dir.join("evidence") }
    }

    /// Every record, oldest first. Unreadable ones accuse nobody.
    pub fn load(&self) -> Vec<Kept> {
        let mut folders = self.folders().unwrap_or_default();
        folders.sort();
        folders.into_iter().filter_map(read_record).collect()
    }

    /// Keeps evidence whose files `fill` writes into the given folder; returns the record. Where there is no place for the
    /// files, the record is kept without them.
    ///
    /// # Errors
    /// `StorageFull` if there are too many records; errors of the disk. Nothing is kept then.
    pub(super) fn keep(&self, facts: &Facts<'_>, fill: impl Fn(&Path) -> io::Result<()>) -> io::Result<Kept> {
        whole_file::private_folder(&self.root)?;
        let folders = self.folders()?;
        if folders.len() >= RECORDS_MAX {
            let why = format!("{} has {RECORDS_MAX} records, its maximum", self.root.display());
            return Err(io::Error::new(io::ErrorKind::StorageFull, why));
        }
        let used: u64 = folders.iter().map(|folder| bytes_in(folder)).sum();
        let unix_seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let folder = self.root.join(format!("{unix_seconds}-{}-{}", facts.peer, facts.name));
        let make = |with_files: bool| -> io::Result<Option<(Digest, u64)>> {
            let mut evidence = None;
            whole_file::create_folder(&folder, |inside| {
                if with_files {
                    fill(inside)?;
                    let (digest, bytes) = bundle::address(inside, facts.kind)?;
                    if bytes > bundle::BUNDLE_BYTES_MAX || used + bytes > FILES_BYTES_MAX {
                        return Err(io::Error::new(io::ErrorKind::StorageFull, "the files are too large"));
                    }
                    evidence = Some((digest, bytes));
                }
                let record = record(facts, unix_seconds, evidence);
                File::create_new(inside.join(RECORD))?.write_all(&serde_json::to_vec_pretty(&record)?)
            })?;
            Ok(evidence)
        };
        let evidence = match make(true) {
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                tracing::warn!(event = "evidence_without_files", folder = %folder.display(), %error, "only the record of evidence is kept: {error}");
                make(false)?
            }
            made => made?,
        };
        let evidence = evidence.filter(|_| facts.is_shared).map(|(digest, bytes)| (facts.kind, digest, bytes));
        Ok(Kept { folder, peer: facts.peer, why: facts.why.to_owned(), evidence })
    }

    /// A new file for evidence that arrives.
    pub(super) fn arriving(&self) -> io::Result<(PathBuf, BufWriter<File>)> {
        whole_file::private_folder(&self.root)?;
        let path = whole_file::unfinished(&self.root.join("arriving"));
        Ok((path.clone(), BufWriter::new(File::create_new(path)?)))
    }

    /// Unpacks evidence that arrived in a file.
    ///
    /// # Errors
    /// `InvalidData` for bytes that are no such evidence; errors of the disk.
    pub(super) fn unpack(&self, file: &Path, kind: EvidenceKind) -> io::Result<Arrived> {
        let arrived = Arrived { folder: whole_file::unfinished(&self.root.join("arrived")) };
        whole_file::private_folder(arrived.folder())?;
        bundle::read(&mut io::BufReader::new(File::open(file)?), kind, arrived.folder())?;
        Ok(arrived)
    }

    /// Keeps evidence that arrived from another node; only its record if the files are gone.
    ///
    /// # Errors
    /// As [`EvidenceFolder::keep`].
    pub(super) fn keep_arrived(
        &self,
        arrived: Option<&Arrived>,
        accusation: &Accusation,
        why: &str,
        is_shared: bool,
        more: Value,
    ) -> io::Result<Kept> {
        let name = &accusation.evidence.to_string()[..12];
        let facts = Facts { peer: accusation.accused, kind: accusation.kind, why, name, is_shared, more };
        self.keep(&facts, |inside| {
            let gone = || io::Error::new(io::ErrorKind::StorageFull, "its files were too large to wait here");
            let from = arrived.ok_or_else(gone)?.folder();
            bundle::files(accusation.kind)
                .iter()
                .try_for_each(|name| std::fs::rename(from.join(name), inside.join(name)))
        })
    }

    fn folders(&self) -> io::Result<Vec<PathBuf>> {
        let entries = match std::fs::read_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>()?;
        let is_record =
            |path: &PathBuf| path.file_name().is_some_and(|name| !name.as_encoded_bytes().starts_with(b"."));
        Ok(paths.into_iter().filter(is_record).collect())
    }
}

fn record(facts: &Facts<'_>, unix_seconds: u64, evidence: Option<(Digest, u64)>) -> Value {
    let mut record = match &facts.more {
        Value::Object(more) => more.clone(),
        _ => Map::new(),
    };
    record.insert("peer".to_owned(), json!(facts.peer.to_string()));
    record.insert("unix_seconds".to_owned(), json!(unix_seconds));
    record.insert("why".to_owned(), json!(facts.why));
    record.insert("kind".to_owned(), json!(kind_name(facts.kind)));
    record.insert("shared".to_owned(), json!(facts.is_shared));
    if let Some((digest, bytes)) = evidence {
        record.insert("evidence".to_owned(), json!(digest.to_string()));
        record.insert("evidence_bytes".to_owned(), json!(bytes));
    }
    Value::Object(record)
}

fn read_record(folder: PathBuf) -> Option<Kept> {
    #[derive(Deserialize)]
    struct Record {
        peer: String,
        why: String,
        kind: Option<String>,
        evidence: Option<String>,
        evidence_bytes: Option<u64>,
        #[serde(default)]
        shared: bool,
    }
    let path = folder.join(RECORD);
    if std::fs::metadata(&path).ok()?.len() > RECORD_BYTES_MAX {
        return None;
    }
    let record: Record = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    let evidence = || {
        let kind = [EvidenceKind::Product, EvidenceKind::Stage, EvidenceKind::Contradiction]
            .into_iter()
            .find(|kind| record.kind.as_deref() == Some(kind_name(*kind)))?;
        let digest = digest_of(record.evidence.as_deref()?)?;
        let has_files = bundle::files(kind).iter().all(|name| folder.join(name).is_file());
        (record.shared && has_files).then_some((kind, digest, record.evidence_bytes?))
    };
    let (peer, evidence) = (record.peer.parse().ok()?, evidence());
    Some(Kept { folder, peer, why: record.why, evidence })
}

fn digest_of(text: &str) -> Option<Digest> {
    let hash = blake3::Hash::from_hex(text).ok()?;
    Some(Digest::from_bytes(*hash.as_bytes()))
}

/// Name of a kind in records and logs.
pub(super) fn kind_name(kind: EvidenceKind) -> &'static str {
    match kind {
        EvidenceKind::Product => "product",
        EvidenceKind::Stage => "stage",
        EvidenceKind::Contradiction => "contradiction",
    }
}

/// Bytes of the files in a folder. What cannot be read takes no room.
fn bytes_in(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries.flatten().filter_map(|entry| entry.metadata().ok()).map(|facts| facts.len()).sum()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn keep(evidence: &EvidenceFolder, peer: PeerId, name: &str) -> io::Result<Kept> {
        let facts = Facts {
            peer,
            kind: EvidenceKind::Contradiction,
            why: "two claims",
            name,
            is_shared: true,
            more: json!({"session": "1"}),
        };
        evidence.keep(&facts, |inside| std::fs::write(inside.join(bundle::CLAIMS), b"claims"))
    }

    #[test]
    fn the_evidence_against_a_peer_stays_however_many_others_are_accused() {
        let data_dir = tempfile::tempdir().unwrap();
        let evidence = EvidenceFolder::new(data_dir.path());
        let first = PeerId::random();
        keep(&evidence, first, "1").unwrap();
        for number in 0..100 {
            keep(&evidence, PeerId::random(), &number.to_string()).unwrap();
        }
        let kept = evidence.load();
        assert_eq!(kept.len(), 101);
        let of_first = kept.iter().find(|kept| kept.peer == first).unwrap();
        assert_eq!((of_first.why.as_str(), of_first.evidence.is_some()), ("two claims", true));
    }

    #[test]
    fn records_and_files_are_their_owners_alone() {
        let data_dir = tempfile::tempdir().unwrap();
        let evidence = EvidenceFolder::new(data_dir.path());
        let kept = keep(&evidence, PeerId::random(), "1").unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&data_dir.path().join("evidence")), mode(&kept.folder)), (0o700, 0o700));
        for file in std::fs::read_dir(&kept.folder).unwrap() {
            assert_eq!(mode(&file.unwrap().path()), 0o600);
        }
    }

    #[test]
    fn a_record_is_kept_without_files_that_are_too_large_and_nothing_is_kept_half() {
        let data_dir = tempfile::tempdir().unwrap();
        let evidence = EvidenceFolder::new(data_dir.path());
        let peer = PeerId::random();
        let facts = |name| Facts {
            peer,
            kind: EvidenceKind::Contradiction,
            why: "two claims",
            name,
            is_shared: true,
            more: Value::Null,
        };
        let large = |inside: &Path| File::create(inside.join(bundle::CLAIMS))?.set_len(bundle::BUNDLE_BYTES_MAX);
        let kept = evidence.keep(&facts("1"), large).unwrap();
        assert_eq!(kept.evidence, None);
        assert_eq!(evidence.load(), [kept]);
        let failing = |_: &Path| Err(io::ErrorKind::Other.into());
        assert!(evidence.keep(&facts("2"), failing).is_err());
        assert_eq!(std::fs::read_dir(data_dir.path().join("evidence")).unwrap().count(), 1);
    }

    #[test]
    fn evidence_that_arrived_is_kept_or_leaves_nothing() {
        let data_dir = tempfile::tempdir().unwrap();
        let evidence = EvidenceFolder::new(data_dir.path());
        let (path, mut file) = evidence.arriving().unwrap();
        file.write_all(b"pge1\x03\x06\0\0\0\0\0\0\0claims").unwrap();
        file.flush().unwrap();
        assert!(evidence.unpack(&path, EvidenceKind::Stage).is_err());
        let arrived = evidence.unpack(&path, EvidenceKind::Contradiction).unwrap();
        let (digest, evidence_bytes) = bundle::address(arrived.folder(), EvidenceKind::Contradiction).unwrap();
        let [accuser, accused] = [PeerId::random(), PeerId::random()];
        let kind = EvidenceKind::Contradiction;
        let accusation = Accusation { accuser, accused, kind, evidence: digest, evidence_bytes };
        let kept = evidence.keep_arrived(Some(&arrived), &accusation, "two claims", true, Value::Null).unwrap();
        drop(arrived);
        std::fs::remove_file(path).unwrap();
        assert_eq!(kept.evidence, Some((kind, digest, evidence_bytes)));
        assert_eq!(evidence.load(), [kept]);
        assert_eq!(std::fs::read_dir(data_dir.path().join("evidence")).unwrap().count(), 1);
    }
}
