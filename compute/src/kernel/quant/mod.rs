//! Products of packed GGUF weights with activations: the numerics of the layer engine, the same bits on every
//! processor. This module owns packed layouts, the quantisation of activations and the product kernels.
//!
//! # Numerics
//!
//! These rules are part of the engine's `numerics` version: a change that alters any result must increase that number.
//! A second version was measured and not adopted: `compute/NUMERICS.md`.
//!
//! **Activations** of quantised weights, per row and block of 32 consecutive k (k padded with zeros): `a = max |x|`, `d
//! = a / 127`, `q = round(x · (127 / a))`, ties to even, every operation rounded to f32. Where `127 / a` is not finite
//! (`a` is zero or below 3.8e-37) all q and d are zero. So |q| ≤ 127. `Σ` is the exact sum of the block's q.
//!
//! **Quantised weights**: for an output row and an activation row `acc = 0`, then for the blocks k = 0, 32, …:
//! 1. the exact integer `dot = Σ w·q` of the block, `w` with its format's offset: Q4_0 `−8`, Q5_0 `−16`, Q3_K `−4`, Q6_K
//!    `−32`; for IQ4_NL, IQ4_XS and MXFP4 the value in the code book (MXFP4's are doubled); for Q2_K, Q3_K and Q6_K `dot = s₀·dot₀ + s₁·dot₁` with the integer
//!    scales of its two halves;
//! 2. `acc = fma(d_w · d, dot, acc)` (the product of the two scales rounded to f32; `dot` is exact in f32). `d_w` is the
//!    block's scale (MXFP4: half of it); for Q4_K, Q5_K and IQ4_XS the exact product of the 256-block's scale and the group's; for Q2_K,
//!    Q3_K and Q6_K the 256-block's;
//! 3. for types with a minimum `acc = fma(m, d · Σ, acc)` (`d · Σ` rounded to f32); for Q4_K and Q5_K `m = −(dmin · mn)`.
//!    For Q2_K, with a minimum for each half, `acc = fma(−(dmin · d), mn₀·Σ₀ + mn₁·Σ₁, acc)`, the sums exact integers.
//!
//! **Float weights** (F32, F16, BF16) are multiplied with unquantised activations: `acc = 0`, then `acc = fma(w, x,
//! acc)` for k = 0, 1, …, `w` widened exactly.
//!
//! The result is stored, or added to the destination (one addition). No sum crosses rows, so a result depends on its
//! two rows alone.
#![allow(unsafe_code)]

mod float;
mod integer;
mod layout;
mod matrix;
mod pack;
mod product;
mod quantized;
#[cfg(test)]
mod tests;
mod whole;

pub(crate) use layout::{packed_bytes, rows_of, tiles};
pub(crate) use matrix::Matrix;
pub(crate) use pack::pack;
pub(crate) use product::{Input, Store, product};
pub(crate) use quantized::Quantized;
pub(crate) use whole::whole_product;
