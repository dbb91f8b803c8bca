//! The facts that plans are based on, read from a view of the pool: which node's advert counts for what. No planning here.

use std::collections::{BTreeMap, BTreeSet};

use libp2p_identity::PeerId;
use pangea_units::Digest;
use pangea_units::limits::MAX_STAGES;

use super::offer::{LinkSpeed, ModelNeeds, NodeOffer};
use super::placement_master::MAX_EPOCH;
use super::{PlacedStage, Placement};
use crate::devices::models_bytes;
use crate::pool::served::{FETCHED_PER_NODE, served};
use crate::pool::{Advert, ModelAdvert, StageAdvert, StageState, View};

/// The models that are placed, by digest.
pub fn models(view: &View) -> BTreeMap<Digest, ModelNeeds> {
    let served = served(view);
    let mut published: BTreeMap<Digest, Vec<(&Advert, &ModelAdvert)>> = BTreeMap::new();
    for advert in view.everyone() {
        for model in advert.models.iter().filter(|model| served.contains_key(&model.digest)) {
            published.entry(model.digest).or_default().push((advert, model));
        }
    }
    let of = |(digest, published): (Digest, Vec<_>)| {
        let fetched = served.get(&digest).is_some_and(|place| *place < FETCHED_PER_NODE);
        Some((digest, ModelNeeds { fetched, ..needs(digest, published)? }))
    };
    published.into_iter().filter_map(of).collect()
}

/// The facts about a model, whichever node serves it.
pub fn model(view: &View, digest: &Digest) -> Option<ModelNeeds> {
    let all = view.everyone().flat_map(|advert| advert.models.iter().map(move |model| (&**advert, model)));
    let published: Vec<_> = all.filter(|(_, model)| model.digest == *digest).collect();
    let mut needs = needs(*digest, published.clone());
    if needs.is_none() {
        let mut published = published;
        published.sort_by_key(|(advert, model)| (!model.whole, advert.peer));
        let (advert, model) = published.first()?;
        let served = ModelAdvert { served: true, ..(*model).clone() };
        needs = self::needs(*digest, vec![(*advert, &served)]);
    }
    needs
}

fn needs(digest: Digest, mut published: Vec<(&Advert, &ModelAdvert)>) -> Option<ModelNeeds> {
    // The sizes of a node that serves the whole file take precedence.
    published.sort_by_key(|(advert, model)| (!model.served, !model.whole, advert.peer));
    let (_, first) = published.first().filter(|(_, model)| model.served)?;
    let of = |counts: &dyn Fn(&ModelAdvert) -> bool| -> BTreeSet<PeerId> {
        published.iter().filter(|(_, model)| counts(model)).map(|(advert, _)| advert.peer).collect()
    };
    let pins = published.iter().filter(|(advert, _)| advert.works);
    let mut pins: Vec<_> = pins.filter_map(|(advert, model)| Some((advert.peer, model.pinned.clone()?))).collect();
    pins.sort_by_key(|(peer, _)| *peer);
    Some(ModelNeeds {
        digest,
        name: first.name.clone(),
        size: first.size,
        split: published.iter().any(|(_, model)| model.served && model.split),
        fetched: true,
        pins,
        served_by: of(&|model| model.served),
        files: of(&|model| model.whole),
    })
}

/// Bytes that a placed stage takes on its node: its weights, and its sessions' memory (at least the minimum).
fn placed_bytes(view: &View, needs: &ModelNeeds, stage: &PlacedStage) -> u64 {
    let of = |published: &&StageAdvert| published.model == needs.digest && published.layers == stage.layers;
    let given = view
        .advert(&stage.peer)
        .and_then(|advert| advert.stages.iter().find(of))
        .map(|published| published.session_bytes);
    needs.weight_bytes(&stage.layers).saturating_add(needs.session_bytes(&stage.layers).max(given.unwrap_or(0)))
}

/// Adds the bytes that a placement's stages take on their nodes.
pub(super) fn reserve(reserved: &mut BTreeMap<PeerId, u64>, needs: &ModelNeeds, placement: &Placement, view: &View) {
    for stage in &placement.stages {
        let bytes: &mut u64 = reserved.entry(stage.peer).or_default();
        *bytes = bytes.saturating_add(placed_bytes(view, needs, stage));
    }
}

/// Leaves out the memory that is taken on each node.
pub(super) fn take_memory(offers: &mut [NodeOffer], taken: &BTreeMap<PeerId, u64>) {
    for offer in offers {
        offer.memory_bytes = offer.memory_bytes.saturating_sub(taken.get(&offer.peer).copied().unwrap_or(0));
    }
}

/// The offers of all nodes that compute for others and have measured their speed. Each offers the memory that models
/// may take; the rest is for the node's own work.
pub fn offers(view: &View) -> Vec<NodeOffer> {
    let offer = |advert: &Advert| {
        Some(NodeOffer {
            peer: advert.peer,
            name: advert.name.clone(),
            memory_bytes: models_bytes(advert.memory_bytes),
            speed: advert.speed?,
            measured: false,
            numerics: advert.numerics,
            delay_s: 0.0,
        })
    };
    view.everyone().filter(|advert| advert.works).filter_map(|advert| offer(advert)).collect()
}

/// Removes the offers of nodes that would have to fetch a model of which only nodes with the file may compute layers.
pub(super) fn without_fetching(needs: &ModelNeeds, offers: &mut Vec<NodeOffer>) {
    if !needs.fetched {
        offers.retain(|offer| needs.files.contains(&offer.peer));
    }
}

/// The link between two nodes.
pub fn link(view: &View, from: &PeerId, to: &PeerId) -> Option<LinkSpeed> {
    let link = view.link(from, to)?;
    Some(LinkSpeed { rtt: link.rtt, bytes_per_s: link.bytes_per_s })
}

/// The placements of the current master; `None` while its advert is unknown. Placements of older terms and malformed
/// ones are skipped.
pub fn placements(view: &View) -> Option<Vec<Placement>> {
    Some(in_force(view)?.into_iter().cloned().collect())
}

/// The same, where they are read and not kept.
pub(super) fn in_force(view: &View) -> Option<Vec<&Placement>> {
    let term = view.term?;
    let master = view.advert(&term.master).filter(|advert| advert.term == Some(term))?;
    let sound = |placement: &&Placement| placement.term == term && is_sound(placement);
    Some(master.placements.iter().filter(sound).collect())
}

/// Why the master cannot place a model, if it has published a refusal.
pub fn refusal(view: &View, model: &Digest) -> Option<String> {
    let term = view.term?;
    let master = view.advert(&term.master).filter(|advert| advert.term == Some(term))?;
    let placed = master.placements.iter().any(|placement| placement.model == *model);
    let refusal = master.refusals.iter().find(|refusal| refusal.model == *model && !placed)?;
    Some(refusal.why.clone())
}

/// Whether some advert uses the placement's epoch, or a later one, for other stages.
pub(super) fn is_ambiguous(view: &View, placement: &Placement) -> bool {
    view.everyone().any(|advert| {
        let placements = advert.placements.iter().filter(|other| other.model == placement.model);
        let mut epochs = placements.filter(|other| other.stages != placement.stages).map(|other| other.epoch);
        let stages = advert.stages.iter().filter(|stage| stage.model == placement.model);
        let placed = |stage: &StageAdvert| {
            let here = placement.stages.iter().filter(|placed| placed.peer == advert.peer);
            here.clone().any(|placed| placed.layers == stage.layers)
        };
        let mut others = stages.filter(|stage| !placed(stage)).map(|stage| stage.epoch);
        let taken = |epoch: u64| epoch >= placement.epoch && epoch < MAX_EPOCH;
        epochs.any(taken) || others.any(taken)
    })
}

/// Whether the stages are contiguous and no node has two.
fn is_sound(placement: &Placement) -> bool {
    let stages = &placement.stages;
    let mut layer = 0;
    let mut follows = |(at, stage): (usize, &PlacedStage)| {
        let follows = stage.layers.start == layer && stage.layers.end > layer;
        layer = stage.layers.end;
        follows && stages[..at].iter().all(|before| before.peer != stage.peer)
    };
    (1..=MAX_STAGES).contains(&stages.len()) && stages.iter().enumerate().all(&mut follows)
}

/// Whether some node has the whole file of a model, so that its layers can be placed on any node.
pub(super) fn has_file(view: &View, model: &Digest) -> bool {
    view.everyone().any(|advert| advert.models.iter().any(|known| known.digest == *model && known.whole))
}

/// Whether every stage of a placement has its layers, whichever placement they were loaded for.
pub(super) fn is_loaded(view: &View, placement: &Placement) -> bool {
    placement.stages.iter().all(|placed| {
        let is_it = |stage: &StageAdvert| stage.model == placement.model && stage.layers == placed.layers;
        let advert = view.advert(&placed.peer).filter(|advert| advert.works);
        advert.is_some_and(|advert| advert.stages.iter().any(|stage| is_it(stage) && stage.state == StageState::Ready))
    })
}

/// The state of a stage of a placement, as its node advertises it.
pub fn stage_state<'a>(view: &'a View, placement: &Placement, stage: usize) -> Option<&'a StageState> {
    let placed = placement.stages.get(stage)?;
    let advert = view.advert(&placed.peer).filter(|advert| advert.works)?;
    let of = advert
        .stages
        .iter()
        .find(|of| of.model == placement.model && of.layers == placed.layers && of.epoch >= placement.epoch)?;
    Some(&of.state)
}

/// The nodes that advertise that the placement's chain failed although their own stage is intact.
pub fn broken_at(view: &View, placement: &Placement) -> Vec<PeerId> {
    let says = |placed: &PlacedStage| {
        view.advert(&placed.peer).is_some_and(|advert| {
            let of = |stage: &&StageAdvert| stage.model == placement.model && stage.layers == placed.layers;
            let broken = advert.stages.iter().find(of).and_then(|stage| stage.broken);
            // A failure of a later placement implies one of this placement.
            broken.is_some_and(|broken| broken >= placement.epoch)
        })
    };
    placement.stages.iter().filter(|placed| says(placed)).map(|placed| placed.peer).collect()
}

/// Whether activations and tokens can be sent along the stages and back to the first.
pub fn is_linked(view: &View, placement: &Placement) -> bool {
    let peers: Vec<&PeerId> = placement.stages.iter().map(|stage| &stage.peer).collect();
    let around = peers.iter().zip(peers.iter().cycle().skip(1));
    peers.len() == 1 || around.take(peers.len()).all(|(from, to)| view.link(from, to).is_some())
}

/// Whether every stage is ready and the stages are connected: sessions can be opened.
pub fn is_ready(view: &View, placement: &Placement) -> bool {
    let ready = |stage| stage_state(view, placement, stage) == Some(&StageState::Ready);
    (0..placement.stages.len()).all(ready) && is_linked(view, placement) && broken_at(view, placement).is_empty()
}
