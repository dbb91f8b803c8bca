//! The dialects of OpenAI's Responses API, Anthropic and Ollama: one answer is the same in each of them, whole and streamed;
//! failures have the dialect's own shape.

use pangea_tests::skip::skip;

use super::*;

const RESPONSES: &str = "/v1/responses";
const MESSAGES: &str = "/v1/messages";
const QUESTION: &str = "What is the capital of France?";
const SYSTEM: &str = "Answer the question.";

/// The lines of a stream of JSON documents.
fn lines(serving: &Serving, path: &str, body: &Value) -> Vec<Value> {
    let response = post(serving.api(), path, body);
    assert_eq!((response.status, response.header("content-type")), (200, Some("application/x-ndjson")));
    response.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The events of a stream.
fn stream(serving: &Serving, path: &str, mut body: Value) -> Vec<Value> {
    body["stream"] = json!(true);
    post(serving.api(), path, &body).events_to_end()
}

/// The events of one type, as the client receives them.
fn of_type<'a>(events: &'a [Value], name: &'a str) -> impl Iterator<Item = &'a Value> {
    events.iter().filter(move |event| event["type"] == name)
}

#[test]
fn one_answer_is_the_same_in_every_dialect() {
    let Some(serving) = Serving::start("one_answer_in_every_dialect") else { return };
    let mut asked = question(QUESTION, 12);
    asked["messages"].as_array_mut().unwrap().insert(0, json!({"role": "system", "content": SYSTEM}));
    let said = text_of(&serving.ask(CHAT, &asked), 0).to_owned();
    assert!(said.contains("Paris"), "{said}");

    let asked = json!({
        "model": SMOLLM2, "instructions": SYSTEM, "input": QUESTION, "max_output_tokens": 12, "temperature": 0,
    });
    let whole = serving.ask(RESPONSES, &asked);
    assert_eq!(whole["output"][0]["content"][0]["text"], said);
    let events = stream(&serving, RESPONSES, asked);
    let streamed: String =
        of_type(&events, "response.output_text.delta").filter_map(|event| event["delta"].as_str()).collect();
    assert_eq!(streamed, said);
    assert!(events.iter().enumerate().all(|(at, event)| event["sequence_number"] == at));
    let last = &events.last().unwrap()["response"];
    assert_eq!((&last["output"][0]["content"], &last["status"]), (&whole["output"][0]["content"], &whole["status"]));
    assert_eq!(last["usage"], whole["usage"]);

    let messages = json!([{"role": "user", "content": QUESTION}]);
    let asked = json!({"model": SMOLLM2, "max_tokens": 12, "temperature": 0, "system": SYSTEM, "messages": messages});
    let whole = serving.ask(&format!("{MESSAGES}?beta=true"), &asked);
    assert_eq!(whole["content"], json!([{"type": "text", "text": said}]));
    let counted =
        serving.ask("/v1/messages/count_tokens", &json!({"model": SMOLLM2, "system": SYSTEM, "messages": messages}));
    let cached = whole["usage"]["cache_read_input_tokens"].as_u64().unwrap();
    assert_eq!(counted["input_tokens"].as_u64().unwrap(), whole["usage"]["input_tokens"].as_u64().unwrap() + cached);
    let events = stream(&serving, MESSAGES, asked);
    let streamed: String =
        of_type(&events, "content_block_delta").filter_map(|event| event["delta"]["text"].as_str()).collect();
    assert_eq!(streamed, said);
    assert_eq!(of_type(&events, "message_delta").next().unwrap()["delta"]["stop_reason"], whole["stop_reason"]);

    let options = json!({"temperature": 0, "num_predict": 12});
    let messages = json!([{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}]);
    let asked = json!({"model": format!("{SMOLLM2}:latest"), "messages": messages, "options": options});
    let streamed = lines(&serving, "/api/chat", &asked);
    let text: String = streamed.iter().filter_map(|line| line["message"]["content"].as_str()).collect();
    assert_eq!(text, said);
    let last = streamed.last().unwrap();
    assert_eq!((&last["done"], &last["model"]), (&json!(true), &asked["model"]));
    let asked = json!({
        "model": SMOLLM2, "system": SYSTEM, "prompt": QUESTION, "stream": false, "options": options,
    });
    assert_eq!(serving.ask("/api/generate", &asked)["response"], said);
}

#[test]
fn tools_are_called_in_every_dialect() {
    let Some(serving) = Serving::start("tools_in_every_dialect") else { return };
    let parameters = json!({
        "type": "object", "properties": {"city": {"enum": ["Rome"]}}, "required": ["city"], "additionalProperties": false,
    });
    let rome = json!({"city": "Rome"});
    let read = |text: &Value| serde_json::from_str::<Value>(text.as_str().unwrap()).unwrap();

    let tool = json!({"type": "function", "name": "get_weather", "parameters": parameters});
    let asked = json!({
        "model": SMOLLM2, "input": "The weather in Rome?", "tools": [tool, {"type": "web_search"}], "tool_choice": "required",
    });
    let answer = serving.ask(RESPONSES, &asked);
    let call = &answer["output"][0];
    assert_eq!(
        (&call["type"], &call["name"], read(&call["arguments"])),
        (&json!("function_call"), &json!("get_weather"), rome.clone())
    );
    assert_eq!(answer["pangea"]["ignored_tools"], json!(["web_search"]));
    let events = stream(&serving, RESPONSES, asked);
    let said: String = of_type(&events, "response.function_call_arguments.delta")
        .filter_map(|event| event["delta"].as_str())
        .collect();
    assert_eq!(read(&json!(said)), rome);

    let asked = json!({
        "model": SMOLLM2, "max_tokens": 60, "messages": [{"role": "user", "content": "The weather in Rome?"}],
        "tools": [{"name": "get_weather", "input_schema": parameters}], "tool_choice": {"type": "tool", "name": "get_weather"},
    });
    let answer = serving.ask(MESSAGES, &asked);
    assert_eq!((&answer["stop_reason"], &answer["content"][0]["input"]), (&json!("tool_use"), &rome));
    let events = stream(&serving, MESSAGES, asked);
    let said: String =
        of_type(&events, "content_block_delta").filter_map(|event| event["delta"]["partial_json"].as_str()).collect();
    assert_eq!(read(&json!(said)), rome);
}

#[test]
fn an_answer_of_anthropic_goes_on_from_its_beginning_and_names_its_stop_text() {
    let Some(serving) = Serving::start("an_answer_goes_on_from_its_beginning") else { return };
    let mut asked = json!({
        "model": SMOLLM2, "max_tokens": 12, "temperature": 0,
        "messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "The capital of France is"}],
    });
    let answer = serving.ask(MESSAGES, &asked);
    let text = answer["content"][0]["text"].as_str().unwrap();
    assert!(text.starts_with(" Paris"), "{text}");
    asked["stop_sequences"] = json!(["xyz", "Paris"]);
    let answer = serving.ask(MESSAGES, &asked);
    assert_eq!((&answer["stop_reason"], &answer["stop_sequence"]), (&json!("stop_sequence"), &json!("Paris")));
}

#[test]
fn failures_have_the_shape_of_the_dialect() {
    let Some(serving) = Serving::start("failures_have_the_shape") else { return };
    let sent = |path: &str, body: Value| {
        let response = post(serving.api(), path, &body);
        (response.status, response.json())
    };
    let messages = json!([{"role": "user", "content": "a"}]);
    let (status, body) = sent(MESSAGES, json!({"model": "other", "max_tokens": 1, "messages": messages}));
    assert_eq!((status, &body["type"], &body["error"]["type"]), (404, &json!("error"), &json!("not_found_error")));
    let (status, body) = sent(MESSAGES, json!({"model": SMOLLM2, "messages": messages}));
    assert_eq!((status, &body["error"]["type"]), (400, &json!("invalid_request_error")));
    let (status, body) = sent("/api/chat", json!({"model": "other", "messages": messages}));
    assert!(status == 404 && body["error"].as_str().unwrap().contains("other"), "{body}");
    let (status, body) = sent("/api/pull", json!({"model": "other"}));
    assert!(status == 404 && body["error"].as_str().unwrap().contains("/api/pull"), "{body}");
    let (status, body) = sent(RESPONSES, json!({"model": SMOLLM2, "input": "a", "previous_response_id": "x"}));
    assert_eq!((status, &body["error"]["param"]), (400, &json!("previous_response_id")));
    let (status, body) = sent(COMPLETIONS, json!({"model": SMOLLM2, "prompt": "a", "suffix": "b"}));
    assert!(status == 400 && body["error"]["message"].as_str().unwrap().contains("suffix"), "{body}");
    // The only model that is served need not be named.
    assert_eq!(sent(CHAT, json!({"messages": messages, "max_tokens": 1})).0, 200);
}

#[test]
fn ollamas_clients_find_the_models() {
    let Some(serving) = Serving::start("ollamas_clients_find_the_models") else { return };
    let tags = get(serving.api(), "/api/tags").json();
    assert_eq!(
        (&tags["models"][0]["name"], &tags["models"][0]["details"]["family"]),
        (&json!(SMOLLM2), &json!("llama"))
    );
    let shown = serving.ask("/api/show", &json!({"model": format!("{SMOLLM2}:latest")}));
    assert_eq!(shown["model_info"]["llama.context_length"], 8192);
    assert!(shown["capabilities"].as_array().unwrap().contains(&json!("tools")));
    assert_eq!(get(serving.api(), "/api/ps").json()["models"][0]["model"], SMOLLM2);
    assert!(get(serving.api(), "/api/version").json()["version"].is_string());
    let loaded = serving.ask("/api/chat", &json!({"model": SMOLLM2}));
    assert_eq!((&loaded["done"], &loaded["done_reason"]), (&json!(true), &json!("load")));
}

#[test]
fn embeddings_are_near_for_texts_of_one_meaning_in_both_dialects() {
    let Some(serving) = Serving::start("embeddings_are_near") else { return };
    let texts =
        json!(["The cat sat on the mat.", "A cat is sitting on a mat.", "Interest rates rose sharply in March."]);
    let answer = serving.ask("/v1/embeddings", &json!({"model": SMOLLM2, "input": texts}));
    let vectors: Vec<Vec<f64>> = answer["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| serde_json::from_value(entry["embedding"].clone()).unwrap())
        .collect();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    assert!(vectors.iter().all(|vector| vector.len() == 576 && (dot(vector, vector) - 1.0).abs() < 1e-5));
    assert!(dot(&vectors[0], &vectors[1]) > dot(&vectors[0], &vectors[2]) + 0.01);
    assert!(answer["usage"]["prompt_tokens"].as_u64().unwrap() > 15);
    // The same bits alone and in Ollama's form.
    let alone = serving.ask("/api/embed", &json!({"model": SMOLLM2, "input": texts[2]}));
    assert_eq!(alone["embeddings"][0], answer["data"][2]["embedding"]);
    let older = serving.ask("/api/embeddings", &json!({"model": SMOLLM2, "prompt": texts[2]}));
    assert_eq!(older["embedding"], answer["data"][2]["embedding"]);
    let long = json!({"model": SMOLLM2, "input": "word ".repeat(9000)});
    let (status, error) = serving.refused("/v1/embeddings", &long);
    assert_eq!((status, error["code"].as_str()), (400, Some("context_length_exceeded")));
    let short = serving.ask("/v1/embeddings", &json!({"input": "a", "dimensions": 8, "encoding_format": "base64"}));
    assert_eq!(short["data"][0]["embedding"].as_str().unwrap().len(), 44);
}

#[test]
fn ollamas_own_port_is_offered_where_asked_for() {
    // One port for the whole machine: somebody may have it.
    if std::net::TcpListener::bind("127.0.0.1:11434").is_err() {
        return skip("ollamas_own_port_is_offered", "port 11434 is in use");
    }
    let cluster = Cluster::new();
    let node = cluster.node("one").flag("--ollama").start();
    let ollama = "127.0.0.1:11434";
    assert_eq!(get(ollama, "/").text(), "Ollama is running");
    assert_eq!(http::send(ollama, "HEAD", "/", &[], "").status, 200);
    assert_eq!(get(ollama, "/api/tags").json(), get(&node.api, "/api/tags").json());
    let taken = cluster.node("two").flag("--ollama").launch();
    assert_eq!(taken.wait().code(), Some(1));
    let said: String = taken.lines().into_iter().map(|line| line.text + "\n").collect();
    assert!(said.contains("11434") && said.contains("--ollama"), "{said}");
    assert_eq!(node.terminate(), Some(0));
}
