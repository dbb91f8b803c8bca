//! Whole requests that another node answers: from a lite client, which has no bytes of any model.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use pangea_client::ErrorKind;
use pangea_compute::Digest;
use pangea_node::tunnel::{AnswerForm, Ask, AskRoute, Counted, Failure, TunnelMessage};
use pangea_tests::answerer::{Answerer, Behaviour};
use pangea_tests::cluster::Node;
use pangea_tests::http::{Response, get, post, send, try_send};
use pangea_tests::process::{TIMEOUT, eventually};
use serde_json::{Value, json};

use crate::{COMPLETIONS, Mesh, ask, computed_by, listed, served_by};

const CHAT: &str = "/v1/chat/completions";
const RESPONSES: &str = "/v1/responses";
const MESSAGES: &str = "/v1/messages";

/// A lite client connected to these nodes.
fn lite(mesh: &Mesh, nodes: &[&Node]) -> Node {
    let client = nodes
        .iter()
        .fold(mesh.cluster.node("client").flag("--client"), |client, node| client.with("--peer", &node.address));
    client.start()
}

/// Fields of answers that differ from answer to answer: identities and times. The object of trust is looked at apart.
const OWN: [&str; 11] = [
    "id",
    "item_id",
    "created",
    "created_at",
    "completed_at",
    "timings",
    "pangea",
    "total_duration",
    "load_duration",
    "prompt_eval_duration",
    "eval_duration",
];

/// An answer without what differs from answer to answer.
fn without_own(mut value: Value) -> Value {
    match &mut value {
        Value::Object(fields) => {
            fields.retain(|name, _| !OWN.contains(&name.as_str()));
            fields.values_mut().for_each(|value| *value = without_own(value.take()));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| *item = without_own(item.take())),
        _ => {}
    }
    value
}

/// The documents of an answer: one, or those of a stream in order.
fn documents(response: Response) -> Vec<Value> {
    assert_eq!(response.status, 200);
    let kind = response.header("content-type").unwrap().to_owned();
    let text = response.text();
    let read = |text: &str| serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    match kind.as_str() {
        "application/json" => vec![read(&text)],
        "application/x-ndjson" => text.lines().map(read).collect(),
        "text/event-stream; charset=utf-8" => {
            let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
            data.filter(|data| *data != "[DONE]").map(read).collect()
        }
        other => panic!("{other}"),
    }
}

/// Every object of trust in an answer.
fn trust(documents: &[Value]) -> Vec<Value> {
    let mut found = Vec::new();
    for document in documents {
        found
            .extend([&document["pangea"], &document["response"]["pangea"]].into_iter().filter(|said| said.is_object()));
    }
    found.into_iter().cloned().collect()
}

/// Requests in every dialect, whole and streamed.
fn requests() -> Vec<(&'static str, Value)> {
    let said = json!([{"role": "user", "content": "Hello there"}]);
    let options = json!({"temperature": 0, "num_predict": 8});
    let mut requests = vec![
        ("/v1/embeddings", json!({"model": "tiny", "input": ["one", "two"]})),
        ("/api/embed", json!({"model": "tiny:latest", "input": "one"})),
        ("/api/embeddings", json!({"model": "tiny", "prompt": "one"})),
        ("/v1/messages/count_tokens", json!({"model": "tiny", "messages": said})),
    ];
    for stream in [false, true] {
        requests.extend([
            (CHAT, json!({"model": "tiny", "messages": said, "max_tokens": 8, "temperature": 0, "stream": stream, "logprobs": true})),
            (COMPLETIONS, json!({"model": "tiny", "prompt": ["once", "twice"], "n": 2, "seed": 7, "max_tokens": 8, "stream": stream})),
            (RESPONSES, json!({"model": "tiny", "input": "Hello there", "max_output_tokens": 8, "temperature": 0, "stream": stream})),
            (MESSAGES, json!({"model": "tiny", "messages": said, "max_tokens": 8, "temperature": 0, "stream": stream})),
            ("/api/chat", json!({"model": "tiny", "messages": said, "options": options, "stream": stream})),
            ("/api/generate", json!({"model": "tiny", "prompt": "once", "options": options, "stream": stream})),
        ]);
    }
    requests
}

/// The texts of an answer's pieces joined, and the kinds of its documents: an answer may come in other pieces each time.
fn joined(documents: &[Value]) -> (Vec<String>, Value) {
    let mut texts = vec![String::new(); 4];
    for document in documents {
        let choices = document["choices"].as_array().into_iter().flatten();
        for choice in choices {
            let at = choice["index"].as_u64().unwrap() as usize;
            let text = choice["text"].as_str().or(choice["delta"]["content"].as_str());
            texts[at].push_str(text.or(choice["message"]["content"].as_str()).unwrap_or_default());
        }
        let delta = document["delta"].as_str().or(document["delta"]["text"].as_str());
        let line = document["message"]["content"].as_str().or(document["response"].as_str());
        texts[0].push_str(delta.or(line).unwrap_or_default());
    }
    let is_stream = documents.len() > 1;
    let last = documents.last().cloned().map(without_own).unwrap_or_default();
    // The last event of a stream of OpenAI may have a piece of text as well.
    let last = if is_stream && last["choices"].is_array() { last["choices"][0]["finish_reason"].clone() } else { last };
    (texts, last)
}

/// All files below a folder that are not empty.
fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[test]
fn a_lite_client_without_a_byte_of_the_model_gives_the_owners_answer_in_every_dialect() {
    let mesh = Mesh::new();
    let one = mesh.serving("one", &["tiny"]).start();
    let client = lite(&mesh, &[&one]);
    served_by(&client, "tiny", &["one"]);
    for (path, body) in requests() {
        // The second answer of the owner has the same prompt in its cache as every later one.
        documents(post(&one.api, path, &body));
        let local = documents(post(&one.api, path, &body));
        let tunnelled = documents(post(&client.api, path, &body));
        assert_eq!(joined(&tunnelled), joined(&local), "{path} {body}");
        let (said, here) = (trust(&local), trust(&tunnelled));
        assert_eq!(here.len(), said.len(), "{path} {body}");
        for here in here {
            let stages = json!([{"peer": one.peer, "layers": [0, 2]}]);
            let expected = json!({"verdict": "unchecked", "stages": stages, "failovers": 0, "receipts": []});
            assert_eq!(here, expected, "{path}");
        }
        assert!(said.iter().all(|said| said["verdict"] == "local"), "{said:?}");
    }
    let stored = files(&client.data_dir.join("blobs"));
    assert!(stored.is_empty(), "{stored:?}");
    // The owner knows who asked, and both have the lines of a request.
    let jobs = get(&one.api, "/api/pangea/jobs").json();
    let of_peer = |job: &&Value| job["owner"] == json!({"api": "peer", "client": client.peer});
    assert!(jobs.as_array().unwrap().iter().any(|job| of_peer(&job)), "{jobs}");
    let jobs = get(&client.api, "/api/pangea/jobs").json();
    assert_eq!(
        (&jobs[0]["state"], &jobs[0]["verdict"], &jobs[0]["subject"]),
        (&json!("done"), &json!("unchecked"), &json!("tiny"))
    );
    client.process.line(&format!("started: tiny, whole on node {}", one.peer));
    client.process.line(" ended: tiny, 8 tokens, ");
    let metrics = get(&client.api, "/metrics").text();
    assert!(!metrics.contains("pangea_tunnelled_requests_total{outcome=\"done\"} 0"), "{metrics}");
    assert_eq!(one.terminate(), Some(0));
    eventually("the model is gone", || listed(&client).is_empty());
}

#[test]
fn failures_have_the_shape_of_the_clients_dialect() {
    let mesh = Mesh::new();
    let one = mesh.serving("one", &["tiny"]).start();
    let client = lite(&mesh, &[&one]);
    served_by(&client, "tiny", &["one"]);
    let long = "x".repeat(4000);
    for (path, body) in [
        (COMPLETIONS, json!({"model": "tiny", "prompt": long})),
        (CHAT, json!({"model": "tiny", "messages": [{"role": "king", "content": "a"}]})),
        (MESSAGES, json!({"model": "tiny", "max_tokens": 0, "messages": [{"role": "user", "content": "a"}]})),
        ("/api/chat", json!({"model": "tiny", "messages": [{"role": "user", "content": long}]})),
    ] {
        let (local, tunnelled) = (post(&one.api, path, &body), post(&client.api, path, &body));
        assert_eq!((tunnelled.status, local.status), (400, 400), "{path}");
        let (mut local, mut tunnelled) = (local.json(), tunnelled.json());
        let message = |answer: &mut Value| {
            let error = &mut answer["error"];
            if error.is_string() { error.take() } else { error["message"].take() }
        };
        let (said, passed_on) = (message(&mut local), message(&mut tunnelled));
        assert_eq!(tunnelled, local, "{path}");
        assert_eq!(passed_on, json!(format!("node {} says: {}", one.peer, said.as_str().unwrap())), "{path}");
    }
}

/// A pool of two nodes whose answers take minutes: the owner coordinates, the other one stalls.
fn slow_pool(mesh: &Mesh) -> [Node; 2] {
    let one = mesh.serving("one", &["tiny"]).flag("--split").start();
    let two = mesh.cluster.node("two").fault("stall").with("--peer", &one.address).start();
    eventually("both nodes compute", || computed_by(&ask(&one, "tiny", "Hello", 1)).len() == 2);
    [one, two]
}

fn states(node: &Node, api: &str) -> Vec<String> {
    let jobs = get(&node.api, "/api/pangea/jobs").json();
    let of_api = jobs.as_array().unwrap().iter().filter(|job| job["owner"]["api"] == api);
    of_api.map(|job| job["state"].as_str().unwrap().to_owned()).collect()
}

/// Starts a streamed answer of many tokens and reads its first event.
fn long_answer(client: &Node) -> Response {
    let body = json!({"model": "tiny", "prompt": "Hello", "max_tokens": 400, "temperature": 0, "stream": true});
    let mut response = post(&client.api, COMPLETIONS, &body);
    if response.status == 200 {
        assert!(response.event().is_some());
    }
    response
}

#[test]
fn a_client_that_goes_away_ends_its_answer_at_the_other_node_and_a_full_node_says_when_to_come_again() {
    let mesh = Mesh::new();
    let [one, _two] = slow_pool(&mesh);
    let client = lite(&mesh, &[&one]);
    eventually("the client knows the model", || listed(&client).len() == 1);
    let answer = long_answer(&client);
    assert_eq!(states(&one, "peer"), ["running"]);
    drop(answer);
    let left = Instant::now();
    eventually("the answer is cancelled", || states(&one, "peer") == ["cancelled"]);
    assert!(left.elapsed() < Duration::from_secs(5), "{:?}", left.elapsed());
    eventually("the client's node knows it, too", || states(&client, "http") == ["cancelled"]);

    // More than the places that one peer has at a node.
    const ASKED: usize = 40;
    let (tell, told) = std::sync::mpsc::sync_channel(ASKED);
    let api = client.api.clone();
    let asking: Vec<_> = (0..ASKED)
        .map(|_| {
            let (tell, api) = (tell.clone(), api.clone());
            std::thread::spawn(move || {
                let body = json!({"model": "tiny", "prompt": "Hello", "max_tokens": 400}).to_string();
                // The client's node is ended while answers are computed.
                if let Ok(response) = try_send(&api, "POST", COMPLETIONS, &[], &body) {
                    let _ = tell.send((response.status, response.header("retry-after").map(str::to_owned)));
                }
            })
        })
        .collect();
    let refused = told.recv_timeout(TIMEOUT).unwrap();
    assert_eq!(refused, (429, Some("1".to_owned())));
    client.kill9();
    asking.into_iter().for_each(|asking| asking.join().unwrap());
    eventually("no answer is computed for a client that is gone", || {
        states(&one, "peer").iter().all(|state| state == "cancelled")
    });
}

#[test]
fn one_connection_carries_one_request_after_the_other() {
    let mesh = Mesh::new();
    let one = mesh.serving("one", &["tiny"]).start();
    let client = lite(&mesh, &[&one]);
    served_by(&client, "tiny", &["one"]);
    let mut connection = BufReader::new(TcpStream::connect(&client.api).unwrap());
    connection.get_ref().set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut texts = Vec::new();
    for _ in 0..3 {
        let body = json!({"model": "tiny", "prompt": "Hello", "max_tokens": 4, "temperature": 0}).to_string();
        let head =
            format!("POST {COMPLETIONS} HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\n\r\n", client.api, body.len());
        connection.get_mut().write_all(format!("{head}{body}").as_bytes()).unwrap();
        let (mut length, mut line) = (0, String::new());
        while connection.read_line(&mut line).unwrap() > 2 {
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            line.clear();
        }
        let mut answer = vec![0; length];
        connection.read_exact(&mut answer).unwrap();
        texts.push(serde_json::from_slice::<Value>(&answer).unwrap()["choices"][0]["text"].clone());
    }
    assert!(texts[0].is_string() && texts.iter().all(|text| *text == texts[0]), "{texts:?}");
}

/// The digest of a model that a node lists.
fn digest(node: &Node, model: &str) -> Digest {
    let models = listed(node);
    let listed = models.iter().find(|listed| listed["id"] == model).unwrap();
    let hex = listed["pangea"]["digest"].as_str().unwrap();
    let byte = |at: usize| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap();
    Digest::from_bytes(std::array::from_fn(byte))
}

/// A lite client, the owner of a model, and a peer that says that it serves the model faster than anyone and behaves like this.
fn beside(mesh: &Mesh, behaviour: Behaviour) -> (Node, Node, Answerer) {
    // The smallest model would be nearly as fast as a peer can say that it is.
    let one = mesh.cluster.node("one").with("--model", mesh.large_file("tiny").to_str().unwrap()).start();
    let client = lite(mesh, &[&one]);
    served_by(&client, "tiny", &["one"]);
    ask(&one, "tiny", "Hello there", 32);
    let mut answerer = Answerer::connect(&client.address, "tiny", digest(&client, "tiny"), behaviour);
    eventually("both serve the model", || {
        answerer.publish();
        let nodes = listed(&client)[0]["pangea"]["nodes"].as_array().unwrap().clone();
        // A server that was never measured may be the fastest, too.
        nodes.len() == 2 && nodes.iter().all(|node| node["tokens_per_s"].as_u64().unwrap() > 0)
    });
    (one, client, answerer)
}

#[test]
fn another_node_answers_when_the_first_one_dies_refuses_or_calls_a_right_request_wrong() {
    for behaviour in [
        Behaviour::Dies,
        Behaviour::Refuses(Failure::new(ErrorKind::Overloaded, "no place")),
        Behaviour::Refuses(Failure::new(ErrorKind::InvalidInput, "it is wrong")),
        Behaviour::Says(vec![(TunnelMessage::Head(AnswerForm::Document), Vec::new())]),
        Behaviour::Says(vec![
            (TunnelMessage::Head(AnswerForm::Document), Vec::new()),
            (TunnelMessage::Chunk(Counted { prompt_tokens: 1, answer_tokens: 4 }), b"no JSON".to_vec()),
            (TunnelMessage::End(Counted::default()), Vec::new()),
        ]),
    ] {
        let mesh = Mesh::new();
        let (one, client, answerer) = beside(&mesh, behaviour.clone());
        let answer = ask(&client, "tiny", "Hello", 4);
        assert_eq!(
            (computed_by(&answer), &answer["pangea"]["failovers"]),
            (vec![one.peer.clone()], &json!(1)),
            "{behaviour:?}"
        );
        assert_eq!(answerer.received().len(), 1, "{behaviour:?}");
    }
}

#[test]
fn a_silent_node_gets_company_and_the_client_the_answer_of_the_other_one() {
    let mesh = Mesh::new();
    let (one, client, answerer) = beside(&mesh, Behaviour::IsSilent);
    let answer = ask(&client, "tiny", "Hello", 4);
    assert_eq!((computed_by(&answer), answerer.received().len()), (vec![one.peer.clone()], 1));
    let metrics = get(&client.api, "/metrics").text();
    assert!(metrics.contains("pangea_tunnel_attempts_total{reason=\"hedge\"} 1"), "{metrics}");
}

#[test]
fn a_peer_sees_no_credentials_and_its_own_verdict_and_excuse_are_not_passed_on() {
    let mesh = Mesh::new();
    let key = "sesame-open-4711";
    let client = mesh.cluster.node("client").flag("--client");
    std::fs::create_dir_all(client.data_dir()).unwrap();
    std::fs::write(client.data_dir().join("config.toml"), format!("api-key = \"{key}\"\n")).unwrap();
    let client = client.start();
    let digest = Digest::from_bytes([7; 32]);
    let said = json!({"id": "x", "choices": [], "pangea": {"verdict": "verified", "stages": [], "receipts": ["r"], "failovers": 0}});
    let counted = Counted { prompt_tokens: 1, answer_tokens: 1 };
    let messages = vec![
        (TunnelMessage::Head(AnswerForm::Document), Vec::new()),
        (TunnelMessage::Chunk(counted), said.to_string().into_bytes()),
        (TunnelMessage::End(counted), Vec::new()),
    ];
    let mut liar = Answerer::connect(&client.address, "tiny", digest, Behaviour::Says(messages));
    let headers =
        [("Authorization", format!("Bearer {key}")), ("X-Api-Key", key.to_owned()), ("Cookie", format!("key={key}"))];
    let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let body = json!({"model": "tiny", "prompt": "Hello"}).to_string();
    let ask = || send(&client.api, "POST", COMPLETIONS, &headers, &body);
    let mut answer = ask();
    eventually("the client knows the model", || {
        liar.publish();
        answer = ask();
        answer.status == 200
    });
    let answer = answer.json();
    let stages = json!([{"peer": liar.peer().to_string(), "layers": [0, 2]}]);
    assert_eq!(answer["pangea"], json!({"verdict": "unchecked", "stages": stages, "failovers": 0, "receipts": []}));
    let received = liar.received();
    let text = String::from_utf8_lossy(&received[0]).to_ascii_lowercase();
    assert!(
        text.contains("hello") && !text.contains(key) && !text.contains("authorization") && !text.contains("cookie"),
        "{text}"
    );
    drop(liar);

    let full = Failure { retry_after: Some(Duration::from_secs(7)), ..Failure::new(ErrorKind::Overloaded, "no place") };
    let mut full = Answerer::connect(&client.address, "tiny", digest, Behaviour::Refuses(full));
    let mut answer = ask();
    eventually("the full node is the only one", || {
        full.publish();
        answer = ask();
        answer.status == 429
    });
    assert_eq!(answer.header("retry-after"), Some("7"));
    assert_eq!(answer.json()["error"]["kind"], "Overloaded");
}

#[test]
fn a_node_answers_peers_for_its_own_models_only() {
    let mesh = Mesh::new();
    let one = mesh.serving("one", &["tiny"]).start();
    let two = mesh.cluster.node("two").with("--peer", &one.address).start();
    served_by(&two, "tiny", &["one"]);
    let model = digest(&one, "tiny");
    let body =
        json!({"model": "another-name", "prompt": "Hello", "max_tokens": 2, "strategy": "best_of_n"}).to_string();
    let request = Ask { route: AskRoute::Completions, model, body_bytes: body.len() as u32, trace: None };
    let other = Digest::from_bytes([9; 32]);
    let asker = |node: &Node| Answerer::connect(&node.address, "other", other, Behaviour::Dies);
    let said = asker(&one).asks(request, body.as_bytes());
    assert_eq!(
        said.first(),
        Some(&TunnelMessage::Head(AnswerForm::Document)),
        "the digest counts, not the name: {said:?}"
    );
    let Some(TunnelMessage::End(counted)) = said.last() else { panic!("{said:?}") };
    assert_eq!(counted.answer_tokens, 2);
    // The other node could have the owner answer, by a second hop.
    let said = asker(&two).asks(request, body.as_bytes());
    let [TunnelMessage::Failure(failure)] = &said[..] else { panic!("{said:?}") };
    assert_eq!((failure.kind, failure.status), (ErrorKind::NotFound, 404));
}
