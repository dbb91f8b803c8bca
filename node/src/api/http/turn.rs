//! The model's turn in a conversation, whatever dialect it is written in: reasoning, text and calls of tools, read from the engine's
//! events.
//! Nothing is generated or sent here.

use pangea_compute::chat::answer::{AnswerPiece, AnswerReader};

use super::error::ApiError;
use crate::serve::{Delta, Finish, RequestRefused};

/// A piece of a turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TurnPiece {
    /// More of what the model thinks before it answers; dialects that have no place for it leave it out.
    Reasoning(String),
    /// More text.
    Text(String),
    /// A call begins; what follows it is its own until another piece begins.
    Call(Call),
    /// More of the last call's arguments, as JSON.
    Arguments(String),
}

/// A call of a tool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Call {
    /// Id, by which the result names the call.
    pub(super) id: String,
    /// Name of the tool.
    pub(super) name: String,
    /// The arguments so far, as JSON.
    pub(super) arguments: String,
}

/// A part of a turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Text, never empty.
    Text(String),
    /// A call.
    Call(Call),
}

/// The parts of one answer, as far as they have arrived.
#[derive(Clone, Debug, Default)]
pub(super) struct Parts {
    reader: Option<AnswerReader>,
    reasoning: String,
    parts: Vec<Part>,
    finish: Option<Finish>,
    stop_text: Option<String>,
}

impl Parts {
    /// No parts yet. `reader` finds reasoning and calls; without one everything is text.
    pub(super) fn new(reader: Option<AnswerReader>) -> Parts {
        Parts { reader, ..Parts::default() }
    }

    /// Takes in a piece of the answer: what it completes.
    pub(super) fn take(&mut self, delta: &Delta) -> Vec<TurnPiece> {
        let pieces = match &mut self.reader {
            None => vec![AnswerPiece::Text(delta.text.clone())],
            Some(reader) => {
                let mut pieces = reader.push(&delta.text);
                if delta.finish.is_some() {
                    pieces.extend(reader.finish());
                }
                pieces
            }
        };
        self.finish = delta.finish.or(self.finish);
        self.stop_text = delta.stop_text.clone().or(self.stop_text.take());
        pieces.into_iter().filter_map(|piece| self.add(piece)).collect()
    }

    fn add(&mut self, piece: AnswerPiece) -> Option<TurnPiece> {
        match piece {
            AnswerPiece::Reasoning(text) | AnswerPiece::Text(text) if text.is_empty() => None,
            AnswerPiece::Reasoning(text) => {
                self.reasoning.push_str(&text);
                Some(TurnPiece::Reasoning(text))
            }
            AnswerPiece::Text(text) => {
                match self.parts.last_mut() {
                    Some(Part::Text(written)) => written.push_str(&text),
                    _ => self.parts.push(Part::Text(text.clone())),
                }
                Some(TurnPiece::Text(text))
            }
            AnswerPiece::Call { name } => {
                let call = Call { id: call_id(), name, arguments: String::new() };
                self.parts.push(Part::Call(call.clone()));
                Some(TurnPiece::Call(call))
            }
            AnswerPiece::Arguments(text) => {
                if let Some(Part::Call(call)) = self.parts.last_mut() {
                    call.arguments.push_str(&text);
                }
                Some(TurnPiece::Arguments(text))
            }
        }
    }

    /// The parts in their order.
    pub(super) fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// All text.
    pub(super) fn text(&self) -> String {
        let text = self.parts.iter().filter_map(|part| match part {
            Part::Text(text) => Some(text.as_str()),
            Part::Call(_) => None,
        });
        text.collect()
    }

    /// All reasoning; empty without any.
    pub(super) fn reasoning(&self) -> &str {
        &self.reasoning
    }

    /// The calls.
    pub(super) fn calls(&self) -> impl Iterator<Item = &Call> {
        self.parts.iter().filter_map(|part| match part {
            Part::Call(call) => Some(call),
            Part::Text(_) => None,
        })
    }

    /// The stop text that ended the answer.
    pub(super) fn stop_text(&self) -> Option<&str> {
        self.stop_text.as_deref()
    }

    /// Why the answer ended; `None` while it has not.
    pub(super) fn end(&self) -> Option<TurnEnd> {
        Some(match self.finish? {
            Finish::Length => TurnEnd::Length,
            Finish::Stop if self.calls().next().is_some() => TurnEnd::Calls,
            Finish::Stop => TurnEnd::Stop,
        })
    }
}

/// Why a turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TurnEnd {
    /// The model ended it, or a stop text did.
    Stop,
    /// The maximum number of tokens is reached, or the context is full.
    Length,
    /// Tools are to be called.
    Calls,
}

/// A new id of a call: nine letters and digits, which is what Mistral's templates insist on.
fn call_id() -> String {
    format!("{:09x}", rand::random::<u64>() & 0xF_FFFF_FFFF)
}

/// Maps an engine's refusal; a prompt that exceeds the context gets OpenAI's code for it.
pub(super) fn refused(refusal: RequestRefused) -> ApiError {
    let mut refused = ApiError::from(refusal.error);
    if let Some(after) = refusal.retry_after {
        refused = refused.retry_after(after);
    }
    if refusal.context_exceeded {
        refused = refused.code("context_length_exceeded");
    }
    refused
}

#[cfg(test)]
mod tests {
    use pangea_compute::chat::reasoning::ReasoningSyntax;
    use pangea_compute::chat::tools::ToolSyntax;

    use super::*;

    fn delta(text: &str, finish: Option<Finish>) -> Delta {
        Delta { text: text.to_owned(), finish, ..Delta::default() }
    }

    #[test]
    fn a_turn_with_calls_ends_for_them_unless_it_was_cut() {
        let reader = || Some(AnswerReader::of_calls(ToolSyntax::Hermes, &serde_json::json!([]), false, false));
        let said = "One moment. <tool_call>{\"name\": \"add\", \"arguments\": {}}</tool_call>";
        for (finish, end) in [(Finish::Stop, TurnEnd::Calls), (Finish::Length, TurnEnd::Length)] {
            let mut parts = Parts::new(reader());
            let pieces = parts.take(&delta(said, Some(finish)));
            assert_eq!(pieces.len(), 3, "{pieces:?}");
            assert_eq!((parts.text().as_str(), parts.end()), ("One moment.", Some(end)));
            let call = parts.calls().next().unwrap();
            assert_eq!((call.name.as_str(), call.arguments.as_str(), call.id.len()), ("add", "{}", 9));
        }
        let thinking = AnswerReader::of_text().with_reasoning(ReasoningSyntax::Think, true);
        let mut thinking = Parts::new(Some(thinking));
        let pieces = thinking.take(&delta("Hm.</think>\n\nYes.", Some(Finish::Stop)));
        assert_eq!(pieces, [TurnPiece::Reasoning("Hm.".to_owned()), TurnPiece::Text("Yes.".to_owned())]);
        assert_eq!((thinking.reasoning(), thinking.text().as_str(), thinking.parts().len()), ("Hm.", "Yes.", 1));
        let mut plain = Parts::new(None);
        assert!(plain.take(&delta("", None)).is_empty());
        plain.take(&delta(said, None));
        assert_eq!((plain.text().as_str(), plain.end()), (said, None));
    }
}
