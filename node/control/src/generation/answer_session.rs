//! One answer from its coordinator's view: which tokens are known, what a reply of its stages means, and when the answer
//! fails over to another chain. Nothing is sent and no text is made here.

use std::time::Duration;

use libp2p_identity::PeerId;
use pangea_units::{Error, ErrorKind};

use crate::Time;
use crate::backoff::doubled;
use crate::session::{EndReason, SessionId, StageAt, TokenOut};

/// Silence after which stages that have sent tokens count as hanging: many times what a token takes on a slow device, and
/// less than people wait.
const STALL_TIMEOUT: Duration = Duration::from_secs(10);

/// The same timeout before the first token: prompts are long, and other requests come first.
const FIRST_TOKEN_TIMEOUT: Duration = Duration::from_secs(120);

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

/// Failovers of one answer before the request fails: after this many the cause is not a lost node.
const MAX_FAILOVERS: u32 = 16;

/// Nodes and placements that an answer's next route must not use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exclusions {
    /// Nodes that failed.
    pub peers: Vec<PeerId>,
    /// Placements whose chains failed; their nodes are not excluded.
    pub epochs: Vec<u64>,
}

/// A stage's message about a session.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// The first stage has accepted the session.
    Accepted,
    /// The first stage has refused the session.
    Refused {
        /// Reason for programs.
        kind: ErrorKind,
        /// Reason for people.
        message: String,
        /// Delay after which a retry may succeed, if any.
        retry_after: Option<Duration>,
    },
    /// Tokens of the answer.
    Tokens(ReportedTokens),
    /// The stages cannot continue the session.
    Failed {
        /// Reason for programs.
        kind: ErrorKind,
        /// Reason for people.
        message: String,
    },
    /// The stages have signed their claims.
    Committed {
        /// The signed claims as bytes; not parsed here.
        claims: Vec<u8>,
    },
}

/// Tokens of an answer as a stage reports them; some may be known already.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReportedTokens {
    /// Position of the first token, counted from the first token of the prompt.
    pub position: u32,
    /// The tokens.
    pub tokens: Vec<TokenOut>,
    /// Why the answer ends after them, if it does.
    pub ended: Option<EndReason>,
    /// Tokens of the prompt with their log-probabilities.
    pub prompt: Vec<TokenOut>,
    /// Tokens that were drafted for these.
    pub drafted: u32,
    /// Drafted tokens that were accepted.
    pub accepted: u32,
    /// Positions at the start of the session that were cached from an earlier one.
    pub cached: u32,
}

/// Tokens that were not known before.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NewTokens {
    /// The tokens, in order.
    pub tokens: Vec<TokenOut>,
    /// Tokens of the prompt with their log-probabilities.
    pub prompt: Vec<TokenOut>,
    /// Why the answer ends after them, if it does.
    pub ended: Option<EndReason>,
    /// Tokens that were drafted for these.
    pub drafted: usize,
    /// Drafted tokens that were accepted.
    pub accepted: usize,
    /// Positions at the start of the session that were cached from an earlier one.
    pub cached: usize,
}

/// One answer in progress.
#[derive(Debug)]
pub struct AnswerSession {
    /// The node that coordinates the answer.
    local: PeerId,
    /// The prompt and the chosen tokens.
    tokens: Vec<u32>,
    prompt_len: usize,
    phase: Phase,
    failovers: u32,
    /// Nodes that hung or lied.
    avoided: Vec<PeerId>,
    /// The placement whose chain computes the answer.
    epoch: u64,
    /// Placements whose chains were lost, and the end of each exclusion.
    lost: Vec<(u64, Time)>,
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
    /// Whether the current stages have sent tokens.
    heard: bool,
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
    /// The last stage has returned the signed claims.
    Committed {
        /// The signed claims as bytes.
        claims: Vec<u8>,
    },
    /// The stages did not sign in time.
    Unsigned,
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
        /// Why the chain cannot be used.
        why: String,
    },
    /// The answer cannot continue.
    Failed(Error),
}

impl AnswerSession {
    /// An answer to `prompt`, coordinated by `local`, without a route.
    pub fn new(local: PeerId, prompt: Vec<u32>, now: Time) -> AnswerSession {
        AnswerSession {
            local,
            prompt_len: prompt.len(),
            tokens: prompt,
            phase: Phase::Unrouted,
            failovers: 0,
            avoided: Vec::new(),
            epoch: 0,
            lost: Vec::new(),
            begun: false,
            memory_refusals: 0,
            backoff_until: Time::ZERO,
            unplaceable: None,
            since: now,
            heard: false,
        }
    }

    /// The same answer restarted at its prompt, without nodes that lied about it.
    pub(super) fn restarted_without(&self, liars: &[PeerId], now: Time) -> AnswerSession {
        let prompt = self.tokens[..self.prompt_len].to_vec();
        // The reader has been told to wait.
        let mut session = AnswerSession { failovers: 1, begun: true, ..AnswerSession::new(self.local, prompt, now) };
        session.avoided.clone_from(&self.avoided);
        session.avoided.extend_from_slice(liars);
        session
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
        let lost = self.lost.iter().filter(|(_, until)| *until > now);
        Exclusions { peers: self.avoided.clone(), epochs: lost.map(|(epoch, _)| *epoch).collect() }
    }

    /// Records that the session was opened at the stages of a placement.
    pub fn opened(&mut self, id: SessionId, epoch: u64, stages: &[StageAt], now: Time) {
        self.unplaceable = None;
        self.phase = Phase::Opening { id, stages: stages.iter().map(|stage| stage.peer).collect() };
        self.epoch = epoch;
        (self.since, self.heard) = (now, false);
    }

    /// Records that the reader has received part of the request's answers.
    pub fn mark_begun(&mut self) {
        self.begun = true;
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

    /// Processes a reply of a stage.
    pub fn handle(&mut self, from: PeerId, reply: Reply, now: Time) -> Outcome {
        if self.id().is_none() || !self.stages().contains(&from) {
            return Outcome::Nothing;
        }
        if matches!(self.phase, Phase::Signing { .. }) {
            return match reply {
                // Only the last stage's message counts; one from an earlier stage is meant for a stage on this node.
                Reply::Committed { claims } if self.stages().last() == Some(&from) => {
                    self.phase = Phase::Ended;
                    Outcome::Committed { claims }
                }
                _ => Outcome::Nothing,
            };
        }
        match reply {
            Reply::Accepted => {
                if let Phase::Opening { id, stages } = &self.phase {
                    self.phase = Phase::Running { id: *id, stages: stages.clone() };
                    self.since = now;
                    return Outcome::Accepted;
                }
                Outcome::Nothing
            }
            Reply::Refused { kind: ErrorKind::Unavailable | ErrorKind::Internal, message, .. } if !self.is_alone() => {
                self.lost_chain(&message, now)
            }
            Reply::Refused { kind: ErrorKind::Overloaded, message, retry_after } if self.begun => {
                self.back_off(retry_after.unwrap_or_default(), &message, now)
            }
            Reply::Refused { kind, message, retry_after } => {
                Outcome::Refused { error: Error::new(kind, message), retry_after }
            }
            Reply::Tokens(reported) => self.take(reported, now),
            Reply::Failed { kind: ErrorKind::Overloaded, message } if self.begun && !self.is_alone() => {
                self.back_off(Duration::ZERO, &message, now)
            }
            Reply::Failed { kind, message } => match kind {
                // A chain that lost a stage accepts no more sessions.
                ErrorKind::Unavailable if !self.is_alone() => self.lost_chain(&message, now),
                ErrorKind::Internal | ErrorKind::DeadlineExceeded | ErrorKind::VerificationFailed
                    if !self.is_alone() =>
                {
                    self.lost(&message, now)
                }
                _ => Outcome::Failed(Error::new(kind, message)),
            },
            Reply::Committed { .. } => Outcome::Nothing,
        }
    }

    /// Processes tokens that a stage reports.
    fn take(&mut self, reported: ReportedTokens, now: Time) -> Outcome {
        let known = self.tokens.len();
        let first = reported.position as usize;
        if first > known {
            return self.lost("tokens of the answer were lost", now);
        }
        let fresh: Vec<TokenOut> = reported.tokens.into_iter().skip(known - first).collect();
        self.tokens.extend(fresh.iter().map(|out| out.token));
        (self.since, self.heard) = (now, true);
        if !fresh.is_empty() {
            self.memory_refusals = 0;
        }
        let stale = fresh.is_empty() && first < known;
        Outcome::NewTokens(NewTokens {
            tokens: fresh,
            prompt: reported.prompt,
            ended: reported.ended.filter(|_| !stale),
            drafted: reported.drafted as usize,
            accepted: reported.accepted as usize,
            cached: reported.cached as usize,
        })
    }

    /// Processes the loss of a peer.
    pub fn peer_gone(&mut self, peer: PeerId, why: &str, now: Time) -> Outcome {
        if !self.stages().contains(&peer) {
            return Outcome::Nothing;
        }
        if matches!(self.phase, Phase::Signing { .. }) {
            return self.unsigned();
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
            Phase::Unrouted if quiet > ROUTE_TIMEOUT => return Outcome::Failed(no_node_left()),
            Phase::Unrouted => {
                return match self.given_up(now) {
                    Some(why) => {
                        let message = format!("{}: {why}", no_node_left().message());
                        Outcome::Failed(Error::new(ErrorKind::Unavailable, message))
                    }
                    None => Outcome::Nothing,
                };
            }
            Phase::Signing { .. } if quiet > SIGNING_TIMEOUT => return self.unsigned(),
            Phase::Signing { .. } => return Outcome::Nothing,
            Phase::Opening { .. } => STALL_TIMEOUT,
            Phase::Running { .. } if self.heard => STALL_TIMEOUT,
            Phase::Running { .. } => FIRST_TOKEN_TIMEOUT,
        };
        if self.is_alone() || quiet <= timeout {
            return Outcome::Nothing;
        }
        self.stalled(now)
    }

    fn unsigned(&mut self) -> Outcome {
        self.phase = Phase::Ended;
        Outcome::Unsigned
    }

    fn stalled(&mut self, now: Time) -> Outcome {
        // It is unknown which of the stages hangs.
        let others: Vec<PeerId> = self.stages().iter().copied().filter(|peer| *peer != self.local).collect();
        let outcome = self.lost_chain("its stages have been silent for too long", now);
        self.avoided.extend(others);
        outcome
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
        self.lost.retain(|(epoch, until)| *epoch != self.epoch && *until > now);
        self.lost.push((self.epoch, now + LOST_CHAIN_EXCLUSION));
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
        Outcome::Lost { closed, why: why.to_owned() }
    }
}

fn no_node_left() -> Error {
    let why = "no node is left that can hold the model's layers; start another, or give one more memory";
    Error::new(ErrorKind::Unavailable, why)
}

#[cfg(test)]
mod tests;
