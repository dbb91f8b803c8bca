//! Calls as GLM writes them: the name, for each argument `<arg_key>NAME</arg_key>` and `<arg_value>VALUE</arg_value>`, with line ends
//! in between or none.

use serde_json::Value as Json;

use super::argument_value;
use super::tag_call::{NAME_BYTES_MAX, TagPart, is_part_of, member};

const KEY: &str = "<arg_key>";
const KEY_END: &str = "</arg_key>";
const VALUE: &str = "<arg_value>";
const VALUE_END: &str = "</arg_value>";
/// What follows the call.
const CLOSE: &str = "</tool_call>";

/// A call whose name has been read.
#[derive(Clone, Debug)]
pub(super) struct KeyValueCall {
    /// JSON Schemas of the arguments by name; null where nothing is known of them.
    properties: Json,
    is_first: bool,
}

impl KeyValueCall {
    /// The name of the call that `text` begins with.
    pub(super) fn begin(text: &str, tools: &[(String, Json)]) -> TagPart<(String, KeyValueCall)> {
        let len = text.find(|c: char| c.is_whitespace() || c == '<').unwrap_or(text.len());
        let rest = text[len..].trim_start();
        if len == 0 || len > NAME_BYTES_MAX {
            return TagPart::Other;
        }
        if rest.is_empty() || is_part_of(rest, KEY) || is_part_of(rest, CLOSE) {
            return TagPart::Short;
        }
        if !rest.starts_with(KEY) && !rest.starts_with(CLOSE) {
            return TagPart::Other;
        }
        let name = &text[..len];
        let call = KeyValueCall { properties: argument_value::properties(tools, name), is_first: true };
        TagPart::Read { len: text.len() - rest.len(), part: (name.to_owned(), call) }
    }

    /// The next argument as a member of a JSON object. `Other` at the end of the call.
    pub(super) fn next(&mut self, text: &str) -> TagPart<String> {
        let begun = text.trim_start();
        let (name, after) = match between(begun, KEY, KEY_END) {
            TagPart::Short => return TagPart::Short,
            TagPart::Other => return TagPart::Other,
            TagPart::Read { len, part } => (part.trim(), &begun[len..]),
        };
        let after = after.trim_start();
        match between(after, VALUE, VALUE_END) {
            TagPart::Short => TagPart::Short,
            TagPart::Other => TagPart::Other,
            TagPart::Read { len, part } => {
                let value = argument_value::value(&self.properties[name], part).to_string();
                let len = text.len() - after.len() + len;
                TagPart::Read { len, part: member(&mut self.is_first, name, &value) }
            }
        }
    }
}

/// What stands between these marks, if `text` begins with the first one, and the bytes of all three.
fn between<'a>(text: &'a str, open: &str, close: &str) -> TagPart<&'a str> {
    let Some(inner) = text.strip_prefix(open) else {
        return if is_part_of(text, open) { TagPart::Short } else { TagPart::Other };
    };
    match inner.find(close) {
        Some(len) => TagPart::Read { len: open.len() + len + close.len(), part: &inner[..len] },
        None => TagPart::Short,
    }
}
