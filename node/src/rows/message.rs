//! The messages of `/pangea/rows/1`: typed here, Cap'n Proto on the wire (`schema/rows.capnp`). A message that exists is well
//! formed; its reader checks whether it is true.

use std::ops::Range;

use pangea_client::ErrorKind;
use pangea_control::devices::ROWS_BYTES_MAX;
use pangea_control::session::SessionId;
use pangea_schema::rows_capnp as wire;

use crate::wire::field::{
    header_error, kind_from_wire, kind_to_wire, printable, read_text, truncated, unknown_variant,
};
use crate::wire::{FrameLimits, Header, WireError};

/// Maximum header length: that of a refusal with its text.
const MAX_HEADER_BYTES: u32 = 2048;
const MAX_REFUSAL_BYTES: usize = 1024;

/// Maximum bytes of rows in one frame.
pub const CHUNK_BYTES: usize = 1 << 20;

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RowsMessage {
    /// Question: the rows that a stage of these layers gave in a session.
    Wanted {
        /// The session, which the asking node coordinated.
        session: SessionId,
        /// The stage's layers.
        layers: Range<u32>,
    },
    /// Answer: some of the bytes, as the payload.
    Chunk {
        /// Bytes of the whole answer.
        total: u64,
        /// Offset of the payload in the answer.
        offset: u64,
    },
    /// Answer: the rows are not sent.
    Refusal {
        /// Reason for programs.
        kind: ErrorKind,
        /// Reason for people.
        message: String,
    },
}

impl Header for RowsMessage {
    const LIMITS: FrameLimits = FrameLimits { header_bytes: MAX_HEADER_BYTES, payload_bytes: CHUNK_BYTES as u32 };

    fn name(&self) -> &'static str {
        match self {
            RowsMessage::Wanted { .. } => "wanted",
            RowsMessage::Chunk { .. } => "chunk",
            RowsMessage::Refusal { .. } => "refusal",
        }
    }

    fn write(&self, to: capnp::any_pointer::Builder<'_>) {
        let to: wire::rows_message::Builder<'_> = to.init_as();
        match self {
            RowsMessage::Wanted { session, layers } => {
                let mut wanted = to.init_wanted();
                let [w0, w1] = words(*session);
                let mut session = wanted.reborrow().init_session();
                session.set_w0(w0);
                session.set_w1(w1);
                let mut to = wanted.init_layers();
                to.set_first(layers.start);
                to.set_end(layers.end);
            }
            RowsMessage::Chunk { total, offset } => {
                let mut chunk = to.init_chunk();
                chunk.set_total(*total);
                chunk.set_offset(*offset);
            }
            RowsMessage::Refusal { kind, message } => {
                let mut refusal = to.init_refusal();
                refusal.set_kind(kind_to_wire(*kind));
                refusal.set_message(truncated(message, MAX_REFUSAL_BYTES));
            }
        }
    }

    fn read(from: capnp::any_pointer::Reader<'_>) -> Result<RowsMessage, WireError> {
        use wire::rows_message::Which;
        let from: wire::rows_message::Reader<'_> = from.get_as().map_err(header_error)?;
        Ok(match from.which().map_err(|unknown| unknown_variant("message", unknown.0))? {
            Which::Wanted(wanted) => {
                let wanted = wanted.map_err(header_error)?;
                let session = wanted.get_session().map_err(header_error)?;
                let layers = wanted.get_layers().map_err(header_error)?;
                let layers = layers.get_first()..layers.get_end();
                if layers.is_empty() {
                    return Err(WireError::Header("rows of no layers".to_owned()));
                }
                RowsMessage::Wanted { session: session_of([session.get_w0(), session.get_w1()]), layers }
            }
            Which::Chunk(chunk) => {
                let chunk = chunk.map_err(header_error)?;
                RowsMessage::Chunk { total: chunk.get_total(), offset: chunk.get_offset() }
            }
            Which::Refusal(refusal) => {
                let refusal = refusal.map_err(header_error)?;
                RowsMessage::Refusal {
                    kind: refusal.get_kind().map(kind_from_wire).unwrap_or(ErrorKind::Internal),
                    message: printable(read_text("refusal", refusal.get_message(), MAX_REFUSAL_BYTES)?),
                }
            }
        })
    }

    /// Chunks lie within the most rows that a node keeps.
    fn check_payload(&self, payload_len: usize) -> Result<(), WireError> {
        match self {
            RowsMessage::Chunk { total, offset } => {
                let end = offset.checked_add(payload_len as u64);
                if payload_len == 0 || *total > ROWS_BYTES_MAX || end.is_none_or(|end| end > *total) {
                    return self.refuse_payload(payload_len, format!(": offset {offset} in rows of {total} bytes"));
                }
                Ok(())
            }
            _ if payload_len != 0 => self.refuse_payload(payload_len, String::new()),
            _ => Ok(()),
        }
    }
}

fn words(session: SessionId) -> [u64; 2] {
    let bits = u128::from_le_bytes(session.0);
    [bits as u64, (bits >> 64) as u64]
}

fn session_of([w0, w1]: [u64; 2]) -> SessionId {
    SessionId((u128::from(w0) | u128::from(w1) << 64).to_le_bytes())
}
