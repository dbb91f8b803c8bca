//! The task streams that peers open to this node; `link::serve` serves them.

use std::rc::Rc;

use futures::StreamExt;
use libp2p::{PeerId, StreamProtocol};

use super::{FabricDriver, Notice};
use crate::link::serve;
use crate::wire::PROTOCOL;

impl FabricDriver {
    /// Accepts the task streams that peers open.
    pub(super) fn accept_streams(&mut self) {
        let Some(network) = &self.network else { return };
        let mut incoming = match network.accept(StreamProtocol::new(PROTOCOL)) {
            Ok(incoming) => incoming,
            Err(error) => {
                tracing::error!(event = "accept_failed", %error);
                return;
            }
        };
        let notices = self.notices.clone();
        self.settings.supervisor.task("task streams", async move {
            while let Some((peer, stream)) = incoming.next().await {
                if notices.try_send(Notice::Incoming { peer, stream }).is_err() {
                    tracing::warn!(event = "stream_dropped", %peer, "too busy to accept a stream");
                }
            }
        });
    }

    pub(super) fn serve(&mut self, peer: PeerId, stream: libp2p::Stream) {
        if !self.peers.may_compute(&peer) {
            tracing::debug!(event = "stream_refused", %peer, "the peer is quarantined");
            return;
        }
        let Some(place) = self.served.borrow().places.take(peer) else {
            tracing::debug!(event = "stream_refused", %peer, "the peer has its maximum of streams");
            return;
        };
        let advert = self.hello();
        let served = Rc::clone(&self.served);
        tokio::task::spawn_local(async move {
            let why = serve::serve(stream, place, advert, served).await;
            tracing::debug!(event = "serve_ended", %peer, %why);
        });
    }
}
