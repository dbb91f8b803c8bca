//! What the templates of some families expect of messages beyond OpenAI's form. Only what a template shows of itself decides.

use std::borrow::Cow;

use serde_json::{Value as Json, json};

use super::Message;
use super::reasoning::is_harmony;
use super::tools::ToolSyntax;

/// How a template wants messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MessageForm {
    /// As OpenAI has them, with the arguments of calls as objects.
    Plain,
    /// The arguments of calls are text: DeepSeek's templates join them to other text.
    ArgumentsAsText,
    /// Reasoning is in the field `thinking`: gpt-oss.
    Thinking,
    /// Results of tools are a list in the message with the calls: Gemma 4.
    ToolResponses,
}

impl MessageForm {
    pub(super) fn of_template(source: &str) -> MessageForm {
        let has = |text: &str| source.contains(text);
        match () {
            () if is_harmony(source) && has("thinking") => MessageForm::Thinking,
            () if ToolSyntax::is_deepseek(source) => MessageForm::ArgumentsAsText,
            () if has("tool_responses") && !has("== 'tool'") && !has("== \"tool\"") => MessageForm::ToolResponses,
            () => MessageForm::Plain,
        }
    }

    /// The messages in this form.
    pub(super) fn write(self, messages: &[Message]) -> Cow<'_, [Message]> {
        match self {
            MessageForm::Plain => Cow::Borrowed(messages),
            MessageForm::ArgumentsAsText => messages.iter().cloned().map(with_arguments_as_text).collect(),
            MessageForm::Thinking => messages.iter().cloned().map(with_thinking).collect(),
            MessageForm::ToolResponses => with_tool_responses(messages).into(),
        }
    }

    /// Whether arguments that are a JSON object in a string become that object.
    pub(super) fn reads_arguments(self) -> bool {
        self != MessageForm::ArgumentsAsText
    }
}

fn with_arguments_as_text(mut message: Message) -> Message {
    for call in &mut message.tool_calls {
        if let Some(arguments) = call.pointer_mut("/function/arguments").filter(|arguments| arguments.is_object()) {
            *arguments = Json::from(arguments.to_string());
        }
    }
    message
}

/// Harmony's template refuses a message with calls that has both text and thoughts: there the text is the preamble that users saw.
fn with_thinking(mut message: Message) -> Message {
    let has_both = !message.tool_calls.is_empty() && !message.content.is_empty();
    if let Some(Json::String(text)) = message.extra.get("reasoning_content")
        && !text.is_empty()
        && !has_both
        && !message.extra.contains_key("thinking")
    {
        let text = Json::from(text.as_str());
        message.extra.insert("thinking".to_owned(), text);
    }
    message
}

fn with_tool_responses(messages: &[Message]) -> Vec<Message> {
    let mut written: Vec<Message> = Vec::with_capacity(messages.len());
    for message in messages {
        let caller = written.last_mut().filter(|last| message.role == "tool" && !last.tool_calls.is_empty());
        let Some(caller) = caller else {
            written.push(message.clone());
            continue;
        };
        let id = message.extra.get("tool_call_id");
        let call = caller.tool_calls.iter().find(|call| id.is_some() && call.get("id") == id);
        let called = call.and_then(|call| call["function"]["name"].as_str());
        let name = message.name.as_deref().or(called).unwrap_or("unknown");
        let response = match serde_json::from_str(&message.content) {
            Ok(object @ Json::Object(_)) => object,
            _ => Json::from(message.content.as_str()),
        };
        let response = json!({"name": name, "response": response});
        match caller.extra.get_mut("tool_responses").and_then(Json::as_array_mut) {
            Some(responses) => responses.push(response),
            None => drop(caller.extra.insert("tool_responses".to_owned(), json!([response]))),
        }
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calling(content: &str, arguments: Json) -> Message {
        let call = json!({"id": "c1", "type": "function", "function": {"name": "add", "arguments": arguments}});
        Message { tool_calls: vec![call], ..Message::new("assistant", content) }
    }

    fn result(content: &str, id: &str) -> Message {
        let mut message = Message::new("tool", content);
        message.extra.insert("tool_call_id".to_owned(), json!(id));
        message
    }

    #[test]
    fn arguments_become_text_once() {
        for arguments in [json!({"a": 1}), json!("{\"a\":1}")] {
            let messages = [calling("", arguments)];
            let written = MessageForm::ArgumentsAsText.write(&messages);
            assert_eq!(written[0].tool_calls[0]["function"]["arguments"], "{\"a\":1}");
        }
    }

    #[test]
    fn reasoning_is_thinking_unless_a_call_has_text_too() {
        let think = |content: &str| {
            let mut message = calling(content, json!({}));
            message.extra.insert("reasoning_content".to_owned(), json!("Hm."));
            let written = MessageForm::Thinking.write(&[message]).into_owned();
            written[0].extra.get("thinking").cloned()
        };
        assert_eq!((think(""), think("A plan.")), (Some(json!("Hm.")), None));
    }

    #[test]
    fn results_join_the_message_with_their_calls() {
        let messages = [
            result("lost", "c0"),
            calling("", json!({})),
            result("{\"sum\": 3}", "c1"),
            result("3", "c2"),
            Message::new("user", "So?"),
        ];
        let written = MessageForm::ToolResponses.write(&messages);
        let roles: Vec<&str> = written.iter().map(|message| message.role.as_str()).collect();
        assert_eq!(roles, ["tool", "assistant", "user"]);
        let responses = json!([{"name": "add", "response": {"sum": 3}}, {"name": "unknown", "response": "3"}]);
        assert_eq!(written[1].extra["tool_responses"], responses);
    }
}
