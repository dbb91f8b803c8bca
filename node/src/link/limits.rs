//! The numbers that both sides of a task stream keep to, derived from one another.

use std::time::Duration;

use crate::wire::MAX_PAYLOAD_BYTES;

/// Tasks that one peer may have at a worker, waiting or running.
pub const TASKS_PER_PEER: usize = 64;

/// Queue of what waits to be written in order: a task and its two operands each.
pub const BULK_QUEUE: usize = 3 * TASKS_PER_PEER;

/// Queue of short messages that overtake bulk: a cancel and a release per task and operand, with room.
pub const CONTROL_QUEUE: usize = 8 * TASKS_PER_PEER;

/// Replies of a worker: a result (reserved when its task is accepted) and short messages.
pub const REPLY_QUEUE: usize = 4 * TASKS_PER_PEER;

/// Payload of one frame of a tensor.
pub const CHUNK_BYTES: usize = MAX_PAYLOAD_BYTES as usize;

/// Bytes of operands that may wait for the wire of one peer: they are copies of panels, so they count against
/// the memory of the accepting node; two panels of a large product keep a fast link busy.
pub const AHEAD_BYTES: usize = 16 << 20;

/// Until the other side has said who it is.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

const _: () = assert!(AHEAD_BYTES.is_multiple_of(CHUNK_BYTES));
const _: () = assert!(REPLY_QUEUE >= 2 * TASKS_PER_PEER, "every accepted task has its place reserved");
const _: () = assert!(CHUNK_BYTES >= 64 << 10, "frames large enough that their headers do not matter");
