//! The last stage's choices in a replay: the token that follows each position, chosen again, or one of the stage's own that an honest
//! engine could have chosen too. Logits are computed elsewhere.

use super::grid::{close_logprobs, evidence, logit_bound};
use super::merkle::{Leaf, chosen_leaf, nothing_leaf};
use super::replay::{Compared, Transcript};
use crate::Error;
use crate::sample::grammar::Grammar;
use crate::sample::mask::TokenMask;
use crate::sample::plausible::could_choose;
use crate::sample::{Choice, choose, score};
use std::ops::Range;

/// The last stage's choices.
pub(super) struct Chooser<'a> {
    transcript: Transcript<'a>,
    grammar: Option<Grammar>,
    /// Tokens of the answer that the grammar has accepted.
    accepted: usize,
    /// The first position at which a token is chosen.
    from: usize,
    /// Where choices are compared by value, the number of layers of the last stage.
    layers: Option<usize>,
    /// Of a comparison by value: tokens that another one would have been chosen instead of here, the first position that is further off
    /// than what is accepted, and the first with what no honest engine gives.
    others: usize,
    unclear: Option<usize>,
    different: Option<usize>,
    pub(super) choices: Vec<(usize, Choice)>,
    pub(super) scores: Vec<Choice>,
}

impl<'a> Chooser<'a> {
    pub(super) fn new(transcript: Transcript<'a>, from: usize, layers: Option<usize>) -> Chooser<'a> {
        let grammar = transcript.grammar.cloned();
        let (choices, scores, accepted) = (Vec::new(), Vec::new(), 0);
        let (others, unclear, different) = (0, None, None);
        Chooser { transcript, grammar, accepted, from, layers, others, unclear, different, choices, scores }
    }

    /// The first position whose logits are needed.
    pub(super) fn first(&self) -> usize {
        if self.transcript.scored { 0 } else { self.from }
    }

    /// Whether all that the stage's choices are compared with is known.
    pub(super) fn is_told(&self) -> bool {
        let Transcript { tokens, told, positions, sampling, .. } = self.transcript;
        if self.layers.is_none() || sampling.logprobs.is_none() {
            return true;
        }
        let given = tokens.get(self.first() + 1..=positions).unwrap_or_default();
        told.len() == given.len() && told.iter().zip(given).all(|(told, token)| told.token == *token)
    }

    /// The result of a comparison by value, once all rows are taken.
    pub(super) fn compared(&self) -> Option<Compared> {
        let Chooser { others, unclear, different, .. } = *self;
        self.layers.map(|_| Compared::Choices { others, unclear, different })
    }

    /// Takes the logits of `rows`, where requested: `[rows, vocabulary]`, overwritten. Adds every row's leaf.
    pub(super) fn take(
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
            leaves.push(match self.layers {
                None => self.choose_again(position, row)?,
                Some(layers) => self.compare(position, row, layers)?,
            });
        }
        Ok(())
    }

    /// The leaf of the right choice.
    fn choose_again(&mut self, position: usize, logits: &mut [f32]) -> Result<Leaf, Error> {
        let Transcript { tokens, sampling, chosen_from, .. } = self.transcript;
        if position < self.from {
            let score = score(sampling.logprobs, tokens[position + 1], logits)?;
            let leaf = chosen_leaf(position as u64, &score);
            self.scores.push(score);
            return Ok(leaf);
        }
        let Some(allowed) = self.allowed(position)? else { return Ok(nothing_leaf(position as u64)) };
        let [prompt, so_far] = self.before(position);
        let choice = choose(sampling, prompt, so_far, logits, allowed.as_ref())?;
        let leaf = match position >= chosen_from {
            true => chosen_leaf(position as u64, &choice),
            false => nothing_leaf(position as u64),
        };
        self.choices.push((position, choice));
        Ok(leaf)
    }

    /// The leaf of what the stage itself gave, which is compared with what these logits give.
    fn compare(&mut self, position: usize, logits: &mut [f32], layers: usize) -> Result<Leaf, Error> {
        let Transcript { tokens, sampling, told, .. } = self.transcript;
        let Some(&token) = tokens.get(position + 1) else { return Ok(nothing_leaf(position as u64)) };
        let given = match sampling.logprobs {
            Some(_) => told[position - self.first()].clone(),
            None => Choice { token, logprob: None, top: Vec::new() },
        };
        // Whether it is accepted, and whether it is no evidence.
        let mut fits = [true; 2];
        if let Some(count) = sampling.logprobs {
            let known = score(Some(0), token, &mut logits.to_vec())?.logprob.unwrap_or_default();
            let log_sum = f64::from(logits[token as usize]) - f64::from(known);
            let bound = logit_bound(logits, layers, false);
            fits = [bound, evidence(bound)].map(|bound| close_logprobs(logits, log_sum, &given, count, bound));
        }
        let leaf = chosen_leaf(position as u64, &given);
        if position < self.from {
            self.scores.push(given);
        } else if let Some(allowed) = self.allowed(position)? {
            let [prompt, so_far] = self.before(position);
            let ours = choose(sampling, prompt, so_far, &mut logits.to_vec(), allowed.as_ref())?;
            let mut possible = [true; 2];
            if ours.token != token {
                self.others += 1;
                let bound = logit_bound(logits, layers, sampling.repetition_penalty != 1.0);
                for (possible, bound) in possible.iter_mut().zip([bound, evidence(bound)]) {
                    let logits = &mut logits.to_vec();
                    *possible = could_choose(sampling, prompt, so_far, logits, allowed.as_ref(), token, bound)?;
                }
            }
            fits = [fits[0] && possible[0], fits[1] && possible[1]];
            self.choices.push((position, if possible[1] { given } else { ours }));
        }
        if !fits[0] {
            self.unclear.get_or_insert(position);
        }
        if !fits[1] {
            self.different.get_or_insert(position);
        }
        Ok(leaf)
    }

    /// The prompt, and the answer up to a position.
    fn before(&self, position: usize) -> [&'a [u32]; 2] {
        let (prompt, answer) = self.transcript.tokens.split_at(self.transcript.prompt_len);
        [prompt, &answer[..position + 1 - prompt.len()]]
    }

    /// What the grammar allows after `position`, if there is one; `None` after a token that it does not allow, which was reported as
    /// wrong.
    fn allowed(&mut self, position: usize) -> Result<Option<Option<TokenMask>>, Error> {
        let [_, so_far] = self.before(position);
        let Some(grammar) = &mut self.grammar else { return Ok(Some(None)) };
        for token in &so_far[self.accepted..] {
            if grammar.accept(*token).is_err() {
                return Ok(None);
            }
            self.accepted += 1;
        }
        Ok(Some(Some(grammar.mask()?)))
    }
}
