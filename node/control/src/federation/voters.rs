//! Which nodes vote on one request, and how many samples each generates at once. A pure function of the pool's adverts and of
//! what is known of each peer.

use std::cmp::Reverse;
use std::sync::Arc;

use libp2p_identity::PeerId;
use pangea_units::Digest;

use super::ballot_box::Voter;
use super::limits::{OWN_WORTH, VOTERS_MAX};
use super::peers::takes_part;
use crate::pool::{Advert, ServingAdvert, View};

/// What this node knows of a peer that may compute.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Standing {
    /// Trust in it, 0 to 1.
    pub trust: f64,
    /// Whether it is to be used last.
    pub suspect: bool,
}

/// A node that votes on a request.
#[derive(Clone, Debug, PartialEq)]
pub struct VotingNode {
    /// The node. That of the last resort is this node, which asks whichever nodes compute the model.
    pub peer: PeerId,
    /// Its part in the vote.
    pub voter: Voter,
}

/// The nodes that vote on a request to `model`: this node, where it answers with all layers of its own (`here`: what it would say
/// of itself), and each connected node of the federation that does. `standing`: what is known of a peer; `None` if it may not
/// compute. Where this node does not answer the model itself, the pool's ordinary way to an answer is the last resort, with
/// `places` samples at once.
pub fn voting_nodes(
    model: &Digest,
    here: Option<&ServingAdvert>,
    view: &View,
    places: usize,
    standing: impl Fn(&PeerId) -> Option<Standing>,
) -> Vec<VotingNode> {
    let peers = view.nodes.values().filter_map(|advert| {
        let serving = advert.serving.iter().find(|serving| serving.model == *model)?;
        let can = takes_part(advert) && view.connected.contains(&advert.peer) && serving.places > 0;
        // Other numerics would give another text for the same seed, and so would an engine whose bits are not exact.
        let is_exact = advert.bits.is_empty() && view.own.bits.is_empty();
        let same_text = advert.numerics == view.own.numerics && is_exact;
        let standing = standing(&advert.peer).filter(|_| can && same_text)?;
        Some((advert, serving, standing))
    });
    let mut peers: Vec<(&Arc<Advert>, &ServingAdvert, Standing)> = peers.collect();
    let speeds = peers.iter().map(|(_, serving, _)| *serving).chain(here).map(|serving| serving.tokens_per_s);
    let fastest = speeds.max().unwrap_or(0);
    let order = |(advert, serving, standing): &(&Arc<Advert>, &ServingAdvert, Standing)| {
        (standing.suspect, Reverse(free_places(serving, fastest, 1.0)), advert.peer)
    };
    peers.sort_by_key(order);
    peers.truncate(VOTERS_MAX);
    let own = match here {
        Some(serving) => Voter::this_node(free_places(serving, fastest, OWN_WORTH)),
        None => Voter::anyone(places.max(1)),
    };
    let own = VotingNode { peer: view.local, voter: own };
    let peers = peers.into_iter().map(|(advert, serving, standing)| VotingNode {
        peer: advert.peer,
        voter: Voter::peer(standing.trust, standing.suspect, free_places(serving, fastest, 1.0)),
    });
    std::iter::once(own).chain(peers).collect()
}

/// Samples that a node generates at once beside the answers that it has, in proportion to its speed, so that no vote waits for a
/// slow node; at least 1. A node that nobody has measured counts as the fastest.
fn free_places(serving: &ServingAdvert, fastest: u16, worth: f64) -> usize {
    let taken = serving.running.saturating_add(serving.waiting);
    let free = u16::from(serving.places).saturating_sub(taken);
    let share = match serving.tokens_per_s {
        0 => 1.0,
        speed => (f64::from(speed) * worth / f64::from(fastest.max(1))).min(1.0),
    };
    ((f64::from(free) * share).round() as usize).max(1)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::federation::limits::UNSUSPECTED_TRUST;
    use crate::pool::advert_of;
    use crate::test_peers::peer;

    const MODEL: Digest = Digest([1; 32]);
    const KNOWN: Standing = Standing { trust: 0.5, suspect: false };

    fn serving(tokens_per_s: u16, running: u16) -> ServingAdvert {
        ServingAdvert { model: MODEL, places: 8, running, waiting: 0, tokens_per_s }
    }

    fn voting(number: u64, serving: ServingAdvert) -> Advert {
        Advert { votes: true, serving: vec![serving], ..advert_of(peer(number)) }
    }

    fn view(nodes: Vec<Advert>) -> View {
        View {
            local: peer(1),
            own: Arc::new(advert_of(peer(1))),
            term: None,
            connected: nodes.iter().map(|advert| advert.peer).collect::<BTreeSet<_>>(),
            nodes: nodes.into_iter().map(|advert| (advert.peer, Arc::new(advert))).collect(),
        }
    }

    fn places(nodes: &[VotingNode]) -> Vec<(PeerId, usize)> {
        nodes.iter().map(|node| (node.peer, node.voter.places)).collect()
    }

    #[test]
    fn only_connected_nodes_of_the_federation_that_give_the_same_text_vote() {
        let good = voting(2, serving(30, 0));
        let nodes = vec![
            good.clone(),
            Advert { votes: false, ..voting(3, serving(30, 0)) },
            Advert { works: false, ..voting(4, serving(30, 0)) },
            Advert { numerics: 9, ..voting(5, serving(30, 0)) },
            Advert { bits: "canonical-grid/1".to_owned(), ..voting(10, serving(30, 0)) },
            voting(6, ServingAdvert { model: Digest([2; 32]), ..serving(30, 0) }),
            voting(7, ServingAdvert { places: 0, ..serving(30, 0) }),
            voting(8, serving(30, 0)),
            voting(9, serving(30, 0)),
        ];
        let mut view = view(nodes);
        view.connected.remove(&peer(8));
        let standing = |of: &PeerId| (*of != peer(9)).then_some(KNOWN);
        let here = serving(30, 0);
        let nodes = voting_nodes(&MODEL, Some(&here), &view, 8, standing);
        assert_eq!(places(&nodes), [(peer(1), 8), (peer(2), 8)]);
        assert!(nodes[0].voter.local && !nodes[0].voter.is_last_resort);
        assert_eq!((nodes[1].voter.trust, nodes[1].voter.local), (UNSUSPECTED_TRUST, false));
        let nodes = voting_nodes(&MODEL, None, &view, 3, standing);
        assert_eq!(places(&nodes), [(peer(1), 3), (peer(2), 8)]);
        assert!(nodes[0].voter.is_last_resort && !nodes[1].voter.is_last_resort);
        // No other node gives the text of a node whose bits are not exact.
        view.own = Arc::new(Advert { bits: "canonical-grid/1".to_owned(), ..advert_of(peer(1)) });
        assert_eq!(places(&voting_nodes(&MODEL, Some(&here), &view, 8, standing)), [(peer(1), 8)]);
    }

    #[test]
    fn faster_and_idler_nodes_get_more_samples_and_this_node_is_preferred_to_equal_ones() {
        let all = |here, others: &[ServingAdvert]| {
            let nodes = others.iter().zip(2..).map(|(said, number)| voting(number, *said)).collect();
            places(&voting_nodes(&MODEL, Some(&here), &view(nodes), 8, |_| Some(KNOWN)))
        };
        assert_eq!(all(serving(30, 0), &[serving(33, 0)]), [(peer(1), 8), (peer(2), 8)], "slightly faster");
        assert_eq!(all(serving(30, 0), &[serving(120, 0)]), [(peer(1), 3), (peer(2), 8)]);
        assert_eq!(all(serving(30, 0), &[serving(3, 0)]), [(peer(1), 8), (peer(2), 1)], "one at least");
        assert_eq!(all(serving(30, 6), &[serving(30, 0), serving(30, 9)]), [(peer(1), 2), (peer(2), 8), (peer(3), 1)]);
        assert_eq!(all(serving(0, 0), &[serving(30, 0)]), [(peer(1), 8), (peer(2), 8)], "nobody has measured it");
        assert_eq!(all(serving(30, 0), &[serving(15, 0), serving(30, 0)])[1..], [(peer(3), 8), (peer(2), 4)]);
    }

    #[test]
    fn suspects_come_last_with_their_own_trust() {
        let nodes = vec![voting(2, serving(90, 0)), voting(3, serving(30, 0))];
        let standing = |of: &PeerId| Some(Standing { trust: 0.2, suspect: *of == peer(2) });
        let nodes = voting_nodes(&MODEL, None, &view(nodes), 8, standing);
        let trust: Vec<(PeerId, f64)> = nodes[1..].iter().map(|node| (node.peer, node.voter.trust)).collect();
        assert_eq!(trust, [(peer(3), UNSUSPECTED_TRUST), (peer(2), 0.2)]);
    }

    proptest! {
        #[test]
        fn voters_are_bounded_and_each_can_give_a_sample(
            said in prop::collection::vec((any::<u8>(), any::<u16>(), any::<u16>(), any::<u16>()), 0..80),
            here in prop::option::of((any::<u8>(), any::<u16>())),
        ) {
            let nodes = said.into_iter().zip(2..).map(|((places, running, waiting, tokens_per_s), number)| {
                voting(number, ServingAdvert { model: MODEL, places, running, waiting, tokens_per_s })
            });
            let here = here.map(|(places, tokens_per_s)| ServingAdvert { places, ..serving(tokens_per_s, 0) });
            let nodes = voting_nodes(&MODEL, here.as_ref(), &view(nodes.collect()), 0, |_| Some(KNOWN));
            prop_assert!(nodes.len() <= VOTERS_MAX + 1);
            prop_assert!(nodes.iter().all(|node| (1..=255).contains(&node.voter.places)));
            prop_assert_eq!(nodes.iter().filter(|node| node.voter.local).count(), 1);
            prop_assert_eq!(nodes.iter().filter(|node| node.voter.is_last_resort).count(), usize::from(here.is_none()));
        }
    }
}
