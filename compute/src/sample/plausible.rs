//! Whether another engine could have chosen a token, whose logits differ from those at hand by at most a bound. Where the bound
//! comes from is not known here. The answer never depends on the machine.

use super::math::{exp, ln};
use super::{OPERATION, Sampling, TokenMask, invalid, penalty, philox, refuse_non_finite};
use crate::Error;

/// Slack for rounding, where shares of a probability are compared.
const SLACK: f64 = 1e-9;

/// Whether `token` can be the next one after `prompt` and `generated` on an engine each of whose logits differs from `logits` by at
/// most `bound`. Never false for such an engine; true for more tokens than it could choose:
///
/// * greedy: every token whose logit, after penalties and mask, is within twice the bound of the best one;
/// * sampled: every token that some logits within the bound keep among the candidates, and whose stretch of the cumulative
///   distribution some such logits, not necessarily the same, put under this position's random number. With typical sampling
///   only top-k decides about candidates.
///
/// `logits`: `[vocabulary]`, as the model gives them; overwritten.
///
/// # Errors
/// As [`choose`](super::choose).
pub fn could_choose(
    sampling: &Sampling,
    prompt: &[u32],
    generated: &[u32],
    logits: &mut [f32],
    allowed: Option<&TokenMask>,
    token: u32,
    bound: f64,
) -> Result<bool, Error> {
    sampling.check(logits.len())?;
    refuse_non_finite(logits)?;
    for &(token, bias) in &sampling.logit_bias {
        logits[token as usize] += bias;
    }
    penalty::apply(sampling, prompt, generated, logits)?;
    if let Some(mask) = allowed {
        mask.apply(logits);
    }
    let Some(&logit) = logits.get(token as usize) else {
        return Err(invalid(format!("{OPERATION}: token {token} is none of the {} of this model", logits.len())));
    };
    if logit == f32::NEG_INFINITY {
        return Ok(false);
    }
    // A repetition penalty stretches logits, and with them their differences.
    let bound = bound * f64::from(sampling.repetition_penalty.max(1.0 / sampling.repetition_penalty));
    let mut candidates = Candidates::of(logits);
    if sampling.temperature == 0.0 {
        return Ok(candidates.best - f64::from(logit) <= 2.0 * bound);
    }
    candidates.sort();
    let kept = candidates.kept(sampling, bound);
    if f64::from(logit) < kept.perhaps {
        return Ok(false);
    }
    let u = philox::uniform(sampling.seed, prompt.len() as u64 + generated.len() as u64);
    let scale = 1.0 / f64::from(sampling.temperature);
    let (mut sure, mut perhaps) = ([0.0; 2], [0.0; 2]);
    let mut own = 0.0;
    for (id, &other) in logits.iter().enumerate().filter(|(_, other)| f64::from(**other) >= kept.perhaps) {
        let weight = exp((f64::from(other) - candidates.best) * scale);
        if id == token as usize {
            own = weight;
            continue;
        }
        let side = usize::from(id > token as usize);
        perhaps[side] += weight;
        if f64::from(other) >= kept.surely {
            sure[side] += weight;
        }
    }
    // The share of `part` if the others weigh as much, or as little, as the bound allows.
    let share = |part: f64, others: f64, change: f64| {
        if part == 0.0 { 0.0 } else { 1.0 / (1.0 + others / part * exp(2.0 * change * scale)) }
    };
    let least_before = share(sure[0], own + perhaps[1], bound);
    let most_until = share(perhaps[0] + own, sure[1], -bound);
    Ok(least_before <= u + SLACK && most_until > u - SLACK)
}

/// Tokens that are not forbidden.
struct Candidates {
    /// Their logits; descending once sorted.
    logits: Vec<f32>,
    best: f64,
}

/// Logits from which on tokens are kept by top-k, top-p and min-p.
struct Kept {
    /// Whatever the logits within the bound are.
    surely: f64,
    /// For some logits within the bound.
    perhaps: f64,
}

impl Candidates {
    fn of(logits: &[f32]) -> Candidates {
        let logits: Vec<f32> = logits.iter().copied().filter(|logit| *logit > f32::NEG_INFINITY).collect();
        let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        Candidates { logits, best: f64::from(best) }
    }

    fn sort(&mut self) {
        self.logits.sort_unstable_by(|a, b| b.total_cmp(a));
    }

    /// Better candidates are kept before worse ones, so each threshold is the logit of the last one that is kept.
    fn kept(&self, sampling: &Sampling, bound: f64) -> Kept {
        let (k, count) = (sampling.top_k, self.logits.len());
        let typical = sampling.typical_p < 1.0;
        let (top_p, min_p) = (f64::from(sampling.top_p), f64::from(sampling.min_p));
        let mut before = Vec::with_capacity(count + 1);
        before.push(0.0);
        for logit in &self.logits {
            before.push(before[before.len() - 1] + exp(f64::from(*logit) - self.best));
        }
        let spread = exp(2.0 * bound);
        let better = |logit: f64| self.logits.partition_point(|other| f64::from(*other) > logit + 2.0 * bound);
        let not_worse = |logit: f64| self.logits.partition_point(|other| f64::from(*other) >= logit - 2.0 * bound);
        let first = |keeps: &dyn Fn(f64) -> bool| self.logits.partition_point(|logit| keeps(f64::from(*logit)));
        let [perhaps_k, surely_k] = match k {
            0 => [count; 2],
            _ => [first(&|logit| better(logit) < k), first(&|logit| not_worse(logit) <= k)],
        };
        let perhaps = |logit: f64| {
            let mass = before[better(logit)];
            let others = (before[perhaps_k] - mass).max(0.0);
            let in_p = typical || top_p >= 1.0 || mass / (mass + others * spread) < top_p + SLACK;
            in_p && (typical || min_p == 0.0 || logit >= self.best + ln(min_p) - 2.0 * bound - SLACK)
        };
        let surely = |logit: f64| {
            let (own, end) = (exp(logit - self.best), not_worse(logit));
            let mass = (before[end] - own).max(0.0);
            let others = own + (before[surely_k] - before[end]).max(0.0);
            let in_p = top_p >= 1.0 || mass * spread / (mass * spread + others) < top_p - SLACK;
            !typical && in_p && (min_p == 0.0 || logit >= self.best + ln(min_p) + 2.0 * bound + SLACK)
        };
        let last = |kept: usize| kept.checked_sub(1).map_or(f64::INFINITY, |last| f64::from(self.logits[last]));
        Kept { surely: last(first(&surely).min(surely_k)), perhaps: last(first(&perhaps).min(perhaps_k)) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::choose;
    use super::*;
    use proptest::prelude::*;

    fn samplings() -> impl Strategy<Value = Sampling> {
        let greedy = Just(Sampling::greedy());
        let sampled = (
            (0.2_f32..2.0, prop_oneof![Just(0_usize), 1_usize..8], prop_oneof![Just(1.0_f32), 0.3_f32..1.0]),
            (prop_oneof![Just(0.0_f32), 0.01_f32..0.5], prop_oneof![Just(1.0_f32), 0.3_f32..1.0], any::<u64>()),
        )
            .prop_map(|((temperature, top_k, top_p), (min_p, typical_p, seed))| Sampling {
                temperature,
                top_k,
                top_p,
                min_p,
                typical_p,
                seed,
                ..Sampling::default()
            });
        let penalised = (prop_oneof![greedy, sampled], prop_oneof![Just(1.0_f32), 0.7_f32..1.5]);
        penalised.prop_map(|(sampling, repetition_penalty)| Sampling { repetition_penalty, ..sampling })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]
        /// Whatever an engine within the bound chooses is found possible: nobody is blamed for rounding.
        #[test]
        fn what_an_engine_within_the_bound_chooses_is_possible(
            sampling in samplings(),
            logits in prop::collection::vec((-4.0_f32..4.0, -1.0_f32..1.0), 2..40),
            bound in prop_oneof![Just(0.0_f32), 0.0_f32..1.5],
        ) {
            let (mut ours, mut theirs): (Vec<f32>, Vec<f32>) =
                logits.iter().map(|(logit, off)| (*logit, logit + off * bound)).unzip();
            let [prompt, generated] = [[0, 1], [1, 0]];
            let chosen = choose(&sampling, &prompt, &generated, &mut theirs, None).unwrap().token;
            // The other logits are rounded to f32.
            let bound = f64::from(bound) + 1e-6;
            prop_assert!(could_choose(&sampling, &prompt, &generated, &mut ours, None, chosen, bound).unwrap());
        }

        /// Without any difference, no other token than the chosen one is possible, but for ties and for typical sampling.
        #[test]
        fn without_a_difference_only_the_chosen_token_is_possible(
            sampling in samplings(),
            logits in prop::collection::vec(-4.0_f32..4.0, 2..40),
        ) {
            let sampling = Sampling { typical_p: 1.0, ..sampling };
            let chosen = choose(&sampling, &[0], &[1], &mut logits.clone(), None).unwrap().token;
            let possible: Vec<u32> = (0..logits.len() as u32)
                .filter(|token| could_choose(&sampling, &[0], &[1], &mut logits.clone(), None, *token, 0.0).unwrap())
                .collect();
            prop_assert_eq!(possible, vec![chosen]);
        }
    }

    #[test]
    fn tokens_beyond_the_bound_and_forbidden_ones_are_impossible() {
        let logits = [1.0, 3.0, 2.0, f32::NEG_INFINITY];
        let greedy = |token, bound| {
            could_choose(&Sampling::greedy(), &[], &[], &mut logits.clone(), None, token, bound).unwrap()
        };
        assert!(greedy(1, 0.0) && !greedy(2, 0.49) && greedy(2, 0.5) && !greedy(0, 0.99) && greedy(0, 1.0));
        assert!(!greedy(3, 100.0), "forbidden");
        let mut only = TokenMask::none(4);
        only.allow(0);
        let masked = could_choose(&Sampling::greedy(), &[], &[], &mut logits.clone(), Some(&only), 2, 100.0);
        assert!(!masked.unwrap(), "outside the grammar");
        assert!(could_choose(&Sampling::greedy(), &[], &[], &mut logits.clone(), None, 4, 1.0).is_err());
        // Two of three tokens are kept; the third needs a difference of one.
        let two = Sampling { temperature: 1.0, top_k: 2, top_p: 1.0, min_p: 0.0, ..Sampling::default() };
        let third = |bound| {
            let drawn = |seed| Sampling { seed, ..two.clone() };
            (0..40).any(|seed| could_choose(&drawn(seed), &[], &[], &mut logits.clone(), None, 0, bound).unwrap())
        };
        assert!(!third(0.4) && third(0.6));
    }
}
