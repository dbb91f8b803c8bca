//! The simulated world: whole control planes over one seeded network, with virtual time and storage. Nodes crash and come
//! back, connections break, adverts are lost, doubled and late, loads fail, disks are slow, workers lie; products and models
//! are asked for all the while. Whatever happened, what `checks` says must hold.
//!
//! | file | owns |
//! |---|---|
//! | `scenario` | what happens when, from a seed |
//! | `world` | the network, the queue of events |
//! | `node`, `product`, `model` | nodes, composed of the types that the binary drives |
//! | `checks` | what must hold; the log |
//! | `pools`, `placements` | what single disturbances lead to |
//!
//! `PANGEA_SEED=N` plays one seed and prints its log, `PANGEA_SEEDS=N` plays that many. A seed that fails is made smaller
//! until nothing can be left out of it.

#![expect(clippy::unwrap_used, reason = "a test may stop at the first thing that is not as it should be")]

mod checks;
mod model;
mod node;
mod placements;
mod pools;
mod product;
mod scenario;
mod world;

use checks::{Broken, Counts};
use scenario::{Micros, SECOND, Scenario};
use world::World;

/// When the disorder of a scenario is over.
const DISORDER_ENDS: Micros = 36 * SECOND;

/// One master within this of the last disturbance.
const QUIET: Micros = 5 * SECOND;

/// A node that failed to load is excluded for half a minute, a minute the second time, at most ten minutes.
const PLACED_WITHIN: Micros = 1_500 * SECOND;

/// Seven of the largest products on one slow node take less.
const JOBS_END_WITHIN: Micros = 600 * SECOND;

/// Plays a scenario to its end: disorder, then quiet.
fn play(scenario: Scenario, log: bool) -> (World, Result<(), Broken>) {
    let mut world = World::new(scenario, log);
    let result = play_in(&mut world);
    (world, result)
}

fn play_in(world: &mut World) -> Result<(), Broken> {
    world.run_until(DISORDER_ENDS)?;
    world.calm();
    world.run_for(QUIET)?;
    let term = checks::one_master(world)?;
    let from = world.now;
    while !checks::all_placed(world) {
        if world.now > from + PLACED_WITHIN {
            return Err(Broken::new(world.now, "a model that fits is not placed"));
        }
        world.run_for(SECOND)?;
    }
    // Long enough for a mastership that would not last.
    world.run_until(world.now.max(from + 20 * SECOND))?;
    while let Err(broken) = world.checks.all_ended(world.now) {
        if world.now > from + JOBS_END_WITHIN {
            return Err(broken);
        }
        world.run_for(SECOND)?;
    }
    let later = checks::one_master(world)?;
    if later != term {
        return Err(Broken::new(world.now, format!("the mastership changed in quiet: {term:?}, {later:?}")));
    }
    Ok(())
}

/// Leaves out of a failing scenario whatever can be left out.
fn shrink(mut scenario: Scenario) -> Scenario {
    loop {
        let smaller = scenario.smaller().find(|smaller| play(smaller.clone(), false).1.is_err());
        match smaller {
            Some(smaller) => scenario = smaller,
            None => return scenario,
        }
    }
}

fn fail(seed: u64, broken: &Broken) -> ! {
    let small = shrink(Scenario::of(seed));
    let (world, again) = play(small.clone(), true);
    let log = world.checks.lines();
    let tail = log.iter().skip(log.len().saturating_sub(60)).map(|line| format!("{line}\n")).collect::<String>();
    panic!("seed {seed}: {broken}\nmade smaller: {again:?}\n{small:#?}\n{tail}");
}

fn number(name: &str) -> Option<u64> {
    #[expect(clippy::disallowed_methods, reason = "whoever runs the test says which seeds")]
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn whatever_happens_every_promise_holds() {
    if let Some(seed) = number("PANGEA_SEED") {
        let (world, result) = play(Scenario::of(seed), true);
        world.checks.lines().iter().for_each(|line| println!("{line}"));
        println!("digest {:016x}", world.checks.digest());
        result.unwrap_or_else(|broken| panic!("seed {seed}: {broken}"));
        return;
    }
    let seeds = number("PANGEA_SEEDS").unwrap_or(if cfg!(debug_assertions) { 12 } else { 4000 });
    let mut counts = Counts::default();
    for seed in 0..seeds {
        let (world, result) = play(Scenario::of(seed), false);
        counts.merge(&world.checks.counts);
        result.unwrap_or_else(|broken| fail(seed, &broken));
    }
    println!("{counts:?}");
    for what in [
        "crashes",
        "starts",
        "splits",
        "cuts",
        "heals",
        "losses",
        "load failures",
        "broken chains",
        "slow disks",
        "full disks",
        "slow nodes",
        "terms",
        "placements",
        "loads",
        "jobs",
        "finished jobs",
        "failed jobs",
        "quarantines",
    ] {
        let count = counts.0.get(what).copied().unwrap_or(0);
        assert!(count >= seeds / 20, "only {count} times {what}: the worlds are too kind");
    }
}

#[test]
fn a_seed_gives_the_same_run_to_the_byte() {
    for seed in 0..5 {
        let digest = |log| play(Scenario::of(seed), log).0.checks.digest();
        assert_eq!(digest(false), digest(true), "seed {seed}");
    }
}
