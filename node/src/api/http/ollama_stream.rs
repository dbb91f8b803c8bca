//! Turns as Ollama writes them: one JSON document, or one in each line, the last of which has `done` and the times.

use pangea_compute::chat::calendar::CalendarTime;
use serde_json::{Value, json};

use super::dialect::{Dialect, Turn, pangea, unix_seconds};
use super::error::ApiError;
use super::turn::{Call, Part, TurnEnd};

/// The endpoint that an answer belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// `/api/chat`.
    Chat,
    /// `/api/generate`.
    Generate,
}

/// Writes one answer.
pub(super) struct Ollama {
    form: Form,
    /// The model as the client names it.
    model: String,
}

impl Ollama {
    /// An answer to a request for `model`.
    pub(super) fn new(form: Form, model: &str) -> Ollama {
        Ollama { form, model: model.to_owned() }
    }

    /// The answer to a request without a prompt.
    pub(super) fn loaded(&self) -> Value {
        let mut line = self.line(0, "", &[]);
        line["created_at"] = json!(timestamp(unix_seconds()));
        line["done"] = json!(true);
        line["done_reason"] = json!("load");
        line
    }

    fn line(&self, created_s: u64, text: &str, calls: &[&Call]) -> Value {
        let mut line = json!({"model": self.model, "created_at": timestamp(created_s)});
        match self.form {
            Form::Chat => {
                line["message"] = json!({"role": "assistant", "content": text});
                if !calls.is_empty() {
                    line["message"]["tool_calls"] = calls.iter().map(|call| function(call)).collect();
                }
            }
            Form::Generate => line["response"] = json!(text),
        }
        line["done"] = json!(false);
        line
    }

    fn close_with(&self, turn: &Turn, line: &mut Value) {
        let summary = &turn.summary;
        line["done"] = json!(true);
        // Ollama has no word of its own for calls.
        line["done_reason"] = json!(if turn.parts.end() == Some(TurnEnd::Length) { "length" } else { "stop" });
        let nanos = |time: std::time::Duration| json!(time.as_nanos() as u64);
        line["total_duration"] = nanos(summary.queued + summary.prompt + summary.answer);
        line["load_duration"] = nanos(summary.queued);
        line["prompt_eval_count"] = json!(turn.prompt_tokens);
        line["prompt_eval_duration"] = nanos(summary.prompt);
        line["eval_count"] = json!(summary.answer_tokens);
        line["eval_duration"] = nanos(summary.answer);
        line["pangea"] = pangea(summary);
    }
}

/// Seconds of Unix time as Ollama writes them.
pub(super) fn timestamp(seconds: u64) -> String {
    CalendarTime::from_unix_seconds(seconds as i64).format("%Y-%m-%dT%H:%M:%SZ").unwrap_or_default()
}

fn function(call: &Call) -> Value {
    // Arguments that were cut are no JSON.
    let arguments: Value = serde_json::from_str(&call.arguments).unwrap_or_else(|_| json!({}));
    json!({"id": call.id, "function": {"name": call.name, "arguments": arguments}})
}

fn push(line: &Value, frames: &mut String) {
    frames.push_str(&line.to_string());
    frames.push('\n');
}

impl Dialect for Ollama {
    const STREAM_TYPE: &'static str = "application/x-ndjson";

    fn whole(&self, turn: &Turn) -> Value {
        let calls: Vec<&Call> = turn.parts.calls().collect();
        let mut line = self.line(turn.created_s, &turn.parts.text(), &calls);
        self.close_with(turn, &mut line);
        line
    }

    fn begin(&mut self, _: &Turn, _: &mut String) {}

    fn open(&mut self, _: &Turn, _: usize, _: &mut String) {}

    fn more(&mut self, turn: &Turn, part: usize, text: &str, frames: &mut String) {
        // A call is written when it is complete.
        if let Some(Part::Text(_)) = turn.parts.parts().get(part) {
            push(&self.line(turn.created_s, text, &[]), frames);
        }
    }

    fn close(&mut self, turn: &Turn, part: usize, frames: &mut String) {
        if let Some(Part::Call(call)) = turn.parts.parts().get(part) {
            push(&self.line(turn.created_s, "", &[call]), frames);
        }
    }

    fn end(&mut self, turn: &Turn, frames: &mut String) {
        let mut line = self.line(turn.created_s, "", &[]);
        self.close_with(turn, &mut line);
        push(&line, frames);
    }

    fn failed(&mut self, _: &Turn, error: &ApiError, frames: &mut String) {
        push(&error.ollama_body(), frames);
    }

    /// A line without text: clients add nothing to what they have.
    fn silence(&mut self, frames: &mut String) {
        push(&self.line(unix_seconds(), "", &[]), frames);
    }
}

#[cfg(test)]
mod tests {
    use super::super::dialect::tests::{CALLING, whole, written};
    use super::*;

    /// The fields of Ollama's documentation.
    const STREAM: &str = r#"{"model":"m:latest","created_at":"2023-11-14T22:13:20Z","message":{"role":"assistant","content":"I"},"done":false}
{"model":"m:latest","created_at":"2023-11-14T22:13:20Z","message":{"role":"assistant","content":" look."},"done":false}
{"model":"m:latest","created_at":"2023-11-14T22:13:20Z","message":{"role":"assistant","content":"","tool_calls":[{"id":"CALL","function":{"name":"add","arguments":{"a":1}}}]},"done":false}
{"model":"m:latest","created_at":"2023-11-14T22:13:20Z","message":{"role":"assistant","content":""},"done":true,"done_reason":"stop","total_duration":0,"load_duration":0,"prompt_eval_count":7,"prompt_eval_duration":0,"eval_count":5,"eval_duration":0,"pangea":{"verdict":"local","stages":[],"failovers":0,"receipts":[]}}
"#;

    #[test]
    fn a_stream_is_one_document_in_each_line() {
        assert_eq!(written(Ollama::new(Form::Chat, "m:latest"), CALLING), STREAM);
        let generated = written(Ollama::new(Form::Generate, "m"), &["a", "b"]);
        let lines: Vec<Value> = generated.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let said: String = lines.iter().filter_map(|line| line["response"].as_str()).collect();
        assert_eq!((said.as_str(), &lines[2]["done_reason"]), ("ab", &json!("stop")));
    }

    #[test]
    fn a_whole_answer_has_text_and_calls() {
        let answer = whole(&Ollama::new(Form::Chat, "m"), CALLING);
        let call = json!({"id": "CALL", "function": {"name": "add", "arguments": {"a": 1}}});
        assert_eq!(answer["message"], json!({"role": "assistant", "content": "I look.", "tool_calls": [call]}));
    }
}
