//! One master, whatever nodes start, die and come back. The world in
//! `node/control/tests` covers the rarer orders of events.

use pangea_tests::cluster::{Cluster, Node};
use pangea_tests::process::eventually;
use pangea_tests::skip::{skip, unless_root};
use pangea_tests::small_disk::SmallDisk;

pub(crate) const ELECTED: &str = "Node elected master";

pub(crate) fn elected(master: &Node) -> String {
    format!("Node {} elected master", master.peer)
}

/// The master, once all of `nodes` agree on it and have logged it.
pub(crate) fn master<'a>(nodes: &[&'a Node]) -> &'a Node {
    let mut agreed = None;
    eventually("all nodes see the same master", || {
        let views: Vec<Option<String>> = nodes.iter().map(|node| seen_by(node)).collect();
        agreed = nodes.iter().find(|node| views.iter().all(|seen| seen.as_deref() == Some(&node.peer))).copied();
        agreed.is_some()
    });
    let master = agreed.unwrap();
    for node in nodes.iter().filter(|node| node.peer != master.peer) {
        node.process.line(&elected(master));
    }
    master.process.line(ELECTED);
    master
}

/// The master as `node` sees it.
fn seen_by(node: &Node) -> Option<String> {
    let topology = node.client().topology().unwrap();
    let masters: Vec<_> = topology.nodes.into_iter().filter(|node| node.master).collect();
    assert!(masters.len() <= 1, "two masters in one view: {masters:?}");
    masters.into_iter().next().map(|master| master.peer)
}

#[test]
fn one_of_two_nodes_is_elected_and_both_log_it_once() {
    let cluster = Cluster::new();
    let nodes = cluster.pool(&["one", "two"]);
    let nodes: Vec<&Node> = nodes.iter().collect();
    let master = master(&nodes);
    for node in &nodes {
        assert_eq!(node.process.count("elected master"), 1);
        let listening = node.process.line("Listening on ").at;
        let said = node.process.line("elected master").at;
        eprintln!("{} knew its master {:?} after it listened", node.peer, said.saturating_duration_since(listening));
    }
    assert_eq!(nodes.iter().filter(|node| node.process.count(ELECTED) == 1).count(), 1);
    assert_eq!(master.process.count(ELECTED), 1);
}

#[test]
fn a_node_alone_elects_itself() {
    let cluster = Cluster::new();
    let node = cluster.node("alone").start();
    assert_eq!(master(&[&node]).peer, node.peer);
}

#[test]
fn a_node_started_with_force_master_takes_over() {
    let cluster = Cluster::new();
    let one = cluster.node("one").start();
    one.process.line(ELECTED);
    let forced = cluster.node("forced").flag("--force-master").with("--peer", &one.address).start();
    one.process.line(&elected(&forced));
    assert_eq!(master(&[&one, &forced]).peer, forced.peer);
    // A node that starts later does not replace the master, whatever its flags.
    let late = cluster.node("late").flag("--force-master").with("--peer", &one.address).start();
    late.process.line(&elected(&forced));
    eventually("it has listened for long enough to elect itself", || late.status().uptime_s > 5.0);
    assert_eq!(master(&[&one, &forced, &late]).peer, forced.peer);
    assert_eq!(late.process.count(ELECTED), 0);
}

#[test]
fn a_killed_master_is_replaced_and_returns_as_a_worker() {
    let cluster = Cluster::new();
    let nodes = cluster.pool(&["one", "two", "three"]);
    let nodes: Vec<&Node> = nodes.iter().collect();
    let first = master(&nodes);
    first.kill9();
    let died = std::time::Instant::now();
    let left: Vec<&Node> = nodes.iter().filter(|node| node.peer != first.peer).copied().collect();
    for node in &left {
        node.process.line(&format!("Peer {} is gone (", first.peer));
    }
    let second = master(&left);
    assert_ne!(second.peer, first.peer);
    eprintln!("another master {:?} after the first was killed", second.process.line(ELECTED).at.duration_since(died));
    let name = first.data_dir.file_name().unwrap().to_str().unwrap();
    let back = cluster.node(name).with("--peer", &second.address).start();
    assert_eq!(back.peer, first.peer);
    assert_eq!(master(&[left[0], left[1], &back]).peer, second.peer);
    assert_eq!(back.process.count(ELECTED), 0, "a newcomer accepts the master that is there");
    assert_eq!(second.process.count(ELECTED), 1);
}

#[test]
fn a_silent_master_is_replaced_and_there_is_one_master_when_it_wakes() {
    let cluster = Cluster::new();
    let nodes = cluster.pool(&["one", "two", "three"]);
    let nodes: Vec<&Node> = nodes.iter().collect();
    let first = master(&nodes);
    for node in nodes.iter().filter(|node| node.peer != first.peer) {
        // Only a node that has answered a ping can be declared silent.
        eventually("a ping is answered", || node.status_of(first).rtt_ms > 0.0);
    }
    first.stop();
    let left: Vec<&Node> = nodes.iter().filter(|node| node.peer != first.peer).copied().collect();
    let second = master(&left);
    assert_ne!(second.peer, first.peer);
    first.cont();
    master(&nodes);
}

#[test]
fn a_restart_does_not_go_back_below_its_term() {
    let cluster = Cluster::new();
    let term = |node: &Node| {
        let line = node.process.line(ELECTED).text;
        let event: serde_json::Value = serde_json::from_str(&line).unwrap();
        event["term"].as_u64().unwrap()
    };
    let builder = cluster.node("one").with("--log-format", "json");
    let mut last = 0;
    for _ in 0..3 {
        let node = builder.start();
        let now = term(&node);
        assert!(now > last, "term {now} after {last}");
        last = now;
        node.kill9();
        node.process.wait();
    }
    // An ephemeral node stores nothing.
    let ephemeral = cluster.node("one").flag("--ephemeral").with("--log-format", "json").start();
    assert_eq!(term(&ephemeral), 1);
}

/// A state file that could not grow kept the node from starting.
#[test]
fn a_node_whose_disk_has_no_room_for_its_term_runs_on_and_claims_it_once_there_is_room() {
    let test = "a_node_whose_disk_has_no_room_for_its_term_runs_on_and_claims_it_once_there_is_room";
    if unless_root(test) {
        return;
    }
    let cluster = Cluster::new();
    // Room for the node's small files and an empty database, and not for a transaction.
    let disk = match SmallDisk::mount(&cluster.folder().join("one"), 28 << 10) {
        Ok(disk) => disk,
        Err(why) => return skip(test, &format!("no small disk can be mounted: {why}")),
    };
    let node = cluster.node("one").start();
    node.process.line("cannot store the master's term: state.redb: ");
    assert_eq!((node.status().name.as_str(), node.process.count(ELECTED)), ("one", 0));
    disk.resize(16 << 20);
    node.process.line(ELECTED);
    assert_eq!(node.terminate(), Some(0));
}
