//! The text of one answer while its tokens arrive: whole characters, stop texts, log-probabilities. No tokens are
//! chosen here, and their origin does not matter.

use pangea_client::Result;
use pangea_compute::sample::stop::StopMatcher;
use pangea_compute::tokenizer::Detokenizer;

use super::request::{Delta, Finish, TokenLogprob};
use crate::compute_error;
use crate::model_text::ModelText;
use crate::pipeline::wire::{EndReason, TokenOut};

/// Text state of one answer.
pub(super) struct AnswerText {
    choice: usize,
    stops: StopMatcher,
    /// Control tokens that are shown as text.
    shown: Vec<u32>,
    detokenizer: Detokenizer,
    logprobs: bool,
}

impl AnswerText {
    /// An answer without tokens. `choice`: its index within the request; `shown`: control tokens that are shown as text.
    pub(super) fn new(choice: usize, stops: StopMatcher, shown: Vec<u32>, logprobs: bool) -> AnswerText {
        AnswerText { choice, stops, shown, detokenizer: Detokenizer::new(), logprobs }
    }

    /// Converts new tokens to text; `ended`: why no tokens follow them.
    pub(super) fn add_tokens(
        &mut self,
        text: &ModelText,
        tokens: &[TokenOut],
        ended: Option<EndReason>,
    ) -> Result<Delta> {
        let mut delta = Delta { choice: self.choice, ..Delta::default() };
        for out in tokens {
            if text.tokenizer.is_end_of_generation(out.token) {
                break;
            }
            delta.tokens.push(out.token);
            if self.logprobs {
                delta.logprobs.push(with_text(text, out));
            }
            let is_shown = self.shown.contains(&out.token);
            let bytes = text.tokenizer.token_bytes(out.token, is_shown).unwrap_or_default();
            let emitted = self.stops.push(&self.detokenizer.push_bytes(&bytes));
            delta.text.push_str(&emitted.text);
            if emitted.stopped {
                delta.finish = Some(Finish::Stop);
                delta.stop_text = self.stops.found().map(str::to_owned);
                return Ok(delta);
            }
        }
        if let Some(reason) = ended {
            delta.finish = Some(match reason {
                EndReason::Length => Finish::Length,
                EndReason::Stop | EndReason::GrammarComplete => Finish::Stop,
            });
            self.close(&mut delta)?;
        }
        Ok(delta)
    }

    /// Emits the text that was held back, because no tokens follow.
    fn close(&mut self, delta: &mut Delta) -> Result<()> {
        let emitted = self.stops.push(&self.detokenizer.finish());
        delta.text.push_str(&emitted.text);
        if emitted.stopped {
            delta.finish = Some(Finish::Stop);
            delta.stop_text = self.stops.found().map(str::to_owned);
            return Ok(());
        }
        let none: [&str; 0] = [];
        let stops = std::mem::replace(&mut self.stops, StopMatcher::new(&none).map_err(compute_error)?);
        delta.text.push_str(&stops.finish());
        Ok(())
    }
}

/// A token and its log-probabilities, with text.
pub(super) fn with_text(text: &ModelText, out: &TokenOut) -> TokenLogprob {
    TokenLogprob {
        token: text.token(out.token),
        logprob: out.logprob,
        top: out.top.iter().map(|&(token, logprob)| (text.token(token), logprob)).collect(),
    }
}
