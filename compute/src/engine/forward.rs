//! The forward pass: batches of sessions through the layers of a [`Stage`]. Input is checked, long batches are cut, and
//! every cache is as before when anything fails.

use super::{Loaded, Stage};
use crate::kernel::transformer::MAX_SLOTS;
use crate::model::cache::SessionRows;
use crate::model::{Cache, Experts};
use crate::{Cancel, Error};
use std::ops::Range;

/// Rows that go through all layers together: a processor keeps their activations in a core's cache beside the weights' tiles.
pub(super) const PASS_ROWS: usize = 256;

/// The rows of a step whose logits are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Logits {
    /// None: more of the prompt follows.
    None,
    /// The last row: the next token is to be chosen.
    #[default]
    Last,
    /// Every row: drafts are to be verified, or a text is scored.
    All,
}

/// The next rows of one session.
#[derive(Debug)]
pub struct Step<'a> {
    /// The session's keys and values; the rows follow the positions that it holds.
    pub cache: &'a mut Cache,
    /// The number of rows.
    pub rows: usize,
    /// The rows whose logits are computed; none for a part without a head.
    pub logits: Logits,
}

/// The rows of all steps, one step after the other.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// Token ids, for a part with the embedding.
    Tokens(&'a [u32]),
    /// Activations `[rows, hidden_size]`, for a part without the embedding.
    Activations(&'a [f32]),
}

/// The results of a forward pass.
#[derive(Debug, Default)]
pub struct Output {
    vocabulary: usize,
    /// `[logit rows, vocabulary]`
    logits: Vec<f32>,
    /// First logit row of every step, and the end.
    starts: Vec<usize>,
    /// `[rows, hidden_size]`
    activations: Vec<f32>,
}

impl Output {
    /// The logits of step `step`: `[logit rows, vocabulary]`, in order; empty where none were requested.
    pub fn logits(&self, step: usize) -> &[f32] {
        &self.logits[self.starts[step] * self.vocabulary..self.starts[step + 1] * self.vocabulary]
    }

    /// The logits of step `step`, for samplers to change.
    pub fn logits_mut(&mut self, step: usize) -> &mut [f32] {
        &mut self.logits[self.starts[step] * self.vocabulary..self.starts[step + 1] * self.vocabulary]
    }

    /// The activations of all rows after the last layer, `[rows, hidden_size]`; empty for a part with the head.
    pub fn activations(&self) -> &[f32] {
        &self.activations
    }

    /// The activations of all rows, without a copy.
    pub fn into_activations(self) -> Vec<f32> {
        self.activations
    }
}

/// A layer's output, as an observer of a forward pass sees it.
#[derive(Clone, Copy, Debug)]
pub struct Observed<'a> {
    /// The layer, counted from the model's first.
    pub layer: usize,
    /// The first row of this output, counted from the batch's first row.
    pub first_row: usize,
    /// The layer's output: `[rows, hidden_size]`.
    pub activations: &'a [f32],
}

/// Rows of sessions that go through all layers together, checked, and where their results go.
pub(super) struct Pass<'a> {
    /// These rows alone.
    pub(super) input: Input<'a>,
    pub(super) sessions: Vec<PassSession<'a>>,
    /// The number of rows of all sessions.
    pub(super) rows: usize,
    /// The first of the stage's layers, counted from the model's first.
    pub(super) first_layer: usize,
    /// Whether the head is computed; without it the result is the activations.
    pub(super) has_head: bool,
    /// The rows whose logits are wanted, in order.
    pub(super) logit_rows: &'a [usize],
    /// `[layers, rows, hidden_size]`: the residual after each layer, for an observer.
    pub(super) trace: Option<&'a mut [f32]>,
    pub(super) cancel: &'a Cancel,
    /// `[logit_rows, vocabulary]` with the head.
    pub(super) logits: &'a mut [f32],
    /// `[rows, hidden_size]` without the head.
    pub(super) activations: &'a mut [f32],
}

/// The rows of one session in a pass.
pub(super) struct PassSession<'a> {
    /// The rows of the pass that hold the session's next positions.
    pub(super) rows: Range<usize>,
    pub(super) cache: SessionRows<'a>,
}

impl Stage {
    /// Runs the next rows of several sessions through the stage, unless it is cancelled: the flag is looked at before each piece
    /// of work, some milliseconds long.
    ///
    /// On an exact engine a row's result depends on its session alone, bit for bit: not on the other steps, on how the session's
    /// rows were cut into steps, or on threads or instruction set.
    ///
    /// # Errors
    /// [`Error::Invalid`] for no rows, ids outside the vocabulary, input of another kind or length than the part takes,
    /// positions beyond the context, and queries, keys or values beyond their range; [`Error::NonFinite`] where any step of
    /// any layer gives NaN or an infinity, with the first such step and its layer, the same on every instruction set;
    /// [`Error::Busy`] where the caches' budget is exhausted; [`Error::OutOfMemory`]; [`Error::Cancelled`] where the flag was set
    /// before the last piece. After an error every cache is as before.
    pub fn forward(&self, steps: &mut [Step<'_>], input: Input<'_>, cancel: &Cancel) -> Result<Output, Error> {
        unchanged_on_error(steps, |steps| self.passes(steps, input, self.part().head, None, cancel))
    }

    /// [`Stage::forward`] with an observer that sees the output of every layer.
    ///
    /// # Errors
    /// As [`Stage::forward`].
    pub fn forward_observed(
        &self,
        steps: &mut [Step<'_>],
        input: Input<'_>,
        observer: &mut dyn FnMut(Observed<'_>),
    ) -> Result<Output, Error> {
        let cancel = Cancel::new();
        unchanged_on_error(steps, |steps| self.passes(steps, input, self.part().head, Some(observer), &cancel))
    }

    /// The states of all rows after the last layer, `[rows, hidden_size]`, whether or not this part has a head. After an error
    /// the caches are of no use.
    ///
    /// # Errors
    /// As [`Stage::forward`].
    pub(super) fn hidden_states(&self, steps: &mut [Step<'_>], input: Input<'_>) -> Result<Vec<f32>, Error> {
        self.passes(steps, input, false, None, &Cancel::new()).map(Output::into_activations)
    }

    /// `has_head`: whether the head is computed; without it the result is the activations.
    fn passes(
        &self,
        steps: &mut [Step<'_>],
        input: Input<'_>,
        has_head: bool,
        mut observer: Option<&mut dyn FnMut(Observed<'_>)>,
        cancel: &Cancel,
    ) -> Result<Output, Error> {
        let rows: usize = steps.iter().map(|step| step.rows).sum();
        self.check(steps, input, rows)?;
        for step in steps.iter_mut() {
            step.cache.reserve(step.rows)?;
        }
        let (config, first_layer) = (self.config(), self.part().layers.start);
        let (vocabulary, width) = (config.vocabulary, config.hidden_size);
        let mut output = Output { vocabulary, starts: vec![0], ..Output::default() };
        for step in steps.iter() {
            let count = match step.logits {
                Logits::All if has_head => step.rows,
                Logits::Last if has_head => 1,
                _ => 0,
            };
            output.starts.push(output.starts[output.starts.len() - 1] + count);
        }
        zeros(&mut output.logits, output.starts[steps.len()] * vocabulary)?;
        if !has_head {
            zeros(&mut output.activations, rows * width)?;
        }
        let mut trace = Vec::new();
        let (mut first, mut logits_done) = (0, 0);
        let pass_rows = pass_rows(config.experts);
        while first < rows {
            cancel.check()?;
            let end = rows.min(first + pass_rows);
            // The rows of sessions that lie in this pass, and those whose logits are requested.
            let (mut sessions, mut logit_rows, mut held) = (Vec::new(), Vec::new(), Vec::new());
            let mut at = 0;
            for (index, step) in steps.iter_mut().enumerate() {
                let (from, to) = (at.max(first), (at + step.rows).min(end));
                if from < to {
                    let range = from - first..to - first;
                    match step.logits {
                        Logits::All if has_head => logit_rows.extend(range.clone()),
                        Logits::Last if has_head && to == at + step.rows => logit_rows.push(range.end - 1),
                        _ => {}
                    }
                    sessions.push(PassSession { rows: range, cache: step.cache.begin_pass(to - from)? });
                    held.push((index, to - from));
                }
                at += step.rows;
            }
            let count = end - first;
            let logits_end = logits_done + logit_rows.len();
            if observer.is_some() {
                zeros(&mut trace, self.part().layers.len() * count * width)?;
            }
            let pass = Pass {
                input: match input {
                    Input::Tokens(tokens) => Input::Tokens(&tokens[first..end]),
                    Input::Activations(values) => Input::Activations(&values[first * width..end * width]),
                },
                sessions,
                rows: count,
                first_layer,
                has_head,
                logit_rows: &logit_rows,
                trace: observer.is_some().then_some(trace.as_mut_slice()),
                cancel,
                logits: &mut output.logits[logits_done * vocabulary..logits_end * vocabulary],
                activations: match has_head {
                    true => &mut [],
                    false => &mut output.activations[first * width..end * width],
                },
            };
            match &self.loaded {
                Loaded::Cpu(stage) => stage.run(config, &self.cache_shape(), pass)?,
                Loaded::Gpu(stage) => stage.run(config, pass)?,
                Loaded::Split(stage) => stage.run(config, &self.cache_shape(), self.part().layers.len(), pass)?,
            }
            for (index, rows) in held {
                steps[index].cache.advance(rows);
            }
            if let Some(observer) = &mut observer {
                for (layer, activations) in trace.chunks_exact((count * width).max(1)).enumerate() {
                    observer(Observed { layer: first_layer + layer, first_row: first, activations });
                }
            }
            (first, logits_done) = (end, logits_end);
        }
        Ok(output)
    }

    fn check(&self, steps: &[Step<'_>], input: Input<'_>, rows: usize) -> Result<(), Error> {
        let wrong = |what: String| Err(Error::Invalid { operation: "forward", what });
        if rows == 0 || steps.iter().any(|step| step.rows == 0) {
            return wrong("a step needs at least one token".to_owned());
        }
        if steps.iter().any(|step| !step.cache.budget().lies_in(self.store())) {
            return wrong("a session's cache lies in another device's memory".to_owned());
        }
        if steps.iter().any(|step| step.cache.shape() != self.cache_shape()) {
            return wrong("a session's cache belongs to another model or to other layers".to_owned());
        }
        let config = self.config();
        match input {
            Input::Tokens(_) if !self.part().embedding => {
                wrong(format!("layers from {} on take activations, not tokens", self.part().layers.start))
            }
            Input::Tokens(tokens) if tokens.len() != rows => {
                wrong(format!("{} tokens were given for {rows} rows", tokens.len()))
            }
            Input::Tokens(tokens) => match tokens.iter().find(|token| **token as usize >= config.vocabulary) {
                Some(token) => wrong(format!(
                    "token {token} is not in the vocabulary of {}: ids are 0 to {}",
                    config.vocabulary,
                    config.vocabulary - 1
                )),
                None => Ok(()),
            },
            Input::Activations(_) if self.part().embedding => {
                wrong("the first layers take tokens, not activations".to_owned())
            }
            Input::Activations(values) if values.len() != rows * config.hidden_size => {
                wrong(format!("{} activations were given for {rows} rows of {}", values.len(), config.hidden_size))
            }
            Input::Activations(_) => Ok(()),
        }
    }
}

/// Runs a pass; after an error the caches hold what they held before.
fn unchanged_on_error(
    steps: &mut [Step<'_>],
    pass: impl FnOnce(&mut [Step<'_>]) -> Result<Output, Error>,
) -> Result<Output, Error> {
    let before: Vec<_> = steps.iter().map(|step| step.cache.before()).collect();
    let result = pass(steps);
    if result.is_err() {
        for (step, before) in steps.iter_mut().zip(before) {
            step.cache.restore(before);
        }
    }
    result
}

/// `len` zeros.
pub(super) fn zeros(buffer: &mut Vec<f32>, len: usize) -> Result<(), Error> {
    buffer.clear();
    buffer.try_reserve_exact(len).map_err(|_| Error::OutOfMemory { bytes: len as u64 * 4, what: "logits" })?;
    buffer.resize(len, 0.0);
    Ok(())
}

/// Rows of a pass, at most: fewer where a row uses so many experts that their slots would exceed [`MAX_SLOTS`].
fn pass_rows(experts: Option<Experts>) -> usize {
    let per_row = experts.map_or(0, |experts| experts.used + experts.shared);
    PASS_ROWS.min(MAX_SLOTS / per_row.max(1)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_has_fewer_rows_where_their_slots_would_be_too_many() {
        let experts = |used| Experts {
            count: 1024,
            used,
            shared: 0,
            dense_layers: 0,
            dense_intermediate_size: 0,
            sigmoid: false,
            scale: 1.0,
        };
        let rows = |used: usize| pass_rows(Some(experts(used)));
        assert_eq!(pass_rows(None), PASS_ROWS);
        assert_eq!([1, 8, 16, 17, 64, 1024].map(rows), [256, 256, 256, 240, 64, 4]);
    }
}
