//! A node that serves a model, tested over raw HTTP: answers are equal alone, streamed, beside others and after waiting;
//! errors name the wrong field; work of disconnected clients is cancelled.
#![allow(clippy::unwrap_used)]

mod answers;
mod chat;
mod console;
mod dialects;
mod doors;
mod engine;
mod jobs;
mod keys;
mod load;
mod refusals;
mod tools;

use pangea_tests::cluster::{Cluster, Node, NodeBuilder};
use pangea_tests::http::{self, get, post};
use pangea_tests::process::eventually;
use pangea_tests::test_model::{SMOLLM2, file_of};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

/// A node with SmolLM2 that has answered one request.
struct Serving {
    node: Node,
    _cluster: Cluster,
}

impl Serving {
    /// `None` if the model is not on this machine; the test is then skipped with a message.
    fn start(test: &str) -> Option<Serving> {
        Serving::start_with(test, |node| node)
    }

    fn start_with(test: &str, change: impl Fn(NodeBuilder) -> NodeBuilder) -> Option<Serving> {
        let model = file_of(SMOLLM2, test)?;
        let cluster = Cluster::new();
        let node = change(cluster.node("one").with("--model", model.to_str().unwrap())).start();
        let serving = Serving { node, _cluster: cluster };
        eventually("the node is ready", || get(serving.api(), "/readyz").status == 200);
        Some(serving)
    }

    fn api(&self) -> &str {
        &self.node.api
    }

    fn ask(&self, path: &str, body: &Value) -> Value {
        ask(self.api(), path, body)
    }

    fn stream(&self, path: &str, mut body: Value) -> Vec<Value> {
        body["stream"] = json!(true);
        let response = post(self.api(), path, &body);
        assert_eq!(response.status, 200, "{body}");
        response.events()
    }

    /// Sends a request that must be refused; returns status and body.
    fn refused(&self, path: &str, body: &Value) -> (u16, Value) {
        let response = post(self.api(), path, body);
        assert_ne!(response.status, 200, "{body}");
        (response.status, response.json()["error"].take())
    }

    /// Value of a counter whose only label is the model.
    fn counter(&self, name: &str) -> f64 {
        let text = get(self.api(), "/metrics").text();
        let start = format!("pangea_{name}_total{{");
        let line = text.lines().find(|line| line.starts_with(&start)).unwrap_or_else(|| panic!("no {name} in {text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Number of running and waiting sequences.
    fn busy(&self) -> u64 {
        let models = get(self.api(), "/api/models").json();
        models["models"][0]["running"].as_u64().unwrap() + models["models"][0]["waiting"].as_u64().unwrap()
    }
}

/// Sends a request that must succeed.
fn ask(api: &str, path: &str, body: &Value) -> Value {
    let response = post(api, path, body);
    let status = response.status;
    let answer = response.json();
    assert_eq!(status, 200, "{body}: {answer}");
    answer
}

/// A question to SmolLM2, greedy, with few tokens.
fn question(text: &str, max_tokens: usize) -> Value {
    json!({
        "model": SMOLLM2, "messages": [{"role": "user", "content": text}], "max_tokens": max_tokens, "temperature": 0,
    })
}

fn text_of(answer: &Value, choice: usize) -> &str {
    let choice = &answer["choices"][choice];
    choice["message"]["content"].as_str().or(choice["text"].as_str()).unwrap()
}
