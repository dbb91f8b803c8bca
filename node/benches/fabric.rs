//! One node of one thread against two of them: how much faster a product gets when a second device
//! helps. Prints ratios measured in one run; `cargo bench -p pangea-node --bench fabric [-- SIZE...]`.

use std::time::Duration;

use pangea_compute::{DType, Tensor};
use pangea_node::devices::Devices;
use pangea_node::fabric::{JobReport, JobRequest, Place};
use pangea_node::jobs::Jobs;
use pangea_node::net::{NetConfig, identity};
use pangea_node::observe::Observer;
use pangea_node::runtime::{Parts, Runtime};
use pangea_node::supervise::Supervisor;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const RUNS: usize = 9;

fn node(name: &str) -> (Runtime, String) {
    let mut net = NetConfig::new(identity::ephemeral());
    net.listen = vec!["/ip4/127.0.0.1/tcp/0".parse().expect("a multiaddr")];
    let parts = Parts {
        net: Some(net),
        name: name.to_owned(),
        // Little enough that operands of earlier runs make room for new ones, as in a node that has been up for a while.
        devices: Devices::new(1 << 30, 1),
        data_dir: None,
        works: true,
        force_master: false,
        state: None,
        pipeline: None,
        pinned: None,
        rpc: String::new(),
        fault: None,
        supervisor: Supervisor::default(),
        jobs: Jobs::default(),
        observer: Observer::default(),
    };
    let runtime = Runtime::start(parts).expect("a node starts");
    let address = block_on(async {
        loop {
            if let Some(address) = runtime.fabric().status().await.expect("a status").listening.into_iter().next() {
                break address;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    (runtime, address)
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(work)
}

fn product(node: &Runtime, a: &Tensor, b: &Tensor, place: Place) -> JobReport {
    let request = JobRequest { place, ..JobRequest::product(a.clone(), b.clone()) };
    block_on(node.fabric().submit(request).expect("accepted").outcome).expect("an outcome").expect("a product").report
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let sizes: Vec<usize> = std::env::args().filter_map(|arg| arg.parse().ok()).collect();
    let sizes = if sizes.is_empty() { vec![64, 256, 1024, 2048, 4096] } else { sizes };
    let (one, _) = node("one");
    let (two, _) = node("two");
    let (_helper, address) = node("helper");
    block_on(two.fabric().connect(&address, Duration::from_secs(10))).expect("connected");
    let tiny = Tensor::generate(DType::F32, 1, 1, 1).expect("a tensor");
    let trips: Vec<f64> = (0..200).map(|_| product(&two, &tiny, &tiny, Place::Remote).seconds * 1e6).collect();
    println!("1x1 forced remote: {:.0} us median", median(trips));
    println!(
        "{:>6} {:>10} {:>10} {:>10} {:>8} {:>8}  (GFLOP/s; f32, one thread a node)",
        "n", "one node", "two cold", "resident", "cold x", "resid. x"
    );
    for n in sizes {
        let (mut alone, mut cold, mut resident) = (Vec::new(), Vec::new(), Vec::new());
        let runs = if n <= 512 { RUNS * 20 } else { RUNS };
        let mut last = None;
        for run in 0..runs {
            let a = Tensor::generate(DType::F32, n, n, run as u64).expect("a tensor");
            let b = Tensor::generate(DType::F32, n, n, 1000 + run as u64).expect("a tensor");
            alone.push(product(&one, &a, &b, Place::Auto).seconds);
            let first = product(&two, &a, &b, Place::Auto);
            cold.push(first.seconds);
            let report = product(&two, &a, &b, Place::Auto);
            resident.push(report.seconds);
            last = Some((first, report));
        }
        let (alone, cold, resident) = (median(alone), median(cold), median(resident));
        let gflops = |seconds: f64| 2.0 * (n as f64).powi(3) / seconds / 1e9;
        println!(
            "{n:>6} {:>10.1} {:>10.1} {:>10.1} {:>8.2} {:>8.2}",
            gflops(alone),
            gflops(cold),
            gflops(resident),
            alone / cold,
            alone / resident
        );
        for report in last.into_iter().flat_map(|(cold, resident)| [cold, resident]) {
            println!(
                "       {:?} checks {:.4} s, predicted {:.4} s, sent {} MB, {:?}",
                report.tasks,
                report.verification.seconds,
                report.predicted_seconds,
                report.bytes_sent >> 20,
                report.workers.iter().map(|w| (w.tasks, (w.seconds * 1e3) as u64)).collect::<Vec<_>>()
            );
        }
    }
}
