//! The candidates that may be drawn (top-k, typical, top-p, min-p, in this order), and the draw. Probabilities are f64,
//! from [`math`](super::math), summed in fixed orders, so every machine draws the same token.

use super::Sampling;
use super::math::{exp, ln};
use super::ranking::{Candidate, Ranking};

/// Candidates that a growing search looks at first; they decide most distributions.
const FIRST_LOOK: usize = 128;
/// Partial sums of a whole vocabulary, so that a draw needs no second pass over all of it.
const BLOCK: usize = 1024;
const LANES: usize = 8;

/// The candidates that remain.
pub(super) enum Kept {
    /// Every token that is not forbidden.
    All,
    /// These candidates, best first, at least one.
    Some(Vec<Candidate>),
}

impl Kept {
    pub(super) fn of(sampling: &Sampling, ranking: &Ranking<'_>, best: Candidate) -> Kept {
        let mut kept = Kept::All;
        if (1..ranking.logits.len()).contains(&sampling.top_k) {
            kept = Kept::Some(ranking.top(sampling.top_k));
        }
        if sampling.typical_p < 1.0 {
            kept = Kept::Some(kept.typical(ranking, best, f64::from(sampling.typical_p)));
        }
        // Typical sampling may have dropped the best candidate.
        let max = match &kept {
            Kept::Some(list) => list.first().map_or(best.logit, |first| first.logit),
            Kept::All => best.logit,
        };
        if sampling.top_p < 1.0 {
            kept = Kept::Some(kept.nucleus(ranking, max, f64::from(sampling.top_p)));
        }
        if sampling.min_p > 0.0 {
            let threshold = f64::from(max) + ln(f64::from(sampling.min_p));
            let list = match kept {
                Kept::Some(mut list) => {
                    list.retain(|candidate| f64::from(candidate.logit) >= threshold);
                    list
                }
                Kept::All => {
                    // Rounded to f32, the bound can be slightly too low or too high; the exact comparison follows.
                    let mut list = ranking.at_least((threshold as f32).next_down());
                    list.retain(|candidate| f64::from(candidate.logit) >= threshold);
                    list.sort_unstable_by(Candidate::order);
                    list
                }
            };
            kept = Kept::Some(list);
        }
        kept
    }

    /// The shortest run of best candidates whose probability reaches `p`.
    fn nucleus(self, ranking: &Ranking<'_>, max: f32, p: f64) -> Vec<Candidate> {
        let max = f64::from(max);
        match self {
            Kept::Some(mut list) => {
                let total: f64 = list.iter().map(|candidate| weight(candidate.logit, max)).sum();
                let needed = reach(list.iter().map(|candidate| weight(candidate.logit, max)), p * total);
                list.truncate(needed.unwrap_or(list.len()));
                list
            }
            Kept::All => {
                let target = p * sum_of_weights(ranking.logits, max, 1.0);
                let mut look = FIRST_LOOK;
                loop {
                    let mut list = ranking.top(look);
                    let needed = reach(list.iter().map(|candidate| weight(candidate.logit, max)), target);
                    if needed.is_some() || list.len() < look {
                        list.truncate(needed.unwrap_or(list.len()));
                        return list;
                    }
                    look *= 8;
                }
            }
        }
    }

    /// The candidates whose surprise −ln p is nearest to the entropy, until together they reach `p`; most likely first.
    fn typical(self, ranking: &Ranking<'_>, best: Candidate, p: f64) -> Vec<Candidate> {
        let list = match self {
            Kept::Some(list) => list,
            Kept::All => ranking.at_least(f32::NEG_INFINITY),
        };
        let max = f64::from(best.logit);
        let weights: Vec<f64> = list.iter().map(|candidate| weight(candidate.logit, max)).collect();
        let total: f64 = weights.iter().sum();
        // −ln p = ln Z − (logit − max), so that H = ln Z − Σ w·(logit − max) / Z.
        let distance = |candidate: &Candidate| f64::from(candidate.logit) - max;
        let mean: f64 = list.iter().zip(&weights).map(|(candidate, w)| w * distance(candidate)).sum::<f64>() / total;
        let oddness = |candidate: &Candidate| (distance(candidate) - mean).abs();
        let mut by_oddness: Vec<(f64, usize)> = list.iter().map(oddness).zip(0..).collect();
        let order = |a: &(f64, usize), b: &(f64, usize)| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1));
        let mut look = FIRST_LOOK;
        let needed = loop {
            let end = look.min(by_oddness.len());
            if end < by_oddness.len() {
                by_oddness.select_nth_unstable_by(end, order);
            }
            by_oddness[..end].sort_unstable_by(order);
            match reach(by_oddness[..end].iter().map(|&(_, place)| weights[place]), p * total) {
                Some(needed) => break needed,
                None if end == by_oddness.len() => break end,
                None => look *= 8,
            }
        };
        let mut kept: Vec<_> = by_oddness[..needed].iter().map(|&(_, place)| list[place]).collect();
        kept.sort_unstable_by(Candidate::order);
        kept
    }

    /// Inverts the cumulative distribution, ids ascending, at `u` in [0, 1).
    pub(super) fn draw(self, ranking: &Ranking<'_>, max: f32, temperature: f32, u: f64) -> u32 {
        let scale = 1.0 / f64::from(temperature);
        match self {
            Kept::Some(mut list) => {
                // The first weight is the best candidate's, which is 1, so the total is never 0.
                let max = list.first().map_or(f64::from(max), |first| f64::from(first.logit));
                list.sort_unstable_by_key(|candidate| candidate.token);
                let weights = || list.iter().map(|candidate| exp((f64::from(candidate.logit) - max) * scale));
                let total: f64 = weights().sum();
                list[invert(weights(), u * total)].token
            }
            Kept::All => {
                let max = f64::from(max);
                let block_sums: Vec<f64> =
                    ranking.logits.chunks(BLOCK).map(|block| sum_of_weights(block, max, scale)).collect();
                let mut target = u * block_sums.iter().sum::<f64>();
                let block = invert(block_sums.iter().copied(), target);
                for sum in &block_sums[..block] {
                    target -= sum;
                }
                let start = block * BLOCK;
                let logits = &ranking.logits[start..ranking.logits.len().min(start + BLOCK)];
                let weights = logits.iter().map(|&logit| exp((f64::from(logit) - max) * scale));
                (start + invert(weights, target)) as u32
            }
        }
    }
}

fn weight(logit: f32, max: f64) -> f64 {
    exp(f64::from(logit) - max)
}

/// Σ exp((logit − max)·scale), in [`LANES`] sums that are folded in order.
pub(super) fn sum_of_weights(logits: &[f32], max: f64, scale: f64) -> f64 {
    let mut lanes = [0.0; LANES];
    let (chunks, rest) = logits.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] += exp((f64::from(chunk[lane]) - max) * scale);
        }
    }
    for (lane, &logit) in lanes.iter_mut().zip(rest) {
        *lane += exp((f64::from(logit) - max) * scale);
    }
    lanes.iter().sum()
}

/// The number of weights whose sum reaches `target`.
fn reach(weights: impl Iterator<Item = f64>, target: f64) -> Option<usize> {
    let mut sum = 0.0;
    weights.zip(1..).find_map(|(weight, count)| {
        sum += weight;
        (sum >= target).then_some(count)
    })
}

/// The place where the running sum first exceeds `target`; if rounding prevents that, the last place with a positive
/// weight.
fn invert(weights: impl Iterator<Item = f64>, target: f64) -> usize {
    let mut sum = 0.0;
    let mut last = 0;
    for (place, weight) in weights.enumerate() {
        sum += weight;
        if weight > 0.0 {
            last = place;
            if sum > target {
                break;
            }
        }
    }
    last
}
