//! `canonical-grid/1`: one hash for activations that two engines computed with different bits, and the comparison after
//! a mismatch. Values near the edge of a grid cell differ between honest engines, so a mismatch alone is no evidence.

use half::f16;
use pangea_units::Digest;
use sha2::{Digest as _, Sha256};

/// Cells per unit.
const STEPS: f32 = 64.0;

/// Magnitudes above this are clamped to it.
const LIMIT: f32 = 100.0;

/// Products in one layer (q, k, v, attention's output, gate, up, down).
const PRODUCTS_PER_LAYER: f64 = 7.0;

/// Error of rounding a product's input to 8 bits in blocks of 32, as a share of the input's RMS: the largest of 32
/// normal values is 2.1 times their deviation on average and rarely above 3, a step is that over 127, and the error of
/// rounding is uniform over one step: 3 / 127 / √12. This is the coarsest rounding of activations among engines in use
/// (ggml's Q8_0).
const PRODUCT_ERROR: f64 = 3.0 / 127.0 / 3.464;

/// Deviations by which a single element may differ: two in 10⁹ honest elements exceed six.
const ELEMENT_DEVIATIONS: f64 = 6.0;

/// Deviations by which the RMS of a whole row may differ; it varies far less than single elements.
const ROW_DEVIATIONS: f64 = 2.0;

/// Relative error of values that either side may have cast to f16.
const CAST_ERROR: f64 = 1.0 / 1024.0;

/// A value's cell, as f16: cast (NaN → 0, ±∞ → ±100), `round(x · 64) / 64` half to even, clamped to ±100. A negative
/// zero stays negative, as in NumPy.
pub fn cell(value: f32) -> f16 {
    let cast = f16::from_f32(value);
    if cast.is_nan() {
        return f16::ZERO;
    }
    // Exact: a power of two, and an integer below 2^11 or one that f16 represents.
    let rounded = (f32::from(cast) * STEPS).round_ties_even() / STEPS;
    f16::from_f32(rounded.clamp(-LIMIT, LIMIT))
}

/// SHA-256 over the cells of `values`, f16, little-endian.
pub fn digest(values: &[f32]) -> Digest {
    let mut hasher = Sha256::new();
    for value in values {
        hasher.update(cell(*value).to_le_bytes());
    }
    Digest(hasher.finalize().into())
}

/// The result of comparing one row of two engines.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum GridVerdict {
    /// Every cell is the same.
    Same,
    /// Cells differ, but values differ no more than those of honest engines.
    Close {
        /// The number of cells that differ.
        cells: usize,
        /// RMS of the difference as a share of the row's RMS.
        difference: f64,
    },
    /// Values differ more than those of honest engines: one side computed something else.
    Different {
        /// The element furthest beyond its bound, or the first that only one side has.
        index: usize,
        /// RMS of the difference as a share of the row's RMS.
        difference: f64,
        /// The largest share that is accepted.
        allowed: f64,
    },
}

/// Deviation between honest engines after `layers` layers, as a share of the row's RMS.
///
/// Every product adds the error of rounding its input to 8 bits (0.68 % of the input's RMS), independently, to a stream
/// whose RMS is at least that of the addend; so after n products the error is at most √n of one. Both engines may
/// round: √2 of that.
pub fn deviation(layers: usize) -> f64 {
    PRODUCT_ERROR * (2.0 * PRODUCTS_PER_LAYER * layers.max(1) as f64).sqrt()
}

/// Compares one row (`[hidden_size]`) that this node computed with the same row as another engine opened it, `layers`
/// layers after the last value that both had in common. Only [`GridVerdict::Different`] is evidence against the other
/// engine.
///
/// An element may differ by six deviations of the row's RMS and the error of two casts to f16; the whole row's
/// difference may have an RMS of two deviations. Smaller lies are not found: that is why the verdict is
/// `tolerance-checked` at best. The scale is that of `ours` alone, so that no lie widens its own tolerance.
pub fn compare(ours: &[f32], theirs: &[f32], layers: usize) -> GridVerdict {
    let deviation = deviation(layers);
    let allowed = ROW_DEVIATIONS * deviation;
    if ours.len() != theirs.len() {
        return GridVerdict::Different { index: ours.len().min(theirs.len()), difference: f64::INFINITY, allowed };
    }
    let cells = ours.iter().zip(theirs).filter(|(a, b)| cell(**a).to_bits() != cell(**b).to_bits()).count();
    if cells == 0 {
        return GridVerdict::Same;
    }
    let count = ours.len() as f64;
    let scale = (ours.iter().map(|a| f64::from(*a).powi(2)).sum::<f64>() / count).sqrt();
    let (mut squares, mut worst) = (0.0, (0.0, 0));
    for (index, (a, b)) in ours.iter().zip(theirs).enumerate() {
        let off = (f64::from(*a) - f64::from(*b)).abs();
        squares += off * off;
        let bound = ELEMENT_DEVIATIONS * deviation * scale + CAST_ERROR * f64::from(*a).abs();
        // NaN and infinities exceed any bound.
        let excess = if off.is_finite() { off / bound.max(f64::MIN_POSITIVE) } else { f64::INFINITY };
        if excess > worst.0 {
            worst = (excess, index);
        }
    }
    let rms = (squares / count).sqrt();
    let difference = if rms == 0.0 { 0.0 } else { rms / scale };
    if worst.0 <= 1.0 && difference <= allowed {
        GridVerdict::Close { cells, difference }
    } else {
        GridVerdict::Different { index: worst.1, difference, allowed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `golden/make_grid.py` computed with NumPy.
    const GOLDEN: &str = include_str!("golden/grid.txt");

    fn golden(kind: &str) -> impl Iterator<Item = (&'static str, &'static str)> {
        let lines = GOLDEN.lines().filter_map(move |line| line.strip_prefix(kind)?.trim().split_once(' '));
        lines.map(|(input, expected)| (input, expected.trim()))
    }

    #[test]
    fn cells_are_those_that_numpy_computes() {
        let mut count = 0;
        for (bits, expected) in golden("cell ") {
            let value = f32::from_bits(u32::from_str_radix(bits, 16).unwrap());
            assert_eq!(format!("{:04x}", cell(value).to_bits()), expected, "{value} ({bits})");
            count += 1;
        }
        assert!(count > 500, "the goldens were read");
    }

    #[test]
    fn digests_are_those_that_numpy_computes() {
        let every_half: Vec<f32> = (0..=u16::MAX).map(|bits| f32::from(f16::from_bits(bits))).collect();
        let spread: Vec<f32> = (0..1u32 << 20).map(|k| f32::from_bits(k.wrapping_mul(2_654_435_761))).collect();
        let small: Vec<f32> = (0..1i32 << 16).map(|k| (k - (1 << 15)) as f32 / 1024.0).collect();
        let mut count = 0;
        for (name, expected) in golden("digest ") {
            let values = match name {
                "none" => &[][..],
                "every-half" => &every_half,
                "spread" => &spread,
                "small" => &small,
                _ => panic!("{name}"),
            };
            assert_eq!(digest(values).to_string(), expected, "{name}");
            count += 1;
        }
        assert_eq!(count, 4);
    }

    /// Pseudo-random values of a normal distribution (a sum of twelve uniforms).
    fn normal(seed: u64, count: usize) -> Vec<f32> {
        let mut state = seed;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 24) as f32
        };
        (0..count).map(|_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0).collect()
    }

    #[test]
    fn flipped_cells_are_no_evidence_and_lies_are_found() {
        let ours = normal(1, 2048);
        assert_eq!(compare(&ours, &ours, 4), GridVerdict::Same);
        // As far off as rounding to 8 bits makes two engines after four layers.
        let noise = normal(2, 2048);
        let honest: Vec<f32> = ours.iter().zip(&noise).map(|(x, e)| x + e * deviation(4) as f32).collect();
        assert!(matches!(compare(&ours, &honest, 4), GridVerdict::Close { cells, .. } if cells > 1000));
        let mut one = honest.clone();
        one[77] += 1.0;
        assert!(matches!(compare(&ours, &one, 4), GridVerdict::Different { index: 77, .. }), "one element");
        let louder: Vec<f32> = ours.iter().zip(&noise).map(|(x, e)| x + 3.0 * e * deviation(4) as f32).collect();
        assert!(matches!(compare(&ours, &louder, 4), GridVerdict::Different { .. }), "all of the row");
        assert!(matches!(compare(&ours, &normal(3, 2048), 32), GridVerdict::Different { .. }), "another row");
        assert!(matches!(compare(&ours, &ours[1..], 4), GridVerdict::Different { index: 2047, .. }));
        let mut broken = ours.clone();
        broken[5] = f32::NAN;
        assert!(matches!(compare(&ours, &broken, 4), GridVerdict::Different { index: 5, .. }));
        // An outlier beyond the grid's clamp is the same cell, and is compared once anything differs.
        let (mut far, mut further) = (ours.clone(), ours.clone());
        (far[9], further[9], further[10]) = (150.0, 900.0, ours[10] + 0.02);
        assert!(matches!(compare(&far, &further, 4), GridVerdict::Different { index: 9, .. }));
    }

    #[test]
    fn a_row_of_zeros_is_compared_too() {
        assert_eq!(compare(&[0.0; 4], &[0.001; 4], 1), GridVerdict::Same);
        assert!(matches!(compare(&[0.0; 4], &[0.0, 0.0, 1.0, 0.0], 1), GridVerdict::Different { index: 2, .. }));
    }
}
