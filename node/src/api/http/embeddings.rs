//! `/v1/embeddings`, as OpenAI has it, and `/api/embed` with the older `/api/embeddings`, as Ollama has them: texts to vectors.

use std::time::Instant;

use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use pangea_compute::engine::unit;
use pangea_control::jobs::Owner;
use serde::Deserialize;
use serde_json::{Value, json};

use super::error::ApiError;
use super::fields::Fields;
use super::generation::owner;
use super::key_holder::KeyHolder;
use super::limits::EMBEDDED_TEXTS;
use super::ollama::untagged;
use super::turn::refused;
use super::{App, Body};
use crate::compute_error;
use crate::serve::{Embedding, Prompt};

/// The routes of this file.
pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/v1/embeddings", post(embeddings))
        .route("/api/embed", post(embed))
        .route("/api/embeddings", post(older))
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Input {
    Text(String),
    Tokens(Vec<u32>),
    Texts(Vec<String>),
    ManyTokens(Vec<Vec<u32>>),
}

/// What is to be embedded.
#[derive(Debug)]
struct Wanted {
    texts: Vec<Prompt>,
    dimensions: Option<usize>,
}

fn wanted(fields: &mut Fields) -> Result<Wanted, ApiError> {
    let texts: Vec<Prompt> = match fields.required("input")? {
        Input::Text(text) => vec![Prompt::Text(text)],
        // An empty list is no text.
        Input::Tokens(tokens) if tokens.is_empty() => Vec::new(),
        Input::Tokens(tokens) => vec![Prompt::Tokens(tokens)],
        Input::Texts(texts) => texts.into_iter().map(Prompt::Text).collect(),
        Input::ManyTokens(many) => many.into_iter().map(Prompt::Tokens).collect(),
    };
    if texts.is_empty() || texts.len() > EMBEDDED_TEXTS {
        let message = format!("input holds {} texts; it must be 1 to {EMBEDDED_TEXTS}", texts.len());
        return Err(ApiError::field("input", message));
    }
    let dimensions = fields.optional("dimensions")?;
    if dimensions == Some(0) {
        return Err(ApiError::field("dimensions", "dimensions is 0; it must be at least 1"));
    }
    Ok(Wanted { texts, dimensions })
}

/// The first `dimensions` numbers, with length 1 again.
fn shortened(embedding: Embedding, dimensions: Option<usize>) -> Result<Vec<f32>, ApiError> {
    let Some(dimensions) = dimensions else { return Ok(embedding.values) };
    let all = embedding.values.len();
    let Some(first) = embedding.values.get(..dimensions) else {
        let message = format!("dimensions is {dimensions}; this model has {all}");
        return Err(ApiError::field("dimensions", message));
    };
    let first: Vec<f64> = first.iter().copied().map(f64::from).collect();
    unit(&first).map_err(|error| ApiError::from(compute_error(error)))
}

async fn embeddings(State(app): State<App>, holder: KeyHolder, body: Body) -> Result<Json<Value>, ApiError> {
    let mut fields = Fields::read(body).await?;
    let model: Option<String> = fields.optional("model")?;
    let form: Option<String> = fields.optional("encoding_format")?;
    let in_base64 = match form.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(_) => return Err(ApiError::field("encoding_format", "encoding_format must be float or base64")),
    };
    let Owner { .. } = owner(&mut fields)?;
    let Wanted { texts, dimensions } = wanted(&mut fields)?;
    let engine = app.engine(model.as_deref(), &holder).await?;
    let embedded = engine.embed(texts, false).await.map_err(refused)?;
    let tokens: usize = embedded.iter().map(|embedding| embedding.tokens).sum();
    holder.spend(tokens);
    let mut data = Vec::with_capacity(embedded.len());
    for (index, embedding) in embedded.into_iter().enumerate() {
        let values = shortened(embedding, dimensions)?;
        let values = if in_base64 { json!(base64_of(&values)) } else { json!(values) };
        data.push(json!({"object": "embedding", "index": index, "embedding": values}));
    }
    let usage = json!({"prompt_tokens": tokens, "total_tokens": tokens});
    Ok(Json(json!({"object": "list", "data": data, "model": engine.model().name, "usage": usage})))
}

/// The numbers as little-endian bytes.
fn base64_of(values: &[f32]) -> String {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    BASE64_STANDARD.encode(bytes)
}

async fn embed(State(app): State<App>, holder: KeyHolder, body: Body) -> Result<Json<Value>, ApiError> {
    let mut fields = Fields::read(body).await?;
    let model: String = fields.required("model")?;
    let cut = fields.optional("truncate")?.unwrap_or(true);
    let Wanted { texts, dimensions } = wanted(&mut fields)?;
    let engine = app.engine(Some(untagged(&model)), &holder).await?;
    let since = Instant::now();
    let embedded = engine.embed(texts, cut).await.map_err(refused)?;
    let tokens: usize = embedded.iter().map(|embedding| embedding.tokens).sum();
    holder.spend(tokens);
    let vectors: Result<Vec<Vec<f32>>, ApiError> =
        embedded.into_iter().map(|embedding| shortened(embedding, dimensions)).collect();
    Ok(Json(json!({
        "model": model, "embeddings": vectors?, "total_duration": since.elapsed().as_nanos() as u64, "load_duration": 0,
        "prompt_eval_count": tokens,
    })))
}

/// Ollama's older endpoint: one text, under another name.
async fn older(State(app): State<App>, holder: KeyHolder, body: Body) -> Result<Json<Value>, ApiError> {
    let mut fields = Fields::read(body).await?;
    let model: String = fields.required("model")?;
    let text: String = fields.required("prompt")?;
    let engine = app.engine(Some(untagged(&model)), &holder).await?;
    let embedded = engine.embed(vec![Prompt::Text(text)], true).await.map_err(refused)?;
    holder.spend(embedded.iter().map(|embedding| embedding.tokens).sum());
    let values = embedded.into_iter().next().map(|embedding| embedding.values);
    Ok(Json(json!({"embedding": values})))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(text: &str) -> Result<usize, String> {
        let mut fields = Fields::parse(text.as_bytes()).unwrap();
        let read = wanted(&mut fields).map(|wanted| wanted.texts.len());
        read.map_err(|error| error.body()["error"]["param"].as_str().unwrap_or_default().to_owned())
    }

    #[test]
    fn input_is_texts_or_tokens_one_or_many() {
        for (input, count) in [(r#""a""#, 1), ("[1, 2]", 1), (r#"["a", "b"]"#, 2), ("[[1], [2, 3]]", 2)] {
            assert_eq!(texts(&format!(r#"{{"input": {input}}}"#)), Ok(count));
        }
        for (body, field) in [
            ("{}", "input"),
            (r#"{"input": []}"#, "input"),
            (r#"{"input": [1, "a"]}"#, "input"),
            (r#"{"input": "a", "dimensions": 0}"#, "dimensions"),
        ] {
            assert_eq!(texts(body), Err(field.to_owned()), "{body}");
        }
    }

    #[test]
    fn fewer_dimensions_have_length_1_again_and_more_are_refused() {
        let embedding = Embedding { values: vec![0.6, 0.0, 0.8], tokens: 1 };
        assert_eq!(shortened(embedding.clone(), None).unwrap(), [0.6, 0.0, 0.8]);
        assert_eq!(shortened(embedding.clone(), Some(2)).unwrap(), [1.0, 0.0]);
        assert_eq!(shortened(embedding, Some(4)).unwrap_err().body()["error"]["param"], "dimensions");
        assert_eq!(base64_of(&[1.0]), "AACAPw==");
    }
}
