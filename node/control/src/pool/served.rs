//! Which of the models that adverts name count: those that a person asked a node to serve and that nobody dropped, and of each
//! node only so many.
//! Nothing is placed here.

use std::collections::BTreeMap;

use pangea_units::Digest;

use super::View;

/// Served models of one node that count, in the order of its advert: more than a person asks of one node.
pub const SERVED_PER_NODE: usize = 16;

/// Of these, models that nodes without the file may fetch: what one node serves must not fill the disks of all others.
pub const FETCHED_PER_NODE: usize = 4;

/// Models of a pool that count. Each node's first models come first, so that none crowds out the others'.
pub const MODELS_MAX: usize = 64;

/// The models that count, with the lowest place of each in the adverts of the nodes that serve it.
pub fn served(view: &View) -> BTreeMap<Digest, usize> {
    let mut places: BTreeMap<Digest, usize> = BTreeMap::new();
    for advert in view.everyone() {
        let served = advert.models.iter().filter(|model| model.served && !view.is_dropped(&model.digest));
        for (place, model) in served.take(SERVED_PER_NODE).enumerate() {
            let known = places.entry(model.digest).or_insert(place);
            *known = place.min(*known);
        }
    }
    if places.len() > MODELS_MAX {
        let mut order: Vec<(usize, Digest)> = places.iter().map(|(digest, place)| (*place, *digest)).collect();
        order.sort_unstable();
        for (_, digest) in order.drain(MODELS_MAX..) {
            places.remove(&digest);
        }
    }
    places
}

/// Whether every node that serves a model has unloaded it because nobody used it.
pub fn is_unloaded(view: &View, model: &Digest) -> bool {
    let mut servers = view
        .everyone()
        .filter(|advert| advert.models.iter().any(|known| known.served && known.digest == *model))
        .peekable();
    servers.peek().is_some() && servers.all(|advert| advert.unloaded.contains(model))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use super::*;
    use crate::pool::{ModelAdvert, ModelSize, advert_of};
    use crate::test_peers::peer;

    #[test]
    fn a_node_that_claims_many_models_crowds_out_nobody() {
        let advert = |number: u64, models: usize| {
            let mut advert = advert_of(peer(number));
            advert.models = (0..models)
                .map(|model| ModelAdvert {
                    digest: Digest::from_bytes([model as u8, number as u8, 0, 0].repeat(8).try_into().unwrap()),
                    name: format!("model {model}"),
                    served: true,
                    whole: true,
                    split: false,
                    pinned: None,
                    size: ModelSize::default(),
                })
                .collect();
            Arc::new(advert)
        };
        // The honest node's digest is the last of all.
        let mut own = (*advert(255, 1)).clone();
        own.models[0].digest = Digest::from_bytes([255; 32]);
        let nodes = (1..=60).map(|number| (peer(number), advert(number, 64))).collect();
        let view = View { local: peer(255), own: Arc::new(own), term: None, nodes, connected: BTreeSet::new() };
        let served = served(&view);
        assert_eq!(served.len(), MODELS_MAX);
        assert_eq!(served.get(&Digest::from_bytes([255; 32])), Some(&0));
        let one = View { nodes: [(peer(1), advert(1, 64))].into(), ..view };
        assert_eq!(super::served(&one).len(), SERVED_PER_NODE + 1);
        assert_eq!(
            super::served(&one).values().filter(|place| **place < FETCHED_PER_NODE).count(),
            FETCHED_PER_NODE + 1
        );
    }
}
