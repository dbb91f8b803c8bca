//! Each task starts at most once and is answered at most once, whatever the order of events.

use super::*;
use proptest::prelude::*;

const MAX_TASKS: usize = 4;

fn digest(n: u8) -> Digest {
    Digest([n; 32])
}

fn terms(task: TaskId, a: u8, b: u8) -> Terms {
    Terms { task, operands: [digest(a), digest(b)], priority: 0, deadline: None }
}

fn task(terms: Terms, whole: [bool; 2]) -> Event {
    Event::Task { terms, held: whole, whole, refusal: None }
}

fn overloaded() -> Error {
    Error::new(ErrorKind::Overloaded, "needs 512 MiB; 300 MiB free")
}

#[test]
fn a_task_starts_once_it_has_its_operands_and_memory_for_its_result() {
    let mut intake = Intake::new(MAX_TASKS);
    let asked = intake.handle(task(terms(1, 1, 2), [true, false]), Time::ZERO);
    assert_eq!(asked, [Action::AskFor(1, vec![digest(2)])]);
    // Operands are requested in the task's order, and only once if both are the same.
    let both = Event::Task { terms: terms(7, 9, 8), held: [false; 2], whole: [false; 2], refusal: None };
    assert_eq!(intake.handle(both, Time::ZERO), [Action::AskFor(7, vec![digest(9), digest(8)])]);
    let square = Event::Task { terms: terms(8, 9, 9), held: [false; 2], whole: [false; 2], refusal: None };
    assert_eq!(intake.handle(square, Time::ZERO), [Action::AskFor(8, vec![digest(9)])]);
    assert!(intake.needs(&digest(1)) && intake.needs(&digest(2)) && !intake.needs(&digest(3)));
    assert_eq!(intake.handle(Event::Whole(digest(2)), Time::ZERO), [Action::Lease(1, [digest(1), digest(2)])]);
    assert_eq!(intake.handle(Event::Leased(1), Time::ZERO), [Action::Start(1, 0)]);
    assert_eq!(intake.handle(Event::Done(1), Time::ZERO), []);
    assert!(!intake.needs(&digest(1)));
}

#[test]
fn a_task_whose_result_has_no_memory_fails_with_the_numbers_before_it_starts() {
    let mut intake = Intake::new(MAX_TASKS);
    intake.handle(task(terms(1, 1, 2), [true; 2]), Time::ZERO);
    let failed = intake.handle(Event::Unleased(1, overloaded()), Time::ZERO);
    assert_eq!(failed, [Action::Fail(1, overloaded(), None)]);
    // A lease that arrives afterwards starts nothing.
    assert_eq!(intake.handle(Event::Leased(1), Time::ZERO), []);
}

#[test]
fn a_task_whose_peer_takes_no_results_is_told_when_to_come_again() {
    let mut intake = Intake::new(MAX_TASKS);
    intake.handle(task(terms(1, 1, 2), [true; 2]), Time::ZERO);
    let retry_after = Duration::from_secs(1);
    let failed = intake.handle(Event::Untaken(1, Refusal::ResultsUntaken { retry_after }), Time::ZERO);
    let [Action::Fail(1, error, Some(after))] = &failed[..] else { panic!("{failed:?}") };
    assert_eq!((error.kind(), *after), (ErrorKind::Overloaded, retry_after));
    // A lease that arrives afterwards starts nothing, and the id is free again.
    assert_eq!(intake.handle(Event::Leased(1), Time::ZERO), []);
    assert_eq!(intake.handle(task(terms(1, 1, 2), [true; 2]), Time::ZERO), [Action::Lease(1, [digest(1), digest(2)])]);
}

#[test]
fn a_peers_priority_does_not_exceed_this_nodes_own() {
    let mut intake = Intake::new(MAX_TASKS);
    for (number, asked, given) in [(1, 127, 0), (2, 1, 0), (3, 0, 0), (4, -128, -128)] {
        intake.handle(task(Terms { priority: asked, ..terms(number, 1, 2) }, [true; 2]), Time::ZERO);
        assert_eq!(intake.handle(Event::Leased(number), Time::ZERO), [Action::Start(number, given)]);
    }
}

#[test]
fn a_peers_tasks_are_limited() {
    let mut intake = Intake::new(MAX_TASKS);
    for number in 0..MAX_TASKS as TaskId {
        assert_eq!(intake.handle(task(terms(number, 1, 2), [true; 2]), Time::ZERO).len(), 1);
    }
    let refused = intake.handle(task(terms(9, 1, 2), [true; 2]), Time::ZERO);
    assert!(
        matches!(&refused[..], [Action::Fail(9, error, None)] if error.kind() == ErrorKind::Overloaded),
        "{refused:?}"
    );
    intake.handle(Event::Cancel(0), Time::ZERO);
    assert_eq!(intake.handle(task(terms(9, 1, 2), [true; 2]), Time::ZERO), [Action::Lease(9, [digest(1), digest(2)])]);
}

#[test]
fn a_quarantined_peer_and_a_draining_node_start_nothing_new() {
    let mut intake = Intake::new(MAX_TASKS);
    for (number, refusal, kind) in
        [(1, Refusal::Quarantined, ErrorKind::Unauthorized), (2, Refusal::Draining, ErrorKind::Unavailable)]
    {
        let event =
            Event::Task { terms: terms(number, 1, 2), held: [true; 2], whole: [true; 2], refusal: Some(refusal) };
        let refused = intake.handle(event, Time::ZERO);
        assert!(matches!(&refused[..], [Action::Fail(_, error, None)] if error.kind() == kind), "{refused:?}");
    }
}

#[test]
fn a_peer_over_its_quota_is_told_when_to_come_again() {
    let mut intake = Intake::new(MAX_TASKS);
    let retry_after = Duration::from_millis(100);
    for (number, refusal) in [(1, Refusal::TooMany { retry_after }), (2, Refusal::TooFast { retry_after })] {
        let event =
            Event::Task { terms: terms(number, 1, 2), held: [true; 2], whole: [true; 2], refusal: Some(refusal) };
        let refused = intake.handle(event, Time::ZERO);
        let is_told = |action: &Action| {
            matches!(action, Action::Fail(_, error, Some(after))
                if error.kind() == ErrorKind::Overloaded && *after == retry_after)
        };
        assert!(refused.len() == 1 && is_told(&refused[0]), "{refused:?}");
    }
}

#[test]
fn an_operand_that_was_refused_fails_the_tasks_that_name_it() {
    let mut intake = Intake::new(MAX_TASKS);
    intake.handle(task(terms(1, 1, 2), [true, false]), Time::ZERO);
    intake.handle(task(terms(2, 1, 3), [true, false]), Time::ZERO);
    assert_eq!(
        intake.handle(Event::Refused(digest(2), overloaded()), Time::ZERO),
        [Action::Fail(1, overloaded(), None)]
    );
    assert_eq!(intake.handle(task(terms(3, 2, 1), [false, true]), Time::ZERO), [Action::Fail(3, overloaded(), None)]);
    // The operand is announced again, and there is room now.
    intake.handle(Event::Admitted(digest(2)), Time::ZERO);
    let event = Event::Task { terms: terms(4, 2, 1), held: [true; 2], whole: [false, true], refusal: None };
    assert_eq!(intake.handle(event, Time::ZERO), []);
    assert_eq!(intake.handle(Event::Whole(digest(2)), Time::ZERO), [Action::Lease(4, [digest(2), digest(1)])]);
}

#[test]
fn a_deadline_ends_a_task_in_every_stage() {
    let mut intake = Intake::new(MAX_TASKS);
    let until = |task, a, seconds| Terms { deadline: Some(Duration::from_secs(seconds)), ..terms(task, a, 2) };
    intake.handle(task(until(1, 9, 1), [false, true]), Time::ZERO);
    intake.handle(task(until(2, 1, 2), [true; 2]), Time::ZERO);
    intake.handle(task(until(3, 1, 3), [true; 2]), Time::ZERO);
    intake.handle(Event::Leased(3), Time::ZERO);
    assert_eq!(intake.wake_at(), Some(Time::from_secs(1)));
    assert!(intake.handle(Event::Tick, Time::from_millis(999)).is_empty());
    let failed = intake.handle(Event::Tick, Time::from_secs(2));
    let late =
        |action: &Action| matches!(action, Action::Fail(_, error, None) if error.kind() == ErrorKind::DeadlineExceeded);
    assert!(failed.len() == 2 && failed.iter().all(late), "{failed:?}");
    assert_eq!(intake.handle(Event::Tick, Time::from_secs(3)), [Action::Stop(3)]);
    assert_eq!(intake.wake_at(), None);
}

#[test]
fn a_task_sent_twice_ends_the_stream() {
    let mut intake = Intake::new(MAX_TASKS);
    intake.handle(task(terms(1, 1, 2), [true; 2]), Time::ZERO);
    assert!(matches!(intake.handle(task(terms(1, 1, 2), [true; 2]), Time::ZERO)[..], [Action::Close(_)]));
}

#[test]
fn refusals_are_remembered_for_as_many_operands_as_tasks_may_name_and_while_there_are_tasks() {
    let mut intake = Intake::new(MAX_TASKS);
    intake.handle(task(terms(1, 100, 101), [false; 2]), Time::ZERO);
    let refused = |operand| Event::Refused(digest(operand), overloaded());
    let limit = 2 * MAX_TASKS as u8;
    for operand in 0..limit {
        assert_eq!(intake.handle(refused(operand), Time::ZERO), []);
    }
    for operand in [0, limit - 1] {
        let named = intake.handle(task(terms(2, operand, 101), [false; 2]), Time::ZERO);
        assert_eq!(named, [Action::Fail(2, overloaded(), None)], "operand {operand}");
    }
    intake.handle(refused(limit), Time::ZERO);
    assert_eq!(intake.refused.len(), 1, "a peer that announces without end takes no more memory");
    intake.handle(Event::Cancel(1), Time::ZERO);
    let again = intake.handle(task(terms(2, limit, 101), [false; 2]), Time::ZERO);
    assert_eq!(again, [Action::AskFor(2, vec![digest(limit), digest(101)])]);
}

#[test]
fn when_the_stream_ends_tasks_that_run_are_stopped_and_the_others_dropped() {
    let mut intake = Intake::new(MAX_TASKS);
    for number in [1, 2] {
        intake.handle(task(terms(number, 1, 2), [true; 2]), Time::ZERO);
    }
    intake.handle(Event::Leased(1), Time::ZERO);
    assert_eq!(intake.handle(Event::Ended, Time::ZERO), [Action::Stop(1), Action::Drop(2)]);
}

/// State of a task as the coordinator and the executor see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Waits,
    Leasing,
    Runs,
    Over,
}

fn event() -> impl Strategy<Value = (u8, TaskId, u8, u8, bool)> {
    (0..10u8, 0..8u64, 0..4u8, 0..4u8, any::<bool>())
}

proptest! {
    #[test]
    fn every_task_starts_at_most_once_and_is_answered_at_most_once(steps in proptest::collection::vec(event(), 1..200)) {
        let mut intake = Intake::new(MAX_TASKS);
        let mut known: BTreeMap<TaskId, Known> = BTreeMap::new();
        let mut now = Time::ZERO;
        for (what, number, a, b, flag) in steps {
            let event = match what {
                0..=3 if known.contains_key(&number) => continue,
                0..=3 => {
                    known.insert(number, Known::Waits);
                    let deadline = flag.then_some(Duration::from_secs(u64::from(a)));
                    task(Terms { deadline, ..terms(number, a, b) }, [flag, what == 0])
                }
                4 => Event::Whole(digest(a)),
                5 => Event::Refused(digest(a), overloaded()),
                6 if known.get(&number) == Some(&Known::Leasing) => Event::Leased(number),
                7 if known.get(&number) == Some(&Known::Leasing) => Event::Unleased(number, overloaded()),
                8 if known.get(&number) == Some(&Known::Runs) => {
                    known.insert(number, Known::Over);
                    Event::Done(number)
                }
                8 => Event::Cancel(number),
                _ => {
                    now += Duration::from_secs(1);
                    Event::Tick
                }
            };
            for action in intake.handle(event, now) {
                let (task, from, to): (_, &[Known], _) = match &action {
                    Action::AskFor(task, _) => (*task, &[Known::Waits], Known::Waits),
                    Action::Lease(task, _) => (*task, &[Known::Waits], Known::Leasing),
                    Action::Start(task, _) => (*task, &[Known::Leasing], Known::Runs),
                    Action::Fail(task, ..) | Action::Drop(task) => (*task, &[Known::Waits, Known::Leasing], Known::Over),
                    Action::Stop(task) => (*task, &[Known::Runs], Known::Runs),
                    Action::Close(why) => return Err(TestCaseError::fail(why.clone())),
                };
                let was = known.insert(task, to);
                prop_assert!(was.is_some_and(|was| from.contains(&was)), "{action:?} of a task that {was:?}");
            }
            let here = known.values().filter(|known| **known != Known::Over).count();
            prop_assert!(here <= MAX_TASKS, "{here} tasks at once");
            prop_assert_eq!(intake.tasks.len(), here);
        }
        intake.handle(Event::Ended, now);
        prop_assert!(intake.tasks.is_empty());
    }
}
