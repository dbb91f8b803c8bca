//! exp, SiLU, GELU and tanh over sixteen lanes, from additions, multiplications and one division: the same bits
//! on every processor. Error bounds are stated here and tested against the f64 functions.
#![allow(unsafe_code)]

use crate::kernel::simd::Simd;

/// Arguments below this give zero; arguments above [`EXP_MAX`] are treated as that. Results stay normal numbers.
const EXP_MIN: f32 = -87.0;
const EXP_MAX: f32 = 88.0;

/// eˣ, at most 2 units in the last place off for −87 ≤ x ≤ 88; 0 below, e⁸⁸ above, NaN for NaN.
///
/// Cody & Waite's reduction to |r| ≤ ln 2 / 2, then the Taylor polynomial of degree 7 by Horner's rule.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
pub(crate) unsafe fn exp<S: Simd>(x: S::F) -> S::F {
    // SAFETY: passed on from the caller.
    unsafe {
        // `max` and `min` return their second operand for NaN, so NaN is passed through.
        let clamped = S::max(S::splat(EXP_MIN), S::min(S::splat(EXP_MAX), x));
        let n = S::round(S::mul(clamped, S::splat(std::f32::consts::LOG2_E)));
        // ln 2 in two parts; the first has so few bits that its product with n is exact.
        let r = S::fnma(n, S::splat(0.693_359_4), clamped);
        let r = S::fnma(n, S::splat(-2.121_944_4e-4), r);
        let mut p = S::splat(1.0 / 5040.0);
        for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            p = S::fma(p, r, S::splat(c));
        }
        let scaled = S::scale_exponent(p, S::to_i32(n));
        S::select_lt(x, S::splat(EXP_MIN), S::splat(0.0), scaled)
    }
}

/// x · sigmoid(x): SiLU (Elfwing et al. 2017).
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
pub(crate) unsafe fn silu<S: Simd>(x: S::F) -> S::F {
    // SAFETY: passed on from the caller.
    unsafe { S::div(x, S::add(S::splat(1.0), exp::<S>(S::sub(S::splat(0.0), x)))) }
}

/// GELU in its tanh form (Hendrycks & Gimpel 2016): x/2 · (1 + tanh(√(2/π)·(x + 0.044715·x³))), as x · sigmoid of twice
/// that.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
pub(crate) unsafe fn gelu<S: Simd>(x: S::F) -> S::F {
    // SAFETY: passed on from the caller.
    unsafe {
        /// 2·√(2/π)
        const TWICE: f32 = 1.595_769_2;
        let square = S::mul(x, x);
        // −2·√(2/π)·x·(1 + 0.044715·x²)
        let inner = S::mul(x, S::fma(square, S::splat(-TWICE * 0.044_715), S::splat(-TWICE)));
        S::div(x, S::add(S::splat(1.0), exp::<S>(inner)))
    }
}

/// tanh x, at most 2.5·10⁻⁷ off: for soft caps.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
pub(crate) unsafe fn tanh<S: Simd>(x: S::F) -> S::F {
    // SAFETY: passed on from the caller.
    unsafe {
        let one = S::splat(1.0);
        let e = exp::<S>(S::mul(S::abs(x), S::splat(2.0)));
        let magnitude = S::sub(one, S::div(S::splat(2.0), S::add(e, one)));
        S::copysign(magnitude, x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::kernel::simd::{Body, LANES, dispatch};

    #[derive(Clone, Copy)]
    enum Function {
        Exp,
        Silu,
        Gelu,
        Tanh,
    }

    struct Apply<'a>(Function, &'a mut [f32; LANES]);
    impl Body for Apply<'_> {
        type Out = ();
        #[inline(always)]
        unsafe fn run<S: Simd>(self) {
            // SAFETY: sixteen floats.
            unsafe {
                let x = S::load(self.1.as_ptr());
                let y = match self.0 {
                    Function::Exp => exp::<S>(x),
                    Function::Silu => silu::<S>(x),
                    Function::Gelu => gelu::<S>(x),
                    Function::Tanh => tanh::<S>(x),
                };
                S::store(self.1.as_mut_ptr(), y);
            }
        }
    }

    fn apply(isa: Isa, function: Function, mut x: [f32; LANES]) -> [f32; LANES] {
        // SAFETY: the callers ask for what is available.
        unsafe { dispatch(isa, Apply(function, &mut x)) };
        x
    }

    /// Sweeps the range in even steps, with the special values at its ends.
    fn sweep(from: f32, to: f32, mut see: impl FnMut([f32; LANES])) {
        let steps = 200_000;
        for i in (0..steps).step_by(LANES) {
            see(std::array::from_fn(|j| from + (to - from) * ((i + j) as f32 / steps as f32)));
        }
    }

    fn ulps(got: f32, want: f64) -> f64 {
        let unit = f64::from(f32::from_bits((want as f32).to_bits() & 0x7f80_0000)) * 2f64.powi(-23);
        (f64::from(got) - want).abs() / unit
    }

    #[test]
    fn the_functions_keep_their_error_bounds() {
        let isa = Isa::best();
        sweep(-87.0, 88.0, |x| {
            for (x, y) in x.iter().zip(apply(isa, Function::Exp, x)) {
                assert!(ulps(y, f64::from(*x).exp()) <= 2.0, "exp({x}) = {y}");
            }
        });
        sweep(-20.0, 20.0, |x| {
            for (x, y) in x.iter().zip(apply(isa, Function::Tanh, x)) {
                assert!((f64::from(y) - f64::from(*x).tanh()).abs() <= 2.5e-7, "tanh({x}) = {y}");
            }
            for (x, y) in x.iter().zip(apply(isa, Function::Silu, x)) {
                let want = f64::from(*x) / (1.0 + f64::from(-x).exp());
                assert!((f64::from(y) - want).abs() <= 2e-6 * want.abs().max(1e-3), "silu({x}) = {y}");
            }
            for (x, y) in x.iter().zip(apply(isa, Function::Gelu, x)) {
                let x = f64::from(*x);
                let want = 0.5 * x * (1.0 + (0.797_884_560_802_865_4 * (x + 0.044_715 * x * x * x)).tanh());
                assert!((f64::from(y) - want).abs() <= 2e-6 * want.abs().max(0.1), "gelu({x}) = {y}");
            }
        });
    }

    #[test]
    fn every_family_gives_the_same_bits() {
        let special =
            [0.0, -0.0, 1e-40, -1e-40, 87.0, 88.0, 88.7, 89.0, -87.0, -87.01, -104.0, 1e30, -1e30, 3e-8, 0.5, -0.5];
        let functions = [Function::Exp, Function::Silu, Function::Gelu, Function::Tanh];
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            for function in functions {
                let check = |x: [f32; LANES]| {
                    let (ours, plain) = (apply(isa, function, x), apply(Isa::Plain, function, x));
                    assert_eq!(ours.map(f32::to_bits), plain.map(f32::to_bits), "{isa:?} {x:?}");
                };
                check(special);
                for i in 0..4_000u32 {
                    // All bit patterns alike, the non-finite ones left to the next test.
                    let x = std::array::from_fn(|j| {
                        let x = f32::from_bits((i * 16 + j as u32).wrapping_mul(2_654_435_761));
                        if x.is_finite() { x } else { 1.0 }
                    });
                    check(x);
                }
            }
        }
    }

    #[test]
    fn infinities_and_nan_stay_within_the_functions_range() {
        let x = [
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::NAN,
            1.0,
            2.0,
            3.0,
            4.0,
            5.0,
            6.0,
            7.0,
            8.0,
            9.0,
            10.0,
            11.0,
            12.0,
            13.0,
        ];
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            let y = apply(isa, Function::Exp, x);
            assert!(y[0].is_finite() && y[1] == 0.0 && y[2].is_nan(), "{y:?}");
            assert!(apply(isa, Function::Silu, x)[2].is_nan());
        }
    }
}
