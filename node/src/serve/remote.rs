//! A model whose requests this node has another node answer as a whole: which nodes take them, and how long first tokens take
//! there. `api/http` sends them; `pangea_control::routing` decides.

use std::any::Any;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use libp2p::PeerId;
use pangea_compute::Digest;
use pangea_control::generation::PromptPace;
use pangea_control::routing::Prefix;
use tokio::sync::watch;

use super::dispatch::Dispatch;
use crate::pool::View;
use crate::trust::Auditor;

/// A model whose requests are answered elsewhere.
#[derive(Clone)]
pub struct RemoteModel {
    /// Name of the model in requests to this node.
    pub name: String,
    /// Digest of the model.
    pub digest: Digest,
    pub(super) view: watch::Receiver<Arc<View>>,
    pub(super) dispatch: Dispatch,
    pub(super) auditor: Auditor,
    pub(super) pace: Arc<Mutex<PromptPace>>,
}

impl RemoteModel {
    /// Number of layers, as the nodes that have the model tell; 0 if none does.
    pub fn layers(&self) -> u32 {
        let view = self.view.borrow();
        let sizes = view.nodes.values().flat_map(|node| &node.models).filter(|model| model.digest == self.digest);
        sizes.map(|model| model.size.layers).max().unwrap_or(0)
    }

    /// The start of a request's text.
    pub fn prefix(&self, text: &[u8]) -> Prefix {
        self.dispatch.text_prefix(text)
    }

    /// Time within which an answer should begin.
    pub fn patience(&self, prefix: &Prefix) -> Duration {
        self.pace().patience(prefix.tokens())
    }

    /// Records that an answer began `took` after its request was sent.
    pub fn began(&self, prefix: &Prefix, took: Duration) {
        self.pace().observe(prefix.tokens(), took);
    }

    /// The best connected node for a request among those that `may_take` it; suspects come last. The request counts there until
    /// the returned value is dropped.
    pub fn send(
        &self,
        prefix: &Prefix,
        may_take: impl Fn(&PeerId) -> bool,
    ) -> Option<(PeerId, Arc<dyn Any + Send + Sync>)> {
        let view = Arc::clone(&self.view.borrow());
        let may_take = |peer: &PeerId| view.connected.contains(peer) && may_take(peer);
        let trusted = |peer: &PeerId| may_take(peer) && !self.auditor.is_suspect(peer);
        let send = |may_take: &dyn Fn(&PeerId) -> bool| self.dispatch.send_whole(self.digest, &view, may_take, prefix);
        send(&trusted).or_else(|| send(&may_take))
    }

    fn pace(&self) -> MutexGuard<'_, PromptPace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
