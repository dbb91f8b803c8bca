//! Decides when the next stream to a peer is opened after one ended, for every protocol that keeps a stream open. The
//! protocols know which stream that is and whether the peer is connected.

use std::time::Duration;

use crate::backoff::doubled;

/// Backoff of one protocol's streams to one peer: it grows with each consecutive stream that ended soon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reopening {
    first: Duration,
    longest: Duration,
    /// Consecutive streams that ended soon or did not open.
    short: u32,
}

impl Reopening {
    /// Delays from `first` to `longest`. A stream that lasted more than `longest` resets them.
    pub(crate) const fn new(first: Duration, longest: Duration) -> Reopening {
        Reopening { first, longest, short: 0 }
    }

    /// Resets the delays because the peer has reconnected.
    pub(crate) fn reset(&mut self) {
        self.short = 0;
    }

    /// Records that a stream ended after `lasted` (zero if it never opened); returns the delay before the next one.
    pub(crate) fn ended(&mut self, lasted: Duration) -> Duration {
        if lasted > self.longest {
            self.short = 0;
        }
        let delay = doubled(self.first, self.short, self.longest);
        self.short = self.short.saturating_add(1);
        delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_with_short_streams_and_reset_after_a_long_one() {
        let millis = Duration::from_millis;
        let mut reopening = Reopening::new(millis(100), millis(1000));
        let delays: Vec<Duration> = (0..6).map(|_| reopening.ended(millis(1000))).collect();
        assert_eq!(delays, [100, 200, 400, 800, 1000, 1000].map(millis));
        assert_eq!([reopening.ended(millis(1001)), reopening.ended(Duration::ZERO)], [millis(100), millis(200)]);
        reopening.reset();
        assert_eq!(reopening.ended(Duration::ZERO), millis(100));
    }
}
