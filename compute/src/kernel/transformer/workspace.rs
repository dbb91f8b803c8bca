//! The buffers of forward passes, kept from one pass to the next. They only grow; their content is the pass's.

use super::delta::NetWorkspace;
use super::experts::ExpertWorkspace;
use super::{Batch, FeedForward};
use crate::Error;
use crate::kernel::quant::Quantized;
use crate::kernel::state::DeltaShape;

/// The inputs of products, by the place of their quantised rows in a `[Quantized; INPUTS]`.
#[derive(Clone, Copy)]
pub(super) enum ProductInput {
    Norm = 0,
    Attended = 1,
    Gated = 2,
    Head = 3,
    Delta = 4,
}

/// The number of [`ProductInput`]s.
pub(super) const INPUTS: usize = 5;

/// The buffers of one thread.
#[derive(Default)]
pub(super) struct ThreadState {
    /// `[rows, h]`: residuals.
    pub(super) x: Vec<f32>,
    /// `[rows, longest input]`: a product's input, where the thread prepares all rows.
    pub(super) input: Vec<f32>,
    pub(super) quantized: [Quantized; INPUTS],
    /// Scratch of attention.
    pub(super) scores: Vec<f32>,
}

/// Buffers of a forward pass.
#[derive(Default)]
pub(crate) struct Workspace {
    pub(super) threads: Vec<ThreadState>,
    /// `[rows, h]`: normalised rows, where threads share them.
    pub(super) normed: Vec<f32>,
    pub(super) quantized: [Quantized; INPUTS],
    /// `[rows, q]`; with gates `[rows, 2q]`
    pub(super) q: Vec<f32>,
    /// `[rows, kv]`
    pub(super) k: Vec<f32>,
    /// `[rows, kv]`
    pub(super) v: Vec<f32>,
    /// What threads share where attention is divided by positions.
    pub(super) split: Vec<f32>,
    /// `[rows, q]`
    pub(super) attended: Vec<f32>,
    /// `[rows, f]`
    pub(super) gate: Vec<f32>,
    /// `[rows, f]`
    pub(super) up: Vec<f32>,
    /// `[rows, h]`: the addend of the residual.
    pub(super) delta: Vec<f32>,
    /// `[2, rows, rotated / 2]`
    pub(super) cos: Vec<f32>,
    /// `[2, rows, rotated / 2]`
    pub(super) sin: Vec<f32>,
    pub(super) nets: NetWorkspace,
    pub(super) experts: ExpertWorkspace,
}

impl Workspace {
    /// Makes room for a batch whose attention needs `scores` floats of scratch memory for each thread and `split` floats for all
    /// of them, and whose delta nets take `run_rows` rows, those before the batch's included. With `replicated` every thread prepares
    /// the inputs of all rows.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub(super) fn reserve(
        &mut self,
        batch: &Batch<'_>,
        threads: usize,
        replicated: bool,
        (scores, split): (usize, usize),
        run_rows: usize,
    ) -> Result<(), Error> {
        let (shape, rows) = (batch.shape, batch.rows);
        let (hidden, intermediate) = (shape.hidden_size, shape.intermediate_size);
        let (query, kv) = (shape.query_len(), shape.kv_len());
        let value = shape.delta.map_or(0, DeltaShape::value_len);
        // Rows and length of each product's input, in the order of `ProductInput`.
        let logit_rows = batch.logit_rows.len();
        let inputs = [(rows, hidden), (rows, query), (rows, intermediate), (logit_rows, hidden), (rows, value)];
        self.threads.resize_with(threads, ThreadState::default);
        for state in &mut self.threads {
            grow(&mut state.x, rows * hidden)?;
            grow(&mut state.scores, scores)?;
            if replicated {
                grow(&mut state.input, rows * hidden.max(query).max(intermediate))?;
                reshape(&mut state.quantized, inputs)?;
            }
        }
        if !replicated {
            grow(&mut self.normed, rows * hidden)?;
            reshape(&mut self.quantized, inputs)?;
        }
        for (buffer, len) in [
            (&mut self.q, rows * shape.query_stride().1),
            (&mut self.k, rows * kv),
            (&mut self.v, rows * kv),
            (&mut self.split, split),
            (&mut self.attended, rows * query),
            (&mut self.gate, rows * intermediate),
            (&mut self.up, rows * intermediate),
            (&mut self.delta, rows * hidden),
            (&mut self.cos, rows * shape.rope_dim),
            (&mut self.sin, rows * shape.rope_dim),
        ] {
            grow(buffer, len)?;
        }
        if let Some(delta) = shape.delta {
            self.nets.reserve(delta, rows, run_rows)?;
        }
        for layer in batch.layers {
            if let FeedForward::Experts(experts) = &layer.feed_forward {
                self.experts.reserve(experts, rows, threads)?;
            }
        }
        Ok(())
    }
}

fn reshape(quantized: &mut [Quantized; INPUTS], inputs: [(usize, usize); INPUTS]) -> Result<(), Error> {
    quantized.iter_mut().zip(inputs).try_for_each(|(quantized, (rows, k))| quantized.reshape(rows, k))
}

/// Makes the buffer at least `len` elements long.
pub(super) fn grow<T: Clone + Default>(buffer: &mut Vec<T>, len: usize) -> Result<(), Error> {
    if buffer.len() < len {
        buffer
            .try_reserve_exact(len - buffer.len())
            .map_err(|_| Error::OutOfMemory { bytes: (len * size_of::<T>()) as u64, what: "activations" })?;
        buffer.resize(len, T::default());
    }
    Ok(())
}
