//! `/api/peers`, `/api/topology`, `/api/pangea/pool` and `/api/pangea/plan/{model}`: the peers that this node knows, the pool as it sees it,
//! and where a model would be placed in it. This file only reports.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::routing::get;
use axum::{Json, Router};
use pangea_client::{ErrorKind, ModelPlan, PeerStatus, Topology};

use super::App;
use super::error::ApiError;
use crate::placement::{plan_report, view_with_file};
use crate::pool::Pool;
use crate::pool::overview::{self, Overview};

/// The routes of this file.
pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/api/pangea/peers", get(peers))
        .route("/api/peers", get(peers))
        .route("/api/pangea/topology", get(topology))
        .route("/api/topology", get(topology))
        .route("/api/pangea/pool", get(whole))
        .route("/api/pangea/plan/{model}", get(plan))
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
    Json(app.pool.as_ref().map(Pool::topology).unwrap_or_default())
}

fn no_pool() -> ApiError {
    ApiError::new(ErrorKind::Unavailable, "this node runs without a network and belongs to no pool")
}

/// `/api/pangea/pool`: every node with what it holds, the links, the placements, and who is missing.
async fn whole(State(app): State<App>) -> Result<Json<Overview>, ApiError> {
    let pool = app.pool.as_ref().ok_or_else(no_pool)?;
    let peers = app.fabric.peers().await?;
    let view = Arc::clone(&pool.view().borrow());
    let traffic = |peer: &_| app.members.as_ref().map_or((0, 0), |members| members.traffic(peer));
    Ok(Json(overview::of(&view, peers, traffic, |peer| pool.traffic_rate(peer))))
}

/// `/api/pangea/plan/{model}`: the same as `pangea models plan --json`; of a model that nobody serves and that is on this machine, where it
/// would be placed if this node served it.
async fn plan(State(app): State<App>, Path(model): Path<String>) -> Result<Json<ModelPlan>, ApiError> {
    let view = Arc::clone(&app.pool.as_ref().ok_or_else(no_pool)?.view().borrow());
    let not_served = match pangea_control::placement::preview(&view, &model) {
        Ok(preview) => return Ok(Json(plan_report(preview))),
        Err(error) if error.kind() == ErrorKind::NotFound => app.served.not_planned(&model, error),
        Err(error) => return Err(error.into()),
    };
    // A path would tell whether there is such a file on this machine.
    if crate::models::is_path(&model) {
        return Err(not_served.into());
    }
    let (folder, name) = (app.models.clone(), model.clone());
    let added = tokio::task::spawn_blocking(move || view_with_file(&view, &folder, &name)).await;
    let added =
        added.map_err(|error| ApiError::new(ErrorKind::Internal, format!("reading the model ended: {error}")))?;
    match added? {
        Some(view) => Ok(Json(plan_report(pangea_control::placement::preview(&view, &model)?))),
        None => Err(not_served.into()),
    }
}
