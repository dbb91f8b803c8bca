//! Calls of tools: forced by grammar, streamed in pieces, described to a model whose template knows no tools.

use super::*;

fn tools() -> Value {
    let parameters = json!({
        "type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"],
        "additionalProperties": false,
    });
    json!([
        {"type": "function", "function": {"name": "get_weather", "parameters": parameters}},
        {"type": "function", "function": {"name": "get_time"}},
    ])
}

fn forced() -> Value {
    let mut body = question("What is the weather in Rome?", 60);
    body["tools"] = tools();
    body["tool_choice"] = json!({"type": "function", "function": {"name": "get_weather"}});
    body
}

#[test]
fn a_named_tool_is_called_with_arguments_that_fit_whole_and_streamed() {
    let Some(serving) = Serving::start("a_named_tool_is_called") else { return };
    let whole = serving.ask(CHAT, &forced());
    let choice = &whole["choices"][0];
    assert_eq!((&choice["finish_reason"], &choice["message"]["content"]), (&json!("tool_calls"), &Value::Null));
    let call = &choice["message"]["tool_calls"][0];
    assert_eq!((&call["type"], &call["function"]["name"]), (&json!("function"), &json!("get_weather")));
    let given = call["function"]["arguments"].as_str().unwrap();
    let arguments: Value = serde_json::from_str(given).unwrap();
    assert!(["Paris", "Rome"].contains(&arguments["city"].as_str().unwrap()), "{arguments}");

    let events = serving.stream(CHAT, forced());
    let deltas: Vec<&Value> = events
        .iter()
        .filter_map(|event| {
            event["choices"][0]["delta"]["tool_calls"][0]
                .as_object()
                .map(|_| &event["choices"][0]["delta"]["tool_calls"][0])
        })
        .collect();
    assert!(deltas.iter().all(|delta| delta["index"] == 0));
    assert_eq!((&deltas[0]["function"]["name"], deltas[0]["id"].as_str().unwrap().len()), (&json!("get_weather"), 9));
    assert!(deltas[1..].iter().all(|delta| delta["id"].is_null() && delta["function"]["name"].is_null()));
    let said: String = deltas.iter().filter_map(|delta| delta["function"]["arguments"].as_str()).collect();
    assert_eq!(said, given);
    assert!(deltas.len() > 2, "the arguments come while they are chosen");
    assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
}

#[test]
fn some_tool_is_called_where_one_is_required_and_none_where_none_may_be() {
    let Some(serving) = Serving::start("some_tool_is_called") else { return };
    let mut body = forced();
    body["tool_choice"] = json!("required");
    body["n"] = json!(2);
    let answer = serving.ask(CHAT, &body);
    for choice in answer["choices"].as_array().unwrap() {
        let name = choice["message"]["tool_calls"][0]["function"]["name"].as_str().unwrap();
        assert!(["get_weather", "get_time"].contains(&name), "{answer}");
    }
    body["tool_choice"] = json!("none");
    let answer = serving.ask(CHAT, &body);
    assert!(answer["choices"][0]["message"]["tool_calls"].is_null() && !text_of(&answer, 0).is_empty(), "{answer}");
}

#[test]
fn a_model_whose_template_knows_no_tools_is_told_of_them() {
    let Some(serving) = Serving::start("a_model_is_told_of_its_tools") else { return };
    let tokens = |body: &Value| serving.ask(CHAT, body)["usage"]["prompt_tokens"].as_u64().unwrap();
    let mut body = forced();
    body["tool_choice"] = json!("auto");
    body["max_tokens"] = json!(1);
    let with = tokens(&body);
    body.as_object_mut().unwrap().retain(|field, _| !["tools", "tool_choice"].contains(&field.as_str()));
    assert!(with > tokens(&body) + 50, "{with}");
    // The answer that follows a result has it in its prompt.
    let asked = json!({"role": "assistant", "content": null, "tool_calls": [
        {"id": "abc", "type": "function", "function": {"name": "get_weather", "arguments": "{\"city\": \"Rome\"}"}},
    ]});
    let after = |result: &str| {
        let mut body = body.clone();
        let messages = body["messages"].as_array_mut().unwrap();
        messages.extend([asked.clone(), json!({"role": "tool", "tool_call_id": "abc", "content": result})]);
        tokens(&body)
    };
    let (short, long) = (after("Rain."), after(&"Rain. ".repeat(20)));
    assert!(long > short + 30, "{short} {long}");
}
