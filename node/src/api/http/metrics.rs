//! `/metrics`: everything that the node counts, in the text form that the client prefers; and the counters of this API's own
//! requests. Nothing here adds up.

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

/// What this API counts.
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
    /// Counted for `observer`.
    pub(super) fn new(observer: &Observer) -> Metrics {
        Metrics {
            requests: observer.counters("http_requests", "Answered requests"),
            head_seconds: observer.durations("http_head", "From a request to the head of its answer"),
        }
    }
}

/// Everything that is counted.
async fn show(State(app): State<App>, headers: HeaderMap) -> Result<Response, ApiError> {
    let format = Format::accepted(headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()));
    let text = app
        .observer
        .text(format)
        .map_err(|error| ApiError::new(ErrorKind::Internal, format!("the metrics cannot be written: {error}")))?;
    let mut response = text.into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
    Ok(response)
}

/// Counts a request; what is asked for under no known path counts as one path.
pub(super) async fn count(State(app): State<App>, request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str).to_owned();
    let since = Instant::now();
    let response = next.run(request).await;
    app.metrics.head_seconds.get_or_create(&PathLabels { path: path.clone() }).observe(since.elapsed().as_secs_f64());
    app.metrics.requests.get_or_create(&RequestLabels { path, status: response.status().as_u16() }).inc();
    response
}
