//! Which pages of other origins a browser lets use this API (`--cors`): answers to preflights, and the headers of all other
//! answers. Whether a request may be made at all is the guard's to judge.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

/// Seconds for which a browser may remember the answer to a preflight: one day, which is more than any of them does.
const MAX_AGE: HeaderValue = HeaderValue::from_static("86400");

/// Methods of the API's routes.
const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, POST, OPTIONS");

/// Headers of answers that pages may read besides the usual ones.
const EXPOSED: HeaderValue = HeaderValue::from_static("retry-after");

/// A browser asks whether a page may reach a host of a private network.
const PRIVATE_ASKED: HeaderName = HeaderName::from_static("access-control-request-private-network");
const PRIVATE_ALLOWED: HeaderName = HeaderName::from_static("access-control-allow-private-network");

/// The origins whose pages may use the API.
#[derive(Clone, Debug, Default)]
pub(super) struct Cors {
    origins: Arc<[String]>,
}

impl Cors {
    /// Pages of these origins; `*` is every origin.
    pub(super) fn new(origins: &[String]) -> Cors {
        Cors { origins: origins.iter().map(|origin| origin.to_ascii_lowercase()).collect() }
    }

    /// Whether pages of `origin` may use the API.
    pub(super) fn allows(&self, origin: &str) -> bool {
        self.origins.iter().any(|allowed| allowed == "*" || allowed.eq_ignore_ascii_case(origin))
    }

    /// Middleware.
    pub(super) async fn answer(State(cors): State<Cors>, request: Request, next: Next) -> Response {
        let origin = request.headers().get(header::ORIGIN).cloned();
        let Some(origin) = origin.filter(|origin| origin.to_str().is_ok_and(|origin| cors.allows(origin))) else {
            return next.run(request).await;
        };
        let is_preflight = request.method() == Method::OPTIONS
            && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
        let mut response = if is_preflight { preflight(request.headers()) } else { next.run(request).await };
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
        headers.append(header::VARY, HeaderValue::from_static("origin"));
        response
    }
}

/// The answer to a preflight: pages may send every header, because none of them gives more rights than the key that they need
/// anyway.
fn preflight(asked: &HeaderMap) -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
    if let Some(wanted) = asked.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, wanted.clone());
    }
    if asked.contains_key(PRIVATE_ASKED) {
        headers.insert(PRIVATE_ALLOWED, HeaderValue::from_static("true"));
    }
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the browser clients of today send, besides what each of them names itself: a client that traces its requests, and the
    /// packages `openai` and `@anthropic-ai/sdk`.
    const SENT_BY_CLIENTS: [&str; 17] = [
        "traceparent",
        "tracestate",
        "baggage",
        "authorization",
        "content-type",
        "openai-organization",
        "openai-project",
        "x-api-key",
        "anthropic-version",
        "anthropic-dangerous-direct-browser-access",
        "x-stainless-arch",
        "x-stainless-lang",
        "x-stainless-os",
        "x-stainless-package-version",
        "x-stainless-retry-count",
        "x-stainless-runtime",
        "x-stainless-timeout",
    ];

    #[test]
    fn pages_may_send_what_clients_and_traces_send() {
        let wanted = HeaderValue::from_str(&SENT_BY_CLIENTS.join(",")).unwrap();
        let asked = HeaderMap::from_iter([(header::ACCESS_CONTROL_REQUEST_HEADERS, wanted)]);
        let answer = preflight(&asked);
        let allowed = answer.headers()[header::ACCESS_CONTROL_ALLOW_HEADERS].to_str().unwrap();
        let allowed: Vec<&str> = allowed.split(',').map(str::trim).collect();
        for name in SENT_BY_CLIENTS {
            assert!(allowed.contains(&name), "{name} in {allowed:?}");
        }
    }

    #[test]
    fn only_pages_of_the_named_origins_are_allowed() {
        let cors = Cors::new(&["https://app.example".to_owned(), "http://localhost:3000".to_owned()]);
        assert!(cors.allows("https://app.example") && cors.allows("HTTPS://APP.example"));
        for other in ["http://app.example", "https://app.example:8443", "https://app.example.evil", "null", ""] {
            assert!(!cors.allows(other), "{other}");
        }
        assert!(Cors::new(&["*".to_owned()]).allows("https://any.example"));
        assert!(!Cors::default().allows("http://localhost:3000"));
    }
}
