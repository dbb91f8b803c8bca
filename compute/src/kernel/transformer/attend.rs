//! The phases of a layer on keys and values: queries and keys are rotated to their positions (RoPE), keys and values
//! are written to the sessions' caches, attention reads them. The arithmetic is in `kernel::float`.
#![allow(unsafe_code)]

use super::fault::{Fault, Step};
use super::pass::Pass;
use super::workspace::ThreadState;
use super::{LayerWeights, ModelShape, SequenceChunk};
use crate::kernel::float::activation::all_finite;
use crate::kernel::float::attention::{self, KeysValues, MAX_ROWS, Row};
use crate::kernel::float::norm::{MAX_HEAD_DIM, rms_norm_head};
use crate::kernel::float::rope;
use crate::kernel::page::{PAGE_POSITIONS, PageShape};
use crate::kernel::shared::Shared;
use crate::kernel::simd::{Body, LANES, Simd, dispatch};
use crate::pool::Worker;
use std::ops::Range;
use std::sync::atomic::Ordering;

/// Magnitude below which no score overflows: keys are below 2¹⁶, and a head has at most 2⁹ elements.
const MAX_QUERY: f32 = (1_u128 << 100) as f32;
const _: () = assert!(MAX_HEAD_DIM <= 1 << 9);

/// Attention of a few query rows of one chunk over one key-value head.
pub(super) struct AttentionTask {
    chunk: usize,
    kv_head: usize,
    /// Rows counted as (row of the chunk) · (query heads per key-value head) + (query head).
    rows: Range<usize>,
}

/// The attention of one layer, cut into tasks that threads claim.
pub(super) fn tasks(chunks: &[SequenceChunk], shape: ModelShape, threads: usize) -> Vec<AttentionTask> {
    let group = shape.heads / shape.kv_heads;
    // Rows of one head share what is read of the cache, so they stay together unless a thread would have no task.
    let shared_by = threads.div_ceil((chunks.len() * shape.kv_heads).max(1));
    let mut tasks = Vec::new();
    for (index, chunk) in chunks.iter().enumerate() {
        for kv_head in 0..shape.kv_heads {
            let all = chunk.rows.len() * group;
            let tile = all.div_ceil(shared_by).clamp(1, MAX_ROWS);
            tasks.extend((0..all).step_by(tile).map(|from| AttentionTask {
                chunk: index,
                kv_head,
                rows: from..all.min(from + tile),
            }));
        }
    }
    tasks
}

impl Pass<'_> {
    /// Rotates queries and keys to their positions and writes keys and values into the caches.
    ///
    /// # Safety
    /// As for [`Pass::run`]; queries, keys and values of the layer are complete.
    pub(super) unsafe fn rope_and_cache(&self, worker: Worker<'_>, index: usize, layer: &LayerWeights) {
        let ModelShape { heads, kv_heads, .. } = self.shape;
        let per_row = heads + 2 * kv_heads;
        for unit in worker.share(self.rows * per_row) {
            let (row, head) = (unit / per_row, unit % per_row);
            // SAFETY: one head of one row, which is this thread's.
            unsafe {
                match head {
                    head if head < heads => self.rope_query(row, head, index, layer),
                    head if head < heads + kv_heads => self.cache_key(row, head - heads, index, layer),
                    head => self.cache_value(row, head - heads - kv_heads, index, layer),
                }
            }
        }
    }

    /// One head of a row of queries, keys or values, with its bias and norm. `step` says which, and of which layer.
    // The rows, the head's place and its weights are apart in the callers.
    #[allow(clippy::mut_from_ref, clippy::too_many_arguments)]
    unsafe fn head_of<'s>(
        &'s self,
        rows: &'s Shared<'_, f32>,
        row: usize,
        head: usize,
        heads: usize,
        bias: Option<&[f32]>,
        norm: Option<&[f32]>,
        (index, step): (usize, Step),
    ) -> &'s mut [f32] {
        let dim = self.shape.head_dim;
        let from = (row * heads + head) * dim;
        // SAFETY: the caller's promise.
        let x = unsafe { rows.part_mut(from..from + dim) };
        if let Some(bias) = bias {
            x.iter_mut().zip(&bias[head * dim..]).for_each(|(x, b)| *x += b);
        }
        if let Some(norm) = norm {
            self.check(rms_norm_head(self.isa, x, norm, self.shape.epsilon), index, step);
        }
        x
    }

    /// Rotates one head of a row to the row's position and scales it.
    unsafe fn apply_rope(&self, row: usize, layer: &LayerWeights, x: &mut [f32], scale: f32) {
        let pairs = self.shape.rope_dim / 2;
        let at = (layer.kind() * self.rows + row) * pairs;
        // SAFETY: written before the last barrier.
        unsafe { rope::rotate(self.isa, x, self.cos.part(at..at + pairs), self.sin.part(at..at + pairs), scale) }
    }

    unsafe fn rope_query(&self, row: usize, head: usize, index: usize, layer: &LayerWeights) {
        let step = (index, Step::Queries);
        // SAFETY: the caller's promise.
        unsafe {
            let (bias, norm) = (layer.q_bias.as_deref(), layer.q_norm.as_deref());
            let x = self.head_of(&self.q, row, head, self.shape.heads, bias, norm, step);
            self.apply_rope(row, layer, x, self.shape.attention_scale);
            // Larger ones could make a score infinite, of which the soft cap, or the exponential, makes a number.
            self.check_below(MAX_QUERY, x, step);
        }
    }

    /// Makes the pass fail if a magnitude is not below `limit`, or not finite.
    fn check_below(&self, limit: f32, x: &[f32], (index, step): (usize, Step)) {
        if !x.iter().fold(true, |fits, x| fits & (x.abs() < limit)) {
            let fault = if all_finite(x) { Fault::TooLarge } else { Fault::NotFinite };
            self.first_fault.report(index, step, fault);
        }
    }

    unsafe fn cache_key(&self, row: usize, head: usize, index: usize, layer: &LayerWeights) {
        let mut halves = [0u16; MAX_HEAD_DIM];
        let step = (index, Step::Keys);
        // SAFETY: the caller's promise; the cache has a page for the row's position.
        unsafe {
            let (bias, norm) = (layer.k_bias.as_deref(), layer.k_norm.as_deref());
            let x = self.head_of(&self.k, row, head, self.shape.kv_heads, bias, norm, step);
            self.apply_rope(row, layer, x, 1.0);
            self.to_f16(x, &mut halves, step);
            let (page, slot) = self.page(row, layer);
            let block = page.add(
                self.page_shape(layer).key_offset(layer.page_layer, head)
                    + slot / LANES * LANES * x.len()
                    + slot % LANES,
            );
            for (d, half) in halves[..x.len()].iter().enumerate() {
                block.add(d * LANES).write(*half);
            }
        }
    }

    unsafe fn cache_value(&self, row: usize, head: usize, index: usize, layer: &LayerWeights) {
        let step = (index, Step::Values);
        // SAFETY: the caller's promise; the cache has a page for the row's position.
        unsafe {
            let x = self.head_of(&self.v, row, head, self.shape.kv_heads, layer.v_bias.as_deref(), None, step);
            let (page, slot) = self.page(row, layer);
            let to = page.add(self.page_shape(layer).value_offset(layer.page_layer, head) + slot * x.len());
            self.to_f16(x, std::slice::from_raw_parts_mut(to, x.len()), step);
        }
    }

    /// The page of a row's position for a layer, and the position's slot in that page.
    fn page(&self, row: usize, layer: &LayerWeights) -> (*mut u16, usize) {
        let position = self.position(row);
        let pages = &self.chunks[self.row_chunk[row]].pages[layer.kind()];
        (pages[position / PAGE_POSITIONS], position % PAGE_POSITIONS)
    }

    fn page_shape(&self, layer: &LayerWeights) -> PageShape {
        self.page_shapes[layer.kind()]
    }

    /// Rounds to half precision; a value beyond its range makes the pass fail.
    unsafe fn to_f16(&self, x: &[f32], to: &mut [u16], step: (usize, Step)) {
        /// The smallest magnitude that rounds to infinity.
        const TOO_LARGE: f32 = 65_520.0;
        // SAFETY: `isa` is the pool's.
        unsafe { dispatch(self.isa, ToF16 { x, to }) };
        self.check_below(TOO_LARGE, x, step);
    }

    /// Computes attention tasks of a layer until all are claimed, or the pass is cancelled.
    ///
    /// # Safety
    /// As for [`Pass::run`]; [`Pass::rope_and_cache`] of the layer is complete on all threads.
    pub(super) unsafe fn attend(&self, state: &mut ThreadState, index: usize, layer: &LayerWeights) {
        let ModelShape { heads, kv_heads, head_dim, .. } = self.shape;
        let group = heads / kv_heads;
        while let Some(task) = self.tasks.get(self.claimed[index].fetch_add(1, Ordering::Relaxed)) {
            if self.is_stopped() {
                return;
            }
            let chunk = &self.chunks[task.chunk];
            let mut rows = [Row::NONE; MAX_ROWS];
            for (row, n) in rows.iter_mut().zip(task.rows.clone()) {
                let (of_chunk, head) = (n / group, task.kv_head * group + n % group);
                let at = ((chunk.rows.start + of_chunk) * heads + head) * head_dim;
                // SAFETY: queries were rotated before the last barrier; the result belongs to the task.
                *row = unsafe {
                    Row {
                        query: self.q.start().add(at),
                        out: self.attended.start().add(at),
                        position: chunk.position + of_chunk,
                        sink: layer.sinks.as_ref().map_or(f32::NEG_INFINITY, |sinks| sinks[head]),
                    }
                };
            }
            let cache = KeysValues {
                pages: &chunk.pages[layer.kind()],
                key_offset: self.page_shape(layer).key_offset(layer.page_layer, task.kv_head),
                value_offset: self.page_shape(layer).value_offset(layer.page_layer, task.kv_head),
                head_dim,
            };
            let rows = &rows[..task.rows.len()];
            // SAFETY: as above; keys and values of all these positions were written before the last barrier.
            unsafe {
                attention::attend(
                    self.isa,
                    rows,
                    cache,
                    layer.sliding_window,
                    self.shape.attention_soft_cap,
                    &mut state.scores,
                );
            }
        }
    }
}

struct ToF16<'a> {
    x: &'a [f32],
    to: &'a mut [u16],
}

impl Body for ToF16<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for (x, to) in self.x.as_chunks::<LANES>().0.iter().zip(self.to.as_chunks_mut::<LANES>().0) {
            // SAFETY: sixteen of each; heads are multiples of sixteen.
            unsafe { S::store_f16(to.as_mut_ptr(), S::load(x.as_ptr())) };
        }
    }
}
