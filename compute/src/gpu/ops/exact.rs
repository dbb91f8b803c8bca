//! Products with the CPU's bits, and the rounding of activations to 8 bits that they need. Commands that are not exact have neither.

use super::fits;
use crate::Error;
use crate::gpu::commands::Dispatch;
use crate::gpu::pipeline::{KernelId, Shader};
use crate::gpu::planes;
use crate::gpu::{Commands, GpuBuffer, GpuMatrix, GpuRows, dimension, spread};

/// Outputs of a workgroup.
const OUTS: usize = 64;

/// Rows of a workgroup, where there are so many.
const ROWS: usize = 8;

/// Blocks of a workgroup that rounds activations.
const BLOCKS: usize = 64;

/// Operations of a multiply-add, about, as multiply-adds of floats: with quantised weights integers are multiplied, and there is a
/// step of floats in integers for 32 of them; with float weights, for each.
const OF_BLOCKS: u64 = 4;
const OF_FLOATS: u64 = 64;

/// A product and what becomes of its results.
pub(super) struct ExactSums<'a> {
    pub(super) x: &'a GpuRows,
    pub(super) y: &'a GpuRows,
    /// Rows of y, or slots.
    pub(super) rows: usize,
    /// Outputs of a row.
    pub(super) outs: usize,
    pub(super) bias: Option<&'a GpuBuffer>,
    pub(super) add: bool,
    pub(super) code: u32,
}

/// What experts compute the slots, and how many slots share a row of x.
pub(super) type Slots<'a> = (&'a GpuBuffer, usize);

impl Commands {
    /// Rounds the first `rows` rows of `x` to 8 bits, as the input of exact products. Commands that are not exact do nothing.
    ///
    /// # Errors
    /// [`Error::Invalid`] where shapes do not fit; [`Error::OutOfMemory`]; [`Error::DeviceLost`].
    pub(crate) fn quantize(&mut self, x: &GpuRows, rows: usize, code: u32) -> Result<(), Error> {
        if !self.is_exact() {
            return Ok(());
        }
        fits("rounding on the GPU", rows <= x.rows(), || format!("{rows} rows of {x:?}"))?;
        let gpu = self.gpu().clone();
        let fault = self.fault()?;
        let blocks = planes::blocks_of(x.cols());
        self.dispatch(&Dispatch {
            kernel: KernelId { shader: Shader::Quantize, format: None, constants: [0; 3] },
            buffers: &[&x.buffer, x.quantized(&gpu)?, &fault],
            parameters: &[dimension(blocks)?, dimension(x.stride())?, code, 0],
            workgroups: [dimension(blocks.div_ceil(BLOCKS))?, dimension(rows)?, 1],
            work: (rows * x.cols()) as u64 * OF_FLOATS,
        })
    }

    /// `y = x · Wᵀ` of rows, or of slots with their experts' outputs of W; shapes were checked.
    pub(super) fn exact_product(
        &mut self,
        w: &GpuMatrix,
        sums: &ExactSums<'_>,
        slots: Option<Slots<'_>>,
    ) -> Result<(), Error> {
        let ExactSums { x, y, rows, outs, bias, add, code } = *sums;
        let gpu = self.gpu().clone();
        let nothing = gpu.nothing()?;
        let fault = self.fault()?;
        let blocks = planes::blocks_of(w.k());
        let is_float = planes::is_float(w.ty());
        let (input, x_stride) = match is_float {
            true => (&x.buffer, x.stride() / 4),
            false => (x.quantized(&gpu)?, blocks * 3),
        };
        let at_once = if rows < ROWS || slots.is_some() { 1 } else { ROWS };
        let operations = if is_float { OF_FLOATS } else { OF_BLOCKS };
        for chunk in w.chunks() {
            let [plane1, plane2, plane3] = chunk.planes;
            // Of experts a chunk has whole ones, of which each slot needs one.
            let own_outs = if slots.is_some() { outs } else { chunk.rows.len() };
            let experts = chunk.rows.len() / own_outs.max(1);
            let work_of_row = (own_outs * w.k()) as u64 * operations;
            let rows_of_dispatch = ((self.max_work() / work_of_row.max(1)) as usize / ROWS).max(1) * ROWS;
            let [across, deep] = spread(own_outs.div_ceil(OUTS))?;
            for first in (0..rows).step_by(rows_of_dispatch) {
                let count = rows_of_dispatch.min(rows - first);
                self.dispatch(&Dispatch {
                    kernel: KernelId {
                        shader: Shader::ExactProduct,
                        format: Some(w.ty()),
                        constants: [at_once as u32, u32::from(slots.is_some()), 0],
                    },
                    buffers: &[
                        &chunk.buffer,
                        input,
                        bias.unwrap_or(nothing),
                        &y.buffer,
                        slots.map_or(nothing, |(chosen, _)| chosen),
                        &fault,
                    ],
                    parameters: &[
                        dimension(rows)?,
                        dimension(own_outs)?,
                        dimension(blocks)?,
                        dimension(x_stride)?,
                        dimension(y.stride())?,
                        if slots.is_some() { 0 } else { dimension(chunk.rows.start)? },
                        plane1,
                        plane2,
                        plane3,
                        u32::from(bias.is_some()) | (2 * u32::from(add)),
                        dimension(chunk.rows.start / own_outs.max(1))?,
                        dimension(experts)?,
                        dimension(slots.map_or(1, |(_, shared_by)| shared_by))?,
                        dimension(w.k())?,
                        code,
                        dimension(first)?,
                    ],
                    workgroups: [across, dimension(count.div_ceil(at_once))?, deep],
                    work: count as u64 * work_of_row,
                })?;
            }
        }
        Ok(())
    }
}
