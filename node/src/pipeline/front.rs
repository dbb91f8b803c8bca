//! On the first stage: the sessions of a chain, the rows that are computed next, and what became of those under way. It
//! keeps tokens and numbers; the caches are the stage's.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use libp2p::PeerId;
use pangea_client::{Error, ErrorKind};
use pangea_compute::draft::Drafter;

use super::stage::Drafts;
use super::wire::{FrameRows, Open, SessionId, Start, StartSource, SteppedSequence};
use pangea_control::Time;
use pangea_control::session::batch::{Action, Advance, Batch, BatchLimits, Event, Rows, SequenceId, Source};
use pangea_control::session::grouping::Grouping;

/// The scheduler of a chain.
pub(super) struct Front {
    batch: Batch,
    members: HashMap<SequenceId, Member>,
    sequences: HashMap<SessionId, SequenceId>,
    /// Of sessions that have ended and are not closed yet.
    ended: HashMap<SessionId, Vec<u32>>,
    next_sequence: u64,
    /// Frames that the last stage has not told of, oldest first.
    under_way: VecDeque<UnderWay>,
    grouping: Grouping,
    drafts: Drafts,
    since: Instant,
}

/// A sequence that waits or runs.
struct Member {
    session: SessionId,
    coordinator: PeerId,
    /// The prompt and what was chosen.
    tokens: Vec<u32>,
    /// Tokens when it is complete.
    most: usize,
    scored: bool,
    drafter: Option<Box<Drafter>>,
}

struct UnderWay {
    number: u64,
    began: Instant,
    /// The sequence that had the frame to itself, answering.
    alone: Option<(SequenceId, usize, usize)>,
}

/// A change of what every stage holds, in order.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change {
    Drop(u64),
    Start(Start),
}

/// What is to be computed.
#[derive(Default)]
pub(super) struct Planned {
    pub(super) changes: Vec<Change>,
    pub(super) rows: Vec<FrameRows>,
    /// The token ids of all rows.
    pub(super) tokens: Vec<u32>,
    /// Sessions that cannot go on.
    pub(super) failed: Vec<FailedSession>,
}

/// A session that ends without an answer.
pub(super) struct FailedSession {
    pub(super) session: SessionId,
    pub(super) coordinator: PeerId,
    pub(super) error: Error,
}

impl Front {
    pub(super) fn new(limits: BatchLimits, drafts: Drafts) -> Front {
        Front {
            grouping: Grouping::new(limits.groups),
            batch: Batch::new(limits),
            members: HashMap::new(),
            sequences: HashMap::new(),
            ended: HashMap::new(),
            next_sequence: 0,
            under_way: VecDeque::new(),
            drafts,
            since: Instant::now(),
        }
    }

    /// How many sequences run and wait.
    pub(super) fn load(&self) -> (usize, usize) {
        (self.batch.running(), self.batch.waiting())
    }

    /// Whether nothing runs or waits.
    pub(super) fn is_idle(&self) -> bool {
        self.batch.is_idle()
    }

    /// Whether another frame may be planned.
    pub(super) fn has_room(&self) -> bool {
        // One frame in each stage, and one on its way; where all go together, and in a chain of one stage, one at a time.
        let groups = self.groups();
        self.under_way.len() < if groups > 1 { groups + 1 } else { 1 }
    }

    /// In how many groups answers go now: beside prompts, always as many as there are stages.
    fn groups(&self) -> usize {
        if self.batch.only_answers() { self.grouping.groups() } else { self.grouping.stages() }
    }

    /// Takes a request in; the number of its first sequence, or when to try again.
    pub(super) fn open(&mut self, open: &Open) -> Result<u64, Duration> {
        let first = SequenceId(self.next_sequence);
        let scored = open.prompt_logprobs && open.tokens.len() == open.prompt_len as usize;
        let choices = usize::from(open.choices);
        let event = Event::Arrived { first, choices, prompt: open.tokens.clone(), scored };
        for action in self.batch.handle(event, Time::since_epoch(self.since.elapsed())) {
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
                tokens: open.tokens.clone(),
                most: (open.prompt_len as usize).saturating_add(open.most as usize),
                scored,
                drafter: None,
            };
            self.members.insert(sequence, member);
            self.sequences.insert(session, sequence);
        }
        Ok(first.0)
    }

    /// Whether a frame that is under way computes a session.
    pub(super) fn is_under_way(&self, session: &SessionId) -> bool {
        self.sequences.get(session).is_some_and(|sequence| self.batch.is_under_way(*sequence))
    }

    /// The tokens of a session: the prompt and what was chosen.
    pub(super) fn tokens(&self, session: &SessionId) -> Option<&[u32]> {
        let running = self.sequences.get(session).and_then(|sequence| self.members.get(sequence));
        running.map(|member| &member.tokens).or_else(|| self.ended.get(session)).map(Vec::as_slice)
    }

    /// Nobody wants more of a session.
    pub(super) fn stop(&mut self, session: &SessionId) -> Vec<Change> {
        let Some(sequence) = self.sequences.remove(session) else { return Vec::new() };
        let Some(member) = self.members.remove(&sequence) else { return Vec::new() };
        self.ended.insert(*session, member.tokens);
        let actions = self.batch.handle(Event::Cancelled(sequence), Time::since_epoch(self.since.elapsed()));
        actions.iter().filter_map(change).collect()
    }

    /// A session is over for good.
    pub(super) fn forget(&mut self, session: &SessionId) {
        self.ended.remove(session);
    }

    /// A session cannot go on here, and what was computed for it is not to be used.
    pub(super) fn failed(&mut self, session: &SessionId) -> Vec<Change> {
        let Some(sequence) = self.sequences.remove(session) else { return Vec::new() };
        self.members.remove(&sequence);
        let actions = self.batch.handle(Event::Failed(sequence), Time::since_epoch(self.since.elapsed()));
        actions.iter().filter_map(change).collect()
    }

    /// The sessions of a coordinator.
    pub(super) fn sessions_of(&self, coordinator: &PeerId) -> Vec<SessionId> {
        let of = |sequence: &SequenceId| self.members.get(sequence).map(|member| member.coordinator);
        self.sequences
            .iter()
            .filter(|(_, sequence)| of(sequence) == Some(*coordinator))
            .map(|(session, _)| *session)
            .collect()
    }

    /// All sessions that have not ended, with their coordinators.
    pub(super) fn open_sessions(&self) -> Vec<(SessionId, PeerId)> {
        self.members.values().map(|member| (member.session, member.coordinator)).collect()
    }

    /// What to compute next. `number`: of the frame, if it has rows.
    pub(super) fn plan(&mut self, number: u64) -> Planned {
        let mut planned = Planned::default();
        self.batch.set_groups(self.groups());
        let actions = self.batch.handle(Event::Ready, Time::since_epoch(self.since.elapsed()));
        self.follow(actions, number, &mut planned);
        planned
    }

    /// The pass of these rows could not be had for want of memory.
    pub(super) fn exhausted(&mut self, rows: &[FrameRows]) -> Planned {
        self.under_way.pop_back();
        let step = rows.iter().map(|rows| SequenceId(rows.sequence)).collect();
        let mut planned = Planned::default();
        let actions = self.batch.handle(Event::Exhausted(step), Time::since_epoch(self.since.elapsed()));
        self.follow(actions, 0, &mut planned);
        planned
    }

    fn follow(&mut self, actions: Vec<Action>, number: u64, planned: &mut Planned) {
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
                Action::Expire(id) => failed.push((id, "the request waited too long for its turn; try again later")),
                Action::Fail(id) => {
                    let why = "there is not enough memory for this request; shorten it, or give the node more memory";
                    failed.push((id, why));
                }
                Action::Step(rows) => self.step(&rows, number, planned),
                // Only arrivals are refused, and those are answered where they arrive.
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

    fn step(&mut self, rows: &[Rows], number: u64, planned: &mut Planned) {
        for rows in rows {
            let Some(member) = self.members.get_mut(&rows.sequence) else { continue };
            planned.tokens.extend_from_slice(&member.tokens[rows.start..][..rows.rows]);
            let draft = member.draft(rows.draft);
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
        let alone = match (&planned.rows[..], rows) {
            ([only], [rows]) if rows.rows == 1 => Some((rows.sequence, rows.start, only.draft.len())),
            _ => None,
        };
        if !planned.rows.is_empty() {
            self.under_way.push_back(UnderWay { number, began: Instant::now(), alone });
        }
    }

    /// This stage has computed rows: a prompt's next piece need not wait for the last stage.
    pub(super) fn passed(&mut self, rows: &[FrameRows]) {
        let advance = |rows: &FrameRows| Advance {
            sequence: SequenceId(rows.sequence),
            computed: (rows.start + rows.rows) as usize,
            chosen: Vec::new(),
            ended: false,
        };
        let advances: Vec<Advance> = rows.iter().filter(|rows| !rows.choose).map(advance).collect();
        if !advances.is_empty() {
            // Nobody ends here, so that there is nothing to do.
            let _ = self.batch.handle(Event::Stepped(advances), Time::since_epoch(self.since.elapsed()));
        }
    }

    /// A frame is done; what every stage is to change then.
    pub(super) fn stepped(&mut self, number: u64, stepped: Vec<SteppedSequence>) -> Vec<Change> {
        let of = self.under_way.iter().position(|frame| frame.number == number);
        let frame = of.and_then(|at| self.under_way.remove(at));
        let mut advances = Vec::with_capacity(stepped.len());
        let tokens = stepped.iter().map(|one| one.chosen.len()).sum();
        self.grouping.stepped(
            self.batch.running(),
            !self.batch.only_answers(),
            tokens,
            Time::since_epoch(self.since.elapsed()),
        );
        for one in stepped {
            let id = SequenceId(one.sequence);
            let Some(member) = self.members.get_mut(&id) else { continue };
            if let Some(UnderWay { alone: Some((alone, start, drafted)), began, .. }) = &frame
                && *alone == id
            {
                let accepted = (one.computed as usize).saturating_sub(start + 1);
                // As if a pass took the same time whatever its rows, where the same is wanted in every run.
                let seconds = if self.drafts == Drafts::Eager { 1.0 } else { began.elapsed().as_secs_f64() };
                if let Some(drafter) = &mut member.drafter {
                    drafter.observe(1 + drafted, accepted, seconds);
                }
            }
            member.tokens.extend_from_slice(&one.chosen);
            if one.ended
                && let Some(member) = self.members.remove(&id)
            {
                self.ended.insert(member.session, member.tokens);
            }
            advances.push(Advance {
                sequence: id,
                computed: one.computed as usize,
                chosen: one.chosen,
                ended: one.ended,
            });
        }
        let actions = self.batch.handle(Event::Stepped(advances), Time::since_epoch(self.since.elapsed()));
        actions.iter().filter_map(change).collect()
    }
}

impl Member {
    /// Guesses at most `limit` of the next tokens.
    fn draft(&mut self, limit: usize) -> Vec<u32> {
        // The last token of an answer needs no row of its own.
        let limit = limit.min(self.most.saturating_sub(self.tokens.len() + 1));
        if limit == 0 {
            return Vec::new();
        }
        let drafter = self.drafter.get_or_insert_with(|| Box::new(Drafter::new()));
        drafter.propose(&self.tokens, limit).to_vec()
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
