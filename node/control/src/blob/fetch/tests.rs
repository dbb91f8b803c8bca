//! Fetches in virtual time, with providers that deliver, break off, lie or lack.

use std::time::Duration;

use super::*;

const PARTS: u32 = 20;

/// A model of `PARTS` pieces of one part each, behind its header.
fn part_counts() -> [u32; PARTS as usize + 1] {
    [1; PARTS as usize + 1]
}

fn part(piece: u32) -> PartId {
    PartId { piece, part: 0 }
}

struct World {
    fetch: Fetch,
    now: Time,
    /// What is to be done and was not taken yet.
    actions: Vec<Action>,
}

impl World {
    fn new(providers: usize) -> World {
        World::with_buffers(providers, max_buffers(PARTS as usize, providers))
    }

    fn with_buffers(providers: usize, buffers: usize) -> World {
        let parts = (1..=PARTS).map(part).collect();
        let names = (0..providers).map(|provider| format!("peer{provider}")).collect();
        let now = Time::from_secs(1000);
        World { fetch: Fetch::new(parts, names, buffers, now), now, actions: Vec::new() }
    }

    fn handle(&mut self, event: Event) -> Outcome {
        self.fetch.handle(event, self.now, &mut self.actions)
    }

    fn open(&mut self, provider: ProviderId, has: impl Iterator<Item = u32>) -> Outcome {
        let mut set = PartSet::empty(part_counts());
        has.for_each(|piece| set.insert(part(piece)));
        self.handle(Event::Opened { provider, has: set })
    }

    /// What a provider was asked for since this was last looked at.
    fn asked(&mut self, provider: ProviderId) -> Vec<PartId> {
        let mut asked = Vec::new();
        self.actions.retain(|action| match action {
            Action::Ask(of, part) if *of == provider => {
                asked.push(*part);
                false
            }
            _ => true,
        });
        asked
    }

    fn lost(&mut self, provider: ProviderId) -> Outcome {
        self.handle(Event::Lost { provider, error: Error::new(ErrorKind::Unavailable, "gone") })
    }
}

fn done(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Done)
}

#[test]
fn several_holders_share_the_work_and_each_part_is_asked_once() {
    let mut world = World::new(2);
    world.handle(Event::Tick);
    assert_eq!(std::mem::take(&mut world.actions), [Action::Open(0), Action::Open(1)]);
    world.open(0, 1..=PARTS);
    world.open(1, 1..=PARTS);
    let mut seen = Vec::new();
    let mut by = [0, 0];
    loop {
        let mut outcome = None;
        for provider in [0, 1] {
            for part in world.asked(provider) {
                seen.push(part);
                by[provider] += 1;
                outcome = Some(world.handle(Event::Good { provider, part }));
            }
        }
        if done(&outcome.expect("somebody was asked for something")) {
            break;
        }
    }
    seen.sort_unstable();
    assert_eq!(seen, (1..=PARTS).map(part).collect::<Vec<_>>());
    assert!(by[0] > 4 && by[1] > 4, "{by:?}");
}

#[test]
fn what_one_breaks_off_with_is_had_from_another_and_it_is_tried_again_later() {
    let mut world = World::new(2);
    world.handle(Event::Tick);
    world.open(0, 1..=PARTS);
    let broken_off = world.asked(0);
    assert_eq!(broken_off.len(), ASKED_AHEAD);
    world.open(1, 1..=PARTS);
    for part in world.asked(1) {
        world.handle(Event::Good { provider: 1, part });
    }
    world.lost(0);
    let mut all = Vec::new();
    loop {
        let asked = world.asked(1);
        all.extend(asked.iter().copied());
        let outcomes: Vec<Outcome> =
            asked.into_iter().map(|part| world.handle(Event::Good { provider: 1, part })).collect();
        if outcomes.iter().any(done) {
            break;
        }
        if all.len() == 2 * ASKED_AHEAD {
            world.now += RETRY_DELAY;
            world.handle(Event::Tick);
            assert!(world.actions.contains(&Action::Open(0)));
        }
    }
    assert!(broken_off.iter().all(|part| all.contains(part)));
}

#[test]
fn a_liar_is_closed_named_and_never_opened_again() {
    let mut world = World::new(1);
    world.handle(Event::Tick);
    world.open(0, 1..=PARTS);
    let outcome = world.handle(Event::Bad { provider: 0, why: "no".to_owned() });
    let Outcome::Failed(error) = outcome else { panic!("{outcome:?}") };
    assert!(error.kind() == ErrorKind::VerificationFailed && error.message().contains("peer0"), "{error}");
    assert!(world.actions.contains(&Action::Close(0)));
    world.actions.clear();
    world.now += Duration::from_secs(3600);
    world.handle(Event::Tick);
    assert!(world.actions.is_empty());
}

#[test]
fn parts_are_asked_only_of_who_has_them_and_what_nobody_has_is_not_found() {
    let mut world = World::new(2);
    world.handle(Event::Tick);
    world.actions.clear();
    world.open(0, 1..=2);
    world.open(1, 3..PARTS);
    assert_eq!(world.asked(0), [part(1), part(2)]);
    assert_eq!(world.asked(1).len(), ASKED_AHEAD);
    for piece in 1..=2 {
        world.handle(Event::Good { provider: 0, part: part(piece) });
    }
    assert!(world.asked(0).is_empty() && world.actions.is_empty(), "{:?}", world.actions);
    for piece in 3..PARTS {
        world.handle(Event::Good { provider: 1, part: part(piece) });
    }
    // The last part: both are asked again, later and later, what they have; then that is that.
    for round in 0..FAILURES_MAX {
        assert!(world.actions.contains(&Action::Close(0)) && world.actions.contains(&Action::Close(1)), "{round}");
        world.actions.clear();
        world.now += Duration::from_secs(60);
        world.handle(Event::Tick);
        for provider in [0, 1] {
            if let Outcome::Failed(error) = world.open(provider, 1..PARTS) {
                assert_eq!((error.kind(), provider, round), (ErrorKind::NotFound, 1, FAILURES_MAX - 2));
                return;
            }
        }
    }
    panic!("it went on");
}

#[test]
fn a_part_that_a_holder_lacks_after_all_is_had_from_another() {
    let mut world = World::new(2);
    world.handle(Event::Tick);
    world.open(0, 1..=PARTS);
    let first = world.asked(0)[0];
    world.handle(Event::Lacks { provider: 0, part: first });
    assert!(!world.asked(0).contains(&first));
    world.open(1, 1..=PARTS);
    assert_eq!(world.asked(1)[0], first);
}

#[test]
fn an_idle_holder_gets_what_another_is_slow_with() {
    let mut world = World::new(2);
    world.handle(Event::Tick);
    world.open(0, 1..=PARTS);
    world.open(1, 5..=PARTS);
    loop {
        let asked = world.asked(1);
        if asked.is_empty() {
            break;
        }
        asked.into_iter().for_each(|part| drop(world.handle(Event::Good { provider: 1, part })));
    }
    let since = world.now;
    world.fetch.providers[1].state = State::Open { has: PartSet::full(part_counts()), asked: VecDeque::new(), since };
    world.handle(Event::Tick);
    assert!(world.asked(1).is_empty(), "not before it is slow");
    world.now += SLOW_AFTER;
    world.handle(Event::Tick);
    let twice = world.asked(1);
    assert_eq!(twice.len(), 1);
    world.handle(Event::Good { provider: 1, part: twice[0] });
    // The slow one's own comes too late and changes nothing.
    assert!(!done(&world.handle(Event::Good { provider: 0, part: twice[0] })));
}

#[test]
fn a_holder_that_never_answers_is_given_up() {
    let mut world = World::new(1);
    world.handle(Event::Tick);
    for failure in 1..=FAILURES_MAX {
        let outcome = world.lost(0);
        match outcome {
            Outcome::Failed(error) => {
                assert_eq!((failure, error.kind()), (FAILURES_MAX, ErrorKind::Unavailable));
                return;
            }
            _ => assert!(failure < FAILURES_MAX),
        }
        world.now += Duration::from_secs(60);
        world.handle(Event::Tick);
    }
}

#[test]
fn a_fetch_with_little_memory_uses_few_providers() {
    for (buffers, at_once) in [(1, 1), (2, 1), (3, 2), (4, 2), (8, 4), (9, 5), (12, 8), (100, 8)] {
        let mut world = World::with_buffers(20, buffers);
        world.handle(Event::Tick);
        assert_eq!(world.actions.len(), at_once, "{buffers} buffers");
        // Where one ends, the next one has its place.
        world.actions.clear();
        world.open(0, 1..=1);
        world.lost(0);
        let opened = world.actions.iter().filter(|action| matches!(action, Action::Open(_))).count();
        assert_eq!(opened, 1, "{buffers} buffers");
    }
}

#[test]
fn no_fetch_asks_for_more_memory_than_it_can_use() {
    assert_eq!(max_buffers(1, 8), 2);
    assert_eq!(max_buffers(1000, 1), 1 + UNWRITTEN);
    assert_eq!(max_buffers(1000, 0), 1 + UNWRITTEN);
    assert_eq!(max_buffers(1000, 100), PROVIDERS + UNWRITTEN);
}

#[test]
fn providers_that_deliver_nothing_give_their_places_to_those_that_wait() {
    // As many as are used at once trickle; the one that would deliver comes last.
    let honest = PROVIDERS;
    let mut world = World::new(PROVIDERS + 1);
    world.handle(Event::Tick);
    for trickling in 0..PROVIDERS {
        // Half of them never say what they have.
        if trickling % 2 == 0 {
            world.open(trickling, 1..=PARTS);
        }
    }
    world.actions.clear();
    world.now += PATIENCE - Duration::from_nanos(1);
    world.handle(Event::Tick);
    assert_eq!(world.actions, [], "nobody is displaced before that");
    world.now += Duration::from_nanos(1);
    world.handle(Event::Tick);
    assert!(world.actions.contains(&Action::Open(honest)), "{:?}", world.actions);
    world.open(honest, 1..=PARTS);
    let mut left: Vec<PartId> = (1..=PARTS).map(part).collect();
    // Its parts count; what others were asked for is asked of it as well, one after the other.
    for _ in 0..100 {
        for part in world.asked(honest) {
            left.retain(|other| *other != part);
            if done(&world.handle(Event::Good { provider: honest, part })) {
                assert!(left.is_empty());
                return;
            }
        }
        world.now += SLOW_AFTER;
        world.handle(Event::Tick);
    }
    panic!("{left:?} are missing");
}

/// Plays until the fetch is done: `honest` has everything and answers at once; the others say that they have so many parts, where
/// they open at all, and never deliver.
fn ends_with_one_honest(mut world: World, honest: ProviderId, parts_of_others: Option<u32>) {
    world.handle(Event::Tick);
    for _ in 0..1000 {
        for action in std::mem::take(&mut world.actions) {
            match action {
                Action::Open(provider) if provider == honest => drop(world.open(provider, 1..=PARTS)),
                Action::Open(provider) => drop(parts_of_others.map(|parts| world.open(provider, 1..=parts))),
                Action::Ask(provider, part)
                    if provider == honest && done(&world.handle(Event::Good { provider, part })) =>
                {
                    return;
                }
                _ => {}
            }
        }
        world.now += Duration::from_secs(1);
        world.handle(Event::Tick);
    }
    let Fetch { waiting, asked, .. } = &world.fetch;
    panic!("provider {honest} is kept out: {waiting:?} wait, {:?} are asked", asked.keys());
}

#[test]
fn two_that_take_turns_and_deliver_nothing_do_not_keep_an_honest_one_out() {
    for honest in 0..3 {
        for parts_of_others in [None, Some(0), Some(PARTS)] {
            ends_with_one_honest(World::with_buffers(3, 1), honest, parts_of_others);
        }
    }
}

#[test]
fn a_part_that_two_keep_back_is_requested_from_a_third() {
    for honest in 0..3 {
        ends_with_one_honest(World::new(3), honest, Some(1));
    }
}

#[test]
fn a_provider_that_has_nothing_that_is_missing_gives_its_place_to_one_that_waits() {
    let mut world = World::with_buffers(3, 3);
    world.handle(Event::Tick);
    assert_eq!(std::mem::take(&mut world.actions), [Action::Open(0), Action::Open(1)]);
    world.open(0, 1..=PARTS);
    world.actions.clear();
    // It holds its place while it may be of use, however little it has.
    world.open(1, 1..=1);
    assert_eq!(world.actions, [], "the part may still be asked of it");
    world.handle(Event::Lacks { provider: 1, part: part(1) });
    world.handle(Event::Tick);
    assert_eq!(world.actions, [Action::Close(1), Action::Open(2)]);
}

#[test]
fn parts_arrive_even_where_every_provider_is_slow() {
    let takes = 5 * PATIENCE;
    let mut world = World::new(PROVIDERS + 1);
    world.handle(Event::Tick);
    let mut since = BTreeMap::new();
    for _ in 0..3600 {
        for action in std::mem::take(&mut world.actions) {
            match action {
                Action::Open(provider) => {
                    world.open(provider, 1..=PARTS);
                }
                Action::Close(provider) => since.retain(|(of, _), _| *of != provider),
                Action::Ask(provider, part) => drop(since.insert((provider, part), world.now)),
            }
        }
        let arrived = since.iter().find(|(_, at)| world.now.since(**at) >= takes).map(|(which, _)| *which);
        if let Some((provider, part)) = arrived {
            since.remove(&(provider, part));
            if done(&world.handle(Event::Good { provider, part })) {
                return;
            }
        }
        world.now += Duration::from_secs(1);
        world.handle(Event::Tick);
    }
    panic!("the fetch does not end");
}
