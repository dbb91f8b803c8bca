//! The JSON body of a request, read field by field, so that every failure names its field. This file knows no endpoint.

use std::cmp::Ordering;

use axum::body::{Body, Bytes};
use axum::http::StatusCode;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use pangea_client::ErrorKind;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::error::ApiError;
use super::limits::{BODY_BYTES, BODY_TIME, JSON_VALUES, PARSED_HERE_BYTES};

/// Fields of a request's body that are not read yet. A field that is `null` counts as absent.
pub(super) struct Fields(Map<String, Value>);

impl Fields {
    /// Reads a body to its end; the body must be one JSON object.
    pub(super) async fn read(body: Body) -> Result<Fields, ApiError> {
        Fields::of_body(&whole(body).await?).await
    }

    /// Parses a complete body, a long one on a thread of its own.
    pub(super) async fn of_body(bytes: &Bytes) -> Result<Fields, ApiError> {
        if bytes.len() <= PARSED_HERE_BYTES {
            return Fields::parse(bytes);
        }
        let bytes = bytes.clone();
        let parsed = tokio::task::spawn_blocking(move || Fields::parse(&bytes)).await;
        parsed.unwrap_or_else(|error| {
            Err(ApiError::new(ErrorKind::Internal, format!("parsing the body ended unexpectedly: {error}")))
        })
    }

    /// Parses a complete body.
    pub(super) fn parse(bytes: &[u8]) -> Result<Fields, ApiError> {
        if values_at_most(bytes) > JSON_VALUES {
            let message = format!("the body has more than {JSON_VALUES} JSON values");
            return Err(ApiError::new(ErrorKind::InvalidInput, message).status(StatusCode::PAYLOAD_TOO_LARGE));
        }
        // The parser refuses arrays and objects that are nested more than 127 deep.
        match serde_json::from_slice(bytes) {
            Ok(Value::Object(fields)) => Ok(Fields::of(fields)),
            Ok(_) => Err(ApiError::new(ErrorKind::InvalidInput, "the body must be a JSON object")),
            Err(error) => Err(ApiError::new(ErrorKind::InvalidInput, format!("the body is not JSON: {error}"))),
        }
    }

    /// The fields of an object inside a body.
    pub(super) fn of(mut fields: Map<String, Value>) -> Fields {
        fields.retain(|_, value| !value.is_null());
        Fields(fields)
    }

    /// Has a field read under another name.
    pub(super) fn rename(&mut self, field: &str, name: &str) {
        if let Some(value) = self.0.remove(field) {
            self.0.insert(name.to_owned(), value);
        }
    }

    /// A field that stays to be read.
    pub(super) fn peek(&self, field: &str) -> Option<&Value> {
        self.0.get(field)
    }

    /// An optional field.
    pub(super) fn optional<T: DeserializeOwned>(&mut self, field: &str) -> Result<Option<T>, ApiError> {
        let Some(value) = self.0.remove(field) else { return Ok(None) };
        match serde_json::from_value(value) {
            Ok(value) => Ok(Some(value)),
            Err(error) => Err(ApiError::field(field, format!("{field}: {error}"))),
        }
    }

    /// An optional number in single precision. A value beside a whole number stays on its side of it: a limit that it passes is
    /// passed.
    pub(super) fn number(&mut self, field: &str) -> Result<Option<f32>, ApiError> {
        Ok(self.optional(field)?.map(single))
    }

    /// A required field.
    pub(super) fn required<T: DeserializeOwned>(&mut self, field: &str) -> Result<T, ApiError> {
        self.optional(field)?.ok_or_else(|| ApiError::field(field, format!("{field} is missing")))
    }

    /// Refuses a field that this node does not implement, unless its value is one of `harmless`.
    pub(super) fn unsupported(&mut self, field: &str, harmless: &[Value]) -> Result<(), ApiError> {
        match self.0.remove(field) {
            Some(value) if !harmless.contains(&value) => {
                Err(ApiError::field(field, format!("{field} is not supported; leave it out"))
                    .code("unsupported_parameter"))
            }
            _ => Ok(()),
        }
    }
}

/// The number in single precision, on the same side of every whole number but 0.
fn single(value: f64) -> f32 {
    let near = value as f32;
    match value.partial_cmp(&f64::from(near)) {
        Some(Ordering::Greater) if near.fract() == 0.0 && near != 0.0 => near.next_up(),
        Some(Ordering::Less) if near.fract() == 0.0 && near != 0.0 => near.next_down(),
        _ => near,
    }
}

/// Reads a request's body to its end.
///
/// # Errors
/// `InvalidInput` for a body that is too large or too slow.
pub(super) async fn whole(body: Body) -> Result<Bytes, ApiError> {
    match tokio::time::timeout(BODY_TIME, Limited::new(body, BODY_BYTES).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let message = format!("the body is larger than {} MiB", BODY_BYTES >> 20);
            Err(ApiError::new(ErrorKind::InvalidInput, message).status(StatusCode::PAYLOAD_TOO_LARGE))
        }
        Ok(Err(error)) => Err(ApiError::new(ErrorKind::InvalidInput, format!("cannot read the body: {error}"))),
        Err(_) => {
            let message = format!("the body did not arrive within {} s", BODY_TIME.as_secs());
            Err(ApiError::new(ErrorKind::InvalidInput, message).status(StatusCode::REQUEST_TIMEOUT))
        }
    }
}

/// An upper bound of the values in a JSON text: each but the first follows one of these characters.
fn values_at_most(text: &[u8]) -> usize {
    let (mut count, mut in_string, mut escaped) = (1, false, false);
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b',' | b'[' | b'{' if !in_string => count += 1,
            _ => {}
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_on_their_side_of_a_limit() {
        for (text, number) in [
            ("0.8", 0.8),
            ("1", 1.0),
            ("1.0000000000000002", 1.0f32.next_up()),
            ("0.99999999999999989", 1.0f32.next_down()),
            ("-100.00000000000001", (-100.0f32).next_down()),
            ("1e-60", 0.0),
            ("1e60", f32::INFINITY),
        ] {
            let mut fields = Fields::parse(format!(r#"{{"top_p": {text}}}"#).as_bytes()).unwrap();
            assert_eq!(fields.number("top_p").unwrap(), Some(number), "{text}");
        }
    }

    #[test]
    fn an_error_names_its_field() {
        let mut fields = Fields::parse(br#"{"seed": "x", "n": null, "suffix": "s", "logit_bias": {}}"#).unwrap();
        let error = fields.optional::<u64>("seed").unwrap_err().body();
        assert_eq!(error["error"]["param"], "seed");
        assert_eq!(error["error"]["type"], "invalid_request_error");
        assert!(fields.optional::<u64>("n").unwrap().is_none());
        assert_eq!(fields.unsupported("suffix", &[]).unwrap_err().body()["error"]["code"], "unsupported_parameter");
        assert!(fields.unsupported("logit_bias", &[Value::Object(Map::new())]).is_ok());
        assert_eq!(fields.required::<String>("model").unwrap_err().body()["error"]["param"], "model");
        for text in ["", "[1]", "{", "7", "\u{feff}{}"] {
            assert!(Fields::parse(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn bodies_with_too_many_values_or_too_deep_ones_are_refused() {
        let list = |values: usize| format!("{{\"prompt\": [{}]}}", vec!["1"; values].join(","));
        // The object, the list, and its elements.
        assert!(Fields::parse(list(JSON_VALUES - 2).as_bytes()).is_ok());
        let refused = Fields::parse(list(JSON_VALUES - 1).as_bytes()).err().unwrap();
        assert!(refused.body().to_string().contains("more than"));
        let text = format!("{{\"prompt\": \"{}\\\"[\"}}", "[{,".repeat(JSON_VALUES));
        assert!(Fields::parse(text.as_bytes()).is_ok(), "what is in a text is no value");
        for depth in [100, 1_000_000] {
            let nested = format!("{{\"a\": {}{}}}", "[".repeat(depth), "]".repeat(depth));
            assert_eq!(Fields::parse(nested.as_bytes()).is_ok(), depth == 100);
        }
    }
}
