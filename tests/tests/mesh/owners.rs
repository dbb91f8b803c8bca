//! Nodes with the same model, and with different ones: each answers its own, and load is shared.

use std::collections::BTreeMap;

use pangea_tests::cluster::Node;
use pangea_tests::process::eventually;
use pangea_tests::tiny_model::TinyModel;
use serde_json::Value;

use crate::{Mesh, ask, ask_at, computed_by, listed, served_by};

/// How many of `count` parallel requests to `asked` each node computed.
fn shares(asked: &Node, model: &str, count: usize, max_tokens: usize) -> BTreeMap<String, usize> {
    let api = asked.api.as_str();
    let answers: Vec<Vec<String>> = std::thread::scope(|scope| {
        let asking: Vec<_> = (0..count)
            .map(|at| scope.spawn(move || computed_by(&ask_at(api, model, &format!("{at} is a number"), max_tokens))))
            .collect();
        asking.into_iter().map(|asking| asking.join().unwrap()).collect()
    });
    let mut shares = BTreeMap::new();
    for peers in answers {
        assert_eq!(peers.len(), 1, "no split was asked for");
        *shares.entry(peers[0].clone()).or_default() += 1;
    }
    shares
}

/// Waits until a node lists no server of a model with a running or waiting answer.
fn idle(node: &Node, model: &str) {
    eventually("every server is idle", || {
        let models = listed(node);
        let nodes = models.iter().find(|listed| listed["id"] == model).unwrap()["pangea"]["nodes"].clone();
        nodes.as_array().unwrap().iter().all(|node| node["running"] == 0 && node["waiting"] == 0)
    });
}

#[test]
fn two_owners_of_one_model_share_the_load_and_each_answers_its_own_clients() {
    let mesh = Mesh::new();
    let one = mesh.serving("one", &["tiny"]).start();
    let two = mesh.serving("two", &["tiny"]).with("--peer", &one.address).start();
    for node in [&one, &two] {
        served_by(node, "tiny", &["one", "two"]);
        let answer = ask(node, "tiny", "Hello", 4);
        assert_eq!((computed_by(&answer), &answer["pangea"]["verdict"]), (vec![node.peer.clone()], &"local".into()));
    }
    for node in [&one, &two] {
        idle(node, "tiny");
        let shares = shares(node, "tiny", 32, 200);
        assert!(shares.len() == 2 && shares.values().all(|share| *share >= 4), "{shares:?}");
    }
}

#[test]
fn a_node_that_is_to_serve_what_it_has_not_says_so_and_uses_the_pools() {
    let mesh = Mesh::new();
    let one = mesh.serving("one", &["tiny"]).start();
    let two = mesh.cluster.node("two").with("--model", "tiny").with("--model", "smollm2").with("--peer", &one.address);
    let two = two.start();
    let folder = two.data_dir.join("models");
    let said = two.process.line("Model tiny is not on this node").text;
    for part in [folder.to_str().unwrap(), "`pangea models pull NAME`", "`pangea models list`", "a node of the pool"] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    two.process.line("the first request downloads it, or `pangea models pull smollm2`");
    served_by(&two, "tiny", &["one"]);
    assert_eq!(computed_by(&ask(&two, "tiny", "Hello", 4)), std::slice::from_ref(&one.peer));
}

#[test]
fn a_node_without_files_uses_every_owner_and_another_one_when_one_dies() {
    let mesh = Mesh::new();
    let one = mesh.serving("one", &["tiny"]).start();
    let two = mesh.serving("two", &["tiny"]).with("--peer", &one.address).start();
    let three = mesh.cluster.node("three").with("--peer", &one.address).with("--peer", &two.address).start();
    served_by(&three, "tiny", &["one", "two"]);
    let first = ask(&three, "tiny", "Hello", 8)["choices"][0]["text"].clone();
    idle(&three, "tiny");
    let shares = shares(&three, "tiny", 32, 200);
    assert!(shares.len() == 2 && !shares.contains_key(&three.peer), "{shares:?}");
    two.kill9();
    let answer = ask(&three, "tiny", "Hello", 8);
    assert_eq!((&answer["choices"][0]["text"], computed_by(&answer)), (&first, vec![one.peer.clone()]));
    served_by(&three, "tiny", &["one"]);
}

#[test]
fn every_node_lists_and_answers_the_models_of_all_nodes() {
    let mesh = Mesh::new();
    let one = mesh.serving("one", &["red", "green"]).start();
    let two = mesh.serving("two", &["blue"]).with("--peer", &one.address).start();
    let three = mesh.cluster.node("three").with("--peer", &one.address).with("--peer", &two.address).start();
    for node in [&one, &two, &three] {
        for (model, owner) in [("red", &one), ("green", &one), ("blue", &two)] {
            let name = if owner.peer == one.peer { "one" } else { "two" };
            served_by(node, model, &[name]);
            assert_eq!(computed_by(&ask(node, model, "Hello", 4)), [owner.peer.as_str()], "{model}");
        }
        assert_eq!(listed(node).len(), 3);
    }
}

#[test]
fn a_joiners_own_copy_of_a_file_is_used_and_neither_fetched_nor_stored_again() {
    let mesh = Mesh::new();
    let one = mesh.serving("one", &["tiny"]).flag("--split").start();
    let joiner = mesh.cluster.node("two").with("--peer", &one.address);
    let models = joiner.data_dir().join("models");
    std::fs::create_dir_all(&models).unwrap();
    std::fs::copy(mesh.file("tiny"), models.join("other-name.gguf")).unwrap();
    // Nobody asked for this file, which looks like the other one.
    std::fs::copy(mesh.file("private"), models.join("private.gguf")).unwrap();
    let two = joiner.start();
    let line = two.process.line("Model tiny: using the file ").text;
    assert!(line.contains("models/other-name.gguf of this node"), "{line}");
    eventually("both nodes compute", || computed_by(&ask(&one, "tiny", "Hello", 1)).len() == 2);
    assert_eq!(ask(&two, "tiny", "Hello", 4)["choices"].as_array().unwrap().len(), 1);
    let stored = std::fs::read_dir(two.data_dir.join("blobs")).unwrap();
    let stored: Vec<_> = stored.map(|entry| entry.unwrap().file_name()).filter(|name| name != "manifests").collect();
    assert!(stored.is_empty(), "{stored:?}");
    assert!(listed(&one).iter().all(|model| model["id"] != "private"));
}

#[test]
fn a_model_in_several_files_is_one_model_whose_layers_other_nodes_fetch() {
    let mesh = Mesh::new();
    let model = TinyModel { name: "Big".to_owned(), layers: 4, width: 128, ..TinyModel::default() };
    let whole = mesh.cluster.folder().join("Big.gguf");
    std::fs::write(&whole, model.gguf()).unwrap();
    let alone = mesh.cluster.node("alone").with("--model", whole.to_str().unwrap()).start();
    let text = ask(&alone, "Big", "Hello", 8)["choices"][0]["text"].clone();
    assert_eq!(alone.terminate(), Some(0));
    // The second part begins in the middle of a layer.
    let first = model.write_parts(mesh.cluster.folder(), "Big", &[6, 15]);
    let one = mesh.cluster.node("one").with("--model", first.to_str().unwrap()).flag("--split").start();
    let two = mesh.cluster.node("two").with("--peer", &one.address).start();
    let mut answer = Value::Null;
    eventually("both nodes compute", || {
        answer = ask(&one, "Big", "Hello", 8);
        computed_by(&answer).len() == 2 && computed_by(&answer).contains(&two.peer)
    });
    assert_eq!(answer["choices"][0]["text"], text);
    // The same model in one file is the same model.
    let three =
        mesh.cluster.node("three").with("--model", whole.to_str().unwrap()).with("--peer", &one.address).start();
    served_by(&three, "Big", &["one", "three"]);
    assert_eq!(ask(&three, "Big", "Hello", 8)["choices"][0]["text"], text);
}
