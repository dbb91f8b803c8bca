//! The node's handle on the directory of peers: cheap to clone, usable from any thread. It holds the directory of
//! `pangea_control::peers` and notifies followers when a peer may no longer compute. The fabric's driver feeds it
//! and executes its actions; nothing is decided here.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use libp2p::PeerId;
use tokio::sync::watch;

use crate::clock;
use crate::observe::Observer;
use pangea_control::peers::{Action, Directory, Event, SuspicionReason};

/// The directory of peers; clones share it.
#[derive(Clone, Debug)]
pub struct Peers(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    excluded: watch::Sender<Arc<BTreeSet<PeerId>>>,
    /// Convictions since the start of the node.
    quarantines: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    directory: Directory,
    /// Actions of convictions from other threads that are not executed yet. Bounded by the number of peers in the directory.
    pending: Vec<Action>,
}

impl Default for Peers {
    fn default() -> Peers {
        let (excluded, quarantines) = (watch::Sender::default(), AtomicU64::new(0));
        Peers(Arc::new(Inner { state: Mutex::default(), excluded, quarantines }))
    }
}

impl Peers {
    /// Processes an event; returns the actions for the caller.
    pub(crate) fn handle(&self, event: Event) -> Vec<Action> {
        self.state().directory.handle(event, clock::now())
    }

    /// Registers what is counted of quarantined peers with `observer`.
    pub fn observe(&self, observer: &Observer) {
        let peers = self.clone();
        observer.count("quarantines", "Peers that were quarantined since the start of the node", move || {
            peers.0.quarantines.load(Ordering::Relaxed)
        });
        let peers = self.clone();
        observer
            .gauge("peers_quarantined", "Peers that are quarantined", move || peers.0.excluded.borrow().len() as f64);
    }

    /// Convicts a peer of a lie; the caller stores the proof. Once this returns, the peer may not compute.
    pub fn convict(&self, peer: PeerId, why: &str) {
        if self.exclude(peer, why) {
            self.0.quarantines.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A peer that was convicted in an earlier run of the node may not compute either.
    pub fn remember_convicted(&self, peer: PeerId, why: &str) {
        self.exclude(peer, why);
    }

    /// Quarantines a peer; returns whether it was not quarantined before.
    fn exclude(&self, peer: PeerId, why: &str) -> bool {
        let excluded = {
            let mut state = self.state();
            let actions = state.directory.handle(Event::Convicted { peer, why: why.to_owned() }, clock::now());
            state.pending.extend(actions);
            state.directory.excluded()
        };
        self.0.excluded.send_if_modified(|known| {
            let changed = **known != excluded;
            if changed {
                *known = Arc::new(excluded);
            }
            changed
        })
    }

    /// Lowers the trust of a peer for a while: it did something that a liar does and that proves nothing.
    pub fn suspect(&self, peer: PeerId, reason: SuspicionReason) {
        tracing::info!(event = "peer_suspected", %peer, reason = reason.name());
        self.handle(Event::Suspected { peer, reason });
    }

    /// Whether a peer is to be used last and audited first.
    pub fn is_suspect(&self, peer: &PeerId) -> bool {
        self.state().directory.is_suspect(peer, clock::now())
    }

    /// The peers to be used last and audited first.
    pub fn suspects(&self) -> Vec<PeerId> {
        self.state().directory.suspects(clock::now())
    }

    /// Takes the actions of convictions since the last call.
    pub(crate) fn take_pending(&self) -> Vec<Action> {
        std::mem::take(&mut self.state().pending)
    }

    /// Whether a peer may get work, weights, sessions and mastership, and may submit work of its own.
    pub fn may_compute(&self, peer: &PeerId) -> bool {
        self.state().directory.may_compute(peer)
    }

    /// The peers that may not compute; changes with every conviction.
    pub fn excluded(&self) -> watch::Receiver<Arc<BTreeSet<PeerId>>> {
        self.0.excluded.subscribe()
    }

    /// Reads the directory. `read` must not block: the network thread uses it as well.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&Directory) -> T) -> T {
        read(&self.state().directory)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::Format;

    #[test]
    fn a_conviction_counts_at_once_and_is_published_once() {
        let (peers, liar) = (Peers::default(), PeerId::random());
        let observer = Observer::default();
        peers.observe(&observer);
        let mut excluded = peers.excluded();
        assert!(peers.may_compute(&liar) && excluded.borrow_and_update().is_empty());
        peers.convict(liar, "a wrong product");
        assert!(!peers.may_compute(&liar) && peers.clone().read(|directory| directory.why_not(&liar).is_some()));
        assert!(excluded.has_changed().unwrap() && excluded.borrow_and_update().contains(&liar));
        assert_eq!(peers.take_pending().len(), 1);
        peers.convict(liar, "again");
        assert!(!excluded.has_changed().unwrap() && peers.take_pending().is_empty());
        peers.remember_convicted(PeerId::random(), "a wrong sum, before the node was restarted");
        let text = observer.text(Format::Prometheus).unwrap();
        for sample in ["pangea_quarantines_total 1", "pangea_peers_quarantined 2.0"] {
            assert!(text.lines().any(|line| line == sample), "{sample} in {text}");
        }
    }
}
