//! The node's one handle on what it knows of its peers: cheap to clone, usable from any thread. It holds the directory of
//! `pangea_control::peers` and tells who follows when another peer may no longer compute; what it knows comes from the
//! fabric's driver, which also does what the directory decides. It decides nothing itself.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use libp2p::PeerId;
use tokio::sync::watch;

use crate::clock;
use pangea_control::peers::{Action, Directory, Event};

/// What this node knows of its peers; clones are the same.
#[derive(Clone, Debug)]
pub struct Peers(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    excluded: watch::Sender<Arc<BTreeSet<PeerId>>>,
}

#[derive(Debug, Default)]
struct State {
    directory: Directory,
    /// Decided by a conviction from another thread, not yet carried out. Bounded by the peers that are remembered.
    pending: Vec<Action>,
}

impl Default for Peers {
    fn default() -> Peers {
        Peers(Arc::new(Inner { state: Mutex::default(), excluded: watch::Sender::default() }))
    }
}

impl Peers {
    /// Takes in what happened to a peer; what the caller is to do.
    pub(crate) fn handle(&self, event: Event) -> Vec<Action> {
        self.state().directory.handle(event, clock::now())
    }

    /// A peer was proven to lie; the proof is the caller's to keep. From the moment that this returns the peer may not compute.
    pub fn convict(&self, peer: PeerId, why: &str) {
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
        });
    }

    /// What convictions asked for since the last call.
    pub(crate) fn take_pending(&self) -> Vec<Action> {
        std::mem::take(&mut self.state().pending)
    }

    /// Whether work, weights, sessions and mastership may be given to a peer, and its own work taken.
    pub fn may_compute(&self, peer: &PeerId) -> bool {
        self.state().directory.may_compute(peer)
    }

    /// The peers that may not compute; changes with every conviction.
    pub fn excluded(&self) -> watch::Receiver<Arc<BTreeSet<PeerId>>> {
        self.0.excluded.subscribe()
    }

    /// Reads the directory. `read` must not wait: the network thread asks here, too.
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

    #[test]
    fn a_conviction_counts_at_once_and_whoever_follows_hears_of_it_once() {
        let (peers, liar) = (Peers::default(), PeerId::random());
        let mut excluded = peers.excluded();
        assert!(peers.may_compute(&liar) && excluded.borrow_and_update().is_empty());
        peers.convict(liar, "a wrong product");
        assert!(!peers.may_compute(&liar) && peers.clone().read(|directory| directory.why_not(&liar).is_some()));
        assert!(excluded.has_changed().unwrap() && excluded.borrow_and_update().contains(&liar));
        assert_eq!(peers.take_pending().len(), 1);
        peers.convict(liar, "again");
        assert!(!excluded.has_changed().unwrap() && peers.take_pending().is_empty());
    }
}
