//! The form of a request's body: JSON, uncompressed; matrices come as they are. What says that it is something else is refused before it is read, because
//! reading it as JSON would fail with a message that hides the reason.

use axum::extract::Request;
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use pangea_client::ErrorKind;

use super::error::ApiError;
use crate::wire::field::{printable, truncated};

/// Bytes of a header's value that the error repeats.
const SAID_BYTES_MAX: usize = 100;

/// The form of matrices. A page of another origin cannot send it without being asked for a preflight.
pub(super) const OCTETS: &str = "application/octet-stream";

/// The only path to which they are sent.
const MATRICES: &str = "/api/pangea/products";

/// Refuses bodies of other forms.
pub(super) async fn check(request: Request, next: Next) -> Response {
    // What a request without a body says of one matters to nobody.
    let brings_body = matches!(*request.method(), Method::POST | Method::PUT | Method::PATCH);
    let is_matrix = request.uri().path() == MATRICES
        && request.headers().get(CONTENT_TYPE).is_some_and(|given| given.as_bytes() == OCTETS.as_bytes())
        && !request.headers().contains_key(CONTENT_ENCODING);
    if is_matrix {
        return next.run(request).await;
    }
    match refusal(request.headers()).filter(|_| brings_body) {
        Some(message) => {
            ApiError::new(ErrorKind::InvalidInput, message).status(StatusCode::UNSUPPORTED_MEDIA_TYPE).into_response()
        }
        None => next.run(request).await,
    }
}

/// Why a body with these headers is not read.
fn refusal(headers: &HeaderMap) -> Option<String> {
    let encoding = value(headers, &CONTENT_ENCODING);
    if encoding.as_ref().is_some_and(|encoding| !encoding.is_empty() && !encoding.eq_ignore_ascii_case("identity")) {
        return Some(format!("the body is encoded with {}; send it uncompressed", said(&encoding?)));
    }
    let given = value(headers, &CONTENT_TYPE)?;
    let essence = given.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let is_json = match essence.as_str() {
        // `curl -d` and the simple requests of pages say these of JSON as well.
        "" | "application/json" | "application/x-www-form-urlencoded" | "text/plain" | "text/json" => true,
        other => other.starts_with("application/") && other.ends_with("+json"),
    };
    (!is_json).then(|| format!("the body is {}; send JSON with \"Content-Type: application/json\"", said(&given)))
}

/// A header's value; bytes that are no text are shown as such.
fn value(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).trim().to_owned())
}

fn said(value: &str) -> String {
    printable(truncated(value, SAID_BYTES_MAX).to_owned())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn refused(name: HeaderName, value: &[u8]) -> Option<String> {
        refusal(&[(name, HeaderValue::from_bytes(value).unwrap())].into_iter().collect())
    }

    #[test]
    fn json_is_read_by_any_of_its_names_and_other_forms_are_refused() {
        assert_eq!(refusal(&HeaderMap::new()), None);
        for json in ["application/json", "Application/JSON; charset=utf-8", "application/x-www-form-urlencoded", ""] {
            assert_eq!(refused(CONTENT_TYPE, json.as_bytes()), None, "{json}");
        }
        assert_eq!(refused(CONTENT_TYPE, b"application/vnd.api+json"), None);
        for other in ["multipart/form-data; boundary=x", "application/xml", "audio/wav", "json", "image/svg+json"] {
            assert!(refused(CONTENT_TYPE, other.as_bytes()).is_some_and(|why| why.contains(other)), "{other}");
        }
        assert!(refused(CONTENT_TYPE, &[0xff; 500]).is_some_and(|why| why.len() < 500));
        assert_eq!(refused(CONTENT_ENCODING, b"identity"), None);
        let compressed = refused(CONTENT_ENCODING, b"gzip").unwrap();
        assert_eq!(compressed, "the body is encoded with gzip; send it uncompressed");
    }
}
