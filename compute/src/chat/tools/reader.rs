//! An answer's text, read as text and calls of tools while it arrives; the pieces do not depend on how the text is cut. What
//! looks like a call and is none is text.

use serde_json::Value as Json;

use super::json_span::JsonSpan;
use super::xml_call::{XmlCall, XmlPart};
use super::{ToolSyntax, functions};

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnswerPiece {
    /// Text.
    Text(String),
    /// A call begins.
    Call {
        /// Name of the tool.
        name: String,
    },
    /// More of the arguments of the last call, as JSON.
    Arguments(String),
}

/// Reads one answer.
#[derive(Clone, Debug)]
pub struct ToolReader {
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
    Tags(XmlCall),
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

impl ToolReader {
    /// A reader at the beginning of an answer. `tools`: in OpenAI's form; `forced`: the answer follows the prompt's
    /// [`ToolSyntax::forced_prefix`]; `single`: at most one call is read.
    pub fn new(syntax: ToolSyntax, tools: &Json, forced: bool, single: bool) -> ToolReader {
        let tools = functions(tools).map(|(name, schema)| (name.to_owned(), schema.cloned().unwrap_or_default()));
        let place = match syntax {
            _ if forced => Place::Opened,
            ToolSyntax::Hermes | ToolSyntax::Mistral => Place::Text,
            ToolSyntax::Llama3 | ToolSyntax::Json => Place::Start,
        };
        let tools = tools.collect();
        ToolReader { syntax, tools, single, place, held: String::new(), read: String::new(), called: false }
    }

    /// The pieces that `text` completes.
    pub fn push(&mut self, text: &str) -> Vec<AnswerPiece> {
        self.held.push_str(text);
        let mut pieces = Vec::new();
        while self.step(&mut pieces) {}
        pieces
    }

    /// The rest, because no text follows.
    pub fn finish(&mut self) -> Vec<AnswerPiece> {
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
                let begun = (1..opener.len()).rev().find(|&len| self.held.ends_with(&opener[..len])).unwrap_or(0);
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
            ToolSyntax::Hermes if first == '<' => self.tag(at, pieces),
            _ => self.no_call(pieces),
        }
    }

    /// Qwen-Coder's form: the name in a tag, then each argument in one.
    fn tag(&mut self, at: usize, pieces: &mut Vec<AnswerPiece>) -> bool {
        let begun = match XmlCall::begin(&self.held[at..], &self.tools) {
            XmlPart::Short => return false,
            XmlPart::Other => return self.no_call(pieces),
            XmlPart::Read { len, part } => (len, part),
        };
        let (len, (name, call)) = begun;
        self.held.drain(..at + len);
        pieces.extend([AnswerPiece::Call { name }, AnswerPiece::Arguments("{".to_owned())]);
        self.place = Place::Tags(call);
        true
    }

    fn tags(&mut self, pieces: &mut Vec<AnswerPiece>) -> bool {
        let Place::Tags(call) = &mut self.place else { return false };
        match call.next(&self.held) {
            XmlPart::Short => false,
            XmlPart::Read { len, part } => {
                self.held.drain(..len);
                pieces.push(AnswerPiece::Arguments(part));
                true
            }
            // The end tag, or what no call contains: it ends the call.
            XmlPart::Other => {
                let end = XmlCall::end(&self.held);
                self.held.drain(..end);
                pieces.push(AnswerPiece::Arguments("}".to_owned()));
                self.ended()
            }
        }
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
        pieces.push(AnswerPiece::Call { name: begun[..name_len].to_owned() });
        self.advance(at + brace);
        // The whole object is the arguments.
        self.place = Place::Object(Object { arguments: Some(JsonSpan::default()), ..Object::default() });
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
        let close: &[&str] = match self.syntax {
            ToolSyntax::Hermes => &["</tool_call>"],
            ToolSyntax::Mistral => &[",", "]"],
            ToolSyntax::Llama3 => &[";"],
            ToolSyntax::Json => &["```", ";", ","],
        };
        if rest.is_empty() || close.iter().any(|mark| mark.len() > rest.len() && mark.starts_with(rest)) {
            return false;
        }
        let found = close.iter().find(|mark| rest.starts_with(**mark));
        let len = self.held.len() - rest.len() + found.map_or(0, |mark| mark.len());
        self.held.drain(..len);
        self.place = if matches!(found, Some(&("," | ";"))) { Place::Opened } else { Place::Text };
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
        ToolSyntax::Hermes | ToolSyntax::Mistral => !name.is_empty(),
        ToolSyntax::Llama3 | ToolSyntax::Json => tools.iter().any(|(known, _)| known == name),
    }
}

/// The beginning of a call.
enum Head<'a> {
    /// More text is needed.
    Short,
    /// `{"name": "…", "arguments": {`, with the place of the last bracket.
    Begun { name: &'a str, arguments: usize },
    /// Something else, which may be a call in another order.
    Other,
}

fn head(object: &str) -> Head<'_> {
    let mut cursor = Cursor { text: object, at: 0 };
    match cursor.head() {
        Ok(name) => Head::Begun { name, arguments: cursor.at },
        Err(true) => Head::Short,
        Err(false) => Head::Other,
    }
}

struct Cursor<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Cursor<'a> {
    /// The name, with the cursor at the arguments. The error says whether the text ended.
    fn head(&mut self) -> Result<&'a str, bool> {
        self.expect('{')?;
        if self.string()? != "name" {
            return Err(false);
        }
        self.expect(':')?;
        let name = self.string()?;
        self.expect(',')?;
        if !matches!(self.string()?, "arguments" | "parameters") {
            return Err(false);
        }
        self.expect(':')?;
        self.blanks();
        match self.text[self.at..].chars().next() {
            Some('{') => Ok(name),
            other => Err(other.is_none()),
        }
    }

    fn blanks(&mut self) {
        self.at = self.text.len() - self.text[self.at..].trim_start().len();
    }

    fn expect(&mut self, wanted: char) -> Result<(), bool> {
        self.blanks();
        match self.text[self.at..].chars().next() {
            Some(found) if found == wanted => {
                self.at += wanted.len_utf8();
                Ok(())
            }
            other => Err(other.is_none()),
        }
    }

    /// A string without escapes.
    fn string(&mut self) -> Result<&'a str, bool> {
        self.expect('"')?;
        let rest = &self.text[self.at..];
        match rest.find(['"', '\\']) {
            Some(end) if rest[end..].starts_with('"') => {
                self.at += end + 1;
                Ok(&rest[..end])
            }
            other => Err(other.is_none()),
        }
    }
}

/// Name and arguments of a call in any order; arguments may be JSON in a string.
fn whole_call(text: &str) -> Option<(String, String)> {
    let call: Json = serde_json::from_str(text).ok()?;
    // Some models write the call as OpenAI's API shows it.
    let call = call.get("function").filter(|function| function.is_object()).unwrap_or(&call);
    let name = call["name"].as_str()?.to_owned();
    let arguments = match call.get("arguments").or_else(|| call.get("parameters")) {
        None | Some(Json::Null) => "{}".to_owned(),
        Some(Json::String(text)) => matches!(serde_json::from_str(text), Ok(Json::Object(_))).then(|| text.clone())?,
        Some(object @ Json::Object(_)) => object.to_string(),
        Some(_) => return None,
    };
    Some((name, arguments))
}
