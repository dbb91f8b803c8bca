//! Stored receipts: `/api/receipts`, latest first, and `/api/receipts/{id}`. The folder is read on a blocking thread,
//! never on the threads that serve.

use axum::extract::{Path, State};
use axum::routing::get;
use axum::{Json, Router};
use pangea_client::ErrorKind;
use serde_json::{Value, json};

use super::App;
use super::error::ApiError;
use crate::trust::{Receipt, ReceiptStore, Summary};

/// The routes of this file.
pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/api/pangea/receipts", get(list))
        .route("/api/receipts", get(list))
        .route("/api/pangea/receipts/{id}", get(one))
        .route("/api/receipts/{id}", get(one))
}

/// Maximum receipts of one list: what a page shows.
const LIST_MAX: usize = 100;

/// `/api/receipts`.
async fn list(State(app): State<App>) -> Result<Json<Value>, ApiError> {
    let receipts: Vec<Summary> = read(&app, |store| store.list(LIST_MAX)).await?;
    Ok(Json(json!({"receipts": receipts})))
}

/// `/api/receipts/{id}`.
async fn one(State(app): State<App>, Path(id): Path<String>) -> Result<Json<Receipt>, ApiError> {
    read(&app, move |store| store.get(&id)).await.map(Json)
}

async fn read<T: Send + 'static>(
    app: &App,
    what: impl FnOnce(ReceiptStore) -> pangea_client::Result<T> + Send + 'static,
) -> Result<T, ApiError> {
    let store = app.receipts.clone();
    let read = tokio::task::spawn_blocking(move || what(store)).await;
    let read = read.map_err(|error| ApiError::new(ErrorKind::Internal, format!("reading receipts failed: {error}")))?;
    Ok(read?)
}
