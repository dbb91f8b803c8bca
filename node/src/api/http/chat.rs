//! `/v1/chat/completions`: parses a conversation in OpenAI's format into a request to a model.

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::post;
use pangea_compute::chat::Message;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::answer::{Endpoint, HttpAnswer};
use super::error::ApiError;
use super::fields::Fields;
use super::generation::{Generate, alternatives, generate};
use super::{App, Body};
use crate::serve::{Prompt, role};

/// The routes of this file.
pub(super) fn routes() -> Router<App> {
    Router::new().route("/v1/chat/completions", post(completions))
}

/// Answers a conversation.
async fn completions(State(app): State<App>, body: Body) -> Result<Response, ApiError> {
    let mut fields = Fields::read(body).await?;
    let model: String = fields.required("model")?;
    let (generate, prompt) = parse(&mut fields)?;
    let engine = app.engine(&model).await?;
    let mut request = generate.request;
    request.prompt = prompt;
    let answer = HttpAnswer::new(&engine, Endpoint::Chat, generate.stream_usage);
    answer.respond(&engine, vec![request], generate.stream).await
}

fn parse(fields: &mut Fields) -> Result<(Generate, Prompt), ApiError> {
    for field in
        ["functions", "function_call", "audio", "prediction", "web_search_options", "reasoning_effort", "verbosity"]
    {
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
    let tools = tools(fields)?;
    let variables = fields.optional("chat_template_kwargs")?.unwrap_or_default();
    let sent: Vec<Value> = fields.required("messages")?;
    let messages = sent.into_iter().enumerate().map(|(at, sent)| message(at, sent)).collect::<Result<_, _>>()?;
    let prompt = Prompt::Chat { messages, tools, variables };
    prompt.check()?;
    Ok((generate, prompt))
}

/// Tool definitions are passed to the model's template; the model decides whether it calls one.
fn tools(fields: &mut Fields) -> Result<Option<Value>, ApiError> {
    let tools: Option<Vec<Value>> = fields.optional("tools")?;
    let choice: Option<Value> = fields.optional("tool_choice")?;
    match choice {
        None => {}
        Some(choice) if choice == "auto" => {}
        Some(choice) if choice == "none" => return Ok(None),
        Some(_) => {
            let message = "tool_choice may be auto or none; other values are not supported";
            return Err(ApiError::field("tool_choice", message).code("unsupported_parameter"));
        }
    }
    Ok(tools.filter(|tools| !tools.is_empty()).map(Value::Array))
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
            Ok((generate, Prompt::Chat { messages, .. })) => Ok((generate, messages)),
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
    fn the_newer_limit_wins_and_logprobs_are_asked_for_by_their_switch() {
        let text = r#"{"messages": [{"role": "user", "content": "a"}], "max_tokens": 1, "max_completion_tokens": 2, "logprobs": true}"#;
        let (generate, _) = parsed(text).unwrap_or_else(|field| panic!("{field}"));
        assert_eq!((generate.request.max_tokens, generate.request.sampling.logprobs), (Some(2), Some(0)));
    }
}
