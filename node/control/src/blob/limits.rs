//! The numbers that fetches are decided by.

use std::time::Duration;

/// Questions that wait for their answer on one stream: parts for a second at 12 MB/s, and enough that neither disk nor
/// round trip leaves a fast link idle.
pub const ASKED_AHEAD: usize = 4;

/// A holder that failed is tried again after this, then after twice as long, and so on.
pub const RETRY_FIRST: Duration = Duration::from_millis(500);

/// Failures of one holder in a row, without a good part between them, after which it is given up.
pub const FAILURES: u32 = 4;

/// A part that has been on its way for so long may be asked of an idle holder too.
pub const SLOW: Duration = Duration::from_secs(3);

/// Holders of one fetch that are asked at once: more than a link of this node can take in from.
pub const HOLDERS: usize = 8;
