//! Models and the node's state: `/v1/models`, `/api/models`, `/api/status`, `/healthz`, `/readyz`; which models are served. The
//! catalogue loads and drops them.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use pangea_client::ErrorKind;
use serde_json::{Value, json};

use super::error::ApiError;
use super::fields::Fields;
use super::key_holder::KeyHolder;
use super::limits::{READY_RETRY, READY_TIME};
use super::ollama_stream::timestamp;
use super::{App, Body};
use crate::pool::{Advert, StageAdvert, StageState};
use crate::serve::ServedModel;
use crate::supervise::Unwell;

/// The routes of this file.
pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/v1/models", get(list))
        .route("/v1/models/{*id}", get(one))
        .route("/api/pangea/models", get(details))
        .route("/api/pangea/models/load", post(load))
        .route("/api/pangea/models/drop", post(drop_model))
        .route("/api/models", get(details))
        .route("/api/pangea/status", get(status))
        .route("/api/status", get(status))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
}

/// `/v1/models`: every configured model, from the start. One document has the fields of OpenAI's API and those of Anthropic's,
/// whose lists come in pages: this is the only one.
async fn list(State(app): State<App>, holder: KeyHolder) -> Json<Value> {
    let models: Vec<Value> = models(&app, &holder).iter().map(|model| entry(&app, model)).collect();
    let id = |model: Option<&Value>| model.map(|model| model["id"].clone());
    let (first, last) = (id(models.first()), id(models.last()));
    Json(json!({"object": "list", "data": models, "has_more": false, "first_id": first, "last_id": last}))
}

/// The models that the holder of a key may use.
pub(super) fn models(app: &App, holder: &KeyHolder) -> Vec<ServedModel> {
    app.served.list().into_iter().filter(|model| holder.may_use(&model.name)).collect()
}

/// `/v1/models/{id}`.
async fn one(State(app): State<App>, holder: KeyHolder, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    holder.check(&id)?;
    let Some(model) = app.served.one(&id) else { return Err(app.no_such_model(&id)) };
    Ok(Json(entry(&app, &model)))
}

fn entry(app: &App, model: &ServedModel) -> Value {
    let mut entry = json!({
        "id": model.name, "object": "model", "created": app.started_s, "owned_by": "pangea",
        "type": "model", "display_name": model.name, "created_at": timestamp(app.started_s),
    });
    let digest = model.digest.map(|digest| digest.to_string());
    let nodes = nodes(app, model);
    entry["pangea"] = json!({"state": model.state, "why": model.why, "digest": digest, "nodes": nodes});
    entry
}

/// The nodes that compute a model: those that answer alone with their load, and those with a stage with its layers.
fn nodes(app: &App, model: &ServedModel) -> Vec<Value> {
    let (Some(pool), Some(digest)) = (&app.pool, model.digest) else { return Vec::new() };
    let view = Arc::clone(&pool.view().borrow());
    let node = |advert: &Arc<Advert>| {
        let of = json!({"peer": advert.peer.to_string(), "name": advert.name});
        if let Some(serving) = advert.serving.iter().find(|serving| serving.model == digest) {
            let (running, waiting, tokens_per_s) = (serving.running, serving.waiting, serving.tokens_per_s);
            let load =
                json!({"running": running, "waiting": waiting, "places": serving.places, "tokens_per_s": tokens_per_s});
            return Some(joined(of, load));
        }
        let ready = |stage: &&StageAdvert| stage.model == digest && stage.state == StageState::Ready;
        let stage = advert.stages.iter().find(ready)?;
        Some(joined(of, json!({"layers": [stage.layers.start, stage.layers.end]})))
    };
    view.everyone().filter_map(node).collect()
}

fn joined(mut object: Value, more: Value) -> Value {
    if let (Value::Object(object), Value::Object(more)) = (&mut object, more) {
        object.extend(more);
    }
    object
}

/// `/api/models`: the models with their type, size and memory use.
async fn details(State(app): State<App>) -> Json<Value> {
    let models: Vec<Value> = app
        .served
        .list()
        .iter()
        .map(|model| {
            let facts = model.facts.as_ref().map(|facts| {
                json!({
                    "architecture": facts.architecture, "layers": facts.layers, "context": facts.context,
                    "vocabulary": facts.vocabulary, "memory_bytes": facts.memory_bytes, "file_bytes": facts.file_bytes,
                    "session_bytes": facts.session_bytes,
                })
            });
            json!({
                "name": model.name, "digest": model.digest.map(|digest| digest.to_string()), "state": model.state, "why": model.why, "running": model.running,
                "waiting": model.waiting, "model": facts,
            })
        })
        .collect();
    Json(json!({"models": models}))
}

/// `/api/pangea/models/load`: serves a model besides those that this node serves.
async fn load(State(app): State<App>, holder: KeyHolder, body: Body) -> Result<Json<Value>, ApiError> {
    holder.check_owner()?;
    let model: String = Fields::read(body).await?.required("model")?;
    match app.served.load_model(&model, READY_TIME).await {
        Ok(loaded) => Ok(Json(entry(&app, &loaded))),
        Err(error) if error.kind() == ErrorKind::Unavailable => Err(ApiError::from(error).retry_after(READY_RETRY)),
        Err(error) => Err(error.into()),
    }
}

/// `/api/pangea/models/drop`: drops a model in the whole pool.
async fn drop_model(State(app): State<App>, holder: KeyHolder, body: Body) -> Result<Json<Value>, ApiError> {
    holder.check_owner()?;
    let model: String = Fields::read(body).await?.required("model")?;
    Ok(Json(entry(&app, &app.served.drop_model(&model)?)))
}

/// `/api/status`: this node's status.
async fn status(State(app): State<App>) -> Result<Json<Value>, ApiError> {
    let status = app.fabric.status().await?;
    let status = match &app.pool {
        Some(pool) => crate::pool::said::of_node(status, &pool.view().borrow()),
        None => status,
    };
    let mut status = serde_json::to_value(status)
        .map_err(|error| ApiError::new(ErrorKind::Internal, format!("cannot write the status: {error}")))?;
    status["api"] = json!(app.address.map(|address| address.to_string()));
    status["models"] = json!(app.served.states());
    status["master"] = json!(app.pool.as_ref().and_then(crate::pool::Pool::master).map(|peer| peer.to_string()));
    Ok(Json(status))
}

/// `/healthz`: 200 if every part of the node works; otherwise 503 with the names of the failed parts.
async fn healthz(State(app): State<App>) -> Response {
    health(&app.supervisor.unwell())
}

fn health(unwell: &[Unwell]) -> Response {
    if unwell.is_empty() {
        return Json(json!({"status": "ok"})).into_response();
    }
    let parts: Vec<Value> = unwell.iter().map(|part| json!({"part": part.name, "why": part.why})).collect();
    (StatusCode::SERVICE_UNAVAILABLE, Json(json!({"status": "failing", "parts": parts}))).into_response()
}

/// `/readyz`: 200 once each loaded model has answered a first request and every part of the node works.
async fn readyz(State(app): State<App>) -> Response {
    let models = app.served.list();
    // A stage whose thread has ended serves nobody, whatever its model answered before.
    let ready = app.served.is_ready() && app.supervisor.unwell().is_empty();
    let states: Value = models.iter().map(|model| (model.name.clone(), json!(model.state))).collect();
    let why: Value = models.iter().filter_map(|model| Some((model.name.clone(), json!(model.why.as_ref()?)))).collect();
    let mut response = Json(json!({"ready": ready, "models": states, "why": why})).into_response();
    if !ready {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        let retry = READY_RETRY.as_secs().into();
        response.headers_mut().insert(axum::http::header::RETRY_AFTER, retry);
    }
    response
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;
    use crate::supervise::Supervisor;

    async fn answer(supervisor: &Supervisor) -> (StatusCode, Value) {
        let response = health(&supervisor.unwell());
        let (status, body) = (response.status(), response.into_body().collect().await.unwrap().to_bytes());
        (status, serde_json::from_slice(&body).unwrap())
    }

    #[tokio::test]
    async fn health_names_a_failed_part_until_its_owner_replaces_it() {
        let supervisor = Supervisor::default();
        assert_eq!(answer(&supervisor).await, (StatusCode::OK, json!({"status": "ok"})));
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        let part =
            supervisor.owned_thread("stage of m", || panic!("no luck"), move |_| tell.send(()).unwrap()).unwrap();
        told.recv().unwrap();
        let parts = json!([{"part": "stage of m", "why": "panicked: no luck"}]);
        let failing = (StatusCode::SERVICE_UNAVAILABLE, json!({"status": "failing", "parts": parts}));
        assert_eq!(answer(&supervisor).await, failing);
        drop(part);
        assert_eq!(answer(&supervisor).await.0, StatusCode::OK);
    }
}
