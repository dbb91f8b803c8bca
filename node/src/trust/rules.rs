//! By which rules an answer's tokens were chosen, as receipts hold it: [`Sampling`] and the answer's form with stable names.
//! It chooses nothing.

use pangea_client::Result;
use pangea_compute::Digest;
use pangea_compute::commit::{Form, SamplingTerms};
use pangea_compute::model::ModelFile;
use pangea_compute::sample::Sampling;
use pangea_compute::sample::grammar::{Grammar, GrammarVocabulary};
use serde::{Deserialize, Serialize};

use crate::compute_error;
use crate::serve::request::Format;

/// [`Sampling`], field by field.
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

/// What form the answer was to have.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ReceiptForm {
    /// Any.
    #[default]
    Text,
    /// A JSON object.
    JsonObject,
    /// JSON that fits a schema.
    JsonSchema {
        /// The schema's text, of which the digest is taken.
        schema: String,
    },
}

impl From<&Format> for ReceiptForm {
    fn from(format: &Format) -> ReceiptForm {
        match format {
            Format::Text => ReceiptForm::Text,
            Format::JsonObject => ReceiptForm::JsonObject,
            Format::JsonSchema(schema) => ReceiptForm::JsonSchema { schema: schema.to_string() },
        }
    }
}

impl ReceiptForm {
    /// For the digest.
    pub fn form(&self) -> Form<'_> {
        match self {
            ReceiptForm::Text => Form::Free,
            ReceiptForm::JsonObject => Form::JsonObject,
            ReceiptForm::JsonSchema { schema } => Form::JsonSchema(schema),
        }
    }

    /// The grammar that masks tokens of this model; `None` where the answer is free. Takes a while for large vocabularies.
    ///
    /// # Errors
    /// `InvalidInput` where the schema is none, or the model cannot be held to one.
    pub fn grammar(&self, file: &ModelFile) -> Result<Option<Grammar>> {
        let vocabulary = || GrammarVocabulary::new(&file.tokenizer()?);
        let grammar = match self {
            ReceiptForm::Text => return Ok(None),
            ReceiptForm::JsonObject => vocabulary().and_then(|vocabulary| Grammar::json_object(&vocabulary)),
            ReceiptForm::JsonSchema { schema } => {
                let schema: serde_json::Value = serde_json::from_str(schema).map_err(|error| {
                    let why = format!("the answer's JSON schema is no JSON: {error}");
                    pangea_client::Error::new(pangea_client::ErrorKind::InvalidInput, why)
                })?;
                vocabulary().and_then(|vocabulary| Grammar::json_schema(&vocabulary, &schema))
            }
        };
        grammar.map(Some).map_err(compute_error)
    }
}

/// The digest that every stage puts into its claim.
pub fn terms_digest(prompt_len: u64, sampling: &Sampling, form: &ReceiptForm) -> Digest {
    SamplingTerms { prompt_len, sampling, form: form.form() }.digest()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_survives_being_written() {
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
        let schema = serde_json::json!({"type": "object", "properties": {"b": {}, "a": {}}});
        for form in [Format::Text, Format::JsonObject, Format::JsonSchema(schema)] {
            let form = ReceiptForm::from(&form);
            let json = serde_json::to_string(&form).unwrap();
            let read: ReceiptForm = serde_json::from_str(&json).unwrap();
            let digest = |form| terms_digest(5, &sampling, form);
            assert_eq!(digest(&read), digest(&form), "{json}");
        }
    }
}
