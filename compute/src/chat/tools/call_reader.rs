//! An answer's text, read as text and calls of tools while it arrives; the pieces do not depend on how the text is cut. What
//! looks like a call and is none is text. Reasoning is unknown here.

use serde_json::Value as Json;

use super::call_head::{Head, head, whole_call};
use super::deepseek::{self, DeepseekHead};
use super::json_span::JsonSpan;
use super::tag_call::{TagCall, TagPart, is_part_of};
use super::{ToolSyntax, functions};
use crate::chat::answer::AnswerPiece;

/// Reads one answer.
#[derive(Clone, Debug)]
pub(in crate::chat) struct CallReader {
    syntax: ToolSyntax,
    /// Names of the tools, and the JSON Schemas of their parameters.
    tools: Vec<(String, Json)>,
    /// Whether everything after the first call is dropped.
    single: bool,
    place: Place,
    /// Text that is not read yet.
    held: String,
    /// What has been read of something that may become a call: text if it does not.
    read: String,
    /// Whether a call was read.
    called: bool,
}

#[derive(Clone, Debug)]
enum Place {
    /// Before the first character.
    Start,
    Text,
    /// After the mark that begins a call.
    Opened,
    Object(Object),
    /// After the tag with the name of a call in tags.
    Tags(TagCall),
    /// After a call.
    Closing,
    /// Nothing more is read.
    Over,
}

/// The object of a call.
#[derive(Clone, Debug, Default)]
struct Object {
    span: JsonSpan,
    text: String,
    /// The arguments, which are passed on while they arrive; `None` until they begin.
    arguments: Option<JsonSpan>,
    /// Whether the arguments are complete.
    done: bool,
    /// Whether the text is read as a whole, because it begins in another order.
    whole: bool,
}

impl CallReader {
    /// A reader at the beginning of an answer. `tools`: in OpenAI's form; `forced`: the answer follows the prompt's
    /// [`ToolSyntax::forced_prefix`]; `single`: at most one call is read.
    pub(in crate::chat) fn new(syntax: ToolSyntax, tools: &Json, forced: bool, single: bool) -> CallReader {
        let tools = functions(tools).map(|(name, schema)| (name.to_owned(), schema.cloned().unwrap_or_default()));
        let place = match syntax {
            _ if forced => Place::Opened,
            ToolSyntax::Llama3 | ToolSyntax::Json => Place::Start,
            _ => Place::Text,
        };
        let tools = tools.collect();
        CallReader { syntax, tools, single, place, held: String::new(), read: String::new(), called: false }
    }

    /// The pieces that `text` completes.
    pub(in crate::chat) fn push(&mut self, text: &str) -> Vec<AnswerPiece> {
        self.held.push_str(text);
        let mut pieces = Vec::new();
        while self.step(&mut pieces) {}
        pieces
    }

    /// The rest, because no text follows.
    pub(in crate::chat) fn finish(&mut self) -> Vec<AnswerPiece> {
        let mut rest = std::mem::take(&mut self.read);
        match std::mem::replace(&mut self.place, Place::Over) {
            Place::Object(object) if object.arguments.is_some() => return Vec::new(),
            // The arguments stay cut off.
            Place::Tags(_) => return Vec::new(),
            Place::Object(object) => rest.push_str(&object.text),
            Place::Closing | Place::Over => return Vec::new(),
            Place::Start | Place::Text | Place::Opened => {}
        }
        rest.push_str(&std::mem::take(&mut self.held));
        // Blanks after a call are no text.
        let is_blank = rest.trim().is_empty();
        if rest.is_empty() || (self.called && is_blank) { Vec::new() } else { vec![AnswerPiece::Text(rest)] }
    }

    /// Reads on; whether there may be more to read.
    fn step(&mut self, pieces: &mut Vec<AnswerPiece>) -> bool {
        match &mut self.place {
            Place::Start => self.start(),
            Place::Text => self.text(pieces),
            Place::Opened => self.opened(pieces),
            Place::Object(_) => self.object(pieces),
            Place::Tags(_) => self.tags(pieces),
            Place::Closing => self.closing(),
            Place::Over => {
                self.held.clear();
                false
            }
        }
    }

    fn start(&mut self) -> bool {
        let begun = self.held.trim_start();
        let marks: &[&str] = if self.syntax == ToolSyntax::Json { &["```json", "```"] } else { &["<|python_tag|>"] };
        if begun.is_empty() || marks.iter().any(|mark| mark.len() > begun.len() && mark.starts_with(begun)) {
            return false;
        }
        let at = self.held.len() - begun.len();
        if let Some(mark) = marks.iter().find(|mark| begun.starts_with(**mark)) {
            let rest = self.held.split_off(at + mark.len());
            self.read = std::mem::replace(&mut self.held, rest);
            self.place = Place::Opened;
        } else if begun.starts_with('{') {
            let rest = self.held.split_off(at);
            self.read = std::mem::replace(&mut self.held, rest);
            self.place = Place::Object(Object::default());
        } else {
            self.place = Place::Text;
        }
        true
    }

    fn text(&mut self, pieces: &mut Vec<AnswerPiece>) -> bool {
        let opener = self.syntax.opener();
        let found = if opener.is_empty() { None } else { self.held.find(opener) };
        // Blanks before a call are no text.
        let end = match found {
            Some(at) => self.held[..at].trim_end().len(),
            None if opener.is_empty() => self.held.len(),
            None => {
                let is_end = |&len: &usize| opener.get(..len).is_some_and(|part| self.held.ends_with(part));
                let begun = (1..opener.len()).rev().find(is_end).unwrap_or(0);
                self.held[..self.held.len() - begun].trim_end().len()
            }
        };
        let rest = self.held.split_off(end);
        let text = std::mem::replace(&mut self.held, rest);
        if !text.is_empty() {
            pieces.push(AnswerPiece::Text(text));
        }
        let Some(at) = found else { return false };
        let rest = self.held.split_off(at - end + opener.len());
        self.read = std::mem::replace(&mut self.held, rest);
        self.place = Place::Opened;
        true
    }

    fn opened(&mut self, pieces: &mut Vec<AnswerPiece>) -> bool {
        let blank = |c: char| c.is_whitespace() || (self.syntax == ToolSyntax::Mistral && c == '[');
        let begun = self.held.trim_start_matches(blank);
        let Some(first) = begun.chars().next() else { return false };
        let at = self.held.len() - begun.len();
        if first == '{' {
            self.advance(at);
            self.place = Place::Object(Object::default());
            return true;
        }
        match self.syntax {
            ToolSyntax::Mistral if is_name(first) => self.named(at, pieces),
            ToolSyntax::Deepseek => self.deepseek(at, pieces),
            _ => self.tag(at, pieces),
        }
    }

    /// The forms of families that do not write the arguments as one object.
    fn tag(&mut self, at: usize, pieces: &mut Vec<AnswerPiece>) -> bool {
        let (len, (name, call)) = match TagCall::begin(self.syntax, &self.held[at..], &self.tools) {
            TagPart::Short => return false,
            TagPart::Other => return self.no_call(pieces),
            TagPart::Read { len, part } => (len, part),
        };
        self.held.drain(..at + len);
        pieces.extend([AnswerPiece::Call { name }, AnswerPiece::Arguments("{".to_owned())]);
        self.place = Place::Tags(call);
        true
    }

    fn tags(&mut self, pieces: &mut Vec<AnswerPiece>) -> bool {
        let Place::Tags(call) = &mut self.place else { return false };
        match call.next(&self.held) {
            TagPart::Short => false,
            TagPart::Read { len, part } => {
                self.held.drain(..len);
                pieces.push(AnswerPiece::Arguments(part));
                true
            }
            // The end, or what no call contains: it ends the call.
            TagPart::Other => {
                let end = call.end(&self.held);
                self.held.drain(..end);
                pieces.push(AnswerPiece::Arguments("}".to_owned()));
                self.ended()
            }
        }
    }

    /// DeepSeek's form: marks and the name before the arguments.
    fn deepseek(&mut self, at: usize, pieces: &mut Vec<AnswerPiece>) -> bool {
        match deepseek::head(&self.held[at..]) {
            DeepseekHead::Short => false,
            DeepseekHead::Other => self.no_call(pieces),
            DeepseekHead::Begun { name, arguments } => {
                self.begin_arguments(name, at + arguments, pieces);
                true
            }
        }
    }

    /// A call begins whose arguments are the object at this place.
    fn begin_arguments(&mut self, name: String, at: usize, pieces: &mut Vec<AnswerPiece>) {
        pieces.push(AnswerPiece::Call { name });
        self.advance(at);
        self.place = Place::Object(Object { arguments: Some(JsonSpan::default()), ..Object::default() });
    }

    /// Mistral's newer form: the name, perhaps an id, then the arguments.
    fn named(&mut self, at: usize, pieces: &mut Vec<AnswerPiece>) -> bool {
        let begun = &self.held[at..];
        let name_len = begun.find(|c| !is_name(c)).unwrap_or(begun.len());
        let Some(brace) = begun.find('{') else {
            let between = &begun[name_len..];
            let expected = between.is_empty() || between.starts_with('[') || between.trim().is_empty();
            return if expected { false } else { self.no_call(pieces) };
        };
        let between = begun[name_len..brace].trim();
        if !between.is_empty() && !between.ends_with("[ARGS]") {
            return self.no_call(pieces);
        }
        let name = begun[..name_len].to_owned();
        self.begin_arguments(name, at + brace, pieces);
        true
    }

    fn object(&mut self, pieces: &mut Vec<AnswerPiece>) -> bool {
        let Place::Object(object) = &mut self.place else { return false };
        if self.held.is_empty() {
            return false;
        }
        let (len, ends) = object.span.take(&self.held);
        let rest = self.held.split_off(len);
        let taken = std::mem::replace(&mut self.held, rest);
        let mut fresh = taken.as_str();
        if object.arguments.is_none() {
            object.text.push_str(&taken);
            let begun = if object.whole { Head::Other } else { head(&object.text) };
            match begun {
                Head::Begun { name, arguments } if may_be(self.syntax, &self.tools, name) => {
                    pieces.push(AnswerPiece::Call { name: name.to_owned() });
                    object.arguments = Some(JsonSpan::default());
                    // The arguments begin in what was just taken: before that the head was not complete.
                    fresh = &taken[taken.len() - (object.text.len() - arguments)..];
                }
                Head::Other | Head::Begun { .. } => object.whole = true,
                Head::Short => {}
            }
        }
        if let Some(arguments) = object.arguments.as_mut().filter(|_| !object.done && !fresh.is_empty()) {
            let (len, done) = arguments.take(fresh);
            object.done = done;
            pieces.push(AnswerPiece::Arguments(fresh[..len].to_owned()));
        }
        if !ends {
            return false;
        }
        if object.arguments.is_none() {
            let called = whole_call(&object.text).filter(|(name, _)| may_be(self.syntax, &self.tools, name));
            let Some((name, arguments)) = called else {
                let text = std::mem::take(&mut object.text);
                self.read.push_str(&text);
                return self.no_call(pieces);
            };
            pieces.extend([AnswerPiece::Call { name }, AnswerPiece::Arguments(arguments)]);
        }
        self.ended()
    }

    /// A call ends.
    fn ended(&mut self) -> bool {
        self.read.clear();
        self.called = true;
        self.place = if self.single { Place::Over } else { Place::Closing };
        true
    }

    fn closing(&mut self) -> bool {
        let rest = self.held.trim_start();
        // What stands after a call; with a comma or the like another call follows.
        let close: &[&str] = match self.syntax {
            ToolSyntax::Hermes | ToolSyntax::Glm => &["</tool_call>"],
            ToolSyntax::Gemma4 => &["<tool_call|>"],
            ToolSyntax::Deepseek => &deepseek::CLOSE,
            ToolSyntax::Mistral => &[",", "]"],
            ToolSyntax::Llama3 => &[";"],
            ToolSyntax::Json | ToolSyntax::Harmony => &["```", ";", ","],
        };
        if rest.is_empty() || close.iter().any(|mark| is_part_of(rest, mark)) {
            return false;
        }
        let blanks = self.held.len() - rest.len();
        let found = close.iter().find(|mark| rest.starts_with(**mark));
        self.place = match found {
            Some(&("," | ";")) => Place::Opened,
            Some(&deepseek::CALL_BEGIN) => {
                // The mark is the beginning of the next call's head.
                self.held.drain(..blanks);
                self.place = Place::Opened;
                return true;
            }
            Some(mark) if deepseek::goes_on_after(mark) => Place::Closing,
            _ => Place::Text,
        };
        self.held.drain(..blanks + found.map_or(0, |mark| mark.len()));
        true
    }

    /// Moves text from what is not read yet to what has been read.
    fn advance(&mut self, len: usize) {
        let rest = self.held.split_off(len);
        self.read.push_str(&std::mem::replace(&mut self.held, rest));
    }

    /// What was read is text after all.
    fn no_call(&mut self, pieces: &mut Vec<AnswerPiece>) -> bool {
        pieces.push(AnswerPiece::Text(std::mem::take(&mut self.read)));
        self.place = Place::Text;
        true
    }
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '-' | '.')
}

/// Without a mark of its own, JSON is a call only of a tool that exists.
fn may_be(syntax: ToolSyntax, tools: &[(String, Json)], name: &str) -> bool {
    match syntax {
        ToolSyntax::Llama3 | ToolSyntax::Json | ToolSyntax::Harmony => tools.iter().any(|(known, _)| known == name),
        _ => !name.is_empty(),
    }
}
