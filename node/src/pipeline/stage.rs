//! The thread of one stage: it owns the layers, their compute threads and every cache of a chain's sequences, computes the
//! frames that come in, in order, and hands them on. Which rows a frame has is the front's, which tokens follow the tail's;
//! messages go out through the host.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use libp2p::PeerId;
use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::commit::merkle::token_leaves;
use pangea_compute::commit::{Claim, Leaf, SamplingTerms, merkle_root};
use pangea_compute::model::{Cache, Input, Logits, Model, NUMERICS, Output, PageBudget, Step};
use pangea_compute::{Digest, ErrorKind as ComputeErrorKind, Pool};

use super::front::{Change, FailedSession, Front, Planned};
use super::history::{History, Rows};
use super::host::{Pipeline, StageLoad, StageSetup};
use super::payload::Payload;
use super::tail::Tail;
use super::wire::{
    ChainId, Frame, FrameRows, Message, Open, SessionId, StageAt, Start, StartSource, Stepped, SteppedSequence, Tokens,
};
use crate::compute_error;
use crate::config::host::cores;
use crate::devices::Lease;
use crate::serve::EngineMetrics;
use crate::trust::CommitChain;
use crate::worker::fault::{Fault, twist_row, twist_token};

/// When tokens are drafted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drafts {
    /// Never.
    Off,
    /// While it pays, as measured.
    Paying,
    /// As if a pass took the same time whatever its rows: as many as can be, and the same in every run.
    Eager,
}

/// While somebody waits for a place, how often is looked whether they have waited too long.
const WAITING_TICK: Duration = Duration::from_secs(1);

/// A frame that comes within this is looked for without sleeping.
const WATCHED: Duration = Duration::from_millis(6);

/// A lying stage lies in one frame of so many.
const LIE_EVERY: u64 = 8;

/// A stage that is to hang does so after so many frames.
const HANGS_AFTER: u64 = 12;

/// One that is to be full is so at one frame of so many.
const FULL_EVERY: u64 = 40;

/// What a stage is told.
#[expect(clippy::large_enum_variant, reason = "all but messages are rare")]
pub(super) enum StageEvent {
    /// Somebody sent this.
    Message { from: PeerId, message: Message, payload: Payload },
    /// A peer cannot be reached any more.
    PeerGone { peer: PeerId, why: String },
    /// It is not needed any more.
    End,
}

/// A session that this stage takes part in.
struct Joined {
    sequence: u64,
    coordinator: PeerId,
    /// Digest of the rules by which its tokens are chosen.
    terms: Digest,
    /// The first position whose following token is chosen here and now.
    chosen_from: u64,
    /// Its rows, once the sequence itself is gone.
    rows: Option<Rows>,
}

/// Everything that the thread owns.
pub(super) struct Stage {
    chain: ChainId,
    stages: Vec<StageAt>,
    index: usize,
    local: PeerId,
    model: Arc<Model>,
    pool: Pool,
    budget: PageBudget,
    _memory: Arc<[Lease; 2]>,
    metrics: Arc<EngineMetrics>,
    pipeline: Pipeline,
    histories: HashMap<u64, History>,
    sessions: HashMap<SessionId, Joined>,
    /// The session of every sequence that is open.
    sequences: HashMap<u64, SessionId>,
    front: Option<Front>,
    tail: Option<Tail>,
    /// Of the next frame.
    number: u64,
    /// Changes that the next stage has not been told of.
    untold: Vec<Change>,
    /// Sessions to be signed for once the frame that computes them is done.
    closing: Vec<(SessionId, u32)>,
    /// Why nothing goes on here any more.
    broken: Option<String>,
    /// How long the last event was waited for.
    waited: Duration,
    /// Whether there are more cores than compute threads.
    has_spare_core: bool,
}

/// What a pass brought.
#[derive(Default)]
struct Passed {
    rows: Vec<FrameRows>,
    /// `[rows, width]` of a stage without the head.
    activations: Vec<f32>,
    advances: Vec<SteppedSequence>,
    /// For the coordinators, once the first stage has been told.
    tokens: Vec<(PeerId, Tokens)>,
}

impl Stage {
    pub(super) fn new(setup: StageSetup, pipeline: Pipeline) -> Stage {
        let has_spare_core = cores() > setup.pool.threads();
        Stage {
            chain: setup.chain,
            index: setup.index,
            local: pipeline.local(),
            front: setup.limits.map(|limits| Front::new(limits, setup.drafts)),
            tail: setup.text.map(Tail::new),
            stages: setup.stages,
            model: setup.model,
            pool: setup.pool,
            budget: setup.budget,
            _memory: setup.memory,
            metrics: setup.metrics,
            pipeline,
            histories: HashMap::new(),
            sessions: HashMap::new(),
            sequences: HashMap::new(),
            number: 0,
            untold: Vec::new(),
            closing: Vec::new(),
            broken: None,
            waited: Duration::MAX,
            has_spare_core,
        }
    }

    /// Works until it is told to end.
    pub(super) fn run(mut self, inbox: Receiver<StageEvent>) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.work(&inbox))) {
            // Nobody waits for what will not come: sessions go on elsewhere.
            self.break_off("its stage panicked".to_owned());
            resume_unwind(panic);
        }
    }

    fn work(&mut self, inbox: &Receiver<StageEvent>) {
        loop {
            if !self.step() {
                let event = match self.next(inbox) {
                    Ok(event) => event,
                    Err(RecvTimeoutError::Timeout) => continue,
                    Err(RecvTimeoutError::Disconnected) => return,
                };
                if !self.handle(event) {
                    return;
                }
            }
            while let Ok(event) = inbox.try_recv() {
                if !self.handle(event) {
                    return;
                }
            }
            self.tell_load();
        }
    }

    /// Waits for an event; not for long while somebody waits for a place.
    fn next(&mut self, inbox: &Receiver<StageEvent>) -> std::result::Result<StageEvent, RecvTimeoutError> {
        let began = Instant::now();
        let event =
            self.watch(inbox, began).unwrap_or_else(|| match self.front.as_ref().is_some_and(|f| !f.is_idle()) {
                true => inbox.recv_timeout(WAITING_TICK),
                false => inbox.recv().map_err(RecvTimeoutError::from),
            });
        self.waited = began.elapsed();
        event
    }

    /// Looks for the next frame without sleeping, where it is expected soon: a core that sleeps takes longer to wake up than a
    /// frame takes to travel. Only for a session that has the chain to itself, of which every stage but one waits at any
    /// time, and where no compute thread needs the core.
    fn watch(
        &self,
        inbox: &Receiver<StageEvent>,
        began: Instant,
    ) -> Option<std::result::Result<StageEvent, RecvTimeoutError>> {
        let expected = self.stages.len() > 1 && self.sessions.len() == 1 && self.waited < WATCHED;
        if !expected || !self.has_spare_core {
            return None;
        }
        while began.elapsed() < WATCHED {
            match inbox.try_recv() {
                Ok(event) => return Some(Ok(event)),
                Err(TryRecvError::Disconnected) => return Some(Err(RecvTimeoutError::Disconnected)),
                Err(TryRecvError::Empty) => std::thread::yield_now(),
            }
        }
        None
    }

    fn tell_load(&self) {
        let (running, waiting) = self.front.as_ref().map_or((0, 0), Front::load);
        self.pipeline.set_load(self.chain, StageLoad { running, waiting, sessions: self.sessions.len() });
    }

    fn is_last(&self) -> bool {
        self.index + 1 == self.stages.len()
    }

    /// The peer of another stage.
    fn peer(&self, index: usize) -> PeerId {
        self.stages[index].peer
    }

    fn send(&self, to: PeerId, message: Message, payload: Payload) {
        if let Err(error) = self.pipeline.send(to, message, payload) {
            // Whoever cannot be reached is told of as gone, and that is acted on.
            tracing::debug!(event = "session_message_lost", %to, %error);
        }
    }

    /// Sends what the next stage must have: a chain in which that is lost does not go on.
    fn pass_on(&mut self, to: PeerId, message: Message, payload: Payload) {
        if let Err(error) = self.pipeline.send(to, message, payload) {
            self.break_off(format!("stage {to} cannot be sent to: {error}"));
        }
    }

    // What happens.

    /// Whether to go on.
    fn handle(&mut self, event: StageEvent) -> bool {
        match event {
            StageEvent::End => return false,
            StageEvent::PeerGone { peer, why } => self.peer_gone(peer, &why),
            StageEvent::Message { from, message, payload } => self.message(from, message, payload),
        }
        true
    }

    fn message(&mut self, from: PeerId, message: Message, payload: Payload) {
        let before = self.index.checked_sub(1).map(|index| self.peer(index));
        match message {
            Message::Open(open) if self.index == 0 => self.open(from, *open),
            Message::Open(open) if before == Some(from) => {
                self.join(*open);
            }
            Message::Close { session, commit } if self.index == 0 => {
                if self.sessions.get(&session).is_some_and(|joined| joined.coordinator == from) {
                    self.close(session, commit);
                }
            }
            Message::Close { session, .. } if before == Some(from) => self.leave(session),
            Message::Commit { session, positions } if before == Some(from) => {
                self.commit(session, positions, Some(payload));
            }
            Message::Frame(frame) if before == Some(from) => self.frame(frame, &payload),
            Message::Stepped(stepped) if from == self.peer(self.stages.len() - 1) => {
                self.stepped(stepped.number, stepped.advances);
            }
            Message::Failed { session, .. } if self.stages.iter().any(|stage| stage.peer == from) => {
                if let Some(front) = &mut self.front {
                    let changes = front.failed(&session);
                    self.change(changes);
                    self.forget(session);
                }
            }
            other => {
                tracing::debug!(event = "session_message_ignored", %from, message = ?std::mem::discriminant(&other))
            }
        }
    }

    /// A request, on the first stage.
    fn open(&mut self, from: PeerId, mut open: Open) {
        let refuse = |kind, message: String, retry: Option<Duration>| Message::Refused {
            session: open.session,
            kind,
            message,
            retry_after_ms: retry.map(|retry| u32::try_from(retry.as_millis()).unwrap_or(u32::MAX)),
        };
        if let Some(why) = self.unfit(from, &open) {
            return self.send(from, refuse(why.kind(), why.message().to_owned(), None), Payload::empty());
        }
        let Some(front) = &mut self.front else { return };
        let first = match front.open(&open) {
            Ok(first) => first,
            Err(retry) => {
                self.metrics.refused.inc();
                let why = "the queue of this model is full; try again later".to_owned();
                return self.send(from, refuse(ErrorKind::Overloaded, why, Some(retry)), Payload::empty());
            }
        };
        open.sequence = Some(first);
        let session = open.session;
        if self.join(open) {
            self.send(from, Message::Accepted { session }, Payload::empty());
        }
    }

    /// What is wrong with a request, if anything.
    fn unfit(&self, from: PeerId, open: &Open) -> Option<Error> {
        let wrong = |message: &str| Some(Error::new(ErrorKind::InvalidInput, message));
        if let Some(why) = &self.broken {
            return Some(Error::new(ErrorKind::Unavailable, why.clone()));
        }
        if open.coordinator != from || open.stages != self.stages || open.numerics != NUMERICS {
            return wrong("the request is for stages other than these");
        }
        let config = self.model.config();
        if open.tokens.is_empty() || open.tokens.iter().any(|&token| token as usize >= config.vocabulary) {
            return wrong("the request has no tokens, or some that the model does not know");
        }
        let (known, prompt) = (open.tokens.len(), open.prompt_len as usize);
        if prompt == 0 || prompt > known || known >= config.context || known - prompt > open.most as usize {
            return wrong("the request's tokens do not fit together, or not the model's context");
        }
        if self.sessions.contains_key(&open.session) {
            return wrong("a session of this number is open already");
        }
        open.sampling.check(config.vocabulary).err().map(compute_error)
    }

    /// A request that the first stage has taken in. Whether it can be answered.
    fn join(&mut self, open: Open) -> bool {
        let Some(first) = open.sequence else { return false };
        if let Some(tail) = &mut self.tail
            && let Err(error) = tail.open(&open)
        {
            for choice in 0..open.choices {
                self.fail(open.session.choice(choice), open.coordinator, &error);
            }
            return false;
        }
        for choice in 0..open.choices {
            let (session, sequence) = (open.session.choice(choice), first + u64::from(choice));
            let sampling = open.sampling.of_choice(choice);
            let terms =
                SamplingTerms { prompt_len: u64::from(open.prompt_len), sampling: &sampling, format: &open.format };
            let joined = Joined {
                sequence,
                coordinator: open.coordinator,
                terms: terms.digest(),
                chosen_from: open.tokens.len() as u64 - 1,
                rows: None,
            };
            self.sessions.insert(session, joined);
            self.sequences.insert(sequence, session);
        }
        if !self.is_last() {
            self.pass_on(self.peer(self.index + 1), Message::Open(Box::new(open)), Payload::empty());
        }
        self.broken.is_none()
    }

    /// Tells the coordinator and the first stage that a session cannot go on, and forgets it.
    fn fail(&mut self, session: SessionId, coordinator: PeerId, error: &Error) {
        let failed = || Message::Failed { session, kind: error.kind(), message: error.message().to_owned() };
        self.send(coordinator, failed(), Payload::empty());
        if let Some(front) = &mut self.front {
            let changes = front.failed(&session);
            self.change(changes);
        } else if coordinator != self.peer(0) {
            self.send(self.peer(0), failed(), Payload::empty());
        } else {
            // One message would be taken for the coordinator's alone.
            self.pipeline.send_to_stage(self.peer(0), self.chain, failed());
        }
        self.forget(session);
    }

    fn close(&mut self, session: SessionId, commit: Option<u32>) {
        // The coordinator may hear of the last tokens before this stage does.
        if let Some(positions) = commit
            && self.front.as_ref().is_some_and(|front| front.is_under_way(&session))
        {
            self.closing.push((session, positions));
            return;
        }
        if let Some(front) = &mut self.front {
            let changes = front.stop(&session);
            self.change(changes);
        }
        match commit {
            Some(positions) => self.commit(session, positions, None),
            None => self.leave(session),
        }
    }

    /// Nobody wants a session any more.
    fn leave(&mut self, session: SessionId) {
        if self.sessions.contains_key(&session) && !self.is_last() {
            self.send(self.peer(self.index + 1), Message::Close { session, commit: None }, Payload::empty());
        }
        self.forget(session);
    }

    /// Signs what this stage did in a session that is complete, behind what the stages before it signed, and hands that on.
    fn commit(&mut self, session: SessionId, positions: u32, chain: Option<Payload>) {
        let passed = self.signed(session, positions, chain);
        if let Err(error) = &passed {
            tracing::warn!(event = "commitment_withheld", %session, %error, "A session is not signed for: {error}");
        }
        let Some(joined) = self.forget(session) else { return };
        let next = if self.is_last() { joined.coordinator } else { self.peer(self.index + 1) };
        match passed {
            Ok(chain) => {
                let payload = Payload::from_bytes(chain.encode());
                self.send(next, Message::Commit { session, positions }, payload);
            }
            // The stages behind forget it, and the coordinator waits no longer.
            Err(_) if self.is_last() => {}
            Err(_) => self.send(next, Message::Close { session, commit: None }, Payload::empty()),
        }
    }

    fn signed(&self, session: SessionId, positions: u32, chain: Option<Payload>) -> Result<CommitChain> {
        let missing = || Error::new(ErrorKind::NotFound, "what it did in this session is not known any more");
        let joined = self.sessions.get(&session).ok_or_else(missing)?;
        let held = positions as usize;
        let rows = match &joined.rows {
            Some(rows) => rows,
            None => &self.histories.get(&joined.sequence).ok_or_else(missing)?.rows,
        };
        let root = |leaves: &[Leaf]| leaves.get(..held).map(merkle_root).ok_or_else(missing);
        let predecessor = match &self.front {
            Some(front) => {
                let tokens = front.tokens(&session).and_then(|tokens| tokens.get(..held)).ok_or_else(missing)?;
                merkle_root(&token_leaves(tokens))
            }
            None => root(&rows.received)?,
        };
        let output = match &self.tail {
            Some(tail) => {
                merkle_root(&tail.get(&session).and_then(|chooser| chooser.leaves(held)).ok_or_else(missing)?)
            }
            None => root(&rows.given)?,
        };
        let claim = Claim {
            session: session.0,
            epoch: self.chain.epoch,
            model: self.chain.model,
            numerics: NUMERICS,
            layers: self.stages[self.index].layers.clone(),
            positions: u64::from(positions),
            chosen_from: joined.chosen_from,
            predecessor,
            sampling: joined.terms,
            output,
        };
        let mut chain = match chain {
            Some(bytes) => CommitChain::decode(bytes.as_bytes())?,
            None => CommitChain::new(),
        };
        chain.pass(claim, self.pipeline.keypair())?;
        Ok(chain)
    }

    fn forget(&mut self, session: SessionId) -> Option<Joined> {
        if let Some(tail) = &mut self.tail {
            tail.close(&session);
        }
        if let Some(front) = &mut self.front {
            front.forget(&session);
        }
        let joined = self.sessions.remove(&session)?;
        self.sequences.remove(&joined.sequence);
        Some(joined)
    }

    fn peer_gone(&mut self, peer: PeerId, why: &str) {
        if self.stages.iter().any(|stage| stage.peer == peer) && peer != self.local {
            self.break_off(format!("stage {peer} is gone ({why})"));
            return;
        }
        if let Some(front) = &self.front {
            for session in front.sessions_of(&peer) {
                self.metrics.cancelled.inc();
                self.close(session, None);
            }
        }
    }

    /// Without one of its stages a chain is of no use; whoever coordinates finds another.
    fn break_off(&mut self, why: String) {
        if self.broken.is_some() {
            return;
        }
        let error = Error::new(ErrorKind::Unavailable, why.clone());
        // Behind the first stage, too: that one may not know, and has nothing to wait for any more.
        let joined = || self.sessions.iter().map(|(session, joined)| (*session, joined.coordinator)).collect();
        let open = self.front.as_ref().map_or_else(joined, Front::open_sessions);
        for (session, coordinator) in open {
            let failed = Message::Failed { session, kind: error.kind(), message: error.message().to_owned() };
            self.send(coordinator, failed, Payload::empty());
        }
        for (session, _) in self.front.as_ref().map(Front::open_sessions).unwrap_or_default() {
            if let Some(front) = &mut self.front {
                front.failed(&session);
            }
        }
        self.histories.clear();
        self.sessions.clear();
        self.sequences.clear();
        if let Some(tail) = &mut self.tail {
            tail.clear();
        }
        self.untold.clear();
        self.closing.clear();
        self.broken = Some(why.clone());
        self.pipeline.broken(self.chain, &why);
    }

    // Frames.

    /// Plans and computes the next frame, on the first stage. Whether there was one.
    fn step(&mut self) -> bool {
        let Some(front) = self.front.as_mut().filter(|front| self.broken.is_none() && front.has_room()) else {
            return false;
        };
        let mut planned = front.plan(self.number);
        loop {
            let Planned { changes, rows, tokens, failed } = planned;
            self.change(changes);
            for FailedSession { session, coordinator, error } in failed {
                let failed = Message::Failed { session, kind: error.kind(), message: error.message().to_owned() };
                self.send(coordinator, failed, Payload::empty());
                self.leave(session);
            }
            if rows.is_empty() {
                return false;
            }
            match self.pass(&rows, Input::Tokens(&tokens), true) {
                Ok(passed) => {
                    if let Some(front) = &mut self.front {
                        front.passed(&passed.rows);
                    }
                    let number = self.number;
                    self.number += 1;
                    self.hand_on(number, passed);
                    return true;
                }
                Err(error) => {
                    tracing::debug!(event = "engine_memory", %error, "sessions give way");
                    let Some(front) = &mut self.front else { return false };
                    planned = front.exhausted(&rows);
                }
            }
        }
    }

    /// A frame of the stage before.
    fn frame(&mut self, frame: Frame, payload: &Payload) {
        if self.broken.is_some() {
            return;
        }
        let width = self.model.config().hidden_size;
        let known = frame.rows.iter().all(|rows| self.fits(rows)) || frame.rows.is_empty();
        if payload.as_f32().len() != frame.rows() * width || frame.number != self.number || !known {
            return self.break_off(format!("stage {} sent a frame that does not fit", frame.front));
        }
        self.number += 1;
        let changes = frame.drops.into_iter().map(Change::Drop).chain(frame.starts.into_iter().map(Change::Start));
        self.change(changes.collect());
        if frame.rows.is_empty() {
            return self.hand_on(frame.number, Passed::default());
        }
        match self.pass(&frame.rows, Input::Activations(payload.as_f32()), false) {
            Ok(passed) => self.hand_on(frame.number, passed),
            Err(error) => self.break_off(error.message().to_owned()),
        }
    }

    /// Whether rows could be computed: hostile numbers are found before they are used.
    fn fits(&self, rows: &FrameRows) -> bool {
        let context = self.model.config().context;
        let end = (rows.start as usize).saturating_add(rows.rows as usize);
        rows.rows > 0 && end <= context && rows.draft.len() < rows.rows as usize
    }

    /// What was computed goes to the next stage, or the news of it to the first and the tokens to the coordinators.
    fn hand_on(&mut self, number: u64, passed: Passed) {
        self.metrics.steps.inc();
        let panics = number > HANGS_AFTER && self.pipeline.fault_once(Fault::PanicStage);
        assert!(!panics, "as the fault of this node says");
        if self.is_last() {
            return self.tell(number, passed);
        }
        let (mut drops, mut starts) = (Vec::new(), Vec::new());
        for change in std::mem::take(&mut self.untold) {
            match change {
                Change::Drop(sequence) => drops.push(sequence),
                Change::Start(start) => starts.push(start),
            }
        }
        let misfit = number > HANGS_AFTER && self.pipeline.fault_once(Fault::Misfit);
        let frame = Frame {
            epoch: self.chain.epoch,
            model: self.chain.model,
            number: number + u64::from(misfit),
            front: self.peer(0),
            drops,
            starts,
            rows: passed.rows,
        };
        self.pass_on(self.peer(self.index + 1), Message::Frame(frame), Payload::from_f32(passed.activations));
    }

    /// On the last stage.
    fn tell(&mut self, number: u64, passed: Passed) {
        let mut news: Vec<(PeerId, Vec<(Message, Payload)>)> = Vec::new();
        let mut add = |to: PeerId, message: Message| match news.iter_mut().find(|(peer, _)| *peer == to) {
            Some((_, messages)) => messages.push((message, Payload::empty())),
            None => news.push((to, vec![(message, Payload::empty())])),
        };
        if self.front.is_some() {
            self.stepped(number, passed.advances);
        } else {
            // The first stage waits for this to begin the next token.
            let (epoch, model) = (self.chain.epoch, self.chain.model);
            add(self.peer(0), Message::Stepped(Stepped { epoch, model, number, advances: passed.advances }));
        }
        for (coordinator, tokens) in passed.tokens {
            add(coordinator, Message::Tokens(tokens));
        }
        for (to, messages) in news {
            if let Err(error) = self.pipeline.send_all(to, messages) {
                tracing::debug!(event = "session_message_lost", %to, %error);
                // The first stage waits for what is in there.
                if to == self.peer(0) {
                    self.break_off(format!("stage {to} cannot be told of a frame: {error}"));
                }
            }
        }
    }

    /// A frame is done, on the first stage.
    fn stepped(&mut self, number: u64, advances: Vec<SteppedSequence>) {
        if let Some(front) = &mut self.front {
            let changes = front.stepped(number, advances);
            self.change(changes);
        }
        for (session, positions) in std::mem::take(&mut self.closing) {
            self.close(session, Some(positions));
        }
    }

    /// Does what the front decided, here and, with the next frame, on every other stage.
    fn change(&mut self, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::Drop(sequence) => self.drop_history(sequence),
                Change::Start(start) => self.start(start),
            }
            if self.is_last() {
                continue;
            }
            // A frame's drops come before its starts: a drop that follows a start needs a frame of its own before it.
            let follows_start = matches!(self.untold.last(), Some(Change::Start(_)));
            if matches!(change, Change::Drop(_)) && follows_start && self.front.is_some() {
                let number = self.number;
                self.number += 1;
                self.hand_on(number, Passed::default());
            }
            self.untold.push(change);
        }
    }

    fn drop_history(&mut self, sequence: u64) {
        let Some(history) = self.histories.remove(&sequence) else { return };
        if self.sequences.contains_key(&sequence) && self.front.is_some() {
            self.metrics.preempted.inc();
        }
        self.keep_rows(sequence, history.rows);
    }

    /// A session that is to be signed for outlives its sequence.
    fn keep_rows(&mut self, sequence: u64, rows: Rows) {
        if let Some(joined) = self.sequences.get(&sequence).and_then(|session| self.sessions.get_mut(session)) {
            joined.rows = Some(rows);
        }
    }

    fn start(&mut self, start: Start) {
        let history = match start.source {
            StartSource::Empty => None,
            StartSource::Fork { from, tokens } => {
                self.histories.get(&from).map(|history| history.fork(tokens as usize))
            }
            StartSource::Take { from, tokens } => self.histories.remove(&from).map(|mut history| {
                if self.sequences.contains_key(&from) {
                    let rows = history.rows.clone();
                    self.keep_rows(from, rows);
                }
                history.truncate(tokens as usize);
                history.reused = tokens as usize;
                history
            }),
        };
        let history = history.unwrap_or_else(|| History::empty(Cache::new(&self.model, &self.budget)));
        // What it had before it gave its memory up is computed again.
        if let Some(joined) = self.sessions.get_mut(&start.session) {
            joined.rows = None;
        }
        self.histories.insert(start.sequence, history);
    }

    /// Computes rows in one pass; where that fails for one of them, each on its own.
    ///
    /// # Errors
    /// On the first stage (`gives_way`), that there is not enough memory; every cache is as it was.
    fn pass(&mut self, rows: &[FrameRows], input: Input<'_>, gives_way: bool) -> Result<Passed> {
        let mut passed = Passed::default();
        let began = Instant::now();
        let result = if self.is_full_on_purpose() {
            Err(pangea_compute::Error::OutOfMemory { bytes: 0, what: "keys and values, by a fault on purpose" })
        } else {
            self.forward(rows, input)
        };
        self.fail_on_purpose(began);
        match result {
            Ok(output) => self.take(rows, output, &mut passed),
            Err(error) if gives_way && error.kind() == ComputeErrorKind::Overloaded => {
                return Err(compute_error(error));
            }
            Err(error) if rows.len() == 1 => {
                tracing::warn!(event = "stage_pass_failed", %error, "a pass through layers failed");
                self.broken_sequence(rows[0].sequence, &compute_error(error));
            }
            Err(_) => {
                // One of them is at fault, and the others must not suffer for it.
                let width = self.model.config().hidden_size;
                let mut at = 0;
                for rows in rows {
                    let end = at + rows.rows as usize;
                    let own = match input {
                        Input::Tokens(tokens) => Input::Tokens(&tokens[at..end]),
                        Input::Activations(values) => Input::Activations(&values[at * width..end * width]),
                    };
                    let one = self.pass(std::slice::from_ref(rows), own, false)?;
                    passed.rows.extend(one.rows);
                    passed.activations.extend(one.activations);
                    passed.advances.extend(one.advances);
                    passed.tokens.extend(one.tokens);
                    at = end;
                }
            }
        }
        Ok(passed)
    }

    fn broken_sequence(&mut self, sequence: u64, error: &Error) {
        self.histories.remove(&sequence);
        let Some(session) = self.sequences.get(&sequence).copied() else { return };
        let Some(coordinator) = self.sessions.get(&session).map(|joined| joined.coordinator) else { return };
        self.fail(session, coordinator, error);
    }

    fn forward(&mut self, rows: &[FrameRows], input: Input<'_>) -> std::result::Result<Output, pangea_compute::Error> {
        let width = self.model.config().hidden_size;
        let mut taken = Vec::with_capacity(rows.len());
        for rows in rows {
            let mut history = self
                .histories
                .remove(&rows.sequence)
                .unwrap_or_else(|| History::empty(Cache::new(&self.model, &self.budget)));
            history.truncate(rows.start as usize);
            let chooser = self.sequences.get(&rows.sequence).and_then(|session| self.tail.as_ref()?.get(session));
            let logits = match chooser {
                Some(chooser) if chooser.scores() || !rows.draft.is_empty() => Logits::All,
                Some(_) if rows.choose => Logits::Last,
                _ => Logits::None,
            };
            taken.push((rows, history, logits));
        }
        let result = if let Some((rows, history, _)) =
            taken.iter().find(|(rows, history, _)| history.cache.len() != rows.start as usize)
        {
            Err(pangea_compute::Error::Invalid {
                operation: "stage",
                what: format!("{} positions are held where {} are needed", history.cache.len(), rows.start),
            })
        } else {
            let mut steps: Vec<Step<'_>> = taken
                .iter_mut()
                .map(|(rows, history, logits)| Step {
                    cache: &mut history.cache,
                    rows: rows.rows as usize,
                    logits: *logits,
                })
                .collect();
            self.model.forward(&self.pool, &mut steps, input)
        };
        if result.is_ok()
            && let Input::Activations(values) = input
        {
            let mut at = 0;
            for (rows, history, _) in &mut taken {
                let own = &values[at..at + rows.rows as usize * width];
                history.receive(rows.start as usize, width, own);
                at += own.len();
            }
        }
        self.histories.extend(taken.into_iter().map(|(rows, history, _)| (rows.sequence, history)));
        result
    }

    /// Hands out what a pass gave: activations to be sent on, or tokens to the coordinators.
    fn take(&mut self, rows: &[FrameRows], mut output: Output, passed: &mut Passed) {
        let width = self.model.config().hidden_size;
        if self.tail.is_none() {
            passed.rows.extend_from_slice(rows);
            let mut activations = output.into_activations();
            if self.lies(Fault::CorruptStage) {
                let row = rand::random::<u64>() as usize % (activations.len() / width).max(1);
                twist_row(&mut activations[row * width..(row + 1) * width], rand::random());
            }
            let mut at = 0;
            for rows in rows {
                let own = &activations[at..at + rows.rows as usize * width];
                if let Some(history) = self.histories.get_mut(&rows.sequence) {
                    history.give(rows.start as usize, width, own);
                }
                at += own.len();
            }
            passed.activations = activations;
            return;
        }
        for (step, rows) in rows.iter().enumerate() {
            match self.choose(rows, output.logits_mut(step), &mut passed.tokens) {
                Ok(advance) => {
                    passed.rows.push(rows.clone());
                    passed.advances.extend(advance);
                }
                Err(error) => self.broken_sequence(rows.sequence, &error),
            }
        }
    }

    /// Whether it is time for a lie of this kind, for tests: once in a while.
    fn lies(&self, fault: Fault) -> bool {
        self.pipeline.fault() == Some(fault) && self.stages.len() > 1 && rand::random::<u64>().is_multiple_of(LIE_EVERY)
    }

    /// Whether it is to have no memory now, for tests.
    fn is_full_on_purpose(&self) -> bool {
        let now = self.number % FULL_EVERY == HANGS_AFTER;
        now && self.index > 0 && self.pipeline.fault() == Some(Fault::Full)
    }

    /// Fails as it is told to, for tests.
    fn fail_on_purpose(&self, began: Instant) {
        match self.pipeline.fault() {
            Some(Fault::Hang) if self.stages.len() > 1 && self.number > HANGS_AFTER => loop {
                std::thread::park();
            },
            Some(Fault::Slow) if self.stages.len() > 1 => std::thread::sleep(began.elapsed() * 19),
            _ => {}
        }
    }

    /// The tokens that follow rows.
    fn choose(
        &mut self,
        rows: &FrameRows,
        logits: &mut [f32],
        told: &mut Vec<(PeerId, Tokens)>,
    ) -> Result<Option<SteppedSequence>> {
        let vocabulary = self.model.config().vocabulary;
        let lies = rows.choose && self.lies(Fault::CorruptToken);
        let Some(session) = self.sequences.get(&rows.sequence) else { return Ok(None) };
        let Some(tail) = &mut self.tail else { return Ok(None) };
        let text = tail.text();
        let Some(chooser) = tail.get_mut(session) else { return Ok(None) };
        let start = rows.start as usize;
        let mut prompt = Vec::new();
        let mut last = Vec::new();
        let logits = if chooser.scores() {
            // Scoring overwrites the last row, which is still needed.
            last.extend_from_slice(&logits[logits.len() - vocabulary..]);
            prompt = chooser.score_prompt(start, vocabulary, logits)?;
            &mut last[..]
        } else {
            logits
        };
        if !rows.choose {
            if !prompt.is_empty() {
                let position = chooser.tokens.len() as u32;
                let tokens = Tokens { session: *session, position, prompt, ..Tokens::default() };
                told.push((chooser.coordinator, tokens));
            }
            return Ok(None);
        }
        let reused = self.histories.get(&rows.sequence).map_or(0, |history| history.reused);
        let mut chosen = chooser.take(&text, &rows.draft, reused, vocabulary, logits)?;
        chosen.tokens.prompt = prompt;
        if lies && let (Some(out), Some(id)) = (chosen.tokens.tokens.last_mut(), chosen.ids.last_mut()) {
            let lie = twist_token(*id, vocabulary, rand::random());
            (out.token, *id) = (lie, lie);
            chooser.replace_last(lie);
        }
        let computed = start + rows.rows as usize - rows.draft.len() + chosen.accepted;
        if let Some(history) = self.histories.get_mut(&rows.sequence) {
            history.truncate(computed);
        }
        told.push((chosen.coordinator, chosen.tokens));
        Ok(Some(SteppedSequence {
            sequence: rows.sequence,
            computed: computed as u32,
            chosen: chosen.ids,
            ended: chosen.ended,
            failed: false,
        }))
    }
}
