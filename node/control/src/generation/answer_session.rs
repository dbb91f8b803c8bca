//! One answer from its coordinator's view: which tokens are known, what a reply of its stages means, and when the answer
//! fails over to another chain. Nothing is sent and no text is made here.

use std::time::Duration;

use libp2p_identity::PeerId;
use pangea_units::{Error, ErrorKind};

use super::reply::NewTokens;
use crate::Time;
use crate::backoff::doubled;
use crate::peers::SuspicionReason;
use crate::session::{SessionId, StageAt};

mod replies;
#[cfg(test)]
mod tests;

/// Time for the first stage to accept a session: the pass that it is at ends first.
const ACCEPT_TIMEOUT: Duration = Duration::from_secs(10);

/// Time by which a token may be late before the stages count as hanging, on top of what tokens took lately: people notice
/// a longer pause, and no healthy chain makes one.
const TOKEN_GRACE: Duration = Duration::from_secs(5);

/// How many times as long as the longest pause lately between tokens the next one may take, on top of that grace.
const PAUSE_TOLERANCE: u32 = 2;

/// Longest pause between tokens that counts as usual. Without a bound, stages could become slower without end.
const USUAL_PAUSE_MAX: Duration = Duration::from_secs(10);

/// Factor per token, in percent, by which the longest pause is forgotten.
const PAUSE_DECAY_PERCENT: u32 = 90;

/// Silence after which stages count as hanging before the first token. The first stage says every few seconds that the chain
/// works on, but not during a pass, and one of a long prompt takes a while on a slow device.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(30);

/// Time for the first token, whatever the first stage says: other requests come first,
const FIRST_TOKEN_TIMEOUT: Duration = Duration::from_secs(120);

/// and each token of the prompt takes its time, on a slow device this long.
const PROMPT_TOKEN_TIMEOUT: Duration = Duration::from_millis(100);

/// Time that a session may be without a route: weights may have to travel to another node first.
const ROUTE_TIMEOUT: Duration = Duration::from_secs(60);

/// Time that a session may be without a route if the present nodes cannot hold the layers: a lost node may return at
/// once, and the client must get an error within 5 s.
const UNPLACEABLE_TIMEOUT: Duration = Duration::from_secs(4);

/// The same timeout for a request that never had a route: nodes that start together are connected and measured within
/// seconds.
const UNPLACEABLE_TIMEOUT_AT_START: Duration = Duration::from_secs(6);

/// Time for stages to sign: a signature takes a tenth of a millisecond, and the answer is complete
/// already.
const SIGNING_TIMEOUT: Duration = Duration::from_secs(3);

/// Time that a lost chain is excluded: by then the pool knows whether the chain still works, or has placed another one.
const LOST_CHAIN_EXCLUSION: Duration = Duration::from_secs(1);

/// First backoff after a stage had no memory for a running session; doubles with every consecutive refusal.
/// Other answers end meanwhile and release their memory.
const MEMORY_BACKOFF: Duration = Duration::from_millis(500);

/// Upper bound of that backoff.
const MEMORY_BACKOFF_MAX: Duration = Duration::from_secs(8);

/// Consecutive memory refusals before the request fails.
const MAX_MEMORY_REFUSALS: u32 = 8;

/// Interval at which another route is looked for, for an answer whose first token is late.
const LATE_RETRY: Duration = Duration::from_secs(1);

/// Failovers of one answer before the request fails: after this many the cause is not a lost node.
const MAX_FAILOVERS: u32 = 16;

/// Failures of one answer's sessions that a node may report before its stages are avoided: one can be bad luck, and a node
/// that fails every session must not use up the failovers.
const MAX_FAILURES_PER_PEER: u32 = 2;

/// What an answer may consist of, so that stages cannot say more or end it early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnswerTerms {
    /// Maximum number of tokens of the answer.
    pub max_new_tokens: usize,
    /// Whether a grammar restricts the answer, and may end it.
    pub grammar: bool,
    /// Whether log-probabilities of the prompt are requested with this answer.
    pub prompt_logprobs: bool,
    /// Time after its opening at which the answer is late without a token.
    pub patience: Duration,
}

/// Nodes and placements that an answer's next route must not use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exclusions {
    /// Nodes that failed.
    pub peers: Vec<PeerId>,
    /// Placements whose chains failed; their nodes are not excluded.
    pub epochs: Vec<u64>,
}

/// A chain that failed during an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LostChain {
    /// The chain of this placement.
    Placed(u64),
    /// All layers on this node, which is another one.
    Server(PeerId),
}

/// One answer in progress.
#[derive(Clone, Debug)]
pub struct AnswerSession {
    /// The node that coordinates the answer.
    local: PeerId,
    /// The prompt and the chosen tokens.
    tokens: Vec<u32>,
    prompt_len: usize,
    phase: Phase,
    failovers: u32,
    terms: AnswerTerms,
    /// Tokens of the prompt whose log-probabilities are known; `None` if the current session gives none.
    scored: Option<usize>,
    /// Nodes that hung, lied or broke the protocol.
    avoided: Vec<PeerId>,
    /// Failures that each node reported.
    failures: Vec<(PeerId, u32)>,
    /// Nodes that called the request wrong, with the kind of their error; not believed yet.
    doubted: Vec<(PeerId, ErrorKind, String)>,
    /// Nodes to suspect, not reported to the request yet.
    suspected: Vec<(PeerId, SuspicionReason)>,
    /// Chains of claims that ended before the last stage, by the stage that sent them.
    partial_claims: Vec<(PeerId, Vec<u8>)>,
    /// The placement whose chain computes the answer.
    epoch: u64,
    /// Chains that were lost, and the end of each exclusion.
    lost: Vec<(LostChain, Time)>,
    /// Nodes whose queue was full when they were asked for this answer.
    full: Vec<PeerId>,
    /// Whether the reader has received part of the request's answers, so that the request can no longer be refused.
    begun: bool,
    /// Consecutive memory refusals.
    memory_refusals: u32,
    /// Earliest time of the next opening.
    backoff_until: Time,
    /// Since when it is certain that no route exists, and why.
    unplaceable: Option<(Time, String)>,
    /// Start of the current phase, or time of the stages' last message.
    since: Time,
    /// When the current session was accepted.
    accepted: Time,
    /// When the current session was opened.
    opened: Time,
    /// When another route was looked for last, because the first token is late.
    late_since: Option<Time>,
    /// Whether the answer has left a chain because its first token was late. It does so once: other chains may be no faster.
    has_moved: bool,
    /// Longest pause lately between tokens of the current stages; `None` before the first one.
    pause: Option<Duration>,
}

/// Phase of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The answer needs a route.
    Unrouted,
    /// The session is being opened at the first stage.
    Opening {
        /// The session.
        id: SessionId,
        /// Its stages, in order.
        stages: Vec<PeerId>,
    },
    /// The stages compute the answer.
    Running {
        /// The session.
        id: SessionId,
        /// Its stages, in order.
        stages: Vec<PeerId>,
    },
    /// The answer is complete, and its stages are asked to sign.
    Signing {
        /// The session.
        id: SessionId,
        /// Its stages, in order.
        stages: Vec<PeerId>,
    },
    /// The answer has ended.
    Ended,
}

/// Consequence of an event for the request.
#[derive(Debug)]
pub enum Outcome {
    /// Nothing.
    Nothing,
    /// The first stage has accepted the session.
    Accepted,
    /// The first token is late: the answer moves to another route, if there is one without these nodes and placements.
    Late(Exclusions),
    /// The answer waits for no more signatures.
    Signed(SignedClaims),
    /// The first stage has refused the session because its queue is full, and another server may take it.
    Full {
        /// The session that was refused.
        closed: SessionId,
        /// The refusal, if no other server takes the request.
        error: Error,
        /// Delay after which a retry may succeed, if any.
        retry_after: Option<Duration>,
    },
    /// The first stage has refused the session without being at fault.
    Refused {
        /// Why.
        error: Error,
        /// Delay after which a retry may succeed, if any.
        retry_after: Option<Duration>,
    },
    /// New tokens of the answer.
    NewTokens(NewTokens),
    /// The answer needs another route.
    Lost {
        /// The session to close.
        closed: SessionId,
        /// Whether its chain still works, so that its stages can sign what they did.
        can_sign: bool,
        /// Why the chain cannot be used.
        why: String,
    },
    /// The answer cannot continue.
    Failed(Error),
}

/// What the stages of an answer have signed, as bytes that are not parsed here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SignedClaims {
    /// The chain that the last stage returned; `None` if it returned none in time.
    pub whole: Option<Vec<u8>>,
    /// What earlier stages sent of it, by stage.
    pub parts: Vec<(PeerId, Vec<u8>)>,
    /// The stage that said that it does not sign, if any.
    pub refused_by: Option<PeerId>,
}

impl AnswerSession {
    /// An answer to `prompt`, coordinated by `local`, without a route.
    pub fn new(local: PeerId, prompt: Vec<u32>, terms: AnswerTerms, now: Time) -> AnswerSession {
        AnswerSession {
            local,
            terms,
            scored: None,
            failures: Vec::new(),
            doubted: Vec::new(),
            suspected: Vec::new(),
            partial_claims: Vec::new(),
            prompt_len: prompt.len(),
            tokens: prompt,
            phase: Phase::Unrouted,
            failovers: 0,
            avoided: Vec::new(),
            epoch: 0,
            lost: Vec::new(),
            full: Vec::new(),
            begun: false,
            memory_refusals: 0,
            backoff_until: Time::ZERO,
            unplaceable: None,
            since: now,
            accepted: now,
            opened: now,
            late_since: None,
            has_moved: false,
            pause: None,
        }
    }

    /// The same answer restarted at its prompt, without nodes that lied about it.
    pub(super) fn restarted_without(&self, liars: &[PeerId], now: Time) -> AnswerSession {
        let prompt = self.tokens[..self.prompt_len].to_vec();
        // The reader has been told to wait.
        let mut session =
            AnswerSession { failovers: 1, begun: true, ..AnswerSession::new(self.local, prompt, self.terms, now) };
        session.avoided.clone_from(&self.avoided);
        session.avoided.extend(liars.iter().filter(|liar| **liar != self.local));
        session
    }

    /// Takes the nodes to suspect since the last call.
    pub(super) fn take_suspected(&mut self) -> Vec<(PeerId, SuspicionReason)> {
        std::mem::take(&mut self.suspected)
    }

    /// Id of the session at the current stages, if any.
    pub fn id(&self) -> Option<SessionId> {
        match &self.phase {
            Phase::Opening { id, .. } | Phase::Running { id, .. } | Phase::Signing { id, .. } => Some(*id),
            Phase::Unrouted | Phase::Ended => None,
        }
    }

    /// Current phase.
    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    /// The prompt and the chosen tokens.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Whether no token of the answer is known.
    pub(super) fn is_at_prompt(&self) -> bool {
        self.tokens.len() == self.prompt_len
    }

    /// Whether the current session gives the log-probabilities of the prompt.
    pub(super) fn scores_prompt(&self) -> bool {
        self.scored.is_some()
    }

    /// Number of tokens in the prompt.
    pub fn prompt_len(&self) -> usize {
        self.prompt_len
    }

    /// Number of lost chains.
    pub fn failovers(&self) -> u32 {
        self.failovers
    }

    fn stages(&self) -> &[PeerId] {
        match &self.phase {
            Phase::Opening { stages, .. } | Phase::Running { stages, .. } | Phase::Signing { stages, .. } => stages,
            Phase::Unrouted | Phase::Ended => &[],
        }
    }

    fn is_alone(&self) -> bool {
        self.stages() == [self.local]
    }

    /// Whether the session can be opened now.
    pub fn wants_route(&self, now: Time) -> bool {
        self.phase == Phase::Unrouted && self.backoff_until <= now
    }

    /// Nodes and placements that the next route must not use.
    pub fn exclusions(&self, now: Time) -> Exclusions {
        let mut exclusions = Exclusions { peers: self.avoided.clone(), epochs: Vec::new() };
        exclusions.peers.extend(&self.full);
        for (lost, _) in self.lost.iter().filter(|(_, until)| *until > now) {
            match lost {
                LostChain::Placed(epoch) => exclusions.epochs.push(*epoch),
                LostChain::Server(peer) => exclusions.peers.push(*peer),
            }
        }
        exclusions
    }

    /// Records that the session was opened at the stages of a placement.
    pub fn opened(&mut self, id: SessionId, epoch: u64, stages: &[StageAt], now: Time) {
        self.unplaceable = None;
        self.phase = Phase::Opening { id, stages: stages.iter().map(|stage| stage.peer).collect() };
        self.epoch = epoch;
        self.scored = (self.terms.prompt_logprobs && self.is_at_prompt()).then_some(0);
        self.partial_claims.clear();
        (self.since, self.opened, self.pause, self.late_since) = (now, now, None, None);
    }

    /// Records that the reader has received part of the request's answers.
    pub fn mark_begun(&mut self) {
        self.begun = true;
        // What was full then may be free when the answer needs another route.
        self.full.clear();
    }

    /// Records that the stages were asked to sign.
    pub fn signing(&mut self, now: Time) {
        if let Phase::Opening { id, stages } | Phase::Running { id, stages } = &self.phase {
            self.phase = Phase::Signing { id: *id, stages: stages.clone() };
            self.since = now;
        }
    }

    /// Ends the answer; later events have no effect.
    pub fn end(&mut self) {
        self.phase = Phase::Ended;
    }

    /// Processes the loss of a peer.
    pub fn peer_gone(&mut self, peer: PeerId, why: &str, now: Time) -> Outcome {
        if !self.stages().contains(&peer) {
            return Outcome::Nothing;
        }
        if matches!(self.phase, Phase::Signing { .. }) {
            return self.no_more_signatures(None, None);
        }
        self.lost_chain(why, now)
    }

    /// Sets why no route can exist while the pool does not change, if that is certain.
    pub fn set_unplaceable(&mut self, why: Option<&str>, now: Time) {
        self.unplaceable = why.map(|why| {
            let since = self.unplaceable.as_ref().map_or(now, |(since, _)| *since);
            (since, why.to_owned())
        });
    }

    /// Why the session will never have a route, once that was certain for long enough.
    fn given_up(&self, now: Time) -> Option<&str> {
        let grace = if self.failovers > 0 { UNPLACEABLE_TIMEOUT } else { UNPLACEABLE_TIMEOUT_AT_START };
        self.unplaceable.as_ref().filter(|(since, _)| now.since(*since) > grace).map(|(_, why)| why.as_str())
    }

    /// Processes the passing of time.
    pub fn tick(&mut self, now: Time) -> Outcome {
        let quiet = now.since(self.since);
        let timeout = match &self.phase {
            Phase::Ended => return Outcome::Nothing,
            Phase::Unrouted if quiet > ROUTE_TIMEOUT => return Outcome::Failed(self.no_route()),
            Phase::Unrouted => {
                return match self.given_up(now) {
                    Some(why) => {
                        let message = format!("{}: {why}", no_node_left().message());
                        Outcome::Failed(Error::new(ErrorKind::Unavailable, message))
                    }
                    None => Outcome::Nothing,
                };
            }
            Phase::Signing { .. } if quiet > SIGNING_TIMEOUT => return self.no_more_signatures(None, None),
            Phase::Signing { .. } => return Outcome::Nothing,
            Phase::Opening { .. } => ACCEPT_TIMEOUT,
            Phase::Running { .. } => match self.pause {
                Some(pause) => TOKEN_GRACE + pause * PAUSE_TOLERANCE,
                None => SILENCE_TIMEOUT,
            },
        };
        let prompt = u32::try_from(self.prompt_len).unwrap_or(u32::MAX);
        let first_token = FIRST_TOKEN_TIMEOUT + PROMPT_TOKEN_TIMEOUT * prompt;
        let is_running = matches!(self.phase, Phase::Running { .. });
        let has_none = is_running && self.pause.is_none() && now.since(self.accepted) > first_token;
        if self.is_alone() {
            return Outcome::Nothing;
        }
        if quiet <= timeout && !has_none {
            return self.late(now);
        }
        self.stalled("its stages have been silent for too long", now)
    }

    /// Whether the first token is late. What the first stage says of itself does not count.
    fn late(&mut self, now: Time) -> Outcome {
        let is_due = self.late_since.is_none_or(|last| now.since(last) > LATE_RETRY);
        if self.pause.is_some() || self.has_moved || !is_due || now.since(self.opened) <= self.terms.patience {
            return Outcome::Nothing;
        }
        self.late_since = Some(now);
        let Exclusions { mut peers, mut epochs } = self.exclusions(now);
        peers.extend(self.stages().iter().filter(|peer| **peer != self.local));
        if self.epoch > 0 {
            epochs.push(self.epoch);
        }
        Outcome::Late(Exclusions { peers, epochs })
    }

    /// Leaves the current stages for another route, which was found because the first token is late. Any of the stages may hold it
    /// back, or be busy with other requests: all of them are suspected a little, so that what goes on and on ends.
    pub(super) fn moves_on(&mut self, now: Time) -> Outcome {
        if self.id().is_none() {
            return Outcome::Nothing;
        }
        self.has_moved = true;
        for peer in self.stages().to_vec() {
            self.suspect(peer, SuspicionReason::Late);
        }
        self.lost_chain("the first token is late, and another chain is free", now)
    }

    /// Records that tokens have come, and with them how long one takes.
    fn progressed(&mut self, now: Time) {
        let pause = now.since(self.since).min(USUAL_PAUSE_MAX);
        self.pause = Some(self.pause.map_or(pause, |longest| pause.max(longest * PAUSE_DECAY_PERCENT / 100)));
        self.since = now;
    }

    fn stalled(&mut self, why: &str, now: Time) -> Outcome {
        // It is unknown which of the stages hangs.
        let others: Vec<PeerId> = self.stages().iter().copied().filter(|peer| *peer != self.local).collect();
        let outcome = self.lost_chain(why, now);
        if let [only] = others[..] {
            self.suspect(only, SuspicionReason::Stalled);
        }
        others.into_iter().for_each(|peer| self.avoid(peer));
        outcome
    }

    /// Why no route was found: with what the avoided nodes said of the request.
    fn no_route(&self) -> Error {
        let error = no_node_left();
        match self.doubted.last() {
            Some((peer, _, said)) => {
                let why = format!("{}; node {peer} refuses the request: {said}", error.message());
                Error::new(error.kind(), why)
            }
            None => error,
        }
    }

    /// A stage had no memory for the session. Its tokens are kept, and memory may become free soon.
    fn back_off(&mut self, least: Duration, why: &str, now: Time) -> Outcome {
        self.memory_refusals += 1;
        if self.memory_refusals > MAX_MEMORY_REFUSALS {
            self.phase = Phase::Ended;
            return Outcome::Failed(Error::new(ErrorKind::Overloaded, why));
        }
        let backoff = doubled(MEMORY_BACKOFF, self.memory_refusals - 1, MEMORY_BACKOFF_MAX);
        self.backoff_until = now + backoff.max(least).min(MEMORY_BACKOFF_MAX);
        self.lost(why, now)
    }

    /// The chain cannot be used for now. Its nodes may still be: the placement may choose the same nodes again.
    fn lost_chain(&mut self, why: &str, now: Time) -> Outcome {
        let chain = match self.stages() {
            // This node's own chain is restarted, and nothing replaces it.
            [only] if self.epoch == 0 && *only == self.local => None,
            [only] if self.epoch == 0 => Some(LostChain::Server(*only)),
            _ => Some(LostChain::Placed(self.epoch)),
        };
        self.lost.retain(|(lost, until)| Some(*lost) != chain && *until > now);
        self.lost.extend(chain.map(|chain| (chain, now + LOST_CHAIN_EXCLUSION)));
        self.lost(why, now)
    }

    fn lost(&mut self, why: &str, now: Time) -> Outcome {
        let Some(closed) = self.id() else { return Outcome::Nothing };
        self.failovers += 1;
        if self.failovers > MAX_FAILOVERS {
            self.phase = Phase::Ended;
            let why = format!("gave up after {MAX_FAILOVERS} failovers; the last cause: {why}");
            return Outcome::Failed(Error::new(ErrorKind::Unavailable, why));
        }
        self.phase = Phase::Unrouted;
        self.since = now;
        Outcome::Lost { closed, can_sign: false, why: why.to_owned() }
    }
}

fn no_node_left() -> Error {
    let why = "no node is left that can hold the model's layers; start another, or give one more memory";
    Error::new(ErrorKind::Unavailable, why)
}
