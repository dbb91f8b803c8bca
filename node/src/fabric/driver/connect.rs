//! Calls of `connect`: from an address to a peer that has sent its hello.

use std::time::Duration;

use libp2p::PeerId;
use pangea_client::{Error, ErrorKind, Result};
use tokio::sync::oneshot;

use super::{FabricDriver, Notice};
use crate::clock;
use crate::net::peer_address;
use pangea_control::Time;
use pangea_control::peers;

impl FabricDriver {
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
            let until = clock::now() + timeout;
            let result = network.connect(address, timeout).await.map_err(net_error);
            let _ = notices.send(Notice::Connected { result, until, answer }).await;
        });
    }

    /// Once the peer is admitted, the call waits until the directory has the peer's hello.
    pub(super) fn connected(&mut self, result: Result<PeerId>, until: Time, answer: oneshot::Sender<Result<String>>) {
        match result {
            Err(error) => {
                let _ = answer.send(Err(error));
            }
            Ok(peer) => {
                let call = self.next_call;
                self.next_call += 1;
                self.calls.insert(call, answer);
                self.tell_peers(peers::Event::CallWaits { call, peer, until });
            }
        }
    }

    pub(super) fn answer_call(&mut self, call: u64, result: Result<String>) {
        if let Some(answer) = self.calls.remove(&call) {
            // The requester may have gone.
            let _ = answer.send(result);
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
