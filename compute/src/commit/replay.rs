//! A session once more, as one prefill of each part of the model: the leaves that every stage should have had, and the
//! tokens that the last should have chosen. It works in chunks, stops when told to and lets others at the pool in between.
//! It never sees a signature.

use super::merkle::{Leaf, chosen_leaf, merkle_root, nothing_leaf, row_leaf, token_leaves};
use crate::model::{Cache, Input, Logits, Model, ModelConfig, ModelPart, Output, PageBudget, Step};
use crate::sample::grammar::Grammar;
use crate::sample::{Choice, Sampling, choose};
use crate::{Cancel, Error, Pool};
use std::ops::Range;
use std::sync::Arc;

const OPERATION: &str = "replay";

/// Logits held at a time, in elements (16 MiB).
const HELD_LOGITS: usize = 4 << 20;

/// What was said in a session, and by which rules.
#[derive(Clone, Copy)]
pub struct Transcript<'a> {
    /// Prompt and answer. One more than there are positions, or as many where the last position's choice is not known.
    pub tokens: &'a [u32],
    /// How many of them are the prompt, at least 1.
    pub prompt_len: usize,
    /// Rows that were computed.
    pub positions: usize,
    /// The first position whose following token the last stage chose.
    pub chosen_from: usize,
    /// How tokens are chosen.
    pub sampling: &'a Sampling,
    /// What masks them; nothing accepted yet.
    pub grammar: Option<&'a Grammar>,
}

/// How fast a replay goes, and what stops it.
pub struct Pace<'a> {
    /// Rows of one pass at most: between passes others get at the pool.
    pub chunk_rows: usize,
    /// Stops it before the next pass.
    pub cancel: &'a Cancel,
    /// Told before every pass how much is done, in rows through the whole model; may wait there until the pool is idle.
    pub between: &'a mut dyn FnMut(usize),
}

/// What a session's stages should have received and given.
#[derive(Clone, Debug, PartialEq)]
pub struct Replay {
    /// What the first of these stages received.
    pub received: Vec<Leaf>,
    /// What each gave.
    pub given: Vec<Vec<Leaf>>,
    /// What follows each position that was looked at, in order; empty without the head.
    pub choices: Vec<(usize, Choice)>,
}

/// What one stage says it gave.
#[derive(Clone, Copy, Debug)]
pub struct Given<'a> {
    /// The root that it signed.
    pub root: [u8; 32],
    /// What the root is over, where the stage opened it.
    pub leaves: Option<&'a [Leaf]>,
}

/// Where what was given first differs from what should have been.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Which of the stages, from 0. Those after it worked with what it gave, so nothing is said of them.
    pub stage: usize,
    /// The first position; `None` where the stage did not open its root.
    pub position: Option<usize>,
}

impl Replay {
    /// The root over what stage `stage` should have received.
    pub fn predecessor(&self, stage: usize) -> [u8; 32] {
        merkle_root(match stage.checked_sub(1) {
            None => &self.received,
            Some(before) => &self.given[before],
        })
    }

    /// The root over what stage `stage` should have given.
    pub fn output(&self, stage: usize) -> [u8; 32] {
        merkle_root(&self.given[stage])
    }

    /// The first stage whose root is another, and the first position where what it opened differs.
    pub fn first_difference(&self, given: &[Given<'_>]) -> Option<Difference> {
        let differs = |(stage, theirs): (usize, &Given<'_>)| (self.output(stage) != theirs.root).then_some(stage);
        let stage = given.iter().take(self.given.len()).enumerate().find_map(differs)?;
        // Leaves that do not make the root say nothing of what was signed.
        let opened = given[stage].leaves.filter(|leaves| merkle_root(leaves) == given[stage].root);
        let position = opened.and_then(|theirs| {
            let ours = &self.given[stage];
            let first = ours.iter().zip(theirs).position(|(ours, theirs)| ours != theirs);
            first.or((ours.len() != theirs.len()).then_some(ours.len().min(theirs.len())))
        });
        Some(Difference { stage, position })
    }

    /// The first position at which not the token of the transcript follows, and the one that should.
    pub fn first_wrong_token(&self, tokens: &[u32]) -> Option<(usize, u32)> {
        let wrong = |(position, choice): &&(usize, Choice)| {
            tokens.get(position + 1).is_some_and(|token| *token != choice.token)
        };
        self.choices.iter().find(wrong).map(|(position, choice)| (*position, choice.token))
    }
}

/// Where a replay gets a model's layers from: a model need not be in memory as a whole, nor be anywhere as a whole.
pub struct Source<'a> {
    /// Of the model.
    pub config: &'a ModelConfig,
    /// Layers of one part at most, at least 1.
    pub at_once: usize,
    /// Loads a part. Parts come in order, each once.
    pub load: &'a mut dyn FnMut(ModelPart) -> Result<Arc<Model>, Error>,
}

/// Replays a session from its tokens, part of the model by part: what stages with these `layers` (contiguous, the first from
/// 0, the last to the end) should have given. Every token of the answer is chosen anew, those before `chosen_from` too: a
/// stage that came in after another had failed answers for none of them, but they can be wrong all the same.
///
/// # Errors
/// [`Error::Invalid`] for layers that are not the model's, tokens that it has not, or a transcript that cannot be;
/// [`Error::Cancelled`]; what loading, [`Model::forward`] and [`choose`] give.
pub fn replay(
    source: &mut Source<'_>,
    pool: &Pool,
    layers: &[Range<u32>],
    transcript: Transcript<'_>,
    pace: &mut Pace<'_>,
) -> Result<Replay, Error> {
    let config = source.config;
    let ends = [0].into_iter().chain(layers.iter().map(|layers| layers.end));
    let contiguous = layers.iter().zip(ends).all(|(layers, end)| layers.start == end && !layers.is_empty());
    if !contiguous || layers.last().is_none_or(|last| last.end as usize != config.layers) {
        return Err(Error::invalid(
            OPERATION,
            format!("layers {layers:?} are not the {} of this model, in order", config.layers),
        ));
    }
    check(&transcript, transcript.positions)?;
    let tokens = &transcript.tokens[..transcript.positions];
    let mut chooser = Chooser::new(transcript, transcript.prompt_len - 1);
    let mut given = Vec::with_capacity(layers.len());
    let mut activations = Vec::new();
    for stage in layers {
        let mut chosen = Vec::new();
        for start in (stage.start as usize..stage.end as usize).step_by(source.at_once.max(1)) {
            let end = (start + source.at_once.max(1)).min(stage.end as usize);
            let model = (source.load)(ModelPart::of_layers(config, start..end))?;
            let input = if start == 0 { Input::Tokens(tokens) } else { Input::Activations(&activations) };
            let mut pass = Pass { model: &model, pool, positions: tokens.len(), input };
            if model.part().head {
                chosen = pass.choose(&mut chooser, pace)?;
            } else {
                activations = pass.activations(pace)?;
            }
        }
        // What the last one gives are tokens.
        given.push(match stage.end as usize == config.layers {
            true => chosen,
            false => {
                let rows = activations.chunks_exact(config.hidden_size).zip(0..);
                rows.map(|(row, position)| row_leaf(position, row)).collect()
            }
        });
    }
    Ok(Replay { received: token_leaves(tokens), given, choices: chooser.choices })
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
                "{positions} positions with {} tokens, {prompt_len} of them the prompt, chosen from {chosen_from} on: no session is like that",
                tokens.len()
            ),
        ));
    }
    Ok(())
}

/// All of a session's rows through one part of the model.
struct Pass<'a> {
    model: &'a Model,
    pool: &'a Pool,
    positions: usize,
    input: Input<'a>,
}

impl Pass<'_> {
    /// What a part without the head gives, `[positions, width]`.
    fn activations(&mut self, pace: &mut Pace<'_>) -> Result<Vec<f32>, Error> {
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

    /// What the last part gives: a leaf for every row.
    fn choose(&mut self, chooser: &mut Chooser<'_>, pace: &mut Pace<'_>) -> Result<Vec<Leaf>, Error> {
        let mut leaves = Vec::with_capacity(self.positions);
        let vocabulary = self.model.config().vocabulary;
        let (from, most) = (chooser.from, pace.chunk_rows.max(1));
        let next = |start: usize| match start < from {
            true => (from.min(start + most), Logits::None),
            false => (start + most.min(HELD_LOGITS / vocabulary.max(1)).max(1), Logits::All),
        };
        self.rows(pace, next, |rows, output| chooser.take(rows, output.logits_mut(0), vocabulary, &mut leaves))?;
        Ok(leaves)
    }

    /// Computes rows up to where `next` says, and hands each pass on.
    fn rows(
        &mut self,
        pace: &mut Pace<'_>,
        next: impl Fn(usize) -> (usize, Logits),
        mut take: impl FnMut(Range<usize>, &mut Output) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let budget = PageBudget::new(Cache::bytes_for(self.model, self.positions));
        let mut cache = Cache::new(self.model, &budget);
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
            let mut output = self.model.forward(self.pool, &mut [step], input)?;
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
    /// The first position at which a choice is made.
    from: usize,
    choices: Vec<(usize, Choice)>,
}

impl<'a> Chooser<'a> {
    fn new(transcript: Transcript<'a>, from: usize) -> Chooser<'a> {
        Chooser { grammar: transcript.grammar.cloned(), transcript, accepted: 0, from, choices: Vec::new() }
    }

    /// Takes the logits of `rows` where they are wanted: `[rows, vocabulary]`, overwritten. Adds every row's leaf.
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

    /// What follows `position`; `None` behind a token that the grammar does not allow, which has been found wrong then.
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
