//! What one node found of a liar, the other members check again and act on; nobody is convicted by a word.

use std::time::Duration;

use libp2p::PeerId;
use pangea_client::MatmulOptions;
use pangea_compute::{DType, Operation, Tensor};
use pangea_node::trust::{ProductClaim, SignedProduct};
use pangea_tests::accuser::Accuser;
use pangea_tests::cluster::{Cluster, Node};
use pangea_tests::matrix::{assert_product, multiply, operands, remote};
use pangea_tests::process::eventually;
use rustix::process::Signal;

/// Multiplies on a node's peers until one of them is caught.
fn catches(node: &Node, liar: &Node) {
    let (a, b) = operands(DType::I8, 600, 256, 580);
    // Two workers compute each task, so that none of them gets all of this small product.
    let options = MatmulOptions { redundancy: 2, ..remote() };
    eventually("the liar is caught", || {
        let product = multiply(&node.client(), &a, &b, &options).unwrap();
        assert_product(&a, &b, &product.c);
        node.status_of(liar).quarantined
    });
}

/// The records of evidence that a node keeps against a peer.
fn records(node: &Node, peer: &Node) -> Vec<serde_json::Value> {
    let files = node.evidence_against(peer).into_iter().map(|folder| folder.join("evidence.json"));
    let read = files.filter_map(|file| serde_json::from_slice(&std::fs::read(file).ok()?).ok());
    read.filter(|record: &serde_json::Value| record["peer"] == peer.peer.as_str()).collect()
}

fn nodes_seen_by(node: &Node) -> Vec<String> {
    node.client().topology().unwrap().nodes.into_iter().map(|node| node.peer).collect()
}

#[test]
fn a_liar_that_one_node_caught_is_refused_by_one_that_never_worked_with_it_also_after_a_restart() {
    let cluster = Cluster::new();
    let one = cluster.node("one").start();
    // The master, which places layers; it never gives the liar a task.
    let builder = cluster.node("other").with("--peer", &one.address).flag("--force-master");
    let other = builder.start();
    let liar = cluster.node("liar").with("--peer", &one.address).fault("corrupt-all").start();
    eventually("the master sees the liar", || nodes_seen_by(&other).contains(&liar.peer));
    other.process.line("Node elected master");

    catches(&one, &liar);
    eventually("the master has checked the evidence", || records(&other, &liar).len() == 1);
    let record = records(&other, &liar).remove(0);
    assert_eq!((&record["found_by"], &record["shared"]), (&one.peer.as_str().into(), &true.into()), "{record}");
    other.process.line(&format!("Peer {} is quarantined", liar.peer));
    assert!(other.status_of(&liar).quarantined);
    // Neither its placements nor its tasks may use the liar.
    eventually("the master places nothing on the liar", || !nodes_seen_by(&other).contains(&liar.peer));
    assert!(other.client().connect_peer(&liar.address, Some(Duration::from_secs(5))).is_err());

    // Nobody is left who could tell it again.
    one.kill9();
    other.process.signal(Signal::TERM);
    assert!(other.process.wait().success());
    let other = builder.start();
    assert!(other.status_of(&liar).quarantined);
    assert!(liar.client().connect_peer(&other.address, Some(Duration::from_secs(5))).is_err());
}

#[test]
fn a_member_that_comes_later_is_told_of_a_liar() {
    let cluster = Cluster::new();
    let one = cluster.node("one").start();
    let liar = cluster.node("liar").with("--peer", &one.address).fault("corrupt-one").start();
    one.process.line(&format!("Connected to peer {}", liar.peer));
    catches(&one, &liar);
    eventually("the evidence is kept", || records(&one, &liar).len() == 1);
    let late = cluster.node("late").with("--peer", &one.address).start();
    eventually("the newcomer has checked the evidence", || records(&late, &liar).len() == 1);
    assert!(late.status_of(&liar).quarantined);
    assert!(liar.client().connect_peer(&late.address, Some(Duration::from_secs(5))).is_err());
}

#[test]
fn an_accusation_that_proves_nothing_hurts_only_its_accuser() {
    let cluster = Cluster::new();
    let one = cluster.node("one").start();
    let victim = cluster.node("victim").with("--peer", &one.address).start();
    one.process.line(&format!("Connected to peer {}", victim.peer));
    let (a, b) = operands(DType::I8, 30, 40, 20);
    let c = Tensor::generate(DType::I32, 30, 20, 7).unwrap();
    let accuser = Accuser::connect(&one.address);
    let trust = || one.client().peers().unwrap().into_iter().find(|peer| peer.peer == accuser.peer()).unwrap().trust;
    eventually("the accuser is a member", || {
        one.client().peers().unwrap().iter().any(|peer| peer.peer == accuser.peer())
    });
    let before = trust();
    // A statement that the victim never signed: it has the accuser's signature.
    let digests = [a.digest(), b.digest()];
    let claim = ProductClaim { operation: Operation::Matmul, operands: digests, result: c.digest() };
    let signed = SignedProduct::new(claim, accuser.keypair()).unwrap();
    let accused: PeerId = victim.peer.parse().unwrap();
    accuser.accuse(accused, &signed, [&a, &b, &c]);
    eventually("the accuser is trusted less", || trust() < before);
    assert!(!one.status_of(&victim).quarantined && records(&one, &victim).is_empty());
    one.process.line(&format!("an accusation by peer {} proves nothing", accuser.peer()));
    // The victim works as before.
    let product = multiply(&one.client(), &a, &b, &remote()).unwrap();
    assert_product(&a, &b, &product.c);
}
