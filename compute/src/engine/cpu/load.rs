//! The weights of a stage, packed for the kernels into one piece of memory in the order of their use. Only the stage's tensors
//! are read; pages of the file that were read are released.

use super::{CpuWeights, LoadBytes};
use crate::gguf::{Gguf, is_finite};
use crate::kernel::float::mixture::Gating;
use crate::kernel::quant::{Matrix, pack, packed_bytes, rows_of, tiles};
use crate::kernel::transformer::{
    AttentionWeights, DeltaWeights, DenseWeights, ExpertBiases, ExpertWeights, FeedForward, Head, LayerWeights, Mixer,
};
use crate::model::plan::{
    AttentionPlan, DeltaPlan, ExpertsPlan, FeedForwardPlan, GatingPlan, LayerPlan, MatrixPlan, MixerPlan, VectorPlan,
};
use crate::model::{ModelFile, StagePlan};
use crate::{Buffer, Error, Pool};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// Packed bytes of a piece, about: what a thread packs before it gives the pages of the file back, so that few are in memory
/// beside what they became.
const PIECE_BYTES: usize = 1 << 20;

/// Alignment of packed matrices: a cache line.
const ALIGN: usize = 64;

/// Reads, checks and packs the weights of a plan of `file` on all threads of the pool.
///
/// # Errors
/// [`Error::Invalid`] for weights that are not finite; [`Error::OutOfMemory`].
pub(super) fn load(file: &ModelFile, plan: &StagePlan, pool: &Pool) -> Result<CpuWeights, Error> {
    let (placed, memory_bytes) = place(file.gguf(), plan)?;
    let mut weights =
        Weights { file: file.gguf(), packed: pack_all(file.gguf(), &placed, memory_bytes, pool)?.into_iter() };
    let embedding = plan.embedding.as_ref().map(|_| weights.next()).transpose()?;
    let layers = plan.layers.iter().map(|layer| weights.layer(layer)).collect::<Result<_, _>>()?;
    let head = match &plan.head {
        Some(head) => Some(Head { norm: weights.read(&head.norm)?, output: weights.next()? }),
        None => None,
    };
    let embedding = match embedding {
        None if plan.part.embedding => head.as_ref().map(|head| head.output.clone()),
        embedding => embedding,
    };
    let frequencies = plan.frequencies(file)?;
    Ok(CpuWeights { layers, embedding, head, frequencies, memory_bytes: memory_bytes as u64 })
}

/// What [`load`] needs on `threads` threads.
///
/// # Errors
/// [`Error::Invalid`] for more bytes than there can be.
pub(super) fn load_bytes(file: &ModelFile, plan: &StagePlan, threads: usize) -> Result<LoadBytes, Error> {
    let (placed, weights) = place(file.gguf(), plan)?;
    let row = placed.iter().filter(|placed| placed.plan.pairs.is_some()).map(Placed::ordered_bytes).max();
    Ok(LoadBytes { weights: weights as u64, device: 0, scratch: (row.unwrap_or(0) * threads.max(1)) as u64 })
}

/// A matrix, its bytes in the file, and its place in the packed memory.
struct Placed<'a> {
    plan: &'a MatrixPlan,
    bytes: &'a [u8],
    start: usize,
}

impl Placed<'_> {
    fn row_bytes(&self) -> usize {
        self.bytes.len() / self.plan.rows.max(1)
    }

    /// Bytes of the rows of one tile in the file.
    fn ordered_bytes(&self) -> usize {
        self.row_bytes() * rows_of(&(0..1), self.plan.rows).len()
    }

    /// Packed bytes of one tile.
    fn tile_bytes(&self) -> usize {
        packed_bytes(self.plan.ty, 1, self.plan.k).unwrap_or(0)
    }
}

/// The places of all matrices of a plan, and the bytes of all of them.
fn place<'a>(file: &'a Gguf, plan: &'a StagePlan) -> Result<(Vec<Placed<'a>>, usize), Error> {
    let mut end = 0;
    let placed = plan.matrices().map(|plan| {
        let start = end;
        let bytes = packed_bytes(plan.ty, plan.rows, plan.k).and_then(|bytes| bytes.checked_next_multiple_of(ALIGN));
        let (Some(next), Some(bytes)) =
            (bytes.and_then(|bytes| bytes.checked_add(end)), file.slice(plan.bytes.clone()))
        else {
            return Err(Error::invalid("model", format!("tensor {:?} does not fit this machine's memory", plan.name)));
        };
        end = next;
        Ok(Placed { plan, bytes, start })
    });
    let placed = placed.collect::<Result<_, _>>()?;
    Ok((placed, end))
}

/// Packs all matrices into memory of `bytes` bytes.
fn pack_all(file: &Gguf, placed: &[Placed<'_>], bytes: usize, pool: &Pool) -> Result<Vec<Matrix>, Error> {
    let mut arena = Buffer::zeroed(bytes)?;
    let bad = Mutex::new(None);
    // Each thread packs the share of every matrix that it will later multiply by, so its pages are near that
    // thread.
    let mut shares: Vec<Vec<Mutex<Share<'_>>>> = (0..pool.threads()).map(|_| Vec::new()).collect();
    let mut rest = arena.as_mut_slice();
    let mut at = 0;
    for placed in placed {
        rest = rest.split_at_mut(placed.start - at).1;
        at = placed.start;
        let (all, tile_bytes) = (tiles(placed.plan.rows), placed.tile_bytes());
        for (worker, shares) in shares.iter_mut().enumerate() {
            let tiles = all * worker / pool.threads()..all * (worker + 1) / pool.threads();
            let (to, beyond) = rest.split_at_mut(tiles.len() * tile_bytes);
            (rest, at) = (beyond, at + to.len());
            let step = (PIECE_BYTES / tile_bytes.max(1)).max(1);
            for (first, to) in tiles.clone().step_by(step).zip(to.chunks_mut((step * tile_bytes).max(1))) {
                let tiles = first..tiles.end.min(first + step);
                shares.push(Mutex::new(Share { placed, tiles, to }));
            }
        }
    }
    pool.together(&|worker| {
        for share in &shares[worker.index] {
            let share = &mut *share.lock().unwrap_or_else(PoisonError::into_inner);
            let packed = share.pack();
            // Packed weights need not stay in memory twice. Pages that are still read for other tiles are loaded again.
            file.release(share.source());
            if !packed {
                *bad.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&share.placed.plan.name));
            }
        }
    });
    drop(shares);
    // Releases the pages between two threads' shares, and the metadata's.
    file.release_all();
    if let Some(name) = bad.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(Error::invalid(
            "model",
            format!("tensor {name:?} holds numbers that are not finite: the file is damaged; fetch it again"),
        ));
    }
    let arena = Arc::new(arena);
    let matrix = |placed: &Placed<'_>| {
        let MatrixPlan { ty, rows, k, .. } = *placed.plan;
        Matrix::new(ty, rows, k, Arc::clone(&arena), placed.start)
    };
    placed.iter().map(matrix).collect()
}

/// Some tiles of one matrix, and their destination.
struct Share<'a> {
    placed: &'a Placed<'a>,
    tiles: Range<usize>,
    to: &'a mut [u8],
}

impl Share<'_> {
    /// The bytes of the tiles' rows.
    fn source(&self) -> &[u8] {
        let row_bytes = self.placed.row_bytes();
        let rows = rows_of(&self.tiles, self.placed.plan.rows);
        &self.placed.bytes[rows.start * row_bytes..rows.end * row_bytes]
    }

    /// Packs the tiles; returns whether all their weights are finite. Rows that are reordered are so one tile at a time.
    fn pack(&mut self) -> bool {
        let MatrixPlan { ty, rows, k, pairs, .. } = *self.placed.plan;
        let (bytes, row_bytes) = (self.placed.bytes, self.placed.row_bytes());
        match pairs {
            None => pack(ty, rows, k, bytes, self.tiles.clone(), self.to),
            Some(pairs) => {
                let mut ordered = Vec::with_capacity(self.placed.ordered_bytes());
                let tile_bytes = self.placed.tile_bytes().max(1);
                for (tile, to) in self.tiles.clone().zip(self.to.chunks_exact_mut(tile_bytes)) {
                    let mine = rows_of(&(tile..tile + 1), rows);
                    ordered.clear();
                    for row in mine.clone() {
                        let from = pairs.source_row(row) * row_bytes;
                        ordered.extend_from_slice(&bytes[from..from + row_bytes]);
                    }
                    pack(ty, mine.len(), k, &ordered, 0..1, to);
                }
            }
        }
        is_finite(ty, self.source())
    }
}

/// Packed matrices that become weights in the order of the plan's [`StagePlan::matrices`].
struct Weights<'a> {
    file: &'a Gguf,
    packed: std::vec::IntoIter<Matrix>,
}

impl Weights<'_> {
    fn next(&mut self) -> Result<Matrix, Error> {
        self.packed.next().ok_or_else(|| Error::invalid("model", "fewer matrices were packed than the plan has"))
    }

    fn of_each(&mut self, plans: &[MatrixPlan]) -> Result<Vec<Matrix>, Error> {
        plans.iter().map(|_| self.next()).collect()
    }

    fn read(&self, vector: &VectorPlan) -> Result<Vec<f32>, Error> {
        vector.read(self.file)
    }

    fn maybe(&self, vector: &Option<VectorPlan>) -> Result<Option<Vec<f32>>, Error> {
        vector.as_ref().map(|vector| self.read(vector)).transpose()
    }

    fn layer(&mut self, plan: &LayerPlan) -> Result<LayerWeights, Error> {
        Ok(LayerWeights {
            attention_norm: self.read(&plan.attention_norm)?,
            mixer: match &plan.mixer {
                MixerPlan::Attention(plan) => Mixer::Attention(self.attention(plan)?),
                MixerPlan::Delta(plan) => Mixer::Delta(self.delta_net(plan)?),
            },
            post_attention_norm: self.maybe(&plan.post_attention_norm)?,
            ffn_norm: self.read(&plan.ffn_norm)?,
            feed_forward: match &plan.feed_forward {
                FeedForwardPlan::Dense(_) => {
                    FeedForward::Dense(DenseWeights { gate: self.next()?, up: self.next()?, down: self.next()? })
                }
                FeedForwardPlan::Experts(plan) => FeedForward::Experts(self.experts(plan)?),
            },
            post_ffn_norm: self.maybe(&plan.post_ffn_norm)?,
        })
    }

    fn attention(&mut self, plan: &AttentionPlan) -> Result<AttentionWeights, Error> {
        Ok(AttentionWeights {
            q: self.next()?,
            k: self.next()?,
            v: self.next()?,
            o: self.next()?,
            q_bias: self.maybe(&plan.q_bias)?,
            k_bias: self.maybe(&plan.k_bias)?,
            v_bias: self.maybe(&plan.v_bias)?,
            o_bias: self.maybe(&plan.o_bias)?,
            q_norm: self.maybe(&plan.q_norm)?,
            k_norm: self.maybe(&plan.k_norm)?,
            sinks: self.maybe(&plan.sinks)?,
            sliding_window: plan.sliding_window,
            page_layer: plan.page_layer,
        })
    }

    fn delta_net(&mut self, plan: &DeltaPlan) -> Result<DeltaWeights, Error> {
        Ok(DeltaWeights {
            inputs: self.of_each(&plan.inputs)?,
            convolution: plan.taps(self.file)?,
            dt: self.read(&plan.dt)?,
            a: plan.decay_rates(self.file)?,
            norm: self.read(&plan.norm)?,
            output: self.next()?,
            state_layer: plan.state_layer,
        })
    }

    fn experts(&mut self, plan: &ExpertsPlan) -> Result<ExpertWeights, Error> {
        let biases = match &plan.biases {
            None => None,
            Some([router, gate, up, down]) => Some(ExpertBiases {
                router: self.read(router)?,
                gate: self.read(gate)?,
                up: self.read(up)?,
                down: self.read(down)?,
            }),
        };
        Ok(ExpertWeights {
            used: plan.used,
            router: self.next()?,
            gating: match &plan.gating {
                GatingPlan::Softmax => Gating::Softmax,
                GatingPlan::Sigmoid { correction, scale } => {
                    Gating::Sigmoid { correction: self.maybe(correction)?, scale: *scale }
                }
            },
            gate: self.of_each(&plan.gate)?,
            up: self.of_each(&plan.up)?,
            down: self.of_each(&plan.down)?,
            shared_gate: self.maybe(&plan.shared_gate)?,
            biases,
        })
    }
}
