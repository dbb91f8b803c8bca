//! One model whose layers are spread over several real nodes, tested over raw HTTP: answers equal those of a single node,
//! whichever node is asked and whatever happens to the nodes that compute them.
#![allow(clippy::unwrap_used)]

mod answers;
mod architectures;
mod every_token;
mod gpu;
mod lies;
mod losses;
mod memory;

mod names;
mod speeds;

use std::path::PathBuf;

use pangea_tests::cluster::{Cluster, Node, NodeBuilder, Output};
use pangea_tests::http::{Response, get, post};
use pangea_tests::process::eventually;
use pangea_tests::test_model::{SMOLLM2, file_of};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

/// The layers of SmolLM2-135M.
const LAYERS: u64 = 30;

/// A prompt for an answer of a few hundred tokens.
const LONG: &str = "Write a long story about a lighthouse keeper and the sea.";

/// A cluster, and the model that its nodes serve.
struct Stage {
    cluster: Cluster,
    model: PathBuf,
}

impl Stage {
    /// `None` if the model is not on this machine; the test is then skipped with a message.
    fn set(test: &str) -> Option<Stage> {
        Some(Stage { model: file_of(SMOLLM2, test)?, cluster: Cluster::new() })
    }

    /// A node with the file that splits the model.
    fn splitting(&self, name: &str) -> NodeBuilder {
        self.serving(name).flag("--split")
    }

    /// A node with the file.
    fn serving(&self, name: &str) -> NodeBuilder {
        self.cluster.node(name).with("--model", self.model.to_str().unwrap())
    }

    /// The answers of a single node, which has ended when this returns.
    fn alone(&self, questions: &[Value]) -> Vec<String> {
        let node = self.serving("alone").start();
        let texts = questions.iter().map(|question| {
            let answer = ask(&node, question);
            assert_eq!(stages(&answer["pangea"]), [node.peer.as_str()], "{answer}");
            text_of(&answer)
        });
        texts.collect()
    }

    /// Runs `pangea receipts verify` on a receipt of `node`.
    fn verify(&self, node: &Node, receipt: &str) -> Output {
        self.cluster.run(&[
            "receipts",
            "verify",
            receipt,
            "--data-dir",
            node.data_dir.to_str().unwrap(),
            "--model",
            self.model.to_str().unwrap(),
            "--threads",
            "1",
        ])
    }

    /// Checks that every receipt of an answer is stored on `node` and holds.
    fn verify_all(&self, node: &Node, pangea: &Value) {
        let receipts = pangea["receipts"].as_array().unwrap();
        assert!(!receipts.is_empty(), "{pangea}");
        for receipt in receipts {
            let id = receipt.as_str().unwrap();
            // The receipt is written after the answer is sent, and once more with what an audit found.
            let is_kept = |file: PathBuf| {
                let kept: Value = serde_json::from_slice(&std::fs::read(file).unwrap_or_default()).unwrap_or_default();
                pangea["verdict"] == "unchecked" || kept["verdict"] == pangea["verdict"]
            };
            eventually("the receipt is kept", || file_of_receipt(node, id).is_some_and(is_kept));
            let output = self.verify(node, id);
            assert_eq!(output.code, Some(0), "{output:?}");
        }
    }
}

/// The file of a receipt of `node`.
fn file_of_receipt(node: &Node, id: &str) -> Option<PathBuf> {
    let files = std::fs::read_dir(node.data_dir.join("receipts")).ok()?;
    let mut files = files.map(|file| file.unwrap().path());
    files.find(|file| file.to_str().unwrap().ends_with(&format!("-{id}.json")))
}

/// A greedy request.
fn question(text: &str, max_tokens: usize) -> Value {
    json!({
        "model": SMOLLM2, "messages": [{"role": "user", "content": text}], "max_tokens": max_tokens, "temperature": 0,
    })
}

/// Sends a request that must succeed.
fn ask(node: &Node, body: &Value) -> Value {
    let response = post(&node.api, CHAT, body);
    let status = response.status;
    let answer = response.json();
    assert_eq!(status, 200, "{body}: {answer}");
    answer
}

fn text_of(answer: &Value) -> String {
    answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
}

/// The peers of an answer's stages, which must cover the model's layers in order.
fn stages(pangea: &Value) -> Vec<String> {
    let mut at = 0;
    let stages = pangea["stages"].as_array().unwrap().iter().map(|stage| {
        assert_eq!(stage["layers"][0], at, "a gap or an overlap: {pangea}");
        at = stage["layers"][1].as_u64().unwrap();
        stage["peer"].as_str().unwrap().to_owned()
    });
    let peers: Vec<String> = stages.collect();
    assert!(peers.is_empty() || at == LAYERS, "not all layers: {pangea}");
    peers
}

/// Waits until answers through `asked` are computed by exactly these nodes, in any order.
fn computed_by(asked: &Node, nodes: &[&Node]) {
    request_computed_by(asked, CHAT, &question("Hello", 1), nodes);
}

/// The same for answers to this request.
fn request_computed_by(asked: &Node, path: &str, body: &Value, nodes: &[&Node]) {
    let mut wanted: Vec<&str> = nodes.iter().map(|node| node.peer.as_str()).collect();
    wanted.sort_unstable();
    eventually(&format!("answers come from {wanted:?}"), || {
        // While a pool has just lost or found a node, a request may be refused.
        let response = post(&asked.api, path, body);
        if response.status != 200 {
            return false;
        }
        let mut peers = stages(&response.json()["pangea"]);
        peers.sort_unstable();
        peers == wanted
    });
}

/// An answer that is read while it is streamed.
struct Streamed {
    response: Response,
    text: String,
    pangea: Value,
}

impl Streamed {
    fn ask(node: &Node, body: &Value) -> Streamed {
        let mut body = body.clone();
        body["stream"] = json!(true);
        let response = post(&node.api, CHAT, &body);
        assert_eq!(response.status, 200, "{body}");
        Streamed::of(response)
    }

    fn of(response: Response) -> Streamed {
        Streamed { response, text: String::new(), pangea: Value::Null }
    }

    /// Reads one event; returns whether there was one before the end.
    fn next(&mut self) -> bool {
        match self.try_next() {
            Ok(more) => more,
            Err(error) => panic!("after {:?}: {error}", self.text),
        }
    }

    /// Like [`Streamed::next`], or the error that ends the stream.
    fn try_next(&mut self) -> Result<bool, Value> {
        let event = self.response.event().expect("it ends with [DONE]");
        if event == "[DONE]" {
            return Ok(false);
        }
        let event: Value = serde_json::from_str(&event).unwrap();
        if event.get("error").is_some() {
            return Err(event);
        }
        let choice = &event["choices"][0];
        // Of a chat, and of a completion.
        if let Some(text) = choice["delta"]["content"].as_str().or(choice["text"].as_str()) {
            self.text.push_str(text);
        }
        if !event["pangea"].is_null() {
            self.pangea = event["pangea"].clone();
        }
        Ok(true)
    }

    /// Reads until some words have arrived.
    fn has_begun(&mut self) {
        while self.text.split_whitespace().count() < 3 {
            assert!(self.next(), "it ended after {:?}", self.text);
        }
    }

    /// Reads to the end: the whole text, and the `pangea` object.
    fn finish(mut self) -> (String, Value) {
        while self.next() {}
        (self.text, self.pangea)
    }
}
