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

/// The parameters of YaRN; its ramp runs between 32 and 1 rotations over the original context.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Yarn {
    pub(crate) factor: f64,
    pub(crate) original_context: f64,
    pub(crate) attention_factor: f64,
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
            RopeScaling::Yarn(yarn) => {
                // The pair that makes this many rotations over the original context.
                let pair_of = |rotations: f64| {
                    dim as f64 * ln(yarn.original_context / (rotations * std::f64::consts::TAU)) / (2.0 * ln(base))
                };
                let low = pair_of(32.0).floor().max(0.0);
                let high = pair_of(1.0).ceil().min(dim as f64 - 1.0);
                let radians = (0..pairs)
                    .map(|i| {
                        let ramp = ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
                        let extrapolated = plain(i);
                        extrapolated / yarn.factor * ramp + extrapolated * (1.0 - ramp)
                    })
                    .collect();
                let magnitude = (1.0 + 0.1 * ln(yarn.factor.max(1.0))) * yarn.attention_factor;
                Frequencies { radians, magnitude }
            }
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

    #[test]
    fn yarn_keeps_fast_pairs_and_stretches_slow_ones() {
        let yarn = Yarn { factor: 4.0, original_context: 32_768.0, attention_factor: 1.0 };
        let f = Frequencies::new(128, 1e6, RopeScaling::Yarn(yarn), None);
        let plain = Frequencies::new(128, 1e6, RopeScaling::Linear(1.0), None);
        assert_eq!(f.radians[0], plain.radians[0]);
        assert!((f.radians[63] - plain.radians[63] / 4.0).abs() < 1e-18);
        assert!((f.magnitude - 1.138_629_436_111_989).abs() < 1e-12);
    }
}
