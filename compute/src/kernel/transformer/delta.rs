//! The phases of a layer that is a gated delta net: the projections, the convolution and the gates, the recurrence with its norm
//! and gate, and what the session keeps of them. The arithmetic is in `kernel::float::delta`.
//!
//! A run is the positions of a chunk, and those before it whose inputs the session kept since its state: where it went back
//! behind its latest state, the recurrence goes over them again, which gives the same state.
#![allow(unsafe_code)]

use super::SequenceChunk;
use super::fault::Step;
use super::pass::{Pass, in_place};
use super::tiles::{split, tiles_of};
use super::workspace::{ProductInput, ThreadState, grow};
use crate::Error;
use crate::kernel::float::activation::{Activation, all_finite, gated, sigmoid};
use crate::kernel::float::delta::{Recurrence, convolve, decay, unit};
use crate::kernel::float::norm::rms_norm_head;
use crate::kernel::quant::Matrix;
use crate::kernel::shared::Shared;
use crate::kernel::state::{DeltaShape, MAX_KERNEL, StateShape};
use crate::pool::Worker;
use std::ops::Range;

/// A gated delta net, of one layer. Lengths are those of its [`DeltaShape`]; hidden size h.
pub(crate) struct DeltaWeights {
    /// Together `[projected, h]`, in the order of a projected row.
    pub(crate) inputs: Vec<Matrix>,
    /// `[kernel, channels]`, the oldest position first.
    pub(crate) convolution: Vec<f32>,
    /// `[value heads]`: added to alpha.
    pub(crate) dt: Vec<f32>,
    /// `[value heads]`: the rate of decay, at most 0.
    pub(crate) a: Vec<f32>,
    /// `[value_dim]`, on each value head's result.
    pub(crate) norm: Vec<f32>,
    /// `[h, value]`
    pub(crate) output: Matrix,
    /// The layer's place among the states of its part.
    pub(crate) state_layer: usize,
}

/// What a chunk's session has of its positions so far, and where what it has after the chunk goes. All pointers are to memory
/// of the part's [`StateShape`].
pub(crate) struct ChunkState {
    /// The state before position `base`; null before the first position.
    pub(crate) from: *const f32,
    /// At most the chunk's first position.
    pub(crate) base: usize,
    /// The inputs of the positions from `base` to the chunk's first.
    pub(crate) inputs: *const f32,
    /// Where the state after the chunk goes.
    pub(crate) to: *mut f32,
    /// Where the states before some of the run's positions go, if they are kept.
    pub(crate) kept: [Option<(usize, *mut f32)>; 2],
    /// The first position whose inputs are kept, at least `base`.
    pub(crate) inputs_from: usize,
    /// Where the inputs go of the positions from `inputs_from` to the chunk's end.
    pub(crate) inputs_to: *mut f32,
}

/// The runs of all chunks, one after the other.
pub(super) struct Runs {
    /// `[chunks]`: the first row of each run.
    starts: Vec<usize>,
    /// `[rows]`: the chunk of each.
    chunks: Vec<usize>,
    /// The number of rows of all runs.
    pub(super) rows: usize,
}

pub(super) fn runs_of(chunks: &[SequenceChunk]) -> Runs {
    let mut runs = Runs { starts: Vec::with_capacity(chunks.len()), chunks: Vec::new(), rows: 0 };
    for (index, chunk) in chunks.iter().enumerate() {
        runs.starts.push(runs.rows);
        runs.rows += chunk.state.as_ref().map_or(0, |state| chunk.position - state.base + chunk.rows.len());
        runs.chunks.resize(runs.rows, index);
    }
    runs
}

/// Buffers of layers that are gated delta nets; empty for other models.
#[derive(Default)]
pub(super) struct NetWorkspace {
    /// `[rows, projected]`
    projected: Vec<f32>,
    /// `[run rows, channels]`: queries, keys, values.
    convolved: Vec<f32>,
    /// `[run rows, value heads, 2]`: decay and beta.
    gates: Vec<f32>,
    /// `[rows, value]`
    results: Vec<f32>,
}

impl NetWorkspace {
    /// Makes room for `rows` rows whose runs have `run_rows`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub(super) fn reserve(&mut self, shape: DeltaShape, rows: usize, run_rows: usize) -> Result<(), Error> {
        grow(&mut self.projected, rows * shape.projected_len())?;
        grow(&mut self.convolved, run_rows * shape.channels())?;
        grow(&mut self.gates, run_rows * shape.value_heads * 2)?;
        grow(&mut self.results, rows * shape.value_len())
    }

    /// Lends the buffers to the threads of a pass.
    pub(super) fn share(&mut self) -> SharedNets<'_> {
        SharedNets {
            projected: Shared::new(&mut self.projected),
            convolved: Shared::new(&mut self.convolved),
            gates: Shared::new(&mut self.gates),
            results: Shared::new(&mut self.results),
        }
    }
}

/// A [`NetWorkspace`] that all threads of a pass use.
pub(super) struct SharedNets<'a> {
    projected: Shared<'a, f32>,
    convolved: Shared<'a, f32>,
    gates: Shared<'a, f32>,
    results: Shared<'a, f32>,
}

/// What the phases of one layer have in common.
#[derive(Clone, Copy)]
struct Net<'a> {
    /// Of the batch's layers.
    index: usize,
    layer: &'a DeltaWeights,
    states: StateShape,
    shape: DeltaShape,
}

impl Pass<'_> {
    /// A gated delta net over all rows, which begins with a norm; its results become the addends of the residuals. A barrier
    /// follows before they are read.
    ///
    /// # Safety
    /// As for [`Pass::run`].
    pub(super) unsafe fn delta_net(
        &self,
        worker: Worker<'_>,
        state: &mut ThreadState,
        own_rows: Range<usize>,
        index: usize,
        norm: &[f32],
        layer: &DeltaWeights,
    ) {
        // A part with such layers has states for them.
        let Some(states) = self.state_shape else { return };
        let (hidden, shape) = (self.shape.hidden_size, states.shape);
        let net = Net { index, layer, states, shape };
        let taken = &self.taken[index];
        // SAFETY: as `run` says; each product writes the columns of taken tiles alone, each other phase this thread's share.
        unsafe {
            let step = (index, Step::AttentionNorm);
            let x = self.normed_rows(worker, state, in_place(&own_rows), norm, ProductInput::Norm, step);
            while let Some(piece) = self.take(worker, &taken.qkv, tiles_of(&layer.inputs), x, hidden) {
                let mut column = 0;
                for (w, tiles) in layer.inputs.iter().zip(split(&piece, &layer.inputs)) {
                    let out = self.nets.projected.start().add(column);
                    self.product_to(w, tiles, x, out, shape.projected_len());
                    column += w.rows();
                }
            }
            worker.barrier();
            self.convolve_runs(worker, net);
            worker.barrier();
            self.recur(net);
            self.keep_inputs(worker, net);
            worker.barrier();
            let (results, step) = (&self.nets.results, (index, Step::Attention));
            let x = self.plain_rows(worker, state, own_rows, results, shape.value_len(), ProductInput::Delta, step);
            while let Some(piece) = self.take(worker, &taken.o, layer.output.tiles(), x, shape.value_len()) {
                self.product(&layer.output, piece, x, &self.delta, hidden);
            }
        }
    }

    /// The input row of a position of a chunk's run, or before it as far as the convolution sees; null before the first position.
    ///
    /// # Safety
    /// As for [`Pass::run`]; the projections are complete.
    unsafe fn input_row(&self, net: Net<'_>, chunk: &SequenceChunk, state: &ChunkState, position: isize) -> *const f32 {
        let Ok(position) = usize::try_from(position) else { return std::ptr::null() };
        // SAFETY: each kind of rows has those positions.
        unsafe {
            if position >= chunk.position {
                let row = chunk.rows.start + position - chunk.position;
                self.nets.projected.start().add(row * net.shape.projected_len())
            } else if position >= state.base {
                state.inputs.add(net.states.input_offset(net.layer.state_layer, position - state.base))
            } else {
                let history = state.from.add(net.states.history_offset(net.layer.state_layer));
                history.add((net.shape.kernel - 1 + position - state.base) * net.shape.channels())
            }
        }
    }

    /// Queries, keys, values and gates of this thread's share of all runs.
    unsafe fn convolve_runs(&self, worker: Worker<'_>, net: Net<'_>) {
        let DeltaShape { key_heads, value_heads, .. } = net.shape;
        // Queries, keys, values, and all gates at once.
        let per_row = 2 * key_heads + value_heads + 1;
        let step = (net.index, Step::DeltaInputs);
        for item in worker.share(self.runs.rows * per_row) {
            let (row, part) = (item / per_row, item % per_row);
            let index = self.runs.chunks[row];
            let chunk = &self.chunks[index];
            let Some(state) = &chunk.state else { continue };
            let position = state.base + row - self.runs.starts[index];
            // SAFETY: the projections are complete; the head of the row, or its gates, are this thread's.
            unsafe {
                if part + 1 == per_row {
                    self.gates_of(net, row, self.input_row(net, chunk, state, position as isize));
                } else if part >= key_heads || position >= chunk.position {
                    self.convolve_head(net, chunk, state, row, position, part, step);
                }
            }
        }
    }

    /// One head of a run's row, counted through queries, keys and values.
    // What names the head is apart in the caller.
    #[allow(clippy::too_many_arguments)]
    unsafe fn convolve_head(
        &self,
        net: Net<'_>,
        chunk: &SequenceChunk,
        state: &ChunkState,
        row: usize,
        position: usize,
        head: usize,
        (index, step): (usize, Step),
    ) {
        let DeltaShape { key_heads, key_dim, value_dim, kernel, .. } = net.shape;
        let channels = net.shape.channels();
        let (channel, dim) = match head.checked_sub(2 * key_heads) {
            None => (head * key_dim, key_dim),
            Some(value_head) => (2 * net.shape.key_len() + value_head * value_dim, value_dim),
        };
        let mut inputs = [std::ptr::null(); MAX_KERNEL];
        // SAFETY: rows of inputs have all channels; the head of the row is this thread's.
        unsafe {
            for (tap, input) in inputs[..kernel].iter_mut().enumerate() {
                let row = self.input_row(net, chunk, state, position as isize + tap as isize + 1 - kernel as isize);
                *input = if row.is_null() { row } else { row.add(channel) };
            }
            let out = self.nets.convolved.part_mut(row * channels + channel..row * channels + channel + dim);
            let weights = net.layer.convolution[channel..].as_ptr();
            convolve(self.isa, &inputs[..kernel], weights, channels, out);
            self.check(all_finite(out), index, step);
            if head < 2 * key_heads {
                let factor = if head < key_heads { 1.0 / (key_dim as f32).sqrt() } else { 1.0 };
                self.check(unit(self.isa, out, factor), index, step);
            }
        }
    }

    /// Decay and beta of every value head of a run's row.
    unsafe fn gates_of(&self, net: Net<'_>, row: usize, input: *const f32) {
        let (heads, channels) = (net.shape.value_heads, net.shape.channels());
        // SAFETY: an input row ends with two numbers of each value head; the row's gates are this thread's.
        unsafe {
            let raw = std::slice::from_raw_parts(input.add(channels), 2 * heads);
            let mut finite = all_finite(raw);
            let gates = self.nets.gates.part_mut(row * 2 * heads..(row + 1) * 2 * heads);
            for (head, gates) in gates.chunks_exact_mut(2).enumerate() {
                let [beta, alpha] = net.shape.beta_and_alpha(head).map(|at| *input.add(at));
                let step = alpha + net.layer.dt[head];
                finite &= step.is_finite();
                gates[0] = decay(step, net.layer.a[head]);
                gates[1] = sigmoid(beta);
            }
            // Of infinities numbers were made.
            self.check(finite, net.index, Step::DeltaInputs);
        }
    }

    /// The recurrence of value heads until all are claimed, or the pass is cancelled, with their norm and gate.
    unsafe fn recur(&self, net: Net<'_>) {
        let DeltaShape { value_heads, key_dim, value_dim, .. } = net.shape;
        let (channels, value_len, layer) = (net.shape.channels(), net.shape.value_len(), net.layer.state_layer);
        while let Some(n) = self.claim(net.index, 0, self.chunks.len() * value_heads) {
            let (index, head) = (n / value_heads, n % value_heads);
            let chunk = &self.chunks[index];
            let Some(state) = &chunk.state else { continue };
            let unseen = chunk.position - state.base;
            let (start, key) = (self.runs.starts[index], net.shape.key_head(head) * key_dim);
            let at = net.states.head_offset(layer, head);
            // SAFETY: runs are complete since the last barrier; the head's state and results are this thread's.
            unsafe {
                let row = self.nets.convolved.start().add(start * channels);
                let recurrence = Recurrence {
                    key_dim,
                    value_dim,
                    positions: unseen + chunk.rows.len(),
                    unseen,
                    query: row.add(key),
                    key: row.add(net.shape.key_len() + key),
                    value: row.add(2 * net.shape.key_len() + head * value_dim),
                    ld: channels,
                    gates: self.nets.gates.start().add((start * value_heads + head) * 2),
                    gates_ld: 2 * value_heads,
                    from: if state.from.is_null() { state.from } else { state.from.add(at) },
                    to: state.to.add(at),
                    kept: state.kept.map(|kept| kept.map(|(position, to)| (position - state.base, to.add(at)))),
                    out: self.nets.results.start().add(chunk.rows.start * value_len + head * value_dim),
                    out_ld: value_len,
                };
                recurrence.run(self.isa);
                for row in chunk.rows.clone() {
                    let from = row * value_len + head * value_dim;
                    let result = self.nets.results.part_mut(from..from + value_dim);
                    let finite = rms_norm_head(self.isa, result, &net.layer.norm, self.shape.epsilon);
                    self.check(finite, net.index, Step::Attention);
                    let from = row * net.shape.projected_len() + net.shape.input_len() + head * value_dim;
                    let gate = self.nets.projected.part_mut(from..from + value_dim);
                    gated(self.isa, Activation::Silu, gate, result);
                    result.copy_from_slice(gate);
                }
            }
        }
    }

    /// Copies this thread's share of what sessions keep of their inputs.
    unsafe fn keep_inputs(&self, worker: Worker<'_>, net: Net<'_>) {
        let (channels, layer, taps) = (net.shape.channels(), net.layer.state_layer, net.shape.kernel - 1);
        let history = net.states.history_offset(layer);
        for chunk in self.chunks {
            let Some(state) = &chunk.state else { continue };
            let end = chunk.position + chunk.rows.len();
            let states = [Some((end, state.to)), state.kept[0], state.kept[1]];
            let history_rows = states.len() * taps;
            for item in worker.share(history_rows + end - state.inputs_from) {
                // SAFETY: projections and what was kept before are only read; each row that is written is one thread's.
                unsafe {
                    if let Some(row) = item.checked_sub(history_rows) {
                        let from = self.input_row(net, chunk, state, (state.inputs_from + row) as isize);
                        let to = state.inputs_to.add(net.states.input_offset(layer, row));
                        std::ptr::copy_nonoverlapping(from, to, net.shape.input_len());
                    } else if let Some((position, to)) = states[item / taps] {
                        let row = item % taps;
                        let from = self.input_row(net, chunk, state, (position + row) as isize - taps as isize);
                        let to = to.add(history + row * channels);
                        match from.is_null() {
                            true => std::slice::from_raw_parts_mut(to, channels).fill(0.0),
                            false => std::ptr::copy_nonoverlapping(from, to, channels),
                        }
                    }
                }
            }
        }
    }
}
