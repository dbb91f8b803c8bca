//! Lies without end: one honest node among liars, asked for products and answers that are audited, until every kind of lie was told
//! ten thousand times. `checks` sees to it that none of them is delivered as checked, and that the honest node is believed.

use crate::checks::Counts;
use crate::deviations::{Deviation, Deviations};
use crate::scenario::{ChatSpec, JobSpec, SECOND, Scenario};
use crate::world::World;

/// How often each lie is told.
fn wanted() -> u64 {
    if cfg!(debug_assertions) { 100 } else { 10_000 }
}

/// By then every product that is asked has ended, and every answer.
const END: [u64; 2] = [30 * SECOND, 240 * SECOND];

/// Node 0 is honest and has the model; the others lie in one way.
fn world_of(seed: u64, deviation: Deviation) -> World {
    let mut scenario = Scenario::quiet(seed, 4);
    for node in &mut scenario.nodes[1..] {
        node.deviations = Deviations::only(deviation, 1 + seed % 4);
    }
    if deviation == Deviation::WrongTile {
        scenario.nodes[0].models.clear();
        let job = JobSpec { remote: true, ..JobSpec::product([4096; 3]) };
        scenario.jobs = (0..3).map(|at| (3 * SECOND + at, job.clone())).collect();
    } else {
        let chat = |at: u64| ChatSpec {
            max_new_tokens: 80,
            choices: 2,
            audit: Some(1.0),
            ..ChatSpec::new(0, seed * 100 + at)
        };
        scenario.chats = (0..6).map(|at| ((20 + at) * SECOND, chat(at))).collect();
    }
    World::new(scenario, false)
}

fn tell(deviation: Deviation) -> Counts {
    let mut counts = Counts::default();
    let told = |counts: &Counts| counts.deviations.get(&deviation).map_or(0, |(done, _)| *done);
    let mut seed = 0;
    while told(&counts) < wanted() {
        let mut world = world_of(seed, deviation);
        let end = END[usize::from(deviation != Deviation::WrongTile)];
        let result = world.run_until(end).and_then(|()| {
            world.checks.all_ended(world.now)?;
            world.checks.all_chats_ended(world.now)
        });
        result.unwrap_or_else(|broken| panic!("{deviation:?}, world {seed}: {broken}"));
        counts.merge(&world.checks.counts);
        seed += 1;
        assert!(seed < 20_000, "{deviation:?} was done only {} times", told(&counts));
    }
    println!("{seed} worlds of {deviation:?}:\n{counts}");
    counts
}

#[test]
fn ten_thousand_wrong_tiles_are_never_in_a_product() {
    let counts = tell(Deviation::WrongTile);
    assert!(counts.of("finished jobs") > 0 && counts.of("quarantines") > 0);
}

#[test]
fn ten_thousand_lies_of_stages_are_never_called_audited() {
    for deviation in [Deviation::LiesSigned, Deviation::LiesUnsigned, Deviation::SendsOtherwise] {
        let counts = tell(deviation);
        assert!(counts.of("audited answers") + counts.of("local answers") > 0, "{counts}");
        assert_eq!(counts.of("wrong answers that are called unchecked"), 0);
        assert!(counts.of("quarantines") > 0 || deviation != Deviation::LiesSigned, "{counts}");
    }
}
