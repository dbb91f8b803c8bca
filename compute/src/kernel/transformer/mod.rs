//! A transformer's layers over a batch of rows, computed by all threads of a pool together. In each phase a thread computes
//! its own share of rows, and takes pieces of output features or of attention; a barrier ends the phase. A row's result
//! depends on that row and its session alone. Files, sessions' owners and text are unknown here.
//!
//! Few rows (decoding): every thread keeps the residuals and norms of all rows, which costs less than one more barrier.
//! Many rows (a prompt): every thread keeps those of its own rows.
//!
//! | file | owns |
//! |---|---|
//! | here | a layer's weights, what a batch consists of, running one |
//! | `pass` | the phases of one batch, as each thread runs them |
//! | `attend` | the phases on keys and values: rotation, the cache, attention |
//! | `delta` | the phases of a gated delta net: convolution, recurrence, what a session keeps of them |
//! | `experts` | the phases of a mixture of experts |
//! | `fault` | which step of a pass failed first |
//! | `tiles` | the pieces of a step's products, which threads take one by one |
//! | `workspace` | buffers, kept from batch to batch |

mod attend;
mod delta;
mod experts;
mod fault;
mod pass;
mod tiles;
mod workspace;

pub(crate) use delta::{ChunkState, DeltaWeights};
pub(crate) use experts::{ExpertBiases, ExpertWeights};
pub(crate) use fault::{Fault, Step};
pub(crate) use workspace::Workspace;

use super::float::activation::Activation;
use super::page::{KINDS, PageShape, kind_of};
use super::quant::Matrix;
use super::shared::Shared;
use super::state::{DeltaShape, StateShape};
use crate::{Cancel, Error, Pool};
use attend::{AttentionPlan, ClaimedAttention};
use fault::FirstFault;
use pass::{LayerTiles, Pass};
use std::ops::Range;
use std::sync::atomic::AtomicBool;
use tiles::TakenTiles;

/// Up to this many rows, every thread computes the norms of all rows.
const REPLICATED_ROWS: usize = 2;

/// Slots of a pass, at most, where a row uses no more experts than that: a slot is one row with one of its experts. A pass of
/// 256 rows with 16 experts each has that many. For Qwen3-235B (hidden size 4096, 1536 in an expert, 8 of 128) the buffers of
/// 256 rows take 42 MB.
pub(crate) const MAX_SLOTS: usize = 4096;

/// One layer. Lengths: hidden size h, query heads q, key-value heads kv, intermediate size f.
pub(crate) struct LayerWeights {
    /// `[h]`
    pub(crate) attention_norm: Vec<f32>,
    pub(crate) mixer: Mixer,
    /// `[h]`, on what the mixer adds to the residual.
    pub(crate) post_attention_norm: Option<Vec<f32>>,
    /// `[h]`
    pub(crate) ffn_norm: Vec<f32>,
    pub(crate) feed_forward: FeedForward,
    /// `[h]`, on what the feed-forward block adds to the residual.
    pub(crate) post_ffn_norm: Option<Vec<f32>>,
}

/// The block of a layer in which positions see each other.
pub(crate) enum Mixer {
    Attention(AttentionWeights),
    Delta(DeltaWeights),
}

/// Attention, of one layer.
pub(crate) struct AttentionWeights {
    /// `[q, h]`; with gates `[2q, h]`, each head's query before its gate.
    pub(crate) q: Matrix,
    /// `[kv, h]`
    pub(crate) k: Matrix,
    /// `[kv, h]`
    pub(crate) v: Matrix,
    /// `[h, q]`
    pub(crate) o: Matrix,
    pub(crate) q_bias: Option<Vec<f32>>,
    pub(crate) k_bias: Option<Vec<f32>>,
    pub(crate) v_bias: Option<Vec<f32>>,
    pub(crate) o_bias: Option<Vec<f32>>,
    /// `[head_dim]`, on each query head.
    pub(crate) q_norm: Option<Vec<f32>>,
    /// `[head_dim]`, on each key head.
    pub(crate) k_norm: Option<Vec<f32>>,
    /// `[heads]`: logits of positions that have no value, one more for each query head.
    pub(crate) sinks: Option<Vec<f32>>,
    /// Positions that a row attends to, its own included; `usize::MAX` without a sliding window.
    pub(crate) sliding_window: usize,
    /// The layer's place in a page, which holds the layers of its [kind](AttentionWeights::kind).
    pub(crate) page_layer: usize,
}

impl AttentionWeights {
    /// Which frequencies and pages the layer has.
    pub(crate) fn kind(&self) -> usize {
        kind_of(self.sliding_window)
    }
}

/// A layer's feed-forward block.
pub(crate) enum FeedForward {
    Dense(DenseWeights),
    Experts(ExpertWeights),
}

/// A feed-forward block of one part.
pub(crate) struct DenseWeights {
    /// `[f, h]`
    pub(crate) gate: Matrix,
    /// `[f, h]`
    pub(crate) up: Matrix,
    /// `[h, f]`
    pub(crate) down: Matrix,
}

/// What comes after the last layer.
pub(crate) struct Head {
    /// `[h]`
    pub(crate) norm: Vec<f32>,
    /// `[vocabulary, h]`
    pub(crate) output: Matrix,
}

/// A model's sizes and settings, as far as kernels need them.
#[derive(Clone, Copy)]
pub(crate) struct ModelShape {
    pub(crate) hidden_size: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    /// Whether each query head is followed by a gate of the head's result.
    pub(crate) gates_attention: bool,
    /// Of layers that are gated delta nets.
    pub(crate) delta: Option<DeltaShape>,
    /// Of dense feed-forward blocks; 0 where there are none.
    pub(crate) intermediate_size: usize,
    pub(crate) vocabulary: usize,
    /// Elements of a head that are rotated.
    pub(crate) rope_dim: usize,
    pub(crate) epsilon: f32,
    pub(crate) attention_scale: f32,
    pub(crate) attention_soft_cap: Option<f32>,
    pub(crate) logit_soft_cap: Option<f32>,
    pub(crate) embedding_scale: f32,
    pub(crate) activation: Activation,
}

impl ModelShape {
    /// Query heads per key-value head.
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Length of all query heads together.
    fn query_len(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Elements from a query head to the next, and of all of them with their gates.
    fn query_stride(&self) -> (usize, usize) {
        let stride = if self.gates_attention { 2 * self.head_dim } else { self.head_dim };
        (stride, self.heads * stride)
    }

    /// Length of all key (or value) heads together.
    fn kv_len(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

/// Where a batch's rows come from.
#[derive(Clone, Copy)]
pub(crate) enum RowSource<'a> {
    /// One token id per row, all within the embedding `[vocabulary, h]`.
    Tokens(&'a [u32], &'a Matrix),
    /// Activations `[rows, h]`.
    Activations(&'a [f32]),
}

/// Consecutive positions of one session.
pub(crate) struct SequenceChunk {
    /// The rows of the batch that hold these positions.
    pub(crate) rows: Range<usize>,
    /// The position of the first row.
    pub(crate) position: usize,
    /// Of each kind of layers: the start of every page of the session's cache, with room for these rows. Null where the page
    /// was dropped because no row sees its positions any more.
    pub(crate) pages: [Vec<*mut u16>; KINDS],
    /// The session's recurrent states, where layers of the part have such.
    pub(crate) state: Option<ChunkState>,
}

impl SequenceChunk {
    /// The last position, for a chunk with rows.
    fn last_position(&self) -> usize {
        self.position + self.rows.len() - 1
    }
}

// SAFETY: pages and states are written through by the batch's threads, each its own rows, while the cache is borrowed.
unsafe impl Sync for SequenceChunk {}

/// The rows that go through the layers together.
pub(crate) struct Batch<'a> {
    pub(crate) shape: ModelShape,
    /// Of each kind of layers.
    pub(crate) page_shapes: [PageShape; KINDS],
    /// Of the layers that are gated delta nets, if there are such.
    pub(crate) state_shape: Option<StateShape>,
    pub(crate) layers: &'a [LayerWeights],
    /// The first of these layers, counted from the model's first.
    pub(crate) first_layer: usize,
    pub(crate) head: Option<&'a Head>,
    /// Of each kind of layers.
    pub(crate) frequencies: [&'a [f64]; KINDS],
    pub(crate) magnitudes: [f64; KINDS],
    pub(crate) source: RowSource<'a>,
    pub(crate) chunks: &'a [SequenceChunk],
    /// The number of rows of all chunks.
    pub(crate) rows: usize,
    /// The rows whose logits are wanted, in order.
    pub(crate) logit_rows: &'a [usize],
    /// `[layers, rows, h]`: the residual after each layer, for an observer.
    pub(crate) trace: Option<&'a mut [f32]>,
    pub(crate) cancel: &'a Cancel,
}

/// Where a batch's results go.
pub(crate) struct Results<'a> {
    /// `[logit_rows, vocabulary]` with a head.
    pub(crate) logits: &'a mut [f32],
    /// `[rows, h]` without a head.
    pub(crate) activations: &'a mut [f32],
}

/// Runs the batch. `results` has room for all that the batch gives.
///
/// # Errors
/// [`Error::Cancelled`] where work was left out because of it; [`Error::OutOfMemory`]; [`Error::NonFinite`] where any step
/// gives a value that is NaN or infinite; [`Error::Invalid`] where queries, keys or values are too large. The error names the
/// first such step and its layer.
pub(crate) fn run(pool: &Pool, batch: Batch<'_>, workspace: &mut Workspace, results: Results<'_>) -> Result<(), Error> {
    let replicated = batch.rows <= REPLICATED_ROWS || pool.threads() == 1;
    let attention = AttentionPlan::new(batch.chunks, batch.shape, pool);
    let runs = delta::runs_of(batch.chunks);
    workspace.reserve(&batch, pool.threads(), replicated, attention.floats(batch.chunks, batch.shape), runs.rows)?;
    let claimed: Vec<ClaimedAttention> = batch.layers.iter().map(|_| ClaimedAttention::default()).collect();
    let taken: Vec<LayerTiles> = batch.layers.iter().map(|_| LayerTiles::default()).collect();
    let row_chunk: Vec<usize> =
        batch.chunks.iter().enumerate().flat_map(|(index, chunk)| chunk.rows.clone().map(move |_| index)).collect();
    let Workspace { threads, normed, quantized, q, k, v, split, attended, gate, up, delta, cos, sin, nets, experts } =
        workspace;
    let pass = Pass {
        isa: pool.isa(),
        replicated,
        shape: batch.shape,
        page_shapes: batch.page_shapes,
        state_shape: batch.state_shape,
        runs: &runs,
        layers: batch.layers,
        first_layer: batch.first_layer,
        head: batch.head,
        frequencies: batch.frequencies,
        magnitudes: batch.magnitudes,
        source: batch.source,
        chunks: batch.chunks,
        row_chunk: &row_chunk,
        rows: batch.rows,
        logit_rows: batch.logit_rows,
        attention: &attention,
        claimed: &claimed,
        taken: &taken,
        taken_head: TakenTiles::default(),
        threads: Shared::new(threads),
        normed: Shared::new(normed),
        quantized,
        q: Shared::new(q),
        k: Shared::new(k),
        v: Shared::new(v),
        split: Shared::new(split),
        attended: Shared::new(attended),
        gate: Shared::new(gate),
        up: Shared::new(up),
        delta: Shared::new(delta),
        cos: Shared::new(cos),
        sin: Shared::new(sin),
        nets: nets.share(),
        experts: experts.share(),
        trace: batch.trace.map(Shared::new),
        logits: Shared::new(results.logits),
        activations: Shared::new(results.activations),
        cancel: batch.cancel,
        is_stopped: AtomicBool::new(false),
        leaves: AtomicBool::new(false),
        first_fault: FirstFault::none(),
        other_rounding: AtomicBool::new(false),
    };
    // SAFETY: the buffers have the sizes that the batch needs; the pass keeps its threads apart as `Pass::run` says.
    pool.together(&|worker| unsafe { pass.run(worker) });
    pass.into_result()
}
