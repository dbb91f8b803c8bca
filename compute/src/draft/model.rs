//! Drafts of a small model: the tokens that it would choose, as far as it is likely enough to be right.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::cost::Drafting;
use crate::engine::{Input, Logits, Stage, Step};
use crate::gguf::Metadata;
use crate::model::{Cache, PageBudget};
use crate::{Cancel, Error};

/// Weight of a new observation of a guess: an average over about 20.
const GUESS_WEIGHT: f64 = 0.05;
/// Share of the drafted tokens that are right, until it is measured.
const ASSUMED_HIT_RATE: f64 = 0.7;
/// Share by which what was measured moves towards that with every pass without a draft: the text may have become easier.
const FORGETTING: f64 = 1.0 / 512.0;
/// Tokens of the text that are computed before one draft, at most: the answer waits for them.
const CATCH_UP: usize = 64;
/// Time of a token of the text that is only read, in passes of one row of the same model.
const READING: f64 = 0.15;
/// Share of an answer's time that may go into reading its text before anything was drafted.
const ADVANCE: f64 = 0.02;
/// What drafts may cost in vain, in passes of one row: this share of all passes,
const CREDIT: f64 = 0.01;
/// saved up to so much.
const CREDIT_MAX: f64 = 1.0;
/// What was gained by drafts and may be lost again.
const GAIN_MAX: f64 = 4.0;
/// Tokens of a draft in vain, as a rule.
const VAIN: f64 = 2.0;
/// Tokens by which two vocabularies may differ in length: some are padded.
const PADDING: usize = 512;

/// A small model that drafts for a large one of the same vocabulary. Clones share it.
#[derive(Clone)]
pub struct DraftModel {
    model: Arc<Stage>,
    budget: PageBudget,
    /// Weights of this model for each one of the large model.
    share: f64,
    /// What its drafts were worth, in all answers together: one answer is too short to learn it in, and to pay for it.
    worth: Arc<Mutex<Worth>>,
}

/// What drafts of a model were worth.
#[derive(Clone, Copy, Debug)]
struct Worth {
    /// Share of the drafted tokens that are right.
    hit_rate: f64,
    /// What drafts may cost in vain now, in passes of one row of the large model.
    credit: f64,
}

impl DraftModel {
    /// `model` must be whole. Its sessions take their memory from `budget`. `of_bytes`: the weights of the large model, which
    /// say how much longer its passes take.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a part of a model.
    pub fn new(model: Arc<Stage>, budget: PageBudget, of_bytes: u64) -> Result<DraftModel, Error> {
        if !model.is_whole() {
            return Err(Error::invalid("draft", "a model that drafts must be whole".to_owned()));
        }
        let share = model.memory_bytes() as f64 / of_bytes.max(1) as f64;
        let worth = Arc::new(Mutex::new(Worth { hit_rate: ASSUMED_HIT_RATE, credit: 0.0 }));

        Ok(DraftModel { model, budget, share, worth })
    }

    fn worth(&self) -> MutexGuard<'_, Worth> {
        self.worth.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether tokens of one model mean the same in the other one; of a longer vocabulary, those that both have.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the first token that differs, or both lengths.
    pub fn check_vocabulary(draft: &Metadata, of: &Metadata) -> Result<(), Error> {
        const KEY: &str = "tokenizer.ggml.tokens";
        let wrong = |what: String| Err(Error::invalid("draft", what));
        let (Some(drafts), Some(ofs)) = (draft.get_strs(KEY)?, of.get_strs(KEY)?) else {
            return wrong(format!("a file has no {KEY}"));
        };
        if drafts.len().abs_diff(ofs.len()) > PADDING {
            return wrong(format!(
                "the vocabularies differ: the model that drafts has {} tokens, the other one {}; use a smaller model of the same \
                 family",
                drafts.len(),
                ofs.len()
            ));
        }
        match drafts.iter().zip(ofs.iter()).position(|(one, other)| one != other) {
            None => Ok(()),
            Some(at) => wrong(format!(
                "the vocabularies differ: token {at} is {:?} in the model that drafts and {:?} in the other one; use a smaller \
                 model of the same family",
                drafts.get(at).unwrap_or_default(),
                ofs.get(at).unwrap_or_default()
            )),
        }
    }
}

impl std::fmt::Debug for DraftModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DraftModel({:.3} of the weights)", self.share)
    }
}

/// The drafts of a small model for one text.
#[derive(Debug)]
pub(super) struct ModelDrafts {
    of: DraftModel,
    /// The number of tokens that the large model has.
    vocabulary: usize,
    /// `None` until it is used, and after it failed.
    cache: Option<Cache>,
    /// The tokens that it holds.
    held: Vec<u32>,
    /// Length of the text when it was seen first: the prompt.
    prompt: Option<usize>,
    failed: bool,
}

/// A drafter that has not drafted yet, for another text.
impl Clone for ModelDrafts {
    fn clone(&self) -> ModelDrafts {
        ModelDrafts::new(self.of.clone(), self.vocabulary)
    }
}

/// What a draft has led to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Drafted {
    /// Nothing was computed.
    Nothing,
    /// The text was read without a draft, which took this time in passes of one row of the large model.
    Read(f64),
    /// Tokens were drafted.
    Tokens,
}

impl ModelDrafts {
    pub(super) fn new(of: DraftModel, vocabulary: usize) -> ModelDrafts {
        ModelDrafts { of, vocabulary, cache: None, held: Vec::new(), prompt: None, failed: false }
    }

    /// The cost of one more row of the large model and of one pass of this one, until it is measured.
    pub(super) fn assumed_cost(&self, row: f64) -> f64 {
        row + self.of.share
    }

    /// Another text begins.
    pub(super) fn forget(&mut self) {
        self.prompt = None;
        self.failed = false;
    }

    /// Tokens of the text after those that it began with.
    pub(super) fn answer_len(&self, text: &[u32]) -> usize {
        text.len().saturating_sub(self.prompt.unwrap_or(0))
    }

    /// A pass of the large model without a draft of this one: what was measured long ago is worth less, and a little more may be
    /// lost.
    pub(super) fn rest(&mut self) {
        let mut worth = self.of.worth();
        worth.hit_rate += FORGETTING * (ASSUMED_HIT_RATE - worth.hit_rate);
        worth.credit += if worth.credit < CREDIT_MAX { CREDIT } else { 0.0 };
    }

    /// Probability that the next token of a draft is right.
    pub(super) fn hit_rate(&self) -> f64 {
        self.of.worth().hit_rate
    }

    /// Whether a draft may be in vain, each of whose tokens costs `row`.
    pub(super) fn may_lose(&self, row: f64) -> bool {
        self.of.worth().credit >= VAIN * row
    }

    /// Time was spent without a draft, in passes of one row of the large model.
    pub(super) fn lose(&mut self, passes: f64) {
        self.of.worth().credit -= passes;
    }

    /// Notes the text before anything is drafted for it.
    pub(super) fn see(&mut self, text: &[u32]) {
        self.prompt.get_or_insert(text.len());
    }

    /// Appends to `draft` up to `length` tokens that may follow `text`, as many as are worth a row at the costs of `drafting`.
    /// A text that is far ahead is read piece by piece first.
    pub(super) fn draft(&mut self, text: &[u32], length: usize, drafting: &Drafting, draft: &mut Vec<u32>) -> Drafted {
        if self.failed || length == 0 || !self.may_read(text) {
            return Drafted::Nothing;
        }
        let result = self.try_draft(text, length, drafting, draft);
        result.unwrap_or_else(|_| {
            // For lack of memory, or of positions: the answer goes on without drafts.
            draft.clear();
            self.held.clear();
            (self.cache, self.failed) = (None, true);
            Drafted::Read(0.0)
        })
    }

    /// Whether reading the rest of `text` takes a small part of the time that the answer has taken.
    fn may_read(&self, text: &[u32]) -> bool {
        let behind = text.len().saturating_sub(self.held.len()) as f64;
        let answer = self.answer_len(text) as f64;
        // Read already, but for the last tokens: no advance.
        behind <= super::MAX_DRAFT as f64 + 1.0 || behind * READING * self.of.share <= ADVANCE * answer
    }

    fn try_draft(
        &mut self,
        text: &[u32],
        length: usize,
        drafting: &Drafting,
        draft: &mut Vec<u32>,
    ) -> Result<Drafted, Error> {
        let vocabulary = self.of.model.config().vocabulary as u32;
        if text.iter().rev().take(CATCH_UP).any(|token| *token >= vocabulary) {
            return Ok(Drafted::Nothing);
        }
        let mut cache = self.cache.take().unwrap_or_else(|| self.of.model.cache(&self.of.budget));
        // At least the last token is computed again, so that there are logits.
        let same = self.held.iter().zip(text).take_while(|(held, token)| held == token).count();
        cache.truncate(same.min(text.len().saturating_sub(1)));
        self.held.truncate(cache.len());
        let behind = &text[cache.len()..];
        if behind.len() > CATCH_UP {
            self.pass(&mut cache, &behind[..CATCH_UP], Logits::None)?;
            self.cache = Some(cache);
            // Paid for by what the answer took before.
            return Ok(Drafted::Read(0.0));
        }
        let mut next = self.pass(&mut cache, behind, Logits::Last)?;
        let (row, mut tokens, mut cost, mut chance) = (drafting.row(), 1.0, 1.0, 1.0);
        while let Some((token, probability)) = next {
            chance *= probability;
            // A row that gives fewer tokens for its time than those before it is not worth it, and a token that the large model does
            // not have is refused by it.
            if chance * cost <= row * tokens || token as usize >= self.vocabulary {
                break;
            }
            draft.push(token);
            (tokens, cost) = (tokens + chance, cost + row);
            // What is right mostly so far goes on.
            if draft.len() == length || chance * self.hit_rate() * cost <= row * tokens {
                break;
            }
            next = self.pass(&mut cache, &[token], Logits::Last)?;
        }
        self.cache = Some(cache);
        Ok(if draft.is_empty() { Drafted::Read(self.of.share) } else { Drafted::Tokens })
    }

    /// Computes tokens; with logits, returns the likeliest next one and its probability.
    fn pass(&mut self, cache: &mut Cache, tokens: &[u32], logits: Logits) -> Result<Option<(u32, f64)>, Error> {
        let mut steps = [Step { cache, rows: tokens.len(), logits }];
        let output = self.of.model.forward(&mut steps, Input::Tokens(tokens), &Cancel::new())?;
        self.held.extend_from_slice(tokens);
        let logits = output.logits(0);
        // The first one of equals.
        let best = (0..logits.len()).reduce(|best, at| if logits[at] > logits[best] { at } else { best });
        Ok(best.map(|best| {
            let sum: f64 = logits.iter().map(|logit| f64::from(logit - logits[best]).exp()).sum();
            (best as u32, 1.0 / sum)
        }))
    }

    /// Records how many tokens of a draft were right, in a pass that took as long as `took` passes of one row.
    pub(super) fn observe(&mut self, drafted: usize, accepted: usize, took: f64) {
        let mut worth = self.of.worth();
        let guesses = (0..accepted).map(|_| 1.0).chain((accepted < drafted).then_some(0.0));
        guesses.for_each(|right| worth.hit_rate += GUESS_WEIGHT * (right - worth.hit_rate));
        worth.credit = (worth.credit + accepted as f64 + 1.0 - took).min(GAIN_MAX);
    }
}
