//! Delays that double with every consecutive failure. The caller decides what counts as a failure.

use std::time::Duration;

/// Doublings after which a delay no longer grows: every upper bound in this crate is smaller.
const MAX_DOUBLINGS: u32 = 16;

/// `first` doubled `times` times, at most `longest`.
pub(crate) fn doubled(first: Duration, times: u32, longest: Duration) -> Duration {
    first.saturating_mul(1 << times.min(MAX_DOUBLINGS)).min(longest)
}
