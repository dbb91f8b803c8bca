//! Frames, which every protocol between nodes has, and `/pangea/task/1`: the messages in the headers of its frames.
//!
//! Sans-I/O: bytes in, values out, and the other way. It knows no socket, no peer and no meaning
//! beyond what makes a message well formed; everything it hands on is already checked.
//!
//! A frame is an 8-byte prefix (header length, payload length, both `u32` little-endian), a header (one
//! Cap'n Proto message; `schema/task.capnp` for tasks) and a payload (raw tensor bytes).
//!
//! * [`frame`], [`header`]: what every protocol shares; [`Header`] is what a protocol's message implements.
//! * `field`: fields that several protocols have. `conformance`: what must hold for every protocol's messages, for tests.
//! * [`message`]: the messages of `/pangea/task/1`.

#[cfg(test)]
pub(crate) mod conformance;
pub(crate) mod field;
pub mod frame;
#[cfg(test)]
mod goldens;
pub mod header;
pub mod message;

pub use frame::{FrameHead, FrameLimits, PREFIX_BYTES};
pub use header::Header;
pub use message::{MAX_HEADER_BYTES, MAX_PAYLOAD_BYTES, Message, Operation, Shape, Task, TaskHello, TaskId};

/// The protocol of tasks, versioned in its name.
pub const PROTOCOL: &str = "/pangea/task/1";

/// Version inside an advert; both sides speak the lower one they have in common.
pub const VERSION: u16 = 1;

/// Bytes from a peer that are not what the protocol says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The header claims more than the protocol allows, nothing, or no whole words.
    #[error("frame header of {bytes} bytes; it must be 8 to {most} and a multiple of 8")]
    HeaderLength {
        /// What it claims.
        bytes: u32,
        /// The protocol's limit.
        most: u32,
    },
    /// The payload claims more than the protocol allows.
    #[error("frame payload of {bytes} bytes; at most {most} are allowed")]
    PayloadLength {
        /// What it claims.
        bytes: u32,
        /// The protocol's limit.
        most: u32,
    },
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
