//! What single situations lead to in products: how long they take, who computes them, what a straggler or a liar costs. The
//! nodes are whole ones, and have had the time to connect and to measure one another.

use pangea_control::schedule::TaskCounts;
use pangea_units::SplitMix64;

use crate::deviations::{Deviation, Deviations};
use crate::job_checks::Outcome;
use crate::scenario::{Disturbance, JobSpec, LinkSpec, Micros, NodeSpec, SECOND, Scenario};
use crate::world::World;

/// By then the nodes are connected and have measured one another.
const SETTLED: Micros = 2 * SECOND;

/// 100 µs, as in one room.
const NEAR: Micros = 100;

fn seeds(release: u64) -> u64 {
    if cfg!(debug_assertions) { release / 20 } else { release }
}

fn peer(flops_per_s: f64, bytes_per_s: f64) -> NodeSpec {
    NodeSpec::honest(flops_per_s, LinkSpec { bytes_per_s, rtt: NEAR })
}

/// This node, whose link is never what slows a transfer.
fn local(flops_per_s: f64) -> NodeSpec {
    peer(flops_per_s, 1e12)
}

fn cube(side: u64) -> JobSpec {
    JobSpec::product([side, side, side])
}

/// The first node is asked for these at once.
fn scenario(nodes: Vec<NodeSpec>, jobs: Vec<JobSpec>) -> Scenario {
    let jobs = jobs.into_iter().map(|job| (SETTLED, job)).collect();
    Scenario { seed: 1, nodes, disturbances: Vec::new(), jobs, chats: Vec::new(), split: false }
}

/// Plays until every job has ended.
fn play(scenario: Scenario) -> World {
    let seed = scenario.seed;
    let last = scenario.jobs.iter().map(|(at, _)| *at).max().unwrap_or(0);
    let mut world = World::new(scenario, false);
    let mut play = || {
        world.run_until(last + 1)?;
        while world.checks.all_ended(world.now).is_err() {
            if world.now > last + 1_000 * SECOND {
                return world.checks.all_ended(world.now);
            }
            world.run_for(SECOND)?;
        }
        Ok(())
    };
    play().unwrap_or_else(|broken| panic!("seed {seed}: {broken}"));
    world
}

fn outcome(world: &World, job: usize) -> Outcome {
    world.checks.jobs.outcomes[&job].clone()
}

/// The first job, which does not fail.
fn first(scenario: Scenario) -> Outcome {
    let outcome = outcome(&play(scenario), 0);
    assert_eq!(outcome.failure, None);
    outcome
}

fn tasks(outcome: &Outcome) -> TaskCounts {
    outcome.report.tasks
}

impl Outcome {
    fn seconds(&self) -> f64 {
        (self.between.1 - self.between.0) as f64 / 1e6
    }
}

fn flops(job: &JobSpec) -> f64 {
    2.0 * job.shape.iter().map(|side| *side as f64).product::<f64>()
}

/// What the first job takes on the first node.
fn alone_s(scenario: &Scenario) -> f64 {
    50e-6 + flops(&scenario.jobs[0].1) / scenario.nodes[0].flops_per_s
}

/// As if the work could be divided at will and moved for nothing.
fn ideal_s(scenario: &Scenario) -> f64 {
    flops(&scenario.jobs[0].1) / scenario.nodes.iter().map(|node| node.flops_per_s).sum::<f64>()
}

/// A world of honest workers that are as fast as they say.
fn honest(seed: u64) -> Scenario {
    let chance = &mut SplitMix64::new(seed);
    let mut nodes = vec![local(chance.scale(10e9, 400e9))];
    for _ in 0..1 + chance.below(5) {
        let mut peer = peer(chance.scale(10e9, 400e9), chance.scale(5e6, 5e9));
        peer.link.rtt = chance.scale(50.0, 20_000.0) as Micros;
        peer.jitter = 0.03;
        nodes.push(peer);
    }
    let side = |chance: &mut SplitMix64| chance.scale(64.0, 8000.0) as u64;
    let job = JobSpec::product([side(chance), side(chance), side(chance)]);
    Scenario { seed, ..scenario(nodes, vec![job]) }
}

#[test]
fn two_equal_nodes_are_nearly_twice_as_fast_on_a_fast_link() {
    let scenario = scenario(vec![local(100e9), peer(100e9, 1.1e9)], vec![cube(4096)]);
    let seconds = first(scenario).seconds();
    assert!(seconds <= 0.75, "{seconds} s; alone 1.37 s");
}

#[test]
fn a_gigabit_link_gets_only_work_that_finishes_sooner() {
    for (n, at_most) in [(256, 1.01), (512, 1.01), (1024, 1.03), (2048, 0.95), (4096, 0.70), (8192, 0.60)] {
        let scenario = scenario(vec![local(100e9), peer(100e9, 110e6)], vec![cube(n)]);
        let alone = alone_s(&scenario);
        let seconds = first(scenario).seconds();
        assert!(seconds <= at_most * alone, "n = {n}: {seconds} s, alone {alone} s");
    }
}

#[test]
fn honest_peers_never_make_a_job_slower_than_alone() {
    for seed in 0..seeds(2000) {
        let scenario = honest(seed);
        let alone = alone_s(&scenario);
        let outcome = first(scenario);
        let seconds = outcome.seconds();
        // A check that cannot decide costs its tile, whoever computed it.
        let is_decided = tasks(&outcome).retried == 0;
        assert!(!is_decided || seconds <= 1.1 * alone + 0.001, "seed {seed}: {seconds} s, alone {alone} s");
    }
}

#[test]
fn fast_links_approach_the_sum_of_all_workers() {
    let mut ratios = Vec::new();
    for seed in 0..seeds(5000) {
        let mut scenario = honest(seed);
        for peer in &mut scenario.nodes[1..] {
            peer.link = LinkSpec { bytes_per_s: 5e9, rtt: NEAR };
        }
        let ideal = ideal_s(&scenario);
        if ideal >= 0.1 && scenario.jobs[0].1.shape.iter().all(|side| *side >= 1000) {
            let ratio = first(scenario).seconds() / ideal;
            assert!(ratio < 1.6, "seed {seed}: {ratio} times the ideal");
            ratios.push(ratio);
        }
    }
    ratios.sort_by(f64::total_cmp);
    let median = ratios[ratios.len() / 2];
    assert!(ratios.len() as u64 > seeds(5000) / 50, "only {} worlds", ratios.len());
    // A handful of worlds has no median to speak of.
    assert!(median < if cfg!(debug_assertions) { 1.4 } else { 1.15 }, "median of {}: {median}", ratios.len());
}

#[test]
fn every_further_worker_helps() {
    let mut before = f64::INFINITY;
    for peers in [0, 1, 2, 4, 8] {
        let mut nodes = vec![local(100e9)];
        nodes.resize(1 + peers, peer(100e9, 1.1e9));
        let seconds = first(scenario(nodes, vec![cube(8192)])).seconds();
        assert!(seconds < before * 0.95, "{peers} peers: {seconds} s, with fewer {before} s");
        before = seconds;
    }
}

#[test]
fn peers_that_overstate_their_speed_cost_little() {
    for factor in [0.2, 5.0, 50.0] {
        let mut peer = peer(100e9, 1.1e9);
        peer.claims = factor;
        let scenario = scenario(vec![local(100e9), peer], vec![cube(4096)]);
        let alone = alone_s(&scenario);
        let seconds = first(scenario).seconds();
        assert!(seconds <= 0.65 * alone, "claim of {factor}: {seconds} s, alone {alone} s");
    }
}

#[test]
fn a_straggler_or_a_hanging_peer_makes_no_job_slower_than_alone() {
    for after in [0, SECOND / 10, SECOND / 2] {
        for disturbance in
            [Disturbance::Slow { node: 1, times: 20 }, Disturbance::Hang { node: 1, takes: 999 * SECOND }]
        {
            let mut scenario = scenario(vec![local(100e9), peer(100e9, 1.1e9)], vec![cube(4096)]);
            let alone = alone_s(&scenario);
            scenario.disturbances.push((SETTLED + after, disturbance.clone()));
            let outcome = first(scenario);
            let seconds = outcome.seconds();
            assert!(seconds <= 1.05 * alone, "{disturbance:?} after {after}: {seconds} s, alone {alone} s");
            assert!(tasks(&outcome).hedged > 0);
        }
    }
}

#[test]
fn a_liar_is_quarantined_and_the_product_is_whole() {
    let mut liar = peer(100e9, 1.1e9);
    liar.deviations = Deviations::only(Deviation::WrongTile, 1);
    let world = play(scenario(vec![local(100e9), liar, peer(100e9, 1.1e9)], vec![cube(4096)]));
    assert!(world.checks.is_quarantined(0, 1) && !world.checks.is_quarantined(0, 2));
    let outcome = outcome(&world, 0);
    let counts = tasks(&outcome);
    assert!(counts.wrong == 1 && counts.remote > 0 && counts.retried > 0, "{counts:?}");
    let workers = &world.nodes[0].run.as_ref().unwrap().products.workers;
    assert!(outcome.report.workers.iter().all(|share| workers.get(&share.worker) != Some(&1)), "{outcome:?}");
}

#[test]
fn a_liar_that_was_found_is_nothing_to_the_node_after_a_restart_either() {
    let mut liar = peer(100e9, 1.1e9);
    liar.deviations = Deviations::only(Deviation::WrongTile, 1);
    let mut scenario = scenario(vec![local(100e9), liar, peer(100e9, 1.1e9)], vec![cube(4096), cube(4096)]);
    scenario.jobs[1].0 = 20 * SECOND;
    scenario.disturbances.push((10 * SECOND, Disturbance::Crash { node: 0, silent: false }));
    scenario.disturbances.push((11 * SECOND, Disturbance::Start { node: 0 }));
    let world = play(scenario);
    assert!(world.checks.is_quarantined(0, 1), "by the evidence on its disk");
    let counts = tasks(&outcome(&world, 1));
    assert!(counts.wrong == 0 && counts.remote > 0, "{counts:?}");
}

#[test]
fn a_remote_job_runs_on_peers_only_while_one_can() {
    let remote = |side| JobSpec { remote: true, ..cube(side) };
    let counts = tasks(&first(scenario(vec![local(100e9), peer(1e9, 1e6)], vec![remote(1)])));
    assert_eq!((counts.remote, counts.local), (1, 0));
    let slow_peer = scenario(vec![local(100e9), peer(10e9, 10e6)], vec![remote(2048)]);
    assert_eq!(tasks(&first(slow_peer.clone())).local, 0);
    let mut crashing = slow_peer;
    crashing.disturbances.push((SETTLED + 3 * SECOND, Disturbance::Crash { node: 1, silent: false }));
    let counts = tasks(&first(crashing));
    assert!(counts.local > 0 && counts.remote > 0, "{counts:?}");
}

#[test]
fn a_remote_job_waits_two_seconds_for_connecting_peers_and_then_runs_here() {
    let remote = JobSpec { remote: true, ..cube(512) };
    // The peer announces itself and takes a moment to connect.
    let mut late = scenario(vec![local(100e9), peer(100e9, 1.1e9)], vec![remote.clone()]);
    late.nodes[1].starts_at = SETTLED - 1;
    let outcome = first(late);
    assert!(tasks(&outcome).local == 0 && outcome.seconds() < 0.5, "{outcome:?}");
    // A peer whose link has just broken is expected for seconds, and does not come.
    let mut gone = scenario(vec![local(100e9), peer(100e9, 1.1e9)], vec![remote.clone()]);
    gone.nodes[1].link.rtt = 20 * SECOND;
    gone.nodes[1].starts_at = SETTLED - SECOND / 2;
    let outcome = first(gone);
    assert!(tasks(&outcome).remote == 0 && (2.0..2.1).contains(&outcome.seconds()), "{outcome:?}");
    let outcome = first(scenario(vec![local(100e9)], vec![remote]));
    assert!(tasks(&outcome).remote == 0 && outcome.seconds() < 0.1, "nobody is expected: {outcome:?}");
}

#[test]
fn an_elementwise_job_is_shared_by_peers_on_demand_and_stays_here_otherwise() {
    let (rows, columns) = (20_000, 3000);
    let play = |remote| {
        let job = JobSpec { elementwise: true, remote, ..JobSpec::product([rows, 1, columns]) };
        play(scenario(vec![local(100e9), peer(100e9, 1.1e9), peer(100e9, 1.1e9)], vec![job]))
    };
    let remote = play(true);
    let report = outcome(&remote, 0).report;
    assert!(report.tasks.local == 0 && report.tasks.remote > 2 && report.workers.len() == 2, "{report:?}");
    // Each part goes to one peer, except the last, which an idle peer may compute as well.
    let (operand_bytes, sent) = (2 * rows * columns * 4, remote.checks.jobs.bytes_sent);
    assert!((operand_bytes..operand_bytes * 5 / 4).contains(&sent), "{sent} bytes");
    // Checking a tile reads as much memory as computing it.
    let auto = play(false);
    assert_eq!((auto.checks.jobs.bytes_sent, tasks(&outcome(&auto, 0)).remote), (0, 0));
}

#[test]
fn a_local_job_sends_nothing() {
    let job = JobSpec { local: true, ..cube(4096) };
    let world = play(scenario(vec![local(10e9), peer(1000e9, 5e9)], vec![job]));
    assert_eq!((world.checks.jobs.bytes_sent, tasks(&outcome(&world, 0)).remote), (0, 0));
}

#[test]
fn redundant_answers_come_from_as_many_workers() {
    let nodes = || vec![local(100e9), peer(100e9, 1.1e9), peer(100e9, 1.1e9)];
    let once = first(scenario(nodes(), vec![cube(2048)])).seconds();
    let twice = first(scenario(nodes(), vec![JobSpec { redundancy: 2, ..cube(2048) }])).seconds();
    assert!(twice > 1.5 * once, "{twice} s twice, {once} s once");
}

#[test]
fn a_short_job_passes_a_long_one_and_an_urgent_one_passes_both() {
    let urgent = JobSpec { priority: 1, ..cube(2048) };
    let mut scenario = scenario(vec![local(100e9)], vec![cube(8192), cube(512), urgent]);
    (scenario.jobs[1].0, scenario.jobs[2].0) = (SETTLED + SECOND, SETTLED + SECOND);
    let alone: Vec<f64> = scenario.jobs.iter().map(|(_, job)| flops(job) / 100e9).collect();
    let world = play(scenario);
    let seconds: Vec<f64> = (0..3).map(|job| outcome(&world, job).seconds()).collect();
    // Each waits for the two tiles of the long job that are under way.
    assert!(seconds[2] < alone[2] + 0.7, "urgent: {} s", seconds[2]);
    assert!(seconds[1] < alone[1] + alone[2] + 0.7, "short: {} s", seconds[1]);
    assert!(seconds[0] < 1.05 * alone.iter().sum::<f64>());
}

#[test]
fn predictions_are_close_to_reality() {
    let world = play(scenario(vec![local(100e9), peer(50e9, 1.1e9)], vec![cube(8192)]));
    let report = outcome(&world, 0).report;
    let ratio = report.actual_seconds / report.predicted_seconds;
    assert!((0.9..1.15).contains(&ratio), "{ratio}");
    let products = &world.nodes[0].run.as_ref().unwrap().products;
    let worker = products.links[&1].worker.unwrap();
    let accuracy = products.scheduler.worker(worker).unwrap().accuracy;
    assert!(accuracy.attempts > 20 && accuracy.relative_error < 0.1, "{accuracy:?}");
}

#[test]
fn what_peers_keep_for_later_gives_way_to_layers() {
    let small = |models| NodeSpec { memory_bytes: 260 << 20, models, ..peer(100e9, 1.1e9) };
    // Two nodes hold the model only if neither keeps what it was sent for products that are over.
    let mut scenario = scenario(vec![small(Vec::new()), small(Vec::new()), small(vec![1])], Vec::new());
    scenario.nodes[2].starts_at = 10 * SECOND;
    scenario.nodes[2].memory_bytes = 64 << 20;
    for at in 0..40 {
        let job = JobSpec { node: at % 2, remote: true, ..cube(2048) };
        scenario.jobs.push((SETTLED + at as Micros * SECOND / 8, job));
    }
    let mut world = World::new(scenario, false);
    world.run_until(9 * SECOND).unwrap();
    let kept = |world: &World, at: usize| world.nodes[at].run.as_ref().unwrap().served.store.used();
    assert!(kept(&world, 0) > 48 << 20 && kept(&world, 1) > 48 << 20, "{} {}", kept(&world, 0), kept(&world, 1));
    world.run_until(40 * SECOND).unwrap();
    assert!(crate::checks::all_placed(&world), "the layers are refused the memory");
}
