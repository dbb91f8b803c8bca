//! Properties of the ledger: the leases never exceed the limit, every lease is returned, every request is answered.

use super::*;
use proptest::prelude::*;
use std::time::Duration;

const LIMIT: u64 = 1600;

fn at(seconds: u64) -> Time {
    Time::from_secs(seconds)
}

fn ask(lease: LeaseId, kind: Kind, bytes: u64, until: Option<Time>) -> Event {
    Event::Ask { lease, kind, bytes, until }
}

#[test]
fn a_request_that_does_not_fit_is_refused_with_the_numbers() {
    let mut ledger = Ledger::new(1 << 30);
    assert_eq!(ledger.handle(ask(1, Kind::Tensors, 724 << 20, None), at(0)), [Action::Grant(1)]);
    let refused = ledger.handle(ask(2, Kind::Tensors, 512 << 20, None), at(0));
    let [Action::Refuse(2, shortage)] = refused.as_slice() else { panic!("{refused:?}") };
    assert!(shortage.to_string().starts_with("needs 512 MiB; 300 MiB free"), "{shortage}");
    assert_eq!(ledger.held(), 724 << 20, "a refused request takes nothing");
    let refused = ledger.handle(ask(3, Kind::Results, 512 << 20, Some(at(9))), at(0));
    let [Action::Refuse(3, shortage)] = refused.as_slice() else { panic!("{refused:?}") };
    assert!(shortage.to_string().contains("at most 256 MiB of this node's 1.00 GiB may go to results"), "{shortage}");
}

#[test]
fn limits_are_exact() {
    let mut ledger = Ledger::new(LIMIT);
    assert_eq!(ledger.handle(ask(1, Kind::Weights, LIMIT / 16 * 15, None), at(0)), [Action::Grant(1)]);
    assert!(matches!(ledger.handle(ask(2, Kind::Sessions, 1, None), at(0))[..], [Action::Refuse(..)]));
    assert_eq!(ledger.handle(ask(3, Kind::Tensors, LIMIT / 16, None), at(0)), [Action::Grant(3)]);
    assert!(matches!(ledger.handle(ask(4, Kind::Tensors, 1, None), at(0))[..], [Action::Refuse(..)]));
    assert_eq!(ledger.held(), LIMIT);
}

#[test]
fn requests_of_one_kind_are_served_in_their_order() {
    let mut ledger = Ledger::new(LIMIT);
    ledger.handle(ask(1, Kind::Results, 400, None), at(0));
    assert_eq!(ledger.handle(ask(2, Kind::Results, 300, Some(at(9))), at(0)), []);
    assert_eq!(ledger.handle(ask(3, Kind::Results, 10, Some(at(9))), at(0)), []);
    // A smaller one that would fit does not overtake, with a deadline or without.
    ledger.handle(Event::Shrink { lease: 1, bytes: 350 }, at(1));
    assert!(matches!(ledger.handle(ask(4, Kind::Results, 10, None), at(1))[..], [Action::Refuse(..)]));
    assert_eq!(ledger.handle(Event::GiveBack(1), at(2)), [Action::Grant(2), Action::Grant(3)]);
}

#[test]
fn a_request_that_waited_too_long_is_refused_and_lets_the_next_one_through() {
    let mut ledger = Ledger::new(LIMIT);
    ledger.handle(ask(1, Kind::Results, 200, None), at(0));
    ledger.handle(ask(2, Kind::Results, 300, Some(at(5))), at(0));
    ledger.handle(ask(3, Kind::Results, 100, Some(at(50))), at(0));
    assert_eq!(ledger.wake_at(), Some(at(5)));
    let actions = ledger.handle(Event::Tick, at(5));
    assert!(matches!(actions[..], [Action::Refuse(2, _), Action::Grant(3)]), "{actions:?}");
    assert_eq!(ledger.wake_at(), None);
}

#[test]
fn a_full_queue_refuses_at_once() {
    let mut ledger = Ledger::new(LIMIT);
    ledger.handle(ask(0, Kind::Results, LIMIT / 4, None), at(0));
    for lease in 1..=MAX_WAITING as u64 {
        assert_eq!(ledger.handle(ask(lease, Kind::Results, 1, Some(at(9))), at(0)), []);
    }
    let refused = ledger.handle(ask(999, Kind::Results, 1, Some(at(9))), at(0));
    assert!(matches!(refused[..], [Action::Refuse(999, Shortage::Queued { .. })]), "{refused:?}");
}

/// One step of a random history.
#[derive(Clone, Debug)]
enum Step {
    Ask { kind: usize, bytes: u64, patience: Option<u64> },
    Shrink { which: usize, bytes: u64 },
    GiveBack { which: usize },
    Wait { seconds: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..Kind::ALL.len(), 0..LIMIT + 100, proptest::option::of(0..20u64))
            .prop_map(|(kind, bytes, patience)| Step::Ask { kind, bytes, patience }),
        1 => (any::<usize>(), 0..LIMIT).prop_map(|(which, bytes)| Step::Shrink { which, bytes }),
        3 => any::<usize>().prop_map(|which| Step::GiveBack { which }),
        1 => (0..10u64).prop_map(|seconds| Step::Wait { seconds }),
    ]
}

/// The requests and leases from the requesters' view.
#[derive(Default)]
struct Requesters {
    granted: BTreeMap<LeaseId, (Kind, u64)>,
    waiting: BTreeMap<LeaseId, (Kind, u64)>,
}

impl Requesters {
    fn hear(&mut self, actions: Vec<Action>) -> Result<(), TestCaseError> {
        for action in actions {
            match action {
                Action::Grant(lease) => {
                    let asked = self.waiting.remove(&lease);
                    prop_assert!(asked.is_some(), "{} was granted twice or after it was given back", lease);
                    self.granted.extend(asked.map(|asked| (lease, asked)));
                }
                Action::Refuse(lease, _) => {
                    prop_assert!(self.waiting.remove(&lease).is_some(), "{} was answered twice", lease);
                }
            }
        }
        Ok(())
    }

    fn check(&self, ledger: &Ledger) -> Result<(), TestCaseError> {
        prop_assert!(ledger.held() <= ledger.limit());
        for kind in Kind::ALL {
            let sum: u64 = self.granted.values().filter(|(of, _)| *of == kind).map(|(_, bytes)| bytes).sum();
            prop_assert_eq!(ledger.held_by(kind), sum);
            prop_assert!(sum <= kind.most_bytes(LIMIT));
            prop_assert_eq!(ledger.waiting(kind), self.waiting.values().filter(|(of, _)| *of == kind).count());
        }
        let others: u64 = self.granted.values().filter(|(of, _)| !of.is_own_work()).map(|(_, bytes)| bytes).sum();
        prop_assert!(others + own_work_bytes(LIMIT) <= LIMIT, "the part for own work was given away");
        Ok(())
    }
}

proptest! {
    #[test]
    fn the_sum_never_passes_the_limit_and_every_request_is_answered(steps in proptest::collection::vec(step(), 1..200)) {
        let mut ledger = Ledger::new(LIMIT);
        let mut requesters = Requesters::default();
        let (mut now, mut next) = (at(0), 0);
        for step in steps {
            match step {
                Step::Ask { kind, bytes, patience } => {
                    next += 1;
                    let until = patience.map(|seconds| now + Duration::from_secs(seconds));
                    requesters.waiting.insert(next, (Kind::ALL[kind], bytes));
                    let actions = ledger.handle(ask(next, Kind::ALL[kind], bytes, until), now);
                    prop_assert!(until.is_some() || !actions.is_empty(), "no answer where one is due at once");
                    requesters.hear(actions)?;
                }
                Step::Shrink { which, bytes } => {
                    let Some((lease, held)) = requesters.granted.iter_mut().nth(which % 8) else { continue };
                    held.1 = held.1.min(bytes);
                    let event = Event::Shrink { lease: *lease, bytes };
                    requesters.hear(ledger.handle(event, now))?;
                }
                Step::GiveBack { which } => {
                    let known = requesters.granted.keys().chain(requesters.waiting.keys());
                    let Some(lease) = known.copied().nth(which % 8) else { continue };
                    requesters.granted.remove(&lease);
                    requesters.waiting.remove(&lease);
                    requesters.hear(ledger.handle(Event::GiveBack(lease), now))?;
                }
                Step::Wait { seconds } => {
                    now += Duration::from_secs(seconds);
                    requesters.hear(ledger.handle(Event::Tick, now))?;
                    prop_assert!(ledger.wake_at().is_none_or(|wake| wake > now));
                }
            }
            requesters.check(&ledger)?;
        }
        // At the end every waiting request is answered by its deadline, and every lease is given back.
        requesters.hear(ledger.handle(Event::Tick, Time::MAX))?;
        prop_assert!(requesters.waiting.is_empty());
        for lease in std::mem::take(&mut requesters.granted).into_keys() {
            ledger.handle(Event::GiveBack(lease), Time::MAX);
        }
        prop_assert_eq!(ledger.held(), 0);
    }
}
