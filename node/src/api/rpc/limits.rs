//! Limits on what clients of the Cap'n Proto service hold, each with its reason.

use std::time::Duration;

/// Limits on what clients hold. Requests beyond them are refused with `Overloaded`.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections open at once. Each takes a socket and a few tens of KiB.
    pub connections: u32,
    /// Tensors that one connection holds, including uploads in progress and pending products. This limits
    /// bookkeeping; bytes are limited separately.
    pub tensors_per_connection: u32,
    /// Bytes of tensors that one connection holds. The node's memory budget limits their sum over all
    /// connections; a smaller value here keeps one client from taking all of it.
    pub bytes_per_connection: u64,
    /// Jobs of one connection that have not ended. Each takes a few KiB until it runs.
    pub jobs_per_connection: u32,
    /// Waiting calls of one connection (reads, reports); limits what a client can request without
    /// awaiting the answers.
    pub calls_per_connection: u32,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: 256,
            tensors_per_connection: 16_384,
            bytes_per_connection: u64::MAX,
            jobs_per_connection: 1024,
            calls_per_connection: 4096,
        }
    }
}

/// Connections beyond the limit that receive an error at the same time; further ones are closed without one.
pub(super) const REFUSALS: usize = 16;

/// Time for a refused connection to read its error.
pub(super) const REFUSAL_TIME: Duration = Duration::from_secs(2);

/// Timeout of a peer check: a peer that is silent this long counts as dead.
pub(super) const CHECK_TIMEOUT: Duration = Duration::from_secs(5);

/// Default timeout of `connect`.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest timeout of `connect` that a client may set.
pub(super) const MAX_CONNECT_TIMEOUT: Duration = Duration::from_secs(120);

/// Default time that `model` waits for a model that is loading.
pub(super) const MODEL_TIMEOUT: Duration = Duration::from_secs(60);

/// Longest time that `model` may wait: enough to download a large model first.
pub(super) const MAX_MODEL_TIMEOUT: Duration = Duration::from_secs(3600);

/// Silence after which a client counts as having fetched its job's result while the node shuts down: a few
/// round trips on a slow link.
pub(super) const FETCH_TIME: Duration = Duration::from_millis(500);

/// Largest message of a link probe: both nodes hold it in memory.
pub(super) const MAX_PROBE_BYTES: u64 = 256 * 1024 * 1024;

/// Maximum rounds of a link probe.
pub(super) const MAX_PROBE_ROUNDS: u32 = 1000;

/// Bytes of further requests that are read while a client does not read its answers: enough for
/// the acknowledgements of every chunk in flight, few enough that answers cannot pile up.
pub(super) const UNANSWERED_BYTES: u64 = 64 * 1024;

/// Idle time after which TCP keep-alive probes a client.
pub(super) const KEEPALIVE_IDLE: Duration = Duration::from_secs(20);

/// Interval between keep-alive probes; a handful without an answer closes the connection.
pub(super) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
