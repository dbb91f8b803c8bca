//! What is computed row by row or element by element: embedding, norms, activations, sums, soft caps, the largest element.

use super::fits;
use crate::Error;
use crate::gpu::commands::Dispatch;
use crate::gpu::pipeline::{KernelId, Shader};
use crate::gpu::planes;
use crate::gpu::{Commands, GpuBuffer, GpuMatrix, GpuRows, dimension, spread};

/// The activation of the gate in a gated feed-forward block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GpuActivation {
    /// x · sigmoid(x).
    Silu,
    /// GELU, tanh form.
    Gelu,
    /// Of gpt-oss: g · sigmoid(1.702 · g) with g = min(x, 7); what it gates becomes 1 + u within −7 to 7.
    Clamped,
}

/// Elements of a row that a workgroup computes.
const ROW_PIECE: usize = 128;

/// Operations of the kernel for elementwise work.
const ADD: u32 = 0;
const SCALE: u32 = 1;
const SOFT_CAP: u32 = 2;

impl Commands {
    /// The rows of `w` of the first `count` `tokens`, a buffer of u32, times `scale`. Tokens beyond the matrix leave their rows as
    /// they are.
    ///
    /// # Errors
    /// [`Error::Invalid`] where shapes do not fit; [`Error::DeviceLost`].
    pub fn embed(
        &mut self,
        w: &GpuMatrix,
        tokens: &GpuBuffer,
        count: usize,
        scale: f32,
        y: &GpuRows,
        code: u32,
    ) -> Result<(), Error> {
        let has_tokens = tokens.size_bytes() >= 4 * count as u64;
        fits("embed on the GPU", has_tokens && w.k() == y.cols() && count <= y.rows(), || {
            format!("{count} rows of {w:?} in {y:?}")
        })?;
        let fault = self.fault()?;
        for chunk in w.chunks() {
            let [plane1, plane2, plane3] = chunk.planes;
            self.dispatch(&Dispatch {
                kernel: KernelId {
                    shader: self.either(Shader::Embed, Shader::ExactEmbed),
                    format: Some(w.ty()),
                    constants: [0; 3],
                },
                buffers: &[&chunk.buffer, tokens, &y.buffer, &fault],
                parameters: &[
                    dimension(chunk.rows.start)?,
                    dimension(chunk.rows.len())?,
                    dimension(planes::blocks_of(w.k()))?,
                    dimension(w.k())?,
                    dimension(y.stride())?,
                    scale.to_bits(),
                    plane1,
                    plane2,
                    plane3,
                    code,
                    0,
                    0,
                ],
                workgroups: [dimension(count)?, 1, 1],
                work: (count * w.k()) as u64,
            })?;
        }
        Ok(())
    }

    /// `y = x / √(mean(x²) + epsilon) · weight` of the first `rows` rows, or added to y where `add` is true. `weight`: `[cols]`.
    ///
    /// # Errors
    /// [`Error::Invalid`] where shapes do not fit; [`Error::DeviceLost`].
    // Shapes, weights and what becomes of the result are apart in the callers.
    #[allow(clippy::too_many_arguments)]
    pub fn rms_norm(
        &mut self,
        x: &GpuRows,
        weight: &GpuBuffer,
        epsilon: f32,
        y: &GpuRows,
        rows: usize,
        add: bool,
        code: u32,
    ) -> Result<(), Error> {
        let has_weight = weight.size_bytes() >= 4 * x.cols() as u64;
        let is_apart = x.buffer.buffer != y.buffer.buffer;
        let shapes = x.cols() == y.cols() && rows <= x.rows().min(y.rows());
        fits("norm on the GPU", has_weight && is_apart && shapes, || format!("{rows} rows of {x:?} to {y:?}"))?;
        let fault = self.fault()?;
        self.dispatch(&Dispatch {
            kernel: KernelId { shader: self.either(Shader::Norm, Shader::ExactNorm), format: None, constants: [0; 3] },
            buffers: &[&x.buffer, weight, &y.buffer, &fault],
            parameters: &[
                dimension(x.cols())?,
                dimension(x.stride())?,
                dimension(y.stride())?,
                epsilon.to_bits(),
                u32::from(add),
                code,
                0,
                0,
            ],
            workgroups: [dimension(rows)?, 1, 1],
            work: (2 * rows * x.cols()) as u64,
        })
    }

    /// `gate = activation(gate) · up` of the first `rows` rows.
    ///
    /// # Errors
    /// [`Error::Invalid`] where shapes do not fit; [`Error::DeviceLost`].
    pub fn activate(
        &mut self,
        activation: GpuActivation,
        gate: &GpuRows,
        up: &GpuRows,
        rows: usize,
        code: u32,
    ) -> Result<(), Error> {
        let shapes = gate.cols() == up.cols() && rows <= gate.rows().min(up.rows());
        fits("activation on the GPU", shapes, || format!("{rows} rows of {gate:?} and {up:?}"))?;
        let fault = self.fault()?;
        let number = match activation {
            GpuActivation::Silu => 0,
            GpuActivation::Gelu => 1,
            GpuActivation::Clamped => 2,
        };
        self.dispatch(&Dispatch {
            kernel: KernelId {
                shader: self.either(Shader::Activate, Shader::ExactActivate),
                format: None,
                constants: [0; 3],
            },
            buffers: &[&gate.buffer, &up.buffer, &fault],
            parameters: &[dimension(gate.cols())?, dimension(gate.stride())?, number, code],
            workgroups: [dimension(gate.cols().div_ceil(ROW_PIECE))?, dimension(rows)?, 1],
            work: (8 * rows * gate.cols()) as u64,
        })
    }

    /// `x += y` of the first `rows` rows.
    ///
    /// # Errors
    /// [`Error::Invalid`] where shapes do not fit; [`Error::DeviceLost`].
    pub fn add(&mut self, x: &GpuRows, y: &GpuRows, rows: usize, code: u32) -> Result<(), Error> {
        let shapes = x.cols() == y.cols() && rows <= x.rows().min(y.rows());
        fits("sum on the GPU", shapes, || format!("{rows} rows of {x:?} and {y:?}"))?;
        self.map_rows(ADD, x, &y.buffer, y.stride(), 0.0, rows, code)
    }

    /// `x *= factor` of the first `rows` rows.
    ///
    /// # Errors
    /// As [`Commands::add`].
    pub fn scale(&mut self, x: &GpuRows, factor: f32, rows: usize, code: u32) -> Result<(), Error> {
        let gpu = self.gpu().clone();
        self.map_rows(SCALE, x, gpu.nothing()?, 0, factor, rows, code)
    }

    /// `x = cap · tanh(x / cap)` of the first `rows` rows, as of logits.
    ///
    /// # Errors
    /// As [`Commands::add`].
    pub fn soft_cap(&mut self, x: &GpuRows, cap: f32, rows: usize, code: u32) -> Result<(), Error> {
        let gpu = self.gpu().clone();
        self.map_rows(SOFT_CAP, x, gpu.nothing()?, 0, cap, rows, code)
    }

    // The two rows and what is done with them.
    #[allow(clippy::too_many_arguments)]
    fn map_rows(
        &mut self,
        operation: u32,
        x: &GpuRows,
        y: &GpuBuffer,
        y_stride: usize,
        factor: f32,
        rows: usize,
        code: u32,
    ) -> Result<(), Error> {
        fits("elementwise work on the GPU", rows <= x.rows(), || format!("{rows} rows of {x:?}"))?;
        let fault = self.fault()?;
        let [across, deep] = spread(x.cols().div_ceil(ROW_PIECE))?;
        self.dispatch(&Dispatch {
            kernel: KernelId {
                shader: self.either(Shader::Map, Shader::ExactMap),
                format: None,
                constants: [operation, 0, 0],
            },
            buffers: &[&x.buffer, y, &fault],
            parameters: &[
                dimension(x.cols())?,
                dimension(x.stride())?,
                dimension(y_stride)?,
                factor.to_bits(),
                code,
                0,
                0,
                0,
            ],
            workgroups: [across, dimension(rows)?, deep],
            work: (2 * rows * x.cols()) as u64,
        })
    }

    /// The index of the largest element of each of the first `rows` rows, of equal ones the lowest, as u32 in `chosen`.
    ///
    /// # Errors
    /// [`Error::Invalid`] where shapes do not fit; [`Error::DeviceLost`].
    pub fn argmax(&mut self, x: &GpuRows, chosen: &GpuBuffer, rows: usize, code: u32) -> Result<(), Error> {
        let shapes = rows <= x.rows() && x.cols() > 0 && chosen.size_bytes() >= 4 * rows as u64;
        fits("argmax on the GPU", shapes, || format!("{rows} rows of {x:?}"))?;
        let fault = self.fault()?;
        self.dispatch(&Dispatch {
            kernel: KernelId { shader: Shader::Argmax, format: None, constants: [0; 3] },
            buffers: &[&x.buffer, chosen, &fault],
            parameters: &[dimension(x.cols())?, dimension(x.stride())?, code, 0],
            workgroups: [dimension(rows)?, 1, 1],
            work: (rows * x.cols()) as u64,
        })
    }
}
