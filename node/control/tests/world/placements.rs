//! What single disturbances lead to in placement: who computes which layers of model 1, and how often that changes.

use pangea_control::placement::{PlacedStage, Placement, pool_facts, preview};

use crate::checks;
use crate::node::digest;
use crate::scenario::{SECOND, Scenario};
use crate::world::World;

fn seeds() -> u64 {
    if cfg!(debug_assertions) { 2 } else { 60 }
}

/// Equal nodes that share model 1 among all of them, settled.
fn split_world(seed: u64, count: usize) -> World {
    let mut world = World::new(Scenario::quiet(seed, count), false);
    settle(&mut world);
    world
}

/// Half a minute without a disturbance, after which everything is placed.
fn settle(world: &mut World) {
    world.run_for(30 * SECOND).unwrap();
    assert!(checks::all_placed(world), "seed {}: {:?}", world.scenario.seed, newest(world));
}

/// The newest placement of model 1, as a node that runs sees it.
fn newest(world: &World) -> Option<Placement> {
    let run = world.nodes.iter().find_map(|node| node.run.as_ref())?;
    let placements = pool_facts::placements(&run.view(world.now)).unwrap_or_default();
    placements.into_iter().filter(|placement| placement.model == digest(1)).max_by_key(|placement| placement.epoch)
}

fn stages(world: &World) -> Vec<PlacedStage> {
    newest(world).map_or_else(Vec::new, |placement| placement.stages)
}

fn epoch(world: &World) -> u64 {
    newest(world).map_or(0, |placement| placement.epoch)
}

/// How many placements of model 1 there have been.
fn count(world: &World) -> usize {
    world.checks.placements_of(digest(1))
}

/// What the master of a node says of why model 1 has no placement.
fn refusal(world: &World, node: usize) -> Option<String> {
    pool_facts::refusal(&world.nodes[node].run.as_ref().unwrap().view(world.now), &digest(1))
}

/// Tenths of a second until something holds.
fn tenths_until(world: &mut World, limit: u32, holds: impl Fn(&World) -> bool) -> u32 {
    let mut tenths = 0;
    while !holds(world) {
        world.run_for(SECOND / 10).unwrap();
        tenths += 1;
        assert!(tenths <= limit, "seed {}: not within {limit} tenths of a second", world.scenario.seed);
    }
    tenths
}

#[test]
fn a_dead_stage_is_replaced_within_a_second_and_a_returned_node_is_used_again() {
    for seed in 0..seeds() {
        let count = 3 + seed as usize % 3;
        let mut world = split_world(seed, count);
        assert_eq!(stages(&world).len(), count, "seed {seed}: all take part");
        let before = epoch(&world);
        // Not the master, whose succession takes seconds of its own, and not the only node with the file.
        let master = checks::one_master(&world).unwrap().unwrap().master;
        let victim = (1..count).find(|node| world.nodes[*node].peer != master).unwrap();
        world.crash(victim, false);
        let gone = world.nodes[victim].peer;
        let unused = |world: &World| epoch(world) > before && stages(world).iter().all(|stage| stage.peer != gone);
        tenths_until(&mut world, 10, unused);
        settle(&mut world);
        assert_eq!(stages(&world).len(), count - 1, "seed {seed}");
        world.start(victim).unwrap();
        let took = tenths_until(&mut world, 60, |world| stages(world).len() == count);
        assert!(took > 25, "seed {seed}: not before it is known to stay");
        settle(&mut world);
        assert_eq!(stages(&world).len(), count, "seed {seed}");
    }
}

#[test]
fn a_model_that_those_left_cannot_hold_is_refused_for_all_to_hear_until_another_comes() {
    for seed in 0..seeds() {
        let mut scenario = Scenario::quiet(seed, 3);
        // Two of them suffice, one does not.
        scenario.nodes.iter_mut().for_each(|node| node.memory_bytes = 200 << 20);
        let mut world = World::new(scenario, false);
        settle(&mut world);
        world.crash(1, false);
        world.crash(2, false);
        world.run_for(6 * SECOND).unwrap();
        let why = refusal(&world, 0);
        assert!(why.as_ref().is_some_and(|why| why.contains("missing")), "seed {seed}: {why:?}");
        assert_eq!(newest(&world), None);
        world.start(1).unwrap();
        tenths_until(&mut world, 60, |world| newest(world).is_some());
        assert_eq!(refusal(&world, 0), None, "seed {seed}");
    }
}

#[test]
fn a_model_whose_last_file_went_with_its_node_is_placed_nowhere_at_once_and_again_when_the_node_returns() {
    for seed in 0..seeds() {
        let mut scenario = Scenario::quiet(seed, 3);
        // The master stays, and the only node with the file has layers of its own.
        scenario.nodes[1].force_master = true;
        let mut world = World::new(scenario, false);
        settle(&mut world);
        assert!(stages(&world).iter().any(|stage| stage.peer == world.nodes[0].peer), "seed {seed}");
        world.crash(0, false);
        tenths_until(&mut world, 10, |world| newest(world).is_none() && refusal(world, 2).is_some());
        // While the file counted as there, other nodes may have been looked for.
        let before = count(&world);
        let why = refusal(&world, 2).unwrap();
        assert!(
            why.contains("no node that is here has the model's weights: model1 was on node-"),
            "seed {seed}: {why}"
        );
        world.run_for(20 * SECOND).unwrap();
        assert_eq!((newest(&world), count(&world)), (None, before), "seed {seed}: nobody looks for nodes for it");
        world.start(0).unwrap();
        tenths_until(&mut world, 80, |world| newest(world).is_some());
        assert_eq!(refusal(&world, 2), None, "seed {seed}");
        settle(&mut world);
        assert_eq!(stages(&world).len(), 3, "seed {seed}");
    }
}

#[test]
fn nodes_that_have_loaded_all_layers_go_on_without_the_file() {
    for seed in 0..seeds() {
        let mut scenario = Scenario::quiet(seed, 3);
        // The node with the file has no memory for a layer.
        (scenario.nodes[0].memory_bytes, scenario.nodes[1].force_master) = (1 << 20, true);
        let mut world = World::new(scenario, false);
        settle(&mut world);
        let before = newest(&world).unwrap();
        assert_eq!(before.stages.len(), 2, "seed {seed}");
        world.crash(0, false);
        for _ in 0..10 {
            settle(&mut world);
            assert_eq!(newest(&world), Some(before.clone()), "seed {seed}: nothing happens to it");
        }
        // A chain that broke is placed again on the same layers.
        for node in 1..3 {
            world.break_chains(node).unwrap();
        }
        tenths_until(&mut world, 20, |world| epoch(world) > before.epoch);
        settle(&mut world);
        assert_eq!(stages(&world), before.stages, "seed {seed}");
        world.start(0).unwrap();
        settle(&mut world);
        assert_eq!(stages(&world), before.stages, "seed {seed}");
        // One that has lost its layers cannot fetch them again.
        world.crash(0, false);
        // Loaders of the world need nobody to fetch from: none may begin while the file still counts as there.
        world.run_for(SECOND).unwrap();
        world.crash(2, false);
        tenths_until(&mut world, 80, |world| newest(world).is_none() && refusal(world, 1).is_some());
        world.start(2).unwrap();
        world.run_for(20 * SECOND).unwrap();
        assert_eq!(newest(&world), None, "seed {seed}");
    }
}

#[test]
fn a_chain_that_broke_among_living_nodes_is_placed_again_on_the_same_ones() {
    for seed in 0..seeds() {
        let mut world = split_world(seed, 2 + seed as usize % 3);
        let mut before = newest(&world).unwrap();
        let mut took = Vec::new();
        for _ in 0..6 {
            for node in 0..world.nodes.len() {
                world.break_chains(node).unwrap();
            }
            let replaced = |world: &World| epoch(world) > before.epoch && checks::all_placed(world);
            took.push(tenths_until(&mut world, 100, replaced));
            let again = newest(&world).unwrap();
            // Nobody is at fault: nobody is excluded, and nothing is loaded again.
            assert_eq!(again.stages, before.stages, "seed {seed}");
            before = again;
        }
        assert!(took[0] <= 8, "seed {seed}: the first time within a second: {took:?}");
        assert!(took[5] > 3 * took[0], "seed {seed}: one that always breaks is not placed all the time: {took:?}");
    }
}

#[test]
fn nodes_between_which_chains_go_on_breaking_are_excluded_for_a_while_where_others_suffice() {
    for seed in 0..seeds() {
        let mut world = split_world(seed, 4);
        let culprits = [2, 3];
        let peers = culprits.map(|node| world.nodes[node].peer);
        let used = |world: &World| stages(world).iter().filter(|stage| peers.contains(&stage.peer)).count();
        assert_eq!(used(&world), 2, "seed {seed}");
        for _ in 0..3 {
            for node in culprits {
                world.break_chains(node).unwrap();
            }
            world.run_for(3 * SECOND).unwrap();
        }
        world.run_for(3 * SECOND).unwrap();
        assert!(checks::all_placed(&world), "seed {seed}");
        assert_eq!(used(&world), 0, "seed {seed}");
        world.run_for(90 * SECOND).unwrap();
        assert_eq!(used(&world), 2, "seed {seed}: not for ever");
    }
}

#[test]
fn nodes_that_join_one_after_another_make_few_placements_and_one_that_comes_and_goes_makes_no_more() {
    for seed in 0..seeds() {
        let mut scenario = Scenario::quiet(seed, 5);
        (2..5).for_each(|node| scenario.nodes[node].starts_at = (31 + node as u64 * 2) * SECOND);
        let mut world = World::new(scenario, false);
        settle(&mut world);
        let before = count(&world);
        settle(&mut world);
        assert_eq!((count(&world), stages(&world).len()), (before + 1, 5), "seed {seed}: one for all that joined");
        // Dies, and comes back for four seconds, again and again.
        let before = count(&world);
        for _ in 0..10 {
            world.crash(4, false);
            world.run_for(2 * SECOND).unwrap();
            world.start(4).unwrap();
            world.run_for(4 * SECOND).unwrap();
        }
        assert!(count(&world) <= before + 4, "seed {seed}: {} placements", count(&world) - before);
        settle(&mut world);
        assert_eq!(stages(&world).len(), 5, "seed {seed}: it is used once it stays");
    }
}

#[test]
fn a_preview_shows_what_would_be_and_what_is() {
    let world = split_world(3, 3);
    let view = world.nodes[0].run.as_ref().unwrap().view(world.now);
    let placement = newest(&world).unwrap();
    let plan = preview(&view, &placement.name).unwrap();
    let current = plan.current.unwrap();
    assert_eq!((plan.ready, plan.epoch), (true, placement.epoch));
    assert!(current.stages.iter().map(|(stage, _)| stage).eq(&placement.stages));
    assert!(current.prediction.unwrap().decode_tokens_per_s() > 0.0);
    assert!(plan.best.unwrap().prediction.unwrap().prompt_tokens_per_s() > 0.0);
    assert!(!plan.reason.is_empty());
    assert_eq!(preview(&view, "nobody").unwrap_err().kind(), pangea_units::ErrorKind::NotFound);
    assert!(preview(&view, "").is_ok(), "the only model needs no name");
}
