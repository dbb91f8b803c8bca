//! A receipt held against what was signed and what its model gives: every signature, every link, every root and every token.
//! It needs the model's layers one part after the other, and no network; it says what holds and blames nobody.

use std::ops::Range;
use std::sync::Arc;

use libp2p::PeerId;
use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::commit::merkle::token_leaves;
use pangea_compute::commit::{Claim, ModelSource, Replay, ReplayPace, Transcript, merkle_root, replay};
use pangea_compute::model::{Manifest, Model, ModelFile, ModelPart, NUMERICS, Wanted};
use pangea_compute::sample::Sampling;
use pangea_compute::sample::grammar::GrammarVocabulary;
use pangea_compute::{Digest, Pool};
use serde::Serialize;

use super::{Receipt, Segment, terms_digest};
use crate::compute_error;

/// What was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verification {
    /// The receipt.
    pub receipt: String,
    /// Whether all of it holds.
    pub holds: bool,
    /// The tokens of the answer.
    pub tokens: TokenCheck,
    /// The stages of each segment.
    pub segments: Vec<SegmentCheck>,
}

/// Whether the answer's tokens are those that the model gives under the receipt's rules.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TokenCheck {
    /// Tokens that were chosen again.
    pub checked: usize,
    /// The first that is another: its place in prompt and answer, from 0.
    pub wrong_at: Option<usize>,
    /// What it is.
    pub token: Option<u32>,
    /// What it should be.
    pub expected: Option<u32>,
}

/// A segment's stages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SegmentCheck {
    /// The placement's version.
    pub epoch: u64,
    /// Why it did not end in order: nothing was signed then, and nothing is expected to be.
    pub ended: Option<String>,
    /// Its stages, in order.
    pub stages: Vec<StageCheck>,
}

/// What holds of one stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StageCheck {
    /// The node.
    pub peer: String,
    /// Its layers, from 0, the end exclusive.
    pub layers: [u32; 2],
    /// It signed its claim.
    pub signed: bool,
    /// Whoever came after signed for having received that.
    pub received: bool,
    /// The claim is about this session, model, numerics, layers and rules.
    pub asked: bool,
    /// It received what the one before gave, or the tokens.
    pub linked: bool,
    /// Whether the output that it claims is what the model gives.
    pub output: OutputCheck,
}

/// What of a stage's output holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "is")]
pub enum OutputCheck {
    /// It is what the model gives.
    Right,
    /// It received the right thing and gave another.
    Wrong {
        /// The first position, where it shows: of the last stage's tokens it does.
        position: Option<usize>,
    },
    /// What it received was wrong already, so nothing is said of it.
    FollowsWrong,
    /// It claims nothing.
    Unclaimed,
}

impl StageCheck {
    /// Whether all of it holds.
    pub fn holds(&self) -> bool {
        self.signed && self.received && self.asked && self.linked && self.output == OutputCheck::Right
    }

    /// Whether it signed, for this very session, an output that is wrong though its input was right: proof of a lie.
    pub fn is_lie(&self) -> bool {
        self.signed && self.asked && matches!(self.output, OutputCheck::Wrong { .. })
    }
}

/// The model that a receipt is held against.
pub struct Weights<'a> {
    /// Its file, of which at least the header is there.
    pub file: &'a ModelFile,
    /// What the file consists of.
    pub manifest: &'a Manifest,
    /// Bytes of weights that may be in memory; one layer always may.
    pub room: u64,
    /// Gets what the file lacks of a part that is about to be loaded.
    pub fetch: &'a mut dyn FnMut(&ModelPart) -> Result<()>,
}

/// Parts of a model that are loaded, while there is room for them.
struct Loaded<'a, 'w> {
    weights: &'a mut Weights<'w>,
    pool: &'a Pool,
    parts: Vec<Arc<Model>>,
    /// What fetching failed with, which the replay cannot hand on.
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
        let bytes = |part: &ModelPart| part_bytes(self.weights.manifest, part);
        let loaded: u64 = self.parts.iter().map(|model| bytes(model.part())).sum();
        if loaded.saturating_add(bytes(&part)) > self.weights.room {
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
        let at_once = usize::try_from(self.weights.room / self.weights.manifest.layer_bytes().max(1));
        let at_once = at_once.unwrap_or(usize::MAX).clamp(1, config.layers);
        let mut load = |part| self.get(part);
        let mut source = ModelSource { config, at_once, load: &mut load };
        let replayed = replay(&mut source, pool, layers, transcript, pace);
        replayed.map_err(|error| self.failed.take().unwrap_or_else(|| compute_error(error)))
    }
}

/// Bytes of a part in the file; packed it takes about as many.
fn part_bytes(manifest: &Manifest, part: &ModelPart) -> u64 {
    manifest.select(&Wanted::of_part(part)).into_iter().map(|piece| manifest.pieces()[piece].len_bytes()).sum()
}

/// Checks `receipt` against its model: signatures and links first, then one prefill for each segment.
///
/// # Errors
/// `InvalidInput` for a file of another model, another version of the numerics, or a receipt of something that cannot be
/// computed; `Cancelled` as the pace says; what fetching, loading and computing give. A lie is no error but in the result.
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
            "{} is another model than {} of the receipt (digest {digest}, not {}); name the right file with --model",
            file.path().display(),
            receipt.model.name,
            receipt.model.digest
        ));
    }
    if receipt.numerics != NUMERICS {
        return wrong(format!(
            "the answer was computed with numerics {}, this pangea has {NUMERICS}: use a version that has the same",
            receipt.numerics
        ));
    }
    let tokens = receipt.tokens();
    if receipt.prompt_tokens.is_empty() || tokens.len() > file.config().context + 1 {
        return wrong(format!("{} tokens are no prompt and answer of this model", tokens.len()));
    }
    let sampling = Sampling::from(&receipt.sampling);
    sampling.check(file.config().vocabulary).map_err(compute_error)?;
    let grammar = receipt.form.grammar(|| GrammarVocabulary::new(&file.tokenizer()?)).map_err(compute_error)?;
    let mut loaded = Loaded { weights, pool, parts: Vec::new(), failed: None };
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
                    "a stage claims {positions} positions, but there are only {} tokens",
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
    // Behind a token that the grammar does not allow nothing is chosen; that token is wrong then.
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

/// No session is as long as what does not fit.
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
