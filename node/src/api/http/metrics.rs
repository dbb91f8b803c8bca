//! `/metrics`: all of the node's metrics in the text format that the client prefers, and the counters of the HTTP API's own
//! requests. This file aggregates nothing.

use std::time::Instant;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use pangea_client::ErrorKind;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;

use super::App;
use super::error::ApiError;
use crate::observe::{Format, Observer};

/// The routes of this file.
pub(super) fn routes() -> Router<App> {
    Router::new().route("/metrics", get(show))
}

/// Metrics of the HTTP API itself.
pub(super) struct Metrics {
    requests: Family<RequestLabels, Counter>,
    head_seconds: Family<PathLabels, Histogram>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    path: String,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PathLabels {
    path: String,
}

impl Metrics {
    /// Registers the metrics with `observer`.
    pub(super) fn new(observer: &Observer) -> Metrics {
        Metrics {
            requests: observer.counters("http_requests", "Answered requests", []),
            head_seconds: observer.durations("http_head", "Time from a request to the head of its response"),
        }
    }
}

/// Writes every metric of the node.
async fn show(State(app): State<App>, headers: HeaderMap) -> Result<Response, ApiError> {
    let format = Format::accepted(headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()));
    let text = app
        .observer
        .text(format)
        .map_err(|error| ApiError::new(ErrorKind::Internal, format!("cannot write the metrics: {error}")))?;
    let mut response = text.into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
    Ok(response)
}

/// Counts a request; all unknown paths count as one.
pub(super) async fn count(State(app): State<App>, request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str).to_owned();
    let since = Instant::now();
    let response = next.run(request).await;
    app.metrics.head_seconds.get_or_create(&PathLabels { path: path.clone() }).observe(since.elapsed().as_secs_f64());
    app.metrics.requests.get_or_create(&RequestLabels { path, status: response.status().as_u16() }).inc();
    response
}
