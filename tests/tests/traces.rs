//! Traces of real nodes, as a collector receives them: one trace over all nodes that worked on a request, nothing where nobody
//! traces, and requests that are answered whatever becomes of the collector.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::span::Event;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use pangea_tests::cluster::{Cluster, Node, NodeBuilder};
use pangea_tests::http::{Response, get, send};
use pangea_tests::process::eventually;
use pangea_tests::test_model::{SMOLLM2, file_of};
use pangea_tests::tiny_model::TinyModel;
use prost::Message;
use serde_json::{Value, json};

/// The trace and the span of a client.
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CLIENT: &str = "00f067aa0ba902b7";

/// One span as the collector received it.
#[derive(Clone, Debug)]
struct Seen {
    /// Peer id of the node.
    node: String,
    service: String,
    name: String,
    trace: String,
    id: String,
    parent: String,
    start: u64,
    end: u64,
    failed: bool,
    attributes: BTreeMap<String, String>,
    events: Vec<Moment>,
}

/// An event of a span.
#[derive(Clone, Debug)]
struct Moment {
    name: String,
    at: u64,
    attributes: BTreeMap<String, String>,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn text(value: Option<&AnyValue>) -> String {
    match value.and_then(|value| value.value.as_ref()) {
        Some(Any::StringValue(text)) => text.clone(),
        Some(Any::IntValue(number)) => number.to_string(),
        Some(Any::DoubleValue(number)) => number.to_string(),
        Some(Any::BoolValue(is)) => is.to_string(),
        other => panic!("an attribute of another type: {other:?}"),
    }
}

fn attributes(pairs: &[KeyValue]) -> BTreeMap<String, String> {
    pairs.iter().map(|pair| (pair.key.clone(), text(pair.value.as_ref()))).collect()
}

impl From<Event> for Moment {
    fn from(event: Event) -> Moment {
        Moment { name: event.name, at: event.time_unix_nano, attributes: attributes(&event.attributes) }
    }
}

/// A collector: takes what nodes send it and keeps the spans.
struct Collector {
    address: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Collector {
    fn start() -> Collector {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let into = Arc::clone(&seen);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let into = Arc::clone(&into);
                std::thread::spawn(move || receive(stream.unwrap(), &into));
            }
        });
        Collector { address, seen }
    }

    /// A node that sends its spans here.
    fn traced(&self, node: NodeBuilder) -> NodeBuilder {
        node.with("--traces", format!("http://{}", self.address))
    }

    fn spans(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// The spans of a trace once each of `expected`, node and name, is among them.
    fn trace(&self, trace: &str, expected: &[(&Node, &str)]) -> Trace {
        let spans = || self.spans().into_iter().filter(|span| span.trace == trace).collect::<Vec<_>>();
        let missing = |spans: &[Seen]| {
            let has = |(node, name): &&(&Node, &str)| spans.iter().any(|of| of.node == node.peer && of.name == *name);
            expected.iter().filter(|expected| !has(expected)).map(|(_, name)| *name).collect::<Vec<_>>()
        };
        eventually(
            &format!("the collector has {:?}", expected.iter().map(|(_, name)| name).collect::<Vec<_>>()),
            || missing(&spans()).is_empty(),
        );
        Trace(spans())
    }
}

/// Reads the requests of one connection.
fn receive(stream: TcpStream, into: &Mutex<Vec<Seen>>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut writer = stream;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        assert!(line.starts_with("POST /v1/traces HTTP/1.1"), "{line}");
        let mut headers = HashMap::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        assert_eq!(headers["content-type"], "application/x-protobuf");
        let mut body = vec![0; headers["content-length"].parse().unwrap()];
        reader.read_exact(&mut body).unwrap();
        let request = ExportTraceServiceRequest::decode(&body[..]).unwrap();
        into.lock().unwrap().extend(request.resource_spans.into_iter().flat_map(|of_node| {
            let of = attributes(&of_node.resource.unwrap().attributes);
            let spans = of_node.scope_spans.into_iter().flat_map(|scope| scope.spans);
            spans.map(move |span| Seen {
                node: of["service.instance.id"].clone(),
                service: of["service.name"].clone(),
                name: span.name,
                trace: hex(&span.trace_id),
                id: hex(&span.span_id),
                parent: hex(&span.parent_span_id),
                start: span.start_time_unix_nano,
                end: span.end_time_unix_nano,
                failed: span.status.is_some_and(|status| status.code == StatusCode::Error as i32),
                attributes: attributes(&span.attributes),
                events: span.events.into_iter().map(Moment::from).collect(),
            })
        }));
        if writer
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n")
            .is_err()
        {
            return;
        }
    }
}

/// The spans of one trace.
struct Trace(Vec<Seen>);

impl Trace {
    fn of<'a>(&'a self, node: &'a Node, name: &'a str) -> impl Iterator<Item = &'a Seen> {
        self.0.iter().filter(move |span| span.node == node.peer && span.name == name)
    }

    /// The only span of this name on this node.
    fn only<'a>(&'a self, node: &'a Node, name: &'a str) -> &'a Seen {
        let of: Vec<&Seen> = self.of(node, name).collect();
        assert_eq!(of.len(), 1, "{name}: {of:?}");
        of[0]
    }

    /// Checks that each span is under the client's, that a child begins within its parent, and on one node also ends within it.
    fn is_one_tree(&self) {
        let by_id: HashMap<&str, &Seen> = self.0.iter().map(|span| (span.id.as_str(), span)).collect();
        assert_eq!(by_id.len(), self.0.len(), "ids are unique");
        let mut roots = 0;
        for span in &self.0 {
            assert!(span.start <= span.end, "{span:?}");
            if span.parent == CLIENT {
                roots += 1;
                continue;
            }
            let parent = by_id.get(span.parent.as_str()).unwrap_or_else(|| panic!("no parent of {span:?}"));
            assert!(parent.start <= span.start, "{span:?} begins before {parent:?}");
            // An audit may end after the answer, and a stage hears of the end of a session; another node's clock is its own matter.
            if parent.node == span.node && !["audit", "stage"].contains(&span.name.as_str()) {
                assert!(span.end <= parent.end, "{span:?} ends after {parent:?}");
            }
        }
        assert_eq!(roots, 1, "the client asked once");
    }

    /// Checks that nothing says more than it should.
    fn says_nothing_of(&self, secrets: &[&str]) {
        for span in &self.0 {
            let of_events = span.events.iter().flat_map(|event| &event.attributes);
            let said = span.attributes.iter().chain(of_events).map(|(key, value)| format!("{key}={value}"));
            for said in said.chain(span.events.iter().map(|event| event.name.clone())).chain([span.name.clone()]) {
                for secret in secrets {
                    assert!(!said.contains(secret), "{said} in {}", span.name);
                }
            }
        }
    }
}

fn parent_of(trace: &str, flags: &str) -> String {
    format!("00-{trace}-{CLIENT}-{flags}")
}

/// Asks as a client that has a span of its own.
fn ask(node: &Node, path: &str, traceparent: &str, body: &Value) -> Response {
    let headers = [("Content-Type", "application/json"), ("traceparent", traceparent)];
    send(&node.api, "POST", path, &headers, &body.to_string())
}

/// A product of whole numbers that other nodes compute.
fn product() -> Value {
    json!({"m": 300, "k": 517, "n": 260, "dtype": "i8", "seed": 1, "place": "remote"})
}

fn multiply(node: &Node, traceparent: &str) {
    let answer = ask(node, "/api/pangea/products", traceparent, &product());
    assert_eq!(answer.status, 200);
    let answer = answer.bytes();
    let told = String::from_utf8_lossy(&answer);
    assert!(told.contains("\"event\":\"done\"") || told.contains("\"event\": \"done\""), "{told}");
}

/// The value of a sample of a node's metrics.
fn spans_that(node: &Node, outcome: &str) -> f64 {
    let text = get(&node.api, "/metrics").text();
    let sample = format!("pangea_trace_spans_total{{outcome=\"{outcome}\"}} ");
    text.lines().find_map(|line| line.strip_prefix(&sample)).unwrap().parse().unwrap()
}

#[test]
fn a_product_is_one_trace_over_the_client_the_accepting_node_and_the_worker() {
    let cluster = Cluster::new();
    let collector = Collector::start();
    let one = collector.traced(cluster.node("one").with("--log-format", "json").flag("-v")).start();
    let worker = collector.traced(cluster.node("worker")).start();
    one.connect(&worker);
    multiply(&one, &parent_of(TRACE, "01"));
    let route = "POST /api/pangea/products";
    let on_one = [route, "product", "plan", "task", "send", "wait", "check", "merge"].map(|name| (&one, name));
    let on_worker = ["work", "operands", "queue", "compute", "reply"].map(|name| (&worker, name));
    let trace = collector.trace(TRACE, &[&on_one[..], &on_worker[..]].concat());
    trace.is_one_tree();
    let http = trace.only(&one, route);
    assert_eq!((http.service.as_str(), http.parent.as_str()), ("pangea", CLIENT));
    for (name, value) in
        [("http.request.method", "POST"), ("http.route", "/api/pangea/products"), ("http.response.status_code", "200")]
    {
        assert_eq!(http.attributes[name], value, "{http:?}");
    }
    let product = trace.only(&one, "product");
    assert_eq!(
        (product.parent.as_str(), product.attributes["pangea.shape"].as_str()),
        (http.id.as_str(), "300x517x260")
    );
    assert_eq!(product.attributes["pangea.verdict"], "verified");
    for work in trace.of(&worker, "work") {
        let task = trace.of(&one, "task").find(|task| task.id == work.parent).unwrap();
        assert_eq!((&task.attributes["server.address"], &work.attributes["client.address"]), (&worker.peer, &one.peer));
    }
    assert!(trace.0.iter().all(|span| !span.failed), "{:?}", trace.0);
    eventually("the node counts what it has sent", || spans_that(&one, "sent") >= trace.0.len() as f64 / 2.0);
    assert_eq!(["failed", "dropped", "capped"].map(|outcome| spans_that(&one, outcome)), [0.0; 3]);
    // The log is as it was: a line has no fields of spans, and there is no line about them.
    let lines = one.process.lines().into_iter().filter(|line| !line.out);
    let lines: Vec<Value> = lines.map(|line| serde_json::from_str(&line.text).unwrap()).collect();
    assert!(lines.len() > 5);
    for line in lines {
        assert!(line.get("span").is_none() && line.get("spans").is_none(), "{line}");
    }
}

#[test]
fn an_answer_of_two_nodes_is_one_trace_over_both() {
    let Some(model) = file_of(SMOLLM2, "an_answer_of_two_nodes_is_one_trace_over_both") else { return };
    let cluster = Cluster::new();
    let collector = Collector::start();
    let splitting = cluster.node("one").with("--model", model.to_str().unwrap()).flag("--split").with("--audit", "1");
    let one = collector.traced(splitting).start();
    let two = collector.traced(cluster.node("two").with("--peer", &one.address)).start();
    let messages = json!([{"role": "user", "content": "Name a lighthouse keeper."}]);
    let question = json!({"messages": messages, "max_tokens": 8, "temperature": 0});
    let asked = |flags: &str| ask(&one, "/v1/chat/completions", &parent_of(TRACE, flags), &question);
    // A client that does not record its own trace wants none here.
    eventually("both nodes compute the answer", || {
        let answer = asked("00");
        answer.status == 200 && answer.json()["pangea"]["stages"].as_array().unwrap().len() == 2
    });
    let answer = asked("01").json();
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    let route = "POST /v1/chat/completions";
    let on_one = [route, "generation", "prepare", "route", "session", "open", "prefill", "decode", "stage", "audit"];
    let on_two = ["stage", "prefill", "decode"];
    let expected: Vec<_> = on_one.map(|name| (&one, name)).into_iter().chain(on_two.map(|name| (&two, name))).collect();
    let trace = collector.trace(TRACE, &expected);
    trace.is_one_tree();
    trace.says_nothing_of(&["lighthouse", text.split_whitespace().next().unwrap()]);
    let generation = trace.only(&one, "generation");
    assert_eq!(generation.parent, trace.only(&one, route).id);
    let usage = &answer["usage"];
    for (name, value) in [
        ("gen_ai.usage.input_tokens", usage["prompt_tokens"].to_string()),
        ("gen_ai.usage.output_tokens", usage["completion_tokens"].to_string()),
        ("pangea.verdict", answer["pangea"]["verdict"].as_str().unwrap().to_owned()),
    ] {
        assert_eq!(generation.attributes[name], value, "{generation:?}");
    }
    let session = trace.only(&one, "session");
    let stages: Vec<&Seen> = [&one, &two].iter().flat_map(|node| trace.of(node, "stage")).collect();
    assert_eq!(stages.len(), 2);
    assert!(stages.iter().all(|stage| stage.parent == session.id), "{stages:?}");
    assert_eq!(stages.iter().map(|stage| &stage.attributes["pangea.layers"]).collect::<BTreeSet<_>>().len(), 2);
    assert!(trace.0.iter().all(|span| !span.failed), "{:?}", trace.0);
    // The weights that the second node fetched are a trace of their own.
    let spans = collector.spans();
    let fetch = spans.iter().find(|span| span.node == two.peer && span.name == "fetch").unwrap();
    let part = spans.iter().find(|span| span.node == one.peer && span.name == "part").unwrap();
    assert_eq!((&part.trace, part.trace == TRACE), (&fetch.trace, false));
}

#[test]
fn an_answer_that_loses_a_stage_says_in_its_trace_which_stages_it_lost_why_and_which_go_on() {
    let name = "an_answer_that_loses_a_stage_says_in_its_trace_which_stages_it_lost_why_and_which_go_on";
    let Some(model) = file_of(SMOLLM2, name) else { return };
    let cluster = Cluster::new();
    let collector = Collector::start();
    let splitting = cluster.node("one").with("--model", model.to_str().unwrap()).flag("--split").flag("--force-master");
    let one = collector.traced(splitting).start();
    let [two, three] =
        ["two", "three"].map(|name| collector.traced(cluster.node(name).with("--peer", &one.address)).start());
    let messages = json!([{"role": "user", "content": "Write a long story about a lighthouse keeper."}]);
    let question = |max_tokens: usize| json!({"messages": messages, "max_tokens": max_tokens, "temperature": 0, "stream": max_tokens > 1});
    eventually("all nodes compute the answer", || {
        let answer = ask(&one, "/v1/chat/completions", &parent_of(TRACE, "00"), &question(1));
        answer.status == 200 && answer.json()["pangea"]["stages"].as_array().unwrap().len() == 3
    });
    let mut answer = ask(&one, "/v1/chat/completions", &parent_of(TRACE, "01"), &question(300));
    assert_eq!(answer.status, 200);
    let mut last = String::new();
    for tokens in 0.. {
        if tokens == 5 {
            two.kill9();
        }
        match answer.event() {
            Some(event) if event == "[DONE]" => break,
            Some(event) => last = event,
            None => panic!("the answer has no end after {last}"),
        }
    }
    let last: Value = serde_json::from_str(&last).unwrap();
    assert!(last["pangea"]["failovers"].as_u64().unwrap() >= 1, "it was over before anything happened: {last}");
    let trace = collector.trace(TRACE, &[(&one, "generation"), (&one, "session"), (&three, "stage")]);
    trace.says_nothing_of(&["lighthouse"]);
    let generation = trace.only(&one, "generation");
    assert!(!generation.failed, "{generation:?}");
    assert_eq!(generation.attributes["pangea.failovers"], last["pangea"]["failovers"].to_string());
    let events = |name: &str| generation.events.iter().filter(|event| event.name == name).collect::<Vec<_>>();
    let (lost, failovers) = (events("lost"), events("failover"));
    let (Some(lost), Some(failover)) = (lost.first(), failovers.first()) else { panic!("{generation:?}") };
    assert!(lost.attributes["pangea.from"].contains(&two.peer), "{lost:?}");
    assert!(!lost.attributes["pangea.why"].is_empty() && lost.at <= failover.at, "{lost:?} {failover:?}");
    for name in ["pangea.from", "pangea.why"] {
        assert_eq!(failover.attributes[name], lost.attributes[name], "{failover:?}");
    }
    let to = &failover.attributes["pangea.to"];
    assert!(!to.contains(&two.peer) && [&one, &three].iter().any(|node| to.contains(&node.peer)), "{failover:?}");
    // The sessions before and after are those of the events.
    let mut sessions: Vec<&Seen> = trace.of(&one, "session").collect();
    sessions.sort_by_key(|session| session.start);
    let chains: Vec<&String> = sessions.iter().map(|session| &session.attributes["pangea.chain"]).collect();
    assert_eq!(chains[..2], [&failover.attributes["pangea.from"], to]);
    assert_eq!((sessions[0].failed, sessions.last().unwrap().failed), (true, false), "{sessions:?}");
}

#[test]
fn a_request_that_another_node_answers_is_one_trace_with_its_tunnel() {
    let cluster = Cluster::new();
    let collector = Collector::start();
    let file = cluster.folder().join("tiny.gguf");
    std::fs::write(&file, TinyModel::default().gguf()).unwrap();
    let serving = collector.traced(cluster.node("serving").with("--model", file.to_str().unwrap())).start();
    // A lite client has no bytes of any model.
    let client = cluster.node("asked").flag("--client").with("--peer", &serving.address);
    let asked = collector.traced(client).start();
    let question = json!({"model": "tiny", "prompt": "Hello", "max_tokens": 3, "temperature": 0, "stream": true});
    let ask = |flags: &str| ask(&asked, "/v1/completions", &parent_of(TRACE, flags), &question);
    eventually("the other node answers", || {
        let answer = ask("00");
        answer.status == 200 && answer.text().contains("[DONE]")
    });
    assert!(ask("01").text().contains("[DONE]"));
    let route = "POST /v1/completions";
    let on_asked = [route, "generation", "tunnel"].map(|name| (&asked, name));
    let on_serving = ["answer", "generation", "session", "stage"].map(|name| (&serving, name));
    let trace = collector.trace(TRACE, &[&on_asked[..], &on_serving[..]].concat());
    trace.is_one_tree();
    let (tunnel, answer) = (trace.only(&asked, "tunnel"), trace.only(&serving, "answer"));
    assert_eq!((&answer.parent, &tunnel.attributes["server.address"]), (&tunnel.id, &serving.peer));
    assert_eq!(tunnel.events.iter().map(|event| &event.name).collect::<Vec<_>>(), ["answer begins"]);
    assert_eq!(trace.only(&serving, "generation").parent, answer.id);
}

#[test]
fn embeddings_are_traced_at_the_node_that_computes_them() {
    let cluster = Cluster::new();
    let collector = Collector::start();
    let file = cluster.folder().join("tiny.gguf");
    std::fs::write(&file, TinyModel::default().gguf()).unwrap();
    let serving = collector.traced(cluster.node("serving").with("--model", file.to_str().unwrap())).start();
    let client = cluster.node("asked").flag("--client").with("--peer", &serving.address);
    let asked = collector.traced(client).start();
    let texts = json!({"model": "tiny", "input": ["one", "two"]});
    let ask = |flags: &str| ask(&asked, "/v1/embeddings", &parent_of(TRACE, flags), &texts);
    eventually("the other node embeds", || ask("00").status == 200);
    let embedded = ask("01");
    assert_eq!(embedded.status, 200);
    let tokens = embedded.json()["usage"]["prompt_tokens"].to_string();
    let on_asked = ["POST /v1/embeddings", "tunnel"].map(|name| (&asked, name));
    let on_serving = ["answer", "embeddings", "queue", "compute"].map(|name| (&serving, name));
    let trace = collector.trace(TRACE, &[&on_asked[..], &on_serving[..]].concat());
    trace.is_one_tree();
    let embeddings = trace.only(&serving, "embeddings");
    assert_eq!(embeddings.parent, trace.only(&serving, "answer").id);
    for (name, value) in
        [("gen_ai.operation.name", "embeddings"), ("pangea.texts", "2"), ("gen_ai.usage.input_tokens", &tokens)]
    {
        assert_eq!(embeddings.attributes[name], value, "{embeddings:?}");
    }
    for part in ["queue", "compute"] {
        assert_eq!(trace.only(&serving, part).parent, embeddings.id);
    }
}

#[test]
fn each_sample_of_a_vote_is_a_part_of_its_trace_down_to_the_voters_stage() {
    let name = "each_sample_of_a_vote_is_a_part_of_its_trace_down_to_the_voters_stage";
    let Some(model) = file_of(SMOLLM2, name) else { return };
    let cluster = Cluster::new();
    let collector = Collector::start();
    let voter = |name: &str| {
        let node = cluster.node(name).with("--model", model.to_str().unwrap()).flag("--federation");
        collector.traced(node)
    };
    let one = voter("one").start();
    let two = voter("two").with("--peer", &one.address).start();
    let messages = json!([{"role": "user", "content": "What is the capital of Sweden?"}]);
    let question = json!({"messages": messages, "max_tokens": 8, "seed": 1, "strategy": "best_of_n", "samples": 4});
    let path = "/v1/federation/vote";
    let ballots = |answer: &Value| answer["ballots"].as_array().map_or(0, Vec::len);
    eventually("both nodes vote", || {
        let answer = ask(&one, path, &parent_of(TRACE, "00"), &question);
        answer.status == 200 && answer.text().contains(&two.peer)
    });
    let answer = ask(&one, path, &parent_of(TRACE, "01"), &question).json();
    assert!(ballots(&answer) > 1, "{answer}");
    let on_one = ["POST /v1/federation/vote", "vote", "sample", "generation"].map(|name| (&one, name));
    let trace = collector.trace(TRACE, &[&on_one[..], &[(&two, "stage")]].concat());
    trace.is_one_tree();
    trace.says_nothing_of(&["Sweden"]);
    let vote = trace.only(&one, "vote");
    assert_eq!(vote.parent, trace.only(&one, "POST /v1/federation/vote").id);
    assert_eq!(vote.attributes["pangea.ballots"], ballots(&answer).to_string(), "{vote:?}");
    let samples: Vec<&Seen> = trace.of(&one, "sample").collect();
    assert!(samples.len() >= ballots(&answer) && samples.iter().all(|sample| sample.parent == vote.id), "{samples:?}");
    // What the other node computed is under the sample that it was asked for.
    let by_id: HashMap<&str, &Seen> = trace.0.iter().map(|span| (span.id.as_str(), span)).collect();
    for stage in trace.of(&two, "stage") {
        let up = |span: &Seen| by_id[span.parent.as_str()];
        let sample = up(up(up(stage)));
        assert_eq!((sample.name.as_str(), &sample.attributes["server.address"]), ("sample", &two.peer), "{stage:?}");
    }
}

#[test]
fn a_node_without_traces_sends_nothing_and_asks_others_for_none() {
    let cluster = Cluster::new();
    let collector = Collector::start();
    let one = cluster.node("one").start();
    // It would record whatever asks it for a trace, and begins none for a task.
    let worker = collector.traced(cluster.node("worker")).start();
    one.connect(&worker);
    multiply(&one, &parent_of(TRACE, "01"));
    let client = cluster.run(&["matmul", "--size", "64", "--generate", "--rpc", &one.rpc, "--json"]);
    assert_eq!(client.code, Some(0), "{client:?}");
    assert!(worker.status().tasks_served > 0);
    // What waits is sent before a node ends.
    assert_eq!((one.terminate(), worker.terminate()), (Some(0), Some(0)));
    let seen = collector.spans();
    assert!(seen.is_empty(), "{seen:?}");
}

#[test]
fn without_a_collector_everything_is_answered_and_the_log_says_it_once() {
    let cluster = Cluster::new();
    // A port that was free a moment ago, and that nobody listens at.
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let one = cluster.node("one").with("--traces", format!("http://{gone}")).start();
    let worker = cluster.node("worker").start();
    one.connect(&worker);
    for _ in 0..3 {
        multiply(&one, "nothing that anybody could read");
        let before = spans_that(&one, "failed");
        eventually("spans are lost", || spans_that(&one, "failed") > before);
    }
    assert_eq!(one.process.count("cannot send traces to"), 1);
    let line = one.process.line("cannot send traces to").text;
    assert!(line.contains(&gone.to_string()) && line.contains("--traces"), "{line}");
    assert_eq!((spans_that(&one, "sent"), one.terminate()), (0.0, Some(0)));
}
