//! The phases of one batch, as each thread of the pool runs them: embedding, products, norms, activations, logits. The
//! phases on keys and values are in `attend`, those of a mixture of experts in `experts`.
#![allow(unsafe_code)]

use super::attend::{AttentionPlan, ClaimedAttention};
use super::delta::{Runs, SharedNets};
use super::experts::SharedExperts;
use super::fault::{Fault, FirstFault, Step};
use super::tiles::{PieceLimits, TakenTiles, split, tiles_of};
use super::workspace::{INPUTS, ProductInput, ThreadState};
use super::{
    AttentionWeights, DenseWeights, FeedForward, Head, LayerWeights, Mixer, ModelShape, RowSource, SequenceChunk,
};
use crate::kernel::float::activation::{all_finite, gated, soft_cap};
use crate::kernel::float::norm::rms_norm;
use crate::kernel::float::{environment, rope};
use crate::kernel::page::{KINDS, PageShape};
use crate::kernel::quant::{self, Matrix, Quantized, Store};
use crate::kernel::shared::Shared;
use crate::kernel::state::StateShape;
use crate::pool::Worker;
use crate::{Cancel, Error, Isa};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

/// One batch on its way through the layers, shared by all threads.
pub(super) struct Pass<'a> {
    pub(super) isa: Isa,
    /// Whether every thread keeps the residuals of all rows, not of its own alone.
    pub(super) replicated: bool,
    pub(super) shape: ModelShape,
    pub(super) page_shapes: [PageShape; KINDS],
    pub(super) state_shape: Option<StateShape>,
    pub(super) runs: &'a Runs,
    pub(super) layers: &'a [LayerWeights],
    pub(super) first_layer: usize,
    pub(super) head: Option<&'a Head>,
    pub(super) frequencies: [&'a [f64]; KINDS],
    pub(super) magnitudes: [f64; KINDS],
    pub(super) source: RowSource<'a>,
    pub(super) chunks: &'a [SequenceChunk],
    /// `[rows]`: the chunk of each row.
    pub(super) row_chunk: &'a [usize],
    pub(super) rows: usize,
    pub(super) logit_rows: &'a [usize],
    pub(super) attention: &'a AttentionPlan,
    /// `[layers]`
    pub(super) claimed: &'a [ClaimedAttention],
    /// `[layers]`
    pub(super) taken: &'a [LayerTiles],
    /// Tiles of the head.
    pub(super) taken_head: TakenTiles,
    pub(super) threads: Shared<'a, ThreadState>,
    pub(super) normed: Shared<'a, f32>,
    pub(super) quantized: &'a [Quantized; INPUTS],
    pub(super) q: Shared<'a, f32>,
    pub(super) k: Shared<'a, f32>,
    pub(super) v: Shared<'a, f32>,
    /// What threads share where attention is divided by positions: `[key-value heads]` of a head's memory.
    pub(super) split: Shared<'a, f32>,
    pub(super) attended: Shared<'a, f32>,
    pub(super) gate: Shared<'a, f32>,
    pub(super) up: Shared<'a, f32>,
    pub(super) delta: Shared<'a, f32>,
    pub(super) cos: Shared<'a, f32>,
    pub(super) sin: Shared<'a, f32>,
    pub(super) nets: SharedNets<'a>,
    pub(super) experts: SharedExperts<'a>,
    pub(super) trace: Option<Shared<'a, f32>>,
    pub(super) logits: Shared<'a, f32>,
    pub(super) activations: Shared<'a, f32>,
    pub(super) cancel: &'a Cancel,
    /// Whether a thread has seen that the pass is cancelled, and left work out.
    pub(super) is_stopped: AtomicBool,
    /// Whether all threads leave the pass after this layer.
    pub(super) leaves: AtomicBool,
    pub(super) first_fault: FirstFault,
    pub(super) other_rounding: AtomicBool,
}

/// Tiles of each step of a layer that threads have taken.
#[derive(Default)]
pub(super) struct LayerTiles {
    pub(super) qkv: TakenTiles,
    pub(super) o: TakenTiles,
    gate_up: TakenTiles,
    down: TakenTiles,
}

/// A product's input: rows quantised, and the floats that they were made from.
#[derive(Clone, Copy)]
pub(super) struct PreparedInput<'a> {
    pub(super) quantized: &'a Quantized,
    pub(super) floats: *const f32,
}

impl Pass<'_> {
    /// One thread's share of the whole pass.
    ///
    /// # Safety
    /// All threads of a pool run this at the same time. Between two barriers every part of shared memory has one writer or
    /// only readers: rows belong to the thread that [`Worker::share`] gives them to, columns of products to the thread that
    /// takes their tiles, attention tasks to the thread that claims them.
    pub(super) unsafe fn run(&self, worker: Worker<'_>) {
        // SAFETY: as stated above; each use says which thread owns the part.
        unsafe {
            if !environment::is_standard() {
                self.other_rounding.store(true, Ordering::Relaxed);
            }
            let state = &mut self.threads.part_mut(worker.index..worker.index + 1)[0];
            // The rows whose residuals this thread keeps.
            let own_rows = if self.replicated { 0..self.rows } else { worker.share(self.rows) };
            self.embed(state, own_rows.clone());
            self.angles(worker.share(self.rows));
            for (index, layer) in self.layers.iter().enumerate() {
                self.layer(worker, state, own_rows.clone(), index, layer);
                // Written before the layer's last barrier, and not again before the next layer's.
                if self.leaves.load(Ordering::Relaxed) {
                    return;
                }
            }
            self.finish(worker, state, own_rows);
        }
    }

    /// The error of a finished pass, if there is one.
    pub(super) fn into_result(self) -> Result<(), Error> {
        let wrong = |what: &str| Err(Error::Invalid { operation: "forward", what: what.to_owned() });
        if self.other_rounding.into_inner() {
            return wrong(
                "a compute thread does not round to nearest or drops subnormal numbers: a library in this process changed its floating-point mode",
            );
        }
        if self.is_stopped.into_inner() {
            return Err(Error::Cancelled);
        }
        self.first_fault.into_result(self.first_layer)
    }

    /// Whether the pass is cancelled: looked at before each piece of work, which is then left out. Its results are of no use,
    /// but every barrier is still waited for.
    pub(super) fn is_stopped(&self) -> bool {
        if self.is_stopped.load(Ordering::Relaxed) {
            return true;
        }
        let is_cancelled = self.cancel.is_cancelled();
        if is_cancelled {
            self.is_stopped.store(true, Ordering::Relaxed);
        }
        is_cancelled
    }

    /// Makes the pass fail if a result of this step was not finite. `layer` is counted from the batch's first.
    #[inline(always)]
    pub(super) fn check(&self, finite: bool, layer: usize, step: Step) {
        if !finite {
            self.first_fault.report(layer, step, Fault::NotFinite);
        }
    }

    /// The residuals of this thread's rows.
    unsafe fn embed(&self, state: &mut ThreadState, own_rows: Range<usize>) {
        let hidden = self.shape.hidden_size;
        for row in own_rows {
            let x = &mut state.x[row * hidden..(row + 1) * hidden];
            match self.source {
                RowSource::Tokens(tokens, embedding) => {
                    embedding.unpack_row(tokens[row] as usize, x);
                    if self.shape.embedding_scale != 1.0 {
                        x.iter_mut().for_each(|x| *x *= self.shape.embedding_scale);
                    }
                }
                RowSource::Activations(rows) => x.copy_from_slice(&rows[row * hidden..(row + 1) * hidden]),
            }
            let step = match self.source {
                RowSource::Tokens(..) => Step::Embeddings,
                RowSource::Activations(_) => Step::ReceivedActivations,
            };
            self.check(all_finite(x), 0, step);
        }
    }

    /// Cosines and sines for these rows' positions, without and with a sliding window.
    unsafe fn angles(&self, rows: Range<usize>) {
        let pairs = self.shape.rope_dim / 2;
        for row in rows {
            let position = self.position(row);
            for kind in 0..KINDS {
                let at = (kind * self.rows + row) * pairs;
                // SAFETY: this thread's rows; read after a barrier.
                let (cos, sin) = unsafe { (self.cos.part_mut(at..at + pairs), self.sin.part_mut(at..at + pairs)) };
                rope::angles(position, self.frequencies[kind], self.magnitudes[kind], cos, sin);
            }
        }
    }

    /// The position of a row in its session.
    pub(super) fn position(&self, row: usize) -> usize {
        let chunk = &self.chunks[self.row_chunk[row]];
        chunk.position + row - chunk.rows.start
    }

    /// One layer: attention or a delta net, then the feed-forward block.
    unsafe fn layer(
        &self,
        worker: Worker<'_>,
        state: &mut ThreadState,
        own_rows: Range<usize>,
        index: usize,
        layer: &LayerWeights,
    ) {
        let hidden = self.shape.hidden_size;
        let taken = &self.taken[index];
        // SAFETY: as `run` says; each product writes the columns of taken tiles alone.
        unsafe {
            let norm = &layer.attention_norm;
            let bias = match &layer.mixer {
                Mixer::Attention(weights) => {
                    self.attention(worker, state, own_rows.clone(), index, norm, weights);
                    weights.o_bias.as_deref()
                }
                Mixer::Delta(weights) => {
                    self.delta_net(worker, state, own_rows.clone(), index, norm, weights);
                    None
                }
            };
            worker.barrier();
            let norm = layer.post_attention_norm.as_deref();
            self.add(state, own_rows.clone(), bias, norm, (index, Step::AttentionOutput));

            let (norm, step) = (&layer.ffn_norm, (index, Step::FfnNorm));
            let x = self.normed_rows(worker, state, in_place(&own_rows), norm, ProductInput::Norm, step);
            match &layer.feed_forward {
                FeedForward::Dense(weights) => {
                    self.dense_gate_and_up(worker, taken, x, weights);
                    worker.barrier();
                    self.dense_down(worker, state, own_rows.clone(), index, &weights.down);
                }
                FeedForward::Experts(weights) => self.experts(worker, index, x, weights),
            }
            // One thread decides for all whether another layer follows.
            if worker.index == 0 && self.is_stopped() {
                self.leaves.store(true, Ordering::Relaxed);
            }
            worker.barrier();
            self.add(state, own_rows.clone(), None, layer.post_ffn_norm.as_deref(), (index, Step::FfnOutput));
            if let Some(trace) = &self.trace {
                // Replicated residuals are the same on every thread; one thread writes them.
                if !self.replicated || worker.index == 0 {
                    let from = (index * self.rows + own_rows.start) * hidden;
                    trace
                        .part_mut(from..from + own_rows.len() * hidden)
                        .copy_from_slice(&state.x[own_rows.start * hidden..own_rows.end * hidden]);
                }
            }
        }
    }

    /// Attention of all rows, which begins with a norm; its results become the addends of the residuals. A barrier follows before
    /// they are read.
    unsafe fn attention(
        &self,
        worker: Worker<'_>,
        state: &mut ThreadState,
        own_rows: Range<usize>,
        index: usize,
        norm: &[f32],
        layer: &AttentionWeights,
    ) {
        let (hidden, query) = (self.shape.hidden_size, self.shape.query_len());
        let taken = &self.taken[index];
        // SAFETY: as `run` says; each product writes the columns of taken tiles alone.
        unsafe {
            let step = (index, Step::AttentionNorm);
            let x = self.normed_rows(worker, state, in_place(&own_rows), norm, ProductInput::Norm, step);
            let matrices = [&layer.q, &layer.k, &layer.v];
            while let Some(piece) = self.take(worker, &taken.qkv, tiles_of(matrices), x, hidden) {
                let outs = [&self.q, &self.k, &self.v];
                for ((w, out), tiles) in matrices.into_iter().zip(outs).zip(split(&piece, matrices)) {
                    self.product(w, tiles, x, out, w.rows());
                }
            }
            worker.barrier();
            self.rope_and_cache(worker, index, layer);
            worker.barrier();
            self.attend(worker, state, index, layer);
            worker.barrier();
            if self.shape.gates_attention {
                self.gate_attention(worker, index);
                worker.barrier();
            }
            let (attended, step) = (&self.attended, (index, Step::Attention));
            let x = self.plain_rows(worker, state, own_rows, attended, query, ProductInput::Attended, step);
            while let Some(piece) = self.take(worker, &taken.o, layer.o.tiles(), x, query) {
                self.product(&layer.o, piece, x, &self.delta, hidden);
            }
        }
    }

    /// Gate and up of a dense block, and their combination.
    unsafe fn dense_gate_and_up(
        &self,
        worker: Worker<'_>,
        taken: &LayerTiles,
        x: PreparedInput<'_>,
        weights: &DenseWeights,
    ) {
        let ModelShape { hidden_size: hidden, intermediate_size: intermediate, .. } = self.shape;
        // SAFETY: as `run` says; each product writes the columns of taken tiles alone.
        unsafe {
            // Gate and up have the same rows, so one thread computes both values of a column and combines them.
            while let Some(piece) = self.take(worker, &taken.gate_up, weights.gate.tiles(), x, 2 * hidden) {
                let columns = quant::rows_of(&piece, intermediate);
                self.product(&weights.gate, piece.clone(), x, &self.gate, intermediate);
                self.product(&weights.up, piece, x, &self.up, intermediate);
                for row in 0..self.rows {
                    let part = row * intermediate + columns.start..row * intermediate + columns.end;
                    gated(self.isa, self.shape.activation, self.gate.part_mut(part.clone()), self.up.part(part));
                }
            }
        }
    }

    /// Down of a dense block of the batch's layer `index`.
    unsafe fn dense_down(
        &self,
        worker: Worker<'_>,
        state: &ThreadState,
        own_rows: Range<usize>,
        index: usize,
        down: &Matrix,
    ) {
        let ModelShape { hidden_size: hidden, intermediate_size: intermediate, .. } = self.shape;
        // SAFETY: as `run` says; each product writes the columns of taken tiles alone.
        unsafe {
            let (gated, step) = (&self.gate, (index, Step::Gated));
            let x = self.plain_rows(worker, state, own_rows, gated, intermediate, ProductInput::Gated, step);
            while let Some(piece) = self.take(worker, &self.taken[index].down, down.tiles(), x, intermediate) {
                self.product(down, piece, x, &self.delta, hidden);
            }
        }
    }

    /// Adds the results of a layer's step, with bias and norm, to this thread's residuals.
    unsafe fn add(
        &self,
        state: &mut ThreadState,
        own_rows: Range<usize>,
        bias: Option<&[f32]>,
        norm: Option<&[f32]>,
        (layer, step): (usize, Step),
    ) {
        let hidden = self.shape.hidden_size;
        let mut copy = Vec::new();
        for row in own_rows {
            // SAFETY: the products that wrote these rows are done; the next product begins after a barrier.
            let mut delta = unsafe { self.delta.part(row * hidden..(row + 1) * hidden) };
            let x = &mut state.x[row * hidden..(row + 1) * hidden];
            if bias.is_some() || norm.is_some() {
                copy.clear();
                copy.extend_from_slice(delta);
                if let Some(bias) = bias {
                    copy.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
                }
                if let Some(norm) = norm {
                    let row = copy.clone();
                    self.check(rms_norm(self.isa, &row, norm, self.shape.epsilon, &mut copy), layer, step);
                }
                delta = &copy;
            }
            x.iter_mut().zip(delta).for_each(|(x, delta)| *x += delta);
            self.check(all_finite(x), layer, step);
        }
    }

    /// Normalises and quantises residuals as the input of the next products. `places`: (place in the input, row). `step`
    /// names the norm and its layer.
    pub(super) unsafe fn normed_rows<'s>(
        &'s self,
        worker: Worker<'_>,
        state: &'s mut ThreadState,
        places: impl Iterator<Item = (usize, usize)>,
        norm: &[f32],
        input: ProductInput,
        (layer, step): (usize, Step),
    ) -> PreparedInput<'s> {
        let hidden = self.shape.hidden_size;
        let quantized =
            if self.replicated { &state.quantized[input as usize] } else { &self.quantized[input as usize] };
        // SAFETY: this thread's rows go to its own buffers, or to places of shared ones that belong to these rows.
        unsafe {
            for (place, row) in places {
                let to = place * hidden..(place + 1) * hidden;
                let normed = if self.replicated { &mut state.input[to] } else { self.normed.part_mut(to) };
                let x = &state.x[row * hidden..(row + 1) * hidden];
                self.check(rms_norm(self.isa, x, norm, self.shape.epsilon, normed), layer, step);
                self.check(quantized.quantize_row(self.isa, normed, place), layer, step);
            }
        }
        if self.replicated {
            return PreparedInput { quantized, floats: state.input.as_ptr() };
        }
        worker.barrier();
        PreparedInput { quantized, floats: self.normed.start() }
    }

    /// Quantises rows that a layer's step computed, as the input of the next products.
    // The rows, their place and their step are apart in the callers.
    #[allow(clippy::too_many_arguments)]
    pub(super) unsafe fn plain_rows<'s>(
        &'s self,
        worker: Worker<'_>,
        state: &'s ThreadState,
        own_rows: Range<usize>,
        from: &Shared<'_, f32>,
        len: usize,
        input: ProductInput,
        (layer, step): (usize, Step),
    ) -> PreparedInput<'s> {
        // SAFETY: `from` is only read between the barriers around this; the rows are this thread's.
        unsafe {
            let quantized =
                if self.replicated { &state.quantized[input as usize] } else { &self.quantized[input as usize] };
            for row in own_rows {
                let finite = quantized.quantize_row(self.isa, from.part(row * len..(row + 1) * len), row);
                self.check(finite, layer, step);
            }
            if !self.replicated {
                worker.barrier();
            }
            PreparedInput { quantized, floats: from.start() }
        }
    }

    /// The next of a step's `total` tiles, whose products are with rows of `k` elements; `None` once all are taken, or where
    /// the pass is cancelled.
    pub(super) fn take(
        &self,
        worker: Worker<'_>,
        taken: &TakenTiles,
        total: usize,
        x: PreparedInput<'_>,
        k: usize,
    ) -> Option<Range<usize>> {
        if self.is_stopped() {
            return None;
        }
        taken.take(total, worker.width, PieceLimits::new(self.isa, x.quantized.rows(), k))
    }

    /// Computes some tiles of a product for all rows of its input.
    pub(super) unsafe fn product(
        &self,
        w: &Matrix,
        tiles: Range<usize>,
        x: PreparedInput<'_>,
        out: &Shared<'_, f32>,
        ld: usize,
    ) {
        // SAFETY: passed on from the caller.
        unsafe { self.product_to(w, tiles, x, out.start(), ld) }
    }

    /// [`Pass::product`] with its results at `out`.
    pub(super) unsafe fn product_to(
        &self,
        w: &Matrix,
        tiles: Range<usize>,
        x: PreparedInput<'_>,
        out: *mut f32,
        ld: usize,
    ) {
        let rows = x.quantized.rows();
        // SAFETY: the input is complete and only read; the tiles' columns of `out` are this thread's.
        unsafe {
            let input = if w.takes_floats() {
                quant::Input::Floats(std::slice::from_raw_parts(x.floats, rows * w.k()))
            } else {
                quant::Input::Quantized(x.quantized)
            };
            quant::product(self.isa, w, tiles, input, 0..rows, out, ld, Store::Set);
        }
    }

    /// Logits of the requested rows, or, without a head, the activations of all rows.
    unsafe fn finish(&self, worker: Worker<'_>, state: &mut ThreadState, own_rows: Range<usize>) {
        let ModelShape { hidden_size: hidden, vocabulary, .. } = self.shape;
        let after = self.layers.len();
        // SAFETY: as `run` says.
        unsafe {
            let Some(head) = self.head else {
                if !self.replicated || worker.index == 0 {
                    self.activations
                        .part_mut(own_rows.start * hidden..own_rows.end * hidden)
                        .copy_from_slice(&state.x[own_rows.start * hidden..own_rows.end * hidden]);
                }
                return;
            };
            let places = self.logit_rows.iter().copied().enumerate().filter(|(_, row)| own_rows.contains(row));
            let step = (after, Step::OutputNorm);
            let x = self.normed_rows(worker, state, places, &head.norm, ProductInput::Head, step);
            if self.logit_rows.is_empty() {
                return;
            }
            while let Some(piece) = self.take(worker, &self.taken_head, head.output.tiles(), x, hidden) {
                let columns = quant::rows_of(&piece, vocabulary);
                self.product(&head.output, piece, x, &self.logits, vocabulary);
                for n in 0..self.logit_rows.len() {
                    let logits = self.logits.part_mut(n * vocabulary + columns.start..n * vocabulary + columns.end);
                    self.check(all_finite(logits), after, Step::Logits);
                    if let Some(cap) = self.shape.logit_soft_cap {
                        soft_cap(self.isa, logits, cap);
                    }
                }
            }
        }
    }
}

/// Each row in its own place.
pub(super) fn in_place(rows: &Range<usize>) -> impl Iterator<Item = (usize, usize)> + use<> {
    rows.clone().map(|row| (row, row))
}
