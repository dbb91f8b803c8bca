//! A session once more, as one prefill: the leaves that every stage should have had, and the tokens that the last should
//! have chosen. It works in chunks, stops when told to and lets others at the pool in between. It never sees a signature.

use super::merkle::{Leaf, chosen_leaf, merkle_root, nothing_leaf, row_leaf, token_leaves};
use crate::model::{Cache, Input, Logits, Model, Observed, PageBudget, Step};
use crate::sample::grammar::Grammar;
use crate::sample::{Choice, Sampling, choose};
use crate::{Cancel, Error, Pool};
use std::ops::Range;

const OPERATION: &str = "replay";

/// Logits held at a time, in elements (16 MiB).
const HELD_LOGITS: usize = 4 << 20;

/// Outputs of layers held at a time, in elements (64 MiB): an observed pass keeps them for all its rows.
const HELD_ACTIVATIONS: usize = 16 << 20;

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
    /// Told before every pass how many rows are done; may wait there until the pool is idle.
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

/// Replays a session with the whole `model`: what stages with these `layers` (contiguous, the first from 0, the last to
/// the end) should have given. Every token of the answer is chosen anew, those before `chosen_from` too: a stage that came
/// in after another had failed answers for none of them, but they can be wrong all the same.
///
/// # Errors
/// [`Error::Invalid`] for a model that is not whole, layers that are not its, tokens that it has not, or a transcript that
/// cannot be; [`Error::Cancelled`]; what [`Model::forward`] and [`choose`] give.
pub fn replay(
    model: &Model,
    pool: &Pool,
    layers: &[Range<u32>],
    transcript: Transcript<'_>,
    pace: &mut Pace<'_>,
) -> Result<Replay, Error> {
    let whole = model.part().embedding && model.part().head && model.part().layers == (0..model.config().layers);
    let ends = [0].into_iter().chain(layers.iter().map(|layers| layers.end));
    let contiguous = layers.iter().zip(ends).all(|(layers, end)| layers.start == end && !layers.is_empty());
    if !whole || !contiguous || layers.last().is_none_or(|last| last.end as usize != model.config().layers) {
        return Err(Error::invalid(
            OPERATION,
            format!("layers {layers:?} are not the {} of this whole model, in order", model.config().layers),
        ));
    }
    check(&transcript, transcript.positions)?;
    let tokens = &transcript.tokens[..transcript.positions];
    let mut replay = Replay {
        received: token_leaves(tokens),
        given: layers.iter().map(|_| Vec::with_capacity(tokens.len())).collect(),
        choices: Vec::new(),
    };
    let mut chooser = Chooser::new(transcript, transcript.prompt_len - 1);
    let mut session = Session::new(model, pool, tokens.len());
    while let Some(rows) = session.next(&chooser, pace, layers.len() > 1)? {
        let Replay { given, .. } = &mut replay;
        let mut observer = |observed: Observed<'_>| {
            let stage = layers.iter().position(|layers| layers.end as usize == observed.layer + 1);
            // What the last one gives are tokens.
            if let Some(stage) = stage.filter(|stage| stage + 1 < layers.len()) {
                let first = (rows.start + observed.first_row) as u64;
                let rows = observed.activations.chunks_exact(model.config().width);
                given[stage].extend(rows.zip(first..).map(|(row, position)| row_leaf(position, row)));
            }
        };
        let observer: Option<&mut dyn FnMut(Observed<'_>)> = if layers.len() > 1 { Some(&mut observer) } else { None };
        let mut output = session.forward(Input::Tokens(&tokens[rows.clone()]), &rows, &chooser, observer)?;
        if let Some(last) = replay.given.last_mut() {
            chooser.take(rows, output.logits_mut(0), model.config().vocabulary, last)?;
        }
    }
    replay.choices = chooser.choices;
    Ok(replay)
}

/// Replays one stage alone, from what it received at rows 0, 1, …: `input` as its `model` takes it. A stage with the head
/// needs the transcript and chooses from `chosen_from` on.
///
/// # Errors
/// As [`replay`].
pub fn replay_part(
    model: &Model,
    pool: &Pool,
    input: Input<'_>,
    transcript: Option<Transcript<'_>>,
    pace: &mut Pace<'_>,
) -> Result<Replay, Error> {
    let width = model.config().width;
    let (positions, received): (usize, Vec<Leaf>) = match input {
        Input::Tokens(tokens) => (tokens.len(), token_leaves(tokens)),
        Input::Activations(rows) => {
            let leaves = rows.chunks_exact(width).zip(0..).map(|(row, position)| row_leaf(position, row));
            (rows.len() / width, leaves.collect())
        }
    };
    let mut chooser = match (transcript, model.part().head) {
        (Some(transcript), true) => {
            check(&transcript, positions)?;
            Chooser::new(transcript, transcript.chosen_from)
        }
        (None, true) => return Err(Error::invalid(OPERATION, "a stage that chooses tokens needs the transcript")),
        (_, false) => Chooser::none(positions),
    };
    let mut given = Vec::with_capacity(positions);
    let mut session = Session::new(model, pool, positions);
    while let Some(rows) = session.next(&chooser, pace, false)? {
        let input = match input {
            Input::Tokens(tokens) => Input::Tokens(&tokens[rows.clone()]),
            Input::Activations(values) => Input::Activations(&values[rows.start * width..rows.end * width]),
        };
        let mut output = session.forward(input, &rows, &chooser, None)?;
        if model.part().head {
            chooser.take(rows, output.logits_mut(0), model.config().vocabulary, &mut given)?;
        } else {
            let outputs = output.activations().chunks_exact(width);
            given.extend(outputs.zip(rows.start as u64..).map(|(row, position)| row_leaf(position, row)));
        }
    }
    Ok(Replay { received, given: vec![given], choices: chooser.choices })
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

/// Where the replay stands in the model.
struct Session<'a> {
    model: &'a Model,
    pool: &'a Pool,
    cache: Cache,
    positions: usize,
}

impl<'a> Session<'a> {
    fn new(model: &'a Model, pool: &'a Pool, positions: usize) -> Session<'a> {
        let budget = PageBudget::new(Cache::bytes_for(model, positions));
        Session { model, pool, cache: Cache::new(model, &budget), positions }
    }

    /// The next rows: as many as the memory for their outputs and the pace allow, all with a choice or none.
    fn next(&self, chooser: &Chooser<'_>, pace: &mut Pace<'_>, observed: bool) -> Result<Option<Range<usize>>, Error> {
        let start = self.cache.len();
        if start == self.positions {
            return Ok(None);
        }
        (pace.between)(start);
        pace.cancel.check()?;
        let config = self.model.config();
        let mut most = pace.chunk_rows;
        if observed {
            most = most.min(HELD_ACTIVATIONS / (config.layers * config.width).max(1));
        }
        let end = if start < chooser.from {
            chooser.from.min(start + most.max(1))
        } else {
            start + most.min(HELD_LOGITS / config.vocabulary.max(1)).max(1)
        };
        Ok(Some(start..end.min(self.positions)))
    }

    fn forward(
        &mut self,
        input: Input<'_>,
        rows: &Range<usize>,
        chooser: &Chooser<'_>,
        observer: Option<&mut dyn FnMut(Observed<'_>)>,
    ) -> Result<crate::model::Output, Error> {
        let logits = if rows.start < chooser.from { Logits::None } else { Logits::All };
        let step = Step { cache: &mut self.cache, rows: rows.len(), logits };
        self.model.forward_observed(self.pool, &mut [step], input, observer)
    }
}

/// The last stage's choices.
struct Chooser<'a> {
    transcript: Option<Transcript<'a>>,
    grammar: Option<Grammar>,
    /// Tokens of the answer that the grammar has accepted.
    accepted: usize,
    /// The first position at which a choice is made.
    from: usize,
    choices: Vec<(usize, Choice)>,
}

impl<'a> Chooser<'a> {
    fn new(transcript: Transcript<'a>, from: usize) -> Chooser<'a> {
        Chooser {
            grammar: transcript.grammar.cloned(),
            transcript: Some(transcript),
            accepted: 0,
            from,
            choices: Vec::new(),
        }
    }

    /// One that never chooses.
    fn none(positions: usize) -> Chooser<'a> {
        Chooser { transcript: None, grammar: None, accepted: 0, from: positions, choices: Vec::new() }
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
            let own = self.transcript.is_some_and(|transcript| position >= transcript.chosen_from);
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
        let Some(transcript) = self.transcript else { return Ok(None) };
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
