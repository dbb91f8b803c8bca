//! Models that are loaded and dropped while nodes run: what every node lists, and what becomes of running answers.

use std::time::{Duration, Instant};

use pangea_tests::cluster::Node;
use pangea_tests::http::{get, post};
use pangea_tests::process::eventually;
use pangea_tests::test_model::{SMOLLM2, file_of};
use serde_json::json;

use crate::{COMPLETIONS, Mesh, ask, computed_by, listed, served_by, servers};

/// Time within which a dropped model has left every list.
const COLD_WITHIN: Duration = Duration::from_secs(2);

/// Time between two looks at a node's lists: a node refuses a client that asks hundreds of times a second.
const PACE: Duration = Duration::from_millis(20);

/// Whether a node lists a model, as its own or as another node's.
fn lists(node: &Node, model: &str) -> bool {
    std::thread::sleep(PACE);
    let topology = get(&node.api, "/api/pangea/topology").json();
    let in_topology = topology["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .any(|node| node["models"].as_array().unwrap().iter().any(|served| served == model));
    in_topology || listed(node).iter().any(|listed| listed["id"] == model)
}

#[test]
fn a_dropped_model_is_cold_everywhere_at_once_until_it_is_loaded_and_its_node_stays() {
    let mesh = Mesh::new();
    let one = mesh.serving("one", &["red"]).start();
    let owner = mesh.serving("two", &["blue"]).with("--peer", &one.address);
    let two = owner.start();
    let three = mesh.cluster.node("three").with("--peer", &one.address).with("--peer", &two.address).start();
    let all = [&one, &two, &three];
    for node in all {
        served_by(node, "blue", &["two"]);
        // A node without a master does not know yet which models its pool has.
        node.process.line("elected master");
    }
    let text = ask(&one, "blue", "Hello", 8)["choices"][0]["text"].clone();
    // An answer that runs when its model is dropped comes to its end.
    let body = json!({"model": "blue", "prompt": "Hello", "max_tokens": 400, "temperature": 0, "stream": true});
    let mut running = post(&one.api, COMPLETIONS, &body);
    assert!(running.event().is_some());
    let dropped = mesh.cluster.run(&["drop", "blue", "--rpc", &three.rpc, "--json"]).json();
    assert_eq!((&dropped["name"], &dropped["state"]), (&json!("blue"), &json!("dropped")));
    let asked = Instant::now();
    eventually("it is cold", || !all.into_iter().any(|node| lists(node, "blue")));
    let took = asked.elapsed();
    assert!(took < COLD_WITHIN, "{took:?}");
    let events = running.events();
    assert!(events.last().unwrap()["pangea"]["stages"].is_array(), "{:?}", events.last());
    two.process.line("Unloaded model blue");
    // What is said of it later makes it no warmer.
    let until = Instant::now() + Duration::from_secs(2);
    while Instant::now() < until {
        assert!(!all.into_iter().any(|node| lists(node, "blue")));
    }
    for node in all {
        let refused = post(&node.api, COMPLETIONS, &json!({"model": "blue", "prompt": "Hello", "max_tokens": 1}));
        let status = refused.status;
        assert_eq!(status, 404, "{}: {}", node.peer, refused.text());
        assert_eq!(computed_by(&ask(node, "red", "Hello", 2)), [one.peer.as_str()], "others are unaffected");
    }
    assert_eq!(three.status().peers, 2, "its node stays");
    let again = mesh.cluster.run(&["drop", "blue", "--rpc", &one.rpc]);
    assert!(again.code == Some(2) && again.err.contains("blue"), "{again:?}");
    // Another node loads it from the copy of the one that served it.
    let loaded = mesh.cluster.run(&["load", "blue", "--rpc", &three.rpc, "--json"]).json();
    assert_eq!((&loaded["name"], &loaded["state"]), (&json!("blue"), &json!("ready")));
    for node in all {
        served_by(node, "blue", &["three"]);
        let answer = ask(node, "blue", "Hello", 8);
        assert_eq!((&answer["choices"][0]["text"], computed_by(&answer)), (&text, vec![three.peer.clone()]));
    }
    // A node that is started with it serves it, whatever was dropped before.
    assert_eq!(mesh.cluster.run(&["drop", "blue", "--rpc", &two.rpc]).code, Some(0));
    eventually("it is cold", || !all.into_iter().any(|node| lists(node, "blue")));
    assert_eq!(two.terminate(), Some(0));
    let two = owner.start();
    for node in [&one, &two, &three] {
        served_by(node, "blue", &["two"]);
    }
}

/// The node that computes the answer is the client's own: it expects no silence of itself.
#[test]
fn an_answer_that_outlasts_its_dropped_model_ends_and_says_why() {
    let Some(file) = file_of(SMOLLM2, "an answer that outlasts its model") else { return };
    let mesh = Mesh::new();
    let one = mesh.cluster.node("one").with("--model", file.to_str().unwrap()).start();
    // Without the tokens that end it, the answer goes on up to the context's end.
    let body = json!({
        "model": SMOLLM2, "prompt": "The sea is", "max_tokens": 8000, "temperature": 0, "stream": true,
        "logit_bias": {"0": -100, "2": -100},
    });
    let mut running = post(&one.api, COMPLETIONS, &body);
    assert!(running.event().is_some());
    assert_eq!(mesh.cluster.run(&["drop", SMOLLM2, "--rpc", &one.rpc]).code, Some(0));
    let mut last = String::new();
    while let Some(event) = running.event() {
        last = event;
    }
    assert!(last.contains("\"error\"") && last.contains("was dropped"), "{last}");
    one.process.line("Unloaded model");
    assert_eq!(one.status().memory.iter().filter(|held| held.bytes > 0 && held.purpose == "weights").count(), 0);
}

#[test]
fn a_small_model_drafts_for_those_of_its_vocabulary_and_no_others() {
    let mesh = Mesh::new();
    let (red, small) = (mesh.large_file("red"), mesh.file("small"));
    let alone = mesh.cluster.node("alone").with("--model", red.to_str().unwrap()).start();
    let text = ask(&alone, "red", "Hello", 40)["choices"][0]["text"].clone();
    assert_eq!(alone.terminate(), Some(0));
    let one = mesh
        .cluster
        .node("one")
        .with("--model", red.to_str().unwrap())
        .with("--draft", small.to_str().unwrap())
        .start();
    one.process.line("Model red: drafted by small");
    assert_eq!(ask(&one, "red", "Hello", 40)["choices"][0]["text"], text);
    if let Some(other) = file_of(SMOLLM2, "a model of another vocabulary") {
        let two =
            mesh.cluster.node("two").with("--model", red.to_str().unwrap()).with("--draft", other.to_str().unwrap());
        let two = two.start();
        let line = two.process.line(&format!("Model red: {SMOLLM2} cannot draft for it: ")).text;
        assert!(line.contains("the vocabularies differ"), "{line}");
        assert_eq!(ask(&two, "red", "Hello", 40)["choices"][0]["text"], text);
    }
}

#[test]
fn a_model_that_does_not_fit_is_refused_with_the_sizes_and_one_on_disk_is_served() {
    let mesh = Mesh::new();
    let Some(large) = file_of(SMOLLM2, "a model that does not fit") else { return };
    let blue = mesh.file("blue");
    let one = mesh.serving("one", &["red"]).max_memory("64M").start();
    one.process.line("Serving model red");
    let load = |model: &str| mesh.cluster.run(&["load", model, "--rpc", &one.rpc]);
    let refused = load(large.to_str().unwrap());
    assert!(refused.code == Some(1) && refused.out.is_empty(), "{refused:?}");
    for said in ["cannot load", "MiB of weights", "are free", "--max-memory"] {
        assert!(refused.err.contains(said), "{said}: {refused:?}");
    }
    for (model, code) in [("nonesuch", 2), ("/nowhere/model.gguf", 2)] {
        let refused = load(model);
        assert!(refused.code == Some(code) && !refused.err.is_empty(), "{refused:?}");
    }
    assert_eq!(listed(&one).len(), 1);
    let served = load(blue.to_str().unwrap());
    assert!(served.code == Some(0) && served.out.starts_with("Serving blue: "), "{served:?}");
    assert_eq!(computed_by(&ask(&one, "blue", "Hello", 4)), [one.peer.as_str()]);
    assert_eq!(servers(&one, "red"), ["one"]);
    let again = load("blue");
    assert_eq!(again.code, Some(0), "it is served already: {again:?}");
    let route = post(&one.api, "/api/pangea/models/drop", &json!({"model": "blue"}));
    assert_eq!((route.status, &route.json()["pangea"]["state"]), (200, &json!("dropped")));
    assert_eq!(listed(&one).len(), 1);
    let route = post(&one.api, "/api/pangea/models/load", &json!({"model": blue.to_str().unwrap()}));
    assert_eq!((route.status, &route.json()["pangea"]["state"]), (200, &json!("ready")));
}

#[test]
fn a_model_that_nobody_uses_makes_room_and_comes_back_for_the_next_request_at_any_node() {
    let mesh = Mesh::new();
    let one = mesh.serving("one", &["red"]).with("--keep-loaded", "1s").start();
    let two = mesh.cluster.node("two").with("--peer", &one.address).start();
    eventually("both list the model", || [&one, &two].into_iter().all(|node| listed(node).len() == 1));
    let text = ask(&one, "red", "Hello", 8)["choices"][0]["text"].clone();
    let weights = |node: &Node| {
        let memory = node.status().memory;
        memory
            .iter()
            .filter(|held| held.purpose == "weights" || held.purpose == "sessions")
            .map(|held| held.bytes)
            .sum::<u64>()
    };
    for asked in [&one, &two] {
        eventually("the model has left memory", || weights(&one) == 0u64);
        for node in [&one, &two] {
            eventually("it is listed without a node", || listed(node).len() == 1 && servers(node, "red").is_empty());
        }
        let models = listed(&one);
        assert_eq!(models[0]["pangea"]["state"], "unloaded", "{models:?}");
        assert_eq!(get(&one.api, "/readyz").status, 200);
        let answer = ask(asked, "red", "Hello", 8);
        assert_eq!((&answer["choices"][0]["text"], computed_by(&answer)), (&text, vec![one.peer.clone()]));
    }
    assert!(one.process.count("Serving model red") >= 3);
    let client = mesh.cluster.node("client").flag("--client").with("--peer", &one.address).start();
    eventually("the client knows that the model is unloaded", || {
        listed(&client).len() == 1 && servers(&client, "red").is_empty() && weights(&one) == 0u64
    });
    eventually("a lite client's request loads the model", || {
        let body = json!({"model": "red", "prompt": "Hello", "max_tokens": 1});
        let response = post(&client.api, COMPLETIONS, &body);
        assert!(response.status == 200 || response.header("retry-after").is_some(), "{}", response.status);
        response.status == 200
    });
}
