//! What is asked of a model and what comes back: requests, the pieces of an answer, how it ended and what it took. HTTP and
//! Cap'n Proto have their own forms and translate; what is wrong with a request whatever the model is said here, for all of
//! them alike.

use std::time::Duration;

use pangea_client::AnswerStage;
use pangea_compute::sample::{AnswerFormat, Sampling};

use crate::model_text::{Prompt, TokenText, WrongField};
use crate::pipeline::wire::StageAt;
use pangea_control::jobs::{Api, Owner};
use pangea_control::trust::Verdict;

/// One request.
#[derive(Clone, Debug)]
pub struct Request {
    /// What its answer is called, where it is called anything; receipts name it.
    pub id: String,
    /// What the answer follows.
    pub prompt: Prompt,
    /// How tokens are chosen. Choice `i` of several uses seed + `i`.
    pub sampling: Sampling,
    /// The most tokens of one answer; `None`: until the model ends it, or its context does.
    pub max_tokens: Option<usize>,
    /// Texts at which an answer ends; they are not part of it.
    pub stop: Vec<String>,
    /// How many answers, 1 to [`MAX_CHOICES`].
    pub choices: usize,
    /// What form the answer has.
    pub format: AnswerFormat,
    /// Whether the prompt's tokens get log-probabilities, too, if the answer's do.
    pub prompt_logprobs: bool,
    /// Whether a receipt is kept of it where other nodes have a part in it. Without one nothing is signed or audited.
    pub receipt: bool,
    /// Who asks.
    pub owner: Owner,
}

/// Most answers of one request: each takes a place among the running.
pub const MAX_CHOICES: usize = crate::pipeline::limits::MAX_CHOICES as usize;

/// Largest bias of a token, either way; -100 all but forbids it.
const MAX_LOGIT_BIAS: f32 = 100.0;

impl Request {
    /// One answer to `prompt`, with the sampling's defaults.
    pub fn new(prompt: Prompt) -> Request {
        Request {
            id: String::new(),
            prompt,
            sampling: Sampling::default(),
            max_tokens: None,
            stop: Vec::new(),
            choices: 1,
            format: AnswerFormat::Text,
            prompt_logprobs: false,
            receipt: true,
            owner: Owner::of(Api::Node),
        }
    }

    /// Everything that is wrong with it whatever the model is.
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

/// What comes of a request, piece by piece.
#[derive(Clone, Debug)]
pub enum Event {
    /// The tokens of the prompt with their log-probabilities, where they were asked for; before anything else.
    Prompt(Vec<TokenLogprob>),
    /// More of one answer.
    Delta(Delta),
    /// All answers have ended.
    Done(Summary),
}

/// More of one answer.
#[derive(Clone, Debug, Default)]
pub struct Delta {
    /// Which answer, from 0.
    pub choice: usize,
    /// Whole characters only; may be empty while something is held back.
    pub text: String,
    /// Tokens that were chosen for it.
    pub tokens: Vec<u32>,
    /// One for each token, where they were asked for.
    pub logprobs: Vec<TokenLogprob>,
    /// Set in the answer's last piece.
    pub finish: Option<Finish>,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it, a stop text came, or the JSON is whole.
    Stop,
    /// So many tokens were asked for, or the context is full.
    Length,
}

impl Finish {
    /// As OpenAI names it.
    pub fn name(self) -> &'static str {
        match self {
            Finish::Stop => "stop",
            Finish::Length => "length",
        }
    }
}

/// A token with its log-probability and those of the most likely ones in its place.
#[derive(Clone, Debug)]
pub struct TokenLogprob {
    /// The token.
    pub token: TokenText,
    /// Natural logarithm of its probability; `None` for the first token of a prompt, which follows nothing.
    pub logprob: Option<f32>,
    /// The most likely tokens, best first.
    pub top: Vec<(TokenText, f32)>,
}

/// What a whole request took.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of these, computed by an earlier request.
    pub cached_tokens: usize,
    /// Tokens of all answers, those that end them included.
    pub answer_tokens: usize,
    /// Tokens that were drafted, and of these, those that were right.
    pub drafted_tokens: usize,
    /// Drafted tokens that the model chose, too.
    pub accepted_tokens: usize,
    /// From the request's arrival to its first step.
    pub queued: Duration,
    /// From then to the first token.
    pub prompt: Duration,
    /// From the first token to the last of all answers.
    pub answer: Duration,
    /// Who computed which layers, in the end.
    pub stages: Vec<StageAt>,
    /// How often an answer had to go on elsewhere.
    pub failovers: usize,
    /// How far it can be trusted.
    pub verdict: Verdict,
    /// Ids of the receipts that are kept of it.
    pub receipts: Vec<String>,
}

impl Summary {
    /// Who computed which layers, as programs are told.
    pub fn answer_stages(&self) -> Vec<AnswerStage> {
        let stages = self.stages.iter();
        stages
            .map(|stage| AnswerStage { peer: stage.peer.to_string(), layers: [stage.layers.start, stage.layers.end] })
            .collect()
    }

    /// Tokens per second of the answer; 0 where there were too few to tell.
    pub fn answer_tokens_per_s(&self) -> f64 {
        rate(self.answer_tokens.saturating_sub(1), self.answer)
    }

    /// Tokens per second of the prompt, those that were computed.
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
    fn what_no_model_can_serve_is_refused_by_its_field() {
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
