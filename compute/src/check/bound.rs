//! The largest rounding error of an honest float product, and the smallest lie that is certain to be found. Pure
//! arithmetic on lengths and norms.
//!
//! # Derivation
//!
//! Row i of the residual is `r = Σ_j x_j e_ij`, where `e_ij` is the rounding error of `c_ij` and `x_j = ±w_j` with the
//! weight `w_j = 1/‖b_j‖₂`: however large one column of B is, its errors count no more than those of another. The signs
//! are secret, hence independent of the errors, even where errors depend on each other. By Hoeffding's inequality
//!
//! > `P(|r| > T·‖(w_j e_ij)_j‖₂) ≤ 2·exp(−T²/2)`,
//!
//! which for `T = 8` is 2.6·10⁻¹⁴ per row and vector ([`false_alarm`]), without any assumption on rounding.
//!
//! It remains to bound the norm. Every kernel of this crate sums in chains of at most B = 512 products
//! (`kernel::SUM_BLOCK`), then adds the chains: a term takes part in at most `s(k) = min(k, B) + ⌈k/B⌉` additions, each
//! with a relative error of at most u on a partial sum, which by Cauchy–Schwarz is at most `‖a_i‖‖b_j‖`. The worst
//! case, `|e_ij| ≤ s(k)·u·‖a_i‖‖b_j‖`, would hide large lies. Independent rounding errors with mean zero add up to
//! `√s(k)` (Higham and Mary 2019). Real ones are not quite independent: when a constant is added repeatedly, the error
//! keeps its sign as long as the sum stays in one binade. Over a chain that can reach a third of the worst case:
//! `s(k)/3 ≤ 172` for long k. The bound is therefore
//!
//! > `c(k) = min(7·√s(k), s(k)) + 2`,  `‖(w_j e_ij)_j‖₂ ≤ c(k)·u·‖a_i‖₂·‖(w_j‖b_j‖)_j‖₂ ≤ c(k)·u·‖a_i‖₂·√n`,
//!
//! seven standard deviations of the independent model, at least 160 for long k. It covers that constant drift to within
//! 7 %, and for k ≤ 48 is the worst case itself. The 2 covers kernels whose products are rounded separately.
//!
//! The check's own f64 arithmetic adds `(c(k) + 2·c(n) + 2)·2⁻⁵³·‖a_i‖√n`; a 16-bit result adds its one rounding,
//! `u_out·‖(w_j c_ij)_j‖₂`; results near zero add the spacing of subnormal numbers, `‖w‖₂` times. So that a column with a
//! tiny norm does not hide lies in others by that, columns below `column_floors` have vectors of their own. A column of
//! zeros has no weight: its product is compared with zero.
//!
//! # What is found
//!
//! An element that is wrong by `d` shifts every residual of its row by `±w_j·d`, and the residual of an honest row stays
//! below τ: `w_j·d > 2τ` is certain to be found ([`detection_limit`]). Of two signs that are equally likely, at least
//! one leaves a residual of `w_j·d` or more, whatever the rest of the row is: where `w_j·d > τ`, each of the eight vectors
//! finds it with probability 1/2, all together with 1 − 2⁻⁸ ([`likely_limit`]). Both limits are multiples of
//! `‖a_i‖‖b_j‖`, for any element, whatever the other rows and columns are.

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

/// Exponents of column norms that part the columns of B for a product of type `out`. Weights of columns above the first
/// leave the spacing of subnormal numbers far below the rounding of rows whose norm is not tiny itself.
pub(crate) fn column_floors(out: DType) -> [i32; 2] {
    match out {
        DType::F64 => [-900, -1020],
        DType::F16 => [-6, -14],
        _ => [-60, -120],
    }
}

/// The factor of `‖a_i‖₂·√n` in a row's threshold, without T.
pub(crate) fn relative(k: usize, n: usize, rounding: &Rounding) -> f64 {
    let own = (growth(k) + 2.0 * growth(n) + 2.0) * 2f64.powi(-53);
    growth(k) * rounding.sum + own
}

/// Upper bound of the probability that an honest product with `rows` rows is refused when checked with `vectors`
/// vectors.
pub fn false_alarm(rows: usize, vectors: usize) -> f64 {
    2.0 * (-DEVIATIONS * DEVIATIONS / 2.0).exp() * rows as f64 * vectors as f64
}

/// The published detection limit: a product in which one element is wrong by this much times its row's norm `‖a_i‖₂`
/// times its column's norm `‖b_j‖₂` is certain to be refused, whichever element it is. Zero for integers, where every
/// error counts. Infinite where nothing is certain: a lie hides in the rounding of a 16-bit result that is much larger
/// than its sums.
///
/// For `f16` and `bf16` results the limit holds for matrices whose entries have mean zero, where `‖c_i‖₂ ≈
/// ‖a_i‖₂·‖B‖_F/√k`. With entries of one sign the last rounding, up to `u_out·‖c_i‖₂`, hides up to √k times more.
/// Elements near the smallest positive number may be off by some of its multiples besides.
pub fn detection_limit(k: usize, n_panel: usize, out: DType) -> f64 {
    if !out.is_float() {
        return 0.0;
    }
    let rounding = Rounding::of(out);
    // The lie itself adds at most u_out·d to ‖c_i‖₂.
    2.0 * DEVIATIONS * hidden(k, n_panel, &rounding) / (1.0 - 2.0 * DEVIATIONS * rounding.out)
}

/// The same for a lie that is refused with a probability of at least 1 − 2⁻⁸, about half of [`detection_limit`].
pub fn likely_limit(k: usize, n_panel: usize, out: DType) -> f64 {
    if !out.is_float() {
        return 0.0;
    }
    let rounding = Rounding::of(out);
    // The honest error of the element itself may hide a part of the lie.
    let honest = relative(k, n_panel, &rounding) + rounding.out;
    (DEVIATIONS * hidden(k, n_panel, &rounding) + honest) / (1.0 - DEVIATIONS * rounding.out)
}

/// The bound on the norm of a row's weighted errors, in units of `‖a_i‖₂`.
fn hidden(k: usize, n_panel: usize, rounding: &Rounding) -> f64 {
    let root_n = (n_panel.max(1) as f64).sqrt();
    let root_k = (k.max(1) as f64).sqrt();
    relative(k, n_panel, rounding) * root_n + rounding.out * root_n / root_k
}
