//! Answers in harmony, the form of gpt-oss: messages, each with a header that names a channel and perhaps a recipient. Thoughts are
//! in the channel `analysis`, calls have a recipient, all else is for the reader.
//!
//! Source: OpenAI, "Harmony response format". A prompt ends with `<|start|>assistant`, so that an answer begins inside a header.

use super::json_span::JsonSpan;
use crate::chat::answer::AnswerPiece;

const START: &str = "<|start|>";
const CHANNEL: &str = "<|channel|>";
const CONSTRAIN: &str = "<|constrain|>";
const MESSAGE: &str = "<|message|>";
const END: &str = "<|end|>";
const CALL: &str = "<|call|>";
const RETURN: &str = "<|return|>";

/// Texts that may be control tokens: the reader must see them.
pub(in crate::chat) const MARKS: [&str; 7] = [START, CHANNEL, CONSTRAIN, MESSAGE, END, CALL, RETURN];

/// What stands before the name of a recipient.
const RECIPIENT: &str = "to=";

/// What ends a message.
const ENDS: [&str; 4] = [END, CALL, RETURN, START];

/// Bytes of a header: longer ones are text.
const HEADER_BYTES_MAX: usize = 1024;

/// Reads one answer.
#[derive(Clone, Debug)]
pub(in crate::chat) struct HarmonyReader {
    /// Whether everything after the first call is dropped.
    single: bool,
    place: Place,
    /// Text that is not read yet.
    held: String,
}

#[derive(Clone, Debug)]
enum Place {
    /// In the header of a message, or before one.
    Header,
    /// In the text of a message.
    Text { is_reasoning: bool },
    /// Where the arguments of a call are to begin.
    Arguments,
    /// In the arguments of a call. Without a span they are no JSON object, and go on to the end of the message.
    In(Option<JsonSpan>),
    /// After the arguments, before the end of the message.
    Closing,
    /// Nothing more is read.
    Over,
}

impl HarmonyReader {
    /// A reader at the beginning of an answer. `single`: at most one call is read.
    pub(in crate::chat) fn new(single: bool) -> HarmonyReader {
        HarmonyReader { single, place: Place::Header, held: String::new() }
    }

    /// The pieces that `text` completes.
    pub(in crate::chat) fn push(&mut self, text: &str) -> Vec<AnswerPiece> {
        self.held.push_str(text);
        let mut pieces = Vec::new();
        while self.step(&mut pieces) {}
        pieces
    }

    /// The rest, because no text follows. The marks that end an answer are no text, so this is where a call ends.
    pub(in crate::chat) fn finish(&mut self) -> Vec<AnswerPiece> {
        let rest = std::mem::take(&mut self.held);
        match std::mem::replace(&mut self.place, Place::Over) {
            Place::Arguments => vec![AnswerPiece::Arguments("{}".to_owned())],
            Place::Text { is_reasoning: true } if !rest.is_empty() => vec![AnswerPiece::Reasoning(rest)],
            Place::Text { is_reasoning: false } if !rest.is_empty() => vec![AnswerPiece::Text(rest)],
            Place::In(None) if !rest.is_empty() => vec![AnswerPiece::Arguments(rest)],
            // A header without a message says nothing.
            Place::Header if !matches!(rest.trim_start().chars().next(), None | Some('<')) => {
                vec![AnswerPiece::Text(rest)]
            }
            _ => Vec::new(),
        }
    }

    /// Reads on; whether there may be more to read.
    fn step(&mut self, pieces: &mut Vec<AnswerPiece>) -> bool {
        match &mut self.place {
            Place::Header => self.header(pieces),
            Place::Text { is_reasoning } => {
                let is_reasoning = *is_reasoning;
                let (text, ended) = self.take_to_end();
                if !text.is_empty() {
                    pieces.push(if is_reasoning { AnswerPiece::Reasoning(text) } else { AnswerPiece::Text(text) });
                }
                self.next_message(ended)
            }
            Place::Arguments => {
                let begun = self.held.trim_start();
                if begun.is_empty() || is_part_of_any(begun, &ENDS) {
                    return false;
                }
                self.held.drain(..self.held.len() - begun.len());
                if ENDS.iter().any(|mark| self.held.starts_with(mark)) {
                    pieces.push(AnswerPiece::Arguments("{}".to_owned()));
                    self.place = Place::Closing;
                } else {
                    self.place = Place::In(self.held.starts_with('{').then(JsonSpan::default));
                }
                true
            }
            Place::In(Some(span)) => {
                if self.held.is_empty() {
                    return false;
                }
                let (len, ends) = span.take(&self.held);
                pieces.push(AnswerPiece::Arguments(self.held.drain(..len).collect()));
                if ends {
                    self.place = Place::Closing;
                }
                ends
            }
            Place::In(None) => {
                let (text, ended) = self.take_to_end();
                if !text.is_empty() {
                    pieces.push(AnswerPiece::Arguments(text));
                }
                self.next_message(ended)
            }
            Place::Closing => {
                let (_, ended) = self.take_to_end();
                self.next_message(ended)
            }
            Place::Over => {
                self.held.clear();
                false
            }
        }
    }

    /// Reads a header, and what its message is.
    fn header(&mut self, pieces: &mut Vec<AnswerPiece>) -> bool {
        if !may_be_header(&self.held) {
            self.place = Place::Text { is_reasoning: false };
            return true;
        }
        let Some(at) = self.held.find(MESSAGE) else { return false };
        let header: String = self.held.drain(..at + MESSAGE.len()).collect();
        let header = &header[..at];
        let recipient = field(header, RECIPIENT).filter(|name| *name != "assistant");
        let channel = field(header, CHANNEL);
        self.place = match recipient {
            Some(recipient) => {
                let name = recipient.strip_prefix("functions.").unwrap_or(recipient).to_owned();
                pieces.push(AnswerPiece::Call { name });
                Place::Arguments
            }
            None => Place::Text { is_reasoning: channel == Some("analysis") },
        };
        true
    }

    /// Takes the text up to the end of the message, and whether that has arrived.
    fn take_to_end(&mut self) -> (String, bool) {
        match ENDS.iter().filter_map(|mark| self.held.find(mark)).min() {
            Some(at) => (self.held.drain(..at).collect(), true),
            None => {
                let begun = (1..RETURN.len())
                    .rev()
                    .find(|&len| {
                        let at = self.held.len().checked_sub(len);
                        at.is_some_and(|at| self.held.is_char_boundary(at) && is_part_of_any(&self.held[at..], &ENDS))
                    })
                    .unwrap_or(0);
                (self.held.drain(..self.held.len() - begun).collect(), false)
            }
        }
    }

    /// Goes on to the next message if this one has ended.
    fn next_message(&mut self, ended: bool) -> bool {
        if !ended {
            return false;
        }
        let was_call = matches!(self.place, Place::In(_) | Place::Closing);
        self.place = if was_call && self.single { Place::Over } else { Place::Header };
        for mark in [END, CALL, RETURN] {
            if self.held.starts_with(mark) {
                self.held.drain(..mark.len());
            }
        }
        true
    }
}

/// Whether a text can be the beginning of a header: all else is an answer of a model that has lost the form.
fn may_be_header(text: &str) -> bool {
    let begun = text.trim_start();
    let begins = |mark: &&str| begun.starts_with(*mark) || mark.starts_with(begun);
    let is_short = match text.find(MESSAGE) {
        Some(len) => len <= HEADER_BYTES_MAX,
        None => text.len() < HEADER_BYTES_MAX + MESSAGE.len(),
    };
    is_short && [START, CHANNEL, CONSTRAIN, MESSAGE, RECIPIENT].iter().any(begins)
}

/// What stands after `name` in a header, up to a blank or a mark.
fn field<'a>(header: &'a str, name: &str) -> Option<&'a str> {
    let rest = &header[header.find(name)? + name.len()..];
    let end = rest.find(|c: char| c.is_whitespace() || c == '<').unwrap_or(rest.len());
    Some(&rest[..end]).filter(|value| !value.is_empty())
}

/// Whether one of these marks may go on where `text` ends.
fn is_part_of_any(text: &str, marks: &[&str]) -> bool {
    marks.iter().any(|mark| text.len() < mark.len() && mark.starts_with(text))
}
