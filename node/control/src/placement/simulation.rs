//! Placers in a world without a network: seeds drive joins, deaths, partitions, failed loads, chains that break, elections and
//! late adverts. In no seed do nodes obey two masters at once, give more memory than they have, or keep changing their minds once it is quiet.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::Time;

use libp2p_identity::PeerId;
use pangea_units::{Digest, SplitMix64};

use super::plan_tests::peer;
use super::*;
use crate::pool::{Advert, LayerSpeed, LinkAdvert, ModelAdvert, ModelSize, StageAdvert, StageState, Term, View};

const STEP: Duration = Duration::from_millis(100);

struct Node {
    advert: Advert,
    alive: bool,
    side: usize,
    placer: Placer,
    /// What it has heard of others.
    heard: BTreeMap<PeerId, Arc<Advert>>,
    /// Loads under way: when they end, and how.
    loads: Vec<(Time, StageReport)>,
    /// Stages that are loaded or being loaded: bytes and sessions.
    held: BTreeMap<(Digest, u32, u32), (u64, usize)>,
}

struct World {
    random: SplitMix64,
    began: Time,
    now: Time,
    nodes: Vec<Node>,
    /// What each master said under each term: (term, model, epoch) → stages.
    said: BTreeMap<(Term, Digest, u64), Vec<PlacedStage>>,
    fails: bool,
    /// Time of a step.
    pace: Duration,
}

fn digest(number: u8) -> Digest {
    Digest([number; 32])
}

fn size() -> ModelSize {
    ModelSize {
        layers: 24,
        hidden_size: 512,
        context: 1024,
        layer_bytes: 10 << 20,
        embedding_bytes: 0,
        head_bytes: 20 << 20,
        position_bytes: 256,
    }
}

impl World {
    fn new(seed: u64) -> World {
        let mut random = SplitMix64::new(seed);
        let now = Time::from_secs(1000);
        let count = 2 + random.index(4);
        let split = random.index(2) == 0;
        // Ample, or so little that it takes several.
        let memory = if random.index(3) > 0 { 2000 } else { 260 };
        let nodes = (0..count).map(|at| {
            let served = |number: u8| ModelAdvert {
                digest: digest(number),
                name: format!("model{number}"),
                served: true,
                whole: true,
                split,
                pinned: None,
                size: size(),
            };
            let mut models = vec![];
            if at == 0 || random.index(2) == 0 {
                models.push(served(1));
            }
            if at == 1 && memory == 2000 {
                models.push(served(2));
            }
            let speed = 1e9 * (1 + random.index(4)) as f64;
            let advert = Advert {
                peer: peer(at as u8 + 1),
                incarnation: 1000,
                sequence: 0,
                name: format!("node{at}"),
                term: None,
                counter: 0,
                force_master: false,
                uptime: Duration::ZERO,
                works: true,
                numerics: 1,
                addresses: Vec::new(),
                device: String::new(),
                threads: 1,
                memory_bytes: memory << 20,
                f32_flops_per_s: 1e9,
                speed: Some(LayerSpeed { weight_bytes_per_s: speed, macs_per_s: speed }),
                links: Vec::new(),
                models,
                stages: Vec::new(),
                placements: Vec::new(),
                refusals: Vec::new(),
            };
            let view = view_of(&advert, &BTreeMap::new());
            let placer = Placer::new(Arc::new(view));
            let (heard, loads, held) = Default::default();
            Node { advert, alive: true, side: 0, placer, heard, loads, held }
        });
        World { nodes: nodes.collect(), random, began: now, now, said: BTreeMap::new(), fails: true, pace: STEP }
    }

    /// A master for each side that is led by nobody it can reach, or now and then another.
    fn elect(&mut self, often: usize) {
        for side in 0..2 {
            let members: Vec<usize> =
                (0..self.nodes.len()).filter(|at| self.nodes[*at].alive && self.nodes[*at].side == side).collect();
            let Some(first) = members.first() else { continue };
            let terms = members.iter().filter_map(|at| self.nodes[*at].advert.term);
            let highest = terms.max();
            let led = highest.is_some_and(|term| members.iter().any(|at| self.nodes[*at].advert.peer == term.master));
            // As terms are persisted, no two masters of a counter and a name are different.
            let masters: BTreeSet<PeerId> =
                members.iter().filter_map(|at| Some(self.nodes[*at].advert.term?.master)).collect();
            if !led || (masters.len() > 1 && self.random.index(20) == 0) || (often > 0 && self.random.index(often) == 0)
            {
                let master = if often > 0 { members[self.random.index(members.len())] } else { *first };
                let counter = self.nodes.iter().filter_map(|node| node.advert.term).map(|term| term.counter).max();
                let term = Term { counter: counter.unwrap_or(0) + 1, master: self.nodes[master].advert.peer };
                self.nodes[master].advert.term = Some(term);
            }
        }
    }

    fn load(&mut self, at: usize, order: StageOrder) {
        let fails = self.fails && self.random.index(12) == 0;
        let node = &mut self.nodes[at];
        let view = view_of(&node.advert, &node.heard);
        let placements = pool_facts::placements(&view).expect("only what a master said is obeyed");
        assert!(
            placements.iter().any(|placement| {
                placement.epoch == order.epoch
                    && placement.model == order.model
                    && Some(placement.term) == view.term
                    && placement
                        .stages
                        .iter()
                        .any(|stage| stage.peer == node.advert.peer && stage.layers == order.layers)
            }),
            "an order that no placement of the highest term asks for"
        );
        let needs = pool_facts::model(&view, &order.model).expect("sizes are known");
        assert!(order.session_bytes >= needs.session_bytes(&order.layers));
        let bytes = needs.weight_bytes(&order.layers) + order.session_bytes;
        let key = (order.model, order.layers.start, order.layers.end);
        assert!(node.held.insert(key, (bytes, 0)).is_none(), "loaded twice");
        let held: u64 = node.held.values().map(|(bytes, _)| bytes).sum();
        assert!(held <= node.advert.memory_bytes, "{held} bytes");
        let took = Duration::from_millis(self.random.below(3000)) + STEP;
        let report =
            |state| StageReport { model: order.model, layers: order.layers.clone(), epoch: order.epoch, state };
        node.loads.push((self.now + took / 3, report(StageState::Fetching { done: 5, total: 9 })));
        node.loads.push((self.now + took / 2, report(StageState::Loading)));
        let end = if fails { StageState::Failed("no".to_owned()) } else { StageState::Ready };
        node.loads.push((self.now + took, report(end)));
    }

    fn act(&mut self, at: usize, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::SayPlacements(placements) => {
                    let node = &mut self.nodes[at];
                    for placement in &placements {
                        assert_eq!(Some(placement.term), node.advert.term, "said under one's own term");
                        assert_eq!(placement.term.master, node.advert.peer);
                        let key = (placement.term, placement.model, placement.epoch);
                        let known = self.said.entry(key).or_insert_with(|| placement.stages.clone());
                        assert_eq!(*known, placement.stages, "two placements of one epoch");
                    }
                    for number in 1..=2 {
                        let of = placements.iter().filter(|placement| placement.model == digest(number));
                        assert!(of.count() <= 2, "one that answers and one that forms");
                    }
                    node.advert.placements = placements;
                }
                Action::SayRefusals(refusals) => {
                    let of = |refusal: &PlacementRefusal| {
                        self.nodes[at].advert.placements.iter().any(|placement| placement.model == refusal.model)
                    };
                    assert!(!refusals.iter().any(of), "refused and placed");
                    self.nodes[at].advert.refusals = refusals;
                }
                Action::SayStages(stages) => {
                    for stage in &stages {
                        if let StageState::Failed(why) = &stage.state {
                            assert_eq!(why, "no", "ordered where there is no room");
                        }
                    }
                    self.nodes[at].advert.stages = stages;
                }
                Action::Load(order) => self.load(at, order),
                Action::Cancel { model, layers } | Action::Unload { model, layers } => self.unload(at, model, layers),
                Action::Note(_) => {}
            }
        }
    }

    fn unload(&mut self, at: usize, model: Digest, layers: Range<u32>) {
        let node = &mut self.nodes[at];
        let held = node.held.remove(&(model, layers.start, layers.end));
        let ample = node.advert.memory_bytes == 2000 << 20;
        assert!(held.is_some_and(|(_, sessions)| sessions == 0 || !ample), "sessions are left to end");
        node.loads.retain(|(_, report)| (report.model, &report.layers) != (model, &layers));
    }

    fn tell(&mut self, at: usize, event: Event) {
        let actions = self.nodes[at].placer.handle(event, self.now);
        self.act(at, actions);
    }

    /// One step: adverts arrive or do not, loads get on, sessions come and go.
    fn step(&mut self, late: usize) {
        self.now += self.pace;
        let said: Vec<(Arc<Advert>, bool, usize)> =
            self.nodes.iter().map(|node| (Arc::new(node.advert.clone()), node.alive, node.side)).collect();
        for at in 0..self.nodes.len() {
            if !self.nodes[at].alive {
                continue;
            }
            for (other, (advert, alive, side)) in said.iter().enumerate().filter(|(other, _)| *other != at) {
                let reaches = *alive && *side == self.nodes[at].side;
                if late > 0 && self.random.index(late) > 0 {
                    continue;
                }
                let node = &mut self.nodes[at];
                let peer = said[other].0.peer;
                if reaches {
                    node.heard.insert(peer, Arc::clone(advert));
                    node.advert.term = node.advert.term.max(advert.term);
                } else {
                    node.heard.remove(&peer);
                }
            }
            let node = &mut self.nodes[at];
            node.advert.links = node.heard.keys().map(|to| link_to(*to)).collect();
            let view = Arc::new(view_of(&node.advert, &node.heard));
            self.tell(at, Event::View(view));
            let due: Vec<StageReport> = {
                let (now, loads) = (self.now, &mut self.nodes[at].loads);
                let due = loads.iter().filter(|(when, _)| *when <= now).map(|(_, report)| report.clone()).collect();
                loads.retain(|(when, _)| *when > now);
                due
            };
            for report in due {
                if let StageState::Failed(_) = report.state {
                    self.nodes[at].held.remove(&(report.model, report.layers.start, report.layers.end));
                }
                self.tell(at, Event::Stage(report));
            }
            self.converse(at);
        }
    }

    fn converse(&mut self, at: usize) {
        let ready: Vec<StageAdvert> = self.nodes[at].advert.stages.clone();
        for stage in ready.into_iter().filter(|stage| stage.state == StageState::Ready) {
            if self.random.index(10) == 0 {
                let open = self.random.index(3);
                let key = (stage.model, stage.layers.start, stage.layers.end);
                if let Some(held) = self.nodes[at].held.get_mut(&key) {
                    held.1 = open;
                    self.tell(at, Event::Sessions { model: stage.model, layers: stage.layers, open });
                }
            }
        }
    }

    /// The chains that a node's stages of a model are part of break there.
    fn part(&mut self, at: usize, model: Digest) {
        let stages = self.nodes[at].advert.stages.clone();
        for stage in stages.into_iter().filter(|stage| stage.model == model && stage.state == StageState::Ready) {
            self.tell(at, Event::Broke { model, layers: stage.layers, epoch: stage.epoch });
        }
    }

    fn disturb(&mut self) {
        let at = self.random.index(self.nodes.len());
        let others_alive = self.nodes.iter().enumerate().any(|(other, node)| other != at && node.alive);
        match self.random.index(5) {
            0 if others_alive => self.nodes[at].alive = false,
            1 => self.revive(at),
            2 => self.nodes[at].side = self.random.index(2),
            3 if self.nodes[at].alive => self.part(at, digest(1)),
            _ => {}
        }
    }

    fn revive(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        if node.alive {
            return;
        }
        node.alive = true;
        node.advert.incarnation = 1000 + self.now.since(self.began).as_millis() as u64;
        (node.advert.stages, node.advert.placements, node.advert.links) = Default::default();
        node.advert.refusals.clear();
        node.heard.clear();
        node.loads.clear();
        node.held.clear();
        node.placer = Placer::new(Arc::new(view_of(&node.advert, &node.heard)));
    }

    /// Half a minute without disturbance.
    fn settle(&mut self) {
        for _ in 0..300 {
            self.elect(0);
            self.step(0);
        }
        assert!(self.is_settled());
    }

    fn heal(&mut self) {
        self.fails = false;
        for at in 0..self.nodes.len() {
            self.revive(at);
            self.nodes[at].side = 0;
        }
    }

    /// The placements in force, of the one master.
    fn placements(&self) -> Vec<Placement> {
        let node = &self.nodes[0];
        pool_facts::placements(&view_of(&node.advert, &node.heard)).expect("there is a master")
    }

    fn is_settled(&self) -> bool {
        let placements = self.placements();
        let view = view_of(&self.nodes[0].advert, &self.nodes[0].heard);
        let models = pool_facts::models(&view);
        placements.len() == models.len()
            && placements.iter().all(|placement| pool_facts::is_ready(&view, placement))
            && models.keys().all(|model| placements.iter().any(|placement| placement.model == *model))
    }
}

fn link_to(to: PeerId) -> LinkAdvert {
    let rtt = Duration::from_micros(400);
    LinkAdvert { to, rtt, bytes_per_s: 1e8, transport: "tcp".to_owned(), found_by: "mdns".to_owned() }
}

fn view_of(advert: &Advert, heard: &BTreeMap<PeerId, Arc<Advert>>) -> View {
    View {
        local: advert.peer,
        own: Arc::new(advert.clone()),
        term: advert.term,
        nodes: heard.clone(),
        connected: heard.keys().copied().collect(),
    }
}

/// Twenty seconds of disorder, then quiet: how long until every model is placed and ready, and what was changed after that.
fn run(seed: u64) {
    let mut world = World::new(seed);
    for _ in 0..200 {
        if world.random.index(12) == 0 {
            world.disturb();
        }
        world.elect(100);
        world.step(4);
    }
    world.heal();
    // A node that failed is left out for half a minute, a whole one the second time, and so on.
    let mut steps = 0;
    while steps < 100 || !world.is_settled() {
        world.elect(0);
        world.step(3);
        steps += 1;
        assert!(steps < 6000, "seed {seed}: not placed: {:?}", world.placements());
    }
    // Nodes that were left out come back, and whatever was better is taken.
    world.pace = STEP * 5;
    for _ in 0..160 {
        world.step(2);
    }
    // The longest that anyone is left out.
    world.pace = STEP * 50;
    for _ in 0..150 {
        world.step(0);
    }
    world.pace = STEP * 5;
    let before = world.placements();
    assert!(world.is_settled(), "seed {seed}");
    for _ in 0..120 {
        // Measurements vary.
        let at = world.random.index(world.nodes.len());
        let factor = 0.95 + world.random.index(10) as f64 / 100.0;
        let speed = world.nodes[at].advert.speed;
        if let Some(speed) = &mut world.nodes[at].advert.speed {
            speed.weight_bytes_per_s *= factor;
        }
        world.step(2);
        world.nodes[at].advert.speed = speed;
    }
    assert_eq!(world.placements(), before, "seed {seed}: a change of mind");
}

#[test]
#[expect(clippy::disallowed_methods, reason = "whoever runs the test says how many seeds")]
fn every_disorder_ends_in_one_ready_placement_under_one_master_and_stays() {
    let seeds = std::env::var("PANGEA_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(100);
    for seed in 0..seeds {
        run(seed);
    }
}

#[test]
fn a_dead_stage_is_replaced_within_a_second_and_a_returned_node_is_used_again() {
    for seed in 0..40 {
        let mut world = split_world(seed);
        let stages = |world: &World| world.placements().iter().map(|placement| placement.stages.len()).min();
        let count = world.nodes.len();
        assert_eq!(stages(&world), Some(count), "all take part");
        // Not the master, and not the one that alone serves the second model.
        if count > 2 {
            let epochs = world.placements().iter().map(|placement| placement.epoch).max();
            world.nodes[count - 1].alive = false;
            for _ in 0..10 {
                world.step(0);
            }
            let gone = world.nodes[count - 1].advert.peer;
            for placement in world.placements() {
                assert!(placement.stages.iter().all(|stage| stage.peer != gone));
                assert!(Some(placement.epoch) > epochs.map(|epoch| epoch.min(placement.epoch - 1)));
            }
            world.settle();
            assert_eq!(stages(&world), Some(count - 1));
            world.revive(count - 1);
            let mut steps = 0;
            while world.placements().iter().all(|placement| placement.stages.len() < count) {
                world.step(0);
                steps += 1;
                assert!(steps < 50, "seed {seed}: it is used again soon, if it stays");
            }
            assert!(steps > 25, "seed {seed}: not as soon as it is there");
            world.settle();
            assert_eq!(stages(&world), Some(count), "it is used again");
        }
    }
}

#[test]
fn a_model_that_those_left_cannot_hold_is_refused_for_all_to_hear_until_another_comes() {
    for seed in 0..40 {
        let mut world = World::new(seed);
        world.fails = false;
        let count = world.nodes.len();
        for node in &mut world.nodes {
            node.advert.memory_bytes = 300 << 20;
            node.advert.models.retain(|model| model.digest == digest(1));
            // Two of them suffice, one does not.
            for model in &mut node.advert.models {
                model.size.layer_bytes = 20 << 20;
            }
        }
        world.settle();
        for at in 1..count {
            world.nodes[at].alive = false;
        }
        for _ in 0..10 {
            world.elect(0);
            world.step(0);
        }
        let refusal = |world: &World| {
            let node = &world.nodes[0];
            pool_facts::refusal(&view_of(&node.advert, &node.heard), &digest(1))
        };
        assert!(refusal(&world).is_some_and(|why| why.contains("missing")), "seed {seed}: {:?}", refusal(&world));
        assert!(world.placements().is_empty());
        world.revive(1);
        for _ in 0..10 {
            world.elect(0);
            world.step(0);
        }
        assert_eq!((refusal(&world), world.placements().len()), (None, 1), "seed {seed}");
    }
}

/// A world of equal nodes with ample memory that share every model, settled.
fn split_world(seed: u64) -> World {
    let mut world = World::new(seed);
    world.fails = false;
    for node in &mut world.nodes {
        node.advert.memory_bytes = 2000 << 20;
        for model in &mut node.advert.models {
            model.split = true;
        }
        node.advert.speed = Some(LayerSpeed { weight_bytes_per_s: 1e9, macs_per_s: 1e9 });
    }
    world.settle();
    world
}

#[test]
fn a_chain_that_broke_among_living_nodes_is_placed_anew_on_the_same_ones() {
    for seed in 0..40 {
        let mut world = split_world(seed);
        let placement = |world: &World| {
            let of = world.placements().into_iter().filter(|placement| placement.model == digest(1));
            of.max_by_key(|placement| placement.epoch).unwrap()
        };
        let mut before = placement(&world);
        let mut took = Vec::new();
        for _ in 0..6 {
            for at in 0..world.nodes.len() {
                world.part(at, digest(1));
            }
            let mut steps = 0;
            while placement(&world).epoch == before.epoch || !world.is_settled() {
                world.step(0);
                steps += 1;
                assert!(steps < 100, "seed {seed}: not placed anew");
            }
            let anew = placement(&world);
            // Nobody is to blame: nobody is left out, and nothing is loaded again.
            assert_eq!((anew.stages.clone(), anew.epoch), (before.stages, before.epoch + 1));
            took.push(steps);
            before = anew;
        }
        assert!(took[0] <= 6, "seed {seed}: the first time within half a second: {took:?}");
        assert!(took[5] > 4 * took[0], "seed {seed}: one that always breaks is not placed all the time: {took:?}");
    }
}

#[test]
fn nodes_between_which_chains_go_on_breaking_are_done_without_where_that_can_be() {
    for seed in 0..40 {
        let mut world = split_world(seed);
        if world.nodes.len() < 4 {
            continue;
        }
        // The others must be enough: one of the two has to serve nothing.
        let culprits = [world.nodes.len() - 2, world.nodes.len() - 1];
        let peers = culprits.map(|at| world.nodes[at].advert.peer);
        let uses = |world: &World| {
            let placements = world.placements();
            let of = placements
                .iter()
                .filter(|placement| placement.model == digest(1))
                .max_by_key(|placement| placement.epoch);
            of.unwrap().stages.iter().filter(|stage| peers.contains(&stage.peer)).count()
        };
        assert_eq!(uses(&world), 2);
        for _ in 0..3 {
            for at in culprits {
                world.part(at, digest(1));
            }
            for _ in 0..30 {
                world.step(0);
            }
        }
        for _ in 0..30 {
            world.step(0);
        }
        assert!(world.is_settled(), "seed {seed}");
        assert_eq!(uses(&world), 0, "seed {seed}");
        for _ in 0..600 {
            world.step(0);
        }
        assert_eq!(uses(&world), 2, "seed {seed}: not for ever");
    }
}

#[test]
fn nodes_that_join_one_after_another_make_few_placements_and_one_that_comes_and_goes_makes_no_more() {
    for seed in 0..40 {
        let mut world = split_world(seed);
        let count = world.nodes.len();
        if count < 4 {
            continue;
        }
        let epoch = |world: &World| world.placements().iter().map(|placement| placement.epoch).max().unwrap_or(0);
        for at in 2..count {
            world.nodes[at].alive = false;
        }
        world.settle();
        let before = epoch(&world);
        for at in 2..count {
            world.revive(at);
            for _ in 0..20 {
                world.step(0);
            }
        }
        world.settle();
        assert_eq!(epoch(&world), before + 1, "seed {seed}: one for all that joined");
        // Dies, and comes back for four seconds, again and again.
        let before = epoch(&world);
        for _ in 0..10 {
            world.nodes[count - 1].alive = false;
            for _ in 0..20 {
                world.step(0);
            }
            world.revive(count - 1);
            for _ in 0..40 {
                world.step(0);
            }
        }
        assert!(epoch(&world) <= before + 4, "seed {seed}: {} placements", epoch(&world) - before);
        world.settle();
        let stages = world.placements().iter().map(|placement| placement.stages.len()).min();
        assert_eq!(stages, Some(count), "seed {seed}: it is used once it stays");
    }
}

#[test]
fn a_preview_shows_what_would_be_and_what_is() {
    let mut world = World::new(3);
    world.fails = false;
    for _ in 0..300 {
        world.elect(0);
        world.step(0);
    }
    let view = view_of(&world.nodes[0].advert, &world.nodes[0].heard);
    for placement in world.placements() {
        let plan = preview(&view, &placement.name).unwrap();
        let current = plan.current.unwrap();
        assert_eq!((plan.ready, plan.epoch), (true, placement.epoch));
        assert!(current.stages.iter().map(|(stage, _)| stage).eq(&placement.stages));
        assert!(current.prediction.unwrap().decode_tokens_per_s() > 0.0);
        assert!(plan.best.unwrap().prediction.unwrap().prompt_tokens_per_s() > 0.0);
        assert!(!plan.reason.is_empty());
    }
    assert_eq!(preview(&view, "nobody").unwrap_err().kind(), pangea_units::ErrorKind::NotFound);
    let several = world.placements().len() > 1;
    assert_eq!(preview(&view, "").is_err(), several);
}
