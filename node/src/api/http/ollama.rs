//! `/api/chat` and `/api/generate`: Ollama's API for answers. This file reads requests; `ollama_stream` writes.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use pangea_compute::chat::Message;
use pangea_compute::chat::tools::ToolChoice;
use pangea_compute::sample::AnswerFormat;
use serde_json::{Map, Value, json};

use super::conversation::Conversation;
use super::dialect::{Wanted, respond};
use super::error::ApiError;
use super::fields::Fields;
use super::generation::{owner, sampling, stops};
use super::key_holder::KeyHolder;
use super::ollama_stream::{Form, Ollama};
use super::{App, Body};
use crate::serve::{Prompt, Request, role};

/// The routes of this file.
pub(super) fn routes() -> Router<App> {
    Router::new().route("/api/chat", post(chat)).route("/api/generate", post(generate))
}

/// Name of a model without the tag that Ollama's clients add.
pub(super) fn untagged(name: &str) -> &str {
    name.strip_suffix(":latest").unwrap_or(name)
}

async fn chat(State(app): State<App>, holder: KeyHolder, body: Body) -> Result<Response, ApiError> {
    answer(app, &holder, body, Form::Chat).await
}

async fn generate(State(app): State<App>, holder: KeyHolder, body: Body) -> Result<Response, ApiError> {
    answer(app, &holder, body, Form::Generate).await
}

async fn answer(app: App, holder: &KeyHolder, body: Body, form: Form) -> Result<Response, ApiError> {
    let mut fields = Fields::read(body).await?;
    let model: String = fields.required("model")?;
    let dialect = Ollama::new(form, &model);
    let wanted = match form {
        Form::Chat => chat_request(&mut fields)?,
        Form::Generate => generate_request(&mut fields)?,
    };
    let engine = app.engine(Some(untagged(&model)), holder).await?;
    match wanted {
        Some(wanted) => respond(&engine, holder, wanted, dialect).await,
        // Without a prompt the model is loaded, which it is now, or unloaded, which its owner decides.
        None => Ok(Json(dialect.loaded()).into_response()),
    }
}

/// The fields that both endpoints have.
fn common(fields: &mut Fields) -> Result<Wanted, ApiError> {
    fields.unsupported("template", &[json!("")])?;
    let options: Map<String, Value> = fields.optional("options")?.unwrap_or_default();
    let mut options = Fields::of(options);
    for (field, name) in [("repeat_penalty", "repetition_penalty"), ("repeat_last_n", "repetition_window")] {
        options.rename(field, name);
    }
    let (mut sampling, mut open_terms) = sampling(&mut options)?;
    sampling.repetition_window = match options.optional::<i64>("repetition_window")? {
        // All tokens; none.
        None | Some(-1) => None,
        Some(0) => {
            sampling.repetition_penalty = 1.0;
            open_terms.repetition_penalty = false;
            None
        }
        Some(window) => Some(usize::try_from(window).map_err(|_| {
            ApiError::field("options", format!("repeat_last_n is {window}; it must be -1 (all) or more"))
        })?),
    };
    // Negative numbers mean no limit.
    let max_tokens = options.optional::<i64>("num_predict")?.and_then(|most| usize::try_from(most).ok());
    let request = Request {
        sampling,
        open_terms,
        max_tokens,
        stop: stops(&mut options)?,
        format: format(fields)?,
        owner: owner(fields)?,
        ..Request::new(Prompt::Tokens(Vec::new()))
    };
    request.check()?;
    Ok(Wanted { request, single_call: false, stream: fields.optional("stream")?.unwrap_or(true) })
}

fn format(fields: &mut Fields) -> Result<AnswerFormat, ApiError> {
    match fields.optional::<Value>("format")? {
        None => Ok(AnswerFormat::Text),
        Some(Value::String(name)) if name.is_empty() => Ok(AnswerFormat::Text),
        Some(Value::String(name)) if name == "json" => Ok(AnswerFormat::JsonObject),
        Some(schema @ Value::Object(_)) => Ok(AnswerFormat::JsonSchema(schema.to_string())),
        Some(_) => Err(ApiError::field("format", "format must be \"json\" or a JSON Schema")),
    }
}

/// The template's switch for thinking.
fn thinking(fields: &mut Fields) -> Result<Map<String, Value>, ApiError> {
    let mut variables = Map::new();
    match fields.optional::<Value>("think")? {
        Some(Value::Bool(think)) => drop(variables.insert("enable_thinking".to_owned(), json!(think))),
        Some(Value::String(effort)) => super::chat::reason(&effort, &mut variables),
        _ => {}
    }
    Ok(variables)
}

fn chat_request(fields: &mut Fields) -> Result<Option<Wanted>, ApiError> {
    let mut wanted = common(fields)?;
    let variables = thinking(fields)?;
    let tools: Vec<Value> = fields.optional("tools")?.unwrap_or_default();
    let sent: Vec<Value> = fields.optional("messages")?.unwrap_or_default();
    if sent.is_empty() {
        return Ok(None);
    }
    let messages = messages(&sent)?;
    let tools = (!tools.is_empty()).then_some(Value::Array(tools));
    let begun = String::new();
    wanted.request.prompt = Prompt::Chat { messages, tools, tool_choice: ToolChoice::Auto, variables, begun };
    wanted.request.check()?;
    Ok(Some(wanted))
}

/// Messages; a result of a call names the tool, not the call.
fn messages(sent: &[Value]) -> Result<Vec<Message>, ApiError> {
    let mut messages: Vec<Message> = Vec::with_capacity(sent.len());
    // Calls that have no result yet, by name, with the ids that they get here.
    let mut open: Vec<(String, String)> = Vec::new();
    for (at, sent) in sent.iter().enumerate() {
        let field = format!("messages[{at}]");
        let wrong = |why: &str| ApiError::field(&field, format!("{field}: {why}"));
        if sent["images"].as_array().is_some_and(|images| !images.is_empty()) {
            return Err(wrong("images are not supported"));
        }
        let role = role(at, sent["role"].as_str().ok_or_else(|| wrong("role is missing"))?)?;
        let mut message = Message::new(role, sent["content"].as_str().unwrap_or_default());
        for (nth, call) in sent["tool_calls"].as_array().into_iter().flatten().enumerate() {
            let name = call["function"]["name"].as_str().ok_or_else(|| wrong("a call has no name"))?;
            let id = format!("{:09}", at * 1000 + nth);
            open.push((name.to_owned(), id.clone()));
            message.tool_calls.push(json!({"id": id, "type": "function", "function": call["function"]}));
        }
        if role == "tool" {
            let name = sent["tool_name"].as_str().or_else(|| sent["name"].as_str());
            let call = open.iter().position(|(open, _)| name.is_none_or(|name| name == open)).map(|at| open.remove(at));
            message.name = name.map(str::to_owned).or_else(|| call.as_ref().map(|(name, _)| name.clone()));
            if let Some((_, id)) = call {
                message.extra.insert("tool_call_id".to_owned(), json!(id));
            }
        }
        messages.push(message);
    }
    Ok(messages)
}

fn generate_request(fields: &mut Fields) -> Result<Option<Wanted>, ApiError> {
    let mut wanted = common(fields)?;
    fields.unsupported("images", &[json!([])])?;
    fields.unsupported("context", &[json!([])])?;
    let variables = thinking(fields)?;
    let prompt: String = fields.optional("prompt")?.unwrap_or_default();
    let suffix: String = fields.optional("suffix")?.unwrap_or_default();
    let system: String = fields.optional("system")?.unwrap_or_default();
    let raw = fields.optional("raw")?.unwrap_or(false);
    if prompt.is_empty() && suffix.is_empty() {
        return Ok(None);
    }
    wanted.request.prompt = if !suffix.is_empty() {
        Prompt::Fill { before: prompt, after: suffix }
    } else if raw {
        Prompt::Text(prompt)
    } else {
        let mut conversation = Conversation::default();
        if !system.is_empty() {
            conversation.say("system", &system);
        }
        conversation.say("user", &prompt);
        let (messages, begun) = (conversation.into_messages(), String::new());
        Prompt::Chat { messages, tools: None, tool_choice: ToolChoice::Auto, variables, begun }
    };
    Ok(Some(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(
        text: &str,
        parse: impl Fn(&mut Fields) -> Result<Option<Wanted>, ApiError>,
    ) -> Result<Option<Wanted>, String> {
        let mut fields = Fields::parse(text.as_bytes()).map_err(|error| error.body().to_string())?;
        parse(&mut fields).map_err(|error| error.body()["error"]["param"].as_str().unwrap_or_default().to_owned())
    }

    #[test]
    fn options_are_the_sampling_and_a_result_finds_its_call() {
        let text = r#"{"messages": [{"role": "user", "content": "a"},
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}, {"function": {"name": "g", "arguments": {"x": 1}}}]},
            {"role": "tool", "tool_name": "g", "content": "1"}, {"role": "tool", "content": "2"}],
            "tools": [{"type": "function", "function": {"name": "f"}}], "format": {"type": "object"}, "keep_alive": "5m", "think": false,
            "options": {"temperature": 0, "num_predict": 5, "num_ctx": 4096, "stop": ["x"], "seed": 7, "repeat_penalty": 1.5, "repeat_last_n": 64}}"#;
        let wanted = read(text, chat_request).unwrap().unwrap();
        let Request { sampling, stop, max_tokens, format, prompt, .. } = wanted.request;
        assert_eq!((sampling.temperature, sampling.seed, sampling.repetition_penalty), (0.0, 7, 1.5));
        assert_eq!((sampling.repetition_window, max_tokens, stop), (Some(64), Some(5), vec!["x".to_owned()]));
        assert!(wanted.stream && format == AnswerFormat::JsonSchema(r#"{"type":"object"}"#.to_owned()));
        let Prompt::Chat { messages, variables, tools: Some(_), .. } = prompt else { panic!("no chat with tools") };
        assert_eq!(variables["enable_thinking"], false);
        assert_eq!(messages[2].extra["tool_call_id"], messages[1].tool_calls[1]["id"]);
        assert_eq!(
            (messages[3].name.as_deref(), &messages[3].extra["tool_call_id"]),
            (Some("f"), &messages[1].tool_calls[0]["id"])
        );
    }

    #[test]
    fn a_prompt_is_a_question_unless_it_is_raw_or_has_a_suffix() {
        let prompt = |text: &str| read(text, generate_request).unwrap().map(|wanted| wanted.request.prompt);
        assert!(
            matches!(prompt(r#"{"prompt": "a", "system": "s"}"#), Some(Prompt::Chat { messages, .. }) if messages.len() == 2)
        );
        assert!(matches!(prompt(r#"{"prompt": "a", "raw": true}"#), Some(Prompt::Text(text)) if text == "a"));
        assert!(matches!(prompt(r#"{"prompt": "a", "suffix": "b"}"#), Some(Prompt::Fill { .. })));
        assert!(prompt("{}").is_none());
        for (text, field) in [
            (r#"{"prompt": "a", "images": ["x"]}"#, "images"),
            (r#"{"prompt": "a", "context": [1]}"#, "context"),
            (r#"{"prompt": "a", "template": "x"}"#, "template"),
            (r#"{"prompt": "a", "format": "xml"}"#, "format"),
        ] {
            assert_eq!(read(text, generate_request).err().as_deref(), Some(field), "{text}");
        }
        assert_eq!(
            read(r#"{"messages": [{"role": "user", "content": "a", "images": ["x"]}]}"#, chat_request).err().as_deref(),
            Some("messages[0]")
        );
    }
}
