//! Which chains of placements can be used, as one node sees the pool: the newest that a request may take, how much its stages
//! hold, and where a chain broke. It opens and starts nothing.

use libp2p_identity::PeerId;
use pangea_units::Digest;

use super::{Placement, pool_facts};
use crate::pool::View;
use crate::session::ChainId;

/// The newest placement of a model whose stages are ready and can be reached, without these peers and epochs.
pub fn newest_usable(
    view: &View,
    model: &Digest,
    without: (&[PeerId], &[u64]),
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
            && !is_broken(&ChainId { model: *model, epoch: placement.epoch })
    });
    placements.into_iter().max_by_key(|placement| placement.epoch)
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
