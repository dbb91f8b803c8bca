//! `/pangea/task/1` as bytes: frames and the messages in their headers.
//!
//! Sans-I/O: bytes in, values out, and the other way. It knows no socket, no peer and no meaning
//! beyond what makes a message well formed; everything it hands on is already checked.
//!
//! A frame is an 8-byte prefix (header length, payload length, both `u32` little-endian), a header (one
//! Cap'n Proto message, `schema/task.capnp`) and a payload (raw tensor bytes).

pub mod frame;
#[cfg(test)]
mod goldens;
pub mod message;

pub use frame::{FrameHead, MAX_HEADER_BYTES, MAX_PAYLOAD_BYTES, PREFIX_BYTES};
pub use message::{Advert, Message, Operation, Shape, Task, TaskId};

/// The protocol that these bytes are, versioned in its name.
pub const PROTOCOL: &str = "/pangea/task/1";

/// Version inside an advert; both sides speak the lower one they have in common.
pub const VERSION: u16 = 1;

/// Bytes from a peer that are not what the protocol says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The header claims more than [`MAX_HEADER_BYTES`], nothing, or no whole words.
    #[error("frame header of {0} bytes; it must be 8 to {MAX_HEADER_BYTES} and a multiple of 8")]
    HeaderLength(u32),
    /// The payload claims more than [`MAX_PAYLOAD_BYTES`].
    #[error("frame payload of {0} bytes; at most {MAX_PAYLOAD_BYTES} are allowed")]
    PayloadLength(u32),
    /// The header is no valid message.
    #[error("malformed header: {0}")]
    Header(String),
    /// A message that carries no payload came with one, or a chunk lies outside its tensor.
    #[error("payload of {payload} bytes does not belong to a `{message}` message{why}")]
    Payload {
        /// Name of the message.
        message: &'static str,
        /// Length of the payload.
        payload: u32,
        /// More detail, starting with a separator, or nothing.
        why: String,
    },
}
