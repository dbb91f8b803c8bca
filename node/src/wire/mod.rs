//! Frames, which all protocols between nodes share, and the messages of `/pangea/task/1`.
//!
//! Sans-I/O: bytes in, values out, and the reverse. This room knows no socket, no peer and no meaning
//! beyond what makes a message well formed; every value that it returns is validated.
//!
//! A frame is an 8-byte prefix (header length, payload length, both `u32` little-endian), a header (one
//! Cap'n Proto message; `schema/task.capnp` for tasks) and a payload (raw tensor bytes).
//!
//! * [`frame`], [`header`]: shared by every protocol; a protocol's messages implement [`Header`].
//! * `field`: fields that several protocols have. `conformance`: tests that every protocol's messages must pass.
//! * [`message`]: the messages of `/pangea/task/1`; `operation`: the operation of a task.
//! * `trace_parent`: the context of a trace, which requests of several protocols carry.

#[cfg(test)]
pub(crate) mod conformance;
pub(crate) mod field;
pub mod frame;
#[cfg(test)]
mod goldens;
pub mod header;
pub mod message;
mod operation;
mod trace_parent;

pub use frame::{FrameHead, FrameLimits, PREFIX_BYTES};
pub use header::Header;
pub use message::{MAX_HEADER_BYTES, MAX_PAYLOAD_BYTES, Message, ResultSignature, Shape, Task, TaskHello, TaskId};
pub use trace_parent::TraceParent;

/// The protocol of tasks, versioned in its name.
pub const PROTOCOL: &str = "/pangea/task/1";

/// Version inside a hello; both sides speak the lower one they have in common.
pub const VERSION: u16 = 1;

/// Why bytes from a peer violate the protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The header's claimed length is zero, beyond the limit, or not a whole number of words.
    #[error("frame header of {bytes} bytes; it must be 8 to {max_bytes} and a multiple of 8")]
    HeaderLength {
        /// Claimed length in bytes.
        bytes: u32,
        /// The protocol's limit in bytes.
        max_bytes: u32,
    },
    /// The payload's claimed length is beyond the limit.
    #[error("frame payload of {bytes} bytes; at most {max_bytes} are allowed")]
    PayloadLength {
        /// Claimed length in bytes.
        bytes: u32,
        /// The protocol's limit in bytes.
        max_bytes: u32,
    },
    /// The header is not a valid message.
    #[error("malformed header: {0}")]
    Header(String),
    /// A message without payload came with one, or a piece lies outside its tensor.
    #[error("payload of {payload} bytes does not belong to a `{message}` message{why}")]
    Payload {
        /// Name of the message.
        message: &'static str,
        /// Length of the payload in bytes.
        payload: u32,
        /// More detail, starting with a separator, or empty.
        why: String,
    },
}
