//! The tasks of peers, counted for `/metrics`: each is counted once, with the outcome that it has when it leaves this node. Outcomes
//! are decided elsewhere.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use pangea_client::{Error, ErrorKind};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;

use crate::observe::Observer;

/// How a task of a peer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TaskOutcome {
    /// Its result was sent.
    Done,
    /// It was started, and ended with an error.
    Failed,
    /// It was answered with an error before it was started: it is over a limit, there is no memory, or it cannot be computed.
    Refused,
    /// Its result is not wanted any more, or the peer is gone.
    Cancelled,
}

impl TaskOutcome {
    /// Every outcome, in the order of the counters.
    const ALL: [TaskOutcome; 4] =
        [TaskOutcome::Done, TaskOutcome::Failed, TaskOutcome::Refused, TaskOutcome::Cancelled];

    /// The outcome of a task that ended with an error after it was started.
    pub(super) fn of_error(error: &Error) -> TaskOutcome {
        if error.kind() == ErrorKind::Cancelled { TaskOutcome::Cancelled } else { TaskOutcome::Failed }
    }

    fn name(self) -> &'static str {
        match self {
            TaskOutcome::Done => "done",
            TaskOutcome::Failed => "failed",
            TaskOutcome::Refused => "refused",
            TaskOutcome::Cancelled => "cancelled",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

/// What is counted of tasks of peers. Clones share it.
#[derive(Clone)]
pub(super) struct TaskMetrics(Arc<Counts>);

struct Counts {
    ended: [Counter; TaskOutcome::ALL.len()],
    waiting: AtomicU64,
    running: AtomicU64,
}

impl TaskMetrics {
    /// Registers the metrics with `observer`.
    pub(super) fn new(observer: &Observer) -> TaskMetrics {
        let labels = TaskOutcome::ALL.map(|outcome| OutcomeLabels { outcome: outcome.name() });
        let ended = observer.counters("tasks", "Tasks of other nodes that ended here, by outcome", labels.clone());
        let ended = labels.map(|labels| ended.get_or_create(&labels).clone());
        let counts = Arc::new(Counts { ended, waiting: AtomicU64::new(0), running: AtomicU64::new(0) });
        let waiting = Arc::clone(&counts);
        let help = "Tasks of other nodes that wait here for operands, memory or their turn";
        observer.gauge("tasks_waiting", help, move || waiting.waiting.load(Ordering::Relaxed) as f64);
        let running = Arc::clone(&counts);
        let help = "Tasks of other nodes that are computed here, or whose result is being sent";
        observer.gauge("tasks_running", help, move || running.running.load(Ordering::Relaxed) as f64);
        TaskMetrics(counts)
    }

    /// Counts a task that has arrived.
    pub(super) fn arrived(&self) -> Arc<ServedTask> {
        self.0.waiting.fetch_add(1, Ordering::Relaxed);
        Arc::new(ServedTask { counts: Arc::clone(&self.0), stage: AtomicU8::new(WAITING) })
    }
}

const WAITING: u8 = 0;
const RUNNING: u8 = 1;
const ENDED: u8 = 2;

/// A task of a peer on this node. Dropped without an end, it is counted as cancelled.
pub(super) struct ServedTask {
    counts: Arc<Counts>,
    stage: AtomicU8,
}

impl ServedTask {
    /// The executor starts the task.
    pub(super) fn started(&self) {
        if self.stage.compare_exchange(WAITING, RUNNING, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.counts.waiting.fetch_sub(1, Ordering::Relaxed);
            self.counts.running.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The task has ended; only the first call counts.
    pub(super) fn end(&self, outcome: TaskOutcome) {
        match self.stage.swap(ENDED, Ordering::Relaxed) {
            WAITING => self.counts.waiting.fetch_sub(1, Ordering::Relaxed),
            RUNNING => self.counts.running.fetch_sub(1, Ordering::Relaxed),
            _ => return,
        };
        self.counts.ended[outcome as usize].inc();
    }
}

impl Drop for ServedTask {
    fn drop(&mut self) {
        self.end(TaskOutcome::Cancelled);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::Format;

    #[test]
    fn every_task_is_counted_once_with_its_first_outcome() {
        let observer = Observer::default();
        let metrics = TaskMetrics::new(&observer);
        let [done, failed, refused, dropped, waits, runs] = std::array::from_fn(|_| metrics.arrived());
        for task in [&done, &failed, &runs] {
            task.started();
        }
        done.end(TaskOutcome::Done);
        done.end(TaskOutcome::Failed);
        failed.end(TaskOutcome::of_error(&Error::new(ErrorKind::Internal, "broken")));
        refused.end(TaskOutcome::Refused);
        drop((done, failed, refused, dropped));
        let text = observer.text(Format::Prometheus).unwrap();
        for sample in [
            "pangea_tasks_total{outcome=\"done\"} 1",
            "pangea_tasks_total{outcome=\"failed\"} 1",
            "pangea_tasks_total{outcome=\"refused\"} 1",
            "pangea_tasks_total{outcome=\"cancelled\"} 1",
            "pangea_tasks_waiting 1.0",
            "pangea_tasks_running 1.0",
        ] {
            assert!(text.lines().any(|line| line == sample), "{sample} in {text}");
        }
        drop((waits, runs));
    }
}
