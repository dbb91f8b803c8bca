//! The numbers of `/pangea/http/1`, derived from one another.

use std::time::Duration;

use crate::net::NetConfig;
use crate::streams::FRAME_TIMEOUT;

/// Bytes of one frame of a request's or an answer's body. The progress deadline applies to each frame.
pub const CHUNK_BYTES: usize = 64 << 10;

/// Bytes of a request's body: what the HTTP API takes from a client.
pub const BODY_BYTES: usize = 16 << 20;

/// Bytes of an answer that is kept until it is whole: some hundred embeddings, or the longest text with all log-probabilities.
pub const DOCUMENT_BYTES: usize = 64 << 20;

/// Bytes of one event or line of a streamed answer; a line that does not end costs no more memory than this.
pub const LINE_BYTES: usize = 4 << 20;

/// Requests of one peer that this node answers or holds at once: the running and a good part of the waiting ones of a model.
/// Further ones are refused, and the peer asks another node.
pub const PLACES_PER_PEER: usize = 32;

/// The same of all peers together. Each takes a task and its request's body.
pub const PLACES: usize = 256;

/// Bytes of request bodies of one peer that are being received at once: two of the largest.
pub const BODIES_PER_PEER: usize = 2 * BODY_BYTES;

/// Time from a stream's opening to the whole request on it: the largest body on a line of 300 kB/s.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Interval at which the answering node says that it works, and how far it is, while it has nothing else to say. Shorter than any
/// patience of `routing::attempts`: an answer that is sent whole is on its way long before its first byte.
pub const WORKING_INTERVAL: Duration = Duration::from_secs(2);

/// Silence of the answering node after which the asking node takes it for lost: some `working` messages are missing.
pub const SILENCE_TIMEOUT: Duration = FRAME_TIMEOUT;

/// Time without a further token or byte of an answer, however often the answering node says that it works. Longer than a request
/// may wait for a place at a model.
pub const PROGRESS_TIMEOUT: Duration = Duration::from_secs(300);

/// Received pieces of an answer that wait for the client; further ones stay with the answering node.
pub const PIECES: usize = 16;

const _: () = assert!(WORKING_INTERVAL.as_millis() * 3 < SILENCE_TIMEOUT.as_millis());
const _: () = assert!(SILENCE_TIMEOUT.as_millis() < PROGRESS_TIMEOUT.as_millis());
const _: () = assert!(PLACES_PER_PEER < PLACES && PLACES <= NetConfig::MAX_PEERS as usize * PLACES_PER_PEER);
const _: () = assert!(BODY_BYTES <= u32::MAX as usize && CHUNK_BYTES < BODY_BYTES);
