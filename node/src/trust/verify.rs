//! Checks a receipt against its signatures and its model: every signature, every link, every root and every token. The
//! model's layers are loaded one part after the other; no network is used. The result says what holds; nobody is blamed
//! here.

use std::ops::Range;
use std::sync::Arc;

use libp2p::PeerId;
use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::commit::merkle::token_leaves;
use pangea_compute::commit::{Claim, ModelSource, Replay, ReplayBytes, ReplayPace, Transcript, merkle_root, replay};
use pangea_compute::model::{Manifest, Model, ModelFile, ModelPart, NUMERICS};
use pangea_compute::sample::Sampling;
use pangea_compute::sample::grammar::GrammarVocabulary;
use pangea_compute::{Digest, Pool};
use serde::Serialize;

use super::{Receipt, Segment, terms_digest};
use crate::compute_error;

/// Result of verifying a receipt.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verification {
    /// Id of the receipt.
    pub receipt: String,
    /// Whether every check passed.
    pub holds: bool,
    /// Check of the answer's tokens.
    pub tokens: TokenCheck,
    /// Checks of each segment's stages.
    pub segments: Vec<SegmentCheck>,
}

/// Whether the answer's tokens are those that the model gives with the receipt's sampling terms.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TokenCheck {
    /// Tokens that were recomputed.
    pub checked: usize,
    /// Index of the first wrong token within prompt and answer, from 0.
    pub wrong_at: Option<usize>,
    /// Token that the receipt has there.
    pub token: Option<u32>,
    /// Token that the model gives.
    pub expected: Option<u32>,
}

/// Checks of one segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SegmentCheck {
    /// Version of the placement.
    pub epoch: u64,
    /// Why the session did not end normally; such a session has no signatures, and none are expected.
    pub ended: Option<String>,
    /// Checks of its stages, in order.
    pub stages: Vec<StageCheck>,
}

/// Checks of one stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StageCheck {
    /// Peer id of the node.
    pub peer: String,
    /// Layers `[first, end)`, counted from 0.
    pub layers: [u32; 2],
    /// Whether the stage signed its claim.
    pub signed: bool,
    /// Whether the receiver countersigned the claimed output.
    pub received: bool,
    /// Whether the claim is about this session, model, numerics, layers and sampling terms.
    pub asked: bool,
    /// Whether the claimed input is the predecessor's output, or the tokens for the first stage.
    pub linked: bool,
    /// Whether the claimed output is what the model gives.
    pub output: OutputCheck,
}

/// Check of a stage's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "is")]
pub enum OutputCheck {
    /// The output is what the model gives.
    Right,
    /// The input was right and the output is wrong.
    Wrong {
        /// First wrong position; known only for the last stage's tokens.
        position: Option<usize>,
    },
    /// The input was wrong already, so the output says nothing about this stage.
    FollowsWrong,
    /// The stage claims nothing.
    Unclaimed,
}

impl StageCheck {
    /// Whether every check of this stage passed.
    pub fn holds(&self) -> bool {
        self.signed && self.received && self.asked && self.linked && self.output == OutputCheck::Right
    }

    /// Whether the stage signed, for this very session, a wrong output of a right input: proof of a lie.
    pub fn is_lie(&self) -> bool {
        self.signed && self.asked && matches!(self.output, OutputCheck::Wrong { .. })
    }
}

/// The model that a receipt is checked against.
pub struct Weights<'a> {
    /// The model's file; at least its header is present.
    pub file: &'a ModelFile,
    /// Tensors and layers of the file.
    pub manifest: &'a Manifest,
    /// Maximum bytes of weights, of their keys and values, and of rows in memory; [`least_room`] is always allowed.
    pub room: u64,
    /// Fetches the missing bytes of a part that is about to be loaded.
    pub fetch: &'a mut dyn FnMut(&ModelPart) -> Result<()>,
}

/// Parts of a model that are loaded, as many as fit.
struct Loaded<'a, 'w> {
    weights: &'a mut Weights<'w>,
    pool: &'a Pool,
    needs: ReplayNeeds,
    parts: Vec<Arc<Model>>,
    /// Error of a fetch, kept because the replay's error type cannot carry it.
    failed: Option<Error>,
}

impl Loaded<'_, '_> {
    fn get(&mut self, part: ModelPart) -> std::result::Result<Arc<Model>, pangea_compute::Error> {
        if let Some(model) = self.parts.iter().find(|model| *model.part() == part) {
            return Ok(Arc::clone(model));
        }
        if let Err(error) = (self.weights.fetch)(&part) {
            self.failed = Some(error);
            return Err(pangea_compute::Error::Cancelled);
        }
        let kept: u64 = self.parts.iter().map(|model| model.memory_bytes()).sum();
        let load = Model::load_bytes(self.weights.file, &part, self.pool.threads())?;
        if kept + load.weights + load.scratch + self.needs.beside(part.layers.len()) > self.weights.room {
            self.parts.clear();
        }
        let model = Arc::new(Model::load(self.weights.file, part, self.pool)?);
        self.parts.push(Arc::clone(&model));
        Ok(model)
    }

    fn replay(
        &mut self,
        layers: &[Range<u32>],
        transcript: Transcript<'_>,
        pace: &mut ReplayPace<'_>,
    ) -> Result<Replay> {
        let (config, pool) = (self.weights.file.config(), self.pool);
        let at_once = self.needs.layers_in(self.weights.room);
        let mut load = |part| self.get(part);
        let mut source = ModelSource { config, at_once, load: &mut load };
        let replayed = replay(&mut source, pool, layers, transcript, pace);
        replayed.map_err(|error| self.failed.take().unwrap_or_else(|| compute_error(error)))
    }
}

/// Memory in bytes that a receipt's replay needs.
struct ReplayNeeds {
    /// Layers of the model.
    layers: usize,
    /// Weights of the largest layer.
    layer: u64,
    /// Weights of the larger one of embedding and head.
    end: u64,
    /// Weights of the whole model.
    whole: u64,
    /// Rows in the order of their use, while weights are packed.
    scratch: u64,
    /// Memory beside the weights.
    replay: ReplayBytes,
}

impl ReplayNeeds {
    fn of(receipt: &Receipt, file: &ModelFile, threads: usize, chunk_rows: usize) -> Result<ReplayNeeds> {
        let config = file.config();
        let bytes = |part: &ModelPart| Model::load_bytes(file, part, threads).map_err(compute_error);
        let inner = |layers| ModelPart { layers, embedding: false, head: false };
        let mut layer = 0;
        for index in 0..config.layers {
            layer = bytes(&inner(index..index + 1))?.weights.max(layer);
        }
        let embedding = bytes(&ModelPart { embedding: true, ..inner(0..0) })?.weights;
        let head = bytes(&ModelPart { head: true, ..inner(0..0) })?.weights;
        let whole = bytes(&ModelPart::whole(config))?;
        Ok(ReplayNeeds {
            layers: config.layers,
            layer,
            end: embedding.max(head),
            whole: whole.weights,
            scratch: whole.scratch,
            replay: ReplayBytes::of(config, receipt.tokens().len(), chunk_rows),
        })
    }

    /// Bytes beside the weights of a part of `layers` layers.
    fn beside(&self, layers: usize) -> u64 {
        self.replay.rows + self.replay.layer * layers as u64
    }

    /// Bytes of a part of `layers` layers, whichever they are.
    fn part(&self, layers: usize) -> u64 {
        let weights = if layers == self.layers { self.whole } else { self.end + self.layer * layers as u64 };
        weights + self.scratch + self.beside(layers)
    }

    /// Number of layers of one part that fit `room` bytes; at least 1.
    fn layers_in(&self, room: u64) -> usize {
        (1..=self.layers).rev().find(|layers| self.part(*layers) <= room).unwrap_or(1)
    }
}

/// Least memory in bytes to check a receipt: with the weights of one layer at a time.
///
/// # Errors
/// `InvalidInput` for a file that is no supported model.
pub fn least_room(receipt: &Receipt, file: &ModelFile, threads: usize, chunk_rows: usize) -> Result<u64> {
    Ok(ReplayNeeds::of(receipt, file, threads, chunk_rows)?.part(1))
}

/// Checks `receipt` against its model: signatures and links first, then one prefill for each segment.
///
/// # Errors
/// `InvalidInput` for a file of another model, another version of the numerics, or a receipt that cannot be
/// recomputed; `Cancelled` as the pace says; errors of fetching, loading and computing. A lie is no error but a result.
pub fn verify(
    receipt: &Receipt,
    weights: &mut Weights<'_>,
    pool: &Pool,
    pace: &mut ReplayPace<'_>,
) -> Result<Verification> {
    let wrong = |why: String| Err(Error::new(ErrorKind::InvalidInput, why));
    let (file, digest) = (weights.file, weights.manifest.digest());
    if receipt.model.digest != digest {
        return wrong(format!(
            "{} is not the receipt's model {} (its digest is {digest}, the receipt's {}); name the right file with --model",
            file.path().display(),
            receipt.model.name,
            receipt.model.digest
        ));
    }
    if receipt.numerics != NUMERICS {
        return wrong(format!(
            "the answer was computed with numerics {}, this version of pangea has {NUMERICS}; use a version with the same numerics",
            receipt.numerics
        ));
    }
    let tokens = receipt.tokens();
    if receipt.prompt_tokens.is_empty() || tokens.len() > file.config().context + 1 {
        return wrong(format!("{} tokens cannot be a prompt and answer of this model", tokens.len()));
    }
    let sampling = Sampling::from(&receipt.sampling);
    sampling.check(file.config().vocabulary).map_err(compute_error)?;
    let grammar = receipt.form.grammar(|| GrammarVocabulary::new(&file.tokenizer()?)).map_err(compute_error)?;
    let needs = ReplayNeeds::of(receipt, file, pool.threads(), pace.chunk_rows)?;
    let mut loaded = Loaded { weights, pool, needs, parts: Vec::new(), failed: None };
    let transcript = Transcript {
        tokens: &tokens,
        prompt_len: receipt.prompt_tokens.len(),
        positions: tokens.len() - 1,
        chosen_from: receipt.prompt_tokens.len() - 1,
        sampling: &sampling,
        grammar: grammar.as_ref(),
    };
    let rules = terms_digest(receipt.prompt_tokens.len() as u64, &sampling, &receipt.form);
    let mut choices = Vec::new();
    let mut segments = Vec::new();
    for segment in &receipt.segments {
        let mut again = None;
        if let Some(first) = segment.claims.first() {
            let claim = &first.claim;
            let (positions, chosen_from) = (as_len(claim.positions), as_len(claim.chosen_from));
            if positions > tokens.len() || (positions == tokens.len() && chosen_from < positions) {
                return wrong(format!(
                    "a stage claims {positions} positions, but the answer has only {} tokens",
                    tokens.len()
                ));
            }
            let layers: Vec<_> = segment.stages.iter().map(|stage| stage.layers[0]..stage.layers[1]).collect();
            let replayed = loaded.replay(&layers, Transcript { positions, chosen_from, ..transcript }, pace)?;
            if replayed.choices.len() > choices.len() {
                choices.clone_from(&replayed.choices);
            }
            again = Some(replayed);
        }
        segments.push(check_segment(receipt, segment, &tokens, rules, again.as_ref()));
    }
    if choices.len() < receipt.answer_tokens.len() {
        let layers = file.config().layers as u32;
        choices = loaded.replay(std::slice::from_ref(&(0..layers)), transcript, pace)?.choices;
    }
    let checked = choices.iter().filter(|(position, _)| position + 1 < tokens.len()).count();
    let replayed = Replay { input: Vec::new(), outputs: Vec::new(), choices };
    let wrong_token = replayed.first_wrong_token(&tokens);
    // After a token that the grammar forbids nothing is recomputed; that token is then the wrong one.
    let tokens = TokenCheck {
        checked,
        wrong_at: wrong_token.map(|(position, _)| position + 1),
        token: wrong_token.and_then(|(position, _)| tokens.get(position + 1).copied()),
        expected: wrong_token.map(|(_, token)| token),
    };
    let whole = |segment: &SegmentCheck| {
        let unsigned = |stage: &StageCheck| segment.ended.is_some() && stage.output == OutputCheck::Unclaimed;
        segment.stages.iter().all(|stage| stage.holds() || unsigned(stage))
    };
    let holds = tokens.wrong_at.is_none() && checked == receipt.answer_tokens.len() && segments.iter().all(whole);
    Ok(Verification { receipt: receipt.id.clone(), holds, tokens, segments })
}

/// Saturates: no session is longer than `usize::MAX`.
fn as_len(positions: u64) -> usize {
    usize::try_from(positions).unwrap_or(usize::MAX)
}

fn check_segment(
    receipt: &Receipt,
    segment: &Segment,
    tokens: &[u32],
    rules: Digest,
    again: Option<&Replay>,
) -> SegmentCheck {
    let peer = |text: &str| text.parse::<PeerId>().ok();
    let positions = segment.claims.first().map_or(0, |first| first.claim.positions);
    let asked = |claim: &Claim| {
        claim.session == segment.session
            && claim.epoch == segment.epoch
            && claim.model == receipt.model.digest
            && claim.numerics == receipt.numerics
            && claim.positions == positions
            && claim.chosen_from == segment.chosen_from
            && claim.sampling == rules
    };
    let stages = segment.stages.iter().enumerate().map(|(index, stage)| {
        let unclaimed = StageCheck {
            peer: stage.peer.clone(),
            layers: stage.layers,
            signed: false,
            received: false,
            asked: false,
            linked: false,
            output: OutputCheck::Unclaimed,
        };
        let (Some(signed), Some(again)) = (segment.claims.get(index), again) else { return unclaimed };
        let claim = &signed.claim;
        let next = segment.stages.get(index + 1).map_or(&receipt.coordinator, |next| &next.peer);
        let input = match index.checked_sub(1) {
            Some(before) => segment.claims[before].claim.output,
            None => merkle_root(&token_leaves(tokens.get(..as_len(positions)).unwrap_or_default())),
        };
        let last = index + 1 == segment.stages.len();
        let own = |(position, _): &(usize, u32)| last && *position >= as_len(segment.chosen_from);
        let output = if claim.output == again.output(index) {
            OutputCheck::Right
        } else if claim.predecessor == again.predecessor(index) {
            OutputCheck::Wrong { position: again.first_wrong_token(tokens).filter(own).map(|(position, _)| position) }
        } else {
            OutputCheck::FollowsWrong
        };
        StageCheck {
            signed: signed.is_signed() && peer(&stage.peer) == Some(signed.peer()),
            received: signed.receiver().is_some() && signed.receiver() == peer(next),
            asked: asked(claim) && [claim.layers.start, claim.layers.end] == stage.layers,
            linked: claim.predecessor == input,
            output,
            ..unclaimed
        }
    });
    SegmentCheck { epoch: segment.epoch, ended: segment.ended.clone(), stages: stages.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_layers_are_replayed_at_once_as_fit_with_all_that_they_need() {
        let replay = ReplayBytes { layer: 50, rows: 1000 };
        // Embedding and head are one: the whole model has them once.
        let needs = ReplayNeeds { layers: 10, layer: 100, end: 500, whole: 1500, scratch: 7, replay };
        assert_eq!(needs.part(3), 500 + 3 * (100 + 50) + 7 + 1000);
        assert_eq!(needs.part(10), 1500 + 10 * 50 + 7 + 1000);
        for layers in 2..=10 {
            assert_eq!(needs.layers_in(needs.part(layers)), layers);
            assert_eq!(needs.layers_in(needs.part(layers) - 1), layers - 1);
        }
        assert_eq!(needs.layers_in(0), 1);
    }
}
