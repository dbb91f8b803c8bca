//! Decides in how many groups the answers of a chain pass through its stages: one group per stage, so that no stage
//! idles, or all together, if reading the weights once is faster. Both are measured. No rows are planned here.

use crate::Time;

/// Answers per stage from which groups are always used: from here on the time of a pass grows with its rows; below, reading
/// the weights dominates.
const GROUPED_FROM: usize = 8;

/// Frames per measurement.
const FRAMES_PER_MEASUREMENT: usize = 24;

/// Frames after which the other way is measured again, because the machine's load changes.
const REMEASURE_AFTER: usize = 1024;

/// Smallest speed-up that is no noise.
const GAIN: f64 = 1.03;

/// How answers pass through the stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Groups,
    Together,
}

/// The choice between groups and one batch.
#[derive(Debug)]
pub struct Grouping {
    stages: usize,
    /// Number of answers during the measurements.
    answers: usize,
    way: Way,
    /// Measured seconds per token, in groups and together.
    measured: [Option<f64>; 2],
    /// Frames to skip: those in flight when the way changed.
    skipped: usize,
    since: Time,
    frames: usize,
    tokens: usize,
    /// Frames since both ways were measured.
    settled: usize,
}

impl Grouping {
    /// A choice for a chain of `stages` stages.
    pub fn new(stages: usize) -> Grouping {
        Grouping {
            stages,
            answers: 0,
            way: Way::Groups,
            measured: [None; 2],
            skipped: 0,
            since: Time::ZERO,
            frames: 0,
            tokens: 0,
            settled: 0,
        }
    }

    /// Number of stages, which is the largest useful number of groups.
    pub fn stages(&self) -> usize {
        self.stages
    }

    /// Number of groups while only answers are computed.
    pub fn groups(&self) -> usize {
        match self.way {
            Way::Groups => self.stages,
            Way::Together => 1,
        }
    }

    /// Records a completed frame at `now` (since any fixed moment), which chose `tokens`; `answers` are running,
    /// possibly beside prompts, whose time does not count.
    pub fn stepped(&mut self, answers: usize, prompts: bool, tokens: usize, now: Time) {
        if self.stages < 2 || answers < 2 || answers >= GROUPED_FROM * self.stages {
            self.way = Way::Groups;
            self.answers = answers;
            return;
        }
        if answers != self.answers {
            self.answers = answers;
            self.measured = [None; 2];
            self.go(Way::Groups, now);
            return;
        }
        if prompts {
            self.begin(now);
            return;
        }
        if self.skipped > 0 {
            self.skipped -= 1;
            self.since = now;
            return;
        }
        self.frames += 1;
        self.tokens += tokens;
        if self.frames < FRAMES_PER_MEASUREMENT || self.tokens == 0 {
            return;
        }
        let seconds = now.since(self.since).as_secs_f64() / self.tokens as f64;
        self.measured[self.way as usize] = Some(seconds);
        self.settled += self.frames;
        self.choose(now);
    }

    fn choose(&mut self, now: Time) {
        let other = match self.way {
            Way::Groups => Way::Together,
            Way::Together => Way::Groups,
        };
        let (Some(own), theirs) = (self.measured[self.way as usize], self.measured[other as usize]) else { return };
        match theirs {
            Some(theirs) if self.settled < REMEASURE_AFTER => match own > theirs * GAIN {
                true => self.go(other, now),
                false => self.begin(now),
            },
            _ => {
                self.settled = 0;
                self.go(other, now);
            }
        }
    }

    fn go(&mut self, way: Way, now: Time) {
        self.way = way;
        self.begin(now);
    }

    /// Starts a measurement.
    fn begin(&mut self, now: Time) {
        (self.skipped, self.since, self.frames, self.tokens) = (self.stages + 1, now, 0, 0);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Groups used for each frame, if a frame takes this many milliseconds in groups and together.
    fn ways(answers: usize, in_groups_ms: f64, together_ms: f64, frames: usize) -> Vec<usize> {
        let mut grouping = Grouping::new(2);
        let mut now = Time::ZERO;
        let mut ways = Vec::new();
        for _ in 0..frames {
            let groups = grouping.groups();
            ways.push(groups);
            let ms = if groups == 1 { together_ms } else { in_groups_ms };
            now += Duration::from_secs_f64(ms / 1e3);
            grouping.stepped(answers, false, answers.div_ceil(groups), now);
        }
        ways
    }

    fn share_together(ways: &[usize]) -> f64 {
        ways.iter().filter(|groups| **groups == 1).count() as f64 / ways.len() as f64
    }

    #[test]
    fn the_faster_way_is_chosen_and_kept() {
        // With four answers, two groups of two in 3 ms each are faster than all in 7 ms, and slower than all in 5 ms.
        assert!(share_together(&ways(4, 3.0, 7.0, 5000)) < 0.05);
        assert!(share_together(&ways(4, 3.0, 5.0, 5000)) > 0.95);
    }

    #[test]
    fn many_answers_or_one_are_never_tried_together() {
        assert_eq!(share_together(&ways(16, 3.0, 0.1, 500)), 0.0);
        assert_eq!(share_together(&ways(1, 3.0, 0.1, 500)), 0.0);
    }

    #[test]
    fn both_ways_are_measured_and_the_slower_one_is_retried_rarely() {
        let ways = ways(4, 3.0, 6.5, 4000);
        assert!(ways[..100].contains(&1));
        assert!(share_together(&ways) < 0.1 && ways[200..].contains(&1));
    }

    #[test]
    fn a_change_of_answers_or_prompts_restarts_the_measurement() {
        let mut grouping = Grouping::new(2);
        for at in 0..1000_u32 {
            grouping.stepped(4 + at as usize / 20 % 2, false, 2, Time::from_millis(at.into()));
            assert_eq!(grouping.groups(), 2, "too few frames for a measurement");
        }
        for at in 1000..2000_u32 {
            grouping.stepped(4, at % 10 == 0, 2, Time::from_millis(at.into()));
            assert_eq!(grouping.groups(), 2);
        }
    }
}
