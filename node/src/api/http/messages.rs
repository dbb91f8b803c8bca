//! `/v1/messages` and `/v1/messages/count_tokens`: Anthropic's Messages API. This file reads requests; `messages_stream` writes.

use axum::extract::State;
use axum::response::Response;
use axum::routing::post;
use axum::{Json, Router};
use pangea_compute::chat::tools::ToolChoice;
use pangea_compute::sample::AnswerFormat;
use pangea_control::jobs::{Api, Owner};
use serde_json::{Map, Value, json};

use super::conversation::Conversation;
use super::dialect::{Wanted, respond};
use super::error::ApiError;
use super::fields::Fields;
use super::generation::{client_of, sampling};
use super::key_holder::KeyHolder;
use super::messages_stream::Messages;
use super::turn::refused;
use super::{App, Body};
use crate::serve::{Prompt, Request};

/// The routes of this file.
pub(super) fn routes() -> Router<App> {
    Router::new().route("/v1/messages", post(create)).route("/v1/messages/count_tokens", post(count_tokens))
}

async fn create(State(app): State<App>, holder: KeyHolder, body: Body) -> Result<Response, ApiError> {
    let mut fields = Fields::read(body).await?;
    let model: Option<String> = fields.optional("model")?;
    let wanted = parse(&mut fields)?;
    let engine = app.engine(model.as_deref(), &holder).await?;
    respond(&engine, &holder, wanted, Messages).await
}

async fn count_tokens(State(app): State<App>, holder: KeyHolder, body: Body) -> Result<Json<Value>, ApiError> {
    let mut fields = Fields::read(body).await?;
    let model: Option<String> = fields.optional("model")?;
    let (prompt, _) = prompt(&mut fields)?;
    let engine = app.engine(model.as_deref(), &holder).await?;
    let tokens = engine.count_tokens(prompt).await.map_err(refused)?;
    Ok(Json(json!({"input_tokens": tokens})))
}

fn parse(fields: &mut Fields) -> Result<Wanted, ApiError> {
    fields.unsupported("mcp_servers", &[json!([])])?;
    fields.unsupported("container", &[])?;
    let (sampling, open_terms) = sampling(fields)?;
    let max_tokens: usize = fields.required("max_tokens")?;
    if max_tokens == 0 {
        return Err(ApiError::field("max_tokens", "max_tokens is 0; it must be at least 1"));
    }
    let stop = fields.optional("stop_sequences")?.unwrap_or_default();
    let metadata: Option<Value> = fields.optional("metadata")?;
    let client = metadata.as_ref().and_then(|metadata| metadata["user_id"].as_str()).map(client_of);
    let format = format(fields)?;
    let (prompt, single_call) = prompt(fields)?;
    let request = Request {
        sampling,
        open_terms,
        stop,
        format,
        max_tokens: Some(max_tokens),
        owner: Owner { api: Api::Http, client },
        ..Request::new(prompt)
    };
    request.check()?;
    Ok(Wanted { request, single_call, stream: fields.optional("stream")?.unwrap_or(false) })
}

/// The format of the answer: in `output_config`, or as the field was named before.
fn format(fields: &mut Fields) -> Result<AnswerFormat, ApiError> {
    let config: Value = fields.optional("output_config")?.unwrap_or(Value::Null);
    let older: Option<Value> = fields.optional("output_format")?;
    let (field, format) = match older {
        Some(format) => ("output_format", format),
        None => ("output_config.format", config["format"].clone()),
    };
    match format["type"].as_str() {
        None if format.is_null() => Ok(AnswerFormat::Text),
        Some("json_schema") if format["schema"].is_object() => {
            Ok(AnswerFormat::JsonSchema(format["schema"].to_string()))
        }
        _ => Err(ApiError::field(field, format!("{field} must be a json_schema with its schema"))),
    }
}

/// The conversation with its tools, and whether at most one tool may be called.
fn prompt(fields: &mut Fields) -> Result<(Prompt, bool), ApiError> {
    let (tools, tool_choice, single_call) = tools(fields)?;
    let mut variables = Map::new();
    let thinking: Option<Value> = fields.optional("thinking")?;
    if let Some(thinking) = thinking {
        // Without the field templates decide for themselves.
        variables.insert("enable_thinking".to_owned(), json!(thinking["type"] != "disabled"));
    }
    let mut conversation = Conversation::default();
    if let Some(system) = fields.optional::<Value>("system")? {
        let system = text_of(&system).map_err(|why| ApiError::field("system", format!("system: {why}")))?;
        conversation.say("system", &system);
    }
    let messages: Vec<Value> = fields.required("messages")?;
    for (at, message) in messages.iter().enumerate() {
        let field = format!("messages.{at}");
        add(&mut conversation, message).map_err(|why| ApiError::field(&field, format!("{field}: {why}")))?;
    }
    if messages.is_empty() {
        return Err(ApiError::field("messages", "messages: at least one message is required"));
    }
    let mut messages = conversation.into_messages();
    // What the assistant has said last is the beginning of its answer.
    let begun = match messages.pop() {
        Some(last) if last.role == "assistant" && last.tool_calls.is_empty() => last.content,
        last => {
            messages.extend(last);
            String::new()
        }
    };
    let prompt = Prompt::Chat { messages, tools, tool_choice, variables, begun };
    prompt.check()?;
    Ok((prompt, single_call))
}

/// Tools in the form that templates know, which of them may or must be called, and whether only one may.
fn tools(fields: &mut Fields) -> Result<(Option<Value>, ToolChoice, bool), ApiError> {
    let sent: Vec<Value> = fields.optional("tools")?.unwrap_or_default();
    let mut functions = Vec::new();
    for (at, tool) in sent.iter().enumerate() {
        let field = format!("tools.{at}");
        if !matches!(tool["type"].as_str(), None | Some("custom")) {
            let message = format!("{field}.type is {}; only tools of the client are supported", tool["type"]);
            return Err(ApiError::field(&field, message).code("unsupported_parameter"));
        }
        if tool["name"].as_str().is_none_or(str::is_empty) {
            return Err(ApiError::field(&field, format!("{field}.name is missing")));
        }
        let mut function = json!({"name": tool["name"]});
        for (part, name) in [("description", "description"), ("parameters", "input_schema")] {
            if !tool[name].is_null() {
                function[part] = tool[name].clone();
            }
        }
        functions.push(json!({"type": "function", "function": function}));
    }
    let choice: Value = fields.optional("tool_choice")?.unwrap_or_else(|| json!({"type": "auto"}));
    let wrong = || ApiError::field("tool_choice", "tool_choice.type must be auto, any, tool (with a name) or none");
    let chosen = match choice["type"].as_str() {
        Some("auto") => ToolChoice::Auto,
        Some("any") => ToolChoice::Required,
        Some("tool") => ToolChoice::Named(choice["name"].as_str().ok_or_else(wrong)?.to_owned()),
        Some("none") => {
            functions.clear();
            ToolChoice::Auto
        }
        _ => return Err(wrong()),
    };
    let single = choice["disable_parallel_tool_use"] == true;
    Ok(((!functions.is_empty()).then_some(Value::Array(functions)), chosen, single))
}

/// Adds a message, which may be text, calls and results of calls.
fn add(conversation: &mut Conversation, message: &Value) -> Result<(), String> {
    let role = match message["role"].as_str() {
        Some(role @ ("user" | "assistant" | "system")) => role,
        Some(other) => return Err(format!("the role {other:?} is not one of user and assistant")),
        None => return Err("role is missing".to_owned()),
    };
    let blocks = match &message["content"] {
        Value::String(text) => {
            conversation.say(role, text);
            return Ok(());
        }
        Value::Array(blocks) => blocks,
        _ => return Err("content is neither a text nor a list of blocks".to_owned()),
    };
    for block in blocks {
        let text = |field: &str| block[field].as_str().ok_or_else(|| format!("a block has no {field}"));
        match text("type")? {
            "text" => conversation.say(role, text("text")?),
            "tool_use" => conversation.call(text("id")?, text("name")?, &block["input"].to_string()),
            "tool_result" => {
                let content = &block["content"];
                let mut result = if content.is_null() { String::new() } else { text_of(content)? };
                if block["is_error"] == true {
                    result.insert_str(0, "Error: ");
                }
                conversation.result(text("tool_use_id")?, &result);
            }
            // What another model thought is not for this one.
            "thinking" | "redacted_thinking" => {}
            "document" if block["source"]["type"] == "text" => {
                conversation.say(role, block["source"]["data"].as_str().unwrap_or_default());
            }
            other => return Err(format!("blocks of type {other} are not supported")),
        }
    }
    Ok(())
}

/// A text, or the texts of a list of blocks.
fn text_of(content: &Value) -> Result<String, String> {
    let blocks = match content {
        Value::String(text) => return Ok(text.clone()),
        Value::Array(blocks) => blocks,
        _ => return Err("neither a text nor a list of blocks".to_owned()),
    };
    let texts: Result<Vec<&str>, String> = blocks
        .iter()
        .map(|block| match block["type"].as_str() {
            Some("text") => block["text"].as_str().ok_or_else(|| "a block of type text has no text".to_owned()),
            Some(other) => Err(format!("blocks of type {other} are not supported here; only text is")),
            None => Err("a block has no type".to_owned()),
        })
        .collect();
    Ok(texts?.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Wanted, String> {
        let mut fields = Fields::parse(text.as_bytes()).map_err(|error| error.body().to_string())?;
        parse(&mut fields).map_err(|error| error.body()["error"]["param"].as_str().unwrap_or_default().to_owned())
    }

    /// What Claude Code sends in the middle of a task.
    const CLAUDE: &str = r#"{"model": "m", "max_tokens": 512, "stream": true, "temperature": 1,
        "system": [{"type": "text", "text": "You are an agent.", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "Be brief."}],
        "messages": [{"role": "user", "content": [{"type": "text", "text": "<reminder/>"}, {"type": "text", "text": "Read it."}]},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": "I read."},
                {"type": "tool_use", "id": "toolu_1", "name": "Read", "input": {"path": "a"}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "is_error": true, "content": [{"type": "text", "text": "none"}]},
                {"type": "text", "text": "And now?"}]}],
        "tools": [{"name": "Read", "description": "Reads", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": true}, "stop_sequences": ["END"],
        "metadata": {"user_id": "u"}, "thinking": {"type": "disabled"}, "context_management": {"edits": []}}"#;

    #[test]
    fn a_request_of_claude_code_becomes_turns_and_functions() {
        let wanted = parsed(CLAUDE).unwrap_or_else(|field| panic!("{field}"));
        assert!(wanted.stream && wanted.single_call);
        assert_eq!((wanted.request.max_tokens, &wanted.request.stop), (Some(512), &vec!["END".to_owned()]));
        let Prompt::Chat { messages, tools, tool_choice, variables, begun } = wanted.request.prompt else {
            panic!("no chat")
        };
        let said: Vec<_> = messages.iter().map(|m| (m.role.as_str(), m.content.as_str())).collect();
        let expected = [
            ("system", "You are an agent.\nBe brief."),
            ("user", "<reminder/>\n\nRead it."),
            ("assistant", "I read."),
            ("tool", "Error: none"),
            ("user", "And now?"),
        ];
        assert_eq!(said, expected);
        assert_eq!(messages[2].tool_calls[0]["function"]["arguments"], r#"{"path":"a"}"#);
        let function = json!({"name": "Read", "description": "Reads", "parameters": {"type": "object"}});
        assert_eq!(tools, Some(json!([{"type": "function", "function": function}])));
        assert_eq!(
            (tool_choice, &variables["enable_thinking"], begun.as_str()),
            (ToolChoice::Required, &json!(false), "")
        );
    }

    #[test]
    fn an_answer_goes_on_from_what_the_assistant_has_said() {
        let body = r#"{"max_tokens": 1, "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "The answer is"}]}"#;
        let Prompt::Chat { messages, begun, .. } = parsed(body).unwrap().request.prompt else { panic!("no chat") };
        assert_eq!((messages.len(), begun.as_str()), (1, "The answer is"));
    }

    #[test]
    fn what_cannot_be_had_is_refused_by_name() {
        let user = r#""messages": [{"role": "user", "content": "a"}]"#;
        for (body, field) in [
            (format!("{{{user}}}"), "max_tokens"),
            (format!(r#"{{{user}, "max_tokens": 0}}"#), "max_tokens"),
            (r#"{"max_tokens": 1, "messages": []}"#.to_owned(), "messages"),
            (
                format!(r#"{{{user}, "max_tokens": 1, "tools": [{{"type": "bash_20250124", "name": "bash"}}]}}"#),
                "tools.0",
            ),
            (format!(r#"{{{user}, "max_tokens": 1, "tool_choice": {{"type": "tool", "name": "x"}}}}"#), "tool_choice"),
            (format!(r#"{{{user}, "max_tokens": 1, "mcp_servers": [{{}}]}}"#), "mcp_servers"),
            (format!(r#"{{{user}, "max_tokens": 1, "output_format": {{"type": "xml"}}}}"#), "output_format"),
            (
                r#"{"max_tokens": 1, "messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}"#
                    .to_owned(),
                "messages.0",
            ),
        ] {
            assert_eq!(parsed(&body).err().as_deref(), Some(field), "{body}");
        }
    }
}
