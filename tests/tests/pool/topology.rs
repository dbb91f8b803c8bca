//! The graph of a pool on every surface, and how its nodes found each other.

use pangea_client::ErrorKind;
use pangea_client::blocking::Client;
use pangea_compute::{DType, Tensor};
use pangea_tests::cluster::{Cluster, Node};
use pangea_tests::http;
use pangea_tests::matrix::{multiply, remote};
use pangea_tests::process::{TIMEOUT, eventually};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Waits until `node` sees `links` connections (two per pair) with known round-trip times.
fn sees(node: &Node, nodes: usize, links: usize) -> pangea_client::Topology {
    let mut topology = pangea_client::Topology::default();
    eventually("the whole pool is seen", || {
        topology = node.client().topology().unwrap();
        let known = topology.links.iter().all(|link| link.rtt_ms > 0.0 && link.bytes_per_s > 0.0);
        topology.nodes.len() == nodes && topology.links.len() == links && known
    });
    topology
}

#[test]
fn the_topology_is_the_same_on_every_surface() {
    let cluster = Cluster::new();
    let nodes = cluster.pool(&["one", "two"]);
    let (one, two) = (&nodes[0], &nodes[1]);
    one.process.line("elected master");
    sees(one, 2, 2);
    let json = cluster.run(&["topology", "--json", "--rpc", &one.rpc]).json();
    let keys = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&json), ["nodes", "links"]);
    assert_eq!(keys(&json["nodes"][0]), ["peer", "name", "master", "models", "device", "memory_bytes", "gflops"]);
    assert_eq!(
        keys(&json["links"][0]),
        ["from", "to", "rtt_ms", "bytes_per_s", "sent_bytes_per_s", "transport", "found_by"]
    );
    assert_eq!(json["nodes"][0]["peer"], *one.peer);
    assert_eq!(json["nodes"][1]["name"], "two");
    assert_eq!(json["nodes"].as_array().unwrap().iter().filter(|node| node["master"] == true).count(), 1);
    let found: Vec<(&str, &str)> = json["links"]
        .as_array()
        .unwrap()
        .iter()
        .map(|link| (link["from"].as_str().unwrap(), link["found_by"].as_str().unwrap()))
        .collect();
    assert!(found.contains(&(&one.peer, "incoming")) && found.contains(&(&two.peer, "manual")), "{found:?}");
    let over_http: serde_json::Value = http::get(&one.api, "/api/topology").json();
    assert_eq!(keys(&over_http), keys(&json));
    assert_eq!(over_http["nodes"], json["nodes"]);
    let peers = http::get(&one.api, "/api/peers").json();
    assert_eq!(peers[0]["peer"], *two.peer);
    let table = cluster.run(&["topology", "--rpc", &one.rpc]);
    assert!(table.out.contains("MASTER") && table.out.lines().all(|line| line.chars().count() <= 80), "{}", table.out);
}

/// Bytes per second that pass from one node to another now, as `asked` says over HTTP.
fn passing(asked: &Node, from: &Node, to: &Node) -> f64 {
    let topology: serde_json::Value = http::get(&asked.api, "/api/pangea/topology").json();
    let links = topology["links"].as_array().unwrap();
    let link = links.iter().find(|link| link["from"] == *from.peer && link["to"] == *to.peer);
    link.map_or(0.0, |link| link["sent_bytes_per_s"].as_f64().unwrap())
}

#[test]
fn what_two_nodes_exchange_is_seen_at_a_third_while_it_passes() {
    /// Far more than pings and adverts, far less than the operands of a product every few seconds.
    const BUSY: f64 = 100_000.0;
    /// Says so when it is dropped, also by a panic: the thread that multiplies ends, whatever was seen.
    struct Seen<'a>(&'a AtomicBool);
    impl Drop for Seen<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let cluster = Cluster::new();
    let nodes = cluster.pool(&["hub", "two", "three"]);
    let [hub, two, three] = &nodes[..] else { panic!("three nodes") };
    sees(hub, 3, 6);
    let both = |asked: &Node| [passing(asked, two, three), passing(asked, three, two)];
    eventually("nothing passes but pings and adverts", || both(hub).iter().all(|rate| *rate < BUSY));
    let (is_seen, rpc) = (AtomicBool::new(false), two.rpc.as_str());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let client = Client::connect(rpc, TIMEOUT).unwrap();
            // New operands every time: a worker keeps those that it has.
            for seed in (0..).step_by(2).take_while(|_| !is_seen.load(Ordering::Relaxed)) {
                let operand = |seed| Tensor::generate(DType::I8, 1024, 1024, seed).unwrap();
                multiply(&client, &operand(seed), &operand(seed + 1), &remote()).unwrap();
            }
        });
        let _seen = Seen(&is_seen);
        for asked in [hub, two, three] {
            eventually("operands and tiles are seen to pass", || both(asked).iter().all(|rate| *rate > BUSY));
        }
        eventually("people see it", || {
            let text = cluster.run(&["topology", "--rpc", &hub.rpc]).out;
            assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
            text.contains("Traffic now:")
        });
    });
    eventually("what has passed is not shown for long", || both(hub).iter().all(|rate| *rate < BUSY));
}

#[test]
fn nodes_that_know_only_a_third_connect_to_each_other() {
    let cluster = Cluster::new();
    let nodes = cluster.pool(&["hub", "two", "three"]);
    let (two, three) = (&nodes[1], &nodes[2]);
    two.process.line(&format!("Connected to peer {}", three.peer));
    three.process.line(&format!("Connected to peer {}", two.peer));
    // Whoever hears of the other first dials it, which may not have heard of the one that comes yet.
    let found_by = [two.status_of(three).found_by, three.status_of(two).found_by];
    assert!(found_by.iter().any(|by| by == "gossip"), "{found_by:?}");
    assert!(found_by.iter().all(|by| by == "gossip" || by == "incoming"), "{found_by:?}");
    // The hub may stop: the other two stay connected. All three are in the topology first, so that the two that stay are these two.
    sees(two, 3, 6);
    nodes[0].kill9();
    let topology = sees(two, 2, 2);
    let mut found = topology.links.iter().map(|link| link.found_by.as_str());
    assert!(found.all(|by| by == "gossip" || by == "incoming"), "{topology:?}");
    assert_eq!(two.process.count("is gone"), 1);
}

#[test]
fn a_node_that_dies_leaves_the_topology_of_nodes_that_were_not_connected_to_it() {
    let cluster = Cluster::new();
    let nodes = cluster.pool(&["hub", "two", "three"]);
    sees(&nodes[1], 3, 6);
    nodes[2].kill9();
    sees(&nodes[1], 2, 2);
    sees(&nodes[0], 2, 2);
}

#[test]
fn a_peer_that_does_not_answer_a_check_is_named() {
    let cluster = Cluster::new();
    let nodes = cluster.pool(&["one", "two"]);
    let (one, two) = (&nodes[0], &nodes[1]);
    one.process.line(&format!("Connected to peer {}", two.peer));
    let checked = cluster.run(&["peers", "--check", "--json", "--rpc", &one.rpc]).json();
    assert!(checked[0]["check"]["round_trip_us"].as_f64().unwrap() > 0.0, "{checked}");
    two.stop();
    let error = one.client().check_peer(&two.peer, Some(Duration::from_millis(200))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    assert!(error.to_string().contains(&two.peer) && error.to_string().contains("200 ms"), "{error}");
    let checked = cluster.run(&["peers", "--check", "--timeout", "0.2", "--rpc", &one.rpc]);
    assert!(checked.out.contains("two did not answer") || checked.out.contains("gone"), "{}", checked.out);
    let error = one.client().check_peer("nobody", None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}
