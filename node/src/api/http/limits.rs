//! Limits of the HTTP API, each with its reason.

use std::time::Duration;

/// Connections open at once. Each takes a socket and some KiB; requests are queued separately.
pub(super) const CONNECTIONS: usize = 512;

/// Bytes of a request's head; long tokens and proxies' cookies fit.
pub(super) const HEAD_BYTES: usize = 64 * 1024;

/// Bytes of a request's body: several times the text of the largest context.
pub(super) const BODY_BYTES: usize = 16 * 1024 * 1024;

/// Time for a client to send a request's head, and the longest silence between two requests.
pub(super) const HEAD_TIME: Duration = Duration::from_secs(60);

/// Time for a client to send a request's body.
pub(super) const BODY_TIME: Duration = Duration::from_secs(60);

/// Time that a request waits for its model to be ready before it gets 503.
pub(super) const READY_TIME: Duration = Duration::from_secs(30);

/// `Retry-After` while a model is not ready.
pub(super) const READY_RETRY: Duration = Duration::from_secs(5);

/// Silence of a stream after which a comment is sent, so that proxies keep it open.
pub(super) const STREAM_SILENCE: Duration = Duration::from_secs(15);

/// Maximum prompts of one request to `/v1/completions`.
pub(super) const PROMPTS: usize = 32;
