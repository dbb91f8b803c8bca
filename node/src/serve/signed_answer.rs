//! The signed part of one answer: its emitted tokens, the claims of its stages, and the receipt made of them. Signatures are
//! not requested here, and receipts not stored.

use std::time::{SystemTime, UNIX_EPOCH};

use libp2p::PeerId;
use libp2p::identity::Keypair;
use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::Digest;
use pangea_compute::commit::merkle::{chosen_leaf, nothing_leaf, token_leaves};
use pangea_compute::commit::{Leaf, merkle_root};
use pangea_compute::model::NUMERICS;
use pangea_compute::sample::{AnswerFormat, Choice, Sampling};
use pangea_control::generation::{AnswerSession, Segment};
use pangea_control::session::{SessionId, StageAt, TokenOut};
use pangea_control::trust::Verdict;

use crate::trust::{self, CommitChain, Expected, Receipt, ReceiptModel, ReceiptStage, Signed, receipt, terms_digest};

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
    claims: Vec<(SessionId, Vec<Signed>)>,
}

impl SignedAnswer {
    /// Records that a chain of this model computes the answer.
    pub(super) fn computed_from(&mut self, model: Digest) {
        self.model = Some(model);
    }

    /// Records tokens from the last stage.
    pub(super) fn emit(&mut self, tokens: &[TokenOut]) {
        self.emitted.0.extend_from_slice(tokens);
    }

    /// Checks the signed claims of a segment's stages, and countersigns the last one.
    ///
    /// # Errors
    /// `VerificationFailed` if the claims do not match the request and the received tokens, `InvalidInput` if they
    /// cannot be parsed.
    pub(super) fn check(
        &mut self,
        session: &AnswerSession,
        segment: &Segment,
        rules: &Rules<'_>,
        claims: &[u8],
        keypair: &Keypair,
    ) -> Result<()> {
        let mut chain = CommitChain::decode(claims)
            .map_err(|error| Error::new(error.kind(), "cannot parse the stages' signed claims"))?;
        let model = self.model.ok_or_else(|| Error::new(ErrorKind::Internal, "the answer has no route"))?;
        let positions = session.tokens().len() - 1;
        let stages: Vec<_> = segment.stages.iter().map(|stage| (stage.peer, stage.layers.clone())).collect();
        let expected = Expected {
            session: segment.session.0,
            epoch: segment.epoch,
            model,
            numerics: NUMERICS,
            stages: &stages,
            positions: positions as u64,
            chosen_from: segment.chosen_from,
            sampling: terms_digest(session.prompt_len() as u64, &rules.sampling, rules.format),
            input: merkle_root(&token_leaves(&session.tokens()[..positions])),
            output: merkle_root(&self.emitted.leaves(positions, segment.chosen_from as usize)),
        };
        chain.close(&expected, keypair)?;
        self.claims.push((segment.session, chain.links));
        Ok(())
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
            segments: segments.iter().map(|segment| self.kept(segment)).collect(),
            verdict: Verdict::Unchecked,
            audits: Vec::new(),
        })
    }

    /// A segment with its stages' claims.
    fn kept(&self, segment: &Segment) -> trust::Segment {
        let stage = |stage: &StageAt| ReceiptStage {
            peer: stage.peer.to_string(),
            layers: [stage.layers.start, stage.layers.end],
        };
        let claims = self.claims.iter().find(|(session, _)| *session == segment.session);
        trust::Segment {
            session: segment.session.0,
            epoch: segment.epoch,
            chosen_from: segment.chosen_from,
            stages: segment.stages.iter().map(stage).collect(),
            claims: claims.map(|(_, claims)| claims.clone()).unwrap_or_default(),
            ended: segment.ended.clone(),
        }
    }
}

/// Tokens received from the last stage, for the root that it signs.
#[derive(Default)]
struct EmittedTokens(Vec<TokenOut>);

impl EmittedTokens {
    /// The leaves of the last stage's output for the first `positions`, with tokens chosen from `chosen_from` on.
    fn leaves(&self, positions: usize, chosen_from: usize) -> Vec<Leaf> {
        let chosen = positions - chosen_from;
        let own = &self.0[self.0.len().saturating_sub(chosen)..];
        let choice = |out: &TokenOut| Choice { token: out.token, logprob: out.logprob, top: out.top.clone() };
        (0..chosen_from as u64)
            .map(nothing_leaf)
            .chain(own.iter().zip(chosen_from as u64..).map(|(out, at)| chosen_leaf(at, &choice(out))))
            .collect()
    }
}
