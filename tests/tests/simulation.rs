//! The scheduler of the binary in virtual time: thousands of seeds of faults, and how long honest worlds take.
//! Every failure names its seed.

use pangea_node::schedule::{
    Arithmetic, FailureKind, JobSpec, Operand, Place, ProductShape, WorkerEstimate, WorkerId,
};
use pangea_tests::simulation::{
    Nature, Outcome, Run, Seeded, SimulatedJob, SimulatedWorker, World,
};

const GIB: u64 = 1 << 30;

fn f32_product(m: u64, k: u64, n: u64) -> ProductShape {
    ProductShape {
        m,
        k,
        n,
        a_element_bytes: 4,
        b_element_bytes: 4,
        c_element_bytes: 4,
    }
}

fn local(flops_per_s: f64) -> SimulatedWorker {
    let nature = Nature::honest(flops_per_s, f64::INFINITY, 0.0);
    SimulatedWorker {
        nature,
        claim: WorkerEstimate::local([flops_per_s; 4], 8 * GIB),
        joins_at_s: 0.0,
    }
}

fn peer(flops_per_s: f64, bytes_per_s: f64) -> SimulatedWorker {
    let nature = Nature::honest(flops_per_s, bytes_per_s, 100e-6);
    let claim = WorkerEstimate::remote([flops_per_s; 4], bytes_per_s, 100e-6, 8 * GIB);
    SimulatedWorker {
        nature,
        claim,
        joins_at_s: 0.0,
    }
}

fn job(shape: ProductShape) -> JobSpec {
    JobSpec::new(shape, Arithmetic::F32)
}

fn world(here: SimulatedWorker, peers: Vec<SimulatedWorker>, specs: Vec<JobSpec>) -> World {
    let at = |spec| SimulatedJob {
        at_s: 0.001,
        spec,
        cancelled_at_s: f64::INFINITY,
    };
    let jobs = specs.into_iter().map(at).collect();
    World {
        seed: 1,
        local: here,
        peers,
        jobs,
        tells_progress: false,
        connecting_s: 0.0,
    }
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
fn explore() {
    for progress in [false, true] {
        for (name, bw) in [("1.1GB", 1.1e9), ("1GbE", 110e6), ("10MB", 10e6)] {
            for n in [256u64, 512, 1024, 2048, 4096, 8192] {
                let mut line = format!("{name} n={n}:");
                for peers in [0usize, 1, 2, 4] {
                    let mut w = world(
                        local(100e9),
                        vec![peer(100e9, bw); peers],
                        vec![job(f32_product(n, n, n))],
                    );
                    w.tells_progress = progress;
                    let r = run(&w);
                    let o = &r.outcomes[0];
                    line += &format!(
                        " [{peers}p {:.4}s pred {:.4} ({:?}) sent {}MB ev {}]",
                        o.seconds,
                        o.report.predicted_seconds,
                        (
                            o.report.tasks.local,
                            o.report.tasks.remote,
                            o.report.tasks.hedged
                        ),
                        r.bytes_sent >> 20,
                        r.events
                    );
                }
                println!("{line}");
            }
        }
    }
}

#[test]
fn every_job_ends_right_through_faults_of_every_sort() {
    let seeds = 5000;
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
                (
                    "cancelled",
                    u32::from(outcome.failure == Some(FailureKind::Cancelled)),
                ),
                (
                    "overdue",
                    u32::from(outcome.failure == Some(FailureKind::DeadlineExceeded)),
                ),
            ] {
                *seen.entry(what).or_default() += u64::from(count);
            }
        }
    }
    println!("{seen:?}");
    for (what, count) in seen {
        assert!(
            count > seeds / 100,
            "only {count} times {what}: the worlds are too kind"
        );
    }
}
