//! The numbers that fetches are decided by.

use std::time::Duration;

/// Requests without an answer on one stream: parts for a second at 12 MB/s, and enough that neither disk nor round trip leaves
/// a fast link idle.
pub const ASKED_AHEAD: usize = 4;

/// Delay before a provider that failed is tried again; doubled after each further failure.
pub const RETRY_DELAY: Duration = Duration::from_millis(500);

/// Upper bound of that delay: what it is before the last try.
pub const RETRY_DELAY_MAX: Duration = Duration::from_secs(2);

/// Failures in a row, without a verified part between them, after which a provider is given up.
pub const FAILURES_MAX: u32 = 4;

/// Time after which a requested part may also be requested from an idle provider.
pub const SLOW_AFTER: Duration = Duration::from_secs(3);

/// Holders of one fetch that are asked at once: more than a link of this node can take in from.
pub const PROVIDERS: usize = 8;

/// Parts that a fetch has received and that wait to be checked and written; receiving waits for them.
pub const UNWRITTEN: usize = 4;
