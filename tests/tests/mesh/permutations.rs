//! The permutations of mesh-llm, by their numbers:
//!
//! | case | test |
//! |---|---|
//! | 1, 2: one node; two that have the model | `case_1_and_2_…` |
//! | 3, 14: forced split by memory, worker killed | `case_3_and_14_…` |
//! | 4: a model too big for one | `case_4_…` |
//! | 6, 7, 13: two models, auto-assignment, nothing starts twice | `case_6_7_and_13_…` |
//! | 9: drop | `loading::a_dropped_model_…` |
//! | 11, 12: a node dies and returns | `losses::a_killed_node_…`; here what becomes of an assigned model |

use std::time::{Duration, Instant};

use pangea_tests::cluster::Node;
use pangea_tests::http::{get, post};
use pangea_tests::process::eventually;
use pangea_tests::test_model::{SMOLLM2, file_of};
use serde_json::{Value, json};

use crate::{COMPLETIONS, Mesh, ask, computed_by, listed, served_by, servers};

/// Time within which a model whose worker was killed is answered by its owner alone.
const SOLO_WITHIN: Duration = Duration::from_secs(5);

/// The layers that each peer computed of an answer.
fn shares(answer: &Value) -> Vec<(String, u64)> {
    let stages = answer["pangea"]["stages"].as_array().unwrap();
    let layers = |stage: &Value| stage["layers"][1].as_u64().unwrap() - stage["layers"][0].as_u64().unwrap();
    stages.iter().map(|stage| (stage["peer"].as_str().unwrap().to_owned(), layers(stage))).collect()
}

fn bytes_of(node: &Node, purpose: &str) -> u64 {
    node.status().memory.iter().filter(|held| held.purpose == purpose).map(|held| held.bytes).sum()
}

#[test]
fn case_1_and_2_a_node_alone_serves_and_two_that_have_the_model_serve_it_without_a_split() {
    let mesh = Mesh::new();
    let one = mesh.serving("one", &["red"]).start();
    served_by(&one, "red", &["one"]);
    let answer = ask(&one, "red", "Hello", 8);
    assert_eq!((computed_by(&answer), &answer["pangea"]["verdict"]), (vec![one.peer.clone()], &json!("local")));
    let topology = get(&one.api, "/api/pangea/topology").json();
    assert_eq!((topology["nodes"].as_array().unwrap().len(), &topology["nodes"][0]["models"]), (1, &json!(["red"])));
    one.process.line("Node elected master");
    assert_eq!(one.status().peers, 0);
    let two = mesh.serving("two", &["red"]).with("--peer", &one.address).start();
    for node in [&one, &two] {
        served_by(node, "red", &["one", "two"]);
        let own = ask(node, "red", "Hello", 8);
        assert_eq!(
            (computed_by(&own), &own["choices"][0]["text"]),
            (vec![node.peer.clone()], &answer["choices"][0]["text"])
        );
    }
}

#[test]
fn case_3_and_14_a_forced_split_follows_memory_and_is_undone_when_the_worker_is_killed() {
    let Some(file) = file_of(SMOLLM2, "a forced split follows memory") else { return };
    let mesh = Mesh::new();
    let one = mesh.cluster.node("one").with("--model", file.to_str().unwrap()).flag("--split").start();
    let solo = ask(&one, SMOLLM2, "The sea is", 24);
    assert_eq!(shares(&solo), [(one.peer.clone(), 30)]);
    // Enough for the head and for one of thirty layers.
    let worker = mesh.cluster.node("worker").flag("--ephemeral").max_memory("40M").with("--peer", &one.address).start();
    let mut split = Value::Null;
    eventually("both nodes compute", || {
        split = ask(&one, SMOLLM2, "The sea is", 24);
        computed_by(&split).len() == 2
    });
    let mut layers = shares(&split);
    layers.sort_by_key(|(peer, _)| *peer != worker.peer);
    assert_eq!(layers, [(worker.peer.clone(), 1), (one.peer.clone(), 29)]);
    let text = &solo["choices"][0]["text"];
    assert_eq!(&split["choices"][0]["text"], text);
    // The answer that runs while the worker dies goes on with the same text.
    let body = json!({"model": SMOLLM2, "prompt": "The sea is", "max_tokens": 24, "temperature": 0, "stream": true});
    let mut running = post(&one.api, COMPLETIONS, &body);
    let mut events = vec![serde_json::from_str::<Value>(&running.event().unwrap()).unwrap()];
    worker.kill9();
    let killed = Instant::now();
    events.extend(running.events());
    let took = killed.elapsed();
    assert!(took < SOLO_WITHIN, "{took:?}");
    let streamed: String = events.iter().filter_map(|event| event["choices"][0]["text"].as_str()).collect();
    assert_eq!(json!(streamed), *text);
    one.process.line(&format!("Peer {} is gone", worker.peer));
    let again = ask(&one, SMOLLM2, "The sea is", 24);
    assert_eq!((shares(&again), &again["choices"][0]["text"]), (vec![(one.peer.clone(), 30)], text));
    let took = killed.elapsed();
    assert!(took < SOLO_WITHIN, "{took:?}");
    // A worker that holds no layer at all is left out, and the log says why.
    let small = mesh.cluster.node("small").flag("--ephemeral").max_memory("16M").with("--peer", &one.address).start();
    one.process.line(&format!("Connected to peer {}", small.peer));
    let line = one.process.line(&format!("small has no layers of {SMOLLM2}: ")).text;
    assert!(line.contains("MiB"), "{line}");
}

#[test]
fn case_4_a_model_too_big_for_one_node_is_split_and_keeps_to_the_memory_of_each() {
    let mesh = Mesh::new();
    let file = mesh.large_file("large");
    let alone = mesh.cluster.node("alone").with("--model", file.to_str().unwrap()).start();
    let text = ask(&alone, "large", "Hello", 8)["choices"][0]["text"].clone();
    assert_eq!(alone.terminate(), Some(0));
    let one = mesh.cluster.node("one").with("--model", file.to_str().unwrap()).max_memory("40M").start();
    let two = mesh.cluster.node("two").max_memory("40M").with("--peer", &one.address).start();
    let mut answer = Value::Null;
    eventually("both nodes compute", || {
        let body = json!({"model": "large", "prompt": "Hello", "max_tokens": 8, "temperature": 0});
        let response = post(&one.api, COMPLETIONS, &body);
        let is_answered = response.status == 200;
        answer = response.json();
        is_answered && computed_by(&answer).len() == 2
    });
    assert_eq!(answer["choices"][0]["text"], text);
    for node in [&one, &two] {
        assert!(bytes_of(node, "weights") > 0, "{:?}", node.status().memory);
        assert!(node.status().memory_used_bytes <= 40 << 20, "{:?}", node.status().memory);
    }
}

#[test]
fn case_6_7_and_13_a_joiner_is_assigned_what_the_pool_needs_once_and_keeps_to_it() {
    let mesh = Mesh::new();
    let (red, blue) = (mesh.large_file("red"), mesh.large_file("blue"));
    let (red, blue) = (red.to_str().unwrap(), blue.to_str().unwrap());
    let one = mesh.cluster.node("one").with("--model", red).with("--model", blue).max_memory("64M").start();
    // The first has room for one of its two models.
    let mut kept = Vec::new();
    eventually("one model is served", || {
        kept = ["red", "blue"].into_iter().filter(|model| servers(&one, model) == ["one"]).collect();
        kept.len() == 1 && one.process.count("does not fit this node alone") == 1
    });
    let needed = if kept == ["red"] { "blue" } else { "red" };
    let joiner = mesh.cluster.node("two").max_memory("64M").with("--peer", &one.address);
    let models = joiner.data_dir().join("models");
    std::fs::create_dir_all(&models).unwrap();
    std::fs::copy(mesh.cluster.folder().join(format!("{needed}.gguf")), models.join("mine.gguf")).unwrap();
    let two = joiner.start();
    let assigned = format!("Assigned to serve {needed} (needed by the pool, already on disk)");
    two.process.line(&assigned);
    for node in [&one, &two] {
        served_by(node, kept[0], &["one"]);
        served_by(node, needed, &["two"]);
        assert_eq!(computed_by(&ask(node, kept[0], "Hello", 4)), [one.peer.as_str()]);
        assert_eq!(computed_by(&ask(node, needed, "Hello", 4)), [two.peer.as_str()]);
        assert_eq!(listed(node).len(), 2);
        assert!(node.status().memory_used_bytes <= 64 << 20, "{:?}", node.status().memory);
    }
    let stored = std::fs::read_dir(two.data_dir.join("blobs")).unwrap();
    let stored: Vec<String> = stored.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let models = listed(&two);
    let digest = models.iter().find(|model| model["id"] == needed).unwrap()["pangea"]["digest"].as_str().unwrap();
    assert!(!stored.iter().any(|name| name == digest), "its own file is neither fetched nor stored again: {stored:?}");
    // A new master decides the same once more, which changes nothing and is said once.
    let three = mesh.cluster.node("three").flag("--force-master").max_memory("16M");
    let three = three.with("--peer", &one.address).with("--peer", &two.address).start();
    two.process.line(&format!("Node {} elected master", three.peer));
    two.process.line(&format!("Still serving {needed}, nothing to change"));
    three.kill9();
    two.process.nth_line("elected master", 3);
    assert_eq!(computed_by(&ask(&one, needed, "Hello", 4)), [two.peer.as_str()]);
    for (text, count) in [(assigned.as_str(), 1), ("Loading layers", 1), ("nothing to change", 1)] {
        assert_eq!(two.process.count(text), count, "{text}");
    }
    assert_eq!(one.process.count(&format!("Serving model {}", kept[0])), 1);
    // The assigned model leaves the lists with its node, and is warm again with it.
    two.kill9();
    eventually("it is cold", || servers(&one, needed).is_empty());
    assert_eq!(computed_by(&ask(&one, kept[0], "Hello", 4)), [one.peer.as_str()], "others are unaffected");
    let two = joiner.start();
    two.process.line(&assigned);
    served_by(&one, needed, &["two"]);
    assert_eq!(computed_by(&ask(&one, needed, "Hello", 4)), [two.peer.as_str()]);
}
