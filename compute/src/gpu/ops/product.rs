//! Products of rows with a matrix of weights.

use super::exact::ExactSums;
use crate::Error;
use crate::gpu::commands::Dispatch;
use crate::gpu::pipeline::{KernelId, Shader};
use crate::gpu::planes;
use crate::gpu::{Commands, GpuBuffer, GpuMatrix, GpuRows, dimension, spread};

/// What becomes of a product's results.
#[derive(Clone, Copy, Debug, Default)]
pub struct Store<'a> {
    /// `[outputs]` f32: added to each row.
    pub bias: Option<&'a GpuBuffer>,
    /// Whether the results are added to what is there, as to a residual.
    pub add: bool,
    /// Reported where such a sum is NaN or infinite, by exact commands.
    pub code: u32,
}

/// Rows from which weights are shared by many rows in workgroup memory.
const TILED_FROM: usize = 32;

/// Rows of x and outputs of a workgroup of the tiled kernel.
pub(super) const TILE: usize = 64;

/// Outputs of a workgroup of the kernel for few rows.
pub(super) const FEW_ROWS_OUTS: usize = 8;

impl Commands {
    /// `y[row, out] = Σ x[row, k] · W[out, k]` for the first `rows` rows: weights as their format says, sums in f32.
    ///
    /// # Errors
    /// [`Error::Invalid`] where shapes do not fit; [`Error::DeviceLost`].
    pub fn product(
        &mut self,
        w: &GpuMatrix,
        x: &GpuRows,
        y: &GpuRows,
        rows: usize,
        store: Store<'_>,
    ) -> Result<(), Error> {
        let fits = w.k() == x.cols() && w.rows() == y.cols() && rows <= x.rows().min(y.rows());
        let fits_bias = store.bias.is_none_or(|bias| bias.size_bytes() >= 4 * w.rows() as u64);
        if !fits || !fits_bias {
            return Err(Error::invalid(
                "product on the GPU",
                format!("{rows} rows of {x:?} times {w:?} do not give {y:?}"),
            ));
        }
        if rows == 0 {
            return Ok(());
        }
        if self.is_exact() {
            let Store { bias, add, code } = store;
            return self.exact_product(w, &ExactSums { x, y, rows, outs: w.rows(), bias, add, code }, None);
        }
        let gpu = self.gpu().clone();
        let nothing = gpu.nothing()?;
        let blocks = planes::blocks_of(w.k());
        let flags = u32::from(store.bias.is_some()) | (2 * u32::from(store.add));
        let (shader, constant, per_group) = if rows >= TILED_FROM {
            (Shader::TiledProduct, 0, (TILE, TILE))
        } else {
            let at_once = rows.next_power_of_two().min(8);
            (Shader::Product, at_once as u32, (at_once, FEW_ROWS_OUTS))
        };
        for chunk in w.chunks() {
            let [plane1, plane2, plane3] = chunk.planes;
            let outs = chunk.rows.len();
            let [across, deep] = spread(outs.div_ceil(per_group.1))?;
            let work_of_row = (outs * w.k()) as u64;
            // The kernel for few rows has few rows.
            let at_once = match shader {
                Shader::TiledProduct => ((self.max_work() / work_of_row.max(1)) as usize / TILE).max(1) * TILE,
                _ => rows,
            };
            for first in (0..rows).step_by(at_once) {
                let count = at_once.min(rows - first);
                self.dispatch(&Dispatch {
                    kernel: KernelId { shader, format: Some(w.ty()), constants: [constant, 0, 0] },
                    buffers: &[&chunk.buffer, &x.buffer, store.bias.unwrap_or(nothing), &y.buffer, nothing],
                    parameters: &[
                        dimension(rows)?,
                        dimension(outs)?,
                        dimension(blocks)?,
                        dimension(x.stride() / 4)?,
                        dimension(y.stride())?,
                        dimension(chunk.rows.start)?,
                        plane1,
                        plane2,
                        plane3,
                        flags,
                        0,
                        0,
                        1,
                        0,
                        dimension(first)?,
                        0,
                    ],
                    workgroups: [across, dimension(count.div_ceil(per_group.0))?, deep],
                    work: count as u64 * work_of_row,
                })?;
            }
        }
        Ok(())
    }
}
