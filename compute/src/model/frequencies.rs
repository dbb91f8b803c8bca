//! Rotary frequencies of a model's layers: base, linear and YaRN scaling, per-pair factors (Llama 3.1). Computed in f64
//! from this crate's own elementary functions, so they are the same on every machine.

use crate::kernel::float::rope::{ln, power};

/// Scaling of frequencies for contexts longer than those that a model was first trained with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum RopeScaling {
    /// All frequencies divided by this.
    Linear(f64),
    /// YaRN (Peng et al. 2023).
    Yarn(Yarn),
}

/// The parameters of YaRN, as files of models state them. Files are checked where they are read: `factor` ≥ 1,
/// `beta_fast` > `beta_slow` > 0, `extrapolation` within 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Yarn {
    /// The extended context over the original one: s in the paper.
    pub(crate) factor: f64,
    /// Positions of the context that the model was first trained with: L in the paper.
    pub(crate) original_context: f64,
    /// Rotations over the original context from which on a pair keeps its frequency: β in the paper.
    pub(crate) beta_fast: f64,
    /// Rotations over the original context up to which a pair's frequency is divided by `factor`: α in the paper.
    pub(crate) beta_slow: f64,
    /// How much fast pairs keep of their frequency: 1 in the paper; with 0 all pairs are interpolated.
    pub(crate) extrapolation: f64,
    /// Factor of cosines and sines, which multiplies the others.
    pub(crate) attention_factor: f64,
    /// Factor of cosines and sines in place of the paper's.
    pub(crate) own_attention_factor: Option<f64>,
    /// Whether the ramp begins and ends at whole pairs, as in the paper's published code.
    pub(crate) whole_pairs: bool,
    /// Weight of ln s in what the paper's factor is divided by; 0 leaves that factor as it is.
    pub(crate) log_multiplier: f64,
}

impl Yarn {
    /// The radians of pair `i` of `dim` rotated elements, which were `radians`. `base` is the model's.
    fn scaled(&self, i: usize, dim: usize, base: f64, radians: f64) -> f64 {
        // The pair that makes this many rotations over the original context.
        let pair_of = |rotations: f64| {
            dim as f64 * ln(self.original_context / (rotations * std::f64::consts::TAU)) / (2.0 * ln(base))
        };
        let (low, high) = (pair_of(self.beta_fast), pair_of(self.beta_slow));
        let (low, high) = if self.whole_pairs { (low.floor(), high.ceil()) } else { (low, high) };
        let (low, high) = (low.max(0.0), high.min(dim as f64 - 1.0));
        let ramp = ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
        let interpolated = ramp + (1.0 - ramp) * (1.0 - self.extrapolation);
        radians / self.factor * interpolated + radians * ((1.0 - ramp) * self.extrapolation)
    }

    /// The factor of cosines and sines.
    fn magnitude(&self) -> f64 {
        let with_weight = |weight: f64| 1.0 + 0.1 * weight * ln(self.factor.max(1.0));
        let own = match self.own_attention_factor {
            Some(factor) => factor,
            // Nothing is extrapolated, so there is nothing to make up for.
            None if self.extrapolation == 0.0 => 1.0,
            None => with_weight(1.0) / with_weight(self.log_multiplier),
        };
        own * self.attention_factor
    }
}

/// The frequencies of one kind of layer: radians per position, and a factor for cosines and sines.
#[derive(Clone, Debug)]
pub(crate) struct Frequencies {
    pub(crate) radians: Vec<f64>,
    pub(crate) magnitude: f64,
}

impl Frequencies {
    /// Frequencies of the pairs (i, i + dim / 2) of `dim` rotated elements. `divisors` (dim / 2) are the model's own
    /// per-pair factors.
    pub(crate) fn new(dim: usize, base: f64, scaling: RopeScaling, divisors: Option<&[f32]>) -> Frequencies {
        let pairs = dim / 2;
        let plain = |i: usize| {
            power(base, -(2.0 * i as f64) / dim as f64) / divisors.map_or(1.0, |divisors| f64::from(divisors[i]))
        };
        match scaling {
            RopeScaling::Linear(factor) => {
                Frequencies { radians: (0..pairs).map(|i| plain(i) / factor).collect(), magnitude: 1.0 }
            }
            RopeScaling::Yarn(yarn) => Frequencies {
                radians: (0..pairs).map(|i| yarn.scaled(i, dim, base, plain(i))).collect(),
                magnitude: yarn.magnitude(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unscaled_frequencies_are_powers_of_the_base() {
        let f = Frequencies::new(64, 10_000.0, RopeScaling::Linear(1.0), None);
        assert_eq!(f.radians.len(), 32);
        assert!((f.radians[0] - 1.0).abs() < 1e-15 && (f.radians[16] - 0.01).abs() < 1e-16);
        let divisors = vec![4.0; 32];
        let f = Frequencies::new(64, 10_000.0, RopeScaling::Linear(2.0), Some(&divisors));
        assert!((f.radians[0] - 0.125).abs() < 1e-15);
    }

    /// YaRN as Qwen's files have it.
    const YARN: Yarn = Yarn {
        factor: 4.0,
        original_context: 32_768.0,
        beta_fast: 32.0,
        beta_slow: 1.0,
        extrapolation: 1.0,
        attention_factor: 1.0,
        own_attention_factor: None,
        whole_pairs: true,
        log_multiplier: 0.0,
    };

    /// Section 3.2 of the paper, from the rotations r(d) = L / (2π · b^(2d/|D|)) of each pair: with r > β nothing changes, with
    /// r < α the frequency is divided by s. In between the published code blends by the pair's index, from the last whole
    /// pair before the ramp to the first one after it.
    fn by_the_paper(yarn: Yarn, dim: usize, base: f64) -> Vec<f64> {
        let radians = |d: usize| base.powf(-2.0 * d as f64 / dim as f64);
        let rotations = |d: usize| yarn.original_context * radians(d) / std::f64::consts::TAU;
        let low = (0..dim).rev().find(|d| rotations(*d) >= yarn.beta_fast).unwrap_or(0) as f64;
        let high = (0..dim).find(|d| rotations(*d) <= yarn.beta_slow).unwrap_or(dim - 1) as f64;
        (0..dim / 2)
            .map(|d| {
                let kept = 1.0 - ((d as f64 - low) / (high - low)).clamp(0.0, 1.0);
                let kept = kept * yarn.extrapolation;
                (1.0 - kept) * radians(d) / yarn.factor + kept * radians(d)
            })
            .collect()
    }

    #[test]
    fn yarn_keeps_fast_pairs_and_stretches_slow_ones() {
        let f = Frequencies::new(128, 1e6, RopeScaling::Yarn(YARN), None);
        let plain = Frequencies::new(128, 1e6, RopeScaling::Linear(1.0), None);
        assert_eq!(f.radians[0], plain.radians[0]);
        assert!((f.radians[63] - plain.radians[63] / 4.0).abs() < 1e-18);
        assert!((f.magnitude - 1.138_629_436_111_989).abs() < 1e-12);
    }

    #[test]
    fn yarn_follows_the_paper_for_any_betas_context_and_extrapolation() {
        let cases = [
            (YARN, 128, 1e6),
            (Yarn { beta_fast: 64.0, beta_slow: 2.0, ..YARN }, 128, 1e6),
            (Yarn { beta_fast: 8.0, beta_slow: 0.25, factor: 16.0, ..YARN }, 64, 10_000.0),
            (Yarn { original_context: 4_096.0, factor: 32.0, ..YARN }, 64, 150_000.0),
            (Yarn { extrapolation: 0.5, ..YARN }, 128, 1e6),
            (Yarn { extrapolation: 0.0, ..YARN }, 128, 1e6),
        ];
        for (yarn, dim, base) in cases {
            let f = Frequencies::new(dim, base, RopeScaling::Yarn(yarn), None);
            for (i, (ours, theirs)) in f.radians.iter().zip(by_the_paper(yarn, dim, base)).enumerate() {
                assert!((ours - theirs).abs() <= 1e-12 * theirs, "pair {i} of {yarn:?}: {ours}, by the paper {theirs}");
            }
        }
    }

    #[test]
    fn yarns_magnitude_is_the_papers_unless_the_file_says_otherwise() {
        // Section 3.4: √(1/t) = 0.1 · ln s + 1, here with s = 4.
        let paper = 1.0 + 0.1 * 4.0_f64.ln();
        let cases = [
            (YARN, paper),
            (Yarn { attention_factor: 0.5, ..YARN }, 0.5 * paper),
            (Yarn { own_attention_factor: Some(1.25), ..YARN }, 1.25),
            (Yarn { own_attention_factor: Some(1.25), attention_factor: 0.5, ..YARN }, 0.625),
            (Yarn { log_multiplier: 1.0, ..YARN }, 1.0),
            (Yarn { log_multiplier: 0.5, ..YARN }, paper / (1.0 + 0.05 * 4.0_f64.ln())),
            (Yarn { extrapolation: 0.0, ..YARN }, 1.0),
            (Yarn { factor: 1.0, ..YARN }, 1.0),
        ];
        for (yarn, magnitude) in cases {
            let f = Frequencies::new(128, 1e6, RopeScaling::Yarn(yarn), None);
            assert!((f.magnitude - magnitude).abs() < 1e-12, "{yarn:?}: {}, not {magnitude}", f.magnitude);
        }
    }
}
