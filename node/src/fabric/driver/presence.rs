//! Which peers are there: what the network says of them, and how many are connecting.

use std::time::{Duration, Instant};

use libp2p::Multiaddr;

use super::Driver;
use crate::fabric::peers::PeerState;
use crate::net::NetEvent;
use pangea_control::schedule::{Event, LeaveReason};

impl Driver {
    pub(super) fn on_net_event(&mut self, event: NetEvent) {
        let now = Instant::now();
        match event {
            NetEvent::Listening(address) => self.listening.send_modify(|addresses| addresses.push(address.to_string())),
            NetEvent::Discovered(peer) => {
                tracing::info!(event = "discovered", %peer, "mDNS discovered a new peer: {peer}");
                let known = self.peers.entry(peer, now);
                if known.link.is_none() {
                    known.enter(PeerState::Connecting, now);
                }
            }
            NetEvent::PeerUp { peer, address, transport, found_by, .. } => {
                let known = self.peers.entry(peer, now);
                known.enter(PeerState::Connecting, now);
                known.addresses = vec![address.to_string()];
                known.transport = transport.to_string();
                known.found_by = found_by.to_string();
                known.gone.clear();
                known.reopened = 0;
                self.open_stream(peer, Duration::ZERO);
            }
            NetEvent::PeerAddressesChanged { peer, addresses } => {
                if !addresses.is_empty()
                    && let Some(known) = self.peers.get_mut(&peer)
                {
                    known.addresses = addresses.iter().map(Multiaddr::to_string).collect();
                }
            }
            NetEvent::PeerDown { peer, why, .. } => {
                self.close_link(peer, LeaveReason::Lost);
                let known = self.peers.entry(peer, now);
                known.enter(PeerState::Gone, now);
                known.gone.clone_from(&why);
                self.link_speeds.send_if_modified(|speeds| speeds.remove(&peer).is_some());
                tracing::info!(event = "peer_gone", %peer, "Peer {peer} is gone ({why})");
            }
            NetEvent::Rtt { peer, rtt } => {
                let known = self.peers.entry(peer, now);
                let first = known.rtt.is_none();
                // The least of a few: a busy moment is no property of the link.
                known.rtt = Some(known.rtt.map_or(rtt, |before| rtt.min(before.mul_f64(1.05))));
                if first {
                    self.update_worker(peer);
                }
            }
            NetEvent::Refused { .. }
            | NetEvent::RefusedBy { .. }
            | NetEvent::Gossip(_)
            | NetEvent::PeersFileBroken { .. }
            | NetEvent::PeersFileLoaded { .. } => {}
        }
        self.count_connecting();
    }

    pub(super) fn count_connecting(&mut self) {
        let count = self.peers.connecting(Instant::now());
        if count != self.connecting {
            self.connecting = count;
            self.events.push_back(Event::PeersConnecting { count });
        }
    }
}
