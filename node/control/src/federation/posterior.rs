//! How sure a lead is: the probability that the leading answer is the more frequent one of the two that lead, under a uniform
//! prior (Adaptive-Consistency, arXiv 2305.11860). Counts are sums of weights, so they need not be whole.

/// Terms of the continued fraction at most: it converges within some tens of terms for counts up to the samples of a vote.
const TERMS_MAX: usize = 500;

/// Relative change of the fraction at which it has converged.
const PRECISION: f64 = 1e-14;

/// The probability that the answer with `leader` votes is more frequent than the one with `second` votes, 0 to 1.
pub(super) fn lead(leader: f64, second: f64) -> f64 {
    // The share of the leader among the two has the distribution Beta(leader + 1, second + 1).
    half_beta(second + 1.0, leader + 1.0)
}

/// The regularised incomplete beta function I(x; a, b) at x = 1/2; `a` and `b` at least 1.
fn half_beta(a: f64, b: f64) -> f64 {
    // The fraction converges fast below the mean, and I(1/2; a, b) = 1 - I(1/2; b, a).
    if a < b {
        return 1.0 - half_beta(b, a);
    }
    let ln_front = ln_gamma(a + b) - ln_gamma(a) - ln_gamma(b) - (a + b) * std::f64::consts::LN_2;
    (ln_front.exp() * fraction(a, b) / a).clamp(0.0, 1.0)
}

/// The continued fraction of the incomplete beta function at x = 1/2, by Lentz's method (Numerical Recipes, section 6.4).
fn fraction(a: f64, b: f64) -> f64 {
    const X: f64 = 0.5;
    const TINY: f64 = 1e-300;
    let apart_from_zero = |value: f64| if value.abs() < TINY { TINY } else { value };
    let mut c = 1.0;
    let mut d = 1.0 / apart_from_zero(1.0 - (a + b) * X / (a + 1.0));
    let mut value = d;
    for term in 1..=TERMS_MAX {
        let m = term as f64;
        let even = m * (b - m) * X / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * X / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        let mut change = 1.0;
        for numerator in [even, odd] {
            d = 1.0 / apart_from_zero(1.0 + numerator * d);
            c = apart_from_zero(1.0 + numerator / c);
            change = d * c;
            value *= change;
        }
        if (change - 1.0).abs() < PRECISION {
            break;
        }
    }
    value
}

/// The natural logarithm of the gamma function, by Lanczos' approximation (g = 7, n = 9); `x` at least 1.
fn ln_gamma(x: f64) -> f64 {
    const G: f64 = 7.0;
    const COEFFICIENTS: [f64; 8] = [
        676.520_368_121_885_1,
        -1_259.139_216_722_402_8,
        771.323_428_777_653_1,
        -176.615_029_162_140_6,
        12.507_343_278_686_905,
        -0.138_571_095_265_720_12,
        9.984_369_578_019_572e-6,
        1.505_632_735_149_311_6e-7,
    ];
    let x = x - 1.0;
    let start = 0.999_999_999_999_809_9;
    let sum = COEFFICIENTS.iter().zip(1_u8..).fold(start, |sum, (c, at)| sum + c / (x + f64::from(at)));
    let t = x + G + 0.5;
    0.5 * (2.0 * std::f64::consts::PI).ln() + (x + 0.5) * t.ln() - t + sum.ln()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The same probability for whole counts, exactly: that of at most `leader` heads in `leader + second + 1` tosses.
    fn exact(leader: u32, second: u32) -> f64 {
        let tosses = leader + second + 1;
        let choose = |k: u32| (0..k).fold(1_u128, |value, i| value * u128::from(tosses - i) / u128::from(i + 1));
        let ways: u128 = (0..=leader).map(choose).sum();
        ways as f64 / 2_f64.powi(tosses as i32)
    }

    #[test]
    fn whole_counts_give_the_exact_probability() {
        for leader in 0..=32 {
            for second in 0..=32 {
                let (is, should) = (lead(f64::from(leader), f64::from(second)), exact(leader, second));
                assert!((is - should).abs() < 1e-10, "{leader} to {second}: {is}, exactly {should}");
            }
        }
    }

    #[test]
    fn four_that_agree_are_a_consensus_and_three_are_not() {
        assert_eq!((lead(3.0, 0.0) * 16.0).round(), 15.0);
        assert_eq!((lead(4.0, 0.0) * 32.0).round(), 31.0);
    }

    proptest! {
        #[test]
        fn a_longer_lead_is_surer(leader in 0.0..40.0_f64, second in 0.0..40.0_f64, more in 0.01..5.0_f64) {
            let now = lead(leader, second);
            prop_assert!((0.0..=1.0).contains(&now));
            prop_assert!((now + lead(second, leader) - 1.0).abs() < 1e-9);
            prop_assert!(lead(leader + more, second) >= now);
            prop_assert!(lead(leader, second + more) <= now);
        }
    }
}
