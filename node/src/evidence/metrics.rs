//! What is counted of accusations for `/metrics`: those that this node makes, those that it hears of others, and those of itself.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use crate::observe::Observer;

/// What became of an accusation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// This node found a lie, and tells others.
    Found,
    /// This node checked the evidence of another one, and accuses as well.
    Joined,
    /// The evidence of another node proved the lie here.
    Proven,
    /// This node cannot check the evidence and believed the members that did.
    Believed,
    /// The evidence of another node proved nothing.
    Refuted,
    /// This node cannot check the evidence, and waits for another member that did.
    Unchecked,
    /// The accuser had not signed the accusation.
    Forged,
    /// A member accuses this node.
    Heard,
}

impl Outcome {
    const ALL: [Outcome; 8] = [
        Outcome::Found,
        Outcome::Joined,
        Outcome::Proven,
        Outcome::Believed,
        Outcome::Refuted,
        Outcome::Unchecked,
        Outcome::Forged,
        Outcome::Heard,
    ];

    /// The part of this node in the accusation, and the name of the outcome.
    fn labels(self) -> OutcomeLabels {
        let (role, outcome) = match self {
            Outcome::Found => ("accuser", "found"),
            Outcome::Joined => ("accuser", "joined"),
            Outcome::Proven => ("judge", "proven"),
            Outcome::Believed => ("judge", "believed"),
            Outcome::Refuted => ("judge", "refuted"),
            Outcome::Unchecked => ("judge", "unchecked"),
            Outcome::Forged => ("judge", "forged"),
            Outcome::Heard => ("accused", "heard"),
        };
        OutcomeLabels { role, outcome }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    role: &'static str,
    outcome: &'static str,
}

/// What is counted of accusations.
pub(super) struct Metrics(Family<OutcomeLabels, Counter>);

impl Metrics {
    /// Registers the metrics with `observer`.
    pub(super) fn new(observer: &Observer) -> Metrics {
        let help = "Accusations of lies, by the part of this node and the outcome";
        Metrics(observer.counters("accusations", help, Outcome::ALL.map(Outcome::labels)))
    }

    /// Counts an accusation.
    pub(super) fn count(&self, outcome: Outcome) {
        self.0.get_or_create(&outcome.labels()).inc();
    }
}
