//! The numbers of `/pangea/blob/1`, derived from one another.

use std::time::Duration;

use pangea_compute::model::manifest::PART_BYTES;
pub use pangea_control::blob::limits::{ASKED_AHEAD, PROVIDERS};

/// Payload of one frame. The progress deadline applies to each frame: on a link of 100 kB/s shared by four streams, a frame
/// takes ten seconds.
pub const CHUNK_BYTES: usize = 256 << 10;

/// Questions of one stream that a node queues; further ones are read only after answers are sent.
pub const QUESTIONS: usize = 2 * ASKED_AHEAD;

/// Streams of one peer that a node answers at once: one per model being fetched, plus room for a new one while
/// the end of the old one is not noticed yet.
pub const STREAMS_PER_PEER: usize = 4;

/// Streams that a node answers at once. Each holds two parts: one is read while the other is sent.
pub const STREAMS: usize = 16;

/// Maximum memory for answering.
pub const ANSWER_BYTES: u64 = STREAMS as u64 * 2 * PART_BYTES;

/// Parts of one fetch that are received but not yet checked and written; receiving waits for them.
pub const UNWRITTEN: usize = 4;

/// Time from a question, when nothing is queued before it, to the start of its answer: more than a cold disk needs.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// Interval at which a fetch checks for retries, slow providers, and requesters that have gone.
pub const TICK: Duration = Duration::from_millis(100);

/// Queued events of one fetch; conversations wait for room.
pub const EVENTS: usize = 2 * PROVIDERS * ASKED_AHEAD;

/// Fetches queued for the network thread; further ones are refused with `Overloaded`.
pub const REQUESTS: usize = 64;

/// Peers remembered for wrong bytes; far more than a pool contains.
pub const LIARS: usize = 1024;

/// Concurrent fetches, all models together.
pub const FETCHES: usize = 8;

const _: () = assert!(ANSWER_BYTES <= 128 << 20, "answering stays a small part of any device's memory");
const _: () = assert!((CHUNK_BYTES as u64) < PART_BYTES);
