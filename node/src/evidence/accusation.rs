//! An accusation as the bytes that its accuser signs. Only parsed and written here.

use libp2p::PeerId;
use libp2p::identity::Keypair;
use pangea_client::Result;
use pangea_compute::Digest;
use pangea_control::trust::accusations::{Accusation, EvidenceKind};

use crate::trust::Signature;

/// First bytes of every accusation: the format and its version.
const TAG: &[u8; 20] = b"pangea accusation/1\0";

/// Bytes of the peer id of an Ed25519 key, as every node has one.
const PEER_BYTES: usize = 38;

/// Bytes that are signed.
const UNSIGNED_BYTES: usize = TAG.len() + 1 + PEER_BYTES + 32 + 8;

/// An accusation with its accuser's signature, which was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedAccusation {
    accusation: Accusation,
    signature: Signature,
}

impl SignedAccusation {
    /// Length of [`SignedAccusation::to_bytes`].
    pub const BYTES: usize = UNSIGNED_BYTES + Signature::BYTES;

    /// Signs an accusation in the name of the key's owner, whom it must name as its accuser.
    ///
    /// # Errors
    /// As [`Signature::make`].
    pub fn new(accusation: Accusation, keypair: &Keypair) -> Result<SignedAccusation> {
        debug_assert_eq!(accusation.accuser, keypair.public().to_peer_id());
        Ok(SignedAccusation { signature: Signature::make(keypair, &unsigned(&accusation))?, accusation })
    }

    /// The accusation.
    pub fn accusation(&self) -> &Accusation {
        &self.accusation
    }

    /// The canonical bytes: the tag `"pangea accusation/1\0"`, the kind of evidence as one byte, the accused's peer id, the hash
    /// of the evidence, its size (little-endian), the accuser's key and signature.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = unsigned(&self.accusation);
        bytes.extend(self.signature.to_bytes());
        bytes
    }

    /// Parses an accusation; `None` for bytes that are not canonical. The signature is not verified yet.
    pub fn parse(bytes: &[u8; SignedAccusation::BYTES]) -> Option<Unverified> {
        let (tag, rest) = bytes.split_first_chunk()?;
        let (kind, rest) = rest.split_first()?;
        let (accused, rest) = rest.split_first_chunk::<PEER_BYTES>()?;
        let (evidence, rest) = rest.split_first_chunk()?;
        let (size, signature) = rest.split_first_chunk()?;
        let kind = ALL.into_iter().find(|known| code(*known) == *kind)?;
        let signature = Signature::parse(signature.first_chunk()?)?;
        let accusation = Accusation {
            accuser: signature.peer(),
            accused: PeerId::from_bytes(accused).ok()?,
            kind,
            evidence: Digest::from_bytes(*evidence),
            evidence_bytes: u64::from_le_bytes(*size),
        };
        (tag == TAG).then_some(Unverified(SignedAccusation { accusation, signature }))
    }
}

/// An accusation whose signature is not verified.
#[derive(Clone, Debug)]
pub struct Unverified(SignedAccusation);

impl Unverified {
    /// Who is said to accuse, and by which evidence.
    pub fn says(&self) -> (PeerId, Digest) {
        (self.0.accusation.accuser, self.0.accusation.evidence)
    }

    /// The accusation, if its accuser signed it.
    pub fn verify(self) -> Option<SignedAccusation> {
        self.0.signature.holds(&unsigned(&self.0.accusation)).then_some(self.0)
    }
}

const ALL: [EvidenceKind; 3] = [EvidenceKind::Product, EvidenceKind::Stage, EvidenceKind::Contradiction];

/// The byte that stands for a kind of evidence; never changed.
pub(super) fn code(kind: EvidenceKind) -> u8 {
    match kind {
        EvidenceKind::Product => 1,
        EvidenceKind::Stage => 2,
        EvidenceKind::Contradiction => 3,
    }
}

fn unsigned(accusation: &Accusation) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(SignedAccusation::BYTES);
    bytes.extend(TAG);
    bytes.push(code(accusation.kind));
    bytes.extend(accusation.accused.to_bytes());
    bytes.extend(accusation.evidence.as_bytes());
    bytes.extend(accusation.evidence_bytes.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_accusation_comes_back_and_no_changed_one_is_verified() {
        let (keypair, accused) = (Keypair::generate_ed25519(), Keypair::generate_ed25519().public().to_peer_id());
        let accuser = keypair.public().to_peer_id();
        let (kind, evidence) = (EvidenceKind::Stage, Digest::from_bytes([7; 32]));
        let accusation = Accusation { accuser, accused, kind, evidence, evidence_bytes: 1 << 20 };
        let signed = SignedAccusation::new(accusation, &keypair).unwrap();
        let bytes: [u8; SignedAccusation::BYTES] = signed.to_bytes().try_into().unwrap();
        assert_eq!(bytes[..21], *b"pangea accusation/1\0\x02");
        assert_eq!(SignedAccusation::parse(&bytes).and_then(Unverified::verify), Some(signed));
        for bit in 0..SignedAccusation::BYTES * 8 {
            let mut changed = bytes;
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SignedAccusation::parse(&changed).and_then(Unverified::verify), None, "{bit}");
        }
    }
}
