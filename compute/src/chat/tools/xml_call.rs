//! Calls in tags, as Qwen-Coder writes them: `<function=NAME>`, for each argument `<parameter=NAME>`, its value and `</parameter>`,
//! and `</function>`. A value is plain text; the tool's JSON Schema tells whether it stands for a string or for other JSON.

use serde_json::Value as Json;

const FUNCTION: &str = "<function=";
const FUNCTION_END: &str = "</function>";
const PARAMETER: &str = "<parameter=";
const PARAMETER_END: &str = "</parameter>";

/// Bytes of a name in a tag: longer ones are text.
const NAME_BYTES_MAX: usize = 256;

/// What a text begins with.
pub(super) enum XmlPart<T> {
    /// More text is needed.
    Short,
    /// Something else.
    Other,
    /// A part, and the bytes that it takes.
    Read { len: usize, part: T },
}

/// A call whose name has been read.
#[derive(Clone, Debug)]
pub(super) struct XmlCall {
    /// JSON Schemas of the arguments by name; null where nothing is known of them.
    properties: Json,
    /// Whether an argument has been read.
    has_arguments: bool,
}

impl XmlCall {
    /// The name of the call that `text` begins with. `tools`: names and the JSON Schemas of their parameters.
    pub(super) fn begin(text: &str, tools: &[(String, Json)]) -> XmlPart<(String, XmlCall)> {
        match tag(text, FUNCTION) {
            XmlPart::Short => XmlPart::Short,
            XmlPart::Other => XmlPart::Other,
            XmlPart::Read { len, part: name } => {
                let schema = tools.iter().find(|(known, _)| known == name).map(|(_, schema)| schema);
                let properties = schema.map(|schema| schema["properties"].clone()).unwrap_or_default();
                let call = XmlCall { properties, has_arguments: false };
                XmlPart::Read { len, part: (name.to_owned(), call) }
            }
        }
    }

    /// The next argument as a member of a JSON object, with the comma before it. `Other` at the end of the call.
    pub(super) fn next(&mut self, text: &str) -> XmlPart<String> {
        let begun = text.trim_start();
        let blanks = text.len() - begun.len();
        if begun.is_empty() || is_part_of(begun, FUNCTION_END) {
            return XmlPart::Short;
        }
        let (head, name) = match tag(begun, PARAMETER) {
            XmlPart::Read { len, part } => (len, part),
            XmlPart::Short => return XmlPart::Short,
            XmlPart::Other => return XmlPart::Other,
        };
        let Some(value_len) = begun[head..].find(PARAMETER_END) else { return XmlPart::Short };
        let value = self.value(name, &begun[head..head + value_len]);
        let comma = if self.has_arguments { ", " } else { "" };
        self.has_arguments = true;
        let len = blanks + head + value_len + PARAMETER_END.len();
        XmlPart::Read { len, part: format!("{comma}{}: {value}", Json::from(name)) }
    }

    /// Bytes of the end tag that `text` begins with, with blanks before it; 0 without one.
    pub(super) fn end(text: &str) -> usize {
        let begun = text.trim_start();
        if begun.starts_with(FUNCTION_END) { text.len() - begun.len() + FUNCTION_END.len() } else { 0 }
    }

    /// The value of an argument as JSON.
    fn value(&self, name: &str, text: &str) -> Json {
        // The template writes the value on lines of its own.
        let text = text.strip_prefix('\n').unwrap_or(text);
        let text = text.strip_suffix('\n').unwrap_or(text);
        let schema = &self.properties[name];
        let is_text = schema["type"] == "string"
            || schema["enum"].as_array().is_some_and(|values| values.iter().all(Json::is_string));
        let other = if is_text { None } else { serde_json::from_str(text.trim()).ok() };
        other.unwrap_or_else(|| Json::from(text))
    }
}

/// The name in the tag that `text` begins with.
fn tag<'a>(text: &'a str, start: &str) -> XmlPart<&'a str> {
    let Some(named) = text.strip_prefix(start) else {
        return if is_part_of(text, start) { XmlPart::Short } else { XmlPart::Other };
    };
    match named.find(['>', '<', '\n']) {
        Some(at) if at > 0 && named[at..].starts_with('>') && at <= NAME_BYTES_MAX => {
            XmlPart::Read { len: start.len() + at + 1, part: &named[..at] }
        }
        None if named.len() <= NAME_BYTES_MAX => XmlPart::Short,
        _ => XmlPart::Other,
    }
}

/// Whether a mark may go on where `text` ends.
fn is_part_of(text: &str, mark: &str) -> bool {
    text.len() < mark.len() && mark.starts_with(text)
}
