//! What adverts say, noted in the statuses of nodes that people and programs read. Pure functions.

use pangea_client::{NodeStatus, PeerStatus};
use pangea_control::federation::takes_part;

use super::View;

/// Notes the version of each peer, and whether it takes part in votes.
pub fn of_peers(mut peers: Vec<PeerStatus>, view: &View) -> Vec<PeerStatus> {
    for status in &mut peers {
        let Some(advert) = status.peer.parse().ok().and_then(|peer| view.nodes.get(&peer)) else { continue };
        status.version.clone_from(&advert.software);
        status.federation = takes_part(advert);
    }
    peers
}

/// Notes whether the node takes part in votes, how many others do, and the master.
pub fn of_node(status: NodeStatus, view: &View) -> NodeStatus {
    NodeStatus {
        master: view.master().map_or_else(String::new, |peer| peer.to_string()),
        federation: view.own.votes,
        federation_peers: view.nodes.values().filter(|advert| takes_part(advert)).count() as u32,
        ..status
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::Arc;

    use libp2p::PeerId;

    use super::*;
    use crate::pool::goldens::advert_of;
    use crate::pool::{Advert, Term};

    #[test]
    fn statuses_say_who_votes_and_with_which_version() {
        let [local, voter, silent, stranger] = [(); 4].map(|()| PeerId::random());
        let voting = Advert { votes: true, software: "1.2.3".to_owned(), ..advert_of(voter) };
        let view = View {
            local,
            own: Arc::new(Advert { votes: true, ..advert_of(local) }),
            term: Some(Term { counter: 1, master: voter }),
            nodes: BTreeMap::from([(voter, Arc::new(voting)), (silent, Arc::new(advert_of(silent)))]),
            connected: BTreeSet::from([voter]),
        };
        let status = |peer: PeerId| PeerStatus { peer: peer.to_string(), ..PeerStatus::default() };
        let noted = of_peers(vec![status(voter), status(silent), status(stranger)], &view);
        let said: Vec<(&str, bool)> = noted.iter().map(|peer| (peer.version.as_str(), peer.federation)).collect();
        assert_eq!(said, [("1.2.3", true), ("", false), ("", false)]);
        let node = of_node(NodeStatus::default(), &view);
        assert_eq!((node.federation, node.federation_peers, node.master), (true, 1, voter.to_string()));
    }
}
