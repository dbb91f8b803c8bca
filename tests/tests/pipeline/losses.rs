//! Stages that die, fall silent and come back while an answer is being computed.

use super::*;

#[test]
fn an_answer_survives_the_death_and_the_silence_of_its_stages() {
    let Some(stage) = Stage::set("an_answer_survives_the_death_and_the_silence_of_its_stages") else { return };
    let one = stage.splitting("one").start();
    // The first node to die is also the master.
    let two = stage.cluster.node("two").with("--peer", &one.address).flag("--force-master").start();
    let three = stage.cluster.node("three").with("--peer", &one.address).start();
    computed_by(&one, &[&one, &two, &three]);
    let question = question(LONG, 300);
    let (undisturbed, pangea) = Streamed::ask(&one, &question).finish();
    assert_eq!(pangea["failovers"], 0, "{pangea}");
    assert_eq!(stages(&pangea).len(), 3, "{pangea}");

    let mut events = get(&one.api, "/api/pangea/events");
    let mut answer = Streamed::ask(&one, &question);
    answer.has_begun();
    two.kill9();
    goes_on(&stage, &one, answer, &undisturbed);
    // Whoever follows the job hears which nodes it lost, then which go on.
    let mut failovers = Vec::new();
    loop {
        let job: Value = serde_json::from_str(&events.event().unwrap()).unwrap();
        if job["failover"].is_object() && failovers.last() != Some(&job["failover"]) {
            failovers.push(job["failover"].clone());
        }
        if job["state"] == "done" {
            assert_eq!(job["failovers"], 1, "{job}");
            assert_eq!(job["stages"], job["failover"]["to"], "{job}");
            break;
        }
    }
    let peers = |stages: &Value| -> Vec<String> {
        stages.as_array().unwrap().iter().map(|stage| stage["peer"].as_str().unwrap().to_owned()).collect()
    };
    let [lost, found] = &failovers[..] else { panic!("{failovers:?}") };
    assert!(peers(&lost["from"]).contains(&two.peer) && lost["to"] == json!([]), "{lost}");
    assert!(!lost["why"].as_str().unwrap().is_empty(), "{lost}");
    assert_eq!(found["from"], lost["from"]);
    assert!(!peers(&found["to"]).is_empty() && !peers(&found["to"]).contains(&two.peer), "{found}");
    computed_by(&one, &[&one, &three]);

    two.process.wait();
    let back = stage.cluster.node("two").with("--peer", &one.address).start();
    assert_eq!(back.peer, two.peer);
    // A pool waits before it uses a newcomer; no requests are needed meanwhile.
    back.process.line("are ready");
    computed_by(&one, &[&one, &back, &three]);

    // Only a node that has answered a ping can be declared silent.
    eventually("a ping is answered", || [&one, &back].iter().all(|node| node.status_of(&three).rtt_ms > 0.0));
    let mut answer = Streamed::ask(&one, &question);
    answer.has_begun();
    three.stop();
    goes_on(&stage, &one, answer, &undisturbed);
    three.cont();
    // Late messages of the woken stage change nothing.
    one.process.nth_line(&format!("Connected to peer {}", three.peer), 2);
    let (text, pangea) = Streamed::ask(&one, &question).finish();
    assert_eq!(text, undisturbed);
    assert_eq!(pangea["failovers"], 0, "{pangea}");
}

#[test]
fn a_failed_chain_of_live_nodes_is_placed_on_them_again() {
    let Some(stage) = Stage::set("a_failed_chain_of_live_nodes_is_placed_on_them_again") else { return };
    let question = question(LONG, 120);
    let undisturbed = stage.alone(std::slice::from_ref(&question)).remove(0);
    // No node can hold all layers, so there is no other chain to use.
    let one = stage.splitting("one").with("--layers", "0-14").max_memory("160M").fault("misfit").start();
    let two =
        stage.cluster.node("two").with("--peer", &one.address).with("--layers", "15-29").max_memory("160M").start();
    computed_by(&one, &[&one, &two]);
    let before = [&one, &two].map(|node| node.process.count("Loading layers"));
    // The fault makes a frame not fit at some point.
    let mut broke = 0;
    while broke == 0 {
        let (text, pangea) = Streamed::ask(&one, &question).finish();
        assert_eq!(text, undisturbed, "{pangea}");
        broke = pangea["failovers"].as_u64().unwrap();
    }
    two.process.line("pipeline failed");
    let (text, pangea) = Streamed::ask(&two, &question).finish();
    assert_eq!((text.as_str(), &pangea["failovers"]), (undisturbed.as_str(), &json!(0)));
    computed_by(&one, &[&one, &two]);
    let after = [&one, &two].map(|node| node.process.count("Loading layers"));
    assert_eq!(before, after, "the layers were there");
}

#[test]
fn an_answer_without_nodes_for_its_layers_ends_with_an_error() {
    let Some(stage) = Stage::set("an_answer_without_nodes_for_its_layers_ends_with_an_error") else {
        return;
    };
    let one = stage.splitting("one").max_memory("160M").flag("--force-master").start();
    let two = stage.cluster.node("two").with("--peer", &one.address).max_memory("160M").start();
    computed_by(&one, &[&one, &two]);
    let question = question(LONG, 300);
    let (undisturbed, _) = Streamed::ask(&one, &question).finish();
    let mut answer = Streamed::ask(&one, &question);
    answer.has_begun();
    two.kill9();
    let error = loop {
        match answer.try_next() {
            Ok(true) => {}
            Ok(false) => panic!("it was over before anything happened: {}", answer.text),
            Err(error) => break error,
        }
    };
    let message = error["error"]["message"].as_str().unwrap();
    // An error after a minute would name the timeout, not what is missing.
    assert!(message.contains("no node is left") && message.contains("missing"), "{error}");
    assert!(undisturbed.starts_with(&answer.text) && answer.text.split_whitespace().count() >= 3, "{:?}", answer.text);
}

#[test]
fn a_later_stage_without_memory_refuses_new_requests_and_delays_running_ones() {
    let Some(stage) = Stage::set("a_later_stage_without_memory_refuses_new_requests_and_delays_running_ones") else {
        return;
    };
    let long = question(LONG, 120);
    let undisturbed = stage.alone(std::slice::from_ref(&long)).remove(0);
    let one = stage.splitting("one").with("--layers", "0-14").start();
    let two = stage.cluster.node("two").with("--peer", &one.address).with("--layers", "15-29").fault("full").start();
    eventually("both are given layers", || [&one, &two].iter().all(|node| node.process.count("are ready") > 0));
    // About one frame of forty meets the fault.
    eventually("a request is refused", || {
        let refused = post(&one.api, CHAT, &question("Hello", 1));
        let again = refused.header("retry-after").map(|after| after.parse::<u32>().unwrap());
        match refused.status {
            429 => {
                assert!(again.is_some(), "when to try again");
                true
            }
            status => {
                assert_eq!(status, 200);
                false
            }
        }
    });
    eventually("an answer goes on", || {
        let response = post(
            &one.api,
            CHAT,
            &json!({"stream": true, "model": long["model"], "messages": long["messages"],
            "max_tokens": long["max_tokens"], "temperature": 0}),
        );
        if response.status == 429 {
            return false;
        }
        let (text, pangea) = Streamed::of(response).finish();
        assert_eq!(text, undisturbed, "{pangea}");
        pangea["failovers"].as_u64().unwrap() >= 1
    });
}

#[test]
fn an_answer_survives_the_models_owner_if_another_node_has_all_layers() {
    let Some(stage) = Stage::set("an_answer_survives_the_models_owner_if_another_node_has_all_layers") else {
        return;
    };
    let one = stage.splitting("one").start();
    let two = stage.cluster.node("two").with("--peer", &one.address).with("--layers", "0-29").start();
    computed_by(&two, &[&two]);
    let question = question(LONG, 300);
    let (undisturbed, _) = Streamed::ask(&two, &question).finish();
    two.kill9();
    two.process.wait();
    // All fetched layers are still there, and now they are spread over the nodes.
    let two = stage.cluster.node("two").with("--peer", &one.address).start();
    computed_by(&two, &[&one, &two]);
    let mut answer = Streamed::ask(&two, &question);
    answer.has_begun();
    one.kill9();
    let (text, pangea) = answer.finish();
    assert_eq!(text, undisturbed, "{pangea}");
    assert!(pangea["failovers"].as_u64().unwrap() >= 1, "it was over before anything happened: {pangea}");
    assert_eq!(two.process.count("wrong bytes"), 0, "nobody sent any");
    // The answer also works once the pool has removed the owner.
    two.process.line(&format!("Peer {} is gone", one.peer));
    let models = get(&two.api, "/v1/models").json();
    assert_eq!(models["data"][0]["id"], SMOLLM2, "{models}");
    computed_by(&two, &[&two]);
}

#[test]
fn an_answer_whose_layers_are_lost_with_the_owner_ends_with_an_error_that_names_them() {
    let Some(stage) = Stage::set("an_answer_whose_layers_are_lost_with_the_owner_ends_with_an_error_that_names_them")
    else {
        return;
    };
    let one = stage.splitting("one").with("--layers", "0-14").start();
    let two = stage.cluster.node("two").with("--peer", &one.address).with("--layers", "15-29").start();
    computed_by(&two, &[&one, &two]);
    let mut answer = Streamed::ask(&two, &question(LONG, 300));
    answer.has_begun();
    one.kill9();
    let error = loop {
        match answer.try_next() {
            Ok(true) => {}
            Ok(false) => panic!("it was over before anything happened: {}", answer.text),
            Err(error) => break error,
        }
    };
    let message = error["error"]["message"].as_str().unwrap();
    // An audit may have fetched some of the owner's layers before it died; the others are lost.
    let lost = message.split_once(" layers ").and_then(|(_, rest)| rest.split_once(" of ")).map(|(layers, _)| layers);
    let lost: Vec<u32> = lost.unwrap_or_default().split(['-', ',']).filter_map(|at| at.trim().parse().ok()).collect();
    assert!(!lost.is_empty() && lost.iter().all(|layer| *layer < 15), "{error}");
    assert!(message.contains("are missing: one had the file"), "{error}");
    assert_eq!(two.process.count("wrong bytes"), 0, "nobody sent any");
}

#[test]
fn a_model_whose_owner_is_gone_is_away_and_not_unknown() {
    let Some(stage) = Stage::set("a_model_whose_owner_is_gone_is_away_and_not_unknown") else { return };
    let owner = stage.serving("owner").with("--layers", "0-29").flag("--force-master").start();
    let entrance = stage.cluster.node("entrance").with("--peer", &owner.address).start();
    computed_by(&entrance, &[&owner]);
    owner.kill9();
    eventually("the entrance says who had the model", || {
        let refused = post(&entrance.api, CHAT, &question("Hello", 1));
        let (status, again) = (refused.status, refused.header("retry-after").map(str::to_owned));
        let error = refused.json();
        assert_eq!(status, 503, "{error}");
        let message = error["error"]["message"].as_str().unwrap();
        let is_told =
            message.contains("no node that is here has the model's weights") && message.contains("was on owner;");
        assert!(!is_told || again.is_some_and(|seconds| seconds.parse::<u64>().is_ok_and(|seconds| seconds > 0)));
        is_told
    });
    // What nobody ever served is unknown, once this node knows that it is alone.
    let mut body = question("Hello", 1);
    body["model"] = json!("nobody");
    eventually("another model is unknown", || post(&entrance.api, CHAT, &body).status == 404);
}

/// Sessions that stages of a node take part in, as its metrics say.
fn stage_sessions(node: &Node) -> f64 {
    let metrics = get(&node.api, "/metrics").text();
    let line = metrics.lines().find_map(|line| line.strip_prefix("pangea_stage_sessions "));
    line.unwrap_or_else(|| panic!("no such metric in\n{metrics}")).parse().unwrap()
}

#[test]
fn stages_close_the_sessions_of_a_coordinator_that_is_gone() {
    let Some(stage) = Stage::set("stages_close_the_sessions_of_a_coordinator_that_is_gone") else { return };
    let one = stage.splitting("one").with("--layers", "0-14").start();
    let two = stage.cluster.node("two").with("--peer", &one.address).with("--layers", "15-29").start();
    let three = stage.cluster.node("three").with("--peer", &one.address).start();
    computed_by(&three, &[&one, &two]);
    eventually("no session is left of the first answers", || {
        [&one, &two].iter().all(|node| stage_sessions(node) == 0.0)
    });
    let mut answer = Streamed::ask(&three, &question(LONG, 300));
    answer.has_begun();
    assert_eq!([&one, &two].map(stage_sessions), [1.0, 1.0]);
    three.kill9();
    eventually("both stages closed the session", || [&one, &two].iter().all(|node| stage_sessions(node) == 0.0));
    // The chain still answers.
    computed_by(&one, &[&one, &two]);
}

/// Checks that a disturbed answer equals the undisturbed one and reports the failover, and that its receipt holds.
fn goes_on(stage: &Stage, asked: &Node, answer: Streamed, undisturbed: &str) {
    let (text, pangea) = answer.finish();
    assert_eq!(text, undisturbed, "{pangea}");
    assert!(pangea["failovers"].as_u64().unwrap() >= 1, "it was over before anything happened: {pangea}");
    stage.verify_all(asked, &pangea);
}
