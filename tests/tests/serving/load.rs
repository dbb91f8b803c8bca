//! Many clients at once, clients that disconnect, too little memory, and a node that is stopped.

use std::thread;

use super::*;

/// Questions of different lengths, with random choices.
fn questions() -> Vec<Value> {
    let long = "The quick brown fox jumps over the lazy dog. ".repeat(30);
    let texts = ["Tell me a joke.", "What is 2 + 2?", "Write a poem about the sea.", &format!("Shorten this: {long}")];
    let ask = |(seed, text): (usize, &&str)| {
        let mut body = question(text, 24);
        body["temperature"] = json!(0.9);
        body["seed"] = json!(seed);
        body
    };
    texts.iter().enumerate().map(ask).collect()
}

/// Sends all requests at the same time.
fn together(serving: &Serving, bodies: &[Value]) -> Vec<String> {
    let api = serving.api();
    thread::scope(|scope| {
        let asking: Vec<_> =
            bodies.iter().map(|body| scope.spawn(|| text_of(&ask(api, CHAT, body), 0).to_owned())).collect();
        asking.into_iter().map(|asking| asking.join().unwrap()).collect()
    })
}

#[test]
fn concurrent_requests_get_the_answers_that_they_get_alone() {
    let Some(serving) = Serving::start("concurrent_requests_get") else { return };
    let bodies = questions();
    let alone: Vec<String> = bodies.iter().map(|body| text_of(&serving.ask(CHAT, body), 0).to_owned()).collect();
    assert_eq!(together(&serving, &bodies), alone);
}

#[test]
fn preempted_answers_are_the_same() {
    // Beside the weights, this leaves the minimum for sessions, 6144 positions: not enough for all four answers at once.
    let Some(serving) = Serving::start_with("answers_that_give_way", |node| node.max_memory("256M")) else { return };
    let Some(roomy) = Serving::start("answers_that_give_way") else { return };
    // Prompts that fit together, and answers that do not.
    let bodies: Vec<Value> = ["joke ", "story ", "poem ", "recipe "]
        .iter()
        .enumerate()
        .map(|(seed, what)| {
            let mut body = question(&what.repeat(1440), 150);
            body["temperature"] = json!(0.9);
            body["seed"] = json!(seed);
            body["logit_bias"] = json!({"2": -100});
            body
        })
        .collect();
    let alone: Vec<String> = bodies.iter().map(|body| text_of(&roomy.ask(CHAT, body), 0).to_owned()).collect();
    assert_eq!(together(&serving, &bodies), alone);
    assert!(serving.counter("sequences_preempted") > 0.0, "memory sufficed: the test shows nothing");
}

#[test]
fn a_disconnected_clients_work_is_cancelled() {
    let Some(serving) = Serving::start("a_client_that_goes_away") else { return };
    for stream in [true, false] {
        let cancelled = serving.counter("requests_cancelled");
        let mut body = question("Write a very long story.", 8000);
        body["stream"] = json!(stream);
        body["logit_bias"] = json!({"2": -100});
        if stream {
            let mut response = post(serving.api(), CHAT, &body);
            assert!(response.event().is_some());
            assert_eq!(serving.busy(), 1);
        } else {
            // A whole answer's head is sent only at its end, so the client disconnects while it waits for the head.
            let mut socket = std::net::TcpStream::connect(serving.api()).unwrap();
            let body = body.to_string();
            let head =
                format!("POST {CHAT} HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\n\r\n", serving.api(), body.len());
            std::io::Write::write_all(&mut socket, (head + &body).as_bytes()).unwrap();
            eventually("the request runs", || serving.busy() == 1);
        }
        eventually("nothing runs", || serving.busy() == 0);
        assert_eq!(serving.counter("requests_cancelled"), cancelled + 1.0);
    }
}

/// A long prompt is read in passes of up to 256 tokens. The one that is computed when its client goes away ends early, and no other
/// one follows it.
#[test]
fn a_client_that_leaves_while_its_prompt_is_read_keeps_nobody_waiting() {
    const PASSES: usize = 24;
    let Some(serving) = Serving::start("a_client_that_leaves_while") else { return };
    let (mut passes, mut cut_off) = (serving.counter("steps"), serving.counter("steps_cut_off"));
    assert_eq!(cut_off, 0.0);
    // A client may leave just between two passes: then there is none to cut off.
    for attempt in 0..5 {
        // Different each time, so that nothing of it was read before.
        let text = format!("{attempt} is the number of this long story. ").repeat(PASSES * 256 / 10);
        let mut body = question(&text, 8);
        body["stream"] = json!(true);
        let left = post(serving.api(), CHAT, &body);
        assert_eq!(left.status, 200);
        eventually("the prompt is being read", || serving.counter("steps") > passes);
        drop(left);
        serving.ask(CHAT, &question("Hello", 2));
        eventually("nothing runs", || serving.busy() == 0);
        let computed = serving.counter("steps") - passes;
        assert!(computed < PASSES as f64 / 2.0, "{computed} passes: the prompt was read to its end");
        cut_off = serving.counter("steps_cut_off");
        if cut_off > 0.0 {
            break;
        }
        passes = serving.counter("steps");
    }
    assert!(cut_off > 0.0, "no pass was cut off");
}

/// Clients that take nothing of their answers: they kept the places of others, and their answers piled up.
#[test]
fn streams_that_nobody_reads_are_dropped_and_keep_neither_places_nor_memory() {
    const CLIENTS: usize = 40;
    let Some(serving) = Serving::start("streams_that_nobody_reads") else { return };
    let cancelled = serving.counter("requests_cancelled");
    let before = serving.node.process.memory_bytes();
    let mut body = question("Write a very long story.", 8000);
    body["stream"] = json!(true);
    body["logprobs"] = json!(true);
    body["top_logprobs"] = json!(20);
    body["logit_bias"] = json!({"2": -100});
    // The heads are read, and nothing else.
    let deaf: Vec<_> = (0..CLIENTS).map(|_| post(serving.api(), CHAT, &body)).collect();
    assert!(deaf.iter().all(|response| response.status == 200));
    let api = serving.api();
    thread::scope(|scope| {
        let other = scope.spawn(|| {
            let body = question("Hello", 2).to_string();
            let ask = || http::try_send(api, "POST", CHAT, &[("Content-Type", "application/json")], &body);
            (0..4).find_map(|_| ask().ok()).map(|response| response.status)
        });
        for number in (8..=CLIENTS).step_by(8) {
            eventually("their answers are cancelled", || {
                serving.counter("requests_cancelled") >= cancelled + number as f64
            });
        }
        assert_eq!(other.join().unwrap(), Some(200), "another client is answered");
    });
    eventually("nothing runs", || serving.busy() == 0);
    if let (Some(before), Some(after)) = (before, serving.node.process.memory_bytes()) {
        // The keys and values of the answers that ran until they were dropped are kept for later ones.
        assert!(after.saturating_sub(before) < 512 << 20, "{before} bytes before, {after} after");
    }
    drop(deaf);
}

#[test]
fn a_full_queue_refuses_with_a_retry_delay_and_recovers() {
    let Some(serving) = Serving::start("a_full_queue_refuses") else { return };
    let mut body = question("Write a very long story.", 8000);
    body["n"] = json!(8);
    body["stream"] = json!(true);
    body["logit_bias"] = json!({"2": -100});
    // Eight requests run and sixty-four wait.
    let held: Vec<_> = (0..9).map(|_| post(serving.api(), CHAT, &body)).collect();
    assert!(held.iter().all(|response| response.status == 200));
    let refused = post(serving.api(), CHAT, &question("Hello", 2));
    let after: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert_eq!((refused.status, &refused.json()["error"]["type"]), (429, &json!("rate_limit_error")));
    assert!((1..=60).contains(&after));
    drop(held);
    eventually("nothing runs", || serving.busy() == 0);
    serving.ask(CHAT, &question("Hello", 2));
}

#[test]
fn a_request_before_the_model_is_ready_waits() {
    let Some(model) = file_of(SMOLLM2, "a_request_that_comes_before") else { return };
    let cluster = Cluster::new();
    let node = cluster.node("one").with("--model", model.to_str().unwrap()).start();
    assert_eq!(get(&node.api, "/v1/models").json()["data"][0]["id"], SMOLLM2);
    assert_eq!(post(&node.api, CHAT, &question("Hello", 2)).status, 200);
}

#[test]
fn a_stopping_node_completes_its_answers_and_accepts_no_more() {
    let Some(serving) = Serving::start("a_node_told_to_stop") else { return };
    let mut body = question("Count from one to twenty.", 40);
    let whole = text_of(&serving.ask(CHAT, &body), 0).to_owned();
    body["stream"] = json!(true);
    let mut response = post(serving.api(), CHAT, &body);
    let mut said = String::new();
    while let Some(event) = response.event() {
        if said.is_empty() {
            serving.node.process.signal(rustix::process::Signal::TERM);
        }
        if let Ok(event) = serde_json::from_str::<Value>(&event) {
            said.push_str(event["choices"][0]["delta"]["content"].as_str().unwrap_or_default());
        }
    }
    assert_eq!(said, whole);
    assert_eq!(serving.node.process.wait().code(), Some(0));
}
