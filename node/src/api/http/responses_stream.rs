//! Turns as OpenAI's Responses API writes them: a response object, or the ladder of events up to `response.completed`.

use serde_json::{Map, Value, json};

use super::dialect::{Dialect, Turn, named_event, pangea};
use super::error::ApiError;
use super::turn::{Call, Part, TurnEnd};

/// Fields of the request that the response repeats.
#[derive(Default)]
pub(super) struct Echo {
    fields: Map<String, Value>,
    /// Types of the tools that the model is not told of.
    pub(super) ignored_tools: Vec<String>,
}

impl Echo {
    /// Has the response repeat a field.
    pub(super) fn note(&mut self, field: &str, value: Value) {
        self.fields.insert(field.to_owned(), value);
    }
}

/// Writes one response.
pub(super) struct Responses {
    echo: Echo,
    /// Number of the next event.
    sequence: u64,
}

/// What is known of an item.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    Begun,
    Complete,
    /// The answer was cut inside of the item.
    Incomplete,
}

impl Responses {
    /// A response to a request with these fields.
    pub(super) fn new(echo: Echo) -> Responses {
        Responses { echo, sequence: 0 }
    }

    fn event(&mut self, name: &str, mut data: Value, frames: &mut String) {
        data["type"] = json!(name);
        data["sequence_number"] = json!(self.sequence);
        self.sequence += 1;
        frames.push_str(&named_event(name, &data));
    }

    /// The response object. `status`: OpenAI's word for how far it is.
    fn response(&self, turn: &Turn, status: &str) -> Value {
        let is_over = status != "in_progress";
        let output: Vec<Value> = if is_over {
            (0..turn.parts.parts().len()).map(|part| item(turn, part, progress(turn, part))).collect()
        } else {
            Vec::new()
        };
        let mut response = json!({
            "id": format!("resp_{}", turn.id), "object": "response", "created_at": turn.created_s, "status": status,
            "background": false, "error": null,
            "incomplete_details": if status == "incomplete" { json!({"reason": "max_output_tokens"}) } else { Value::Null },
            "max_tool_calls": null, "model": turn.model, "output": output, "previous_response_id": null,
            "service_tier": "default", "store": false, "top_logprobs": 0, "truncation": "disabled",
            "usage": if is_over { usage(turn) } else { Value::Null },
        });
        for (field, value) in &self.echo.fields {
            response[field] = value.clone();
        }
        if is_over {
            let mut extra = pangea(&turn.summary);
            if !self.echo.ignored_tools.is_empty() {
                extra["ignored_tools"] = json!(self.echo.ignored_tools);
            }
            response["pangea"] = extra;
        }
        response
    }
}

/// Whether the answer was cut inside a part: only the last one can be.
fn progress(turn: &Turn, part: usize) -> Progress {
    let is_last = part + 1 == turn.parts.parts().len();
    if is_last && turn.parts.end() == Some(TurnEnd::Length) { Progress::Incomplete } else { Progress::Complete }
}

fn status(turn: &Turn) -> &'static str {
    if turn.parts.end() == Some(TurnEnd::Length) { "incomplete" } else { "completed" }
}

fn usage(turn: &Turn) -> Value {
    let summary = &turn.summary;
    json!({
        "input_tokens": turn.prompt_tokens, "input_tokens_details": {"cached_tokens": summary.cached_tokens},
        "output_tokens": summary.answer_tokens, "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": turn.prompt_tokens + summary.answer_tokens,
    })
}

fn item_id(turn: &Turn, part: usize) -> String {
    let prefix = if call(turn, part).is_some() { "fc" } else { "msg" };
    format!("{prefix}_{}{part:04x}", turn.id)
}

fn call(turn: &Turn, part: usize) -> Option<&Call> {
    match turn.parts.parts().get(part) {
        Some(Part::Call(call)) => Some(call),
        _ => None,
    }
}

fn text_part(text: &str) -> Value {
    json!({"type": "output_text", "annotations": [], "logprobs": [], "text": text})
}

fn text(turn: &Turn, part: usize) -> &str {
    match turn.parts.parts().get(part) {
        Some(Part::Text(text)) => text,
        _ => "",
    }
}

fn item(turn: &Turn, part: usize, progress: Progress) -> Value {
    let status = match progress {
        Progress::Begun => "in_progress",
        Progress::Complete => "completed",
        Progress::Incomplete => "incomplete",
    };
    let id = item_id(turn, part);
    match call(turn, part) {
        Some(call) => {
            let arguments = if progress == Progress::Begun { "" } else { &call.arguments };
            json!({
                "id": id, "type": "function_call", "status": status, "arguments": arguments, "call_id": call.id,
                "name": call.name,
            })
        }
        None => {
            let content = if progress == Progress::Begun { json!([]) } else { json!([text_part(text(turn, part))]) };
            json!({"id": id, "type": "message", "status": status, "role": "assistant", "content": content})
        }
    }
}

impl Dialect for Responses {
    const STREAM_TYPE: &'static str = "text/event-stream; charset=utf-8";

    fn whole(&self, turn: &Turn) -> Value {
        self.response(turn, status(turn))
    }

    fn begin(&mut self, turn: &Turn, frames: &mut String) {
        for name in ["response.created", "response.in_progress"] {
            let response = self.response(turn, "in_progress");
            self.event(name, json!({"response": response}), frames);
        }
    }

    fn open(&mut self, turn: &Turn, part: usize, frames: &mut String) {
        let added = json!({"output_index": part, "item": item(turn, part, Progress::Begun)});
        self.event("response.output_item.added", added, frames);
        if call(turn, part).is_none() {
            let id = item_id(turn, part);
            let added = json!({"item_id": id, "output_index": part, "content_index": 0, "part": text_part("")});
            self.event("response.content_part.added", added, frames);
        }
    }

    fn more(&mut self, turn: &Turn, part: usize, text: &str, frames: &mut String) {
        let id = item_id(turn, part);
        if call(turn, part).is_some() {
            let delta = json!({"item_id": id, "output_index": part, "delta": text});
            return self.event("response.function_call_arguments.delta", delta, frames);
        }
        let delta = json!({"item_id": id, "output_index": part, "content_index": 0, "delta": text, "logprobs": []});
        self.event("response.output_text.delta", delta, frames);
    }

    fn close(&mut self, turn: &Turn, part: usize, frames: &mut String) {
        let id = item_id(turn, part);
        if let Some(call) = call(turn, part) {
            let done = json!({"item_id": id, "output_index": part, "name": call.name, "arguments": call.arguments});
            self.event("response.function_call_arguments.done", done, frames);
        } else {
            let text = text(turn, part);
            let place = json!({"item_id": id, "output_index": part, "content_index": 0});
            let (mut done, mut part_done) = (place.clone(), place);
            done["text"] = json!(text);
            done["logprobs"] = json!([]);
            self.event("response.output_text.done", done, frames);
            part_done["part"] = text_part(text);
            self.event("response.content_part.done", part_done, frames);
        }
        let done = json!({"output_index": part, "item": item(turn, part, progress(turn, part))});
        self.event("response.output_item.done", done, frames);
    }

    fn end(&mut self, turn: &Turn, frames: &mut String) {
        let status = status(turn);
        let response = self.response(turn, status);
        self.event(&format!("response.{status}"), json!({"response": response}), frames);
    }

    fn failed(&mut self, turn: &Turn, error: &ApiError, frames: &mut String) {
        let mut response = self.response(turn, "failed");
        response["error"] = json!({"code": error.responses_code(), "message": error.message()});
        self.event("response.failed", json!({"response": response}), frames);
    }

    fn silence(&mut self, frames: &mut String) {
        frames.push_str(": keep-alive\n\n");
    }
}

#[cfg(test)]
mod tests {
    use super::super::dialect::tests::{CALLING, written};
    use super::*;

    #[test]
    fn the_ladder_of_events_is_openais() {
        let mut echo = Echo::default();
        echo.note("tools", json!([]));
        let frames = written(Responses::new(echo), CALLING);
        let mut names = Vec::new();
        for (at, frame) in frames.trim_end().split("\n\n").enumerate() {
            let (name, data) = frame.split_once("\ndata: ").unwrap();
            let data: Value = serde_json::from_str(data).unwrap();
            assert_eq!(
                (&data["sequence_number"], &data["type"]),
                (&json!(at), &json!(name.strip_prefix("event: ").unwrap()))
            );
            names.push((
                data["type"].as_str().unwrap().strip_prefix("response.").unwrap().to_owned(),
                data["output_index"].as_u64(),
            ));
        }
        let text = [
            "output_item.added",
            "content_part.added",
            "output_text.delta",
            "output_text.delta",
            "output_text.done",
            "content_part.done",
            "output_item.done",
        ];
        let call = [
            "output_item.added",
            "function_call_arguments.delta",
            "function_call_arguments.delta",
            "function_call_arguments.done",
            "output_item.done",
        ];
        let mut expected: Vec<(String, Option<u64>)> =
            vec![("created".to_owned(), None), ("in_progress".to_owned(), None)];
        expected.extend(text.map(|name| (name.to_owned(), Some(0))));
        expected.extend(call.map(|name| (name.to_owned(), Some(1))));
        expected.push(("completed".to_owned(), None));
        assert_eq!(names, expected);
        assert_documented(&frames);
    }

    /// The events as OpenAI's documentation shows them, with this test's ids.
    fn assert_documented(frames: &str) {
        for event in [
            r#"{"item_id":"msg_id0000","output_index":0,"content_index":0,"delta":"I","logprobs":[],"type":"response.output_text.delta","sequence_number":4}"#,
            r#"{"output_index":1,"item":{"id":"fc_id0001","type":"function_call","status":"completed","arguments":"{\"a\": 1}","call_id":"CALL","name":"add"},"type":"response.output_item.done","sequence_number":13}"#,
        ] {
            assert!(frames.contains(event), "{event} is not in {frames}");
        }
        let last: Value = serde_json::from_str(frames.trim_end().rsplit_once("data: ").unwrap().1).unwrap();
        let response = &last["response"];
        assert_eq!((&response["status"], &response["object"]), (&json!("completed"), &json!("response")));
        assert_eq!(response["output"][0]["content"][0]["text"], "I look.");
        assert_eq!(response["usage"]["total_tokens"], 12);
        assert_eq!(response["pangea"]["verdict"], "local");
    }
}
