//! The messages of `/pangea/blob/1`: typed here, Cap'n Proto on the wire (`schema/blob.capnp`). A message that exists
//! is well formed; its reader checks whether it is true.

use pangea_client::ErrorKind;
use pangea_compute::Digest;
use pangea_compute::model::manifest::{MAX_MANIFEST_BYTES, PART_BYTES};
use pangea_schema::blob_capnp as wire;

use super::limits::CHUNK_BYTES;
use crate::wire::field::{
    header_error, kind_from_wire, kind_to_wire, printable, read_digest, read_text, read_trace, truncated,
    unknown_variant, write_digest,
};
use crate::wire::{FrameLimits, Header, TraceParent, WireError};

/// Maximum header length: that of a refusal with its text.
const MAX_HEADER_BYTES: u32 = 2048;
const MAX_REFUSAL_BYTES: usize = 1024;

/// Maximum length of an answer.
const MAX_ANSWER_BYTES: u64 =
    if PART_BYTES > MAX_MANIFEST_BYTES as u64 { PART_BYTES } else { MAX_MANIFEST_BYTES as u64 };

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlobMessage {
    /// Question: the manifest of this model.
    Manifest(Digest),
    /// Question: the parts of this model that the peer has, as one bit each, in the manifest's order, lowest bit first.
    Have(Digest),
    /// Question: one part.
    Part {
        /// Digest of the model.
        model: Digest,
        /// Index of the piece in the manifest.
        piece: u32,
        /// Index of the part within the piece.
        part: u32,
        /// The span of the fetch.
        trace: Option<TraceParent>,
    },
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

impl Header for BlobMessage {
    const LIMITS: FrameLimits = FrameLimits { header_bytes: MAX_HEADER_BYTES, payload_bytes: CHUNK_BYTES as u32 };

    fn name(&self) -> &'static str {
        match self {
            BlobMessage::Manifest(_) => "manifest",
            BlobMessage::Have(_) => "have",
            BlobMessage::Part { .. } => "part",
            BlobMessage::Chunk { .. } => "chunk",
            BlobMessage::Refusal { .. } => "refusal",
        }
    }

    fn write(&self, to: capnp::any_pointer::Builder<'_>) {
        let mut to: wire::blob_message::Builder<'_> = to.init_as();
        match self {
            BlobMessage::Manifest(model) => write_digest(model, to.init_manifest()),
            BlobMessage::Have(model) => write_digest(model, to.init_have()),
            BlobMessage::Part { model, piece, part, trace } => {
                let mut asked = to.init_part();
                if let Some(trace) = trace {
                    asked.set_trace(trace.to_string());
                }
                write_digest(model, asked.reborrow().init_model());
                asked.set_piece(*piece);
                asked.set_part(*part);
            }
            BlobMessage::Chunk { total, offset } => {
                let mut chunk = to.init_chunk();
                chunk.set_total(*total);
                chunk.set_offset(*offset);
            }
            BlobMessage::Refusal { kind, message } => {
                let mut refusal = to.reborrow().init_refusal();
                refusal.set_kind(kind_to_wire(*kind));
                refusal.set_message(truncated(message, MAX_REFUSAL_BYTES));
            }
        }
    }

    fn read(from: capnp::any_pointer::Reader<'_>) -> Result<BlobMessage, WireError> {
        use wire::blob_message::Which;
        let from: wire::blob_message::Reader<'_> = from.get_as().map_err(header_error)?;
        Ok(match from.which().map_err(|unknown| unknown_variant("message", unknown.0))? {
            Which::Manifest(model) => BlobMessage::Manifest(read_digest(model.map_err(header_error)?)),
            Which::Have(model) => BlobMessage::Have(read_digest(model.map_err(header_error)?)),
            Which::Part(part) => {
                let part = part.map_err(header_error)?;
                BlobMessage::Part {
                    model: read_digest(part.get_model().map_err(header_error)?),
                    piece: part.get_piece(),
                    part: part.get_part(),
                    trace: read_trace(part.get_trace()),
                }
            }
            Which::Chunk(chunk) => {
                let chunk = chunk.map_err(header_error)?;
                BlobMessage::Chunk { total: chunk.get_total(), offset: chunk.get_offset() }
            }
            Which::Refusal(refusal) => {
                let refusal = refusal.map_err(header_error)?;
                BlobMessage::Refusal {
                    kind: refusal.get_kind().map(kind_from_wire).unwrap_or(ErrorKind::Internal),
                    message: printable(read_text("refusal", refusal.get_message(), MAX_REFUSAL_BYTES)?),
                }
            }
        })
    }

    /// Only chunks have a payload, of at least one byte and within the answer's maximum length.
    fn check_payload(&self, payload_len: usize) -> Result<(), WireError> {
        match self {
            BlobMessage::Chunk { total, offset } => {
                let end = offset.checked_add(payload_len as u64);
                if payload_len == 0 || *total > MAX_ANSWER_BYTES || end.is_none_or(|end| end > *total) {
                    return self
                        .refuse_payload(payload_len, format!(": offset {offset} in an answer of {total} bytes"));
                }
                Ok(())
            }
            _ if payload_len != 0 => self.refuse_payload(payload_len, String::new()),
            _ => Ok(()),
        }
    }
}
