//! What samples say under each strategy, at the limits of its rules.

use super::canonical::Canonical;
use super::tally::{Ballot, Decided, Rules, SampledAnswer, Tally, VoteResult};
use super::{Strategy, limits};

const TRUSTED: [f64; 2] = [1.0, 1.0];

fn ballot(sample: usize, text: &str, mean_logprob: f64) -> Ballot {
    let canonical = Canonical::of(text);
    let answer = SampledAnswer { text: text.to_owned(), mean_logprob, tokens: text.split_whitespace().count() };
    Ballot { sample, voter: 0, answer, canonical, valid: !text.is_empty(), score: 0.0, counted: false }
}

fn ballots(texts: &[&str]) -> Vec<Ballot> {
    texts.iter().enumerate().map(|(sample, text)| ballot(sample, text, -0.5)).collect()
}

fn rules(strategy: Strategy) -> Rules {
    Rules { strategy, samples: 16, json: false }
}

fn tally(rules: Rules, texts: &[&str]) -> Tally {
    rules.tally(&ballots(texts), texts.len(), &TRUSTED)
}

fn result(strategy: Strategy, ballots: &[Ballot], decided: Decided) -> VoteResult {
    rules(strategy).result(ballots.to_vec(), ballots.len(), decided, &TRUSTED).unwrap()
}

fn counted(result: &VoteResult) -> Vec<usize> {
    result.ballots.iter().filter(|ballot| ballot.counted).map(|ballot| ballot.sample).collect()
}

#[test]
fn a_weighted_vote_asks_for_as_many_samples_as_can_decide_it() {
    let vote = rules(Strategy::WeightedVote);
    for (texts, expected) in [
        (&[][..], Tally::Needs(1)),
        (&["7"], Tally::Needs(3)),
        (&["7", "7", "7"], Tally::Needs(1)),
        (&["7", "7", "7", "7"], Tally::Decided(Decided::Consensus)),
        (&["7", "8"], Tally::Needs(5)),
        (&["7", "8", "7", "7", "7", "7"], Tally::Needs(1)),
        (&["7", "8", "7", "7", "7", "7", "7"], Tally::Decided(Decided::Consensus)),
        (&["7", "8", "9", "7"], Tally::Needs(4)),
        (&["7", "a text that is long enough to be compared with no other text"], Tally::Needs(3)),
    ] {
        assert_eq!(tally(vote, texts), expected, "{texts:?}");
    }
}

#[test]
fn a_vote_ends_with_its_last_sample() {
    let vote = Rules { samples: 3, ..rules(Strategy::WeightedVote) };
    assert_eq!(tally(vote, &["7"]), Tally::Needs(2), "no more than are left");
    assert_eq!(tally(vote, &["7", "8", "9"]), Tally::Decided(Decided::AllSamples));
    // A sample that cannot be had is settled too.
    assert_eq!(vote.tally(&ballots(&["7", "8"]), 3, &TRUSTED), Tally::Decided(Decided::AllSamples));
}

#[test]
fn a_vote_is_given_up_where_no_further_samples_would_decide_it() {
    let vote = rules(Strategy::WeightedVote);
    let scattered = ["7", "7", "1", "2", "3", "4", "5", "6", "8"];
    assert_eq!(tally(vote, &scattered[..7]), Tally::Needs(4));
    assert_eq!(tally(vote, &scattered[..8]), Tally::Decided(Decided::NoConsensus), "no answer has a weight of 3");
    let led = ["7", "7", "7", "2", "3", "4", "5", "6"];
    assert_eq!(tally(vote, &led), Tally::Needs(3), "three of eight are a lead");
    // Of two answers that are as frequent, seven more of one make a consensus.
    let divided = ["7", "8", "7", "8", "7", "8", "7", "8"];
    assert_eq!(tally(vote, &divided), Tally::Needs(7));
    let short = Rules { samples: 15, ..vote };
    assert_eq!(tally(short, &divided), Tally::Needs(7));
    let shorter = Rules { samples: 14, ..vote };
    assert_eq!(tally(shorter, &divided), Tally::Decided(Decided::NoConsensus));
    let last = Rules { samples: 8, ..vote };
    assert_eq!(tally(last, &scattered[..8]), Tally::Decided(Decided::AllSamples));
    assert_eq!(result(Strategy::WeightedVote, &ballots(&scattered), Decided::NoConsensus).winner, 0);
}

#[test]
fn a_free_text_is_answered_by_the_first_sample() {
    let story = "Once upon a time there was a node that computed for everyone.";
    let vote = rules(Strategy::WeightedVote);
    assert_eq!(tally(vote, &[story]), Tally::Decided(Decided::FreeText));
    assert_eq!(tally(vote, &["", story]), Tally::Decided(Decided::FreeText), "an empty text is no sample");
    let result = result(Strategy::WeightedVote, &ballots(&[story]), Decided::FreeText);
    assert_eq!((result.winner, result.posterior, counted(&result)), (0, None, vec![0]));
}

#[test]
fn json_is_compared_from_the_start() {
    let vote = Rules { json: true, ..rules(Strategy::WeightedVote) };
    assert_eq!(tally(vote, &[]), Tally::Needs(4));
    assert_eq!(tally(vote, &["{\"answer\": 1}"]), Tally::Needs(3));
}

#[test]
fn three_samples_without_the_asked_form_are_enough() {
    for strategy in Strategy::ALL {
        let rules = rules(strategy);
        assert!(matches!(tally(rules, &["", ""]), Tally::Needs(_)), "{strategy}");
        assert_eq!(tally(rules, &["", "", ""]), Tally::Decided(Decided::NoneValid), "{strategy}");
        assert_eq!(result(strategy, &ballots(&["", "", ""]), Decided::NoneValid).winner, 0, "{strategy}");
    }
    assert_eq!(limits::FIRST_VALID_SAMPLES, 3);
}

#[test]
fn the_answer_with_the_most_weight_wins_with_its_surest_ballot() {
    let votes = [
        ballot(0, "8", -0.1),
        ballot(1, "The answer is 7", -0.9),
        ballot(2, "7", -0.2),
        ballot(3, "a free text that is long enough to be compared with no other", -0.01),
        ballot(4, "7.0", -0.2),
    ];
    let result = result(Strategy::WeightedVote, &votes, Decided::AllSamples);
    assert_eq!((result.winner, counted(&result)), (2, vec![0, 1, 2, 4]), "of equally sure ballots the first");
    let weights: Vec<f64> = result.ballots.iter().map(|ballot| ballot.score).collect();
    assert!((weights.iter().sum::<f64>() - 4.0).abs() < 1e-9, "{weights:?}");
    assert!(weights[0] > weights[2] && weights[2] > weights[1] && weights[3] == 0.0, "{weights:?}");
    assert!((weights[0] / weights[2] - 0.1_f64.exp()).abs() < 1e-9);
    let posterior = result.posterior.unwrap();
    assert!(posterior > 0.5 && posterior < 0.95, "{posterior}");
}

#[test]
fn one_sure_ballot_outweighs_two_doubtful_ones_and_an_untrusted_one_does_not() {
    let votes = |voter| [Ballot { voter, ..ballot(0, "8", -0.05) }, ballot(1, "7", -2.0), ballot(2, "7", -2.5)];
    let winner = |trust: [f64; 2]| {
        let result = rules(Strategy::WeightedVote).result(votes(1).to_vec(), 3, Decided::AllSamples, &trust);
        result.map(|result| result.winner)
    };
    assert_eq!(winner([1.0, 1.0]), Some(0));
    assert_eq!(winner([1.0, 0.1]), Some(1));
}

#[test]
fn of_answers_with_equal_weight_the_earlier_one_wins() {
    for texts in [["9", "7", "8"], ["7", "8", "9"], ["8", "9", "7"]] {
        assert_eq!(result(Strategy::WeightedVote, &ballots(&texts), Decided::AllSamples).winner, 0, "{texts:?}");
    }
}

#[test]
fn only_ballots_before_the_decision_count() {
    let votes = ballots(&["7", "7", "7", "7", "8", "7"]);
    let result = rules(Strategy::WeightedVote).result(votes, 4, Decided::Consensus, &TRUSTED).unwrap();
    assert_eq!((counted(&result), result.ballots.len()), (vec![0, 1, 2, 3], 6));
    assert_eq!(result.ballots[5].score, 0.0);
    assert_eq!(rules(Strategy::WeightedVote).result(Vec::new(), 0, Decided::CutOff, &TRUSTED), None);
}

#[test]
fn the_best_of_n_agrees_with_the_others_is_probable_and_of_ordinary_length() {
    let n = Strategy::BestOfN;
    let free = [
        ballot(0, "the cat sat on the mat and slept there all day", -0.5),
        ballot(1, "a dog ran over some hill but nobody ever saw him", -0.5),
        ballot(2, "the cat sat on the mat and slept there all night", -0.5),
    ];
    assert_eq!(result(n, &free, Decided::AllSamples).winner, 0, "agreement");
    let mut surer = free.clone();
    surer[2].answer.mean_logprob = -0.4;
    let decided = result(n, &surer, Decided::AllSamples);
    assert_eq!((decided.winner, counted(&decided)), (2, vec![0, 1, 2]), "probability");
    let mut long = free.clone();
    long[0].answer.tokens = 40;
    assert_eq!(result(n, &long, Decided::AllSamples).winner, 2, "length");
    let mut short = free;
    short[0].answer.tokens = 2;
    assert_eq!(result(n, &short, Decided::AllSamples).winner, 2, "length");
    let numbers = [ballot(0, "8", -0.2), ballot(1, "7", -0.5), ballot(2, "7", -0.5), ballot(3, "7.0", -0.6)];
    let decided = result(n, &numbers, Decided::AllSamples);
    assert_eq!((decided.winner, decided.posterior.is_some()), (1, true), "canonical agreement");
}

#[test]
fn the_best_of_n_takes_all_samples_of_a_free_text_and_stops_at_a_consensus() {
    let best = Rules { samples: 8, ..rules(Strategy::BestOfN) };
    let story = "Once upon a time there was a node that computed for everyone.";
    assert_eq!(tally(best, &[]), Tally::Needs(4));
    assert_eq!(tally(best, &[story; 4]), Tally::Needs(4));
    assert_eq!(tally(best, &["7", "7", "7", story]), Tally::Needs(4));
    assert_eq!(tally(best, &["7"; 4]), Tally::Decided(Decided::Consensus));
    assert_eq!(tally(best, &[story; 8]), Tally::Decided(Decided::AllSamples));
    assert_eq!(result(Strategy::BestOfN, &ballots(&["7"; 4]), Decided::Consensus).winner, 0);
}

#[test]
fn an_invalid_ballot_never_wins_against_a_valid_one() {
    for strategy in Strategy::ALL {
        let votes = [ballot(0, "", -0.001), ballot(1, "some words of the kind that one would call a free text", -5.0)];
        assert_eq!(result(strategy, &votes, Decided::CutOff).winner, 1, "{strategy}");
    }
}

#[test]
fn the_first_valid_sample_is_taken_as_it_is() {
    let first = rules(Strategy::FirstValid);
    assert_eq!(tally(first, &[]), Tally::Needs(1));
    assert_eq!(tally(first, &[""]), Tally::Needs(1));
    assert_eq!(tally(first, &["", "8"]), Tally::Decided(Decided::Valid));
    let votes = [ballot(0, "", -0.1), ballot(1, "8", -3.0), ballot(2, "7", -0.1)];
    let result = result(Strategy::FirstValid, &votes, Decided::Valid);
    assert_eq!((result.winner, counted(&result), result.posterior), (1, vec![1], None));
}
