//! The world: nodes over one seeded network, in virtual time. It delivers, delays, loses, duplicates and reorders; it
//! decides nothing that a node decides, and judges nothing (that is `checks`).
//!
//! Gossiped adverts are flooded: they may be lost, duplicated, late and out of order. What travels on a stream arrives in
//! order or not at all: a connection that breaks takes everything on it along.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pangea_control::placement::StageReport;
use pangea_control::pool::election::{Candidate, Changed, Event as Happened};
use pangea_control::pool::roster::Heard;
use pangea_control::pool::term_keeper::Action as Keep;
use pangea_control::pool::{Advert, Term};

use crate::checks::{Broken, Checks};
use crate::node::{Node, peer_of};
use crate::product::{Computing, TaskMessage};
use crate::scenario::{Disturbance, Micros, SECOND, Scenario};
use pangea_units::SplitMix64;

/// How often a node looks at the clock.
const TICK: Micros = 100_000;

/// How often a node says how it stands at least.
const REPEAT: Micros = SECOND;

/// Until a silent peer is found dead.
const SILENCE: std::ops::Range<Micros> = 3_750_000..4_250_000;

/// Bytes per microsecond of every link: 100 MB/s.
const BYTES_PER_MICRO: u64 = 100;

/// Events of one run, beyond which something goes round in circles.
const EVENTS_MAX: u64 = 5_000_000;

/// What happens at a node, or to the world.
pub(crate) enum Happening {
    /// A node's clock.
    Tick { node: usize, run: u64 },
    /// A node's placer is to look at the pool.
    Look { node: usize, run: u64 },
    /// A gossiped advert arrives.
    Gossip { to: usize, advert: Arc<Advert> },
    /// Something arrives on a stream of this connection.
    Stream { from: usize, to: usize, connection: u64, message: TaskMessage },
    /// A connection is there.
    Up { at: usize, of: usize, connection: u64 },
    /// A connection is gone.
    Down { at: usize, of: usize, silent: bool },
    /// The disk is through with a term.
    Stored { node: usize, run: u64, term: Term },
    /// A load gets on.
    Load { node: usize, run: u64, report: StageReport },
    /// A node has computed a tile.
    Computed { node: usize, run: u64, computing: Computing },
    /// A node has checked a tile.
    Checked { node: usize, run: u64, attempt: pangea_control::schedule::AttemptId },
    /// The scheduler asked to be told the time.
    Wake { node: usize, run: u64 },
    /// The next of the scenario's disturbances.
    Disturb(usize),
    /// The next of the scenario's jobs.
    Submit(usize),
    /// Nobody waits for a job any more.
    Cancel(usize),
}

/// The world of one scenario.
pub(crate) struct World {
    /// What is played.
    pub(crate) scenario: Scenario,
    /// Chances of this run.
    pub(crate) chance: SplitMix64,
    /// The time.
    pub(crate) now: Micros,
    /// The nodes.
    pub(crate) nodes: Vec<Node>,
    /// What must hold.
    pub(crate) checks: Checks,
    /// Connections by pair, the lower node first; each has a number of its own.
    links: BTreeMap<(usize, usize), u64>,
    /// Pairs that cannot reach each other.
    cut: BTreeSet<(usize, usize)>,
    /// When the sending side of a connection is free again.
    send_free: BTreeMap<(usize, usize), Micros>,
    loss_one_in: u64,
    /// One in this many loads fails.
    pub(crate) load_failures_one_in: u64,
    queue: BTreeMap<(Micros, u64), Happening>,
    number: u64,
    events: u64,
}

fn pair(a: usize, b: usize) -> (usize, usize) {
    (a.min(b), a.max(b))
}

impl World {
    /// The world in which nothing has happened yet. With `log`, every event is kept as a line, too.
    pub(crate) fn new(scenario: Scenario, log: bool) -> World {
        let mut chance = SplitMix64::new(!scenario.seed);
        let nodes = scenario
            .nodes
            .iter()
            .map(|spec| Node::new(spec.clone(), peer_of([chance.bits(), chance.bits(), chance.bits(), chance.bits()])))
            .collect();
        let mut world = World {
            chance,
            now: 0,
            nodes,
            checks: Checks::new(log),
            links: BTreeMap::new(),
            cut: BTreeSet::new(),
            send_free: BTreeMap::new(),
            loss_one_in: 0,
            load_failures_one_in: 0,
            queue: BTreeMap::new(),
            number: 0,
            events: 0,
            scenario,
        };
        for (at, spec) in world.scenario.nodes.clone().iter().enumerate() {
            world.number += 1;
            world.queue.insert((spec.starts_at, world.number), Happening::Disturb(usize::MAX - at));
        }
        for at in 0..world.scenario.disturbances.len() {
            world.number += 1;
            world.queue.insert((world.scenario.disturbances[at].0, world.number), Happening::Disturb(at));
        }
        for at in 0..world.scenario.jobs.len() {
            world.number += 1;
            let (when, job) = &world.scenario.jobs[at];
            world.queue.insert((*when, world.number), Happening::Submit(at));
            if let Some(after) = job.cancelled_after {
                world.number += 1;
                world.queue.insert((when + after, world.number), Happening::Cancel(at));
            }
        }
        world
    }

    /// Lets something happen after `delay`.
    pub(crate) fn after(&mut self, delay: Micros, happening: Happening) {
        self.number += 1;
        self.queue.insert((self.now + delay, self.number), happening);
    }

    /// Plays until `until`.
    ///
    /// # Errors
    /// What did not hold.
    pub(crate) fn run_until(&mut self, until: Micros) -> Result<(), Broken> {
        while let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= until) {
            let ((time, _), happening) = entry.remove_entry();
            self.now = time;
            self.events += 1;
            if self.events > EVENTS_MAX {
                return Err(Broken::new(self.now, "events follow one another without an end"));
            }
            self.happen(happening)?;
        }
        self.now = until;
        Ok(())
    }

    /// Plays for `time` more.
    ///
    /// # Errors
    /// What did not hold.
    pub(crate) fn run_for(&mut self, time: Micros) -> Result<(), Broken> {
        self.run_until(self.now + time)
    }

    /// Whether the run with this number still is the node's.
    pub(crate) fn is_current(&self, node: usize, run: u64) -> bool {
        self.nodes[node].run.as_ref().is_some_and(|current| current.number == run)
    }

    /// The number of the connection between two nodes.
    pub(crate) fn connection(&self, a: usize, b: usize) -> Option<u64> {
        self.links.get(&pair(a, b)).copied()
    }

    // The network.

    /// Sends on the stream between two nodes: behind what was sent before, `bytes` of payload with it.
    pub(crate) fn send(&mut self, from: usize, to: usize, bytes: u64, message: TaskMessage) {
        let Some(connection) = self.connection(from, to) else { return };
        let free = self.send_free.entry((from, to)).or_insert(0);
        *free = (*free).max(self.now) + bytes / BYTES_PER_MICRO;
        let delay = *free - self.now + 200;
        self.after(delay, Happening::Stream { from, to, connection, message });
    }

    fn connect(&mut self, a: usize, b: usize) {
        let runs = self.nodes[a].run.is_some() && self.nodes[b].run.is_some();
        if a == b || !runs || self.cut.contains(&pair(a, b)) || self.links.contains_key(&pair(a, b)) {
            return;
        }
        self.number += 1;
        let connection = self.number;
        self.links.insert(pair(a, b), connection);
        let delay = self.chance.within(1_000..300_000);
        self.after(delay, Happening::Up { at: a, of: b, connection });
        self.after(delay, Happening::Up { at: b, of: a, connection });
    }

    /// The connection ends; each end that runs notices, at once or after seconds of silence.
    fn disconnect(&mut self, a: usize, b: usize, silent: bool) {
        if self.links.remove(&pair(a, b)).is_none() {
            return;
        }
        self.send_free.remove(&(a, b));
        self.send_free.remove(&(b, a));
        for (at, of) in [(a, b), (b, a)] {
            let delay = if silent { self.chance.within(SILENCE) } else { self.chance.within(0..50_000) };
            self.after(delay, Happening::Down { at, of, silent });
        }
    }

    fn gossip(&mut self, from: usize, advert: &Arc<Advert>) {
        for to in 0..self.nodes.len() {
            if to == from || !self.links.contains_key(&pair(from, to)) {
                continue;
            }
            if self.loss_one_in > 0 && self.chance.one_in(self.loss_one_in) {
                continue;
            }
            let copies = if self.chance.one_in(50) { 2 } else { 1 };
            for _ in 0..copies {
                let late = self.chance.one_in(20);
                let delay = if late { self.chance.within(50_000..250_000) } else { self.chance.within(500..20_000) };
                self.after(delay, Happening::Gossip { to, advert: Arc::clone(advert) });
            }
        }
    }

    // Disturbances.

    /// Starts a node that does not run.
    pub(crate) fn start(&mut self, node: usize) {
        if self.nodes[node].run.is_some() {
            return;
        }
        let split = self.scenario.split;
        self.nodes[node].start(self.now, split);
        self.checks.started(self.now, node);
        let run = self.nodes[node].runs;
        let phase = self.chance.below(TICK);
        self.after(phase, Happening::Tick { node, run });
        for other in 0..self.nodes.len() {
            self.connect(node, other);
        }
    }

    /// Ends the process of a node.
    pub(crate) fn crash(&mut self, node: usize, silent: bool) {
        if self.nodes[node].run.take().is_none() {
            return;
        }
        self.checks.crashed(self.now, node);
        for other in 0..self.nodes.len() {
            self.disconnect(node, other, silent);
        }
    }

    /// Lets nothing through between two nodes.
    pub(crate) fn cut(&mut self, a: usize, b: usize, silent: bool) {
        if a != b {
            self.cut.insert(pair(a, b));
            self.disconnect(a, b, silent);
        }
    }

    /// Lets everything through again.
    pub(crate) fn heal(&mut self) {
        self.cut.clear();
        for a in 0..self.nodes.len() {
            for b in 0..a {
                self.connect(a, b);
            }
        }
    }

    /// Ends every disturbance and starts every node.
    pub(crate) fn calm(&mut self) {
        (self.loss_one_in, self.load_failures_one_in) = (0, 0);
        for node in &mut self.nodes {
            (node.slower, node.disk.full, node.disk.write_takes) = (1, false, 2_000);
        }
        for node in 0..self.nodes.len() {
            self.start(node);
        }
        self.heal();
    }

    fn disturb(&mut self, disturbance: Disturbance) -> Result<(), Broken> {
        self.checks.disturbed(self.now, &disturbance);
        match disturbance {
            Disturbance::Crash { node, silent } => {
                if self.nodes.iter().filter(|node| node.run.is_some()).count() > 1 {
                    self.crash(node, silent);
                }
            }
            Disturbance::Start { node } => self.start(node),
            Disturbance::Split { sides, silent } => {
                for a in 0..self.nodes.len() {
                    for b in 0..a {
                        if (sides >> a) & 1 != (sides >> b) & 1 {
                            self.cut(a, b, silent);
                        }
                    }
                }
            }
            Disturbance::Cut { a, b, silent } => self.cut(a, b, silent),
            Disturbance::Heal => self.heal(),
            Disturbance::Loss { one_in } => self.loss_one_in = one_in,
            Disturbance::LoadFailures { one_in } => self.load_failures_one_in = one_in,
            Disturbance::BreakChains { node } => return self.break_chains(node),
            Disturbance::FullDisk { node, full } => self.nodes[node].disk.full = full,
            Disturbance::SlowDisk { node, takes } => self.nodes[node].disk.write_takes = takes,
            Disturbance::Slow { node, times } => self.nodes[node].slower = times,
        }
        Ok(())
    }

    // What happens.

    fn happen(&mut self, happening: Happening) -> Result<(), Broken> {
        match happening {
            Happening::Disturb(at) => match self.scenario.disturbances.get(at) {
                Some((_, disturbance)) => self.disturb(disturbance.clone()),
                None => {
                    self.start(usize::MAX - at);
                    Ok(())
                }
            },
            Happening::Submit(at) => self.submit(at),
            Happening::Cancel(at) => self.cancel(at),
            Happening::Tick { node, run } if self.is_current(node, run) => self.tick(node, run),
            Happening::Look { node, run } if self.is_current(node, run) => self.look(node),
            Happening::Gossip { to, advert } if self.nodes[to].run.is_some() => self.hear(to, &advert),
            Happening::Stream { from, to, connection, message } if self.connection(from, to) == Some(connection) => {
                self.receive(from, to, message)
            }
            Happening::Up { at, of, connection } if self.connection(at, of) == Some(connection) => {
                let peer = self.nodes[of].peer;
                if let Some(run) = &mut self.nodes[at].run {
                    run.roster.connected(peer);
                    run.fresh = true;
                    self.soon_look(at);
                }
                self.join(at, of)
            }
            Happening::Down { at, of, silent } => self.lose(at, of, silent),
            Happening::Stored { node, run, term } if self.is_current(node, run) => {
                self.stored(node, term);
                Ok(())
            }
            Happening::Load { node, run, report } if self.is_current(node, run) => self.loaded(node, report),
            Happening::Computed { node, run, computing } if self.is_current(node, run) => {
                self.computed(node, computing)
            }
            Happening::Checked { node, run, attempt } if self.is_current(node, run) => self.checked(node, attempt),
            Happening::Wake { node, run } if self.is_current(node, run) => self.wake(node),
            // What a run that is over began, or a connection that is gone carried.
            _ => Ok(()),
        }
    }

    fn tick(&mut self, node: usize, number: u64) -> Result<(), Broken> {
        let now = self.now;
        let Some(run) = &mut self.nodes[node].run else { return Ok(()) };
        let time = run.time(now);
        let silent = run.roster.silent(time);
        for peer in silent {
            self.elect(node, Happened::Gone { peer, silent: true })?;
        }
        self.elect(node, Happened::Tick)?;
        if let Some(run) = &mut self.nodes[node].run {
            let actions = run.terms.tick(time);
            self.keep_terms(node, number, actions);
        }
        self.soon_look(node);
        if let Some(run) = &mut self.nodes[node].run
            && (run.fresh || now >= run.published + REPEAT)
        {
            let advert = Arc::new(run.say(now));
            self.gossip(node, &advert);
        }
        self.converse(node)?;
        self.after(TICK, Happening::Tick { node, run: number });
        Ok(())
    }

    fn hear(&mut self, at: usize, advert: &Arc<Advert>) -> Result<(), Broken> {
        let now = self.now;
        let Some(run) = &mut self.nodes[at].run else { return Ok(()) };
        let heard = run.roster.heard((**advert).clone(), run.time(now));
        if heard == Heard::Old {
            return Ok(());
        }
        run.fresh |= heard == Heard::Joined;
        self.gossip(at, advert);
        self.elect(at, Happened::Heard(advert.peer, Candidate::of(advert)))?;
        self.soon_look(at);
        Ok(())
    }

    fn lose(&mut self, at: usize, of: usize, silent: bool) -> Result<(), Broken> {
        if self.links.contains_key(&pair(at, of)) {
            return Ok(());
        }
        let (now, peer) = (self.now, self.nodes[of].peer);
        let Some(run) = &mut self.nodes[at].run else { return Ok(()) };
        run.fresh = true;
        let time = run.time(now);
        if run.roster.disconnected(peer, time) {
            self.elect(at, Happened::Gone { peer, silent })?;
        }
        self.soon_look(at);
        self.leave(at, of)
    }

    /// The election decides; a new term is on disk before it is told to anybody.
    fn elect(&mut self, at: usize, event: Happened) -> Result<(), Broken> {
        let now = self.now;
        let node = &mut self.nodes[at];
        let Some(run) = &mut node.run else { return Ok(()) };
        let (number, time) = (run.number, run.time(now));
        let Some(Changed(term)) = run.election.handle(event, time) else { return Ok(()) };
        self.checks.decided(now, at, node, term)?;
        let Some(run) = &mut self.nodes[at].run else { return Ok(()) };
        let actions = run.terms.decided(term);
        self.keep_terms(at, number, actions);
        Ok(())
    }

    fn stored(&mut self, at: usize, term: Term) {
        let now = self.now;
        let node = &mut self.nodes[at];
        let taken = !node.disk.full;
        if taken {
            node.disk.term = Some(term);
        }
        let Some(run) = &mut node.run else { return };
        let (number, time) = (run.number, run.time(now));
        let actions = run.terms.stored(term, taken, time);
        self.keep_terms(at, number, actions);
    }

    fn keep_terms(&mut self, at: usize, number: u64, actions: Vec<Keep>) {
        for action in actions {
            match action {
                Keep::Store(term) => {
                    let takes = self.nodes[at].disk.write_takes;
                    self.after(takes, Happening::Stored { node: at, run: number, term });
                }
                Keep::Announce(term) => {
                    if let Some(run) = &mut self.nodes[at].run {
                        run.fresh = true;
                    }
                    self.checks.lives_under(self.now, at, term);
                    self.soon_look(at);
                }
            }
        }
    }

    /// Lets the placer look at the pool in a moment: what changes at once is looked at once.
    pub(crate) fn soon_look(&mut self, node: usize) {
        if let Some(run) = self.nodes[node].run.as_mut().filter(|run| !run.looking) {
            run.looking = true;
            let number = run.number;
            self.after(1_000, Happening::Look { node, run: number });
        }
    }
}
