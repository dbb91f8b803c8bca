//! The answer in a JSON value: the field that holds it, or the whole value with sorted keys.

use serde_json::{Map, Value};

use super::{Canonical, number, short};
use crate::federation::limits::{CANONICAL_BYTES, JSON_BYTES, SHORT_CHARS};

/// Names of the field with the answer, the likeliest first. Other fields explain it.
const ANSWER_FIELDS: [&str; 8] =
    ["answer", "final_answer", "result", "choice", "label", "value", "category", "classification"];

/// A text as one JSON value; `None` if the text is anything else, or too large.
pub(super) fn parse(text: &str) -> Option<Value> {
    // The parser refuses values that are nested more than 127 deep.
    if text.len() > JSON_BYTES { None } else { serde_json::from_str(text).ok() }
}

/// The answer in a value; `None` if it holds free text.
pub(super) fn canonical(value: &Value) -> Option<Canonical> {
    let Value::Object(fields) = value else { return scalar(value).unwrap_or_else(|| whole(value)) };
    let named = || ANSWER_FIELDS.iter().find_map(|name| fields.get(*name).and_then(scalar));
    match named().or_else(|| only(fields)) {
        Some(answer) => answer,
        None => whole(value),
    }
}

/// The answer in the only field.
fn only(fields: &Map<String, Value>) -> Option<Option<Canonical>> {
    let mut values = fields.values();
    match (values.next(), values.next()) {
        (Some(value), None) => scalar(value),
        _ => None,
    }
}

/// The answer in a value that is no list and no object: `Some(None)` is a free text.
fn scalar(value: &Value) -> Option<Option<Canonical>> {
    match value {
        Value::String(text) => Some(short(text)),
        Value::Number(value) => {
            let text = value.to_string();
            Some(Some(number::canonical(&text).map_or(Canonical::Json(text), Canonical::Number)))
        }
        Value::Bool(value) => Some(Some(Canonical::Text(value.to_string()))),
        Value::Null => Some(Some(Canonical::Json("null".to_owned()))),
        Value::Array(_) | Value::Object(_) => None,
    }
}

/// The whole value, if it is small and holds no free text.
fn whole(value: &Value) -> Option<Canonical> {
    let mut text = String::new();
    (write(value, &mut text) && text.len() <= CANONICAL_BYTES).then_some(Canonical::Json(text))
}

/// Appends a value with sorted keys and canonical numbers; false if it holds free text.
fn write(value: &Value, text: &mut String) -> bool {
    match value {
        Value::Array(items) => {
            text.push('[');
            let all = items.iter().all(|item| {
                let plain = write(item, text);
                text.push(',');
                plain
            });
            text.push(']');
            all
        }
        Value::Object(fields) => {
            let mut fields: Vec<(&String, &Value)> = fields.iter().collect();
            fields.sort_by_key(|(name, _)| *name);
            text.push('{');
            let all = fields.into_iter().all(|(name, value)| {
                text.push_str(&Value::from(name.as_str()).to_string());
                text.push(':');
                let plain = write(value, text);
                text.push(',');
                plain
            });
            text.push('}');
            all
        }
        Value::String(free) if free.chars().count() > SHORT_CHARS => false,
        Value::String(_) | Value::Bool(_) | Value::Null => {
            text.push_str(&value.to_string());
            true
        }
        Value::Number(value) => {
            let plain = value.to_string();
            text.push_str(&number::canonical(&plain).unwrap_or(plain));
            true
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Option<String> {
        canonical(&parse(text).unwrap()).map(|answer| answer.to_string())
    }

    #[test]
    fn the_field_with_the_answer_is_told_from_its_explanation() {
        for text in [
            r#"{"answer": "Blue", "why": "the sky is blue because of the scattering of light in its air, they say"}"#,
            r#"{"steps": [1, 2], "result": "blue."}"#,
            r#"{"colour": "blue"}"#,
            r#""Blue""#,
        ] {
            assert_eq!(of(text).as_deref(), Some("blue"), "{text}");
        }
        assert_eq!(of(r#"{"label": "x", "answer": "y"}"#).as_deref(), Some("y"), "the likelier name counts");
        assert_eq!(of(r#"{"answer": [1], "label": "x"}"#).as_deref(), Some("x"), "a list is no scalar");
        assert_eq!(of(r#"{"answer": true}"#).as_deref(), Some("true"));
        assert_eq!(of(r#"{"answer": null, "label": 3}"#).as_deref(), Some("null"));
    }

    #[test]
    fn objects_of_facts_are_equal_whatever_their_order_and_notation() {
        let one = of(r#"{"name": "Ann", "age": 7, "tags": ["a", {"x": 1.0, "b": null}]}"#).unwrap();
        let other = of(r#" {"tags":["a",{"b":null,"x":1}], "age": 7.0,"name":"Ann"}"#).unwrap();
        assert_eq!(one, other);
        assert_ne!(Some(one), of(r#"{"name": "Ann", "age": 8, "tags": ["a", {"x": 1.0, "b": null}]}"#));
        assert_ne!(of(r#"["1"]"#), of("[1]"), "a text is no number");
        assert_ne!(of(r#"["a", "b"]"#), of(r#"["a,b"]"#));
    }

    #[test]
    fn free_text_and_large_values_are_no_answer() {
        let text = |chars: usize| format!(r#"{{"name": "Ann", "life": "{}"}}"#, "x".repeat(chars));
        assert!(of(&text(SHORT_CHARS)).is_some() && of(&text(SHORT_CHARS + 1)).is_none());
        assert_eq!(of(&format!(r#"{{"answer": "{}"}}"#, "x".repeat(SHORT_CHARS + 1))), None);
        let list = |items: usize| format!("[{}]", vec!["1"; items].join(","));
        // Two bytes per item and two brackets.
        assert!(of(&list(CANONICAL_BYTES / 2 - 1)).is_some() && of(&list(CANONICAL_BYTES / 2)).is_none());
    }

    #[test]
    fn a_text_beyond_the_limits_is_not_parsed() {
        assert!(parse(&format!("[{}]", " ".repeat(JSON_BYTES - 2))).is_some());
        assert!(parse(&format!("[{}]", " ".repeat(JSON_BYTES - 1))).is_none());
        assert!(parse(&"[".repeat(10_000)).is_none());
    }
}
