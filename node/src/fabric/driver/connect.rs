//! Calls of `connect`: from an address to a peer that answered.

use std::time::{Duration, Instant};

use libp2p::PeerId;
use pangea_client::{Error, ErrorKind, Result};
use tokio::sync::oneshot;

use super::{Driver, Notice};
use crate::fabric::peers::PeerState;
use crate::net::peer_address;

impl Driver {
    pub(super) fn connect(&mut self, address: &str, timeout: Duration, answer: oneshot::Sender<Result<String>>) {
        let Some(network) = self.network.clone() else {
            let _ = answer.send(Err(Error::new(ErrorKind::Unavailable, "this node has no network")));
            return;
        };
        let address = match peer_address::parse(address) {
            Ok(address) => address,
            Err(error) => {
                let _ = answer.send(Err(Error::new(ErrorKind::InvalidInput, error.to_string())));
                return;
            }
        };
        let notices = self.notices.clone();
        tokio::task::spawn_local(async move {
            let deadline = Instant::now() + timeout;
            let result = network.connect(address, timeout).await.map_err(net_error);
            let _ = notices.send(Notice::Connected { result, deadline, answer }).await;
        });
    }

    pub(super) fn connected(
        &mut self,
        result: Result<PeerId>,
        deadline: Instant,
        answer: oneshot::Sender<Result<String>>,
    ) {
        match result {
            Err(error) => {
                let _ = answer.send(Err(error));
            }
            Ok(peer) if self.peers.get(&peer).is_some_and(|known| known.state == PeerState::Connected) => {
                let _ = answer.send(Ok(peer.to_string()));
            }
            // Admitted; its advert is still to come.
            Ok(peer) => self.waiting_for.push((peer, deadline, answer)),
        }
    }

    pub(super) fn on_tick(&mut self) {
        self.count_connecting();
        let now = Instant::now();
        let (late, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.waiting_for).into_iter().partition(|(_, until, _)| *until <= now);
        self.waiting_for = waiting;
        for (peer, _, answer) in late {
            let why = format!("{peer} is connected but does not answer as a Pangea node");
            let _ = answer.send(Err(Error::new(ErrorKind::Unavailable, why)));
        }
    }
}

pub(super) fn net_error(error: crate::net::NetError) -> Error {
    use crate::net::NetError;
    let kind = match &error {
        NetError::Refused { .. } => ErrorKind::Unauthorized,
        NetError::OwnAddress(_) => ErrorKind::InvalidInput,
        NetError::TimedOut { .. } => ErrorKind::DeadlineExceeded,
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, error.to_string())
}
