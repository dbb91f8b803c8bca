//! A session computed again, as one prefill of each part of the model: the leaves that every stage should have had, and
//! the tokens that the last stage should have chosen. A replay works in chunks, can be cancelled, and lets other work
//! use the pool between chunks. Signatures are the node's.

use super::chooser::Chooser;
use super::claim::Profile;
use super::grid::{self, RowsCompared};
use super::merkle::{Leaf, merkle_root, row_leaf, token_leaves};
use crate::engine::{Input, Logits, Output, Stage, Step};
use crate::model::{Cache, ModelConfig, ModelPart};
use crate::sample::grammar::Grammar;
use crate::sample::{Choice, Sampling};
use crate::{Cancel, Error};
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

const OPERATION: &str = "replay";

/// Logits held at a time, in elements (16 MiB).
const HELD_LOGITS: usize = 4 << 20;

/// What a session's stages claim to have done, and under which rules.
#[derive(Clone, Copy)]
pub struct Transcript<'a> {
    /// Prompt and answer: one token more than there are positions, or as many where the last position's choice is
    /// unknown.
    pub tokens: &'a [u32],
    /// The number of prompt tokens, at least 1.
    pub prompt_len: usize,
    /// The number of rows that were computed.
    pub positions: usize,
    /// The first position whose next token the last stage chose.
    pub chosen_from: usize,
    /// Whether the last stage gave the log-probabilities of the prompt's tokens.
    pub scored: bool,
    /// What the last stage gave with its tokens, where log-probabilities were asked for and are compared by value: for each position
    /// from the first one that the prompt's scores, or else its choices, begin at. Empty otherwise.
    pub told: &'a [Choice],
    /// How tokens are chosen.
    pub sampling: &'a Sampling,
    /// The grammar that masks tokens, with nothing accepted yet.
    pub grammar: Option<&'a Grammar>,
}

/// One stage of a session that is computed again.
#[derive(Clone, Debug)]
pub struct ReplayedStage<'a> {
    /// Its layers.
    pub layers: Range<u32>,
    /// How its output is compared.
    pub profile: Profile,
    /// The rows that it gave, `[positions, hidden_size]`, where it opened them: those of [`Profile::Grid`] without the head. The next
    /// stage is computed from them.
    pub opened: Option<&'a [f32]>,
}

impl ReplayedStage<'_> {
    /// A stage whose output is compared by root.
    pub fn exact(layers: Range<u32>) -> ReplayedStage<'static> {
        ReplayedStage { layers, profile: Profile::Exact, opened: None }
    }
}

/// Chunks, cancellation and progress of a replay.
pub struct ReplayPace<'a> {
    /// Rows of one pass, at most: between passes other work can use the pool.
    pub chunk_rows: usize,
    /// Cancels the replay before its next pass.
    pub cancel: &'a Cancel,
    /// Called before every pass with the rows done, counted as rows through the whole model; may block until the pool
    /// is idle.
    pub between: &'a mut dyn FnMut(usize),
}

/// Memory in bytes that a replay takes beside the weights of the part at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplayBytes {
    /// Keys and values, or recurrent states, of one layer of the part.
    pub layer: u64,
    /// Activations before and after the part, and the logits of one pass.
    pub rows: u64,
}

impl ReplayBytes {
    /// For so many positions, in passes of at most `chunk_rows` rows.
    pub fn of(config: &ModelConfig, positions: usize, chunk_rows: usize) -> ReplayBytes {
        let activations = 2 * positions * config.hidden_size;
        let logits = logit_rows(config.vocabulary, chunk_rows) * config.vocabulary;
        let paged = positions.next_multiple_of(Cache::PAGE_POSITIONS) as u64;
        let layer = config.most_sequence_bytes().max(paged * config.position_bytes());
        ReplayBytes { layer, rows: ((activations + logits) * size_of::<f32>()) as u64 }
    }
}

/// Rows of one pass that ends in logits.
fn logit_rows(vocabulary: usize, chunk_rows: usize) -> usize {
    chunk_rows.max(1).min(HELD_LOGITS / vocabulary.max(1)).max(1)
}

/// The input and output that a session's stages should have had.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Replay {
    /// Leaves of the first stage's input.
    pub input: Vec<Leaf>,
    /// Leaves of each stage's output; of one that is compared by value those of what it gave itself. Empty where they are not known:
    /// after a stage that is compared by value and did not open its rows, up to the next one that did.
    pub outputs: Vec<Vec<Leaf>>,
    /// The comparison with what a stage gave itself; `None` of stages that are compared by root, and of those that were not computed
    /// again.
    pub compared: Vec<Option<Compared>>,
    /// The choice at each position that was computed, in order; where tokens are compared by value that of the stage itself, unless
    /// no honest engine makes it. Empty without the head.
    pub choices: Vec<(usize, Choice)>,
    /// The score of the prompt's token after each position, from the first; empty unless the prompt is scored.
    pub scores: Vec<Choice>,
    /// Of each stage, whether it was computed again and, by value, compared.
    pub recomputed: Vec<bool>,
}

/// A stage's output compared by value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Compared {
    /// Rows of activations.
    Rows(RowsCompared),
    /// Tokens and log-probabilities.
    Choices {
        /// Tokens that another one would have been chosen instead of here.
        others: usize,
        /// The first position with a token or log-probabilities that are further off than what is accepted.
        unclear: Option<usize>,
        /// The first position with a token or log-probabilities that no honest engine gives.
        different: Option<usize>,
    },
}

impl Compared {
    /// The first position at which the stage gave something further off than what is accepted.
    pub fn unclear(&self) -> Option<usize> {
        match self {
            Compared::Rows(rows) => rows.unclear,
            Compared::Choices { unclear, .. } => *unclear,
        }
    }

    /// The first position at which the stage gave what no honest engine gives.
    pub fn different(&self) -> Option<usize> {
        match self {
            Compared::Rows(rows) => rows.different,
            Compared::Choices { different, .. } => *different,
        }
    }
}

/// A stage's claimed output.
#[derive(Clone, Copy, Debug)]
pub struct ClaimedOutput<'a> {
    /// The signed root.
    pub root: [u8; 32],
    /// The leaves under the root, where the stage opened them.
    pub leaves: Option<&'a [Leaf]>,
}

/// The first difference between claimed and correct output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The stage, from 0. Later stages worked with this stage's output, so nothing is known about them.
    pub stage: usize,
    /// The first position that differs; `None` where the stage did not open its root.
    pub position: Option<usize>,
}

impl Replay {
    /// The first position at which a last stage that is compared by value gave something further off than what is accepted, and the
    /// first of what no honest engine gives.
    pub fn last_off(&self) -> [Option<usize>; 2] {
        let last = self.compared.last().copied().flatten();
        [last.and_then(|last| last.unclear()), last.and_then(|last| last.different())]
    }

    /// The root over the correct input of stage `stage`.
    pub fn predecessor(&self, stage: usize) -> [u8; 32] {
        merkle_root(match stage.checked_sub(1) {
            None => &self.input,
            Some(before) => &self.outputs[before],
        })
    }

    /// The root over the correct output of stage `stage`.
    pub fn output(&self, stage: usize) -> [u8; 32] {
        merkle_root(&self.outputs[stage])
    }

    /// The first stage whose root differs, and the first position where its opened leaves differ.
    pub fn first_difference(&self, claimed: &[ClaimedOutput<'_>]) -> Option<Difference> {
        let differs =
            |(stage, theirs): (usize, &ClaimedOutput<'_>)| (self.output(stage) != theirs.root).then_some(stage);
        let stage = claimed.iter().take(self.outputs.len()).enumerate().find_map(differs)?;
        // Leaves that do not give the signed root are no evidence.
        let opened = claimed[stage].leaves.filter(|leaves| merkle_root(leaves) == claimed[stage].root);
        let position = opened.and_then(|theirs| {
            let ours = &self.outputs[stage];
            let first = ours.iter().zip(theirs).position(|(ours, theirs)| ours != theirs);
            first.or((ours.len() != theirs.len()).then_some(ours.len().min(theirs.len())))
        });
        Some(Difference { stage, position })
    }

    /// The first position whose next token is not the transcript's, and the correct choice.
    pub fn first_wrong_token(&self, tokens: &[u32]) -> Option<(usize, u32)> {
        let wrong = |(position, choice): &&(usize, Choice)| {
            tokens.get(position + 1).is_some_and(|token| *token != choice.token)
        };
        self.choices.iter().find(wrong).map(|(position, choice)| (*position, choice.token))
    }
}

/// Where a replay gets a model's layers: neither memory nor disk needs to hold the whole model at once.
pub struct ModelSource<'a> {
    /// The model's configuration.
    pub config: &'a ModelConfig,
    /// Layers of one part, at most; at least 1.
    pub at_once: usize,
    /// Loads a part. Parts are loaded in order, each once.
    pub load: &'a mut dyn FnMut(ModelPart) -> Result<Arc<Stage>, Error>,
}

/// Replays a session from its tokens, one part of the model after the other, for `stages` whose layers are contiguous, the first
/// from 0, the last to the end. Every stage is computed from its own input: the first from the tokens, one after a stage that is
/// compared by value from the rows which that stage opened, any other from the output of the one before. Nothing is computed from
/// rows that are not known.
///
/// Where all stages are compared by root, every token of the answer is chosen again, those before `chosen_from` too: a stage that
/// replaced a failed one does not claim them, but they can be wrong all the same. In other sessions those tokens may have come from
/// another engine, and are left to the replay of the session that chose them.
///
/// # Errors
/// [`Error::Invalid`] for layers that do not cover the model in order, opened rows of another size, tokens outside its vocabulary, or
/// an impossible transcript; [`Error::Cancelled`]; errors of loading, [`Stage::forward`] and [`choose`](crate::sample::choose).
pub fn replay(
    source: &mut ModelSource<'_>,
    stages: &[ReplayedStage<'_>],
    transcript: Transcript<'_>,
    pace: &mut ReplayPace<'_>,
) -> Result<Replay, Error> {
    let config = source.config;
    let ends = [0].into_iter().chain(stages.iter().map(|stage| stage.layers.end));
    let contiguous = stages.iter().zip(ends).all(|(stage, end)| stage.layers.start == end && !stage.layers.is_empty());
    if !contiguous || stages.last().is_none_or(|last| last.layers.end as usize != config.layers) {
        let layers: Vec<_> = stages.iter().map(|stage| stage.layers.clone()).collect();
        return Err(Error::invalid(
            OPERATION,
            format!("layers {layers:?} do not cover the {} layers of this model in order", config.layers),
        ));
    }
    check(&transcript, transcript.positions)?;
    let size = transcript.positions * config.hidden_size;
    if let Some(stage) = stages.iter().find(|stage| stage.opened.is_some_and(|rows| rows.len() != size)) {
        let why = format!("layers {:?} opened other rows than {} positions have", stage.layers, transcript.positions);
        return Err(Error::invalid(OPERATION, why));
    }
    let tokens = &transcript.tokens[..transcript.positions];
    let last = stages.last().filter(|last| last.profile == Profile::Grid);
    let is_exact = stages.iter().all(|stage| stage.profile == Profile::Exact);
    let from = if is_exact { transcript.prompt_len - 1 } else { transcript.chosen_from };
    let mut chooser = Chooser::new(transcript, from, last.map(|last| last.layers.len()));
    let (mut outputs, mut compared, mut recomputed) = (Vec::new(), Vec::new(), Vec::new());
    // The input of the next stage, which the first has not; `None` where it is not known.
    let mut rows = Some(Cow::Borrowed(&[][..]));
    for stage in stages {
        let is_last = stage.layers.end as usize == config.layers;
        let by_value = stage.profile == Profile::Grid;
        let given = match rows.take() {
            Some(input) if !is_last || chooser.is_told() => {
                Some(source.stage(stage.layers.clone(), tokens, input, &mut chooser, pace)?)
            }
            _ => None,
        };
        let opened = stage.opened.filter(|_| by_value && !is_last);
        let theirs = || opened.map_or_else(Vec::new, |theirs| row_leaves(theirs, config.hidden_size));
        let (output, comparison) = match given {
            Some(Given::Choices(leaves)) => (leaves, chooser.compared()),
            Some(Given::Rows(ours)) if by_value => {
                let compare = |theirs| grid::compare_rows(&ours, theirs, config.hidden_size, stage.layers.len());
                (theirs(), opened.map(compare).map(Compared::Rows))
            }
            Some(Given::Rows(ours)) => {
                let leaves = row_leaves(&ours, config.hidden_size);
                rows = Some(Cow::Owned(ours));
                (leaves, None)
            }
            None => (theirs(), None),
        };
        recomputed.push(comparison.is_some() || (!by_value && (rows.is_some() || (is_last && !output.is_empty()))));
        rows = rows.or(opened.map(Cow::Borrowed));
        outputs.push(output);
        compared.push(comparison);
    }
    let Chooser { choices, scores, .. } = chooser;
    Ok(Replay { input: token_leaves(tokens), outputs, compared, recomputed, choices, scores })
}

fn row_leaves(rows: &[f32], width: usize) -> Vec<Leaf> {
    rows.chunks_exact(width).zip(0..).map(|(row, position)| row_leaf(position, row)).collect()
}

/// What a stage gives.
enum Given {
    /// `[positions, hidden_size]`
    Rows(Vec<f32>),
    /// Leaves of the choices.
    Choices(Vec<Leaf>),
}

impl ModelSource<'_> {
    /// Computes the layers of one stage, from `tokens` or from `rows`, `[positions, hidden_size]`.
    fn stage(
        &mut self,
        layers: Range<u32>,
        tokens: &[u32],
        rows: Cow<'_, [f32]>,
        chooser: &mut Chooser<'_>,
        pace: &mut ReplayPace<'_>,
    ) -> Result<Given, Error> {
        let mut rows = rows;
        for start in (layers.start as usize..layers.end as usize).step_by(self.at_once.max(1)) {
            let end = (start + self.at_once.max(1)).min(layers.end as usize);
            let model = (self.load)(ModelPart::of_layers(self.config, start..end))?;
            let input = if start == 0 { Input::Tokens(tokens) } else { Input::Activations(&rows) };
            let mut pass = Pass { model: &model, positions: tokens.len(), input };
            if model.part().head {
                return Ok(Given::Choices(pass.choose(chooser, pace)?));
            }
            rows = Cow::Owned(pass.activations(pace)?);
        }
        Ok(Given::Rows(rows.into_owned()))
    }
}

fn check(transcript: &Transcript<'_>, positions: usize) -> Result<(), Error> {
    let Transcript { tokens, prompt_len, chosen_from, .. } = *transcript;
    if positions == 0
        || transcript.positions != positions
        || tokens.len() < positions
        || !(1..=tokens.len()).contains(&prompt_len)
        || chosen_from > positions
        || (chosen_from + 1 < prompt_len && chosen_from != positions)
    {
        return Err(Error::invalid(
            OPERATION,
            format!(
                "impossible transcript: {positions} positions, {} tokens, {prompt_len} of them the prompt, choices from position {chosen_from} on",
                tokens.len()
            ),
        ));
    }
    Ok(())
}

/// One part of the model, over all rows of a session.
struct Pass<'a> {
    model: &'a Stage,
    positions: usize,
    input: Input<'a>,
}

impl Pass<'_> {
    /// The output of a part without the head: `[positions, hidden_size]`.
    fn activations(&mut self, pace: &mut ReplayPace<'_>) -> Result<Vec<f32>, Error> {
        let mut given = Vec::with_capacity(self.positions * self.model.config().hidden_size);
        let most = pace.chunk_rows.max(1);
        self.rows(
            pace,
            |start| (start + most, Logits::None),
            |_, output| {
                given.extend_from_slice(output.activations());
                Ok(())
            },
        )?;
        Ok(given)
    }

    /// The output of the last part: a leaf for every row.
    fn choose(&mut self, chooser: &mut Chooser<'_>, pace: &mut ReplayPace<'_>) -> Result<Vec<Leaf>, Error> {
        let mut leaves = Vec::with_capacity(self.positions);
        let vocabulary = self.model.config().vocabulary;
        let (from, most) = (chooser.first(), pace.chunk_rows.max(1));
        let next = |start: usize| match start < from {
            true => (from.min(start + most), Logits::None),
            false => (start + logit_rows(vocabulary, most), Logits::All),
        };
        self.rows(pace, next, |rows, output| chooser.take(rows, output.logits_mut(0), vocabulary, &mut leaves))?;
        Ok(leaves)
    }

    /// Computes rows in passes up to where `next` says, and gives each pass's output to a callback.
    fn rows(
        &mut self,
        pace: &mut ReplayPace<'_>,
        next: impl Fn(usize) -> (usize, Logits),
        mut take: impl FnMut(Range<usize>, &mut Output) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let budget = self.model.page_budget(self.model.cache_shape().bytes_for(self.positions));
        let mut cache = self.model.cache(&budget);
        let width = self.model.config().hidden_size;
        let mut start = 0;
        while start < self.positions {
            let ModelPart { layers, .. } = self.model.part();
            (pace.between)((layers.start * self.positions + layers.len() * start) / self.model.config().layers);
            pace.cancel.check()?;
            let (end, logits) = next(start);
            let rows = start..end.min(self.positions);
            let input = match self.input {
                Input::Tokens(tokens) => Input::Tokens(&tokens[rows.clone()]),
                Input::Activations(values) => Input::Activations(&values[rows.start * width..rows.end * width]),
            };
            let step = Step { cache: &mut cache, rows: rows.len(), logits };
            let mut output = self.model.forward(&mut [step], input, pace.cancel)?;
            start = rows.end;
            take(rows, &mut output)?;
        }
        Ok(())
    }
}
