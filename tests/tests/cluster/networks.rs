//! Several hosts on one machine: nodes find each other by real mDNS and work across real links.

use pangea_tests::cluster::{Cluster, Node, output};
use pangea_tests::namespaces::{Namespace, Namespaces};
use std::time::Duration;

/// Waits until both nodes have found and admitted each other.
fn found_each_other(one: &Node, other: &Node) {
    for (node, peer) in [(one, other), (other, one)] {
        node.process.line(&format!("mDNS discovered a new peer: {}", peer.peer));
        let connected = node.process.line(&format!("Connected to peer {}", peer.peer));
        let listening = [one, other].map(|node| node.process.line("Listening on ").at).into_iter().max().unwrap();
        let took = connected.at.saturating_duration_since(listening);
        eprintln!("found by mDNS {took:?} after both listened");
        assert!(took < Duration::from_secs(10), "found only after {took:?}");
    }
}

fn json_in(cluster: &Cluster, host: &Namespace, arguments: &[&str]) -> serde_json::Value {
    output(&cluster.start_in(Some(host), arguments)).json()
}

#[test]
fn nodes_on_one_network_find_each_other_by_mdns_and_multiply_across_it() {
    let Some(network) = Namespaces::for_test("nodes_on_one_network_find_each_other_by_mdns_and_multiply_across_it", 3)
    else {
        return;
    };
    let cluster = Cluster::new();
    let key = cluster.pool_key("pool.key", 9);
    let start = |name: &str, host| cluster.node(name).pool_key(&key).in_namespace(host).start();
    let nodes: Vec<Node> =
        network.hosts().iter().zip(["one", "two", "three"]).map(|(host, name)| start(name, host)).collect();
    for (one, other) in [(0, 1), (0, 2), (1, 2)] {
        found_each_other(&nodes[one], &nodes[other]);
    }
    let host = &network.hosts()[0];
    let shape = ["--shape", "700x600x500", "--generate", "--seed", "3", "--dtype", "i8", "-o", "C.npy"];
    let rpc = ["--place", "remote", "--rpc", &nodes[0].rpc, "--json"];
    let report = json_in(&cluster, host, &[&["matmul"][..], &shape, &rpc].concat());
    assert_eq!(report["mode"], "remote");
    assert_eq!(report["verification"]["verdict"], "verified");
    let local = [
        "matmul",
        "--shape",
        "700x600x500",
        "--generate",
        "--seed",
        "3",
        "--dtype",
        "i8",
        "-o",
        "D.npy",
        "--place",
        "local",
    ];
    json_in(&cluster, host, &[&local[..], &["--rpc", &nodes[0].rpc, "--json"]].concat());
    let bytes = |name| std::fs::read(cluster.folder().join(name)).unwrap();
    assert!(bytes("C.npy") == bytes("D.npy"), "the product across the network has other bits than the local one");
    let peers = json_in(&cluster, host, &["peers", "--rpc", &nodes[0].rpc, "--json"]);
    let found: Vec<&str> = peers.as_array().unwrap().iter().map(|peer| peer["found_by"].as_str().unwrap()).collect();
    assert!(found.contains(&"mdns"), "{peers}");
}

#[test]
fn an_unplugged_host_is_noticed_and_found_again() {
    let Some(network) = Namespaces::for_test("an_unplugged_host_is_noticed_and_found_again", 2) else { return };
    let cluster = Cluster::new();
    let [one, two] =
        [("one", 0), ("two", 1)].map(|(name, host)| cluster.node(name).in_namespace(&network.hosts()[host]).start());
    found_each_other(&one, &two);
    for (node, host) in [&one, &two].into_iter().zip(network.hosts()) {
        // Only a node that has answered a ping can be declared silent.
        pangea_tests::process::eventually("a ping is answered", || {
            json_in(&cluster, host, &["peers", "--rpc", &node.rpc, "--json"])[0]["rtt_ms"].as_f64() > Some(0.0)
        });
    }
    network.set_plugged(1, false);
    let unplugged = std::time::Instant::now();
    for (node, peer) in [(&one, &two), (&two, &one)] {
        let noticed =
            node.process.line(&format!("Peer {} is gone (", peer.peer)).at.saturating_duration_since(unplugged);
        eprintln!("an unplugged host was noticed after {noticed:?}");
        // Five seconds are promised; a machine that is busy with other tests may be late itself.
        assert!(noticed < Duration::from_secs(15), "noticed after {noticed:?}");
    }
    network.set_plugged(1, true);
    for (node, peer) in [(&one, &two), (&two, &one)] {
        node.process.nth_line(&format!("Connected to peer {}", peer.peer), 2);
    }
    let run = ["matmul", "--size", "300", "--dtype", "i8", "--place", "remote", "--rpc", &one.rpc, "--json"];
    assert_eq!(json_in(&cluster, &network.hosts()[0], &run)["mode"], "remote");
}

#[test]
fn a_stranger_on_the_network_is_seen_and_refused() {
    let Some(network) = Namespaces::for_test("a_stranger_on_the_network_is_seen_and_refused", 2) else { return };
    let cluster = Cluster::new();
    let key = cluster.pool_key("pool.key", 9);
    let one = cluster.node("one").pool_key(&key).in_namespace(&network.hosts()[0]).start();
    let stranger = cluster.node("stranger").in_namespace(&network.hosts()[1]).start();
    one.process.line(&format!("mDNS discovered a new peer: {}", stranger.peer));
    // Whichever side dials, the node with the key refuses or is refused, and logs which.
    pangea_tests::process::eventually("the stranger is refused", || {
        one.process.count(&format!("Refused peer {}", stranger.peer))
            + stranger.process.count(&format!("Refused peer {}", one.peer))
            > 0
    });
    for node in [&one, &stranger] {
        assert_eq!(node.process.count("Connected to peer"), 0);
    }
}
