//! Whole votes: waves, failures, deadlines, and that nothing but the samples decides.

use std::collections::BTreeMap;

use pangea_units::{Error, ErrorKind, SplitMix64};
use proptest::prelude::*;
use proptest::strategy::Strategy as Generator;

use super::limits::{HEDGE_DELAY, SAMPLES_MAX, UNSUSPECTED_TRUST};
use super::{Absence, Action, BallotBox, Decided, Event, SampledAnswer, Strategy, VoteResult, VoteTerms, Voter};
use crate::Time;

const DEADLINE: Time = Time::from_secs(60);

fn terms(strategy: Strategy, voters: usize) -> VoteTerms {
    let voters = (0..voters).map(|at| if at == 0 { Voter::this_node(8) } else { Voter::peer(1.0, false, 8) }).collect();
    VoteTerms { strategy, samples: 16, seed: 100, greedy: false, json: false, deadline: DEADLINE, voters }
}

fn sampled(text: &str) -> SampledAnswer {
    SampledAnswer { text: text.to_owned(), mean_logprob: -0.5, tokens: 3 }
}

fn arrived(voter: usize, sample: usize, text: &str) -> Event {
    Event::Arrived { voter, sample, answer: sampled(text) }
}

fn failed(voter: usize, sample: usize, kind: ErrorKind) -> Event {
    Event::Failed { voter, sample, error: Error::new(kind, format!("voter {voter} failed")) }
}

/// The asks among actions, as voter and sample.
fn asks(actions: &[Action]) -> Vec<(usize, usize)> {
    let ask = |action: &Action| match action {
        Action::Ask { voter, sample, .. } => Some((*voter, *sample)),
        _ => None,
    };
    actions.iter().filter_map(ask).collect()
}

fn result(actions: &[Action]) -> &VoteResult {
    match actions.last() {
        Some(Action::Decide(result)) => result,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_vote_asks_for_one_sample_then_for_those_that_can_decide_it() {
    let mut vote = BallotBox::new(terms(Strategy::WeightedVote, 1));
    let first = vote.handle(Event::Start, Time::ZERO);
    assert_eq!(first, [Action::Ask { voter: 0, sample: 0, seed: 100 }]);
    assert_eq!(asks(&vote.handle(arrived(0, 0, "7"), Time::ZERO)), [(0, 1), (0, 2), (0, 3)]);
    assert_eq!(vote.handle(arrived(0, 2, "7"), Time::ZERO), []);
    assert_eq!(asks(&vote.handle(arrived(0, 1, "7"), Time::ZERO)), []);
    let actions = vote.handle(arrived(0, 3, "7"), Time::ZERO);
    let result = result(&actions);
    assert_eq!((result.decided, result.ballots[result.winner].sample), (Decided::Consensus, 0));
    assert!(vote.is_over() && vote.handle(Event::Tick, DEADLINE).is_empty());
}

#[test]
fn samples_are_spread_over_the_voters_by_their_places() {
    let mut terms = VoteTerms { json: true, ..terms(Strategy::WeightedVote, 2) };
    assert_eq!(asks(&BallotBox::new(terms.clone()).handle(Event::Start, Time::ZERO)), [(0, 0), (1, 1), (0, 2), (1, 3)]);
    terms.voters[1].places = 1;
    let mut vote = BallotBox::new(terms.clone());
    assert_eq!(asks(&vote.handle(Event::Start, Time::ZERO)), [(0, 0), (0, 1), (0, 2), (0, 3)], "one takes an eighth");
    terms.voters[0].places = 2;
    let mut vote = BallotBox::new(terms.clone());
    assert_eq!(asks(&vote.handle(Event::Start, Time::ZERO)), [(0, 0), (1, 1), (0, 2)], "the fourth waits for a place");
    assert_eq!(asks(&vote.handle(arrived(1, 1, "{\"a\": 1}"), Time::ZERO)), [(1, 3)]);
    terms.voters[0].places = 0;
    assert_eq!(asks(&BallotBox::new(terms).handle(Event::Start, Time::ZERO)), [(1, 0)]);
}

#[test]
fn voters_of_one_size_give_the_same_number_of_samples_in_one_wave_or_several() {
    let mut vote = BallotBox::new(terms(Strategy::WeightedVote, 2));
    assert_eq!(asks(&vote.handle(Event::Start, Time::ZERO)), [(0, 0)]);
    assert_eq!(asks(&vote.handle(arrived(0, 0, "7"), Time::ZERO)), [(1, 1), (0, 2), (1, 3)]);
}

#[test]
fn the_last_resort_is_asked_once_every_voter_has_failed() {
    let mut terms = VoteTerms { json: true, ..terms(Strategy::WeightedVote, 3) };
    terms.voters[0] = Voter::anyone(8);
    let mut vote = BallotBox::new(terms.clone());
    let samples = |voter| move |asks: &[(usize, usize)]| asks.iter().filter(|ask| ask.0 == voter).count();
    let first = asks(&vote.handle(Event::Start, Time::ZERO));
    assert_eq!((samples(0)(&first), samples(1)(&first), samples(2)(&first)), (0, 2, 2));
    let mine = |voter| first.iter().filter(move |ask| ask.0 == voter).map(|ask| ask.1);
    for sample in mine(1) {
        let again = asks(&vote.handle(failed(1, sample, ErrorKind::Unavailable), Time::ZERO));
        assert_eq!(again, [(2, sample)]);
    }
    let sample = mine(2).next().unwrap();
    let again = asks(&vote.handle(failed(2, sample, ErrorKind::Unavailable), Time::ZERO));
    assert_eq!(again, [(0, sample)], "what others still owe is waited for");
    // Where the others work, it is not asked at all, whatever they have to do.
    terms.voters[1].places = 1;
    terms.voters[2].places = 1;
    let mut vote = BallotBox::new(terms);
    assert_eq!(asks(&vote.handle(Event::Start, Time::ZERO)), [(1, 0), (2, 1)]);
}

#[test]
fn what_a_failed_voter_owes_is_asked_of_another_with_the_same_seed() {
    let mut vote = BallotBox::new(VoteTerms { json: true, ..terms(Strategy::WeightedVote, 2) });
    vote.handle(Event::Start, Time::ZERO);
    let actions = vote.handle(failed(1, 1, ErrorKind::Unavailable), Time::ZERO);
    assert_eq!(actions, [Action::Ask { voter: 0, sample: 1, seed: 101 }]);
    assert_eq!(asks(&vote.handle(failed(1, 3, ErrorKind::Unavailable), Time::ZERO)), [(0, 3)]);
    for sample in [3, 2, 1] {
        assert_eq!(vote.handle(arrived(0, sample, "{\"a\": 1}"), Time::ZERO), []);
    }
    let actions = vote.handle(arrived(0, 0, "{\"a\": 1}"), Time::ZERO);
    let absent: Vec<_> = result(&actions).absent.iter().map(|absent| (absent.voter, absent.sample)).collect();
    assert_eq!(absent, [(1, 1), (1, 3)]);
    assert!(result(&actions).absent.iter().all(|absent| matches!(&absent.why, Absence::Failed(_))));
}

#[test]
fn when_all_voters_fail_what_there_is_decides() {
    let mut vote = BallotBox::new(VoteTerms { json: true, ..terms(Strategy::WeightedVote, 2) });
    vote.handle(Event::Start, Time::ZERO);
    vote.handle(arrived(0, 2, "{\"a\": 1}"), Time::ZERO);
    vote.handle(failed(0, 0, ErrorKind::Overloaded), Time::ZERO);
    vote.handle(failed(1, 1, ErrorKind::Unavailable), Time::ZERO);
    vote.handle(failed(1, 0, ErrorKind::Unavailable), Time::ZERO);
    assert!(!vote.is_over(), "a sample is still on its way");
    let actions = vote.handle(failed(1, 3, ErrorKind::Unavailable), Time::ZERO);
    assert_eq!((result(&actions).decided, result(&actions).ballots.len()), (Decided::CutOff, 1));
}

#[test]
fn a_vote_without_any_sample_fails_with_the_error_of_the_best_voter() {
    let mut vote = BallotBox::new(terms(Strategy::FirstValid, 3));
    vote.handle(Event::Start, Time::ZERO);
    assert_eq!(asks(&vote.handle(failed(0, 0, ErrorKind::Overloaded), Time::ZERO)), [(1, 0)]);
    assert_eq!(asks(&vote.handle(failed(1, 0, ErrorKind::InvalidInput), Time::ZERO)), [(2, 0)], "a peer may be wrong");
    let actions = vote.handle(failed(2, 0, ErrorKind::Internal), Time::ZERO);
    assert_eq!(actions, [Action::Fail(Error::new(ErrorKind::Overloaded, "voter 0 failed"))]);
    let nobody = BallotBox::new(terms(Strategy::WeightedVote, 0)).handle(Event::Start, Time::ZERO);
    assert!(matches!(&nobody[..], [Action::Fail(error)] if error.kind() == ErrorKind::Unavailable));
}

#[test]
fn a_request_that_is_wrong_here_is_asked_of_nobody_else() {
    let mut vote = BallotBox::new(VoteTerms { json: true, ..terms(Strategy::WeightedVote, 2) });
    vote.handle(Event::Start, Time::ZERO);
    let actions = vote.handle(failed(0, 0, ErrorKind::InvalidInput), Time::ZERO);
    assert_eq!(asks(&actions), []);
    assert_eq!(actions.iter().filter(|action| matches!(action, Action::Cancel { .. })).count(), 3);
    assert!(matches!(actions.last(), Some(Action::Fail(error)) if error.kind() == ErrorKind::InvalidInput));
    assert!(vote.is_over());
}

#[test]
fn samples_that_are_late_are_cut_off_once_there_is_one() {
    let just_before = DEADLINE - std::time::Duration::from_millis(1);
    let mut vote = BallotBox::new(VoteTerms { json: true, ..terms(Strategy::WeightedVote, 2) });
    vote.handle(Event::Start, Time::ZERO);
    vote.handle(arrived(1, 3, "{\"a\": 1}"), Time::ZERO);
    let before = vote.handle(Event::Tick, just_before);
    assert!(!before.iter().any(|action| matches!(action, Action::Decide(_))), "{before:?}");
    let actions = vote.handle(Event::Tick, DEADLINE);
    let result = result(&actions);
    assert_eq!((result.decided, result.ballots[result.winner].sample), (Decided::CutOff, 3));
    assert!(result.absent.iter().all(|absent| absent.why == Absence::Late) && !result.absent.is_empty());
    assert_eq!(actions.iter().filter(|action| matches!(action, Action::Cancel { .. })).count(), result.absent.len());
}

#[test]
fn a_vote_without_a_sample_at_its_deadline_waits_for_the_first() {
    let mut vote = BallotBox::new(terms(Strategy::WeightedVote, 2));
    vote.handle(Event::Start, Time::ZERO);
    assert_eq!(vote.handle(Event::Tick, DEADLINE - HEDGE_DELAY), []);
    assert_eq!(asks(&vote.handle(Event::Tick, DEADLINE)), [(1, 0)], "another voter may be faster");
    assert_eq!(vote.handle(Event::Tick, DEADLINE + HEDGE_DELAY), []);
    let actions = vote.handle(arrived(1, 0, "7"), DEADLINE + HEDGE_DELAY);
    assert_eq!((result(&actions).decided, result(&actions).ballots.len()), (Decided::CutOff, 1));
}

#[test]
fn a_straggler_is_asked_for_nothing_else_and_its_sample_of_another_voter() {
    let mut vote = BallotBox::new(VoteTerms { json: true, ..terms(Strategy::WeightedVote, 2) });
    vote.handle(Event::Start, Time::ZERO);
    // Two seconds for the slowest sample so far, so four are too long.
    for (voter, sample, at) in [(1, 1, 1), (0, 2, 2), (1, 3, 2)] {
        assert_eq!(vote.handle(arrived(voter, sample, "{\"a\": 1}"), Time::from_secs(at)), []);
    }
    assert_eq!(vote.handle(Event::Tick, Time::from_millis(3999)), []);
    let actions = vote.handle(Event::Tick, Time::from_secs(4));
    assert_eq!(actions, [Action::Ask { voter: 1, sample: 0, seed: 100 }]);
    assert_eq!(vote.handle(Event::Tick, Time::from_secs(20)), [], "two voters are enough");
    let actions = vote.handle(arrived(1, 0, "{\"a\": 1}"), Time::from_secs(21));
    assert_eq!(actions.first(), Some(&Action::Cancel { voter: 0, sample: 0 }));
    assert_eq!(result(&actions).decided, Decided::Consensus);
}

#[test]
fn the_first_valid_is_asked_of_a_second_voter_when_the_first_is_slow() {
    let mut vote = BallotBox::new(terms(Strategy::FirstValid, 2));
    assert_eq!(asks(&vote.handle(Event::Start, Time::ZERO)), [(0, 0)]);
    assert_eq!(vote.handle(Event::Tick, Time::since_epoch(HEDGE_DELAY - std::time::Duration::from_millis(1))), []);
    assert_eq!(asks(&vote.handle(Event::Tick, Time::since_epoch(HEDGE_DELAY))), [(1, 0)]);
    let actions = vote.handle(arrived(1, 0, "seven"), Time::from_secs(3));
    assert_eq!(actions.first(), Some(&Action::Cancel { voter: 0, sample: 0 }));
    assert_eq!((result(&actions).decided, result(&actions).ballots[0].voter), (Decided::Valid, 1));
}

#[test]
fn invalid_json_is_followed_by_the_next_seed() {
    let mut vote = BallotBox::new(VoteTerms { json: true, ..terms(Strategy::FirstValid, 1) });
    vote.handle(Event::Start, Time::ZERO);
    let actions = vote.handle(arrived(0, 0, "{\"a\": "), Time::ZERO);
    assert_eq!(actions, [Action::Ask { voter: 0, sample: 1, seed: 101 }]);
    let actions = vote.handle(arrived(0, 1, "{\"a\": 1}"), Time::ZERO);
    assert_eq!((result(&actions).winner, result(&actions).decided), (1, Decided::Valid));
}

#[test]
fn what_an_excluded_voter_gave_is_asked_again_of_another() {
    let mut vote = BallotBox::new(VoteTerms { json: true, ..terms(Strategy::WeightedVote, 2) });
    vote.handle(Event::Start, Time::ZERO);
    vote.handle(arrived(1, 1, "{\"a\": 2}"), Time::ZERO);
    let actions = vote.handle(Event::Excluded { voter: 1 }, Time::ZERO);
    assert_eq!(actions.first(), Some(&Action::Cancel { voter: 1, sample: 3 }));
    assert_eq!(asks(&actions), [(0, 1), (0, 3)]);
    assert_eq!(vote.handle(arrived(1, 3, "{\"a\": 2}"), Time::ZERO), [], "it is not asked any more");
    for sample in 0..3 {
        vote.handle(arrived(0, sample, "{\"a\": 1}"), Time::ZERO);
    }
    let actions = vote.handle(arrived(0, 3, "{\"a\": 1}"), Time::ZERO);
    assert!(result(&actions).ballots.iter().all(|ballot| ballot.voter == 0));
    let absent: Vec<_> = result(&actions).absent.iter().map(|absent| (absent.voter, absent.sample)).collect();
    assert_eq!(absent, [(1, 1), (1, 3)], "the answer says what does not count");
    assert!(
        BallotBox::new(terms(Strategy::WeightedVote, 1)).handle(Event::Excluded { voter: 9 }, Time::ZERO).len() == 1
    );
}

#[test]
fn a_sample_that_a_liar_had_a_part_in_is_asked_for_again() {
    let mut vote = BallotBox::new(VoteTerms { json: true, ..terms(Strategy::WeightedVote, 1) });
    vote.handle(Event::Start, Time::ZERO);
    vote.handle(arrived(0, 1, "{\"a\": 2}"), Time::ZERO);
    for (voter, sample) in [(0, 0), (1, 1), (0, 99)] {
        assert_eq!(vote.handle(Event::Withdrawn { voter, sample }, Time::ZERO), [], "nothing is there to withdraw");
    }
    assert_eq!(asks(&vote.handle(Event::Withdrawn { voter: 0, sample: 1 }, Time::ZERO)), [(0, 1)]);
    for sample in 0..3 {
        vote.handle(arrived(0, sample, "{\"a\": 1}"), Time::ZERO);
    }
    let actions = vote.handle(arrived(0, 3, "{\"a\": 1}"), Time::ZERO);
    assert!(result(&actions).ballots.iter().all(|ballot| ballot.answer.text == "{\"a\": 1}"));
}

#[test]
fn nobody_votes_unasked_or_twice_or_without_a_probability() {
    let mut vote = BallotBox::new(terms(Strategy::WeightedVote, 2));
    vote.handle(Event::Start, Time::ZERO);
    for (voter, sample) in [(1, 0), (0, 1), (0, 99), (7, 0)] {
        assert_eq!(vote.handle(arrived(voter, sample, "8"), Time::ZERO), [], "{voter} {sample}");
        assert_eq!(vote.handle(failed(voter, sample, ErrorKind::InvalidInput), Time::ZERO), [], "{voter} {sample}");
    }
    vote.handle(arrived(0, 0, "7"), Time::ZERO);
    assert_eq!(vote.handle(arrived(0, 0, "8"), Time::ZERO), []);
    for mean_logprob in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let mut vote = BallotBox::new(terms(Strategy::FirstValid, 2));
        vote.handle(Event::Start, Time::ZERO);
        let answer = SampledAnswer { mean_logprob, ..sampled("7") };
        assert_eq!(asks(&vote.handle(Event::Arrived { voter: 0, sample: 0, answer }, Time::ZERO)), [(1, 0)]);
    }
    for (said, counts) in [(3.0, 0.0), (-1e9, -100.0), (-2.0, -2.0)] {
        let mut vote = BallotBox::new(terms(Strategy::FirstValid, 1));
        vote.handle(Event::Start, Time::ZERO);
        let answer = SampledAnswer { mean_logprob: said, ..sampled("7") };
        let actions = vote.handle(Event::Arrived { voter: 0, sample: 0, answer }, Time::ZERO);
        assert_eq!(result(&actions).ballots[0].answer.mean_logprob, counts);
    }
}

#[test]
fn samples_that_would_all_be_the_same_are_asked_for_once() {
    let mut vote = BallotBox::new(VoteTerms { greedy: true, json: true, ..terms(Strategy::WeightedVote, 2) });
    assert_eq!((asks(&vote.handle(Event::Start, Time::ZERO)), vote.samples_max()), (vec![(0, 0)], 1));
    assert_eq!(result(&vote.handle(arrived(0, 0, "{\"a\": 1}"), Time::ZERO)).decided, Decided::AllSamples);
    for (asked, is) in [(0, 1), (SAMPLES_MAX, SAMPLES_MAX), (SAMPLES_MAX + 1, SAMPLES_MAX)] {
        let terms = VoteTerms { samples: asked, ..terms(Strategy::BestOfN, 1) };
        assert_eq!(BallotBox::new(terms).samples_max(), is);
    }
}

#[test]
fn an_admitted_peer_has_a_voice_and_a_suspect_hardly_any() {
    assert_eq!(Voter::this_node(8), Voter { local: true, trust: 1.0, places: 8, is_last_resort: false });
    let peer = Voter { local: false, trust: UNSUSPECTED_TRUST, places: 2, is_last_resort: false };
    assert_eq!(Voter::peer(0.1, false, 2), peer);
    assert_eq!((Voter::peer(0.95, false, 2).trust, Voter::peer(0.1, true, 2).trust), (0.95, 0.1));
    // Four peers that agree are a consensus without a fifth.
    let mut vote = BallotBox::new(VoteTerms {
        voters: vec![Voter::peer(0.1, false, 8)],
        json: true,
        ..terms(Strategy::WeightedVote, 0)
    });
    vote.handle(Event::Start, Time::ZERO);
    (0..3).for_each(|sample| drop(vote.handle(arrived(0, sample, "{\"a\": 1}"), Time::ZERO)));
    assert_eq!(result(&vote.handle(arrived(0, 3, "{\"a\": 1}"), Time::ZERO)).decided, Decided::Consensus);
}

/// A vote over what a model would say to each seed, and what happens on the way.
#[derive(Clone, Debug)]
struct Play {
    strategy: Strategy,
    /// The text and log probability of each sample.
    says: Vec<(String, f64)>,
    json: bool,
}

/// What must be the same in two plays of one vote: samples and texts of the winner and of the counted ballots.
type Outcome = (usize, String, Decided, Vec<(usize, String)>);

impl Play {
    fn terms(&self, voters: usize) -> VoteTerms {
        VoteTerms { samples: self.says.len(), json: self.json, ..terms(self.strategy, voters) }
    }

    /// Plays the vote: `random` picks which outstanding sample ends next; those of `failing` voters fail.
    fn outcome(&self, voters: usize, failing: &[usize], random: u64) -> Option<Outcome> {
        let mut random = SplitMix64::new(random);
        let mut vote = BallotBox::new(self.terms(voters));
        let mut outstanding: Vec<(usize, usize)> = Vec::new();
        let mut asked: BTreeMap<(usize, usize), usize> = BTreeMap::new();
        let mut actions = vote.handle(Event::Start, Time::ZERO);
        loop {
            for action in actions {
                match action {
                    Action::Ask { voter, sample, seed } => {
                        assert_eq!(seed, 100 + sample as u64);
                        *asked.entry((voter, sample)).or_default() += 1;
                        outstanding.push((voter, sample));
                    }
                    Action::Cancel { voter, sample } => outstanding.retain(|ask| *ask != (voter, sample)),
                    Action::Decide(result) => {
                        assert!(outstanding.is_empty() && vote.is_over());
                        assert!(asked.values().all(|times| *times == 1));
                        assert!(asked.keys().all(|(_, sample)| *sample < self.says.len()));
                        let winner = &result.ballots[result.winner];
                        assert!(winner.counted);
                        let counted = result.ballots.iter().filter(|ballot| ballot.counted);
                        let counted = counted.map(|ballot| (ballot.sample, ballot.answer.text.clone())).collect();
                        return Some((winner.sample, winner.answer.text.clone(), result.decided, counted));
                    }
                    Action::Fail(_) => return None,
                }
            }
            (0..voters).for_each(|voter| assert!(outstanding.iter().filter(|ask| ask.0 == voter).count() <= 8));
            assert!(!outstanding.is_empty(), "a vote that is not over waits for something");
            let (voter, sample) = outstanding.swap_remove(random.index(outstanding.len()));
            let (text, mean_logprob) = self.says[sample].clone();
            let event = if failing.contains(&voter) {
                failed(voter, sample, ErrorKind::Unavailable)
            } else {
                let answer = SampledAnswer { text, mean_logprob, tokens: 3 };
                Event::Arrived { voter, sample, answer }
            };
            actions = vote.handle(event, Time::ZERO);
        }
    }
}

fn play() -> impl Generator<Value = Play> {
    let text = prop_oneof![
        4 => Just("7".to_owned()),
        2 => Just("8".to_owned()),
        1 => Just("The answer is 9.".to_owned()),
        1 => Just(String::new()),
        1 => Just("{\"answer\": 7}".to_owned()),
        1 => Just("Once upon a time there was a node that computed for everyone.".to_owned()),
    ];
    let says = proptest::collection::vec((text, -3.0..0.0_f64), 1..20);
    (0_usize..3, says, any::<bool>()).prop_map(|(at, says, json)| Play { strategy: Strategy::ALL[at], says, json })
}

proptest! {
    #[test]
    fn the_order_of_arrival_and_the_voters_never_change_the_result(play in play(), voters in 1_usize..5, order: u64) {
        let alone = play.outcome(1, &[], 0);
        prop_assert!(alone.is_some());
        prop_assert_eq!(&play.outcome(1, &[], order), &alone);
        // All voters are trusted alike, and a sample is the same text whoever generates it.
        let mut terms = play.terms(voters);
        terms.voters.iter_mut().for_each(|voter| voter.trust = 1.0);
        prop_assert_eq!(&play.outcome(voters, &[], order), &alone);
    }

    #[test]
    fn a_failing_voter_never_changes_the_winner_among_the_others(
        play in play(), voters in 2_usize..5, failing in proptest::collection::vec(0_usize..5, 0..3), order: u64,
    ) {
        let others = (0..voters).any(|voter| !failing.contains(&voter));
        let outcome = play.outcome(voters, &failing, order);
        prop_assert_eq!(outcome, if others { play.outcome(1, &[], 0) } else { None });
    }

    #[test]
    fn every_vote_ends_whatever_is_said(
        play in play(), voters in 0_usize..4,
        events in proptest::collection::vec((0_usize..5, 0_usize..20, 0_u8..6, 0_u64..90), 0..200),
    ) {
        let mut vote = BallotBox::new(play.terms(voters));
        let mut actions = vote.handle(Event::Start, Time::ZERO);
        let mut now = Time::ZERO;
        for (voter, sample, what, later) in events {
            now += std::time::Duration::from_millis(later * 10);
            let event = match what {
                0..3 => arrived(voter, sample, &play.says[sample % play.says.len()].0),
                3 => failed(voter, sample, ErrorKind::Unavailable),
                4 => Event::Tick,
                _ => Event::Excluded { voter },
            };
            actions.extend(vote.handle(event, now));
        }
        // Whatever is still owed fails.
        for (voter, sample) in (0..voters).flat_map(|voter| (0..20).map(move |sample| (voter, sample))).cycle().take(400) {
            actions.extend(vote.handle(failed(voter, sample, ErrorKind::Unavailable), now));
        }
        prop_assert!(vote.is_over());
        let ends = actions.iter().filter(|action| matches!(action, Action::Decide(_) | Action::Fail(_)));
        prop_assert_eq!(ends.count(), 1);
        let mut open: Vec<(usize, usize)> = asks(&actions);
        open.sort_unstable();
        let before = open.len();
        open.dedup();
        prop_assert_eq!(open.len(), before, "nobody is asked twice for one sample");
    }
}
