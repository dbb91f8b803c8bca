//! How long the later stages of a chain may take for a frame: measured against what the first stage took for its part, and
//! against what earlier frames took. A chain of slow machines gets its time; one that hangs is given up within seconds.

use std::collections::VecDeque;
use std::time::Duration;

use crate::Time;

/// Time that a frame may take beyond what was to be expected: a token that is late by more makes people wait.
const GRACE: Duration = Duration::from_secs(5);

/// Factor between a frame's time and what the first stage's part lets expect, while nothing is known of the later stages: they
/// may be on slower machines.
const RATIO_AT_FIRST: f64 = 4.0;

/// How many times as long as expected a frame may take, on top of the grace.
const TOLERANCE: f64 = 2.0;

/// Factor per frame by which the largest ratio seen is forgotten.
const RATIO_DECAY: f64 = 0.98;

/// Longest time that can be expected of a frame: the largest frame of the largest model on a slow machine. Without a bound, a
/// stage could become slower without end.
const EXPECTED_MAX: Duration = Duration::from_secs(30);

/// A report of the last stage that no frame can have given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Misreport;

/// A frame that was sent to the later stages.
#[derive(Clone, Copy, Debug)]
struct Sent {
    number: u64,
    at: Time,
    /// Time for the whole chain if every stage took as long as the first one.
    alike: Duration,
}

/// The frames on their way through the later stages, oldest first.
#[derive(Debug)]
pub(super) struct FrameWatch {
    sent: VecDeque<Sent>,
    /// Largest ratio lately of the time of a frame to `alike`, at least 1.
    ratio: f64,
    /// When the last report came: a frame waits for the ones before it.
    reported: Time,
}

impl Default for FrameWatch {
    fn default() -> FrameWatch {
        FrameWatch { sent: VecDeque::new(), ratio: RATIO_AT_FIRST, reported: Time::ZERO }
    }
}

impl FrameWatch {
    /// A frame that the first of `stages` stages computed since `began` goes to the next one.
    pub(super) fn sent(&mut self, number: u64, stages: usize, began: Time, now: Time) {
        let alike = now.since(began) * u32::try_from(stages).unwrap_or(u32::MAX);
        self.sent.push_back(Sent { number, at: now, alike });
    }

    /// The last stage has reported a frame.
    pub(super) fn reported(&mut self, number: u64, now: Time) {
        while let Some(sent) = self.sent.front().copied().filter(|sent| sent.number <= number) {
            self.sent.pop_front();
            let took = now.since(sent.at.max(self.reported)).as_secs_f64();
            let ratio = took / sent.alike.as_secs_f64().max(1e-3);
            self.ratio = ratio.max(self.ratio * RATIO_DECAY).max(1.0);
            self.reported = now;
        }
    }

    /// Whether the report of a frame is overdue.
    pub(super) fn is_late(&self, number: u64, now: Time) -> bool {
        let Some(sent) = self.sent.iter().find(|sent| sent.number == number) else { return false };
        let expected = sent.alike.mul_f64(self.ratio).min(EXPECTED_MAX);
        now.since(sent.at.max(self.reported)) > GRACE + expected.mul_f64(TOLERANCE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Milliseconds from the sending of a frame, of which the first of two stages computed its part in `own_ms`, until the
    /// frame is late; earlier frames came back `earlier_ms` after their sending.
    fn late_after(own_ms: u64, earlier_ms: &[u64]) -> u64 {
        let mut watch = FrameWatch::default();
        let mut now = Time::from_secs(100);
        for (number, took) in (0..).zip(earlier_ms) {
            let began = now;
            now += Duration::from_millis(own_ms);
            watch.sent(number, 2, began, now);
            now += Duration::from_millis(*took);
            watch.reported(number, now);
        }
        let number = earlier_ms.len() as u64;
        watch.sent(number, 2, now, now + Duration::from_millis(own_ms));
        now += Duration::from_millis(own_ms);
        let late = |after: &u64| watch.is_late(number, now + Duration::from_millis(*after));
        (0..1_000_000).step_by(10).find(late).expect("every frame is late at last")
    }

    #[test]
    fn a_frame_of_a_fast_chain_is_late_after_five_seconds() {
        assert!((5_000..5_200).contains(&late_after(5, &[])));
        assert!((5_000..5_100).contains(&late_after(5, &[6; 200])));
    }

    #[test]
    fn slow_machines_get_the_time_that_they_need() {
        // A prompt's frame of three seconds on the first stage, and on later stages that are ten times slower.
        assert!(late_after(3_000, &[]) > 30_000);
        assert!(late_after(500, &[5_000; 5]) > 10_000);
        assert!(late_after(20, &[9_000]) > 9_000, "one that was slow once may be so again");
    }

    #[test]
    fn a_stage_cannot_become_slower_without_end() {
        let most = (GRACE + EXPECTED_MAX.mul_f64(TOLERANCE)).as_millis() as u64;
        assert!(late_after(500, &[60_000; 20]) <= most + 10);
        // What was slow once is forgotten.
        let mut earlier = vec![4_000; 3];
        earlier.extend([10; 400]);
        assert!(late_after(5, &earlier) < 5_200);
    }

    #[test]
    fn a_frame_behind_others_waits_for_them() {
        let mut watch = FrameWatch::default();
        let at = |seconds| Time::from_secs(seconds);
        watch.sent(1, 2, at(10), at(10));
        watch.sent(2, 2, at(10), at(10));
        assert!(!watch.is_late(1, at(15)) && watch.is_late(1, at(16)));
        watch.reported(1, at(15));
        assert!(!watch.is_late(2, at(19)) && watch.is_late(2, at(300)));
        watch.reported(2, at(19));
        assert!(!watch.is_late(2, at(1000)), "it is back");
    }
}
