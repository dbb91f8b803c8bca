//! Properties of plans for arbitrary nodes, links, models and pins, and a few pools where the answer is
//! obvious.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Duration;

use crate::Time;

use libp2p_identity::Keypair;
use libp2p_identity::PeerId;
use pangea_units::Digest;
use proptest::prelude::*;

use super::*;
use crate::pool::{LayerSpeed, ModelSize};

const GIB: u64 = 1 << 30;

pub(super) fn peer(number: u8) -> PeerId {
    Keypair::ed25519_from_bytes([number; 32]).unwrap().public().to_peer_id()
}

fn needs(layers: u32, layer_mib: u64) -> ModelNeeds {
    ModelNeeds {
        digest: Digest([7; 32]),
        name: "model".to_owned(),
        size: ModelSize {
            layers,
            hidden_size: 1024,
            context: 2048,
            layer_bytes: layer_mib << 20,
            active_layer_bytes: 0,
            embedding_bytes: 0,
            head_bytes: 1 << 20,
            position_bytes: 512,
        },
        split: false,
        fetched: true,
        pins: Vec::new(),
        served_by: BTreeSet::new(),
        files: BTreeSet::new(),
    }
}

/// A node with this much memory that reads this many GB of weights per second.
fn node(number: u8, memory_bytes: u64, gb_per_s: f64) -> NodeOffer {
    NodeOffer {
        peer: peer(number),
        name: format!("node{number}"),
        memory_bytes,
        speed: LayerSpeed { weight_bytes_per_s: gb_per_s * 1e9, macs_per_s: gb_per_s * 2e10 },
        measured: true,
        numerics: 1,
        delay_s: 0.0,
    }
}

fn lan(from: &PeerId, to: &PeerId) -> Option<LinkSpeed> {
    assert_ne!(from, to);
    Some(LinkSpeed { rtt: Duration::from_micros(300), bytes_per_s: 1e8 })
}

/// `lan` between two nodes, `None` for a node with itself.
fn linked(from: &PeerId, to: &PeerId) -> Option<LinkSpeed> {
    (from != to).then(|| lan(from, to)).flatten()
}

fn counts(plan: &Plan) -> Vec<(PeerId, u32)> {
    plan.stages.iter().map(|stage| (stage.peer, stage.layers.end - stage.layers.start)).collect()
}

#[test]
fn the_fastest_node_that_holds_a_model_gets_it_alone() {
    let nodes = [node(1, 8 * GIB, 10.0), node(2, 8 * GIB, 20.0), node(3, GIB, 22.0)];
    let plan = plan(&needs(32, 100), &nodes, linked).unwrap();
    assert_eq!(counts(&plan), [(peer(2), 32)]);
    assert!(plan.reason.contains("node2"), "{}", plan.reason);
    let alone = plan.alternatives.iter().find(|other| other.stages.len() == 1).unwrap();
    assert!(alone.prediction.step_s > 1.9 * plan.prediction.step_s);
}

#[test]
fn among_equal_nodes_the_serving_one_then_one_with_the_file_gets_the_model() {
    let nodes: Vec<NodeOffer> = (1..=5).map(|number| node(number, 8 * GIB, 20.0 + f64::from(number) / 10.0)).collect();
    for number in 1..=5 {
        let mut needs = needs(32, 100);
        needs.files = [peer(number)].into();
        assert_eq!(counts(&plan(&needs, &nodes, linked).unwrap()), [(peer(number), 32)]);
        let serving = number % 5 + 1;
        needs.served_by = [peer(serving)].into();
        assert_eq!(counts(&plan(&needs, &nodes, linked).unwrap()), [(peer(serving), 32)]);
    }
}

#[test]
fn a_model_stays_on_an_owner_that_can_hold_it_however_slow_that_node_looks() {
    let nodes = [node(1, 8 * GIB, 5.0), node(2, 8 * GIB, 100.0), node(3, GIB, 100.0)];
    let mut needs = needs(32, 100);
    needs.served_by = [peer(1)].into();
    assert_eq!(counts(&plan(&needs, &nodes, linked).unwrap()), [(peer(1), 32)]);
    needs.served_by = [peer(3)].into();
    assert_eq!(counts(&plan(&needs, &nodes, linked).unwrap()), [(peer(2), 32)], "the owner cannot hold it");
}

#[test]
fn a_model_too_large_for_one_node_goes_mostly_to_the_fastest() {
    let nodes = [node(1, 2 * GIB, 10.0), node(2, 2 * GIB, 40.0), node(3, 2 * GIB, 11.0)];
    let plan = plan(&needs(30, 100), &nodes, linked).unwrap();
    let counts = counts(&plan);
    assert_eq!(counts.len(), 2, "two suffice");
    let of = |number| counts.iter().find(|(of, _)| *of == peer(number)).map(|(_, count)| *count);
    assert!(of(2) > Some(15), "{counts:?}");
    assert_eq!(plan.reason, "no node holds all of it");
}

#[test]
fn a_forced_split_shares_by_speed_and_starts_where_requests_arrive() {
    let nodes = [node(1, 8 * GIB, 10.0), node(2, 8 * GIB, 10.0), node(3, 8 * GIB, 20.0)];
    for serving in 1..=3 {
        let mut needs = needs(40, 100);
        (needs.split, needs.served_by) = (true, [peer(serving)].into());
        let plan = plan(&needs, &nodes, linked).unwrap();
        assert_eq!(plan.stages[0].peer, peer(serving));
        let mut counts = counts(&plan);
        counts.sort_by_key(|(of, _)| (1..=3).position(|number| *of == peer(number)));
        assert_eq!(counts, [(peer(1), 10), (peer(2), 10), (peer(3), 20)]);
    }
}

#[test]
fn a_forced_split_skips_a_node_behind_a_slow_link() {
    let mut needs = needs(40, 10);
    needs.split = true;
    let far = |from: &PeerId, to: &PeerId| {
        let rtt = if [from, to].contains(&&peer(3)) { 200_000 } else { 300 };
        Some(LinkSpeed { rtt: Duration::from_micros(rtt), bytes_per_s: 1e8 })
    };
    let nodes = [node(1, 8 * GIB, 10.0), node(2, 8 * GIB, 10.0), node(3, 8 * GIB, 10.0)];
    let used: BTreeSet<PeerId> = plan(&needs, &nodes, far).unwrap().stages.iter().map(|stage| stage.peer).collect();
    assert_eq!(used, [peer(1), peer(2)].into());
    let alone = plan(&needs, &nodes[..1], far).unwrap();
    assert_eq!(counts(&alone), [(peer(1), 40)]);
    assert!(alone.reason.contains("--split asks for more nodes"), "{}", alone.reason);
}

#[test]
fn a_refusal_names_the_obstacle() {
    let why = |needs: &ModelNeeds, nodes: &[NodeOffer]| plan(needs, nodes, linked).unwrap_err().why;
    let small = [node(1, GIB, 10.0), node(2, GIB, 10.0)];
    // 100 layers of 103 MiB with sessions, and memory for 9 on each node.
    let missing = why(&needs(100, 100), &small);
    assert!(missing.contains("8.25 GiB are missing") && missing.contains("node2 1.00 GiB"), "{missing}");
    assert!(why(&needs(100, 100), &[]).contains("no node offers"));
    let apart = plan(&needs(16, 100), &small, |_, _| None).unwrap_err().why;
    assert!(apart.contains("connect the nodes"), "{apart}");

    let pinned = |pins: &[(u8, Range<u32>)]| {
        let mut needs = needs(16, 10);
        needs.pins = pins.iter().map(|(number, range)| (peer(*number), range.clone())).collect();
        why(&needs, &small)
    };
    assert!(pinned(&[(2, 8..17)]).contains("node2 is to have layers 8-16, and model has layers 0-15"));
    assert!(
        pinned(&[(1, 0..9), (2, 8..16)]).contains("node1 and node2")
            || pinned(&[(1, 0..9), (2, 8..16)]).contains("node2 and node1")
    );
    let mut large = needs(40, 100);
    large.pins = vec![(peer(1), 0..30)];
    assert!(
        why(&large, &small).contains("node1 is to have layers 0-29 of model, which take 3.02 GiB"),
        "{}",
        why(&large, &small)
    );
}

#[test]
fn a_pool_of_many_nodes_is_planned_at_once() {
    let nodes: Vec<NodeOffer> = (1..=100).map(|number| node(number, GIB, 10.0 + f64::from(number % 7))).collect();
    let mut needs = needs(120, 100);
    needs.served_by = [peer(50)].into();
    let begin = Time::from_secs(1000);
    let plan = plan(&needs, &nodes, linked).unwrap();
    assert!(plan.stages.len() >= 14);
    println!("{} stages in {:?}", plan.stages.len(), begin.elapsed());
}

#[test]
fn hostile_figures_neither_panic_nor_take_long() {
    for size in [u64::MAX, 0, 1] {
        let mut needs = needs(30, 100);
        needs.size = ModelSize {
            layers: 30,
            hidden_size: u32::MAX,
            context: u32::MAX,
            layer_bytes: size,
            active_layer_bytes: size,
            embedding_bytes: size,
            head_bytes: size,
            position_bytes: u32::MAX,
        };
        needs.pins = vec![(peer(1), Range { start: 5, end: 2 })];
        let mut nodes = vec![node(1, u64::MAX, f64::NAN), node(2, u64::MAX, f64::INFINITY), node(3, 0, 1.0)];
        nodes.push(node(4, u64::MAX, 1.0));
        let link = |_: &PeerId, _: &PeerId| Some(LinkSpeed { rtt: Duration::MAX, bytes_per_s: f64::NAN });
        let _ = plan(&needs, &nodes, link);
        needs.pins = vec![(peer(4), 0..u32::MAX)];
        assert!(plan(&needs, &nodes, link).is_err());
        needs.size.layers = u32::MAX;
        assert!(plan(&needs, &nodes, link).unwrap_err().why.contains("says that it has 4294967295 layers"));
    }
}

#[test]
fn a_mixture_of_experts_takes_the_memory_of_all_and_the_time_of_those_that_compute() {
    let mut needs = needs(30, 100);
    // Two equal nodes hold it together; neither does alone.
    let nodes = [node(1, 2 * GIB, 20.0), node(2, 2 * GIB, 20.0)];
    let dense = plan(&needs, &nodes, linked).unwrap();
    needs.size.active_layer_bytes = 5 << 20;
    let sparse = plan(&needs, &nodes, linked).unwrap();
    assert_eq!(counts(&sparse).len(), 2);
    let layers_s = |bytes: u64| 30.0 * bytes as f64 / 20e9;
    let saved = dense.prediction.step_s - sparse.prediction.step_s;
    assert!((saved / layers_s(95 << 20) - 1.0).abs() < 1e-6, "{saved}");
    // More than there is cannot be read.
    needs.size.active_layer_bytes = u64::MAX;
    assert_eq!(plan(&needs, &nodes, linked).unwrap().prediction, dense.prediction);
    // A fast node and a hop to it gain less time than the hop takes, where a position reads so little.
    let nodes = [node(1, 4 * GIB, 10.0), node(2, 2 * GIB, 40.0)];
    needs.size.active_layer_bytes = 64 << 10;
    assert_eq!(counts(&plan(&needs, &nodes, linked).unwrap()), [(peer(1), 30)]);
}

/// Any pool of up to six nodes and any model.
#[derive(Clone, Debug)]
struct Pool {
    needs: ModelNeeds,
    nodes: Vec<NodeOffer>,
    rtt_us: Vec<u64>,
}

impl Pool {
    fn link(&self, from: &PeerId, to: &PeerId) -> Option<LinkSpeed> {
        let at = |peer: &PeerId| self.nodes.iter().position(|node| node.peer == *peer).unwrap();
        let (a, b) = (at(from).min(at(to)), at(from).max(at(to)));
        let rtt = self.rtt_us[(a * 7 + b) % self.rtt_us.len()];
        // Some pairs are not connected.
        (a != b && !rtt.is_multiple_of(11)).then(|| LinkSpeed { rtt: Duration::from_micros(rtt), bytes_per_s: 1e8 })
    }

    fn plan(&self) -> Result<Plan, NoPlan> {
        plan(&self.needs, &self.nodes, |from, to| self.link(from, to))
    }

    fn alone(&self, node: &NodeOffer) -> Option<Prediction> {
        let whole = 0..self.needs.size.layers;
        if node.memory_bytes < self.needs.stage_bytes(&whole) {
            return None;
        }
        let stages = [PlacedStage { peer: node.peer, layers: whole }];
        predict(&self.needs, &self.nodes, |from, to| self.link(from, to), &stages)
    }
}

prop_compose! {
    fn pools()(
        layers in 1_u32..80,
        layer_mib in 1_u64..200,
        embedding_mib in prop_oneof![Just(0), 1_u64..500],
        head_mib in 0_u64..500,
        memory_mib in prop::collection::vec(1_u64..16_000, 1..7),
        gb_per_s in prop::collection::vec(1.0..100.0, 6),
        numerics in prop::collection::vec(prop_oneof![5 => Just(1_u32), 1 => Just(2)], 6),
        rtt_us in prop::collection::vec(50_u64..20_000, 9),
        served in prop::collection::btree_set(1_u8..7, 0..3),
        split in any::<bool>(),
    ) -> Pool {
        let mut needs = needs(layers, layer_mib);
        (needs.size.embedding_bytes, needs.size.head_bytes) = (embedding_mib << 20, head_mib << 20);
        (needs.split, needs.served_by) = (split, served.into_iter().map(peer).collect());
        let nodes = memory_mib.iter().enumerate().map(|(at, memory)| {
            let mut node = node(at as u8 + 1, memory << 20, gb_per_s[at]);
            node.numerics = numerics[at];
            node
        });
        Pool { needs, nodes: nodes.collect(), rtt_us }
    }
}

/// Checks the properties of every plan.
fn holds(pool: &Pool, plan: &Plan) {
    let mut layer = 0;
    let mut seen = BTreeSet::new();
    let mut numerics = BTreeSet::new();
    for stage in &plan.stages {
        assert!(stage.layers.start == layer && stage.layers.end > layer, "contiguous: {:?}", plan.stages);
        layer = stage.layers.end;
        assert!(seen.insert(stage.peer), "each node once");
        let node = pool.nodes.iter().find(|node| node.peer == stage.peer).unwrap();
        assert!(pool.needs.stage_bytes(&stage.layers) <= node.memory_bytes, "memory of {}", node.name);
        numerics.insert(node.numerics);
    }
    assert_eq!(layer, pool.needs.size.layers, "all layers");
    assert_eq!(numerics.len(), 1);
    for pair in plan.stages.windows(2) {
        assert!(pool.link(&pair[0].peer, &pair[1].peer).is_some());
    }
    let (first, last) = (plan.stages.first().unwrap(), plan.stages.last().unwrap());
    assert!(plan.stages.len() == 1 || pool.link(&last.peer, &first.peer).is_some());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn every_layer_is_placed_once_where_it_fits_and_never_slower_than_alone(pool in pools()) {
        // The owners of a model alone, if one of them can hold it; otherwise every node.
        let fastest_s = |of: &dyn Fn(&NodeOffer) -> bool| {
            let alone = pool.nodes.iter().filter(|node| of(node)).filter_map(|node| pool.alone(node));
            alone.map(|alone| alone.step_s).fold(f64::INFINITY, f64::min)
        };
        let owners_s = fastest_s(&|node| pool.needs.served_by.contains(&node.peer));
        let alone_s = if owners_s.is_finite() { owners_s } else { fastest_s(&|_| true) };
        match pool.plan() {
            Ok(plan) => {
                holds(&pool, &plan);
                if !pool.needs.split {
                    prop_assert!(plan.prediction.step_s <= alone_s * 1.1);
                    if plan.stages.len() > 1 {
                        prop_assert!(plan.prediction.step_s * 1.1 < alone_s * 1.1, "a split that gains nothing");
                    }
                }
                let again = predict(&pool.needs, &pool.nodes, |from, to| pool.link(from, to), &plan.stages);
                prop_assert_eq!(again, Some(plan.prediction));
            }
            Err(_) => prop_assert!(alone_s.is_infinite(), "it fits alone"),
        }
    }

    #[test]
    fn the_order_of_the_nodes_does_not_matter(pool in pools(), turn in 0_usize..6) {
        let plan = pool.plan();
        let mut nodes = pool.nodes.clone();
        nodes.rotate_left(turn % pool.nodes.len());
        nodes.reverse();
        prop_assert_eq!(super::plan(&pool.needs, &nodes, |from, to| pool.link(from, to)), plan);
    }

    #[test]
    fn a_plan_is_refused_only_if_no_chain_fits(pool in pools()) {
        // Tries every order of every set; each node gets as many layers as fit.
        fn any(pool: &Pool, chain: &mut Vec<usize>, layer: u32) -> bool {
            let layers = pool.needs.size.layers;
            for at in (0..pool.nodes.len()).filter(|at| !chain.contains(at)).collect::<Vec<_>>() {
                let node = &pool.nodes[at];
                if let Some(before) = chain.last().map(|before| &pool.nodes[*before])
                    && (pool.link(&before.peer, &node.peer).is_none() || before.numerics != node.numerics) {
                    continue;
                }
                chain.push(at);
                let back = chain.len() == 1 || pool.link(&node.peer, &pool.nodes[chain[0]].peer).is_some();
                let fits = |end: u32| pool.needs.stage_bytes(&(layer..end)) <= node.memory_bytes;
                if back && fits(layers) {
                    return true;
                }
                let most = (layer + 1..layers).rev().find(|end| fits(*end));
                if most.is_some_and(|end| any(pool, chain, end)) {
                    return true;
                }
                chain.pop();
            }
            false
        }
        prop_assert_eq!(pool.plan().is_ok(), any(&pool, &mut Vec::new(), 0));
    }

    #[test]
    fn a_faster_node_never_gets_fewer_layers_and_no_layer_is_better_elsewhere(
        gears in prop::collection::vec(0_i32..16, 2..7), layers in 8_u32..80,
    ) {
        // Equal, or further apart than what counts as equal.
        let gb_per_s = gears.iter().map(|gear| 1.3_f64.powi(*gear));
        let nodes: Vec<NodeOffer> =
            gb_per_s.enumerate().map(|(at, speed)| node(at as u8 + 1, 1 << 40, speed)).collect();
        let mut needs = needs(layers, 100);
        (needs.split, needs.size.head_bytes) = (true, 0);
        let plan = plan(&needs, &nodes, linked).unwrap();
        let stages: Vec<(f64, u32)> = counts(&plan).iter().map(|(of, count)| {
            (nodes.iter().find(|node| node.peer == *of).unwrap().speed.weight_bytes_per_s, *count)
        }).collect();
        for (speed, count) in &stages {
            for (other, others) in &stages {
                prop_assert!(speed <= other || count >= others, "{stages:?}");
                let slowest = stages.iter().map(|(speed, count)| f64::from(*count) / speed).fold(0.0, f64::max);
                prop_assert!(f64::from(*others + 1) / other >= slowest * 0.999 || f64::from(*count) / speed < slowest || *count == 1);
            }
        }
    }

    #[test]
    fn pinned_layers_are_obeyed_or_refused(
        pool in pools(), pins in prop::collection::vec((1_u8..7, 0_u32..80, 1_u32..40), 1..4),
    ) {
        let mut pool = pool;
        pool.needs.pins = pins.iter().map(|(number, start, count)| (peer(*number), *start..start + count)).collect();
        pool.needs.pins.sort_by_key(|(of, _)| *of);
        pool.needs.pins.dedup_by_key(|(of, _)| *of);
        match pool.plan() {
            Ok(plan) => {
                holds(&pool, &plan);
                for (of, range) in &pool.needs.pins {
                    if pool.nodes.iter().any(|node| node.peer == *of) {
                        let stage = plan.stages.iter().find(|stage| stage.peer == *of).unwrap();
                        prop_assert_eq!(&stage.layers, range);
                    }
                }
            }
            Err(no_plan) => prop_assert!(!no_plan.why.is_empty()),
        }
    }
}
