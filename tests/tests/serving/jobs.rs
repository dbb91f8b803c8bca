//! Jobs of a node: every surface shows products and answers alike, and a node that is stopped completes both.

use pangea_compute::model::NUMERICS;
use pangea_tests::command::{json, pangea};
use pangea_tests::tiny_model::TinyModel;
use rustix::process::Signal;

use super::*;

/// A node with a tiny model that answers nonsense quickly.
fn tiny(cluster: &Cluster) -> Node {
    let file = cluster.folder().join("tiny.gguf");
    std::fs::write(&file, TinyModel::default().gguf()).unwrap();
    let node = cluster.node("one").with("--model", file.to_str().unwrap()).start();
    eventually("the node is ready", || get(&node.api, "/readyz").status == 200);
    node
}

fn completion(max_tokens: usize) -> Value {
    json!({"model": "tiny", "prompt": "once", "max_tokens": max_tokens, "user": "editor", "temperature": 0})
}

#[test]
fn products_and_answers_are_jobs_on_every_surface() {
    let cluster = Cluster::new();
    let node = tiny(&cluster);
    ask(&node.api, COMPLETIONS, &completion(4));
    let product = ["matmul", "--size", "64", "--generate", "--rpc", &node.rpc, "--json"];
    assert!(pangea(cluster.folder(), &product).status.success());

    let jobs = json(&pangea(cluster.folder(), &["jobs", "--rpc", &node.rpc, "--json"]));
    assert_eq!(get(&node.api, "/api/pangea/jobs").json(), jobs);
    assert_eq!(get(&node.api, "/api/jobs").json(), jobs);
    // Latest first: the product, the answer, and the request with which the node tried its model.
    let facts = |at: usize| {
        let job = &jobs[at];
        (job["kind"].as_str().unwrap(), job["subject"].as_str().unwrap(), job["owner"]["api"].as_str().unwrap())
    };
    assert_eq!(facts(0), ("product", "64x64x64 f32", "rpc"));
    assert_eq!(facts(1), ("generation", "tiny", "http"));
    assert_eq!(facts(2), ("generation", "tiny", "node"));
    assert_eq!(jobs[1]["owner"]["client"], "editor");
    assert_eq!(jobs[1]["progress"], json!({"done": 4, "total": 4}));
    for job in jobs.as_array().unwrap() {
        assert_eq!((job["state"].as_str(), job["verdict"].as_str()), (Some("done"), Some("local")), "{job}");
        let time = |name: &str| job[name].as_u64().unwrap();
        assert!(time("submitted_unix_ms") <= time("started_unix_ms"), "{job}");
        assert!(time("started_unix_ms") <= time("ended_unix_ms"), "{job}");
    }
    let counted = |status: &Value| ["jobs_running", "jobs_done", "jobs_failed"].map(|count| status[count].as_u64());
    let status = json(&pangea(cluster.folder(), &["status", "--rpc", &node.rpc, "--json"]));
    assert_eq!(counted(&status), [Some(0), Some(3), Some(0)], "the listed ones");
    assert_eq!(counted(&get(&node.api, "/api/pangea/status").json()), counted(&status));
}

#[test]
fn events_report_an_answer_from_submission_to_end() {
    let cluster = Cluster::new();
    let node = tiny(&cluster);
    let mut events = get(&node.api, "/api/pangea/events");
    ask(&node.api, COMPLETIONS, &completion(4));
    let mut states = Vec::new();
    while states.last().is_none_or(|state| state != "done") {
        let job: Value = serde_json::from_str(&events.event().unwrap()).unwrap();
        assert_eq!((job["kind"].as_str(), job["owner"]["client"].as_str()), (Some("generation"), Some("editor")));
        states.push(job["state"].as_str().unwrap().to_owned());
    }
    states.dedup();
    assert_eq!(states, ["waiting", "running", "done"]);
    // A follower does not keep the node from ending.
    assert_eq!(node.terminate(), Some(0));
    assert_eq!(events.event(), None);
}

#[test]
fn a_stopping_node_completes_its_answer() {
    let Some(serving) = Serving::start("a_node_that_is_told_to_stop") else { return };
    let mut body = question("Count from one to a hundred, please.", 24);
    (body["stream"], body["logit_bias"]) = (json!(true), json!({"2": -100}));
    let mut response = post(serving.api(), CHAT, &body);
    let first: Value = serde_json::from_str(&response.event().unwrap()).unwrap();
    assert_eq!(first["object"], "chat.completion.chunk");
    serving.node.process.signal(Signal::TERM);
    let events = response.events();
    let reason = events.iter().rev().find_map(|event| event["choices"][0]["finish_reason"].as_str());
    assert_eq!(reason, Some("length"), "{events:?}");
    assert_eq!(serving.node.process.wait().code(), Some(0));
}

/// The value of a sample of `/metrics`, by its name and labels.
fn sample(node: &Node, name: &str) -> f64 {
    let text = get(&node.api, "/metrics").text();
    let line = text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn metrics_count_jobs_by_outcome_memory_by_purpose_bytes_and_the_build() {
    let cluster = Cluster::new();
    let node = tiny(&cluster);
    let other = cluster.node("other").with("--peer", &node.address).start();
    eventually("the nodes are connected", || sample(&other, "pangea_peers_connected") == 1.0);
    ask(&node.api, COMPLETIONS, &completion(4));
    let product = ["matmul", "--size", "64", "--generate", "--rpc", &node.rpc, "--json"];
    assert!(pangea(cluster.folder(), &product).status.success());
    // The answer by which the node tried its model, and the one that was asked for.
    assert_eq!(sample(&node, "pangea_jobs_ended_total{kind=\"generation\",outcome=\"done\"}"), 2.0);
    assert_eq!(sample(&node, "pangea_jobs_ended_total{kind=\"product\",outcome=\"done\"}"), 1.0);
    assert_eq!(sample(&node, "pangea_jobs_live"), 0.0);
    let memory = |purpose: &str| sample(&node, &format!("pangea_memory_bytes{{purpose=\"{purpose}\"}}"));
    assert!(memory("weights") > 0.0 && memory("sessions") > 0.0);
    assert_eq!((memory("uploads"), memory("downloads"), memory("loading")), (0.0, 0.0, 0.0));
    let limit = sample(&node, "pangea_memory_limit_bytes");
    assert_eq!(limit, node.status().memory_limit_bytes as f64);
    for name in ["pangea_network_sent_bytes_total", "pangea_network_received_bytes_total"] {
        assert!(sample(&node, name) > 0.0, "{name}");
    }
    let build = format!("pangea_build_info{{version=\"{}\",numerics=\"{}\"}}", env!("CARGO_PKG_VERSION"), NUMERICS);
    assert_eq!(sample(&node, &build), 1.0);
}
