//! Who may use the HTTP API: checks a request's Host, Origin and API key, and how often its client asks. A browser on this
//! host can be made to send requests here (DNS rebinding, foreign pages); all of those are refused. A request that passes
//! keeps its connection's place until it is answered.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::http::{HeaderName, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::body::{Frame, SizeHint};
use pangea_client::ErrorKind;
use pangea_control::net::callers::{Origin, Standing};
use pangea_control::net::rate::{Rate, RateLimiter};

use super::console;
use super::cors::Cors;
use super::error::ApiError;
use super::key_holder::{KeyHolder, Keys};
use crate::api_keys::ApiKeys;
use crate::clock;
use crate::net::Caller;

/// Header with the key of Anthropic's clients.
const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Checks that every request must pass.
pub(super) struct Guard {
    /// Accepted host names besides IP addresses and `localhost`. Anyone on the local network can make its names lead here, so
    /// that there are some only where the API is offered to that network.
    names: Vec<String>,
    /// Digest of the owner's API key, so that a comparison takes constant time.
    key: Option<blake3::Hash>,
    /// Keys that the owner gave to others.
    keys: Keys,
    /// Pages of other origins that may use the API.
    cors: Cors,
    /// Requests of each client; `None` without a limit.
    rate: Option<Mutex<RateLimiter<Origin>>>,
}

/// Whom a guard lets pass.
pub(super) struct Policy<'a> {
    /// Name of this host.
    pub(super) host: &'a str,
    /// Whether other hosts are to reach the API.
    pub(super) is_offered: bool,
    /// Key of the owner.
    pub(super) key: Option<&'a str>,
    /// Keys that the owner gave to others.
    pub(super) keys: ApiKeys,
    /// Pages of other origins that may use the API.
    pub(super) cors: Cors,
    /// Requests of one client.
    pub(super) rate: Option<Rate>,
}

impl Guard {
    /// A guard that follows `policy`.
    pub(super) fn new(policy: &Policy<'_>) -> Guard {
        let host = policy.host.to_ascii_lowercase();
        let names = if policy.is_offered { vec![format!("{host}.local"), host] } else { Vec::new() };
        Guard {
            names,
            key: policy.key.map(|key| blake3::hash(key.as_bytes())),
            keys: Keys::new(policy.keys.clone()),
            cors: policy.cors.clone(),
            rate: policy.rate.map(|rate| Mutex::new(RateLimiter::new(rate))),
        }
    }

    /// Middleware that passes a request on or refuses it.
    pub(super) async fn check(State(guard): State<Arc<Guard>>, mut request: Request, next: Next) -> Response {
        let caller = request.extensions_mut().remove::<Arc<Caller>>();
        let passed = guard.judge(&request).and_then(|(proven, holder)| {
            guard.count(caller.as_ref().map_or(Origin::LOCAL, |caller| caller.origin()))?;
            // Answers are what is asked with POST; who only looks uses nothing.
            if request.method() == Method::POST {
                holder.ask()?;
            }
            request.extensions_mut().insert(holder);
            Ok(proven)
        });
        match (passed, caller) {
            (Ok(Proven(true)), Some(caller)) => {
                caller.stands(Standing::Busy);
                let answering = Answering(caller);
                next.run(request).await.map(|body| Body::new(Answer { body, _answering: answering }))
            }
            (Ok(_), _) => next.run(request).await,
            (Err(error), _) => error.into_response(),
        }
    }

    /// Counts a request of the client at `origin`.
    ///
    /// # Errors
    /// `Overloaded` for one too many, with the time after which the client may ask again.
    fn count(&self, origin: Origin) -> Result<(), ApiError> {
        let Some(rate) = &self.rate else { return Ok(()) };
        let asked = rate.lock().unwrap_or_else(PoisonError::into_inner).ask(&origin, clock::now());
        asked.map_err(|again: Duration| {
            let message = "this client sends more requests than this node takes from one; see --client-rate";
            ApiError::new(ErrorKind::Overloaded, message).retry_after(again)
        })
    }

    fn judge<B>(&self, request: &axum::http::Request<B>) -> Result<(Proven, KeyHolder), ApiError> {
        let forbidden = |message: String| ApiError::new(ErrorKind::Unauthorized, message).status(StatusCode::FORBIDDEN);
        let text = |name| request.headers().get(name).map(|value| value.to_str().unwrap_or_default());
        let host = request.uri().authority().map(|authority| authority.as_str()).or_else(|| text(header::HOST));
        let Some(host) = host else {
            return Err(ApiError::new(ErrorKind::InvalidInput, "the request has no Host header"));
        };
        if !self.is_ours(host_of(host)) {
            return Err(forbidden(format!(
                "this node does not answer to the name {host:?}; use an address or localhost (its own name is for nodes \
                 that are started with --bind lan)"
            )));
        }
        if let Some(origin) = text(header::ORIGIN) {
            let from = origin.split_once("://").map(|(_, authority)| authority);
            let is_ours = from.is_some_and(|from| from == host || is_loopback(host_of(from)));
            if !is_ours && !self.cors.allows(origin) {
                return Err(forbidden(format!("web pages from {origin:?} may not use this node; see --cors")));
            }
        }
        let path = request.uri().path();
        // The console's files are those of every node; it asks for the key itself.
        let open = matches!(path, "/healthz" | "/readyz") || console::is_file(path);
        let shown = text(header::AUTHORIZATION).and_then(|value| {
            let (scheme, key) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then_some(key.trim())
        });
        // Anthropic's clients have a header of their own.
        let shown = shown.or_else(|| text(X_API_KEY));
        let required = self.key.is_some() || self.keys.required();
        if open || !required {
            return Ok((Proven(!required), KeyHolder::unlimited()));
        }
        let holder = shown.and_then(|shown| {
            let is_owner = self.key.is_some_and(|key| blake3::hash(shown.as_bytes()) == key);
            if is_owner { Some(KeyHolder::unlimited()) } else { self.keys.holder(shown) }
        });
        let message = match shown {
            Some(_) => "the API key is wrong",
            None => "this node requires an API key; send it as `Authorization: Bearer KEY`",
        };
        let refused = || ApiError::new(ErrorKind::Unauthorized, message).code("invalid_api_key");
        Ok((Proven(true), holder.ok_or_else(refused)?))
    }

    /// An IP address cannot be rebound by DNS; a name must be known as this host's.
    fn is_ours(&self, host: &str) -> bool {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        is_loopback(&host) || address(&host).is_some() || self.names.contains(&host)
    }
}

/// Whether a request has shown that its client may call; anyone may ask whether the node is well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Proven(bool);

/// A connection one of whose requests is being answered.
struct Answering(Arc<Caller>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.stands(Standing::Idle);
    }
}

/// An answer that keeps its connection's place to its end.
struct Answer {
    body: Body,
    _answering: Answering,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
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

    /// A guard of a node without keys for others.
    fn guarding(is_offered: bool, key: Option<&str>, rate: Option<Rate>) -> Guard {
        let keys = ApiKeys::of(std::path::Path::new("/nowhere"));
        let cors = Cors::new(&["https://app.example".to_owned()]);
        Guard::new(&Policy { host: "Mac2", is_offered, key, keys, cors, rate })
    }

    fn guard(is_offered: bool, key: Option<&str>) -> Guard {
        guarding(is_offered, key, None)
    }

    fn judged(guard: &Guard, headers: &[(&str, &str)]) -> u16 {
        let mut request = axum::http::Request::builder().uri("/v1/models");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        match guard.judge(&request.body(()).unwrap()) {
            Ok(_) => 200,
            Err(error) => error.into_response().status().as_u16(),
        }
    }

    #[test]
    fn only_own_host_names_and_own_pages_are_accepted() {
        let here = guard(false, None);
        for (host, status) in [("mac2:52415", 403), ("mac2.local", 403), ("localhost", 200), ("192.168.1.20", 200)] {
            assert_eq!(judged(&here, &[("host", host)]), status, "{host}");
        }
        let guard = guard(true, None);
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
            ("https://app.example", 200),
            ("http://192.168.1.20.evil.example", 403),
            ("http://192.168.1.66", 403),
            ("null", 403),
        ] {
            assert_eq!(judged(&guard, &[host, ("origin", origin)]), status, "{origin}");
        }
    }

    #[test]
    fn a_configured_key_is_required() {
        let guard = guard(false, Some("sesame-open"));
        let host = ("host", "localhost");
        assert_eq!(judged(&guard, &[host]), 401);
        assert_eq!(judged(&guard, &[host, ("authorization", "Bearer sesame")]), 401);
        assert_eq!(judged(&guard, &[host, ("authorization", "Basic sesame-open")]), 401);
        assert_eq!(judged(&guard, &[host, ("authorization", "bearer sesame-open")]), 200);
        assert_eq!(judged(&guard, &[host, ("x-api-key", "sesame-open")]), 200);
        assert_eq!(judged(&guard, &[host, ("x-api-key", "sesame")]), 401);
    }

    #[test]
    fn a_client_beyond_its_rate_is_told_when_to_come_again() {
        let rate = Some(Rate { per_second: 0.5, burst: 2.0 });
        let guard = guarding(false, None, rate);
        let other = Origin::of("10.0.0.1".parse().unwrap());
        assert!(guard.count(other).is_ok() && guard.count(other).is_ok());
        let refused = guard.count(other).unwrap_err().into_response();
        assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(refused.headers()[header::RETRY_AFTER], "2");
        assert!(guard.count(Origin::LOCAL).is_ok());
    }
}
