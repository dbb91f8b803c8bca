//! The protocol of one stage of a chain: which sessions it takes part in, what it does in which order, what it forwards, and
//! whom it notifies. Events go in, actions come out; the driver owns layers, caches, sampling and payloads. Senders were
//! checked before (`gate`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use libp2p_identity::PeerId;
use pangea_units::{Error, ErrorKind};

use super::first_stage::{CLOSE_TIMEOUT, Change, Drafter, FailedSession, FirstStage, Planned, SoleSequence};
use super::gate::waiting_for;
use super::pace::PaceMeter;
use super::{FrameRows, SessionId, StartSource, SteppedSequence};
use crate::Time;
use crate::pool::StagePace;

mod action;
mod event;
#[cfg(test)]
mod tests;

pub use action::{Action, Count, Notice};
pub use event::{Event, Incoming, Opening, StageSettings};

/// Sessions that a later stage takes part in, at most: several times what a first stage runs, lets wait and keeps.
const MAX_SESSIONS: usize = 4096;

/// Sequences that a later stage holds, at most: those that a first stage runs, and the caches that it keeps.
const MAX_SEQUENCES_HELD: usize = 2048;

/// Time after which a later stage drops a session that no message moved: the first stage, which closes sessions within
/// [`CLOSE_TIMEOUT`] of their end, has forgotten it.
const LEASE: Duration = CLOSE_TIMEOUT.saturating_mul(2);

/// A session that this stage takes part in.
#[derive(Debug)]
struct Joined {
    sequence: u64,
    coordinator: PeerId,
    /// On a later stage: when a message last moved the session.
    moved: Time,
}

/// A request between [`Action::Join`] and its answer.
#[derive(Clone, Copy, Debug)]
struct Joining {
    session: SessionId,
    choices: u16,
    coordinator: PeerId,
}

/// The protocol of one stage.
#[derive(Debug)]
pub struct StageProtocol<D> {
    settings: StageSettings,
    sessions: BTreeMap<SessionId, Joined>,
    /// The session of every open sequence.
    sequences: BTreeMap<u64, SessionId>,
    /// On a later stage: every sequence that was started and not dropped.
    held: BTreeSet<u64>,
    /// Those of them that failed here, and those that were to continue the cache of one that did, with that failure. The first
    /// stage starts sequences with a cache until it hears that the cache is gone.
    lost: BTreeMap<u64, Error>,
    first: Option<FirstStage<D>>,
    /// What every sequence of a first stage gets a clone of.
    drafter: D,
    joining: Option<Joining>,
    /// The frame being computed: its start, and the sequence that has it to itself, if any.
    computing: (Time, Option<SoleSequence>),
    /// How long frames take.
    pace: PaceMeter,
    /// Number of the next frame.
    number: u64,
    /// Changes that were not sent to the next stage yet.
    unsent: Vec<Change>,
    /// Sessions to sign once the frame that computes them is done.
    closing: Vec<(SessionId, u32)>,
    /// Why the chain has failed, if it has.
    broken: Option<String>,
}

impl<D: Drafter> StageProtocol<D> {
    /// A stage without sessions, whose sequences are drafted by clones of `drafter`.
    pub fn new(settings: StageSettings, drafter: D) -> StageProtocol<D> {
        StageProtocol {
            first: settings.limits.map(|limits| FirstStage::new(limits, settings.drafts, drafter.clone())),
            drafter,
            pace: PaceMeter::new(settings.chain.epoch),
            settings,
            sessions: BTreeMap::new(),
            sequences: BTreeMap::new(),
            held: BTreeSet::new(),
            lost: BTreeMap::new(),
            joining: None,
            computing: (Time::ZERO, None),
            number: 0,
            unsent: Vec::new(),
            closing: Vec::new(),
            broken: None,
        }
    }

    /// Whether this is the last stage, which chooses tokens.
    pub fn is_last(&self) -> bool {
        self.settings.index + 1 == self.settings.stages.len()
    }

    /// Number of running and of waiting sequences; zero on later stages, which schedule none.
    pub fn load(&self) -> (usize, usize) {
        self.first.as_ref().map_or((0, 0), FirstStage::load)
    }

    /// How fast this stage and the rest of its chain were, once measured.
    pub fn pace(&self) -> Option<StagePace> {
        self.pace.pace()
    }

    /// Number of sessions that this stage takes part in.
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// The open session of a sequence.
    pub fn session_of(&self, sequence: u64) -> Option<SessionId> {
        self.sequences.get(&sequence).copied()
    }

    /// Number of the next frame, or of the one being computed.
    pub fn frame_number(&self) -> u64 {
        self.number
    }

    /// Whether [`Event::Ready`] may start another frame now.
    pub fn has_room(&self) -> bool {
        self.broken.is_none() && self.first.as_ref().is_some_and(FirstStage::has_room)
    }

    /// Whether the passing of time matters: a request that waits too long, a session that nobody closes.
    pub fn follows_time(&self) -> bool {
        match &self.first {
            Some(first) => !first.is_idle(),
            None => !self.sessions.is_empty(),
        }
    }

    fn stage(&self, index: usize) -> PeerId {
        self.settings.stages[index].peer
    }

    fn next(&self) -> Option<PeerId> {
        self.settings.stages.get(self.settings.index + 1).map(|stage| stage.peer)
    }

    /// Processes an event and appends the actions to `actions`.
    pub fn handle(&mut self, event: Event<'_>, now: Time, actions: &mut Vec<Action>) {
        if self.broken.is_some() && !matches!(event, Event::Open(_)) {
            return;
        }
        match event {
            Event::Open(opening) => self.open(&opening, now, actions),
            Event::Joined => self.joined(actions),
            Event::CannotJoin(error) => self.cannot_join(&error, now, actions),
            Event::Close { session, commit } if self.first.is_some() => self.close(session, commit, now, actions),
            Event::Close { session, .. } => self.leave(session, actions),
            Event::Commit { session, positions } => self.sign(session, positions, actions),
            Event::NotSigned { session, coordinator, error } => {
                // The stages after this one remove the session, and its coordinator need not wait for a timeout.
                let notice = Notice::Failed(Error::new(ErrorKind::VerificationFailed, error.message()));
                actions.push(Action::Send { to: coordinator, session, notice });
                if let Some(to) = self.next() {
                    actions.push(Action::Send { to, session, notice: Notice::Close });
                }
            }
            Event::Frame(frame) => self.frame(frame, now, actions),
            Event::Stepped { number, advances } => self.stepped(number, advances, now, actions),
            Event::Failed(session) => {
                if let Some(first) = &mut self.first {
                    let changes = first.failed(&session, now);
                    self.change(changes, actions);
                }
                self.leave(session, actions);
            }
            Event::PeerGone { peer, why } => self.peer_gone(peer, why, now, actions),
            Event::NotSent { to, why } => {
                self.break_off(ErrorKind::Unavailable, format!("cannot send to stage {to}: {why}"), now, actions);
            }
            Event::CannotGoOn { why } => self.break_off(ErrorKind::Unavailable, why.to_owned(), now, actions),
            Event::End { why } => {
                let sessions: Vec<SessionId> = self.sessions.keys().copied().collect();
                self.end_sessions(ErrorKind::Unavailable, why.to_owned(), now, actions);
                actions.extend(sessions.into_iter().map(Action::Forget));
            }
            Event::Ready => self.ready(now, actions),
            Event::Tick => self.end_leases(now, actions),
            Event::Computed { rows, advances, failed } => self.computed(rows, advances, failed, now, actions),
            Event::Exhausted(rows) => {
                let Some(first) = &mut self.first else { return };
                let planned = first.exhausted(&rows, now);
                self.compute(planned, now, actions);
            }
        }
    }

    // Sessions.

    fn open(&mut self, opening: &Opening<'_>, now: Time, actions: &mut Vec<Action>) {
        let Opening { session, choices, coordinator, .. } = *opening;
        let joining = Joining { session, choices, coordinator };
        let sequence = match &mut self.first {
            None => match self.broken.clone() {
                None if self.sessions.len().max(self.sequences.len()) + usize::from(choices) > MAX_SESSIONS => {
                    let why = "a later stage has as many sessions as it may have; try again later";
                    return self.cannot_open(joining, &Error::new(ErrorKind::Overloaded, why), actions);
                }
                None => opening.sequence,
                Some(why) => return self.cannot_open(joining, &Error::new(ErrorKind::Unavailable, why), actions),
            },
            Some(first) => match unfit(&self.settings, self.broken.as_deref(), opening) {
                Some(error) => return refuse(joining, error, None, actions),
                None => match first.open(opening, now) {
                    Ok(sequence) => Some(sequence),
                    Err(retry_after) => {
                        actions.push(Action::Count(Count::Refused));
                        let why = "the queue of this model is full; try again later";
                        return refuse(joining, Error::new(ErrorKind::Overloaded, why), Some(retry_after), actions);
                    }
                },
            },
        };
        let Some(sequence) = sequence else { return };
        if sequence.checked_add(choices.into()).is_none() {
            let from = self.stage(self.settings.index.saturating_sub(1));
            let why = format!("stage {from} sent a request that does not fit");
            return self.break_off(ErrorKind::Unavailable, why, now, actions);
        }
        for choice in 0..choices {
            let (session, sequence) = (session.choice(choice), sequence.wrapping_add(u64::from(choice)));
            self.sessions.insert(session, Joined { sequence, coordinator, moved: now });
            self.sequences.insert(sequence, session);
        }
        self.joining = Some(joining);
        actions.push(Action::Join { sequence });
    }

    fn joined(&mut self, actions: &mut Vec<Action>) {
        let Some(Joining { session, coordinator, .. }) = self.joining.take() else { return };
        actions.extend(self.next().map(Action::ForwardOpen));
        if self.first.is_some() {
            actions.push(Action::Send { to: coordinator, session, notice: Notice::Accepted });
        }
    }

    fn cannot_join(&mut self, error: &Error, now: Time, actions: &mut Vec<Action>) {
        let Some(Joining { session, choices, .. }) = self.joining.take() else { return };
        for choice in 0..choices {
            self.fail(session.choice(choice), error, now, actions);
        }
    }

    /// Reports the sessions of an opening that arrived after this chain failed to their coordinator and the first
    /// stage, which may not know of the failure yet.
    fn cannot_open(&self, joining: Joining, error: &Error, actions: &mut Vec<Action>) {
        let Joining { session, choices, coordinator } = joining;
        for session in (0..choices).map(|choice| session.choice(choice)) {
            let tell = |to| Action::Send { to, session, notice: Notice::Failed(error.clone()) };
            actions.extend(waiting_for(coordinator, self.stage(0)).map(tell));
        }
    }

    /// Notifies the coordinator, the first stage and the later stages that a session cannot continue, and removes it.
    fn fail(&mut self, session: SessionId, error: &Error, now: Time, actions: &mut Vec<Action>) {
        let Some(joined) = self.sessions.get(&session) else { return };
        let coordinator = joined.coordinator;
        let tell = |to| Action::Send { to, session, notice: Notice::Failed(error.clone()) };
        match &mut self.first {
            Some(first) => {
                actions.push(tell(coordinator));
                let changes = first.failed(&session, now);
                self.change(changes, actions);
            }
            None => actions.extend(waiting_for(coordinator, self.stage(0)).map(tell)),
        }
        self.leave(session, actions);
    }

    /// Closes a session; called on the first stage.
    fn close(&mut self, session: SessionId, commit: Option<u32>, now: Time, actions: &mut Vec<Action>) {
        let Some(first) = &mut self.first else { return };
        // The coordinator may receive the last tokens before this stage gets the report.
        if let Some(positions) = commit
            && first.is_under_way(&session)
        {
            self.closing.push((session, positions));
            return;
        }
        let changes = first.stop(&session, now);
        self.change(changes, actions);
        match commit {
            Some(positions) => self.sign(session, positions, actions),
            None => self.leave(session, actions),
        }
    }

    /// Ends a session that is no longer wanted, and notifies the next stage.
    fn leave(&mut self, session: SessionId, actions: &mut Vec<Action>) {
        if self.remove(&session, actions).is_none() {
            return;
        }
        if let Some(to) = self.next() {
            actions.push(Action::Send { to, session, notice: Notice::Close });
        }
    }

    /// Signs this stage's work in a session and removes the session.
    fn sign(&mut self, session: SessionId, positions: u32, actions: &mut Vec<Action>) {
        let Some(joined) = self.sessions.get(&session) else { return };
        let (sequence, coordinator) = (joined.sequence, joined.coordinator);
        let to = self.next().unwrap_or(coordinator);
        let tokens = self.first.as_mut().and_then(|first| first.remove(&session));
        actions.push(Action::Sign { session, sequence, positions, to, coordinator, tokens });
        self.remove(&session, actions);
    }

    fn remove(&mut self, session: &SessionId, actions: &mut Vec<Action>) -> Option<Joined> {
        if let Some(first) = &mut self.first {
            first.remove(session);
        }
        let joined = self.sessions.remove(session)?;
        self.sequences.remove(&joined.sequence);
        actions.push(Action::Forget(*session));
        Some(joined)
    }

    /// On a later stage, removes sessions that the first stage has forgotten.
    fn end_leases(&mut self, now: Time, actions: &mut Vec<Action>) {
        if self.first.is_some() {
            return;
        }
        let over = |(session, joined): (&SessionId, &Joined)| (now.since(joined.moved) > LEASE).then_some(*session);
        for session in self.sessions.iter().filter_map(over).collect::<Vec<_>>() {
            actions.push(Action::Count(Count::Cancelled));
            self.leave(session, actions);
        }
    }

    fn peer_gone(&mut self, peer: PeerId, why: &str, now: Time, actions: &mut Vec<Action>) {
        let is_stage = self.settings.stages.iter().any(|stage| stage.peer == peer);
        if is_stage && peer != self.stage(self.settings.index) {
            return self.break_off(ErrorKind::Unavailable, format!("stage {peer} is gone ({why})"), now, actions);
        }
        if self.first.is_none() {
            // The first stage notices the same loss, or still reaches the coordinator.
            return;
        }
        // Ended sessions, too: no coordinator is left to close them.
        let of = |(session, joined): (&SessionId, &Joined)| (joined.coordinator == peer).then_some(*session);
        for session in self.sessions.iter().filter_map(of).collect::<Vec<_>>() {
            actions.push(Action::Count(Count::Cancelled));
            self.close(session, None, now, actions);
        }
    }

    /// Ends all sessions: a chain without one of its stages cannot compute.
    fn break_off(&mut self, kind: ErrorKind, why: String, now: Time, actions: &mut Vec<Action>) {
        // First, so that a session that is told looks for another chain, and does not come back to this one.
        actions.push(Action::Break { why: why.clone() });
        self.end_sessions(kind, why, now, actions);
    }

    /// Ends all sessions, here and at the stages behind, and takes no more; coordinators find another chain. They learn from the
    /// kind whether a stage is gone, silent, or reports nonsense.
    fn end_sessions(&mut self, kind: ErrorKind, why: String, now: Time, actions: &mut Vec<Action>) {
        let error = Error::new(kind, why.clone());
        let tell = |(session, to)| Action::Send { to, session, notice: Notice::Failed(error.clone()) };
        match &self.first {
            Some(first) => actions.extend(first.open_sessions().map(tell)),
            // The first stage may not know of the failure and must not wait.
            None => actions.extend(self.sessions.iter().map(|(session, joined)| tell((*session, joined.coordinator)))),
        }
        // The stages behind this one may be connected with all others, and would keep the sessions until their leases end.
        let close =
            |to| self.sessions.keys().map(move |session| Action::Send { to, session: *session, notice: Notice::Close });
        actions.extend(self.next().into_iter().flat_map(close));
        self.sessions.clear();
        self.sequences.clear();
        self.held.clear();
        self.lost.clear();
        self.unsent.clear();
        self.closing.clear();
        self.joining = None;
        self.first =
            self.settings.limits.map(|limits| FirstStage::new(limits, self.settings.drafts, self.drafter.clone()));
        self.computing = (now, None);
        self.broken = Some(why);
    }

    // Frames.

    fn ready(&mut self, now: Time, actions: &mut Vec<Action>) {
        // A stage that always has messages hears of the time by this alone.
        let Some(first) = &mut self.first else { return self.end_leases(now, actions) };
        for session in first.abandoned(now) {
            self.close(session, None, now, actions);
        }
        let Some(first) = &mut self.first else { return };
        if first.is_stalled(now) {
            let why = "the later stages have been silent for too long".to_owned();
            return self.break_off(ErrorKind::DeadlineExceeded, why, now, actions);
        }
        let notice = |(session, to)| Action::Send { to, session, notice: Notice::Accepted };
        actions.extend(first.without_tokens(now).into_iter().map(notice));
        let Some(first) = self.first.as_mut().filter(|first| first.has_room()) else { return };
        let planned = first.plan(now);
        self.compute(planned, now, actions);
    }

    fn compute(&mut self, planned: Planned, now: Time, actions: &mut Vec<Action>) {
        let Planned { changes, rows, tokens, failed, alone } = planned;
        self.change(changes, actions);
        for FailedSession { session, coordinator, error } in failed {
            actions.push(Action::Send { to: coordinator, session, notice: Notice::Failed(error) });
            self.leave(session, actions);
        }
        if !rows.is_empty() {
            self.computing = (now, alone);
            self.pace.begin(&rows, now);
            actions.push(Action::Compute { rows, tokens });
        }
    }

    fn frame(&mut self, frame: Incoming, now: Time, actions: &mut Vec<Action>) {
        let Incoming { number, drops, starts, rows, payload_rows } = frame;
        let named: usize = rows.iter().map(|rows| rows.rows as usize).sum();
        let fits = rows.iter().all(|rows| self.fits(rows));
        if payload_rows != Some(named) || number != self.number || !fits {
            let from = self.stage(self.settings.index.saturating_sub(1));
            let why = format!("stage {from} sent a frame that does not fit");
            return self.break_off(ErrorKind::Unavailable, why, now, actions);
        }
        for sequence in &drops {
            self.held.remove(sequence);
            self.lost.remove(sequence);
        }
        for start in &starts {
            let cause = match start.source {
                StartSource::Empty => None,
                StartSource::Fork { from, .. } => self.lost.get(&from).cloned(),
                StartSource::Take { from, .. } => {
                    self.held.remove(&from);
                    self.lost.remove(&from)
                }
            };
            self.lost.extend(cause.map(|cause| (start.sequence, cause)));
            self.held.insert(start.sequence);
        }
        if self.held.len() > MAX_SEQUENCES_HELD {
            let from = self.stage(self.settings.index.saturating_sub(1));
            let why = format!("stage {from} started more sequences than a stage holds");
            return self.break_off(ErrorKind::Unavailable, why, now, actions);
        }
        for rows in &rows {
            if let Some(session) = self.sequences.get(&rows.sequence)
                && let Some(joined) = self.sessions.get_mut(session)
            {
                joined.moved = now;
            }
        }
        let changes = drops.into_iter().map(Change::Drop).chain(starts.into_iter().map(Change::Start));
        self.change(changes.collect(), actions);
        match rows.is_empty() {
            true => self.hand_on(rows, Vec::new(), now, actions),
            false => {
                self.pace.begin(&rows, now);
                actions.push(Action::Compute { rows, tokens: Vec::new() });
            }
        }
    }

    /// Whether rows are within the limits: numbers from a peer are checked before use.
    fn fits(&self, rows: &FrameRows) -> bool {
        let end = (rows.start as usize).saturating_add(rows.rows as usize);
        rows.rows > 0 && end <= self.settings.context && rows.draft.len() < rows.rows as usize
    }

    fn computed(
        &mut self,
        rows: Vec<FrameRows>,
        advances: Vec<SteppedSequence>,
        failed: Vec<(u64, Error)>,
        now: Time,
        actions: &mut Vec<Action>,
    ) {
        self.pace.end(now);
        for (sequence, error) in failed {
            // Positions that went with another sequence are no fault of this one, its request or this node.
            let error = self.lost.get(&sequence).map_or(error, lost_with_another);
            if self.held.contains(&sequence) {
                self.lost.entry(sequence).or_insert_with(|| error.clone());
            }
            if let Some(session) = self.session_of(sequence) {
                self.fail(session, &error, now, actions);
            }
        }
        if let Some(first) = &mut self.first {
            let (began, alone) = self.computing;
            first.passed(self.number, &rows, alone, began, now);
        }
        self.hand_on(rows, advances, now, actions);
    }

    /// Sends computed rows to the next stage, or, on the last stage, the report to the first stage and tokens to the
    /// coordinators.
    fn hand_on(&mut self, rows: Vec<FrameRows>, advances: Vec<SteppedSequence>, now: Time, actions: &mut Vec<Action>) {
        let number = self.number;
        if let Some(to) = self.next() {
            return self.send_frame(to, rows, actions);
        }
        self.number += 1;
        if self.first.is_some() {
            actions.push(Action::Report { to: None, number });
            self.stepped(number, advances, now, actions);
        } else {
            actions.push(Action::Report { to: Some((self.stage(0), advances)), number });
        }
    }

    fn send_frame(&mut self, to: PeerId, rows: Vec<FrameRows>, actions: &mut Vec<Action>) {
        let (mut drops, mut starts) = (Vec::new(), Vec::new());
        for change in self.unsent.drain(..) {
            match change {
                Change::Drop(sequence) => drops.push(sequence),
                Change::Start(start) => starts.push(start),
            }
        }
        actions.push(Action::Frame { to, number: self.number, drops, starts, rows });
        self.number += 1;
    }

    /// Processes the report of a frame; called on the first stage.
    fn stepped(&mut self, number: u64, advances: Vec<SteppedSequence>, now: Time, actions: &mut Vec<Action>) {
        let Some(first) = &mut self.first else { return };
        let Ok(changes) = first.stepped(number, advances, now) else {
            let last = self.stage(self.settings.stages.len() - 1);
            let why = format!("stage {last} reported what no frame can have given");
            return self.break_off(ErrorKind::VerificationFailed, why, now, actions);
        };
        self.change(changes, actions);
        for (session, positions) in std::mem::take(&mut self.closing) {
            self.close(session, Some(positions), now, actions);
        }
    }

    /// Applies changes decided by the first stage, here and, with the next frame, on every other stage.
    fn change(&mut self, changes: Vec<Change>, actions: &mut Vec<Action>) {
        for change in changes {
            actions.push(match change {
                Change::Drop(sequence) => Action::Drop { sequence, session: self.session_of(sequence) },
                Change::Start(start) => {
                    let taken_from = match start.source {
                        StartSource::Take { from, .. } => self.session_of(from),
                        StartSource::Empty | StartSource::Fork { .. } => None,
                    };
                    Action::Start { start, taken_from }
                }
            });
            let Some(next) = self.next() else { continue };
            // A frame's drops precede its starts, so a drop that follows a start goes into a later frame.
            let follows_start = matches!(self.unsent.last(), Some(Change::Start(_)));
            if matches!(change, Change::Drop(_)) && follows_start && self.first.is_some() {
                self.send_frame(next, Vec::new(), actions);
            }
            self.unsent.push(change);
        }
    }
}

/// Why a sequence cannot go on whose first positions were another one's, which failed for this reason.
fn lost_with_another(cause: &Error) -> Error {
    let kind = if cause.kind() == ErrorKind::Overloaded { ErrorKind::Overloaded } else { ErrorKind::Unavailable };
    Error::new(kind, format!("the session that this one shared a prompt with failed: {}", cause.message()))
}

fn refuse(joining: Joining, error: Error, retry_after: Option<Duration>, actions: &mut Vec<Action>) {
    let Joining { session, choices, coordinator } = joining;
    actions.push(Action::Send { to: coordinator, session, notice: Notice::Refused { error, retry_after } });
    actions.extend((0..choices).map(|choice| Action::Forget(session.choice(choice))));
}

/// What is wrong with a request, if anything.
fn unfit(settings: &StageSettings, broken: Option<&str>, opening: &Opening<'_>) -> Option<Error> {
    let wrong = |message: &str| Some(Error::new(ErrorKind::InvalidInput, message));
    if let Some(why) = broken {
        return Some(Error::new(ErrorKind::Unavailable, why));
    }
    if opening.stages != settings.stages || opening.numerics != settings.numerics {
        // The request is fine; its coordinator finds the stages as they are now.
        return Some(Error::new(ErrorKind::Unavailable, "the request was routed to other stages"));
    }
    if opening.tokens.is_empty() || opening.tokens.iter().any(|&token| token as usize >= settings.vocabulary) {
        return wrong("the request has no tokens, or tokens outside the model's vocabulary");
    }
    let (known, prompt) = (opening.tokens.len(), opening.prompt_len);
    if prompt == 0 || prompt > known || known >= settings.context || known - prompt > opening.max_new_tokens {
        return wrong("the request's token counts are inconsistent, or exceed the model's context");
    }
    opening.bad_sampling.cloned()
}
