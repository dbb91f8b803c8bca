//! What is counted of the pool for `/metrics`: peers, elections, adverts.

use std::sync::Arc;

use pangea_control::pool::roster::Heard;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tokio::sync::watch;

use super::View;
use crate::observe::Observer;

/// What became of an advert that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AdvertOutcome {
    /// It says something that this node did not know.
    New,
    /// This node knows it, or a later one.
    Old,
    /// Its node is not known to belong to the pool.
    Stranger,
    /// It is malformed, or its node has not proved that it may send it.
    Refused,
    /// The peer that passed it on sends too many.
    Limited,
}

impl AdvertOutcome {
    const ALL: [AdvertOutcome; 5] = [
        AdvertOutcome::New,
        AdvertOutcome::Old,
        AdvertOutcome::Stranger,
        AdvertOutcome::Refused,
        AdvertOutcome::Limited,
    ];

    fn labels(self) -> AdvertLabels {
        let outcome = match self {
            AdvertOutcome::New => "new",
            AdvertOutcome::Old => "old",
            AdvertOutcome::Stranger => "stranger",
            AdvertOutcome::Refused => "refused",
            AdvertOutcome::Limited => "limited",
        };
        AdvertLabels { outcome }
    }
}

impl From<Heard> for AdvertOutcome {
    fn from(heard: Heard) -> AdvertOutcome {
        match heard {
            Heard::Joined | Heard::Newer | Heard::Noted => AdvertOutcome::New,
            Heard::Old => AdvertOutcome::Old,
            Heard::Stranger => AdvertOutcome::Stranger,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AdvertLabels {
    outcome: &'static str,
}

/// What is counted of the pool.
pub(super) struct Metrics {
    /// Terms that this node announced.
    pub(super) elections: Counter,
    /// Adverts that this node published.
    pub(super) adverts_sent: Counter,
    adverts_received: Family<AdvertLabels, Counter>,
}

impl Metrics {
    /// Registers the metrics with `observer`; peers and the term are read from the view.
    pub(super) fn new(observer: &Observer, view: &watch::Receiver<Arc<View>>) -> Metrics {
        let connected = view.clone();
        observer.gauge("peers_connected", "Peers that this node is connected to", move || {
            connected.borrow().connected.len() as f64
        });
        let followed = view.clone();
        observer.gauge("master", "1 if this node is the master of its pool", move || {
            let view = followed.borrow();
            f64::from(u8::from(view.term.is_some_and(|term| term.master == view.local)))
        });
        let followed = view.clone();
        observer.gauge("election_term", "Number of the term that this node follows; 0 without a master", move || {
            followed.borrow().term.map_or(0.0, |term| term.counter as f64)
        });
        Metrics {
            elections: observer.counter("elections", "Terms that this node began to follow, as master or not"),
            adverts_sent: observer.counter("adverts_sent", "Adverts of this node that were published"),
            adverts_received: observer.counters(
                "adverts_received",
                "Adverts of other nodes that arrived, by outcome",
                AdvertOutcome::ALL.map(AdvertOutcome::labels),
            ),
        }
    }

    /// Counts an advert that arrived.
    pub(super) fn received(&self, outcome: AdvertOutcome) {
        self.adverts_received.get_or_create(&outcome.labels()).inc();
    }
}
