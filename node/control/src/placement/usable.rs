//! Which chains of placements can be used, as one node sees the pool: the newest that a request may take, how much its stages
//! hold, and where a chain broke. It opens and starts nothing.

use libp2p_identity::PeerId;
use pangea_units::Digest;

use super::{Placement, pool_facts};
use crate::pool::View;
use crate::session::ChainId;

impl Placement {
    /// The chain of its stages.
    pub fn chain(&self) -> ChainId {
        ChainId { model: self.model, epoch: self.epoch }
    }
}

/// The newest placement of a model whose stages are ready and can be reached, without these peers and epochs. One with a stage
/// on a suspect comes after every other.
pub fn newest_usable(
    view: &View,
    model: &Digest,
    without: (&[PeerId], &[u64]),
    is_suspect: impl Fn(&PeerId) -> bool,
    reaches: impl Fn(&PeerId) -> bool,
    is_broken: impl Fn(&ChainId) -> bool,
) -> Option<Placement> {
    let (peers, epochs) = without;
    let mut placements = pool_facts::placements(view)?;
    placements.retain(|placement| {
        placement.model == *model
            && pool_facts::is_ready(view, placement)
            && placement.stages.iter().all(|stage| !peers.contains(&stage.peer) && reaches(&stage.peer))
            && !epochs.contains(&placement.epoch)
            // What broke here is not yet known to be broken elsewhere.
            && !is_broken(&placement.chain())
    });
    let is_trusted = |placement: &Placement| !placement.stages.iter().any(|stage| is_suspect(&stage.peer));
    placements.into_iter().max_by_key(|placement| (is_trusted(placement), placement.epoch))
}

/// Positions that every stage of a placement has room for; `None` until each has said so.
pub fn room_positions(view: &View, placement: &Placement) -> Option<u64> {
    let positions = |at: usize| {
        let stage = &placement.stages[at];
        let advert = view.advert(&stage.peer)?;
        let said = advert.stages.iter().find(|said| said.model == placement.model && said.layers == stage.layers)?;
        let model = view.everyone().flat_map(|advert| &advert.models).find(|model| model.digest == placement.model)?;
        let bytes = u64::from(stage.layers.end - stage.layers.start) * u64::from(model.size.position_bytes);
        Some(said.session_bytes / bytes.max(1))
    };
    (0..placement.stages.len()).map(positions).min().flatten()
}

/// Which of a chain's nodes says that the chain broke at its stage: of what broke between others nobody else may tell.
pub fn broken_elsewhere(view: &View, chain: &ChainId, peers: &[PeerId]) -> Option<PeerId> {
    let says = |peer: &&PeerId| {
        view.nodes.get(peer).is_some_and(|advert| {
            advert.stages.iter().any(|stage| stage.model == chain.model && stage.broken == Some(chain.epoch))
        })
    };
    peers.iter().find(says).copied()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use super::*;
    use crate::placement::PlacedStage;
    use crate::pool::{StageAdvert, StageState, Term, advert_of, link_to};
    use crate::test_peers::peer;

    const MODEL: Digest = Digest([7; 32]);

    /// A pool of three nodes, in which placement 1 is on nodes 1 and 2, and placement 2 on nodes 1 and 3; all stages are ready.
    fn pool() -> View {
        let term = Term { counter: 1, master: peer(1) };
        let placed = |number, layers| PlacedStage { peer: peer(number), layers };
        let placement = |epoch, second| Placement {
            model: MODEL,
            name: "model".to_owned(),
            epoch,
            term,
            stages: vec![placed(1, 0..4), placed(second, 4..8)],
        };
        let stage = |layers, epoch| StageAdvert {
            model: MODEL,
            layers,
            epoch,
            state: StageState::Ready,
            session_bytes: 1,
            broken: None,
            pace: None,
        };
        let advert = |number: u64| {
            let mut advert = advert_of(peer(number));
            (advert.works, advert.term) = (true, Some(term));
            advert.links = (1..=3).filter(|other| *other != number).map(|other| link_to(peer(other))).collect();
            advert.stages = vec![if number == 1 { stage(0..4, 2) } else { stage(4..8, number - 1) }];
            if number == 1 {
                advert.placements = vec![placement(1, 2), placement(2, 3)];
            }
            Arc::new(advert)
        };
        let nodes = (2..=3).map(|number| (peer(number), advert(number))).collect();
        View { local: peer(1), own: advert(1), term: Some(term), nodes, connected: BTreeSet::from([peer(2), peer(3)]) }
    }

    #[test]
    fn a_chain_with_a_suspect_is_taken_only_where_there_is_no_other() {
        let view = pool();
        let taken = |suspects: &[u64], without: &[u64]| {
            let is_suspect = |peer_: &PeerId| suspects.iter().any(|number| peer(*number) == *peer_);
            newest_usable(&view, &MODEL, (&[], without), is_suspect, |_| true, |_| false).map(|taken| taken.epoch)
        };
        assert_eq!(taken(&[], &[]), Some(2), "the newest");
        assert_eq!(taken(&[3], &[]), Some(1), "nobody suspects the nodes of this one");
        assert_eq!(taken(&[2, 3], &[]), Some(2));
        assert_eq!(taken(&[3], &[1]), Some(2), "there is no other");
    }
}
