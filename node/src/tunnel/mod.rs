//! Whole requests to a model, tunnelled to the node that serves it: `/pangea/http/1`. A request is typed, a route and a JSON body,
//! and has no headers: neither credentials nor the node's own administration can travel. It goes one hop; the node that receives
//! it answers through its own HTTP routes and tunnels nothing on.
//!
//! ```text
//!  client ──► api/http (entrance) ──► asking: a stream for each request ══► answering: places, deadlines ──► api/http (routes)
//! ```
//!
//! * [`message`]: the protocol. [`limits`]: its numbers.
//! * [`asking`]: the side that sends a request and receives the answer.
//! * [`answering`]: the side that receives requests, as many as there are places for, and has them answered.
//!
//! Each request has a stream of its own on the connection that the two nodes have anyway. Opening one takes a round trip and a few
//! hundred bytes; one request's answer never waits behind another's, and ending the stream cancels exactly this request. A stream
//! that served several requests would save that round trip and would need a second way to cancel.
//!
//! Which node is asked is decided in [`pangea_control::routing`]; what a request means is known to `api/http` alone.

pub mod answering;
pub mod asking;
#[cfg(test)]
mod goldens;
pub mod limits;
pub mod message;

use std::sync::{Arc, Mutex, PoisonError};

use libp2p::{PeerId, StreamProtocol};
use pangea_client::{Error, ErrorKind, Result};

use crate::net::{IncomingStreams, Network};
use crate::peers::Peers;

pub use message::{AnswerForm, Ask, AskRoute, Counted, Failure, TunnelMessage};

/// The protocol, versioned in its name.
pub const PROTOCOL: &str = "/pangea/http/1";

/// The node's end of all tunnels. Clones share it.
#[derive(Clone)]
pub struct Tunnel {
    network: Network,
    peers: Peers,
    /// The streams that peers open, until somebody answers them; none at a node that answers nobody.
    incoming: Arc<Mutex<Option<IncomingStreams>>>,
}

impl Tunnel {
    /// The tunnels of a node with this network. `answers`: whether peers may ask this node.
    ///
    /// # Errors
    /// `Internal` if the protocol has a handler already.
    pub fn new(network: Network, peers: Peers, answers: bool) -> Result<Tunnel> {
        // A connection offers the protocols that were accepted before it.
        let accept = || {
            let failed = |error| Error::new(ErrorKind::Internal, format!("{PROTOCOL}: {error}"));
            network.accept(StreamProtocol::new(PROTOCOL)).map_err(failed)
        };
        let incoming = answers.then(accept).transpose()?;
        Ok(Tunnel { network, peers, incoming: Arc::new(Mutex::new(incoming)) })
    }

    /// Whether a peer may be asked.
    pub fn may_ask(&self, peer: &PeerId) -> bool {
        self.peers.may_compute(peer)
    }

    /// The streams that peers open; the first caller gets them.
    pub(super) fn take_incoming(&self) -> Option<IncomingStreams> {
        self.incoming.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
