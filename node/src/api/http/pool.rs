//! `/api/peers` and `/api/topology`: the peers that this node knows and the pool as it sees it. This file only reports.

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use pangea_client::{PeerStatus, Topology};

use super::App;
use super::error::ApiError;

/// The routes of this file.
pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/api/pangea/peers", get(peers))
        .route("/api/peers", get(peers))
        .route("/api/pangea/topology", get(topology))
        .route("/api/topology", get(topology))
}

/// `/api/peers`: the same as `pangea peers --json`.
async fn peers(State(app): State<App>) -> Result<Json<Vec<PeerStatus>>, ApiError> {
    let peers = app.fabric.peers().await?;
    Ok(Json(match &app.pool {
        Some(pool) => crate::pool::said::of_peers(peers, &pool.view().borrow()),
        None => peers,
    }))
}

/// `/api/topology`: the same as `pangea topology --json`.
async fn topology(State(app): State<App>) -> Json<Topology> {
    Json(app.pool.as_ref().map(|pool| crate::pool::topology::of(&pool.view().borrow())).unwrap_or_default())
}
