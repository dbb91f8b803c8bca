//! The phases of a layer on keys and values: queries and keys are rotated to their positions (RoPE), keys and values
//! are written to the sessions' caches, attention reads them. The arithmetic is in `kernel::float`.
#![allow(unsafe_code)]

use super::fault::{Fault, Step};
use super::pass::Pass;
use super::workspace::ThreadState;
use super::{AttentionWeights, ModelShape, SequenceChunk};
use crate::Pool;
use crate::kernel::float::activation::{all_finite, gate_by_sigmoid};
use crate::kernel::float::attention::{
    self, CHAIN, KeysValues, MAX_ROWS, Row, SPLIT_ROWS, SplitHead, SplitShape, SplitStep, Terms,
};
use crate::kernel::float::norm::{MAX_HEAD_DIM, rms_norm_head};
use crate::kernel::float::rope;
use crate::kernel::page::{PAGE_POSITIONS, PageShape};
use crate::kernel::shared::Shared;
use crate::kernel::simd::{Body, LANES, Simd, dispatch};
use crate::pool::Worker;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Magnitude below which no score overflows: keys are below 2¹⁶, and a head has at most 2⁹ elements.
const MAX_QUERY: f32 = (1_u128 << 100) as f32;
const _: () = assert!(MAX_HEAD_DIM <= 1 << 9);

/// How the attention of a layer is divided among threads. The bits are the same.
pub(super) enum AttentionPlan {
    /// By rows, in tasks that threads claim.
    Rows(Vec<AttentionTask>),
    /// The few rows of one sequence, by positions: heads do not come out even among the threads.
    Positions(SplitShape),
}

/// Attention of some query rows of one chunk over one key-value head.
pub(super) struct AttentionTask {
    chunk: usize,
    kv_head: usize,
    /// Rows counted as (row of the chunk) · (query heads per key-value head) + (query head).
    rows: Range<usize>,
}

/// Parts of a layer's attention that threads have claimed, of each step.
#[derive(Default)]
pub(super) struct ClaimedAttention([AtomicUsize; 3]);

/// Tasks of each thread, at least, where rows suffice: the last ones that threads wait for are then a small share of all.
const TASKS_PER_THREAD: usize = 6;

/// The position from which a sequence is divided by positions: what threads gain by then is more than two barriers cost.
const SPLIT_FROM: usize = 1024;

impl AttentionPlan {
    pub(super) fn new(chunks: &[SequenceChunk], shape: ModelShape, pool: &Pool) -> AttentionPlan {
        if let [chunk] = chunks {
            let (rows, last) = (chunk.rows.len() * shape.group(), chunk.last_position());
            // More than a tenth of the time, threads would wait for the last head.
            let is_uneven = 10 * shape.kv_heads < 9 * shape.kv_heads.next_multiple_of(pool.threads());
            if rows <= SPLIT_ROWS && last >= SPLIT_FROM && is_uneven {
                return AttentionPlan::Positions(SplitShape::new(rows, last, shape.head_dim));
            }
        }
        AttentionPlan::Rows(tasks(chunks, shape, pool))
    }

    /// Floats of scratch memory that each thread needs, and of memory that threads share.
    pub(super) fn floats(&self, chunks: &[SequenceChunk], shape: ModelShape) -> (usize, usize) {
        match self {
            AttentionPlan::Rows(tasks) => {
                let of_task =
                    |task: &AttentionTask| attention::scratch_len(task.rows.len(), chunks[task.chunk].last_position());
                (tasks.iter().map(of_task).max().unwrap_or(0), 0)
            }
            AttentionPlan::Positions(split) => (0, shape.kv_heads * split.floats()),
        }
    }
}

fn tasks(chunks: &[SequenceChunk], shape: ModelShape, pool: &Pool) -> Vec<AttentionTask> {
    let threads = pool.threads();
    // Rows of one head share what is read of the cache, so they stay together unless a thread would have no task.
    let shared_by = threads.div_ceil((chunks.len() * shape.kv_heads).max(1));
    let rows: usize = chunks.iter().map(|chunk| chunk.rows.len() * shape.heads).sum();
    let even = rows.div_ceil(TASKS_PER_THREAD * threads).next_multiple_of(attention::MIN_ROWS);
    let mut tasks = Vec::new();
    for (index, chunk) in chunks.iter().enumerate() {
        let all = chunk.rows.len() * shape.group();
        let most = even.min(attention::rows_at_once(pool.isa(), chunk.last_position()));
        let tile = all.div_ceil(shared_by).clamp(1, most);
        // The last rows attend to the most keys. They come first, so that threads end together.
        for from in (0..all).step_by(tile).rev() {
            let rows = from..all.min(from + tile);
            tasks.extend((0..shape.kv_heads).map(|kv_head| AttentionTask {
                chunk: index,
                kv_head,
                rows: rows.clone(),
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
    pub(super) unsafe fn rope_and_cache(&self, worker: Worker<'_>, index: usize, layer: &AttentionWeights) {
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

    /// One head of a row of queries, keys or values, which begins at `from`, with its bias and norm. `step` says which, and of
    /// which layer.
    // The rows, the head's place and its weights are apart in the callers.
    #[allow(clippy::mut_from_ref, clippy::too_many_arguments)]
    unsafe fn head_of<'s>(
        &'s self,
        rows: &'s Shared<'_, f32>,
        from: usize,
        head: usize,
        bias: Option<&[f32]>,
        norm: Option<&[f32]>,
        (index, step): (usize, Step),
    ) -> &'s mut [f32] {
        let dim = self.shape.head_dim;
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
    unsafe fn apply_rope(&self, row: usize, layer: &AttentionWeights, x: &mut [f32], scale: f32) {
        let pairs = self.shape.rope_dim / 2;
        let at = (layer.kind() * self.rows + row) * pairs;
        // SAFETY: written before the last barrier.
        unsafe { rope::rotate(self.isa, x, self.cos.part(at..at + pairs), self.sin.part(at..at + pairs), scale) }
    }

    unsafe fn rope_query(&self, row: usize, head: usize, index: usize, layer: &AttentionWeights) {
        let step = (index, Step::Queries);
        // SAFETY: the caller's promise.
        unsafe {
            let (bias, norm) = (layer.q_bias.as_deref(), layer.q_norm.as_deref());
            let (stride, len) = self.shape.query_stride();
            let x = self.head_of(&self.q, row * len + head * stride, head, bias, norm, step);
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

    /// Where a key or value head of a row begins.
    fn kv_head(&self, row: usize, head: usize) -> usize {
        row * self.shape.kv_len() + head * self.shape.head_dim
    }

    unsafe fn cache_key(&self, row: usize, head: usize, index: usize, layer: &AttentionWeights) {
        let mut halves = [0u16; MAX_HEAD_DIM];
        let step = (index, Step::Keys);
        // SAFETY: the caller's promise; the cache has a page for the row's position.
        unsafe {
            let (bias, norm) = (layer.k_bias.as_deref(), layer.k_norm.as_deref());
            let x = self.head_of(&self.k, self.kv_head(row, head), head, bias, norm, step);
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

    unsafe fn cache_value(&self, row: usize, head: usize, index: usize, layer: &AttentionWeights) {
        let step = (index, Step::Values);
        // SAFETY: the caller's promise; the cache has a page for the row's position.
        unsafe {
            let x = self.head_of(&self.v, self.kv_head(row, head), head, layer.v_bias.as_deref(), None, step);
            let (page, slot) = self.page(row, layer);
            let to = page.add(self.page_shape(layer).value_offset(layer.page_layer, head) + slot * x.len());
            self.to_f16(x, std::slice::from_raw_parts_mut(to, x.len()), step);
        }
    }

    /// The page of a row's position for a layer, and the position's slot in that page.
    fn page(&self, row: usize, layer: &AttentionWeights) -> (*mut u16, usize) {
        let position = self.position(row);
        let pages = &self.chunks[self.row_chunk[row]].pages[layer.kind()];
        (pages[position / PAGE_POSITIONS], position % PAGE_POSITIONS)
    }

    fn page_shape(&self, layer: &AttentionWeights) -> PageShape {
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

    /// Computes parts of a layer's attention until all are claimed, or the pass is cancelled.
    ///
    /// # Safety
    /// As for [`Pass::run`]; [`Pass::rope_and_cache`] of the layer is complete on all threads.
    pub(super) unsafe fn attend(
        &self,
        worker: Worker<'_>,
        state: &mut ThreadState,
        index: usize,
        layer: &AttentionWeights,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            match self.attention {
                AttentionPlan::Rows(tasks) => self.attend_rows(tasks, state, index, layer),
                AttentionPlan::Positions(shape) => self.attend_positions(worker, *shape, index, layer),
            }
        }
    }

    /// Multiplies the attention results of this thread's share of heads by their gates.
    ///
    /// # Safety
    /// As for [`Pass::run`]; [`Pass::attend`] of the layer is complete on all threads.
    pub(super) unsafe fn gate_attention(&self, worker: Worker<'_>, index: usize) {
        let ModelShape { heads, head_dim, .. } = self.shape;
        let (stride, len) = self.shape.query_stride();
        for unit in worker.share(self.rows * heads) {
            let from = unit / heads * len + unit % heads * stride + head_dim;
            // SAFETY: queries with their gates are complete; the head's result is this thread's.
            unsafe {
                let (gate, x) = (self.q.part(from..from + head_dim), unit * head_dim..(unit + 1) * head_dim);
                // An infinity would become a number.
                self.check(all_finite(gate), index, Step::Attention);
                gate_by_sigmoid(self.isa, self.attended.part_mut(x), gate);
            }
        }
    }

    unsafe fn attend_rows(
        &self,
        tasks: &[AttentionTask],
        state: &mut ThreadState,
        index: usize,
        layer: &AttentionWeights,
    ) {
        while let Some(n) = self.claim(index, 0, tasks.len()) {
            let AttentionTask { chunk, kv_head, ref rows } = tasks[n];
            // SAFETY: the results belong to the task; keys and values of all positions were written before the last barrier.
            unsafe {
                let (of_rows, count) = self.attention_rows(chunk, kv_head, rows.clone(), layer);
                let cache = self.keys_values(chunk, kv_head, layer);
                attention::attend(self.isa, &of_rows[..count], cache, self.terms(layer), &mut state.scores);
            }
        }
    }

    unsafe fn attend_positions(&self, worker: Worker<'_>, shape: SplitShape, index: usize, layer: &AttentionWeights) {
        let (terms, kv_heads) = (self.terms(layer), self.shape.kv_heads);
        let first = terms.first(self.chunks[0].position) / CHAIN;
        let chains = shape.chains() - first;
        for (step, parts) in [chains, chains, shape.rows()].into_iter().enumerate() {
            if step > 0 {
                worker.barrier();
            }
            while let Some(n) = self.claim(index, step, kv_heads * parts) {
                let (kv_head, part) = (n / parts, n % parts);
                // SAFETY: each part is one thread's, a barrier lies between the steps; the rest is as for `attend_rows`.
                unsafe {
                    let (rows, count) = self.attention_rows(0, kv_head, 0..shape.rows(), layer);
                    let head = SplitHead {
                        shape,
                        rows: &rows[..count],
                        cache: self.keys_values(0, kv_head, layer),
                        terms,
                        memory: self.split.start().add(kv_head * shape.floats()),
                    };
                    head.run(
                        self.isa,
                        match step {
                            0 => SplitStep::Scores { chain: first + part },
                            1 => SplitStep::Values { chain: first + part },
                            _ => SplitStep::Sum { row: part },
                        },
                    );
                }
            }
        }
    }

    /// The next of `total` parts of a layer's attention step; `None` once all are claimed, or where the pass is cancelled.
    pub(super) fn claim(&self, index: usize, step: usize, total: usize) -> Option<usize> {
        let n = self.claimed[index].0[step].fetch_add(1, Ordering::Relaxed);
        (n < total && !self.is_stopped()).then_some(n)
    }

    /// Rows of a chunk's key-value head, and their number. `rows` counts them as [`AttentionTask`] does.
    unsafe fn attention_rows(
        &self,
        chunk: usize,
        kv_head: usize,
        rows: Range<usize>,
        layer: &AttentionWeights,
    ) -> ([Row; MAX_ROWS], usize) {
        let ModelShape { heads, head_dim, .. } = self.shape;
        let (query_stride, query_len) = self.shape.query_stride();
        let (chunk, group) = (&self.chunks[chunk], self.shape.group());
        let count = rows.len();
        let mut of_rows = [Row::NONE; MAX_ROWS];
        for (row, n) in of_rows.iter_mut().zip(rows) {
            let (of_chunk, head) = (n / group, kv_head * group + n % group);
            let in_batch = chunk.rows.start + of_chunk;
            // SAFETY: queries and results have all rows of the batch.
            *row = unsafe {
                Row {
                    query: self.q.start().add(in_batch * query_len + head * query_stride),
                    out: self.attended.start().add((in_batch * heads + head) * head_dim),
                    position: chunk.position + of_chunk,
                    sink: layer.sinks.as_ref().map_or(f32::NEG_INFINITY, |sinks| sinks[head]),
                }
            };
        }
        (of_rows, count)
    }

    fn keys_values(&self, chunk: usize, kv_head: usize, layer: &AttentionWeights) -> KeysValues<'_> {
        KeysValues {
            pages: &self.chunks[chunk].pages[layer.kind()],
            key_offset: self.page_shape(layer).key_offset(layer.page_layer, kv_head),
            value_offset: self.page_shape(layer).value_offset(layer.page_layer, kv_head),
            head_dim: self.shape.head_dim,
        }
    }

    fn terms(&self, layer: &AttentionWeights) -> Terms {
        Terms { window: layer.sliding_window, soft_cap: self.shape.attention_soft_cap }
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
