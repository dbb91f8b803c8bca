//! The highest of many logits, without sorting all of them. Order: higher logit first, lower id first among equals.

use std::cmp::Ordering;

/// One token and its logit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    pub(super) token: u32,
    pub(super) logit: f32,
}

impl Candidate {
    /// Best first. Logits here are never NaN; −0 equals 0.
    pub(super) fn order(&self, other: &Candidate) -> Ordering {
        other.logit.partial_cmp(&self.logit).unwrap_or(Ordering::Equal).then(self.token.cmp(&other.token))
    }
}

/// Logits that share one maximum: few enough to scan, enough to skip most of a vocabulary.
const BLOCK: usize = 64;
const LANES: usize = 8;

/// Logits with the maximum of every block of [`BLOCK`].
pub(super) struct Ranking<'a> {
    pub(super) logits: &'a [f32],
    maxima: Vec<f32>,
}

impl<'a> Ranking<'a> {
    pub(super) fn of(logits: &'a [f32]) -> Ranking<'a> {
        Ranking { logits, maxima: logits.chunks(BLOCK).map(maximum).collect() }
    }

    /// The best candidate, even where it is −∞; `None` without logits.
    pub(super) fn best(&self) -> Option<Candidate> {
        let max = maximum(&self.maxima);
        let block = self.maxima.iter().position(|&block_max| block_max == max)?;
        let start = block * BLOCK;
        let place = self.logits[start..].iter().position(|&logit| logit == max)?;
        Some(Candidate { token: (start + place) as u32, logit: max })
    }

    /// All candidates with at least this logit, without −∞, ids ascending.
    pub(super) fn at_least(&self, threshold: f32) -> Vec<Candidate> {
        let mut found = Vec::new();
        for (block, &max) in self.maxima.iter().enumerate() {
            if max < threshold || max == f32::NEG_INFINITY {
                continue;
            }
            let start = block * BLOCK;
            let end = self.logits.len().min(start + BLOCK);
            for (place, &logit) in self.logits[start..end].iter().enumerate() {
                if logit >= threshold && logit > f32::NEG_INFINITY {
                    found.push(Candidate { token: (start + place) as u32, logit });
                }
            }
        }
        found
    }

    /// The `count` best candidates, best first; fewer where the others are −∞.
    pub(super) fn top(&self, count: usize) -> Vec<Candidate> {
        if count == 0 {
            return Vec::new();
        }
        // The count-th best block maximum is a lower bound: that many blocks have a logit at least as high.
        let floor = if count <= self.maxima.len() {
            let mut maxima = self.maxima.clone();
            *maxima.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a)).1
        } else {
            f32::NEG_INFINITY
        };
        let mut found = self.at_least(floor);
        if count < found.len() {
            found.select_nth_unstable_by(count - 1, Candidate::order);
            found.truncate(count);
        }
        found.sort_unstable_by(Candidate::order);
        found
    }
}

/// The maximum of the values; −∞ without values.
fn maximum(values: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] = larger(lanes[lane], chunk[lane]);
        }
    }
    lanes.into_iter().chain(rest.iter().copied()).fold(f32::NEG_INFINITY, larger)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sorted(logits: &[f32]) -> Vec<Candidate> {
        let mut all: Vec<_> = logits
            .iter()
            .enumerate()
            .map(|(token, &logit)| Candidate { token: token as u32, logit })
            .filter(|candidate| candidate.logit > f32::NEG_INFINITY)
            .collect();
        all.sort_by(Candidate::order);
        all
    }

    proptest! {
        /// Few distinct values, so that ties are everywhere.
        #[test]
        fn the_best_are_those_of_a_whole_sort(
            logits in prop::collection::vec(prop_oneof![
                (-4_i8..4).prop_map(f32::from), Just(f32::NEG_INFINITY), Just(-0.0), -1e3_f32..1e3
            ], 1..700),
            count in 0_usize..100,
        ) {
            let ranking = Ranking::of(&logits);
            let all = sorted(&logits);
            prop_assert_eq!(ranking.top(count), &all[..count.min(all.len())]);
            if let Some(best) = all.first() {
                prop_assert_eq!(ranking.best(), Some(*best));
            }
            let mut from = ranking.at_least(-1.0);
            prop_assert!(from.is_sorted_by_key(|candidate| candidate.token));
            from.sort_by(Candidate::order);
            let expected: Vec<_> = all.iter().copied().filter(|candidate| candidate.logit >= -1.0).collect();
            prop_assert_eq!(from, expected);
        }
    }

    #[test]
    fn no_logits_have_no_best() {
        assert_eq!(Ranking::of(&[]).best(), None);
        assert!(Ranking::of(&[f32::NEG_INFINITY; 3]).top(2).is_empty());
    }
}
