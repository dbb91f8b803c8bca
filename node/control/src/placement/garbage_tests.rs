//! A node that claims many models whose files are none: what the others fetch and plan for it is bounded.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use libp2p_identity::PeerId;
use pangea_units::Digest;

use super::plan_tests::peer;
use super::*;
use crate::Time;
use crate::pool::{
    Advert, LayerSpeed, ModelAdvert, ModelSize, StageAdvert, StageState, Term, View, advert_of, link_to,
};

/// Nodes of the pool: node 1 is the master and serves a model of its own, node 5 claims 64 models.
const NODES: u8 = 5;

fn model(number: u8, name: &str) -> ModelAdvert {
    let size = ModelSize {
        layers: 4,
        hidden_size: 64,
        context: 64,
        layer_bytes: 1 << 20,
        active_layer_bytes: 0,
        embedding_bytes: 0,
        head_bytes: 1 << 20,
        position_bytes: 64,
    };
    let digest = Digest::from_bytes([number; 32]);
    ModelAdvert { digest, name: name.to_owned(), served: true, whole: true, split: false, pinned: None, size }
}

/// The view of node 1. Layers of the liar's models cannot be loaded.
fn view(placements: &[Placement]) -> View {
    let term = Some(Term { counter: 1, master: peer(1) });
    let advert = |number: u8| {
        let stages = placements.iter().flat_map(|placement| {
            let here = placement.stages.iter().filter(|stage| stage.peer == peer(number));
            here.map(|stage| StageAdvert {
                model: placement.model,
                layers: stage.layers.clone(),
                epoch: placement.epoch,
                state: match placement.name.as_str() {
                    "honest" => StageState::Ready,
                    _ => StageState::Failed("this is no model".to_owned()),
                },
                session_bytes: 1,
                broken: None,
                pace: None,
            })
        });
        Advert {
            name: format!("node{number}"),
            // The liar computes nothing.
            works: number < NODES,
            speed: Some(LayerSpeed { weight_bytes_per_s: 1e10, macs_per_s: 1e11 }),
            links: (1..=NODES).filter(|to| *to != number).map(|to| link_to(peer(to))).collect(),
            stages: stages.collect(),
            models: match number {
                1 => vec![model(200, "honest")],
                NODES => (0..64).map(|number| model(number, &format!("garbage {number}"))).collect(),
                _ => Vec::new(),
            },
            term,
            placements: if number == 1 { placements.to_vec() } else { Vec::new() },
            ..advert_of(peer(number))
        }
    };
    let nodes: BTreeMap<PeerId, Arc<Advert>> =
        (2..=NODES).map(|number| (peer(number), Arc::new(advert(number)))).collect();
    let connected: BTreeSet<PeerId> = nodes.keys().copied().collect();
    View { local: peer(1), own: Arc::new(advert(1)), term, nodes, connected }
}

#[test]
fn many_models_of_one_node_that_nobody_can_load_are_fetched_seldom_and_delay_no_other() {
    let mut placer = Placer::new(Arc::new(view(&[])));
    let (mut placements, mut placed) = (Vec::new(), BTreeMap::<String, u32>::new());
    let mut now = Time::from_secs(1);
    for second in 0..200 {
        now += Duration::from_secs(1);
        let mut planned = 0;
        for action in placer.handle(Event::View(Arc::new(view(&placements))), now) {
            match action {
                Action::PublishPlacements(new) => placements = new,
                Action::Note(Note::Placed { placement, .. }) => {
                    planned += 1;
                    *placed.entry(placement.name).or_default() += 1;
                }
                _ => {}
            }
        }
        assert!(planned <= 4, "the work of one decision is bounded: {planned}");
        assert!(second < 3 || placed.contains_key("honest"), "it waits for no garbage");
    }
    assert_eq!(placed.remove("honest"), Some(1));
    assert!(placed.len() <= 4, "{placed:?}");
    assert!(placed.values().all(|times| *times <= 10), "{placed:?}");
}
