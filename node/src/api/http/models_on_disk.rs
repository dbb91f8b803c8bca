//! Models on this machine and their downloads: `/api/pangea/models/disk`, `/api/pangea/models/pull`. The disk and the network are
//! used on blocking threads.

use std::convert::Infallible;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures::stream;
use pangea_client::{Error, ErrorKind};
use pangea_compute::Cancel;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::error::ApiError;
use super::fields::Fields;
use super::key_holder::KeyHolder;
use super::limits::STREAM_SILENCE;
use super::{App, Body};
use crate::models::catalogue::KNOWN;
use crate::models::{self, Entry, Found, Reference};

/// The routes of this file.
pub(super) fn routes() -> Router<App> {
    Router::new().route("/api/pangea/models/disk", get(list)).route("/api/pangea/models/pull", post(pull))
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

/// How far a download is; the newest replaces earlier ones that the client has not read.
#[derive(Clone, Copy, Default, PartialEq)]
struct Step {
    phase: &'static str,
    done_bytes: u64,
    total_bytes: u64,
}

/// `/api/pangea/models/pull`: downloads a model, with its progress as server-sent events, and ends with `done` or `error`. A client
/// that goes away stops the download; the next request goes on from there.
async fn pull(State(app): State<App>, holder: KeyHolder, body: Body) -> Result<Response, ApiError> {
    holder.check_owner()?;
    let model: String = Fields::read(body).await?.required("model")?;
    // A path would tell whether there is such a file on this machine.
    if models::is_path(&model) {
        let message = "name a model by its short name, hf:OWNER/REPO/FILE.gguf or an https address";
        return Err(ApiError::field("model", message));
    }
    Reference::parse(&model).map_err(|error| ApiError::field("model", error.message()))?;
    let (told, steps) = watch::channel(Step::default());
    let cancel = Cancel::new();
    let (folder, cancelled) = (app.models.clone(), cancel.clone());
    let fetched = tokio::task::spawn_blocking(move || {
        let reference = match models::locate(&folder, &model)? {
            Found::Local(_) => return Ok(model),
            Found::Fetchable(reference) => reference,
        };
        models::fetch(&folder, &reference, &cancelled, &mut |transfer| {
            let (phase, done_bytes, total_bytes) = (transfer.phase, transfer.done_bytes, transfer.total_bytes);
            told.send_replace(Step { phase, done_bytes, total_bytes });
        })?;
        Ok(model)
    });
    let download = Download { steps, fetched, _cancel: CancelOnDrop(cancel), over: false };
    let body = stream::unfold(download, |mut download| async {
        let event = download.next().await?;
        Some((Ok::<Bytes, Infallible>(event.into()), download))
    });
    let headers = [(header::CONTENT_TYPE, "text/event-stream; charset=utf-8"), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, Body::from_stream(body)).into_response())
}

/// A download that a client follows.
struct Download {
    steps: watch::Receiver<Step>,
    fetched: JoinHandle<Result<String, Error>>,
    _cancel: CancelOnDrop,
    over: bool,
}

impl Download {
    /// The next event, formatted; `None` after the last one.
    async fn next(&mut self) -> Option<String> {
        if self.over {
            return None;
        }
        tokio::select! {
            biased;
            Ok(()) = self.steps.changed() => {
                let Step { phase, done_bytes, total_bytes } = *self.steps.borrow_and_update();
                let step = json!({"phase": phase, "done_bytes": done_bytes, "total_bytes": total_bytes});
                Some(format!("event: progress\ndata: {step}\n\n"))
            }
            ended = &mut self.fetched => {
                self.over = true;
                Some(match ended {
                    Ok(Ok(model)) => format!("event: done\ndata: {}\n\n", json!({"model": model})),
                    Ok(Err(error)) => format!("event: error\ndata: {}\n\n", ApiError::from(error).body()),
                    Err(error) => format!("event: error\ndata: {}\n\n", internal(&error.to_string()).body()),
                })
            }
            () = tokio::time::sleep(STREAM_SILENCE) => Some(": keep-alive\n\n".to_owned()),
        }
    }
}

/// Stops a download when its client has gone.
struct CancelOnDrop(Cancel);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}
