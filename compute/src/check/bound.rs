//! The largest rounding error of an honest float product, and the smallest lie that is certain to be found. Pure
//! arithmetic on lengths and norms.
//!
//! # Derivation
//!
//! Row i of the residual is `r = Σ_j x_j e_ij`, where `e_ij` is the rounding error of `c_ij`. The `x_j = ±1` are
//! secret, hence independent of the errors, even where errors depend on each other. By Hoeffding's inequality
//!
//! > `P(|r| > T·‖e_i‖₂) ≤ 2·exp(−T²/2)`,
//!
//! which for `T = 8` is 2.6·10⁻¹⁴ per row and vector ([`false_alarm`]), without any assumption on rounding.
//!
//! It remains to bound `‖e_i‖₂`. Every kernel of this crate sums in chains of at most B = 512 products
//! (`kernel::SUM_BLOCK`), then adds the chains: a term takes part in at most `s(k) = min(k, B) + ⌈k/B⌉` additions, each
//! with a relative error of at most u on a partial sum, which by Cauchy–Schwarz is at most `‖a_i‖‖b_j‖`. The worst
//! case, `|e_ij| ≤ s(k)·u·‖a_i‖‖b_j‖`, would hide large lies. Independent rounding errors with mean zero add up to
//! `√s(k)` (Higham and Mary 2019). Real ones are not quite independent: when a constant is added repeatedly, the error
//! keeps its sign as long as the sum stays in one binade. Over a chain that can reach a third of the worst case:
//! `s(k)/3 ≤ 172` for long k. The bound is therefore
//!
//! > `c(k) = min(7·√s(k), s(k)) + 2`,  `‖e_i‖₂ ≤ c(k)·u·‖a_i‖₂·‖B‖_F`,
//!
//! seven standard deviations of the independent model, at least 160 for long k. It covers that constant drift to within
//! 7 %, and for k ≤ 48 is the worst case itself. The 2 covers kernels whose products are rounded separately.
//!
//! The check's own f64 arithmetic adds `(c(k) + 2·c(n))·2⁻⁵³·‖a_i‖‖B‖_F`; a 16-bit result adds its one rounding,
//! `u_out·‖c_i‖₂`; results near zero add the spacing of subnormal numbers.

use crate::DType;
use crate::kernel::SUM_BLOCK;

/// T: the multiple of `‖e_i‖₂` that a residual may reach.
pub const DEVIATIONS: f64 = 8.0;

/// The types that a product is summed in and rounded to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rounding {
    /// Unit roundoff of the sums.
    pub(crate) sum: f64,
    /// Unit roundoff of a last rounding; 0 where the sums are the result.
    pub(crate) out: f64,
    /// The smallest positive number of the sums, and of the result.
    pub(crate) tiny_sum: f64,
    pub(crate) tiny_out: f64,
    /// The largest finite number of the sums, and of the result.
    pub(crate) max_sum: f64,
    pub(crate) max_out: f64,
}

impl Rounding {
    pub(crate) fn of(out: DType) -> Rounding {
        let f32_sums = Rounding {
            sum: 2f64.powi(-24),
            out: 0.0,
            tiny_sum: 2f64.powi(-149),
            tiny_out: 0.0,
            max_sum: f64::from(f32::MAX),
            max_out: f64::from(f32::MAX),
        };
        match out {
            DType::F64 => Rounding {
                sum: 2f64.powi(-53),
                out: 0.0,
                tiny_sum: f64::from_bits(1),
                tiny_out: 0.0,
                max_sum: f64::MAX,
                max_out: f64::MAX,
            },
            DType::F16 => Rounding { out: 2f64.powi(-11), tiny_out: 2f64.powi(-24), max_out: 65504.0, ..f32_sums },
            DType::Bf16 => Rounding {
                out: 2f64.powi(-8),
                tiny_out: 2f64.powi(-133),
                max_out: f64::from(half::bf16::MAX.to_f32()),
                ..f32_sums
            },
            _ => f32_sums,
        }
    }
}

/// s(k): additions that a term takes part in, at most.
fn chain(k: usize) -> f64 {
    (k.min(SUM_BLOCK) + k.div_ceil(SUM_BLOCK)) as f64
}

/// c(k): the growth of rounding errors over a sum of k products, in units of roundoff.
pub(crate) fn growth(k: usize) -> f64 {
    let s = chain(k);
    (7.0 * s.sqrt()).min(s) + 2.0
}

/// The growth that no sum of k products exceeds; used for single elements, where a wide bound is acceptable.
pub(crate) fn worst_growth(k: usize) -> f64 {
    chain(k) + 2.0
}

/// The factor of `‖a_i‖₂·‖B‖_F` in a row's threshold, without T.
pub(crate) fn relative(k: usize, n: usize, rounding: &Rounding) -> f64 {
    let own = (growth(k) + 2.0 * growth(n)) * 2f64.powi(-53);
    growth(k) * rounding.sum + own
}

/// Upper bound of the probability that an honest product with `rows` rows is refused when checked with `vectors`
/// vectors.
pub fn false_alarm(rows: usize, vectors: usize) -> f64 {
    2.0 * (-DEVIATIONS * DEVIATIONS / 2.0).exp() * rows as f64 * vectors as f64
}

/// The published detection limit: a product in which one element is wrong by this much times its row's norm `‖a_i‖₂`
/// times the root-mean-square column norm `‖B‖_F/√n` of the panel is certain to be refused. Zero for integers, where
/// every error counts. Infinite where nothing is certain: a lie hides in the rounding of a 16-bit result that is much
/// larger than its sums.
///
/// For `f16` and `bf16` results the limit holds for matrices whose entries have mean zero, where `‖c_i‖₂ ≈
/// ‖a_i‖₂·‖B‖_F/√k`. With entries of one sign the last rounding, up to `u_out·‖c_i‖₂`, hides up to √k times more.
///
/// An element that is wrong by `d` shifts every residual of its row by exactly `±d`, and an honest residual is at most
/// τ, so `d > 2τ` is certain to be found.
pub fn detection_limit(k: usize, n_panel: usize, out: DType) -> f64 {
    if !out.is_float() {
        return 0.0;
    }
    let rounding = Rounding::of(out);
    let root_n = (n_panel.max(1) as f64).sqrt();
    let root_k = (k.max(1) as f64).sqrt();
    let sums = relative(k, n_panel, &rounding) * root_n;
    // The lie itself adds at most u_out·d to ‖c_i‖₂.
    let last = rounding.out * root_n / root_k;
    2.0 * DEVIATIONS * (sums + last) / (1.0 - 2.0 * DEVIATIONS * rounding.out)
}
