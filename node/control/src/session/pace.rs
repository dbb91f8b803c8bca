//! Measures how long a stage takes for its frames, and how long the rest of its chain takes until the next frame of the same
//! answer comes. The times are medians of the last frames. Nothing is decided here.

use std::time::Duration;

use super::FrameRows;
use crate::Time;
use crate::pool::StagePace;

/// Frames whose median counts: enough that a busy moment does not, few enough that a lasting change soon does.
const RECENT: usize = 16;

/// Up to this many frames, the median is computed after each one; from then on after as many again.
const EVERY: usize = 8;

/// Frames before a median counts: the first pass of a stage reads its weights from memory for the first time.
const FRAMES_MIN: usize = 3;

/// Rows of a prompt's frame from which on its time says how fast prompts are read.
const PROMPT_ROWS_MIN: usize = 16;

/// The last times of one kind.
#[derive(Debug, Default)]
struct Recent {
    times: Vec<Duration>,
    count: usize,
    median: Duration,
}

impl Recent {
    fn push(&mut self, time: Duration) {
        match self.times.len() < RECENT {
            true => self.times.push(time),
            false => self.times[self.count % RECENT] = time,
        }
        self.count += 1;
        if self.count >= FRAMES_MIN && (self.count <= EVERY || self.count.is_multiple_of(EVERY)) {
            let mut sorted = self.times.clone();
            sorted.sort_unstable();
            self.median = sorted[sorted.len() / 2];
        }
    }
}

/// What a frame says about the stage's speed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The next token of the only running answer; `drafted` tokens are tried with it.
    Step {
        sequence: u64,
        drafted: bool,
    },
    /// This many rows of prompts.
    Prompt(usize),
    Other,
}

impl Kind {
    fn of(frame: &[FrameRows]) -> Kind {
        if let [rows] = frame
            && rows.choose
            && rows.rows as usize == 1 + rows.draft.len()
        {
            return Kind::Step { sequence: rows.sequence, drafted: !rows.draft.is_empty() };
        }
        let rows: usize = frame.iter().map(|rows| rows.rows as usize).sum();
        if rows >= PROMPT_ROWS_MIN { Kind::Prompt(rows) } else { Kind::Other }
    }
}

/// The measured times of one stage of one chain.
#[derive(Debug)]
pub(super) struct PaceMeter {
    epoch: u64,
    /// Times of this stage for one row.
    steps: Recent,
    /// Times between two frames of one answer in which the other stages had it.
    aways: Recent,
    /// Times of this stage per row of a prompt.
    prompts: Recent,
    /// The frame being computed, and its start.
    frame: Option<(Kind, Time)>,
    /// The answer that the last frame continued, and when it left this stage.
    sent: Option<(u64, Time)>,
}

impl PaceMeter {
    /// A meter without measurements. `epoch`: that of the chain.
    pub(super) fn new(epoch: u64) -> PaceMeter {
        let (steps, aways, prompts) = Default::default();
        PaceMeter { epoch, steps, aways, prompts, frame: None, sent: None }
    }

    /// Records that this stage starts to compute a frame.
    pub(super) fn begin(&mut self, rows: &[FrameRows], now: Time) {
        let kind = Kind::of(rows);
        if let (Kind::Step { sequence, .. }, Some((before, at))) = (kind, self.sent.take())
            && sequence == before
        {
            self.aways.push(now.since(at));
        }
        self.frame = Some((kind, now));
    }

    /// Records that the frame is computed.
    pub(super) fn end(&mut self, now: Time) {
        let Some((kind, began)) = self.frame.take() else { return };
        match kind {
            Kind::Step { sequence, drafted } => {
                if !drafted {
                    self.steps.push(now.since(began));
                }
                self.sent = Some((sequence, now));
            }
            Kind::Prompt(rows) => self.prompts.push(now.since(began) / u32::try_from(rows).unwrap_or(u32::MAX)),
            Kind::Other => {}
        }
    }

    /// The times measured so far; `None` without any.
    pub(super) fn pace(&self) -> Option<StagePace> {
        let (step, away, prompt_row) = (self.steps.median, self.aways.median, self.prompts.median);
        let known = !(step.is_zero() && away.is_zero() && prompt_row.is_zero());
        known.then_some(StagePace { epoch: self.epoch, step, away, prompt_row })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(sequence: u64, rows: u32, draft: usize) -> FrameRows {
        FrameRows { sequence, start: 0, rows, choose: true, all_logits: false, draft: vec![0; draft] }
    }

    /// Frames of `step_ms` each, between which `away_ms` pass.
    fn frames(meter: &mut PaceMeter, now: &mut Time, count: usize, of: &[FrameRows], step_ms: u64, away_ms: u64) {
        for _ in 0..count {
            meter.begin(of, *now);
            *now += Duration::from_millis(step_ms);
            meter.end(*now);
            *now += Duration::from_millis(away_ms);
        }
    }

    #[test]
    fn the_median_of_single_rows_is_the_pace_and_a_busy_moment_is_not() {
        let (mut meter, mut now) = (PaceMeter::new(4), Time::from_secs(1));
        assert_eq!(meter.pace(), None);
        let one = [rows(1, 1, 0)];
        frames(&mut meter, &mut now, 5, &one, 3, 7);
        frames(&mut meter, &mut now, 2, &one, 300, 700);
        frames(&mut meter, &mut now, 5, &one, 3, 7);
        let ms = Duration::from_millis;
        let pace = StagePace { epoch: 4, step: ms(3), away: ms(7), prompt_row: Duration::ZERO };
        assert_eq!(meter.pace(), Some(pace));
        frames(&mut meter, &mut now, 3, &[rows(2, 64, 0)], 128, 0);
        assert_eq!(meter.pace(), Some(StagePace { prompt_row: ms(2), ..pace }));
        frames(&mut meter, &mut now, 24, &one, 30, 70);
        assert_eq!(meter.pace().map(|pace| (pace.step, pace.away)), Some((ms(30), ms(70))), "a lasting change counts");
    }

    #[test]
    fn time_in_which_no_other_stage_has_the_answer_is_not_theirs() {
        let (mut meter, mut now) = (PaceMeter::new(1), Time::from_secs(1));
        // A new answer every time, one beside a prompt, and several answers at once.
        for sequence in 0..20 {
            frames(&mut meter, &mut now, 1, &[rows(sequence, 1, 0)], 3, 5000);
        }
        for _ in 0..20 {
            frames(&mut meter, &mut now, 1, &[rows(1, 1, 0)], 3, 5000);
            frames(&mut meter, &mut now, 1, &[rows(1, 1, 0), rows(2, 64, 0)], 3, 5000);
        }
        assert_eq!(meter.pace().map(|pace| pace.away), Some(Duration::ZERO));
        // Drafted tokens take longer here, and the others' time counts.
        frames(&mut meter, &mut now, 20, &[rows(1, 4, 3)], 9, 50);
        let pace = meter.pace().unwrap();
        assert_eq!((pace.step, pace.away), (Duration::from_millis(3), Duration::from_millis(50)));
    }
}
