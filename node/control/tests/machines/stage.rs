//! A stage of a chain against neighbours, coordinators and a driver that do what the bytes say: no sequence of events may panic,
//! a first stage keeps its batch's limits, a broken or abandoned chain keeps nothing.

use std::collections::VecDeque;
use std::time::Duration;

use pangea_control::Time;
use pangea_control::session::batch::{BatchLimits, CacheBytes};
use pangea_control::session::stage::{Action, Event, Incoming, Opening, StageProtocol, StageSettings};
use pangea_control::session::{
    ChainId, Drafter, Drafts, FrameRows, SessionId, StageAt, Start, StartSource, SteppedSequence,
};
use pangea_units::{Digest, Error, ErrorKind};

use crate::bytes::Bytes;
use crate::peers::peer;

/// Peers of a run: stages, coordinators, others.
const PEERS: u8 = 6;

const VOCABULARY: usize = 100;
const CONTEXT: usize = 64;
const LIMITS: BatchLimits = BatchLimits {
    running: 4,
    waiting: 2,
    wait: Duration::from_secs(30),
    prompt_rows: 16,
    prompt_rows_beside: 8,
    draft: 2,
    cache: CacheBytes { page_tokens: 4, page: 64, windowed_page: 0, window: usize::MAX, kept_behind: 0, states: 0 },
    bytes: 40 * 64,
    is_recurrent: false,
    kept: 2,
    groups: 2,
};

/// Answers of one request at most: what the first stage may count with.
const CHOICES: u16 = 3;

/// Events that one event of a run leads to at most: a driver that fails again and again is not the stage's loop.
const FOLLOWING_MAX: usize = 64;

/// Drafts the same two tokens always.
#[derive(Clone, Debug)]
struct Two;

impl Drafter for Two {
    fn propose(&mut self, _: &[u32], limit: usize) -> Vec<u32> {
        [5, 6].into_iter().take(limit).collect()
    }

    fn observe(&mut self, _: usize, _: usize, _: f64) {}
}

struct Run<'a> {
    bytes: Bytes<'a>,
    stage: StageProtocol<Two>,
    stages: Vec<StageAt>,
    index: usize,
    now: Time,
    is_broken: bool,
}

/// Plays a run.
pub(crate) fn run(bytes: &[u8]) {
    let mut bytes = Bytes::new(bytes);
    let count = 1 + bytes.below(3);
    let index = bytes.below(count);
    let stages: Vec<StageAt> =
        (0..count as u32).map(|at| StageAt { peer: peer(at as u8), layers: at..at + 1 }).collect();
    let settings = StageSettings {
        chain: ChainId { model: Digest([7; 32]), epoch: 3 },
        stages: stages.clone(),
        index,
        numerics: 1,
        vocabulary: VOCABULARY,
        context: CONTEXT,
        limits: (index == 0).then_some(LIMITS),
        drafts: if bytes.is_rare(128) { Drafts::Off } else { Drafts::Eager },
    };
    let stage = StageProtocol::new(settings, Two);
    let mut run = Run { bytes, stage, stages, index, now: Time::from_secs(1), is_broken: false };
    while !run.bytes.is_empty() {
        run.event();
        run.check();
    }
    run.end();
}

fn session(number: usize) -> SessionId {
    SessionId([number as u8; 16])
}

fn error() -> Error {
    Error::new(ErrorKind::Internal, "the run says so")
}

impl Run<'_> {
    fn handle(&mut self, event: Event<'_>) {
        let mut actions = Vec::new();
        self.stage.handle(event, self.now, &mut actions);
        let mut actions = VecDeque::from(actions);
        for _ in 0..FOLLOWING_MAX {
            let Some(action) = actions.pop_front() else { return };
            let mut following = Vec::new();
            self.perform(action, &mut following);
            actions.extend(following);
        }
    }

    fn tell(&mut self, event: Event<'_>, following: &mut Vec<Action>) {
        self.stage.handle(event, self.now, following);
    }

    /// Does what the stage asks for, or fails to.
    fn perform(&mut self, action: Action, following: &mut Vec<Action>) {
        match action {
            Action::Join { .. } if self.bytes.is_rare(30) => self.tell(Event::CannotJoin(error()), following),
            Action::Join { .. } => self.tell(Event::Joined, following),
            Action::Compute { rows, tokens } => self.compute(rows, tokens, following),
            Action::Sign { session, coordinator, .. } if self.bytes.is_rare(30) => {
                self.tell(Event::NotSigned { session, coordinator, error: &error() }, following);
            }
            Action::Frame { to, .. } | Action::Report { to: Some((to, _)), .. } | Action::ForwardOpen(to)
                if self.bytes.is_rare(6) =>
            {
                self.tell(Event::NotSent { to, why: "the run says so" }, following);
            }
            Action::Break { .. } => self.is_broken = true,
            _ => {}
        }
    }

    fn compute(&mut self, rows: Vec<FrameRows>, tokens: Vec<u32>, following: &mut Vec<Action>) {
        let named: usize = rows.iter().map(|rows| rows.rows as usize).sum();
        assert!(rows.iter().all(|rows| rows.rows > 0), "rows without a row");
        if self.index == 0 {
            assert_eq!(tokens.len(), named, "tokens of other rows");
            assert!(rows.len() <= LIMITS.running * usize::from(CHOICES), "{} sequences at once", rows.len());
            if self.bytes.is_rare(20) {
                self.tell(Event::Exhausted(rows), following);
                return;
            }
        }
        let (mut passed, mut failed, mut advances) = (Vec::new(), Vec::new(), Vec::new());
        for rows in rows {
            if self.bytes.is_rare(10) {
                failed.push((rows.sequence, error()));
                continue;
            }
            if rows.choose && self.index + 1 == self.stages.len() {
                let accepted = self.bytes.below(rows.draft.len() + 1);
                let mut chosen: Vec<u32> = rows.draft[..accepted].to_vec();
                chosen.push(self.bytes.below(VOCABULARY) as u32);
                let computed = rows.start + rows.rows - (rows.draft.len() - accepted) as u32;
                let ended = self.bytes.is_rare(40);
                advances.push(SteppedSequence { sequence: rows.sequence, computed, chosen, ended, failed: false });
            }
            passed.push(rows);
        }
        self.tell(Event::Computed { rows: passed, advances, failed }, following);
    }

    /// The next event: what honest peers send, what others may, what happens to the node.
    fn event(&mut self) {
        match self.bytes.below(13) {
            0..=2 => self.open(),
            3 => self.handle(Event::Ready),
            4 => {
                let session = session(self.bytes.below(8));
                let commit = self.bytes.is_rare(128).then(|| self.bytes.number() as u32);
                self.handle(Event::Close { session, commit });
            }
            5 => {
                let (session, positions) = (session(self.bytes.below(8)), self.bytes.number() as u32);
                self.handle(Event::Commit { session, positions });
            }
            6 | 7 => self.frame(),
            8 => self.stepped(),
            9 => {
                let session = session(self.bytes.below(8));
                self.handle(Event::Failed(session));
            }
            10 if self.bytes.is_rare(60) => {
                let peer = peer(self.bytes.below(PEERS.into()) as u8);
                self.handle(Event::PeerGone { peer, why: "the run says so" });
            }
            11 if self.bytes.is_rare(20) => self.handle(Event::CannotGoOn { why: "the run says so" }),
            12 if self.bytes.is_rare(20) => self.handle(Event::End { why: "the run says so" }),
            _ => {
                self.now += Duration::from_millis(u64::from(self.bytes.byte()) * 50);
                self.handle(Event::Ready);
            }
        }
    }

    fn open(&mut self) {
        let number = self.bytes.below(8);
        let coordinator = peer(3 + self.bytes.below(2) as u8);
        let wild = self.bytes.is_rare(40);
        let len = 1 + self.bytes.below(20);
        let tokens: Vec<u32> = (0..len).map(|_| self.bytes.below(VOCABULARY) as u32).collect();
        let stages = self.stages.clone();
        let opening = Opening {
            session: session(number),
            coordinator,
            stages: if wild && self.bytes.is_rare(60) { &stages[..0] } else { &stages },
            numerics: if wild { self.bytes.number() as u32 } else { 1 },
            choices: 1 + self.bytes.below(CHOICES.into()) as u16,
            sequence: (self.index > 0).then(|| if wild { self.bytes.number() } else { 3 * number as u64 }),
            prompt_len: if wild { self.bytes.number() as usize } else { len },
            max_new_tokens: if wild { self.bytes.number() as usize } else { 8 },
            prompt_logprobs: self.bytes.is_rare(40),
            tokens: &tokens,
            bad_sampling: None,
        };
        self.handle(Event::Open(opening));
    }

    /// From the previous stage: mostly the frame that follows, sometimes any other.
    fn frame(&mut self) {
        if self.index == 0 {
            return;
        }
        let wild = self.bytes.is_rare(20);
        let rows: Vec<FrameRows> = (0..self.bytes.below(4))
            .map(|_| FrameRows {
                sequence: self.bytes.below(24) as u64,
                start: if wild { self.bytes.number() as u32 } else { self.bytes.below(CONTEXT / 2) as u32 },
                rows: if wild { self.bytes.number() as u32 } else { 1 + self.bytes.below(3) as u32 },
                choose: self.bytes.is_rare(128),
                all_logits: false,
                draft: Vec::new(),
            })
            .collect();
        let named = rows.iter().map(|rows| rows.rows as usize).sum();
        let start = |bytes: &mut Bytes<'_>| {
            let (from, tokens) = (bytes.number(), bytes.number() as u32);
            let source = match bytes.below(3) {
                0 => StartSource::Empty,
                1 => StartSource::Fork { from, tokens },
                _ => StartSource::Take { from, tokens },
            };
            Start { sequence: bytes.number(), session: session(bytes.below(8)), source }
        };
        let number = if wild { self.bytes.number() } else { self.stage.frame_number() };
        let drops = (0..self.bytes.below(3)).map(|_| self.bytes.number()).collect();
        let starts = (0..self.bytes.below(3)).map(|_| start(&mut self.bytes)).collect();
        self.handle(Event::Frame(Incoming { number, drops, starts, rows, payload_rows: Some(named) }));
    }

    /// From the last stage, which may say anything.
    fn stepped(&mut self) {
        let wild = self.bytes.is_rare(60);
        let advances = (0..self.bytes.below(4)).map(|_| SteppedSequence {
            sequence: if wild { self.bytes.number() } else { self.bytes.below(24) as u64 },
            computed: if wild { self.bytes.number() as u32 } else { self.bytes.below(CONTEXT) as u32 },
            chosen: (0..self.bytes.below(4)).map(|_| self.bytes.number() as u32).collect(),
            ended: self.bytes.is_rare(40),
            failed: self.bytes.is_rare(20),
        });
        let advances = advances.collect();
        let number = if wild { self.bytes.number() } else { self.stage.frame_number().wrapping_sub(1) };
        self.handle(Event::Stepped { number, advances });
    }

    fn check(&self) {
        let (running, waiting) = self.stage.load();
        // One that finds no memory waits again, in the place that it had.
        let most = LIMITS.running + LIMITS.waiting + usize::from(CHOICES);
        assert!(running + waiting <= most, "{running} run, {waiting} wait");
        if self.index == 0 && !self.is_broken {
            // Ended ones, too, until they are closed or given up.
            assert!(self.stage.sessions() <= 8 * usize::from(CHOICES), "{} sessions", self.stage.sessions());
        }
        assert!(!self.is_broken || self.stage.sessions() == 0, "a broken chain has {} sessions", self.stage.sessions());
    }

    /// Everyone else is gone, and time passes: nothing is left.
    fn end(mut self) {
        for number in 0..PEERS {
            if number != self.index as u8 {
                self.handle(Event::PeerGone { peer: peer(number), why: "everyone is gone" });
            }
        }
        for _ in 0..200 {
            self.now += Duration::from_secs(1);
            self.handle(Event::Ready);
        }
        self.check();
        if self.stages.len() > 1 || self.index == 0 {
            assert_eq!(self.stage.sessions(), 0, "sessions of coordinators that are gone");
        }
    }
}
