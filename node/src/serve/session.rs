//! One answer as its coordinator sees it: which tokens are known, what a message of its stages means, and when it must be
//! opened anew elsewhere. A pure state machine; it sends nothing and makes no text.

use std::time::Duration;

use libp2p::PeerId;
use pangea_client::{Error, ErrorKind};

use super::route::Without;
use crate::pipeline::wire::{EndReason, Message, SessionId, TokenOut};

/// A stage that says nothing for so long, though tokens came before, hangs: many times what a token takes on a slow
/// device, and less than people wait.
const STALLED: Duration = Duration::from_secs(10);

/// The same before the first token: prompts are long, and others come first.
const STALLED_PROMPT: Duration = Duration::from_secs(120);

/// How long a session may be without a route: weights may have to travel to another node first.
const ROUTELESS: Duration = Duration::from_secs(60);

/// The same where the master says that the nodes that are there cannot hold the layers: one that was lost may be back at once.
const HOPELESS: Duration = Duration::from_secs(5);

/// And for a session that never had a route: pools take a while to start.
const HOPELESS_AT_FIRST: Duration = Duration::from_secs(15);

/// How long stages may take to sign: a signature takes a tenth of a millisecond, and nobody waits long for an answer that is
/// there already.
const SIGNING: Duration = Duration::from_secs(3);

/// A chain that was lost is not asked again for so long: by then it is known whether it is of any use, or has been placed anew.
const LOST: Duration = Duration::from_secs(1);

/// A stage without memory for a session that has begun is asked again after this, and after twice as long every other time in
/// a row: answers end, and what they held is free.
const WAIT: Duration = Duration::from_millis(500);

/// But not after longer.
const WAIT_MOST: Duration = Duration::from_secs(8);

/// So often in a row.
const MAX_WAITS: u32 = 8;

/// Opened anew so often, something else is wrong.
const MAX_FAILOVERS: u32 = 16;

/// An answer under way.
#[derive(Debug)]
pub(super) struct Session {
    /// Which of the request's answers.
    pub(super) choice: usize,
    /// The prompt and what was chosen.
    pub(super) tokens: Vec<u32>,
    pub(super) prompt_len: usize,
    pub(super) state: State,
    pub(super) failovers: u32,
    /// Nodes that hung, or lied.
    pub(super) avoided: Vec<PeerId>,
    /// The placement whose chain it is at.
    epoch: u64,
    /// Placements whose chains it lost, and until when it does without them.
    lost: Vec<(u64, Duration)>,
    /// Whether anything has been said of the request, so that it cannot be refused any more.
    pub(super) begun: bool,
    /// How often in a row a stage had no room for it.
    waits: u32,
    /// Before this it is not opened anew.
    waits_until: Duration,
    /// Since when it is certain that there is no route, and why.
    hopeless: Option<(Duration, String)>,
    since: Duration,
    heard: bool,
}

/// Where a session stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It needs a route.
    Routeless,
    /// Its first stage has been asked.
    Opening { id: SessionId, stages: Vec<PeerId> },
    /// It is being answered.
    Running { id: SessionId, stages: Vec<PeerId> },
    /// It is complete, and its stages are to sign what they did.
    Signing { id: SessionId, stages: Vec<PeerId> },
    /// Nothing follows.
    Over,
}

/// What follows from what happened.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Nothing.
    Nothing,
    /// The first stage has taken it.
    Accepted,
    /// Its stages have signed, or will not.
    Signed { signed: bool },
    /// The first stage has not, and was not to blame.
    Refused { error: Error, retry_after: Option<Duration> },
    /// More of the answer.
    Said(Said),
    /// It needs another route; the session that was is to be closed.
    Lost { closed: SessionId, why: String },
    /// It cannot go on.
    Failed(Error),
}

/// Tokens that were not known before.
#[derive(Debug, Default)]
pub(super) struct Said {
    pub(super) tokens: Vec<TokenOut>,
    pub(super) prompt: Vec<TokenOut>,
    pub(super) ended: Option<EndReason>,
    pub(super) drafted: usize,
    pub(super) accepted: usize,
    pub(super) cached: usize,
}

impl Session {
    pub(super) fn new(choice: usize, prompt: Vec<u32>, now: Duration) -> Session {
        Session {
            choice,
            prompt_len: prompt.len(),
            tokens: prompt,
            state: State::Routeless,
            failovers: 0,
            avoided: Vec::new(),
            epoch: 0,
            lost: Vec::new(),
            begun: false,
            waits: 0,
            waits_until: Duration::ZERO,
            hopeless: None,
            since: now,
            heard: false,
        }
    }

    /// The session's number at its stages, while it has one.
    pub(super) fn id(&self) -> Option<SessionId> {
        match &self.state {
            State::Opening { id, .. } | State::Running { id, .. } | State::Signing { id, .. } => Some(*id),
            State::Routeless | State::Over => None,
        }
    }

    fn stages(&self) -> &[PeerId] {
        match &self.state {
            State::Opening { stages, .. } | State::Running { stages, .. } | State::Signing { stages, .. } => stages,
            State::Routeless | State::Over => &[],
        }
    }

    /// Whether it may be opened now.
    pub(super) fn wants_route(&self, now: Duration) -> bool {
        self.state == State::Routeless && self.waits_until <= now
    }

    /// What its next route is to do without.
    pub(super) fn without(&self, now: Duration) -> Without {
        let lost = self.lost.iter().filter(|(_, until)| *until > now);
        Without { peers: self.avoided.clone(), epochs: lost.map(|(epoch, _)| *epoch).collect() }
    }

    /// It was opened at these stages, those of a placement.
    pub(super) fn opened(&mut self, id: SessionId, epoch: u64, stages: Vec<PeerId>, now: Duration) {
        self.hopeless = None;
        self.state = State::Opening { id, stages };
        self.epoch = epoch;
        (self.since, self.heard) = (now, false);
    }

    /// Its stages were asked to sign.
    pub(super) fn signing(&mut self, now: Duration) {
        if let State::Opening { id, stages } | State::Running { id, stages } = &self.state {
            self.state = State::Signing { id: *id, stages: stages.clone() };
            self.since = now;
        }
    }

    /// Nothing follows any more.
    pub(super) fn over(&mut self) {
        self.state = State::Over;
    }

    /// A message of a stage.
    pub(super) fn handle(&mut self, from: PeerId, message: Message, local: PeerId, now: Duration) -> Outcome {
        if self.id().is_none() || !self.stages().contains(&from) {
            return Outcome::Nothing;
        }
        if matches!(self.state, State::Signing { .. }) {
            return match message {
                Message::Commit { .. } => self.signed(true),
                _ => Outcome::Nothing,
            };
        }
        match message {
            Message::Accepted { .. } => {
                if let State::Opening { id, stages } = &self.state {
                    self.state = State::Running { id: *id, stages: stages.clone() };
                    self.since = now;
                    return Outcome::Accepted;
                }
                Outcome::Nothing
            }
            Message::Refused { kind: ErrorKind::Unavailable | ErrorKind::Internal, message, .. }
                if self.stages() != [local] =>
            {
                self.lost_chain(&message, now)
            }
            Message::Refused { kind: ErrorKind::Overloaded, message, retry_after_ms, .. } if self.begun => {
                self.wait(Duration::from_millis(u64::from(retry_after_ms.unwrap_or(0))), &message, now)
            }
            Message::Refused { kind, message, retry_after_ms, .. } => Outcome::Refused {
                error: Error::new(kind, message),
                retry_after: retry_after_ms.map(|millis| Duration::from_millis(u64::from(millis))),
            },
            Message::Tokens(tokens) => {
                let known = self.tokens.len();
                let first = tokens.position as usize;
                if first > known {
                    return self.lost("tokens of the answer were lost", now);
                }
                let fresh: Vec<TokenOut> = tokens.tokens.into_iter().skip(known - first).collect();
                self.tokens.extend(fresh.iter().map(|out| out.token));
                (self.since, self.heard) = (now, true);
                if !fresh.is_empty() {
                    self.waits = 0;
                }
                let stale = fresh.is_empty() && first < known;
                Outcome::Said(Said {
                    tokens: fresh,
                    prompt: tokens.prompt,
                    ended: tokens.ended.filter(|_| !stale),
                    drafted: tokens.drafted as usize,
                    accepted: tokens.accepted as usize,
                    cached: tokens.cached as usize,
                })
            }
            Message::Failed { kind: ErrorKind::Overloaded, message, .. } if self.begun && self.stages() != [local] => {
                self.wait(Duration::ZERO, &message, now)
            }
            Message::Failed { kind, message, .. } => {
                let again = matches!(
                    kind,
                    ErrorKind::Unavailable
                        | ErrorKind::Internal
                        | ErrorKind::DeadlineExceeded
                        | ErrorKind::VerificationFailed
                );
                if again && self.stages() != [local] {
                    // A chain of which a stage is gone takes nothing more.
                    return match kind {
                        ErrorKind::Unavailable => self.lost_chain(&message, now),
                        _ => self.lost(&message, now),
                    };
                }
                Outcome::Failed(Error::new(kind, message))
            }
            _ => Outcome::Nothing,
        }
    }

    /// A peer cannot be reached any more.
    pub(super) fn peer_gone(&mut self, peer: PeerId, why: &str, now: Duration) -> Outcome {
        if !self.stages().contains(&peer) {
            return Outcome::Nothing;
        }
        if matches!(self.state, State::Signing { .. }) {
            return self.signed(false);
        }
        self.lost_chain(why, now)
    }

    /// Why there will be no route for it while the pool is as it is, where that is certain.
    pub(super) fn hopeless(&mut self, why: Option<String>, now: Duration) {
        self.hopeless = why.map(|why| match self.hopeless.take() {
            Some((since, _)) => (since, why),
            None => (now, why),
        });
    }

    fn is_hopeless(&self, now: Duration) -> bool {
        let grace = if self.failovers > 0 { HOPELESS } else { HOPELESS_AT_FIRST };
        self.hopeless.as_ref().is_some_and(|(since, _)| now.saturating_sub(*since) > grace)
    }

    /// Time went by.
    pub(super) fn tick(&mut self, local: PeerId, now: Duration) -> Outcome {
        let quiet = now.saturating_sub(self.since);
        match &self.state {
            State::Over => Outcome::Nothing,
            State::Routeless if quiet > ROUTELESS => Outcome::Failed(no_node_left()),
            State::Routeless if self.is_hopeless(now) => {
                let why = self.hopeless.as_ref().map_or("", |(_, why)| why);
                Outcome::Failed(Error::new(ErrorKind::Unavailable, format!("{}: {why}", no_node_left().message())))
            }
            State::Routeless => Outcome::Nothing,
            State::Signing { .. } if quiet > SIGNING => self.signed(false),
            State::Signing { .. } => Outcome::Nothing,
            State::Opening { stages, .. } | State::Running { stages, .. } if *stages == [local] => Outcome::Nothing,
            State::Opening { .. } if quiet > STALLED => self.stalled(local, now),
            State::Running { .. } if quiet > if self.heard { STALLED } else { STALLED_PROMPT } => {
                self.stalled(local, now)
            }
            State::Opening { .. } | State::Running { .. } => Outcome::Nothing,
        }
    }

    fn signed(&mut self, signed: bool) -> Outcome {
        self.state = State::Over;
        Outcome::Signed { signed }
    }

    fn stalled(&mut self, local: PeerId, now: Duration) -> Outcome {
        // Nobody can tell which of them hangs.
        let others: Vec<PeerId> = self.stages().iter().copied().filter(|peer| *peer != local).collect();
        let outcome = self.lost_chain("its stages have been silent for too long", now);
        self.avoided.extend(others);
        outcome
    }

    /// There was no room for it; what it has is kept, and there may be soon.
    fn wait(&mut self, least: Duration, why: &str, now: Duration) -> Outcome {
        self.waits += 1;
        if self.waits > MAX_WAITS {
            self.state = State::Over;
            return Outcome::Failed(Error::new(ErrorKind::Overloaded, why));
        }
        let wait = WAIT.saturating_mul(1 << (self.waits - 1).min(16)).max(least).min(WAIT_MOST);
        self.waits_until = now + wait;
        self.lost(why, now)
    }

    /// Its chain is of no use, for now at least. Its nodes may be: a chain that broke is placed anew, on the same ones perhaps.
    fn lost_chain(&mut self, why: &str, now: Duration) -> Outcome {
        self.lost.retain(|(epoch, until)| *epoch != self.epoch && *until > now);
        self.lost.push((self.epoch, now + LOST));
        self.lost(why, now)
    }

    fn lost(&mut self, why: &str, now: Duration) -> Outcome {
        let Some(closed) = self.id() else { return Outcome::Nothing };
        self.failovers += 1;
        if self.failovers > MAX_FAILOVERS {
            self.state = State::Over;
            let why = format!("the answer was begun anew {MAX_FAILOVERS} times; the last time {why}");
            return Outcome::Failed(Error::new(ErrorKind::Unavailable, why));
        }
        self.state = State::Routeless;
        self.since = now;
        Outcome::Lost { closed, why: why.to_owned() }
    }
}

fn no_node_left() -> Error {
    let why = "no node is left that can hold the model's layers; start another, or give one more memory";
    Error::new(ErrorKind::Unavailable, why)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::pipeline::wire::Tokens;

    const ID: SessionId = SessionId([1; 16]);
    const EPOCH: u64 = 7;

    fn peers() -> [PeerId; 3] {
        [PeerId::random(), PeerId::random(), PeerId::random()]
    }

    fn running(stages: &[PeerId]) -> Session {
        let mut session = Session::new(0, vec![1, 2, 3], Duration::ZERO);
        session.opened(ID, EPOCH, stages.to_vec(), Duration::ZERO);
        let accepted = session.handle(stages[0], Message::Accepted { session: ID }, stages[0], Duration::ZERO);
        assert!(matches!(accepted, Outcome::Accepted));
        session
    }

    fn tokens(position: usize, ids: impl IntoIterator<Item = u32>) -> Message {
        let tokens = ids.into_iter().map(|token| TokenOut { token, ..TokenOut::default() }).collect();
        Message::Tokens(Tokens { session: ID, position: position as u32, tokens, ..Tokens::default() })
    }

    fn said(outcome: Outcome) -> Vec<u32> {
        match outcome {
            Outcome::Said(said) => said.tokens.iter().map(|out| out.token).collect(),
            other => panic!("nothing was said: {other:?}"),
        }
    }

    #[test]
    fn what_is_known_already_is_not_said_again() {
        let [local, other, _] = peers();
        let mut session = running(&[local, other]);
        assert_eq!(said(session.handle(other, tokens(3, [10, 11]), local, Duration::ZERO)), [10, 11]);
        assert_eq!(said(session.handle(other, tokens(4, [11, 12]), local, Duration::ZERO)), [12]);
        assert!(said(session.handle(other, tokens(3, [10, 11]), local, Duration::ZERO)).is_empty());
        assert_eq!(session.tokens, [1, 2, 3, 10, 11, 12]);
    }

    #[test]
    fn a_gap_means_that_tokens_were_lost_and_the_session_moves() {
        let [local, other, _] = peers();
        let mut session = running(&[local, other]);
        let outcome = session.handle(other, tokens(4, [11]), local, Duration::ZERO);
        assert!(matches!(outcome, Outcome::Lost { closed: ID, .. }), "{outcome:?}");
        assert_eq!(session.state, State::Routeless);
    }

    #[test]
    fn the_chain_of_a_stage_that_is_gone_is_done_without_for_a_while_and_its_nodes_are_not() {
        let [local, other, stranger] = peers();
        let mut session = running(&[local, other]);
        assert!(matches!(session.peer_gone(stranger, "it left", Duration::ZERO), Outcome::Nothing));
        assert!(matches!(session.peer_gone(other, "it left", Duration::ZERO), Outcome::Lost { .. }));
        assert_eq!(session.failovers, 1);
        let without = session.without(Duration::ZERO);
        assert_eq!((without.peers.len(), without.epochs), (0, vec![EPOCH]));
        assert!(session.without(LOST).epochs.is_empty());
    }

    #[test]
    fn a_chain_that_refuses_because_it_broke_is_not_asked_again_at_once() {
        let [local, other, _] = peers();
        let refused = || Message::Refused {
            session: ID,
            kind: ErrorKind::Unavailable,
            message: "a stage is gone".to_owned(),
            retry_after_ms: None,
        };
        let mut session = Session::new(0, vec![1], Duration::ZERO);
        for epoch in [EPOCH, EPOCH + 1] {
            session.opened(ID, epoch, vec![local, other], Duration::ZERO);
            assert!(matches!(session.handle(local, refused(), local, Duration::ZERO), Outcome::Lost { .. }));
        }
        let without = session.without(Duration::ZERO);
        // The very same nodes may be asked under another placement.
        assert_eq!((without.peers.len(), without.epochs), (0, vec![EPOCH, EPOCH + 1]));
    }

    #[test]
    fn nobody_outside_its_stages_can_put_words_into_an_answer() {
        let [local, other, stranger] = peers();
        let mut session = running(&[local, other]);
        assert!(matches!(session.handle(stranger, tokens(3, [10]), local, Duration::ZERO), Outcome::Nothing));
        assert_eq!(session.tokens.len(), 3);
    }

    #[test]
    fn silent_stages_are_given_up_and_this_node_alone_never_is() {
        let [local, other, _] = peers();
        let mut session = running(&[local, other]);
        session.handle(other, tokens(3, [10]), local, Duration::ZERO);
        assert!(matches!(session.tick(local, STALLED), Outcome::Nothing));
        assert!(matches!(session.tick(local, STALLED + Duration::from_secs(1)), Outcome::Lost { .. }));
        assert_eq!(session.avoided, [other]);
        let mut alone = running(&[local]);
        assert!(matches!(alone.tick(local, Duration::from_secs(10_000)), Outcome::Nothing));
    }

    #[test]
    fn without_a_route_it_fails_in_the_end_and_keeps_what_was_said() {
        let [local, other, _] = peers();
        let mut session = running(&[local, other]);
        session.handle(other, tokens(3, [10]), local, Duration::ZERO);
        session.peer_gone(other, "it left", Duration::ZERO);
        assert!(matches!(session.tick(local, ROUTELESS), Outcome::Nothing));
        let outcome = session.tick(local, ROUTELESS + Duration::from_secs(1));
        assert!(matches!(&outcome, Outcome::Failed(error) if error.kind() == ErrorKind::Unavailable), "{outcome:?}");
        assert_eq!(session.tokens, [1, 2, 3, 10]);
    }

    #[test]
    fn without_memory_a_request_is_refused_before_its_first_word_and_waits_after_it() {
        let [local, other, _] = peers();
        let full = || Message::Failed { session: ID, kind: ErrorKind::Overloaded, message: "no memory".to_owned() };
        let mut first = running(&[local, other]);
        let outcome = first.handle(other, full(), local, Duration::ZERO);
        assert!(matches!(&outcome, Outcome::Failed(error) if error.kind() == ErrorKind::Overloaded), "{outcome:?}");
        // Alone, nobody else's answers give memory back that this one could wait for.
        let mut alone = running(&[local]);
        alone.begun = true;
        assert!(matches!(alone.handle(local, full(), local, Duration::ZERO), Outcome::Failed(_)));

        let mut session = running(&[local, other]);
        session.handle(other, tokens(3, [10]), local, Duration::ZERO);
        session.begun = true;
        assert!(matches!(session.handle(other, full(), local, Duration::ZERO), Outcome::Lost { closed: ID, .. }));
        assert!(!session.wants_route(WAIT - Duration::from_millis(1)));
        assert!(session.wants_route(WAIT));
        // The chain is as good as before.
        let without = session.without(Duration::ZERO);
        assert!(without.peers.is_empty() && without.epochs.is_empty());
        session.opened(ID, EPOCH, vec![local, other], WAIT);
        let refused = Message::Refused {
            session: ID,
            kind: ErrorKind::Overloaded,
            message: "full".to_owned(),
            retry_after_ms: Some(3000),
        };
        assert!(matches!(session.handle(local, refused, local, WAIT), Outcome::Lost { .. }));
        assert!(!session.wants_route(WAIT + Duration::from_millis(2999)) && session.wants_route(WAIT * 7));
        let mut now = WAIT * 7;
        for _ in 2..MAX_WAITS {
            session.opened(ID, EPOCH, vec![local, other], now);
            assert!(matches!(session.handle(other, full(), local, now), Outcome::Lost { .. }));
            now += WAIT_MOST;
            assert!(session.wants_route(now));
        }
        session.opened(ID, EPOCH, vec![local, other], now);
        let outcome = session.handle(other, full(), local, now);
        assert!(matches!(&outcome, Outcome::Failed(error) if error.kind() == ErrorKind::Overloaded), "{outcome:?}");
        assert_eq!(session.tokens, [1, 2, 3, 10]);
    }

    #[test]
    fn where_nobody_can_hold_the_layers_it_fails_soon_and_says_why() {
        let [local, other, _] = peers();
        let why = || Some("12 MiB are missing".to_owned());
        let mut session = running(&[local, other]);
        session.handle(other, tokens(3, [10]), local, Duration::ZERO);
        session.peer_gone(other, "it left", Duration::ZERO);
        session.hopeless(why(), Duration::ZERO);
        assert!(matches!(session.tick(local, HOPELESS), Outcome::Nothing));
        // Hope, for a moment.
        session.hopeless(None, HOPELESS);
        session.hopeless(why(), HOPELESS);
        assert!(matches!(session.tick(local, HOPELESS * 2), Outcome::Nothing));
        let outcome = session.tick(local, HOPELESS * 2 + Duration::from_millis(1));
        assert!(
            matches!(&outcome, Outcome::Failed(error) if error.kind() == ErrorKind::Unavailable
                && error.message().contains("no node is left") && error.message().contains("12 MiB")),
            "{outcome:?}"
        );
        assert_eq!(session.tokens, [1, 2, 3, 10]);
        // A pool that has only just begun gets more time.
        let mut first = Session::new(0, vec![1], Duration::ZERO);
        first.hopeless(why(), Duration::ZERO);
        assert!(matches!(first.tick(local, HOPELESS_AT_FIRST), Outcome::Nothing));
        assert!(matches!(first.tick(local, HOPELESS_AT_FIRST + Duration::from_millis(1)), Outcome::Failed(_)));
    }

    #[test]
    fn a_complete_answer_waits_for_signatures_and_for_nothing_else() {
        let [local, other, _] = peers();
        let mut session = running(&[local, other]);
        session.signing(Duration::ZERO);
        assert!(matches!(session.handle(other, tokens(3, [10]), local, Duration::ZERO), Outcome::Nothing));
        let mut lost = Session::new(0, vec![1], Duration::ZERO);
        lost.opened(ID, EPOCH, vec![local, other], Duration::ZERO);
        lost.signing(Duration::ZERO);
        assert!(matches!(lost.peer_gone(other, "it left", Duration::ZERO), Outcome::Signed { signed: false }));
        let commit = Message::Commit { session: ID, positions: 3 };
        assert!(matches!(session.handle(other, commit, local, Duration::ZERO), Outcome::Signed { signed: true }));
        assert_eq!(session.state, State::Over);
    }

    proptest! {
        /// Messages in pieces, repeated, from one route and then from another: the answer is the same.
        #[test]
        fn however_tokens_come_the_answer_is_the_same(
            cuts in proptest::collection::vec((0usize..40, 1usize..6), 1..60),
            moves_at in 0usize..60,
        ) {
            let answer: Vec<u32> = (100..140).collect();
            let [local, one, other] = peers();
            let mut session = running(&[local, one]);
            let (mut from, mut heard) = (one, Vec::new());
            for (at, (back, len)) in cuts.into_iter().enumerate() {
                if at == moves_at {
                    let lost = session.peer_gone(one, "it left", Duration::ZERO);
                    prop_assert!(matches!(lost, Outcome::Lost { .. }), "{:?}", lost);
                    session.opened(ID, EPOCH, vec![local, other], Duration::ZERO);
                    session.handle(local, Message::Accepted { session: ID }, local, Duration::ZERO);
                    from = other;
                }
                let known = session.tokens.len() - 3;
                let first = known.saturating_sub(back);
                let end = (first + len).min(answer.len());
                if first < end {
                    let piece = answer[first..end].iter().copied();
                    heard.extend(said(session.handle(from, tokens(3 + first, piece), local, Duration::ZERO)));
                }
            }
            prop_assert_eq!(&session.tokens[3..], &heard[..]);
            prop_assert!(answer.starts_with(&heard));
        }
    }
}
