//! Requests to every node, one after the other on each: products whose every bit is known, and answers whose text is
//! known. Each reply is judged: right, or a clear refusal, or broken off by the end of the very node that was asked.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use pangea_client::blocking::Client;
use pangea_client::{ErrorKind, MatmulOptions, Place};
use pangea_compute::{DType, Digest, Tensor};
use pangea_tests::cluster::Cluster;
use pangea_tests::http::{post, try_send};
use pangea_tests::matrix::{multiply, operands, reference};
use pangea_tests::namespaces::Namespace;
use pangea_tests::process::{TIMEOUT, eventually};
use pangea_tests::test_model::SMOLLM2;
use serde_json::{Value, json};

use super::hosts::{API, Hosts, Lifetime, RPC};

/// Wait of a client whose node cannot be reached before it tries again.
const RETRY: Duration = Duration::from_millis(200);

/// Kinds of errors that are no fault of the request: the pool could not do it now.
const CLEAR: [ErrorKind; 4] =
    [ErrorKind::Unavailable, ErrorKind::Overloaded, ErrorKind::DeadlineExceeded, ErrorKind::Cancelled];

/// Statuses of the same kinds.
const CLEAR_STATUSES: [u16; 3] = [429, 503, 504];

/// Status of a model that a node has not heard of: one that starts while the model's owner is away hears of a pool without it.
const UNKNOWN_STATUS: u16 = 404;

/// Sides of the products: less than a tile, some tiles, seconds of work for one core.
const SHAPES: [(usize, usize, usize); 3] = [(300, 200, 260), (900, 1100, 1000), (2000, 1800, 2200)];

const QUESTIONS: [(&str, usize); 3] = [
    ("What is the capital of France?", 16),
    ("Write a long story about a lighthouse keeper and the sea.", 96),
    ("Tell me about the moon.", 40),
];

/// The running clients.
pub(crate) struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
}

struct Shared {
    over: AtomicBool,
    products: Vec<(Tensor, Tensor, Digest)>,
    answers: Vec<String>,
    tally: Mutex<Tally>,
    /// Requests of each client that were answered in full, since a test last looked.
    answered: Vec<AtomicU64>,
}

/// What became of all requests.
#[derive(Clone, Default)]
pub(crate) struct Tally {
    /// Products and answers that were right; answers that went on after a failover, products with remote tiles.
    products: u64,
    remote: u64,
    answers: u64,
    failovers: u64,
    /// Refusals by their kind.
    refused: BTreeMap<String, u64>,
    /// Requests that found no node, or ended because the node that was asked ended.
    broken_off: u64,
}

/// How one request ended.
enum Outcome {
    Product {
        remote: bool,
    },
    Answer {
        failovers: u64,
    },
    Refused(String),
    /// The node does not know the model.
    Unknown(String),
    /// The connection broke, or the node was not there.
    Broken(String),
}

impl Load {
    /// Starts a client at every node.
    pub(crate) fn start(cluster: &Cluster, hosts: &Hosts, model: &Path) -> Load {
        let products = SHAPES.map(|(m, k, n)| {
            let (a, b) = operands(DType::I8, m, k, n);
            let digest = reference(&a, &b).digest();
            (a, b, digest)
        });
        let shared = Arc::new(Shared {
            over: AtomicBool::new(false),
            products: products.into(),
            answers: answers_of_one_node(cluster, model),
            tally: Mutex::default(),
            answered: hosts.iter().map(|_| AtomicU64::new(0)).collect(),
        });
        let clients = hosts.iter().enumerate().map(|(index, host)| {
            let (shared, namespace, lifetime) =
                (Arc::clone(&shared), host.namespace().clone(), host.lifetime().clone());
            std::thread::spawn(move || shared.ask_until_over(index, &namespace, &lifetime))
        });
        Load { clients: clients.collect(), shared }
    }

    /// Waits until each client has had several answers and products since now.
    pub(crate) fn everything_is_answered(&self) {
        self.shared.answered.iter().for_each(|count| count.store(0, Ordering::SeqCst));
        let enough = 2 * (SHAPES.len() + QUESTIONS.len()) as u64;
        eventually("every client is answered", || {
            self.nobody_failed();
            self.shared.answered.iter().all(|count| count.load(Ordering::SeqCst) >= enough)
        });
    }

    /// Checks that every client is still asking: one that got a wrong reply has ended.
    pub(crate) fn nobody_failed(&self) {
        assert!(!self.clients.iter().any(JoinHandle::is_finished), "a client got a wrong reply, see above");
    }

    /// Ends all clients; what became of their requests.
    pub(crate) fn stop(self) -> Tally {
        self.shared.over.store(true, Ordering::SeqCst);
        for client in self.clients {
            client.join().unwrap();
        }
        self.shared.tally.lock().unwrap().clone()
    }
}

impl Shared {
    fn ask_until_over(&self, index: usize, namespace: &Namespace, lifetime: &Lifetime) {
        namespace.enter();
        // The process whose node has answered a question: it knows the model.
        let mut knows = None;
        for turn in index.. {
            if self.over.load(Ordering::SeqCst) {
                return;
            }
            let before = lifetime.count();
            let outcome = match turn % 2 {
                0 => self.multiply(turn / 2),
                _ => self.chat(turn / 2),
            };
            match &outcome {
                Outcome::Broken(why) => {
                    assert!(!lifetime.unbroken_since(before), "node {index} ran all the while, yet: {why}");
                }
                Outcome::Answer { .. } if lifetime.unbroken_since(before) => knows = Some(before),
                Outcome::Unknown(text) => {
                    let forgot = knows.is_some_and(|life| lifetime.unbroken_since(life));
                    assert!(!forgot, "node {index} answered this model's questions, yet: {text}");
                }
                _ => {}
            }
            let mut tally = self.tally.lock().unwrap();
            let mut refused = |kind| *tally.refused.entry(kind).or_default() += 1;
            let is_answered = match outcome {
                Outcome::Product { remote } => {
                    tally.products += 1;
                    tally.remote += u64::from(remote);
                    true
                }
                Outcome::Answer { failovers } => {
                    tally.answers += 1;
                    tally.failovers += u64::from(failovers > 0);
                    true
                }
                Outcome::Refused(kind) => {
                    refused(kind);
                    false
                }
                Outcome::Unknown(_) => {
                    refused(format!("answer {UNKNOWN_STATUS} by a node that was started anew"));
                    false
                }
                Outcome::Broken(_) => {
                    tally.broken_off += 1;
                    false
                }
            };
            drop(tally);
            if is_answered {
                self.answered[index].fetch_add(1, Ordering::SeqCst);
            } else {
                std::thread::sleep(RETRY);
            }
        }
    }

    fn multiply(&self, turn: usize) -> Outcome {
        let (a, b, digest) = &self.products[turn % self.products.len()];
        let place = if turn.is_multiple_of(3) { Place::Auto } else { Place::Remote };
        let options = MatmulOptions { place, ..MatmulOptions::default() };
        let client = match Client::connect(RPC, TIMEOUT) {
            Ok(client) => client,
            Err(error) => return Outcome::Broken(format!("connecting: {error}")),
        };
        match multiply(&client, a, b, &options) {
            Ok(product) => {
                assert_eq!(product.c.digest(), *digest, "a wrong product of {:?}: {:?}", a.shape(), product.report);
                assert!(product.report.verification.rejected.is_empty(), "nobody lied: {:?}", product.report);
                Outcome::Product { remote: product.report.tasks.remote > 0 }
            }
            // A client whose node is gone says `Unavailable` as well; which of the two it is, the node's lifetime tells.
            Err(error) if client.status().is_err() => Outcome::Broken(error.to_string()),
            Err(error) => {
                assert!(CLEAR.contains(&error.kind()), "a product ended with {:?}: {error}", error.kind());
                Outcome::Refused(format!("product {}", error.kind().name()))
            }
        }
    }

    fn chat(&self, turn: usize) -> Outcome {
        let turn = turn % QUESTIONS.len();
        let body = question(turn, true).to_string();
        let json = [("Content-Type", "application/json")];
        let mut response = match try_send(API, "POST", "/v1/chat/completions", &json, &body) {
            Ok(response) => response,
            Err(error) => return Outcome::Broken(format!("asking: {error}")),
        };
        let status = response.status;
        if status != 200 {
            let Ok(text) = response.try_text() else { return Outcome::Broken("in a refusal".to_owned()) };
            let refusal: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{status}: {text}"));
            assert!(refusal["error"]["message"].as_str().is_some_and(|message| !message.is_empty()), "{text}");
            if status == UNKNOWN_STATUS {
                return Outcome::Unknown(text);
            }
            assert!(CLEAR_STATUSES.contains(&status), "an answer was refused with {status}: {text}");
            return Outcome::Refused(format!("answer {status}"));
        }
        let (right, mut text, mut failovers) = (&self.answers[turn], String::new(), 0);
        loop {
            let event = match response.try_event() {
                Ok(Some(event)) => event,
                Ok(None) => return Outcome::Broken("the stream ended without [DONE]".to_owned()),
                Err(error) => return Outcome::Broken(format!("after {text:?}: {error}")),
            };
            if event == "[DONE]" {
                assert_eq!(&text, right, "a wrong answer");
                return Outcome::Answer { failovers };
            }
            let event: Value = serde_json::from_str(&event).unwrap();
            if let Some(message) = event["error"]["message"].as_str() {
                assert!(right.starts_with(&text) && !message.is_empty(), "{text:?}: {event}");
                return Outcome::Refused("answer, later".to_owned());
            }
            text.push_str(event["choices"][0]["delta"]["content"].as_str().unwrap_or_default());
            assert!(right.starts_with(&text), "a wrong answer: {text:?} is not how this begins: {right:?}");
            failovers = event["pangea"]["failovers"].as_u64().unwrap_or(failovers);
        }
    }
}

fn question(turn: usize, stream: bool) -> Value {
    let (text, max_tokens) = QUESTIONS[turn];
    json!({
        "model": SMOLLM2, "messages": [{"role": "user", "content": text}], "max_tokens": max_tokens, "temperature": 0,
        "stream": stream,
    })
}

/// The answers of a node that computes all layers itself, which has ended when this returns.
fn answers_of_one_node(cluster: &Cluster, model: &Path) -> Vec<String> {
    let node = cluster.node("alone").with("--model", model.to_str().unwrap()).start();
    let answers = (0..QUESTIONS.len()).map(|turn| {
        let answer = post(&node.api, "/v1/chat/completions", &question(turn, false)).json();
        answer["choices"][0]["message"]["content"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
    });
    answers.collect()
}

impl Tally {
    /// Checks that the requests met what this test is about.
    pub(crate) fn says_something(&self) {
        assert!(self.products > 0 && self.remote > 0 && self.answers > 0, "{self}");
        assert!(self.failovers + self.broken_off + self.refused.values().sum::<u64>() > 0, "no fault was felt: {self}");
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let refused: Vec<String> = self.refused.iter().map(|(kind, count)| format!("{kind}: {count}")).collect();
        write!(
            formatter,
            "products right: {} ({} with remote tiles); answers right: {} ({} after a failover); refused: {}; \
             the node that was asked was down or ended: {}; wrong: 0",
            self.products,
            self.remote,
            self.answers,
            self.failovers,
            if refused.is_empty() { "none".to_owned() } else { refused.join(", ") },
            self.broken_off,
        )
    }
}
