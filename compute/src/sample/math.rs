//! exp and ln of f64 for sampling, with the same bits on every machine: only additions, multiplications and divisions,
//! which IEEE 754 rounds correctly; never the platform's library or fused products. Vectorised code gives the same
//! bits.

/// The smallest whole number whose e^x is still a normal number; [`exp`] is 0 below it.
const EXP_MIN: f64 = -708.0;
/// The largest whole number whose e^x is finite.
#[cfg(test)]
const EXP_MAX: f64 = 709.0;
/// 1/n!
const FACTORIALS: [f64; 14] = [
    1.0,
    1.0,
    1.0 / 2.0,
    1.0 / 6.0,
    1.0 / 24.0,
    1.0 / 120.0,
    1.0 / 720.0,
    1.0 / 5_040.0,
    1.0 / 40_320.0,
    1.0 / 362_880.0,
    1.0 / 3_628_800.0,
    1.0 / 39_916_800.0,
    1.0 / 479_001_600.0,
    1.0 / 6_227_020_800.0,
];
/// 1.5 · 2^52: adding and taking it away rounds to the nearest whole number, ties to even.
const ROUND: f64 = 6_755_399_441_055_744.0;
/// ln 2 in two parts; the first has its low 32 bits clear, so that its product with a whole number below 2^11 is exact.
const LN_2_HIGH: f64 = f64::from_bits(0x3fe6_2e42_fee0_0000);
const LN_2_LOW: f64 = f64::from_bits(0x3dea_39ef_3579_3c76);

/// e^x for x ≤ 709: relative error below 2^-51 (2 units in the last place) down to x = -708, 0 below that and for
/// −∞. Larger x and NaN, which no caller has, give a finite number without meaning.
#[inline(always)]
pub(crate) fn exp(x: f64) -> f64 {
    let inside = if x > EXP_MIN { x } else { EXP_MIN };
    // x = k·ln 2 + r, |r| ≤ ln(2)/2.
    let shifted = inside * std::f64::consts::LOG2_E + ROUND;
    let k = shifted - ROUND;
    let r = (inside - k * LN_2_HIGH) - k * LN_2_LOW;
    // Taylor's series to r^13 (what is left out is below 5e-18), as a tree: its depth, not its length, is what takes time.
    let r2 = r * r;
    let r4 = r2 * r2;
    let pair = |n: usize| FACTORIALS[n] + FACTORIALS[n + 1] * r;
    let four = |n: usize| pair(n) + pair(n + 2) * r2;
    // 1 + r comes last: the small terms are summed among themselves.
    let p = (1.0 + r) + r2 * (four(2) + r4 * (four(6) + r4 * four(10)));
    // The low bits of `shifted` hold k; adding it to the exponent field is an exact product with 2^k.
    let scaled = f64::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 52));
    if x < EXP_MIN { 0.0 } else { scaled }
}

/// Natural logarithm: relative error below 2^-51 for normal positive x. 0 and numbers too small to be normal give −∞,
/// ∞ gives ∞, negative numbers and NaN give NaN.
pub(crate) fn ln(x: f64) -> f64 {
    if x.is_nan() || x < 0.0 {
        return f64::NAN;
    }
    if x < f64::MIN_POSITIVE {
        return f64::NEG_INFINITY;
    }
    if x == f64::INFINITY {
        return x;
    }
    // x = m · 2^k with m in [√½, √2).
    const SQRT_HALF_BITS: u64 = 0x3fe6_a09e_667f_3bcd;
    let offset = x.to_bits().wrapping_sub(SQRT_HALF_BITS) as i64 >> 52;
    let m = f64::from_bits(x.to_bits().wrapping_sub((offset << 52) as u64));
    let k = offset as f64;
    // ln m = 2·artanh(s) = 2s + s·(2z/3 + 2z²/5 + …), z = s² ≤ 0.0295.
    let f = m - 1.0;
    let s = f / (2.0 + f);
    let z = s * s;
    let mut series = 2.0 / 25.0;
    for divisor in [23.0, 21.0, 19.0, 17.0, 15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0] {
        series = series * z + 2.0 / divisor;
    }
    // 2s = f − s·f is taken as f minus a small part: f is exact, so a rounding of s only touches the small part.
    let half_square = 0.5 * f * f;
    let small = half_square - s * (half_square + series * z);
    k * LN_2_HIGH + (f - (small - k * LN_2_LOW))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden() -> Vec<(&'static str, f64, f64)> {
        let bits = |text: &str| f64::from_bits(u64::from_str_radix(text, 16).unwrap());
        include_str!("math_golden.txt")
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| {
                let mut fields = line.split_whitespace();
                let name = fields.next().unwrap();
                (name, bits(fields.next().unwrap()), bits(fields.next().unwrap()))
            })
            .collect()
    }

    #[test]
    fn errors_stay_below_the_stated_bounds() {
        let mut worst = 0.0_f64;
        for (name, x, expected) in golden() {
            let got = if name == "exp" { exp(x) } else { ln(x) };
            let error = if expected == got { 0.0 } else { ((got - expected) / expected).abs() };
            worst = worst.max(error);
            // The correctly rounded value is itself off by up to 2^-53.
            assert!(error <= 1.5 * 2f64.powi(-52), "{name}({x:e}) = {got:e}, not {expected:e}: {error:e}");
        }
        assert!(worst > 0.0, "the goldens were read");
    }

    #[test]
    fn ends_of_the_range_are_as_documented() {
        assert_eq!(exp(f64::NEG_INFINITY), 0.0);
        assert_eq!(exp(-708.1), 0.0);
        assert!(exp(-708.0) > 0.0 && exp(-708.0).is_normal());
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(EXP_MAX).is_finite());
        assert_eq!(ln(0.0), f64::NEG_INFINITY);
        assert_eq!(ln(1.0), 0.0);
        assert_eq!(ln(f64::INFINITY), f64::INFINITY);
        assert!(ln(-1.0).is_nan() && ln(f64::NAN).is_nan());
    }

    #[test]
    fn bits_are_pinned() {
        let mut bits = blake3::Hasher::new();
        for step in 0..20_000 {
            let x = f64::from(step) * 0.037 - 350.0;
            bits.update(&exp(x).to_bits().to_le_bytes());
            bits.update(&ln(exp(x)).to_bits().to_le_bytes());
        }
        assert_eq!(&bits.finalize().to_hex()[..16], "4950efdc5f6d9355");
    }
}
