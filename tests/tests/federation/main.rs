//! Nodes whose answers are put to the vote, as real processes: what a vote answers with, that it can be replayed, that it helps
//! where answers can be compared and costs nothing where they cannot, and what is left of it when nodes fail.
#![allow(clippy::unwrap_used)]

mod alone;
mod hosts;
mod peers;
mod questions;

use pangea_tests::cluster::{Cluster, Node, NodeBuilder};
use pangea_tests::http::{get, post};
use pangea_tests::process::eventually;
use pangea_tests::test_model::{SMOLLM2, file_of};
use serde_json::{Value, json};

const VOTE: &str = "/v1/federation/vote";
const CHAT: &str = "/v1/chat/completions";

/// A node with SmolLM2 that has answered one request; `None` if the model is not on this machine.
fn serving(cluster: &Cluster, name: &str, test: &str, change: impl Fn(NodeBuilder) -> NodeBuilder) -> Option<Node> {
    let model = file_of(SMOLLM2, test)?;
    let node = change(cluster.node(name).with("--model", model.to_str().unwrap())).start();
    eventually("the node is ready", || get(&node.api, "/readyz").status == 200);
    Some(node)
}

/// Sends a request that must succeed.
fn ask(node: &Node, path: &str, body: &Value) -> Value {
    let response = post(&node.api, path, body);
    let status = response.status;
    let answer = response.json();
    assert_eq!(status, 200, "{body}: {answer}");
    answer
}

/// A question that SmolLM2 answers with one word or number, after examples.
fn question(text: &str) -> Value {
    let mut messages = vec![json!({"role": "system", "content": "Answer with one word or one number."})];
    for (question, answer) in [
        ("What is the capital of Sweden?", "Stockholm"),
        ("What is 1 + 1?", "2"),
        ("What is the opposite of open?", "closed"),
        ("What do bees make?", "honey"),
    ] {
        messages.push(json!({"role": "user", "content": question}));
        messages.push(json!({"role": "assistant", "content": answer}));
    }
    messages.push(json!({"role": "user", "content": text}));
    // Members and votes are compared under the same terms, which are not those that the model recommends.
    json!({"model": SMOLLM2, "messages": messages, "max_tokens": 12, "seed": 1000, "temperature": 0.8, "top_p": 0.95})
}

/// A request that no vote helps.
fn story() -> Value {
    let messages = [json!({"role": "user", "content": "Tell me about the sea."})];
    json!({"model": SMOLLM2, "messages": messages, "max_tokens": 32, "seed": 7})
}

/// `body` with more fields.
fn with(mut body: Value, more: Value) -> Value {
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn text_of(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().unwrap()
}

fn ballots(answer: &Value) -> &Vec<Value> {
    answer["ballots"].as_array().unwrap_or_else(|| panic!("no ballots in {answer}"))
}

/// The texts of the ballots that were counted.
fn counted(answer: &Value) -> Vec<&str> {
    let counted = ballots(answer).iter().filter(|ballot| ballot["counted"] == true);
    counted.map(|ballot| ballot["text"].as_str().unwrap()).collect()
}
