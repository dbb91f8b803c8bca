//! Drafts by prompt lookup: the next tokens are guessed from an earlier place in the text where the same tokens stood.
//! A guess costs rows in a forward pass, and only tokens that the model itself chooses are kept, so drafts change the
//! time of an answer, never its text. The caller reports the cost of passes; no clock is read. Source: Saxena, "Prompt
//! lookup decoding" (2023).

/// Lengths of the n-grams that are looked up, longest first: the longer the match, the likelier the guess.
const NGRAMS: [usize; 3] = [5, 3, 2];
/// Places remembered per n-gram length, 64 KiB each; newer places replace older ones.
const SLOTS: usize = 1 << 14;
/// Tokens of a draft, at most: on the processors measured, further rows of a pass cost more than they gain.
pub const MAX_DRAFT: usize = 15;
/// Predicted speed-up, at least, for which a draft is made.
const LEAST_GAIN: f64 = 1.05;
/// Weight of a new observation of a guess: an average over about 20.
const GUESS_WEIGHT: f64 = 0.05;
/// Weight of a new observation of time: an average over about 8 passes.
const TIME_WEIGHT: f64 = 0.125;
/// Assumed cost of one more row, in passes of one row, until it is measured.
const ASSUMED_ROW_COST: f64 = 0.2;
/// Tokens without drafts after a loss; doubled with every loss that follows.
const FIRST_PAUSE: u64 = 32;
const LONGEST_PAUSE: u64 = 4096;
/// Drafted passes after which one pass goes without a draft, so that the cost of a single row stays known.
const REFRESH: u32 = 64;
/// Share by which the measured cost of rows moves towards [`ASSUMED_ROW_COST`] with every pass of one row, so that a
/// cost measured on a busy machine is tried again some hundred tokens later.
const FORGETTING: f64 = 1.0 / 512.0;
/// Passes over which gain or loss is judged.
const TRIAL: u32 = 8;

/// Drafts for one session. Takes 192 KiB whatever the length of the text, and constant time per token.
#[derive(Clone, Debug)]
pub struct Drafter {
    /// `[n-gram length][slot]`: one past the last token of an n-gram's latest occurrence; 0 is none.
    places: Vec<Vec<u32>>,
    /// Length of the text whose n-grams are in `places`.
    indexed: usize,
    /// The last tokens of that text, to notice a change of text.
    tail: Vec<u32>,
    /// Probability that the next guess is right, per n-gram length; measured whether drafts are made or not.
    hit_rate: [f64; NGRAMS.len()],
    draft: Vec<u32>,
    cost: Cost,
    /// Length of the text before which no draft is made.
    paused_until: u64,
    pause: u64,
    trial: Trial,
}

/// The measured cost of passes, in seconds.
#[derive(Clone, Debug, Default)]
struct Cost {
    /// A pass of one row.
    single: Option<f64>,
    /// The cost of one more row, as a fraction of `single`.
    row: Option<f64>,
    /// Drafted passes since `single` was measured.
    drafted: u32,
}

/// Gain of drafting since the last judgement.
#[derive(Clone, Debug, Default)]
struct Trial {
    passes: u32,
    tokens: f64,
    seconds: f64,
}

impl Default for Drafter {
    fn default() -> Drafter {
        Drafter::new()
    }
}

impl Drafter {
    /// A drafter for a new session.
    pub fn new() -> Drafter {
        Drafter {
            places: vec![vec![0; SLOTS]; NGRAMS.len()],
            indexed: 0,
            tail: Vec::new(),
            hit_rate: [0.7, 0.4, 0.2],
            draft: Vec::with_capacity(MAX_DRAFT),
            cost: Cost::default(),
            paused_until: 0,
            pause: FIRST_PAUSE,
            trial: Trial::default(),
        }
    }

    /// Guesses the continuation of `text` (prompt and answer so far): at most `limit` and [`MAX_DRAFT`] tokens. Empty
    /// where no draft is predicted to gain time, and before a first pass of one row was observed. The guess continues
    /// the latest earlier occurrence of the last tokens; beyond the end of the text it repeats itself. A changed text
    /// resets the index.
    pub fn propose(&mut self, text: &[u32], limit: usize) -> &[u32] {
        self.draft.clear();
        self.index(text);
        let unknown = self.cost.single.is_none() || self.cost.drafted >= REFRESH;
        if unknown || (text.len() as u64) < self.paused_until {
            return &self.draft;
        }
        let Some((source, place)) = self.lookup(text, text.len()) else { return &self.draft };
        let length = self.best_length(self.hit_rate[source]).min(limit);
        for at in place..place + length {
            // Past the end of the text the guess repeats with the period of the match.
            let token = text.get(at).copied().unwrap_or_else(|| self.draft[at - text.len()]);
            self.draft.push(token);
        }
        &self.draft
    }

    /// Reports the cost of a pass of this session: `rows` it verified (1 without a draft, else 1 + the draft's tokens),
    /// the draft tokens that were `accepted`, and its `seconds`. Passes without drafts must be reported too, for
    /// comparison.
    pub fn observe(&mut self, rows: usize, accepted: usize, seconds: f64) {
        if rows == 0 || !(seconds.is_finite() && seconds > 0.0) {
            return;
        }
        if rows == 1 {
            self.cost.single = Some(smooth(self.cost.single, seconds, TIME_WEIGHT));
            self.cost.row = self.cost.row.map(|row| smooth(Some(row), ASSUMED_ROW_COST, FORGETTING));
            self.cost.drafted = 0;
            return;
        }
        let drafted = rows - 1;
        let accepted = accepted.min(drafted);
        let Some(single) = self.cost.single else { return };
        let row = (seconds / single - 1.0) / drafted as f64;
        self.cost.row = Some(smooth(self.cost.row, row.max(0.0), TIME_WEIGHT));
        self.cost.drafted += 1;
        self.trial.passes += 1;
        self.trial.tokens += accepted as f64 + 1.0;
        self.trial.seconds += seconds;
        if self.trial.passes >= TRIAL {
            let gain = self.trial.tokens * single / self.trial.seconds;
            self.trial = Trial::default();
            if gain < 1.0 {
                self.paused_until = self.indexed as u64 + self.pause;
                self.pause = (self.pause * 2).min(LONGEST_PAUSE);
            } else {
                self.pause = FIRST_PAUSE;
            }
        }
    }

    /// The length with the most tokens per second; 0 if no draft gains more than [`LEAST_GAIN`].
    fn best_length(&self, hit_rate: f64) -> usize {
        let row = self.cost.row.unwrap_or(ASSUMED_ROW_COST);
        let (mut best, mut best_gain) = (0, LEAST_GAIN);
        let (mut tokens, mut chance) = (1.0, 1.0);
        for length in 1..=MAX_DRAFT {
            chance *= hit_rate;
            tokens += chance;
            let gain = tokens / (1.0 + row * length as f64);
            if gain > best_gain {
                (best, best_gain) = (length, gain);
            }
        }
        best
    }

    /// Extends the index to `text`. An n-gram is indexed once a token follows it, because only then can it predict one.
    fn index(&mut self, text: &[u32]) {
        // Places are 32 bits; later tokens are not looked up.
        let text = &text[..text.len().min(u32::MAX as usize)];
        let known = self.indexed.checked_sub(self.tail.len()).and_then(|from| text.get(from..self.indexed));
        if known != Some(&self.tail[..]) {
            self.places.iter_mut().for_each(|places| places.fill(0));
            self.indexed = 0;
            self.paused_until = 0;
        }
        // The first text is a prompt: how it repeats itself says little about the answer.
        let watch = self.indexed > 0;
        for end in self.indexed.max(1)..text.len() {
            if watch && let Some((source, place)) = self.lookup(text, end) {
                let right = f64::from(u8::from(text[place] == text[end]));
                self.hit_rate[source] += GUESS_WEIGHT * (right - self.hit_rate[source]);
            }
            for (places, n) in self.places.iter_mut().zip(NGRAMS) {
                if end >= n {
                    places[slot(&text[end - n..end])] = end as u32;
                }
            }
        }
        self.indexed = text.len();
        self.tail.clear();
        self.tail.extend_from_slice(&text[text.len().saturating_sub(NGRAMS[0])..]);
    }

    /// The latest occurrence of the longest n-gram that ends at `end`: its length's index, and the place after it.
    fn lookup(&self, text: &[u32], end: usize) -> Option<(usize, usize)> {
        NGRAMS.iter().enumerate().find_map(|(source, &n)| {
            let ngram = text.get(end.checked_sub(n)?..end)?;
            let place = self.places[source][slot(ngram)] as usize;
            // Another n-gram may have the same slot, or the text may have been cut.
            let earlier = text.get(place.checked_sub(n)?..place)?;
            (earlier == ngram && place < end).then_some((source, place))
        })
    }
}

fn smooth(old: Option<f64>, new: f64, weight: f64) -> f64 {
    old.map_or(new, |old| old + weight * (new - old))
}

/// FNV-1a over whole tokens, high bits; collisions are found by comparing tokens.
fn slot(ngram: &[u32]) -> usize {
    let hash = ngram
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, &token| (hash ^ u64::from(token)).wrapping_mul(0x0000_0100_0000_01b3));
    (hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - SLOTS.trailing_zeros())) as usize
}

#[cfg(test)]
mod tests {
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
        let slots: usize = drafter.places.iter().map(Vec::capacity).sum();
        assert_eq!(slots, NGRAMS.len() * SLOTS);
        assert!(drafter.tail.capacity() <= 2 * NGRAMS[0] && drafter.draft.capacity() <= MAX_DRAFT);
    }
}
