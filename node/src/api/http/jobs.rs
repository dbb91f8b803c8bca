//! `/api/pangea/jobs` and `/api/pangea/events`: this node's jobs, as a list and as a stream of changes. This file only
//! reports.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use futures::stream;
use pangea_client::jobs::JobStatus;
use pangea_control::jobs::JobEvent;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, watch};

use super::App;

/// Silence after which a comment is sent, so that clients and proxies keep the stream open.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The routes of this file, each with the older alias beside it.
pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/api/pangea/jobs", get(list))
        .route("/api/jobs", get(list))
        .route("/api/pangea/events", get(events))
        .route("/api/events", get(events))
}

/// `/api/pangea/jobs`: the same as `pangea jobs --json`.
async fn list(State(app): State<App>) -> Json<Vec<JobStatus>> {
    Json(app.jobs.list())
}

/// `/api/pangea/events`: one server-sent event per change of a job, until the node has drained.
async fn events(State(app): State<App>) -> Response {
    let following = Following { events: app.jobs.follow(), drained: app.jobs.drained() };
    let body = stream::unfold(following, |mut following| async {
        let event = following.next().await?;
        Some((Ok::<Bytes, Infallible>(event.into()), following))
    });
    let headers = [("content-type", "text/event-stream; charset=utf-8"), ("cache-control", "no-store")];
    (headers, Body::from_stream(body)).into_response()
}

/// A client that follows job events.
struct Following {
    events: broadcast::Receiver<JobEvent>,
    drained: watch::Receiver<bool>,
}

impl Following {
    /// The next event, formatted; `None` once the node has drained and every event is sent.
    async fn next(&mut self) -> Option<String> {
        tokio::select! {
            biased;
            event = self.events.recv() => match event {
                Ok(event) => {
                    let job = serde_json::to_string(&crate::jobs::status(event.job())).ok()?;
                    Some(format!("event: {}\ndata: {job}\n\n", event.name()))
                }
                Err(RecvError::Lagged(missing)) => {
                    Some(format!("event: lagged\ndata: {{\"missing\": {missing}}}\n\n"))
                }
                Err(RecvError::Closed) => None,
            },
            _ = self.drained.wait_for(|drained| *drained) => None,
            () = tokio::time::sleep(KEEP_ALIVE) => Some(": keep-alive\n\n".to_owned()),
        }
    }
}
