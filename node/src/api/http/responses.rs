//! `/v1/responses`: OpenAI's Responses API, without stored state: what a conversation needs comes with each request. This file
//! reads requests; `responses_stream` writes.

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::post;
use pangea_compute::chat::tools::ToolChoice;
use pangea_compute::sample::AnswerFormat;
use serde_json::{Map, Value, json};

use super::chat::reason;
use super::conversation::Conversation;
use super::dialect::{Wanted, respond};
use super::error::ApiError;
use super::fields::Fields;
use super::generation::{Generate, generate};
use super::key_holder::KeyHolder;
use super::responses_stream::{Echo, Responses};
use super::{App, Body};
use crate::serve::Prompt;

/// The routes of this file.
pub(super) fn routes() -> Router<App> {
    Router::new().route("/v1/responses", post(create))
}

async fn create(State(app): State<App>, holder: KeyHolder, body: Body) -> Result<Response, ApiError> {
    let mut fields = Fields::read(body).await?;
    let model: Option<String> = fields.optional("model")?;
    let (wanted, echo) = parse(&mut fields)?;
    let engine = app.engine(model.as_deref(), &holder).await?;
    respond(&engine, &holder, wanted, Responses::new(echo)).await
}

/// Tools that OpenAI runs on its own servers, or that have no JSON for arguments: the model is not told of them.
const IGNORED_TOOLS: [&str; 16] = [
    "apply_patch",
    "code_interpreter",
    "computer",
    "computer_use_preview",
    "custom",
    "file_search",
    "image_generation",
    "local_shell",
    "mcp",
    "namespace",
    "shell",
    "tool_search",
    "web_search",
    "web_search_2025_08_26",
    "web_search_preview",
    "web_search_preview_2025_03_11",
];

fn parse(fields: &mut Fields) -> Result<(Wanted, Echo), ApiError> {
    for field in ["previous_response_id", "conversation", "prompt"] {
        fields.unsupported(field, &[])?;
    }
    fields.unsupported("background", &[json!(false)])?;
    fields.unsupported("top_logprobs", &[json!(0)])?;
    // The stream always carries the usage.
    fields.optional::<Value>("stream_options")?;
    let mut echo = Echo::default();
    let Generate { mut request, stream, .. } = generate(fields)?;
    request.max_tokens = fields.optional("max_output_tokens")?;
    echo.note("max_output_tokens", json!(request.max_tokens));
    // What is left to the model is not known before the model is.
    let (sampling, open) = (&request.sampling, request.open_terms);
    echo.note("temperature", json!((!open.temperature).then_some(sampling.temperature)));
    echo.note("top_p", json!((!open.top_p).then_some(sampling.top_p)));
    let mut variables: Map<String, Value> = fields.optional("chat_template_kwargs")?.unwrap_or_default();
    let reasoning: Option<Value> = fields.optional("reasoning")?;
    if let Some(effort) = reasoning.as_ref().and_then(|reasoning| reasoning["effort"].as_str()) {
        reason(effort, &mut variables);
    }
    echo.note("reasoning", reasoning.unwrap_or_else(|| json!({"effort": null, "summary": null})));
    let text: Value = fields.optional("text")?.unwrap_or(Value::Null);
    request.format = format(&text["format"])?;
    echo.note("text", if text.is_object() { text } else { json!({"format": {"type": "text"}}) });
    let single_call = !fields.optional("parallel_tool_calls")?.unwrap_or(true);
    echo.note("parallel_tool_calls", json!(!single_call));
    let (tools, tool_choice) = tools(fields, &mut echo)?;
    let instructions: Option<String> = fields.optional("instructions")?;
    echo.note("instructions", json!(instructions));
    for field in ["metadata", "user", "prompt_cache_key", "safety_identifier"] {
        echo.note(field, fields.optional(field)?.unwrap_or(Value::Null));
    }
    let mut conversation = Conversation::default();
    if let Some(instructions) = instructions {
        conversation.say("system", &instructions);
    }
    match fields.required::<Value>("input")? {
        Value::String(text) => conversation.say("user", &text),
        Value::Array(items) => {
            for (at, item) in items.iter().enumerate() {
                let field = format!("input[{at}]");
                add(&mut conversation, item).map_err(|why| ApiError::field(&field, format!("{field}: {why}")))?;
            }
        }
        _ => return Err(ApiError::field("input", "input must be a text or a list of items")),
    }
    let prompt =
        Prompt::Chat { messages: conversation.into_messages(), tools, tool_choice, variables, begun: String::new() };
    prompt.check().map_err(|wrong| match wrong.field.as_str() {
        "messages" => ApiError::field("input", "input has no message"),
        _ => ApiError::from(wrong),
    })?;
    request.prompt = prompt;
    Ok((Wanted { request, single_call, stream }, echo))
}

fn format(format: &Value) -> Result<AnswerFormat, ApiError> {
    match format["type"].as_str() {
        None | Some("text") => Ok(AnswerFormat::Text),
        Some("json_object") => Ok(AnswerFormat::JsonObject),
        Some("json_schema") if format["schema"].is_object() => {
            Ok(AnswerFormat::JsonSchema(format["schema"].to_string()))
        }
        Some("json_schema") => Err(ApiError::field("text.format", "text.format.schema is missing")),
        Some(_) => Err(ApiError::field("text.format", "text.format.type must be text, json_object or json_schema")),
    }
}

/// The functions among the tools, in the form that templates know, and which of them may or must be called.
fn tools(fields: &mut Fields, echo: &mut Echo) -> Result<(Option<Value>, ToolChoice), ApiError> {
    let sent: Vec<Value> = fields.optional("tools")?.unwrap_or_default();
    let (mut functions, mut kept) = (Vec::new(), Vec::new());
    for (at, tool) in sent.into_iter().enumerate() {
        let field = format!("tools[{at}]");
        match tool["type"].as_str() {
            Some("function") if tool["name"].as_str().is_some_and(|name| !name.is_empty()) => {
                let mut function = json!({"name": tool["name"]});
                for part in ["description", "parameters"] {
                    if !tool[part].is_null() {
                        function[part] = tool[part].clone();
                    }
                }
                functions.push(json!({"type": "function", "function": function}));
                kept.push(tool);
            }
            Some("function") => return Err(ApiError::field(&field, format!("{field}.name is missing"))),
            Some(ignored) if IGNORED_TOOLS.contains(&ignored) => echo.ignored_tools.push(ignored.to_owned()),
            _ => {
                let message = format!("{field}.type is {}; this node knows no such tool", tool["type"]);
                return Err(ApiError::field(&field, message).code("unsupported_parameter"));
            }
        }
    }
    echo.note("tools", Value::Array(kept));
    let choice: Value = fields.optional("tool_choice")?.unwrap_or_else(|| json!("auto"));
    let wrong = || {
        let message = "tool_choice must be none, auto, required, a function, or allowed tools";
        ApiError::field("tool_choice", message)
    };
    let mut chosen = match (choice.as_str(), choice["type"].as_str()) {
        (Some("auto"), _) => ToolChoice::Auto,
        (Some("required"), _) => ToolChoice::Required,
        (Some("none"), _) => {
            functions.clear();
            ToolChoice::Auto
        }
        (None, Some("function")) => ToolChoice::Named(choice["name"].as_str().ok_or_else(wrong)?.to_owned()),
        (None, Some("allowed_tools")) => {
            let allowed = choice["tools"].as_array().ok_or_else(wrong)?;
            functions.retain(|tool| allowed.iter().any(|allowed| allowed["name"] == tool["function"]["name"]));
            if choice["mode"] == "required" { ToolChoice::Required } else { ToolChoice::Auto }
        }
        _ => return Err(wrong()),
    };
    echo.note("tool_choice", choice);
    if functions.is_empty() && chosen == ToolChoice::Auto {
        return Ok((None, ToolChoice::Auto));
    }
    if functions.is_empty() {
        // Reported by the check of the prompt.
        chosen = ToolChoice::Required;
    }
    Ok((Some(Value::Array(functions)), chosen))
}

/// Adds an item of the input to the conversation.
fn add(conversation: &mut Conversation, item: &Value) -> Result<(), String> {
    let text = |field: &str| item[field].as_str().ok_or_else(|| format!("{field} is missing or no text"));
    match item["type"].as_str().unwrap_or("message") {
        "message" => {
            let role = match text("role")? {
                "system" | "developer" => "system",
                role @ ("user" | "assistant") => role,
                other => return Err(format!("the role {other:?} is not one of system, developer, user and assistant")),
            };
            conversation.say(role, &content(&item["content"])?);
        }
        "function_call" => conversation.call(text("call_id")?, text("name")?, text("arguments")?),
        "function_call_output" => conversation.result(text("call_id")?, &content(&item["output"])?),
        // What another model thought is not for this one.
        "reasoning" => {}
        "item_reference" => return Err("this node stores no items; send the item itself".to_owned()),
        other => return Err(format!("items of type {other} are not supported")),
    }
    Ok(())
}

/// A text, or the texts of a list of parts.
fn content(content: &Value) -> Result<String, String> {
    let parts = match content {
        Value::String(text) => return Ok(text.clone()),
        Value::Array(parts) => parts,
        _ => return Err("the content is neither a text nor a list of parts".to_owned()),
    };
    let texts: Result<Vec<&str>, String> = parts
        .iter()
        .map(|part| match part["type"].as_str() {
            Some("input_text" | "output_text" | "text") => {
                part["text"].as_str().ok_or_else(|| "a part of type text has no text".to_owned())
            }
            Some("refusal") => Ok(part["refusal"].as_str().unwrap_or_default()),
            Some(other) => Err(format!("parts of type {other} are not supported; only text is")),
            None => Err("a part has no type".to_owned()),
        })
        .collect();
    Ok(texts?.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<(Wanted, Echo), String> {
        let mut fields = Fields::parse(text.as_bytes()).map_err(|error| error.body().to_string())?;
        parse(&mut fields).map_err(|error| error.body()["error"]["param"].as_str().unwrap_or_default().to_owned())
    }

    /// What Codex sends in the middle of a task.
    const CODEX: &str = r#"{"model": "m", "instructions": "You are a coding agent.", "input": [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Sandbox: read-only."}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "<environment/>"}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Read it."}]},
        {"type": "reasoning", "summary": [], "encrypted_content": "x"},
        {"type": "function_call", "name": "shell", "arguments": "{\"command\":[\"ls\"]}", "call_id": "c1"},
        {"type": "function_call_output", "call_id": "c1", "output": "a.txt"}],
        "tools": [{"type": "function", "name": "shell", "description": "Runs", "strict": false, "parameters": {"type": "object"}},
            {"type": "web_search"}, {"type": "custom", "name": "apply_patch"}],
        "tool_choice": "auto", "parallel_tool_calls": false, "reasoning": {"effort": "medium", "summary": "auto"},
        "store": false, "stream": true, "include": ["reasoning.encrypted_content"], "prompt_cache_key": "k", "text": {"verbosity": "low"}}"#;

    #[test]
    fn a_request_of_codex_becomes_turns_and_functions() {
        let (wanted, echo) = parsed(CODEX).unwrap_or_else(|field| panic!("{field}"));
        assert!(wanted.stream && wanted.single_call);
        let Prompt::Chat { messages, tools, tool_choice, variables, .. } = wanted.request.prompt else {
            panic!("no chat")
        };
        let said: Vec<_> = messages.iter().map(|m| (m.role.as_str(), m.content.as_str())).collect();
        let expected = [
            ("system", "You are a coding agent.\n\nSandbox: read-only."),
            ("user", "<environment/>\n\nRead it."),
            ("assistant", ""),
            ("tool", "a.txt"),
        ];
        assert_eq!(said, expected);
        assert_eq!(messages[2].tool_calls[0]["function"]["name"], "shell");
        let function = json!({"name": "shell", "description": "Runs", "parameters": {"type": "object"}});
        assert_eq!(tools, Some(json!([{"type": "function", "function": function}])));
        assert_eq!((tool_choice, &variables["reasoning_effort"]), (ToolChoice::Auto, &json!("medium")));
        assert_eq!(echo.ignored_tools, ["web_search", "custom"]);
    }

    #[test]
    fn what_needs_stored_state_or_other_tools_is_refused_by_name() {
        for (body, field) in [
            (r#"{"model": "m"}"#, "input"),
            (r#"{"input": []}"#, "input"),
            (r#"{"input": "a", "previous_response_id": "resp_1"}"#, "previous_response_id"),
            (r#"{"input": "a", "background": true}"#, "background"),
            (r#"{"input": [{"type": "item_reference", "id": "x"}]}"#, "input[0]"),
            (r#"{"input": [{"role": "king", "content": "a"}]}"#, "input[0]"),
            (r#"{"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}"#, "input[0]"),
            (r#"{"input": "a", "tools": [{"type": "telepathy"}]}"#, "tools[0]"),
            (r#"{"input": "a", "tools": [{"type": "function"}]}"#, "tools[0]"),
            (r#"{"input": "a", "tool_choice": "required"}"#, "tool_choice"),
            (r#"{"input": "a", "tool_choice": {"type": "function", "name": "f"}}"#, "tool_choice"),
            (r#"{"input": "a", "text": {"format": {"type": "xml"}}}"#, "text.format"),
        ] {
            assert_eq!(parsed(body).err().as_deref(), Some(field), "{body}");
        }
    }
}
