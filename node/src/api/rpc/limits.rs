//! What clients of the service may hold, each bound with its reason.

use std::time::Duration;

/// Bounds on what clients hold. What goes beyond is refused with `Overloaded`.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections open at once. Each takes a socket and a few tens of KiB.
    pub connections: u32,
    /// Tensors one connection holds, uploads under way and pending products included. A bound on
    /// bookkeeping; bytes are bounded apart.
    pub tensors_per_connection: u32,
    /// Bytes of tensors one connection holds. The node's memory budget bounds all of them
    /// together; a smaller figure here keeps one client from taking all of it.
    pub bytes_per_connection: u64,
    /// Jobs of one connection that have not ended. Each is a few KiB until it runs.
    pub jobs_per_connection: u32,
    /// Calls of one connection that wait for something (reads, reports), so that what a client
    /// asks without awaiting it stays bounded.
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

/// Connections beyond the limit that are being told so at once; any more just close.
pub(super) const REFUSALS: usize = 16;

/// How long a connection that is refused may take to hear it.
pub(super) const REFUSAL_TIME: Duration = Duration::from_secs(2);

/// How long a peer may take to answer a check: what is silent for so long is dead.
pub(super) const CHECK_TIMEOUT: Duration = Duration::from_secs(5);

/// How long `connect` tries when the client does not say.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest `connect` may try.
pub(super) const MAX_CONNECT_TIMEOUT: Duration = Duration::from_secs(120);

/// How long `model` waits for one that is loading when the client does not say.
pub(super) const MODEL_TIMEOUT: Duration = Duration::from_secs(60);

/// The longest it may wait: for a large model that is fetched first.
pub(super) const MAX_MODEL_TIMEOUT: Duration = Duration::from_secs(3600);

/// How long a client whose job ended while the node stops may be silent before it counts as having fetched what it
/// wanted: a few round trips on a slow link.
pub(super) const FETCH_TIME: Duration = Duration::from_millis(500);

/// The largest message of a link probe: both nodes hold it in memory.
pub(super) const MAX_PROBE_BYTES: u64 = 256 * 1024 * 1024;

/// The most rounds of a link probe.
pub(super) const MAX_PROBE_ROUNDS: u32 = 1000;

/// Bytes of further requests that are read while a client takes none of its answers: enough for
/// the acknowledgements of every chunk under way, few enough that answers cannot pile up.
pub(super) const UNANSWERED_BYTES: u64 = 64 * 1024;

/// Silence after which the kernel asks whether a client is still there.
pub(super) const KEEPALIVE_IDLE: Duration = Duration::from_secs(20);

/// Time between such questions; a handful unanswered ends the connection.
pub(super) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
