//! Drafts: the next tokens are guessed, from an earlier place in the text where the same tokens stood (`lookup`) or by a small
//! model of the same vocabulary (`model`), whichever is predicted to gain more. A guess costs rows in a forward pass, and
//! only tokens that the model itself chooses are kept, so drafts change the time of an answer, never its text. The caller
//! reports the cost of passes (`cost`); no clock is read.

mod cost;
mod lookup;
mod model;

pub use cost::MAX_DRAFT;
pub use model::DraftModel;

use cost::{Drafting, LEAST_GAIN, SinglePass};
use lookup::Lookup;
use model::{Drafted, ModelDrafts};

/// Assumed cost of one more row, in passes of one row, until it is measured.
const ASSUMED_ROW_COST: f64 = 0.2;

/// Where a draft came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Lookup,
    Model,
}

/// Drafts for one session. A clone of one that was not used yet is one for another session.
#[derive(Clone, Debug)]
pub struct Drafter {
    lookup: Lookup,
    model: Option<ModelDrafts>,
    draft: Vec<u32>,
    single: SinglePass,
    /// What the drafts of both sources cost and gain.
    by_lookup: Drafting,
    by_model: Drafting,
    /// The source of the last draft, and the length of its text.
    last: Option<Source>,
    text: usize,
    /// Whether time of the current pass goes into reading the text by the small model.
    reads: bool,
}

impl Default for Drafter {
    fn default() -> Drafter {
        Drafter::new()
    }
}

impl Drafter {
    /// A drafter for a new session, by prompt lookup alone.
    pub fn new() -> Drafter {
        Drafter {
            lookup: Lookup::new(),
            model: None,
            draft: Vec::with_capacity(MAX_DRAFT),
            single: SinglePass::default(),
            by_lookup: Drafting::new(ASSUMED_ROW_COST),
            by_model: Drafting::new(ASSUMED_ROW_COST),
            last: None,
            text: 0,
            reads: false,
        }
    }

    /// A drafter that lets a small model guess as well: tokens of the first `vocabulary`, which are all that the large model has.
    pub fn with_model(model: DraftModel, vocabulary: usize) -> Drafter {
        let model = ModelDrafts::new(model, vocabulary);
        let by_model = Drafting::new(model.assumed_cost(ASSUMED_ROW_COST));
        Drafter { model: Some(model), by_model, ..Drafter::new() }
    }

    /// The same, as if the small model took no time and rows neither until they are measured: it drafts as much as it may.
    pub fn eager(self) -> Drafter {
        Drafter { by_model: Drafting::new(0.0), ..self }
    }

    /// Guesses the continuation of `text` (prompt and answer so far): at most `limit` and [`MAX_DRAFT`] tokens. Empty
    /// where no draft is predicted to gain time, and before a first pass of one row was observed. A changed text is begun anew.
    pub fn propose(&mut self, text: &[u32], limit: usize) -> &[u32] {
        self.draft.clear();
        (self.last, self.reads, self.text) = (None, false, text.len());
        if self.lookup.index(text) {
            self.by_lookup.forget_pause();
            self.by_model.forget_pause();
            self.model.iter_mut().for_each(ModelDrafts::forget);
        }
        self.model.iter_mut().for_each(|model| model.see(text));
        if self.single.is_due() {
            return &self.draft;
        }
        let place = self.lookup.guess(text).filter(|_| !self.by_lookup.is_paused(text.len()));
        let (length, gain) = place.map_or((0, LEAST_GAIN), |(_, hit_rate)| self.by_lookup.best_length(hit_rate));
        let may = |model: &ModelDrafts| !self.by_model.is_paused(text.len()) && model.may_lose(self.by_model.row());
        if let Some(model) = self.model.as_mut().filter(|model| may(model)) {
            let (length, gain_by_model) = self.by_model.best_length(model.hit_rate());
            if length > 0 && gain_by_model > gain {
                match model.draft(text, length.min(limit), &self.by_model, &mut self.draft) {
                    Drafted::Tokens => self.last = Some(Source::Model),
                    Drafted::Read(passes) => {
                        self.reads = true;
                        model.lose(passes);
                    }
                    Drafted::Nothing => {}
                }
                if self.last.is_some() || self.reads {
                    return &self.draft;
                }
            }
        }
        let Some((place, _)) = place else { return &self.draft };
        for at in place..place + length.min(limit) {
            // Past the end of the text the guess repeats with the period of the match.
            let token = text.get(at).copied().unwrap_or_else(|| self.draft[at - text.len()]);
            self.draft.push(token);
        }
        self.last = (!self.draft.is_empty()).then_some(Source::Lookup);
        &self.draft
    }

    /// Reports the cost of a pass of this session: `rows` it verified (1 without a draft, else 1 + the draft's tokens),
    /// the draft tokens that were `accepted`, and its `seconds` with those of making the draft. Passes without drafts must be
    /// reported too, for comparison.
    pub fn observe(&mut self, rows: usize, accepted: usize, seconds: f64) {
        if rows == 0 || !(seconds.is_finite() && seconds > 0.0) || std::mem::take(&mut self.reads) {
            return;
        }
        if rows == 1 {
            self.single.observe(seconds);
            self.by_lookup.rest();
            self.by_model.rest();
            self.model.iter_mut().for_each(ModelDrafts::rest);
            return;
        }
        let drafted = rows - 1;
        let accepted = accepted.min(drafted);
        let Some(single) = self.single.before_drafted() else { return };
        let drafting = match (self.last.take(), &mut self.model) {
            (Some(Source::Model), Some(model)) => {
                model.observe(drafted, accepted, seconds / single);
                &mut self.by_model
            }
            (_, model) => {
                model.iter_mut().for_each(ModelDrafts::rest);
                &mut self.by_lookup
            }
        };
        drafting.observe(drafted, accepted, seconds / single, self.text);
    }
}

#[cfg(test)]
mod tests {
    use super::lookup::{NGRAMS, SLOTS};
    use super::*;
    use proptest::prelude::*;

    /// Runs a session whose true continuation is `text`: returns (seconds, seconds without drafts, drafted passes in
    /// the last half).
    fn run(text: &[u32], prompt: usize, row_cost: f64) -> (f64, f64, usize) {
        let mut drafter = Drafter::new();
        let (mut at, mut seconds, mut late) = (prompt, 0.0, 0);
        while at < text.len() {
            let draft = drafter.propose(&text[..at], text.len() - at - 1).to_vec();
            let accepted = draft.iter().zip(&text[at..]).take_while(|(a, b)| a == b).count();
            let cost = 1e-3 * (1.0 + row_cost * draft.len() as f64);
            late += usize::from(!draft.is_empty() && at > (prompt + text.len()) / 2);
            drafter.observe(1 + draft.len(), accepted, cost);
            seconds += cost;
            at += accepted + 1;
        }
        (seconds, 1e-3 * (text.len() - prompt) as f64, late)
    }

    /// Drafts from the first look on.
    fn measured() -> Drafter {
        let mut drafter = Drafter::new();
        drafter.observe(1, 0, 1e-3);
        drafter.observe(2, 1, 1.01e-3);
        drafter
    }

    fn random_text(length: usize, vocabulary: u32, seed: u64) -> Vec<u32> {
        let mut state = seed;
        (0..length)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) as u32 % vocabulary
            })
            .collect()
    }

    #[test]
    fn repetitive_text_comes_faster() {
        let line = random_text(40, 1000, 1);
        let text = line.repeat(20);
        let (seconds, without, _) = run(&text, 80, 0.1);
        assert!(seconds < 0.4 * without, "{seconds} s, {without} s without");
    }

    #[test]
    fn random_text_is_left_alone() {
        // 40 tokens: pairs return all the time and are wrong all the time.
        let text = random_text(8000, 40, 2);
        let (seconds, without, late) = run(&text, 1000, 0.3);
        assert!(seconds < 1.01 * without, "{seconds} s, {without} s without");
        assert!(late < 20, "{late} drafts in the second half");
    }

    #[test]
    fn rows_that_cost_as_much_as_passes_turn_drafts_off() {
        let text = random_text(40, 1000, 3).repeat(100);
        let (seconds, without, late) = run(&text, 80, 1.1);
        assert!(seconds < 1.05 * without, "{seconds} s, {without} s without");
        assert!(late < 100, "{late} drafts in the second half");
    }

    #[test]
    fn another_text_resets_the_index() {
        let mut drafter = measured();
        let text: Vec<u32> = [1, 2, 3, 4, 5, 6, 7, 8].repeat(4);
        assert_eq!(drafter.propose(&text, 3), &[1, 2, 3]);
        let other: Vec<u32> = [9, 8, 7, 6, 5, 4].repeat(3);
        assert_eq!(drafter.propose(&other, 2), &[9, 8]);
        assert!(drafter.propose(&text[..6], 9).is_empty(), "nothing repeats there");
        assert!(drafter.propose(&[], 9).is_empty());
        assert!(drafter.propose(&text, 0).is_empty());
    }

    #[test]
    fn senseless_observations_are_ignored() {
        let mut drafter = Drafter::new();
        for seconds in [f64::NAN, f64::INFINITY, -1.0, 0.0] {
            drafter.observe(1, 0, seconds);
            drafter.observe(4, 9, seconds);
        }
        drafter.observe(0, 5, 1.0);
        drafter.observe(3, 99, 1.0);
        let text = [1, 2, 3, 4, 5].repeat(4);
        assert!(drafter.propose(&text, 4).iter().all(|token| text.contains(token)));
    }

    proptest! {
        #[test]
        fn a_draft_is_what_followed_the_same_tokens_before(
            text in prop::collection::vec(0_u32..6, 0..200),
            steps in prop::collection::vec(1_usize..9, 1..40),
            cut in any::<prop::sample::Index>(),
            limit in 0_usize..30,
        ) {
            let mut drafter = measured();
            let mut lengths: Vec<usize> = steps.iter().scan(0, |at, step| { *at += step; Some(*at) }).collect();
            // Once in between the text is cut: verification rejected what was there.
            lengths.push(cut.index(lengths.last().copied().unwrap_or(0) + 1));
            for length in lengths {
                let text = &text[..length.min(text.len())];
                let draft = drafter.propose(text, limit).to_vec();
                prop_assert!(draft.len() <= limit.min(MAX_DRAFT));
                if !draft.is_empty() {
                    let whole: Vec<u32> = text.iter().chain(&draft).copied().collect();
                    let found = NGRAMS.iter().any(|&n| {
                        text.len() > n && (n..text.len()).any(|place| {
                            text[place - n..place] == text[text.len() - n..]
                                && whole[place..place + draft.len()] == draft[..]
                        })
                    });
                    prop_assert!(found, "{draft:?} never followed the end of {text:?}");
                }
            }
        }
    }

    #[test]
    fn memory_does_not_grow_with_the_text() {
        let mut drafter = Drafter::new();
        let text = random_text(300_000, 50_000, 4);
        for end in (0..text.len()).step_by(1000) {
            drafter.propose(&text[..end], 8);
        }
        let slots: usize = drafter.lookup.places.iter().map(Vec::capacity).sum();
        assert_eq!(slots, NGRAMS.len() * SLOTS);
        assert!(drafter.lookup.tail.capacity() <= 2 * NGRAMS[0] && drafter.draft.capacity() <= MAX_DRAFT);
    }
}
