//! Checks a receipt against its signatures and its model: every signature, every link, every root and every token; by value what
//! engines without exact bits gave. The model's layers are loaded one part after the other; no network is used. The result says what
//! holds; nobody is blamed here.

use std::ops::Range;
use std::sync::Arc;

use libp2p::PeerId;
use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::Digest;
use pangea_compute::commit::merkle::{chosen_leaf, nothing_leaf, token_leaves};
use pangea_compute::commit::{
    Claim, Compared, ModelSource, Profile, Replay, ReplayBytes, ReplayPace, ReplayedStage, Transcript, merkle_root,
    replay,
};
use pangea_compute::engine::{Engine, Stage};
use pangea_compute::model::{Manifest, ModelFile, ModelPart, NUMERICS};
use pangea_compute::sample::grammar::GrammarVocabulary;
use pangea_compute::sample::{Choice, Sampling};
use pangea_control::trust::Verdict;
use serde::Serialize;

use super::{Receipt, Received, Segment, terms_digest};
use crate::compute_error;

/// Result of verifying a receipt.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verification {
    /// Id of the receipt.
    pub receipt: String,
    /// Whether every check passed.
    pub holds: bool,
    /// Verdict that the checks support, whoever did them: `audited`, `tolerance-checked` or `unchecked`.
    #[serde(serialize_with = "super::verdict::serialize")]
    pub verdict: Verdict,
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
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SegmentCheck {
    /// Version of the placement.
    pub epoch: u64,
    /// Why the session did not end normally; nobody vouches for such a session as a whole.
    pub ended: Option<String>,
    /// Whether what the coordinator received is what the model gives, signed or not; `None` if the receipt does not say what
    /// was received.
    pub received: Option<bool>,
    /// Checks of its stages, in order.
    pub stages: Vec<StageCheck>,
}

/// Checks of one stage.
#[derive(Clone, Debug, PartialEq, Serialize)]
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
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "is")]
pub enum OutputCheck {
    /// The output is what the model gives.
    Right,
    /// The rows are as close to what the model gives as those of an honest engine.
    Close {
        /// The largest difference of a row, in deviations of an honest engine.
        difference: f64,
        /// The largest difference that is accepted.
        allowed: f64,
    },
    /// The tokens and log-probabilities are such as an honest engine can give.
    CloseTokens {
        /// Tokens instead of which this machine would choose another one.
        others: usize,
    },
    /// The input was right and the output is wrong.
    Wrong {
        /// First wrong position; of exact outputs known only for the last stage's tokens.
        position: Option<usize>,
    },
    /// The output differs by more than what is accepted, which proves nothing.
    Unclear {
        /// First position that differs so.
        position: usize,
        /// Whether experts explain it: an honest engine may have had a row computed by other ones.
        by_experts: bool,
    },
    /// Rows that this stage gave, or received, were not opened, so that it cannot be computed again.
    Unopened,
    /// The input was wrong already, so the output says nothing about this stage.
    FollowsWrong,
    /// The stage claims nothing.
    Unclaimed,
}

impl OutputCheck {
    /// Whether an honest stage may have given it.
    fn is_right(&self) -> bool {
        matches!(self, OutputCheck::Right | OutputCheck::Close { .. } | OutputCheck::CloseTokens { .. })
    }
}

impl SegmentCheck {
    /// Whether something in this segment is wrong, whoever is the reason. `wrong_at`: index of the first wrong token, and
    /// `positions`: those of the segment.
    fn is_wrong(&self, wrong_at: Option<usize>, positions: &Range<usize>) -> bool {
        let is_wrong = |stage: &StageCheck| matches!(stage.output, OutputCheck::Wrong { .. });
        let has_wrong_token = wrong_at.and_then(|at| at.checked_sub(1)).is_some_and(|at| positions.contains(&at));
        self.received == Some(false) || has_wrong_token || self.stages.iter().any(is_wrong)
    }
}

impl Verification {
    /// The peers that may be the reason why the answer is wrong, where no signature proves it: in the first wrong segment the
    /// first stage that did not sign a right output, or all of them if that stage is the coordinator's own.
    pub fn suspects(&self, receipt: &Receipt) -> Vec<PeerId> {
        let ends = receipt.segments.iter().skip(1).map(|next| as_len(next.chosen_from)).chain([usize::MAX]);
        let starts = receipt.segments.iter().map(|segment| as_len(segment.chosen_from));
        let mut segments = self.segments.iter().zip(starts.zip(ends));
        let wrong = segments.find(|(segment, (start, end))| segment.is_wrong(self.tokens.wrong_at, &(*start..*end)));
        let Some((segment, (_, end))) = wrong else { return Vec::new() };
        if segment.stages.iter().any(StageCheck::is_lie) {
            return Vec::new();
        }
        let is_suspicious = |stage: &&StageCheck| !stage.is_right() && !stage.is_unknown();
        let Some(first) = segment.stages.iter().find(is_suspicious) else { return Vec::new() };
        // The stages of a lost chain were not asked to sign.
        let is_lost = end != usize::MAX && segment.stages.iter().all(|stage| stage.output == OutputCheck::Unclaimed);
        let suspected = |stage: &&StageCheck| match is_lost || first.peer == receipt.coordinator {
            true => is_suspicious(stage) && stage.peer != receipt.coordinator,
            false => stage.peer == first.peer,
        };
        segment.stages.iter().filter(suspected).filter_map(|stage| stage.peer.parse().ok()).collect()
    }
}

impl StageCheck {
    /// Whether every check of this stage passed.
    pub fn holds(&self) -> bool {
        self.received && self.is_right()
    }

    /// Whether the stage signed, for this very session, the output that the model gives, or one as close to it as engines' bits are.
    pub fn is_right(&self) -> bool {
        self.signed && self.asked && self.linked && self.output.is_right()
    }

    /// Whether the stage signed, for this very session, an output of which nothing is known.
    pub fn is_unknown(&self) -> bool {
        let is_unknown = matches!(self.output, OutputCheck::Unopened | OutputCheck::Unclear { .. });
        self.signed && self.asked && self.linked && is_unknown
    }

    /// Whether the output was found right by comparing values.
    pub fn is_close(&self) -> bool {
        matches!(self.output, OutputCheck::Close { .. } | OutputCheck::CloseTokens { .. })
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
    engine: &'a Engine,
    needs: ReplayNeeds,
    parts: Vec<Arc<Stage>>,
    /// Error of a fetch, kept because the replay's error type cannot carry it.
    failed: Option<Error>,
}

impl Loaded<'_, '_> {
    fn get(&mut self, part: ModelPart) -> std::result::Result<Arc<Stage>, pangea_compute::Error> {
        if let Some(model) = self.parts.iter().find(|model| *model.part() == part) {
            return Ok(Arc::clone(model));
        }
        if let Err(error) = (self.weights.fetch)(&part) {
            self.failed = Some(error);
            return Err(pangea_compute::Error::Cancelled);
        }
        let kept: u64 = self.parts.iter().map(|model| model.memory_bytes()).sum();
        let load = self.engine.load_bytes(self.weights.file, &part)?;
        if kept + load.weights + load.scratch + self.needs.beside(part.layers.len()) > self.weights.room {
            self.parts.clear();
        }
        let model = Arc::new(self.engine.load(self.weights.file, part)?);
        self.parts.push(Arc::clone(&model));
        Ok(model)
    }

    fn replay(
        &mut self,
        stages: &[ReplayedStage<'_>],
        transcript: Transcript<'_>,
        pace: &mut ReplayPace<'_>,
    ) -> Result<Replay> {
        let config = self.weights.file.config();
        let at_once = self.needs.layers_in(self.weights.room);
        let mut load = |part| self.get(part);
        let mut source = ModelSource { config, at_once, load: &mut load };
        let replayed = replay(&mut source, stages, transcript, pace);
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
    fn of(receipt: &Receipt, file: &ModelFile, engine: &Engine, chunk_rows: usize) -> Result<ReplayNeeds> {
        let config = file.config();
        let bytes = |part: &ModelPart| engine.load_bytes(file, part).map_err(compute_error);
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
pub fn least_room(receipt: &Receipt, file: &ModelFile, engine: &Engine, chunk_rows: usize) -> Result<u64> {
    Ok(ReplayNeeds::of(receipt, file, engine, chunk_rows)?.part(1))
}

/// Checks `receipt` against its model: signatures and links first, then one prefill for each segment.
///
/// # Errors
/// `InvalidInput` for a file of another model, another version of the numerics, or a receipt that cannot be
/// recomputed; `Cancelled` as the pace says; errors of fetching, loading and computing. A lie is no error but a result.
pub fn verify(
    receipt: &Receipt,
    weights: &mut Weights<'_>,
    engine: &Engine,
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
    let needs = ReplayNeeds::of(receipt, file, engine, pace.chunk_rows)?;
    let mut loaded = Loaded { weights, engine, needs, parts: Vec::new(), failed: None };
    let transcript = Transcript {
        tokens: &tokens,
        prompt_len: receipt.prompt_tokens.len(),
        positions: tokens.len() - 1,
        chosen_from: receipt.prompt_tokens.len() - 1,
        sampling: &sampling,
        grammar: grammar.as_ref(),
        scored: false,
        told: &[],
    };
    let rules = |scored| terms_digest(receipt.prompt_tokens.len() as u64, &sampling, &receipt.form, scored);
    let width = file.config().hidden_size;
    let mut replays = Vec::with_capacity(receipt.segments.len());
    for segment in &receipt.segments {
        let positions = segment.received.map_or(0, |received| as_len(received.positions));
        if positions >= tokens.len() {
            return wrong(format!(
                "a segment has {positions} positions, but the answer has only {} tokens",
                tokens.len()
            ));
        }
        let Some(first) = segment.claims.first() else {
            replays.push(None);
            continue;
        };
        let claim = &first.claim;
        let (positions, chosen_from) = (as_len(claim.positions), as_len(claim.chosen_from));
        if positions > tokens.len() || (positions == tokens.len() && chosen_from < positions) {
            return wrong(format!(
                "a stage claims {positions} positions, but the answer has only {} tokens",
                tokens.len()
            ));
        }
        let stages: Vec<_> = (0..segment.stages.len())
            .map(|stage| {
                let [first, end] = segment.stages[stage].layers;
                let opened = segment.rows_of(stage, width).filter(|rows| rows.len() == positions * width);
                ReplayedStage { layers: first..end, profile: segment.profile(stage), opened }
            })
            .collect();
        let told: Vec<Choice> = segment.told.iter().map(Choice::from).collect();
        let given = positions - if segment.scored { 0 } else { chosen_from.min(positions) };
        let told = told.get(..given).unwrap_or_default();
        let transcript = Transcript { positions, chosen_from, scored: segment.scored, told, ..transcript };
        replays.push(Some(loaded.replay(&stages, transcript, pace)?));
    }
    let sources: Vec<TokenSource> = receipt.segments.iter().zip(&replays).map(TokenSource::of).collect();
    let mut whole = |profile: Profile, scored: bool, loaded: &mut Loaded<'_, '_>| {
        let stage = ReplayedStage { profile, ..ReplayedStage::exact(0..file.config().layers as u32) };
        loaded.replay(&[stage], Transcript { scored, ..transcript }, pace)
    };
    // Whatever an exact chain did is known from the longest replay of one, or from that of the whole answer.
    let exact = receipt.segments.iter().zip(&replays).filter(|(segment, _)| !segment.is_by_value());
    let exact: Vec<&Replay> = exact.filter_map(|(_, replay)| replay.as_ref()).collect();
    let choices = exact.iter().map(|replay| replay.choices.len()).max().unwrap_or_default();
    let scores = exact.iter().map(|replay| replay.scores.len()).max().unwrap_or_default();
    let of_exact = || receipt.segments.iter().zip(&sources).filter(|(_, source)| **source == TokenSource::Exact);
    let scored = of_exact().any(|(segment, _)| segment.scored);
    let missing = choices < receipt.answer_tokens.len() || (scored && scores + 1 < receipt.prompt_tokens.len());
    let exact = match missing && of_exact().next().is_some() {
        true => whole(Profile::Exact, scored, &mut loaded)?,
        false => {
            let longest = |of: fn(&Replay) -> usize| exact.iter().rev().max_by_key(|replay| of(replay));
            let choices = longest(|replay| replay.choices.len()).map(|replay| replay.choices.clone());
            let scores = longest(|replay| replay.scores.len()).map(|replay| replay.scores.clone());
            Replay { choices: choices.unwrap_or_default(), scores: scores.unwrap_or_default(), ..Replay::default() }
        }
    };
    let by_value = match sources.contains(&TokenSource::WholeByValue) && sampling.logprobs.is_none() {
        true => whole(Profile::Grid, false, &mut loaded)?,
        false => Replay::default(),
    };
    let has_experts = file.config().experts.is_some();
    let mut token_check = TokenCheck { checked: 0, wrong_at: None, token: None, expected: None };
    let mut segments = Vec::with_capacity(receipt.segments.len());
    let starts = receipt.segments.iter().map(|segment| as_len(segment.chosen_from));
    let ends = starts.clone().skip(1).chain([tokens.len() - 1]);
    // Whoever chose the first token, it follows the prompt.
    let starts = [receipt.prompt_tokens.len() - 1].into_iter().chain(starts.skip(1));
    for (((segment, again), source), (start, end)) in
        receipt.segments.iter().zip(&replays).zip(&sources).zip(starts.zip(ends))
    {
        let replayed = match (source, again) {
            (TokenSource::Own, Some(own)) => Some(own),
            (TokenSource::Exact, _) => Some(&exact),
            (TokenSource::WholeByValue, _) => Some(&by_value),
            _ => None,
        };
        let mut check = check_segment(receipt, segment, &tokens, rules(segment.scored), again.as_ref(), has_experts);
        if let Some(replayed) = replayed {
            // Whatever follows is not confirmed; in a model with experts nothing disproves it.
            let unclear = match replayed.last_off() {
                [Some(unclear), different] if has_experts || different.is_none() => Some(unclear),
                _ => None,
            };
            token_check.take(replayed, start..end.min(unclear.unwrap_or(usize::MAX)), &tokens);
            let known = segment.received.filter(|_| unclear.is_none());
            check.received = known.map(|received| received.root == chosen_root(replayed, segment, &received));
        }
        segments.push(check);
    }
    let whole = |segment: &SegmentCheck| {
        // Of a segment that ended early, not every stage has signed or countersigned, or been asked to open its rows.
        let early = |stage: &StageCheck| {
            let is_open = matches!(stage.output, OutputCheck::Unclaimed | OutputCheck::Unopened);
            segment.ended.is_some() && (is_open || stage.is_right())
        };
        segment.stages.iter().all(|stage| stage.holds() || early(stage))
    };
    let is_complete = segments.last().is_some_and(|last| last.ended.is_none());
    let as_received = segments.iter().all(|segment| segment.received != Some(false));
    let holds = token_check.wrong_at.is_none()
        && token_check.checked == receipt.answer_tokens.len()
        && segments.iter().all(whole)
        && is_complete
        && as_received;
    // What the coordinator computed itself needs no check.
    let is_foreign = |stage: &StageCheck| stage.peer != receipt.coordinator;
    let mut stages = receipt.segments.iter().zip(&segments).flat_map(|(segment, check)| {
        check.stages.iter().enumerate().map(move |(index, stage)| (segment.profile(index), stage))
    });
    let is_close = stages.any(|(profile, stage)| profile == Profile::Grid && is_foreign(stage));
    let verdict = match (holds, is_close) {
        (false, _) => Verdict::Unchecked,
        (true, true) => Verdict::ToleranceChecked,
        (true, false) => Verdict::Audited,
    };
    Ok(Verification { receipt: receipt.id.clone(), holds, verdict, tokens: token_check, segments })
}

/// Where the tokens that a segment chose are known from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TokenSource {
    /// The replay of any exact chain, or of the whole answer.
    Exact,
    /// The segment's own replay, some of whose stages are compared by value.
    Own,
    /// A replay of the whole answer whose tokens are compared by value: of a chain that was lost, nothing was opened.
    WholeByValue,
    /// Nothing: a stage did not open its rows.
    Unknown,
}

impl TokenSource {
    fn of((segment, again): (&Segment, &Option<Replay>)) -> TokenSource {
        let is_known = again.as_ref().is_some_and(|again| again.recomputed.last() == Some(&true));
        match (segment.is_by_value(), segment.claims.len() == segment.stages.len() && is_known) {
            (false, _) => TokenSource::Exact,
            (true, true) => TokenSource::Own,
            (true, false) if segment.ended.is_some() => TokenSource::WholeByValue,
            (true, false) => TokenSource::Unknown,
        }
    }
}

impl TokenCheck {
    /// Adds the tokens that follow these positions. After a token that the grammar forbids nothing is recomputed; that token is then
    /// the wrong one.
    fn take(&mut self, replayed: &Replay, positions: Range<usize>, tokens: &[u32]) {
        for (position, choice) in &replayed.choices {
            let Some(token) = tokens.get(position + 1).filter(|_| positions.contains(position)) else { continue };
            self.checked += 1;
            if choice.token != *token && self.wrong_at.is_none() {
                (self.wrong_at, self.token, self.expected) = (Some(position + 1), Some(*token), Some(choice.token));
            }
        }
    }
}

/// Root over the output that the last stage of a segment should have had, as far as the coordinator received it.
fn chosen_root(replay: &Replay, segment: &Segment, received: &Received) -> [u8; 32] {
    let (from, end) = (as_len(segment.chosen_from), as_len(received.positions));
    let own = replay.choices.iter().filter(|(position, _)| (from..end).contains(position));
    let leaves = own.map(|(position, choice)| chosen_leaf(*position as u64, choice));
    // The caller checked that no segment is longer than the answer.
    let before = (0..from.min(end) as u64).map(|position| match replay.scores.get(position as usize) {
        Some(score) if segment.scored => chosen_leaf(position, score),
        _ => nothing_leaf(position),
    });
    merkle_root(&before.chain(leaves).collect::<Vec<_>>())
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
    has_experts: bool,
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
    let mut is_known = true;
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
        let by_value = claim.profile == Profile::Grid;
        let covers = claim.output == again.output(index);
        let output = match again.compared[index] {
            // Of the last stage, others than the receipt's tokens.
            _ if !again.recomputed[index] || (by_value && !covers) => OutputCheck::Unopened,
            None if covers => OutputCheck::Right,
            _ if claim.predecessor != again.predecessor(index) => OutputCheck::FollowsWrong,
            None => OutputCheck::Wrong {
                position: again.first_wrong_token(tokens).filter(own).map(|(position, _)| position),
            },
            Some(compared) => match (compared.unclear(), compared.different(), compared) {
                (_, Some(position), _) if !has_experts => OutputCheck::Wrong { position: Some(position) },
                (Some(position), ..) => OutputCheck::Unclear { position, by_experts: has_experts },
                (None, _, Compared::Rows(rows)) => {
                    OutputCheck::Close { difference: rows.difference, allowed: rows.allowed }
                }
                (None, _, Compared::Choices { others, .. }) => OutputCheck::CloseTokens { others },
            },
        };
        // A stage signs no prompt: what the last one chose under it proves something only if its input belongs to that prompt.
        let output = match output {
            OutputCheck::Wrong { .. } if last && !is_known => OutputCheck::FollowsWrong,
            output => output,
        };
        is_known &= output.is_right();
        StageCheck {
            signed: signed.is_signed() && peer(&stage.peer) == Some(signed.peer()),
            received: signed.receiver().is_some() && signed.receiver() == peer(next),
            asked: asked(claim) && [claim.layers.start, claim.layers.end] == stage.layers,
            linked: claim.predecessor == input,
            output,
            ..unclaimed
        }
    });
    SegmentCheck { epoch: segment.epoch, ended: segment.ended.clone(), received: None, stages: stages.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::ReceiptStage;
    use crate::trust::receipt::tests::receipt;

    /// Checks of one segment whose stages are on these peers.
    fn segment(ended: bool, stages: &[(PeerId, OutputCheck)]) -> SegmentCheck {
        let check = |(peer, output): &(PeerId, OutputCheck)| {
            let signed = *output != OutputCheck::Unclaimed;
            let (peer, output, layers) = (peer.to_string(), *output, [0, 1]);
            StageCheck { peer, layers, signed, received: signed, asked: signed, linked: signed, output }
        };
        let stages = stages.iter().map(check).collect();
        SegmentCheck { epoch: 1, ended: ended.then(|| "gone".to_owned()), received: None, stages }
    }

    #[test]
    fn the_first_stage_that_signed_no_right_output_of_a_wrong_answer_is_the_suspect() {
        use OutputCheck::{FollowsWrong, Right, Unclaimed, Wrong};
        let [local, one, two] = [PeerId::random(), PeerId::random(), PeerId::random()];
        let wrong = Wrong { position: None };
        let suspects = |segments: &[(bool, &[(PeerId, OutputCheck)])], wrong_at: Option<usize>| {
            let mut receipt = Receipt { coordinator: local.to_string(), ..receipt() };
            let segments: Vec<_> = segments.iter().map(|(ended, stages)| segment(*ended, stages)).collect();
            receipt.segments = segments
                .iter()
                .zip(0..)
                .map(|(checks, at)| Segment {
                    chosen_from: 1 + 5 * at,
                    stages: checks
                        .stages
                        .iter()
                        .map(|stage| ReceiptStage {
                            peer: stage.peer.clone(),
                            layers: stage.layers,
                            profile: Profile::Exact,
                        })
                        .collect(),
                    ..receipt.segments[0].clone()
                })
                .collect();
            let tokens = TokenCheck { checked: 9, wrong_at, token: None, expected: None };
            let verification = Verification {
                receipt: receipt.id.clone(),
                holds: wrong_at.is_none(),
                verdict: Verdict::Unchecked,
                tokens,
                segments,
            };
            verification.suspects(&receipt)
        };
        // A stage that withheld its signature, after an honest one.
        assert_eq!(suspects(&[(true, &[(one, Right), (two, Unclaimed)])], Some(4)), [two]);
        assert_eq!(suspects(&[(true, &[(local, Right), (one, Unclaimed), (two, Unclaimed)])], Some(4)), [one]);
        // This node's own stage did not sign: either of the others may be the reason.
        assert_eq!(suspects(&[(true, &[(local, Unclaimed), (one, Unclaimed)])], Some(4)), [one]);
        // A lost chain had no chance to sign; the segment with the wrong token counts.
        let lost: &[_] = &[(local, Unclaimed), (one, Unclaimed)];
        assert_eq!(suspects(&[(true, lost), (false, &[(local, Right), (two, Right)])], Some(4)), [one]);
        assert_eq!(
            suspects(
                &[(true, &[(local, Unclaimed), (two, Unclaimed)]), (true, &[(one, Right), (two, Unclaimed)])],
                Some(8)
            ),
            [two]
        );
        // What cannot be known of a stage is nothing against it.
        let unclear = OutputCheck::Unclear { position: 3, by_experts: false };
        assert_eq!(suspects(&[(false, &[(one, unclear), (two, Right)])], Some(4)), []);
        assert_eq!(suspects(&[(true, &[(one, OutputCheck::Unopened), (two, Unclaimed)])], Some(4)), [two]);
        // A proven liar makes no suspects, and a right answer has none.
        assert!(suspects(&[(false, &[(one, wrong), (two, FollowsWrong)])], Some(4)).is_empty());
        assert!(suspects(&[(true, &[(one, Unclaimed), (two, Unclaimed)])], None).is_empty());
    }

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
