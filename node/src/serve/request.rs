//! What is asked of a model and what comes back: requests, the pieces of an answer, how it ended and what it took. HTTP and
//! Cap'n Proto have their own forms and translate; what is wrong with a request whatever the model is said here, for all of
//! them alike.

use std::time::Duration;

use pangea_client::{AnswerStage, Error, ErrorKind};
use pangea_compute::chat::Message;
use pangea_compute::sample::{AnswerFormat, Sampling};

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
pub const MAX_CHOICES: usize = 8;

/// Most messages of one conversation: more than any context holds.
const MAX_MESSAGES: usize = 4096;

/// Largest bias of a token, either way; -100 all but forbids it.
const MAX_LOGIT_BIAS: f32 = 100.0;

/// Who can have said a message.
const ROLES: [&str; 4] = ["system", "user", "assistant", "tool"];

/// A field of a request that no model can serve.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {why}")]
pub struct WrongField {
    /// The field, as OpenAI's clients name it.
    pub field: String,
    /// What is wrong with it.
    pub why: String,
}

impl WrongField {
    fn new(field: impl Into<String>, why: impl Into<String>) -> WrongField {
        WrongField { field: field.into(), why: why.into() }
    }
}

impl From<WrongField> for Error {
    fn from(wrong: WrongField) -> Error {
        Error::new(ErrorKind::InvalidInput, wrong.to_string())
    }
}

/// The role of message `at`; `developer` is the newer name of `system`.
///
/// # Errors
/// [`WrongField`] for a role that nobody can have.
pub fn role(at: usize, text: &str) -> Result<&'static str, WrongField> {
    let text = if text == "developer" { "system" } else { text };
    ROLES.into_iter().find(|role| *role == text).ok_or_else(|| {
        let why = format!("the role {text:?} is none of system, developer, user, assistant and tool");
        WrongField::new(format!("messages[{at}]"), why)
    })
}

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

/// What an answer follows.
#[derive(Clone, Debug)]
pub enum Prompt {
    /// A text, to be gone on with.
    Text(String),
    /// The same as token ids.
    Tokens(Vec<u32>),
    /// A conversation, brought into the model's own form.
    Chat {
        /// What was said so far.
        messages: Vec<Message>,
        /// Descriptions of tools for the model's template, as OpenAI writes them.
        tools: Option<serde_json::Value>,
        /// Further variables of the template, such as `enable_thinking`.
        variables: serde_json::Map<String, serde_json::Value>,
    },
}

impl Prompt {
    /// Everything that is wrong with it whatever the model is.
    ///
    /// # Errors
    /// The first [`WrongField`].
    pub fn check(&self) -> Result<(), WrongField> {
        let Prompt::Chat { messages, .. } = self else { return Ok(()) };
        if messages.is_empty() || messages.len() > MAX_MESSAGES {
            let why = format!("{} messages; it must be 1 to {MAX_MESSAGES}", messages.len());
            return Err(WrongField::new("messages", why));
        }
        messages.iter().enumerate().try_for_each(|(at, message)| role(at, &message.role).map(drop))
    }

    /// A conversation without tools.
    pub fn chat(messages: Vec<Message>) -> Prompt {
        Prompt::Chat { messages, tools: None, variables: serde_json::Map::new() }
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

/// A token as its bytes, which need not be whole characters.
#[derive(Clone, Debug)]
pub struct TokenText {
    /// Its id.
    pub id: u32,
    /// What it stands for.
    pub bytes: Vec<u8>,
}

impl TokenText {
    /// As text, with U+FFFD for what is none.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
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
    use super::*;

    fn saying(roles: &[&str]) -> Request {
        Request::new(Prompt::chat(roles.iter().map(|role| Message::new(*role, "hello")).collect()))
    }

    #[test]
    fn what_no_model_can_serve_is_refused_by_its_field() {
        let field = |request: &Request| request.check().err().map(|wrong| wrong.field);
        assert_eq!(field(&saying(&["system", "user", "assistant", "tool"])), None);
        assert_eq!(field(&saying(&[])).as_deref(), Some("messages"));
        assert_eq!(field(&saying(&vec!["user"; MAX_MESSAGES])), None);
        assert_eq!(field(&saying(&vec!["user"; MAX_MESSAGES + 1])).as_deref(), Some("messages"));
        assert_eq!(field(&saying(&["user", "king"])).as_deref(), Some("messages[1]"));
        for choices in [0, MAX_CHOICES + 1] {
            assert_eq!(field(&Request { choices, ..saying(&["user"]) }).as_deref(), Some("n"));
        }
        for (bias, expected) in [(100.0, None), (-100.5, Some("logit_bias")), (f32::NAN, Some("logit_bias"))] {
            let sampling = Sampling { logit_bias: vec![(1, bias)], ..Sampling::default() };
            assert_eq!(field(&Request { sampling, ..saying(&["user"]) }).as_deref(), expected, "{bias}");
        }
    }

    #[test]
    fn a_developer_is_the_system() {
        assert_eq!(role(0, "developer"), Ok("system"));
        assert!(role(3, "king").unwrap_err().to_string().starts_with("messages[3]: the role \"king\""));
    }
}
