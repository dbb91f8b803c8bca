//! Decides which sender may send which message to a stage, and how much of each sender waits there, before anything is
//! queued for the stage. Contents are not read.

use std::collections::BTreeMap;
use std::time::Duration;

use libp2p_identity::PeerId;

use super::{SessionId, StageAt};

/// Messages that one stage of the chain may have queued here: the frames of all groups, and a burst of openings and closings.
const STAGE_MESSAGES: usize = 256;

/// Openings that one coordinator outside the chain may have queued here: more than may wait for their turn.
const COORDINATOR_MESSAGES: usize = 128;

/// Messages that all coordinators outside the chain may have queued here; half of them may be openings.
const COORDINATORS_MESSAGES: usize = 1024;

/// Further events in the queue: peers that are gone.
const OTHER_EVENTS: usize = 512;

/// Longest openings that one coordinator may have queued here.
const COORDINATOR_OPENINGS: u64 = 8;

/// Longest openings that all coordinators outside the chain may have queued here.
const COORDINATORS_OPENINGS: u64 = 32;

/// Longest openings that a stage may have forwarded.
const STAGE_OPENINGS: u64 = 64;

/// Sessions that one coordinator may have open at a chain, those included that have ended and are not closed: more than may run
/// and wait.
const SESSIONS_PER_COORDINATOR: usize = 256;

/// Delay after which a coordinator whose share is used up may come again: most openings are taken within a step.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Bytes of the largest messages to a stage.
#[derive(Clone, Copy, Debug)]
pub struct MessageBytes {
    /// A frame of as many rows as a first stage puts into one.
    pub frame: u64,
    /// An opening with a prompt that fills the context.
    pub opening: u64,
}

/// What becomes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// The message may be queued, and counts until [`Gate::taken`].
    Admitted,
    /// The sender may not send it.
    Forbidden,
    /// The sender's share of the queue, or of the sessions, is used up; it may come again after this delay.
    Full(Duration),
}

/// A message to a stage, as far as its sender's permission depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Opens a request of `choices` answers whose first session is `session`.
    Open {
        /// The session of the first answer.
        session: SessionId,
        /// The number of answers.
        choices: u16,
        /// The node that the request names as its coordinator.
        coordinator: PeerId,
    },
    /// Ends a session.
    Close(SessionId),
    /// Signs for a session.
    Commit,
    /// Computes rows.
    Frame,
    /// Reports a frame that is done.
    Stepped,
    /// Reports a session that cannot go on.
    Failed,
}

/// Checks the senders of messages to one stage.
#[derive(Debug)]
pub struct Gate {
    /// The peers of all stages, in order.
    stages: Vec<PeerId>,
    index: usize,
    largest: MessageBytes,
    /// On the first stage: the coordinator of every open session.
    coordinators: BTreeMap<SessionId, PeerId>,
    /// Number of open sessions of each coordinator.
    open: BTreeMap<PeerId, usize>,
    /// What each sender has queued.
    queued: BTreeMap<PeerId, Queued>,
    /// What the coordinators outside the chain have queued together.
    queued_outside: Queued,
}

/// Messages in the queue.
#[derive(Clone, Copy, Debug, Default)]
struct Queued {
    messages: usize,
    bytes: u64,
}

impl Queued {
    /// Whether a message fits; one alone always does.
    fn has_room(self, bytes: u64, messages_limit: usize, bytes_limit: u64) -> bool {
        self.messages == 0 || (self.messages < messages_limit && self.bytes.saturating_add(bytes) <= bytes_limit)
    }

    fn add(&mut self, bytes: u64) {
        self.messages += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }

    fn remove(&mut self, bytes: u64) {
        self.messages = self.messages.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

impl Gate {
    /// The gate of the stage at `index`.
    pub fn new(stages: &[StageAt], index: usize, largest: MessageBytes) -> Gate {
        Gate {
            stages: stages.iter().map(|stage| stage.peer).collect(),
            index,
            largest,
            coordinators: BTreeMap::new(),
            open: BTreeMap::new(),
            queued: BTreeMap::new(),
            queued_outside: Queued::default(),
        }
    }

    /// The peers of all stages of the chain, in order.
    pub fn stages(&self) -> &[PeerId] {
        &self.stages
    }

    /// Places of a queue in which every admitted message finds one.
    pub fn places(&self) -> usize {
        STAGE_MESSAGES * self.stages.len() + COORDINATORS_MESSAGES + OTHER_EVENTS
    }

    /// Whether the stage depends on a peer: it is a stage, or it has sessions or messages here.
    pub fn knows(&self, peer: &PeerId) -> bool {
        self.stages.contains(peer) || self.open.contains_key(peer) || self.queued.contains_key(peer)
    }

    /// Whether `from` may send this message of `bytes` now. The sessions of an admitted opening are open from now on.
    pub fn admits(&mut self, from: &PeerId, ask: Ask, bytes: u64) -> Admission {
        if !self.permits(from, ask) {
            return Admission::Forbidden;
        }
        let queued = self.queued.get(from).copied().unwrap_or_default();
        let in_chain = self.stages.contains(from);
        let MessageBytes { frame, opening } = self.largest;
        let has_room = if in_chain {
            let frames = frame.saturating_mul(self.stages.len() as u64 + 2);
            let limit = frames.saturating_add(opening.saturating_mul(STAGE_OPENINGS));
            queued.has_room(bytes, STAGE_MESSAGES, limit)
        } else {
            let limit = |openings: u64| opening.saturating_mul(openings);
            // A closing finds room where an opening does not: what it ends takes more than its place.
            let (own, all) = match ask {
                Ask::Close(_) => (2 * SESSIONS_PER_COORDINATOR, COORDINATORS_MESSAGES),
                _ => (COORDINATOR_MESSAGES, COORDINATORS_MESSAGES / 2),
            };
            queued.has_room(bytes, own, limit(COORDINATOR_OPENINGS))
                && self.queued_outside.has_room(bytes, all, limit(COORDINATORS_OPENINGS))
        };
        if !has_room {
            return Admission::Full(RETRY_AFTER);
        }
        if let (0, Ask::Open { session, choices, coordinator }) = (self.index, ask) {
            let open = self.open.entry(coordinator).or_default();
            if *open + usize::from(choices) > SESSIONS_PER_COORDINATOR {
                return Admission::Full(RETRY_AFTER);
            }
            *open += usize::from(choices);
            self.coordinators.extend((0..choices).map(|choice| (session.choice(choice), coordinator)));
        }
        self.queued.entry(*from).or_default().add(bytes);
        if !in_chain {
            self.queued_outside.add(bytes);
        }
        Admission::Admitted
    }

    /// Records that the stage has taken an admitted message out of the queue, or that it was not queued.
    pub fn taken(&mut self, from: &PeerId, bytes: u64) {
        let Some(queued) = self.queued.get_mut(from) else { return };
        queued.remove(bytes);
        if queued.messages == 0 {
            self.queued.remove(from);
        }
        if !self.stages.contains(from) {
            self.queued_outside.remove(bytes);
        }
    }

    /// Whether `from` may send such messages at all.
    pub fn permits(&self, from: &PeerId, ask: Ask) -> bool {
        let Some(previous) = self.index.checked_sub(1) else { return self.first_permits(from, ask) };
        match ask {
            Ask::Open { .. } | Ask::Close(_) | Ask::Commit | Ask::Frame => self.stages.get(previous) == Some(from),
            Ask::Stepped | Ask::Failed => false,
        }
    }

    fn first_permits(&self, from: &PeerId, ask: Ask) -> bool {
        match ask {
            Ask::Open { session, choices, coordinator } => {
                let sessions = || (0..choices).map(|choice| session.choice(choice));
                // A session belongs to one coordinator; another one that draws the same id is refused.
                coordinator == *from && !sessions().any(|session| self.coordinators.contains_key(&session))
            }
            Ask::Close(session) => self.coordinators.get(&session) == Some(from),
            Ask::Stepped => self.stages.last() == Some(from),
            Ask::Failed => self.stages.contains(from),
            Ask::Commit | Ask::Frame => false,
        }
    }

    /// Records that a session has ended.
    pub fn over(&mut self, session: &SessionId) {
        let Some(coordinator) = self.coordinators.remove(session) else { return };
        if let Some(open) = self.open.get_mut(&coordinator) {
            *open -= 1;
            if *open == 0 {
                self.open.remove(&coordinator);
            }
        }
    }

    /// Records that all sessions have ended.
    pub fn clear(&mut self) {
        self.coordinators.clear();
        self.open.clear();
    }
}

/// The nodes that wait for a session, each once: its coordinator, and the first stage that schedules it.
pub(super) fn waiting_for(coordinator: PeerId, first_stage: PeerId) -> impl Iterator<Item = PeerId> {
    std::iter::once(coordinator).chain((first_stage != coordinator).then_some(first_stage))
}

/// The nodes to notify when the stage on `local` cannot accept an opening, so that they do not wait for it: the
/// coordinator and the first stage. Empty if `from` may not open sessions at this stage.
pub fn waiting_for_opening(local: &PeerId, from: &PeerId, stages: &[StageAt], coordinator: PeerId) -> Vec<PeerId> {
    let index = stages.iter().position(|stage| stage.peer == *local);
    match index.and_then(|index| index.checked_sub(1)) {
        Some(previous) if stages[previous].peer == *from => waiting_for(coordinator, stages[0].peer).collect(),
        Some(_) => Vec::new(),
        None => vec![*from],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_peers::peer;

    fn session(n: u8) -> SessionId {
        SessionId([n; 16])
    }

    /// Three stages on the peers 0, 1 and 2.
    fn stages() -> Vec<StageAt> {
        (0..3).map(|at| StageAt { peer: peer(u64::from(at)), layers: at..at + 1 }).collect()
    }

    /// The gates of a chain of those stages.
    fn gates() -> [Gate; 3] {
        [0, 1, 2].map(|index| Gate::new(&stages(), index, LARGEST))
    }

    const LARGEST: MessageBytes = MessageBytes { frame: 1000, opening: 100 };

    /// Whether a small message is admitted; it is taken at once.
    fn admits(gate: &mut Gate, from: &PeerId, ask: Ask) -> bool {
        let admitted = gate.admits(from, ask, 1) == Admission::Admitted;
        if admitted {
            gate.taken(from, 1);
        }
        admitted
    }

    /// Queues messages of `from` until its share is used up; returns their number.
    fn fill(gate: &mut Gate, from: u64, bytes: u64, ask: impl Fn(u64) -> Ask) -> u64 {
        (0..100_000).find(|&n| gate.admits(&peer(from), ask(n), bytes) != Admission::Admitted).unwrap()
    }

    fn opening_of(coordinator: u64) -> impl Fn(u64) -> Ask {
        move |n| {
            let session = SessionId((u128::from(coordinator) << 64 | u128::from(n)).to_le_bytes());
            Ask::Open { session, choices: 1, coordinator: peer(coordinator) }
        }
    }

    /// A flood filled the one queue of a stage, and the next frame, which every session of the chain needs, was dropped.
    #[test]
    fn a_flood_leaves_room_for_the_messages_of_others() {
        let [mut first, mut middle, _] = gates();
        // Coordinators flood with openings, one of them with as large ones as there are.
        let flooded: Vec<u64> =
            (10..30).map(|coordinator| fill(&mut first, coordinator, 1, opening_of(coordinator))).collect();
        assert_eq!(flooded[0] as usize, COORDINATOR_MESSAGES);
        assert_eq!(flooded.iter().sum::<u64>() as usize, COORDINATORS_MESSAGES / 2);
        assert_eq!(first.admits(&peer(2), Ask::Stepped, 1), Admission::Admitted);
        assert_eq!(first.admits(&peer(10), Ask::Close(session_of(10, 0)), 1), Admission::Admitted);
        // The previous stage floods with frames; those that follow an empty queue are admitted whatever their size.
        let frames = fill(&mut middle, 0, LARGEST.frame, |_| Ask::Frame);
        // A frame per stage and two more, and what openings that are forwarded take.
        let limit = LARGEST.frame * (3 + 2) + LARGEST.opening * STAGE_OPENINGS;
        assert_eq!(frames, limit / LARGEST.frame);
        (0..frames).for_each(|_| middle.taken(&peer(0), LARGEST.frame));
        assert_eq!(middle.admits(&peer(0), Ask::Frame, u64::MAX), Admission::Admitted);
    }

    #[test]
    fn every_message_that_is_admitted_has_a_place_and_gives_it_back() {
        let [mut first, ..] = gates();
        let mut places = Vec::new();
        for _ in 0..2 {
            let mut admitted = Vec::new();
            for coordinator in 10..30 {
                let openings = fill(&mut first, coordinator, 1, opening_of(coordinator));
                admitted.extend((0..openings).map(|_| coordinator));
            }
            let of_own = fill(&mut first, 10, 1, |_| Ask::Close(session_of(10, 0)));
            assert_eq!(of_own as usize, 2 * SESSIONS_PER_COORDINATOR - COORDINATOR_MESSAGES);
            let of_other = fill(&mut first, 11, 1, |_| Ask::Close(session_of(11, 0)));
            admitted.extend((0..of_own).map(|_| 10).chain((0..of_other).map(|_| 11)));
            for stage in 0..3 {
                let failed = fill(&mut first, stage, 1, |_| Ask::Failed);
                admitted.extend((0..failed).map(|_| stage));
            }
            assert!(first.knows(&peer(10)) && first.knows(&peer(2)) && !first.knows(&peer(30)));
            places.push(admitted.len() + OTHER_EVENTS);
            admitted.iter().for_each(|from| first.taken(&peer(*from), 1));
            first.clear();
            assert!(!first.knows(&peer(10)) && first.knows(&peer(2)), "a stage of the chain is always known");
        }
        assert_eq!(places, [first.places(); 2]);
        // What waits in the queue counts without a session, too.
        assert_eq!(first.admits(&peer(10), opening_of(10)(0), 1), Admission::Admitted);
        first.over(&session_of(10, 0));
        assert!(first.knows(&peer(10)));
        assert_eq!(first.stages(), [peer(0), peer(1), peer(2)]);
    }

    #[test]
    fn bytes_are_bounded_per_coordinator_and_returned_when_taken() {
        let [mut first, ..] = gates();
        let ask = opening_of(9);
        assert_eq!(fill(&mut first, 9, LARGEST.opening, &ask), COORDINATOR_OPENINGS);
        assert_eq!(first.admits(&peer(9), ask(1000), LARGEST.opening), Admission::Full(RETRY_AFTER));
        first.taken(&peer(9), LARGEST.opening);
        assert_eq!(first.admits(&peer(9), ask(1000), LARGEST.opening), Admission::Admitted);
        assert_eq!(first.admits(&peer(9), ask(1001), LARGEST.opening), Admission::Full(RETRY_AFTER));
    }

    #[test]
    fn a_coordinator_has_a_limited_number_of_sessions() {
        let [mut first, ..] = gates();
        let ask = opening_of(9);
        let opened = (0..).take_while(|&n| admits(&mut first, &peer(9), ask(n))).count();
        assert_eq!(opened, SESSIONS_PER_COORDINATOR);
        assert!(admits(&mut first, &peer(8), opening_of(8)(0)), "others have their own");
        first.over(&session_of(9, 0));
        assert!(admits(&mut first, &peer(9), ask(1 << 32)) && !admits(&mut first, &peer(9), ask(1 << 33)));
        first.clear();
        assert!(admits(&mut first, &peer(9), ask(1 << 33)) && first.knows(&peer(9)) && !first.knows(&peer(7)));
    }

    fn session_of(coordinator: u64, n: u64) -> SessionId {
        let Ask::Open { session, .. } = opening_of(coordinator)(n) else { unreachable!("an opening") };
        session
    }

    #[test]
    fn an_opening_that_a_stage_cannot_accept_is_reported_to_waiting_nodes() {
        let reported = |at: u64, from: u64, coordinator: u64| {
            waiting_for_opening(&peer(at), &peer(from), &stages(), peer(coordinator))
        };
        assert_eq!(reported(0, 9, 9), [peer(9)]);
        assert_eq!(reported(1, 0, 9), [peer(9), peer(0)]);
        assert_eq!(reported(2, 1, 0), [peer(0)], "the coordinator is the first stage");
        // Only the previous stage forwards openings.
        assert!(reported(2, 0, 9).is_empty() && reported(1, 2, 9).is_empty() && reported(1, 9, 9).is_empty());
    }

    #[test]
    fn later_stages_accept_messages_only_from_the_previous_stage() {
        let [_, mut middle, mut last] = gates();
        let open = Ask::Open { session: session(1), choices: 1, coordinator: peer(9) };
        for ask in [open, Ask::Close(session(1)), Ask::Commit, Ask::Frame] {
            assert!(admits(&mut middle, &peer(0), ask) && admits(&mut last, &peer(1), ask), "{ask:?}");
            assert!([1, 2, 9].iter().all(|&from| !admits(&mut middle, &peer(from), ask)), "{ask:?}");
            assert!([0, 2, 9].iter().all(|&from| !admits(&mut last, &peer(from), ask)), "{ask:?}");
        }
        for ask in [Ask::Stepped, Ask::Failed] {
            assert!([0, 1, 2, 9].iter().all(|&from| !admits(&mut middle, &peer(from), ask)), "{ask:?}");
        }
    }

    #[test]
    fn the_first_stage_accepts_reports_of_the_last_stage_and_failures_of_all() {
        let [mut first, ..] = gates();
        assert!([0, 1, 2, 9].map(|from| admits(&mut first, &peer(from), Ask::Stepped)) == [false, false, true, false]);
        assert!([0, 1, 2, 9].map(|from| admits(&mut first, &peer(from), Ask::Failed)) == [true, true, true, false]);
        assert!([0, 1, 2, 9].iter().all(|&from| !admits(&mut first, &peer(from), Ask::Frame)));
        assert!([0, 1, 2, 9].iter().all(|&from| !admits(&mut first, &peer(from), Ask::Commit)));
    }

    #[test]
    fn only_its_coordinator_closes_a_session() {
        let [mut first, ..] = gates();
        let open = |of, coordinator| Ask::Open { session: session(of), choices: 2, coordinator: peer(coordinator) };
        assert!(!admits(&mut first, &peer(8), open(1, 9)), "a node cannot open a session in another's name");
        assert!(admits(&mut first, &peer(9), open(1, 9)));
        assert!(!admits(&mut first, &peer(8), open(1, 8)), "the id is in use");
        let other = session(1).choice(1);
        assert!(
            !admits(&mut first, &peer(8), Ask::Close(session(1))) && !admits(&mut first, &peer(1), Ask::Close(other))
        );
        assert!(
            admits(&mut first, &peer(9), Ask::Close(session(1))) && admits(&mut first, &peer(9), Ask::Close(other))
        );
        first.over(&session(1));
        assert!(
            !admits(&mut first, &peer(9), Ask::Close(session(1))) && admits(&mut first, &peer(9), Ask::Close(other))
        );
    }
}
