//! The node's one clock, which produces the time of every decision. Nothing else turns the system's clock into a [`Time`].

use std::sync::OnceLock;
use std::time::Instant;

use pangea_control::Time;

static EPOCH: OnceLock<Instant> = OnceLock::new();

fn epoch() -> Instant {
    *EPOCH.get_or_init(Instant::now)
}

/// Time since this process first asked for it.
pub fn now() -> Time {
    Time::since_epoch(epoch().elapsed())
}

/// Converts a time to the system's instant, for timers.
pub fn instant(time: Time) -> tokio::time::Instant {
    tokio::time::Instant::from_std(epoch() + time.elapsed())
}
