//! Who may use the HTTP API: checks a request's Host, Origin and API key. A browser on this host can be made to send
//! requests here (DNS rebinding, foreign pages); all of those are refused.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use pangea_client::ErrorKind;

use super::error::ApiError;

/// Checks that every request must pass.
pub(super) struct Guard {
    /// Accepted host names besides IP addresses and `localhost`.
    names: Vec<String>,
    /// Digest of the API key, so that a comparison takes constant time.
    key: Option<blake3::Hash>,
}

impl Guard {
    /// Accepts this host name; with a key, only requests that carry it.
    pub(super) fn new(host: &str, key: Option<&str>) -> Guard {
        let host = host.to_ascii_lowercase();
        let names = vec![format!("{host}.local"), host];
        Guard { names, key: key.map(|key| blake3::hash(key.as_bytes())) }
    }

    /// Middleware that passes a request on or refuses it.
    pub(super) async fn check(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
        match guard.judge(&request) {
            Ok(()) => next.run(request).await,
            Err(error) => error.into_response(),
        }
    }

    fn judge<B>(&self, request: &axum::http::Request<B>) -> Result<(), ApiError> {
        let forbidden = |message: String| ApiError::new(ErrorKind::Unauthorized, message).status(StatusCode::FORBIDDEN);
        let text = |name| request.headers().get(name).map(|value| value.to_str().unwrap_or_default());
        let host = request.uri().authority().map(|authority| authority.as_str()).or_else(|| text(header::HOST));
        let Some(host) = host else {
            return Err(ApiError::new(ErrorKind::InvalidInput, "the request has no Host header"));
        };
        if !self.is_ours(host_of(host)) {
            return Err(forbidden(format!(
                "this node does not answer to the name {host:?}; use an address, localhost or its own name"
            )));
        }
        if let Some(origin) = text(header::ORIGIN) {
            let from = origin.split_once("://").map(|(_, authority)| authority);
            if !from.is_some_and(|from| from == host || is_loopback(host_of(from))) {
                return Err(forbidden(format!("web pages from {origin:?} may not use this node")));
            }
        }
        let open = matches!(request.uri().path(), "/healthz" | "/readyz");
        let shown = text(header::AUTHORIZATION).and_then(|value| {
            let (scheme, key) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then_some(key.trim())
        });
        match self.key {
            Some(key) if !open && shown.is_none_or(|shown| blake3::hash(shown.as_bytes()) != key) => {
                let message = match shown {
                    Some(_) => "the API key is wrong",
                    None => "this node requires an API key; send it as `Authorization: Bearer KEY`",
                };
                Err(ApiError::new(ErrorKind::Unauthorized, message).code("invalid_api_key"))
            }
            _ => Ok(()),
        }
    }

    /// An IP address cannot be rebound by DNS; a name must be known as this host's.
    fn is_ours(&self, host: &str) -> bool {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        is_loopback(&host) || address(&host).is_some() || self.names.contains(&host)
    }
}

/// The host without its port.
fn host_of(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    }
}

fn address(host: &str) -> Option<IpAddr> {
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || address(host).is_some_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(guard: &Guard, headers: &[(&str, &str)]) -> u16 {
        let mut request = axum::http::Request::builder().uri("/v1/models");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        match guard.judge(&request.body(()).unwrap()) {
            Ok(()) => 200,
            Err(error) => error.into_response().status().as_u16(),
        }
    }

    #[test]
    fn only_own_host_names_and_own_pages_are_accepted() {
        let guard = Guard::new("Mac2", None);
        for (host, status) in [
            ("127.0.0.1:52415", 200),
            ("localhost:52415", 200),
            ("LOCALHOST", 200),
            ("[::1]:52415", 200),
            ("192.168.1.20:52415", 200),
            ("mac2:52415", 200),
            ("mac2.local.", 200),
            ("evil.example:52415", 403),
            ("localhost.evil.example", 403),
            ("127.0.0.1.evil.example", 403),
            ("", 403),
        ] {
            assert_eq!(judged(&guard, &[("host", host)]), status, "{host}");
        }
        assert_eq!(judged(&guard, &[]), 400);
        let host = ("host", "192.168.1.20:52415");
        for (origin, status) in [
            ("http://192.168.1.20:52415", 200),
            ("http://localhost:3000", 200),
            ("http://127.0.0.1:52415", 200),
            ("https://evil.example", 403),
            ("http://192.168.1.20.evil.example", 403),
            ("http://192.168.1.66", 403),
            ("null", 403),
        ] {
            assert_eq!(judged(&guard, &[host, ("origin", origin)]), status, "{origin}");
        }
    }

    #[test]
    fn a_configured_key_is_required() {
        let guard = Guard::new("mac2", Some("sesame-open"));
        let host = ("host", "localhost");
        assert_eq!(judged(&guard, &[host]), 401);
        assert_eq!(judged(&guard, &[host, ("authorization", "Bearer sesame")]), 401);
        assert_eq!(judged(&guard, &[host, ("authorization", "Basic sesame-open")]), 401);
        assert_eq!(judged(&guard, &[host, ("authorization", "bearer sesame-open")]), 200);
    }
}
