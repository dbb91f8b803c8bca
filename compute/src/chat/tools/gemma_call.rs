//! Calls as Gemma 4 writes them: `call:NAME{key:value,…}`, where a string is between two `<|"|>`, keys have no quotes, and numbers,
//! `true`, `false`, lists and objects are those of JSON.

use serde_json::Value as Json;

use super::tag_call::{NAME_BYTES_MAX, TagPart, is_part_of, member};

const CALL: &str = "call:";
const QUOTE: &str = "<|\"|>";

/// A call whose name has been read.
#[derive(Clone, Debug)]
pub(super) struct GemmaCall {
    is_first: bool,
}

impl GemmaCall {
    /// The name of the call that `text` begins with.
    pub(super) fn begin(text: &str) -> TagPart<(String, GemmaCall)> {
        let Some(named) = text.strip_prefix(CALL) else {
            return if is_part_of(text, CALL) { TagPart::Short } else { TagPart::Other };
        };
        match named.find(|c: char| c.is_whitespace() || matches!(c, '{' | '<')) {
            Some(len) if len > 0 && len <= NAME_BYTES_MAX && named[len..].starts_with('{') => {
                let part = (named[..len].to_owned(), GemmaCall { is_first: true });
                TagPart::Read { len: CALL.len() + len + 1, part }
            }
            None if named.len() <= NAME_BYTES_MAX => TagPart::Short,
            _ => TagPart::Other,
        }
    }

    /// The next argument as a member of a JSON object. `Other` at the end of the call.
    pub(super) fn next(&mut self, text: &str) -> TagPart<String> {
        let mut begun = text.trim_start();
        if !self.is_first {
            begun = begun.strip_prefix(',').unwrap_or(begun).trim_start();
        }
        if begun.is_empty() {
            return TagPart::Short;
        }
        let (name, value) = match key(begun) {
            TagPart::Short => return TagPart::Short,
            TagPart::Other => return TagPart::Other,
            TagPart::Read { len, part } => (part, &begun[len..]),
        };
        let Some(len) = value_len(value) else { return TagPart::Short };
        let written = json_of(&value[..len]);
        let read = text.len() - value.len() + len;
        TagPart::Read { len: read, part: member(&mut self.is_first, &name, &written) }
    }

    /// Bytes of the end that `text` begins with, with what may stand before it; 0 without one.
    pub(super) fn end(text: &str) -> usize {
        let begun = text.trim_start_matches(|c: char| c.is_whitespace() || c == ',');
        if begun.starts_with('}') { text.len() - begun.len() + 1 } else { 0 }
    }
}

/// The key that `text` begins with, and its bytes with the colon.
fn key(text: &str) -> TagPart<String> {
    let quoted = text.strip_prefix(QUOTE);
    if quoted.is_none() && is_part_of(text, QUOTE) {
        return TagPart::Short;
    }
    let named = quoted.unwrap_or(text);
    let end = if quoted.is_some() { named.find(QUOTE) } else { named.find([':', ',', '{', '}', '<']) };
    match end {
        None if named.len() <= NAME_BYTES_MAX => TagPart::Short,
        Some(len) if len <= NAME_BYTES_MAX => {
            let after = &named[len + if quoted.is_some() { QUOTE.len() } else { 0 }..];
            match after.strip_prefix(':') {
                Some(value) => TagPart::Read { len: text.len() - value.len(), part: named[..len].trim().to_owned() },
                None if after.is_empty() => TagPart::Short,
                None => TagPart::Other,
            }
        }
        _ => TagPart::Other,
    }
}

/// Bytes of the value that `text` begins with, up to the comma or bracket after it; `None` while that has not arrived.
fn value_len(text: &str) -> Option<usize> {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        if let Some(string) = rest.strip_prefix(QUOTE) {
            at += QUOTE.len() + string.find(QUOTE)? + QUOTE.len();
            continue;
        }
        match rest.chars().next()? {
            ',' | '}' | ']' if depth == 0 => return Some(at),
            '{' | '[' => depth += 1,
            '}' | ']' => depth -= 1,
            _ => {}
        }
        at += rest.chars().next().map_or(1, char::len_utf8);
    }
    None
}

/// A whole value as JSON. What is none is taken for a string. Brackets are copied one by one, so that no depth is too much here.
fn json_of(text: &str) -> String {
    let mut json = String::with_capacity(text.len() + 16);
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if let Some((string, after)) = rest.strip_prefix(QUOTE).and_then(|string| string.split_once(QUOTE)) {
            json.push_str(&Json::from(string).to_string());
            rest = after;
        } else if matches!(c, '{' | '}' | '[' | ']' | ',' | ':') {
            json.push(c);
            rest = &rest[1..];
        } else {
            let len = match rest.find(['{', '}', '[', ']', ',', ':', '<']) {
                // No mark begins with this `<`.
                Some(0) => 1,
                found => found.unwrap_or(rest.len()),
            };
            let word = rest[..len].trim();
            let is_key = rest[len..].starts_with(':');
            let is_json = !is_key && serde_json::from_str::<Json>(word).is_ok();
            match word {
                "" => {}
                // As Python writes it.
                "None" if !is_key => json.push_str("null"),
                word if is_json => json.push_str(word),
                word => json.push_str(&Json::from(word).to_string()),
            }
            rest = &rest[len..];
        }
    }
    match serde_json::from_str::<Json>(&json) {
        Ok(_) => json,
        Err(_) => Json::from(text).to_string(),
    }
}
