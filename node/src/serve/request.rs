//! Requests to a model and their events: the pieces of an answer, why it ended, and its cost. HTTP and
//! Cap'n Proto translate their own formats; checks that do not depend on the model are made here for
//! both.

use std::time::Duration;

use libp2p::PeerId;
use pangea_client::AnswerStage;
use pangea_compute::sample::recommended::OpenTerms;
use pangea_compute::sample::{AnswerFormat, Sampling};

use crate::model_text::{Prompt, TokenText, WrongField};
use crate::pipeline::wire::StageAt;
use pangea_control::jobs::{Api, Owner};
use pangea_control::trust::Verdict;

/// One request.
#[derive(Clone, Debug)]
pub struct Request {
    /// Id of the request, if the API gives one; receipts contain it.
    pub id: String,
    /// The prompt.
    pub prompt: Prompt,
    /// Sampling terms. Choice `i` uses seed + `i`.
    pub sampling: Sampling,
    /// The terms of the sampling that are the model's to choose.
    pub open_terms: OpenTerms,
    /// Maximum tokens of one answer; `None`: until the model ends it, or the context is full.
    pub max_tokens: Option<usize>,
    /// Texts at which an answer ends; they are not part of it.
    pub stop: Vec<String>,
    /// Number of answers, 1 to [`MAX_CHOICES`].
    pub choices: usize,
    /// Format of the answer.
    pub format: AnswerFormat,
    /// Whether the prompt's tokens get log-probabilities as well, if the answer's do.
    pub prompt_logprobs: bool,
    /// Whether a receipt is stored if other nodes compute a part. Without one nothing is signed or audited.
    pub receipt: bool,
    /// The only node that may compute the answers; `None`: whichever is best.
    pub server: Option<PeerId>,
    /// Owner of the job.
    pub owner: Owner,
}

/// Maximum answers of one request: each takes a running place.
pub const MAX_CHOICES: usize = crate::pipeline::limits::MAX_CHOICES as usize;

/// Maximum absolute bias of a token; -100 practically forbids it.
const MAX_LOGIT_BIAS: f32 = 100.0;

impl Request {
    /// One answer to `prompt`, with the sampling's defaults.
    pub fn new(prompt: Prompt) -> Request {
        Request {
            id: String::new(),
            prompt,
            sampling: Sampling::default(),
            open_terms: OpenTerms::default(),
            max_tokens: None,
            stop: Vec::new(),
            choices: 1,
            format: AnswerFormat::Text,
            prompt_logprobs: false,
            receipt: true,
            server: None,
            owner: Owner::of(Api::Node),
        }
    }

    /// Checks everything that does not depend on the model.
    ///
    /// # Errors
    /// The first [`WrongField`].
    pub fn check(&self) -> Result<(), WrongField> {
        if !(1..=MAX_CHOICES).contains(&self.choices) {
            return Err(WrongField::new("n", format!("{} answers; it must be 1 to {MAX_CHOICES}", self.choices)));
        }
        let bias = self.sampling.logit_bias.iter().find(|(_, bias)| !(-MAX_LOGIT_BIAS..=MAX_LOGIT_BIAS).contains(bias));
        if let Some((token, bias)) = bias {
            let why = format!("the bias of token {token} is {bias}; it must be -{MAX_LOGIT_BIAS} to {MAX_LOGIT_BIAS}");
            return Err(WrongField::new("logit_bias", why));
        }
        self.prompt.check()
    }
}

/// An event of a request.
#[derive(Clone, Debug)]
pub enum Event {
    /// More of what precedes the next token is computed.
    Prefill(Prefill),
    /// The tokens of the prompt with their log-probabilities, if requested; comes first.
    Prompt(Vec<TokenLogprob>),
    /// More of one answer.
    Delta(Delta),
    /// All answers have ended.
    Done(Summary),
}

/// How many of the tokens that precede the next one are computed: those of the prompt, and after a failover the beginning of the
/// answer with them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prefill {
    /// Tokens that are computed.
    pub computed: usize,
    /// All of them.
    pub total: usize,
}

/// A piece of one answer.
#[derive(Clone, Debug, Default)]
pub struct Delta {
    /// Index of the answer.
    pub choice: usize,
    /// Text in whole characters; may be empty while some is held back.
    pub text: String,
    /// Tokens of the piece.
    pub tokens: Vec<u32>,
    /// One per token, if requested.
    pub logprobs: Vec<TokenLogprob>,
    /// Set in the answer's last piece.
    pub finish: Option<Finish>,
    /// The stop text that ended the answer.
    pub stop_text: Option<String>,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended the answer, a stop text appeared, or the JSON is complete.
    Stop,
    /// The maximum number of tokens is reached, or the context is full.
    Length,
}

impl Finish {
    /// OpenAI's name.
    pub fn name(self) -> &'static str {
        match self {
            Finish::Stop => "stop",
            Finish::Length => "length",
        }
    }
}

/// A token with its log-probability and the most likely tokens at its position.
#[derive(Clone, Debug)]
pub struct TokenLogprob {
    /// The token.
    pub token: TokenText,
    /// Natural logarithm of its probability; `None` for the first token of a prompt.
    pub logprob: Option<f32>,
    /// The most likely tokens, best first.
    pub top: Vec<(TokenText, f32)>,
}

/// The cost of a whole request.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the prompt that were cached from an earlier request.
    pub cached_tokens: usize,
    /// Tokens of all answers, including those that end them.
    pub answer_tokens: usize,
    /// Tokens that were drafted.
    pub drafted_tokens: usize,
    /// Drafted tokens that were accepted.
    pub accepted_tokens: usize,
    /// Time from the request's arrival to its first step.
    pub queued: Duration,
    /// Time from then to the first token.
    pub prompt: Duration,
    /// Time from the first token to the last one of all answers.
    pub answer: Duration,
    /// The stages of the last segment of each answer.
    pub stages: Vec<StageAt>,
    /// Failovers and recomputations of all answers.
    pub failovers: usize,
    /// How far the answers can be trusted.
    pub verdict: Verdict,
    /// Ids of the answers' receipts.
    pub receipts: Vec<String>,
}

impl Summary {
    /// The stages in the client's type.
    pub fn answer_stages(&self) -> Vec<AnswerStage> {
        crate::jobs::stages(&self.stages)
    }

    /// Tokens per second of the answer; 0 if there were too few.
    pub fn answer_tokens_per_s(&self) -> f64 {
        rate(self.answer_tokens.saturating_sub(1), self.answer)
    }

    /// Computed tokens per second of the prompt.
    pub fn prompt_tokens_per_s(&self) -> f64 {
        rate(self.prompt_tokens - self.cached_tokens, self.prompt)
    }
}

fn rate(tokens: usize, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { tokens as f64 / time.as_secs_f64() }
}

#[cfg(test)]
mod tests {
    use pangea_compute::chat::Message;

    use super::*;

    fn saying(roles: &[&str]) -> Request {
        Request::new(Prompt::chat(roles.iter().map(|role| Message::new(*role, "hello")).collect()))
    }

    #[test]
    fn requests_wrong_for_every_model_are_refused_by_field() {
        let field = |request: &Request| request.check().err().map(|wrong| wrong.field);
        assert_eq!(field(&saying(&["user"])), None);
        assert_eq!(field(&saying(&["user", "king"])).as_deref(), Some("messages[1]"));
        for choices in [0, MAX_CHOICES + 1] {
            assert_eq!(field(&Request { choices, ..saying(&["user"]) }).as_deref(), Some("n"));
        }
        for (bias, expected) in [(100.0, None), (-100.5, Some("logit_bias")), (f32::NAN, Some("logit_bias"))] {
            let sampling = Sampling { logit_bias: vec![(1, bias)], ..Sampling::default() };
            assert_eq!(field(&Request { sampling, ..saying(&["user"]) }).as_deref(), expected, "{bias}");
        }
    }
}
