//! Limits on what clients of the Cap'n Proto service hold, each with its reason.

use std::time::Duration;

use pangea_control::net::callers::CallerLimits;

/// Limits on what clients hold. Requests beyond them are refused with `Overloaded`.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections open at once at the port. Each takes a socket and a few tens of KiB. One other host can have half of them,
    /// and a quarter is for programs on this host. A connection on which nothing runs and that holds nothing gives its place
    /// to a newcomer.
    pub connections: u32,
    /// Jobs and waiting calls that one client (a host) starts per second; a program in a tight loop on this host stays
    /// below it.
    pub calls_per_second: u32,
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
            calls_per_second: 20_000,
            tensors_per_connection: 16_384,
            bytes_per_connection: u64::MAX,
            jobs_per_connection: 1024,
            calls_per_connection: 4096,
        }
    }
}

impl Limits {
    /// Places at the port.
    pub(super) fn callers(&self) -> CallerLimits {
        let total = self.connections as usize;
        CallerLimits { total, per_origin: (total / 2).max(1), local: total / 4 }
    }
}

/// Connections over the socket in the file system: those of this node's user alone.
pub(super) const LOCAL_CONNECTIONS: CallerLimits = CallerLimits { total: 128, per_origin: 128, local: 0 };

/// Time from accepting a connection to its first call, or its login.
pub(super) const PROOF_TIME: Duration = Duration::from_secs(10);

/// Wrong keys on one connection after which it is closed.
pub(super) const WRONG_KEYS: u32 = 3;

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
