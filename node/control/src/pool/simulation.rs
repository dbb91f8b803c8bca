//! Pools of simulated nodes, each with the real roster and the real election, over a network that delays, reorders, loses,
//! splits and heals, with deaths, stops and restarts: whatever happened, a few seconds of quiet leave one master.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

use libp2p_identity::PeerId;
use pangea_units::SplitMix64;

use super::advert::{Advert, Term};
use super::advert_of;
use super::election::{Changed, Election, Event, Voice};
use super::roster::{Heard, Roster};
use crate::Time;

/// One master within this of the last disturbance.
const QUIET: u64 = 5_000;

/// Until a silent peer is found dead, at the least and the most.
const SILENT_MS: std::ops::Range<u64> = 3_750..4_250;

/// How often nodes look at the clock and say how they stand.
const TICK_MS: u64 = 100;
const REPEAT_MS: u64 = 1_000;

/// A run of a node.
struct Run {
    started: u64,
    incarnation: u64,
    sequence: u64,
    roster: Roster,
    election: Election,
    published: u64,
    fresh: bool,
}

struct Node {
    peer: PeerId,
    works: bool,
    force_master: bool,
    /// On disk.
    remembered: Option<Term>,
    run: Option<Run>,
    /// Every master it lived under, with the time.
    lived_under: Vec<(u64, Term)>,
}

#[derive(Clone, PartialEq)]
enum Happens {
    Tick(usize),
    Hear(usize, Box<Advert>),
    Up(usize, usize),
    Down { at: usize, of: usize, silent: bool },
}

struct Queued(u64, u64, Happens);

impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}
impl Eq for Queued {}
impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Queued {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

struct Pool {
    random: SplitMix64,
    now: u64,
    number: u64,
    nodes: Vec<Node>,
    /// Pairs of nodes with a connection, the lower first.
    links: BTreeSet<(usize, usize)>,
    /// Pairs between which nothing gets through.
    cut: BTreeSet<(usize, usize)>,
    queue: BinaryHeap<Reverse<Queued>>,
    /// One in so many messages is lost; 0: none.
    loss: u64,
}

/// The peer id of these bytes of a key.
fn peer(mut key: Vec<u8>) -> PeerId {
    key.splice(0..0, [8, 1, 0x12, 32]);
    PeerId::from_multihash(multiaddr::multihash::Multihash::wrap(0, &key).unwrap()).unwrap()
}

fn pair(a: usize, b: usize) -> (usize, usize) {
    (a.min(b), a.max(b))
}

impl Pool {
    fn new(seed: u64, count: usize) -> Pool {
        let mut random = SplitMix64::new(seed);
        let nodes = (0..count)
            .map(|_| Node {
                peer: peer((0..4).flat_map(|_| random.bits().to_le_bytes()).collect()),
                works: true,
                force_master: false,
                remembered: None,
                run: None,
                lived_under: Vec::new(),
            })
            .collect();
        Pool {
            random,
            now: 0,
            number: 0,
            nodes,
            links: BTreeSet::new(),
            cut: BTreeSet::new(),
            queue: BinaryHeap::new(),
            loss: 0,
        }
    }

    fn at(&mut self, delay: u64, happens: Happens) {
        self.number += 1;
        self.queue.push(Reverse(Queued(self.now + delay, self.number, happens)));
    }

    fn start(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let election = Election::new(node.peer, node.works, node.force_master, node.remembered);
        node.run = Some(Run {
            started: self.now,
            incarnation: self.now,
            sequence: 0,
            roster: Roster::new(node.peer),
            election,
            published: 0,
            fresh: true,
        });
        let phase = self.random.below(TICK_MS);
        self.at(phase, Happens::Tick(index));
        for other in 0..self.nodes.len() {
            if other != index && self.nodes[other].run.is_some() && !self.cut.contains(&pair(index, other)) {
                self.connect(index, other);
            }
        }
    }

    fn connect(&mut self, a: usize, b: usize) {
        if self.links.insert(pair(a, b)) {
            let delay = self.random.within(1..300);
            self.at(delay, Happens::Up(a, b));
            self.at(delay, Happens::Up(b, a));
        }
    }

    /// The connection ends; each end that lives notices, at once or after seconds of silence.
    fn disconnect(&mut self, a: usize, b: usize, silent: bool) {
        if self.links.remove(&pair(a, b)) {
            for (at, of) in [(a, b), (b, a)] {
                let delay = if silent { self.random.within(SILENT_MS) } else { self.random.within(0..50) };
                self.at(delay, Happens::Down { at, of, silent });
            }
        }
    }

    fn kill(&mut self, index: usize, silent: bool) {
        self.nodes[index].run = None;
        for other in 0..self.nodes.len() {
            self.disconnect(index, other, silent);
        }
    }

    fn cut(&mut self, a: usize, b: usize, silent: bool) {
        self.cut.insert(pair(a, b));
        self.disconnect(a, b, silent);
    }

    fn heal(&mut self) {
        self.cut.clear();
        for a in 0..self.nodes.len() {
            for b in 0..a {
                if self.nodes[a].run.is_some() && self.nodes[b].run.is_some() {
                    self.connect(a, b);
                }
            }
        }
    }

    fn advert(&self, index: usize) -> Advert {
        let node = &self.nodes[index];
        let run = node.run.as_ref().unwrap();
        Advert {
            incarnation: run.incarnation,
            sequence: run.sequence,
            term: run.election.term(),
            counter: run.election.counter(),
            force_master: node.force_master,
            uptime: Duration::from_millis(self.now - run.started),
            works: node.works,
            ..advert_of(node.peer)
        }
    }

    fn publish(&mut self, index: usize) {
        let run = self.nodes[index].run.as_mut().unwrap();
        (run.sequence, run.published, run.fresh) = (run.sequence + 1, self.now, false);
        let advert = self.advert(index);
        self.relay(index, &advert);
    }

    fn relay(&mut self, from: usize, advert: &Advert) {
        for to in 0..self.nodes.len() {
            if self.links.contains(&pair(from, to)) && !(self.loss > 0 && self.random.one_in(self.loss)) {
                let delay =
                    if self.random.one_in(20) { self.random.within(50..250) } else { self.random.within(1..20) };
                self.at(delay, Happens::Hear(to, Box::new(advert.clone())));
            }
        }
    }

    fn elect(&mut self, index: usize, event: Event) {
        let now = self.now;
        let node = &mut self.nodes[index];
        let run = node.run.as_mut().unwrap();
        let since_start = Time::from_millis(now - run.started);
        if let Some(Changed(term)) = run.election.handle(event, since_start) {
            run.fresh = true;
            if let Some(term) = term {
                assert!(Some(term) >= node.remembered, "a term went back: {term:?} after {:?}", node.remembered);
                assert!(node.works || term.master != node.peer, "a lite client became the master");
                node.remembered = Some(term);
                node.lived_under.push((now, term));
            }
        }
    }

    fn happen(&mut self, happens: Happens) {
        let (at, gone) = match &happens {
            Happens::Tick(at) | Happens::Hear(at, _) | Happens::Up(at, _) | Happens::Down { at, .. } => {
                (*at, self.nodes[*at].run.is_none())
            }
        };
        if gone {
            return;
        }
        let peers: Vec<PeerId> = self.nodes.iter().map(|node| node.peer).collect();
        let since_start = Time::from_millis(self.now - self.nodes[at].run.as_ref().unwrap().started);
        let run = self.nodes[at].run.as_mut().unwrap();
        match happens {
            Happens::Tick(_) => {
                for peer in run.roster.silent(since_start) {
                    self.elect(at, Event::Gone { peer, silent: true });
                }
                self.elect(at, Event::Tick);
                let run = self.nodes[at].run.as_ref().unwrap();
                if run.fresh || self.now >= run.published + REPEAT_MS {
                    self.publish(at);
                }
                self.at(TICK_MS, Happens::Tick(at));
            }
            Happens::Hear(_, advert) => {
                let (peer, voice) = (advert.peer, Voice::of(&advert));
                let heard = run.roster.heard((*advert).clone(), since_start);
                run.fresh |= heard == Heard::Joined;
                if heard != Heard::Old {
                    self.elect(at, Event::Heard(peer, voice));
                    self.relay(at, &advert);
                }
            }
            Happens::Up(_, other) => {
                if self.links.contains(&pair(at, other)) {
                    run.roster.connected(peers[other]);
                    run.fresh = true;
                }
            }
            Happens::Down { of, silent, .. } => {
                if !self.links.contains(&pair(at, of)) {
                    run.fresh = true;
                    if run.roster.disconnected(peers[of], since_start) {
                        self.elect(at, Event::Gone { peer: peers[of], silent });
                    }
                }
            }
        }
    }

    fn run_until(&mut self, until: u64) {
        while self.queue.peek().is_some_and(|Reverse(next)| next.0 <= until) {
            let Some(Reverse(Queued(time, _, happens))) = self.queue.pop() else { break };
            self.now = time;
            self.happen(happens);
        }
        self.now = until;
    }

    fn run_for(&mut self, ms: u64) {
        self.run_until(self.now + ms);
    }

    /// The term that everyone who runs lives under.
    fn agreed(&self) -> Result<Term, String> {
        let terms: BTreeMap<usize, Option<Term>> =
            (0..self.nodes.len()).filter_map(|i| Some((i, self.nodes[i].run.as_ref()?.election.term()))).collect();
        let first = *terms.values().next().unwrap();
        let term = first.filter(|_| terms.values().all(|term| *term == first));
        let alive =
            |term: &Term| self.nodes.iter().any(|node| node.peer == term.master && node.run.is_some() && node.works);
        term.filter(alive).ok_or_else(|| format!("at {} ms: {terms:#?}", self.now))
    }

    fn agree(&mut self, seed: u64) -> Term {
        self.run_for(QUIET);
        let term = self.agreed().unwrap_or_else(|why| panic!("seed {seed}: no one master after {QUIET} ms; {why}"));
        self.run_for(QUIET);
        let later = self.agreed().unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        assert_eq!(later, term, "seed {seed}: the mastership changed in quiet");
        term
    }

    /// The index of a node by its peer id.
    fn index(&self, peer: PeerId) -> usize {
        self.nodes.iter().position(|node| node.peer == peer).unwrap()
    }

    /// One disturbance.
    fn disturb(&mut self) {
        let count = self.nodes.len() as u64;
        let (a, b) = (self.random.below(count) as usize, self.random.below(count) as usize);
        let silent = self.random.one_in(2);
        match self.random.below(8) {
            0 | 1 if self.nodes[a].run.is_some() && self.nodes.iter().filter(|node| node.run.is_some()).count() > 2 => {
                self.kill(a, silent)
            }
            2 | 3 => {
                if self.nodes[a].run.is_none() {
                    self.start(a);
                }
            }
            4 => {
                let side = self.random.bits();
                for a in 0..self.nodes.len() {
                    for b in 0..a {
                        if (side >> a) & 1 != (side >> b) & 1 {
                            self.cut(a, b, silent);
                        }
                    }
                }
            }
            5 => self.heal(),
            6 if a != b => self.cut(a, b, silent),
            _ => self.loss = [0, 3, 10][self.random.below(3) as usize],
        }
    }
}

/// Enough for every rare order of events to have come up; a second or two.
const SEEDS: u64 = 3_000;

#[test]
fn whatever_happened_quiet_leaves_one_master() {
    for seed in 0..SEEDS {
        let mut setup = SplitMix64::new(seed ^ 0x5eed);
        let mut pool = Pool::new(seed, 2 + setup.below(5) as usize);
        for index in 0..pool.nodes.len() {
            pool.nodes[index].works = index < 2 || !setup.one_in(6);
            pool.nodes[index].force_master = setup.one_in(8);
            if index < 2 || setup.one_in(2) {
                pool.start(index);
                pool.run_for(setup.below(1500));
            }
        }
        for _ in 0..setup.below(4) {
            for _ in 0..1 + setup.below(6) {
                pool.disturb();
                pool.run_for(setup.below(6_000));
            }
            pool.loss = 0;
            pool.heal();
            let worker = |node: &Node| node.run.is_some() && node.works;
            if !pool.nodes.iter().any(worker) {
                pool.start(0);
            }
            pool.agree(seed);
        }
    }
}

#[test]
fn of_nodes_that_start_together_one_becomes_the_master_and_stays_it() {
    for seed in 0..300 {
        let mut pool = Pool::new(seed, 3);
        for index in 0..3 {
            pool.start(index);
            let later = pool.random.below(400);
            pool.run_for(later);
        }
        pool.agree(seed);
        let masters: BTreeSet<PeerId> =
            pool.nodes.iter().flat_map(|node| &node.lived_under).map(|(_, term)| term.master).collect();
        assert_eq!(masters.len(), 1, "seed {seed}");
    }
}

#[test]
fn newcomers_accept_the_master_that_is_there() {
    for seed in 0..300 {
        let mut pool = Pool::new(seed, 5);
        pool.start(0);
        pool.start(1);
        let term = pool.agree(seed);
        for index in 2..5 {
            // One was the master of a later term in another life.
            pool.nodes[index].remembered = (index == 4).then(|| Term { counter: 40, master: pool.nodes[4].peer });
            pool.start(index);
            let later = pool.random.below(3_000);
            pool.run_for(later);
        }
        let now = pool.agree(seed);
        assert_eq!(now.master, term.master, "seed {seed}");
        assert!(now.counter > 40, "seed {seed}: the newcomer has lived under {now:?}");
    }
}

#[test]
fn a_node_started_to_be_the_master_takes_over_and_two_such_do_not_fight() {
    for seed in 0..300 {
        let mut pool = Pool::new(seed, 4);
        pool.start(0);
        pool.start(1);
        pool.agree(seed);
        pool.nodes[2].force_master = true;
        pool.start(2);
        assert_eq!(pool.agree(seed).master, pool.nodes[2].peer, "seed {seed}");
        pool.nodes[3].force_master = true;
        pool.start(3);
        assert_eq!(pool.agree(seed).master, pool.nodes[2].peer, "seed {seed}");
    }
}

#[test]
fn after_a_split_the_longer_up_master_goes_on_with_a_higher_term() {
    for seed in 0..300 {
        let mut pool = Pool::new(seed, 4);
        pool.start(0);
        pool.run_for(10_000);
        for index in 1..4 {
            pool.start(index);
        }
        let first = pool.agree(seed);
        assert_eq!(first.master, pool.nodes[0].peer);
        for (a, b) in [(0, 2), (0, 3), (1, 2), (1, 3)] {
            pool.cut(a, b, true);
        }
        pool.run_for(QUIET);
        let other = pool.nodes[2].run.as_ref().unwrap().election.term().unwrap();
        assert!(other.counter > first.counter && other.master != first.master);
        pool.heal();
        let healed = pool.agree(seed);
        assert_eq!((healed.master, healed.counter), (first.master, other.counter + 1), "seed {seed}");
    }
}

#[test]
fn a_connection_that_breaks_while_others_carry_the_gossip_changes_no_master() {
    for seed in 0..300 {
        let mut pool = Pool::new(seed, 4);
        for index in 0..4 {
            pool.start(index);
        }
        let term = pool.agree(seed);
        let (master, other) = (pool.index(term.master), pool.random.below(4) as usize);
        if other != master {
            pool.cut(master, other, false);
            assert_eq!(pool.agree(seed), term, "seed {seed}");
        }
    }
}

#[test]
fn a_masters_death_leaves_another_one_in_time() {
    for seed in 0..600 {
        let mut pool = Pool::new(seed, 3);
        for index in 0..3 {
            pool.start(index);
        }
        let term = pool.agree(seed);
        pool.kill(pool.index(term.master), seed % 2 == 0);
        let next = pool.agree(seed);
        assert!(next.master != term.master && next.counter > term.counter, "seed {seed}");
    }
}
