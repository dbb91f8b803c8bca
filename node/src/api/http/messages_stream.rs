//! Turns as Anthropic's Messages API writes them: a message, or the events from `message_start` to `message_stop`.

use serde_json::{Value, json};

use super::dialect::{Dialect, Turn, named_event, pangea};
use super::error::ApiError;
use super::turn::{Part, TurnEnd};

/// Writes one message.
pub(super) struct Messages;

fn event(data: &Value, frames: &mut String) {
    frames.push_str(&named_event(data["type"].as_str().unwrap_or_default(), data));
}

fn stop_reason(turn: &Turn) -> Value {
    match turn.parts.end() {
        None => Value::Null,
        Some(TurnEnd::Length) => json!("max_tokens"),
        Some(TurnEnd::Calls) => json!("tool_use"),
        Some(TurnEnd::Stop) if turn.parts.stop_text().is_some() => json!("stop_sequence"),
        Some(TurnEnd::Stop) => json!("end_turn"),
    }
}

fn usage(turn: &Turn) -> Value {
    // Tokens that were read from the cache do not count as input.
    let cached = turn.summary.cached_tokens;
    json!({
        "input_tokens": turn.prompt_tokens - cached.min(turn.prompt_tokens), "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached, "output_tokens": turn.summary.answer_tokens,
    })
}

fn message(turn: &Turn, content: &[Value]) -> Value {
    json!({
        "id": format!("msg_{}", turn.id), "type": "message", "role": "assistant", "model": turn.model, "content": content,
        "stop_reason": null, "stop_sequence": null, "usage": usage(turn),
    })
}

impl Dialect for Messages {
    const STREAM_TYPE: &'static str = "text/event-stream; charset=utf-8";

    fn whole(&self, turn: &Turn) -> Value {
        let block = |part: &Part| match part {
            Part::Text(text) => json!({"type": "text", "text": text}),
            Part::Call(call) => {
                // Arguments that were cut are no JSON.
                let input = serde_json::from_str(&call.arguments).unwrap_or_else(|_| json!({}));
                json!({"type": "tool_use", "id": call.id, "name": call.name, "input": input})
            }
        };
        let content: Vec<Value> = turn.parts.parts().iter().map(block).collect();
        let mut message = message(turn, &content);
        message["stop_reason"] = stop_reason(turn);
        message["stop_sequence"] = json!(turn.parts.stop_text());
        message["pangea"] = pangea(&turn.summary);
        message
    }

    fn begin(&mut self, turn: &Turn, frames: &mut String) {
        event(&json!({"type": "message_start", "message": message(turn, &[])}), frames);
        event(&json!({"type": "ping"}), frames);
    }

    fn open(&mut self, turn: &Turn, part: usize, frames: &mut String) {
        let block = match turn.parts.parts().get(part) {
            Some(Part::Call(call)) => json!({"type": "tool_use", "id": call.id, "name": call.name, "input": {}}),
            _ => json!({"type": "text", "text": ""}),
        };
        event(&json!({"type": "content_block_start", "index": part, "content_block": block}), frames);
    }

    fn more(&mut self, turn: &Turn, part: usize, text: &str, frames: &mut String) {
        let delta = match turn.parts.parts().get(part) {
            Some(Part::Call(_)) => json!({"type": "input_json_delta", "partial_json": text}),
            _ => json!({"type": "text_delta", "text": text}),
        };
        event(&json!({"type": "content_block_delta", "index": part, "delta": delta}), frames);
    }

    fn close(&mut self, _: &Turn, part: usize, frames: &mut String) {
        event(&json!({"type": "content_block_stop", "index": part}), frames);
    }

    fn end(&mut self, turn: &Turn, frames: &mut String) {
        let delta = json!({"stop_reason": stop_reason(turn), "stop_sequence": turn.parts.stop_text()});
        event(&json!({"type": "message_delta", "delta": delta, "usage": usage(turn)}), frames);
        event(&json!({"type": "message_stop", "pangea": pangea(&turn.summary)}), frames);
    }

    fn failed(&mut self, _: &Turn, error: &ApiError, frames: &mut String) {
        event(&error.anthropic_body(), frames);
    }

    fn silence(&mut self, frames: &mut String) {
        event(&json!({"type": "ping"}), frames);
    }
}

#[cfg(test)]
mod tests {
    use super::super::dialect::tests::{CALLING, whole, written};
    use super::*;

    /// The order and the fields of Anthropic's documentation.
    const STREAM: &str = r#"event: message_start
data: {"type":"message_start","message":{"id":"msg_id","type":"message","role":"assistant","model":"m","content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":7,"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"output_tokens":0}}}

event: ping
data: {"type":"ping"}

event: content_block_start
data: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}

event: content_block_delta
data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"I"}}

event: content_block_delta
data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":" look."}}

event: content_block_stop
data: {"type":"content_block_stop","index":0}

event: content_block_start
data: {"type":"content_block_start","index":1,"content_block":{"type":"tool_use","id":"CALL","name":"add","input":{}}}

event: content_block_delta
data: {"type":"content_block_delta","index":1,"delta":{"type":"input_json_delta","partial_json":"{\"a\""}}

event: content_block_delta
data: {"type":"content_block_delta","index":1,"delta":{"type":"input_json_delta","partial_json":": 1}"}}

event: content_block_stop
data: {"type":"content_block_stop","index":1}

event: message_delta
data: {"type":"message_delta","delta":{"stop_reason":"tool_use","stop_sequence":null},"usage":{"input_tokens":7,"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"output_tokens":5}}

event: message_stop
data: {"type":"message_stop","pangea":{"verdict":"local","stages":[],"failovers":0,"receipts":[]}}

"#;

    #[test]
    fn a_stream_has_anthropics_events() {
        assert_eq!(written(Messages, CALLING), STREAM);
    }

    #[test]
    fn a_message_has_text_and_calls_as_blocks() {
        let message = whole(&Messages, CALLING);
        let blocks = json!([
            {"type": "text", "text": "I look."}, {"type": "tool_use", "id": "CALL", "name": "add", "input": {"a": 1}},
        ]);
        assert_eq!((&message["content"], &message["stop_reason"]), (&blocks, &json!("tool_use")));
        assert_eq!((&message["id"], &message["usage"]["output_tokens"]), (&json!("msg_id"), &json!(5)));
        assert_eq!(whole(&Messages, &["Hi"])["stop_reason"], "end_turn");
    }
}
