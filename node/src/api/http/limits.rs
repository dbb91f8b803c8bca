//! Limits of the HTTP API, each with its reason.

use std::time::Duration;

use pangea_control::net::callers::CallerLimits;

/// Connections open at once. Each takes a socket and some KiB; requests are queued separately. Programs on this host find a
/// place whatever other hosts do, and one other host cannot take the places of all.
pub(super) const CONNECTIONS: CallerLimits = CallerLimits { total: 512, per_origin: 256, local: 64 };

/// Bytes of a request's head; long tokens and proxies' cookies fit.
pub(super) const HEAD_BYTES: usize = 64 * 1024;

/// Bytes of a request's body: several times the text of the largest context.
pub(super) const BODY_BYTES: usize = 16 * 1024 * 1024;

const _: () = assert!(BODY_BYTES <= crate::tunnel::limits::BODY_BYTES, "another node takes what this one takes");

/// Bodies above this size are parsed on a thread of their own: smaller ones take less than a millisecond.
pub(super) const PARSED_HERE_BYTES: usize = 64 * 1024;

/// Values in a request's body, of any kind: a prompt as token ids for the largest context has fewer. A parsed value takes up to a
/// hundred bytes, however few it took in the text.
pub(super) const JSON_VALUES: usize = 512 * 1024;

/// Time from accepting a connection to its first request's head, whole.
pub(super) const HEAD_TIME: Duration = Duration::from_secs(10);

/// Longest silence between two requests of a connection, with the next one's head.
pub(super) const IDLE_TIME: Duration = Duration::from_secs(60);

/// Time in which a client takes [`WRITE_STEP_BYTES`] of an answer that is ready, or is dropped.
pub(super) const WRITE_TIME: Duration = Duration::from_secs(10);

/// Bytes that a client takes within [`WRITE_TIME`]: far below the slowest line that a person would use.
pub(super) const WRITE_STEP_BYTES: usize = 8 * 1024;

/// Bytes of an answer that the kernel keeps for a client that does not read. More would hide for minutes that the client has
/// stopped reading.
pub(super) const SEND_BUFFER_BYTES: usize = 64 * 1024;

/// Time for a client to send a request's body.
pub(super) const BODY_TIME: Duration = Duration::from_secs(60);

/// Time that a request waits for its model to be ready before it gets 503.
pub(super) const READY_TIME: Duration = Duration::from_secs(30);

/// `Retry-After` while a model is not ready.
pub(super) const READY_RETRY: Duration = Duration::from_secs(5);

/// Silence of a stream after which a comment is sent, so that proxies keep it open.
pub(super) const STREAM_SILENCE: Duration = Duration::from_secs(15);

/// Maximum texts of one request for embeddings, as OpenAI has it.
pub(super) const EMBEDDED_TEXTS: usize = 2048;

/// Maximum prompts of one request to `/v1/completions`.
pub(super) const PROMPTS: usize = 32;
