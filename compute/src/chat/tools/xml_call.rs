//! Calls in tags, as Qwen-Coder writes them: `<function=NAME>`, for each argument `<parameter=NAME>`, its value and `</parameter>`,
//! and `</function>`. A value is plain text; the tool's JSON Schema tells whether it stands for a string or for other JSON.

use serde_json::Value as Json;

use super::argument_value;
use super::tag_call::{NAME_BYTES_MAX, TagPart, is_part_of, member};

const FUNCTION: &str = "<function=";
const FUNCTION_END: &str = "</function>";
const PARAMETER: &str = "<parameter=";
const PARAMETER_END: &str = "</parameter>";

/// A call whose name has been read.
#[derive(Clone, Debug)]
pub(super) struct XmlCall {
    /// JSON Schemas of the arguments by name; null where nothing is known of them.
    properties: Json,
    is_first: bool,
}

impl XmlCall {
    /// The name of the call that `text` begins with. `tools`: names and the JSON Schemas of their parameters.
    pub(super) fn begin(text: &str, tools: &[(String, Json)]) -> TagPart<(String, XmlCall)> {
        match tag(text, FUNCTION) {
            TagPart::Short => TagPart::Short,
            TagPart::Other => TagPart::Other,
            TagPart::Read { len, part: name } => {
                let call = XmlCall { properties: argument_value::properties(tools, name), is_first: true };
                TagPart::Read { len, part: (name.to_owned(), call) }
            }
        }
    }

    /// The next argument as a member of a JSON object, with the comma before it. `Other` at the end of the call.
    pub(super) fn next(&mut self, text: &str) -> TagPart<String> {
        let begun = text.trim_start();
        let blanks = text.len() - begun.len();
        if begun.is_empty() || is_part_of(begun, FUNCTION_END) {
            return TagPart::Short;
        }
        let (head, name) = match tag(begun, PARAMETER) {
            TagPart::Read { len, part } => (len, part),
            TagPart::Short => return TagPart::Short,
            TagPart::Other => return TagPart::Other,
        };
        let Some(value_len) = begun[head..].find(PARAMETER_END) else { return TagPart::Short };
        // The template writes the value on lines of its own.
        let text = &begun[head..head + value_len];
        let text = text.strip_prefix('\n').unwrap_or(text);
        let text = text.strip_suffix('\n').unwrap_or(text);
        let value = argument_value::value(&self.properties[name], text).to_string();
        let len = blanks + head + value_len + PARAMETER_END.len();
        TagPart::Read { len, part: member(&mut self.is_first, name, &value) }
    }

    /// Bytes of the end tag that `text` begins with, with blanks before it; 0 without one.
    pub(super) fn end(text: &str) -> usize {
        let begun = text.trim_start();
        if begun.starts_with(FUNCTION_END) { text.len() - begun.len() + FUNCTION_END.len() } else { 0 }
    }
}

/// The name in the tag that `text` begins with.
fn tag<'a>(text: &'a str, start: &str) -> TagPart<&'a str> {
    let Some(named) = text.strip_prefix(start) else {
        return if is_part_of(text, start) { TagPart::Short } else { TagPart::Other };
    };
    match named.find(['>', '<', '\n']) {
        Some(at) if at > 0 && named[at..].starts_with('>') && at <= NAME_BYTES_MAX => {
            TagPart::Read { len: start.len() + at + 1, part: &named[..at] }
        }
        None if named.len() <= NAME_BYTES_MAX => TagPart::Short,
        _ => TagPart::Other,
    }
}
