//! The span of a request that makes this node or others work, from its head to the end of the answer's body. A client continues
//! its own trace with the header `traceparent` (W3C Trace Context); one that is malformed is ignored.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{MatchedPath, Request};
use axum::http::HeaderMap;
use axum::middleware::Next;
use axum::response::Response;
use hyper::body::{Frame, SizeHint};
use tracing::{Instrument, Span};

use crate::traces::{self, entrance};
use crate::wire::TraceParent;

/// Middleware in front of routes that work, behind everything that may refuse a client.
pub(super) async fn trace(request: Request, next: Next) -> Response {
    let span = entrance!("http", otel.name = tracing::field::Empty, otel.kind = "server");
    if span.is_disabled() {
        return next.run(request).await;
    }
    traces::follow(&span, parent(request.headers()));
    let route = request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str);
    traces::named(&span, format!("{} {route}", request.method()));
    traces::set(&span, "http.request.method", request.method().as_str().to_owned());
    traces::set(&span, "http.route", route.to_owned());
    let response = next.run(request).instrument(span.clone()).await;
    let status = response.status();
    traces::set(&span, "http.response.status_code", i64::from(status.as_u16()));
    if status.is_server_error() {
        traces::failed_with(&span, status.as_u16().to_string());
    }
    response.map(|body| Body::new(Traced::new(span, body)))
}

/// What a client asks to be a part of; several contexts are none.
fn parent(headers: &HeaderMap) -> Option<TraceParent> {
    let mut given = headers.get_all(traces::HEADER).iter();
    let only = given.next().filter(|_| given.next().is_none())?;
    TraceParent::parse(only.to_str().ok()?)
}

/// The body of an answer, which ends the span of its request when it is sent or nobody wants it any more.
pub(super) struct Traced {
    body: Body,
    /// Dropped after the body, and with it after everything that computes the answer.
    _ending: Ending,
}

/// A span that ends when this is dropped.
struct Ending(Span);

impl Traced {
    pub(super) fn new(span: Span, body: Body) -> Traced {
        Traced { body, _ending: Ending(span) }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        traces::end(&self.0);
    }
}

impl HttpBody for Traced {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_gives_one_well_formed_context_or_none() {
        let example = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let of = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(traces::HEADER, value.parse().unwrap());
            }
            parent(&headers).map(|parent| parent.to_string())
        };
        assert_eq!(of(&[example]).as_deref(), Some(example));
        for values in [&[][..], &["anything"], &[example, example]] {
            assert_eq!(of(values), None, "{values:?}");
        }
    }
}
