//! Delays that double with every failure in a row. What counts as a failure is decided by whoever waits.

use std::time::Duration;

/// Doublings beyond which a delay grows no more: by then every upper bound of this crate is passed.
const MAX_DOUBLINGS: u32 = 16;

/// `first`, doubled `times` times, at most `longest`.
pub(crate) fn doubled(first: Duration, times: u32, longest: Duration) -> Duration {
    first.saturating_mul(1 << times.min(MAX_DOUBLINGS)).min(longest)
}
