//! State of the first stage of a chain: the sequences of every session, the rows to compute next, and the results of
//! frames in flight. It holds token ids and numbers; the driver owns the caches.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use libp2p_identity::PeerId;
use pangea_units::{ByteSize, Error, ErrorKind};

use super::batch::{Action, Advance, Batch, BatchLimits, Event, Rows, SequenceId, Source};
use super::frame_watch::{FrameWatch, Misreport};
use super::grouping::Grouping;
use super::stage::Opening;
use super::{FrameRows, SessionId, Start, StartSource, SteppedSequence};
use crate::Time;

/// Time after which an ended session is closed if its coordinator has not done so: the coordinator left unnoticed.
/// A coordinator with a slow reader closes late, so this is as long as a replaced chain is kept.
pub(super) const CLOSE_TIMEOUT: Duration = Duration::from_secs(600);

/// Interval at which the coordinator of an answer without tokens hears that the chain works on, so that it can tell a long
/// prompt from a chain that hangs.
pub(super) const NOTICE_INTERVAL: Duration = Duration::from_secs(2);

/// Time for which the last stage may wait for an answer's grammar before the first token. A grammar takes milliseconds, and for
/// the first one a large vocabulary some seconds.
pub const GRAMMAR_TIMEOUT: Duration = Duration::from_secs(15);

/// When tokens are drafted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drafts {
    /// Never.
    Off,
    /// While drafting is faster, as measured.
    Paying,
    /// As if a pass took the same time for any number of rows: as many tokens as possible, and the same ones in every run.
    Eager,
}

/// Predicts the next tokens of one sequence, and learns from the results. A clone of one that has predicted nothing is for another
/// sequence.
pub trait Drafter: Clone {
    /// At most `limit` tokens that may follow `tokens` (the prompt and the chosen tokens).
    fn propose(&mut self, tokens: &[u32], limit: usize) -> Vec<u32>;

    /// Records that a pass of `rows` rows (the last token and its draft), of which `accepted` drafted ones were right,
    /// took `seconds`.
    fn observe(&mut self, rows: usize, accepted: usize, seconds: f64);
}

/// The scheduler of a chain.
#[derive(Debug)]
pub(super) struct FirstStage<D> {
    batch: Batch,
    members: BTreeMap<SequenceId, Member<D>>,
    sequences: BTreeMap<SessionId, SequenceId>,
    /// Sessions that have ended but are not closed yet.
    ended: BTreeMap<SessionId, Ended>,
    /// Sequences of sessions that were stopped, as long as their caches are kept: a later stage may still report a failure.
    stopped: BTreeMap<SessionId, SequenceId>,
    next_sequence: u64,
    /// Frames that the last stage has not reported yet, oldest first.
    under_way: VecDeque<UnderWay>,
    watch: FrameWatch,
    /// When coordinators of answers without tokens were told last that the chain works on.
    noticed: Time,
    grouping: Grouping,
    drafts: Drafts,
    /// What every sequence gets a clone of.
    drafter: D,
    /// Positions of the sessions that have ended and are not closed, at most: what the memory for sessions holds. Their tokens
    /// and commitments take a small part of what their caches took.
    ended_positions: usize,
}

/// A session whose answer is complete.
#[derive(Debug)]
struct Ended {
    at: Time,
    coordinator: PeerId,
    /// The prompt and the chosen tokens.
    tokens: Vec<u32>,
}

/// A waiting or running sequence.
#[derive(Debug)]
struct Member<D> {
    session: SessionId,
    coordinator: PeerId,
    /// The prompt and the chosen tokens.
    tokens: Vec<u32>,
    /// Number of tokens at which the answer is complete.
    max_tokens: usize,
    /// Number of tokens when the session was opened.
    opened_with: usize,
    /// When the last stage said first that the answer waits for its grammar.
    waits_since: Option<Time>,
    scored: bool,
    drafter: Option<Box<D>>,
}

#[derive(Debug)]
struct UnderWay {
    number: u64,
    began: Time,
    alone: Option<SoleSequence>,
    /// The rows after which tokens are chosen.
    choosing: Vec<FrameRows>,
}

/// A change of the sequences that every stage holds.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change {
    Drop(u64),
    Start(Start),
}

/// Result of planning a frame.
#[derive(Default)]
pub(super) struct Planned {
    pub(super) changes: Vec<Change>,
    pub(super) rows: Vec<FrameRows>,
    /// Token ids of all rows.
    pub(super) tokens: Vec<u32>,
    /// Sessions that cannot continue.
    pub(super) failed: Vec<FailedSession>,
    /// The answering sequence that has the frame to itself, if any.
    pub(super) alone: Option<SoleSequence>,
}

/// The answering sequence that has a frame to itself: its id, first position and number of drafted tokens.
pub(super) type SoleSequence = (SequenceId, usize, usize);

/// A session that ends without an answer.
pub(super) struct FailedSession {
    pub(super) session: SessionId,
    pub(super) coordinator: PeerId,
    pub(super) error: Error,
}

impl<D: Drafter> FirstStage<D> {
    pub(super) fn new(limits: BatchLimits, drafts: Drafts, drafter: D) -> FirstStage<D> {
        FirstStage {
            grouping: Grouping::new(limits.groups),
            ended_positions: limits.whole_positions(),
            batch: Batch::new(limits),
            members: BTreeMap::new(),
            sequences: BTreeMap::new(),
            ended: BTreeMap::new(),
            stopped: BTreeMap::new(),
            next_sequence: 0,
            under_way: VecDeque::new(),
            watch: FrameWatch::default(),
            noticed: Time::ZERO,
            drafts,
            drafter,
        }
    }

    /// Number of running and of waiting sequences.
    pub(super) fn load(&self) -> (usize, usize) {
        (self.batch.running(), self.batch.waiting())
    }

    /// Whether the passing of time has no effect: nothing runs or waits, and nothing is to be closed.
    pub(super) fn is_idle(&self) -> bool {
        self.batch.is_idle() && self.ended.is_empty()
    }

    /// Whether another frame may be planned.
    pub(super) fn has_room(&self) -> bool {
        // One frame per stage plus one in transit; with a single group, and in a chain of one stage, one at a time.
        let groups = self.groups();
        self.under_way.len() < if groups > 1 { groups + 1 } else { 1 }
    }

    /// Current number of groups of answers; while prompts are computed, always the number of stages.
    fn groups(&self) -> usize {
        if self.batch.only_answers() { self.grouping.groups() } else { self.grouping.stages() }
    }

    /// Accepts a request; returns the id of its first sequence, or the delay after which the client may retry.
    pub(super) fn open(&mut self, open: &Opening<'_>, now: Time) -> Result<u64, Duration> {
        let first = SequenceId(self.next_sequence);
        let scored = open.prompt_logprobs && open.tokens.len() == open.prompt_len;
        let choices = usize::from(open.choices);
        let event = Event::Arrived { first, choices, prompt: open.tokens.to_vec(), scored };
        for action in self.batch.handle(event, now) {
            if let Action::Refuse { retry_after, .. } = action {
                return Err(retry_after);
            }
        }
        self.next_sequence += u64::from(open.choices);
        for choice in 0..open.choices {
            let (sequence, session) = (SequenceId(first.0 + u64::from(choice)), open.session.choice(choice));
            let member = Member {
                session,
                coordinator: open.coordinator,
                tokens: open.tokens.to_vec(),
                max_tokens: open.prompt_len.saturating_add(open.max_new_tokens),
                opened_with: open.tokens.len(),
                waits_since: None,
                scored,
                drafter: None,
            };
            self.members.insert(sequence, member);
            self.sequences.insert(session, sequence);
        }
        Ok(first.0)
    }

    /// Whether a frame in flight computes a session.
    pub(super) fn is_under_way(&self, session: &SessionId) -> bool {
        self.sequences.get(session).is_some_and(|sequence| self.batch.is_under_way(*sequence))
    }

    /// Ends the sequence of a session; its cache may serve others.
    pub(super) fn stop(&mut self, session: &SessionId, now: Time) -> Vec<Change> {
        let Some(sequence) = self.sequences.remove(session) else { return Vec::new() };
        let Some(member) = self.members.remove(&sequence) else { return Vec::new() };
        let Member { coordinator, tokens, .. } = member;
        self.ended.insert(*session, Ended { at: now, coordinator, tokens });
        let actions = self.batch.handle(Event::Cancelled(sequence), now);
        self.stopped.insert(*session, sequence);
        self.stopped.retain(|_, sequence| self.batch.keeps(*sequence));
        actions.iter().filter_map(change).collect()
    }

    /// Removes a session; returns its tokens if it had ended.
    pub(super) fn remove(&mut self, session: &SessionId) -> Option<Vec<u32>> {
        self.ended.remove(session).map(|ended| ended.tokens)
    }

    /// Ends a session that cannot continue; its cache is not reused.
    pub(super) fn failed(&mut self, session: &SessionId, now: Time) -> Vec<Change> {
        let Some(sequence) = self.sequences.remove(session).or_else(|| self.stopped.remove(session)) else {
            return Vec::new();
        };
        self.members.remove(&sequence);
        let actions = self.batch.handle(Event::Failed(sequence), now);
        actions.iter().filter_map(change).collect()
    }

    /// All sessions that have not ended, with their coordinators.
    pub(super) fn open_sessions(&self) -> impl Iterator<Item = (SessionId, PeerId)> + '_ {
        self.members.values().map(|member| (member.session, member.coordinator))
    }

    /// The answers without tokens whose coordinators are to hear that the chain works on: all of them, now and then.
    pub(super) fn without_tokens(&mut self, now: Time) -> Vec<(SessionId, PeerId)> {
        if now.since(self.noticed) < NOTICE_INTERVAL {
            return Vec::new();
        }
        self.noticed = now;
        let silent = self.members.values().filter(|member| member.tokens.len() == member.opened_with);
        silent.map(|member| (member.session, member.coordinator)).collect()
    }

    /// Whether the later stages have taken too long for the oldest frame under way.
    pub(super) fn is_stalled(&self, now: Time) -> bool {
        self.under_way.front().is_some_and(|oldest| self.watch.is_late(oldest.number, now))
    }

    /// Sessions that have ended and are not closed, whose lease is over: [`CLOSE_TIMEOUT`] after their end, or earlier when
    /// all of them together have more positions than the memory for sessions holds. Then the coordinator with the most
    /// positions loses its oldest ones.
    pub(super) fn abandoned(&self, now: Time) -> Vec<SessionId> {
        let late = |ended: &Ended| now.since(ended.at) > CLOSE_TIMEOUT;
        let mut over: Vec<SessionId> =
            self.ended.iter().filter(|(_, ended)| late(ended)).map(|(session, _)| *session).collect();
        let mut total: usize = self.ended.values().filter(|ended| !late(ended)).map(|ended| ended.tokens.len()).sum();
        if total <= self.ended_positions {
            return over;
        }
        /// The ended sessions of one coordinator: their positions, and each with its positions.
        type Kept = (usize, Vec<(Time, SessionId, usize)>);
        let mut kept: BTreeMap<PeerId, Kept> = BTreeMap::new();
        for (session, ended) in self.ended.iter().filter(|(_, ended)| !late(ended)) {
            let positions = ended.tokens.len();
            let (own, sessions) = kept.entry(ended.coordinator).or_default();
            *own += positions;
            sessions.push((ended.at, *session, positions));
        }
        kept.values_mut().for_each(|(_, sessions)| sessions.sort_unstable_by(|a, b| b.cmp(a)));
        while total > self.ended_positions
            && let Some((own, sessions)) = kept.values_mut().max_by_key(|(own, _)| *own)
            && let Some((_, session, positions)) = sessions.pop()
        {
            *own -= positions;
            total -= positions;
            over.push(session);
        }
        over
    }

    /// Plans the next frame.
    pub(super) fn plan(&mut self, now: Time) -> Planned {
        let mut planned = Planned::default();
        self.batch.set_groups(self.groups());
        let actions = self.batch.handle(Event::Ready, now);
        self.follow(actions, &mut planned);
        planned
    }

    /// Plans again after the pass of these rows failed for lack of memory.
    pub(super) fn exhausted(&mut self, rows: &[FrameRows], now: Time) -> Planned {
        let step = rows.iter().map(|rows| SequenceId(rows.sequence)).collect();
        let mut planned = Planned::default();
        let actions = self.batch.handle(Event::Exhausted(step), now);
        self.follow(actions, &mut planned);
        planned
    }

    fn follow(&mut self, actions: Vec<Action>, planned: &mut Planned) {
        let mut failed = Vec::new();
        for action in actions {
            let mut change = change(&action);
            if let Some(Change::Start(start)) = &mut change
                && let Some(member) = self.members.get(&SequenceId(start.sequence))
            {
                start.session = member.session;
            }
            planned.changes.extend(change);
            match action {
                Action::Expire(id) => {
                    failed.push((id, "the request waited too long for its turn; try again later".to_owned()))
                }
                Action::Fail { sequence, needs, limit } => {
                    let (needs, limit) = (ByteSize(needs), ByteSize(limit));
                    let why = format!("the request needs {needs} for its keys and values; sessions here have {limit}");
                    let hint = "shorten it, or start the node with a larger --max-memory";
                    failed.push((sequence, format!("{why}; {hint}")));
                }
                Action::Step(rows) => self.step(&rows, planned),
                // Only arrivals are refused, and `open` answers those itself.
                Action::Refuse { .. } | Action::Start { .. } | Action::Drop(_) => {}
            }
        }
        for (id, why) in failed {
            if let Some(member) = self.members.remove(&id) {
                self.sequences.remove(&member.session);
                let error = Error::new(ErrorKind::Overloaded, why);
                let (session, coordinator) = (member.session, member.coordinator);
                planned.failed.push(FailedSession { session, coordinator, error });
            }
        }
    }

    fn step(&mut self, rows: &[Rows], planned: &mut Planned) {
        for rows in rows {
            let Some(member) = self.members.get_mut(&rows.sequence) else { continue };
            planned.tokens.extend_from_slice(&member.tokens[rows.start..][..rows.rows]);
            let draft = member.draft(rows.draft, &self.drafter);
            planned.tokens.extend_from_slice(&draft);
            planned.rows.push(FrameRows {
                sequence: rows.sequence.0,
                start: rows.start as u32,
                rows: (rows.rows + draft.len()) as u32,
                choose: rows.choose,
                all_logits: member.scored || !draft.is_empty(),
                draft,
            });
        }
        planned.alone = match (&planned.rows[..], rows) {
            ([only], [rows]) if rows.rows == 1 => Some((rows.sequence, rows.start, only.draft.len())),
            _ => None,
        };
    }

    /// Records that the planned rows were computed on this stage from `began` on and are sent along the chain as frame
    /// `number`. A prompt's next rows need not wait for the last stage.
    pub(super) fn passed(
        &mut self,
        number: u64,
        rows: &[FrameRows],
        alone: Option<SoleSequence>,
        began: Time,
        now: Time,
    ) {
        let choosing = rows.iter().filter(|rows| rows.choose).cloned().collect();
        self.under_way.push_back(UnderWay { number, began, alone, choosing });
        self.watch.sent(number, self.grouping.stages(), began, now);
        let advance = |rows: &FrameRows| Advance {
            sequence: SequenceId(rows.sequence),
            computed: (rows.start + rows.rows) as usize,
            chosen: Vec::new(),
            ended: false,
        };
        let advances: Vec<Advance> = rows.iter().filter(|rows| !rows.choose).map(advance).collect();
        if !advances.is_empty() {
            // No sequence ends here, so there are no actions.
            let _ = self.batch.handle(Event::Stepped(advances), now);
        }
    }

    /// Records the last stage's report of a frame; returns the changes for every stage.
    ///
    /// # Errors
    /// [`Misreport`] if no such frame is due, or if it cannot have given what is reported; nothing is recorded then.
    pub(super) fn stepped(
        &mut self,
        number: u64,
        stepped: Vec<SteppedSequence>,
        now: Time,
    ) -> Result<Vec<Change>, Misreport> {
        // Frames come back in order. Those without rows only drop and start sequences, and are not waited for.
        let frame = match self.under_way.front() {
            Some(oldest) if oldest.number == number => {
                let fits = |one: &SteppedSequence| oldest.choosing.iter().any(|rows| can_give(rows, one));
                if !stepped.iter().all(fits) || stepped.len() > oldest.choosing.len() {
                    return Err(Misreport);
                }
                self.watch.reported(number, now);
                self.under_way.pop_front()
            }
            _ if stepped.is_empty() && self.under_way.iter().all(|frame| frame.number > number) => None,
            _ => return Err(Misreport),
        };
        let mut advances = Vec::with_capacity(stepped.len());
        let tokens = stepped.iter().map(|one| one.chosen.len()).sum();
        self.grouping.stepped(self.batch.running(), !self.batch.only_answers(), tokens, now);
        for one in stepped {
            let id = SequenceId(one.sequence);
            let Some(member) = self.members.get_mut(&id) else { continue };
            if let Some(UnderWay { alone: Some((alone, start, drafted)), began, .. }) = &frame
                && *alone == id
            {
                let accepted = (one.computed as usize).saturating_sub(start + 1);
                // With eager drafts, a pass counts as taking the same time for any number of rows.
                let seconds = if self.drafts == Drafts::Eager { 1.0 } else { now.since(*began).as_secs_f64() };
                if let Some(drafter) = &mut member.drafter {
                    drafter.observe(1 + drafted, accepted, seconds);
                }
            }
            if one.chosen.is_empty() && !one.ended {
                let since = *member.waits_since.get_or_insert(now);
                if member.tokens.len() > member.opened_with || now.since(since) > GRAMMAR_TIMEOUT {
                    return Err(Misreport);
                }
            }
            member.tokens.extend_from_slice(&one.chosen);
            if one.ended
                && let Some(member) = self.members.remove(&id)
            {
                let Member { session, coordinator, tokens, .. } = member;
                self.ended.insert(session, Ended { at: now, coordinator, tokens });
            }
            advances.push(Advance {
                sequence: id,
                computed: one.computed as usize,
                chosen: one.chosen,
                ended: one.ended,
            });
        }
        let actions = self.batch.handle(Event::Stepped(advances), now);
        Ok(actions.iter().filter_map(change).collect())
    }
}

/// Whether rows can have given what is reported of their sequence: a token after the last row, and more after drafted rows; or
/// none, and the last row is to be computed again, while the answer's grammar is being compiled.
fn can_give(rows: &FrameRows, stepped: &SteppedSequence) -> bool {
    let accepted = stepped.chosen.len().saturating_sub(1);
    let end = (rows.start as usize).saturating_add(rows.rows as usize).saturating_sub(rows.draft.len());
    let computed = match stepped.chosen.is_empty() && !stepped.ended {
        true => end.saturating_sub(1),
        false => end + accepted,
    };
    rows.sequence == stepped.sequence && accepted <= rows.draft.len() && stepped.computed as usize == computed
}

impl<D: Drafter> Member<D> {
    /// Predicts at most `limit` next tokens, with a clone of `drafter`.
    fn draft(&mut self, limit: usize, drafter: &D) -> Vec<u32> {
        // The last token of an answer needs no row of its own.
        let limit = limit.min(self.max_tokens.saturating_sub(self.tokens.len() + 1));
        if limit == 0 {
            return Vec::new();
        }
        let drafter = self.drafter.get_or_insert_with(|| Box::new(drafter.clone()));
        drafter.propose(&self.tokens, limit)
    }
}

fn change(action: &Action) -> Option<Change> {
    match *action {
        Action::Drop(id) => Some(Change::Drop(id.0)),
        Action::Start { sequence, source } => {
            let source = match source {
                Source::Empty => StartSource::Empty,
                Source::Fork { from, tokens } => StartSource::Fork { from: from.0, tokens: tokens as u32 },
                Source::Take { from, tokens } => StartSource::Take { from: from.0, tokens: tokens as u32 },
            };
            Some(Change::Start(Start { sequence: sequence.0, session: SessionId::default(), source }))
        }
        _ => None,
    }
}
