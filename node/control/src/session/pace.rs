//! Measures how long a stage takes for its frames, and how long the rest of its chain takes until the next frame of the same
//! answer comes. The times are means of the last frames: people wait for the slow ones, too. Nothing is decided here.

use std::collections::VecDeque;
use std::time::Duration;

use super::FrameRows;
use crate::Time;
use crate::pool::StagePace;

/// Frames whose mean counts at most: about two answers, and little memory.
const RECENT: usize = 256;

/// Together the frames that count take about this long: a busy moment is one among many, and a lasting change counts as soon
/// on a slow chain as on a fast one.
const RECENT_TIME: Duration = Duration::from_secs(5);

/// Up to this many frames, the mean is computed after each one; from then on after as many again, or one that takes at least
/// [`LONG`].
const EVERY: usize = 8;

/// Time of a frame beside which computing a mean costs nothing.
const LONG: Duration = Duration::from_millis(20);

/// Frames before a mean counts: the first pass of a stage reads its weights from memory for the first time.
const FRAMES_MIN: usize = 3;

/// The longest times, one of this many and at least one, count like the longest of the others: a moment in which the machine
/// stood still says nothing about the next ones.
const OUTLIER_OF: usize = 16;

/// Rows of a prompt's frame from which on its time says how fast prompts are read.
const PROMPT_ROWS_MIN: usize = 16;

/// The last times of one kind.
#[derive(Debug, Default)]
struct Recent {
    times: VecDeque<Duration>,
    total: Duration,
    count: usize,
    mean: Duration,
}

impl Recent {
    fn push(&mut self, time: Duration) {
        self.times.push_back(time);
        self.total += time;
        self.count += 1;
        while let Some(oldest) = self.times.front().copied() {
            let newer = self.total.saturating_sub(oldest);
            let enough = self.times.len() > FRAMES_MIN && newer >= RECENT_TIME;
            if self.times.len() <= RECENT && !enough {
                break;
            }
            self.times.pop_front();
            self.total = newer;
        }
        let due = self.count <= EVERY || self.count.is_multiple_of(EVERY) || time >= LONG;
        if self.count >= FRAMES_MIN && due {
            self.mean = mean(self.times.iter().copied().collect());
        }
    }
}

/// The mean of at least two times, without what only a few of them took.
fn mean(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    let (count, outliers) = (times.len(), times.len().div_ceil(OUTLIER_OF));
    let Some(longest) = times.get(count.saturating_sub(outliers + 1)).copied() else { return Duration::ZERO };
    let sum: Duration = times.into_iter().map(|time| time.min(longest)).sum();
    sum / u32::try_from(count).unwrap_or(u32::MAX)
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
        let (step, away, prompt_row) = (self.steps.mean, self.aways.mean, self.prompts.mean);
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
    fn the_mean_of_single_rows_is_the_pace_and_a_busy_moment_is_not() {
        let (mut meter, mut now) = (PaceMeter::new(4), Time::from_secs(1));
        assert_eq!(meter.pace(), None);
        let one = [rows(1, 1, 0)];
        frames(&mut meter, &mut now, 5, &one, 3, 7);
        frames(&mut meter, &mut now, 1, &one, 300, 700);
        frames(&mut meter, &mut now, 11, &one, 3, 7);
        let ms = Duration::from_millis;
        let pace = StagePace { epoch: 4, step: ms(3), away: ms(7), prompt_row: Duration::ZERO };
        assert_eq!(meter.pace(), Some(pace));
        frames(&mut meter, &mut now, 3, &[rows(2, 64, 0)], 128, 0);
        assert_eq!(meter.pace(), Some(StagePace { prompt_row: ms(2), ..pace }));
        frames(&mut meter, &mut now, RECENT, &one, 30, 70);
        assert_eq!(meter.pace().map(|pace| (pace.step, pace.away)), Some((ms(30), ms(70))), "a lasting change counts");
        frames(&mut meter, &mut now, 8, &one, 3, 9000);
        assert_eq!(meter.pace().map(|pace| pace.away), Some(ms(9000)), "after few frames where they are slow");
    }

    #[test]
    fn frames_that_wait_now_and_then_count_with_what_they_take() {
        let (mut meter, mut now) = (PaceMeter::new(1), Time::from_secs(1));
        // As on a machine with other work: most frames get a core at once, every fourth waits for one.
        for _ in 0..64 {
            frames(&mut meter, &mut now, 3, &[rows(1, 1, 0)], 3, 4);
            frames(&mut meter, &mut now, 1, &[rows(1, 1, 0)], 15, 60);
        }
        let took = meter.pace().map(|pace| (pace.step + pace.away).as_secs_f64());
        assert!(took.is_some_and(|took_s| (22e-3..26e-3).contains(&took_s)), "{took:?}");
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
