//! The task streams that peers open towards this node. What is served on them is `link::serve`'s.

use std::rc::Rc;

use futures::StreamExt;
use libp2p::{PeerId, StreamProtocol};

use super::{Driver, Notice};
use crate::link::serve;
use crate::wire::PROTOCOL;

/// Streams that one peer may have open towards this node: one, and one that replaces it.
const SERVED_STREAMS_PER_PEER: usize = 2;

impl Driver {
    /// Serves the task streams that peers open.
    pub(super) fn accept_streams(&mut self) {
        let Some(network) = &self.network else { return };
        let mut incoming = match network.streams().accept(StreamProtocol::new(PROTOCOL)) {
            Ok(incoming) => incoming,
            Err(error) => {
                tracing::error!(event = "accept_failed", %error);
                return;
            }
        };
        let notices = self.notices.clone();
        self.settings.supervisor.task("task streams", async move {
            // Streams that arrive while nobody waits are dropped, so nothing else happens in this loop.
            while let Some((peer, stream)) = incoming.next().await {
                if notices.try_send(Notice::Incoming { peer, stream }).is_err() {
                    tracing::warn!(event = "stream_dropped", %peer, "too busy to take a stream");
                }
            }
        });
    }

    pub(super) fn serve(&mut self, peer: PeerId, stream: libp2p::Stream) {
        if !self.peers.may_compute(&peer) {
            tracing::debug!(event = "stream_refused", %peer, "the peer is quarantined");
            return;
        }
        let streams = self.served_streams.entry(peer).or_default();
        if *streams >= SERVED_STREAMS_PER_PEER {
            tracing::debug!(event = "stream_refused", %peer);
            return;
        }
        *streams += 1;
        let advert = self.advert();
        let served = Rc::clone(&self.served);
        let notices = self.notices.clone();
        tokio::task::spawn_local(async move {
            let why = serve::serve(stream, peer, advert, served).await;
            let _ = notices.send(Notice::ServeEnded { peer, why: why.to_string() }).await;
        });
    }
}
