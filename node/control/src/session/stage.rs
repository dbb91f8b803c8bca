//! The protocol of one stage of a chain: which sessions it takes part in, what it does in which order, what it passes on, and
//! whom it tells of what. Events go in, actions come out; layers, caches, sampling and payloads are the driver's. Senders were
//! judged before (`gate`).

use std::collections::BTreeMap;
use std::time::Duration;

use libp2p_identity::PeerId;
use pangea_units::{Error, ErrorKind};

use super::first_stage::{Alone, Change, Drafter, FailedSession, FirstStage, Planned};
use super::{FrameRows, SessionId, StartSource, SteppedSequence};
use crate::Time;

mod action;
mod event;
#[cfg(test)]
mod tests;

pub use action::{Action, Count, Notice};
pub use event::{Event, Incoming, Opening, StageSettings};

/// A session that this stage takes part in.
#[derive(Debug)]
struct Joined {
    sequence: u64,
    coordinator: PeerId,
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
    /// The session of every sequence that is open.
    sequences: BTreeMap<u64, SessionId>,
    first: Option<FirstStage<D>>,
    joining: Option<Joining>,
    /// The frame that is being computed: since when, and the sequence that has it to itself.
    computing: (Time, Option<Alone>),
    /// Number of the next frame.
    number: u64,
    /// Changes that the next stage has not been told of.
    unsent: Vec<Change>,
    /// Sessions to be signed for once the frame that computes them is done.
    closing: Vec<(SessionId, u32)>,
    /// Why nothing goes on here any more.
    broken: Option<String>,
}

impl<D: Drafter> StageProtocol<D> {
    /// A stage without sessions.
    pub fn new(settings: StageSettings) -> StageProtocol<D> {
        StageProtocol {
            first: settings.limits.map(|limits| FirstStage::new(limits, settings.drafts)),
            settings,
            sessions: BTreeMap::new(),
            sequences: BTreeMap::new(),
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

    /// Number of sequences that run and that wait, where they are scheduled here.
    pub fn load(&self) -> (usize, usize) {
        self.first.as_ref().map_or((0, 0), FirstStage::load)
    }

    /// Number of sessions that this stage takes part in.
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// The open session of a sequence.
    pub fn session_of(&self, sequence: u64) -> Option<SessionId> {
        self.sequences.get(&sequence).copied()
    }

    /// Number of the frame that is computed next, or now.
    pub fn frame_number(&self) -> u64 {
        self.number
    }

    /// Whether [`Event::Ready`] may bring another frame now.
    pub fn has_room(&self) -> bool {
        self.broken.is_none() && self.first.as_ref().is_some_and(FirstStage::has_room)
    }

    /// Whether time alone can bring about something: a request that waits too long, a session that nobody closes.
    pub fn follows_time(&self) -> bool {
        self.first.as_ref().is_some_and(|first| !first.is_idle())
    }

    fn stage(&self, index: usize) -> PeerId {
        self.settings.stages[index].peer
    }

    fn next(&self) -> Option<PeerId> {
        self.settings.stages.get(self.settings.index + 1).map(|stage| stage.peer)
    }

    /// Adds to `actions` what follows.
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
            Event::NotSigned(session) => {
                // The stages behind forget the session, and its coordinator waits no longer than it must.
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
            Event::NotSent { to, why } => self.break_off(format!("stage {to} cannot be sent to: {why}"), now, actions),
            Event::CannotGoOn { why } => self.break_off(why.to_owned(), now, actions),
            Event::Ready => self.ready(now, actions),
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
        for choice in 0..choices {
            let (session, sequence) = (session.choice(choice), sequence + u64::from(choice));
            self.sessions.insert(session, Joined { sequence, coordinator });
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

    /// Reports the sessions of an opening that came after this chain broke to their coordinator and the first stage, which may
    /// not know of the break yet.
    fn cannot_open(&self, joining: Joining, error: &Error, actions: &mut Vec<Action>) {
        let Joining { session, choices, coordinator } = joining;
        let first = Some(self.stage(0)).filter(|first| *first != coordinator);
        for session in (0..choices).map(|choice| session.choice(choice)) {
            let tell = |to| Action::Send { to, session, notice: Notice::Failed(error.clone()) };
            actions.extend([Some(coordinator), first].into_iter().flatten().map(tell));
        }
    }

    /// Tells the coordinator, the first stage and the stages behind that a session cannot go on, and forgets it.
    fn fail(&mut self, session: SessionId, error: &Error, now: Time, actions: &mut Vec<Action>) {
        let Some(joined) = self.sessions.get(&session) else { return };
        let coordinator = joined.coordinator;
        let tell = |to| Action::Send { to, session, notice: Notice::Failed(error.clone()) };
        actions.push(tell(coordinator));
        if let Some(first) = &mut self.first {
            let changes = first.failed(&session, now);
            self.change(changes, actions);
        } else if coordinator != self.stage(0) {
            actions.push(tell(self.stage(0)));
        }
        self.leave(session, actions);
    }

    /// On the first stage.
    fn close(&mut self, session: SessionId, commit: Option<u32>, now: Time, actions: &mut Vec<Action>) {
        let Some(first) = &mut self.first else { return };
        // The coordinator may hear of the last tokens before this stage does.
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

    /// Nobody wants a session any more; the stages behind hear of that, too.
    fn leave(&mut self, session: SessionId, actions: &mut Vec<Action>) {
        if self.forget(&session, actions).is_none() {
            return;
        }
        if let Some(to) = self.next() {
            actions.push(Action::Send { to, session, notice: Notice::Close });
        }
    }

    /// Has what this stage did in a session signed, and forgets the session.
    fn sign(&mut self, session: SessionId, positions: u32, actions: &mut Vec<Action>) {
        let Some(joined) = self.sessions.get(&session) else { return };
        let (sequence, to) = (joined.sequence, self.next().unwrap_or(joined.coordinator));
        let tokens = self.first.as_mut().and_then(|first| first.forget(&session));
        actions.push(Action::Sign { session, sequence, positions, to, tokens });
        self.forget(&session, actions);
    }

    fn forget(&mut self, session: &SessionId, actions: &mut Vec<Action>) -> Option<Joined> {
        if let Some(first) = &mut self.first {
            first.forget(session);
        }
        let joined = self.sessions.remove(session)?;
        self.sequences.remove(&joined.sequence);
        actions.push(Action::Forget(*session));
        Some(joined)
    }

    fn peer_gone(&mut self, peer: PeerId, why: &str, now: Time, actions: &mut Vec<Action>) {
        let is_stage = self.settings.stages.iter().any(|stage| stage.peer == peer);
        if is_stage && peer != self.stage(self.settings.index) {
            return self.break_off(format!("stage {peer} is gone ({why})"), now, actions);
        }
        if self.first.is_none() {
            // The first stage hears of the same, or still reaches the coordinator.
            return;
        }
        // Ended ones, too: nobody is left to close them.
        let of = |(session, joined): (&SessionId, &Joined)| (joined.coordinator == peer).then_some(*session);
        for session in self.sessions.iter().filter_map(of).collect::<Vec<_>>() {
            actions.push(Action::Count(Count::Cancelled));
            self.close(session, None, now, actions);
        }
    }

    /// Without one of its stages a chain is of no use; coordinators find another.
    fn break_off(&mut self, why: String, now: Time, actions: &mut Vec<Action>) {
        let error = Error::new(ErrorKind::Unavailable, why.clone());
        let tell = |(session, to)| Action::Send { to, session, notice: Notice::Failed(error.clone()) };
        match &self.first {
            Some(first) => actions.extend(first.open_sessions().map(tell)),
            // The first stage may not know, and has nothing to wait for any more.
            None => actions.extend(self.sessions.iter().map(|(session, joined)| tell((*session, joined.coordinator)))),
        }
        self.sessions.clear();
        self.sequences.clear();
        self.unsent.clear();
        self.closing.clear();
        self.joining = None;
        self.first = self.settings.limits.map(|limits| FirstStage::new(limits, self.settings.drafts));
        self.computing = (now, None);
        self.broken = Some(why.clone());
        actions.push(Action::Break { why });
    }

    // Frames.

    fn ready(&mut self, now: Time, actions: &mut Vec<Action>) {
        let Some(first) = &mut self.first else { return };
        for session in first.abandoned(now) {
            self.close(session, None, now, actions);
        }
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
            actions.push(Action::Compute { rows, tokens });
        }
    }

    fn frame(&mut self, frame: Incoming, now: Time, actions: &mut Vec<Action>) {
        let Incoming { number, drops, starts, rows, payload_rows } = frame;
        let named: usize = rows.iter().map(|rows| rows.rows as usize).sum();
        let fits = rows.iter().all(|rows| self.fits(rows));
        if payload_rows != Some(named) || number != self.number || !fits {
            let from = self.stage(self.settings.index.saturating_sub(1));
            return self.break_off(format!("stage {from} sent a frame that does not fit"), now, actions);
        }
        let changes = drops.into_iter().map(Change::Drop).chain(starts.into_iter().map(Change::Start));
        self.change(changes.collect(), actions);
        match rows.is_empty() {
            true => self.hand_on(rows, Vec::new(), now, actions),
            false => actions.push(Action::Compute { rows, tokens: Vec::new() }),
        }
    }

    /// Whether rows could be computed: hostile numbers are found before they are used.
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
        for (sequence, error) in failed {
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

    /// What was computed goes to the next stage, or the report of it to the first and the tokens to the coordinators.
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

    /// A frame is done, on the first stage.
    fn stepped(&mut self, number: u64, advances: Vec<SteppedSequence>, now: Time, actions: &mut Vec<Action>) {
        let Some(first) = &mut self.first else { return };
        let changes = first.stepped(number, advances, now);
        self.change(changes, actions);
        for (session, positions) in std::mem::take(&mut self.closing) {
            self.close(session, Some(positions), now, actions);
        }
    }

    /// Does what the first stage decided, here and, with the next frame, on every other stage.
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
            // A frame's drops come before its starts: a drop that follows a start needs a frame of its own before it.
            let follows_start = matches!(self.unsent.last(), Some(Change::Start(_)));
            if matches!(change, Change::Drop(_)) && follows_start && self.first.is_some() {
                self.send_frame(next, Vec::new(), actions);
            }
            self.unsent.push(change);
        }
    }
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
        return wrong("the request is for stages other than these");
    }
    if opening.tokens.is_empty() || opening.tokens.iter().any(|&token| token as usize >= settings.vocabulary) {
        return wrong("the request has no tokens, or some that the model does not know");
    }
    let (known, prompt) = (opening.tokens.len(), opening.prompt_len);
    if prompt == 0 || prompt > known || known >= settings.context || known - prompt > opening.max_new_tokens {
        return wrong("the request's tokens do not fit together, or not the model's context");
    }
    opening.bad_sampling.cloned()
}
