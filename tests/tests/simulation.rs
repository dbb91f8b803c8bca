//! The scheduler of the binary in virtual time: thousands of seeds of faults, and how long honest worlds take.
//! Every failure names its seed.

use pangea_control::schedule::{
    Arithmetic, ElementwiseShape, FailureKind, JobShape, JobSpec, Operand, Place, ProductShape, WorkerEstimate,
    WorkerId,
};
use pangea_tests::simulation::{Nature, Outcome, Run, SimulatedJob, SimulatedWorker, World};
use pangea_units::SplitMix64;

const GIB: u64 = 1 << 30;

fn f32_product(m: u64, k: u64, n: u64) -> ProductShape {
    ProductShape { m, k, n, a_element_bytes: 4, b_element_bytes: 4, c_element_bytes: 4 }
}

fn local(flops_per_s: f64) -> SimulatedWorker {
    let nature = Nature::honest(flops_per_s, f64::INFINITY, 0.0);
    SimulatedWorker { nature, claim: WorkerEstimate::local([flops_per_s; Arithmetic::COUNT], 8 * GIB), joins_at_s: 0.0 }
}

fn peer(flops_per_s: f64, bytes_per_s: f64) -> SimulatedWorker {
    let nature = Nature::honest(flops_per_s, bytes_per_s, 100e-6);
    let claim = WorkerEstimate::remote([flops_per_s; Arithmetic::COUNT], bytes_per_s, 100e-6, 8 * GIB);
    SimulatedWorker { nature, claim, joins_at_s: 0.0 }
}

fn job(shape: impl Into<JobShape>) -> JobSpec {
    JobSpec::new(shape, Arithmetic::F32)
}

fn world(here: SimulatedWorker, peers: Vec<SimulatedWorker>, specs: Vec<JobSpec>) -> World {
    let at = |spec| SimulatedJob { at_s: 0.001, spec, cancelled_at_s: f64::INFINITY };
    let jobs = specs.into_iter().map(at).collect();
    World { seed: 1, local: here, peers, jobs, tells_progress: false, connecting_s: 0.0 }
}

fn run(world: &World) -> Run {
    world.run().unwrap_or_else(|broken| panic!("{broken}"))
}

fn first(world: &World) -> Outcome {
    let outcome = run(world).outcomes.remove(0);
    assert_eq!(outcome.failure, None);
    outcome
}

#[test]
fn every_job_ends_correctly_despite_faults() {
    let seeds = if cfg!(debug_assertions) { 1000 } else { 5000 };
    let mut seen = std::collections::BTreeMap::<&str, u64>::new();
    for seed in 0..seeds {
        let run = run(&World::random(seed));
        *seen.entry("quarantined").or_default() += run.quarantined.len() as u64;
        *seen.entry("events").or_default() += run.events;
        for outcome in run.outcomes {
            let tasks = outcome.report.tasks;
            for (what, count) in [
                ("local", tasks.local),
                ("remote", tasks.remote),
                ("retried", tasks.retried),
                ("hedged", tasks.hedged),
                ("wrong", tasks.wrong),
                ("finished", u32::from(outcome.failure.is_none())),
                ("cancelled", u32::from(outcome.failure == Some(FailureKind::Cancelled))),
                ("overdue", u32::from(outcome.failure == Some(FailureKind::DeadlineExceeded))),
            ] {
                *seen.entry(what).or_default() += u64::from(count);
            }
        }
    }
    println!("{seen:?}");
    for (what, count) in seen {
        assert!(count > seeds / 100, "only {count} times {what}: the worlds are too kind");
    }
}

/// A world of honest workers that are as fast as they claim.
fn honest(seed: u64) -> World {
    let chance = &mut SplitMix64::new(seed);
    let here = local(chance.scale(10e9, 400e9));
    let peers = (0..1 + chance.below(5)).map(|_| {
        let mut peer = peer(chance.scale(10e9, 400e9), chance.scale(5e6, 5e9));
        peer.nature.rtt_s = chance.scale(5e-5, 0.02);
        peer.claim.rtt_s = peer.nature.rtt_s;
        peer.nature.jitter = 0.03;
        peer
    });
    let peers = peers.collect();
    let side = |chance: &mut SplitMix64| chance.scale(64.0, 8000.0) as u64;
    let (m, k, n) = (side(chance), side(chance), side(chance));
    let mut world = world(here, peers, vec![job(f32_product(m, k, n))]);
    world.seed = seed;
    world.tells_progress = chance.happens(0.5);
    world
}

fn alone_s(world: &World) -> f64 {
    world.local.nature.overhead_s + world.jobs[0].spec.shape.flops() / world.local.nature.flops_per_s
}

/// The time if work could be divided and moved at no cost.
fn ideal_s(world: &World) -> f64 {
    let peers: f64 = world.peers.iter().map(|peer| peer.nature.flops_per_s).sum();
    world.jobs[0].spec.shape.flops() / (world.local.nature.flops_per_s + peers)
}

/// Every band and panel of the job is at worker 1 before the job starts, cut as in a first run.
fn made_resident(mut world: World) -> World {
    let Some(grid) = first(&world).grid else { panic!("the job was not cut") };
    let spec = &mut world.jobs[0].spec;
    spec.band_rows = Some(grid.band_rows());
    spec.panel_columns = Some(grid.panel_columns());
    let bands = (0..grid.bands()).map(Operand::Band);
    let operands = bands.chain((0..grid.panels()).map(Operand::Panel));
    spec.resident = operands.map(|operand| (WorkerId(1), operand)).collect();
    world
}

#[test]
fn two_equal_nodes_are_nearly_twice_as_fast_on_a_fast_link() {
    let cube = f32_product(4096, 4096, 4096);
    let mut world = world(local(100e9), vec![peer(100e9, 1.1e9)], vec![job(cube)]);
    for tells_progress in [false, true] {
        world.tells_progress = tells_progress;
        let seconds = first(&world).seconds;
        assert!(seconds <= 0.75, "{seconds} s; alone {} s", alone_s(&world));
        // Checking the peer's half takes this node some 0.04 s.
        let resident = made_resident(world.clone());
        let run = run(&resident);
        assert_eq!(run.bytes_sent, 0, "what is there is sent again");
        let seconds = run.outcomes[0].seconds;
        assert!(seconds <= 0.73, "{seconds} s with operands resident");
    }
}

#[test]
fn a_gigabit_link_gets_only_work_that_finishes_sooner() {
    for (n, at_most) in [(256, 1.01), (512, 1.01), (1024, 1.03), (2048, 0.95), (4096, 0.70), (8192, 0.60)] {
        let world = world(local(100e9), vec![peer(100e9, 110e6)], vec![job(f32_product(n, n, n))]);
        let (seconds, alone) = (first(&world).seconds, alone_s(&world));
        assert!(seconds <= at_most * alone, "n = {n}: {seconds} s, alone {alone} s");
    }
}

#[test]
fn honest_peers_never_make_a_job_slower_than_alone() {
    for seed in 0..2000 {
        let world = honest(seed);
        let (seconds, alone) = (first(&world).seconds, alone_s(&world));
        assert!(seconds <= 1.1 * alone + 0.001, "seed {seed}: {seconds} s, alone {alone} s");
    }
}

#[test]
fn fast_links_approach_the_sum_of_all_workers() {
    let mut ratios = Vec::new();
    for seed in 0..5000 {
        let mut world = honest(seed);
        for peer in &mut world.peers {
            let rtt_s = 100e-6;
            peer.nature.bytes_per_s = 5e9;
            peer.nature.rtt_s = rtt_s;
            let flops_per_s = peer.nature.flops_per_s;
            peer.claim = WorkerEstimate::remote([flops_per_s; Arithmetic::COUNT], 5e9, rtt_s, 8 * GIB);
        }
        let JobShape::Product(shape) = world.jobs[0].spec.shape else { continue };
        if ideal_s(&world) >= 0.1 && shape.m.min(shape.n).min(shape.k) >= 1000 {
            let ratio = first(&world).seconds / ideal_s(&world);
            assert!(ratio < 1.4, "seed {seed}: {ratio} times the ideal");
            ratios.push(ratio);
        }
    }
    ratios.sort_by(f64::total_cmp);
    let median = ratios[ratios.len() / 2];
    assert!(ratios.len() > 100 && median < 1.15, "median of {}: {median}", ratios.len());
}

#[test]
fn every_further_worker_helps() {
    let mut before = f64::INFINITY;
    for peers in [0, 1, 2, 4, 8] {
        let world = world(local(100e9), vec![peer(100e9, 1.1e9); peers], vec![job(f32_product(8192, 8192, 8192))]);
        let seconds = first(&world).seconds;
        assert!(seconds < before * 0.95, "{peers} peers: {seconds} s, with fewer {before} s");
        before = seconds;
    }
}

#[test]
fn peers_that_overstate_their_speed_cost_little() {
    for factor in [0.2, 5.0, 50.0] {
        for tells_progress in [false, true] {
            let mut peer = peer(100e9, 1.1e9);
            peer.claim.flops_per_s = [100e9 * factor; Arithmetic::COUNT];
            peer.claim.send_bytes_per_s *= factor;
            let mut world = world(local(100e9), vec![peer], vec![job(f32_product(4096, 4096, 4096))]);
            world.tells_progress = tells_progress;
            let (seconds, alone) = (first(&world).seconds, alone_s(&world));
            assert!(seconds <= 0.65 * alone, "claim of {factor}: {seconds} s, alone {alone} s");
        }
    }
}

#[test]
fn a_straggler_or_a_hanging_peer_makes_no_job_slower_than_alone() {
    for at_s in [0.0, 0.1, 0.5] {
        let cube = f32_product(4096, 4096, 4096);
        let mut slow = peer(100e9, 1.1e9);
        slow.nature.slow_from_s = at_s;
        let slow_world = world(local(100e9), vec![slow], vec![job(cube)]);
        let mut hanging = peer(100e9, 1.1e9);
        hanging.nature.hangs_from_s = at_s;
        let hanging_world = world(local(100e9), vec![hanging], vec![job(cube)]);
        for world in [slow_world, hanging_world] {
            let (outcome, alone) = (first(&world), alone_s(&world));
            assert!(outcome.seconds <= 1.05 * alone, "{} s, alone {alone} s", outcome.seconds);
            assert!(outcome.report.tasks.hedged > 0);
        }
    }
}

#[test]
fn a_liar_is_quarantined_and_the_product_is_whole() {
    let mut liar = peer(100e9, 1.1e9);
    liar.nature.lies = 1.0;
    let world = world(local(100e9), vec![liar, peer(100e9, 1.1e9)], vec![job(f32_product(4096, 4096, 4096))]);
    let run = run(&world);
    assert_eq!(run.quarantined.into_iter().collect::<Vec<_>>(), [WorkerId(1)]);
    let tasks = run.outcomes[0].report.tasks;
    assert!(tasks.wrong == 1 && tasks.remote > 0 && tasks.retried > 0, "{tasks:?}");
    assert!(run.outcomes[0].report.workers.iter().all(|share| share.worker != WorkerId(1)));
}

#[test]
fn a_remote_job_runs_on_peers_only_while_one_can() {
    let mut spec = job(f32_product(1, 1, 1));
    spec.place = Place::Remote;
    let outcome = first(&world(local(100e9), vec![peer(1e9, 1e6)], vec![spec.clone()]));
    assert_eq!((outcome.report.tasks.remote, outcome.report.tasks.local), (1, 0));
    spec.shape = f32_product(2048, 2048, 2048).into();
    let slow_peer = world(local(100e9), vec![peer(10e9, 10e6)], vec![spec.clone()]);
    assert_eq!(first(&slow_peer).report.tasks.local, 0);
    let mut crashing = slow_peer.clone();
    crashing.peers[0].nature.crashes_at_s = 3.0;
    crashing.peers[0].nature.detected_after_s = 0.0;
    let tasks = first(&crashing).report.tasks;
    assert!(tasks.local > 0 && tasks.remote > 0, "{tasks:?}");
}

#[test]
fn a_remote_job_waits_two_seconds_for_connecting_peers_and_then_runs_here() {
    let mut spec = job(f32_product(512, 512, 512));
    spec.place = Place::Remote;
    let mut late = world(local(100e9), vec![peer(100e9, 1.1e9)], vec![spec]);
    late.connecting_s = 10.0;
    late.peers[0].joins_at_s = 1.5;
    let outcome = first(&late);
    assert!(outcome.report.tasks.local == 0 && outcome.seconds < 1.6, "{outcome:?}");
    late.peers[0].joins_at_s = 5.0;
    let outcome = first(&late);
    assert!(outcome.report.tasks.remote == 0 && (2.0..2.1).contains(&outcome.seconds), "{outcome:?}");
    late.connecting_s = 0.5;
    let outcome = first(&late);
    assert!(outcome.report.tasks.remote == 0 && outcome.seconds < 0.6, "{outcome:?}");
}

#[test]
fn an_elementwise_job_is_shared_by_peers_on_demand_and_stays_here_otherwise() {
    let (rows, cols, bytes) = (20_000, 3000, 4);
    let shape = ElementwiseShape { rows, cols, a_element_bytes: bytes, b_element_bytes: bytes, c_element_bytes: bytes };
    let spec = |place| JobSpec { place, ..JobSpec::new(shape, Arithmetic::Elementwise) };
    let asked = |place| run(&world(local(100e9), vec![peer(100e9, 1.1e9); 2], vec![spec(place)]));
    let remote = asked(Place::Remote);
    let report = &remote.outcomes[0].report;
    assert!(report.tasks.local == 0 && report.tasks.remote > 2 && report.workers.len() == 2, "{report:?}");
    // Each part goes to one peer, except the last, which an idle peer may compute as well.
    let operand_bytes = 2 * rows * cols * bytes;
    assert!((operand_bytes..operand_bytes * 5 / 4).contains(&remote.bytes_sent), "{} bytes", remote.bytes_sent);
    // Checking a tile reads as much memory as computing it.
    let auto = asked(Place::Auto);
    assert_eq!((auto.bytes_sent, auto.outcomes[0].report.tasks.remote), (0, 0));
}

#[test]
fn a_local_job_sends_nothing() {
    let mut spec = job(f32_product(4096, 4096, 4096));
    spec.place = Place::Local;
    let run = run(&world(local(10e9), vec![peer(1000e9, 5e9)], vec![spec]));
    assert_eq!((run.bytes_sent, run.outcomes[0].report.tasks.remote), (0, 0));
}

#[test]
fn redundant_answers_come_from_as_many_workers() {
    let mut spec = job(f32_product(2048, 2048, 2048));
    spec.redundancy = 2;
    let once = first(&world(local(100e9), vec![peer(100e9, 1.1e9); 2], vec![job(spec.shape)]));
    let twice = first(&world(local(100e9), vec![peer(100e9, 1.1e9); 2], vec![spec]));
    assert!(twice.seconds > 1.5 * once.seconds, "{} s twice, {} s once", twice.seconds, once.seconds);
}

#[test]
fn a_short_job_passes_a_long_one_and_an_urgent_one_passes_both() {
    let long = job(f32_product(8192, 8192, 8192));
    let short = job(f32_product(512, 512, 512));
    let mut urgent = job(f32_product(2048, 2048, 2048));
    urgent.priority = 1;
    let mut world = world(local(100e9), vec![], vec![long, short, urgent]);
    world.jobs[1].at_s = 1.0;
    world.jobs[2].at_s = 1.0;
    let outcomes = run(&world).outcomes;
    let alone: Vec<f64> = world.jobs.iter().map(|job| job.spec.shape.flops() / 100e9).collect();
    // Each waits for the two tiles of the long job that are being computed.
    assert!(outcomes[2].seconds < alone[2] + 0.7, "urgent: {} s", outcomes[2].seconds);
    assert!(outcomes[1].seconds < alone[1] + alone[2] + 0.7, "short: {} s", outcomes[1].seconds);
    assert!(outcomes[0].seconds < 1.05 * alone.iter().sum::<f64>());
}

#[test]
fn predictions_are_close_to_reality() {
    let world = world(local(100e9), vec![peer(50e9, 1.1e9)], vec![job(f32_product(8192, 8192, 8192))]);
    let run = run(&world);
    let report = &run.outcomes[0].report;
    let ratio = report.actual_seconds / report.predicted_seconds;
    assert!((0.9..1.15).contains(&ratio), "{ratio}");
    let accuracy = run.scheduler.worker(WorkerId(1)).unwrap().accuracy;
    assert!(accuracy.attempts > 20 && accuracy.relative_error < 0.1, "{accuracy:?}");
}
