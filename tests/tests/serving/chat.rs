//! `pangea chat`: the same answer from a node and in its own process.

use super::*;

fn chat(cluster: &Cluster, arguments: &[&str]) -> pangea_tests::cluster::Output {
    let common = ["chat", "--max-tokens", "12", "--json"];
    cluster.run(&[&common[..], arguments].concat())
}

#[test]
fn chat_gives_the_same_answer_with_and_without_a_node() {
    let Some(model) = file_of(SMOLLM2, "chat_says_the_same") else { return };
    let Some(serving) = Serving::start("chat_says_the_same") else { return };
    let cluster = &serving._cluster;
    let prompt = "What is the capital of France?";
    let with = chat(cluster, &["--api", serving.api(), prompt]).json();
    assert_eq!((&with["place"], &with["verdict"]), (&json!("node"), &json!("local")));
    assert!(with["content"].as_str().unwrap().contains("Paris"), "{with}");
    assert_eq!(with["stages"], json!([{"peer": serving.node.peer, "layers": [0, 30]}]));
    assert_eq!((&with["failovers"], &with["receipts"]), (&json!(0), &json!([])));
    // Another node may run on the default address; it has no model with this path's name.
    let elsewhere = cluster.folder().join("mine.gguf");
    std::os::unix::fs::symlink(model, &elsewhere).unwrap();
    let output = chat(cluster, &["--model", elsewhere.to_str().unwrap(), prompt]);
    let without = output.json();
    assert_eq!(without["place"], "local");
    assert_eq!(
        (&without["verdict"], &without["stages"], &without["failovers"]),
        (&json!("local"), &json!([]), &json!(0))
    );
    assert_eq!(without["content"], with["content"]);
    assert!(output.err.contains("in this process"), "{}", output.err);
}

#[test]
fn chat_asks_the_running_node_of_the_data_directory_for_a_model_named_by_its_file() {
    let Some(model) = file_of(SMOLLM2, "chat_asks_the_running_node") else { return };
    let cluster = Cluster::new();
    let home = cluster.folder().join("one");
    std::fs::create_dir_all(home.join("models")).unwrap();
    std::os::unix::fs::symlink(&model, home.join("models/SmolLM2-135M-Instruct.Q4_1.gguf")).unwrap();
    // With an API key the node could offer its API to others; the key is also in the data directory of its owner.
    std::fs::write(home.join("config.toml"), "api-key = \"open-sesame\"\nmodel = \"smollm2\"\n").unwrap();
    let node = cluster.node("one").start();
    eventually("the node is ready", || get(&node.api, "/readyz").status == 200);
    let home = home.to_str().unwrap();
    for named in [model.to_str().unwrap(), "smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"] {
        let answer = chat(&cluster, &["--data-dir", home, "--model", named, "Hello"]).json();
        assert_eq!((&answer["place"], &answer["model"]), (&json!("node"), &json!("smollm2")), "{named}: {answer}");
    }
    let url = format!("http://{}/v1", node.api);
    assert_eq!(
        chat(&cluster, &["--api", &url, "--data-dir", home, "Hello"]).code,
        Some(1),
        "no key where none was asked"
    );
}

#[test]
fn chat_fails_with_the_right_message_and_exit_code() {
    let cluster = Cluster::new();
    let one = cluster.node("one").start();
    for (arguments, code, said) in [
        (vec!["--api", "127.0.0.1:1", "Hello"], 3, "cannot reach"),
        (vec!["--api", &one.api, "Hello"], 2, "serves no model"),
        (vec!["--model", "nowhere.gguf", "Hello"], 2, "nowhere.gguf"),
        (vec!["--model", "some-name", "Hello"], 2, "some-name"),
        (vec![], 2, "--json"),
    ] {
        let output = chat(&cluster, &arguments);
        assert_eq!(output.code, Some(code), "{arguments:?}: {output:?}");
        assert!(output.err.contains(said), "{arguments:?}: {output:?}");
    }
}

#[test]
fn a_conversation_is_remembered_until_clear() {
    let Some(model) = file_of(SMOLLM2, "a_conversation_remembers") else { return };
    let cluster = Cluster::new();
    let said = |lines: &str| {
        let mut command = std::process::Command::new(pangea_tests::cluster::binary());
        command.args(["chat", "--model", model.to_str().unwrap(), "--max-tokens", "12"]);
        command.args(["--temperature", "0"]).env("PANGEA_HOME", cluster.folder());
        command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut child = command.stderr(std::process::Stdio::null()).spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), lines.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        String::from_utf8(output.stdout).unwrap()
    };
    let (france, italy) = ("What is the capital of France?\n", "And of Italy?\n");
    let both = said(&format!("{france}{italy}"));
    let forgotten = said(&format!("{france}/clear\n{italy}/exit\nnever read\n"));
    let alone = said(italy);
    assert!(both.starts_with(&said(france)) && !both.ends_with(&alone), "{both:?}");
    assert_eq!(forgotten, format!("{}{alone}", said(france)));
}

/// Read as control tokens, ten of them were ten tokens and ended the user's turn.
#[test]
fn control_tokens_in_a_message_are_counted_as_the_text_that_they_are() {
    let Some(serving) = Serving::start("control_tokens_in_a_message_are_counted") else { return };
    let prompt_tokens = |text: &str| {
        let answer = serving.ask(CHAT, &question(text, 1));
        answer["usage"]["prompt_tokens"].as_u64().unwrap()
    };
    let (bare, ten) = (prompt_tokens("x"), prompt_tokens(&format!("x{}", "<|im_end|>".repeat(10))));
    assert!(ten >= bare + 30, "{bare} and {ten} tokens");
}
