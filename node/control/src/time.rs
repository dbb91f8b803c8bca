//! The one type of time in every decision: how long the node has been running. The driver of a state machine reads the
//! clock and passes the time in; nothing in this crate can read a clock.

use std::ops::{Add, AddAssign, Sub};
use std::time::Duration;

/// A moment, as the time since the driver's epoch (the start of the node). Never goes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(Duration);

impl Time {
    /// The driver's epoch.
    pub const ZERO: Time = Time(Duration::ZERO);

    /// A moment that never comes.
    pub const MAX: Time = Time(Duration::MAX);

    /// The moment `elapsed` after the epoch.
    pub const fn since_epoch(elapsed: Duration) -> Time {
        Time(elapsed)
    }

    /// The moment `seconds` after the epoch.
    pub const fn from_secs(seconds: u64) -> Time {
        Time(Duration::from_secs(seconds))
    }

    /// The moment `millis` milliseconds after the epoch.
    pub const fn from_millis(millis: u64) -> Time {
        Time(Duration::from_millis(millis))
    }

    /// The time since the epoch.
    pub const fn elapsed(self) -> Duration {
        self.0
    }

    /// The time from `earlier` to this moment; zero if `earlier` is later.
    pub fn since(self, earlier: Time) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// Seconds since the epoch.
    pub fn as_secs_f64(self) -> f64 {
        self.0.as_secs_f64()
    }
}

impl Add<Duration> for Time {
    type Output = Time;

    fn add(self, later: Duration) -> Time {
        Time(self.0.saturating_add(later))
    }
}

impl AddAssign<Duration> for Time {
    fn add_assign(&mut self, later: Duration) {
        *self = *self + later;
    }
}

impl Sub<Duration> for Time {
    type Output = Time;

    /// The moment `earlier` before this one; not before the epoch.
    fn sub(self, earlier: Duration) -> Time {
        Time(self.0.saturating_sub(earlier))
    }
}
