//! From logits to a token: [`Sampling`] has the parameters, [`choose`] chooses; grammars, masks and stop strings are
//! beside them. Everything is a pure function of the request and the tokens so far, with the same bits on every
//! machine. No state of a generator is kept, and no clock is read.
//!
//! The map:
//!
//! | module | owns |
//! |---|---|
//! | [`answer_format`] | free text or JSON |
//! | [`grammar`] | JSON Schema as a constraint on tokens |
//! | [`mask`] | sets of allowed tokens |
//! | [`plausible`] | the tokens that an engine with slightly different logits could have chosen |
//! | [`recommended`] | the terms that a model's authors recommend |
//! | [`stop`] | stop strings in streamed text |
//! | `penalty`, `ranking`, `truncation` | biases and penalties; the highest logits; top-k, typical, top-p, min-p |
//! | `philox`, `math` | counter-based random numbers; exp and ln |

pub mod answer_format;
pub mod grammar;
pub mod mask;
mod math;
mod penalty;
mod philox;
pub mod plausible;
mod ranking;
pub mod recommended;
pub mod stop;
mod truncation;

use crate::Error;
pub use answer_format::AnswerFormat;
use mask::TokenMask;
use ranking::Ranking;
use truncation::Kept;

const OPERATION: &str = "sampling";
/// Alternatives per token, at most: the limit of the OpenAI API.
pub const MAX_LOGPROBS: usize = 20;

/// Parameters of the choice of the next token. The steps, in the order of llama.cpp's chain: grammar mask,
/// `logit_bias`, repetition, frequency and presence penalties, `top_k`, `typical_p`, `top_p`, `min_p`, `temperature`,
/// one draw. (vLLM and Hugging Face apply the temperature before the truncations; at temperature 1 the result is the
/// same.)
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Divisor of the logits, at most 100. 0 is greedy: the most likely token, the lowest id among equals.
    pub temperature: f32,
    /// Only this many of the most likely tokens; 0 is off.
    pub top_k: usize,
    /// The most likely tokens that together reach this probability, in (0, 1]; 1 is off.
    pub top_p: f32,
    /// Tokens at least this fraction as likely as the most likely one, in [0, 1]; 0 is off.
    pub min_p: f32,
    /// Locally typical sampling (Meister et al. 2022): the tokens whose surprise is nearest to the entropy, until they
    /// reach this probability, in (0, 1]; 1 is off.
    pub typical_p: f32,
    /// Divisor of positive logits, and factor of negative ones, of tokens that occur in prompt or answer (Keskar et al.
    /// 2019), in (0, 100]; 1 is off.
    pub repetition_penalty: f32,
    /// The number of last tokens that the three penalties consider; `None` is all tokens.
    pub repetition_window: Option<usize>,
    /// Subtracted from the logit of every token in the answer so far, as OpenAI defines it, in [-100, 100]; 0 is off.
    pub presence_penalty: f32,
    /// Subtracted from the logit of a token for each of its occurrences in the answer so far, in [-100, 100]; 0 is off.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens: finite numbers.
    pub logit_bias: Vec<(u32, f32)>,
    /// The key of the random numbers; the token's position is the counter.
    pub seed: u64,
    /// With `Some(n)`, a [`Choice`] has its log-probability and those of the `n` most likely tokens; n ≤
    /// [`MAX_LOGPROBS`].
    pub logprobs: Option<usize>,
}

impl Default for Sampling {
    /// llama.cpp's defaults: temperature 0.8, top-k 40, top-p 0.95, min-p 0.05, no penalties.
    fn default() -> Sampling {
        Sampling {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            typical_p: 1.0,
            repetition_penalty: 1.0,
            repetition_window: None,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
            logprobs: None,
        }
    }
}

impl Sampling {
    /// The most likely token at every position, without randomness.
    pub fn greedy() -> Sampling {
        Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, ..Sampling::default() }
    }

    /// The same for the answer number `choice` of a request: every answer draws with a seed of its own, the first with the
    /// request's.
    pub fn of_choice(&self, choice: u16) -> Sampling {
        Sampling { seed: self.seed.wrapping_add(u64::from(choice)), ..self.clone() }
    }

    /// Errors (`InvalidInput`): a parameter outside its range, or a biased token outside a vocabulary of this size.
    /// [`choose`] checks this too; a server checks it once, before a request is queued.
    pub fn check(&self, vocabulary: usize) -> Result<(), Error> {
        let within = |name: &str, value: f32, ok: bool, range: &str| {
            if ok { Ok(()) } else { Err(invalid(format!("{name} is {value}; it must be {range}"))) }
        };
        let t = self.temperature;
        within("temperature", t, (0.0..=100.0).contains(&t), "between 0 (greedy) and 100")?;
        for (name, p) in [("top_p", self.top_p), ("typical_p", self.typical_p)] {
            within(name, p, p > 0.0 && p <= 1.0, "above 0 and at most 1 (1 turns it off)")?;
        }
        within("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "between 0 (off) and 1")?;
        let r = self.repetition_penalty;
        within("repetition_penalty", r, r > 0.0 && r <= 100.0, "above 0 and at most 100 (1 turns it off)")?;
        for (name, p) in [("presence_penalty", self.presence_penalty), ("frequency_penalty", self.frequency_penalty)] {
            within(name, p, (-100.0..=100.0).contains(&p), "between -100 and 100 (0 turns it off)")?;
        }
        for &(token, bias) in &self.logit_bias {
            if token as usize >= vocabulary {
                return Err(invalid(format!(
                    "logit_bias names token {token}, but this model's tokens are 0 to {}",
                    vocabulary.saturating_sub(1)
                )));
            }
            if !bias.is_finite() {
                return Err(invalid(format!(
                    "logit_bias for token {token} is {bias}; it must be a finite number (-100 all but forbids a token)"
                )));
            }
        }
        match self.logprobs {
            Some(n) if n > MAX_LOGPROBS => {
                Err(invalid(format!("logprobs asks for {n} alternatives; at most {MAX_LOGPROBS} are supported")))
            }
            _ => Ok(()),
        }
    }
}

/// The token that was chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// The token's id.
    pub token: u32,
    /// The natural logarithm of the token's probability: log-softmax of the model's logits, before mask, bias,
    /// penalties and temperature. `Some` where [`Sampling::logprobs`] asks for it.
    pub logprob: Option<f32>,
    /// The most likely tokens with their log-probabilities, best first, lower ids first among equals; empty where not
    /// requested.
    pub top: Vec<(u32, f32)>,
}

/// The next token after `prompt` and `generated`.
///
/// `logits`: `[vocabulary]`, natural units; overwritten. −∞ forbids a token. `allowed`: tokens outside the mask are
/// forbidden. The randomness is Philox4x32-10 keyed by the seed, with `prompt.len() + generated.len()` as counter.
///
/// Errors (`InvalidInput`): as [`Sampling::check`]; no logits; a token of `prompt` or `generated` outside the
/// vocabulary; every token forbidden. `Internal`: a logit that is NaN or +∞.
pub fn choose(
    sampling: &Sampling,
    prompt: &[u32],
    generated: &[u32],
    logits: &mut [f32],
    allowed: Option<&TokenMask>,
) -> Result<Choice, Error> {
    sampling.check(logits.len())?;
    refuse_non_finite(logits)?;
    let raw = sampling.logprobs.map(|count| (logits.to_vec(), count));
    for &(token, bias) in &sampling.logit_bias {
        logits[token as usize] += bias;
    }
    penalty::apply(sampling, prompt, generated, logits)?;
    if let Some(mask) = allowed {
        mask.apply(logits);
    }
    let ranking = Ranking::of(logits);
    let best = ranking.best().filter(|best| best.logit > f32::NEG_INFINITY).ok_or_else(|| {
        invalid(
            "every token is forbidden by the grammar, the logit bias or the model; loosen the constraint".to_owned(),
        )
    })?;
    if best.logit == f32::INFINITY {
        return Err(invalid(format!("logit_bias and penalties make the logit of token {} infinite", best.token)));
    }
    let token = if sampling.temperature == 0.0 {
        best.token
    } else {
        let position = prompt.len() as u64 + generated.len() as u64;
        let kept = Kept::of(sampling, &ranking, best);
        kept.draw(&ranking, best.logit, sampling.temperature, philox::uniform(sampling.seed, position))
    };
    Ok(match raw {
        None => Choice { token, logprob: None, top: Vec::new() },
        Some((raw, count)) => with_logprobs(token, &raw, count),
    })
}

/// How likely `token` was as the next one, whatever would have been chosen: the token with its log-probability and that many
/// alternatives, if requested.
///
/// `logits`: `[vocabulary]`, as the model gives them; overwritten.
///
/// Errors: as [`choose`], without grammar, biases and penalties.
pub fn score(logprobs: Option<usize>, token: u32, logits: &mut [f32]) -> Result<Choice, Error> {
    let mut only = TokenMask::none(logits.len());
    only.allow(token);
    choose(&Sampling { logprobs, ..Sampling::greedy() }, &[], &[], logits, Some(&only))
}

fn invalid(what: String) -> Error {
    Error::invalid(OPERATION, what)
}

fn refuse_non_finite(logits: &[f32]) -> Result<(), Error> {
    // NaN compares false, so NaN is found too; no early exit, so that the loop is vectorised.
    if logits.iter().fold(true, |good, &logit| good & (logit < f32::INFINITY)) {
        return Ok(());
    }
    let token = logits.iter().position(|&logit| logit.is_nan() || logit == f32::INFINITY).unwrap_or_default();
    Err(Error::NonFinite { operation: OPERATION, what: format!("the logit of token {token} is {}", logits[token]) })
}

fn with_logprobs(token: u32, raw: &[f32], count: usize) -> Choice {
    let ranking = Ranking::of(raw);
    let max = ranking.best().map_or(0.0, |best| f64::from(best.logit));
    let log_sum = math::ln(truncation::sum_of_weights(raw, max, 1.0));
    let logprob = |logit: f32| (f64::from(logit) - max - log_sum) as f32;
    Choice {
        token,
        logprob: Some(logprob(raw[token as usize])),
        top: ranking.top(count).into_iter().map(|candidate| (candidate.token, logprob(candidate.logit))).collect(),
    }
}

#[cfg(test)]
mod tests;
