//! A model file that is new to its node: requests there are answered before the file is hashed; no other node hears of the model
//! until it is.

use pangea_tests::cluster::Node;
use pangea_tests::http::{get, post};
use pangea_tests::process::eventually;
use serde_json::{Value, json};

use crate::{COMPLETIONS, Mesh, ask, computed_by, listed, served_by};

/// What a node says of the model that it lists.
fn said(node: &Node) -> Value {
    let models = listed(node);
    assert_eq!(models.len(), 1, "{models:?}");
    models[0]["pangea"].clone()
}

#[test]
fn a_model_answers_before_its_file_is_hashed_and_nobody_else_hears_of_it() {
    let mesh = Mesh::new();
    let one = mesh.serving("one", &["red"]).fault("late-hash").start();
    let two = mesh.cluster.node("two").with("--peer", &one.address).start();
    two.process.line(&format!("Connected to peer {}", one.peer));
    eventually("the node is ready", || get(&one.api, "/readyz").status == 200);
    let answer = ask(&one, "red", "Hello", 8);
    assert_eq!((&answer["pangea"]["verdict"], computed_by(&answer)), (&json!("local"), vec![one.peer.clone()]));
    assert_eq!(answer["pangea"]["receipts"], json!([]), "there is no digest that could be signed for: {answer}");
    let said = said(&one);
    assert_eq!((&said["state"], &said["digest"], &said["nodes"]), (&json!("ready"), &json!(null), &json!([])));
    let embedded = post(&one.api, "/v1/embeddings", &json!({"model": "red", "input": "Hello"}));
    assert_eq!(embedded.status, 200);
    let topology = get(&one.api, "/api/pangea/topology").json();
    let serves = |node: &Value| !node["models"].as_array().unwrap().is_empty();
    assert!(!topology["nodes"].as_array().unwrap().iter().any(serves), "{topology}");
    assert!(listed(&two).is_empty());
    // What answers can be dropped.
    let dropped = post(&one.api, "/api/pangea/models/drop", &json!({"model": "red"}));
    assert_eq!(dropped.status, 200);
    assert!(listed(&one).is_empty());
    one.process.line("Unloaded model red");
    let holds = || one.status().memory.iter().any(|held| held.bytes > 0 && held.purpose == "weights");
    eventually("its memory is free", || !holds());
}

#[test]
fn a_model_that_gets_its_digest_between_answers_gives_the_same_ones_at_every_node() {
    let mesh = Mesh::new();
    let owner = mesh.serving("one", &["red"]);
    let one = owner.start();
    let two = mesh.cluster.node("two").with("--peer", &one.address).start();
    // The file is hashed once the model is ready, so while this answer is computed, or just before.
    let body = json!({"model": "red", "prompt": "Hello", "max_tokens": 400, "temperature": 0, "stream": true});
    let streamed = post(&one.api, COMPLETIONS, &body).events();
    let text: String = streamed.iter().filter_map(|event| event["choices"][0]["text"].as_str()).collect();
    one.process.line("Model red is known to the pool now");
    served_by(&two, "red", &["one"]);
    assert!(said(&one)["digest"].is_string());
    for asked in [&one, &two] {
        let answer = ask(asked, "red", "Hello", 400);
        assert_eq!(
            (answer["choices"][0]["text"].as_str(), computed_by(&answer)),
            (Some(&*text), vec![one.peer.clone()])
        );
    }
    // The first answer, which the node asked itself for, and two here.
    let metrics = get(&one.api, "/metrics").text();
    let answered =
        metrics.lines().find(|line| line.starts_with("pangea_requests_total{model=\"red\"")).unwrap_or_default();
    assert!(answered.ends_with(" 3"), "the counters go on: {answered:?}");
    // A node that knows the file is as before: it is in the pool as soon as it answers.
    assert_eq!(one.terminate(), Some(0));
    let one = owner.start();
    eventually("the node is ready", || get(&one.api, "/readyz").status == 200);
    assert!(said(&one)["digest"].is_string());
    assert_eq!(one.process.count("is known to the pool now"), 0);
}

#[test]
fn a_file_that_is_replaced_before_it_is_hashed_is_loaded_again() {
    let mesh = Mesh::new();
    let one = mesh.serving("one", &["red"]).fault("late-hash").start();
    let before = ask(&one, "red", "Hello", 40)["choices"][0]["text"].clone();
    // Another model under the same name; with it, the file is hashed.
    std::fs::rename(mesh.file("blue"), mesh.cluster.folder().join("red.gguf")).unwrap();
    std::fs::create_dir_all(one.data_dir.join("models")).unwrap();
    std::fs::write(one.data_dir.join("models").join("hash"), "").unwrap();
    one.process.line("Model red is known to the pool now");
    served_by(&one, "red", &["one"]);
    let after = ask(&one, "red", "Hello", 40)["choices"][0]["text"].clone();
    assert_ne!(before, after, "the digest is that of the layers that answer");
    assert_eq!(one.terminate(), Some(0));
    let alone =
        mesh.cluster.node("two").with("--model", mesh.cluster.folder().join("red.gguf").to_str().unwrap()).start();
    assert_eq!(ask(&alone, "red", "Hello", 40)["choices"][0]["text"], after);
}
