//! One whole request: which route its answers take, how long it may still be refused, whether its answers are
//! held back until they are audited, and when it is concluded with which verdict. [`AnswerSession`] decides what a
//! reply means for one answer; the driver sends, displays, signs and stores.

use std::ops::Range;
use std::time::Duration;

use libp2p_identity::PeerId;
use pangea_units::{Error, ErrorKind};

use super::action::{Action, Conclusion, Route, TokenCounts};
use super::answer_session::{AnswerSession, AnswerTerms, Outcome, Phase};
use super::answer_state::AnswerState;
use super::event::{ClaimsFault, Event, Setup};
use super::reply::{NewTokens, Reply};
use super::retired::RetiredSessions;
use super::segment::Segment;
use crate::Time;
use crate::session::{ChainId, SessionId};
use crate::trust::{AuditPolicy, Verdict};

/// Time for a split model to be placed before this node takes the request alone.
const PLACEMENT_TIMEOUT: Duration = Duration::from_secs(15);

/// Time that a request with stages on other nodes may wait for its first token and still be refused, so that its client
/// gets a `Retry-After`.
const REFUSAL_WINDOW: Duration = Duration::from_secs(2);

/// Recomputations of one request after which it fails: by then as many nodes have lied about it.
const MAX_RECOMPUTATIONS: u32 = 8;

/// Progress of the whole request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Answers are being computed.
    Answering,
    /// All answers are complete; receipts are being stored and audits are running.
    Concluding { receipts: usize, audits: usize },
    /// The request has ended.
    Over,
}

/// One request in progress.
#[derive(Debug)]
pub struct GenerationState {
    local: PeerId,
    audit: Option<AuditPolicy>,
    one_server: bool,
    arrived: Time,
    answers: Vec<AnswerState>,
    stage: Stage,
    /// Time of the first opening, and of the first token.
    opened: Option<Time>,
    first_token: Option<Time>,
    /// Whether nothing is returned before its audit.
    held: bool,
    /// Verdicts of the audits that have ended, and the number of receipts.
    audited: Vec<Verdict>,
    receipts: usize,
    /// What a full server said, for as long as another one is looked for.
    refusal: Option<(Error, Option<Duration>)>,
    /// Why an answer of the request could not be trusted last, and how many times the request was recomputed for it.
    untrusted: Option<String>,
    recomputations: u32,
    /// Why an answer left its chain last.
    lost: Option<String>,
    conclusion: Conclusion,
}

impl GenerationState {
    /// A request that has just arrived.
    pub fn new(setup: Setup) -> GenerationState {
        let Setup { local, prompt, choices, max_new_tokens, grammar, prompt_logprobs, patience, .. } = setup;
        let Setup { audit, one_server, arrived, .. } = setup;
        let answer = |choice| {
            let terms =
                AnswerTerms { max_new_tokens, grammar, prompt_logprobs: prompt_logprobs && choice == 0, patience };
            AnswerState {
                session: AnswerSession::new(local, prompt.clone(), terms, arrived),
                route: None,
                segments: Vec::new(),
                retired: RetiredSessions::default(),
                fault: None,
            }
        };
        GenerationState {
            local,
            audit,
            one_server,
            arrived,
            answers: (0..choices).map(answer).collect(),
            stage: Stage::Answering,
            opened: None,
            first_token: None,
            held: false,
            audited: Vec::new(),
            receipts: 0,
            refusal: None,
            untrusted: None,
            lost: None,
            recomputations: 0,
            conclusion: Conclusion::default(),
        }
    }

    /// State of one answer.
    pub fn answer(&self, choice: usize) -> &AnswerSession {
        &self.answers[choice].session
    }

    /// Which stages computed which part of an answer, in order.
    pub fn segments(&self, choice: usize) -> &[Segment] {
        &self.answers[choice].segments
    }

    /// The chain that computes an answer now.
    pub fn route(&self, choice: usize) -> Option<&Route> {
        self.answers[choice].route.as_ref()
    }

    /// Token counts so far.
    pub fn tokens(&self) -> TokenCounts {
        self.conclusion.tokens
    }

    /// Whether nothing may be returned yet, because an audit decides about it.
    pub fn is_held(&self) -> bool {
        self.held
    }

    /// Whether the request has ended.
    pub fn is_over(&self) -> bool {
        self.stage == Stage::Over
    }

    /// Whether an answer waits for a route.
    pub fn is_unrouted(&self) -> bool {
        self.answers.iter().any(|answer| *answer.session.phase() == Phase::Unrouted)
    }

    /// Whether the passing of time matters: an answer is on other nodes, has no route, or waits for signatures, which even
    /// a stage of this node may owe: its chain can break after it gave the last token.
    pub fn needs_ticks(&self) -> bool {
        self.answers.iter().any(|answer| match answer.session.phase() {
            Phase::Ended => false,
            Phase::Signing { .. } => true,
            _ => answer.route.as_ref().is_none_or(|route| !self.is_local(route)),
        })
    }

    /// Whether the request may still be refused: some answers are not accepted yet, or other nodes compute a part
    /// and one of them may still run out of memory.
    pub fn may_be_refused(&self, now: Time) -> bool {
        let taken = |answer: &AnswerState| {
            matches!(answer.session.phase(), Phase::Running { .. } | Phase::Signing { .. } | Phase::Ended)
        };
        let alone = self.answers.iter().filter_map(|answer| answer.route.as_ref()).all(|route| self.is_local(route));
        let awaited = !alone
            && self.first_token.is_none()
            && self.opened.is_some_and(|opened| now.since(opened) < REFUSAL_WINDOW);
        awaited || !self.answers.iter().all(taken)
    }

    fn is_local(&self, route: &Route) -> bool {
        route.stages.iter().all(|stage| stage.peer == self.local)
    }

    /// Processes an event; returns the actions in order.
    pub fn handle(&mut self, event: Event, now: Time) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.stage == Stage::Over {
            return actions;
        }
        match event {
            Event::Start | Event::RoutesChanged => self.find_routes(now, &mut actions),
            Event::Reply { from, session, reply } => {
                self.reply(from, session, reply, now, &mut actions);
                self.find_routes(now, &mut actions);
            }
            Event::PeerGone { peer, why } => {
                for choice in 0..self.answers.len() {
                    let outcome = self.answers[choice].session.peer_gone(peer, &why, now);
                    self.follow(choice, outcome, now, &mut actions);
                }
                self.find_routes(now, &mut actions);
            }
            Event::Tick { unplaceable } => {
                for choice in 0..self.answers.len() {
                    let session = &mut self.answers[choice].session;
                    session.set_unplaceable(unplaceable.as_deref(), now);
                    let outcome = session.tick(now);
                    self.follow(choice, outcome, now, &mut actions);
                }
                self.find_routes(now, &mut actions);
            }
            Event::RouteFound { choices, id, chain, stages } => {
                for choice in choices.clone() {
                    let outcome = self.answers[choice].session.moves_on(now);
                    self.follow(choice, outcome, now, &mut actions);
                }
                self.open(choices, id, Route { chain, stages }, now, &mut actions);
            }
            Event::NoRoute if self.refusal.is_some() => {
                if let Some((error, retry_after)) = self.refusal.take() {
                    self.end(&mut actions);
                    actions.push(Action::Refuse { error, retry_after });
                }
            }
            // The route may have been for an answer whose first token is late, and which stays where it is.
            Event::NoRoute if self.one_server => {
                if self.is_unrouted() {
                    self.fail(self.server_lost(), &mut actions);
                }
            }
            Event::NoRoute => {
                if !self.is_fresh() || now.since(self.arrived) > PLACEMENT_TIMEOUT {
                    actions.push(Action::RequestLocal);
                }
            }
            Event::OpenFailed { choices, why } => {
                for choice in choices {
                    let Some((_, first)) = self.first_stage(choice) else { continue };
                    let outcome = self.answers[choice].session.peer_gone(first, &why, now);
                    self.follow(choice, outcome, now, &mut actions);
                }
            }
            Event::AnswerComplete { choice } => self.complete(choice, now, &mut actions),
            Event::EndedWrongly { choice } => {
                let outcome = self.answers[choice].session.ended_wrongly(now);
                self.follow(choice, outcome, now, &mut actions);
                self.find_routes(now, &mut actions);
            }
            Event::ClaimsChecked { choice, segment, fault } => {
                self.claims_checked(choice, segment, fault, now, &mut actions);
            }
            Event::ReceiptKept { choice, random, suspect } => {
                self.receipt_kept(choice, random, suspect, &mut actions);
            }
            Event::Audited { verdict, wrong } => self.audit_ended(verdict, wrong, now, &mut actions),
            Event::Cancelled => self.end(&mut actions),
        }
        for answer in &mut self.answers {
            let suspected = answer.session.take_suspected().into_iter();
            actions.extend(suspected.map(|(peer, reason)| Action::Suspect { peer, reason }));
        }
        actions
    }

    /// The chain of an answer, and the node of its first stage.
    fn first_stage(&self, choice: usize) -> Option<(ChainId, PeerId)> {
        let route = self.answers[choice].route.as_ref()?;
        route.stages.first().map(|stage| (route.chain, stage.peer))
    }

    /// Whether no answer has had a route yet; then all are opened together, because they share the prompt.
    fn is_fresh(&self) -> bool {
        let fresh = |session: &AnswerSession| session.failovers() == 0 && *session.phase() == Phase::Unrouted;
        self.answers.iter().all(|answer| fresh(&answer.session))
    }

    /// Requests routes for the answers that have none.
    fn find_routes(&mut self, now: Time, actions: &mut Vec<Action>) {
        if self.stage != Stage::Answering {
            return;
        }
        if self.is_fresh() {
            let exclusions = self.answers[0].session.exclusions(now);
            actions.push(Action::FindRoute { choices: 0..self.answers.len(), exclusions });
            return;
        }
        for (choice, answer) in self.answers.iter().enumerate().filter(|(_, answer)| answer.session.wants_route(now)) {
            let exclusions = answer.session.exclusions(now);
            actions.push(Action::FindRoute { choices: choice..choice + 1, exclusions });
        }
    }

    fn open(&mut self, choices: Range<usize>, id: SessionId, route: Route, now: Time, actions: &mut Vec<Action>) {
        if self.conclusion.stages != route.stages {
            self.conclusion.stages.clone_from(&route.stages);
        }
        self.held |= self.audit.is_some_and(AuditPolicy::is_all) && !self.is_local(&route);
        let from_prompt = self.answers[choices.start].session.is_at_prompt();
        for (index, choice) in choices.clone().enumerate() {
            let (answer, id) = (&mut self.answers[choice], id.choice(index as u16));
            answer.session.opened(id, route.chain.epoch, &route.stages, now);
            answer.segments.push(Segment {
                session: id,
                epoch: route.chain.epoch,
                chosen_from: answer.session.tokens().len() as u64 - 1,
                positions: answer.session.tokens().len() as u64 - 1,
                scored: answer.session.scores_prompt(),
                stages: route.stages.clone(),
                ended: None,
            });
            answer.route = Some(route.clone());
        }
        self.refusal = None;
        self.opened.get_or_insert(now);
        actions.push(Action::Open { choices, id, route, from_prompt });
    }

    fn reply(&mut self, from: PeerId, session: SessionId, reply: Reply, now: Time, actions: &mut Vec<Action>) {
        let Some(choice) = self.answers.iter().position(|answer| answer.session.id() == Some(session)) else {
            return self.retired_reply(from, session, reply, actions);
        };
        // The first stage accepts all answers of a request, or none.
        let of_all = matches!(reply, Reply::Accepted | Reply::Refused { .. })
            && choice == 0
            && self.answers[0].session.failovers() == 0;
        if !of_all {
            let outcome = self.answers[choice].session.handle(from, reply, now);
            self.follow(choice, outcome, now, actions);
            return;
        }
        for choice in 0..self.answers.len() {
            let outcome = self.answers[choice].session.handle(from, reply.clone(), now);
            self.follow(choice, outcome, now, actions);
        }
    }

    fn follow(&mut self, choice: usize, outcome: Outcome, now: Time, actions: &mut Vec<Action>) {
        if self.stage == Stage::Over {
            return;
        }
        match outcome {
            Outcome::Nothing | Outcome::Accepted => {}
            Outcome::Late(exclusions) => {
                actions.push(Action::FindRoute { choices: choice..choice + 1, exclusions });
            }
            Outcome::Signed(claims) => {
                let segment = self.answers[choice].segments.len().saturating_sub(1);
                actions.push(Action::CheckClaims { choice, segment, claims });
            }
            Outcome::Full { closed, error, retry_after } => {
                actions.push(Action::Forget { session: closed });
                self.answers[choice].route = None;
                self.answers[choice].segments.pop();
                self.refusal = Some((error, retry_after));
            }
            Outcome::Refused { error, retry_after } => {
                self.end(actions);
                actions.push(Action::Refuse { error, retry_after });
            }
            Outcome::NewTokens(new) => self.take(choice, new, now, actions),
            Outcome::Lost { closed, can_sign, why } => {
                self.conclusion.failovers += 1;
                self.lost = Some(why.clone());
                let signs = can_sign && self.audit.is_some();
                let commit = self.retire(choice, closed, signs, why.clone());
                // Whoever follows the session hears that it failed before it is forgotten.
                actions.push(Action::FailOver { choice, session: closed, why });
                if commit.is_none() {
                    actions.push(Action::Forget { session: closed });
                }
                if let Some((chain, first_stage)) = self.first_stage(choice) {
                    actions.push(Action::Close { chain, session: closed, first_stage, commit });
                }
                self.answers[choice].route = None;
            }
            Outcome::Failed(error) => self.fail(error, actions),
        }
    }

    fn fail(&mut self, error: Error, actions: &mut Vec<Action>) {
        self.end(actions);
        let error = match &self.untrusted {
            // What is known of the answer is that it is wrong, or that nobody vouches for it.
            Some(why) if error.kind() == ErrorKind::Unavailable => untrusted(&format!("{why}; {error}")),
            _ => error,
        };
        actions.push(Action::Fail(error));
    }

    /// Why the only node that may compute the answers does not.
    fn server_lost(&self) -> Error {
        let why = self.lost.as_deref().unwrap_or("the node that was asked does not answer the model now");
        Error::new(ErrorKind::Unavailable, why)
    }

    /// Ends the current segment of an answer. Returns the number of positions that its stages are to sign, if they are to.
    fn retire(&mut self, choice: usize, session: SessionId, signs: bool, why: String) -> Option<u32> {
        let answer = &mut self.answers[choice];
        let index = answer.segments.len().checked_sub(1)?;
        let segment = answer.segments.last_mut()?;
        segment.ended = Some(why);
        segment.positions = answer.session.tokens().len() as u64 - 1;
        // Without a token of the answer, the next session scores the prompt again.
        segment.scored &= !answer.session.is_at_prompt();
        let commit =
            u32::try_from(segment.positions).ok().filter(|_| signs && segment.positions > segment.chosen_from)?;
        answer.retired.add(session, index, &segment.stages);
        Some(commit)
    }

    /// Processes a message about a session that an answer has left.
    fn retired_reply(&mut self, from: PeerId, session: SessionId, reply: Reply, actions: &mut Vec<Action>) {
        for (choice, answer) in self.answers.iter_mut().enumerate() {
            if let Some((session, segment, claims)) = answer.retired.handle(from, session, reply.clone()) {
                actions.push(Action::Forget { session });
                actions.push(Action::CheckClaims { choice, segment, claims });
            }
        }
    }

    /// Processes new tokens of an answer.
    fn take(&mut self, choice: usize, new: NewTokens, now: Time, actions: &mut Vec<Action>) {
        let counts = &mut self.conclusion.tokens;
        counts.drafted += new.drafted;
        counts.accepted += new.accepted;
        counts.answer += new.tokens.len();
        if choice == 0 && new.cached > 0 && self.first_token.is_none() {
            counts.cached = new.cached.min(self.answers[0].session.prompt_len());
        }
        if !new.tokens.is_empty() || new.ended.is_some() {
            self.first_token.get_or_insert(now);
            self.answers.iter_mut().for_each(|answer| answer.session.mark_begun());
        }
        actions.push(Action::NewTokens { choice, new });
    }

    /// The text of an answer has ended. Stages on other nodes are asked to sign, unless no receipt is stored.
    fn complete(&mut self, choice: usize, now: Time, actions: &mut Vec<Action>) {
        let signs = self.audit.is_some() && !self.answers[choice].is_alone(self.local);
        let session = &self.answers[choice].session;
        match (session.id(), self.first_stage(choice)) {
            (Some(id), Some((chain, first_stage))) if signs => {
                let positions = u32::try_from(session.tokens().len() - 1).unwrap_or(u32::MAX);
                actions.push(Action::Close { chain, session: id, first_stage, commit: Some(positions) });
                self.answers[choice].session.signing(now);
            }
            _ => self.close(choice, actions),
        }
        self.conclude(now, actions);
    }

    /// The stages of an answer have signed, or will not.
    fn claims_checked(
        &mut self,
        choice: usize,
        segment: usize,
        fault: Option<ClaimsFault>,
        now: Time,
        actions: &mut Vec<Action>,
    ) {
        let local = self.local;
        let answer = &mut self.answers[choice];
        if segment + 1 < answer.segments.len() {
            // Why the answer left these stages is known already, and the audit of the whole answer covers their tokens.
            return;
        }
        if let Some(segment) = answer.segments.last_mut() {
            segment.positions = answer.session.tokens().len() as u64 - 1;
            segment.ended = fault.as_ref().map(|fault| fault.why.clone());
            actions.push(Action::Forget { session: segment.session });
        }
        if let Some(fault) = &fault {
            let others = fault.suspects.iter().filter(|(peer, _)| *peer != local);
            actions.extend(others.map(|&(peer, reason)| Action::Suspect { peer, reason }));
        }
        answer.fault = fault;
        self.conclude(now, actions);
    }

    /// Once all answers are complete and signed, the request is concluded, possibly after its audits.
    fn conclude(&mut self, now: Time, actions: &mut Vec<Action>) {
        let ended = |answer: &AnswerState| *answer.session.phase() == Phase::Ended;
        if self.stage != Stage::Answering || !self.answers.iter().all(ended) {
            return;
        }
        for (choice, answer) in self.answers.iter_mut().enumerate() {
            for (session, segment, claims) in answer.retired.take() {
                actions.push(Action::Forget { session });
                if !claims.parts.is_empty() {
                    actions.push(Action::CheckClaims { choice, segment, claims });
                }
            }
        }
        let opened = self.opened.unwrap_or(self.arrived);
        let first = self.first_token.unwrap_or(opened);
        self.conclusion.queued = opened.since(self.arrived);
        self.conclusion.prompt = first.since(opened);
        self.conclusion.answer = now.since(first);
        let shared: Vec<usize> =
            (0..self.answers.len()).filter(|choice| !self.answers[*choice].is_alone(self.local)).collect();
        self.conclusion.verdict = if shared.is_empty() { Verdict::Local } else { Verdict::Unchecked };
        if self.audit.is_none() || shared.is_empty() {
            self.done(actions);
            return;
        }
        self.receipts = shared.len();
        self.stage = Stage::Concluding { receipts: shared.len(), audits: 0 };
        actions.extend(shared.into_iter().map(|choice| Action::KeepReceipt { choice }));
    }

    fn receipt_kept(&mut self, choice: usize, random: Option<u64>, suspect: bool, actions: &mut Vec<Action>) {
        let Stage::Concluding { receipts, audits } = &mut self.stage else { return };
        *receipts = receipts.saturating_sub(1);
        let suspect = suspect || self.answers[choice].fault.is_some();
        if self.audit.is_some_and(|policy| policy.draws(random, suspect)) {
            *audits += usize::from(self.held);
            actions.push(Action::Audit { choice, awaited: self.held });
        }
        if (*receipts, *audits) == (0, 0) {
            self.done(actions);
        }
    }

    /// An audit that the request waits for has ended. An answer that is wrong, or that nobody vouches for, is never returned:
    /// the request is recomputed without the nodes that are the reason, or fails.
    fn audit_ended(
        &mut self,
        verdict: Result<Verdict, String>,
        wrong: Vec<PeerId>,
        now: Time,
        actions: &mut Vec<Action>,
    ) {
        let Stage::Concluding { receipts, audits } = &mut self.stage else { return };
        *audits = audits.saturating_sub(1);
        let pending = *receipts + *audits;
        if !wrong.is_empty() {
            return self.distrust("an audit found the answer wrong".to_owned(), wrong, now, actions);
        }
        match verdict {
            Ok(Verdict::Unchecked) => {}
            Ok(verdict) => self.audited.push(verdict),
            Err(why) => return self.distrust(format!("the answer could not be audited: {why}"), wrong, now, actions),
        }
        if pending > 0 {
            return;
        }
        if let Some(fault) = self.answers.iter().find_map(|answer| answer.fault.as_ref()) {
            let suspects = fault.suspects.iter().map(|(peer, _)| *peer).collect();
            let why = format!("the answer's signatures do not cover it: {}", fault.why);
            return self.distrust(why, suspects, now, actions);
        }
        match self.audited.iter().max() {
            Some(worst) if self.audited.len() == self.receipts => {
                self.conclusion.verdict = *worst;
                self.done(actions);
            }
            _ => self.distrust("an audit did not confirm the answer".to_owned(), Vec::new(), now, actions),
        }
    }

    /// The answers cannot be trusted: they are recomputed without the nodes that are the reason, or without any other node if
    /// it is unknown which.
    fn distrust(&mut self, why: String, mut without: Vec<PeerId>, now: Time, actions: &mut Vec<Action>) {
        without.retain(|peer| *peer != self.local);
        if without.is_empty() {
            let local = self.local;
            without = self.answers.iter().flat_map(|answer| answer.helpers(local)).collect();
            without.sort_unstable();
            without.dedup();
        }
        if self.recomputations >= MAX_RECOMPUTATIONS {
            self.end(actions);
            actions.push(Action::Fail(untrusted(&why)));
            return;
        }
        self.untrusted = Some(why);
        self.recompute(&without, now, actions);
    }

    /// Recomputes every answer from its prompt, without some nodes.
    fn recompute(&mut self, liars: &[PeerId], now: Time, actions: &mut Vec<Action>) {
        self.recomputations += 1;
        self.conclusion.failovers += 1;
        self.conclusion.tokens = TokenCounts { cached: self.conclusion.tokens.cached, ..TokenCounts::default() };
        self.audited.clear();
        self.stage = Stage::Answering;
        for answer in &mut self.answers {
            answer.session = answer.session.restarted_without(liars, now);
            answer.segments.clear();
            actions.extend(answer.retired.take().into_iter().map(|(session, ..)| Action::Forget { session }));
            answer.fault = None;
            answer.route = None;
        }
        actions.push(Action::Recompute);
        self.find_routes(now, actions);
    }

    fn done(&mut self, actions: &mut Vec<Action>) {
        self.held = false;
        self.stage = Stage::Over;
        actions.push(Action::Done(self.conclusion.clone()));
    }

    /// Ends the session of an answer at its stages.
    fn close(&mut self, choice: usize, actions: &mut Vec<Action>) {
        let retired = self.answers[choice].retired.take();
        actions.extend(retired.into_iter().map(|(session, ..)| Action::Forget { session }));
        if let Some(session) = self.answers[choice].session.id() {
            actions.push(Action::Forget { session });
            if let Some((chain, first_stage)) = self.first_stage(choice) {
                actions.push(Action::Close { chain, session, first_stage, commit: None });
            }
        }
        self.answers[choice].session.end();
    }

    fn end(&mut self, actions: &mut Vec<Action>) {
        (0..self.answers.len()).for_each(|choice| self.close(choice, actions));
        self.stage = Stage::Over;
    }
}

/// Nothing trustworthy could be had.
fn untrusted(why: &str) -> Error {
    Error::new(ErrorKind::VerificationFailed, format!("no trustworthy answer could be had: {why}"))
}

#[cfg(test)]
mod tests;
