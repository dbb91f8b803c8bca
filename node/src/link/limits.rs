//! Limits that both sides of a task stream obey, derived from one another.

use std::time::Duration;

pub use pangea_control::tasks::TASKS_PER_PEER;

use crate::net::NetConfig;
use crate::wire::MAX_PAYLOAD_BYTES;

/// Task streams that one peer may have open towards this node: one, and one that replaces it.
pub const STREAMS_PER_PEER: usize = 2;

/// Task streams of all peers towards this node: those of as many peers as a node is connected to.
pub const STREAMS: usize = STREAMS_PER_PEER * NetConfig::MAX_PEERS as usize;

/// Messages queued to be sent in order: a task and its two operands each.
pub const BULK_QUEUE: usize = 3 * TASKS_PER_PEER;

/// Short messages queued ahead of bulk: a cancel and a release per task and operand, plus room.
pub const CONTROL_QUEUE: usize = 8 * TASKS_PER_PEER;

/// Queued replies of a worker: a result per accepted task (reserved on acceptance) and short messages.
pub const REPLY_QUEUE: usize = 4 * TASKS_PER_PEER;

/// Payload bytes of one frame of a tensor.
pub const CHUNK_BYTES: usize = MAX_PAYLOAD_BYTES as usize;

/// Bytes of operands queued for one peer: they are copies of panels and count against
/// the memory of the accepting node; two panels of a large product keep a fast link busy.
pub const AHEAD_BYTES: usize = 16 << 20;

/// Timeout for the other side's hello.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

const _: () = assert!(AHEAD_BYTES.is_multiple_of(CHUNK_BYTES));
const _: () = assert!(REPLY_QUEUE >= 2 * TASKS_PER_PEER, "every accepted task has its place reserved");
const _: () = assert!(CHUNK_BYTES >= 64 << 10, "frames large enough that their headers do not matter");
