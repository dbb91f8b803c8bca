//! A session computed again, as one prefill of each part of the model: the leaves that every stage should have had, and
//! the tokens that the last stage should have chosen. A replay works in chunks, can be cancelled, and lets other work
//! use the pool between chunks. Signatures are the node's.

use super::merkle::{Leaf, chosen_leaf, merkle_root, nothing_leaf, row_leaf, token_leaves};
use crate::engine::{Input, Logits, Output, Stage, Step};
use crate::model::{Cache, ModelConfig, ModelPart};
use crate::sample::grammar::Grammar;
use crate::sample::{Choice, Sampling, choose, score};
use crate::{Cancel, Error};
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
    /// How tokens are chosen.
    pub sampling: &'a Sampling,
    /// The grammar that masks tokens, with nothing accepted yet.
    pub grammar: Option<&'a Grammar>,
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
#[derive(Clone, Debug, PartialEq)]
pub struct Replay {
    /// Leaves of the first stage's input.
    pub input: Vec<Leaf>,
    /// Leaves of each stage's output.
    pub outputs: Vec<Vec<Leaf>>,
    /// The choice at each position that was computed, in order; empty without the head.
    pub choices: Vec<(usize, Choice)>,
    /// The score of the prompt's token after each position, from the first; empty unless the prompt is scored.
    pub scores: Vec<Choice>,
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

/// Replays a session from its tokens, one part of the model after the other, for stages with these `layers`
/// (contiguous, the first from 0, the last to the end). Every token of the answer is chosen again, those before
/// `chosen_from` too: a stage that replaced a failed one does not claim them, but they can be wrong all the same.
///
/// # Errors
/// [`Error::Invalid`] for layers that do not cover the model in order, tokens outside its vocabulary, or an impossible
/// transcript; [`Error::Cancelled`]; errors of loading, [`Stage::forward`] and [`choose`].
pub fn replay(
    source: &mut ModelSource<'_>,
    layers: &[Range<u32>],
    transcript: Transcript<'_>,
    pace: &mut ReplayPace<'_>,
) -> Result<Replay, Error> {
    let config = source.config;
    let ends = [0].into_iter().chain(layers.iter().map(|layers| layers.end));
    let contiguous = layers.iter().zip(ends).all(|(layers, end)| layers.start == end && !layers.is_empty());
    if !contiguous || layers.last().is_none_or(|last| last.end as usize != config.layers) {
        return Err(Error::invalid(
            OPERATION,
            format!("layers {layers:?} do not cover the {} layers of this model in order", config.layers),
        ));
    }
    check(&transcript, transcript.positions)?;
    let tokens = &transcript.tokens[..transcript.positions];
    let mut chooser = Chooser::new(transcript, transcript.prompt_len - 1);
    let mut outputs = Vec::with_capacity(layers.len());
    let mut activations = Vec::new();
    for stage in layers {
        let mut chosen = Vec::new();
        for start in (stage.start as usize..stage.end as usize).step_by(source.at_once.max(1)) {
            let end = (start + source.at_once.max(1)).min(stage.end as usize);
            let model = (source.load)(ModelPart::of_layers(config, start..end))?;
            let input = if start == 0 { Input::Tokens(tokens) } else { Input::Activations(&activations) };
            let mut pass = Pass { model: &model, positions: tokens.len(), input };
            if model.part().head {
                chosen = pass.choose(&mut chooser, pace)?;
            } else {
                activations = pass.activations(pace)?;
            }
        }
        // The last part's output is tokens.
        outputs.push(match stage.end as usize == config.layers {
            true => chosen,
            false => {
                let rows = activations.chunks_exact(config.hidden_size).zip(0..);
                rows.map(|(row, position)| row_leaf(position, row)).collect()
            }
        });
    }
    let Chooser { choices, scores, .. } = chooser;
    Ok(Replay { input: token_leaves(tokens), outputs, choices, scores })
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
        let (from, most) = (if chooser.transcript.scored { 0 } else { chooser.from }, pace.chunk_rows.max(1));
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

/// The last stage's choices.
struct Chooser<'a> {
    transcript: Transcript<'a>,
    grammar: Option<Grammar>,
    /// Tokens of the answer that the grammar has accepted.
    accepted: usize,
    /// The first position at which a token is chosen.
    from: usize,
    choices: Vec<(usize, Choice)>,
    scores: Vec<Choice>,
}

impl<'a> Chooser<'a> {
    fn new(transcript: Transcript<'a>, from: usize) -> Chooser<'a> {
        let grammar = transcript.grammar.cloned();
        Chooser { grammar, transcript, accepted: 0, from, choices: Vec::new(), scores: Vec::new() }
    }

    /// Takes the logits of `rows`, where requested: `[rows, vocabulary]`, overwritten. Adds every row's leaf.
    fn take(
        &mut self,
        rows: Range<usize>,
        logits: &mut [f32],
        vocabulary: usize,
        leaves: &mut Vec<Leaf>,
    ) -> Result<(), Error> {
        if logits.is_empty() {
            leaves.extend(rows.map(|position| nothing_leaf(position as u64)));
            return Ok(());
        }
        for (row, position) in logits.chunks_exact_mut(vocabulary).zip(rows) {
            if position < self.from {
                let score = score(self.transcript.sampling.logprobs, self.transcript.tokens[position + 1], row)?;
                leaves.push(chosen_leaf(position as u64, &score));
                self.scores.push(score);
                continue;
            }
            let choice = self.choose(position, row)?;
            let own = position >= self.transcript.chosen_from;
            leaves.push(match &choice {
                Some(choice) if own => chosen_leaf(position as u64, choice),
                _ => nothing_leaf(position as u64),
            });
            self.choices.extend(choice.map(|choice| (position, choice)));
        }
        Ok(())
    }

    /// The choice after `position`; `None` after a token that the grammar does not allow, which was reported as wrong.
    fn choose(&mut self, position: usize, logits: &mut [f32]) -> Result<Option<Choice>, Error> {
        let transcript = self.transcript;
        let (prompt, answer) = transcript.tokens.split_at(transcript.prompt_len);
        let so_far = &answer[..position + 1 - transcript.prompt_len];
        let mut allowed = None;
        if let Some(grammar) = &mut self.grammar {
            for token in &so_far[self.accepted..] {
                if grammar.accept(*token).is_err() {
                    return Ok(None);
                }
                self.accepted += 1;
            }
            allowed = Some(grammar.mask()?);
        }
        choose(transcript.sampling, prompt, so_far, logits, allowed.as_ref()).map(Some)
    }
}
