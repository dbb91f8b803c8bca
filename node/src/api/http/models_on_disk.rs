//! Models on this machine, and following and stopping their downloads: `/api/pangea/models/disk`, `/api/pangea/models/pull`,
//! `/api/pangea/models/pull/cancel`. The disk is read on a blocking thread; `downloads` runs the downloads.

use std::convert::Infallible;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures::stream;
use pangea_client::{Error, ErrorKind};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::downloads::Step;
use super::error::ApiError;
use super::fields::Fields;
use super::key_holder::KeyHolder;
use super::limits::STREAM_SILENCE;
use super::{App, Body};
use crate::models::catalogue::KNOWN;
use crate::models::{self, Entry, Reference};

/// The routes of this file.
pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/api/pangea/models/disk", get(list))
        .route("/api/pangea/models/pull", post(pull))
        .route("/api/pangea/models/pull/cancel", post(cancel))
}

/// `/api/pangea/models/disk`: the models on this machine, and those with a short name that can be downloaded.
async fn list(State(app): State<App>) -> Result<Json<Value>, ApiError> {
    let folder = app.models.clone();
    let listed = tokio::task::spawn_blocking(move || {
        let entries = models::list(&folder)?;
        Ok::<_, Error>(entries.into_iter().map(entry).collect::<Vec<Value>>())
    });
    let listed = listed.await.map_err(|error| internal(&error.to_string()))?;
    let known: Vec<Value> = KNOWN
        .iter()
        .map(|known| json!({"name": known.name, "size_bytes": known.size_bytes, "licence": known.licence}))
        .collect();
    // The folder's path would say where this node's keys are.
    let listed = listed.map_err(|error| {
        let message = error.message().replace(&*app.models.to_string_lossy(), "the models' folder");
        ApiError::new(error.kind(), message)
    })?;
    Ok(Json(json!({"models": listed, "known": known})))
}

fn entry(entry: Entry) -> Value {
    let mut shown = json!({"name": entry.name, "size_bytes": entry.size_bytes});
    match entry.describe() {
        Ok(facts) => {
            shown["title"] = json!(facts.title);
            shown["architecture"] = json!(facts.architecture);
            shown["parameters"] = json!(facts.parameters);
            shown["quantisation"] = json!(facts.quantisation);
            shown["context"] = json!(facts.context);
        }
        Err(error) => {
            let (path, name) = (entry.path.to_string_lossy(), entry.path.file_name().unwrap_or_default());
            shown["problem"] = json!(error.message().replace(&*path, &name.to_string_lossy()));
        }
    }
    shown
}

fn internal(why: &str) -> ApiError {
    ApiError::new(ErrorKind::Internal, format!("reading the models' folder ended unexpectedly: {why}"))
}

/// `/api/pangea/models/pull`: downloads a model, with its progress as server-sent events, and ends with `done` or `error`. A client
/// that goes away leaves the download running; the next request for the model follows it.
async fn pull(State(app): State<App>, holder: KeyHolder, body: Body) -> Result<Response, ApiError> {
    let mut fields = fields(holder, body).await?;
    let model = model(&mut fields)?;
    let starts = fields.optional("start")?.unwrap_or(true);
    let running = app.downloads.running(&model);
    let joins = running.is_some();
    let steps = match running {
        Some(steps) => steps,
        None if starts => app.downloads.watch(&app.models, &model, &app.jobs)?,
        None => return Err(not_running(&model)),
    };
    let watched = Watched { model, steps, joins, over: false };
    let body = stream::unfold(watched, |mut watched| async {
        let event = watched.next().await?;
        Some((Ok::<Bytes, Infallible>(event.into()), watched))
    });
    let headers = [(header::CONTENT_TYPE, "text/event-stream; charset=utf-8"), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, Body::from_stream(body)).into_response())
}

/// `/api/pangea/models/pull/cancel`: stops a download. What has arrived stays, and the next download goes on from there.
async fn cancel(State(app): State<App>, holder: KeyHolder, body: Body) -> Result<Json<Value>, ApiError> {
    let model = model(&mut fields(holder, body).await?)?;
    if !app.downloads.cancel(&model) {
        return Err(not_running(&model));
    }
    Ok(Json(json!({"model": model})))
}

fn not_running(model: &str) -> ApiError {
    ApiError::new(ErrorKind::NotFound, format!("no download of {model} runs"))
}

/// The fields of a request about downloads, which only the owner may make.
async fn fields(holder: KeyHolder, body: Body) -> Result<Fields, ApiError> {
    holder.check_owner()?;
    Fields::read(body).await
}

fn model(fields: &mut Fields) -> Result<String, ApiError> {
    let model: String = fields.required("model")?;
    // A path would tell whether there is such a file on this machine.
    if models::is_path(&model) {
        let message = "name a model by its short name, hf:OWNER/REPO/FILE.gguf or an https address";
        return Err(ApiError::field("model", message));
    }
    Reference::parse(&model).map_err(|error| ApiError::field("model", error.message()))?;
    Ok(model)
}

/// A download that a client follows.
struct Watched {
    model: String,
    steps: watch::Receiver<Step>,
    /// Whether its present step is to be written first: others asked for it.
    joins: bool,
    over: bool,
}

impl Watched {
    /// The next event, formatted; `None` after the last one.
    async fn next(&mut self) -> Option<String> {
        if self.over {
            return None;
        }
        if !std::mem::replace(&mut self.joins, false)
            && tokio::time::timeout(STREAM_SILENCE, self.steps.changed()).await.is_err()
        {
            return Some(": keep-alive\n\n".to_owned());
        }
        let step = self.steps.borrow_and_update().clone();
        Some(match step {
            Step::Running { phase, done_bytes, total_bytes } => {
                let step = json!({"phase": phase, "done_bytes": done_bytes, "total_bytes": total_bytes});
                format!("event: progress\ndata: {step}\n\n")
            }
            Step::Ended(ended) => {
                self.over = true;
                match ended {
                    Ok(()) => format!("event: done\ndata: {}\n\n", json!({"model": self.model})),
                    Err(error) => format!("event: error\ndata: {}\n\n", ApiError::from(error).body()),
                }
            }
        })
    }
}
