//! Properties of turns: answers never wait, no class waits longer than its longest wait, every request is answered once.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn ask(turn: TurnId, class: Class) -> Event {
    Event::Ask { turn, class }
}

fn at(micros: u64) -> Time {
    Time::since_epoch(Duration::from_micros(micros))
}

#[test]
fn every_class_continues_at_once_if_it_is_alone() {
    for class in Class::ALL {
        let mut turns = Turns::default();
        assert_eq!(turns.handle(Event::Begin(class), at(0)), []);
        assert_eq!(turns.most_urgent(), Some(class));
        assert_eq!(turns.handle(ask(1, class), at(1)), [Action::Go(1)]);
        turns.handle(Event::End(class), at(2));
        assert_eq!((turns.most_urgent(), turns.wake_at()), (None, None));
    }
}

#[test]
fn a_product_waits_for_an_answer_and_an_audit_waits_for_both() {
    let mut turns = Turns::default();
    turns.handle(Event::Begin(Class::Products), at(0));
    turns.handle(Event::Begin(Class::Answers), at(1));
    assert_eq!(turns.handle(ask(1, Class::Products), at(2)), []);
    assert_eq!(turns.handle(ask(2, Class::Background), at(3)), []);
    assert_eq!(turns.handle(ask(3, Class::Answers), at(4)), [Action::Go(3)]);
    assert_eq!(turns.handle(Event::End(Class::Answers), at(5)), [Action::Go(1)]);
    assert_eq!(turns.handle(Event::End(Class::Products), at(6)), [Action::Go(2)]);
}

#[test]
fn a_class_computes_for_a_slice_after_its_longest_wait() {
    let mut turns = Turns::default();
    turns.handle(Event::Begin(Class::Answers), at(0));
    assert_eq!(turns.handle(ask(1, Class::Products), at(0)), []);
    let due = at(0) + Class::Products.longest_wait();
    assert_eq!(turns.wake_at(), Some(due));
    let before = Time::since_epoch(due.elapsed() - Duration::from_nanos(1));
    assert_eq!(turns.handle(Event::Tick, before), []);
    assert_eq!(turns.handle(Event::Tick, due), [Action::Go(1)]);
    // During the slice its pieces follow each other; behind it, it waits as long again.
    let end = due + SLICE;
    let last = Time::since_epoch(end.elapsed() - Duration::from_nanos(1));
    assert_eq!(turns.handle(ask(2, Class::Products), last), [Action::Go(2)]);
    assert_eq!(turns.handle(ask(3, Class::Products), end), []);
    assert_eq!(turns.wake_at(), Some(end + Class::Products.longest_wait()));
    // A slice of one class is no slice of another.
    assert_eq!(turns.handle(ask(4, Class::Background), end), []);
}

#[test]
fn all_threads_of_a_product_continue_together() {
    let mut turns = Turns::default();
    turns.handle(Event::Begin(Class::Answers), at(0));
    turns.handle(Event::Begin(Class::Answers), at(0));
    for turn in 1..=3 {
        assert_eq!(turns.handle(ask(turn, Class::Products), at(turn)), []);
    }
    // The step of another answer is under way still.
    assert_eq!(turns.handle(Event::End(Class::Answers), at(9)), []);
    assert_eq!(turns.handle(Event::End(Class::Answers), at(10)), [Action::Go(1), Action::Go(2), Action::Go(3)]);
}

/// One step of a random history.
#[derive(Clone, Debug)]
enum Step {
    Begin(usize),
    End(usize),
    Ask(usize),
    Wait { micros: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let class = 0..Class::ALL.len();
    prop_oneof![
        2 => class.clone().prop_map(Step::Begin),
        2 => class.clone().prop_map(Step::End),
        4 => class.prop_map(Step::Ask),
        3 => (1..20_000u64).prop_map(|micros| Step::Wait { micros }),
    ]
}

proptest! {
    #[test]
    fn answers_never_wait_and_no_class_is_starved(steps in proptest::collection::vec(step(), 1..200)) {
        let mut turns = Turns::default();
        let mut computing = [0usize; Class::ALL.len()];
        let mut waiting: BTreeMap<TurnId, (Class, Time)> = BTreeMap::new();
        let mut slices = [Time::ZERO; Class::ALL.len()];
        let (mut now, mut next) = (Time::from_secs(1), 0);
        for step in steps {
            let (event, later) = match step {
                Step::Begin(class) => {
                    computing[class] += 1;
                    (Event::Begin(Class::ALL[class]), now)
                }
                Step::End(class) if computing[class] > 0 => {
                    computing[class] -= 1;
                    (Event::End(Class::ALL[class]), now)
                }
                Step::End(_) => continue,
                Step::Ask(class) => {
                    next += 1;
                    waiting.insert(next, (Class::ALL[class], now));
                    (ask(next, Class::ALL[class]), now)
                }
                // The driver wakes up when it is due.
                Step::Wait { micros } => {
                    let until = now + Duration::from_micros(micros);
                    (Event::Tick, turns.wake_at().map_or(until, |due| due.max(now).min(until)))
                }
            };
            now = later;
            for Action::Go(turn) in turns.handle(event, now) {
                let asked = waiting.remove(&turn);
                prop_assert!(asked.is_some(), "{} was let go twice", turn);
                let (class, since) = asked.unwrap();
                let index = class.index();
                if computing[..index].iter().any(|count| *count > 0) && slices[index] <= now {
                    prop_assert!(now.since(since) >= class.longest_wait(), "{:?} did not wait", class);
                    slices[index] = now + SLICE;
                }
            }
            for (class, since) in waiting.values() {
                prop_assert!(computing[..class.index()].iter().any(|count| *count > 0), "{:?} waits for nothing", class);
                prop_assert!(now.since(*since) < class.longest_wait(), "{:?} waits too long", class);
                prop_assert!(slices[class.index()] <= now, "{:?} waits in its slice", class);
            }
            prop_assert!(turns.wake_at().is_none_or(|due| due > now));
        }
    }
}
