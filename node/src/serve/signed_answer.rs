//! The signed part of one answer: its emitted tokens, the claims of its stages, and the receipt made of them. Signatures are
//! not requested here, and receipts not stored.

use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

use libp2p::PeerId;
use libp2p::identity::Keypair;
use pangea_compute::Digest;
use pangea_compute::commit::merkle::{chosen_leaf, nothing_leaf, token_leaves};
use pangea_compute::commit::{Leaf, Profile, merkle_root};
use pangea_compute::model::NUMERICS;
use pangea_compute::sample::{AnswerFormat, Choice, Sampling};
use pangea_control::generation::{AnswerSession, Segment, SignedClaims};
use pangea_control::session::{SessionId, StageAt, TokenOut};
use pangea_control::trust::Verdict;

use crate::trust::{
    self, Expected, Gathered, Receipt, ReceiptModel, ReceiptStage, Received, Signed, ToldToken, receipt, terms_digest,
};

/// Sampling terms of an answer.
pub(super) struct Rules<'a> {
    pub(super) sampling: Sampling,
    pub(super) format: &'a AnswerFormat,
}

/// Facts about the request of a receipt.
pub(super) struct RequestFacts<'a> {
    pub(super) request: &'a str,
    pub(super) coordinator: PeerId,
    pub(super) model_name: &'a str,
    pub(super) model_file: String,
}

/// The signed part of one answer.
#[derive(Default)]
pub(super) struct SignedAnswer {
    emitted: EmittedTokens,
    model: Option<Digest>,
    /// How what the nodes of its chains give is checked, as they said of themselves; of exact ones nothing.
    profiles: HashMap<PeerId, Profile>,
    claims: Vec<(SessionId, Vec<Signed>)>,
}

impl SignedAnswer {
    /// Records that a chain of this model computes the answer, on nodes whose outputs are checked so.
    pub(super) fn computed_from(&mut self, model: Digest, profiles: &[(PeerId, Profile)]) {
        self.model = Some(model);
        self.profiles.extend(profiles.iter().copied().filter(|(_, profile)| *profile != Profile::Exact));
    }

    /// Records that the chain that computes the answer from now on scores the prompt.
    pub(super) fn score_prompt(&mut self) {
        self.emitted.prompt.clear();
    }

    /// Records scored tokens of the prompt from the last stage.
    pub(super) fn emit_prompt(&mut self, tokens: &[TokenOut]) {
        self.emitted.prompt.extend_from_slice(tokens);
    }

    /// Records tokens from the last stage.
    pub(super) fn emit(&mut self, tokens: &[TokenOut]) {
        self.emitted.answer.extend_from_slice(tokens);
    }

    /// Checks the signed claims of a segment's stages, and countersigns the last one. Returns why they do not cover the
    /// segment, if they do not; what is validly signed is kept in any case.
    pub(super) fn check(
        &mut self,
        session: &AnswerSession,
        segment: &Segment,
        rules: &Rules<'_>,
        claims: &SignedClaims,
        keypair: &Keypair,
    ) -> Gathered {
        let positions = match segment.ended {
            // The answer went on elsewhere.
            Some(_) => segment.positions as usize,
            None => session.tokens().len() - 1,
        };
        let stages: Vec<_> = segment.stages.iter().map(|stage| (stage.peer, stage.layers.clone())).collect();
        let expected = Expected {
            session: segment.session.0,
            epoch: segment.epoch,
            // An answer has a model once it has a route.
            model: self.model.unwrap_or(Digest([0; 32])),
            numerics: NUMERICS,
            stages: &stages,
            positions: positions as u64,
            chosen_from: segment.chosen_from,
            sampling: terms_digest(session.prompt_len() as u64, &rules.sampling, rules.format, segment.scored),
            input: merkle_root(&token_leaves(&session.tokens()[..positions])),
            output: self.root(session, segment, positions),
        };
        let gathered = Gathered::of(claims, &expected, keypair);
        self.claims.push((segment.session, gathered.links.clone()));
        gathered
    }

    /// Root over what was received from the last stage of a segment, for the first `positions` positions.
    fn root(&self, session: &AnswerSession, segment: &Segment, positions: usize) -> [u8; 32] {
        merkle_root(&self.emitted.leaves(session.prompt_len(), segment, positions))
    }

    /// The receipt of the answer; `None` if it never had a route.
    pub(super) fn receipt(
        &self,
        session: &AnswerSession,
        segments: &[Segment],
        rules: &Rules<'_>,
        facts: RequestFacts<'_>,
    ) -> Option<Receipt> {
        let (prompt, answer) = session.tokens().split_at(session.prompt_len());
        let unix_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        Some(Receipt {
            version: receipt::VERSION,
            id: Receipt::new_id(),
            request: facts.request.to_owned(),
            unix_ms,
            coordinator: facts.coordinator.to_string(),
            model: ReceiptModel { name: facts.model_name.to_owned(), digest: self.model?, file: facts.model_file },
            numerics: NUMERICS,
            prompt_tokens: prompt.to_vec(),
            answer_tokens: answer.to_vec(),
            sampling: (&rules.sampling).into(),
            form: rules.format.clone(),
            segments: self.kept(session, segments, rules.sampling.logprobs.is_some()),
            verdict: Verdict::Unchecked,
            audits: Vec::new(),
        })
    }

    /// The segments with their stages' claims. `logprobs`: whether tokens have log-probabilities.
    fn kept(&self, session: &AnswerSession, segments: &[Segment], logprobs: bool) -> Vec<trust::Segment> {
        let stage = |stage: &StageAt| ReceiptStage {
            peer: stage.peer.to_string(),
            layers: [stage.layers.start, stage.layers.end],
            profile: self.profiles.get(&stage.peer).copied().unwrap_or_default(),
        };
        // A segment ends where the next one begins.
        let ends = segments.iter().skip(1).map(|next| next.chosen_from).chain([session.tokens().len() as u64 - 1]);
        let kept = segments.iter().zip(ends).map(|(segment, positions)| {
            let claims = self.claims.iter().find(|(of, _)| *of == segment.session);
            let root = self.root(session, segment, positions as usize);
            let mut kept = trust::Segment {
                session: segment.session.0,
                epoch: segment.epoch,
                chosen_from: segment.chosen_from,
                scored: segment.scored,
                stages: segment.stages.iter().map(stage).collect(),
                claims: claims.map(|(_, claims)| claims.clone()).unwrap_or_default(),
                ended: segment.ended.clone(),
                received: Some(Received { positions, root }),
                opened: Vec::new(),
                told: Vec::new(),
            };
            if logprobs && kept.stages.len().checked_sub(1).is_some_and(|last| kept.profile(last) == Profile::Grid) {
                kept.told = self.emitted.told(session.prompt_len(), segment, positions as usize);
            }
            kept
        });
        kept.collect()
    }
}

/// Tokens received from last stages, for the roots that they sign.
#[derive(Default)]
struct EmittedTokens {
    /// Scored tokens of the prompt, from the first, which has no log-probability.
    prompt: Vec<TokenOut>,
    answer: Vec<TokenOut>,
}

impl EmittedTokens {
    /// The leaves of a segment's output for the first `positions`: of its tokens, and of the prompt's where it scored them.
    fn leaves(&self, prompt_len: usize, segment: &Segment, positions: usize) -> Vec<Leaf> {
        let chosen_from = segment.chosen_from as usize;
        let leaf = |position: usize, out: &TokenOut| {
            let choice = Choice { token: out.token, logprob: out.logprob, top: out.top.clone() };
            chosen_leaf(position as u64, &choice)
        };
        let before = (0..chosen_from.min(positions)).map(|position| match self.prompt.get(position + 1) {
            Some(out) if segment.scored => leaf(position, out),
            _ => nothing_leaf(position as u64),
        });
        before.chain(self.chosen(prompt_len, segment, positions).map(|(position, out)| leaf(position, out))).collect()
    }

    /// The tokens that a segment chose, each with the position before it, below `positions`.
    fn chosen(
        &self,
        prompt_len: usize,
        segment: &Segment,
        positions: usize,
    ) -> impl Iterator<Item = (usize, &TokenOut)> {
        let chosen_from = segment.chosen_from as usize;
        // The last row of the prompt gives the answer's first token.
        let first = (chosen_from + 1).saturating_sub(prompt_len);
        (chosen_from..positions).zip(self.answer.get(first..).unwrap_or_default())
    }

    /// What the last stage of a segment told with its tokens, those of the prompt first where it scored them. Nothing if any of it is
    /// not finite: no engine gives that, and JSON has no such number.
    fn told(&self, prompt_len: usize, segment: &Segment, positions: usize) -> Vec<ToldToken> {
        let scored = match segment.scored {
            true => self.prompt.get(1..).unwrap_or_default(),
            false => &[],
        };
        let scored = scored.iter().take((segment.chosen_from as usize).min(positions));
        let chosen = self.chosen(prompt_len, segment, positions).map(|(_, out)| out);
        let finite = |told: &ToldToken| {
            told.logprob.iter().chain(told.top.iter().map(|(_, value)| value)).all(|value| value.is_finite())
        };
        let told =
            scored.chain(chosen).map(|out| ToldToken { token: out.token, logprob: out.logprob, top: out.top.clone() });
        let told: Vec<ToldToken> = told.collect();
        if told.iter().all(finite) { told } else { Vec::new() }
    }
}
