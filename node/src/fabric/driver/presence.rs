//! Presence of peers: passes network events to the directory of peers, and executes its actions.

use libp2p::Multiaddr;
use pangea_client::{Error, ErrorKind};

use super::FabricDriver;
use crate::net::NetEvent;
use pangea_control::peers;
use pangea_control::schedule::{Event, LeaveReason};

impl FabricDriver {
    pub(super) fn on_net_event(&mut self, event: NetEvent) {
        let event = match event {
            NetEvent::Listening(address) => {
                self.listening.send_modify(|addresses| addresses.push(address.to_string()));
                return;
            }
            NetEvent::Discovered(peer) => {
                tracing::info!(event = "discovered", %peer, "mDNS discovered a new peer: {peer}");
                peers::Event::Discovered(peer)
            }
            NetEvent::PeerUp { peer, address, transport, found_by, .. } => peers::Event::Up {
                peer,
                address: address.to_string(),
                transport: transport.to_string(),
                found_by: found_by.to_string(),
            },
            NetEvent::PeerAddressesChanged { peer, addresses } => {
                let addresses = addresses.iter().map(Multiaddr::to_string).collect();
                peers::Event::AddressesChanged { peer, addresses }
            }
            NetEvent::PeerDown { peer, why, .. } => {
                self.close_link(peer, LeaveReason::Lost);
                tracing::info!(event = "peer_gone", %peer, "Peer {peer} is gone ({why})");
                peers::Event::Down { peer, why }
            }
            NetEvent::Rtt { peer, rtt } => peers::Event::RoundTrip { peer, rtt },
            NetEvent::Refused { .. }
            | NetEvent::RefusedBy { .. }
            | NetEvent::Stranger { .. }
            | NetEvent::Gossip(_)
            | NetEvent::PeersFileBroken { .. }
            | NetEvent::PeersFileLoaded { .. } => return,
        };
        self.tell_peers(event);
    }

    /// Passes an event to the directory, and executes the actions.
    pub(super) fn tell_peers(&mut self, event: peers::Event) {
        let actions = self.peers.handle(event);
        self.follow_peers(actions);
    }

    pub(super) fn follow_peers(&mut self, actions: Vec<peers::Action>) {
        for action in actions {
            match action {
                peers::Action::OpenStream { peer, after } => self.open_stream(peer, after),
                peers::Action::CallReady { call, peer } => self.answer_call(call, Ok(peer.to_string())),
                peers::Action::CallFailed { call, why } => {
                    self.answer_call(call, Err(Error::new(ErrorKind::Unavailable, why)));
                }
                peers::Action::Ready(peer) => self.join(peer),
                peers::Action::LinkChanged(peer) => self.update_worker(peer),
                peers::Action::Connecting(count) => self.events.push_back(Event::PeersConnecting { count }),
                peers::Action::CutOff { peer, why } => self.cut_off(peer, why),
            }
        }
    }
}
