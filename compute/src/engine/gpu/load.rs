//! The weights of a stage in a GPU's memory. Only the stage's tensors are read; pages of the file that were read are released.

use super::{Arithmetic, GpuAttention, GpuExperts, GpuFeedForward, GpuHead, GpuLayer, GpuWeights};
use crate::Error;
use crate::engine::LoadBytes;
use crate::gguf::{Gguf, is_finite};
use crate::gpu::{Gpu, GpuBuffer, GpuMatrix};
use crate::model::plan::{
    AttentionPlan, ExpertsPlan, FeedForwardPlan, GatingPlan, LayerPlan, MatrixPlan, MixerPlan, VectorPlan,
};
use crate::model::{ModelFile, StagePlan};
use std::cell::Cell;
use std::sync::Arc;

/// What a vector of floats is for, in errors.
const VECTOR: &str = "vectors of weights on the GPU";

/// Bytes of a matrix that are staged on their way to the GPU.
const SCRATCH: u64 = 32 << 20;

/// Reads, checks and uploads the weights of a plan of `file`.
///
/// # Errors
/// [`Error::Invalid`] for weights that are not finite, and for layers that the kernels do not compute; [`Error::OutOfMemory`];
/// [`Error::DeviceLost`].
pub(super) fn load(
    file: &ModelFile,
    plan: &StagePlan,
    gpu: &Arc<Gpu>,
    arithmetic: Arithmetic,
) -> Result<GpuWeights, Error> {
    check(plan, arithmetic)?;
    let mut upload = Upload { file: file.gguf(), gpu, bytes: 0 };
    let embedding = plan.embedding.as_ref().map(|plan| upload.matrix(plan)).transpose()?.map(Arc::new);
    let layers = plan.layers.iter().map(|layer| upload.layer(layer)).collect::<Result<_, _>>()?;
    let head = match &plan.head {
        Some(head) => {
            let host_norm = head.norm.read(file.gguf())?;
            Some(GpuHead {
                norm: upload.floats(&host_norm)?,
                host_norm,
                output: Arc::new(upload.matrix(&head.output)?),
            })
        }
        None => None,
    };
    let embedding = match embedding {
        None if plan.part.embedding => head.as_ref().map(|head| Arc::clone(&head.output)),
        embedding => embedding,
    };
    file.gguf().release_all();
    Ok(GpuWeights { layers, embedding, head, frequencies: plan.frequencies(file)?, memory_bytes: upload.bytes })
}

/// What [`load`] needs: the GPU's memory, and this machine's while weights are on their way.
///
/// # Errors
/// As [`load`], as far as the plan shows them.
pub(super) fn load_bytes(plan: &StagePlan, arithmetic: Arithmetic) -> Result<LoadBytes, Error> {
    check(plan, arithmetic)?;
    let device = plan.matrices().map(|plan| GpuMatrix::bytes_for(plan.ty, plan.rows, plan.k)).sum();
    Ok(LoadBytes { weights: 0, device, scratch: SCRATCH })
}

/// Whether the kernels compute all layers of a plan.
fn check(plan: &StagePlan, arithmetic: Arithmetic) -> Result<(), Error> {
    for layer in &plan.layers {
        attention_of(layer)?;
        if let FeedForwardPlan::Experts(experts) = &layer.feed_forward
            && [&experts.gate, &experts.up, &experts.down]
                .iter()
                .any(|of_each| of_each.iter().any(|one| one.ty != of_each[0].ty))
        {
            return Err(refused("experts of several weight types in one layer"));
        }
        // The CPU computes them in f64.
        if let FeedForwardPlan::Experts(experts) = &layer.feed_forward
            && experts.shared_gate.is_some()
            && arithmetic == Arithmetic::Exact
        {
            return Err(Error::invalid(
                "gpu",
                "gates of experts that compute every row have other bits on a GPU; use the processor, or a GPU that is not exact",
            ));
        }
    }
    Ok(())
}

/// The attention of a layer, if it is such a layer.
fn attention_of(layer: &LayerPlan) -> Result<&AttentionPlan, Error> {
    match &layer.mixer {
        MixerPlan::Attention(plan) => Ok(plan),
        MixerPlan::Delta(_) => Err(refused("gated delta nets")),
    }
}

fn refused(what: &str) -> Error {
    Error::invalid("gpu", format!("{what} are not computed on a GPU; use the processor"))
}

struct Upload<'a> {
    file: &'a Gguf,
    gpu: &'a Arc<Gpu>,
    bytes: u64,
}

impl Upload<'_> {
    fn matrix(&mut self, plan: &MatrixPlan) -> Result<GpuMatrix, Error> {
        self.matrices(std::slice::from_ref(plan), 1)
    }

    /// Matrices of one type and shape as one, whose chunks begin at multiples of `unit` rows.
    fn matrices(&mut self, plans: &[MatrixPlan], unit: usize) -> Result<GpuMatrix, Error> {
        let MatrixPlan { ty, rows, k, pairs, .. } = plans[0].clone();
        let bytes: Vec<&[u8]> =
            plans.iter().map(|plan| self.file.slice(plan.bytes.clone()).unwrap_or_default()).collect();
        let row_bytes = k / ty.block_len() * ty.block_bytes();
        let matrix = GpuMatrix::new(self.gpu, ty, plans.len() * rows, k, unit)?;
        let are_finite = Cell::new(true);
        matrix.write_rows(self.gpu, |row, to| {
            let (of, row) = (row / rows, row % rows);
            let source = pairs.map_or(row, |pairs| pairs.source_row(row));
            let from = bytes[of].get(source * row_bytes..(source + 1) * row_bytes).unwrap_or_default();
            are_finite.set(are_finite.get() && is_finite(ty, from));
            to.extend_from_slice(from);
        })?;
        bytes.iter().for_each(|bytes| self.file.release(bytes));
        if !are_finite.get() {
            return Err(Error::invalid(
                "model",
                format!(
                    "tensor {:?} holds numbers that are not finite: the file is damaged; fetch it again",
                    plans[0].name
                ),
            ));
        }
        self.bytes += matrix.size_bytes();
        Ok(matrix)
    }

    fn floats(&mut self, values: &[f32]) -> Result<GpuBuffer, Error> {
        let buffer = GpuBuffer::of(self.gpu, values, VECTOR)?;
        self.bytes += buffer.size_bytes();
        Ok(buffer)
    }

    fn vector(&mut self, plan: &VectorPlan) -> Result<GpuBuffer, Error> {
        let values = plan.read(self.file)?;
        self.floats(&values)
    }

    fn maybe(&mut self, plan: &Option<VectorPlan>) -> Result<Option<GpuBuffer>, Error> {
        plan.as_ref().map(|plan| self.vector(plan)).transpose()
    }

    fn layer(&mut self, plan: &LayerPlan) -> Result<GpuLayer, Error> {
        let attention = attention_of(plan)?;
        Ok(GpuLayer {
            attention_norm: self.vector(&plan.attention_norm)?,
            attention: self.attention(attention)?,
            post_attention_norm: self.maybe(&plan.post_attention_norm)?,
            ffn_norm: self.vector(&plan.ffn_norm)?,
            feed_forward: match &plan.feed_forward {
                FeedForwardPlan::Dense(plan) => GpuFeedForward::Dense {
                    gate: self.matrix(&plan.gate)?,
                    up: self.matrix(&plan.up)?,
                    down: self.matrix(&plan.down)?,
                },
                FeedForwardPlan::Experts(plan) => GpuFeedForward::Experts(Box::new(self.experts(plan)?)),
            },
            post_ffn_norm: self.maybe(&plan.post_ffn_norm)?,
        })
    }

    fn attention(&mut self, plan: &AttentionPlan) -> Result<GpuAttention, Error> {
        // The norm of query heads, then that of key heads.
        let norms = match (&plan.q_norm, &plan.k_norm) {
            (Some(q), Some(k)) => Some([q.read(self.file)?, k.read(self.file)?].concat()),
            _ => None,
        };
        Ok(GpuAttention {
            q: self.matrix(&plan.q)?,
            k: self.matrix(&plan.k)?,
            v: self.matrix(&plan.v)?,
            o: self.matrix(&plan.o)?,
            q_bias: self.maybe(&plan.q_bias)?,
            k_bias: self.maybe(&plan.k_bias)?,
            v_bias: self.maybe(&plan.v_bias)?,
            o_bias: self.maybe(&plan.o_bias)?,
            norms: norms.map(|norms| self.floats(&norms)).transpose()?,
            sinks: self.maybe(&plan.sinks)?,
            window: plan.sliding_window,
            page_layer: plan.page_layer,
        })
    }

    fn experts(&mut self, plan: &ExpertsPlan) -> Result<GpuExperts, Error> {
        let shared = plan.gate.len() - plan.router.rows;
        let (correction, scale) = match &plan.gating {
            GatingPlan::Softmax => (None, None),
            GatingPlan::Sigmoid { correction, scale } => (self.maybe(correction)?, Some(*scale)),
        };
        let biases = match &plan.biases {
            None => None,
            Some([router, gate, up, down]) => {
                Some([self.vector(router)?, self.vector(gate)?, self.vector(up)?, self.vector(down)?])
            }
        };
        let (f, h) = (plan.gate[0].rows, plan.down[0].rows);
        Ok(GpuExperts {
            used: plan.used,
            shared,
            count: plan.gate.len(),
            router: self.matrix(&plan.router)?,
            correction,
            scale,
            gate: self.matrices(&plan.gate, f)?,
            up: self.matrices(&plan.up, f)?,
            down: self.matrices(&plan.down, h)?,
            shared_gate: self.maybe(&plan.shared_gate)?,
            biases,
        })
    }
}
