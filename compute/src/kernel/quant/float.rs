//! The register tile of float weights: 16 output rows times N rows of f32 activations over all k. Threads and blocking
//! are the caller's.
// Register tiles are read by index: the loops are unrolled whole.
#![allow(clippy::needless_range_loop)]

use super::super::simd::{LANES, Simd};

/// How float weights are stored.
pub(super) trait FloatWeights: Copy + Send + Sync + 'static {
    const WIDTH: usize;
    /// Sixteen weights, widened exactly.
    ///
    /// # Safety
    /// As for [`Simd`]; `from` points to 16 of them.
    unsafe fn load<S: Simd>(from: *const u8) -> S::F;
}

macro_rules! weights {
    ($name:ident, $width:expr, $load:ident) => {
        #[derive(Clone, Copy)]
        pub(super) struct $name;
        impl FloatWeights for $name {
            const WIDTH: usize = $width;
            #[inline(always)]
            unsafe fn load<S: Simd>(from: *const u8) -> S::F {
                // SAFETY: the caller's promise.
                unsafe { S::$load(from.cast()) }
            }
        }
    };
}

weights!(F32, 4, load);
weights!(F16, 2, load_f16);
weights!(Bf16, 2, load_bf16);

/// The sums of one tile.
///
/// # Safety
/// As for [`Simd`]; `w` points to `k` times 16 weights, `x` to N rows of `k` floats, `ld` apart.
#[inline(always)]
pub(super) unsafe fn tile<S: Simd, W: FloatWeights, const N: usize>(
    w: *const u8,
    k: usize,
    x: *const f32,
    ld: usize,
) -> [S::F; N] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut acc = [S::splat(0.0); N];
        for j in 0..k {
            let weights = W::load::<S>(w.add(j * LANES * W::WIDTH));
            for i in 0..N {
                acc[i] = S::fma(weights, S::splat(*x.add(i * ld + j)), acc[i]);
            }
        }
        acc
    }
}
