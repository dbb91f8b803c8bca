//! The progress bar: shown on standard error if that is a terminal and the work takes over a second.

use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Time before progress is shown.
const SHOW_AFTER: Duration = Duration::from_secs(1);

/// Interval of redraws, so that the clock advances between steps.
const TICK: Duration = Duration::from_millis(200);

/// Progress of a command.
pub(super) struct Progress {
    bar: ProgressBar,
    since: Instant,
    wanted: bool,
    shown: bool,
}

impl Progress {
    /// A bar that appears after a second, if standard error is a terminal and `quiet` is false.
    pub(super) fn new(quiet: bool) -> Progress {
        Progress {
            bar: ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::hidden()),
            since: Instant::now(),
            wanted: !quiet && stderr().is_terminal(),
            shown: false,
        }
    }

    /// Starts the phase `what` of `total` steps; 0 if the number is unknown.
    pub(super) fn phase(&mut self, what: &'static str, total: u64) {
        self.bar.set_message(what);
        self.bar.set_length(total);
        self.bar.set_position(0);
        let template = match total {
            0 => "{msg:<12} {spinner} {elapsed}",
            _ => "{msg:<12} [{bar:38}] {percent:>3} %  {elapsed}",
        };
        // The templates above are valid; without a style the bar would still work.
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style.progress_chars("=> "));
        }
        self.show_if_due();
    }

    /// Sets the number of completed steps of the phase.
    pub(super) fn done(&mut self, done: u64) {
        self.bar.set_position(done);
        self.show_if_due();
    }

    fn show_if_due(&mut self) {
        if self.wanted && !self.shown && self.since.elapsed() >= SHOW_AFTER {
            self.shown = true;
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
            self.bar.enable_steady_tick(TICK);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
