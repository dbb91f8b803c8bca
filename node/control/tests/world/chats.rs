//! What single disturbances lead to in answers: chains that lose a stage, coordinators that die, links that break, memory that
//! is short. Whatever happens, `checks` compares every token with that of a node that nothing disturbs.

use pangea_control::placement::pool_facts;
use pangea_units::ErrorKind;

use crate::deviations::{Deviation, Deviations};
use crate::scenario::{ChatSpec, SECOND, Scenario};
use crate::world::World;
use crate::{chat_checks, checks};

fn seeds() -> u64 {
    if cfg!(debug_assertions) { 2 } else { 40 }
}

/// Equal nodes that share model 1 among all of them, settled.
fn split_world(seed: u64, count: usize) -> World {
    let mut world = World::new(Scenario::quiet(seed, count), false);
    world.run_for(30 * SECOND).unwrap();
    assert!(checks::all_placed(&world), "seed {seed}");
    world
}

/// A chat that takes a while, with two answers.
fn long(node: usize, seed: u64) -> ChatSpec {
    // Of the first seeds whose answers do not end at once.
    let long = |seed: &u64| {
        let chat = ChatSpec { max_new_tokens: 80, choices: 2, ..ChatSpec::new(node, *seed) };
        (0..2).all(|choice| crate::pseudo_model::undisturbed(24, seed + choice, &chat.prompt(), 80).len() > 40)
    };
    let seed = (seed * 1_000..).find(long).unwrap();
    ChatSpec { max_new_tokens: 80, choices: 2, ..ChatSpec::new(node, seed) }
}

/// Asks, and lets some tokens come.
fn begun(world: &mut World, chat: ChatSpec) -> usize {
    let number = world.ask_after(0, chat);
    while world.checks.chat_given(number) < 10 {
        world.run_for(SECOND / 100).unwrap();
        assert!(world.checks.is_chat_open(number), "{:?}", world.checks.chat_outcome(number));
    }
    number
}

/// The answers come to their end, and nothing is left of them.
fn ends_well(world: &mut World, number: usize) {
    for _ in 0..90 {
        world.run_for(SECOND).unwrap();
    }
    assert_eq!(world.checks.chat_outcome(number), Some(Ok(())), "seed {}", world.scenario.seed);
    chat_checks::sessions_are_over(world, true).unwrap();
}

fn failovers(world: &World) -> u64 {
    world.checks.counts.of("failovers")
}

#[test]
fn an_answer_whose_stage_dies_goes_on_elsewhere_token_by_token() {
    for seed in 0..seeds() {
        let mut world = split_world(seed, 4);
        let number = begun(&mut world, long(0, seed));
        let master = checks::one_master(&world).unwrap().unwrap().master;
        // Neither the coordinator nor the only node with the file; a master's succession takes seconds of its own.
        let victim = (1..4).find(|node| world.nodes[*node].peer != master).unwrap();
        world.crash(victim, seed % 2 == 0);
        ends_well(&mut world, number);
        assert!(failovers(&world) > 0, "seed {seed}");
    }
}

#[test]
fn the_sessions_of_a_coordinator_that_died_are_freed_at_every_stage() {
    for seed in 0..seeds() {
        let mut world = split_world(seed, 4);
        let number = begun(&mut world, long(3, seed));
        let open = |world: &World| -> usize {
            let stages = world.nodes.iter().filter_map(|node| node.run.as_ref()).flat_map(|run| run.stages.values());
            stages.map(|stage| stage.protocol.sessions()).sum()
        };
        assert!(open(&world) > 0, "seed {seed}");
        world.crash(3, seed % 2 == 0);
        world.run_for(20 * SECOND).unwrap();
        assert_eq!((open(&world), world.checks.chat_outcome(number)), (0, None), "seed {seed}");
        chat_checks::sessions_are_over(&world, true).unwrap();
    }
}

#[test]
fn an_answer_whose_streams_break_goes_on_over_new_ones() {
    for seed in 0..seeds() {
        let mut world = split_world(seed, 3);
        let number = begun(&mut world, long(0, seed));
        for (a, b) in [(0, 1), (1, 2), (0, 2)] {
            world.break_streams(a, b);
        }
        ends_well(&mut world, number);
        assert!(failovers(&world) > 0, "seed {seed}");
    }
}

#[test]
fn an_answer_whose_stages_panic_goes_on_with_the_same_layers() {
    for seed in 0..seeds() {
        let mut world = split_world(seed, 3);
        let number = begun(&mut world, long(0, seed));
        let loads = world.checks.counts.of("loads");
        world.break_chains(1).unwrap();
        ends_well(&mut world, number);
        assert!(failovers(&world) > 0, "seed {seed}");
        assert_eq!(world.checks.counts.of("loads"), loads, "seed {seed}: nobody is at fault");
    }
}

#[test]
fn answers_get_through_while_passes_find_no_memory_now_and_then() {
    let mut answered = 0;
    for seed in 0..seeds() {
        let mut world = split_world(seed, 3);
        world.memory_short_one_in = 60;
        let ask = |at: usize| (at as u64 * SECOND, long(at % 3, seed + at as u64));
        let numbers: Vec<usize> = (0..4).map(ask).map(|(after, chat)| world.ask_after(after, chat)).collect();
        world.run_for(60 * SECOND).unwrap();
        world.memory_short_one_in = 0;
        world.run_for(90 * SECOND).unwrap();
        for number in numbers {
            let outcome = world.checks.chat_outcome(number);
            // One that has given nothing yet is refused, so that its client comes again.
            let clear = matches!(outcome, Some(Ok(()) | Err(ErrorKind::Overloaded)));
            assert!(clear, "seed {seed}: {outcome:?}");
            answered += usize::from(outcome == Some(Ok(())));
        }
        chat_checks::sessions_are_over(&world, true).unwrap();
    }
    assert!(answered as u64 > seeds(), "only {answered} of {}", 4 * seeds());
}

#[test]
fn an_answer_that_nobody_wants_any_more_leaves_nothing_behind() {
    for seed in 0..seeds() {
        let mut world = split_world(seed, 3);
        let number = begun(&mut world, long(1, seed));
        world.hang_up(number).unwrap();
        world.run_for(10 * SECOND).unwrap();
        assert_eq!(world.checks.chat_outcome(number), Some(Err(ErrorKind::Cancelled)), "seed {seed}");
        chat_checks::sessions_are_over(&world, true).unwrap();
    }
}

#[test]
fn a_request_that_other_nodes_can_no_longer_serve_is_taken_by_the_owner_of_the_file_alone() {
    for seed in 0..seeds() {
        let mut world = split_world(seed, 3);
        let number = begun(&mut world, long(0, seed));
        world.part();
        ends_well(&mut world, number);
    }
}

#[test]
fn a_node_that_drains_ends_after_its_last_answer() {
    for seed in 0..seeds() {
        let mut world = split_world(seed, 3);
        let number = begun(&mut world, long(2, seed));
        world.drain(2, 120 * SECOND).unwrap();
        while world.nodes[2].run.is_some() {
            world.run_for(SECOND / 10).unwrap();
        }
        assert_eq!(world.checks.chat_outcome(number), Some(Ok(())), "seed {seed}");
    }
}

/// The nodes that have layers of the only model, as the first node sees it.
fn stages(world: &World) -> Vec<usize> {
    let view = world.nodes[0].run.as_ref().unwrap().view(world.now);
    let placements = pool_facts::placements(&view).unwrap();
    placements.last().unwrap().stages.iter().map(|stage| world.index_of(&stage.peer)).collect()
}

/// Every answer moved to another chain after seconds, and the next one waited again.
#[test]
fn a_first_stage_that_holds_every_first_token_back_loses_its_place() {
    let mut held_back = 0;
    for seed in 0..seeds() {
        let mut scenario = Scenario::quiet(seed, 4);
        // Answers move to where the file is; the first node decides who gets layers.
        scenario.nodes[0].force_master = true;
        scenario.nodes.iter_mut().for_each(|node| node.models = vec![1]);
        let mut world = World::new(scenario, false);
        world.run_for(30 * SECOND).unwrap();
        assert!(checks::all_placed(&world), "seed {seed}");
        let first = stages(&world)[0];
        if first == 0 {
            continue;
        }
        held_back += 1;
        world.nodes[first].spec.deviations = Deviations::only(Deviation::HoldsFirstTokens, 1);
        for round in 0..8 {
            let number = world.ask_after(0, ChatSpec::new(0, seed * 100 + round));
            world.run_for(20 * SECOND).unwrap();
            assert_eq!(world.checks.chat_outcome(number), Some(Ok(())), "seed {seed}, chat {round}");
        }
        assert!(!stages(&world).contains(&first), "seed {seed}: {first} of {:?}", stages(&world));
        let before = failovers(&world);
        let number = world.ask_after(0, ChatSpec::new(0, seed * 100 + 50));
        world.run_for(5 * SECOND).unwrap();
        assert_eq!(world.checks.chat_outcome(number), Some(Ok(())), "seed {seed}");
        assert_eq!(failovers(&world), before, "seed {seed}: nobody waits any more");
        let run = world.nodes[0].run.as_ref().unwrap();
        assert!(run.directory.is_suspect(&world.nodes[first].peer, run.time(world.now)), "seed {seed}");
        assert!(run.directory.may_compute(&world.nodes[first].peer), "seed {seed}: it proved nothing");
    }
    assert!(held_back > 0);
}
