//! Refused requests: which field and status an error has; refusals come before any work.

use pangea_tests::tiny_model::TinyModel;

use super::*;

#[test]
fn errors_name_the_wrong_field() {
    let Some(serving) = Serving::start("what_is_wrong_with_a_request") else { return };
    let with = |field: &str, value: Value| {
        let mut body = question("Hello", 2);
        body[field] = value;
        body
    };
    for (body, status, param) in [
        (with("model", json!("other")), 404, "model"),
        (with("model", json!(5)), 400, "model"),
        (with("messages", json!([])), 400, "messages"),
        (with("messages", json!([{"role": "user", "content": 5}])), 400, "messages[0]"),
        (with("n", json!(0)), 400, "n"),
        (with("max_tokens", json!(-1)), 400, "max_tokens"),
        (with("tool_choice", json!("required")), 400, "tool_choice"),
        (with("functions", json!([])), 400, "functions"),
        (with("temperature", json!([])), 400, "temperature"),
    ] {
        let (code, error) = serving.refused(CHAT, &body);
        assert_eq!((code, error["param"].as_str()), (status, Some(param)), "{body}: {error}");
        assert_eq!(error["type"], "invalid_request_error");
    }
    // Errors of the engine have no field, but their message names the value.
    for (body, said) in [
        (with("temperature", json!(1e9)), "temperature"),
        (with("top_p", json!(0)), "top_p"),
        (with("stop", json!("")), "empty"),
        (with("logit_bias", json!({"49152": 1})), "49152"),
        (
            with("response_format", json!({"type": "json_schema", "json_schema": {"schema": {"type": 5}}})),
            "JSON Schema",
        ),
    ] {
        let (code, error) = serving.refused(CHAT, &body);
        assert!(code == 400 && error["message"].as_str().unwrap().contains(said), "{body}: {error}");
    }
    let tokens = |prompt: Value| json!({"model": SMOLLM2, "prompt": prompt, "max_tokens": 1});
    for (body, said) in [(tokens(json!([99999999])), "99999999"), (tokens(json!("")), "empty")] {
        let (code, error) = serving.refused(COMPLETIONS, &body);
        assert!(code == 400 && error["message"].as_str().unwrap().contains(said), "{body}: {error}");
    }
}

#[test]
fn a_prompt_beyond_the_context_has_openais_error_code() {
    let Some(serving) = Serving::start("a_prompt_beyond_the_context") else { return };
    let (code, error) = serving.refused(CHAT, &question(&"word ".repeat(9000), 2));
    assert_eq!((code, error["code"].as_str()), (400, Some("context_length_exceeded")), "{error}");
}

#[test]
fn foreign_pages_wrong_methods_and_bodies_are_refused() {
    let Some(serving) = Serving::start("foreign_pages_wrong_methods") else { return };
    let body = question("Hello", 1).to_string();
    let send = |method: &str, headers: &[(&str, &str)], body: &str| {
        http::send(serving.api(), method, CHAT, headers, body).status
    };
    assert_eq!(send("POST", &[("Host", "evil.example")], &body), 403);
    assert_eq!(send("POST", &[("Origin", "https://evil.example")], &body), 403);
    assert_eq!(send("GET", &[], ""), 405);
    assert_eq!(send("POST", &[], "{"), 400);
    assert_eq!(send("POST", &[], "[]"), 400);
    assert_eq!(send("POST", &[], &"x".repeat(17 << 20)), 413);
    assert_eq!(send("POST", &[("Content-Type", "multipart/form-data; boundary=x")], &body), 415);
    assert_eq!(send("POST", &[("Content-Type", "application/json"), ("Content-Encoding", "gzip")], &body), 415);
    let headers = [("Content-Type", "audio/wav")];
    let refused = http::send(serving.api(), "POST", "/v1/messages", &headers, &body);
    assert_eq!(refused.status, 415);
    let refused: Value = serde_json::from_str(&refused.text()).unwrap();
    assert_eq!(refused["error"]["type"], "invalid_request_error");
    assert!(refused["error"]["message"].as_str().unwrap().contains("audio/wav"), "{refused}");
    assert_eq!(get(serving.api(), "/v1/nothing").status, 404);
    assert_eq!(send("POST", &[], &body), 200);
    // As `curl -d` says it.
    assert_eq!(send("POST", &[("Content-Type", "application/x-www-form-urlencoded")], &body), 200);
}

#[test]
fn a_key_opens_the_api_and_health_needs_none() {
    let Some(model) = file_of(SMOLLM2, "a_key_opens_the_api") else { return };
    let cluster = Cluster::new();
    let builder = cluster.node("one").with("--model", model.to_str().unwrap());
    std::fs::create_dir_all(builder.data_dir()).unwrap();
    std::fs::write(builder.data_dir().join("config.toml"), "api-key = \"open-sesame\"\n").unwrap();
    let node = builder.start();
    let asked = |headers: &[(&str, &str)]| http::send(&node.api, "GET", "/v1/models", headers, "").status;
    assert_eq!(asked(&[]), 401);
    assert_eq!(asked(&[("Authorization", "Bearer wrong")]), 401);
    assert_eq!(asked(&[("Authorization", "Bearer open-sesame")]), 200);
    assert_eq!(get(&node.api, "/healthz").status, 200);
}

#[test]
fn a_port_in_use_or_an_invalid_model_prevents_the_start() {
    let cluster = Cluster::new();
    let one = cluster.node("one").start();
    let broken = cluster.folder().join("broken.gguf");
    std::fs::write(&broken, b"GGUF and no more").unwrap();
    for (builder, code, words) in [
        (cluster.node("two").api_addr(&one.api), 1, vec!["HTTP API", "--api-port"]),
        (cluster.node("three").with("--model", broken.to_str().unwrap()), 2, vec!["gguf"]),
        (cluster.node("four").with("--model", "nowhere.gguf"), 2, vec!["nowhere.gguf does not exist"]),
        (cluster.node("five").api_addr("0.0.0.0:0"), 2, vec!["PANGEA_API_KEY"]),
    ] {
        let process = builder.launch();
        let status = process.wait();
        let said: String = process.lines().into_iter().map(|line| line.text + "\n").collect();
        assert_eq!(status.code(), Some(code), "{said}");
        assert!(words.iter().all(|word| said.contains(word)), "{words:?}: {said}");
    }
}

#[test]
fn a_node_without_models_refuses_chats() {
    let cluster = Cluster::new();
    let one = cluster.node("one").start();
    assert_eq!(get(&one.api, "/v1/models").json()["data"], json!([]));
    assert_eq!(get(&one.api, "/readyz").status, 200);
    let refused = post(&one.api, CHAT, &question("Hello", 1));
    let (status, error) = (refused.status, refused.json()["error"].take());
    assert!(status == 404 && error["message"].as_str().unwrap().contains("--model"), "{error}");
}

/// Each of these schemas ended the node: the grammar library recursed until the stack was full.
#[test]
fn a_schema_that_recurses_without_end_is_refused_and_the_node_goes_on() {
    let cluster = Cluster::new();
    let file = cluster.folder().join("tiny.gguf");
    std::fs::write(&file, TinyModel::default().gguf()).unwrap();
    let node = cluster.node("one").with("--model", file.to_str().unwrap()).start();
    eventually("the node is ready", || get(&node.api, "/readyz").status == 200);
    let chain = |count: usize, link: fn(Value) -> Value| {
        let link = |at: usize| (format!("d{at}"), link(json!({"$ref": format!("#/$defs/d{}", at + 1)})));
        let mut definitions: serde_json::Map<String, Value> = (0..count).map(link).collect();
        definitions.insert(format!("d{count}"), json!({"type": "string"}));
        json!({"$ref": "#/$defs/d0", "$defs": definitions})
    };
    let names: Vec<String> = (0..8000).map(|at| format!("{at:x}")).collect();
    let ask = |schema: Value| {
        let format = json!({"type": "json_schema", "json_schema": {"name": "it", "schema": schema}});
        let body = json!({"model": "tiny", "prompt": "Hello", "max_tokens": 8, "response_format": format});
        post(&node.api, COMPLETIONS, &body)
    };
    for schema in [
        chain(500, |next| json!({"allOf": [next, {"minLength": 1}]})),
        chain(900, |next| next),
        json!({"type": "object", "required": names}),
    ] {
        let refused = ask(schema);
        assert_eq!(refused.status, 400);
        let error = refused.json()["error"].take();
        assert!(error["message"].as_str().unwrap().contains("JSON Schema"), "{error}");
    }
    assert!(!node.process.has_ended());
    assert_eq!(ask(json!({"enum": ["yes", "no"]})).status, 200);
}
