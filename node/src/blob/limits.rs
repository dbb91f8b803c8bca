//! The numbers of `/pangea/blob/1`, derived from one another.

use std::time::Duration;

pub use pangea_control::blob::limits::{ASKED_AHEAD, PROVIDERS};

use crate::net::NetConfig;

/// Payload of one frame. The progress deadline applies to each frame: on a link of 100 kB/s shared by four streams, a frame
/// takes ten seconds.
pub const CHUNK_BYTES: usize = 256 << 10;

/// Questions of one stream that a node queues; further ones are read only after answers are sent.
pub const QUESTIONS: usize = 2 * ASKED_AHEAD;

/// Streams of one peer that a node answers at once: one per model being fetched, plus room for a new one while
/// the end of the old one is not noticed yet.
pub const STREAMS_PER_PEER: usize = 4;

/// Streams that peers have here: all that a large pool may open. One that asks nothing takes a task and a few KiB.
pub const STREAMS: usize = STREAMS_PER_PEER * NetConfig::MAX_PEERS as usize;

/// Streams that a node answers at once. Each holds two parts where memory allows: one is read while the other is sent.
pub const UPLOADS: usize = 16;

/// Time without a question after which a stream is closed. A fetch asks every provider that has a missing part at once.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Time for a whole manifest, which has a few hundred kilobytes: longer than `ANSWER_TIMEOUT`, and however many pieces it is
/// sent in.
pub const MANIFEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest wait of a requested part for memory: shorter than `ANSWER_TIMEOUT`, so that the peer receives the refusal.
pub const UPLOAD_MEMORY_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest wait of a fetch for memory: products and loads release theirs within seconds, or keep it for good.
pub const DOWNLOAD_MEMORY_TIMEOUT: Duration = Duration::from_secs(10);

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

const _: () = assert!(UPLOAD_MEMORY_TIMEOUT.as_millis() < ANSWER_TIMEOUT.as_millis());
const _: () = assert!((CHUNK_BYTES as u64) < pangea_units::limits::PART_BYTES);
