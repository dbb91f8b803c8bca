//! Properties of products on the fabric: two or more whole nodes in one process, over real sockets on loopback.

#![allow(clippy::unwrap_used, reason = "a test stops at the first thing that is not as it should be")]

use std::time::Duration;

use pangea_compute::{DType, Tensor};
use pangea_node::devices::Devices;
use pangea_node::fabric::{JobOutcome, JobRequest, Place};
use pangea_node::fault::Fault;
use pangea_node::jobs::Jobs;
use pangea_node::net::{NetConfig, identity};
use pangea_node::observe::Observer;
use pangea_node::runtime::{Parts, Runtime};
use pangea_node::supervise::Supervisor;

/// Timeout of a test.
const HUNG: Duration = Duration::from_secs(60);

struct Node {
    runtime: Runtime,
    address: String,
}

fn node(name: &str, threads: usize, fault: Option<Fault>) -> Node {
    let mut net = NetConfig::new(identity::ephemeral());
    net.listen = vec!["/ip4/127.0.0.1/tcp/0".parse().unwrap()];
    let parts = Parts {
        net: Some(net),
        name: name.to_owned(),
        devices: Devices::new(1 << 30, threads),
        data_dir: None,
        works: true,
        force_master: false,
        state: None,
        pipeline: None,
        pinned: None,
        rpc: String::new(),
        fault,
        supervisor: Supervisor::default(),
        jobs: Jobs::default(),
        observer: Observer::default(),
    };
    let runtime = Runtime::start(parts).unwrap();
    let address = block_on(async {
        loop {
            let listening = runtime.fabric().status().await.unwrap().listening;
            if let Some(address) = listening.into_iter().next() {
                break address;
            }
            tokio::task::yield_now().await;
        }
    });
    Node { runtime, address }
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(HUNG, work).await.expect("hung") })
}

fn connect(one: &Node, other: &Node) {
    block_on(one.runtime.fabric().connect(&other.address, HUNG)).unwrap();
}

fn product(node: &Node, request: JobRequest) -> JobOutcome {
    let job = node.runtime.fabric().submit(request).unwrap();
    block_on(job.outcome).unwrap().unwrap()
}

fn remote(a: &Tensor, b: &Tensor) -> JobRequest {
    JobRequest { place: Place::Remote, ..JobRequest::product(a.clone(), b.clone()) }
}

fn integers(n: usize) -> (Tensor, Tensor, Tensor) {
    let a = Tensor::generate(DType::I8, n, n + 3, 1).unwrap();
    let b = Tensor::generate(DType::I8, n + 3, n, 2).unwrap();
    let pool = pangea_compute::Pool::new(1).unwrap();
    let c = pangea_compute::matmul(&a, &b, &pool, &pangea_compute::Cancel::new()).unwrap();
    (a, b, c)
}

#[test]
fn a_remote_product_has_the_bits_of_a_local_one_and_says_who_computed_it() {
    let (one, other) = (node("one", 1, None), node("other", 1, None));
    connect(&one, &other);
    let (a, b, c) = integers(300);
    let outcome = product(&one, remote(&a, &b));
    assert_eq!(outcome.result.digest(), c.digest());
    assert_eq!(outcome.report.mode, "remote");
    assert_eq!(outcome.report.verification.verdict, "verified");
    assert_eq!(outcome.report.workers[0].name, "other");
    assert!(outcome.report.tasks.remote >= 1 && outcome.report.tasks.local == 0);
}

#[test]
fn without_peers_a_product_is_local() {
    let one = node("one", 1, None);
    let (a, b, c) = integers(200);
    let outcome = product(&one, JobRequest::product(a, b));
    assert_eq!(outcome.result.digest(), c.digest());
    assert_eq!(outcome.report.mode, "local");
    assert_eq!(outcome.report.verification.verdict, "local");
}

#[test]
fn operands_are_sent_once() {
    let (one, other) = (node("one", 1, None), node("other", 1, None));
    connect(&one, &other);
    let (a, b, _) = integers(400);
    let first = product(&one, remote(&a, &b)).report;
    let second = product(&one, remote(&a, &b)).report;
    assert_eq!(first.bytes_sent, (a.size_bytes() + b.size_bytes()) as u64);
    assert_eq!(second.bytes_sent, 0);
    assert_eq!(second.mode, "remote");
}

#[test]
fn every_kind_of_lie_is_caught_redone_and_its_peer_quarantined() {
    for fault in [Fault::CorruptOne, Fault::CorruptAll] {
        let (one, liar) = (node("one", 1, None), node("liar", 1, Some(fault)));
        connect(&one, &liar);
        for dtype in [DType::I8, DType::F32] {
            let a = Tensor::generate(dtype, 256, 256, 1).unwrap();
            let b = Tensor::generate(dtype, 256, 256, 2).unwrap();
            let outcome = product(&one, remote(&a, &b));
            let pool = pangea_compute::Pool::new(1).unwrap();
            let c = pangea_compute::matmul(&a, &b, &pool, &pangea_compute::Cancel::new()).unwrap();
            assert_eq!(outcome.result.digest(), c.digest(), "{fault:?} {dtype:?}");
            if dtype == DType::I8 {
                assert_eq!(outcome.report.verification.rejected.len(), 1, "{fault:?}");
                let peers = block_on(one.runtime.fabric().peers()).unwrap();
                assert!(peers[0].quarantined, "{fault:?}");
            }
            assert_eq!(outcome.report.tasks.remote, 0);
        }
    }
}

#[test]
fn what_a_liar_computed_before_it_was_caught_is_computed_again() {
    let one = node("one", 1, None);
    let (a, b, c) = integers(700);
    for _ in 0..5 {
        let liar = node("liar", 1, Some(Fault::CorruptLater));
        connect(&one, &liar);
        // A worker that looks fast is given few tiles, of which the first ones are right.
        let report = loop {
            let outcome = product(&one, remote(&a, &b));
            assert_eq!(outcome.result.digest(), c.digest());
            if !outcome.report.verification.rejected.is_empty() {
                break outcome.report;
            }
        };
        assert_eq!((report.tasks.remote, report.tasks.local), (0, report.tasks.total), "{report:?}");
        assert!(report.workers.iter().all(|share| share.name == "one"), "{report:?}");
    }
}

#[test]
fn one_huge_column_hides_no_lie_in_another() {
    let (one, liar) = (node("one", 1, None), node("liar", 1, Some(Fault::CorruptOne)));
    connect(&one, &liar);
    let a = Tensor::generate(DType::F32, 100, 64, 1).unwrap();
    let mut b = Tensor::generate(DType::F32, 64, 120, 2).unwrap().to_array::<f32>().unwrap();
    b.column_mut(0).mapv_inplace(|value| value * 1e6);
    let b = Tensor::from_array(b.view()).unwrap();
    let outcome = product(&one, remote(&a, &b));
    let pool = pangea_compute::Pool::new(1).unwrap();
    let c = pangea_compute::matmul(&a, &b, &pool, &pangea_compute::Cancel::new()).unwrap();
    assert_eq!(outcome.result.digest(), c.digest());
    assert_eq!(outcome.report.verification.rejected.len(), 1, "{:?}", outcome.report);
}

#[test]
fn a_worker_that_hangs_or_cuts_the_stream_costs_time_but_no_result() {
    for fault in [Fault::Drop, Fault::Hang] {
        let (one, other) = (node("one", 1, None), node("other", 1, Some(fault)));
        connect(&one, &other);
        let (a, b, c) = integers(256);
        let outcome = product(&one, remote(&a, &b));
        assert_eq!(outcome.result.digest(), c.digest(), "{fault:?}");
    }
}

#[test]
fn a_cancelled_job_ends_with_the_kind_cancelled() {
    let one = node("one", 1, None);
    let a = Tensor::generate(DType::F64, 3000, 3000, 1).unwrap();
    let job = one.runtime.fabric().submit(JobRequest::product(a.clone(), a)).unwrap();
    drop(job.cancel);
    let error = block_on(job.outcome).unwrap().err().unwrap();
    assert_eq!(error.kind(), pangea_client::ErrorKind::Cancelled);
}
