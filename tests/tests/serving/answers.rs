//! Content of answers: format, text, logprobs, seeds, stops, schemas; streaming and caching change nothing.

use super::*;

#[test]
fn a_chat_answer_has_openais_format_and_its_stages() {
    let Some(serving) = Serving::start("a_chat_answer_has_the_form") else { return };
    let mut body = question("What is the capital of France?", 12);
    let system = json!({"role": "system", "content": "Answer the question."});
    body["messages"].as_array_mut().unwrap().insert(0, system);
    let answer = serving.ask(CHAT, &body);
    assert_eq!((&answer["object"], &answer["model"]), (&json!("chat.completion"), &json!(SMOLLM2)));
    let choice = &answer["choices"][0];
    assert_eq!((&choice["index"], &choice["message"]["role"]), (&json!(0), &json!("assistant")));
    assert!(text_of(&answer, 0).contains("Paris"), "{answer}");
    let usage = &answer["usage"];
    let count = |name: &str| usage[name].as_u64().unwrap();
    assert_eq!(count("total_tokens"), count("prompt_tokens") + count("completion_tokens"));
    let pangea = json!({
        "verdict": "local", "stages": [{"peer": serving.node.peer, "layers": [0, 30]}], "failovers": 0, "receipts": [],
    });
    assert_eq!(answer["pangea"], pangea);
}

#[test]
fn a_stream_has_the_same_text_and_its_last_event_has_usage_and_verdict() {
    let Some(serving) = Serving::start("a_stream_says_the_same") else { return };
    let mut body = question("Count from one to five.", 24);
    let whole = serving.ask(CHAT, &body);
    body["stream_options"] = json!({"include_usage": true});
    let events = serving.stream(CHAT, body.clone());
    let said: String = events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(said, text_of(&whole, 0));
    assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
    let last = events.last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["completion_tokens"], whole["usage"]["completion_tokens"]);
    assert_eq!(last["pangea"], whole["pangea"]);
    assert!(events[..events.len() - 1].iter().all(|event| event["usage"].is_null() && event["pangea"].is_null()));
    // Without usage, the last event is the one with the finish reason.
    body.as_object_mut().unwrap().remove("stream_options");
    let events = serving.stream(CHAT, body);
    let last = events.last().unwrap();
    assert_eq!(last["choices"][0]["finish_reason"], whole["choices"][0]["finish_reason"]);
    assert_eq!(last["pangea"], whole["pangea"]);
}

#[test]
fn a_seed_gives_the_same_answer_and_another_seed_another() {
    let Some(serving) = Serving::start("a_seed_gives_the_same_answer") else { return };
    let ask = |seed: i64| {
        let mut body = question("Tell me a story.", 16);
        body["temperature"] = json!(1.2);
        body["seed"] = json!(seed);
        text_of(&serving.ask(CHAT, &body), 0).to_owned()
    };
    let (one, again, other) = (ask(7), ask(7), ask(8));
    assert_eq!(one, again);
    assert_ne!(one, other);
}

#[test]
fn choices_have_different_seeds_and_equal_single_answers() {
    let Some(serving) = Serving::start("choices_differ_by_their_seeds") else { return };
    let mut body = question("Name an animal.", 12);
    body["temperature"] = json!(1.5);
    body["seed"] = json!(100);
    body["n"] = json!(3);
    let together = serving.ask(CHAT, &body);
    for choice in 0..3 {
        body["n"] = json!(1);
        body["seed"] = json!(100 + choice);
        assert_eq!(text_of(&together, choice), text_of(&serving.ask(CHAT, &body), 0), "choice {choice}");
    }
    assert_eq!(together["choices"].as_array().unwrap().len(), 3);
}

#[test]
fn an_answer_ends_before_a_stop_text_wherever_the_pieces_are_cut() {
    let Some(serving) = Serving::start("an_answer_ends_before_a_stop_text") else { return };
    let mut body = question("Count: 1, 2, 3,", 40);
    let whole = text_of(&serving.ask(CHAT, &body), 0).to_owned();
    let middle = whole.char_indices().nth(whole.chars().count() / 2).unwrap().0;
    let stop: String = whole[middle..].chars().take(4).collect();
    body["stop"] = json!(stop);
    let answer = serving.ask(CHAT, &body);
    assert_eq!(text_of(&answer, 0), &whole[..whole.find(&stop).unwrap()]);
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    let said: String = serving
        .stream(CHAT, body)
        .iter()
        .filter_map(|event| event["choices"][0]["delta"]["content"].as_str())
        .collect();
    assert_eq!(said, text_of(&answer, 0));
}

#[test]
fn json_matches_its_schema_at_any_temperature() {
    let Some(serving) = Serving::start("json_fits_its_schema") else { return };
    let schema = json!({
        "type": "object", "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
        "required": ["name", "age"], "additionalProperties": false,
    });
    let mut body = question("Describe a person.", 120);
    body["temperature"] = json!(1.0);
    body["response_format"] = json!({"type": "json_schema", "json_schema": {"name": "person", "schema": schema}});
    for seed in 0..3 {
        body["seed"] = json!(seed);
        let answer = serving.ask(CHAT, &body);
        if answer["choices"][0]["finish_reason"] == "stop" {
            let person: Value = serde_json::from_str(text_of(&answer, 0)).unwrap();
            assert!(person["name"].is_string() && person["age"].is_i64() && person.as_object().unwrap().len() == 2);
        } else {
            assert!(text_of(&answer, 0).trim_start().starts_with('{'));
        }
    }
}

#[test]
fn logprobs_are_of_the_chosen_tokens_and_sorted() {
    let Some(serving) = Serving::start("logprobs_are_of_the_chosen_tokens") else { return };
    let mut body = question("What is the capital of France?", 6);
    body["logprobs"] = json!(true);
    body["top_logprobs"] = json!(3);
    let answer = serving.ask(CHAT, &body);
    let tokens = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    let said: String = tokens.iter().map(|token| token["token"].as_str().unwrap()).collect();
    assert_eq!(said, text_of(&answer, 0));
    for token in tokens {
        let top = token["top_logprobs"].as_array().unwrap();
        let logprob = |token: &Value| token["logprob"].as_f64().unwrap();
        assert_eq!(top.len(), 3);
        assert!(top.is_sorted_by(|a, b| logprob(a) >= logprob(b)) && logprob(token) <= 0.0);
        // With greedy sampling the chosen token is the most likely one.
        assert_eq!((&top[0]["token"], &top[0]["logprob"]), (&token["token"], &token["logprob"]));
        assert_eq!(token["bytes"].as_array().unwrap().len(), token["token"].as_str().unwrap().len());
    }
}

#[test]
fn completions_continue_texts_and_token_ids_and_score_the_echo() {
    let Some(serving) = Serving::start("completions_go_on_with_texts") else { return };
    let prompt = "The capital of France is";
    let mut body = json!({"model": SMOLLM2, "prompt": prompt, "max_tokens": 4, "temperature": 0, "logprobs": 1});
    let plain = serving.ask(COMPLETIONS, &body);
    assert!(text_of(&plain, 0).contains("Paris"), "{plain}");
    body["echo"] = json!(true);
    let echoed = serving.ask(COMPLETIONS, &body);
    assert_eq!(text_of(&echoed, 0), format!("{prompt}{}", text_of(&plain, 0)));
    let logprobs = &echoed["choices"][0]["logprobs"];
    let list = |name: &str| logprobs[name].as_array().unwrap().clone();
    let tokens: String = list("tokens").iter().map(|token| token.as_str().unwrap()).collect();
    assert_eq!(tokens, text_of(&echoed, 0));
    assert!(list("token_logprobs")[0].is_null() && list("token_logprobs")[1..].iter().all(Value::is_f64));
    assert_eq!(list("text_offset")[1], list("tokens")[0].as_str().unwrap().chars().count());
    // The answer's own values equal those without the echo.
    let own = plain["choices"][0]["logprobs"]["token_logprobs"].as_array().unwrap().clone();
    assert!(list("token_logprobs").ends_with(&own), "{echoed}");
    // Several prompts, as one document and streamed.
    let many = json!({"model": SMOLLM2, "prompt": [prompt, "One, two,"], "max_tokens": 4, "temperature": 0, "n": 2});
    let answers = serving.ask(COMPLETIONS, &many);
    assert_eq!(answers["choices"].as_array().unwrap().len(), 4);
    assert_eq!((text_of(&answers, 0), text_of(&answers, 1)), (text_of(&plain, 0), text_of(&plain, 0)));
    let mut said = vec![String::new(); 4];
    for event in serving.stream(COMPLETIONS, many) {
        let choice = &event["choices"][0];
        said[choice["index"].as_u64().unwrap() as usize].push_str(choice["text"].as_str().unwrap());
    }
    assert_eq!(said, (0..4).map(|choice| text_of(&answers, choice).to_owned()).collect::<Vec<_>>());
}

#[test]
fn a_continued_conversation_is_cached_and_has_the_same_answer() {
    let Some(serving) = Serving::start("a_conversation_that_goes_on") else { return };
    let body = question("What is the capital of France?", 10);
    let first = serving.ask(CHAT, &body);
    let again = serving.ask(CHAT, &body);
    let cached = |answer: &Value| answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    assert_eq!(cached(&first), 0);
    assert_eq!(cached(&again), first["usage"]["prompt_tokens"].as_u64().unwrap() - 1);
    assert_eq!(text_of(&first, 0), text_of(&again, 0));
}

#[test]
fn models_are_listed_and_found_by_name() {
    let Some(serving) = Serving::start("models_are_listed") else { return };
    let listed = get(serving.api(), "/v1/models").json();
    assert_eq!(listed["data"][0]["id"], SMOLLM2);
    assert_eq!(get(serving.api(), &format!("/v1/models/{SMOLLM2}")).json()["object"], "model");
    let missing = get(serving.api(), "/v1/models/other");
    assert_eq!((missing.status, missing.json()["error"]["code"].as_str()), (404, Some("model_not_found")));
    let status = get(serving.api(), "/api/status").json();
    assert_eq!((&status["peer"], &status["models"][0]["state"]), (&json!(serving.node.peer), &json!("ready")));
    let details = get(serving.api(), "/api/models").json();
    assert_eq!(details["models"][0]["model"]["layers"], 30);
}

#[test]
fn a_stage_whose_thread_panics_is_reported_and_restarted_and_its_answer_goes_on() {
    let test = "a_stage_whose_thread_panics";
    let Some(serving) = Serving::start_with(test, |node| node.fault("panic-stage")) else { return };
    let body = question("Count from one to thirty.", 24);
    // No other node has the layers, but this one has them still.
    let answer = serving.ask(CHAT, &body);
    assert_eq!(answer["pangea"]["failovers"], 1);
    serving.node.process.line("panicked: as the fault of this node says");
    eventually("the node is ready again", || get(serving.api(), "/readyz").status == 200);
    assert_eq!(get(serving.api(), "/healthz").status, 200);
    let again = serving.ask(CHAT, &body);
    assert_eq!((&again["pangea"]["failovers"], &again["choices"]), (&json!(0), &answer["choices"]));
}
