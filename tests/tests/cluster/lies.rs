//! Workers that lie or fail on purpose (`--fault`): detected, redone, reported, and provable afterwards.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use pangea_client::blocking::Client;
use pangea_compute::check::ColumnProbe;
use pangea_compute::{DType, NpyFile, Pool, Tensor};
use pangea_node::wire::{MAX_PAYLOAD_BYTES, Message, Shape, TaskHello};
use pangea_tests::cluster::{Cluster, Node};
use pangea_tests::matrix::{Product, assert_product, multiply, operands, remote};
use pangea_tests::process::{TIMEOUT, eventually};
use pangea_tests::stranger::{Stranger, advert};
use rustix::process::Signal;

/// The folder of an accusation of `peer`, which is written while the job continues.
fn evidence_against(accuser: &Node, peer: &Node) -> PathBuf {
    let find = || accuser.evidence_against(peer).into_iter().find(|folder| folder.join("evidence.json").exists());
    eventually("the evidence is kept", || find().is_some());
    find().unwrap()
}

/// Checks that the evidence proves the lie to anyone: the files are those of the record, and c is not a·b.
fn proves_a_lie(folder: &Path, peer: &Node) {
    let record: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(folder.join("evidence.json")).unwrap()).unwrap();
    assert_eq!(record["peer"], peer.peer);
    assert!(!record["why"].as_str().unwrap().is_empty());
    let [a, b, c]: [Tensor; 3] = ["a", "b", "c"].map(|name| {
        let tensor =
            NpyFile::open(folder.join(name).with_extension("npy")).unwrap().whole().unwrap().to_contiguous().unwrap();
        assert_eq!(record[name], tensor.digest().to_string());
        tensor
    });
    let pool = Pool::new(1).unwrap();
    let probe = ColumnProbe::new(&b, c.dtype(), [9; 32], &pool).unwrap();
    let refuted = probe.check(&a, &b, &c, &pool).is_err();
    assert!(refuted, "the evidence does not show a lie");
}

fn is_caught(star_one: &Node, liar: &Node, product: &Product, a: &Tensor, b: &Tensor) {
    assert_product(a, b, &product.c);
    let rejected = &product.report.verification.rejected;
    assert!(!rejected.is_empty(), "{:?}", product.report);
    assert!(rejected.iter().all(|rejection| rejection.peer == liar.peer && !rejection.why.is_empty()));
    assert!(product.report.workers.iter().all(|share| share.peer != liar.peer), "{:?}", product.report);
    assert!(star_one.status_of(liar).quarantined);
    assert_eq!(star_one.status_of(liar).state, "quarantined");
    star_one.process.line(&format!("Peer {} is quarantined", liar.peer));
    proves_a_lie(&evidence_against(star_one, liar), liar);
}

fn a_lie_is_caught(fault: &str, dtype: DType) {
    let cluster = Cluster::new();
    let star = cluster.star(vec![cluster.node("liar").fault(fault)]);
    let (liar, client) = (&star.workers[0], star.one.client());
    let (a, b) = operands(dtype, 300, 256, 280);
    let product = multiply(&client, &a, &b, &remote()).unwrap();
    is_caught(&star.one, liar, &product, &a, &b);
    assert!(product.report.tasks.retried > 0);
    // From now on the liar gets no work.
    let served = liar.status().tasks_served;
    let again = multiply(&client, &a, &b, &remote()).unwrap();
    assert_product(&a, &b, &again.c);
    assert_eq!((again.report.mode.as_str(), liar.status().tasks_served), ("local", served));
    let rpc = star.one.rpc.as_str();
    let peers = cluster.run(&["peers", "--rpc", rpc, "--json"]).json();
    assert_eq!(peers[0]["quarantined"], true);
    assert_eq!(peers[0]["peer"], liar.peer);
}

#[test]
fn one_wrong_element_among_integers_is_caught() {
    a_lie_is_caught("corrupt-one", DType::I8);
}

#[test]
fn one_wrong_element_among_floats_is_caught() {
    a_lie_is_caught("corrupt-one", DType::F32);
}

#[test]
fn a_product_wrong_everywhere_is_caught() {
    a_lie_is_caught("corrupt-all", DType::F64);
    a_lie_is_caught("corrupt-all", DType::I8);
}

#[test]
fn what_a_liar_computed_before_it_was_caught_is_computed_again() {
    const LIARS: usize = 50;
    let cluster = Cluster::new();
    let one = cluster.node("one").start();
    let client = one.client();
    let (a, b) = operands(DType::F32, 2048, 1024, 2048);
    let mut in_mid_job = 0;
    for number in 0..LIARS {
        let liar = cluster.node(&format!("liar{number}")).fault("corrupt-later").start();
        one.connect(&liar);
        // A worker that looks fast is given few tiles, of which the first ones are right.
        let product = loop {
            let product = multiply(&client, &a, &b, &remote()).unwrap();
            assert_product(&a, &b, &product.c);
            if !product.report.verification.rejected.is_empty() {
                break product;
            }
        };
        is_caught(&one, &liar, &product, &a, &b);
        let tasks = &product.report.tasks;
        assert_eq!((tasks.remote, tasks.local), (0, tasks.total), "{:?}", product.report);
        in_mid_job += usize::from(tasks.retried > 2);
    }
    assert!(in_mid_job > LIARS / 4, "only {in_mid_job} liars had right results in the job in which they were caught");
}

#[test]
fn one_huge_column_hides_no_lie_in_another() {
    let cluster = Cluster::new();
    let one = cluster.node("one").start();
    let client = one.client();
    let a = Tensor::generate(DType::F32, 300, 256, 1).unwrap();
    let mut b = Tensor::generate(DType::F32, 256, 280, 2).unwrap().to_array::<f32>().unwrap();
    b.column_mut(0).mapv_inplace(|value| value * 1e6);
    let b = Tensor::from_array(b.view()).unwrap();
    for number in 0..5 {
        let liar = cluster.node(&format!("liar{number}")).fault("corrupt-one").start();
        one.connect(&liar);
        let product = multiply(&client, &a, &b, &remote()).unwrap();
        is_caught(&one, &liar, &product, &a, &b);
    }
}

#[test]
fn an_earlier_result_passed_off_as_a_new_one_is_caught() {
    let cluster = Cluster::new();
    let star = cluster.star(vec![cluster.node("liar").fault("stale")]);
    let client = star.one.client();
    let (a, b) = operands(DType::I8, 200, 200, 200);
    let first = multiply(&client, &a, &b, &remote()).unwrap();
    assert_product(&a, &b, &first.c);
    let c = Tensor::generate(DType::I8, 200, 200, 77).unwrap();
    let second = multiply(&client, &a, &c, &remote()).unwrap();
    is_caught(&star.one, &star.workers[0], &second, &a, &c);
}

#[test]
fn an_honest_worker_redoes_what_a_liar_did() {
    let cluster = Cluster::new();
    let star = cluster.star(vec![cluster.node("liar").fault("stale"), cluster.node("honest")]);
    let client = star.one.client();
    // It lies once it has a result to pass off as another; how many of its tasks are done elsewhere before, is open.
    let product = (0..100)
        .map(|seed| {
            let a = Tensor::generate(DType::I8, 2400, 2400, seed).unwrap();
            let product = multiply(&client, &a, &a, &remote()).unwrap();
            assert_product(&a, &a, &product.c);
            product
        })
        .find(|product| !product.report.verification.rejected.is_empty())
        .unwrap();
    let rejected = &product.report.verification.rejected;
    assert!(rejected.iter().all(|rejection| rejection.peer == star.workers[0].peer), "{rejected:?}");
    assert!(star.one.status_of(&star.workers[0]).quarantined);
    assert_eq!(product.report.tasks.local, 0, "{:?}", product.report);
    assert!(!star.one.status_of(&star.workers[1]).quarantined);
}

#[test]
fn redundancy_with_a_liar_still_gives_the_right_product() {
    let cluster = Cluster::new();
    let star =
        cluster.star(vec![cluster.node("liar").fault("corrupt-all"), cluster.node("honest"), cluster.node("too")]);
    let (a, b) = operands(DType::I8, 700, 700, 700);
    let options = pangea_client::MatmulOptions { redundancy: 2, ..remote() };
    let product = multiply(&star.one.client(), &a, &b, &options).unwrap();
    assert_product(&a, &b, &product.c);
    assert!(product.report.workers.iter().all(|share| share.peer != star.workers[0].peer));
}

#[test]
fn a_worker_that_cuts_its_answers_costs_no_result() {
    let cluster = Cluster::new();
    let star = cluster.star(vec![cluster.node("cutter").fault("drop")]);
    let (a, b) = operands(DType::I8, 300, 300, 300);
    let product = multiply(&star.one.client(), &a, &b, &remote()).unwrap();
    assert_product(&a, &b, &product.c);
    assert!(product.report.tasks.retried > 0 && product.report.tasks.remote == 0, "{:?}", product.report);
    // A broken answer is no proof of a lie.
    assert!(product.report.verification.rejected.is_empty());
    assert!(!star.one.status_of(&star.workers[0]).quarantined);
}

#[test]
fn a_worker_that_never_answers_costs_no_result() {
    let cluster = Cluster::new();
    let star = cluster.star(vec![cluster.node("mute").fault("hang")]);
    let (a, b) = operands(DType::F32, 300, 300, 300);
    let product = multiply(&star.one.client(), &a, &b, &remote()).unwrap();
    assert_product(&a, &b, &product.c);
    assert!(product.report.tasks.local > 0, "{:?}", product.report);
    assert!(product.report.verification.rejected.is_empty());
}

/// Waits until the pool, as a node sees it, consists of exactly these nodes.
fn sees_as_pool(node: &Node, members: &[&Node]) {
    let mut wanted: Vec<&str> = members.iter().map(|member| member.peer.as_str()).collect();
    wanted.sort_unstable();
    eventually(&format!("{} sees the pool of {wanted:?}", node.peer), || {
        let mut seen: Vec<String> = node.client().topology().unwrap().nodes.into_iter().map(|node| node.peer).collect();
        seen.sort_unstable();
        seen == wanted
    });
}

#[test]
fn a_liar_is_excluded_from_the_pool_and_its_own_tasks_are_refused() {
    let cluster = Cluster::new();
    // The liar would be the master if other nodes accepted it.
    let star = cluster.star(vec![cluster.node("liar").fault("corrupt-all").flag("--force-master")]);
    let (one, liar) = (&star.one, &star.workers[0]);
    sees_as_pool(one, &[one, liar]);
    one.process.line(&format!("Node {} elected master", liar.peer));
    let (a, b) = operands(DType::I8, 300, 256, 280);
    let product = multiply(&one.client(), &a, &b, &remote()).unwrap();
    is_caught(one, liar, &product, &a, &b);

    sees_as_pool(one, &[one]);
    eventually("the liar is the master no more", || one.client().topology().unwrap().nodes[0].master);
    one.process.line(&format!("Peer {} is gone", liar.peer));
    let served = one.status().tasks_served;
    let own = multiply(&liar.client(), &a, &b, &remote()).unwrap();
    assert_eq!((own.report.tasks.remote, one.status().tasks_served), (0, served), "{:?}", own.report);
    let refused = one.client().connect_peer(&liar.address, Some(std::time::Duration::from_secs(5)));
    assert!(refused.is_err(), "{refused:?}");
}

#[test]
fn a_liar_that_hangs_up_before_its_result_is_checked_is_shut_out_as_well() {
    let cluster = Cluster::new();
    let one = cluster.node("one").start();
    let liar = Stranger::worker(&one.address);
    let mut stream = liar.accept();
    let hello = TaskHello { works: true, store_bytes: 1 << 30, tasks_max: 8, f32_flops_per_s: 1e12, ..advert() };
    stream.send_message(&Message::Hello(TaskHello { i8_flops_per_s: 1e12, ..hello }), &[]);
    let state = || one.client().peers().unwrap().into_iter().find(|peer| peer.peer == liar.peer()).unwrap();
    eventually("the liar is a worker", || state().state == "connected");
    // Large, so that its check takes longer than the news that the stream has ended.
    let (a, b) = operands(DType::I8, 1500, 300, 1500);
    let product = std::thread::scope(|scope| {
        let (rpc, a, b) = (&one.rpc, &a, &b);
        let asked = scope.spawn(move || multiply(&Client::connect(rpc, TIMEOUT).unwrap(), a, b, &remote()).unwrap());
        let mut shapes = HashMap::new();
        let message = stream.next_message(|message| {
            if let Message::Operand { digest, shape, .. } = message {
                shapes.insert(*digest, *shape);
            }
            matches!(message, Message::Task(_))
        });
        let Message::Task(task) = message else { unreachable!() };
        let [rows, cols] = [shapes[&task.operands[0]].rows(), shapes[&task.operands[1]].cols()];
        let shape = Shape::new(DType::I32, rows as u64, cols as u64).unwrap();
        let bytes = vec![0; rows * cols * 4];
        for (piece, at) in bytes.chunks(MAX_PAYLOAD_BYTES as usize).zip((0..).step_by(MAX_PAYLOAD_BYTES as usize)) {
            let result = Message::Result { task: task.id, shape, offset: at, compute_nanos: 1, signed: None };
            stream.send_message(&result, piece);
        }
        stream.close();
        asked.join().unwrap()
    });
    assert_product(&a, &b, &product.c);
    let rejected = &product.report.verification.rejected;
    assert!(rejected.iter().all(|rejection| rejection.peer == liar.peer()), "{:?}", product.report);
    eventually("the liar is shut out", || state().quarantined);
    one.process.line(&format!("Peer {} is quarantined", liar.peer()));
}

#[test]
fn evidence_excludes_a_liar_after_a_restart() {
    let cluster = Cluster::new();
    let builder = cluster.node("one");
    let one = builder.start();
    let liar = cluster.node("liar").fault("corrupt-all").start();
    one.connect(&liar);
    let (a, b) = operands(DType::I8, 300, 256, 280);
    let product = multiply(&one.client(), &a, &b, &remote()).unwrap();
    is_caught(&one, &liar, &product, &a, &b);
    let peer = one.peer.clone();
    one.process.signal(Signal::TERM);
    assert!(one.process.wait().success());

    let one = builder.start();
    assert_eq!(one.peer, peer);
    assert!(one.status_of(&liar).quarantined);
    let called = liar.client().connect_peer(&one.address, Some(std::time::Duration::from_secs(5)));
    assert!(called.is_err(), "{called:?}");
    let served = one.status().tasks_served;
    let own = multiply(&liar.client(), &a, &b, &remote()).unwrap();
    assert_eq!((own.report.tasks.remote, one.status().tasks_served), (0, served), "{:?}", own.report);
    sees_as_pool(&one, &[&one]);
    assert_eq!(one.process.count(&format!("Connected to peer {}", liar.peer)), 0);
}
