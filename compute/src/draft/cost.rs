//! What drafts cost and gain, as measured: how long a draft should be, and when drafting rests.

/// Tokens of a draft, at most: on the processors measured, further rows of a pass cost more than they gain.
pub const MAX_DRAFT: usize = 15;

// A session with a recurrent state goes back over a whole draft, and one position more, where no token could be chosen yet.
const _: () = assert!(pangea_units::rewind::KEPT_INPUTS > MAX_DRAFT);

/// Predicted speed-up, at least, for which a draft is made.
pub(super) const LEAST_GAIN: f64 = 1.05;
/// Weight of a new observation of time: an average over about 8 passes.
const TIME_WEIGHT: f64 = 0.125;
/// Tokens without drafts after a loss; doubled with every loss that follows.
const FIRST_PAUSE: u64 = 32;
const LONGEST_PAUSE: u64 = 4096;
/// Drafted passes after which one pass goes without a draft, so that the cost of a single row stays known.
const REFRESH: u32 = 64;
/// Share by which the measured cost of rows moves towards the assumed one with every pass of one row, so that a
/// cost measured on a busy machine is tried again some hundred tokens later.
const FORGETTING: f64 = 1.0 / 512.0;
/// Passes over which gain or loss is judged.
const TRIAL: u32 = 8;

/// The measured time of passes of one row.
#[derive(Clone, Debug, Default)]
pub(super) struct SinglePass {
    seconds: Option<f64>,
    /// Drafted passes since it was measured.
    drafted: u32,
}

impl SinglePass {
    /// Whether a pass of one row is to be measured before the next draft.
    pub(super) fn is_due(&self) -> bool {
        self.seconds.is_none() || self.drafted >= REFRESH
    }

    pub(super) fn observe(&mut self, seconds: f64) {
        self.seconds = Some(smooth(self.seconds, seconds, TIME_WEIGHT));
        self.drafted = 0;
    }

    /// The time of a pass of one row, before a drafted pass is counted.
    pub(super) fn before_drafted(&mut self) -> Option<f64> {
        self.drafted += u32::from(self.seconds.is_some());
        self.seconds
    }
}

/// What the drafts of one source cost and gain.
#[derive(Clone, Debug)]
pub(super) struct Drafting {
    /// The cost of one more row with its part of making the draft, in passes of one row, until it is measured.
    assumed: f64,
    /// The same as measured.
    row: Option<f64>,
    /// Length of the text before which no draft is made.
    paused_until: u64,
    pause: u64,
    passes: u32,
    /// Tokens and passes of one row that the passes of the trial gave and took.
    tokens: f64,
    took: f64,
}

impl Drafting {
    pub(super) fn new(assumed: f64) -> Drafting {
        Drafting { assumed, row: None, paused_until: 0, pause: FIRST_PAUSE, passes: 0, tokens: 0.0, took: 0.0 }
    }

    /// Another text begins.
    pub(super) fn forget_pause(&mut self) {
        self.paused_until = 0;
    }

    pub(super) fn is_paused(&self, text: usize) -> bool {
        (text as u64) < self.paused_until
    }

    /// The cost of one more row.
    pub(super) fn row(&self) -> f64 {
        self.row.unwrap_or(self.assumed)
    }

    /// The length with the most tokens per pass of one row, and its gain over passes without drafts; length 0 where none gains
    /// [`LEAST_GAIN`]. `hit_rate`: probability that each next token of a draft is right.
    pub(super) fn best_length(&self, hit_rate: f64) -> (usize, f64) {
        let (mut best, mut best_gain) = (0, LEAST_GAIN);
        let (mut tokens, mut chance) = (1.0, 1.0);
        for length in 1..=MAX_DRAFT {
            chance *= hit_rate;
            tokens += chance;
            let gain = tokens / (1.0 + self.row() * length as f64);
            if gain > best_gain {
                (best, best_gain) = (length, gain);
            }
        }
        (best, best_gain)
    }

    /// A pass of one row, in which nothing was drafted.
    pub(super) fn rest(&mut self) {
        self.row = self.row.map(|row| smooth(Some(row), self.assumed, FORGETTING));
    }

    /// A pass that took as long as `took` passes of one row, with `drafted` tokens of which `accepted` were right; the text was
    /// `text` tokens long.
    pub(super) fn observe(&mut self, drafted: usize, accepted: usize, took: f64, text: usize) {
        let row = (took - 1.0) / drafted as f64;
        self.row = Some(smooth(self.row, row.max(0.0), TIME_WEIGHT));
        self.passes += 1;
        self.tokens += accepted as f64 + 1.0;
        self.took += took;
        if self.passes < TRIAL {
            return;
        }
        if self.tokens < self.took {
            self.paused_until = text as u64 + self.pause;
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        } else {
            self.pause = FIRST_PAUSE;
        }
        (self.passes, self.tokens, self.took) = (0, 0.0, 0.0);
    }
}

fn smooth(old: Option<f64>, new: f64, weight: f64) -> f64 {
    old.map_or(new, |old| old + weight * (new - old))
}
