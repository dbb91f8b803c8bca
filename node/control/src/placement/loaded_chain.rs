//! A chain of the layers that nodes have loaded, for a model whose file no node has any more: nothing else of it can be placed.
//! Whether that is the case is decided elsewhere.

use std::ops::Range;

use libp2p_identity::PeerId;
use pangea_units::Digest;
use pangea_units::limits::MAX_STAGES;

use super::{PlacedStage, pool_facts};
use crate::pool::{StageState, View};

/// Stages that are tried in one search: far more than the few placements of a model that leave layers on nodes need.
const TRIES_MAX: usize = 1000;

/// Whether nodes have loaded all layers of a model, so that it can be computed without its file.
pub fn has_loaded_chain(view: &View, model: &Digest) -> bool {
    let layers = pool_facts::model(view, model).map(|needs| needs.size.layers);
    layers.is_some_and(|layers| loaded_chain(view, model, layers).is_some())
}

/// The stages, of layers that are loaded, that have all `layers` of a model: each on another node, and each linked to the next one
/// and the last to the first. `None` without such stages.
pub(super) fn loaded_chain(view: &View, model: &Digest, layers: u32) -> Option<Vec<PlacedStage>> {
    let works = view.everyone().filter(|advert| advert.works);
    let loaded = works.flat_map(|advert| {
        let of_model = advert.stages.iter().filter(|stage| stage.model == *model && stage.state == StageState::Ready);
        of_model.map(|stage| PlacedStage { peer: advert.peer, layers: stage.layers.clone() })
    });
    let mut loaded: Vec<PlacedStage> = loaded.filter(|stage| is_within(&stage.layers, layers)).collect();
    // Fewer stages are faster.
    loaded.sort_by_key(|stage| (std::cmp::Reverse(stage.layers.end), stage.peer));
    let mut search = Search { view, layers, loaded: &loaded, chain: Vec::new(), tries: TRIES_MAX };
    search.reach(0).then_some(search.chain)
}

fn is_within(stage: &Range<u32>, layers: u32) -> bool {
    stage.start < stage.end && stage.end <= layers
}

/// A search for a chain, depth first.
struct Search<'a> {
    view: &'a View,
    layers: u32,
    loaded: &'a [PlacedStage],
    chain: Vec<PlacedStage>,
    tries: usize,
}

impl Search<'_> {
    /// Whether the chain, which has the layers below `from`, can be completed; then it is.
    fn reach(&mut self, from: u32) -> bool {
        if from == self.layers {
            return self.is_linked(self.chain.last(), self.chain.first().map(|first| first.peer));
        }
        if self.chain.len() == MAX_STAGES {
            return false;
        }
        for stage in self.loaded.iter().filter(|stage| stage.layers.start == from) {
            if self.tries == 0 {
                return false;
            }
            self.tries -= 1;
            let is_used = self.chain.iter().any(|used| used.peer == stage.peer);
            if is_used || !self.is_linked(self.chain.last(), Some(stage.peer)) {
                continue;
            }
            self.chain.push(stage.clone());
            if self.reach(stage.layers.end) {
                return true;
            }
            self.chain.pop();
        }
        false
    }

    /// Whether a stage can send to a node; without a stage before it, there is nothing to send.
    fn is_linked(&self, from: Option<&PlacedStage>, to: Option<PeerId>) -> bool {
        let (Some(from), Some(to)) = (from, to) else { return true };
        from.peer == to || self.view.link(&from.peer, &to).is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use super::*;
    use crate::pool::{Advert, StageAdvert, advert_of, link_to};
    use crate::test_peers::peer;

    const MODEL: Digest = Digest([1; 32]);

    /// A view of nodes with these layers, all linked but those two.
    fn view(nodes: &[(u64, Range<u32>, StageState)], unlinked: [u64; 2]) -> View {
        let numbers: BTreeSet<u64> = nodes.iter().map(|(number, ..)| *number).collect();
        let stage = |layers: &Range<u32>, state: &StageState| StageAdvert {
            model: MODEL,
            layers: layers.clone(),
            epoch: 1,
            state: state.clone(),
            session_bytes: 1,
            broken: None,
            pace: None,
        };
        let advert = |number: u64| {
            let stages = nodes.iter().filter(|(of, ..)| *of == number);
            let is_linked = |to: &&u64| **to != number && !(unlinked.contains(&number) && unlinked.contains(to));
            Arc::new(Advert {
                stages: stages.map(|(_, layers, state)| stage(layers, state)).collect(),
                links: numbers.iter().filter(is_linked).map(|to| link_to(peer(*to))).collect(),
                ..advert_of(peer(number))
            })
        };
        let own = Arc::new(advert_of(peer(100)));
        let nodes = numbers.iter().map(|number| (peer(*number), advert(*number))).collect();
        View { local: own.peer, own, term: None, nodes, connected: BTreeSet::new() }
    }

    fn chain(nodes: &[(u64, Range<u32>, StageState)], unlinked: [u64; 2]) -> Option<Vec<(u64, Range<u32>)>> {
        let number = |of: PeerId| (1..=9).find(|number| peer(*number) == of).unwrap();
        let chain = loaded_chain(&view(nodes, unlinked), &MODEL, 10)?;
        Some(chain.into_iter().map(|stage| (number(stage.peer), stage.layers)).collect())
    }

    #[test]
    fn the_loaded_layers_of_several_placements_make_a_chain() {
        let ready = |number, layers| (number, layers, StageState::Ready);
        let of_two = [ready(1, 0..4), ready(2, 0..6), ready(3, 4..10), ready(2, 7..10)];
        assert_eq!(
            chain(&of_two, [0, 0]),
            Some(vec![(1, 0..4), (3, 4..10)]),
            "layer 6 is of no stage that begins there"
        );
        assert_eq!(chain(&of_two, [1, 3]), None, "they cannot reach each other");
        assert_eq!(chain(&[ready(1, 0..10)], [0, 0]), Some(vec![(1, 0..10)]));
        assert_eq!(chain(&[ready(1, 0..5), ready(1, 5..10)], [0, 0]), None, "a node has one stage of a chain");
        assert_eq!(chain(&[ready(1, 0..5), (2, 5..10, StageState::Loading)], [0, 0]), None);
        assert_eq!(chain(&[ready(1, 0..5), ready(2, 5..11)], [0, 0]), None, "the model has no such layers");
        assert_eq!(chain(&[], [0, 0]), None);
    }
}
