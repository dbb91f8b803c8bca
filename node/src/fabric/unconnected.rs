//! Statuses of nodes that this one looks for and is not connected to: why not. Plain values; nothing is decided here.

use libp2p::Multiaddr;
use pangea_control::net::dial::FailedDials;

use super::status::PeerStatus;
use crate::net::{FoundBy, Unconnected};

/// Adds to `statuses` the nodes that dials failed to reach, or says why in the entry of one that is only known to be announced.
pub(super) fn add(statuses: &mut Vec<PeerStatus>, nodes: Vec<Unconnected>) {
    let known = statuses.len();
    for node in nodes {
        let Some(FailedDials { is_refused, why, count }) = node.failed else { continue };
        let peer = node.peer.map(|peer| peer.to_string()).unwrap_or_default();
        let state = if is_refused { "refused" } else { "unreachable" }.to_owned();
        let why = if count > 1 { format!("{why} ({count} times)") } else { why };
        let addresses: Vec<String> = node.addresses.iter().map(Multiaddr::to_string).collect();
        let found_by = if node.is_named { FoundBy::Manual } else { FoundBy::Mdns };
        match statuses[..known].iter_mut().find(|status| !peer.is_empty() && status.peer == peer) {
            Some(status) if status.state == "connecting" => {
                (status.state, status.why, status.addresses) = (state, why, addresses);
            }
            // What is known of a peer that was connected, or is quarantined, says more.
            Some(_) => {}
            None => statuses.push(PeerStatus {
                peer,
                state,
                addresses,
                why,
                found_by: found_by.to_string(),
                ..PeerStatus::default()
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use libp2p::PeerId;

    use super::*;

    fn node(peer: Option<PeerId>, is_refused: bool, count: u64) -> Unconnected {
        let failed = FailedDials { is_refused, why: "no route".to_owned(), count };
        let addresses = vec!["/ip4/10.0.0.1/tcp/7777".parse().unwrap()];
        Unconnected { peer, addresses, is_named: true, failed: Some(failed) }
    }

    fn status(peer: PeerId, state: &str) -> PeerStatus {
        PeerStatus {
            peer: peer.to_string(),
            state: state.to_owned(),
            why: "was there".to_owned(),
            ..PeerStatus::default()
        }
    }

    #[test]
    fn a_node_that_cannot_be_reached_is_listed_with_the_reason_and_what_is_known_better_stays() {
        let [announced, gone] = [PeerId::random(), PeerId::random()];
        let mut statuses = vec![status(announced, "connecting"), status(gone, "gone")];
        let untried = Unconnected { failed: None, ..node(Some(PeerId::random()), false, 1) };
        add(
            &mut statuses,
            vec![node(Some(announced), true, 3), node(Some(gone), false, 1), node(None, false, 1), untried],
        );
        let seen: Vec<_> = statuses.iter().map(|status| (status.state.as_str(), status.why.as_str())).collect();
        assert_eq!(seen, [("refused", "no route (3 times)"), ("gone", "was there"), ("unreachable", "no route")]);
        assert_eq!((statuses[2].peer.as_str(), statuses[2].found_by.as_str()), ("", "manual"));
        assert_eq!(statuses[2].addresses, ["/ip4/10.0.0.1/tcp/7777"]);
    }
}
