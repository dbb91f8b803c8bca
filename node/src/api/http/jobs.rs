//! `/api/pangea/jobs`: what was asked of this node. It only reports.

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use pangea_client::jobs::JobStatus;

use super::App;

/// The routes of this file, each with the older alias beside it.
pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/api/pangea/jobs", get(list))
        .route("/api/jobs", get(list))
}

/// `/api/pangea/jobs`: as `pangea jobs --json`.
async fn list(State(app): State<App>) -> Json<Vec<JobStatus>> {
    Json(app.jobs.list())
}
