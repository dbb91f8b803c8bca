//! Several nodes and several models: who answers what, how load is shared, what every node lists and logs. Everything is seen as
//! a person or a program sees it: flags, HTTP, log lines.
#![allow(clippy::unwrap_used)]

mod clients;
mod hashing;
mod loading;
mod logs;
mod losses;
mod owners;
mod passive;
mod permutations;
mod tunnels;

use std::path::PathBuf;

use pangea_tests::cluster::{Cluster, Node, NodeBuilder};
use pangea_tests::http::{get, post};
use pangea_tests::process::eventually;
use pangea_tests::tiny_model::TinyModel;
use serde_json::{Value, json};

const COMPLETIONS: &str = "/v1/completions";

/// A cluster whose nodes serve tiny models.
struct Mesh {
    cluster: Cluster,
}

impl Mesh {
    fn new() -> Mesh {
        Mesh { cluster: Cluster::new() }
    }

    /// A model file of this name. Models of different names are different.
    fn file(&self, name: &str) -> PathBuf {
        let path = self.cluster.folder().join(format!("{name}.gguf"));
        let seed = name.bytes().fold(1, |seed, byte| seed * 31 + u64::from(byte));
        std::fs::write(&path, TinyModel { name: name.to_owned(), seed, ..TinyModel::default() }.gguf()).unwrap();
        path
    }

    /// A file of this name of about 40 MB: with its sessions it takes more than half of 64 MiB.
    fn large_file(&self, name: &str) -> PathBuf {
        let path = self.cluster.folder().join(format!("{name}.gguf"));
        let seed = name.bytes().fold(1, |seed, byte| seed * 31 + u64::from(byte));
        let model = TinyModel { name: name.to_owned(), seed, layers: 4, width: 512, ..TinyModel::default() };
        std::fs::write(&path, model.gguf()).unwrap();
        path
    }

    /// A node that serves these models.
    fn serving(&self, name: &str, models: &[&str]) -> NodeBuilder {
        models
            .iter()
            .fold(self.cluster.node(name), |node, model| node.with("--model", self.file(model).to_str().unwrap()))
    }
}

/// Asks a node for a few tokens; the answer must come.
fn ask(node: &Node, model: &str, prompt: &str, max_tokens: usize) -> Value {
    ask_at(&node.api, model, prompt, max_tokens)
}

/// The same, at the address of a node's API.
fn ask_at(api: &str, model: &str, prompt: &str, max_tokens: usize) -> Value {
    let body = json!({"model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0});
    let response = post(api, COMPLETIONS, &body);
    let status = response.status;
    let answer = response.json();
    assert_eq!(status, 200, "{answer}");
    answer
}

/// The peers that computed an answer.
fn computed_by(answer: &Value) -> Vec<String> {
    let stages = answer["pangea"]["stages"].as_array().unwrap();
    stages.iter().map(|stage| stage["peer"].as_str().unwrap().to_owned()).collect()
}

/// The models that a node lists.
fn listed(node: &Node) -> Vec<Value> {
    get(&node.api, "/v1/models").json()["data"].as_array().unwrap().clone()
}

/// The names of the nodes that answer a model, as `node` lists them.
fn servers(node: &Node, model: &str) -> Vec<String> {
    let models = listed(node);
    let Some(model) = models.iter().find(|listed| listed["id"] == model) else { return Vec::new() };
    let nodes = model["pangea"]["nodes"].as_array().into_iter().flatten();
    let mut names: Vec<String> = nodes.map(|node| node["name"].as_str().unwrap().to_owned()).collect();
    names.sort_unstable();
    names
}

/// Waits until a node lists exactly these servers of a model.
fn served_by(node: &Node, model: &str, names: &[&str]) {
    eventually(&format!("{model} is served by {names:?}"), || servers(node, model) == names);
}
