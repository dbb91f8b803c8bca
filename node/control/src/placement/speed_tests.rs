//! What measured speeds do to placements: a pool whose nodes compute as fast as the test says, whatever they claim.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use libp2p_identity::PeerId;
use pangea_units::Digest;
use proptest::prelude::*;

use super::plan_tests::peer;
use super::*;
use crate::Time;
use crate::pool::{
    Advert, DropRecord, LayerSpeed, LinkAdvert, ModelAdvert, ModelSize, StageAdvert, StagePace, StageState, Term, View,
    advert_of, link_to,
};

const MODEL: Digest = Digest([7; 32]);
const LAYERS: u32 = 32;
const LAYER_BYTES: u64 = 20 << 20;

/// Seconds that a message takes between two nodes.
const HOP_S: f64 = 100e-6;

/// A node of the pool.
#[derive(Clone, Copy)]
struct Node {
    /// GB of weights per second that it claims, and that it has.
    claimed: f64,
    real: f64,
    /// Seconds for which it holds each frame back, which its own measurements hide.
    stall_s: f64,
    /// Seconds that it claims to have waited for the others besides.
    slander_s: f64,
    memory_bytes: u64,
}

fn node(claimed: f64, real: f64) -> Node {
    Node { claimed, real, stall_s: 0.0, slander_s: 0.0, memory_bytes: 8 << 30 }
}

/// A pool; node 1 is its master and has the model's file.
struct Pool {
    nodes: Vec<Node>,
    split: bool,
    /// Whether the model is dropped, and whether its owner has unloaded it.
    dropped: bool,
    unloaded: bool,
    /// Seconds that each hop takes besides its link.
    wait_s: f64,
    placer: Placer,
    placements: Vec<Placement>,
    notes: Vec<Note>,
    token_times: Vec<TokenTime>,
    /// The chains that have answered requests.
    used: BTreeSet<u64>,
    now: Time,
}

fn size() -> ModelSize {
    ModelSize {
        layers: LAYERS,
        hidden_size: 1024,
        context: 2048,
        layer_bytes: LAYER_BYTES,
        active_layer_bytes: 0,
        embedding_bytes: 0,
        head_bytes: 1 << 20,
        position_bytes: 512,
    }
}

impl Pool {
    fn new(nodes: &[Node], split: bool) -> Pool {
        let mut pool = Pool {
            nodes: nodes.to_vec(),
            split,
            dropped: false,
            unloaded: false,
            wait_s: 0.0,
            placer: Placer::new(Arc::new(empty_view())),
            placements: Vec::new(),
            notes: Vec::new(),
            token_times: Vec::new(),
            used: BTreeSet::new(),
            now: Time::from_secs(1),
        };
        pool.run(3);
        pool
    }

    fn number(&self, of: &PeerId) -> usize {
        (1..=self.nodes.len()).find(|number| peer(*number as u8) == *of).unwrap()
    }

    /// Seconds of each stage of a placement for one token, without what is held back.
    fn stage_s(&self, placement: &Placement) -> Vec<f64> {
        let stage_s = |stage: &PlacedStage| {
            let node = self.nodes[self.number(&stage.peer) - 1];
            let head = if stage.layers.end == LAYERS { size().head_bytes } else { 0 };
            let bytes = u64::from(stage.layers.end - stage.layers.start) * LAYER_BYTES + head;
            bytes as f64 / node.real / 1e9
        };
        placement.stages.iter().map(stage_s).collect()
    }

    /// Real seconds per token.
    fn token_s(&self, placement: &Placement) -> f64 {
        let stalls = placement.stages.iter().map(|stage| self.nodes[self.number(&stage.peer) - 1].stall_s);
        let hops = if placement.stages.len() > 1 { placement.stages.len() as f64 * (HOP_S + self.wait_s) } else { 0.0 };
        self.stage_s(placement).iter().sum::<f64>() + stalls.sum::<f64>() + hops
    }

    fn advert(&self, number: usize) -> Advert {
        let node = self.nodes[number - 1];
        let others = (1..=self.nodes.len()).filter(|other| *other != number);
        let link =
            |other: usize| LinkAdvert { rtt: Duration::from_secs_f64(2.0 * HOP_S), ..link_to(peer(other as u8)) };
        let (mut stages, term) = (Vec::new(), Term { counter: 1, master: peer(1) });
        for placement in &self.placements {
            let stage_s = self.stage_s(placement);
            for (at, stage) in placement.stages.iter().enumerate().filter(|(_, stage)| stage.peer == peer(number as u8))
            {
                let pace = self.used.contains(&placement.epoch).then(|| StagePace {
                    epoch: placement.epoch,
                    step: Duration::from_secs_f64(stage_s[at]),
                    away: Duration::from_secs_f64(self.token_s(placement) - stage_s[at] + node.slander_s),
                    prompt_row: Duration::from_secs_f64(stage_s[at] / 10.0),
                });
                let (model, layers, epoch) = (placement.model, stage.layers.clone(), placement.epoch);
                stages.retain(|other: &StageAdvert| other.layers != layers);
                let state = StageState::Ready;
                stages.push(StageAdvert { model, layers, epoch, state, session_bytes: 1, broken: None, pace });
            }
        }
        let model = ModelAdvert {
            digest: MODEL,
            name: "model".to_owned(),
            served: true,
            whole: true,
            split: self.split,
            pinned: None,
            size: size(),
        };
        Advert {
            name: format!("node{number}"),
            memory_bytes: node.memory_bytes,
            speed: Some(LayerSpeed { weight_bytes_per_s: node.claimed * 1e9, macs_per_s: node.claimed * 2e10 }),
            links: others.map(link).collect(),
            models: if number == 1 { vec![model] } else { Vec::new() },
            drops: if self.dropped { vec![DropRecord { model: MODEL, version: 1, dropped: true }] } else { Vec::new() },
            unloaded: if self.unloaded && number == 1 { vec![MODEL] } else { Vec::new() },
            stages,
            term: Some(term),
            placements: if number == 1 { self.placements.clone() } else { Vec::new() },
            ..advert_of(peer(number as u8))
        }
    }

    fn view(&self) -> View {
        let nodes: BTreeMap<PeerId, Arc<Advert>> =
            (2..=self.nodes.len()).map(|number| (peer(number as u8), Arc::new(self.advert(number)))).collect();
        let term = Some(Term { counter: 1, master: peer(1) });
        let connected = nodes.keys().copied().collect();
        View { local: peer(1), own: Arc::new(self.advert(1)), term, nodes, connected }
    }

    /// Lets seconds pass, in which nothing is requested.
    fn run(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.now += Duration::from_secs(1);
            for action in self.placer.handle(Event::View(Arc::new(self.view())), self.now) {
                match action {
                    Action::PublishPlacements(placements) => self.placements = placements,
                    Action::ShowTokenTimes(times) => self.token_times = times,
                    Action::Note(note) => self.notes.push(note),
                    _ => {}
                }
            }
        }
    }

    /// The newest placement answers requests for some seconds.
    fn answer(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.used.extend(self.placements.iter().map(|placement| placement.epoch));
            self.run(1);
        }
    }

    fn newest(&self) -> &Placement {
        self.placements.iter().max_by_key(|placement| placement.epoch).unwrap()
    }

    /// The nodes of the newest placement and the number of layers of each.
    fn shares(&self) -> BTreeMap<usize, u32> {
        let stages = self.newest().stages.iter();
        stages.map(|stage| (self.number(&stage.peer), stage.layers.end - stage.layers.start)).collect()
    }

    fn uses(&self, number: usize) -> bool {
        self.shares().contains_key(&number)
    }

    fn predicted_s(&self) -> f64 {
        preview(&self.view(), "model").unwrap().current.unwrap().prediction.unwrap().step_s
    }
}

fn empty_view() -> View {
    let own = Arc::new(advert_of(peer(1)));
    View { local: peer(1), own, term: None, nodes: BTreeMap::new(), connected: BTreeSet::new() }
}

#[test]
fn predictions_are_within_a_quarter_of_what_came_however_wrong_the_first_measurements_were() {
    for (claims, split) in [([15.0, 123.0], true), ([100.0, 15.0], true), ([6.0, 100.0], false)] {
        let mut pool = Pool::new(&claims.map(|claimed| node(claimed, 30.0)), split);
        pool.answer(60);
        let (predicted_s, came_s) = (pool.predicted_s(), pool.token_s(pool.newest()));
        let ratio = predicted_s / came_s;
        assert!((0.75..1.25).contains(&ratio), "{claims:?}: {predicted_s} predicted, {came_s} came");
    }
}

#[test]
fn the_master_shows_what_a_token_of_a_working_chain_takes_and_nothing_of_one_that_is_gone() {
    let mut pool = Pool::new(&[node(30.0, 30.0); 2], true);
    assert_eq!(pool.token_times, [], "nothing is measured yet");
    pool.wait_s = 10e-3;
    pool.answer(10);
    let [TokenTime { name, predicted_s, measured_s }] = &pool.token_times[..] else { panic!("{:?}", pool.token_times) };
    assert_eq!(name, "model");
    assert!((measured_s - pool.token_s(pool.newest())).abs() < 1e-6, "{measured_s}");
    assert!(predicted_s < measured_s, "the prediction knows nothing of threads that wait: {predicted_s}");
    pool.dropped = true;
    pool.run(2);
    assert_eq!(pool.token_times, []);
}

#[test]
fn predictions_of_other_chains_count_what_the_hops_of_this_one_take() {
    let mut nodes = [node(30.0, 30.0); 3];
    nodes.iter_mut().for_each(|node| node.memory_bytes = 768 << 20);
    let mut pool = Pool::new(&nodes, false);
    // Threads wait for a core: each hop takes about as long as a stage computes.
    pool.wait_s = 10e-3;
    pool.answer(60);
    let came_s = pool.token_s(pool.newest());
    let preview = preview(&pool.view(), "model").unwrap();
    let others = preview.alternatives.iter().chain(&preview.best).filter(|chain| chain.stages.len() == 2);
    let predicted: Vec<f64> = others.map(|chain| chain.prediction.unwrap().step_s / came_s).collect();
    assert!(predicted.len() > 1 && predicted.iter().all(|ratio| (0.75..1.25).contains(ratio)), "{predicted:?}");
    assert!((0.75..1.25).contains(&(pool.predicted_s() / came_s)));
    assert!(!pool.notes.iter().any(|note| matches!(note, Note::Slow { .. })), "nobody is to blame");
}

#[test]
fn shares_of_a_split_follow_memory_down_to_one_layer_and_who_gets_none_is_named_once_with_the_reason() {
    let layer_bytes = LAYER_BYTES + size().session_layer_bytes();
    let with = |bytes: u64| Node { memory_bytes: bytes * 16 / 15 + 16, ..node(30.0, 30.0) };
    // Node 2 has room for the head and one layer, node 3 for less than a layer.
    let mut pool = Pool::new(&[node(30.0, 30.0), with(layer_bytes + (1 << 20))], true);
    assert_eq!(pool.shares(), BTreeMap::from([(1, LAYERS - 1), (2, 1)]));
    pool.nodes.push(with(layer_bytes / 2));
    pool.run(10);
    let left_out: Vec<_> = pool.notes.iter().filter(|note| matches!(note, Note::LeftOut { .. })).collect();
    let [Note::LeftOut { left_out, .. }] = left_out[..] else { panic!("{left_out:?}") };
    assert!(matches!(&left_out[..], [(of, why)] if *of == peer(3) && why.contains("one layer takes")), "{left_out:?}");
}

#[test]
fn a_model_that_is_dropped_or_unloaded_has_no_placement_until_it_is_wanted_again() {
    let mut pool = Pool::new(&[node(30.0, 30.0); 2], true);
    let placed = pool.newest().clone();
    let changes: [fn(&mut Pool, bool); 2] = [|pool, is| pool.dropped = is, |pool, is| pool.unloaded = is];
    for change in changes {
        change(&mut pool, true);
        pool.run(2);
        assert_eq!(pool.placements, []);
        change(&mut pool, false);
        pool.run(5);
        assert!(pool.newest().epoch > placed.epoch && pool.newest().stages == placed.stages, "{:?}", pool.newest());
    }
}

#[test]
fn equal_nodes_get_equal_shares_once_they_have_computed() {
    for claims in [[15.0, 123.0, 30.0], [100.0, 16.0, 15.0], [30.0, 30.0, 30.0]] {
        let mut pool = Pool::new(&claims.map(|claimed| node(claimed, 30.0)), true);
        pool.answer(60);
        let shares = pool.shares();
        let (least, most) = (shares.values().min().unwrap(), shares.values().max().unwrap());
        assert!(shares.len() == 3 && most - least <= 1, "{claims:?}: {shares:?}");
    }
}

#[test]
fn a_node_that_computes_as_fast_as_others_keeps_its_model_when_only_it_is_measured() {
    // The weights of a real model are read at half the speed that the first measurement showed, on every node.
    let mut pool = Pool::new(&[node(30.0, 15.0), node(31.0, 15.5)], false);
    assert_eq!(pool.shares(), BTreeMap::from([(1, LAYERS)]));
    pool.answer(60);
    assert_eq!(pool.shares(), BTreeMap::from([(1, LAYERS)]), "the other one is no faster");
}

#[test]
fn a_stage_that_holds_frames_back_is_replaced_after_three_tokens_for_good() {
    for split in [false, true] {
        let mut nodes = [node(20.0, 20.0), node(60.0, 60.0), node(20.0, 20.0), node(20.0, 20.0)];
        nodes.iter_mut().for_each(|node| node.memory_bytes = 768 << 20);
        nodes[1].stall_s = 9.9;
        let mut pool = Pool::new(&nodes, split);
        assert!(pool.uses(2), "{:?}", pool.shares());
        // The first times that three tokens showed, and where several nodes are suspects, those of one more chain.
        let chains = if split { 2 } else { 1 };
        for _ in 0..chains {
            pool.answer(1);
            pool.run(3);
        }
        assert!(!pool.uses(2), "split {split}: {:?}", pool.shares());
        let slow =
            pool.notes.iter().any(|note| matches!(note, Note::Slow { suspects, .. } if suspects.contains(&peer(2))));
        assert!(slow, "it is told");
        pool.answer(30);
        pool.now += Duration::from_secs(300);
        pool.answer(30);
        assert!(!pool.uses(2), "split {split}: {:?}", pool.shares());
        assert!(pool.token_s(pool.newest()) < 0.1);
    }
}

#[test]
fn one_of_three_that_hides_its_time_is_found_among_them() {
    let mut nodes = [node(20.0, 20.0), node(21.0, 21.0), node(22.0, 22.0), node(20.0, 20.0)];
    nodes.iter_mut().for_each(|node| node.memory_bytes = 1 << 30);
    for slow in 2..=3 {
        let mut nodes = nodes;
        nodes[slow - 1].stall_s = 2.0;
        let mut pool = Pool::new(&nodes, true);
        assert!(pool.uses(slow));
        pool.answer(40);
        assert!(!pool.uses(slow), "{slow}: {:?}", pool.shares());
        assert!(pool.token_s(pool.newest()) < 0.2);
    }
}

#[test]
fn a_node_that_slanders_another_loses_its_own_part() {
    let mut nodes = [node(20.0, 20.0), node(25.0, 25.0), node(20.0, 20.0)];
    nodes.iter_mut().for_each(|node| node.memory_bytes = 768 << 20);
    // Node 2 says that node 1 keeps it waiting, which has the file and the requests.
    nodes[1].slander_s = 5.0;
    let mut pool = Pool::new(&nodes, false);
    pool.answer(30);
    assert!(pool.uses(1), "{:?}", pool.shares());
    assert_eq!(pool.shares().len(), 2, "{:?}", pool.shares());
}

#[test]
fn a_slow_stage_is_tried_again_after_a_while() {
    let mut nodes = [node(20.0, 20.0), node(60.0, 60.0), node(20.0, 20.0)];
    nodes.iter_mut().for_each(|node| node.memory_bytes = 768 << 20);
    nodes[1].stall_s = 9.9;
    let mut pool = Pool::new(&nodes, false);
    pool.answer(10);
    assert!(!pool.uses(2));
    pool.nodes[1].stall_s = 0.0;
    pool.now += Duration::from_secs(300);
    pool.answer(20);
    assert!(!pool.uses(2), "not at once");
    pool.now += Duration::from_secs(300);
    pool.run(20);
    assert!(pool.uses(2), "{:?}", pool.shares());
}

#[test]
fn first_shares_of_nodes_whose_claims_differ_by_less_than_two_are_even_until_they_have_computed() {
    for claims in [[30.0, 17.0], [16.0, 30.0]] {
        let mut pool = Pool::new(&claims.map(|claimed| node(claimed, 30.0)), true);
        assert_eq!(pool.shares(), BTreeMap::from([(1, LAYERS / 2), (2, LAYERS / 2)]), "{claims:?}");
        pool.answer(60);
        assert_eq!(pool.shares(), BTreeMap::from([(1, LAYERS / 2), (2, LAYERS / 2)]), "{claims:?}");
    }
    // What is measured counts also where it is less than that.
    let mut pool = Pool::new(&[node(30.0, 30.0), node(17.0, 17.0)], true);
    pool.answer(60);
    assert_eq!(pool.shares(), BTreeMap::from([(1, 21), (2, 11)]));
}

#[test]
fn uneven_shares_of_equal_nodes_become_even_once_they_have_computed() {
    // A start beside other work showed one at less than half its speed.
    let mut pool = Pool::new(&[node(30.0, 30.0), node(14.0, 30.0)], true);
    assert!(pool.shares()[&1] > 20, "{:?}", pool.shares());
    pool.answer(60);
    assert_eq!(pool.shares(), BTreeMap::from([(1, LAYERS / 2), (2, LAYERS / 2)]));
    // Other work slows one down for a while.
    for (real, shares) in [(18.4, [20, 12]), (30.0, [16, 16])] {
        for second in 0..60 {
            pool.nodes[1].real = real * if second % 2 == 0 { 1.0 } else { 1.02 };
            pool.answer(1);
        }
        assert_eq!(pool.shares(), BTreeMap::from([(1, shares[0]), (2, shares[1])]));
    }
}

#[test]
fn equal_nodes_have_equal_shares_also_of_a_model_with_a_large_head() {
    let mut needs = ModelNeeds {
        digest: MODEL,
        name: "model".to_owned(),
        size: size(),
        split: true,
        fetched: true,
        pins: Vec::new(),
        served_by: BTreeSet::new(),
        files: BTreeSet::new(),
    };
    needs.size.head_bytes = 13 * LAYER_BYTES;
    let offer = |number: u8| NodeOffer {
        peer: peer(number),
        name: format!("node{number}"),
        memory_bytes: 8 << 30,
        speed: LayerSpeed { weight_bytes_per_s: 3e10, macs_per_s: 6e11 },
        measured: true,
        numerics: 1,
        delay_s: 0.0,
    };
    let link = |from: &PeerId, to: &PeerId| {
        (from != to).then_some(LinkSpeed { rtt: Duration::from_micros(200), bytes_per_s: 1e9 })
    };
    for nodes in 2..=4 {
        let offers: Vec<NodeOffer> = (1..=nodes).map(offer).collect();
        let plan = plan(&needs, &offers, link).unwrap();
        let counts: Vec<u32> = plan.stages.iter().map(|stage| stage.layers.end - stage.layers.start).collect();
        let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
        assert!(counts.len() == usize::from(nodes) && most - least <= 1, "{counts:?}");
    }
}

#[test]
fn a_machine_that_becomes_busy_makes_no_node_a_suspect() {
    let mut nodes = [node(30.0, 30.0); 3];
    nodes.iter_mut().for_each(|node| node.memory_bytes = 768 << 20);
    let mut pool = Pool::new(&nodes, true);
    pool.answer(20);
    // Everything takes eight times as long from now on, and then as long as before.
    for factor in [1.0 / 8.0, 8.0] {
        pool.nodes.iter_mut().for_each(|node| node.real *= factor);
        pool.answer(20);
    }
    // Every hop waits for a core.
    pool.wait_s = 30e-3;
    pool.answer(20);
    pool.wait_s = 0.0;
    // The others' times arrive later than what this node waited for them.
    pool.nodes[0].slander_s = 0.4;
    pool.answer(2);
    pool.nodes[0].slander_s = 0.0;
    pool.answer(20);
    assert!(!pool.notes.iter().any(|note| matches!(note, Note::Slow { .. })), "{:?}", pool.notes);
    assert_eq!(pool.shares().len(), 3, "{:?}", pool.shares());
}

#[test]
fn a_suspect_gets_layers_only_where_no_plan_without_it_is_possible() {
    let suspects = |numbers: &[u8]| Event::Suspects(numbers.iter().map(|number| peer(*number)).collect());
    for split in [false, true] {
        let mut nodes = [node(20.0, 20.0), node(60.0, 60.0), node(20.0, 20.0)];
        nodes.iter_mut().for_each(|node| node.memory_bytes = 768 << 20);
        let mut pool = Pool::new(&nodes, split);
        assert!(pool.uses(2), "{:?}", pool.shares());
        pool.placer.handle(suspects(&[2]), pool.now);
        pool.run(5);
        assert!(!pool.uses(2), "split {split}: its placement is replaced: {:?}", pool.shares());
        // Without it, the others' memory does not suffice.
        let mut pool = Pool::new(&nodes[..2], split);
        pool.placer.handle(suspects(&[2]), pool.now);
        pool.run(5);
        assert!(pool.uses(2), "split {split}: {:?}", pool.shares());
        // A fresh plan, too.
        let mut pool = Pool::new(&nodes[..1], split);
        pool.placer.handle(suspects(&[2]), pool.now);
        pool.nodes = nodes.to_vec();
        pool.run(20);
        assert!(!pool.uses(2), "split {split}: {:?}", pool.shares());
    }
}

/// All nodes of a chain that keeps answers waiting are suspected alike, so a plan may have to take some of them; who is in the
/// next such chain, too, is suspected more.
#[test]
fn where_suspects_are_needed_those_under_less_suspicion_get_the_layers() {
    let suspects = |numbers: &[u8]| Event::Suspects(numbers.iter().map(|number| peer(*number)).collect());
    for split in [false, true] {
        let mut nodes = [node(20.0, 20.0), node(20.0, 20.0), node(20.0, 20.0)];
        nodes.iter_mut().for_each(|node| node.memory_bytes = 768 << 20);
        let mut pool = Pool::new(&nodes, split);
        for (said, used) in [(&[2, 3], [false, true]), (&[3, 2], [true, false]), (&[2, 3], [false, true])] {
            pool.placer.handle(suspects(said), pool.now);
            pool.run(5);
            assert_eq!([pool.uses(2), pool.uses(3)], used, "split {split}, {said:?}: {:?}", pool.shares());
        }
        // Where all are suspects, nothing tells them apart.
        pool.placer.handle(suspects(&[1, 2, 3]), pool.now);
        pool.run(20);
        assert_eq!(pool.shares().len(), if split { 3 } else { 2 }, "split {split}: {:?}", pool.shares());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(debug_assertions) { 24 } else { 256 }, ..ProptestConfig::default() })]

    /// More speed of one node never makes the best plan slower, and a delay never makes it faster.
    #[test]
    fn plans_follow_measured_speeds(
        speeds in prop::collection::vec(1.0..50.0_f64, 2..6),
        faster in 0_usize..6,
        factor in 1.0..4.0_f64,
        split: bool,
    ) {
        let needs = ModelNeeds {
            digest: MODEL, name: "model".to_owned(), size: size(), split, fetched: true, pins: Vec::new(),
            served_by: BTreeSet::new(), files: BTreeSet::new(),
        };
        let offer = |at: usize, speed: f64| NodeOffer {
            peer: peer(at as u8 + 1),
            name: format!("node{at}"),
            memory_bytes: 400 << 20,
            speed: LayerSpeed { weight_bytes_per_s: speed * 1e9, macs_per_s: speed * 2e10 },
            measured: true,
            numerics: 1,
            delay_s: 0.0,
        };
        let offers: Vec<NodeOffer> = speeds.iter().enumerate().map(|(at, speed)| offer(at, *speed)).collect();
        let link = |from: &PeerId, to: &PeerId| {
            (from != to).then_some(LinkSpeed { rtt: Duration::from_micros(200), bytes_per_s: 1e9 })
        };
        let faster = faster % speeds.len();
        let time = |offers: &[NodeOffer]| plan(&needs, offers, link).ok().map(|plan| match split {
            true => plan.prediction.pace_s,
            false => plan.prediction.step_s,
        });
        let mut quick = offers.clone();
        quick[faster].speed.weight_bytes_per_s *= factor;
        let mut delayed = offers.clone();
        delayed[faster].delay_s = factor;
        // Plans that differ by a tenth count as equal, and speeds by a quarter.
        let slack = 1.4;
        match (time(&offers), time(&quick), time(&delayed)) {
            (Some(before), Some(after), Some(late)) => {
                prop_assert!(after <= before * slack, "{before} before, {after} with a faster node");
                prop_assert!(late * slack >= before, "{before} before, {late} with a delay");
            }
            (before, after, late) => prop_assert_eq!((before, after), (None, None), "{:?}", late),
        }
    }
}
