//! Bounds of the HTTP API, each with its reason.

use std::time::Duration;

/// Connections open at once. Each takes a socket and some KiB; requests have a queue of their own.
pub(super) const CONNECTIONS: usize = 512;

/// Bytes of a request's head: long tokens and cookies of proxies fit.
pub(super) const HEAD_BYTES: usize = 64 * 1024;

/// Bytes of a request's body: a conversation as long as the largest context, several times over.
pub(super) const BODY_BYTES: usize = 16 * 1024 * 1024;

/// How long a client may take for a request's head, or be silent between two requests.
pub(super) const HEAD_TIME: Duration = Duration::from_secs(60);

/// How long a client may take for a request's body.
pub(super) const BODY_TIME: Duration = Duration::from_secs(60);

/// How long a request waits for its model to be ready before it is told to come back.
pub(super) const READY_TIME: Duration = Duration::from_secs(30);

/// When a model that is not ready may be asked for again.
pub(super) const READY_RETRY: Duration = Duration::from_secs(5);

/// Silence of a stream after which a comment tells proxies that it lives.
pub(super) const STREAM_SILENCE: Duration = Duration::from_secs(15);

/// Prompts of one request to `/v1/completions`.
pub(super) const PROMPTS: usize = 32;
