//! How a vote is decided, by name. The rules are in `tally`.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use super::limits::{BEST_OF_N_SAMPLES, FIRST_VALID_SAMPLES, WEIGHTED_VOTE_SAMPLES};

/// How a vote is decided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strategy {
    /// The sample with the highest mean log probability, agreement with the others and ordinary length.
    BestOfN,
    /// The canonical answer with the most weight; a free text is answered by the first sample.
    #[default]
    WeightedVote,
    /// The first sample that is valid.
    FirstValid,
}

/// A text that names no strategy.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("use best_of_n, weighted_vote or first_valid")]
pub struct UnknownStrategy;

impl Strategy {
    /// Every strategy.
    pub const ALL: [Strategy; 3] = [Strategy::BestOfN, Strategy::WeightedVote, Strategy::FirstValid];

    /// The name in flags and requests.
    pub fn name(self) -> &'static str {
        match self {
            Strategy::BestOfN => "best_of_n",
            Strategy::WeightedVote => "weighted_vote",
            Strategy::FirstValid => "first_valid",
        }
    }

    /// Samples of a vote, unless the request says otherwise.
    pub fn samples(self) -> usize {
        match self {
            Strategy::BestOfN => BEST_OF_N_SAMPLES,
            Strategy::WeightedVote => WEIGHTED_VOTE_SAMPLES,
            Strategy::FirstValid => FIRST_VALID_SAMPLES,
        }
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Strategy {
    type Err = UnknownStrategy;

    fn from_str(text: &str) -> Result<Strategy, UnknownStrategy> {
        Strategy::ALL.into_iter().find(|strategy| strategy.name() == text).ok_or(UnknownStrategy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strategy_is_read_by_the_name_that_it_shows() {
        for (strategy, name, samples) in [
            (Strategy::BestOfN, "best_of_n", 4),
            (Strategy::WeightedVote, "weighted_vote", 16),
            (Strategy::FirstValid, "first_valid", 3),
        ] {
            assert_eq!((name.parse(), strategy.to_string().as_str()), (Ok(strategy), name));
            assert_eq!(strategy.samples(), samples);
        }
        for wrong in ["", "best-of-n", "BEST_OF_N", "weighted"] {
            assert!(wrong.parse::<Strategy>().is_err(), "{wrong}");
        }
        assert_eq!(Strategy::default(), Strategy::WeightedVote);
    }
}
