//! Whether offloading to peers is worthwhile: actual against predicted times of offloaded jobs, by class. A prediction knows
//! links and rates, but not what moving bytes costs this node otherwise; this history does. Workers are not chosen here.

use std::collections::BTreeMap;

use super::limits::{OFFLOAD_FORGET_WEIGHT, OFFLOAD_LEARN_WEIGHT, OFFLOAD_RATIO_MAX, OFFLOAD_TIME_SHARE};

/// Jobs of about one size, whose operands are at peers already or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct JobClass {
    /// Logarithm of the operations: one class is a factor of four wide.
    size: i32,
    resident: bool,
}

impl JobClass {
    pub(super) fn of(flops: f64, resident: bool) -> JobClass {
        JobClass { size: (flops.max(1.0).log2() / 2.0) as i32, resident }
    }
}

/// Ratio of actual to predicted time, by class.
#[derive(Debug, Default)]
pub(super) struct OffloadHistory {
    ratios: BTreeMap<JobClass, f64>,
}

impl OffloadHistory {
    /// Whether to offload a job at all, if this node alone would need `alone_s` and all workers together
    /// are predicted to need `offloaded_s`. Every "no" forgets a little of the history, so that offloading is tried again.
    pub(super) fn pays(&mut self, class: JobClass, offloaded_s: f64, alone_s: f64) -> bool {
        let ratio = self.ratios.entry(class).or_insert(1.0);
        let pays = offloaded_s * *ratio <= OFFLOAD_TIME_SHARE * alone_s;
        if !pays {
            *ratio += OFFLOAD_FORGET_WEIGHT * (1.0 - *ratio);
        }
        pays
    }

    /// Records the time of an offloaded job.
    pub(super) fn learn(&mut self, class: JobClass, predicted_s: f64, actual_s: f64) {
        if predicted_s > 0.0 {
            let ratio = self.ratios.entry(class).or_insert(1.0);
            *ratio += OFFLOAD_LEARN_WEIGHT
                * ((actual_s / predicted_s).clamp(1.0 / OFFLOAD_RATIO_MAX, OFFLOAD_RATIO_MAX) - *ratio);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_of_jobs_slowed_by_offloading_stays_local_for_a_while() {
        let mut history = OffloadHistory::default();
        let class = JobClass::of(2e9, false);
        assert!(history.pays(class, 0.7, 1.0));
        assert!(!history.pays(class, 0.95, 1.0), "the gain is too small");
        (0..8).for_each(|_| history.learn(class, 0.7, 1.3));
        assert!(!history.pays(class, 0.7, 1.0));
        assert!(history.pays(JobClass::of(2e12, false), 0.7, 1.0), "other sizes are unaffected");
        assert!(history.pays(JobClass::of(2e9, true), 0.7, 1.0), "jobs that need no transfer are unaffected");
        let tries = (0..1000).position(|_| history.pays(class, 0.7, 1.0));
        assert!(tries.is_some_and(|tries| tries > 5), "{tries:?}");
    }
}
