//! Calls whose arguments do not come as one JSON object: what is common to the forms of the families that write so.

use serde_json::Value as Json;

use super::ToolSyntax;
use super::gemma_call::GemmaCall;
use super::key_value_call::KeyValueCall;
use super::xml_call::XmlCall;

/// Bytes of a name: longer ones are text.
pub(super) const NAME_BYTES_MAX: usize = 256;

/// What a text begins with.
pub(super) enum TagPart<T> {
    /// More text is needed.
    Short,
    /// Something else.
    Other,
    /// A part, and the bytes that it takes.
    Read { len: usize, part: T },
}

/// A call whose name has been read.
#[derive(Clone, Debug)]
pub(super) enum TagCall {
    Xml(XmlCall),
    KeyValue(KeyValueCall),
    Gemma(GemmaCall),
}

impl TagCall {
    /// The name of the call that `text` begins with, in the form of this family. `tools`: names and the JSON Schemas of their
    /// parameters.
    pub(super) fn begin(syntax: ToolSyntax, text: &str, tools: &[(String, Json)]) -> TagPart<(String, TagCall)> {
        match syntax {
            ToolSyntax::Hermes => XmlCall::begin(text, tools).map(|(name, call)| (name, TagCall::Xml(call))),
            ToolSyntax::Glm => KeyValueCall::begin(text, tools).map(|(name, call)| (name, TagCall::KeyValue(call))),
            ToolSyntax::Gemma4 => GemmaCall::begin(text).map(|(name, call)| (name, TagCall::Gemma(call))),
            _ => TagPart::Other,
        }
    }

    /// The next argument as a member of a JSON object, with the comma before it. `Other` at the end of the call.
    pub(super) fn next(&mut self, text: &str) -> TagPart<String> {
        match self {
            TagCall::Xml(call) => call.next(text),
            TagCall::KeyValue(call) => call.next(text),
            TagCall::Gemma(call) => call.next(text),
        }
    }

    /// Bytes of the end of the call that `text` begins with, with blanks before it; 0 without one.
    pub(super) fn end(&self, text: &str) -> usize {
        match self {
            TagCall::Xml(_) => XmlCall::end(text),
            // The mark after the call is its end.
            TagCall::KeyValue(_) => 0,
            TagCall::Gemma(_) => GemmaCall::end(text),
        }
    }
}

impl<T> TagPart<T> {
    fn map<U>(self, change: impl FnOnce(T) -> U) -> TagPart<U> {
        match self {
            TagPart::Short => TagPart::Short,
            TagPart::Other => TagPart::Other,
            TagPart::Read { len, part } => TagPart::Read { len, part: change(part) },
        }
    }
}

/// Whether a mark may go on where `text` ends.
pub(super) fn is_part_of(text: &str, mark: &str) -> bool {
    text.len() < mark.len() && mark.starts_with(text)
}

/// A member of a JSON object, with the comma before it unless it is the first.
pub(super) fn member(is_first: &mut bool, name: &str, value: &str) -> String {
    let comma = if std::mem::replace(is_first, false) { "" } else { ", " };
    format!("{comma}{}: {value}", Json::from(name))
}
