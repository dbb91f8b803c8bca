//! Lies without end: one honest node among liars, asked for products and for answers that are audited, until every kind of lie was told
//! ten thousand times. `checks` sees to it that none of them is delivered as checked, and that the honest node is believed.

use std::sync::Mutex;

use crate::checks::{Broken, Counts};
use crate::deviations::{Deviation, Deviations};
use crate::scenario::{ChatSpec, JobSpec, Micros, SECOND, Scenario};
use crate::world::World;

/// How often each lie is told.
pub(crate) fn wanted() -> u64 {
    crate::number("PANGEA_LIES").unwrap_or(if cfg!(debug_assertions) { 20 } else { 10_000 })
}

/// By then the liars share the model, and the honest node is asked for something.
const SETTLED: Micros = 12 * SECOND;

/// By then every product and every answer has ended.
const ENDS_WITHIN: Micros = 240 * SECOND;

/// How often a liar that needs no occasion lies.
const STEP: Micros = SECOND / 5;

/// Node 0 is honest and has the model; the others lie in one way.
fn world_of(seed: u64, deviation: Deviation) -> World {
    // Of those in a chain, only the first that signed twice is found: many tell more than few.
    let nodes = if deviation == Deviation::SignsTwice { 7 } else { 5 };
    let mut scenario = Scenario::quiet(seed, nodes);
    for node in &mut scenario.nodes[1..] {
        node.deviations = Deviations::only(deviation, 1 + seed % 2);
    }
    // Where it computes for nobody, all stages are liars.
    scenario.nodes[0].works = deviation != Deviation::RefusesSession;
    if deviation.is_of_tasks() {
        scenario.nodes[0].models.clear();
        let job = JobSpec { remote: true, ..JobSpec::product([4096; 3]) };
        scenario.jobs = (0..3).map(|at| (3 * SECOND + at, job.clone())).collect();
    } else {
        let chat = |at: u64| ChatSpec {
            max_new_tokens: 40,
            choices: 2,
            audit: Some(1.0),
            ..ChatSpec::new(0, seed * 100 + at)
        };
        // These are noticed at once, and whoever is noticed is asked nothing more: it is asked before.
        let noticed = matches!(deviation, Deviation::SignsOtherwise | Deviation::RefusesSession);
        let apart = if noticed { SECOND / 50 } else { SECOND };
        scenario.chats = (0..12).map(|at| (SETTLED + at * apart, chat(at))).collect();
    }
    World::new(scenario, false)
}

/// Plays a world until all that was asked has ended.
fn play(world: &mut World) -> Result<(), Broken> {
    let asked =
        world.scenario.chats.iter().map(|(at, _)| *at).chain(world.scenario.jobs.iter().map(|(at, _)| *at)).max();
    let ended = |world: &World| {
        world.checks.all_ended(world.now)?;
        world.checks.all_chats_ended(world.now)
    };
    while world.now <= asked.unwrap_or(0) || (ended(world).is_err() && world.now < ENDS_WITHIN) {
        world.run_for(STEP)?;
        (1..world.nodes.len()).try_for_each(|liar| world.deviate(liar))?;
    }
    ended(world)
}

fn tell(deviation: Deviation) {
    let mut counts = Counts::default();
    let told = |counts: &Counts| counts.deviations.get(&deviation).map_or(0, |(done, _)| *done);
    let mut seed = 0;
    while told(&counts) < wanted() {
        let mut world = world_of(seed, deviation);
        play(&mut world).unwrap_or_else(|broken| panic!("{deviation:?}, world {seed}: {broken}"));
        counts.merge(&world.checks.counts);
        seed += 1;
        assert!(seed < 20_000, "{deviation:?} was done only {} times", told(&counts));
    }
    let (done, caught) = counts.deviations[&deviation];
    let of = |what| counts.of(what);
    println!(
        "{done:>7} times {deviation:?}, acted on {caught} times, in {seed} worlds: {} products, {} audited and {} local answers, \
         {} unchecked ones of which {} were wrong, {} failed; {} convictions, of nodes that did it",
        of("finished jobs"),
        of("audited answers"),
        of("local answers"),
        of("unchecked answers"),
        of("wrong answers that are called unchecked"),
        of("failed chats"),
        of("quarantines"),
    );
    assert!(caught > 0, "nobody acts on {deviation:?}");
    assert_eq!(of("wrong answers that are called unchecked"), 0, "{deviation:?}: with `--audit 1`, none is delivered");
    assert!(
        of("finished jobs") + of("audited answers") + of("local answers") > 0,
        "{deviation:?} keeps all from ending"
    );
}

/// Every lie of the catalogue, on as many threads as there are cores; some of them where nothing is optimised.
#[test]
fn ten_thousand_lies_of_every_kind_are_never_delivered_as_checked() {
    let step = if cfg!(debug_assertions) { 5 } else { 1 };
    let kinds = Deviation::ALL.into_iter().filter(|deviation| deviation.is_lie()).step_by(step);
    let kinds = Mutex::new(kinds);
    let tell_some = || {
        while let Some(deviation) = { kinds.lock().unwrap().next() } {
            tell(deviation);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(tell_some))));
}
