//! A mixture of experts: the router's choice, products with the chosen experts' weights, their weighted sum. A slot is one row with
//! one of its experts.

use super::exact::ExactSums;
use super::fits;
use super::product::{FEW_ROWS_OUTS, TILE};
use crate::Error;
use crate::gpu::commands::Dispatch;
use crate::gpu::pipeline::{KernelId, Shader};
use crate::gpu::planes;
use crate::gpu::{Commands, Gpu, GpuBuffer, GpuMatrix, GpuRows, dimension, spread};
use std::sync::Arc;

/// Experts of a layer that a router chooses from, at most, and that it chooses for a row.
const MAX_EXPERTS: usize = 1024;
const MAX_USED: usize = 64;
/// Elements of a row that a workgroup sums.
const ROW_PIECE: usize = 128;

/// What becomes of a router's logits.
#[derive(Clone, Copy, Debug)]
pub enum GpuGating<'a> {
    /// The weights are a softmax over the chosen.
    Softmax,
    /// The weights are sigmoids, divided by their sum.
    Sigmoid {
        /// `[experts]`: added to the sigmoids for the choice alone.
        correction: Option<&'a GpuBuffer>,
        /// Factor of the weights.
        scale: f32,
    },
}

/// The choices of a batch: `[rows, per_row]`, of each the expert and the bits of its f32 weight, those of a row in ascending order.
#[derive(Debug)]
pub struct GpuChosen {
    buffer: GpuBuffer,
    /// Tiles of slots of one expert, and the slots of each; see `group_slots.wgsl`.
    groups: GpuBuffer,
    rows: usize,
    /// All experts, those that compute every row included.
    experts: usize,
    used: usize,
    shared: usize,
}

/// Slots of an expert, on average, from which they share what is read of its weights.
const GROUPED_FROM: usize = 4;

impl GpuChosen {
    /// Room for `used` of `experts` experts for each row, and `shared` more that compute every row.
    ///
    /// # Errors
    /// As [`GpuBuffer::new`]; [`Error::Invalid`] for more than the kernels take.
    pub fn new(gpu: &Arc<Gpu>, rows: usize, experts: usize, used: usize, shared: usize) -> Result<GpuChosen, Error> {
        let is_taken = (1..=MAX_USED.min(experts)).contains(&used) && experts <= MAX_EXPERTS && shared <= MAX_USED;
        fits("experts on the GPU", is_taken, || format!("{used} of {experts} experts, and {shared}"))?;
        let slots = rows * (used + shared);
        let experts = experts + shared;
        let groups = 4 * (4 * tiles(slots, experts) + slots) as u64;
        Ok(GpuChosen {
            buffer: GpuBuffer::new(gpu, 8 * slots as u64, "chosen experts on the GPU")?,
            groups: GpuBuffer::new(gpu, groups, "slots by expert on the GPU")?,
            rows,
            experts,
            used,
            shared,
        })
    }

    /// Whether the slots of so many rows are computed by expert.
    fn is_grouped(&self, rows: usize) -> bool {
        rows * self.per_row() >= GROUPED_FROM * self.experts
    }

    /// Experts of a row.
    pub fn per_row(&self) -> usize {
        self.used + self.shared
    }

    /// Slots of all rows.
    pub fn slots(&self) -> usize {
        self.rows * self.per_row()
    }

    /// The memory: of each slot the expert and the bits of its weight, as u32.
    pub fn buffer(&self) -> &GpuBuffer {
        &self.buffer
    }
}

/// Tiles of so many slots, at most: each expert may have one that is not full.
fn tiles(slots: usize, experts: usize) -> usize {
    slots / TILE + experts.min(slots)
}

impl Commands {
    /// Chooses the experts of the first `rows` rows by their logits, `[rows, experts]`; of equal scores that of the lower index. Those
    /// that compute every row follow, with the indices after `experts`, with weight 1, or with `shared_gate`, `[hidden size]`, the
    /// sigmoid of its dot product with the row of `x`.
    ///
    /// # Errors
    /// [`Error::Invalid`] where shapes do not fit; [`Error::DeviceLost`].
    // The router's inputs, the shared experts' and the result are apart in the callers.
    #[allow(clippy::too_many_arguments)]
    pub fn route(
        &mut self,
        gating: GpuGating<'_>,
        logits: &GpuRows,
        x: &GpuRows,
        shared_gate: Option<&GpuBuffer>,
        chosen: &GpuChosen,
        rows: usize,
        code: u32,
    ) -> Result<(), Error> {
        let experts = logits.cols();
        let (is_sigmoid, correction, scale) = match gating {
            GpuGating::Softmax => (false, None, 1.0),
            GpuGating::Sigmoid { correction, scale } => (true, correction, scale),
        };
        let shapes = experts + chosen.shared == chosen.experts
            && rows <= logits.rows().min(x.rows()).min(chosen.rows)
            && correction.is_none_or(|correction| correction.size_bytes() >= 4 * experts as u64)
            && shared_gate.is_none_or(|gate| gate.size_bytes() >= 4 * x.cols() as u64);
        fits("routing on the GPU", shapes, || format!("{rows} rows of {logits:?}, {x:?}, {chosen:?}"))?;
        let gpu = self.gpu().clone();
        let nothing = gpu.nothing()?;
        let fault = self.fault()?;
        let flags =
            u32::from(is_sigmoid) | (2 * u32::from(correction.is_some())) | (4 * u32::from(shared_gate.is_some()));
        self.dispatch(&Dispatch {
            kernel: KernelId {
                shader: self.either(Shader::Route, Shader::ExactRoute),
                format: None,
                constants: [0; 3],
            },
            buffers: &[
                &logits.buffer,
                correction.unwrap_or(nothing),
                &x.buffer,
                shared_gate.unwrap_or(nothing),
                &chosen.buffer,
                &fault,
            ],
            parameters: &[
                dimension(experts)?,
                dimension(chosen.used)?,
                dimension(chosen.shared)?,
                dimension(logits.stride())?,
                dimension(x.cols())?,
                dimension(x.stride())?,
                flags,
                scale.to_bits(),
                code,
                0,
                0,
                0,
            ],
            workgroups: [dimension(rows)?, 1, 1],
            work: (rows * (experts * chosen.used + x.cols())) as u64,
        })?;
        if self.is_exact() || !chosen.is_grouped(rows) {
            return Ok(());
        }
        let slots = rows * chosen.per_row();
        self.dispatch(&Dispatch {
            kernel: KernelId { shader: Shader::GroupSlots, format: None, constants: [0; 3] },
            buffers: &[&chosen.buffer, &chosen.groups],
            parameters: &[dimension(slots)?, dimension(chosen.experts)?, dimension(tiles(slots, chosen.experts))?, 0],
            workgroups: [1, 1, 1],
            work: slots as u64,
        })
    }

    /// `y[slot, out] = Σ x[row of the slot, k] · W[expert of the slot, out, k]` for the slots of the `rows` rows that were routed. `w` is
    /// of all experts, `experts · outputs` rows in units of an expert. `x` has a row for each row of the batch where `by_row` is true, else
    /// one for each slot. `bias`: `[experts, outputs]`.
    ///
    /// # Errors
    /// [`Error::Invalid`] where shapes do not fit; [`Error::DeviceLost`].
    // The weights, the rows and the choice are apart in the callers.
    #[allow(clippy::too_many_arguments)]
    pub fn expert_product(
        &mut self,
        w: &GpuMatrix,
        chosen: &GpuChosen,
        x: &GpuRows,
        by_row: bool,
        y: &GpuRows,
        rows: usize,
        bias: Option<&GpuBuffer>,
    ) -> Result<(), Error> {
        let slots = rows * chosen.per_row();
        let experts = chosen.experts;
        let outs = w.rows() / experts;
        let shapes = experts * outs == w.rows()
            && outs == y.cols()
            && w.k() == x.cols()
            && w.chunks().iter().all(|chunk| chunk.rows.len().is_multiple_of(outs.max(1)))
            && rows <= chosen.rows
            && slots <= y.rows()
            && x.rows() >= if by_row { rows } else { slots }
            && bias.is_none_or(|bias| bias.size_bytes() >= 4 * w.rows() as u64);
        fits("experts on the GPU", shapes, || format!("{rows} rows, {x:?} times {w:?} to {y:?}, {chosen:?}"))?;
        let gpu = self.gpu().clone();
        let nothing = gpu.nothing()?;
        let shared_by = if by_row { chosen.per_row() } else { 1 };
        let tiles = tiles(slots, experts);
        if self.is_exact() {
            let sums = ExactSums { x, y, rows: slots, outs, bias, add: false, code: 0 };
            return self.exact_product(w, &sums, Some((&chosen.buffer, shared_by)));
        }
        let (shader, constants, order, down, per_group) = match chosen.is_grouped(rows) {
            true => (Shader::TiledProduct, [1, 0, 0], &chosen.groups, tiles, TILE),
            false => (Shader::Product, [1, 1, 0], &chosen.buffer, slots, FEW_ROWS_OUTS),
        };
        let [across, deep] = spread(outs.div_ceil(per_group))?;
        for chunk in w.chunks() {
            let [plane1, plane2, plane3] = chunk.planes;
            self.dispatch(&Dispatch {
                kernel: KernelId { shader, format: Some(w.ty()), constants },
                buffers: &[&chunk.buffer, &x.buffer, bias.unwrap_or(nothing), &y.buffer, order],
                parameters: &[
                    dimension(slots)?,
                    dimension(outs)?,
                    dimension(planes::blocks_of(w.k()))?,
                    dimension(x.stride() / 4)?,
                    dimension(y.stride())?,
                    0,
                    plane1,
                    plane2,
                    plane3,
                    u32::from(bias.is_some()),
                    dimension(chunk.rows.start / outs.max(1))?,
                    dimension(chunk.rows.len() / outs.max(1))?,
                    dimension(shared_by)?,
                    dimension(tiles)?,
                    0,
                    0,
                ],
                workgroups: [across, dimension(down)?, deep],
                work: (slots * outs * w.k()) as u64,
            })?;
        }
        Ok(())
    }

    /// `y[row] = Σ weight · results[slot]` over the slots of each of the first `rows` rows, or added to y where `add` is true.
    ///
    /// # Errors
    /// [`Error::Invalid`] where shapes do not fit; [`Error::DeviceLost`].
    pub fn expert_sum(
        &mut self,
        results: &GpuRows,
        chosen: &GpuChosen,
        y: &GpuRows,
        rows: usize,
        add: bool,
        code: u32,
    ) -> Result<(), Error> {
        let shapes = results.cols() == y.cols()
            && rows <= chosen.rows.min(y.rows())
            && rows * chosen.per_row() <= results.rows();
        fits("experts on the GPU", shapes, || format!("{rows} rows of {results:?} to {y:?}, {chosen:?}"))?;
        let fault = self.fault()?;
        self.dispatch(&Dispatch {
            kernel: KernelId {
                shader: self.either(Shader::ExpertSum, Shader::ExactExpertSum),
                format: None,
                constants: [0; 3],
            },
            buffers: &[&results.buffer, &chosen.buffer, &y.buffer, &fault],
            parameters: &[
                dimension(y.cols())?,
                dimension(y.stride())?,
                dimension(results.stride())?,
                dimension(chosen.per_row())?,
                u32::from(add),
                code,
                0,
                0,
            ],
            workgroups: [dimension(y.cols().div_ceil(ROW_PIECE))?, dimension(rows)?, 1],
            work: (rows * chosen.per_row() * y.cols()) as u64,
        })
    }
}
