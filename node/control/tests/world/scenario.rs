//! What a run of the world consists of: the nodes, and what happens to them and is asked of them when. A scenario follows
//! from its seed; without one of its disturbances or jobs it is a scenario again, which is how a failing one shrinks.

use pangea_control::placement::PlacedStage;
use pangea_control::pool::Term;

use pangea_units::SplitMix64;

use crate::deviations::Deviations;

/// Microseconds of virtual time.
pub(crate) type Micros = u64;

/// One second.
pub(crate) const SECOND: Micros = 1_000_000;

/// How long disorder lasts at most.
const DISORDER: Micros = 25 * SECOND;

/// The connection of a node to all others; two nodes reach each other at the slower one's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinkSpec {
    /// Bytes per second, each way.
    pub(crate) bytes_per_s: f64,
    /// A round trip.
    pub(crate) rtt: Micros,
}

impl LinkSpec {
    /// Ordinary Ethernet.
    pub(crate) const ETHERNET: LinkSpec = LinkSpec { bytes_per_s: 100e6, rtt: 400 };
}

/// A node as it is made.
#[derive(Clone, Debug)]
pub(crate) struct NodeSpec {
    /// Whether it computes for others.
    pub(crate) works: bool,
    /// Whether it is started to be the master.
    pub(crate) force_master: bool,
    /// What it may hold of weights and sessions.
    pub(crate) memory_bytes: u64,
    /// Multiplications and additions per second of products; layers take a hundredth of that as bytes per second.
    pub(crate) flops_per_s: f64,
    /// The models whose whole file it has and serves, by number.
    pub(crate) models: Vec<u8>,
    /// When it starts.
    pub(crate) starts_at: Micros,
    /// How it departs from the protocol.
    pub(crate) deviations: Deviations,
    /// One in this many tasks is never answered, though others are; none where 0.
    pub(crate) forgets_one_in: u64,
    /// Its connection.
    pub(crate) link: LinkSpec,
    /// What it says of its speed, and what is measured of its link, as parts of the truth.
    pub(crate) claims: f64,
    /// Spread of the time that a task takes: 0.05 is up to 5 % more.
    pub(crate) jitter: f64,
}

impl NodeSpec {
    /// A node that does what it says, with as much memory as anybody needs.
    pub(crate) fn honest(flops_per_s: f64, link: LinkSpec) -> NodeSpec {
        NodeSpec {
            works: true,
            force_master: false,
            memory_bytes: 8 << 30,
            flops_per_s,
            models: Vec::new(),
            starts_at: 0,
            deviations: Deviations::default(),
            forgets_one_in: 0,
            link,
            claims: 1.0,
            jitter: 0.0,
        }
    }
}

/// Something that goes wrong, or right again.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Disturbance {
    /// The process ends. `silent`: its peers find out only by its silence.
    Crash { node: usize, silent: bool },
    /// The process starts, if it does not run, with what its disk has.
    Start { node: usize },
    /// Nodes whose bit differs cannot reach one another any more.
    Split { sides: u64, silent: bool },
    /// One pair cannot reach each other any more.
    Cut { a: usize, b: usize, silent: bool },
    /// All can reach each other.
    Heal,
    /// One in this many gossiped adverts is lost; none where 0.
    Loss { one_in: u64 },
    /// One in this many loads of a stage fails; none where 0.
    LoadFailures { one_in: u64 },
    /// One in this many passes through layers finds no memory; none where 0.
    MemoryShort { one_in: u64 },
    /// Every chain that the node is part of breaks there, though its layers are fine.
    BreakChains { node: usize },
    /// The node's disk takes this long for a write.
    SlowDisk { node: usize, takes: Micros },
    /// The node's disk takes no writes, or takes them again.
    FullDisk { node: usize, full: bool },
    /// The node computes this many times slower.
    Slow { node: usize, times: u64 },
    /// The node computes nothing for this long.
    Hang { node: usize, takes: Micros },
    /// The streams between two nodes break, though they stay connected.
    BreakStreams { a: usize, b: usize },
    /// The node is asked to end: it drains for so long, and its process ends.
    Drain { node: usize, grace: Micros },
    /// Nothing gets from one node to the other, though the other way is open, until the connection is found dead.
    CutOneWay { from: usize, to: usize },
    /// The node's clocks stand still for a moment of the world, and then jump: its process was suspended.
    ClockJump { node: usize, by: Micros },
    /// The node's wall clock is set back.
    ClockSetBack { node: usize, by: Micros },
}

/// A product, or an operation element by element, that a program asks of a node.
#[derive(Clone, Debug)]
pub(crate) struct JobSpec {
    /// The node that is asked.
    pub(crate) node: usize,
    /// Rows, inner size, columns.
    pub(crate) shape: [u64; 3],
    /// Whether it is computed element by element: operands and result have these rows and columns then.
    pub(crate) elementwise: bool,
    /// Whether peers are to compute while they can.
    pub(crate) remote: bool,
    /// Whether peers compute none of it.
    pub(crate) local: bool,
    /// How many workers must agree on each tile.
    pub(crate) redundancy: u32,
    /// Larger goes first.
    pub(crate) priority: i32,
    /// How often a tile is tried again on peers.
    pub(crate) max_retries: u32,
    /// When nobody waits for it any more, after its submission.
    pub(crate) cancelled_after: Option<Micros>,
    /// Until when it must be done, after its submission.
    pub(crate) deadline: Option<Micros>,
}

/// A request to a model.
#[derive(Clone, Debug)]
pub(crate) struct ChatSpec {
    /// The node that is asked.
    pub(crate) node: usize,
    /// The model, by number.
    pub(crate) model: u8,
    /// Tokens that the prompt has in common with others, and those of its own.
    pub(crate) prompt: (usize, usize),
    /// How the tokens of the answers are chosen; the own tokens of the prompt, too.
    pub(crate) seed: u64,
    /// How long each answer may be.
    pub(crate) max_new_tokens: usize,
    /// How many answers.
    pub(crate) choices: usize,
    /// Whether the prompt's tokens are to be told with how likely they are.
    pub(crate) scored: bool,
    /// Which share of answers is audited; no receipt is kept without.
    pub(crate) audit: Option<f64>,
    /// When nobody waits for it any more, after its submission.
    pub(crate) cancelled_after: Option<Micros>,
}

impl ChatSpec {
    /// A chat as most are.
    pub(crate) fn new(node: usize, seed: u64) -> ChatSpec {
        ChatSpec {
            node,
            model: 1,
            prompt: (20, 10),
            seed,
            max_new_tokens: 40,
            choices: 1,
            scored: false,
            audit: None,
            cancelled_after: None,
        }
    }

    fn of(chance: &mut SplitMix64, count: usize) -> ChatSpec {
        ChatSpec {
            node: chance.index(count),
            model: if chance.one_in(5) { 2 } else { 1 },
            prompt: (chance.index(60), 1 + chance.index(30)),
            seed: chance.bits() >> 8,
            max_new_tokens: 1 + chance.index(80),
            choices: 1 + chance.index(3),
            scored: chance.one_in(10),
            audit: [None, Some(0.0), Some(0.5), Some(1.0)][chance.index(4)],
            cancelled_after: chance.one_in(6).then(|| chance.below(2 * SECOND)),
        }
    }

    /// The tokens of the prompt.
    pub(crate) fn prompt(&self) -> Vec<u32> {
        let own = &mut SplitMix64::new(self.seed);
        let shared = (0..self.prompt.0).map(|at| 1 + at as u32 % 7);
        shared.chain((0..self.prompt.1).map(|_| 1 + own.below(49) as u32)).collect()
    }
}

/// Everything that a run depends on.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    /// The seed that it follows from; chances within a run follow from it, too.
    pub(crate) seed: u64,
    /// The nodes.
    pub(crate) nodes: Vec<NodeSpec>,
    /// What happens when, in order.
    pub(crate) disturbances: Vec<(Micros, Disturbance)>,
    /// What is asked when.
    pub(crate) jobs: Vec<(Micros, JobSpec)>,
    /// What is asked of models when.
    pub(crate) chats: Vec<(Micros, ChatSpec)>,
    /// Whether nodes share every model among all of them.
    pub(crate) split: bool,
}

impl Scenario {
    /// A pool without any disturbance: `count` equal nodes, the first of which serves model 1.
    pub(crate) fn quiet(seed: u64, count: usize) -> Scenario {
        let node = |at: usize| NodeSpec {
            memory_bytes: 2000 << 20,
            models: if at == 0 { vec![1] } else { Vec::new() },
            starts_at: at as Micros * 50_000,
            ..NodeSpec::honest(100e9, LinkSpec::ETHERNET)
        };
        Scenario {
            seed,
            nodes: (0..count).map(node).collect(),
            disturbances: Vec::new(),
            jobs: Vec::new(),
            chats: Vec::new(),
            split: true,
        }
    }

    /// The scenario of a seed: two to six nodes, disorder of every kind for some seconds, products before, during and after.
    pub(crate) fn of(seed: u64) -> Scenario {
        let chance = &mut SplitMix64::new(seed);
        let count = 2 + chance.index(5);
        // Ample, or so little that a model takes several nodes.
        let ample = !chance.one_in(3);
        // Every other world has a node that deviates, and now and then that has a second identity, or a third.
        let deviations = if chance.one_in(2) { Deviations::of(chance) } else { Deviations::default() };
        let identities = if chance.one_in(4) { 1..3 + chance.index(2) } else { 1..2 };
        let nodes = (0..count).map(|at| {
            let mut models = Vec::new();
            if at == 0 || chance.one_in(3) {
                models.push(1);
            }
            if at == 1 && ample {
                models.push(2);
            }
            NodeSpec {
                works: at < 2 || !chance.one_in(6),
                force_master: chance.one_in(8),
                memory_bytes: (if ample { 2000 } else { 260 }) << 20,
                models,
                starts_at: if at < 2 { chance.below(SECOND / 2) } else { chance.below(DISORDER / 2) },
                deviations: if identities.contains(&at) { deviations.clone() } else { Deviations::default() },
                forgets_one_in: if chance.one_in(10) { 10 } else { 0 },
                claims: if chance.one_in(3) { chance.scale(0.2, 5.0) } else { 1.0 },
                jitter: chance.unit() * 0.3,
                ..NodeSpec::honest(20e9 * (1 + chance.below(4)) as f64, LinkSpec::of(chance))
            }
        });
        let nodes: Vec<NodeSpec> = nodes.collect();
        let mut disturbances: Vec<(Micros, Disturbance)> =
            (0..chance.below(14)).map(|_| (chance.below(DISORDER), Disturbance::of(chance, count))).collect();
        disturbances.sort_by_key(|(at, _)| *at);
        let mut jobs: Vec<(Micros, JobSpec)> =
            (0..chance.below(8)).map(|_| (chance.below(DISORDER + 10 * SECOND), JobSpec::of(chance, count))).collect();
        jobs.sort_by_key(|(at, _)| *at);
        let mut chats: Vec<(Micros, ChatSpec)> =
            (0..chance.below(8)).map(|_| (chance.below(DISORDER + 10 * SECOND), ChatSpec::of(chance, count))).collect();
        chats.sort_by_key(|(at, _)| *at);
        Scenario { seed, split: chance.one_in(2), nodes, disturbances, jobs, chats }
    }

    /// The same without one of its parts, for each part: disturbances first, then jobs, chats and deviations.
    pub(crate) fn smaller(&self) -> impl Iterator<Item = Scenario> + '_ {
        let without_disturbance = (0..self.disturbances.len()).map(|at| {
            let mut smaller = self.clone();
            smaller.disturbances.remove(at);
            smaller
        });
        let without_job = (0..self.jobs.len()).map(|at| {
            let mut smaller = self.clone();
            smaller.jobs.remove(at);
            smaller
        });
        let without_chat = (0..self.chats.len()).map(|at| {
            let mut smaller = self.clone();
            smaller.chats.remove(at);
            smaller
        });
        let without_deviation = (0..self.nodes.len()).flat_map(move |at| {
            self.nodes[at].deviations.smaller().map(move |deviations| {
                let mut smaller = self.clone();
                smaller.nodes[at].deviations = deviations;
                smaller
            })
        });
        without_disturbance.chain(without_job).chain(without_chat).chain(without_deviation)
    }
}

impl LinkSpec {
    fn of(chance: &mut SplitMix64) -> LinkSpec {
        LinkSpec { bytes_per_s: chance.scale(20e6, 2e9), rtt: chance.within(100..10_000) }
    }
}

impl Disturbance {
    fn of(chance: &mut SplitMix64, count: usize) -> Disturbance {
        let (node, other, silent) = (chance.index(count), chance.index(count), chance.one_in(2));
        match chance.below(23) {
            0..=2 => Disturbance::Crash { node, silent },
            3..=5 => Disturbance::Start { node },
            6 => Disturbance::Split { sides: chance.bits(), silent },
            7 if node != other => Disturbance::Cut { a: node, b: other, silent },
            7 | 8 => Disturbance::Heal,
            9 => Disturbance::Loss { one_in: [0, 3, 10][chance.index(3)] },
            10 => Disturbance::LoadFailures { one_in: [0, 4][chance.index(2)] },
            11 => Disturbance::BreakChains { node },
            12 => Disturbance::SlowDisk { node, takes: chance.within(1_000..800_000) },
            13 => Disturbance::FullDisk { node, full: !chance.one_in(3) },
            14 => Disturbance::Hang { node, takes: chance.below(10 * SECOND) },
            15 if node != other => Disturbance::BreakStreams { a: node, b: other },
            17 => Disturbance::MemoryShort { one_in: [0, 8, 30][chance.index(3)] },
            18 => Disturbance::BreakChains { node },
            16 => Disturbance::Drain { node, grace: chance.below(8 * SECOND) },
            20 if node != other => Disturbance::CutOneWay { from: node, to: other },
            21 => Disturbance::ClockJump { node, by: chance.below(20 * SECOND) },
            22 => Disturbance::ClockSetBack { node, by: chance.below(3_600 * SECOND) },
            _ => Disturbance::Slow { node, times: chance.within(1..20) },
        }
    }
}

impl JobSpec {
    /// A product as most are, asked of the first node.
    pub(crate) fn product(shape: [u64; 3]) -> JobSpec {
        JobSpec {
            node: 0,
            shape,
            elementwise: false,
            remote: false,
            local: false,
            redundancy: 1,
            priority: 0,
            max_retries: 3,
            cancelled_after: None,
            deadline: None,
        }
    }

    fn of(chance: &mut SplitMix64, count: usize) -> JobSpec {
        let side = |chance: &mut SplitMix64| 1 << chance.within(8..14);
        JobSpec {
            node: chance.index(count),
            shape: [side(chance), side(chance), side(chance)],
            elementwise: chance.one_in(4),
            remote: chance.one_in(2),
            local: chance.one_in(8),
            redundancy: if chance.one_in(5) { 2 } else { 1 },
            priority: chance.below(3) as i32,
            max_retries: chance.below(5) as u32,
            cancelled_after: chance.one_in(6).then(|| chance.below(SECOND)),
            deadline: chance.one_in(6).then(|| chance.below(3 * SECOND)),
        }
    }
}

/// What a master said once: two different things under one term and epoch are a defect.
pub(crate) type SaidPlacements = std::collections::BTreeMap<(Term, pangea_units::Digest, u64), Vec<PlacedStage>>;
