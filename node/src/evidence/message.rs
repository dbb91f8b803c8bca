//! The messages of `/pangea/evidence/1`: typed here, Cap'n Proto on the wire (`schema/evidence.capnp`). A message that exists
//! is well formed; its reader checks whether it is true.

use pangea_client::ErrorKind;
use pangea_compute::Digest;
use pangea_schema::evidence_capnp as wire;

use super::accusation::SignedAccusation;
use super::bundle::BUNDLE_BYTES_MAX;
use crate::wire::field::{
    header_error, kind_from_wire, kind_to_wire, printable, read_digest, read_text, truncated, unknown_variant,
    write_digest,
};
use crate::wire::{FrameLimits, Header, WireError};

/// Maximum header length: that of a refusal with its text.
const MAX_HEADER_BYTES: u32 = 2048;
const MAX_REFUSAL_BYTES: usize = 1024;

/// Maximum bytes of evidence in one frame.
pub const CHUNK_BYTES: usize = 1 << 20;

/// Maximum accusations in one message: those of a pool with more liars than nodes.
pub const TOLD_MAX: usize = 4096;

const _: () = assert!(TOLD_MAX * SignedAccusation::BYTES <= CHUNK_BYTES, "a message is one frame");

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EvidenceMessage {
    /// So many accusations follow, as the payload.
    Told(u32),
    /// Question: the evidence with this hash.
    Wanted(Digest),
    /// Answer: some of the requested bytes, as the payload.
    Chunk {
        /// Bytes of the whole answer.
        total: u64,
        /// Offset of the payload in the answer.
        offset: u64,
    },
    /// Answer: the bytes are not sent.
    Refusal {
        /// Reason for programs.
        kind: ErrorKind,
        /// Reason for people.
        message: String,
    },
}

impl Header for EvidenceMessage {
    const LIMITS: FrameLimits = FrameLimits { header_bytes: MAX_HEADER_BYTES, payload_bytes: CHUNK_BYTES as u32 };

    fn name(&self) -> &'static str {
        match self {
            EvidenceMessage::Told(_) => "told",
            EvidenceMessage::Wanted(_) => "wanted",
            EvidenceMessage::Chunk { .. } => "chunk",
            EvidenceMessage::Refusal { .. } => "refusal",
        }
    }

    fn write(&self, to: capnp::any_pointer::Builder<'_>) {
        let mut to: wire::evidence_message::Builder<'_> = to.init_as();
        match self {
            EvidenceMessage::Told(number) => to.set_told(*number),
            EvidenceMessage::Wanted(evidence) => write_digest(evidence, to.init_wanted()),
            EvidenceMessage::Chunk { total, offset } => {
                let mut chunk = to.init_chunk();
                chunk.set_total(*total);
                chunk.set_offset(*offset);
            }
            EvidenceMessage::Refusal { kind, message } => {
                let mut refusal = to.init_refusal();
                refusal.set_kind(kind_to_wire(*kind));
                refusal.set_message(truncated(message, MAX_REFUSAL_BYTES));
            }
        }
    }

    fn read(from: capnp::any_pointer::Reader<'_>) -> Result<EvidenceMessage, WireError> {
        use wire::evidence_message::Which;
        let from: wire::evidence_message::Reader<'_> = from.get_as().map_err(header_error)?;
        Ok(match from.which().map_err(|unknown| unknown_variant("message", unknown.0))? {
            Which::Told(number) => EvidenceMessage::Told(number),
            Which::Wanted(evidence) => EvidenceMessage::Wanted(read_digest(evidence.map_err(header_error)?)),
            Which::Chunk(chunk) => {
                let chunk = chunk.map_err(header_error)?;
                EvidenceMessage::Chunk { total: chunk.get_total(), offset: chunk.get_offset() }
            }
            Which::Refusal(refusal) => {
                let refusal = refusal.map_err(header_error)?;
                EvidenceMessage::Refusal {
                    kind: refusal.get_kind().map(kind_from_wire).unwrap_or(ErrorKind::Internal),
                    message: printable(read_text("refusal", refusal.get_message(), MAX_REFUSAL_BYTES)?),
                }
            }
        })
    }

    /// Accusations have their length, and chunks lie within the largest evidence.
    fn check_payload(&self, payload_len: usize) -> Result<(), WireError> {
        match self {
            EvidenceMessage::Told(number) => {
                let bytes = (*number as usize).checked_mul(SignedAccusation::BYTES);
                if *number == 0 || *number as usize > TOLD_MAX || bytes != Some(payload_len) {
                    return self.refuse_payload(payload_len, format!(": {number} accusations"));
                }
                Ok(())
            }
            EvidenceMessage::Chunk { total, offset } => {
                let end = offset.checked_add(payload_len as u64);
                if payload_len == 0 || *total > BUNDLE_BYTES_MAX || end.is_none_or(|end| end > *total) {
                    return self.refuse_payload(payload_len, format!(": offset {offset} in evidence of {total} bytes"));
                }
                Ok(())
            }
            _ if payload_len != 0 => self.refuse_payload(payload_len, String::new()),
            _ => Ok(()),
        }
    }
}
