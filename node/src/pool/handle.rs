//! The handle by which the rest of a node sees its pool, and says what the pool is to know of this node: cheap to clone,
//! usable from any thread. The driver on the network thread does the work.

use std::sync::{Arc, Mutex, PoisonError};

use libp2p::PeerId;
use tokio::sync::{Notify, watch};

use super::Advert;
use super::View;

/// The pool as this node sees it.
#[derive(Clone)]
pub struct Pool {
    pub(super) local: PeerId,
    pub(super) own: Arc<Mutex<Advert>>,
    pub(super) said: Arc<Notify>,
    pub(super) view: watch::Receiver<Arc<View>>,
}

impl Pool {
    /// The pool's master, as far as this node knows one.
    pub fn master(&self) -> Option<PeerId> {
        self.view().borrow().master()
    }

    /// This node's peer id.
    pub fn local(&self) -> PeerId {
        self.local
    }

    /// What is known of the pool; changes with everything that is heard.
    pub fn view(&self) -> watch::Receiver<Arc<View>> {
        self.view.clone()
    }

    /// Changes what this node says of itself; it is told to the pool within a moment, several changes at once. What the pool
    /// itself keeps (who and where the node is, its links, its term) is not a caller's to change: it is written over.
    pub fn say(&self, change: impl FnOnce(&mut Advert)) {
        change(&mut self.own.lock().unwrap_or_else(PoisonError::into_inner));
        self.said.notify_one();
    }
}
