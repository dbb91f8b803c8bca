//! The world: nodes over one seeded network, in virtual time. It lets happen what happens; it decides nothing that a node
//! decides, and judges nothing (that is `checks`).

use std::collections::BTreeMap;
use std::sync::Arc;

use pangea_control::jobs::JobId;
use pangea_control::pool::Term;
use pangea_control::schedule::AttemptId;
use pangea_control::session::ChainId;
use pangea_control::session::link_state::StreamId;
use pangea_control::trust::accusations::{Accusation, Event as AccusationsEvent};
use pangea_units::{Digest, SplitMix64};

use crate::accusations::Evidence;
use crate::certificates::{Published, certificate_of, pool_key};
use crate::chat_messages::SessionMessage;
use crate::checks::{Broken, Checks};
use crate::claims::Receipt;
use crate::memory::{Lease, Waiter};
use crate::model::Step;
use crate::network::{Message, Network, Protocol, StreamNumber};
use crate::node::{Node, StageKey, peer_of};
use crate::scenario::{ChatSpec, Disturbance, Micros, Scenario};

/// How often a node looks at the clock.
pub(crate) const TICK: Micros = 100_000;

/// Events of one run, beyond which something goes round in circles.
const EVENTS_MAX: u64 = 5_000_000;

/// What happens at a node, or to the world.
pub(crate) enum Happening {
    /// A node's clock.
    Tick {
        node: usize,
        run: u64,
    },
    /// A node's placer is to look at the pool.
    Look {
        node: usize,
        run: u64,
    },
    /// A gossiped advert arrives.
    Gossip {
        from: usize,
        to: usize,
        published: Arc<Published>,
    },
    /// Something arrives on a stream.
    Message {
        to: usize,
        stream: StreamNumber,
        message: Message,
    },
    /// A stream ended.
    StreamEnded {
        at: usize,
        of: usize,
        stream: StreamNumber,
        protocol: Protocol,
    },
    /// A task stream is to be opened.
    OpenTasks {
        at: usize,
        run: u64,
        of: usize,
    },
    /// The link to a peer was measured.
    Probed {
        at: usize,
        run: u64,
        of: usize,
        stream: StreamNumber,
    },
    /// A session stream is to be opened.
    OpenSessions {
        at: usize,
        run: u64,
        of: usize,
        id: StreamId,
    },
    /// A node sent itself a message of a session.
    ToSelf {
        node: usize,
        run: u64,
        message: SessionMessage,
    },
    /// The pass of a stage is over.
    StageWorks {
        node: usize,
        run: u64,
        chain: ChainId,
    },
    /// An audit is over, of an answer that a request may wait for.
    Audited {
        node: usize,
        run: u64,
        job: JobId,
        awaited: bool,
        receipt: Box<Receipt>,
    },
    /// All layers of a model are read for this node alone.
    LoadedAlone {
        node: usize,
        run: u64,
        model: Digest,
    },
    /// A chat is asked, or nobody waits for it any more.
    Ask(usize),
    HangUp(usize),
    /// An operand was hashed.
    Hashed {
        node: usize,
        run: u64,
        stream: StreamNumber,
        digest: Digest,
    },
    /// A worker says something late.
    Says {
        node: usize,
        run: u64,
        stream: StreamNumber,
        bytes: u64,
        message: Message,
    },
    /// A worker says once more that it has started a task.
    StartedAgain {
        node: usize,
        run: u64,
        stream: StreamNumber,
        task: u64,
    },
    /// Accusations arrive.
    Accused {
        to: usize,
        from: usize,
        accusations: Vec<Accusation>,
    },
    /// Evidence arrives, or does not.
    EvidenceCame {
        at: usize,
        run: u64,
        from: usize,
        evidence: Digest,
    },
    /// Evidence is checked.
    EvidenceChecked {
        at: usize,
        run: u64,
        accusation: Accusation,
    },
    /// A connection over which one end hears nothing any more is found dead.
    FoundDead {
        a: usize,
        b: usize,
        connection: u64,
    },
    /// A result is on its way: its memory is free again.
    Sent {
        lease: Lease,
    },
    /// A connection is there.
    Up {
        at: usize,
        of: usize,
        connection: u64,
    },
    /// A connection is gone.
    Down {
        at: usize,
        of: usize,
        silent: bool,
    },
    /// The disk is through with a term.
    Stored {
        node: usize,
        run: u64,
        term: Term,
    },
    /// A load gets on.
    Load {
        node: usize,
        run: u64,
        key: StageKey,
        epoch: u64,
        step: Step,
    },
    /// A node has computed a tile.
    Computed {
        node: usize,
        run: u64,
        work: u64,
    },
    /// A node has checked a tile.
    Checked {
        node: usize,
        run: u64,
        attempt: AttemptId,
        takes: Micros,
    },
    /// The scheduler asked to be told the time.
    Wake {
        node: usize,
        run: u64,
    },
    /// Memory is short: what is only kept for later goes.
    GiveWay {
        node: usize,
        run: u64,
    },
    /// Jobs that are left may not take any longer.
    CutOff {
        node: usize,
        run: u64,
    },
    /// A node has drained, and ends.
    Exit {
        node: usize,
        run: u64,
    },
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
    /// What connects them.
    pub(crate) network: Network,
    /// The number that each of the scenario's jobs has at its node.
    pub(crate) submitted: BTreeMap<usize, JobId>,
    /// The chats of the scenario, and those that were asked besides.
    pub(crate) chats_asked: Vec<ChatSpec>,
    /// The number that each chat has at its node.
    pub(crate) chat_jobs: BTreeMap<usize, JobId>,
    /// One in this many passes finds no memory; none where 0.
    pub(crate) memory_short_one_in: u64,
    /// One in this many loads fails.
    pub(crate) load_failures_one_in: u64,
    /// Evidence of lies.
    pub(crate) evidence: Evidence,
    /// Whether nobody deviates any more.
    pub(crate) relented: bool,
    queue: BTreeMap<(Micros, u64), Happening>,
    number: u64,
    events: u64,
}

impl World {
    /// The world in which nothing has happened yet. With `log`, every event is kept as a line, too.
    pub(crate) fn new(scenario: Scenario, log: bool) -> World {
        let (mut chance, key) = (SplitMix64::new(!scenario.seed), pool_key(false));
        let nodes = scenario
            .nodes
            .iter()
            .map(|spec| {
                let peer = peer_of([chance.bits(), chance.bits(), chance.bits(), chance.bits()]);
                Node::new(spec.clone(), peer, certificate_of(&key, peer, spec.works))
            })
            .collect();
        let mut world = World {
            chance,
            now: 0,
            nodes,
            checks: Checks::new(log),
            network: Network::default(),
            submitted: BTreeMap::new(),
            chats_asked: Vec::new(),
            chat_jobs: BTreeMap::new(),
            memory_short_one_in: 0,
            load_failures_one_in: 0,
            evidence: Evidence::default(),
            relented: false,
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
        for (when, chat) in world.scenario.chats.clone() {
            world.ask_after(when, chat);
        }
        world
    }

    /// Lets something happen after `delay`.
    pub(crate) fn after(&mut self, delay: Micros, happening: Happening) {
        self.number += 1;
        self.queue.insert((self.now + delay, self.number), happening);
    }

    /// Asks a chat after `delay`; its number.
    pub(crate) fn ask_after(&mut self, delay: Micros, chat: ChatSpec) -> usize {
        let number = self.chats_asked.len();
        let cancelled_after = chat.cancelled_after;
        self.chats_asked.push(chat);
        self.after(delay, Happening::Ask(number));
        if let Some(after) = cancelled_after {
            self.after(delay + after, Happening::HangUp(number));
        }
        number
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
            self.settle_all()?;
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

    /// Gives back what was dropped, and lets those hear who waited for it.
    fn settle_all(&mut self) -> Result<(), Broken> {
        for node in 0..self.nodes.len() {
            self.settle(node)?;
            while let Some((waiter, leased)) = self.next_answer(node) {
                match waiter {
                    Waiter::Result { stream, task } => self.result_leased(node, stream, task, leased)?,
                    Waiter::Load { key, epoch } => self.load_leased(node, key, epoch, leased)?,
                }
                self.settle(node)?;
            }
        }
        Ok(())
    }

    // Disturbances.

    /// Starts a node that does not run.
    pub(crate) fn start(&mut self, node: usize) -> Result<(), Broken> {
        if self.nodes[node].run.is_some() {
            return Ok(());
        }
        let split = self.scenario.split;
        self.nodes[node].start(self.now, split);
        self.checks.started(self.now, node);
        let run = self.nodes[node].runs;
        let phase = self.chance.below(TICK);
        self.after(phase, Happening::Tick { node, run });
        // What was found earlier counts like what is found now.
        for (liar, accusation) in self.nodes[node].disk.evidence.clone() {
            self.checks.remembers(node, liar);
            self.exclude(node, liar)?;
            self.tell_accusations(node, AccusationsEvent::Found(accusation))?;
        }
        (0..self.nodes.len()).try_for_each(|other| self.connect(node, other))
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

    /// Ends every disturbance and starts every node.
    pub(crate) fn calm(&mut self) -> Result<(), Broken> {
        (self.network.loss_one_in, self.load_failures_one_in, self.memory_short_one_in) = (0, 0, 0);
        self.relented = true;
        for node in &mut self.nodes {
            (node.slower, node.disk.full, node.disk.write_takes) = (1, false, 2_000);
        }
        for node in 0..self.nodes.len() {
            if self.nodes[node].run.as_ref().is_some_and(|run| run.draining) {
                self.crash(node, false);
            }
            self.start(node)?;
        }
        self.heal()
    }

    fn disturb(&mut self, disturbance: Disturbance) -> Result<(), Broken> {
        self.checks.disturbed(self.now, &disturbance);
        match disturbance {
            Disturbance::Crash { node, silent } => {
                if self.nodes.iter().filter(|node| node.run.is_some()).count() > 1 {
                    self.crash(node, silent);
                }
            }
            Disturbance::Start { node } => return self.start(node),
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
            Disturbance::Heal => return self.heal(),
            Disturbance::Loss { one_in } => self.network.loss_one_in = one_in,
            Disturbance::LoadFailures { one_in } => self.load_failures_one_in = one_in,
            Disturbance::MemoryShort { one_in } => self.memory_short_one_in = one_in,
            Disturbance::BreakChains { node } => return self.break_chains(node),
            Disturbance::FullDisk { node, full } => self.nodes[node].disk.full = full,
            Disturbance::SlowDisk { node, takes } => self.nodes[node].disk.write_takes = takes,
            Disturbance::Slow { node, times } => self.nodes[node].slower = times,
            Disturbance::Hang { node, takes } => self.hang(node, takes),
            Disturbance::BreakStreams { a, b } => self.break_streams(a, b),
            Disturbance::Drain { node, grace } => return self.drain(node, grace),
            Disturbance::CutOneWay { from, to } => self.cut_one_way(from, to),
            Disturbance::ClockJump { node, by } => {
                if let Some(run) = &mut self.nodes[node].run {
                    run.ahead += by;
                    return self.wake(node);
                }
            }
            Disturbance::ClockSetBack { node, by } => self.nodes[node].set_back += by,
        }
        Ok(())
    }

    // What happens.

    fn happen(&mut self, happening: Happening) -> Result<(), Broken> {
        match happening {
            Happening::Disturb(at) => match self.scenario.disturbances.get(at) {
                Some((_, disturbance)) => self.disturb(disturbance.clone()),
                None => self.start(usize::MAX - at),
            },
            Happening::Submit(at) => self.submit(at),
            Happening::Cancel(at) => self.cancel(at),
            Happening::Tick { node, run } if self.is_current(node, run) => self.tick(node, run),
            Happening::Look { node, run } if self.is_current(node, run) => self.look(node),
            Happening::Gossip { from, to, published } if self.nodes[to].run.is_some() => {
                self.hear(to, from, &published)
            }
            Happening::Message { to, stream, message } => match self.network.stream(stream) {
                Some(open) => self.receive(to, open.other_end(to), stream, open.opener == to, message),
                None => Ok(()),
            },
            Happening::StreamEnded { at, of, stream, protocol: Protocol::Tasks } => {
                self.task_stream_ended(at, of, stream)
            }
            Happening::StreamEnded { at, of, stream, protocol: Protocol::Sessions } => {
                self.session_stream_ended(at, of, stream)
            }
            Happening::OpenSessions { at, run, of, id } if self.is_current(at, run) => self.open_sessions(at, of, id),
            Happening::ToSelf { node, run, message } if self.is_current(node, run) => self.deliver(node, node, message),
            Happening::StageWorks { node, run, chain } if self.is_current(node, run) => self.stage_works(node, chain),
            Happening::Audited { node, run, job, awaited, receipt } if self.is_current(node, run) => {
                self.audited(node, job, awaited, &receipt)
            }
            Happening::LoadedAlone { node, run, model } if self.is_current(node, run) => self.loaded_alone(node, model),
            Happening::Ask(number) => self.ask(number),
            Happening::HangUp(number) => self.hang_up(number),
            Happening::OpenTasks { at, run, of } if self.is_current(at, run) => self.open_tasks(at, of),
            Happening::Probed { at, run, of, stream } if self.is_current(at, run) => self.probed(at, of, stream),
            Happening::Hashed { node, run, stream, digest } if self.is_current(node, run) => {
                self.hashed(node, stream, digest)
            }
            Happening::Sent { lease } => {
                drop(lease);
                Ok(())
            }
            Happening::Says { node, run, stream, bytes, message } if self.is_current(node, run) => {
                self.send(node, stream, bytes, message);
                Ok(())
            }
            Happening::StartedAgain { node, run, stream, task } if self.is_current(node, run) => {
                self.started_again(node, stream, task);
                Ok(())
            }
            Happening::Accused { to, from, accusations } if self.nodes[to].run.is_some() => {
                self.accused(to, from, accusations)
            }
            Happening::EvidenceCame { at, run, from, evidence } if self.is_current(at, run) => {
                self.evidence_came(at, from, evidence)
            }
            Happening::EvidenceChecked { at, run, accusation } if self.is_current(at, run) => {
                self.evidence_checked(at, accusation)
            }
            Happening::FoundDead { a, b, connection } => self.found_dead(a, b, connection),
            Happening::Up { at, of, connection } if self.network.connection(at, of) == Some(connection) => {
                self.up(at, of)
            }
            Happening::Down { at, of, silent } => self.lose(at, of, silent),
            Happening::Stored { node, run, term } if self.is_current(node, run) => self.stored(node, term),
            Happening::Load { node, run, key, epoch, step } if self.is_current(node, run) => {
                self.load_step(node, key, epoch, step)
            }
            Happening::Computed { node, run, work } if self.is_current(node, run) => self.computed(node, work),
            Happening::Checked { node, run, attempt, takes } if self.is_current(node, run) => {
                self.checked(node, attempt, takes)
            }
            Happening::GiveWay { node, run } if self.is_current(node, run) => {
                self.give_way(node);
                Ok(())
            }
            Happening::CutOff { node, run } if self.is_current(node, run) => self.cut_off_jobs(node),
            Happening::Exit { node, run } if self.is_current(node, run) => {
                self.crash(node, false);
                Ok(())
            }
            Happening::Wake { node, run } if self.is_current(node, run) => self.wake(node),
            // What a run that is over began, or a connection that is gone carried.
            _ => Ok(()),
        }
    }

    fn receive(
        &mut self,
        to: usize,
        from: usize,
        stream: StreamNumber,
        opened: bool,
        message: Message,
    ) -> Result<(), Broken> {
        match message {
            Message::Task(message) if opened => self.worker_says(to, from, stream, message),
            Message::Task(message) => self.coordinator_says(to, stream, message),
            Message::Session(message) => self.session_says(to, from, stream, message),
        }
    }
}
