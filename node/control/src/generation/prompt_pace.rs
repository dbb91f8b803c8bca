//! When the first token of an answer counts as late, from how long first tokens took lately. What follows is decided elsewhere.

use std::time::Duration;

/// Time that a first token may take beyond what was to be expected: people notice a longer wait.
const GRACE: Duration = Duration::from_secs(5);

/// Time that a token of the prompt takes on a slow machine, for as long as nothing else is known.
const PROMPT_TOKEN: Duration = Duration::from_millis(10);

/// How many times as long as expected the first token may take, on top of the grace.
const TOLERANCE: u32 = 2;

/// Longest excess over [`PROMPT_TOKEN`] per token that counts as usual. Without a bound, stages could become slower without end.
const EXCESS_MAX: Duration = Duration::from_secs(5);

/// Factor per answer, in percent, by which the largest excess is forgotten.
const DECAY_PERCENT: u32 = 90;

/// How long first tokens took lately.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PromptPace {
    /// The largest excess lately over [`PROMPT_TOKEN`] per token: slower machines, or other requests that came first.
    excess: Duration,
}

impl PromptPace {
    /// Records that the first token after a prompt of `tokens` tokens came `took` after the answer was opened.
    pub fn observe(&mut self, tokens: usize, took: Duration) {
        let excess = took.saturating_sub(usual(tokens)).min(EXCESS_MAX);
        self.excess = excess.max(self.excess * DECAY_PERCENT / 100);
    }

    /// Time after its opening at which an answer to a prompt of `tokens` tokens is late without a token.
    pub fn patience(&self, tokens: usize) -> Duration {
        GRACE + (usual(tokens) + self.excess) * TOLERANCE
    }
}

fn usual(tokens: usize) -> Duration {
    PROMPT_TOKEN.saturating_mul(u32::try_from(tokens).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn a_short_prompt_is_late_after_five_seconds_and_a_long_one_gets_its_time() {
        let pace = PromptPace::default();
        assert_eq!((pace.patience(0), pace.patience(1000)), (5 * S, 25 * S));
        assert!(pace.patience(usize::MAX) > 3600 * S);
    }

    #[test]
    fn who_was_slow_lately_may_be_so_again_but_not_without_end() {
        let mut pace = PromptPace::default();
        pace.observe(100, 3 * S);
        assert_eq!(pace.patience(100), 5 * S + 6 * S);
        for _ in 0..100 {
            pace.observe(100, pace.patience(100));
        }
        assert_eq!(pace.patience(100), 5 * S + 2 * (S + EXCESS_MAX));
        for _ in 0..100 {
            pace.observe(100, S / 10);
        }
        assert!(pace.patience(100) < 8 * S);
    }
}
