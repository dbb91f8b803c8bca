//! The sampling terms of an answer as a receipt stores them: [`Sampling`] and [`AnswerFormat`] with stable names. This file
//! chooses no tokens.

use pangea_compute::Digest;
use pangea_compute::commit::SamplingTerms;
use pangea_compute::sample::{AnswerFormat, Sampling};
use serde::{Deserialize, Serialize};

/// JSON form of [`Sampling`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "each is the field of Sampling of that name")]
pub struct ReceiptSampling {
    pub temperature: f32,
    pub top_k: usize,
    pub top_p: f32,
    pub min_p: f32,
    pub typical_p: f32,
    pub repetition_penalty: f32,
    pub repetition_window: Option<usize>,
    pub presence_penalty: f32,
    pub frequency_penalty: f32,
    pub logit_bias: Vec<(u32, f32)>,
    pub seed: u64,
    pub logprobs: Option<usize>,
}

impl From<&Sampling> for ReceiptSampling {
    fn from(sampling: &Sampling) -> ReceiptSampling {
        ReceiptSampling {
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            typical_p: sampling.typical_p,
            repetition_penalty: sampling.repetition_penalty,
            repetition_window: sampling.repetition_window,
            presence_penalty: sampling.presence_penalty,
            frequency_penalty: sampling.frequency_penalty,
            logit_bias: sampling.logit_bias.clone(),
            seed: sampling.seed,
            logprobs: sampling.logprobs,
        }
    }
}

impl From<&ReceiptSampling> for Sampling {
    fn from(sampling: &ReceiptSampling) -> Sampling {
        Sampling {
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            typical_p: sampling.typical_p,
            repetition_penalty: sampling.repetition_penalty,
            repetition_window: sampling.repetition_window,
            presence_penalty: sampling.presence_penalty,
            frequency_penalty: sampling.frequency_penalty,
            logit_bias: sampling.logit_bias.clone(),
            seed: sampling.seed,
            logprobs: sampling.logprobs,
        }
    }
}

/// JSON form of an answer format: an object whose `type` is `text`, `json_object` or `json_schema`, the last with the
/// text of its `schema`.
pub(super) mod format {
    use super::{AnswerFormat, Deserialize, Serialize};
    use serde::{Deserializer, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(tag = "type", rename_all = "snake_case")]
    enum Form {
        Text,
        JsonObject,
        JsonSchema { schema: String },
    }

    pub(in crate::trust) fn serialize<S: Serializer>(format: &AnswerFormat, to: S) -> Result<S::Ok, S::Error> {
        let form = match format {
            AnswerFormat::Text => Form::Text,
            AnswerFormat::JsonObject => Form::JsonObject,
            AnswerFormat::JsonSchema(schema) => Form::JsonSchema { schema: schema.clone() },
        };
        form.serialize(to)
    }

    pub(in crate::trust) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<AnswerFormat, D::Error> {
        Ok(match Form::deserialize(from)? {
            Form::Text => AnswerFormat::Text,
            Form::JsonObject => AnswerFormat::JsonObject,
            Form::JsonSchema { schema } => AnswerFormat::JsonSchema(schema),
        })
    }
}

/// Digest of the sampling terms, which every stage puts into its claim. `scored`: whether the last stage's output has the
/// log-probabilities of the prompt.
pub fn terms_digest(prompt_len: u64, sampling: &Sampling, format: &AnswerFormat, scored: bool) -> Digest {
    SamplingTerms { prompt_len, sampling, format, scored }.digest()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_term_survives_json() {
        let sampling = Sampling {
            temperature: 0.1,
            top_k: 3,
            top_p: 0.7,
            min_p: 1e-7,
            typical_p: 0.3,
            repetition_penalty: 1.1,
            repetition_window: Some(64),
            presence_penalty: -0.1,
            frequency_penalty: 0.2,
            logit_bias: vec![(7, -100.0), (9, 0.333_333_34)],
            seed: u64::MAX,
            logprobs: Some(3),
        };
        let json = serde_json::to_string(&ReceiptSampling::from(&sampling)).unwrap();
        let again: ReceiptSampling = serde_json::from_str(&json).unwrap();
        assert_eq!(Sampling::from(&again), sampling);
        #[derive(Serialize, Deserialize)]
        struct Document {
            #[serde(with = "format")]
            form: AnswerFormat,
        }

        let schema = AnswerFormat::JsonSchema(r#"{"type": "object", "b": {}, "a": {}}"#.to_owned());
        for (form, json) in [
            (AnswerFormat::Text, r#"{"form":{"type":"text"}}"#),
            (AnswerFormat::JsonObject, r#"{"form":{"type":"json_object"}}"#),
            (schema, r#"{"form":{"type":"json_schema","schema":"{\"type\": \"object\", \"b\": {}, \"a\": {}}"}}"#),
        ] {
            assert_eq!(serde_json::to_string(&Document { form: form.clone() }).unwrap(), json);
            let read: Document = serde_json::from_str(json).unwrap();
            assert_eq!(read.form, form);
        }
    }
}
