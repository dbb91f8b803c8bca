//! The layers of a model that no present node has, when the nodes with its whole file are gone. Nothing is fetched or placed
//! here.

use std::ops::Range;

use pangea_units::Digest;

use crate::pool::{StageState, View};

/// The layers, as contiguous ranges, that neither this node (`is_here`) nor any other has loaded; empty while another
/// node has the whole file.
pub fn missing_layers(view: &View, model: &Digest, layers: u32, is_here: impl Fn(u32) -> bool) -> Vec<Range<u32>> {
    let mut others = view.nodes.values();
    if others.any(|advert| advert.models.iter().any(|known| known.digest == *model && known.whole)) {
        return Vec::new();
    }
    let is_loaded = |layer: u32| {
        view.nodes
            .values()
            .flat_map(|advert| &advert.stages)
            .any(|stage| stage.model == *model && stage.layers.contains(&layer) && stage.state == StageState::Ready)
    };
    let mut missing: Vec<Range<u32>> = Vec::new();
    for layer in (0..layers).filter(|layer| !is_here(*layer) && !is_loaded(*layer)) {
        match missing.last_mut().filter(|last| last.end == layer) {
            Some(last) => last.end += 1,
            None => missing.push(layer..layer + 1),
        }
    }
    missing
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;
    use crate::pool::{Advert, ModelAdvert, ModelSize, StageAdvert, advert_of};
    use crate::test_peers::peer;

    const MODEL: Digest = Digest([1; 32]);

    /// A view with one other node, which has the whole file or has loaded layers.
    fn view(whole: bool, loaded: Range<u32>, state: StageState) -> View {
        let other = Advert {
            models: vec![ModelAdvert {
                digest: MODEL,
                name: "a model".to_owned(),
                served: false,
                whole,
                split: false,
                pinned: None,
                size: ModelSize::default(),
            }],
            stages: vec![StageAdvert {
                model: MODEL,
                layers: loaded,
                epoch: 1,
                state,
                session_bytes: 1,
                broken: None,
                pace: None,
            }],
            ..advert_of(peer(2))
        };
        let nodes = BTreeMap::from([(peer(2), Arc::new(other))]);
        View { local: peer(1), own: Arc::new(advert_of(peer(1))), term: None, nodes, connected: Default::default() }
    }

    #[test]
    fn layers_that_no_node_has_loaded_are_missing() {
        let here = |layer| (2..4).contains(&layer);
        assert_eq!(missing_layers(&view(false, 6..8, StageState::Ready), &MODEL, 10, here), [0..2, 4..6, 8..10]);
        assert_eq!(missing_layers(&view(false, 6..8, StageState::Loading), &MODEL, 10, here), [0..2, 4..10]);
        assert!(missing_layers(&view(false, 0..10, StageState::Ready), &MODEL, 10, |_| false).is_empty());
        assert!(missing_layers(&view(false, 0..0, StageState::Ready), &MODEL, 10, |_| true).is_empty());
    }

    #[test]
    fn nothing_is_missing_while_another_node_has_the_file() {
        assert!(missing_layers(&view(true, 0..0, StageState::Ready), &MODEL, 10, |_| false).is_empty());
    }
}
