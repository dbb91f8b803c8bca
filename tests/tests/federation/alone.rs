//! One node that puts its own samples to the vote.

use pangea_tests::cluster::Cluster;
use pangea_tests::http::{get, post};
use pangea_tests::test_model::SMOLLM2;
use serde_json::{Value, json};

use super::{CHAT, VOTE, ask, ballots, counted, question, serving, story, text_of, with};

#[test]
fn a_vote_ends_with_a_consensus_and_is_replayed_from_its_seeds() {
    let cluster = Cluster::new();
    let name = "a_vote_ends_with_a_consensus_and_is_replayed_from_its_seeds";
    let Some(node) = serving(&cluster, "one", name, |node| node.flag("--federation")) else { return };
    let asked = question("What is the capital of France?");
    let answer = ask(&node, VOTE, &asked);
    assert_eq!((text_of(&answer), answer["object"].as_str()), ("Paris", Some("chat.completion")));
    let federation = &answer["federation"];
    assert_eq!((&federation["strategy"], &federation["decided"]), (&json!("weighted_vote"), &json!("consensus")));
    assert_eq!((&federation["samples_max"], &federation["peers"]), (&json!(16), &json!(0)));
    assert_eq!((&federation["answer"], &federation["seed"]), (&json!("paris"), &json!(1000)));
    assert!(federation["posterior"].as_f64().unwrap() >= 0.95 && federation["samples"].as_u64().unwrap() <= 8);
    assert_eq!(answer["pangea"]["verdict"], "local");
    assert!(answer["usage"]["completion_tokens"].as_u64().unwrap() >= 4, "all samples cost");
    for (at, ballot) in ballots(&answer).iter().enumerate() {
        assert_eq!(
            (ballot["peer"].as_str(), ballot["seed"].as_u64()),
            (Some(node.peer.as_str()), Some(1000 + at as u64))
        );
        assert!(ballot["score"].as_f64().is_some(), "{ballot}");
        let seeded = with(asked.clone(), json!({"seed": ballot["seed"], "strategy": "none"}));
        let replayed = ask(&node, CHAT, &seeded);
        assert!(replayed["ballots"].is_null());
        assert_eq!(ballot["text"].as_str(), Some(text_of(&replayed)), "{ballot}");
    }
    assert!(counted(&answer).len() >= 4 && counted(&answer).contains(&"Paris"));
    let again = ask(&node, VOTE, &asked);
    assert_eq!(
        (again["ballots"].clone(), again["federation"].clone()),
        (answer["ballots"].clone(), federation.clone())
    );
}

#[test]
fn a_free_text_is_answered_once_as_without_a_vote() {
    let cluster = Cluster::new();
    let name = "a_free_text_is_answered_once_as_without_a_vote";
    let Some(node) = serving(&cluster, "one", name, |node| node.flag("--federation")) else { return };
    let answer = ask(&node, VOTE, &story());
    assert_eq!((ballots(&answer).len(), &answer["federation"]["decided"]), (1, &json!("free_text")));
    let alone = ask(&node, CHAT, &with(story(), json!({"strategy": "none"})));
    assert_eq!(text_of(&answer), text_of(&alone));
    assert_eq!(answer["usage"]["completion_tokens"], alone["usage"]["completion_tokens"]);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}

#[test]
fn the_strategy_is_that_of_the_request_before_that_of_the_node() {
    let cluster = Cluster::new();
    let name = "the_strategy_is_that_of_the_request_before_that_of_the_node";
    let flags = |node: pangea_tests::cluster::NodeBuilder| node.flag("--federation").with("--strategy", "first_valid");
    let Some(node) = serving(&cluster, "one", name, flags) else { return };
    let decided = |answer: &Value| answer["federation"]["decided"].as_str().unwrap().to_owned();
    let first = ask(&node, VOTE, &story());
    assert_eq!((decided(&first).as_str(), ballots(&first).len()), ("valid", 1));
    assert_eq!(first["federation"]["strategy"], "first_valid");
    let best = ask(&node, VOTE, &with(story(), json!({"strategy": "best_of_n", "samples": 3})));
    assert_eq!((decided(&best).as_str(), counted(&best).len()), ("all_samples", 3));
    let top = ballots(&best).iter().map(|ballot| ballot["score"].as_f64().unwrap()).fold(f64::MIN, f64::max);
    let winner = ballots(&best).iter().find(|ballot| ballot["score"].as_f64() == Some(top)).unwrap();
    assert_eq!(winner["text"].as_str(), Some(text_of(&best)));
    let greedy = with(question("What is 2 + 3?"), json!({"strategy": "weighted_vote", "temperature": 0}));
    assert_eq!(ballots(&ask(&node, VOTE, &greedy)).len(), 1, "all samples would be the same");
    let schema = json!({"type": "object", "properties": {"answer": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["answer"], "additionalProperties": false});
    let format = json!({"type": "json_schema", "json_schema": {"name": "a", "schema": schema}});
    let typed = json!({"strategy": "weighted_vote", "response_format": format, "max_tokens": 32});
    let voted = ask(&node, VOTE, &with(question("What is 2 + 3?"), typed));
    let said: Value = serde_json::from_str(text_of(&voted)).unwrap();
    assert_eq!(voted["federation"]["answer"].as_str(), Some(said["answer"].to_string().as_str()));
}

#[test]
fn a_chat_of_a_federated_node_is_voted_on_where_that_can_help() {
    let cluster = Cluster::new();
    let name = "a_chat_of_a_federated_node_is_voted_on_where_that_can_help";
    let Some(node) = serving(&cluster, "one", name, |node| node.flag("--federation")) else { return };
    let asked = question("What is the capital of France?");
    assert!(ballots(&ask(&node, CHAT, &asked)).len() >= 4);
    for plain in [
        json!({"strategy": "none"}),
        json!({"n": 2}),
        json!({"logprobs": true}),
        json!({"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]}),
    ] {
        let answer = ask(&node, CHAT, &with(asked.clone(), plain));
        assert!(answer["ballots"].is_null(), "{answer}");
    }
    let streamed = post(&node.api, CHAT, &with(asked, json!({"stream": true}))).events();
    assert!(streamed.len() > 1 && streamed.iter().all(|event| event["ballots"].is_null()));
}

#[test]
fn a_node_says_whether_it_takes_part_and_refuses_what_no_vote_can_do() {
    let cluster = Cluster::new();
    let name = "a_node_says_whether_it_takes_part_and_refuses_what_no_vote_can_do";
    let Some(one) = serving(&cluster, "one", name, |node| node.flag("--federation")) else { return };
    let alone = cluster.node("two").start();
    let health = |api: &str| get(api, "/v1/federation/health").json();
    assert_eq!(health(&alone.api)["federation"], false);
    let said = health(&one.api);
    assert_eq!(
        (&said["status"], &said["federation"], &said["strategy"]),
        (&json!("ok"), &json!(true), &json!("weighted_vote"))
    );
    assert_eq!((&said["models"][0]["id"], said["instances"].as_u64().unwrap() > 0), (&json!(SMOLLM2), true));
    assert!(said["version"].is_string());
    let refused = |api: &str, path: &str, body: &Value| {
        let response = post(api, path, body);
        (response.status, response.json()["error"].take())
    };
    let (status, error) = refused(&alone.api, VOTE, &story());
    assert_eq!((status, &error["code"]), (400, &json!("federation_off")));
    assert!(error["message"].as_str().unwrap().contains("--federation"));
    let (status, error) = refused(&alone.api, CHAT, &with(story(), json!({"strategy": "best_of_n"})));
    assert_eq!((status, &error["param"]), (400, &json!("strategy")));
    for (more, param) in [
        (json!({"strategy": "majority"}), "strategy"),
        (json!({"strategy": "none"}), "strategy"),
        (json!({"samples": 0}), "samples"),
        (json!({"samples": 33}), "samples"),
        (json!({"deadline_s": 0}), "deadline_s"),
        (json!({"deadline_s": 601}), "deadline_s"),
        (json!({"stream": true}), "stream"),
        (json!({"n": 2}), "n"),
        (json!({"logprobs": true}), "logprobs"),
        (json!({"tools": [{"type": "function"}]}), "tools"),
        (json!({"messages": []}), "messages"),
        (json!({"model": "nothing"}), "model"),
    ] {
        let (status, error) = refused(&one.api, VOTE, &with(story(), more.clone()));
        assert!((400..500).contains(&status) && error["param"] == param, "{more}: {status} {error}");
    }
}
