//! Nodes on several hosts that find each other by mDNS, offer their API on the private network and vote together.

use pangea_tests::cluster::{Cluster, Node};
use pangea_tests::http::send;
use pangea_tests::namespaces::{Namespace, Namespaces};
use pangea_tests::process::eventually;
use pangea_tests::test_model::{SMOLLM2, file_of};
use serde_json::{Value, json};

use super::peers::{able, shares, stories};
use super::{VOTE, ballots};

const KEY: &str = "a-key-of-this-household";

/// A request from a host to a node; the status and the document.
fn asked(host: &Namespace, node: &Node, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let key = format!("Bearer {KEY}");
    let headers = [("Content-Type", "application/json"), ("Authorization", key.as_str())];
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let api = node.api.as_str();
    host.within(|| {
        let response = send(api, method, path, &headers, &body);
        (response.status, response.json())
    })
}

fn votes_with(host: &Namespace, node: &Node, others: usize) {
    let listed = || asked(host, node, "GET", "/v1/federation/peers", &Value::Null).1;
    eventually("the federation is there", || able(&listed()).len() == others);
}

fn vote(host: &Namespace, node: &Node) -> Value {
    let (status, answer) = asked(host, node, "POST", VOTE, &stories(8));
    assert_eq!((status, ballots(&answer).len()), (200, 16), "{answer}");
    answer
}

#[test]
fn two_hosts_find_each_other_vote_together_and_again_after_they_were_cut_apart() {
    let name = "two_hosts_find_each_other_vote_together_and_again_after_they_were_cut_apart";
    let Some(network) = Namespaces::for_test(name, 2) else { return };
    let Some(model) = file_of(SMOLLM2, name) else { return };
    let cluster = Cluster::new();
    let hosts = network.hosts();
    let nodes: Vec<Node> = hosts
        .iter()
        .zip(["one", "two"])
        .map(|(host, name)| {
            let node = cluster.node(name).bind_lan(KEY).in_namespace(host).flag("--federation");
            node.with("--model", model.to_str().unwrap()).start()
        })
        .collect();
    let (one, two) = (&nodes[0], &nodes[1]);
    for (node, host) in nodes.iter().zip(hosts) {
        assert!(node.api.starts_with(&format!("{}:", host.address)), "{} is not on the private network", node.api);
    }
    one.process.line(&format!("mDNS discovered a new peer: {}", two.peer));
    // Each node is asked from the other's host.
    let both = [(one, &hosts[1]), (two, &hosts[0])];
    for (node, from) in both {
        votes_with(from, node, 1);
        let listed = asked(from, node, "GET", "/v1/federation/peers", &Value::Null).1;
        assert_eq!(
            listed["data"][0]["link"]["found_by"].as_str().map(|found| found == "mdns" || found == "incoming"),
            Some(true),
            "{listed}"
        );
        let answer = vote(from, node);
        assert_eq!((shares(&answer).len(), &answer["federation"]["degraded"]), (2, &Value::Null), "{answer}");
    }
    network.set_plugged(1, false);
    for (at, (node, other)) in [(one, two), (two, one)].into_iter().enumerate() {
        node.process.line(&format!("({}) left: 0 peers", other.peer));
        let answer = vote(&hosts[at], node);
        assert_eq!((shares(&answer).len(), &answer["federation"]["peers"]), (1, &json!(0)), "{answer}");
        assert!(answer["federation"]["degraded"].is_string(), "{answer}");
    }
    network.set_plugged(1, true);
    for (node, from) in both {
        node.process.nth_line(") joined: 1 peer", 2);
        votes_with(from, node, 1);
        let answer = vote(from, node);
        assert_eq!((shares(&answer).len(), &answer["federation"]["degraded"]), (2, &Value::Null), "{answer}");
    }
}
