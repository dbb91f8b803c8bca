//! A mixture of experts apart from the experts themselves (Shazeer et al. 2017, §2.1; Qwen3 technical report, §2): the router,
//! which says what experts compute a row and with what weights, and the weighted sum of their results. A result depends on
//! its row alone.
//!
//! # Numerics
//!
//! These rules are part of the engine's `numerics` version. The chosen experts are those with the largest logits; of equal
//! logits (0 and −0 are equal) the one of the lower index. Their weights, in ascending order of their indices: `e = exp(logit
//! − largest logit)`, `sum` = all e one after the other, `weight = e / sum`. That is the softmax over all experts, divided by
//! the sum over the chosen ones: the denominator over all cancels.
//!
//! Where a router's scores are sigmoids (DeepSeek-V3 report, §2.1.2), `p = 1 / (1 + exp(−logit))`; the chosen experts are those
//! with the largest `p + correction`, and `weight = p / (sum of the chosen p + 10⁻²⁰) · scale`.
//!
//! The weight of an expert that computes every row is 1, or, where it has a gate, `1 / (1 + exp(−logit))` in f64, rounded once;
//! the logit is a dot product of which lane i sums elements i, i + 16, … by `fma`, folded as all reductions are.
//!
//! The sum of a row begins with zero; for each of its experts in ascending order of their indices `sum = fma(weight, result,
//! sum)`.
#![allow(unsafe_code)]

use crate::Isa;
use crate::kernel::float::activation::all_finite;
use crate::kernel::float::math;
use crate::kernel::simd::{Body, LANES, Simd, dispatch, fold};

/// An expert that computes a row.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Chosen {
    /// Index of the expert in its layer.
    pub(crate) expert: u32,
    /// Factor of the expert's result.
    pub(crate) weight: f32,
}

/// What becomes of a router's logits.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Gating {
    /// The weights are a softmax.
    #[default]
    Softmax,
    /// The weights are sigmoids, divided by their sum.
    Sigmoid {
        /// `[experts]`: added to the sigmoids for the choice alone, which balances the experts' loads.
        correction: Option<Vec<f32>>,
        /// Factor of the weights.
        scale: f32,
    },
}

/// Chooses `chosen.len()` experts by their logits: `[experts]`, in ascending order of their indices. Returns whether all
/// logits are finite; if not, the experts exist, but which they are is unspecified. The logits are spent.
///
/// # Panics
/// Where no expert or more than there are would be chosen.
#[must_use = "of infinite logits weights become numbers"]
pub(crate) fn route(isa: Isa, gating: &Gating, logits: &mut [f32], chosen: &mut [Chosen]) -> bool {
    assert!((1..=logits.len()).contains(&chosen.len()), "{} of {} experts", chosen.len(), logits.len());
    let finite = all_finite(logits);
    match gating {
        Gating::Softmax => by_softmax(isa, logits, chosen),
        Gating::Sigmoid { correction, scale } => {
            // SAFETY: nothing beyond the slice is touched; `isa` is one that a pool was made with.
            unsafe { dispatch(isa, Sigmoid(logits)) };
            match correction {
                None => choose(logits.iter().copied(), chosen),
                Some(correction) => choose(logits.iter().zip(correction).map(|(p, correction)| p + correction), chosen),
            }
            chosen.sort_unstable_by_key(|chosen| chosen.expert);
            chosen.iter_mut().for_each(|chosen| chosen.weight = logits[chosen.expert as usize]);
            let sum = chosen.iter().fold(0.0, |sum, chosen| sum + chosen.weight) + LEAST_SUM;
            chosen.iter_mut().for_each(|chosen| chosen.weight = chosen.weight / sum * scale);
        }
    }
    finite
}

/// Added to a sum of sigmoids, which may all be zero.
const LEAST_SUM: f32 = 1e-20;

fn by_softmax(isa: Isa, logits: &[f32], chosen: &mut [Chosen]) {
    choose(logits.iter().copied(), chosen);
    let largest = chosen[0].weight;
    chosen.sort_unstable_by_key(|chosen| chosen.expert);
    for chosen in chosen.chunks_mut(LANES) {
        let mut lanes = [0.0; LANES];
        lanes.iter_mut().zip(chosen.iter()).for_each(|(lane, chosen)| *lane = chosen.weight - largest);
        // SAFETY: sixteen lanes; `isa` is one that a pool was made with.
        unsafe { dispatch(isa, Exp(&mut lanes)) };
        chosen.iter_mut().zip(lanes).for_each(|(chosen, e)| chosen.weight = e);
    }
    let sum = chosen.iter().fold(0.0, |sum, chosen| sum + chosen.weight);
    chosen.iter_mut().for_each(|chosen| chosen.weight /= sum);
}

/// The experts with the largest scores, in descending order; their weights are the scores.
fn choose(scores: impl Iterator<Item = f32>, chosen: &mut [Chosen]) {
    let mut count = 0;
    for (expert, logit) in (0u32..).zip(scores) {
        let mut at = count;
        // Strictly larger: of equal logits the first stays in front.
        while at > 0 && logit > chosen[at - 1].weight {
            at -= 1;
        }
        if at < chosen.len() {
            count = (count + 1).min(chosen.len());
            chosen[at..count].rotate_right(1);
            chosen[at] = Chosen { expert, weight: logit };
        }
    }
}

struct Exp<'a>(&'a mut [f32; LANES]);

impl Body for Exp<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: sixteen floats.
        unsafe { S::store(self.0.as_mut_ptr(), math::exp::<S>(S::load(self.0.as_ptr()))) }
    }
}

struct Sigmoid<'a>(&'a mut [f32]);

impl Body for Sigmoid<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for x in self.0.chunks_mut(LANES) {
            let mut lanes = [0.0; LANES];
            lanes[..x.len()].copy_from_slice(x);
            // SAFETY: sixteen floats.
            unsafe {
                let e = math::exp::<S>(S::sub(S::splat(0.0), S::load(lanes.as_ptr())));
                S::store(lanes.as_mut_ptr(), S::div(S::splat(1.0), S::add(S::splat(1.0), e)));
            }
            x.copy_from_slice(&lanes[..x.len()]);
        }
    }
}

struct SharedLogit<'a> {
    x: &'a [f32],
    weight: &'a [f32],
}

impl Body for SharedLogit<'_> {
    type Out = f32;
    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        let (whole, rest) = self.x.as_chunks::<LANES>();
        let (weights, weight_rest) = self.weight.as_chunks::<LANES>();
        // SAFETY: chunks of sixteen.
        unsafe {
            let mut sum = S::splat(0.0);
            for (x, weight) in whole.iter().zip(weights) {
                sum = S::fma(S::load(weight.as_ptr()), S::load(x.as_ptr()), sum);
            }
            if !rest.is_empty() {
                let (mut x, mut weight) = ([0.0; LANES], [0.0; LANES]);
                x[..rest.len()].copy_from_slice(rest);
                weight[..rest.len()].copy_from_slice(weight_rest);
                sum = S::fma(S::load(weight.as_ptr()), S::load(x.as_ptr()), sum);
            }
            let mut lanes = [0.0; LANES];
            S::store(lanes.as_mut_ptr(), sum);
            fold(lanes)
        }
    }
}

/// The logit of the gate of an expert that computes every row: the dot product of the row with the gate's weights, both of one
/// length.
pub(crate) fn shared_logit(isa: Isa, x: &[f32], weight: &[f32]) -> f32 {
    assert_eq!(x.len(), weight.len(), "a row and its gate differ in length");
    // SAFETY: the lengths were checked; `isa` is one that a pool was made with.
    unsafe { dispatch(isa, SharedLogit { x, weight }) }
}

struct AddScaled<'a> {
    weight: f32,
    x: &'a [f32],
    sum: &'a mut [f32],
}

impl Body for AddScaled<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let AddScaled { weight, x, sum } = self;
        let (whole, rest) = x.as_chunks::<LANES>();
        let (sums, sum_rest) = sum.as_chunks_mut::<LANES>();
        // SAFETY: chunks of sixteen.
        unsafe {
            for (x, sum) in whole.iter().zip(sums) {
                let sums = S::fma(S::splat(weight), S::load(x.as_ptr()), S::load(sum.as_ptr()));
                S::store(sum.as_mut_ptr(), sums);
            }
            if !rest.is_empty() {
                let (mut x, mut last) = ([0.0; LANES], [0.0; LANES]);
                x[..rest.len()].copy_from_slice(rest);
                last[..rest.len()].copy_from_slice(sum_rest);
                let sums = S::fma(S::splat(weight), S::load(x.as_ptr()), S::load(last.as_ptr()));
                S::store(last.as_mut_ptr(), sums);
                sum_rest.copy_from_slice(&last[..rest.len()]);
            }
        }
    }
}

/// `sum = fma(weight, x, sum)`; both of one length.
pub(crate) fn add_scaled(isa: Isa, weight: f32, x: &[f32], sum: &mut [f32]) {
    assert_eq!(x.len(), sum.len(), "a sum and its addend differ in length");
    // SAFETY: the lengths were checked; `isa` is one that a pool was made with.
    unsafe { dispatch(isa, AddScaled { weight, x, sum }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pangea_units::SplitMix64;

    fn routed(isa: Isa, logits: &[f32], used: usize) -> (Vec<Chosen>, bool) {
        let mut chosen = vec![Chosen::default(); used];
        let finite = route(isa, &Gating::Softmax, &mut logits.to_vec(), &mut chosen);
        (chosen, finite)
    }

    #[test]
    fn the_logit_of_a_shared_expert_is_a_dot_product_with_the_same_bits_on_every_family() {
        let mut random = SplitMix64::new(5);
        for len in [16, 41, 256] {
            let mut floats = || -> Vec<f32> { (0..len).map(|_| random.signed_unit()).collect() };
            let (x, weight) = (floats(), floats());
            let want: f64 = x.iter().zip(&weight).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
                let logit = shared_logit(isa, &x, &weight);
                assert!((f64::from(logit) - want).abs() < 1e-5, "{logit} {want}");
                assert_eq!(logit.to_bits(), shared_logit(Isa::Plain, &x, &weight).to_bits(), "{isa:?}");
            }
        }
    }

    fn experts(logits: &[f32], used: usize) -> Vec<u32> {
        routed(Isa::best(), logits, used).0.iter().map(|chosen| chosen.expert).collect()
    }

    #[test]
    fn of_equal_logits_the_lower_index_is_chosen() {
        assert_eq!(experts(&[1.0, 3.0, 3.0, 3.0, 0.0], 2), [1, 2]);
        assert_eq!(experts(&[0.0, -0.0, 0.0, -0.0], 3), [0, 1, 2]);
        assert_eq!(experts(&[-0.0, 0.0], 1), [0]);
        assert_eq!(experts(&[7.0; 40], 17), (0..17).collect::<Vec<u32>>());
        assert_eq!(experts(&[5.0, 1.0, 9.0, 1.0], 3), [0, 1, 2]);
        assert_eq!(experts(&[2.0], 1), [0]);
    }

    #[test]
    fn weights_are_the_softmax_over_all_experts_renormalised_over_the_chosen() {
        let mut random = SplitMix64::new(3);
        for case in 0..500 {
            let count = 1 + random.index(200);
            let used = 1 + random.index(count.min(40));
            let spread = [0.01, 3.0, 60.0][case % 3];
            let logits: Vec<f32> = (0..count).map(|_| spread * random.signed_unit()).collect();
            let (chosen, finite) = routed(Isa::best(), &logits, used);
            assert!(finite && chosen.is_sorted_by(|a, b| a.expert < b.expert));
            let all: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
            let of = |expert: u32| f64::from(logits[expert as usize]).exp() / all;
            let least = chosen.iter().map(|chosen| logits[chosen.expert as usize]).fold(f32::INFINITY, f32::min);
            assert!(logits.iter().filter(|logit| **logit > least).count() < used, "a larger logit was left out");
            let sum: f64 = chosen.iter().map(|chosen| of(chosen.expert)).sum();
            for chosen in chosen {
                let want = of(chosen.expert) / sum;
                // exp is 2 units off at most; its argument, the sum of 40 and the quotient are rounded too.
                let bound = 2e-5 * want + 1e-30;
                assert!((f64::from(chosen.weight) - want).abs() <= bound, "{} for {want}", chosen.weight);
            }
        }
    }

    #[test]
    fn every_family_gives_the_same_bits() {
        let mut random = SplitMix64::new(4);
        for _ in 0..300 {
            let logits: Vec<f32> = (0..1 + random.index(70)).map(|_| 20.0 * random.signed_unit()).collect();
            let used = 1 + random.index(logits.len());
            let bits = |isa| -> Vec<(u32, u32)> {
                routed(isa, &logits, used).0.iter().map(|chosen| (chosen.expert, chosen.weight.to_bits())).collect()
            };
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
                assert_eq!(bits(isa), bits(Isa::Plain), "{isa:?}");
            }
        }
    }

    #[test]
    fn logits_that_are_not_finite_are_reported_and_choose_experts_that_exist() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in 0..5 {
                let mut logits = [1.0, 2.0, 0.0, -1.0, 3.0];
                logits[at] = bad;
                let (chosen, finite) = routed(Isa::best(), &logits, 3);
                assert!(!finite && chosen.is_sorted_by(|a, b| a.expert < b.expert), "{bad} at {at}");
                assert!(chosen.iter().all(|chosen| chosen.expert < 5));
            }
        }
    }

    #[test]
    fn sigmoids_choose_by_their_corrected_values_and_weigh_by_their_own() {
        let mut random = SplitMix64::new(6);
        for case in 0..300 {
            let count = 1 + random.index(70);
            let used = 1 + random.index(count.min(20));
            let logits: Vec<f32> = (0..count).map(|_| 8.0 * random.signed_unit()).collect();
            let correction = (case % 2 == 0).then(|| (0..count).map(|_| random.signed_unit()).collect::<Vec<f32>>());
            let scale = 2.5;
            let gating = Gating::Sigmoid { correction: correction.clone(), scale };
            let p: Vec<f64> = logits.iter().map(|logit| 1.0 / (1.0 + (-f64::from(*logit)).exp())).collect();
            let score = |i: usize| p[i] + correction.as_ref().map_or(0.0, |correction| f64::from(correction[i]));
            let routed = |isa| {
                let mut chosen = vec![Chosen::default(); used];
                assert!(route(isa, &gating, &mut logits.clone(), &mut chosen));
                chosen
            };
            let chosen = routed(Isa::best());
            assert!(chosen.is_sorted_by(|a, b| a.expert < b.expert));
            let is_chosen = |i: usize| chosen.iter().any(|chosen| chosen.expert as usize == i);
            let least = (0..count).filter(|i| is_chosen(*i)).map(score).fold(f64::INFINITY, f64::min);
            assert!(
                (0..count).filter(|i| !is_chosen(*i)).all(|i| score(i) <= least + 1e-6),
                "a better one was left out"
            );
            let sum: f64 = chosen.iter().map(|chosen| p[chosen.expert as usize]).sum();
            for Chosen { expert, weight } in &chosen {
                let want = p[*expert as usize] / sum * f64::from(scale);
                assert!((f64::from(*weight) - want).abs() <= 1e-6 * want.max(1e-3), "{weight} for {want}");
            }
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
                assert_eq!(routed(isa), chosen, "{isa:?}");
            }
        }
        // Ties go to the lower index; sigmoids that are all zero give weights that are numbers.
        let mut chosen = vec![Chosen::default(); 2];
        assert!(route(Isa::best(), &Gating::Sigmoid { correction: None, scale: 1.0 }, &mut [-1e30; 5], &mut chosen));
        assert_eq!([chosen[0].expert, chosen[1].expert], [0, 1]);
        assert!(chosen.iter().all(|chosen| (0.0..1e-9).contains(&chosen.weight)), "{chosen:?}");
    }

    #[test]
    fn a_sum_is_fused_and_has_the_same_bits_on_every_family() {
        let mut random = SplitMix64::new(5);
        for len in [1, 15, 16, 17, 48, 50] {
            let x: Vec<f32> = (0..len).map(|_| random.signed_unit()).collect();
            let before: Vec<f32> = (0..len).map(|_| random.signed_unit()).collect();
            let weight = random.signed_unit();
            let want: Vec<f32> = x.iter().zip(&before).map(|(x, sum)| weight.mul_add(*x, *sum)).collect();
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
                let mut sum = before.clone();
                add_scaled(isa, weight, &x, &mut sum);
                assert_eq!(sum, want, "{isa:?}, {len}");
            }
        }
    }
}
