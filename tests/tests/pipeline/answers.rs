//! Without failures: an answer is the same whichever node is asked and whichever nodes compute it, and its receipt holds.

use super::*;

#[test]
fn an_answer_equals_a_single_nodes_and_its_receipt_holds() {
    let Some(stage) = Stage::set("an_answer_equals_a_single_nodes_and_its_receipt_holds") else {
        return;
    };
    let mut sampled = question("Tell me about the sea.", 40);
    sampled["temperature"] = json!(0.8);
    sampled["seed"] = json!(11);
    let questions = [question("What is the capital of France?", 24), sampled];
    let alone = stage.alone(&questions);
    assert_ne!(alone[0], alone[1]);

    let one = stage.splitting("one").start();
    let two = stage.cluster.node("two").with("--peer", &one.address).start();
    let three = stage.cluster.node("three").with("--peer", &one.address).with("--audit", "1").start();
    let nodes = [&one, &two, &three];
    computed_by(&one, &nodes);
    for node in [&two, &three] {
        // Logged under the name that requests use, not the one in the model's file.
        assert!(node.process.count(&format!("Model {SMOLLM2}: fetching layers ")) > 0);
    }
    for node in nodes {
        // A node that learns of the model only by gossip learns of it about a second after the others.
        eventually("the model is known here", || get(&node.api, "/v1/models").text().contains(SMOLLM2));
        for (question, text) in questions.iter().zip(&alone) {
            let answer = ask(node, question);
            assert_eq!(&text_of(&answer), text, "{answer}");
            assert_eq!(stages(&answer["pangea"]).len(), 3, "{answer}");
            assert_eq!(answer["pangea"]["failovers"], 0, "{answer}");
            let verdict = if node.peer == three.peer { "audited" } else { "unchecked" };
            assert_eq!(answer["pangea"]["verdict"], verdict, "{answer}");
            stage.verify_all(node, &answer["pangea"]);
        }
        let (text, pangea) = Streamed::ask(node, &questions[0]).finish();
        assert_eq!(text, alone[0]);
        assert_eq!(stages(&pangea).len(), 3);
    }
    every_receipt_is_of_a_request(&stage, &one);
    chat_says_who_computed_what(&stage, &three);
    // Audits have fetched the rest of the file under the same name.
    assert_eq!(three.process.count("fetching"), three.process.count(&format!("Model {SMOLLM2}: fetching")));
    a_changed_receipt_does_not_hold(&stage, &one, &questions[0]);
}

/// At its start a node sends a request to its own model, which must leave no receipt.
fn every_receipt_is_of_a_request(stage: &Stage, node: &Node) {
    node.process.line("Serving model");
    let listed =
        stage.cluster.run(&["receipts", "list", "--json", "--data-dir", node.data_dir.to_str().unwrap()]).json();
    assert!(!listed.as_array().unwrap().is_empty());
    for receipt in listed.as_array().unwrap() {
        assert!(receipt["request"].as_str().unwrap().starts_with("chatcmpl-"), "{receipt}");
    }
}

/// Checks the same facts on the terminal.
fn chat_says_who_computed_what(stage: &Stage, node: &Node) {
    let chat = ["chat", "--api", &node.api, "--max-tokens", "8", "--json", "What is the capital of France?"];
    let answer = stage.cluster.run(&chat).json();
    assert_eq!(stages(&answer).len(), 3, "{answer}");
    assert_eq!((&answer["verdict"], &answer["failovers"]), (&json!("audited"), &json!(0)), "{answer}");
    stage.verify_all(node, &answer);
}

/// Replaces one token of the answer.
fn a_changed_receipt_does_not_hold(stage: &Stage, node: &Node, question: &Value) {
    let answer = ask(node, question);
    let id = answer["pangea"]["receipts"][0].as_str().unwrap();
    stage.verify_all(node, &answer["pangea"]);
    let text = std::fs::read_to_string(file_of_receipt(node, id).unwrap()).unwrap();
    let mut receipt: Value = serde_json::from_str(&text).unwrap();
    let token = receipt["answer_tokens"][3].as_u64().unwrap();
    receipt["answer_tokens"][3] = json!(token + 1);
    let changed = stage.cluster.folder().join("changed.json");
    std::fs::write(&changed, receipt.to_string()).unwrap();
    let output = stage.verify(node, changed.to_str().unwrap());
    assert_eq!(output.code, Some(4), "{output:?}");
}
