//! The thread of one stage: turns messages into events of the protocol (`pangea_control::session::stage`), and
//! actions into passes through the layers and into messages. Nothing is decided here.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use libp2p::PeerId;
use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::draft;
use pangea_compute::engine::Input;
use pangea_compute::model::NUMERICS;
use pangea_control::session::stage::{Action, Count, Event, Incoming, Notice, Opening, StageProtocol, StageSettings};
use pangea_control::session::{Drafter, Drafts};

use super::host::{Pipeline, StageLoad, StageSetup};
use super::layers::{Layers, PassError, Passed, SignedStage};
use super::pass_faults::PassFaults;
use super::payload::Payload;
use super::running_pass::RunningPass;
use super::sampler::Sampler;
use super::stage_requests::StageRequests;
use super::wire::{ChainId, Frame, FrameRows, Message, Open, SessionId, StageAt, Stepped, SteppedSequence};
use crate::devices::Lease;
use crate::engine_metrics::EngineMetrics;
use crate::host::cores;
use crate::trust::CommitChain;
use crate::{clock, compute_error};

/// Interval at which the protocol gets the time while it depends on it.
const TIME_TICK: Duration = Duration::from_secs(1);

/// Time for which the next frame is polled without sleeping.
const WATCHED: Duration = Duration::from_millis(6);

/// Input of a stage's thread.
#[expect(clippy::large_enum_variant, reason = "nearly all events are messages")]
pub(super) enum StageEvent {
    /// A message from a permitted sender.
    Message {
        /// Its sender, and the bytes that it takes of the sender's share of the queue.
        queued: (PeerId, u64),
        message: Message,
        payload: Payload,
    },
    /// A peer can no longer be reached.
    PeerGone { peer: PeerId, why: String },
    /// The device that computes its layers failed, in another stage with the same ones.
    DeviceFailed { why: String },
    /// The stage is no longer needed.
    End,
}

/// The protocol of a stage that drafts from earlier text, and by a small model where there is one.
pub(super) type Protocol = StageProtocol<TextDrafter>;

/// Drafts for one text.
#[derive(Clone, Debug)]
pub(super) struct TextDrafter(draft::Drafter);

impl Drafter for TextDrafter {
    fn propose(&mut self, tokens: &[u32], limit: usize) -> Vec<u32> {
        self.0.propose(tokens, limit).to_vec()
    }

    fn observe(&mut self, rows: usize, accepted: usize, seconds: f64) {
        self.0.observe(rows, accepted, seconds);
    }
}

/// State of the thread.
pub(super) struct Stage {
    /// The id under which the chain was started; what is said to others has the present one.
    started_as: ChainId,
    stages: Vec<StageAt>,
    index: usize,
    pipeline: Pipeline,
    metrics: Arc<EngineMetrics>,
    protocol: Protocol,
    layers: Layers,
    requests: StageRequests,
    /// The request that is being opened.
    opening: Option<Box<Open>>,
    /// The earlier stages' signed claims of the session that is being signed.
    signed_before: Option<Payload>,
    /// On the first stage, the pass that is computed now.
    running: Option<RunningPass>,
    /// Activations of the frame that is being computed.
    received: Payload,
    /// Result of that frame's pass that is not sent yet.
    passed: Passed,
    /// Time that the thread waited for the last event.
    waited: Duration,
    /// Whether there are more cores than compute threads.
    has_spare_core: bool,
    /// Whether the device that computes its layers failed: then its thread ends, and the layers' memory is free for others.
    has_failed: bool,
    /// Memory of its layers and sessions; released last.
    _memory: Arc<[Lease]>,
}

impl Stage {
    /// `running`: present on the first stage.
    pub(super) fn new(setup: StageSetup, pipeline: Pipeline, running: Option<RunningPass>) -> Stage {
        let config = setup.model.config();
        let drafter =
            setup.draft.map_or_else(draft::Drafter::new, |draft| draft::Drafter::with_model(draft, config.vocabulary));
        let drafter = if setup.drafts == Drafts::Eager { drafter.eager() } else { drafter };
        let settings = StageSettings {
            chain: setup.chain,
            stages: setup.stages.clone(),
            index: setup.index,
            numerics: NUMERICS,
            vocabulary: config.vocabulary,
            context: config.context,
            limits: setup.limits,
            drafts: setup.drafts,
        };
        let protocol = Protocol::new(settings, TextDrafter(drafter));
        let faults = PassFaults::new(pipeline.clone(), setup.index, setup.stages.len());
        let requests = StageRequests::new(pipeline.local(), setup.name, &setup.stages[setup.index]);
        let sampler = setup.text.map(Sampler::new);
        let rows = pipeline.rows().map(|opener| opener.store().clone());
        let layers = Layers::new(setup.model, setup.budget, faults, sampler, running.clone(), rows);
        Stage {
            started_as: setup.chain,
            stages: setup.stages,
            _memory: setup.memory,
            index: setup.index,
            pipeline,
            metrics: setup.metrics,
            protocol,
            requests,
            opening: None,
            signed_before: None,
            running,
            received: Payload::empty(),
            passed: Passed::default(),
            waited: Duration::MAX,
            has_spare_core: cores() > layers.threads(),
            has_failed: false,
            layers,
        }
    }

    fn chain(&self) -> ChainId {
        self.pipeline.id_of(self.started_as)
    }

    /// Runs until an event ends the stage.
    pub(super) fn run(mut self, inbox: Receiver<StageEvent>) {
        // Sessions fail over instead of waiting, those of this node too, which expect no silence of its own stages.
        match catch_unwind(AssertUnwindSafe(|| self.work(&inbox))) {
            Ok(()) if self.has_failed => self.refuse_openings(&inbox),
            Ok(()) => self.follow(Event::End { why: "the layers have left this node's memory" }),
            Err(panic) => {
                self.follow(Event::CannotGoOn { why: "the stage panicked" });
                self.refuse_openings(&inbox);
                resume_unwind(panic);
            }
        }
    }

    /// Answers openings that a broken stage had not read; since it is broken, no more are queued.
    fn refuse_openings(&mut self, inbox: &Receiver<StageEvent>) {
        while let Ok(event) = inbox.try_recv() {
            if let StageEvent::Message { message: message @ Message::Open(_), payload, .. } = event {
                self.message(message, payload);
            }
        }
    }

    fn work(&mut self, inbox: &Receiver<StageEvent>) {
        let mut ticked = Instant::now();
        while !self.has_failed {
            // Without room for a frame the protocol would not get the time, and with many messages not by waiting either.
            if self.protocol.follows_time() && ticked.elapsed() >= TIME_TICK {
                self.follow(Event::Ready);
                ticked = Instant::now();
            }
            if !self.step() && !self.has_failed {
                match self.next(inbox) {
                    Ok(event) => {
                        if !self.handle(event) {
                            return;
                        }
                    }
                    Err(RecvTimeoutError::Timeout) => self.follow(Event::Tick),
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
            while !self.has_failed
                && let Ok(event) = inbox.try_recv()
            {
                if !self.handle(event) {
                    return;
                }
            }
            self.report_load();
        }
    }

    /// Waits for an event, at most for a tick while the protocol depends on the time.
    fn next(&mut self, inbox: &Receiver<StageEvent>) -> std::result::Result<StageEvent, RecvTimeoutError> {
        let began = Instant::now();
        let event = self.watch(inbox, began).unwrap_or_else(|| match self.protocol.follows_time() {
            true => inbox.recv_timeout(TIME_TICK),
            false => inbox.recv().map_err(RecvTimeoutError::from),
        });
        self.waited = began.elapsed();
        event
    }

    /// Polls for the next frame without sleeping if it is expected soon: waking a sleeping core takes longer than
    /// sending a frame. Only for a session that has the chain to itself, in which all stages but one wait at any
    /// time, and if no compute thread needs the core.
    fn watch(
        &self,
        inbox: &Receiver<StageEvent>,
        began: Instant,
    ) -> Option<std::result::Result<StageEvent, RecvTimeoutError>> {
        let expected = self.stages.len() > 1 && self.protocol.sessions() == 1 && self.waited < WATCHED;
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

    fn report_load(&self) {
        let (running, waiting) = self.protocol.load();
        let (sessions, pace) = (self.protocol.sessions(), self.protocol.pace());
        self.pipeline.set_load(self.started_as, StageLoad { running, waiting, sessions, pace });
    }

    // Events.

    /// On the first stage, plans and computes the next frame; returns whether there was one.
    fn step(&mut self) -> bool {
        if !self.protocol.has_room() {
            return false;
        }
        let before = self.protocol.frame_number();
        self.follow(Event::Ready);
        self.protocol.frame_number() != before
    }

    /// Processes an event; returns whether the stage continues.
    fn handle(&mut self, event: StageEvent) -> bool {
        match event {
            StageEvent::End => return false,
            StageEvent::DeviceFailed { why } => {
                self.has_failed = true;
                self.follow(Event::CannotGoOn { why: &device_failed(&why) });
            }
            StageEvent::PeerGone { peer, why } => self.follow(Event::PeerGone { peer, why: &why }),
            StageEvent::Message { queued: (from, bytes), message, payload } => {
                self.pipeline.taken(self.started_as, &from, bytes);
                self.message(message, payload);
            }
        }
        true
    }

    fn message(&mut self, message: Message, payload: Payload) {
        match message {
            Message::Open(open) => self.open(open),
            Message::Close { session, commit, .. } => {
                if let Some(running) = &self.running {
                    running.closing_read(&session);
                }
                self.follow(Event::Close { session, commit });
            }
            Message::Commit { session, positions, .. } => {
                self.signed_before = Some(payload);
                self.follow(Event::Commit { session, positions });
                self.signed_before = None;
            }
            Message::Frame(frame) => {
                let hidden_size = self.layers.model().config().hidden_size;
                let values = payload.as_f32().len();
                self.received = payload;
                self.follow(Event::Frame(Incoming {
                    number: frame.number,
                    drops: frame.drops,
                    starts: frame.starts,
                    rows: frame.rows,
                    payload_rows: values.is_multiple_of(hidden_size).then_some(values / hidden_size),
                }));
                self.received = Payload::empty();
            }
            Message::Stepped(Stepped { number, advances, .. }) => self.follow(Event::Stepped { number, advances }),
            Message::Failed { session, .. } => self.follow(Event::Failed(session)),
            // Messages for coordinators only.
            Message::Accepted { .. } | Message::Refused { .. } | Message::Tokens(_) => {}
        }
    }

    fn open(&mut self, open: Box<Open>) {
        let vocabulary = self.layers.model().config().vocabulary;
        let bad_sampling = open.sampling.check(vocabulary).err().map(compute_error);
        let opening = Opening {
            session: open.session,
            coordinator: open.coordinator,
            stages: &open.stages,
            numerics: open.numerics,
            choices: open.choices,
            sequence: open.sequence,
            prompt_len: open.prompt_len as usize,
            max_new_tokens: open.max_new_tokens as usize,
            prompt_logprobs: open.prompt_logprobs,
            tokens: &open.tokens,
            bad_sampling: bad_sampling.as_ref(),
        };
        let faults = self.layers.faults();
        if let Some(tokens) = faults.tokens_out_of_turn(&open, self.index) {
            self.send(open.coordinator, Message::Tokens(tokens), Payload::empty());
        }
        let mut actions = Vec::new();
        self.protocol.handle(Event::Open(opening), clock::now(), &mut actions);
        self.opening = Some(open);
        self.act_all(actions);
        self.opening = None;
    }

    /// Passes an event to the protocol and executes the actions.
    fn follow(&mut self, event: Event<'_>) {
        let mut actions = Vec::new();
        self.protocol.handle(event, clock::now(), &mut actions);
        self.act_all(actions);
    }

    // Actions.

    /// Executes actions in order, and then the actions that follow from them.
    fn act_all(&mut self, mut actions: Vec<Action>) {
        while !actions.is_empty() {
            let mut following = Vec::new();
            for action in actions {
                self.act(action, &mut following);
            }
            actions = following;
        }
    }

    fn act(&mut self, action: Action, following: &mut Vec<Action>) {
        match action {
            Action::Join { sequence } => {
                let event = match self.join(sequence) {
                    Ok(()) => Event::Joined,
                    Err(error) => Event::CannotJoin(error),
                };
                self.protocol.handle(event, clock::now(), following);
            }
            Action::ForwardOpen(to) => {
                if let Some(open) = self.opening.take() {
                    self.send_along(to, Message::Open(open), Payload::empty(), following);
                }
            }
            Action::Send { to, session, notice } => self.send(to, self.notice(session, notice), Payload::empty()),
            Action::Sign { .. } if self.layers.faults().withholds_signatures() => {}
            Action::Sign { session, sequence, positions, to, coordinator, tokens } => {
                let signed = self.sign(session, sequence, positions, tokens.as_deref());
                self.send_signed(session, positions, [to, coordinator], signed, following);
            }
            Action::Forget(session) => {
                self.layers.remove(&session);
                self.requests.ended(session);
                if self.index == 0 {
                    self.pipeline.session_over(self.started_as, &session);
                }
            }
            Action::Drop { sequence, session } => {
                if self.layers.drop_history(sequence, session) && session.is_some() && self.index == 0 {
                    self.metrics.preempted.inc();
                }
            }
            Action::Start { start, taken_from } => self.layers.start(start, taken_from),
            Action::Compute { rows, tokens } => self.compute(rows, &tokens, following),
            Action::Frame { to, number, drops, starts, rows } => {
                self.metrics.steps.inc();
                self.layers.faults().panic(number);
                self.layers.faults().stall();
                let activations = match rows.is_empty() {
                    true => Payload::empty(),
                    false => Payload::from_f32(std::mem::take(&mut self.passed.activations)),
                };
                let number = number + u64::from(self.layers.faults().misnumbers(number));
                let (ChainId { model, epoch }, first_stage) = (self.chain(), self.stages[0].peer);
                let frame = Frame { epoch, model, number, first_stage, drops, starts, rows };
                self.send_along(to, Message::Frame(frame), activations, following);
            }
            Action::Report { to, number } => self.report(to, number, following),
            Action::Break { why } => {
                self.layers.clear();
                self.requests.clear();
                self.pipeline.broken(self.started_as, &why);
            }
            Action::Count(Count::Refused) => drop(self.metrics.refused.inc()),
            Action::Count(Count::Cancelled) => drop(self.metrics.cancelled.inc()),
        }
    }

    fn join(&mut self, sequence: u64) -> Result<()> {
        let Some(open) = &mut self.opening else { return Ok(()) };
        self.layers.faults().refuse()?;
        open.sequence = Some(sequence);
        self.layers.join(open)?;
        self.requests.began(open);
        Ok(())
    }

    fn notice(&self, session: SessionId, notice: Notice) -> Message {
        let chain = self.chain();
        match notice {
            Notice::Accepted => Message::Accepted { session },
            Notice::Refused { error, retry_after } => Message::Refused {
                session,
                kind: error.kind(),
                message: error.message().to_owned(),
                retry_after_ms: retry_after.map(|after| u32::try_from(after.as_millis()).unwrap_or(u32::MAX)),
            },
            Notice::Failed(error) => {
                Message::Failed { chain, session, kind: error.kind(), message: error.message().to_owned() }
            }
            Notice::Close => Message::Close { chain, session, commit: None },
        }
    }

    fn send(&self, to: PeerId, message: Message, payload: Payload) {
        if let Err(error) = self.pipeline.send(to, message, payload) {
            // An unreachable peer is reported as gone, and the protocol reacts to that.
            tracing::debug!(event = "session_message_lost", %to, %error);
        }
    }

    /// Sends a message that the next stage needs: a chain that loses one has failed.
    fn send_along(&mut self, to: PeerId, message: Message, payload: Payload, following: &mut Vec<Action>) {
        if let Err(error) = self.pipeline.send(to, message, payload) {
            self.not_sent(to, &error, following);
        }
    }

    fn not_sent(&mut self, to: PeerId, error: &Error, following: &mut Vec<Action>) {
        self.protocol.handle(Event::NotSent { to, why: error.message() }, clock::now(), following);
    }

    fn sign(&self, session: SessionId, sequence: u64, positions: u32, tokens: Option<&[u32]>) -> Result<CommitChain> {
        let stage = SignedStage {
            chain: self.chain(),
            at: &self.stages[self.index],
            is_first: self.index == 0,
            keypair: self.pipeline.keypair(),
        };
        self.layers.sign(&stage, session, sequence, positions, tokens, self.signed_before.as_ref())
    }

    /// Sends the signed claims to the next stage or the coordinator, with a copy to the coordinator.
    fn send_signed(
        &mut self,
        session: SessionId,
        positions: u32,
        [to, coordinator]: [PeerId; 2],
        signed: Result<CommitChain>,
        following: &mut Vec<Action>,
    ) {
        match signed {
            Ok(signed) => {
                let payload = Payload::from_bytes(signed.encode());
                let commit = Message::Commit { chain: self.chain(), session, positions };
                self.send(to, commit.clone(), payload.clone());
                if coordinator != to {
                    let payload = match self.layers.faults().signs_twice() {
                        true => Payload::from_bytes(self.signed_otherwise(signed).encode()),
                        false => payload,
                    };
                    self.send(coordinator, commit, payload);
                }
            }
            Err(error) => {
                tracing::warn!(event = "commitment_withheld", %session, %error, "session not signed: {error}");
                let event = Event::NotSigned { session, coordinator, error: &error };
                self.protocol.handle(event, clock::now(), following);
            }
        }
    }

    /// The same claims with another output of this stage, for an injected fault.
    fn signed_otherwise(&self, mut signed: CommitChain) -> CommitChain {
        if let Some(link) = signed.links.pop() {
            let mut claim = link.claim;
            claim.output[0] ^= 1;
            if let Err(error) = signed.pass(claim, self.pipeline.keypair()) {
                tracing::warn!(event = "fault_failed", %error, "cannot sign a second claim: {error}");
            }
        }
        signed
    }

    fn compute(&mut self, rows: Vec<FrameRows>, tokens: &[u32], following: &mut Vec<Action>) {
        let is_first = self.index == 0;
        let received = std::mem::replace(&mut self.received, Payload::empty());
        let input = if is_first { Input::Tokens(tokens) } else { Input::Activations(received.as_f32()) };
        let pass = self.requests.pass(&rows, |sequence| self.protocol.session_of(sequence));
        let result = self.layers.pass(&self.protocol, &rows, input, is_first);
        self.requests.passed(pass);
        let event = match result {
            Ok(mut passed) => {
                if passed.failed.iter().any(|(_, error)| error.kind() == ErrorKind::Cancelled) {
                    self.metrics.steps_cut_off.inc();
                }
                for rows in &passed.rows {
                    if let Some(session) = self.protocol.session_of(rows.sequence) {
                        self.requests.computed(session, rows.start + rows.rows - rows.draft.len() as u32);
                    }
                }
                let event = Event::Computed {
                    rows: std::mem::take(&mut passed.rows),
                    advances: std::mem::take(&mut passed.advances),
                    failed: std::mem::take(&mut passed.failed),
                };
                self.passed = passed;
                event
            }
            Err(PassError::Exhausted(error)) => {
                tracing::debug!(event = "engine_memory", %error, "preempting sessions: memory does not suffice");
                Event::Exhausted(rows)
            }
            Err(PassError::DeviceFailed(why)) => {
                self.has_failed = true;
                return self.protocol.handle(Event::CannotGoOn { why: &device_failed(&why) }, clock::now(), following);
            }
        };
        self.protocol.handle(event, clock::now(), following);
    }

    /// Sends tokens to the coordinators, and the report of the frame to the first stage if that is another node.
    fn report(&mut self, to: Option<(PeerId, Vec<SteppedSequence>)>, number: u64, following: &mut Vec<Action>) {
        self.metrics.steps.inc();
        self.layers.faults().panic(number);
        let mut to = to;
        let advances = to.as_mut().map(|(_, advances)| advances);
        let number = self.layers.faults().misreport(number, advances, &mut self.passed.tokens);
        self.layers.faults().stall();
        let mut reports: Vec<(PeerId, Vec<(Message, Payload)>)> = Vec::new();
        let mut add = |to: PeerId, message: Message| match reports.iter_mut().find(|(peer, _)| *peer == to) {
            Some((_, messages)) => messages.push((message, Payload::empty())),
            None => reports.push((to, vec![(message, Payload::empty())])),
        };
        let first_stage = to.as_ref().map(|(first_stage, _)| *first_stage);
        if let Some((first_stage, advances)) = to {
            // The report goes first, because the first stage waits for it to start the next token.
            let ChainId { model, epoch } = self.chain();
            add(first_stage, Message::Stepped(Stepped { epoch, model, number, advances }));
        }
        for (coordinator, tokens) in std::mem::take(&mut self.passed.tokens) {
            add(coordinator, Message::Tokens(tokens));
        }
        for (to, messages) in reports {
            if let Err(error) = self.pipeline.send_all(to, messages) {
                tracing::debug!(event = "session_message_lost", %to, %error);
                if Some(to) == first_stage {
                    self.not_sent(to, &error, following);
                }
            }
        }
    }
}

fn device_failed(why: &str) -> String {
    format!("the stage's device failed: {why}")
}
