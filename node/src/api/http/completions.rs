//! `/v1/completions`: parses prompts (texts or token ids) into requests to a model.

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::post;
use serde::Deserialize;
use serde_json::json;

use super::answer::{Endpoint, HttpAnswer};
use super::error::ApiError;
use super::fields::Fields;
use super::generation::{Generate, alternatives, generate};
use super::key_holder::KeyHolder;
use super::limits::PROMPTS;
use super::{App, Body};
use crate::serve::{Prompt, Request};

/// The routes of this file.
pub(super) fn routes() -> Router<App> {
    Router::new().route("/v1/completions", post(completions))
}

/// Default of `max_tokens`, as OpenAI defines it.
const MAX_TOKENS: usize = 16;

/// Completes one or several prompts.
async fn completions(State(app): State<App>, holder: KeyHolder, body: Body) -> Result<Response, ApiError> {
    let mut fields = Fields::read(body).await?;
    let model: Option<String> = fields.optional("model")?;
    let (generate, prompts, echo) = parse(&mut fields)?;
    let engine = app.engine(model.as_deref(), &holder).await?;
    let echoes = prompts
        .iter()
        .map(|prompt| match prompt {
            Prompt::Text(text) | Prompt::Fill { before: text, .. } if echo => text.clone(),
            Prompt::Tokens(tokens) if echo => engine.text_of(tokens),
            _ => String::new(),
        })
        .collect();
    let requests = prompts.into_iter().map(|prompt| Request { prompt, ..generate.request.clone() }).collect();
    let answer = HttpAnswer::new(&engine, Endpoint::Completion { echoes }, generate.stream_options);
    answer.respond(&engine, &holder, requests, generate.stream).await
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Prompts {
    Text(String),
    Tokens(Vec<u32>),
    Texts(Vec<String>),
    ManyTokens(Vec<Vec<u32>>),
}

fn parse(fields: &mut Fields) -> Result<(Generate, Vec<Prompt>, bool), ApiError> {
    fields.unsupported("best_of", &[json!(1)])?;
    let mut generate = generate(fields)?;
    generate.request.max_tokens.get_or_insert(MAX_TOKENS);
    let echo = fields.optional("echo")?.unwrap_or(false);
    if let Some(count) = fields.optional("logprobs")? {
        generate.request.sampling.logprobs = Some(alternatives("logprobs", count)?);
        generate.request.prompt_logprobs = echo;
    }
    let prompts: Vec<Prompt> = match fields.required("prompt")? {
        Prompts::Text(text) => vec![Prompt::Text(text)],
        Prompts::Tokens(tokens) => vec![Prompt::Tokens(tokens)],
        Prompts::Texts(texts) => texts.into_iter().map(Prompt::Text).collect(),
        Prompts::ManyTokens(many) => many.into_iter().map(Prompt::Tokens).collect(),
    };
    let suffix: String = fields.optional("suffix")?.unwrap_or_default();
    let prompts: Vec<Prompt> = match suffix.is_empty() {
        true => prompts,
        false => prompts.into_iter().map(|prompt| filled(prompt, &suffix)).collect::<Result<_, _>>()?,
    };
    if prompts.is_empty() || prompts.len() > PROMPTS {
        let message = format!("prompt holds {} prompts; it must be 1 to {PROMPTS}", prompts.len());
        return Err(ApiError::field("prompt", message));
    }
    Ok((generate, prompts, echo))
}

/// The prompt whose answer leads to `suffix`.
fn filled(prompt: Prompt, suffix: &str) -> Result<Prompt, ApiError> {
    match prompt {
        Prompt::Text(before) => Ok(Prompt::Fill { before, after: suffix.to_owned() }),
        _ => Err(ApiError::field("suffix", "suffix needs a prompt that is text, not token ids")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_texts_or_token_ids_one_or_many() {
        for (prompt, count) in [(r#""a""#, 1), ("[1, 2]", 1), (r#"["a", "b"]"#, 2), ("[[1], [2], [3]]", 3)] {
            let mut fields =
                Fields::parse(format!(r#"{{"prompt": {prompt}}}"#).as_bytes()).unwrap_or_else(|_| panic!());
            let (generate, prompts, echo) = parse(&mut fields).unwrap_or_else(|_| panic!("{prompt}"));
            assert_eq!((prompts.len(), generate.request.max_tokens, echo), (count, Some(MAX_TOKENS), false));
        }
        for body in [
            r#"{"prompt": {}}"#,
            r#"{"prompt": [1, "a"]}"#,
            "{}",
            r#"{"prompt": "a", "best_of": 2}"#,
            r#"{"prompt": [-1]}"#,
            r#"{"prompt": [1], "suffix": "b"}"#,
        ] {
            let mut fields = Fields::parse(body.as_bytes()).unwrap_or_else(|_| panic!());
            assert!(parse(&mut fields).is_err(), "{body}");
        }
    }
}
