//! Rotary position embeddings (Su et al. 2021) on pairs (i, i + half), and tables of their angles. Weights of models
//! that pair (2i, 2i + 1) have their rows reordered when they are packed. Angles are computed in f64 from additions,
//! multiplications and divisions only, so they are the same on every machine.
#![allow(unsafe_code)]

use crate::Isa;
use crate::kernel::simd::{Body, LANES, Simd, dispatch};

struct Rotate<'a> {
    x: &'a mut [f32],
    cos: &'a [f32],
    sin: &'a [f32],
    scale: f32,
}

impl Body for Rotate<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Rotate { x, cos, sin, scale } = self;
        let half = cos.len();
        let (rotated, rest) = x.split_at_mut(2 * half);
        let (first, second) = rotated.split_at_mut(half);
        let vectors = half / LANES * LANES;
        // SAFETY: i + 16 ≤ half, the length of all four.
        unsafe {
            let factor = S::splat(scale);
            for i in (0..vectors).step_by(LANES) {
                let (a, b) = (S::load(first.as_ptr().add(i)), S::load(second.as_ptr().add(i)));
                let (c, s) = (S::load(cos.as_ptr().add(i)), S::load(sin.as_ptr().add(i)));
                S::store(first.as_mut_ptr().add(i), S::mul(factor, S::fnma(b, s, S::mul(a, c))));
                S::store(second.as_mut_ptr().add(i), S::mul(factor, S::fma(b, c, S::mul(a, s))));
            }
        }
        for i in vectors..half {
            let (a, b) = (first[i], second[i]);
            first[i] = scale * (-b).mul_add(sin[i], a * cos[i]);
            second[i] = scale * b.mul_add(cos[i], a * sin[i]);
        }
        for x in rest {
            *x *= scale;
        }
    }
}

/// Rotates the pairs (i, i + half) of one head's vector by the angles whose cosines and sines are given (`half` each),
/// and multiplies the whole vector by `scale`. Elements from 2 · half on are not rotated.
pub(crate) fn rotate(isa: Isa, x: &mut [f32], cos: &[f32], sin: &[f32], scale: f32) {
    assert!(cos.len() == sin.len() && 2 * cos.len() <= x.len(), "a head is shorter than its rotation");
    // SAFETY: the lengths were checked; `isa` is one that a pool was made with.
    unsafe { dispatch(isa, Rotate { x, cos, sin, scale }) }
}

/// Cosines and sines of `position · frequency` for every frequency, rounded to f32.
pub(crate) fn angles(position: usize, frequencies: &[f64], scale: f64, cos: &mut [f32], sin: &mut [f32]) {
    for ((frequency, cos), sin) in frequencies.iter().zip(cos).zip(sin) {
        let (s, c) = sin_cos(position as f64 * frequency);
        (*sin, *cos) = ((s * scale) as f32, (c * scale) as f32);
    }
}

/// sin x and cos x for 0 ≤ x < 2²², with an error of at most 10⁻¹⁵ + x · 10⁻²⁵.
///
/// Cody & Waite's reduction by π/2 in three parts, then Taylor polynomials on |r| ≤ π/4.
pub(crate) fn sin_cos(x: f64) -> (f64, f64) {
    // π/2 in parts of 33 bits: the products with the quotient are exact.
    const PARTS: [f64; 3] = [1.570_796_326_734_125_6, 6.077_100_506_303_966e-11, 2.022_266_248_795_950_6e-21];
    let n = (x * std::f64::consts::FRAC_2_PI).round_ties_even();
    let r = ((x - n * PARTS[0]) - n * PARTS[1]) - n * PARTS[2];
    let z = r * r;
    let mut s = -1.0 / 1_307_674_368_000.0;
    for c in [6_227_020_800.0, -39_916_800.0, 362_880.0, -5_040.0, 120.0, -6.0] {
        s = s * z + 1.0 / c;
    }
    let s = r + r * (z * s);
    let mut c = 1.0 / 20_922_789_888_000.0;
    for d in [-87_178_291_200.0, 479_001_600.0, -3_628_800.0, 40_320.0, -720.0, 24.0, -2.0] {
        c = c * z + 1.0 / d;
    }
    let c = 1.0 + z * c;
    match n as i64 & 3 {
        0 => (s, c),
        1 => (c, -s),
        2 => (-s, -c),
        _ => (-c, s),
    }
}

/// base^exponent for base > 0, with a relative error of at most 10⁻¹⁴.
pub(crate) fn power(base: f64, exponent: f64) -> f64 {
    exp(exponent * ln(base))
}

/// ln x for normal x > 0: the exponent times ln 2, plus 2 · artanh for the mantissa.
pub(crate) fn ln(x: f64) -> f64 {
    let mut exponent = ((x.to_bits() >> 52) as i64 - 1023) as f64;
    let mut m = f64::from_bits((x.to_bits() & 0x000f_ffff_ffff_ffff) | 0x3ff0_0000_0000_0000);
    if m > std::f64::consts::SQRT_2 {
        m /= 2.0;
        exponent += 1.0;
    }
    let t = (m - 1.0) / (m + 1.0);
    let z = t * t;
    let mut sum = 0.0;
    for k in (0..12).rev() {
        sum = sum * z + 1.0 / f64::from(2 * k + 1);
    }
    exponent * std::f64::consts::LN_2 + 2.0 * t * sum
}

/// eˣ for |x| < 700.
pub(crate) fn exp(x: f64) -> f64 {
    let n = (x * std::f64::consts::LOG2_E).round_ties_even();
    // ln 2 in two parts; the first is so short that its product with n is exact.
    let r = (x - n * 0.693_147_180_369_123_8) - n * 1.908_214_929_270_587_7e-10;
    let mut p = 1.0;
    for k in (1..=18).rev() {
        p = 1.0 + p * r / f64::from(k);
    }
    f64::from_bits((p.to_bits() as i64 + ((n as i64) << 52)) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn angles_are_right_at_every_distance() {
        let mut x = 0.0;
        while x < 4_000_000.0 {
            let (s, c) = sin_cos(x);
            assert!((s - x.sin()).abs() < 3e-15 && (c - x.cos()).abs() < 3e-15, "{x}: {s} {c}");
            x += 0.37 + x / 10_000.0;
        }
    }

    #[test]
    fn powers_logarithms_and_exponentials_keep_their_bounds() {
        for i in 1..20_000 {
            let x = f64::from(i) * 0.731;
            assert!((ln(x) - x.ln()).abs() <= 4e-16 * x.ln().abs().max(1.0), "ln {x}");
            let y = f64::from(i - 10_000) * 0.05;
            assert!((exp(y) / y.exp() - 1.0).abs() < 1e-14, "exp {y}");
            let e = -f64::from(i % 64) / 64.0;
            assert!((power(x * 1000.0, e) / (x * 1000.0).powf(e) - 1.0).abs() < 1e-14, "{x}^{e}");
        }
    }

    #[test]
    fn every_family_turns_alike_and_keeps_lengths() {
        for (length, half) in [(64, 32), (64, 16), (24, 12), (80, 40)] {
            let x: Vec<f32> = (0..length).map(|i| ((i * 37) % 23) as f32 - 11.0).collect();
            let (mut cos, mut sin) = (vec![0.0; half], vec![0.0; half]);
            let frequencies: Vec<f64> = (0..half).map(|i| power(10_000.0, -(i as f64) / half as f64)).collect();
            angles(5_000, &frequencies, 1.0, &mut cos, &mut sin);
            let mut plain = x.clone();
            rotate(Isa::Plain, &mut plain, &cos, &sin, 0.5);
            for i in 0..half {
                let before = x[i].hypot(x[i + half]) * 0.5;
                assert!((plain[i].hypot(plain[i + half]) - before).abs() < 1e-5);
            }
            assert!(plain[2 * half..].iter().zip(&x[2 * half..]).all(|(y, x)| *y == x * 0.5));
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
                let mut turned = x.clone();
                rotate(isa, &mut turned, &cos, &sin, 0.5);
                assert_eq!(turned, plain);
            }
        }
    }
}
