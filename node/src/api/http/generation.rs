//! Fields that control generation, the same for chats and completions; fields that this node does not implement are
//! refused by name. This file parses; it runs nothing.

use std::collections::BTreeMap;

use pangea_compute::sample::recommended::OpenTerms;
use pangea_compute::sample::{AnswerFormat, MAX_LOGPROBS, Sampling};
use pangea_control::jobs::{Api, Owner};
use serde::Deserialize;
use serde_json::Value;

use super::error::ApiError;
use super::fields::Fields;
use crate::serve::{Prompt, Request};

/// How an answer is generated and sent.
pub(super) struct Generate {
    /// The request; its prompt is still empty.
    pub(super) request: Request,
    /// Whether the answer is streamed as server-sent events.
    pub(super) stream: bool,
    /// What the events of a stream carry besides the answer.
    pub(super) stream_options: StreamOptions,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Stop {
    One(String),
    Several(Vec<String>),
}

/// What the events of a stream carry besides the answer.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(super) struct StreamOptions {
    /// The last event carries the usage.
    #[serde(default)]
    pub(super) include_usage: bool,
    /// The first event tells how many tokens the prompt has, and others before the answer how many of them are computed.
    #[serde(default)]
    pub(super) include_prefill: bool,
}

/// Reads the fields of the sampling; those that are left out are the model's to choose.
pub(super) fn sampling(fields: &mut Fields) -> Result<(Sampling, OpenTerms), ApiError> {
    let defaults = Sampling::default();
    let temperature = fields.number("temperature")?;
    let (top_k, top_p, min_p) = (top_k(fields)?, fields.number("top_p")?, fields.number("min_p")?);
    let repetition_penalty = fields.number("repetition_penalty")?;
    let open = OpenTerms {
        temperature: temperature.is_none(),
        top_k: top_k.is_none(),
        top_p: top_p.is_none(),
        min_p: min_p.is_none(),
        repetition_penalty: repetition_penalty.is_none(),
    };
    let sampling = Sampling {
        temperature: temperature.unwrap_or(defaults.temperature),
        top_k: top_k.unwrap_or(defaults.top_k),
        top_p: top_p.unwrap_or(defaults.top_p),
        min_p: min_p.unwrap_or(defaults.min_p),
        typical_p: fields.number("typical_p")?.unwrap_or(defaults.typical_p),
        repetition_penalty: repetition_penalty.unwrap_or(defaults.repetition_penalty),
        repetition_window: defaults.repetition_window,
        presence_penalty: fields.number("presence_penalty")?.unwrap_or(defaults.presence_penalty),
        frequency_penalty: fields.number("frequency_penalty")?.unwrap_or(defaults.frequency_penalty),
        logit_bias: logit_bias(fields)?,
        // Any 64 bits are a seed, also written as a signed number.
        seed: match fields.optional::<i128>("seed")? {
            Some(seed) => seed as u64,
            None => rand::random(),
        },
        logprobs: None,
    };
    Ok((sampling, open))
}

/// Reads `stop`: a text or several.
pub(super) fn stops(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    Ok(match fields.optional("stop")? {
        Some(Stop::One(stop)) => vec![stop],
        Some(Stop::Several(stops)) => stops,
        None => Vec::new(),
    })
}

/// Reads the fields that OpenAI's endpoints have.
pub(super) fn generate(fields: &mut Fields) -> Result<Generate, ApiError> {
    let (sampling, open_terms) = sampling(fields)?;
    let choices = fields.optional("n")?.unwrap_or(1);
    let stop = stops(fields)?;
    let stream = fields.optional("stream")?.unwrap_or(false);
    let stream_options: Option<StreamOptions> = fields.optional("stream_options")?;
    if stream_options.is_some() && !stream {
        return Err(ApiError::field("stream_options", "stream_options is for streams; add \"stream\": true"));
    }
    let request = Request {
        sampling,
        open_terms,
        choices,
        stop,
        max_tokens: fields.optional("max_tokens")?,
        format: format(fields)?,
        owner: owner(fields)?,
        ..Request::new(Prompt::Tokens(Vec::new()))
    };
    request.check()?;
    Ok(Generate { request, stream, stream_options: stream_options.unwrap_or_default() })
}

/// Characters kept of the field `user`: what fits into a table.
const USER_CHARS: usize = 64;

/// The name of a client as a table shows it.
pub(super) fn client_of(user: &str) -> String {
    user.chars().take(USER_CHARS).collect()
}

/// Owner of the job: OpenAI's field `user`.
pub(super) fn owner(fields: &mut Fields) -> Result<Owner, ApiError> {
    let user: Option<Value> = fields.optional("user")?;
    let client = user.as_ref().and_then(Value::as_str).map(client_of);
    Ok(Owner { api: Api::Http, client })
}

/// `top_k`; 0 and, as other servers define it, -1 mean off.
fn top_k(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    match fields.optional::<i64>("top_k")? {
        None => Ok(None),
        Some(-1) => Ok(Some(0)),
        Some(k) => match usize::try_from(k) {
            Ok(k) => Ok(Some(k)),
            Err(_) => Err(ApiError::field("top_k", format!("top_k is {k}; it must be 0 (off) or more"))),
        },
    }
}

/// A map from token ids, which are strings in JSON, to biases.
fn logit_bias(fields: &mut Fields) -> Result<Vec<(u32, f32)>, ApiError> {
    let bias: Option<BTreeMap<String, f32>> = fields.optional("logit_bias")?;
    bias.unwrap_or_default()
        .into_iter()
        .map(|(token, bias)| match token.parse() {
            Ok(id) => Ok((id, bias)),
            Err(_) => Err(ApiError::field("logit_bias", format!("logit_bias: {token:?} is not a token id"))),
        })
        .collect()
}

fn format(fields: &mut Fields) -> Result<AnswerFormat, ApiError> {
    let field = "response_format";
    let Some(format) = fields.optional::<Value>(field)? else { return Ok(AnswerFormat::Text) };
    match format["type"].as_str() {
        Some("text") => Ok(AnswerFormat::Text),
        Some("json_object") => Ok(AnswerFormat::JsonObject),
        Some("json_schema") => match &format["json_schema"]["schema"] {
            Value::Null => Err(ApiError::field(field, "response_format.json_schema.schema is missing")),
            schema => Ok(AnswerFormat::JsonSchema(schema.to_string())),
        },
        _ => Err(ApiError::field(field, "response_format.type must be text, json_object or json_schema")),
    }
}

/// Checks the number of alternatives that `field` requests.
pub(super) fn alternatives(field: &str, count: usize) -> Result<usize, ApiError> {
    if count > MAX_LOGPROBS {
        return Err(ApiError::field(field, format!("{field} is {count}; the maximum is {MAX_LOGPROBS}")));
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Generate, String> {
        let mut fields = Fields::parse(text.as_bytes()).map_err(|error| error.body().to_string())?;
        generate(&mut fields).map_err(|error| error.body()["error"]["param"].as_str().unwrap_or_default().to_owned())
    }

    #[test]
    fn every_sampling_field_reaches_the_sampler() {
        let text = r#"{"temperature": 0.5, "top_k": 3, "top_p": 0.25, "min_p": 0.125, "typical_p": 0.75, "repetition_penalty": 1.5,
            "presence_penalty": -1, "frequency_penalty": 2, "logit_bias": {"7": -100}, "seed": -1, "n": 2, "stop": "x",
            "stream": true, "stream_options": {"include_usage": true}, "max_tokens": 9,
            "response_format": {"type": "json_object"}}"#;
        let generate = parsed(text).unwrap_or_else(|field| panic!("{field}"));
        let sampling = Sampling {
            temperature: 0.5,
            top_k: 3,
            top_p: 0.25,
            min_p: 0.125,
            typical_p: 0.75,
            repetition_penalty: 1.5,
            repetition_window: None,
            presence_penalty: -1.0,
            frequency_penalty: 2.0,
            logit_bias: vec![(7, -100.0)],
            seed: u64::MAX,
            logprobs: None,
        };
        assert_eq!(generate.request.sampling, sampling);
        assert_eq!(
            (generate.request.choices, generate.request.stop, generate.request.max_tokens),
            (2, vec!["x".to_owned()], Some(9))
        );
        assert!(
            generate.stream
                && generate.stream_options.include_usage
                && matches!(generate.request.format, AnswerFormat::JsonObject)
        );
    }

    #[test]
    fn impossible_values_are_refused_by_field() {
        for (text, field) in [
            (r#"{"n": 0}"#, "n"),
            (r#"{"n": 100}"#, "n"),
            (r#"{"n": -1}"#, "n"),
            (r#"{"temperature": "hot"}"#, "temperature"),
            (r#"{"top_k": -2}"#, "top_k"),
            (r#"{"stop": 7}"#, "stop"),
            (r#"{"logit_bias": {"a": 1}}"#, "logit_bias"),
            (r#"{"logit_bias": {"1": 101}}"#, "logit_bias"),
            (r#"{"max_tokens": -1}"#, "max_tokens"),
            (r#"{"stream_options": {}}"#, "stream_options"),
            (r#"{"response_format": {"type": "xml"}}"#, "response_format"),
            (r#"{"response_format": {"type": "json_schema"}}"#, "response_format"),
            (r#"{"seed": 0.5}"#, "seed"),
        ] {
            assert_eq!(parsed(text).err().as_deref(), Some(field), "{text}");
        }
    }
}
