//! Lite clients: they list and use every model, and leave nothing at the nodes that answer them.

use pangea_tests::http::get;
use pangea_tests::process::eventually;

use crate::{Mesh, ask, computed_by, listed, served_by};

#[test]
fn a_lite_client_lists_and_uses_every_model_and_is_nobodys_peer() {
    let mesh = Mesh::new();
    let one = mesh.serving("one", &["red"]).start();
    let two = mesh.serving("two", &["blue"]).with("--peer", &one.address).start();
    one.process.line(&format!("Connected to peer {}", two.peer));
    let client =
        || mesh.cluster.node("client").flag("--client").with("--peer", &one.address).with("--peer", &two.address);
    let first = client().start();
    for (model, name, owner) in [("red", "one", &one), ("blue", "two", &two)] {
        served_by(&first, model, &[name]);
        assert_eq!(computed_by(&ask(&first, model, "Hello", 4)), [owner.peer.as_str()]);
    }
    assert_eq!(listed(&first).len(), 2);
    eventually("the owners have greeted the client", || {
        [&one, &two].iter().all(|node| node.process.count(&format!("Connected to peer {}", first.peer)) == 1)
    });
    for node in [&one, &two] {
        let peers = node.client().peers().unwrap();
        assert!(peers.iter().all(|peer| peer.peer != first.peer), "{peers:?}");
        assert_eq!(node.status().peers, 1);
        let topology = get(&node.api, "/api/pangea/topology").json();
        let nodes = topology["nodes"].as_array().unwrap();
        assert_eq!(nodes.len(), 2, "{topology}");
        assert!(!topology.to_string().contains(&first.peer), "{topology}");
    }
    let key = std::fs::read_dir(&first.data_dir).unwrap().any(|entry| entry.unwrap().file_name() == "node.key");
    assert!(!key, "the identity is not stored");
    let before = first.peer.clone();
    assert_eq!(first.terminate(), Some(0));
    let second = client().start();
    assert_ne!(second.peer, before);
    served_by(&second, "red", &["one"]);
}
