//! Flags of `pangea node` for votes on answers.

use clap::Args;
use clap::builder::{FalseyValueParser, PossibleValuesParser, TypedValueParser};
use pangea_control::federation::Strategy;

use super::node::ConfigError;

/// Votes, as given on the command line, in the environment or in `config.toml`; no defaults.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Federation")]
pub struct FederationFlags {
    /// Put answers to the vote of several samples: a question with a short answer is asked until the answers agree, a free
    /// text is answered once
    #[arg(long, env = "PANGEA_FEDERATION", hide_env_values = true, value_parser = FalseyValueParser::new())]
    pub federation: bool,

    /// How a vote is decided, unless the request says otherwise [default: weighted_vote]
    #[arg(long, value_name = "STRATEGY", env = "PANGEA_STRATEGY", hide_env_values = true, value_parser = strategy())]
    pub strategy: Option<Strategy>,
}

/// Parses the name of a strategy.
fn strategy() -> impl TypedValueParser<Value = Strategy> {
    let named = |name: String| name.parse::<Strategy>();
    PossibleValuesParser::new(Strategy::ALL.map(Strategy::name)).try_map(named)
}

/// Votes of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FederationConfig {
    /// How a vote is decided, unless the request says otherwise.
    pub strategy: Strategy,
}

impl FederationFlags {
    /// Checks the values and fills in the defaults; `None` if the node takes no part in votes.
    pub(super) fn resolve(self) -> Result<Option<FederationConfig>, ConfigError> {
        match (self.federation, self.strategy) {
            (false, None) => Ok(None),
            (false, Some(strategy)) => Err(ConfigError::Value {
                flag: "strategy",
                value: strategy.to_string(),
                why: "a node without --federation puts nothing to the vote; say both".to_owned(),
            }),
            (true, strategy) => Ok(Some(FederationConfig { strategy: strategy.unwrap_or_default() })),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::node::tests::{refusal, resolve};

    #[test]
    fn a_node_votes_by_weight_unless_it_is_told_otherwise() {
        let strategy = |typed: &[&str], file| resolve(typed, file).federation.map(|votes| votes.strategy);
        assert_eq!(strategy(&[], ""), None);
        assert_eq!(strategy(&["--federation"], ""), Some(Strategy::WeightedVote));
        assert_eq!(strategy(&["--federation", "--strategy", "first_valid"], ""), Some(Strategy::FirstValid));
        assert_eq!(strategy(&[], "federation = true\nstrategy = \"best_of_n\""), Some(Strategy::BestOfN));
        assert_eq!(strategy(&["--strategy", "best_of_n"], "federation = true"), Some(Strategy::BestOfN));
    }

    #[test]
    fn a_strategy_without_votes_and_an_unknown_one_are_refused() {
        assert!(refusal(&["--strategy", "best_of_n"], "").contains("say both"));
        assert!(refusal(&[], "strategy = \"best_of_n\"").contains("config.toml:1:12: "));
        let unknown = refusal(&["--federation", "--strategy", "majority"], "");
        assert!(unknown.contains("best_of_n, weighted_vote, first_valid"), "{unknown}");
        let unknown = refusal(&[], "federation = true\nstrategy = \"majority\"");
        assert!(
            unknown.contains("config.toml:2:12: strategy: use best_of_n or weighted_vote or first_valid"),
            "{unknown}"
        );
    }
}
