//! Checks evidence of another member again, so that nobody is convicted by a word: arithmetic for products and contradictions, a
//! replay for stages. It decides nothing beyond what the evidence shows. Blocks and computes.

use std::io;
use std::path::Path;
use std::time::Duration;

use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::check::proof::Proof;
use pangea_compute::commit::Claim;
use pangea_compute::{Cancel, NpyFile, Pool, Tensor};
use pangea_control::trust::accusations::{Accusation, EvidenceKind, Recheck};

use super::bundle::{CLAIMS, PLACE, RECEIPT, STATEMENT, TENSORS};
use super::findings::{StageReplay, contradict, product_sentence};
use crate::compute_error;
use crate::devices::{Devices, Kind};
use crate::trust::store::RECEIPT_BYTES_MAX;
use crate::trust::{FailedAudit, Receipt, Signature, Signed, SignedProduct};

/// Time that a check waits for memory: products and loads release theirs within seconds, or keep it for good.
const MEMORY_TIMEOUT: Duration = Duration::from_secs(10);

/// What a check found.
pub(super) struct Found {
    pub(super) outcome: Recheck,
    /// What the accused did, for people; written by this node.
    pub(super) why: String,
}

/// What a check uses.
pub(super) struct Means<'m> {
    pub(super) devices: &'m Devices,
    pub(super) pool: &'m Pool,
    pub(super) replay: Option<&'m dyn StageReplay>,
}

/// Checks the evidence in a folder against its accusation.
pub(super) fn recheck(folder: &Path, accusation: &Accusation, means: &Means<'_>) -> Found {
    let found = match accusation.kind {
        EvidenceKind::Product => product(folder, accusation, means),
        EvidenceKind::Stage => stage(folder, accusation, means),
        EvidenceKind::Contradiction => contradiction(folder, accusation),
    };
    match found {
        Ok(found) => found,
        // What cannot be read proves nothing; what cannot be computed may still be true.
        Err(error) if error.kind() == ErrorKind::InvalidInput => {
            tracing::debug!(event = "evidence_unreadable", accused = %accusation.accused, %error);
            refuted()
        }
        Err(error) => {
            tracing::info!(event = "evidence_unchecked", accused = %accusation.accused, %error, "cannot check evidence against {}: {error}", accusation.accused);
            Found { outcome: Recheck::Unable, why: "members checked evidence against it".to_owned() }
        }
    }
}

fn refuted() -> Found {
    Found { outcome: Recheck::Refuted, why: String::new() }
}

fn product(folder: &Path, accusation: &Accusation, means: &Means<'_>) -> Result<Found> {
    let signed = SignedProduct::parse(&read(&folder.join(STATEMENT), SignedProduct::BYTES as u64)?);
    let Some(signed) = signed.filter(|signed| signed.is_by(&accusation.accused)) else { return Ok(refuted()) };
    // The tensors, and for the result once more what it is compared with.
    let bytes = accusation.evidence_bytes.saturating_mul(2);
    let _memory = means.devices.lease_within(Kind::Audits, bytes, MEMORY_TIMEOUT)?;
    let [a, b, c] = TENSORS.map(|name| tensor(&folder.join(name)));
    let (a, b, c) = (a?, b?, c?);
    let claim = signed.claim;
    if [a.digest(), b.digest(), c.digest()] != [claim.operands[0], claim.operands[1], claim.result] {
        return Ok(refuted());
    }
    let proof = claim.operation.prove([&a, &b, &c], rand::random(), means.pool, &Cancel::new());
    Ok(match proof {
        Ok(Proof::Wrong(mismatch)) => Found { outcome: Recheck::Proven, why: product_sentence(&mismatch.to_string()) },
        Ok(Proof::Passes) => refuted(),
        Ok(Proof::Unclear) => {
            let why = "a difference that rounding may explain";
            return Err(Error::new(ErrorKind::Unavailable, why));
        }
        Err(error @ pangea_compute::Error::OutOfMemory { .. }) => return Err(compute_error(error)),
        // There is no such product: an honest worker signs none, and what else was signed cannot be judged.
        Err(_) => refuted(),
    })
}

fn stage(folder: &Path, accusation: &Accusation, means: &Means<'_>) -> Result<Found> {
    let place = read(&folder.join(PLACE), 8)?;
    let number = |at: usize| place.get(at..at + 4).and_then(|four| Some(u32::from_le_bytes(four.try_into().ok()?)));
    let (Some(segment), Some(stage)) = (number(0), number(4)) else { return Ok(refuted()) };
    let (segment, stage) = (segment as usize, stage as usize);
    let json = read(&folder.join(RECEIPT), RECEIPT_BYTES_MAX)?;
    let Ok(receipt) = Receipt::parse(&json) else { return Ok(refuted()) };
    let failed = FailedAudit { receipt: &receipt, segment, stage, position: None };
    // The accused signed the claim, whatever else the receipt says.
    let Some((_, why)) = failed.accusation().filter(|(peer, _)| *peer == accusation.accused) else {
        return Ok(refuted());
    };
    let unable = || Error::new(ErrorKind::NotFound, "this node computes no models");
    let is_lie = means.replay.ok_or_else(unable)?.refutes(&receipt, segment, stage)?;
    let outcome = if is_lie { Recheck::Proven } else { Recheck::Refuted };
    Ok(Found { outcome, why })
}

fn contradiction(folder: &Path, accusation: &Accusation) -> Result<Found> {
    const ONE: usize = Claim::BYTES_MAX + Signature::BYTES;
    let bytes = read(&folder.join(CLAIMS), 2 * ONE as u64)?;
    let claims = split_signed(&bytes).and_then(|(first, rest)| {
        let (second, rest) = split_signed(rest)?;
        rest.is_empty().then_some((first, second))
    });
    let proven =
        claims.is_some_and(|(first, second)| first.peer() == accusation.accused && contradict(&first, &second));
    let outcome = if proven { Recheck::Proven } else { Recheck::Refuted };
    Ok(Found { outcome, why: "it signed two claims that contradict each other".to_owned() })
}

/// The claim at the start of these bytes with its signature, and the bytes after it.
fn split_signed(bytes: &[u8]) -> Option<(Signed, &[u8])> {
    let (claim, rest) = Claim::split_off(bytes)?;
    let (signature, rest) = rest.split_first_chunk()?;
    Some((Signed { claim, signature: Signature::parse(signature)?, received: None }, rest))
}

/// Reads a file of at most `limit` bytes.
fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let unreadable = |error: io::Error| Error::new(ErrorKind::Internal, format!("{}: {error}", path.display()));
    if std::fs::metadata(path).map_err(unreadable)?.len() > limit {
        return Err(Error::new(ErrorKind::InvalidInput, format!("{} is too large", path.display())));
    }
    std::fs::read(path).map_err(unreadable)
}

fn tensor(path: &Path) -> Result<Tensor> {
    let wrong = |error: pangea_compute::Error| Error::new(ErrorKind::InvalidInput, error.to_string());
    NpyFile::open(path).and_then(|file| file.whole()).and_then(|tensor| tensor.to_contiguous()).map_err(wrong)
}
