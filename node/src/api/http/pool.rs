//! `/api/peers` and `/api/topology`: whom this node knows, and the pool as it sees it. It only reports.

use axum::Json;
use axum::extract::State;
use pangea_client::{PeerStatus, Topology};

use super::App;
use super::error::ApiError;

/// `/api/peers`: as `pangea peers --json`.
pub(super) async fn peers(State(app): State<App>) -> Result<Json<Vec<PeerStatus>>, ApiError> {
    Ok(Json(app.fabric.peers().await?))
}

/// `/api/topology`: as `pangea topology --json`.
pub(super) async fn topology(State(app): State<App>) -> Json<Topology> {
    Json(app.pool.as_ref().map(|pool| crate::pool::topology::of(&pool.view().borrow())).unwrap_or_default())
}
