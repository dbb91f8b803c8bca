//! The numbers of `/pangea/blob/1`, derived from one another.

use std::time::Duration;

use pangea_compute::model::manifest::PART_BYTES;
pub use pangea_control::blob::limits::{ASKED_AHEAD, PROVIDERS};

/// Payload of one frame. Frames are what the deadline on progress is for: on a link of 100 kB/s that four streams share,
/// one takes ten seconds.
pub const CHUNK_BYTES: usize = 256 << 10;

/// Questions of one stream that a node keeps; whoever asks more is not read on before answers are taken.
pub const QUESTIONS: usize = 2 * ASKED_AHEAD;

/// Streams that a node answers on at once for one peer: one for each model that is fetched, with room for a new one while
/// the end of the old one has not been seen.
pub const STREAMS_PER_PEER: usize = 4;

/// Streams that a node answers on at once. Each holds two parts, one read ahead of the other being sent.
pub const STREAMS: usize = 16;

/// The memory that answering takes at most.
pub const ANSWER_BYTES: u64 = STREAMS as u64 * 2 * PART_BYTES;

/// Parts that a fetch has received and that wait to be checked and written; receiving waits for them.
pub const UNWRITTEN: usize = 4;

/// From a question, when nothing is waiting before it, to the beginning of its answer: a cold disk's time and more.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// How often a fetch looks at the clock: for retries, for slow providers, and whether anybody still wants it.
pub const TICK: Duration = Duration::from_millis(100);

/// Events of one fetch that wait for it: each conversation waits for room.
pub const EVENTS: usize = 2 * PROVIDERS * ASKED_AHEAD;

/// Fetches that wait for the network thread. Whoever finds it full is told `Overloaded`.
pub const REQUESTS: usize = 64;

/// Peers remembered for wrong bytes; far more than a pool has before somebody looks.
pub const LIARS: usize = 1024;

/// Fetches that are under way at once, all models together.
pub const FETCHES: usize = 8;

const _: () = assert!(ANSWER_BYTES <= 128 << 20, "answering stays a small part of any device's memory");
const _: () = assert!((CHUNK_BYTES as u64) < PART_BYTES);
