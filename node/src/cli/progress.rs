//! Progress of a command, the same for all: one line on standard error, if that is a terminal and the work takes over a second.
//! Nothing is shown with `-q` or `--json`.

use std::io::stderr;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::args::{JsonArgs, OutputArgs};
use super::session::note;
use super::terminal;

/// Time before progress is shown.
const SHOW_AFTER: Duration = Duration::from_secs(1);

/// Interval of redraws, so that the clock advances between steps.
const TICK: Duration = Duration::from_millis(200);

/// A phase of which only the beginning is known. Like those below, it fits into 80 columns.
const WAIT: &str = "{msg:<12} {spinner} {elapsed}";

/// A phase of steps.
const STEPS: &str = "{msg:<12} [{bar:38}] {percent:>3} %  {elapsed}";

/// A phase of bytes.
const BYTES: &str = "{msg:<12} [{bar:16}] {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left";

/// Progress of a command.
pub(super) struct Progress {
    bar: ProgressBar,
    shower: Option<Shower>,
    output: OutputArgs,
}

/// The thread that shows the bar once it is due, whatever the command does meanwhile.
struct Shower {
    /// Dropped to end the thread.
    ended: SyncSender<()>,
    thread: JoinHandle<()>,
}

impl Progress {
    /// Progress that appears after a second, unless `output` or `json` wants none.
    pub(super) fn new(output: &OutputArgs, json: JsonArgs) -> Progress {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::hidden());
        let wanted = !output.quiet && !json.json && terminal::redraws(&stderr());
        let shower = wanted.then(|| Shower::start(bar.clone()));
        Progress { bar, shower, output: *output }
    }

    /// Like [`Progress::new`], in the phase `what` of unknown length.
    pub(super) fn waiting(output: &OutputArgs, json: JsonArgs, what: &'static str) -> Progress {
        let progress = Progress::new(output, json);
        progress.phase(what, 0);
        progress
    }

    /// Starts the phase `what` of `total` steps; 0 if the number is unknown.
    pub(super) fn phase(&self, what: &'static str, total: u64) {
        self.start_phase(what, total, STEPS);
    }

    /// Starts the phase `what` of `total` bytes; 0 if the number is unknown.
    pub(super) fn byte_phase(&self, what: &'static str, total: u64) {
        self.start_phase(what, total, BYTES);
    }

    fn start_phase(&self, what: &'static str, total: u64, template: &'static str) {
        self.bar.set_message(what);
        self.bar.set_length(total);
        self.bar.reset_eta();
        self.bar.set_position(0);
        // The templates are valid; without a style the bar would still work.
        if let Ok(style) = ProgressStyle::with_template(if total == 0 { WAIT } else { template }) {
            self.bar.set_style(style.progress_chars("=> "));
        }
    }

    /// Prints a note that is not a result to standard error, above the line of the progress.
    pub(super) fn note(&self, text: impl std::fmt::Display) {
        self.bar.suspend(|| note(&self.output, text));
    }

    /// Sets the number of completed steps, or bytes, of the phase.
    pub(super) fn done(&self, done: u64) {
        self.bar.set_position(done);
    }
}

impl Shower {
    fn start(bar: ProgressBar) -> Shower {
        let (ended, end) = sync_channel(0);
        let thread = std::thread::spawn(move || {
            if end.recv_timeout(SHOW_AFTER) == Err(RecvTimeoutError::Timeout) {
                bar.set_draw_target(ProgressDrawTarget::stderr());
                bar.enable_steady_tick(TICK);
            }
        });
        Shower { ended, thread }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(Shower { ended, thread }) = self.shower.take() {
            drop(ended);
            // The thread ends at once: only then can it show nothing any more. Its panic has been printed.
            let _ = thread.join();
        }
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_valid() {
        for template in [WAIT, STEPS, BYTES] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }
}
