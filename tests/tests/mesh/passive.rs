//! Clients that join with an invitation and only use the pool: what they see of it, and what they leave behind. The lists that the
//! console shows name who serves what.

use pangea_tests::cluster::{Node, NodeBuilder};
use pangea_tests::http::{get, post};
use pangea_tests::process::eventually;
use serde_json::{Value, json};

use crate::{COMPLETIONS, Mesh, ask, computed_by, listed, served_by};

/// A token of `member`, for so many nodes.
fn token(mesh: &Mesh, member: &Node, uses: u32, role: &str) -> String {
    let uses = uses.to_string();
    let arguments = ["token", "--uses", &uses, "--role", role, "--rpc", &member.rpc];
    let printed = mesh.cluster.run(&arguments);
    assert_eq!(printed.code, Some(0), "{printed:?}");
    printed.out.trim().to_owned()
}

fn client(mesh: &Mesh, name: &str, token: &str) -> NodeBuilder {
    mesh.cluster.node(name).own_pool().flag("--client").with("--join", token)
}

/// The events of an answer that is streamed.
fn streamed(node: &Node, model: &str, max_tokens: usize) -> Vec<Value> {
    let body = json!({"model": model, "prompt": "Hello", "max_tokens": max_tokens, "temperature": 0, "stream": true});
    post(&node.api, COMPLETIONS, &body).events()
}

fn text_of(events: &[Value]) -> String {
    let texts = events.iter().filter_map(|event| event["choices"][0]["text"].as_str());
    texts.collect()
}

fn topology(node: &Node) -> Vec<Value> {
    get(&node.api, "/api/pangea/topology").json()["nodes"].as_array().unwrap().clone()
}

#[test]
fn a_client_with_an_invitation_lists_every_model_and_streams_each_from_the_node_that_serves_it() {
    const MEMORY: &str = "64MiB";
    let mesh = Mesh::new();
    let one = mesh.serving("one", &["red"]).own_pool().max_memory(MEMORY).start();
    let two = mesh.serving("two", &["blue"]).own_pool().max_memory(MEMORY);
    let two = two.with("--join", token(&mesh, &one, 1, "member")).start();
    one.process.line(&format!("Connected to peer {}", two.peer));
    let invitation = token(&mesh, &one, 2, "client");
    let passive = client(&mesh, "passive", &invitation).max_memory("1GiB").start();
    for (model, name, owner) in [("red", "one", &one), ("blue", "two", &two)] {
        served_by(&passive, model, &[name]);
        let whole = ask(&passive, model, "Hello", 24);
        assert_eq!(computed_by(&whole), [owner.peer.as_str()]);
        let events = streamed(&passive, model, 24);
        assert!(events.len() > 4, "an answer comes in pieces: {events:?}");
        assert_eq!(text_of(&events), whole["choices"][0]["text"].as_str().unwrap());
        assert_eq!(computed_by(events.last().unwrap()), [owner.peer.as_str()]);
    }
    assert_eq!(listed(&passive).len(), 2);
    // The memory of the pool is that of the nodes that serve.
    for node in [&one, &two, &passive] {
        eventually("the pool has the memory of two nodes", || {
            let nodes = topology(node);
            let bytes: u64 = nodes.iter().map(|node| node["memory_bytes"].as_u64().unwrap()).sum();
            (nodes.len(), bytes) == (2, 128 << 20)
        });
    }
    // An identity of its own lets a client run beside a node, with the same files.
    let home = one.data_dir.to_str().unwrap();
    let beside = mesh.cluster.start(&[
        "node",
        "--client",
        "--join",
        &invitation,
        "--data-dir",
        home,
        "--listen",
        "/ip4/127.0.0.1/tcp/0",
        "--rpc-addr",
        "127.0.0.1:0",
        "--no-api",
        "--no-mdns",
    ]);
    let started = beside.line("Starting node ").text;
    assert!(!started.contains(&one.peer) && !started.contains(&passive.peer), "{started}");
    beside.line(&format!("Connected to peer {}", one.peer));
}

#[test]
fn the_lists_name_the_node_that_serves_a_model_and_another_model_is_served_by_another_node() {
    let mesh = Mesh::new();
    let one = mesh.serving("one", &["red"]).start();
    let two = mesh.serving("two", &["blue"]).with("--peer", &one.address).start();
    served_by(&one, "red", &["one"]);
    served_by(&one, "blue", &["two"]);
    for (model, owner) in [("red", &one), ("blue", &two), ("red", &one)] {
        let serving = |node: &&Value| node["models"].as_array().unwrap().iter().any(|served| served == model);
        eventually("the graph shows who serves the model", || topology(&one).iter().filter(serving).count() == 1);
        let node = topology(&one).iter().find(serving).cloned().unwrap();
        assert_eq!(node["peer"], owner.peer.as_str());
        let models = listed(&one);
        let entry = models.iter().find(|entry| entry["id"] == model).unwrap();
        assert_eq!(entry["pangea"]["nodes"][0]["name"], node["name"], "both lists name the same node");
        assert_eq!(computed_by(&ask(&one, model, "Hello", 4)), [owner.peer.as_str()]);
    }
}

#[test]
fn a_client_leaves_nothing_at_the_node_that_answers_it() {
    let mesh = Mesh::new();
    let host = mesh.serving("host", &["tiny"]).start();
    served_by(&host, "tiny", &["host"]);
    streamed(&host, "tiny", 8);
    let memory = || {
        eventually("no answer runs", || host.status().jobs_running == 0);
        host.status().memory_used_bytes
    };
    let before = memory();
    let passive = mesh.cluster.node("passive").flag("--client").with("--peer", &host.address).start();
    served_by(&passive, "tiny", &["host"]);
    for _ in 0..3 {
        assert_eq!(computed_by(streamed(&passive, "tiny", 8).last().unwrap()), [host.peer.as_str()]);
    }
    assert!(memory() <= before, "an answer leaves no more behind than one of the host's own");
    assert!(host.client().peers().unwrap().is_empty());
    assert_eq!((host.status().peers, topology(&host).len()), (0, 1));
    let lists = [get(&host.api, "/api/pangea/peers").text(), get(&host.api, "/v1/models").text()];
    assert!(lists.iter().all(|list| !list.contains(&passive.peer)), "{lists:?}");
    passive.kill9();
    host.process.line(&format!("Peer {} is gone (", passive.peer));
    assert!(host.client().peers().unwrap().is_empty(), "nor is it remembered");
    assert_eq!(ask(&host, "tiny", "Hello", 4)["pangea"]["verdict"], "local");
}
