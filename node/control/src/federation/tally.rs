//! What the samples of a vote say, in the order of their seeds: the answer, or how many more samples could decide it. A pure
//! function of the samples: the order in which they arrived never matters.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use super::canonical::Canonical;
use super::limits::{AGREEMENT_WORDS, CONSENSUS, FIRST_VALID_SAMPLES, LEAD_BEFORE_GIVING_UP, SAMPLES_BEFORE_GIVING_UP};
use super::posterior;
use super::strategy::Strategy;
use pangea_units::Error;

/// Share of the length in the score of the best of n: an answer twice as long as the median one loses 0.07, so that neither long
/// nor short ones win for their length.
const LENGTH_WEIGHT: f64 = 0.1;

/// A sample as a voter gives it.
#[derive(Clone, Debug, PartialEq)]
pub struct SampledAnswer {
    /// The text.
    pub text: String,
    /// Mean natural logarithm of the probabilities of its tokens under the model; at most 0.
    pub mean_logprob: f64,
    /// Number of its tokens.
    pub tokens: usize,
}

/// A sample that arrived.
#[derive(Clone, Debug, PartialEq)]
pub struct Ballot {
    /// Index of the sample: its seed is that of the vote plus this.
    pub sample: usize,
    /// Index of the voter that generated it.
    pub voter: usize,
    /// What was sampled.
    pub answer: SampledAnswer,
    /// The answer that can be compared; `None` for free text.
    pub canonical: Option<Canonical>,
    /// Whether the text has the form that was asked for.
    pub valid: bool,
    /// What the ballot came to under the strategy: its weight, or its points; 0 if it was not counted.
    pub score: f64,
    /// Whether the ballot had a part in the decision.
    pub counted: bool,
}

/// A sample that was asked of a voter and did not arrive.
#[derive(Clone, Debug, PartialEq)]
pub struct Absent {
    /// Index of the sample.
    pub sample: usize,
    /// Index of the voter.
    pub voter: usize,
    /// Why it did not arrive.
    pub why: Absence,
}

/// Why a sample did not arrive.
#[derive(Clone, Debug, PartialEq)]
pub enum Absence {
    /// The voter failed.
    Failed(Error),
    /// It was cut off by the deadline.
    Late,
    /// The vote was decided without it.
    NotNeeded,
}

/// Why a vote ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decided {
    /// One canonical answer leads with the probability that ends a vote.
    Consensus,
    /// The answers are so scattered that no further samples would make a consensus.
    NoConsensus,
    /// All samples are there.
    AllSamples,
    /// The first valid sample has no canonical answer, so that there is nothing to compare.
    FreeText,
    /// The first valid sample is there.
    Valid,
    /// So many samples do not have the form that was asked for that others would hardly have it.
    NoneValid,
    /// The deadline has passed, or no voter is left.
    CutOff,
}

impl Decided {
    /// The name in answers.
    pub fn name(self) -> &'static str {
        match self {
            Decided::Consensus => "consensus",
            Decided::NoConsensus => "no_consensus",
            Decided::AllSamples => "all_samples",
            Decided::FreeText => "free_text",
            Decided::Valid => "valid",
            Decided::NoneValid => "none_valid",
            Decided::CutOff => "cut_off",
        }
    }
}

/// The outcome of a vote.
#[derive(Clone, Debug, PartialEq)]
pub struct VoteResult {
    /// Index of the winner among the ballots.
    pub winner: usize,
    /// Every ballot that arrived, in the order of the samples.
    pub ballots: Vec<Ballot>,
    /// Samples that were asked of a voter and did not arrive.
    pub absent: Vec<Absent>,
    /// Why the vote ended.
    pub decided: Decided,
    /// Probability that the winner's canonical answer leads; `None` if nothing was compared.
    pub posterior: Option<f64>,
}

/// The rules of one vote.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    pub(super) strategy: Strategy,
    /// Samples at most, at least 1.
    pub(super) samples: usize,
    /// Whether the answer must be JSON, so that there is something to compare before the first sample is there.
    pub(super) json: bool,
}

/// What the first samples say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tally {
    /// The vote is decided by these samples.
    Decided(Decided),
    /// So many more samples could decide it, at least 1.
    Needs(usize),
}

impl Rules {
    /// What the first `settled` samples say. `ballots`: those of them that arrived, in order.
    pub(super) fn tally(&self, ballots: &[Ballot], settled: usize, trust: &[f64]) -> Tally {
        let rest = self.samples.saturating_sub(settled);
        let first_valid = ballots.iter().find(|ballot| ballot.valid);
        let free = |ballot: &Ballot| ballot.canonical.is_none();
        let decided = match (self.strategy, first_valid) {
            (_, None) if ballots.len() >= FIRST_VALID_SAMPLES => Some(Decided::NoneValid),
            (_, None) => None,
            (Strategy::FirstValid, Some(_)) => Some(Decided::Valid),
            (Strategy::WeightedVote, Some(first)) if free(first) => Some(Decided::FreeText),
            (Strategy::BestOfN, _) if ballots.iter().any(free) => None,
            (Strategy::WeightedVote | Strategy::BestOfN, _) => {
                let standing = Standing::of(ballots, trust);
                let lead = standing.as_ref().map_or(0.0, |standing| standing.first.1);
                let scattered = lead < LEAD_BEFORE_GIVING_UP || self.needs(ballots, trust) > rest;
                match standing {
                    Some(standing) if standing.posterior() >= CONSENSUS => Some(Decided::Consensus),
                    Some(_) if rest > 0 && settled >= SAMPLES_BEFORE_GIVING_UP && scattered => {
                        Some(Decided::NoConsensus)
                    }
                    _ => None,
                }
            }
        };
        match decided {
            Some(decided) => Tally::Decided(decided),
            None if rest == 0 => Tally::Decided(Decided::AllSamples),
            None => Tally::Needs(self.needs(ballots, trust).clamp(1, rest)),
        }
    }

    /// How many more samples decide the vote if all of them give the leading answer with the mean weight.
    fn needs(&self, ballots: &[Ballot], trust: &[f64]) -> usize {
        let standing = Standing::of(ballots, trust);
        match self.strategy {
            Strategy::FirstValid => return 1,
            Strategy::BestOfN if ballots.iter().any(|ballot| ballot.canonical.is_none()) => return self.samples,
            // The first sample shows whether there is anything to compare; of a free text no second one is needed.
            Strategy::WeightedVote if standing.is_none() && !self.json => return 1,
            Strategy::WeightedVote | Strategy::BestOfN => {}
        }
        let (first, second) = standing.map_or((0.0, 0.0), |standing| (standing.first.1, standing.second));
        let enough = |more: &usize| posterior::lead(first + *more as f64, second) >= CONSENSUS;
        (1..self.samples).find(enough).unwrap_or(self.samples)
    }

    /// The result of a vote that the first `deciding` ballots decide; `None` if there is no such ballot.
    pub(super) fn result(
        &self,
        mut ballots: Vec<Ballot>,
        deciding: usize,
        decided: Decided,
        trust: &[f64],
    ) -> Option<VoteResult> {
        let deciding_ballots = ballots.get(..deciding)?;
        let compared = self.strategy != Strategy::FirstValid && decided != Decided::FreeText;
        let standing = if compared { Standing::of(deciding_ballots, trust) } else { None };
        let leads = |ballot: &Ballot| {
            standing.as_ref().is_some_and(|standing| ballot.canonical.as_ref() == Some(&standing.first.0))
        };
        // A vote without canonical answers, and one that needs none, is answered by the first valid ballot.
        let (scores, votes): (Vec<f64>, fn(&Ballot) -> bool) = match (self.strategy, &standing) {
            (Strategy::BestOfN, _) => (points(deciding_ballots), |_| true),
            (Strategy::WeightedVote, Some(_)) => {
                (weights(deciding_ballots, trust), |ballot: &Ballot| ballot.canonical.is_some())
            }
            _ => (deciding_ballots.iter().map(|ballot| ballot.answer.mean_logprob).collect(), |_| false),
        };
        let by_score = self.strategy == Strategy::BestOfN || standing.is_some();
        let only_leaders = self.strategy == Strategy::WeightedVote || decided == Decided::Consensus;
        let eligible = deciding_ballots.iter().zip(&scores).enumerate();
        let (winner, _) = eligible.filter(|(_, (ballot, _))| !(by_score && only_leaders) || leads(ballot)).max_by(
            |(at, (one, a)), (other_at, (other, b))| {
                let better = if by_score { a.total_cmp(b) } else { Ordering::Equal };
                one.valid.cmp(&other.valid).then(better).then(other_at.cmp(at))
            },
        )?;
        let posterior = standing.as_ref().filter(|_| leads(&deciding_ballots[winner])).map(Standing::posterior);
        for (at, (ballot, score)) in ballots[..deciding].iter_mut().zip(scores).enumerate() {
            ballot.counted = at == winner || votes(ballot);
            ballot.score = if ballot.counted { score } else { 0.0 };
        }
        Some(VoteResult { winner, ballots, absent: Vec::new(), decided, posterior })
    }
}

/// Weight of each ballot: the geometric mean probability of its tokens, relative to that of the others with a canonical answer,
/// times the trust in its voter (CISC, arXiv 2502.06233, at temperature 1). The weights of trusted voters add up to the number of
/// these ballots.
fn weights(ballots: &[Ballot], trust: &[f64]) -> Vec<f64> {
    let probability = |ballot: &Ballot| match ballot.canonical {
        Some(_) => ballot.answer.mean_logprob.exp(),
        None => 0.0,
    };
    let sum: f64 = ballots.iter().map(probability).sum();
    let canonical = ballots.iter().filter(|ballot| ballot.canonical.is_some()).count();
    let scale = if sum > 0.0 { canonical as f64 / sum } else { 0.0 };
    let trusted = |ballot: &Ballot| trust.get(ballot.voter).copied().unwrap_or_default();
    ballots.iter().map(|ballot| scale * probability(ballot) * trusted(ballot)).collect()
}

/// The two canonical answers with the most weight.
struct Standing {
    /// The leading answer and its weight; of equal ones that of the earliest sample.
    first: (Canonical, f64),
    /// Weight of the second answer; 0 if there is none.
    second: f64,
}

impl Standing {
    /// `None` if no ballot has a canonical answer.
    fn of(ballots: &[Ballot], trust: &[f64]) -> Option<Standing> {
        // The sum and the earliest sample of each answer.
        let mut sums: BTreeMap<&Canonical, (f64, usize)> = BTreeMap::new();
        for (at, (ballot, weight)) in ballots.iter().zip(weights(ballots, trust)).enumerate() {
            if let Some(answer) = &ballot.canonical {
                sums.entry(answer).or_insert((0.0, at)).0 += weight;
            }
        }
        let mut order: Vec<(&Canonical, (f64, usize))> = sums.into_iter().collect();
        order.sort_by(|(_, (a, one)), (_, (b, other))| b.total_cmp(a).then(one.cmp(other)));
        let (answer, (weight, _)) = *order.first()?;
        let second = order.get(1).map_or(0.0, |(_, (weight, _))| *weight);
        Some(Standing { first: (answer.clone(), weight), second })
    }

    fn posterior(&self) -> f64 {
        posterior::lead(self.first.1, self.second)
    }
}

/// Points of each ballot under `best_of_n`: mean log probability, plus the mean agreement with the others, minus what its length
/// differs from the median.
fn points(ballots: &[Ballot]) -> Vec<f64> {
    let words: Vec<BTreeMap<&str, usize>> = ballots.iter().map(|ballot| words(&ballot.answer.text)).collect();
    let agreement = |one: usize, other: usize| match (&ballots[one].canonical, &ballots[other].canonical) {
        (Some(a), Some(b)) => f64::from(u8::from(a == b)),
        _ => overlap(&words[one], &words[other]),
    };
    let mut lengths: Vec<usize> = ballots.iter().map(|ballot| ballot.answer.tokens.max(1)).collect();
    lengths.sort_unstable();
    let median = lengths.get(lengths.len() / 2).copied().unwrap_or(1) as f64;
    let point = |(at, ballot): (usize, &Ballot)| {
        let others = (0..ballots.len()).filter(|other| *other != at);
        let agreed: f64 = others.map(|other| agreement(at, other)).sum();
        let length = (ballot.answer.tokens.max(1) as f64 / median).ln().abs();
        ballot.answer.mean_logprob + agreed / (ballots.len() - 1).max(1) as f64 - LENGTH_WEIGHT * length
    };
    ballots.iter().enumerate().map(point).collect()
}

/// How often each of the first words of a text is there.
fn words(text: &str) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for word in text.split_whitespace().take(AGREEMENT_WORDS) {
        *counts.entry(word).or_insert(0) += 1;
    }
    counts
}

/// The share of the words of two texts that both have (F1), 0 to 1.
fn overlap(one: &BTreeMap<&str, usize>, other: &BTreeMap<&str, usize>) -> f64 {
    let shared: usize = one.iter().map(|(word, count)| (*count).min(other.get(word).copied().unwrap_or(0))).sum();
    let all: usize = one.values().chain(other.values()).sum();
    if all == 0 { 1.0 } else { 2.0 * shared as f64 / all as f64 }
}
