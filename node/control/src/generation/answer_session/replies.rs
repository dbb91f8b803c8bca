//! What a stage's message means for an answer: who may say what, how much of it counts, and when the sender is suspected.

use std::time::Duration;

use libp2p_identity::PeerId;
use pangea_units::{Error, ErrorKind};

use super::{AnswerSession, MAX_FAILURES_PER_PEER, Outcome, Phase, SignedClaims};
use crate::Time;
use crate::generation::reply::{NewTokens, Reply, ReportedTokens};
use crate::peers::SuspicionReason;
use crate::session::{EndReason, TokenOut};

impl AnswerSession {
    /// Processes a reply of a stage.
    pub fn handle(&mut self, from: PeerId, reply: Reply, now: Time) -> Outcome {
        if self.id().is_none() || !self.stages().contains(&from) {
            return Outcome::Nothing;
        }
        if matches!(self.phase, Phase::Signing { .. }) {
            return self.signed(from, reply);
        }
        let is_first = self.stages().first() == Some(&from);
        match reply {
            Reply::Accepted | Reply::Refused { .. } if !is_first => self.speaks_out_of_turn(from),
            Reply::Accepted => {
                if let Phase::Opening { id, stages } = &self.phase {
                    self.phase = Phase::Running { id: *id, stages: stages.clone() };
                    (self.since, self.accepted) = (now, now);
                    return Outcome::Accepted;
                }
                // The first stage says again and again that the chain works on, until the first token.
                if self.pause.is_none() {
                    self.since = now;
                }
                Outcome::Nothing
            }
            // Layers of this node, too, may have left its memory just now.
            Reply::Refused { kind: ErrorKind::Unavailable, message, .. } => self.lost_chain(&message, now),
            Reply::Refused { kind: ErrorKind::Internal, message, .. } if !self.is_alone() => {
                self.lost_chain(&message, now)
            }
            Reply::Refused { kind: ErrorKind::Overloaded, message, retry_after } if self.begun => {
                self.back_off(retry_after.unwrap_or_default(), &message, now)
            }
            Reply::Refused { kind, message, retry_after } => {
                if kind != ErrorKind::Overloaded && !self.believes(from, kind) {
                    return self.doubt(from, kind, message, now);
                }
                let error = Error::new(kind, message);
                if kind == ErrorKind::Overloaded
                    && let Some(closed) = self.id()
                {
                    self.full.push(from);
                    (self.phase, self.since) = (Phase::Unrouted, now);
                    return Outcome::Full { closed, error, retry_after };
                }
                if self.begun { Outcome::Failed(error) } else { Outcome::Refused { error, retry_after } }
            }
            Reply::Tokens(_) if self.stages().last() != Some(&from) => self.speaks_out_of_turn(from),
            Reply::Tokens(reported) => self.take(from, reported, now),
            Reply::Failed { kind: ErrorKind::Overloaded, message } if self.begun && !self.is_alone() => {
                self.back_off(Duration::ZERO, &message, now)
            }
            Reply::Failed { kind, message } => match kind {
                // A chain that lost a stage, or whose layers leave memory, accepts no more sessions.
                ErrorKind::Unavailable => self.lost_chain(&message, now),
                // The first stage knows which frames are due, and what may come back of them.
                ErrorKind::DeadlineExceeded if is_first && !self.is_alone() => self.stalled(&message, now),
                ErrorKind::VerificationFailed if is_first && !self.is_alone() => self.misreported(from, &message, now),
                ErrorKind::Internal | ErrorKind::DeadlineExceeded | ErrorKind::VerificationFailed
                    if !self.is_alone() =>
                {
                    self.failed_at(from);
                    self.lost(&message, now)
                }
                kind if kind != ErrorKind::Overloaded && !self.believes(from, kind) => {
                    self.doubt(from, kind, message, now)
                }
                _ => Outcome::Failed(Error::new(kind, message)),
            },
            Reply::Committed { .. } => Outcome::Nothing,
        }
    }

    /// Processes a reply while the stages are asked to sign.
    fn signed(&mut self, from: PeerId, reply: Reply) -> Outcome {
        match reply {
            Reply::Committed { claims } if self.stages().last() == Some(&from) => {
                self.no_more_signatures(Some(claims), None)
            }
            Reply::Committed { claims } => {
                if self.partial_claims.iter().all(|(stage, _)| *stage != from) {
                    self.partial_claims.push((from, claims));
                }
                Outcome::Nothing
            }
            Reply::Failed { .. } => self.no_more_signatures(None, Some(from)),
            _ => Outcome::Nothing,
        }
    }

    pub(super) fn no_more_signatures(&mut self, whole: Option<Vec<u8>>, refused_by: Option<PeerId>) -> Outcome {
        self.phase = Phase::Ended;
        Outcome::Signed(SignedClaims { whole, parts: std::mem::take(&mut self.partial_claims), refused_by })
    }

    /// A stage says what only another stage may say: nothing of it counts.
    fn speaks_out_of_turn(&mut self, from: PeerId) -> Outcome {
        self.suspect(from, SuspicionReason::BrokeProtocol);
        Outcome::Nothing
    }

    pub(super) fn suspect(&mut self, peer: PeerId, reason: SuspicionReason) {
        if peer != self.local && !self.suspected.contains(&(peer, reason)) {
            self.suspected.push((peer, reason));
        }
    }

    /// The first stage says that the last one reports nonsense. Only this node's own stage is believed; another one may lie.
    fn misreported(&mut self, from: PeerId, message: &str, now: Time) -> Outcome {
        if let Some(last) = self.stages().last().copied() {
            self.avoid(last);
            if from == self.local {
                self.suspect(last, SuspicionReason::BrokeProtocol);
            }
        }
        self.failed_at(from);
        self.lost_chain(message, now)
    }

    /// Whether a stage is believed that the request itself is wrong: this node is, and a second node that says the same.
    fn believes(&self, from: PeerId, kind: ErrorKind) -> bool {
        from == self.local || self.is_alone() || self.doubted.iter().any(|(peer, of, _)| *peer != from && *of == kind)
    }

    /// A stage calls the request wrong that this node has checked: another chain is asked.
    fn doubt(&mut self, from: PeerId, kind: ErrorKind, message: String, now: Time) -> Outcome {
        self.avoid(from);
        let why = format!("stage {from} calls the request invalid, which this node does not: {message}");
        self.doubted.push((from, kind, message));
        self.lost(&why, now)
    }

    pub(super) fn avoid(&mut self, peer: PeerId) {
        if peer != self.local && !self.avoided.contains(&peer) {
            self.avoided.push(peer);
        }
    }

    /// Counts a failure that a stage reported; a node that fails sessions again and again is avoided.
    fn failed_at(&mut self, from: PeerId) {
        let counted = self.failures.iter_mut().find(|(peer, _)| *peer == from);
        let failures = match counted {
            Some((_, failures)) => {
                *failures += 1;
                *failures
            }
            None => {
                self.failures.push((from, 1));
                1
            }
        };
        if failures >= MAX_FAILURES_PER_PEER {
            self.avoid(from);
        }
    }

    /// What is wrong with a report, if anything: it says more than was asked for, or something else than before.
    fn fault(&self, reported: &ReportedTokens) -> Option<(&'static str, SuspicionReason)> {
        let first = reported.position as usize;
        let end = first.saturating_add(reported.tokens.len());
        let known = self.tokens.get(first..).unwrap_or_default();
        if known.iter().zip(&reported.tokens).any(|(known, again)| *known != again.token) {
            return Some(("it sent two tokens for one position", SuspicionReason::Contradicted));
        }
        let limit = self.prompt_len.saturating_add(self.terms.max_new_tokens);
        let scored = self.scored.unwrap_or(self.prompt_len);
        let of_prompt = self.tokens.get(scored..self.prompt_len).unwrap_or_default();
        let is_prompt = reported.prompt.len() <= of_prompt.len()
            && reported.prompt.iter().zip(of_prompt).all(|(out, token)| out.token == *token);
        let is_over = match reported.ended {
            None | Some(EndReason::Stop) => true,
            Some(EndReason::Length) => end == limit,
            Some(EndReason::GrammarComplete) => self.terms.grammar,
        };
        let what = if end > limit {
            "it sent more tokens than were asked for"
        } else if !is_prompt {
            "it sent log-probabilities that nobody asked for"
        } else if !is_over {
            "it ended the answer for a reason that does not hold"
        } else {
            return None;
        };
        Some((what, SuspicionReason::BrokeProtocol))
    }

    /// Processes tokens that the last stage reports.
    fn take(&mut self, from: PeerId, reported: ReportedTokens, now: Time) -> Outcome {
        let known = self.tokens.len();
        let first = reported.position as usize;
        if let Some((what, reason)) = self.fault(&reported) {
            return self.violated(from, what, reason, now);
        }
        if first > known {
            self.failed_at(from);
            return self.left("tokens of the answer were lost", now);
        }
        let fresh: Vec<TokenOut> = reported.tokens.into_iter().skip(known - first).collect();
        self.tokens.extend(fresh.iter().map(|out| out.token));
        if let Some(scored) = &mut self.scored {
            *scored += reported.prompt.len();
        }
        // A message that says nothing new is no progress.
        if !reported.prompt.is_empty() && self.pause.is_none() {
            self.since = now;
        }
        if !fresh.is_empty() {
            self.progressed(now);
            self.memory_refusals = 0;
            // The request is fine, so whoever called it wrong was wrong.
            for (peer, ..) in std::mem::take(&mut self.doubted) {
                self.suspect(peer, SuspicionReason::RefusedWrongly);
            }
        }
        let stale = fresh.is_empty() && first < known;
        Outcome::NewTokens(NewTokens {
            tokens: fresh,
            prompt: reported.prompt,
            ended: reported.ended.filter(|_| !stale),
            drafted: reported.drafted as usize,
            accepted: reported.accepted as usize,
            cached: reported.cached as usize,
            computed: (reported.computed as usize).min(self.tokens.len()),
        })
    }

    /// The last stage says what it may not say: nothing of the message counts, and another chain continues.
    fn violated(&mut self, from: PeerId, what: &str, reason: SuspicionReason, now: Time) -> Outcome {
        if self.is_alone() {
            return Outcome::Failed(Error::new(
                ErrorKind::Internal,
                format!("the model's last stage is wrong: {what}"),
            ));
        }
        self.suspect(from, reason);
        self.avoid(from);
        self.left(&format!("stage {from} broke the protocol: {what}"), now)
    }

    /// The answer goes on elsewhere, and the chain that it leaves still works.
    fn left(&mut self, why: &str, now: Time) -> Outcome {
        match self.lost(why, now) {
            Outcome::Lost { closed, why, .. } => Outcome::Lost { closed, can_sign: true, why },
            other => other,
        }
    }

    /// Processes that the text ended the answer at a token that does not end it, as the driver found.
    pub(in crate::generation) fn ended_wrongly(&mut self, now: Time) -> Outcome {
        match self.stages().last().copied() {
            Some(last) if self.id().is_some() => {
                let what = "it ended the answer at a token that does not end it";
                self.violated(last, what, SuspicionReason::BrokeProtocol, now)
            }
            _ => Outcome::Nothing,
        }
    }
}
