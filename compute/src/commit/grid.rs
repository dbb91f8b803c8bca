//! `canonical-grid/1`: one hash for activations that two engines computed with different bits, and the comparison after
//! a mismatch, of activations, tokens and log-probabilities. Values near the edge of a grid cell differ between honest engines, so
//! a mismatch alone is no evidence.

use crate::sample::Choice;
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

/// Deviations by which a single logit may differ: two in 10⁹ of a normal distribution exceed six. Measured between processor and GPU
/// (SmolLM2 135M, 1 to 29 layers before the head, 96 positions): 2.9 at most.
const LOGIT_DEVIATIONS: f64 = 6.0;

/// Deviations by which a single element may differ. Measured between processor and GPU, with natural and with meaningless text, for each
/// number of layers up to that of the model (SmolLM2 135M, gemma3 270M): 6.4 at most, 4.0 with natural text.
const ELEMENT_DEVIATIONS: f64 = 16.0;

/// Deviations by which the elements of a row may differ in RMS. Measured as above: 1.23 at most, 0.45 with natural text.
const ROW_DEVIATIONS: f64 = 2.5;

/// Times the accepted difference from which on it is evidence. Errors of honest engines are not independent: attention and gates make
/// a few rows differ far more than others, with more weight in the tail than a normal distribution has.
const EVIDENCE: f64 = 2.0;

/// Largest error of a log-probability as f32, and of the sum that it is computed from.
const LOGPROB_ROUNDING: f64 = 1e-4;

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

/// The result of comparing one row of two engines. Differences are RMS of those of the elements, in deviations of an honest engine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum GridVerdict {
    /// Every cell is the same.
    Same,
    /// Cells differ, but values differ no more than those of honest engines.
    Close {
        /// The number of cells that differ.
        cells: usize,
        /// The difference.
        difference: f64,
    },
    /// Values differ more than what is accepted, and not so far that it proves anything.
    Unclear {
        /// The element furthest beyond its bound.
        index: usize,
        /// The difference.
        difference: f64,
    },
    /// Values differ as no honest engine's do: one side computed something else.
    Different {
        /// The element furthest beyond its bound, or the first that only one side has.
        index: usize,
        /// The difference.
        difference: f64,
    },
}

/// Deviation between honest engines after `layers` layers, as a share of the row's RMS.
///
/// Every product adds the error of rounding its input to 8 bits (0.68 % of the input's RMS), independently, to a stream
/// whose RMS is at least that of the addend; so after n products the error is at most √n of one. Both engines may
/// round: √2 of that.
pub fn deviation(layers: usize) -> f64 {
    after(PRODUCTS_PER_LAYER * layers.max(1) as f64)
}

fn after(products: f64) -> f64 {
    PRODUCT_ERROR * (2.0 * products).sqrt()
}

/// The largest difference of one logit between honest engines, `layers` layers and the head after the last value that both had
/// in common: six deviations of the logits' spread around their mean. A shift of all logits alike changes no probability. Of a
/// choice with a repetition penalty, which is not indifferent to a shift (`shifts`), six deviations of their RMS. Twice that is
/// evidence ([`evidence`]).
///
/// `logits`: `[vocabulary]`, as the model gives them.
pub fn logit_bound(logits: &[f32], layers: usize, shifts: bool) -> f64 {
    let finite = || logits.iter().filter(|logit| logit.is_finite()).map(|logit| f64::from(*logit));
    let count = finite().count().max(1) as f64;
    let mean = if shifts { 0.0 } else { finite().sum::<f64>() / count };
    let spread = (finite().map(|logit| (logit - mean).powi(2)).sum::<f64>() / count).sqrt();
    LOGIT_DEVIATIONS * after(PRODUCTS_PER_LAYER * layers as f64 + 1.0) * spread
}

/// The difference from which on one is evidence, of one that is accepted up to `bound`.
pub fn evidence(bound: f64) -> f64 {
    EVIDENCE * bound
}

/// Whether an honest engine, whose logits differ by at most `bound`, can have given the log-probabilities of `theirs`: of its token,
/// and of `count` alternatives, best first, with none left out that is surely better than the last.
///
/// `logits`: `[vocabulary]`, as the model gives them; `log_sum`: the logarithm of the sum of their exponentials.
pub fn close_logprobs(logits: &[f32], log_sum: f64, theirs: &Choice, count: usize, bound: f64) -> bool {
    // The logarithm of the sum differs by no more than a logit.
    let bound = 2.0 * bound + LOGPROB_ROUNDING;
    let ours = |token: u32| logits.get(token as usize).map(|logit| f64::from(*logit) - log_sum);
    let close = |token: u32, theirs: f32| ours(token).is_some_and(|ours| (ours - f64::from(theirs)).abs() <= bound);
    let possible = logits.iter().filter(|logit| **logit > f32::NEG_INFINITY).count();
    let mut listed: Vec<u32> = theirs.top.iter().map(|(token, _)| *token).collect();
    listed.sort_unstable();
    let distinct = listed.windows(2).all(|pair| pair[0] != pair[1]);
    let last = theirs.top.last().map_or(f64::INFINITY, |(_, logprob)| f64::from(*logprob));
    let left_out = (0..logits.len() as u32).filter(|token| listed.binary_search(token).is_err());
    theirs.logprob.is_some_and(|logprob| close(theirs.token, logprob))
        && theirs.top.len() == count.min(possible)
        && distinct
        && theirs.top.is_sorted_by(|(_, better), (_, worse)| better >= worse)
        && theirs.top.iter().all(|(token, logprob)| close(*token, *logprob))
        && left_out.filter_map(ours).all(|ours| ours <= last + bound)
}

/// The rows of a stage compared, `[positions, width]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowsCompared {
    /// Rows of which a cell differs.
    pub other_cells: usize,
    /// The largest difference of a row, in deviations of an honest engine.
    pub difference: f64,
    /// The largest difference that is accepted.
    pub allowed: f64,
    /// The first position whose row is [`GridVerdict::Unclear`] or [`GridVerdict::Different`].
    pub unclear: Option<usize>,
    /// The first position whose row is [`GridVerdict::Different`].
    pub different: Option<usize>,
}

/// Compares the rows of a stage of `layers` layers, as [`compare`] does each: `[positions, width]` both.
pub fn compare_rows(ours: &[f32], theirs: &[f32], width: usize, layers: usize) -> RowsCompared {
    let mut compared =
        RowsCompared { other_cells: 0, difference: 0.0, allowed: ROW_DEVIATIONS, unclear: None, different: None };
    let width = width.max(1);
    for (position, ours) in ours.chunks(width).enumerate() {
        let theirs = theirs.chunks(width).nth(position).unwrap_or_default();
        let (difference, unclear, different) = match compare(ours, theirs, layers) {
            GridVerdict::Same => continue,
            GridVerdict::Close { difference, .. } => (difference, None, None),
            GridVerdict::Unclear { difference, .. } => (difference, Some(position), None),
            GridVerdict::Different { difference, .. } => (difference, Some(position), Some(position)),
        };
        compared.other_cells += 1;
        compared.difference = compared.difference.max(difference);
        compared.unclear = compared.unclear.or(unclear);
        compared.different = compared.different.or(different);
    }
    compared
}

/// Compares one row (`[hidden_size]`) that this node computed with the same row as another engine opened it, `layers`
/// layers after the last value that both had in common. Only [`GridVerdict::Different`] is evidence against the other
/// engine.
///
/// A deviation of an element is [`deviation`] of the row's RMS and of the element's own size: what stands out of its row came from
/// inputs that stood out, whose errors are a share of them. An element may differ by sixteen, all of a row by two and a half in RMS;
/// five in RMS are evidence. Smaller lies are not found, and one about a single element is proven only if it is large: the verdict is
/// `tolerance-checked` at best. The scale is that of `ours` alone, so that no lie widens its own tolerance.
pub fn compare(ours: &[f32], theirs: &[f32], layers: usize) -> GridVerdict {
    if ours.len() != theirs.len() {
        return GridVerdict::Different { index: ours.len().min(theirs.len()), difference: f64::INFINITY };
    }
    let cells = ours.iter().zip(theirs).filter(|(a, b)| cell(**a).to_bits() != cell(**b).to_bits()).count();
    if cells == 0 {
        return GridVerdict::Same;
    }
    let (count, deviation) = (ours.len() as f64, deviation(layers));
    let scale = (ours.iter().map(|a| f64::from(*a).powi(2)).sum::<f64>() / count).sqrt();
    let (mut squares, mut worst) = (0.0, (0.0, 0));
    for (index, (a, b)) in ours.iter().zip(theirs).enumerate() {
        let off = (f64::from(*a) - f64::from(*b)).abs();
        let one = (deviation * (scale + f64::from(*a).abs())).max(f64::MIN_POSITIVE);
        // NaN and infinities exceed any bound.
        let off = if off.is_finite() { off / one } else { f64::INFINITY };
        squares += off * off;
        if off > worst.0 {
            worst = (off, index);
        }
    }
    let (difference, index) = ((squares / count).sqrt(), worst.1);
    if difference <= ROW_DEVIATIONS && worst.0 <= ELEMENT_DEVIATIONS {
        GridVerdict::Close { cells, difference }
    } else if difference <= EVIDENCE * ROW_DEVIATIONS {
        GridVerdict::Unclear { index, difference }
    } else {
        GridVerdict::Different { index, difference }
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
        one[77] += 20.0 * deviation(4) as f32 * (1.0 + ours[77].abs());
        assert!(matches!(compare(&ours, &one, 4), GridVerdict::Unclear { index: 77, .. }), "one element");
        let louder = |times: f32| -> Vec<f32> {
            ours.iter().zip(&noise).map(|(x, e)| x + times * e * deviation(4) as f32).collect()
        };
        // The size of an element widens its deviation, so that of normal values one of RMS is 0.6 of it.
        assert!(matches!(compare(&ours, &louder(3.0), 4), GridVerdict::Close { .. }), "not found");
        assert!(matches!(compare(&ours, &louder(6.0), 4), GridVerdict::Unclear { .. }), "not proven");
        assert!(matches!(compare(&ours, &louder(12.0), 4), GridVerdict::Different { .. }), "all of the row");
        assert!(matches!(compare(&ours, &normal(3, 2048), 32), GridVerdict::Different { .. }), "another row");
        assert!(matches!(compare(&ours, &ours[1..], 4), GridVerdict::Different { index: 2047, .. }));
        let mut broken = ours.clone();
        broken[5] = f32::NAN;
        assert!(matches!(compare(&ours, &broken, 4), GridVerdict::Different { index: 5, .. }));
        // An outlier beyond the grid's clamp is the same cell, and is compared once anything differs.
        let (mut far, mut further) = (ours.clone(), ours.clone());
        (far[9], further[9], further[10]) = (150.0, 900.0, ours[10] + 0.02);
        assert!(matches!(compare(&far, &further, 4), GridVerdict::Unclear { index: 9, .. }));
        // What stands out of its row differs by a share of its own size.
        further[9] = 160.0;
        assert!(matches!(compare(&far, &further, 4), GridVerdict::Close { .. }));
    }

    #[test]
    fn rows_are_compared_one_by_one_and_the_first_different_one_is_named() {
        let (width, ours) = (256, normal(1, 256 * 6));
        let noise = normal(2, ours.len());
        let honest: Vec<f32> = ours.iter().zip(&noise).map(|(x, e)| x + e * deviation(2) as f32).collect();
        let compared = compare_rows(&ours, &honest, width, 2);
        assert_eq!((compared.other_cells, compared.different), (6, None));
        assert!(compared.difference < compared.allowed && compared.difference > 0.4, "{compared:?}");
        let mut lie = honest.clone();
        lie[4 * width..5 * width].rotate_left(9);
        lie[5 * width..].rotate_left(9);
        lie[3 * width + 7] += 1.5;
        let found = compare_rows(&ours, &lie, width, 2);
        assert_eq!((found.unclear, found.different), (Some(3), Some(4)));
        assert_eq!(compare_rows(&ours, &ours[..5 * width], width, 2).different, Some(5), "a row is missing");
        let same = compare_rows(&ours, &ours, width, 2);
        assert_eq!((same.other_cells, same.difference, same.different), (0, 0.0, None));
    }

    /// Logits of a random head, and those of the same after an honest engine's error: a head's product of a row with that error.
    fn logits(layers: usize, seed: u64) -> [Vec<f32>; 2] {
        let (width, vocabulary) = (256, 2000);
        let (row, noise, head) = (normal(seed, width), normal(seed + 1, width), normal(seed + 2, width * vocabulary));
        let error = after(PRODUCTS_PER_LAYER * layers as f64 + 1.0) as f32;
        let other: Vec<f32> = row.iter().zip(&noise).map(|(x, e)| x + error * e).collect();
        let product = |row: &[f32]| {
            let dot = |weights: &[f32]| weights.iter().zip(row).map(|(w, x)| w * x).sum::<f32>() / 6.0;
            head.chunks_exact(width).map(dot).collect()
        };
        [product(&row), product(&other)]
    }

    #[test]
    fn logits_of_honest_engines_differ_by_less_than_their_bound() {
        for layers in [1, 8, 30] {
            for seed in 0..20 {
                let [ours, theirs] = logits(layers, 10 * seed);
                let bound = logit_bound(&ours, layers, false);
                let worst = ours.iter().zip(&theirs).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
                assert!(worst < bound, "{layers} layers: {worst} of {bound}");
                assert!(worst > bound / 6.0, "{layers} layers: the bound of {bound} is far from {worst}");
            }
        }
        let shifted: Vec<f32> = logits(4, 1)[0].iter().map(|logit| logit + 20.0).collect();
        let (free, fixed) = (logit_bound(&shifted, 4, false), logit_bound(&shifted, 4, true));
        assert!((logit_bound(&logits(4, 1)[0], 4, false) - free).abs() < 1e-3 * free && fixed > 5.0 * free);
    }

    #[test]
    fn honest_log_probabilities_are_close_and_others_are_not() {
        let [ours, theirs] = logits(4, 5);
        let sampling = crate::sample::Sampling { logprobs: Some(3), ..crate::sample::Sampling::greedy() };
        let honest = crate::sample::choose(&sampling, &[], &[], &mut theirs.clone(), None).unwrap();
        let log_sum = ours.iter().map(|logit| f64::from(*logit).exp()).sum::<f64>().ln();
        let bound = logit_bound(&ours, 4, false);
        let close = |theirs: &Choice| close_logprobs(&ours, log_sum, theirs, 3, bound);
        assert!(close(&honest));
        let change = |change: &dyn Fn(&mut Choice)| {
            let mut other = honest.clone();
            change(&mut other);
            close(&other)
        };
        let far = 3.0 * bound as f32;
        assert!(!change(&|other| other.logprob = other.logprob.map(|logprob| logprob - far)));
        assert!(!change(&|other| other.logprob = None) && !change(&|other| other.logprob = Some(f32::NAN)));
        assert!(!change(&|other| other.top[2].1 -= far));
        assert!(!change(&|other| other.top.truncate(2)), "one is missing");
        assert!(!change(&|other| other.top[2] = other.top[1]), "one twice");
        assert!(!change(&|other| other.top.reverse()), "the worst first");
        // The worst of all tokens in the place of the best.
        let worst = (0..2000u32).min_by(|a, b| theirs[*a as usize].total_cmp(&theirs[*b as usize])).unwrap();
        assert!(!change(&|other| other.top[2].0 = worst));
        let left_out =
            Choice { top: vec![(worst, (f64::from(theirs[worst as usize]) - log_sum) as f32); 1], ..honest.clone() };
        assert!(!close_logprobs(&ours, log_sum, &left_out, 1, bound), "better ones are left out");
    }

    #[test]
    fn a_row_of_zeros_is_compared_too() {
        assert_eq!(compare(&[0.0; 4], &[0.001; 4], 1), GridVerdict::Same);
        assert!(matches!(compare(&[0.0; 4], &[0.0, 0.0, 1.0, 0.0], 1), GridVerdict::Different { index: 2, .. }));
    }
}
