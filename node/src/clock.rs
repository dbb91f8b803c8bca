//! The node's one clock, which produces the time of every decision. Nothing else turns the system's clock into a [`Time`].

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use tokio::time::{Interval, MissedTickBehavior, interval_at};

use pangea_control::Time;

static EPOCH: OnceLock<Instant> = OnceLock::new();

fn epoch() -> Instant {
    *EPOCH.get_or_init(Instant::now)
}

/// Time since this process first asked for it.
pub fn now() -> Time {
    Time::since_epoch(epoch().elapsed())
}

/// Ticks at the multiples of `period`. Timers of one period, and of multiples of it, fire together: an idle node wakes once
/// for all of them. A tick that is missed is left out.
///
/// Must be called within a runtime.
pub fn ticks(period: Duration) -> Interval {
    let elapsed = epoch().elapsed();
    let into_period = elapsed.as_nanos() % period.as_nanos().max(1);
    let start = elapsed + period - Duration::from_nanos(u64::try_from(into_period).unwrap_or_default());
    let mut ticks = interval_at(tokio::time::Instant::from_std(epoch() + start), period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticks
}

/// Converts a time to the system's instant, for timers.
pub fn instant(time: Time) -> tokio::time::Instant {
    tokio::time::Instant::from_std(epoch() + time.elapsed())
}
