//! Evidence of a result that failed its check or a stage that failed its audit: everything needed to check the accusation
//! again. One folder each, `evidence/<seconds>-<peer>-<attempt>`. Evidence also keeps its
//! peer quarantined when the node restarts; removing the folder ends the quarantine.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use libp2p::PeerId;
use pangea_compute::{NpyWriter, Operation, Tensor};
use serde::{Deserialize, Serialize};

use crate::trust::FailedAudit;

/// Maximum folders; the oldest are removed first. A liar is quarantined after one lie, so each folder is another liar.
const FOLDERS_MAX: usize = 32;

/// Maximum bytes of a tile that is stored; of larger ones only digests are stored.
const BYTES_MAX: usize = 256 << 20;

/// A result that failed its check.
pub(crate) struct Evidence {
    pub(crate) peer: String,
    pub(crate) job: u64,
    pub(crate) attempt: u64,
    pub(crate) why: String,
    pub(crate) operation: Operation,
    pub(crate) a: Tensor,
    pub(crate) b: Tensor,
    pub(crate) c: Tensor,
}

#[derive(Serialize)]
struct Record<'e> {
    peer: &'e str,
    unix_seconds: u64,
    job: u64,
    attempt: u64,
    why: &'e str,
    claim: String,
    a: String,
    b: String,
    c: String,
}

impl Evidence {
    /// Stores the evidence below `data_dir`; returns the folder. Blocks.
    pub(crate) fn keep(&self, data_dir: &Path) -> std::io::Result<PathBuf> {
        let root = data_dir.join("evidence");
        std::fs::create_dir_all(&root)?;
        make_room(&root)?;
        let unix_seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let folder = root.join(format!("{unix_seconds}-{}-{}", self.peer, self.attempt));
        std::fs::create_dir_all(&folder)?;
        let record = Record {
            peer: &self.peer,
            unix_seconds,
            job: self.job,
            attempt: self.attempt,
            why: &self.why,
            claim: format!("c.npy is the {} of a.npy and b.npy", self.operation.result_name()),
            a: self.a.digest().to_string(),
            b: self.b.digest().to_string(),
            c: self.c.digest().to_string(),
        };
        let parts = [("a.npy", &self.a), ("b.npy", &self.b), ("c.npy", &self.c)];
        if parts.iter().map(|(_, tensor)| tensor.size_bytes()).sum::<usize>() <= BYTES_MAX {
            for (name, tensor) in parts {
                write(&folder.join(name), tensor).map_err(std::io::Error::other)?;
            }
        }
        std::fs::write(folder.join("evidence.json"), serde_json::to_vec_pretty(&record)?)?;
        Ok(folder)
    }
}

#[derive(Serialize)]
struct AuditRecord<'e> {
    peer: &'e str,
    unix_seconds: u64,
    why: String,
    claim: &'static str,
    receipt: &'e str,
    segment: usize,
    stage: usize,
    layers: [u32; 2],
    position: Option<u64>,
}

impl FailedAudit<'_> {
    /// Stores the evidence below `data_dir`, as `evidence/<seconds>-<peer>-<receipt>.<segment>.<stage>` with the whole
    /// receipt: anyone can check it with `pangea receipts verify …/receipt.json`. Returns the folder. Blocks.
    ///
    /// # Errors
    /// `InvalidInput` if the receipt holds no such claim; errors of the disk.
    pub fn keep(&self, data_dir: &Path) -> std::io::Result<PathBuf> {
        let Some((peer, why)) = self.accusation() else {
            return Err(std::io::Error::new(
                std::io::ErrorKind::InvalidInput,
                "the receipt holds no signed claim of the accused stage",
            ));
        };
        let root = data_dir.join("evidence");
        std::fs::create_dir_all(&root)?;
        make_room(&root)?;
        let unix_seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let (id, peer) = (&self.receipt.id, peer.to_string());
        let folder = root.join(format!("{unix_seconds}-{peer}-{id}.{}.{}", self.segment, self.stage));
        std::fs::create_dir_all(&folder)?;
        let layers = &self.receipt.segments[self.segment].claims[self.stage].claim.layers;
        let record = AuditRecord {
            peer: &peer,
            unix_seconds,
            why,
            claim: "receipt.json holds a claim whose output is what the model gives for its input",
            receipt: id,
            segment: self.segment,
            stage: self.stage,
            layers: [layers.start, layers.end],
            position: self.position,
        };
        let json = self.receipt.to_json().map_err(std::io::Error::other)?;
        std::fs::write(folder.join("receipt.json"), json)?;
        std::fs::write(folder.join("evidence.json"), serde_json::to_vec_pretty(&record)?)?;
        Ok(folder)
    }
}

/// The peers accused by evidence below `data_dir`, with reasons. Unreadable evidence accuses nobody.
pub(crate) fn accused(data_dir: &Path) -> Vec<(PeerId, String)> {
    #[derive(Deserialize)]
    struct Accusation {
        peer: String,
        why: String,
    }
    let Ok(folders) = std::fs::read_dir(data_dir.join("evidence")) else { return Vec::new() };
    let read = |folder: std::io::Result<std::fs::DirEntry>| {
        let text = std::fs::read(folder.ok()?.path().join("evidence.json")).ok()?;
        let accusation: Accusation = serde_json::from_slice(&text).ok()?;
        Some((accusation.peer.parse().ok()?, accusation.why))
    };
    folders.filter_map(read).collect()
}

fn write(path: &Path, tensor: &Tensor) -> Result<(), pangea_compute::Error> {
    let mut file = NpyWriter::create(path, tensor.dtype(), tensor.rows(), tensor.cols())?;
    file.write_block(0, 0, tensor)?;
    file.finish()
}

fn make_room(root: &Path) -> std::io::Result<()> {
    let mut folders: Vec<PathBuf> = std::fs::read_dir(root)?.filter_map(|entry| entry.ok().map(|e| e.path())).collect();
    folders.sort();
    let excess = (folders.len() + 1).saturating_sub(FOLDERS_MAX);
    folders.iter().take(excess).try_for_each(std::fs::remove_dir_all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::Signed;
    use crate::trust::receipt::tests::{claim, receipt};
    use libp2p::identity::Keypair;
    use pangea_compute::commit::Claim;

    #[test]
    fn evidence_of_a_failed_audit_names_the_liar_and_can_be_checked() {
        let folder = tempfile::tempdir().unwrap();
        let liar = Keypair::generate_ed25519();
        let mut receipt = receipt();
        receipt.segments[0].claims = vec![Signed::new(claim(), &liar).unwrap()];
        let audit = FailedAudit { receipt: &receipt, segment: 0, stage: 0, position: Some(1) };
        let kept = audit.keep(folder.path()).unwrap();
        assert_eq!(crate::trust::store::read(&kept.join("receipt.json")).unwrap(), receipt);
        let accused = accused(folder.path());
        assert_eq!(accused.len(), 1);
        assert_eq!(accused[0].0, liar.public().to_peer_id());
        assert!(accused[0].1.contains("layers 0-1 of tiny") && accused[0].1.contains("position 1"), "{accused:?}");

        // An unsigned claim accuses nobody.
        let other = Claim { epoch: 4, ..claim() };
        receipt.segments[0].claims[0].claim = other;
        let forged = FailedAudit { receipt: &receipt, segment: 0, stage: 0, position: None };
        assert!(forged.keep(folder.path()).is_err());
        assert!(FailedAudit { stage: 1, ..forged }.keep(folder.path()).is_err());
        assert_eq!(std::fs::read_dir(folder.path().join("evidence")).unwrap().count(), 1);
    }
}
