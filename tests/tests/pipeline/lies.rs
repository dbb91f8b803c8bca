//! Stages that lie, signed or not, speak out of turn, go on for ever, refuse, report nonsense or fall silent: with every answer
//! audited no lie reaches the client, and no stage keeps an answer from being completed.

use std::time::{Duration, Instant};

use pangea_compute::DType;
use pangea_tests::matrix::{multiply, operands, remote};

use super::*;

#[test]
fn an_audited_answer_is_right_and_liars_are_excluded() {
    let Some(stage) = Stage::set("an_audited_answer_is_right_and_liars_are_excluded") else { return };
    let question = question(LONG, 60);
    let honest = stage.alone(std::slice::from_ref(&question)).remove(0);

    let one = stage.splitting("one").with("--audit", "1").start();
    let liar = |name: &str, layers: &str, fault: &str| {
        stage.cluster.node(name).with("--peer", &one.address).with("--layers", layers).fault(fault).start()
    };
    // One liar in the middle and one at the end, and a node that takes the layers of whichever is shut out first: with only two
    // nodes left no chain could give the other liar the layers that it asks for.
    let honest_node = stage.cluster.node("four").with("--peer", &one.address).start();
    let liars = [liar("two", "12-21", "corrupt-stage"), liar("three", "22-29", "corrupt-token")];
    eventually("both are given layers", || {
        liars.iter().all(|liar| liar.process.count("are ready") > 0) && one.process.count("are ready") > 0
    });
    eventually("both liars are shut out", || {
        let answer = ask(&one, &question);
        assert_eq!(text_of(&answer), honest, "{answer}");
        liars.iter().all(|liar| one.status_of(liar).quarantined)
    });
    for liar in &liars {
        eventually("the evidence is kept", || !one.evidence_against(liar).is_empty());
        let file = one.evidence_against(liar)[0].join("evidence.json");
        let said: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
        assert!(said.to_string().contains(&liar.peer), "{said}");
    }
    // A quarantined node is not used again.
    computed_by(&one, &[&one, &honest_node]);
    let answer = ask(&one, &question);
    assert_eq!(text_of(&answer), honest);
    assert_eq!(answer["pangea"]["failovers"], 0, "{answer}");
    let peers = stages(&answer["pangea"]);
    assert!(liars.iter().all(|liar| !peers.contains(&liar.peer)), "{answer}");
}

#[test]
fn a_liar_in_products_loses_its_layers_for_good() {
    let Some(stage) = Stage::set("a_liar_in_products_loses_its_layers_for_good") else { return };
    let one = stage.splitting("one").start();
    // As a stage this node is honest.
    let liar = stage.cluster.node("liar").with("--peer", &one.address).fault("corrupt-all").start();
    computed_by(&one, &[&one, &liar]);
    let (a, b) = operands(DType::I8, 300, 256, 280);
    let product = multiply(&one.client(), &a, &b, &remote()).unwrap();
    assert!(!product.report.verification.rejected.is_empty(), "{:?}", product.report);
    assert!(one.status_of(&liar).quarantined);
    computed_by(&one, &[&one]);
}

/// An answer through a node that splits the model with one other node, on which this fault is injected: the answer is that of
/// a single node.
fn withstands(test: &str, fault: &str, audit: &str) -> Option<(Node, Node, Value)> {
    let stage = Stage::set(test)?;
    let question = question(LONG, 60);
    let honest = stage.alone(std::slice::from_ref(&question)).remove(0);
    let one = stage.splitting("one").with("--audit", audit).start();
    let faulty = stage.cluster.node("two").with("--peer", &one.address).with("--layers", "15-29").fault(fault).start();
    eventually("the layers are placed on both", || {
        [&one, &faulty].iter().all(|node| node.process.count("are ready") > 0)
    });
    let began = Instant::now();
    let answer = ask(&one, &question);
    assert_eq!(text_of(&answer), honest, "{answer}");
    let took = began.elapsed();
    assert!(took < Duration::from_secs(60), "the client waited {took:?}");
    Some((one, faulty, answer))
}

#[test]
fn a_liar_that_one_node_audited_is_convicted_by_another_one_that_has_the_model() {
    let test = "a_liar_that_one_node_audited_is_convicted_by_another_one_that_has_the_model";
    let Some(stage) = Stage::set(test) else { return };
    let one = stage.splitting("one").with("--layers", "0-14").with("--audit", "1").start();
    let peer = ["--peer", one.address.as_str()];
    let liar =
        stage.cluster.node("liar").with(peer[0], peer[1]).with("--layers", "15-29").fault("corrupt-token").start();
    // No question before the other node is there: the first answer with its layers may convict the liar.
    eventually("the layers are placed on both", || {
        [&one, &liar].iter().all(|node| node.process.count("are ready") > 0)
    });
    // It has the model, and never asks the liar for anything.
    let other = stage.serving("other").with(peer[0], peer[1]).start();
    other.process.line(&format!("Connected to peer {}", liar.peer));
    eventually("the liar is caught", || {
        let response = post(&one.api, CHAT, &question(LONG, 30));
        assert!([200, 502, 503].contains(&response.status), "{}", response.status);
        one.status_of(&liar).quarantined
    });
    eventually("the other node has checked the evidence", || other.status_of(&liar).quarantined);
    eventually("the evidence is kept", || !other.evidence_against(&liar).is_empty());
    let record = std::fs::read_to_string(other.evidence_against(&liar)[0].join("evidence.json")).unwrap();
    let record: Value = serde_json::from_str(&record).unwrap();
    assert_eq!((&record["found_by"], &record["kind"]), (&json!(one.peer), &json!("stage")), "{record}");
}

#[test]
fn a_last_stage_that_lies_about_the_log_probabilities_of_a_prompt_is_convicted() {
    let test = "a_last_stage_that_lies_about_the_log_probabilities_of_a_prompt_is_convicted";
    let Some(stage) = Stage::set(test) else { return };
    let question = json!({
        "model": SMOLLM2, "prompt": LONG, "max_tokens": 8, "temperature": 0, "echo": true, "logprobs": 2,
    });
    let logprobs = |node: &Node| {
        let response = post(&node.api, "/v1/completions", &question);
        let (status, answer) = (response.status, response.json());
        assert_eq!(status, 200, "{answer}");
        (answer["choices"][0]["logprobs"].clone(), answer["pangea"].clone())
    };
    let alone = stage.serving("alone").start();
    let (honest, _) = logprobs(&alone);
    drop(alone);
    let one = stage.splitting("one").with("--audit", "1").start();
    let last = |name: &str| stage.cluster.node(name).with("--peer", &one.address).with("--layers", "15-29");
    let liar = last("liar").fault("corrupt-score").start();
    eventually("the layers are placed on both", || {
        [&one, &liar].iter().all(|node| node.process.count("are ready") > 0)
    });
    computed_by(&one, &[&one, &liar]);
    let (scored, pangea) = logprobs(&one);
    assert_eq!(scored, honest, "{pangea}");
    assert!(one.status_of(&liar).quarantined, "{pangea}");
    // An honest last stage is audited with the same result, and its receipt holds.
    let honest_stage = last("honest").start();
    computed_by(&one, &[&one, &honest_stage]);
    let (scored, pangea) = logprobs(&one);
    assert_eq!((&scored, &pangea["verdict"]), (&honest, &json!("audited")), "{pangea}");
    assert_eq!(stages(&pangea), [one.peer.as_str(), honest_stage.peer.as_str()]);
    stage.verify_all(&one, &pangea);
}

/// Waits until the node trusts another one less than at first, without proof.
fn is_suspected(node: &Node, of: &Node) {
    eventually("the other node is a suspect", || {
        let status = node.status_of(of);
        assert!(!status.quarantined, "nothing is proven");
        node.process.count(&format!("peer_suspected peer={}", of.peer)) > 0 || status.trust < 0.1
    });
}

#[test]
fn a_stage_that_lies_and_does_not_sign_is_left_out_and_suspected() {
    let test = "a_stage_that_lies_and_does_not_sign_is_left_out_and_suspected";
    let Some((one, liar, answer)) = withstands(test, "lie-unsigned", "1") else { return };
    // Nothing that it computed is delivered.
    assert_eq!(stages(&answer["pangea"]), [one.peer.as_str()], "{answer}");
    is_suspected(&one, &liar);
}

#[test]
fn a_last_stage_with_two_versions_of_an_answer_is_left_out_and_the_honest_stage_is_not_blamed() {
    let test = "a_last_stage_with_two_versions_of_an_answer_is_left_out_and_the_honest_stage_is_not_blamed";
    let Some((one, liar, answer)) = withstands(test, "two-faced", "1") else { return };
    assert_eq!(stages(&answer["pangea"]), [one.peer.as_str()], "{answer}");
    is_suspected(&one, &liar);
    assert_eq!(one.process.count(&format!("peer {}: its claim", one.peer)), 0);
}

#[test]
fn a_stage_that_signs_two_claims_about_one_session_is_quarantined_for_it() {
    let test = "a_stage_that_signs_two_claims_about_one_session_is_quarantined_for_it";
    let Some(stage) = Stage::set(test) else { return };
    let question = question(LONG, 20);
    let honest = stage.alone(std::slice::from_ref(&question)).remove(0);
    let one = stage.splitting("one").with("--layers", "0-9").start();
    let with =
        |name: &str, layers: &str| stage.cluster.node(name).with("--peer", &one.address).with("--layers", layers);
    // In the middle: what it sends to the last stage is not what it sends to the coordinator.
    let liar = with("two", "10-19").fault("signs-twice").start();
    let last = with("three", "20-29").start();
    eventually("the layers are placed on all", || {
        [&one, &liar, &last].iter().all(|node| node.process.count("are ready") > 0)
    });
    eventually("the liar is shut out", || {
        let response = post(&one.api, CHAT, &question);
        // Without the liar no chain has all layers for a while.
        assert!(response.status != 200 || text_of(&response.json()) == honest);
        one.status_of(&liar).quarantined
    });
    assert!(!one.status_of(&last).quarantined);
    eventually("the evidence is kept", || !one.evidence_against(&liar).is_empty());
}

#[test]
fn a_stage_before_the_last_adds_nothing_to_an_answer() {
    let Some(stage) = Stage::set("a_stage_before_the_last_adds_nothing_to_an_answer") else { return };
    let question = question(LONG, 60);
    let honest = stage.alone(std::slice::from_ref(&question)).remove(0);
    let one = stage.splitting("one").with("--layers", "15-29").start();
    let talker =
        stage.cluster.node("two").with("--peer", &one.address).with("--layers", "0-14").fault("out-of-turn").start();
    eventually("the layers are placed on both", || {
        [&one, &talker].iter().all(|node| node.process.count("are ready") > 0)
    });
    computed_by(&one, &[&talker, &one]);
    assert_eq!(text_of(&ask(&one, &question)), honest);
    is_suspected(&one, &talker);
}

#[test]
fn an_answer_that_a_stage_never_ends_has_as_many_tokens_as_were_asked_for() {
    let test = "an_answer_that_a_stage_never_ends_has_as_many_tokens_as_were_asked_for";
    let Some((one, endless, answer)) = withstands(test, "endless", "0") else { return };
    assert!(answer["usage"]["completion_tokens"].as_u64().unwrap() <= 60, "{answer}");
    is_suspected(&one, &endless);
}

#[test]
fn a_stage_that_calls_every_request_invalid_refuses_no_request() {
    let test = "a_stage_that_calls_every_request_invalid_refuses_no_request";
    let Some((one, refusing, _)) = withstands(test, "refuse", "0") else { return };
    is_suspected(&one, &refusing);
}

#[test]
fn a_last_stage_that_reports_nonsense_stalls_no_answer() {
    let test = "a_last_stage_that_reports_nonsense_stalls_no_answer";
    let Some((one, nonsense, _)) = withstands(test, "false-reports", "0") else { return };
    is_suspected(&one, &nonsense);
}

#[test]
fn a_last_stage_that_falls_silent_stalls_no_answer() {
    withstands("a_last_stage_that_falls_silent_stalls_no_answer", "hang", "0");
}

#[test]
fn an_answer_that_nobody_else_can_compute_fails_with_what_is_known() {
    let Some(stage) = Stage::set("an_answer_that_nobody_else_can_compute_fails_with_what_is_known") else { return };
    // Neither node can hold all layers.
    let one = stage.splitting("one").with("--layers", "0-14").max_memory("160M").with("--audit", "1").start();
    let liar = stage
        .cluster
        .node("two")
        .with("--peer", &one.address)
        .with("--layers", "15-29")
        .max_memory("160M")
        .fault("lie-unsigned")
        .start();
    eventually("the layers are placed on both", || {
        [&one, &liar].iter().all(|node| node.process.count("are ready") > 0)
    });
    let response = post(&one.api, CHAT, &question(LONG, 60));
    let (status, answer) = (response.status, response.json());
    assert_eq!(status, 502, "{answer}");
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(message.contains("no trustworthy answer could be had"), "{answer}");
    // On the terminal this has an exit code of its own.
    let said = stage.cluster.run(&["chat", "--api", &one.api, "--max-tokens", "60", LONG]);
    assert!(said.code == Some(4) && said.err.contains("no trustworthy answer could be had"), "{said:?}");
}
