//! When the next stream to a peer is opened after one ended, for every protocol that keeps a stream open. Which stream that is,
//! and whether the peer is there, the protocols know.

use std::time::Duration;

use crate::backoff::doubled;

/// The streams of one protocol to one peer, as far as they ended: the more in a row ended soon, the later the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reopening {
    first: Duration,
    longest: Duration,
    /// Streams in a row that ended soon or did not open.
    short: u32,
}

impl Reopening {
    /// Delays from `first` to `longest`. A stream that lasted more than `longest` starts them from the beginning.
    pub(crate) const fn new(first: Duration, longest: Duration) -> Reopening {
        Reopening { first, longest, short: 0 }
    }

    /// The peer is connected again: what its streams did before says nothing.
    pub(crate) fn reset(&mut self) {
        self.short = 0;
    }

    /// A stream ended that had been open for `lasted`, nothing where it never opened: the delay of the next.
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
    fn streams_that_end_soon_are_opened_later_and_later_and_one_that_lasted_starts_again() {
        let millis = Duration::from_millis;
        let mut reopening = Reopening::new(millis(100), millis(1000));
        let delays: Vec<Duration> = (0..6).map(|_| reopening.ended(millis(1000))).collect();
        assert_eq!(delays, [100, 200, 400, 800, 1000, 1000].map(millis));
        assert_eq!([reopening.ended(millis(1001)), reopening.ended(Duration::ZERO)], [millis(100), millis(200)]);
        reopening.reset();
        assert_eq!(reopening.ended(Duration::ZERO), millis(100));
    }
}
