//! On the last stage: chooses tokens from logits, for every session. Logits and text are not made here, and other stages are
//! unknown.

use std::collections::HashMap;
use std::sync::Arc;

use libp2p::PeerId;
use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::commit::Leaf;
use pangea_compute::commit::merkle::{chosen_leaf, nothing_leaf};
use pangea_compute::sample::AnswerFormat;
use pangea_compute::sample::grammar::Grammar;
use pangea_compute::sample::{Choice, Sampling, choose, score};

use super::wire::{EndReason, Open, SessionId, TokenOut, Tokens};
use crate::compute_error;
use crate::model_text::{ModelText, PendingGrammar};

/// Grammars that one coordinator may have compiled at once: a client's burst of requests, whose compilations take milliseconds
/// each, and no more threads for one peer.
const GRAMMARS_PER_COORDINATOR: usize = 4;

/// Grammars that are compiled at once for all coordinators; each takes a thread.
const GRAMMARS: usize = 16;

/// The sessions of a last stage.
pub(super) struct Sampler {
    text: Arc<ModelText>,
    choosers: HashMap<SessionId, Chooser>,
    compiling: Compiling,
}

/// Grammars that were being compiled, with their coordinators; also those of sessions that are closed.
#[derive(Default)]
struct Compiling(Vec<(PeerId, PendingGrammar)>);

impl Compiling {
    /// Whether another grammar of a coordinator may be compiled now.
    fn has_place(&mut self, coordinator: &PeerId) -> bool {
        self.0.retain(|(_, grammar)| grammar.is_running());
        let own = self.0.iter().filter(|(of, _)| of == coordinator).count();
        own < GRAMMARS_PER_COORDINATOR && self.0.len() < GRAMMARS
    }
}

/// What the tokens of an answer must match.
enum Form {
    /// Any text.
    Free,
    /// A grammar that is not compiled yet; no token is chosen until it is.
    Pending(PendingGrammar),
    /// A grammar.
    Grammar(Box<Grammar>),
}

/// The sampling state of one answer.
pub(super) struct Chooser {
    pub(super) coordinator: PeerId,
    session: SessionId,
    /// The prompt and the chosen tokens.
    pub(super) tokens: Vec<u32>,
    /// The chosen tokens with log-probabilities, if requested.
    chosen: Vec<TokenOut>,
    prompt_len: usize,
    /// Number of tokens when the session was opened.
    opened_with: usize,
    max_new_tokens: usize,
    sampling: Sampling,
    form: Form,
    /// The scored tokens of the prompt, if requested. The first one has no log-probability.
    scores: Option<Vec<TokenOut>>,
    reported_cached: bool,
    ended: bool,
}

/// Result of a frame for one answer.
pub(super) struct Chosen {
    pub(super) coordinator: PeerId,
    /// Message for the coordinator.
    pub(super) tokens: Tokens,
    /// Token ids, for the first stage.
    pub(super) ids: Vec<u32>,
    /// Accepted drafted tokens: that many more positions of the cache are valid.
    pub(super) accepted: usize,
    pub(super) ended: bool,
}

impl Sampler {
    pub(super) fn new(text: Arc<ModelText>) -> Sampler {
        Sampler { text, choosers: HashMap::new(), compiling: Compiling::default() }
    }

    /// Prepares for an answer. Its grammar, which processes the tokens chosen before, is compiled on another thread: an
    /// invalid schema, and tokens that it forbids, fail the session when its first token is due.
    ///
    /// # Errors
    /// `Overloaded` if too many grammars are being compiled.
    pub(super) fn open(&mut self, open: &Open) -> Result<()> {
        let prompt_len = open.prompt_len as usize;
        let grammar = self.compile(open, &open.tokens[prompt_len..])?;
        for choice in 0..open.choices {
            let chooser = Chooser {
                coordinator: open.coordinator,
                session: open.session.choice(choice),
                tokens: open.tokens.clone(),
                chosen: Vec::new(),
                prompt_len,
                opened_with: open.tokens.len(),
                max_new_tokens: open.max_new_tokens as usize,
                sampling: open.sampling.of_choice(choice),
                form: grammar.clone().map_or(Form::Free, Form::Pending),
                scores: open.scores(choice).then(Vec::new),
                reported_cached: false,
                ended: false,
            };
            self.choosers.insert(chooser.session, chooser);
        }
        Ok(())
    }

    fn compile(&mut self, open: &Open, chosen: &[u32]) -> Result<Option<PendingGrammar>> {
        if open.format == AnswerFormat::Text {
            return Ok(None);
        }
        if !self.compiling.has_place(&open.coordinator) {
            let message = "too many JSON Schemas are being compiled on the last stage; try again later";
            return Err(Error::new(ErrorKind::Overloaded, message));
        }
        let pending = PendingGrammar::start(&self.text, &open.format, chosen)?;
        self.compiling.0.extend(pending.clone().map(|grammar| (open.coordinator, grammar)));
        Ok(pending)
    }

    pub(super) fn get(&self, session: &SessionId) -> Option<&Chooser> {
        self.choosers.get(session)
    }

    pub(super) fn get_mut(&mut self, session: &SessionId) -> Option<&mut Chooser> {
        self.choosers.get_mut(session)
    }

    pub(super) fn close(&mut self, session: &SessionId) -> Option<Chooser> {
        self.choosers.remove(session)
    }

    pub(super) fn clear(&mut self) {
        self.choosers.clear();
    }
}

impl Chooser {
    /// Processes the logits of prompt rows `start`, `start + 1`, …: `[rows, vocabulary]`, overwritten. The last row of
    /// a prompt scores no prompt token.
    pub(super) fn score_prompt(
        &mut self,
        start: usize,
        vocabulary: usize,
        logits: &mut [f32],
    ) -> Result<Vec<TokenOut>> {
        let Some(scores) = &mut self.scores else { return Ok(Vec::new()) };
        let reported = scores.len();
        if scores.is_empty() {
            scores.push(TokenOut { token: self.tokens[0], logprob: None, top: Vec::new() });
        }
        for (row, position) in logits.chunks_exact_mut(vocabulary).zip(start + 1..self.prompt_len) {
            // Reported already, before the sequence was preempted and restarted.
            if position < scores.len() {
                continue;
            }
            let choice = score(self.sampling.logprobs, self.tokens[position], row).map_err(compute_error)?;
            scores.push(token_out(choice));
        }
        Ok(scores[reported..].to_vec())
    }

    /// The leaves of the tokens that follow the first `positions`, those of the prompt where it is scored; `None` if fewer are
    /// known.
    pub(super) fn leaves(&self, positions: usize) -> Option<Vec<Leaf>> {
        let from = self.opened_with - 1;
        let leaf = |position: usize| {
            let out = match (position.checked_sub(from), &self.scores) {
                (Some(at), _) => self.chosen.get(at)?,
                (None, Some(scores)) => scores.get(position + 1)?,
                (None, None) => return Some(nothing_leaf(position as u64)),
            };
            let choice = Choice { token: out.token, logprob: out.logprob, top: out.top.clone() };
            Some(chosen_leaf(position as u64, &choice))
        };
        (0..positions).map(leaf).collect()
    }

    /// Replaces the last token, for tests.
    pub(super) fn replace_last(&mut self, token: u32) {
        if let (Some(last), Some(out)) = (self.tokens.last_mut(), self.chosen.last_mut()) {
            (*last, out.token) = (token, token);
        }
    }

    /// Makes the last one of these scored tokens, which are the latest, seem less likely, for tests.
    pub(super) fn twist_score(&mut self, reported: &mut [TokenOut]) {
        let kept = self.scores.as_mut().and_then(|scores| scores.last_mut());
        for out in kept.into_iter().chain(reported.last_mut()) {
            out.logprob = out.logprob.map(|logprob| logprob - 1.0);
        }
    }

    /// Whether the logits of every row are needed.
    pub(super) fn scores(&self) -> bool {
        self.scores.as_ref().is_some_and(|scores| scores.len() < self.prompt_len)
    }

    /// Whether a token can be chosen: not while the grammar is being compiled.
    ///
    /// # Errors
    /// `InvalidInput` for an invalid schema, and for earlier tokens that it forbids; `Overloaded` if it takes too long.
    pub(super) fn is_ready(&mut self) -> Result<bool> {
        if let Form::Pending(pending) = &self.form {
            match pending.get()? {
                Some(grammar) => self.form = Form::Grammar(Box::new(grammar)),
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Processes the logits after the last token and after each drafted one: `[1 + drafted, vocabulary]`, overwritten. Each
    /// token is chosen as if there were no draft; logits after a wrong guess are ignored. The answer [is
    /// ready](Chooser::is_ready).
    pub(super) fn take(
        &mut self,
        text: &ModelText,
        draft: &[u32],
        reused: usize,
        vocabulary: usize,
        logits: &mut [f32],
    ) -> Result<Chosen> {
        let mut taken = Chosen {
            coordinator: self.coordinator,
            tokens: Tokens {
                session: self.session,
                position: self.tokens.len() as u32,
                drafted: draft.len() as u32,
                cached: if std::mem::replace(&mut self.reported_cached, true) { 0 } else { reused as u32 },
                ..Tokens::default()
            },
            ids: Vec::new(),
            accepted: 0,
            ended: self.ended,
        };
        if self.ended {
            return Ok(taken);
        }
        if self.tokens.len() - self.prompt_len >= self.max_new_tokens {
            self.ended = true;
            (taken.ended, taken.tokens.ended) = (true, Some(EndReason::Length));
            return Ok(taken);
        }
        for (at, row) in logits.chunks_exact_mut(vocabulary).enumerate() {
            let allowed = match &mut self.form {
                Form::Grammar(grammar) => Some(grammar.mask().map_err(compute_error)?),
                Form::Free | Form::Pending(_) => None,
            };
            let (prompt, chosen) = self.tokens.split_at(self.prompt_len);
            let choice = choose(&self.sampling, prompt, chosen, row, allowed.as_ref()).map_err(compute_error)?;
            let token = choice.token;
            self.tokens.push(token);
            taken.ids.push(token);
            let out = token_out(choice);
            self.chosen.push(out.clone());
            taken.tokens.tokens.push(out);
            taken.tokens.ended = self.end_after(text, token)?;
            if taken.tokens.ended.is_some() {
                self.ended = true;
                taken.ended = true;
                break;
            }
            if draft.get(at) != Some(&token) {
                break;
            }
            taken.accepted += 1;
        }
        taken.tokens.accepted = taken.accepted as u32;
        Ok(taken)
    }

    /// Whether and why the answer ends after this token.
    fn end_after(&mut self, text: &ModelText, token: u32) -> Result<Option<EndReason>> {
        if text.tokenizer.is_end_of_generation(token) {
            return Ok(Some(EndReason::Stop));
        }
        if let Form::Grammar(grammar) = &mut self.form {
            grammar.accept(token).map_err(compute_error)?;
            if grammar.is_complete() {
                return Ok(Some(EndReason::GrammarComplete));
            }
        }
        Ok((self.tokens.len() - self.prompt_len >= self.max_new_tokens).then_some(EndReason::Length))
    }
}

impl Sampler {
    /// The text side of the model, which knows the tokens that end an answer.
    pub(super) fn text(&self) -> Arc<ModelText> {
        Arc::clone(&self.text)
    }
}

fn token_out(choice: Choice) -> TokenOut {
    TokenOut { token: choice.token, logprob: choice.logprob, top: choice.top }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;

    /// Schemas without end from one coordinator took a thread each, and none was left for others.
    #[test]
    fn one_coordinator_has_a_few_grammars_compiled_at_once_and_leaves_places_for_others() {
        let mut compiling = Compiling::default();
        let (release, wait) = sync_channel::<()>(0);
        let wait = Arc::new(std::sync::Mutex::new(wait));
        let mut start = |coordinator: PeerId| {
            let has_place = compiling.has_place(&coordinator);
            if has_place {
                let wait = Arc::clone(&wait);
                let compile = move || {
                    // Ends when the test does.
                    let _ = wait.lock().map(|wait| wait.recv());
                    Err(Error::new(ErrorKind::Cancelled, "the test is over"))
                };
                compiling.0.push((coordinator, PendingGrammar::run(compile).unwrap()));
            }
            has_place
        };
        for _ in 0..GRAMMARS / GRAMMARS_PER_COORDINATOR {
            let coordinator = PeerId::random();
            let places = (0..10).filter(|_| start(coordinator)).count();
            assert_eq!(places, GRAMMARS_PER_COORDINATOR);
        }
        assert!(!start(PeerId::random()), "there is a bound for all together");
        // One of them is compiled.
        release.send(()).unwrap();
        let newcomer = PeerId::random();
        while !start(newcomer) {
            std::thread::yield_now();
        }
    }
}
