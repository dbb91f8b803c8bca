//! Answers that another node wrote, on their way to a client of this one: what the other node says of trust is replaced by what
//! this node knows, wherever a dialect writes it. A form that could hide another verdict from this file is refused.

use serde_json::{Map, Value, json};

use super::limits::PARSED_HERE_BYTES;
use crate::tunnel::AnswerForm;
use crate::tunnel::limits::LINE_BYTES;

/// The extra object of DESIGN §4.3.
const PANGEA: &str = "pangea";

/// Objects in which some dialects write a whole answer, with that object in it.
const INNER: [&str; 2] = ["response", "message"];

/// Facts of a request that say nothing of trust: they stay as the other node writes them.
const KEPT: [&str; 1] = ["ignored_tools"];

/// What this node knows of an answer that another node gave.
#[derive(Clone, Debug)]
pub(super) struct OwnView {
    /// The other node.
    pub(super) peer: String,
    /// Number of layers of the model.
    pub(super) layers: u32,
    /// Servers that were tried in vain.
    pub(super) failovers: usize,
}

impl OwnView {
    fn object(&self, said: &Value) -> Value {
        let mut object = json!({
            "verdict": "unchecked",
            "stages": [{"peer": self.peer, "layers": [0, self.layers]}],
            "failovers": self.failovers,
            "receipts": [],
        });
        for kept in KEPT {
            let is_list = |said: &&Value| said.as_array().is_some_and(|said| said.iter().all(Value::is_string));
            if let Some(said) = said.get(kept).filter(is_list) {
                object[kept] = said.clone();
            }
        }
        object
    }

    /// Replaces what is said of trust in a document, and in the answer inside of it.
    fn put_into(&self, document: &mut Map<String, Value>) {
        if let Some(said) = document.get_mut(PANGEA) {
            *said = self.object(said);
        }
        for inner in INNER {
            if let Some(said) = document.get_mut(inner).and_then(|inner| inner.get_mut(PANGEA)) {
                *said = self.object(said);
            }
        }
    }

    /// A whole answer. `completes`: whether such answers have the extra object.
    ///
    /// # Errors
    /// Why the bytes are no answer.
    pub(super) async fn document(&self, bytes: Vec<u8>, completes: bool) -> Result<Vec<u8>, String> {
        if bytes.len() <= PARSED_HERE_BYTES {
            return self.parsed(&bytes, completes);
        }
        let view = self.clone();
        let parsed = tokio::task::spawn_blocking(move || view.parsed(&bytes, completes)).await;
        parsed.unwrap_or_else(|error| Err(error.to_string()))
    }

    fn parsed(&self, bytes: &[u8], completes: bool) -> Result<Vec<u8>, String> {
        let mut document: Map<String, Value> =
            serde_json::from_slice(bytes).map_err(|error| format!("it is no JSON object: {error}"))?;
        self.put_into(&mut document);
        if completes {
            document.entry(PANGEA).or_insert_with(|| self.object(&Value::Null));
        } else {
            document.remove(PANGEA);
        }
        serde_json::to_vec(&document).map_err(|error| error.to_string())
    }
}

/// A streamed answer, read line by line.
#[derive(Debug)]
pub(super) struct ForeignStream {
    view: OwnView,
    form: AnswerForm,
    /// The line that is not whole yet.
    line: Vec<u8>,
    /// The number that the next event of a numbered stream has.
    next_number: u64,
}

impl ForeignStream {
    /// A stream of this form with nothing in it.
    pub(super) fn new(view: OwnView, form: AnswerForm) -> ForeignStream {
        ForeignStream { view, form, line: Vec::new(), next_number: 0 }
    }

    /// The number of an event that this node adds.
    pub(super) fn next_number(&self) -> u64 {
        self.next_number
    }

    /// Reads more bytes; returns the lines that are whole.
    ///
    /// # Errors
    /// Why the bytes are no answer.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Result<Vec<u8>, String> {
        let mut out = Vec::with_capacity(bytes.len() + self.line.len());
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.line.len() + piece.len() > LINE_BYTES {
                return Err(format!("a line of it is longer than {} MiB", LINE_BYTES >> 20));
            }
            self.line.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                self.whole_line(&line[..line.len() - 1], &mut out)?;
                out.push(b'\n');
            }
        }
        Ok(out)
    }

    /// The end of the stream.
    ///
    /// # Errors
    /// A line that is not whole.
    pub(super) fn end(&self) -> Result<(), String> {
        if self.line.is_empty() { Ok(()) } else { Err("it ends inside a line".to_owned()) }
    }

    fn whole_line(&mut self, line: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
        match self.form {
            AnswerForm::Events => {
                // A carriage return ends a line, too, and the stream of another node needs none.
                if line.contains(&b'\r') {
                    return Err("a line of it has a carriage return".to_owned());
                }
                let Some(data) = line.strip_prefix(b"data:") else {
                    out.extend_from_slice(line);
                    return Ok(());
                };
                let data = data.strip_prefix(b" ").unwrap_or(data);
                out.extend_from_slice(b"data: ");
                if data == b"[DONE]" {
                    out.extend_from_slice(data);
                    return Ok(());
                }
                self.rewrite(data, out)
            }
            AnswerForm::Lines | AnswerForm::Document => self.rewrite(line, out),
        }
    }

    fn rewrite(&mut self, text: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
        let mut document: Map<String, Value> =
            serde_json::from_slice(text).map_err(|error| format!("an event of it is no JSON object: {error}"))?;
        if let Some(number) = document.get("sequence_number").and_then(Value::as_u64) {
            self.next_number = number.saturating_add(1);
        }
        self.view.put_into(&mut document);
        serde_json::to_writer(out, &document).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn view() -> OwnView {
        OwnView { peer: "12D3".to_owned(), layers: 30, failovers: 1 }
    }

    fn own() -> Value {
        json!({"verdict": "unchecked", "stages": [{"peer": "12D3", "layers": [0, 30]}], "failovers": 1, "receipts": []})
    }

    #[tokio::test]
    async fn a_peers_verdict_is_never_passed_on() {
        let said =
            json!({"verdict": "verified", "stages": [], "receipts": ["r"], "failovers": 0, "ignored_tools": ["x"]});
        let whole = json!({"id": "a", "pangea": said.clone(), "choices": [{"message": {"content": "{\"pangea\":1}"}}]});
        let written = view().document(whole.to_string().into_bytes(), true).await.unwrap();
        let mut expected = own();
        expected["ignored_tools"] = json!(["x"]);
        let read: Value = serde_json::from_slice(&written).unwrap();
        assert_eq!((&read["pangea"], &read["choices"]), (&expected, &whole["choices"]));
        // An answer without the object gets it; what is no completion loses it.
        let bare = view().document(b"{\"id\":\"a\"}".to_vec(), true).await.unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&bare).unwrap()["pangea"], own());
        let counted =
            view().document(b"{\"input_tokens\":3,\"pangea\":{\"verdict\":\"verified\"}}".to_vec(), false).await;
        assert_eq!(counted.unwrap(), b"{\"input_tokens\":3}");
        // The name may be written in another way.
        let escaped = br#"{"\u0070angea":{"verdict":"verified"}}"#.to_vec();
        assert!(!String::from_utf8(view().document(escaped, true).await.unwrap()).unwrap().contains("verified"));
        assert!(view().document(b"[]".to_vec(), true).await.is_err());
    }

    #[test]
    fn a_stream_is_rewritten_line_by_line_however_it_arrives() {
        let verdict = json!({"verdict": "verified"});
        let lines = [
            ": keep-alive".to_owned(),
            String::new(),
            "event: response.completed".to_owned(),
            format!("data: {}", json!({"sequence_number": 4, "response": {"pangea": verdict, "id": "r"}})),
            String::new(),
            format!("data:{}", json!({"type": "message_stop", "pangea": verdict})),
            "data: [DONE]".to_owned(),
            String::new(),
        ];
        let text = lines.join("\n");
        let all = |pieces: usize| {
            let mut stream = ForeignStream::new(view(), AnswerForm::Events);
            let out: Vec<u8> = text.as_bytes().chunks(pieces).flat_map(|piece| stream.read(piece).unwrap()).collect();
            assert_eq!((stream.end(), stream.next_number()), (Ok(()), 5));
            String::from_utf8(out).unwrap()
        };
        let whole = all(text.len());
        assert!(!whole.contains("verified") && whole.matches("unchecked").count() == 2, "{whole}");
        assert!(whole.starts_with(": keep-alive\n\nevent: response.completed\ndata: {"), "{whole}");
        assert!(whole.ends_with("data: [DONE]\n"), "{whole}");
        assert_eq!((all(1), all(7)), (whole.clone(), whole));
    }

    #[test]
    fn what_could_hide_a_verdict_is_refused() {
        for (form, text) in [
            (AnswerForm::Events, "data: {\"pangea\":\n"),
            (AnswerForm::Events, ": x\rdata: {\"pangea\":{\"verdict\":\"verified\"}}\n"),
            (AnswerForm::Events, "data: 7\n"),
            (AnswerForm::Lines, "nothing\n"),
            (AnswerForm::Lines, "\n"),
        ] {
            assert!(ForeignStream::new(view(), form).read(text.as_bytes()).is_err(), "{text:?}");
        }
        let mut stream = ForeignStream::new(view(), AnswerForm::Lines);
        assert_eq!(stream.read(b"{\"a\":1}\n{\"b\"").unwrap(), b"{\"a\":1}\n");
        assert!(stream.end().is_err());
        let mut stream = ForeignStream::new(view(), AnswerForm::Lines);
        assert!(stream.read(&vec![b' '; LINE_BYTES]).is_ok() && stream.read(b" ").is_err());
    }

    proptest! {
        #[test]
        fn bytes_of_any_kind_never_panic_and_never_carry_a_verdict(
            pieces in prop::collection::vec(prop_oneof![
                Just(b"data: ".to_vec()), Just(b"\n".to_vec()), Just(b"\r".to_vec()),
                Just(b"{\"pangea\":{\"verdict\":\"verified\"}}".to_vec()),
                Just(b"{\"response\":{\"pangea\":{\"verdict\":\"verified\"}}}".to_vec()),
                prop::collection::vec(any::<u8>(), 0..9),
            ], 0..20),
            events in any::<bool>(),
        ) {
            let form = if events { AnswerForm::Events } else { AnswerForm::Lines };
            let mut stream = ForeignStream::new(view(), form);
            for piece in pieces {
                let Ok(out) = stream.read(&piece) else { break };
                for line in String::from_utf8_lossy(&out).split(['\n', '\r']) {
                    let data = line.strip_prefix("data:").unwrap_or(line).trim_start();
                    if let Ok(Value::Object(document)) = serde_json::from_str(data) {
                        let is_event = form == AnswerForm::Lines || line.starts_with("data:");
                        prop_assert!(!is_event || !Value::Object(document).to_string().contains("verified"));
                    }
                }
            }
        }
    }
}
