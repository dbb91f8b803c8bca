//! The rules under which an answer's tokens are chosen, besides the model and the tokens. One digest of them shows
//! whether a stage used the rules that were asked for.

use crate::sample::{AnswerFormat, Sampling};
use pangea_units::Digest;

const TAG: &[u8] = b"pangea exact/1 terms\0";

/// The rules of one session's choices.
#[derive(Clone, Copy, Debug)]
pub struct SamplingTerms<'a> {
    /// The number of prompt tokens: penalties distinguish prompt and answer.
    pub prompt_len: u64,
    /// How tokens are chosen.
    pub sampling: &'a Sampling,
    /// The grammar that masks tokens.
    pub format: &'a AnswerFormat,
    /// Whether the log-probabilities of the prompt's tokens are part of the last stage's output.
    pub scored: bool,
}

/// Added to the byte of the format where the prompt is scored.
const SCORED: u8 = 16;

impl SamplingTerms<'_> {
    /// BLAKE3 of the tag `"pangea exact/1 terms\0"` and: prompt length (u64), temperature, top-p, min-p, typical-p,
    /// repetition, presence and frequency penalty (f32 each), top-k and seed (u64), repetition window and
    /// log-probabilities (each a byte 0, or a byte 1 and a u64), the number of biases (u64) and each one's token (u32)
    /// and value (f32), the format (a byte: 0 text, 1 object, 2 schema, each 16 more if the prompt is scored; then the schema's
    /// text).
    pub fn digest(&self) -> Digest {
        let sampling = self.sampling;
        let mut hasher = blake3::Hasher::new();
        hasher.update(TAG);
        hasher.update(&self.prompt_len.to_le_bytes());
        for value in [
            sampling.temperature,
            sampling.top_p,
            sampling.min_p,
            sampling.typical_p,
            sampling.repetition_penalty,
            sampling.presence_penalty,
            sampling.frequency_penalty,
        ] {
            hasher.update(&value.to_le_bytes());
        }
        hasher.update(&(sampling.top_k as u64).to_le_bytes());
        hasher.update(&sampling.seed.to_le_bytes());
        for value in [sampling.repetition_window, sampling.logprobs] {
            match value {
                None => hasher.update(&[0]),
                Some(value) => hasher.update(&[1]).update(&(value as u64).to_le_bytes()),
            };
        }
        hasher.update(&(sampling.logit_bias.len() as u64).to_le_bytes());
        for (token, bias) in &sampling.logit_bias {
            hasher.update(&token.to_le_bytes()).update(&bias.to_le_bytes());
        }
        let scored = if self.scored { SCORED } else { 0 };
        match self.format {
            AnswerFormat::Text => hasher.update(&[scored]),
            AnswerFormat::JsonObject => hasher.update(&[1 + scored]),
            AnswerFormat::JsonSchema(schema) => hasher.update(&[2 + scored]).update(schema.as_bytes()),
        };
        Digest(*hasher.finalize().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_changes_the_digest() {
        let base = Sampling::default();
        let schema = |text: &str| AnswerFormat::JsonSchema(text.to_owned());
        let (text, object) = (AnswerFormat::Text, AnswerFormat::JsonObject);
        let terms = SamplingTerms { prompt_len: 3, sampling: &base, format: &text, scored: false };
        let free = |sampling: &Sampling| SamplingTerms { sampling, ..terms }.digest();
        let mut digests = vec![
            free(&base),
            SamplingTerms { prompt_len: 4, ..terms }.digest(),
            SamplingTerms { format: &object, ..terms }.digest(),
            SamplingTerms { format: &schema("{}"), ..terms }.digest(),
            SamplingTerms { format: &schema("{ }"), ..terms }.digest(),
            SamplingTerms { scored: true, ..terms }.digest(),
            SamplingTerms { scored: true, format: &object, ..terms }.digest(),
            SamplingTerms { scored: true, format: &schema("{}"), ..terms }.digest(),
        ];
        for other in [
            Sampling { temperature: 1.0, ..base.clone() },
            Sampling { top_k: 41, ..base.clone() },
            Sampling { top_p: 0.9, ..base.clone() },
            Sampling { min_p: 0.1, ..base.clone() },
            Sampling { typical_p: 0.9, ..base.clone() },
            Sampling { repetition_penalty: 1.1, ..base.clone() },
            Sampling { repetition_window: Some(0), ..base.clone() },
            Sampling { presence_penalty: 0.1, ..base.clone() },
            Sampling { frequency_penalty: 0.1, ..base.clone() },
            Sampling { logit_bias: vec![(1, 1.0)], ..base.clone() },
            Sampling { logit_bias: vec![(1, 2.0)], ..base.clone() },
            Sampling { logit_bias: vec![(2, 1.0)], ..base.clone() },
            Sampling { seed: 1, ..base.clone() },
            Sampling { logprobs: Some(0), ..base.clone() },
            Sampling { logprobs: Some(1), ..base.clone() },
        ] {
            digests.push(free(&other));
        }
        let count = digests.len();
        digests.sort_by_key(|digest| *digest.as_bytes());
        digests.dedup();
        assert_eq!(digests.len(), count);
        assert_eq!(free(&base).to_string(), "61be64713bad8c68565ad49f6cb3e865a79064e64e3ce1de1a02cca506d45ecc");
    }
}
