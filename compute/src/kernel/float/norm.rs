//! Root mean square normalisation (Zhang & Sennrich 2019). The sum of squares runs over sixteen lanes, lane i summing
//! elements i, i + 16, …; a result depends on its row alone.
#![allow(unsafe_code)]

use crate::Isa;
use crate::kernel::simd::{Body, LANES, Simd, dispatch, fold};

struct RmsNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    epsilon: f32,
    out: &'a mut [f32],
}

impl Body for RmsNorm<'_> {
    type Out = bool;
    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> bool {
        let RmsNorm { x, weight, epsilon, out } = self;
        let (whole, rest) = x.as_chunks::<LANES>();
        // SAFETY: chunks of sixteen; the three slices are of one length, as `rms_norm` checks.
        unsafe {
            let mut squares = S::splat(0.0);
            for chunk in whole {
                let v = S::load(chunk.as_ptr());
                squares = S::fma(v, v, squares);
            }
            if !rest.is_empty() {
                let mut last = [0.0; LANES];
                last[..rest.len()].copy_from_slice(rest);
                let v = S::load(last.as_ptr());
                squares = S::fma(v, v, squares);
            }
            let mut lanes = [0.0; LANES];
            S::store(lanes.as_mut_ptr(), squares);
            let sum = fold(lanes);
            let scale = 1.0 / (sum / x.len() as f32 + epsilon).sqrt();
            let (out_whole, out_rest) = out.as_chunks_mut::<LANES>();
            let (weight_whole, weight_rest) = weight.as_chunks::<LANES>();
            for ((chunk, weight), out) in whole.iter().zip(weight_whole).zip(out_whole) {
                let scaled = S::mul(S::load(chunk.as_ptr()), S::splat(scale));
                S::store(out.as_mut_ptr(), S::mul(scaled, S::load(weight.as_ptr())));
            }
            for ((x, weight), out) in rest.iter().zip(weight_rest).zip(out_rest) {
                *out = x * scale * weight;
            }
            sum.is_finite()
        }
    }
}

/// `out = x / √(mean(x²) + epsilon) · weight`; all three of one length. Returns whether the sum of squares is finite: where
/// it is not, numbers in x became zeros. (A product with `weight` that overflows is seen in `out`.)
#[must_use = "an infinite sum makes zeros"]
pub(crate) fn rms_norm(isa: Isa, x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) -> bool {
    assert!(x.len() == weight.len() && x.len() == out.len(), "a norm's rows differ in length");
    // SAFETY: the lengths were checked; `isa` is one that a pool was made with.
    unsafe { dispatch(isa, RmsNorm { x, weight, epsilon, out }) }
}

struct RmsNormInPlace<'a> {
    x: &'a mut [f32],
    weight: &'a [f32],
    epsilon: f32,
}

impl Body for RmsNormInPlace<'_> {
    type Out = bool;
    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> bool {
        // SAFETY: each element is read before it is written; the copy is as long as the row.
        unsafe {
            let mut copy = [0.0; MAX_HEAD_DIM];
            let copy = &mut copy[..self.x.len()];
            copy.copy_from_slice(self.x);
            RmsNorm { x: copy, weight: self.weight, epsilon: self.epsilon, out: self.x }.run::<S>()
        }
    }
}

/// Elements of an attention head, at most.
pub(crate) const MAX_HEAD_DIM: usize = 512;

/// [`rms_norm`] of one head's vector, at most [`MAX_HEAD_DIM`] elements, in place.
#[must_use = "an infinite sum makes zeros"]
pub(crate) fn rms_norm_head(isa: Isa, x: &mut [f32], weight: &[f32], epsilon: f32) -> bool {
    assert!(x.len() == weight.len() && x.len() <= MAX_HEAD_DIM, "a head's norm has another length");
    // SAFETY: the lengths were checked; `isa` is one that a pool was made with.
    unsafe { dispatch(isa, RmsNormInPlace { x, weight, epsilon }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_sum_of_squares_that_is_not_finite_is_reported() {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            for bad in [f32::NAN, f32::INFINITY, 1e20, -1e30] {
                for at in [0, 15, 16, 39] {
                    let mut x = [1.0; 40];
                    x[at] = bad;
                    assert!(!rms_norm(isa, &x, &[1.0; 40], 1e-5, &mut [0.0; 40]), "{isa:?}: {bad} at {at}");
                    assert!(!rms_norm_head(isa, &mut x, &[1.0; 40], 1e-5), "{isa:?}: {bad} at {at}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn every_family_gives_the_same_bits_and_the_right_norm(
            x in prop::collection::vec(-100f32..100.0, 1..200), seed in 1u32..1000,
        ) {
            let weight: Vec<f32> = (0..x.len()).map(|i| ((i as u32 * seed) % 17) as f32 / 8.0 - 1.0).collect();
            let mut plain = vec![0.0; x.len()];
            prop_assert!(rms_norm(Isa::Plain, &x, &weight, 1e-5, &mut plain));
            let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / x.len() as f64;
            for ((y, x), w) in plain.iter().zip(&x).zip(&weight) {
                let want = f64::from(*x) / (mean + 1e-5).sqrt() * f64::from(*w);
                prop_assert!((f64::from(*y) - want).abs() <= 2e-6 * want.abs() + 1e-12);
            }
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
                let mut out = vec![0.0; x.len()];
                prop_assert!(rms_norm(isa, &x, &weight, 1e-5, &mut out));
                prop_assert_eq!(out.iter().map(|x| x.to_bits()).collect::<Vec<_>>(), plain.iter().map(|x| x.to_bits()).collect::<Vec<_>>());
                let mut in_place = x.clone();
                prop_assert!(rms_norm_head(isa, &mut in_place, &weight, 1e-5));
                prop_assert_eq!(in_place, out);
            }
        }
    }
}
