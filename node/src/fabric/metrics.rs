//! What is counted of products for `/metrics`: attempts of tasks, results that failed their check, how well times were predicted.

use pangea_control::schedule::{JobReport, StartReason, WorkerId};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;

use crate::observe::Observer;

/// Where an attempt runs.
const PLACES: [&str; 2] = ["peer", "here"];

/// Where the tasks of a job were computed: all on this node, all on peers, or on both.
const MODES: [&str; 3] = ["local", "remote", "mixed"];

/// What is counted of products.
pub(super) struct Metrics {
    attempts: Family<AttemptLabels, Counter>,
    /// Results that failed a check.
    pub(super) rejected: Counter,
    predictions: Family<ModeLabels, Histogram>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AttemptLabels {
    reason: &'static str,
    place: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModeLabels {
    mode: &'static str,
}

impl Metrics {
    /// Registers the metrics with `observer`.
    pub(super) fn new(observer: &Observer) -> Metrics {
        let of_reason = |reason: StartReason| PLACES.map(|place| AttemptLabels { reason: reason.name(), place });
        Metrics {
            attempts: observer.counters(
                "task_attempts",
                "Attempts of tasks that were started, by reason and place",
                StartReason::ALL.into_iter().flat_map(of_reason),
            ),
            rejected: observer
                .counter("results_rejected", "Results of tasks and of whole jobs that failed their check"),
            predictions: observer.ratios(
                "product_prediction",
                "Time that jobs on tensors took, by the time that was predicted",
                MODES.map(|mode| ModeLabels { mode }),
            ),
        }
    }

    /// An attempt is started.
    pub(super) fn started(&self, reason: StartReason, worker: WorkerId) {
        let place = if worker.is_local() { "here" } else { "peer" };
        self.attempts.get_or_create(&AttemptLabels { reason: reason.name(), place }).inc();
    }

    /// A job is done.
    pub(super) fn done(&self, report: &JobReport) {
        let ratio = report.actual_seconds / report.predicted_seconds;
        // An empty result takes no time, and none is predicted.
        if ratio.is_finite() {
            self.predictions.get_or_create(&ModeLabels { mode: mode(report) }).observe(ratio);
        }
    }
}

/// Where the tasks of a job were computed.
pub(super) fn mode(report: &JobReport) -> &'static str {
    match (report.tasks.remote, report.tasks.local) {
        (0, _) => "local",
        (_, 0) => "remote",
        _ => "mixed",
    }
}
