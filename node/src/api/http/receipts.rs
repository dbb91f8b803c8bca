//! Stored receipts: `/api/receipts`, latest first, `/api/receipts/{id}`, and `/api/pangea/receipts/{id}/audit`, which has one
//! computed again. The folder is read on a blocking thread, never on the threads that serve.

use axum::extract::{Path, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use pangea_client::{Error, ErrorKind, Result};
use serde_json::{Value, json};

use super::App;
use super::error::ApiError;
use super::key_holder::KeyHolder;
use crate::trust::{Receipt, ReceiptStore, Summary};

/// The routes of this file.
pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/api/pangea/receipts", get(list))
        .route("/api/receipts", get(list))
        .route("/api/pangea/receipts/{id}", get(one))
        .route("/api/receipts/{id}", get(one))
        .route("/api/pangea/receipts/{id}/audit", post(audit))
}

/// Maximum receipts of one list: what a page shows.
const LIST_MAX: usize = 100;

/// `/api/receipts`.
async fn list(State(app): State<App>) -> std::result::Result<Json<Value>, ApiError> {
    let receipts: Vec<Summary> = read(&app, |store| store.list(LIST_MAX)).await?;
    Ok(Json(json!({"receipts": receipts})))
}

/// `/api/receipts/{id}`.
async fn one(State(app): State<App>, Path(id): Path<String>) -> std::result::Result<Json<Receipt>, ApiError> {
    stored(&app, id).await.map(Json)
}

/// `/api/pangea/receipts/{id}/audit`: computes the answer again with the model's weights, compares every stage with what it signed,
/// and stores what was found with the receipt. Answers once that is done.
async fn audit(
    State(app): State<App>,
    holder: KeyHolder,
    Path(id): Path<String>,
) -> std::result::Result<Json<Value>, ApiError> {
    holder.check_owner()?;
    let none = || ApiError::new(ErrorKind::Unavailable, "this node runs without a network and audits nothing");
    let auditor = app.auditor.as_ref().ok_or_else(none)?;
    let receipt = stored(&app, id).await?;
    let ended =
        |_| ApiError::new(ErrorKind::Internal, "the audit ended unexpectedly; the answer counts as not checked");
    let audited = auditor.audit(receipt, true, false, tracing::Span::none()).await.map_err(ended)??;
    let wrong: Vec<String> = audited.wrong.iter().map(ToString::to_string).collect();
    Ok(Json(json!({"receipt": audited.receipt, "wrong": wrong})))
}

async fn stored(app: &App, id: String) -> std::result::Result<Receipt, ApiError> {
    let none = format!("no receipt {id:?} on this node; /api/pangea/receipts lists all");
    let read = read(app, move |store| store.get(&id)).await;
    read.map_err(|error| match error.kind() {
        ErrorKind::NotFound => ApiError::new(ErrorKind::NotFound, none),
        _ => error.into(),
    })
}

async fn read<T: Send + 'static>(
    app: &App,
    what: impl FnOnce(ReceiptStore) -> Result<T> + Send + 'static,
) -> Result<T> {
    let store = app.receipts.clone();
    let read = tokio::task::spawn_blocking(move || what(store)).await;
    let read = read.map_err(|error| Error::new(ErrorKind::Internal, format!("reading receipts failed: {error}")))?;
    read.map_err(|error| without_folder(&error, app.receipts.folder()))
}

/// The error without the path of the folder, which says where this node's keys are.
fn without_folder(error: &Error, folder: &std::path::Path) -> Error {
    Error::new(error.kind(), error.message().replace(&*folder.to_string_lossy(), "the receipts' folder"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_never_tells_where_the_data_directory_is() {
        let home = tempfile::tempdir().unwrap();
        let store = ReceiptStore::new(home.path());
        std::fs::create_dir(store.folder()).unwrap();
        std::fs::write(store.folder().join("0000000000001-0000000000ab.json"), "{").unwrap();
        for id in ["nothing", "0000000000ab"] {
            let error = store.get(id).unwrap_err();
            let told = without_folder(&error, store.folder());
            assert_eq!(told.kind(), error.kind());
            assert!(!told.message().contains(home.path().to_str().unwrap()), "{told}");
        }
    }
}
