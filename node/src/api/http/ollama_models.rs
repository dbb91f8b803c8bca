//! `/api/{version,tags,show,ps}`: the models as Ollama's clients list them. This file only reports.

use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};

use super::error::ApiError;
use super::fields::Fields;
use super::key_holder::KeyHolder;
use super::models::models;
use super::ollama::untagged;
use super::ollama_stream::timestamp;
use super::{App, Body};
use crate::serve::ServedModel;

/// The routes of this file.
pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/api/version", get(version))
        .route("/api/tags", get(tags))
        .route("/api/show", post(show))
        .route("/api/ps", get(running))
}

/// The version of Ollama whose API this is; some clients refuse older ones than 0.6.4.
const VERSION: &str = "0.12.6";

async fn version() -> Json<Value> {
    Json(json!({"version": VERSION}))
}

async fn tags(State(app): State<App>, holder: KeyHolder) -> Json<Value> {
    let models: Vec<Value> = models(&app, &holder).iter().map(|model| entry(&app, model)).collect();
    Json(json!({"models": models}))
}

async fn running(State(app): State<App>, holder: KeyHolder) -> Json<Value> {
    let loaded = |model: &&ServedModel| model.state == "ready";
    let models: Vec<Value> = models(&app, &holder)
        .iter()
        .filter(loaded)
        .map(|model| {
            let mut entry = entry(&app, model);
            let facts = model.facts.as_ref();
            // Models stay loaded: a date that Ollama's clients show as "forever".
            entry["expires_at"] = json!("2318-01-01T00:00:00Z");
            entry["size_vram"] = json!(0);
            entry["context_length"] = json!(facts.map_or(0, |facts| facts.context));
            entry
        })
        .collect();
    Json(json!({"models": models}))
}

async fn show(State(app): State<App>, holder: KeyHolder, body: Body) -> Result<Json<Value>, ApiError> {
    let mut fields = Fields::read(body).await?;
    let older: Option<String> = fields.optional("name")?;
    let name = match fields.optional("model")? {
        Some(name) => name,
        None => older.ok_or_else(|| ApiError::field("model", "model is missing"))?,
    };
    holder.check(untagged(&name))?;
    let Some(model) = app.served.one(untagged(&name)) else { return Err(app.no_such_model(untagged(&name))) };
    let architecture = model.facts.as_ref().map_or("", |facts| facts.architecture);
    let mut info = json!({"general.architecture": architecture, "general.basename": model.name});
    if let Some(facts) = &model.facts {
        info[format!("{architecture}.context_length")] = json!(facts.context);
        info[format!("{architecture}.block_count")] = json!(facts.layers);
        info[format!("{architecture}.vocab_size")] = json!(facts.vocabulary);
    }
    Ok(Json(json!({
        "license": "", "modelfile": format!("FROM {}\n", model.name), "parameters": "", "template": "",
        "details": details(&model), "model_info": info, "capabilities": ["completion", "tools"],
        "modified_at": timestamp(app.started_s),
    })))
}

fn entry(app: &App, model: &ServedModel) -> Value {
    json!({
        "name": model.name, "model": model.name, "modified_at": timestamp(app.started_s),
        "size": model.facts.as_ref().map_or(0, |facts| facts.file_bytes),
        "digest": model.digest.map(|digest| digest.to_string()).unwrap_or_default(), "details": details(model),
    })
}

fn details(model: &ServedModel) -> Value {
    let architecture = model.facts.as_ref().map_or("", |facts| facts.architecture);
    json!({
        "parent_model": "", "format": "gguf", "family": architecture, "families": [architecture], "parameter_size": "",
        "quantization_level": quantization(&model.name),
    })
}

/// The quantization that a file's name ends with, as files of models are named.
fn quantization(name: &str) -> String {
    let last = name.rsplit(['.', '-']).next().unwrap_or_default().to_ascii_uppercase();
    let levels = last.strip_prefix("IQ").or_else(|| last.strip_prefix('Q'));
    let is_level = levels.is_some_and(|bits| bits.starts_with(|c: char| c.is_ascii_digit()));
    if is_level || ["F16", "BF16", "F32"].contains(&last.as_str()) { last } else { "unknown".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantization_is_read_from_the_name() {
        for (name, level) in [
            ("SmolLM2-135M-Instruct.Q4_1", "Q4_1"),
            ("gemma-3-270m-q4_k_m", "Q4_K_M"),
            ("quiet", "unknown"),
            ("Qwen3", "unknown"),
            ("x-BF16", "BF16"),
        ] {
            assert_eq!(quantization(name), level);
        }
    }
}
