//! In how many groups the answers of a chain pass through its stages: one group for each stage, so that no stage waits, or all
//! together, where reading the weights once is worth more. Both ways are measured. It plans no rows.

use crate::Time;

/// Answers per stage from which on groups are always used: the time of a pass grows with its rows from here on; below, it is
/// the time of reading the weights.
const GROUPED_FROM: usize = 8;

/// Frames of one measurement.
const FRAMES_PER_MEASUREMENT: usize = 24;

/// Frames after which the other way is measured again, because the load of the machine changes.
const REMEASURE_AFTER: usize = 1024;

/// Speed-up that is no noise.
const GAIN: f64 = 1.03;

/// How answers pass through the stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Groups,
    Together,
}

/// The choice between groups and all together.
#[derive(Debug)]
pub struct Grouping {
    stages: usize,
    /// Number of answers that the measurements are about.
    answers: usize,
    way: Way,
    /// Seconds per token, in groups and together.
    measured: [Option<f64>; 2],
    /// Frames still to be skipped: those under way when the way changed.
    skipped: usize,
    since: Time,
    frames: usize,
    tokens: usize,
    /// Frames since both ways were measured.
    settled: usize,
}

impl Grouping {
    /// For a chain of `stages` stages.
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

    /// The number of stages, which is the largest useful number of groups.
    pub fn stages(&self) -> usize {
        self.stages
    }

    /// The number of groups to use while only answers are computed.
    pub fn groups(&self) -> usize {
        match self.way {
            Way::Groups => self.stages,
            Way::Together => 1,
        }
    }

    /// A frame is done, `now` since any fixed moment: it chose `tokens`; `answers` are under way, and perhaps prompts beside
    /// them, which are no time of theirs.
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

    /// A new measurement.
    fn begin(&mut self, now: Time) {
        (self.skipped, self.since, self.frames, self.tokens) = (self.stages + 1, now, 0, 0);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// The groups in which frames went, where a frame takes so many milliseconds in groups and together.
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
    fn the_faster_way_is_found_and_kept() {
        // Four answers: two groups of two in 3 ms each are faster than all in 7 ms, and slower than all in 5 ms.
        assert!(share_together(&ways(4, 3.0, 7.0, 5000)) < 0.05);
        assert!(share_together(&ways(4, 3.0, 5.0, 5000)) > 0.95);
    }

    #[test]
    fn many_answers_or_one_are_never_tried_together() {
        assert_eq!(share_together(&ways(16, 3.0, 0.1, 500)), 0.0);
        assert_eq!(share_together(&ways(1, 3.0, 0.1, 500)), 0.0);
    }

    #[test]
    fn both_ways_are_known_after_some_frames_and_the_slower_is_tried_rarely() {
        let ways = ways(4, 3.0, 6.5, 4000);
        assert!(ways[..100].contains(&1));
        assert!(share_together(&ways) < 0.1 && ways[200..].contains(&1));
    }

    #[test]
    fn other_answers_and_prompts_begin_a_measurement_anew() {
        let mut grouping = Grouping::new(2);
        for at in 0..1000_u32 {
            grouping.stepped(4 + at as usize / 20 % 2, false, 2, Time::from_millis(at.into()));
            assert_eq!(grouping.groups(), 2, "nothing is measured in so few frames");
        }
        for at in 1000..2000_u32 {
            grouping.stepped(4, at % 10 == 0, 2, Time::from_millis(at.into()));
            assert_eq!(grouping.groups(), 2);
        }
    }
}
