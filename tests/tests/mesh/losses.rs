//! Nodes that die and nodes that return: what the others list, and where answers come from.

use std::time::{Duration, Instant};

use pangea_tests::http::{get, post};
use pangea_tests::process::eventually;
use serde_json::json;

use crate::{COMPLETIONS, Mesh, ask, computed_by, listed, served_by, servers};

/// Time within which a killed node has left every list.
const GONE_WITHIN: Duration = Duration::from_secs(5);

/// Time between two looks at a node's lists: a node refuses a client that asks hundreds of times a second.
const PACE: Duration = Duration::from_millis(20);

#[test]
fn a_killed_node_leaves_every_list_and_is_warm_again_at_once_when_it_returns() {
    let mesh = Mesh::new();
    let one = mesh.serving("one", &["red"]).start();
    let three = mesh.cluster.node("three").with("--peer", &one.address).start();
    let owner = mesh.serving("two", &["blue"]).with("--peer", &one.address).with("--peer", &three.address);
    let two = owner.start();
    for node in [&one, &three] {
        served_by(node, "blue", &["two"]);
        assert_eq!(computed_by(&ask(node, "blue", "Hello", 2)), [two.peer.as_str()]);
    }
    let before = two.peer.clone();
    two.kill9();
    let killed = Instant::now();
    let is_listed = |node: &pangea_tests::cluster::Node| {
        std::thread::sleep(PACE);
        get(&node.api, "/api/pangea/topology").text().contains(&before) || !servers(node, "blue").is_empty()
    };
    eventually("it has left every list", || ![&one, &three].into_iter().any(is_listed));
    let took = killed.elapsed();
    assert!(took < GONE_WITHIN, "{took:?}");
    // Adverts of it that are still on their way bring nobody back.
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        assert!(![&one, &three].into_iter().any(is_listed));
    }
    let answer = post(&one.api, COMPLETIONS, &json!({"model": "blue", "prompt": "Hello", "max_tokens": 1}));
    match answer.status {
        // It had fetched the whole of the small file before its owner was killed.
        200 => assert_eq!(computed_by(&answer.json()), std::slice::from_ref(&one.peer)),
        status => assert!(status == 503 || status == 404, "{status}"),
    }
    assert_eq!(computed_by(&ask(&three, "red", "Hello", 2)), [one.peer.as_str()], "others are unaffected");
    let two = owner.start();
    assert_eq!(two.peer, before);
    two.process.line("Serving model blue");
    for node in [&one, &three] {
        // The pool may have put the model on another node meanwhile.
        eventually("it is warm again", || servers(node, "blue").contains(&"two".to_owned()));
        assert!(!computed_by(&ask(node, "blue", "Hello", 2)).is_empty());
        assert_eq!(listed(node).len(), 2);
    }
}
