//! What single disturbances lead to: elections and placements.

use pangea_control::pool::Term;

use crate::QUIET;
use crate::checks::{self, Broken};
use crate::scenario::{NodeSpec, SECOND, Scenario};
use crate::world::World;

fn index(world: &World, term: Term) -> usize {
    world.nodes.iter().position(|node| node.peer == term.master).unwrap()
}

/// One master after some quiet, and still the same after some more.
fn agree(world: &mut World) -> Term {
    let agreed = |world: &mut World| -> Result<Term, Broken> {
        world.run_for(QUIET)?;
        let term = checks::one_master(world)?.unwrap();
        world.run_for(QUIET)?;
        assert_eq!(checks::one_master(world)?, Some(term), "the mastership changed in quiet");
        Ok(term)
    };
    let seed = world.scenario.seed;
    agreed(world).unwrap_or_else(|broken| panic!("seed {seed}: {broken}"))
}

/// The node that all agree on.
fn leader(world: &mut World) -> usize {
    let term = agree(world);
    index(world, term)
}

/// A world in which nothing starts by itself.
fn pool(seed: u64, count: usize, change: impl Fn(usize, &mut NodeSpec)) -> World {
    let mut scenario = Scenario::quiet(seed, count);
    for (at, node) in scenario.nodes.iter_mut().enumerate() {
        node.starts_at = u64::MAX / 2;
        node.models.clear();
        change(at, node);
    }
    World::new(scenario, false)
}

fn seeds() -> u64 {
    if cfg!(debug_assertions) { 5 } else { 300 }
}

#[test]
fn of_nodes_that_start_within_seconds_one_becomes_the_master_and_stays_it() {
    for seed in 0..seeds() {
        let mut world = pool(seed, 3, |_, _| {});
        for node in 0..3 {
            world.start(node).unwrap();
            // Longer than an advert takes at most: a claim is heard before the next node may claim.
            let later = world.chance.within(SECOND / 2..SECOND);
            world.run_for(later).unwrap();
        }
        agree(&mut world);
        assert_eq!(world.checks.masters.len(), 1, "seed {seed}: no other one ever was");
    }
}

#[test]
fn newcomers_accept_the_master_that_is_there() {
    for seed in 0..seeds() {
        let mut world = pool(seed, 5, |_, _| {});
        world.start(0).unwrap();
        world.start(1).unwrap();
        let term = agree(&mut world);
        // One was the master of a later term in another life.
        world.nodes[4].disk.term = Some(Term { counter: 40, master: world.nodes[4].peer });
        for node in 2..5 {
            world.start(node).unwrap();
            let later = world.chance.below(3 * SECOND);
            world.run_for(later).unwrap();
        }
        let now = agree(&mut world);
        assert_eq!(now.master, term.master, "seed {seed}");
        assert!(now.counter > 40, "seed {seed}: the newcomer has lived under {now:?}");
    }
}

#[test]
fn a_node_started_to_be_the_master_takes_over_and_two_such_do_not_fight() {
    for seed in 0..seeds() {
        let mut world = pool(seed, 4, |at, node| node.force_master = at >= 2);
        world.start(0).unwrap();
        world.start(1).unwrap();
        agree(&mut world);
        world.start(2).unwrap();
        assert_eq!(agree(&mut world).master, world.nodes[2].peer, "seed {seed}");
        world.start(3).unwrap();
        assert_eq!(agree(&mut world).master, world.nodes[2].peer, "seed {seed}");
    }
}

#[test]
fn after_a_split_the_longer_up_master_goes_on_with_a_higher_term() {
    for seed in 0..seeds() {
        let mut world = pool(seed, 4, |_, _| {});
        world.start(0).unwrap();
        world.run_for(10 * SECOND).unwrap();
        (1..4).for_each(|node| world.start(node).unwrap());
        let first = agree(&mut world);
        assert_eq!(index(&world, first), 0);
        for (a, b) in [(0, 2), (0, 3), (1, 2), (1, 3)] {
            world.cut(a, b, true);
        }
        world.run_for(QUIET).unwrap();
        let other = world.nodes[2].run.as_ref().unwrap().terms.announced().unwrap();
        assert!(other.counter > first.counter && other.master != first.master);
        world.heal().unwrap();
        let healed = agree(&mut world);
        assert_eq!((healed.master, healed.counter), (first.master, other.counter + 1), "seed {seed}");
    }
}

#[test]
fn a_connection_that_breaks_while_others_carry_the_gossip_changes_no_master() {
    for seed in 0..seeds() {
        let mut world = pool(seed, 4, |_, _| {});
        (0..4).for_each(|node| world.start(node).unwrap());
        let term = agree(&mut world);
        let (master, other) = (index(&world, term), world.chance.index(4));
        if other != master {
            world.cut(master, other, false);
            assert_eq!(agree(&mut world), term, "seed {seed}");
        }
    }
}

#[test]
fn a_masters_death_leaves_another_one_in_time() {
    for seed in 0..seeds() {
        let mut world = pool(seed, 3, |_, _| {});
        (0..3).for_each(|node| world.start(node).unwrap());
        let term = agree(&mut world);
        let master = index(&world, term);
        world.crash(master, seed % 2 == 0);
        let next = agree(&mut world);
        assert!(next.master != term.master && next.counter > term.counter, "seed {seed}");
    }
}

#[test]
fn a_term_that_the_disk_has_not_taken_yet_is_told_to_nobody() {
    for seed in 0..seeds() {
        let mut world = pool(seed, 2, |_, _| {});
        world.nodes[0].disk.write_takes = 60 * SECOND;
        world.start(0).unwrap();
        world.run_for(20 * SECOND).unwrap();
        let run = world.nodes[0].run.as_ref().unwrap();
        assert!(run.election.term().is_some() && run.terms.announced().is_none());
        world.crash(0, false);
        world.nodes[0].disk.write_takes = 2_000;
        world.start(0).unwrap();
        world.start(1).unwrap();
        assert_eq!(agree(&mut world).counter, 1, "seed {seed}: what was not stored never was");
    }
}

#[test]
fn a_node_whose_disk_is_full_never_leads_and_follows_whoever_does() {
    for seed in 0..seeds() {
        let mut world = pool(seed, 3, |_, _| {});
        // The one that ranks highest: it is up longest.
        world.nodes[0].disk.full = true;
        world.start(0).unwrap();
        world.run_for(15 * SECOND).unwrap();
        assert!(world.checks.masters.is_empty(), "seed {seed}");
        (1..3).for_each(|node| world.start(node).unwrap());
        assert_ne!(leader(&mut world), 0, "seed {seed}");
        // The disk has room again, and the others are gone.
        world.nodes[0].disk.full = false;
        (1..3).for_each(|node| world.crash(node, false));
        assert_eq!(leader(&mut world), 0, "seed {seed}");
    }
}
