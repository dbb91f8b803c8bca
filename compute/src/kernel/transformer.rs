//! The layers of a transformer over a batch of rows, all threads together. In each phase a thread computes its own share of
//! rows, of output features or of attention; between phases all meet. What a row comes out as depends on the row and its
//! session alone. It knows nothing of files, sessions' owners or text.
//!
//! Few rows (decoding): every thread keeps all rows' residuals and norms for itself, which is cheaper than meeting once
//! more. Many rows (a prompt): every thread keeps those of its own rows.
#![allow(unsafe_code)]

use super::float::activation::{Activation, all_finite, gated, soft_cap};
use super::float::attention::{self, KeysValues, MAX_ROWS, Row};
use super::float::environment;
use super::float::norm::{MAX_HEAD, rms_norm, rms_norm_head};
use super::float::rope;
use super::page::{PAGE_POSITIONS, PageShape};
use super::quant::{self, Matrix, Quantized, Store};
use super::shared::Shared;
use super::simd::{Body, LANES, Simd, dispatch};
use crate::pool::Worker;
use crate::{Error, Isa, Pool};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Up to so many rows every thread does all norms.
const FEW_ROWS: usize = 2;

/// One layer. Lengths: width w, query heads q, key-value heads kv, feed-forward f.
pub(crate) struct LayerWeights {
    /// `[w]`
    pub(crate) attention_norm: Vec<f32>,
    /// `[q, w]`
    pub(crate) q: Matrix,
    /// `[kv, w]`
    pub(crate) k: Matrix,
    /// `[kv, w]`
    pub(crate) v: Matrix,
    /// `[w, q]`
    pub(crate) o: Matrix,
    pub(crate) q_bias: Option<Vec<f32>>,
    pub(crate) k_bias: Option<Vec<f32>>,
    pub(crate) v_bias: Option<Vec<f32>>,
    pub(crate) o_bias: Option<Vec<f32>>,
    /// `[head]`, on each query head.
    pub(crate) q_norm: Option<Vec<f32>>,
    /// `[head]`, on each key head.
    pub(crate) k_norm: Option<Vec<f32>>,
    /// `[w]`, on what attention adds to the residual.
    pub(crate) post_attention_norm: Option<Vec<f32>>,
    /// `[w]`
    pub(crate) ffn_norm: Vec<f32>,
    /// `[f, w]`
    pub(crate) gate: Matrix,
    /// `[f, w]`
    pub(crate) up: Matrix,
    /// `[w, f]`
    pub(crate) down: Matrix,
    /// `[w]`, on what the feed-forward layer adds to the residual.
    pub(crate) post_ffn_norm: Option<Vec<f32>>,
    /// Positions that a row sees, its own included.
    pub(crate) window: usize,
}

/// What comes after the last layer.
pub(crate) struct Head {
    /// `[w]`
    pub(crate) norm: Vec<f32>,
    /// `[vocabulary, w]`
    pub(crate) output: Matrix,
}

/// The sizes and settings that kernels need.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) width: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_width: usize,
    pub(crate) feed_forward: usize,
    pub(crate) vocabulary: usize,
    pub(crate) rope_width: usize,
    pub(crate) epsilon: f32,
    pub(crate) attention_scale: f32,
    pub(crate) attention_soft_cap: Option<f32>,
    pub(crate) logit_soft_cap: Option<f32>,
    pub(crate) embedding_scale: f32,
    pub(crate) activation: Activation,
}

/// Where rows come from.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    /// Token ids, one a row, all within the embedding `[vocabulary, w]`.
    Tokens(&'a [u32], &'a Matrix),
    /// Activations `[rows, w]`.
    Activations(&'a [f32]),
}

/// Consecutive positions of one session.
pub(crate) struct Span {
    /// Its rows in the batch.
    pub(crate) rows: Range<usize>,
    /// The position of the first.
    pub(crate) position: usize,
    /// The start of every page of its cache, with room for its rows.
    pub(crate) pages: Vec<*mut u16>,
}

// SAFETY: pages are written through by the batch's threads, each its own rows, while the cache is borrowed.
unsafe impl Sync for Span {}

/// A batch on its way through the layers.
pub(crate) struct Batch<'a> {
    pub(crate) shape: Shape,
    pub(crate) page_shape: PageShape,
    pub(crate) layers: &'a [LayerWeights],
    pub(crate) head: Option<&'a Head>,
    pub(crate) frequencies: [&'a [f64]; 2],
    pub(crate) magnitudes: [f64; 2],
    pub(crate) source: Source<'a>,
    pub(crate) spans: &'a [Span],
    /// Rows in all.
    pub(crate) rows: usize,
    /// The rows whose logits are wanted, in order.
    pub(crate) wanted: &'a [usize],
    /// `[layers, rows, w]`: the residual after each layer, where somebody watches.
    pub(crate) trace: Option<&'a mut [f32]>,
}

/// What came out.
pub(crate) struct Results<'a> {
    /// `[wanted, vocabulary]` with a head.
    pub(crate) logits: &'a mut [f32],
    /// `[rows, w]` without.
    pub(crate) activations: &'a mut [f32],
}

/// A thread's own rows in the making.
#[derive(Default)]
struct Own {
    /// `[rows, w]`: residuals.
    x: Vec<f32>,
    /// `[rows, longest input]`: a product's input, where the thread prepares all of it.
    input: Vec<f32>,
    quantized: [Quantized; 4],
    scores: Vec<f32>,
}

/// Buffers of a forward pass, kept for the next.
#[derive(Default)]
pub(crate) struct Workspace {
    own: Vec<Own>,
    /// `[rows, w]`: normed rows, where threads share them.
    normed: Vec<f32>,
    quantized: [Quantized; 4],
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    /// `[rows, q]`
    attended: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    /// `[rows, w]`: what is to be added to the residual.
    delta: Vec<f32>,
    /// `[2, rows, rotated / 2]`
    cos: Vec<f32>,
    sin: Vec<f32>,
}

/// The inputs of products: which of the quantised buffers holds them.
#[derive(Clone, Copy)]
enum Stage {
    Norm = 0,
    Attended = 1,
    Gated = 2,
    Head = 3,
}

/// Attention of a few rows of one span on one key-value head.
struct Item {
    span: usize,
    kv_head: usize,
    /// Rows counted as (row of the span) · (query heads per key-value head) + (query head).
    rows: Range<usize>,
}

/// Runs the batch. `results` has room for what is wanted.
///
/// # Errors
/// [`Error::OutOfMemory`]; [`Error::Invalid`] where activations, logits, keys or values are not finite or do not fit.
pub(crate) fn run(pool: &Pool, batch: Batch<'_>, workspace: &mut Workspace, results: Results<'_>) -> Result<(), Error> {
    let Batch { shape, rows, spans, wanted, .. } = batch;
    let threads = pool.threads();
    let few = rows <= FEW_ROWS || threads == 1;
    let (query, kv) = (shape.heads * shape.head_width, shape.kv_heads * shape.head_width);
    let longest = shape.width.max(query).max(shape.feed_forward);
    let last = spans.iter().map(|span| span.position + span.rows.len()).max().unwrap_or(1) - 1;
    let stages = [(rows, shape.width), (rows, query), (rows, shape.feed_forward), (wanted.len(), shape.width)];

    workspace.own.resize_with(threads, Own::default);
    let group = shape.heads / shape.kv_heads;
    for own in &mut workspace.own {
        grow(&mut own.x, rows * shape.width)?;
        grow(&mut own.scores, attention::scratch_len(last))?;
        if few {
            grow(&mut own.input, rows * longest)?;
            for (quantized, (rows, k)) in own.quantized.iter_mut().zip(stages) {
                quantized.reshape(rows, k)?;
            }
        }
    }
    if !few {
        grow(&mut workspace.normed, rows * shape.width)?;
        for (quantized, (rows, k)) in workspace.quantized.iter_mut().zip(stages) {
            quantized.reshape(rows, k)?;
        }
    }
    for (buffer, len) in [
        (&mut workspace.q, rows * query),
        (&mut workspace.k, rows * kv),
        (&mut workspace.v, rows * kv),
        (&mut workspace.attended, rows * query),
        (&mut workspace.gate, rows * shape.feed_forward),
        (&mut workspace.up, rows * shape.feed_forward),
        (&mut workspace.delta, rows * shape.width),
        (&mut workspace.cos, rows * shape.rope_width),
        (&mut workspace.sin, rows * shape.rope_width),
    ] {
        grow(buffer, len)?;
    }

    let mut items = Vec::new();
    // Rows of one head share what is read of the cache, so they stay together while that leaves no thread without any.
    let shared_by = threads.div_ceil((spans.len() * shape.kv_heads).max(1));
    for (index, span) in spans.iter().enumerate() {
        for kv_head in 0..shape.kv_heads {
            let all = span.rows.len() * group;
            let tile = all.div_ceil(shared_by).clamp(1, MAX_ROWS);
            items.extend((0..all).step_by(tile).map(|from| Item {
                span: index,
                kv_head,
                rows: from..all.min(from + tile),
            }));
        }
    }
    let claimed: Vec<AtomicUsize> = batch.layers.iter().map(|_| AtomicUsize::new(0)).collect();
    let row_span: Vec<usize> =
        spans.iter().enumerate().flat_map(|(index, span)| span.rows.clone().map(move |_| index)).collect();
    let Workspace { own, normed, quantized, q, k, v, attended, gate, up, delta, cos, sin } = workspace;
    let job = Job {
        isa: pool.isa(),
        few,
        shape,
        page_shape: batch.page_shape,
        layers: batch.layers,
        head: batch.head,
        frequencies: batch.frequencies,
        magnitudes: batch.magnitudes,
        source: batch.source,
        spans,
        row_span: &row_span,
        rows,
        wanted,
        items: &items,
        claimed: &claimed,
        own: Shared::new(own),
        normed: Shared::new(normed),
        quantized,
        q: Shared::new(q),
        k: Shared::new(k),
        v: Shared::new(v),
        attended: Shared::new(attended),
        gate: Shared::new(gate),
        up: Shared::new(up),
        delta: Shared::new(delta),
        cos: Shared::new(cos),
        sin: Shared::new(sin),
        trace: batch.trace.map(Shared::new),
        logits: Shared::new(results.logits),
        activations: Shared::new(results.activations),
        too_large: AtomicBool::new(false),
        not_finite: AtomicBool::new(false),
        other_rounding: AtomicBool::new(false),
    };
    // SAFETY: the buffers have the sizes that the batch needs, and the job keeps its threads apart as `Job::run` says.
    pool.together(&|worker| unsafe { job.run(worker) });
    let wrong = |what: &str| Err(Error::Invalid { operation: "forward", what: what.to_owned() });
    if job.other_rounding.into_inner() {
        return wrong(
            "a compute thread does not round to nearest or drops subnormal numbers: a library in this process changed its floating-point mode",
        );
    }
    if job.not_finite.into_inner() {
        return wrong("the activations are not finite: the model or its input is damaged");
    }
    if job.too_large.into_inner() {
        return wrong("keys or values do not fit half precision: this model cannot run with a half-precision cache");
    }
    Ok(())
}

/// At least `len` elements.
fn grow(buffer: &mut Vec<f32>, len: usize) -> Result<(), Error> {
    if buffer.len() < len {
        buffer
            .try_reserve_exact(len - buffer.len())
            .map_err(|_| Error::OutOfMemory { bytes: len as u64 * 4, what: "activations" })?;
        buffer.resize(len, 0.0);
    }
    Ok(())
}

struct Job<'a> {
    isa: Isa,
    few: bool,
    shape: Shape,
    page_shape: PageShape,
    layers: &'a [LayerWeights],
    head: Option<&'a Head>,
    frequencies: [&'a [f64]; 2],
    magnitudes: [f64; 2],
    source: Source<'a>,
    spans: &'a [Span],
    row_span: &'a [usize],
    rows: usize,
    wanted: &'a [usize],
    items: &'a [Item],
    claimed: &'a [AtomicUsize],
    own: Shared<'a, Own>,
    normed: Shared<'a, f32>,
    quantized: &'a [Quantized; 4],
    q: Shared<'a, f32>,
    k: Shared<'a, f32>,
    v: Shared<'a, f32>,
    attended: Shared<'a, f32>,
    gate: Shared<'a, f32>,
    up: Shared<'a, f32>,
    delta: Shared<'a, f32>,
    cos: Shared<'a, f32>,
    sin: Shared<'a, f32>,
    trace: Option<Shared<'a, f32>>,
    logits: Shared<'a, f32>,
    activations: Shared<'a, f32>,
    too_large: AtomicBool,
    not_finite: AtomicBool,
    other_rounding: AtomicBool,
}

/// A product's input, whoever prepared it.
#[derive(Clone, Copy)]
struct Prepared<'a> {
    quantized: &'a Quantized,
    floats: *const f32,
}

impl Job<'_> {
    /// One thread's part of everything.
    ///
    /// # Safety
    /// All threads of a team run it at the same time. Between two meetings every part of shared memory has one writer or
    /// only readers: rows belong to the thread that [`Worker::share`] gives them to, columns of products likewise,
    /// attention items to whoever claims them.
    unsafe fn run(&self, worker: Worker<'_>) {
        // SAFETY: as stated above; each place says who has the part.
        unsafe {
            if !environment::is_standard() {
                self.other_rounding.store(true, Ordering::Relaxed);
            }
            let own = &mut self.own.part_mut(worker.index..worker.index + 1)[0];
            // The rows whose residuals this thread keeps.
            let mine = if self.few { 0..self.rows } else { worker.share(self.rows) };
            self.embed(own, mine.clone());
            self.angles(worker.share(self.rows));
            for (index, layer) in self.layers.iter().enumerate() {
                self.layer(worker, own, mine.clone(), index, layer);
            }
            self.finish(worker, own, mine);
        }
    }

    /// Residuals of this thread's rows.
    unsafe fn embed(&self, own: &mut Own, mine: Range<usize>) {
        let width = self.shape.width;
        for row in mine {
            let x = &mut own.x[row * width..(row + 1) * width];
            match self.source {
                Source::Tokens(tokens, embedding) => {
                    embedding.unpack_row(tokens[row] as usize, x);
                    if self.shape.embedding_scale != 1.0 {
                        x.iter_mut().for_each(|x| *x *= self.shape.embedding_scale);
                    }
                }
                Source::Activations(rows) => x.copy_from_slice(&rows[row * width..(row + 1) * width]),
            }
        }
    }

    /// Cosines and sines of these rows' positions, for both kinds of layer.
    unsafe fn angles(&self, rows: Range<usize>) {
        let pairs = self.shape.rope_width / 2;
        for row in rows {
            let position = self.position(row);
            for kind in 0..2 {
                let at = (kind * self.rows + row) * pairs;
                // SAFETY: this thread's rows; read after a meeting.
                let (cos, sin) = unsafe { (self.cos.part_mut(at..at + pairs), self.sin.part_mut(at..at + pairs)) };
                rope::angles(position, self.frequencies[kind], self.magnitudes[kind], cos, sin);
            }
        }
    }

    fn position(&self, row: usize) -> usize {
        let span = &self.spans[self.row_span[row]];
        span.position + row - span.rows.start
    }

    unsafe fn layer(&self, worker: Worker<'_>, own: &mut Own, mine: Range<usize>, index: usize, layer: &LayerWeights) {
        let Shape { width, heads, kv_heads, head_width, feed_forward, .. } = self.shape;
        let (query, kv) = (heads * head_width, kv_heads * head_width);
        // SAFETY: as `run` says; each product writes this thread's columns alone.
        unsafe {
            let x = self.normed_rows(worker, own, every(&mine), &layer.attention_norm, Stage::Norm);
            let [q, k, v] = shares(worker, [&layer.q, &layer.k, &layer.v]);
            self.product(&layer.q, q, x, &self.q, query);
            self.product(&layer.k, k, x, &self.k, kv);
            self.product(&layer.v, v, x, &self.v, kv);
            worker.meet();
            self.place(worker, index, layer);
            worker.meet();
            self.attend(own, index, layer);
            worker.meet();
            let x = self.plain_rows(worker, own, mine.clone(), &self.attended, query, Stage::Attended);
            let [o] = shares(worker, [&layer.o]);
            self.product(&layer.o, o, x, &self.delta, width);
            worker.meet();
            self.add(own, mine.clone(), layer.o_bias.as_deref(), layer.post_attention_norm.as_deref());

            let x = self.normed_rows(worker, own, every(&mine), &layer.ffn_norm, Stage::Norm);
            // Gate and up have the same rows, so a thread has both of a column and can join them at once.
            let [tiles] = shares(worker, [&layer.gate]);
            self.product(&layer.gate, tiles.clone(), x, &self.gate, feed_forward);
            self.product(&layer.up, tiles.clone(), x, &self.up, feed_forward);
            let columns = quant::rows_of(&tiles, feed_forward);
            for row in 0..self.rows {
                let part = row * feed_forward + columns.start..row * feed_forward + columns.end;
                gated(self.isa, self.shape.activation, self.gate.part_mut(part.clone()), self.up.part(part));
            }
            worker.meet();
            let x = self.plain_rows(worker, own, mine.clone(), &self.gate, feed_forward, Stage::Gated);
            let [down] = shares(worker, [&layer.down]);
            self.product(&layer.down, down, x, &self.delta, width);
            worker.meet();
            self.add(own, mine.clone(), None, layer.post_ffn_norm.as_deref());
            if let Some(trace) = &self.trace {
                // With few rows every thread has them; one writes.
                if !self.few || worker.index == 0 {
                    let from = (index * self.rows + mine.start) * width;
                    trace
                        .part_mut(from..from + mine.len() * width)
                        .copy_from_slice(&own.x[mine.start * width..mine.end * width]);
                }
            }
        }
    }

    /// Adds what a product gave to this thread's residuals.
    unsafe fn add(&self, own: &mut Own, mine: Range<usize>, bias: Option<&[f32]>, norm: Option<&[f32]>) {
        let width = self.shape.width;
        let mut copy = Vec::new();
        for row in mine {
            // SAFETY: the products that wrote it are over, the next begins after a meeting.
            let mut delta = unsafe { self.delta.part(row * width..(row + 1) * width) };
            let x = &mut own.x[row * width..(row + 1) * width];
            if bias.is_some() || norm.is_some() {
                copy.clear();
                copy.extend_from_slice(delta);
                if let Some(bias) = bias {
                    copy.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
                }
                if let Some(norm) = norm {
                    let row = copy.clone();
                    rms_norm(self.isa, &row, norm, self.shape.epsilon, &mut copy);
                }
                delta = &copy;
            }
            x.iter_mut().zip(delta).for_each(|(x, delta)| *x += delta);
        }
    }

    /// Norms and quantises residuals as the input of the next products: of each pair, the row goes to the place.
    unsafe fn normed_rows<'s>(
        &'s self,
        worker: Worker<'_>,
        own: &'s mut Own,
        places: impl Iterator<Item = (usize, usize)>,
        norm: &[f32],
        stage: Stage,
    ) -> Prepared<'s> {
        let width = self.shape.width;
        let quantized = if self.few { &own.quantized[stage as usize] } else { &self.quantized[stage as usize] };
        // SAFETY: rows of this thread's own, to its own buffers or to places of the shared ones that are its rows'.
        unsafe {
            for (place, row) in places {
                let to = place * width..(place + 1) * width;
                let normed = if self.few { &mut own.input[to] } else { self.normed.part_mut(to) };
                rms_norm(self.isa, &own.x[row * width..(row + 1) * width], norm, self.shape.epsilon, normed);
                quantized.quantize_row(self.isa, normed, place);
            }
        }
        if self.few {
            return Prepared { quantized, floats: own.input.as_ptr() };
        }
        worker.meet();
        Prepared { quantized, floats: self.normed.start() }
    }

    /// Quantises rows that products or attention gave.
    unsafe fn plain_rows<'s>(
        &'s self,
        worker: Worker<'_>,
        own: &'s Own,
        mine: Range<usize>,
        from: &Shared<'_, f32>,
        width: usize,
        stage: Stage,
    ) -> Prepared<'s> {
        // SAFETY: nobody writes `from` between the meetings around this; rows are this thread's own.
        unsafe {
            let quantized = if self.few { &own.quantized[stage as usize] } else { &self.quantized[stage as usize] };
            for row in mine {
                quantized.quantize_row(self.isa, from.part(row * width..(row + 1) * width), row);
            }
            if !self.few {
                worker.meet();
            }
            Prepared { quantized, floats: from.start() }
        }
    }

    /// Some tiles of a product over all rows of its input.
    unsafe fn product(&self, w: &Matrix, tiles: Range<usize>, x: Prepared<'_>, out: &Shared<'_, f32>, ld: usize) {
        let rows = x.quantized.rows();
        // SAFETY: the input is whole and not written; the tiles' columns of `out` are this thread's.
        unsafe {
            let input = if w.takes_floats() {
                quant::Input::Floats(std::slice::from_raw_parts(x.floats, rows * w.k()))
            } else {
                quant::Input::Quantized(x.quantized)
            };
            quant::product(self.isa, w, tiles, input, 0..rows, out.start(), ld, Store::Set);
        }
    }

    /// Turns queries and keys to their positions and puts keys and values into the caches.
    unsafe fn place(&self, worker: Worker<'_>, index: usize, layer: &LayerWeights) {
        let Shape { heads, kv_heads, .. } = self.shape;
        let per_row = heads + 2 * kv_heads;
        for item in worker.share(self.rows * per_row) {
            let (row, head) = (item / per_row, item % per_row);
            // SAFETY: one head of one row, which is this thread's.
            unsafe {
                match head {
                    head if head < heads => self.place_query(row, head, layer),
                    head if head < heads + kv_heads => self.place_key(row, head - heads, index, layer),
                    head => self.place_value(row, head - heads - kv_heads, index, layer),
                }
            }
        }
    }

    /// One head of a row of queries, keys or values, with its bias and norm.
    #[allow(clippy::mut_from_ref)]
    unsafe fn head_of<'s>(
        &'s self,
        rows: &'s Shared<'_, f32>,
        row: usize,
        head: usize,
        heads: usize,
        bias: Option<&[f32]>,
        norm: Option<&[f32]>,
    ) -> &'s mut [f32] {
        let width = self.shape.head_width;
        let from = (row * heads + head) * width;
        // SAFETY: the caller's.
        let x = unsafe { rows.part_mut(from..from + width) };
        if let Some(bias) = bias {
            x.iter_mut().zip(&bias[head * width..]).for_each(|(x, b)| *x += b);
        }
        if let Some(norm) = norm {
            rms_norm_head(self.isa, x, norm, self.shape.epsilon);
        }
        x
    }

    /// Cosines and sines for a row in a layer.
    unsafe fn turn(&self, row: usize, layer: &LayerWeights, x: &mut [f32], scale: f32) {
        let pairs = self.shape.rope_width / 2;
        let kind = usize::from(layer.window != usize::MAX);
        let at = (kind * self.rows + row) * pairs;
        // SAFETY: written before the last meeting.
        unsafe { rope::rotate(self.isa, x, self.cos.part(at..at + pairs), self.sin.part(at..at + pairs), scale) }
    }

    unsafe fn place_query(&self, row: usize, head: usize, layer: &LayerWeights) {
        // SAFETY: the caller's.
        unsafe {
            let (bias, norm) = (layer.q_bias.as_deref(), layer.q_norm.as_deref());
            let x = self.head_of(&self.q, row, head, self.shape.heads, bias, norm);
            self.turn(row, layer, x, self.shape.attention_scale);
        }
    }

    unsafe fn place_key(&self, row: usize, head: usize, index: usize, layer: &LayerWeights) {
        let mut halves = [0u16; MAX_HEAD];
        // SAFETY: the caller's; the cache has a page for the row's position.
        unsafe {
            let (bias, norm) = (layer.k_bias.as_deref(), layer.k_norm.as_deref());
            let x = self.head_of(&self.k, row, head, self.shape.kv_heads, bias, norm);
            self.turn(row, layer, x, 1.0);
            self.halve(x, &mut halves);
            let (page, slot) = self.page(row);
            let block =
                page.add(self.page_shape.key_offset(index, head) + slot / LANES * LANES * x.len() + slot % LANES);
            for (d, half) in halves[..x.len()].iter().enumerate() {
                block.add(d * LANES).write(*half);
            }
        }
    }

    unsafe fn place_value(&self, row: usize, head: usize, index: usize, layer: &LayerWeights) {
        // SAFETY: the caller's; the cache has a page for the row's position.
        unsafe {
            let x = self.head_of(&self.v, row, head, self.shape.kv_heads, layer.v_bias.as_deref(), None);
            let (page, slot) = self.page(row);
            let to = page.add(self.page_shape.value_offset(index, head) + slot * x.len());
            self.halve(x, std::slice::from_raw_parts_mut(to, x.len()));
        }
    }

    /// The page of a row's position, and its place there.
    fn page(&self, row: usize) -> (*mut u16, usize) {
        let position = self.position(row);
        (self.spans[self.row_span[row]].pages[position / PAGE_POSITIONS], position % PAGE_POSITIONS)
    }

    /// Rounds to half precision; notes what does not fit.
    unsafe fn halve(&self, x: &[f32], to: &mut [u16]) {
        /// From here on a number rounds to infinity.
        const TOO_LARGE: f32 = 65_520.0;
        // SAFETY: `isa` is the pool's.
        unsafe { dispatch(self.isa, Halve { x, to }) };
        if !x.iter().fold(true, |fits, x| fits & (x.abs() < TOO_LARGE)) {
            self.too_large.store(true, Ordering::Relaxed);
        }
    }

    /// Attention items, as long as there are some.
    unsafe fn attend(&self, own: &mut Own, index: usize, layer: &LayerWeights) {
        let Shape { heads, kv_heads, head_width, .. } = self.shape;
        let group = heads / kv_heads;
        while let Some(item) = self.items.get(self.claimed[index].fetch_add(1, Ordering::Relaxed)) {
            let span = &self.spans[item.span];
            let mut rows = [Row::NONE; MAX_ROWS];
            for (row, n) in rows.iter_mut().zip(item.rows.clone()) {
                let (of_span, head) = (n / group, item.kv_head * group + n % group);
                let at = ((span.rows.start + of_span) * heads + head) * head_width;
                // SAFETY: queries were placed before the last meeting; the result belongs to the item.
                *row = unsafe {
                    Row {
                        query: self.q.start().add(at),
                        out: self.attended.start().add(at),
                        position: span.position + of_span,
                    }
                };
            }
            let cache = KeysValues {
                pages: &span.pages,
                key_offset: self.page_shape.key_offset(index, item.kv_head),
                value_offset: self.page_shape.value_offset(index, item.kv_head),
                head_dim: head_width,
            };
            let rows = &rows[..item.rows.len()];
            // SAFETY: as above; keys and values of all these positions were written before the last meeting.
            unsafe {
                attention::attend(self.isa, rows, cache, layer.window, self.shape.attention_soft_cap, &mut own.scores);
            }
        }
    }

    /// Logits of the wanted rows, or the activations of all.
    unsafe fn finish(&self, worker: Worker<'_>, own: &mut Own, mine: Range<usize>) {
        let Shape { width, vocabulary, .. } = self.shape;
        let note = |finite: bool| {
            if !finite {
                self.not_finite.store(true, Ordering::Relaxed);
            }
        };
        note(all_finite(&own.x[mine.start * width..mine.end * width]));
        // SAFETY: as `run` says.
        unsafe {
            let Some(head) = self.head else {
                if !self.few || worker.index == 0 {
                    self.activations
                        .part_mut(mine.start * width..mine.end * width)
                        .copy_from_slice(&own.x[mine.start * width..mine.end * width]);
                }
                return;
            };
            let wanted = self.wanted.iter().copied().enumerate().filter(|(_, row)| mine.contains(row));
            let x = self.normed_rows(worker, own, wanted, &head.norm, Stage::Head);
            if self.wanted.is_empty() {
                return;
            }
            let [tiles] = shares(worker, [&head.output]);
            self.product(&head.output, tiles.clone(), x, &self.logits, vocabulary);
            let columns = quant::rows_of(&tiles, vocabulary);
            for n in 0..self.wanted.len() {
                let logits = self.logits.part_mut(n * vocabulary + columns.start..n * vocabulary + columns.end);
                if let Some(cap) = self.shape.logit_soft_cap {
                    soft_cap(self.isa, logits, cap);
                }
                note(all_finite(logits));
            }
        }
    }
}

/// Every row to its own place.
fn every(rows: &Range<usize>) -> impl Iterator<Item = (usize, usize)> + use<> {
    rows.clone().map(|row| (row, row))
}

/// This thread's contiguous share of the tiles of several matrices laid one after the other.
fn shares<const N: usize>(worker: Worker<'_>, matrices: [&Matrix; N]) -> [Range<usize>; N] {
    let all = worker.share(matrices.iter().map(|w| w.tiles()).sum());
    let mut before = 0;
    matrices.map(|w| {
        let within = |at: usize| at.saturating_sub(before).min(w.tiles());
        let share = within(all.start)..within(all.end);
        before += w.tiles();
        share
    })
}

struct Halve<'a> {
    x: &'a [f32],
    to: &'a mut [u16],
}

impl Body for Halve<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for (x, to) in self.x.as_chunks::<LANES>().0.iter().zip(self.to.as_chunks_mut::<LANES>().0) {
            // SAFETY: sixteen of each; heads are multiples of sixteen.
            unsafe { S::store_f16(to.as_mut_ptr(), S::load(x.as_ptr())) };
        }
    }
}
