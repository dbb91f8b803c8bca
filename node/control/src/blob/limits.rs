//! Limits of fetches.

use std::time::Duration;

/// Unanswered requests on one stream: a second's worth of parts at 12 MB/s, enough that neither disk nor round trip leaves
/// a fast link idle.
pub const ASKED_AHEAD: usize = 4;

/// Delay before a provider that failed is retried; doubles after each further failure.
pub const RETRY_DELAY: Duration = Duration::from_millis(500);

/// Upper bound of that delay.
pub const RETRY_DELAY_MAX: Duration = Duration::from_secs(2);

/// Consecutive failures, without a verified part between them, after which a provider is not used again.
pub const FAILURES_MAX: u32 = 4;

/// Time after which a requested part may also be requested from an idle provider.
pub const SLOW_AFTER: Duration = Duration::from_secs(3);

/// Providers of one fetch that are used at once: more than a link of this node can receive from.
pub const PROVIDERS: usize = 8;

/// Parts of one fetch that are received but not yet verified and written; receiving waits for them.
pub const UNWRITTEN: usize = 4;

/// Time without a part after which a provider gives its place to one that waits: a part takes that long at 400 kB/s.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Upper bound of that time, which doubles with each use: a part arrives within it on the slowest line that is of use.
pub const PATIENCE_MAX: Duration = Duration::from_secs(320);

/// Time that a stream waits for its turn before one that moves less gives up its own.
pub const TURN_PATIENCE: Duration = Duration::from_secs(5);

/// Bytes per second below which an upload gives its place to a stream that waits, whoever's it is.
pub const UPLOAD_BYTES_PER_S: u64 = 64 << 10;
