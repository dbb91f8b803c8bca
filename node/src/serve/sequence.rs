//! One answer while it is generated: from logits to tokens, from tokens to text, and when it ends. It computes no logits
//! and knows nothing of other answers.

use pangea_client::Result;
use pangea_compute::draft::Drafter;
use pangea_compute::sample::grammar::Grammar;
use pangea_compute::sample::mask::TokenMask;
use pangea_compute::sample::stop::StopMatcher;
use pangea_compute::sample::{Choice, Sampling, choose};
use pangea_compute::tokenizer::Detokenizer;

use super::request::{Delta, Finish, TokenLogprob};
use super::text::ModelText;
use crate::compute_error;

/// An answer under way.
pub(super) struct Sequence {
    /// Of which request.
    pub(super) request: u64,
    /// Which of its answers, from 0.
    pub(super) choice: usize,
    /// The prompt and what was chosen.
    pub(super) tokens: Vec<u32>,
    pub(super) prompt_len: usize,
    /// Tokens that may be chosen.
    most: usize,
    sampling: Sampling,
    grammar: Option<Grammar>,
    stops: StopMatcher,
    detokenizer: Detokenizer,
    drafter: Option<Box<Drafter>>,
    draft: Vec<u32>,
    /// Whether the prompt's own log-probabilities are wanted; those that are there.
    prompt_logprobs: Option<Vec<TokenLogprob>>,
}

/// What a step brought an answer.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// Tokens that were chosen, in order.
    pub(super) chosen: Vec<u32>,
    /// Drafted tokens that were right: as many more positions of the cache hold.
    pub(super) accepted: usize,
    /// What is to be told.
    pub(super) delta: Delta,
}

impl Sequence {
    /// Nothing chosen yet.
    #[allow(clippy::too_many_arguments)] // One place makes them, from as many sources.
    pub(super) fn new(
        request: u64,
        choice: usize,
        prompt: Vec<u32>,
        most: usize,
        sampling: Sampling,
        grammar: Option<Grammar>,
        stops: StopMatcher,
        prompt_logprobs: bool,
    ) -> Sequence {
        Sequence {
            request,
            choice,
            prompt_len: prompt.len(),
            tokens: prompt,
            most,
            sampling,
            grammar,
            stops,
            detokenizer: Detokenizer::new(),
            drafter: None,
            draft: Vec::new(),
            prompt_logprobs: prompt_logprobs.then(Vec::new),
        }
    }

    /// How many tokens were chosen.
    pub(super) fn chosen(&self) -> usize {
        self.tokens.len() - self.prompt_len
    }

    /// Whether the logits of every row of the prompt are wanted.
    pub(super) fn wants_all_logits(&self) -> bool {
        self.prompt_logprobs.is_some() && self.chosen() == 0
    }

    /// How many tokens the last draft has.
    pub(super) fn drafted(&self) -> usize {
        self.draft.len()
    }

    /// Guesses at most `limit` of the next tokens.
    pub(super) fn draft(&mut self, limit: usize) -> &[u32] {
        // The last token of an answer needs no row of its own.
        let limit = limit.min(self.most.saturating_sub(self.chosen() + 1));
        self.draft.clear();
        if limit > 0 {
            let drafter = self.drafter.get_or_insert_with(|| Box::new(Drafter::new()));
            self.draft.extend_from_slice(drafter.propose(&self.tokens, limit));
        }
        &self.draft
    }

    /// What the last pass took, which it had to itself.
    pub(super) fn observe(&mut self, accepted: usize, seconds: f64) {
        let rows = 1 + self.draft.len();
        if let Some(drafter) = &mut self.drafter {
            drafter.observe(rows, accepted, seconds);
        }
    }

    /// Takes the logits of prompt rows `start`, `start + 1`, …: `[rows, vocabulary]`, overwritten. The last row of a prompt
    /// tells of no token of it.
    pub(super) fn score_prompt(
        &mut self,
        text: &ModelText,
        start: usize,
        vocabulary: usize,
        logits: &mut [f32],
    ) -> Result<()> {
        let Some(scored) = &mut self.prompt_logprobs else { return Ok(()) };
        let sampling = Sampling { logprobs: self.sampling.logprobs, ..Sampling::greedy() };
        if start == 0 {
            // Again, where it gave its memory up in between.
            scored.clear();
            scored.push(TokenLogprob { token: text.token(self.tokens[0]), logprob: None, top: Vec::new() });
        }
        for (row, &token) in logits.chunks_exact_mut(vocabulary).zip(&self.tokens[start + 1..self.prompt_len]) {
            let mut only = TokenMask::none(vocabulary);
            only.allow(token);
            let choice = choose(&sampling, &[], &[], row, Some(&only)).map_err(compute_error)?;
            scored.push(with_text(text, choice));
        }
        Ok(())
    }

    /// The prompt's log-probabilities, once all are there.
    pub(super) fn take_prompt_logprobs(&mut self) -> Option<Vec<TokenLogprob>> {
        self.prompt_logprobs.take_if(|scored| scored.len() == self.prompt_len)
    }

    /// Takes the logits behind the last token and behind each drafted one: `[1 + drafted, vocabulary]`, overwritten. Each
    /// token is chosen as if there had been no draft; the logits behind a wrong guess are not looked at.
    pub(super) fn take(&mut self, text: &ModelText, vocabulary: usize, logits: &mut [f32]) -> Result<Taken> {
        let mut taken = Taken { delta: Delta { choice: self.choice, ..Delta::default() }, ..Taken::default() };
        if self.most == 0 {
            taken.delta.finish = Some(Finish::Length);
            return Ok(taken);
        }
        for (at, row) in logits.chunks_exact_mut(vocabulary).enumerate() {
            let allowed = self.grammar.as_mut().map(Grammar::mask).transpose().map_err(compute_error)?;
            let (prompt, chosen) = self.tokens.split_at(self.prompt_len);
            let choice = choose(&self.sampling, prompt, chosen, row, allowed.as_ref()).map_err(compute_error)?;
            let token = choice.token;
            self.tokens.push(token);
            taken.chosen.push(token);
            self.say(text, choice, &mut taken.delta)?;
            if taken.delta.finish.is_some() || self.draft.get(at) != Some(&token) {
                break;
            }
            taken.accepted += 1;
        }
        Ok(taken)
    }

    /// Adds what a token says, and whether it was the last.
    fn say(&mut self, text: &ModelText, choice: Choice, delta: &mut Delta) -> Result<()> {
        let token = choice.token;
        if text.tokenizer.is_end_of_generation(token) {
            delta.finish = Some(Finish::Stop);
            return self.close(delta);
        }
        if let Some(grammar) = &mut self.grammar {
            grammar.accept(token).map_err(compute_error)?;
        }
        delta.tokens.push(token);
        if self.sampling.logprobs.is_some() {
            delta.logprobs.push(with_text(text, choice));
        }
        let emitted = self.stops.push(&self.detokenizer.push(&text.tokenizer, token));
        delta.text.push_str(&emitted.text);
        if emitted.stopped {
            delta.finish = Some(Finish::Stop);
            return Ok(());
        }
        if self.grammar.as_ref().is_some_and(Grammar::is_complete) {
            delta.finish = Some(Finish::Stop);
        } else if self.chosen() >= self.most {
            delta.finish = Some(Finish::Length);
        }
        if delta.finish.is_some() { self.close(delta) } else { Ok(()) }
    }

    /// What was held back, now that nothing follows.
    fn close(&mut self, delta: &mut Delta) -> Result<()> {
        let emitted = self.stops.push(&self.detokenizer.finish());
        delta.text.push_str(&emitted.text);
        if emitted.stopped {
            delta.finish = Some(Finish::Stop);
            return Ok(());
        }
        let none: [&str; 0] = [];
        let stops = std::mem::replace(&mut self.stops, StopMatcher::new(&none).map_err(compute_error)?);
        delta.text.push_str(&stops.finish());
        Ok(())
    }
}

fn with_text(text: &ModelText, choice: Choice) -> TokenLogprob {
    TokenLogprob {
        token: text.token(choice.token),
        logprob: choice.logprob,
        top: choice.top.into_iter().map(|(token, logprob)| (text.token(token), logprob)).collect(),
    }
}
