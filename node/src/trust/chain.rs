//! The signed claims of one session, in the order of its stages. The chain travels from stage to stage when a session ends;
//! this file parses it and checks that the claims fit together. It recomputes nothing and sends nothing.

use std::ops::Range;

use libp2p::PeerId;
use libp2p::identity::Keypair;
use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::Digest;
use pangea_compute::commit::{Claim, Profile};
use serde::{Deserialize, Serialize};
use thiserror::Error as ThisError;

use super::{Signature, hex};

/// First bytes of an encoded chain: the format and its version.
const MAGIC: [u8; 4] = *b"pgc1";

/// Maximum stages of one session: one per layer of the deepest models.
pub const STAGES_MAX: usize = 128;

/// Maximum bytes of an encoded chain.
pub const CHAIN_BYTES_MAX: usize = MAGIC.len() + 1 + STAGES_MAX * LINK_BYTES_MAX;

const LINK_BYTES_MAX: usize = Claim::BYTES_MAX + 2 * Signature::BYTES + 1;

/// Prefix of the bytes that a receiver signs; the digest of the claim follows.
const RECEIVED: &[u8] = b"pangea exact/1 received\0";

/// One stage's claim with the stage's signature and that of the receiver of its output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// The stage's claim.
    pub claim: Claim,
    /// The stage's signature over the claim's bytes.
    pub signature: Signature,
    /// Signature of the receiver: the next stage, or the coordinator for the last stage.
    pub received: Option<Signature>,
}

impl Signed {
    /// Signs a claim.
    ///
    /// # Errors
    /// As [`Signature::make`].
    pub fn new(claim: Claim, keypair: &Keypair) -> Result<Signed> {
        let signature = Signature::make(keypair, &claim.to_bytes())?;
        Ok(Signed { claim, signature, received: None })
    }

    /// The peer that made the claim.
    pub fn peer(&self) -> PeerId {
        self.signature.peer()
    }

    /// Adds the receiver's signature: the claimed output is what was received.
    ///
    /// # Errors
    /// As [`Signature::make`].
    pub fn countersign(&mut self, keypair: &Keypair) -> Result<()> {
        self.received = Some(Signature::make(keypair, &received_bytes(&self.claim))?);
        Ok(())
    }

    /// Whether the stage's signature is valid for this claim.
    pub fn is_signed(&self) -> bool {
        self.signature.holds(&self.claim.to_bytes())
    }

    /// The peer that signed as receiver, if its signature is valid.
    pub fn receiver(&self) -> Option<PeerId> {
        let received = self.received.as_ref()?;
        received.holds(&received_bytes(&self.claim)).then(|| received.peer())
    }
}

fn received_bytes(claim: &Claim) -> Vec<u8> {
    [RECEIVED, claim.digest().as_bytes()].concat()
}

/// What a coordinator expects of a session's chain.
#[derive(Clone, Debug)]
pub struct Expected<'a> {
    /// Id of the session.
    pub session: [u8; 16],
    /// Version of the placement.
    pub epoch: u64,
    /// Digest of the model.
    pub model: Digest,
    /// Version of the numerics.
    pub numerics: u32,
    /// The stages in order: peer and layers.
    pub stages: &'a [(PeerId, Range<u32>)],
    /// Positions that the stages were asked to compute.
    pub positions: u64,
    /// First position whose following token the last stage chose.
    pub chosen_from: u64,
    /// Digest of the sampling terms: [`terms_digest`](super::terms_digest).
    pub sampling: Digest,
    /// Root over the tokens sent to the first stage.
    pub input: [u8; 32],
    /// Root over the output received from the last stage.
    pub output: [u8; 32],
}

/// A check that a chain fails. It is no proof against the peer; proof is in the chain's signatures.
#[derive(Clone, Debug, PartialEq, Eq, ThisError)]
#[error("peer {peer}: {why}")]
pub struct ChainFault {
    /// Peer whose claim fails.
    pub peer: PeerId,
    /// Index of its stage.
    pub stage: usize,
    /// What fails.
    pub kind: FaultKind,
    /// Why the claim fails.
    pub why: String,
}

/// What fails in a chain's check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The stage did not sign, or its signature is invalid.
    Unsigned,
    /// The claim is about other work, or other sampling terms.
    OtherWork,
    /// The claim names another input.
    OtherInput,
    /// The last stage's claim names other tokens.
    OtherTokens,
    /// The next stage did not countersign.
    Uncountersigned,
    /// There are more claims than stages.
    Beyond,
}

impl From<ChainFault> for Error {
    fn from(fault: ChainFault) -> Error {
        Error::new(ErrorKind::VerificationFailed, fault.to_string())
    }
}

/// The claims of a session's stages, first stage first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommitChain {
    /// One claim per stage that the chain has passed.
    pub links: Vec<Signed>,
}

impl CommitChain {
    /// An empty chain, as the coordinator sends it to the first stage.
    pub fn new() -> CommitChain {
        CommitChain::default()
    }

    /// Called by a stage: checks that the previous stage claims the output that this stage received,
    /// countersigns that claim, and appends this stage's own `claim`.
    ///
    /// # Errors
    /// `VerificationFailed` if the previous stage claims something else or did not sign;
    /// `Internal` as [`Signature::make`]. The chain is then unchanged and must not be passed on.
    pub fn pass(&mut self, claim: Claim, keypair: &Keypair) -> Result<()> {
        let signed = Signed::new(claim, keypair)?;
        if let Some(before) = self.links.last_mut() {
            follows(before, &signed.claim).map_err(|why| {
                let why = format!("peer {}: {why}; this stage cannot sign for it", before.peer());
                Error::new(ErrorKind::VerificationFailed, why)
            })?;
            before.countersign(keypair)?;
        }
        self.links.push(signed);
        Ok(())
    }

    /// Called by the coordinator: checks the chain ([`CommitChain::check`]), then countersigns the last claim.
    ///
    /// # Errors
    /// `VerificationFailed` with the [`ChainFault`]'s text; `Internal` as [`Signature::make`].
    pub fn close(&mut self, expected: &Expected<'_>, keypair: &Keypair) -> Result<()> {
        self.check(expected)?;
        match self.links.last_mut() {
            Some(last) => last.countersign(keypair),
            None => Ok(()),
        }
    }

    /// Checks that every stage signed what the coordinator expects, and that each received what its predecessor claims as
    /// output.
    /// # Errors
    /// The first [`ChainFault`].
    pub fn check(&self, expected: &Expected<'_>) -> std::result::Result<(), ChainFault> {
        for (index, (peer, layers)) in expected.stages.iter().enumerate() {
            let fault =
                |kind: FaultKind, why: &str| Err(ChainFault { peer: *peer, stage: index, kind, why: why.to_owned() });
            let Some(signed) = self.links.get(index) else {
                return fault(FaultKind::Unsigned, "did not sign a claim");
            };
            let claim = &signed.claim;
            let same = (claim.session, claim.epoch, claim.model, claim.numerics, claim.positions, claim.chosen_from)
                == (
                    expected.session,
                    expected.epoch,
                    expected.model,
                    expected.numerics,
                    expected.positions,
                    expected.chosen_from,
                );
            let input = if index == 0 { expected.input } else { self.links[index - 1].claim.output };
            let last = index + 1 == expected.stages.len();
            let next = expected.stages.get(index + 1).map(|(next, _)| *next);
            if signed.peer() != *peer || !signed.is_signed() {
                return fault(FaultKind::Unsigned, "the signature of its claim is invalid");
            } else if !same || claim.layers != *layers {
                return fault(FaultKind::OtherWork, "its claim is about other work than was requested");
            } else if claim.sampling != expected.sampling {
                return fault(FaultKind::OtherWork, "its claim names other sampling terms than were requested");
            } else if claim.predecessor != input {
                return fault(FaultKind::OtherInput, "its claim names another input than it was sent");
            } else if last && claim.output != expected.output {
                return fault(FaultKind::OtherTokens, "its claim names other tokens than it sent");
            } else if next.is_some() && signed.receiver() != next {
                return fault(FaultKind::Uncountersigned, "the next stage did not countersign its output");
            }
        }
        match self.links.get(expected.stages.len()) {
            None => Ok(()),
            Some(beyond) => Err(ChainFault {
                peer: beyond.peer(),
                stage: expected.stages.len(),
                kind: FaultKind::Beyond,
                why: "it is not a stage of this session".to_owned(),
            }),
        }
    }

    /// Encodes the chain: `"pgc1"`, the number of links (u8), and for each link the claim's bytes, key and signature,
    /// then a byte 0, or a byte 1 and the receiver's key and signature.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(MAGIC.len() + 1 + self.links.len() * LINK_BYTES_MAX);
        bytes.extend(MAGIC);
        bytes.push(self.links.len().min(STAGES_MAX) as u8);
        for signed in self.links.iter().take(STAGES_MAX) {
            bytes.extend(signed.claim.to_bytes());
            bytes.extend(signed.signature.to_bytes());
            match &signed.received {
                None => bytes.push(0),
                Some(received) => {
                    bytes.push(1);
                    bytes.extend(received.to_bytes());
                }
            }
        }
        bytes
    }

    /// Decodes a chain; every chain has exactly one encoding.
    ///
    /// # Errors
    /// `InvalidInput` for anything else.
    pub fn decode(bytes: &[u8]) -> Result<CommitChain> {
        parse(bytes).ok_or_else(|| Error::new(ErrorKind::InvalidInput, "not an encoded chain of commitments"))
    }
}

fn parse(bytes: &[u8]) -> Option<CommitChain> {
    let (magic, rest) = bytes.split_first_chunk()?;
    let (count, mut rest) = rest.split_first()?;
    if *magic != MAGIC || usize::from(*count) > STAGES_MAX {
        return None;
    }
    let mut links = Vec::new();
    for _ in 0..*count {
        let (claim, after) = Claim::split_off(rest)?;
        let (signature, after) = after.split_first_chunk()?;
        let (flag, mut after) = after.split_first()?;
        let received = match flag {
            0 => None,
            1 => {
                let (received, beyond) = after.split_first_chunk()?;
                after = beyond;
                Some(Signature::parse(received)?)
            }
            _ => return None,
        };
        links.push(Signed { claim, signature: Signature::parse(signature)?, received });
        rest = after;
    }
    rest.is_empty().then_some(CommitChain { links })
}

/// Checks that `next` can follow `before` in a chain. Their outputs may be checked in different ways.
fn follows(before: &Signed, next: &Claim) -> std::result::Result<(), &'static str> {
    let claim = &before.claim;
    let terms = |claim: &Claim| {
        (claim.session, claim.epoch, claim.model, claim.numerics, claim.positions, claim.chosen_from, claim.sampling)
    };
    if !before.is_signed() {
        return Err("the signature of its claim is invalid");
    }
    if terms(claim) != terms(next) || claim.layers.end != next.layers.start {
        return Err("its claim does not precede this stage's work");
    }
    if claim.output != next.predecessor {
        return Err("its claim names another output than arrived here");
    }
    Ok(())
}

/// JSON form of a signed claim.
#[derive(Serialize, Deserialize)]
struct Record {
    #[serde(default, skip_serializing_if = "is_exact", with = "super::profile")]
    profile: Profile,
    #[serde(with = "hex")]
    session: [u8; 16],
    epoch: u64,
    #[serde(with = "hex::digest")]
    model: Digest,
    numerics: u32,
    layers: [u32; 2],
    positions: u64,
    chosen_from: u64,
    #[serde(with = "hex")]
    predecessor: [u8; 32],
    #[serde(with = "hex::digest")]
    sampling: Digest,
    #[serde(with = "hex")]
    output: [u8; 32],
    signed: Signature,
    received: Option<Signature>,
}

/// Claims that do not say otherwise are exact.
pub(super) fn is_exact(profile: &Profile) -> bool {
    *profile == Profile::Exact
}

impl Serialize for Signed {
    fn serialize<S: serde::Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        let claim = &self.claim;
        Record {
            profile: claim.profile,
            session: claim.session,
            epoch: claim.epoch,
            model: claim.model,
            numerics: claim.numerics,
            layers: [claim.layers.start, claim.layers.end],
            positions: claim.positions,
            chosen_from: claim.chosen_from,
            predecessor: claim.predecessor,
            sampling: claim.sampling,
            output: claim.output,
            signed: self.signature.clone(),
            received: self.received.clone(),
        }
        .serialize(to)
    }
}

impl<'de> Deserialize<'de> for Signed {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> std::result::Result<Signed, D::Error> {
        let record = Record::deserialize(from)?;
        let claim = Claim {
            profile: record.profile,
            session: record.session,
            epoch: record.epoch,
            model: record.model,
            numerics: record.numerics,
            layers: record.layers[0]..record.layers[1],
            positions: record.positions,
            chosen_from: record.chosen_from,
            predecessor: record.predecessor,
            sampling: record.sampling,
            output: record.output,
        };
        Ok(Signed { claim, signature: record.signed, received: record.received })
    }
}

#[cfg(test)]
#[path = "chain_tests.rs"]
pub(super) mod tests;
