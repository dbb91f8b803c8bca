//! `/v1/chat/completions`: parses a conversation in OpenAI's format into a request to a model.

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::post;
use pangea_compute::chat::Message;
use pangea_compute::chat::tools::ToolChoice;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::answer::{Endpoint, HttpAnswer};
use super::error::ApiError;
use super::federation;
use super::fields::Fields;
use super::generation::{Generate, alternatives, generate};
use super::key_holder::KeyHolder;
use super::{App, Body};
use crate::serve::{Prompt, role};

/// The routes of this file.
pub(super) fn routes() -> Router<App> {
    Router::new().route("/v1/chat/completions", post(completions))
}

/// Answers a conversation.
async fn completions(State(app): State<App>, holder: KeyHolder, body: Body) -> Result<Response, ApiError> {
    let mut fields = Fields::read(body).await?;
    // Who puts an answer to the vote is the node that its client asked.
    if holder.peer().is_none()
        && let Some(strategy) = federation::chosen(&app, &mut fields)?
    {
        return federation::respond(&app, &holder, fields, strategy).await;
    }
    let model: Option<String> = fields.optional("model")?;
    let Parsed { generate, prompt, single_call } = parse(&mut fields)?;
    let engine = app.engine(model.as_deref(), &holder).await?;
    let mut request = generate.request;
    request.prompt = prompt;
    let answer = HttpAnswer::new(&engine, Endpoint::Chat { single_call }, generate.stream_options);
    answer.respond(&engine, &holder, vec![request], generate.stream).await
}

/// A request as it is read.
pub(super) struct Parsed {
    pub(super) generate: Generate,
    pub(super) prompt: Prompt,
    /// Whether at most one tool may be called.
    single_call: bool,
}

/// Reads the fields of a chat but its model.
pub(super) fn parse(fields: &mut Fields) -> Result<Parsed, ApiError> {
    for field in ["functions", "function_call", "audio", "web_search_options"] {
        fields.unsupported(field, &[])?;
    }
    fields.unsupported("modalities", &[json!(["text"])])?;
    let mut generate = generate(fields)?;
    if let Some(most) = fields.optional("max_completion_tokens")? {
        generate.request.max_tokens = Some(most);
    }
    let count: Option<usize> = fields.optional("top_logprobs")?;
    generate.request.sampling.logprobs = match (fields.optional("logprobs")?.unwrap_or(false), count) {
        (true, count) => Some(alternatives("top_logprobs", count.unwrap_or(0))?),
        (false, Some(1..)) => {
            return Err(ApiError::field("top_logprobs", "top_logprobs needs \"logprobs\": true"));
        }
        (false, _) => None,
    };
    let (tools, tool_choice) = tools(fields)?;
    let single_call = !fields.optional("parallel_tool_calls")?.unwrap_or(true);
    let mut variables: Map<String, Value> = fields.optional("chat_template_kwargs")?.unwrap_or_default();
    if let Some(effort) = fields.optional::<String>("reasoning_effort")? {
        reason(&effort, &mut variables);
    }
    let sent: Vec<Value> = fields.required("messages")?;
    let messages = sent.into_iter().enumerate().map(|(at, sent)| message(at, sent)).collect::<Result<_, _>>()?;
    let prompt = Prompt::Chat { messages, tools, tool_choice, variables, begun: String::new() };
    prompt.check()?;
    Ok(Parsed { generate, prompt, single_call })
}

/// Passes the wanted effort on to templates that know one; those that only know a switch get it.
pub(super) fn reason(effort: &str, variables: &mut Map<String, Value>) {
    variables.entry("reasoning_effort").or_insert_with(|| json!(effort));
    if matches!(effort, "none" | "minimal") {
        variables.entry("enable_thinking").or_insert(json!(false));
    }
}

/// Tools, and which of them may or must be called.
fn tools(fields: &mut Fields) -> Result<(Option<Value>, ToolChoice), ApiError> {
    let tools: Vec<Value> = fields.optional("tools")?.unwrap_or_default();
    for (at, tool) in tools.iter().enumerate() {
        let field = format!("tools[{at}]");
        if tool["type"] != "function" {
            let message = format!("{field}.type is {}; only function is supported", tool["type"]);
            return Err(ApiError::field(&field, message).code("unsupported_parameter"));
        }
        if tool["function"]["name"].as_str().is_none_or(str::is_empty) {
            return Err(ApiError::field(&field, format!("{field}.function.name is missing")));
        }
    }
    let choice: Option<Value> = fields.optional("tool_choice")?;
    let wrong = || {
        let message = "tool_choice must be none, auto, required, a function, or allowed tools";
        ApiError::field("tool_choice", message)
    };
    let choice = match &choice {
        None => ToolChoice::Auto,
        Some(Value::String(mode)) => match mode.as_str() {
            "auto" => ToolChoice::Auto,
            "required" => ToolChoice::Required,
            "none" => return Ok((None, ToolChoice::Auto)),
            _ => return Err(wrong()),
        },
        Some(Value::Object(choice)) => match choice.get("type").and_then(Value::as_str) {
            Some("function") => {
                let name = choice.get("function").and_then(|function| function["name"].as_str());
                ToolChoice::Named(name.ok_or_else(wrong)?.to_owned())
            }
            Some("allowed_tools") => {
                let allowed = choice.get("allowed_tools").unwrap_or(&Value::Null);
                let names: Vec<&Value> = allowed["tools"].as_array().ok_or_else(wrong)?.iter().collect();
                let is_allowed =
                    |tool: &Value| names.iter().any(|name| name["function"]["name"] == tool["function"]["name"]);
                let tools: Vec<Value> = tools.into_iter().filter(is_allowed).collect();
                let choice = if allowed["mode"] == "required" { ToolChoice::Required } else { ToolChoice::Auto };
                return Ok((Some(Value::Array(tools)).filter(|tools| *tools != json!([])), choice));
            }
            _ => return Err(wrong()),
        },
        Some(_) => return Err(wrong()),
    };
    Ok((Some(Value::Array(tools)).filter(|tools| *tools != json!([])), choice))
}

#[derive(Deserialize)]
struct RequestMessage {
    role: String,
    #[serde(default)]
    content: Option<Content>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    tool_calls: Option<Vec<Value>>,
    /// Other fields that templates may read, such as `tool_call_id`.
    #[serde(flatten)]
    extra: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<ContentPart>),
}

#[derive(Deserialize)]
struct ContentPart {
    r#type: String,
    #[serde(default)]
    text: Option<String>,
}

fn message(at: usize, sent: Value) -> Result<Message, ApiError> {
    let field = format!("messages[{at}]");
    let wrong = |what: String| ApiError::field(&field, format!("{field}: {what}"));
    let sent: RequestMessage = serde_json::from_value(sent).map_err(|error| wrong(error.to_string()))?;
    let role = role(at, &sent.role)?;
    let content = match sent.content {
        Some(Content::Text(text)) => text,
        Some(Content::Parts(parts)) => text_of(parts).map_err(wrong)?,
        None if role == "assistant" && sent.tool_calls.is_some() => String::new(),
        None => return Err(wrong("content is missing".to_owned())),
    };
    let mut message = Message::new(role, content);
    message.name = sent.name;
    message.tool_calls = sent.tool_calls.unwrap_or_default();
    message.extra = sent.extra;
    Ok(message)
}

fn text_of(parts: Vec<ContentPart>) -> Result<String, String> {
    let texts: Result<Vec<String>, String> = parts
        .into_iter()
        .map(|part| match (part.r#type.as_str(), part.text) {
            ("text", Some(text)) => Ok(text),
            ("text", None) => Err("a part of type text has no text".to_owned()),
            (other, _) => Err(format!("parts of type {other} are not supported; only text is")),
        })
        .collect();
    Ok(texts?.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<(Generate, Vec<Message>), String> {
        let mut fields = Fields::parse(text.as_bytes()).map_err(|error| error.body().to_string())?;
        match parse(&mut fields) {
            Ok(Parsed { generate, prompt: Prompt::Chat { messages, .. }, .. }) => Ok((generate, messages)),
            Ok(_) => Err("no chat".to_owned()),
            Err(error) => Err(error.body()["error"]["param"].as_str().unwrap_or_default().to_owned()),
        }
    }

    #[test]
    fn messages_are_read_in_every_form_that_clients_write() {
        let (_, messages) = parsed(
            r#"{"messages": [{"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": null, "tool_calls": []}, {"role": "tool", "content": "4", "tool_call_id": "x"}]}"#,
        )
        .unwrap_or_else(|field| panic!("{field}"));
        let sent: Vec<_> = messages.iter().map(|message| (message.role.as_str(), message.content.as_str())).collect();
        assert_eq!(sent, [("system", "Be brief."), ("user", "ab"), ("assistant", ""), ("tool", "4")]);
    }

    #[test]
    fn what_cannot_be_had_is_refused_by_name() {
        let user = r#""messages": [{"role": "user", "content": "a"}]"#;
        let add = r#""tools": [{"type": "function", "function": {"name": "add"}}]"#;
        for (text, field) in [
            ("{}".to_owned(), "messages"),
            (r#"{"messages": []}"#.to_owned(), "messages"),
            (r#"{"messages": [{"role": "king", "content": "a"}]}"#.to_owned(), "messages[0]"),
            (r#"{"messages": [{"role": "user"}]}"#.to_owned(), "messages[0]"),
            (
                r#"{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}"#.to_owned(),
                "messages[0]",
            ),
            (format!(r#"{{{user}, "functions": []}}"#), "functions"),
            (format!(r#"{{{user}, "modalities": ["audio"]}}"#), "modalities"),
            (format!(r#"{{{user}, "tool_choice": "required"}}"#), "tool_choice"),
            (format!(r#"{{{user}, "tool_choice": "perhaps"}}"#), "tool_choice"),
            (
                format!(r#"{{{user}, {add}, "tool_choice": {{"type": "function", "function": {{"name": "sub"}}}}}}"#),
                "tool_choice",
            ),
            (format!(r#"{{{user}, "tools": [{{"type": "web_search"}}]}}"#), "tools[0]"),
            (format!(r#"{{{user}, "tools": [{{"type": "function", "function": {{}}}}]}}"#), "tools[0]"),
            (format!(r#"{{{user}, "top_logprobs": 2}}"#), "top_logprobs"),
            (format!(r#"{{{user}, "logprobs": true, "top_logprobs": 21}}"#), "top_logprobs"),
        ] {
            assert_eq!(parsed(&text).err().as_deref(), Some(field), "{text}");
        }
        let ignored =
            format!(r#"{{{user}, "user": "u", "store": true, "metadata": {{}}, "what": 1, "modalities": ["text"]}}"#);
        assert!(parsed(&ignored).is_ok());
    }

    #[test]
    fn every_form_of_tool_choice_is_read() {
        let tools = r#""tools": [{"type": "function", "function": {"name": "add"}}, {"type": "function", "function": {"name": "sub"}}]"#;
        for (choice, names, wanted) in [
            (r#""auto""#, vec!["add", "sub"], ToolChoice::Auto),
            ("null", vec!["add", "sub"], ToolChoice::Auto),
            (r#""none""#, vec![], ToolChoice::Auto),
            (r#""required""#, vec!["add", "sub"], ToolChoice::Required),
            (
                r#"{"type": "function", "function": {"name": "sub"}}"#,
                vec!["add", "sub"],
                ToolChoice::Named("sub".to_owned()),
            ),
            (
                r#"{"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "sub"}}]}}"#,
                vec!["sub"],
                ToolChoice::Required,
            ),
        ] {
            let text = format!(
                r#"{{"messages": [{{"role": "user", "content": "a"}}], {tools}, "tool_choice": {choice}, "parallel_tool_calls": false, "reasoning_effort": "none"}}"#
            );
            let parsed = parse(&mut Fields::parse(text.as_bytes()).unwrap()).unwrap();
            let Prompt::Chat { tools, tool_choice, variables, .. } = parsed.prompt else { panic!("no chat") };
            let read = tools.as_ref().map(pangea_compute::chat::tools::names).unwrap_or_default();
            assert_eq!(
                (read, tool_choice),
                (names.iter().map(|name| (*name).to_owned()).collect(), wanted),
                "{choice}"
            );
            assert!(
                parsed.single_call && variables["enable_thinking"] == false && variables["reasoning_effort"] == "none"
            );
        }
    }

    #[test]
    fn the_newer_limit_wins_and_logprobs_are_asked_for_by_their_switch() {
        let text = r#"{"messages": [{"role": "user", "content": "a"}], "max_tokens": 1, "max_completion_tokens": 2, "logprobs": true}"#;
        let (generate, _) = parsed(text).unwrap_or_else(|field| panic!("{field}"));
        assert_eq!((generate.request.max_tokens, generate.request.sampling.logprobs), (Some(2), Some(0)));
    }
}
