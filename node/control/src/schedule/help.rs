//! Whether the help of peers pays: what jobs of a kind that peers helped with took, against what was predicted.
//! A prediction knows links and rates, not what else moving bytes costs this node; this record does.

use std::collections::BTreeMap;

use super::limits::{HELP_FORGET, HELP_LEARN, HELP_RATIO_MAX, HELP_SHARE};

/// Jobs of about one size, their operands at peers already or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Kind {
    /// Logarithm of the operations, so that one kind is a factor of four wide.
    size: i32,
    resident: bool,
}

impl Kind {
    pub(super) fn of(flops: f64, resident: bool) -> Kind {
        Kind { size: (flops.max(1.0).log2() / 2.0) as i32, resident }
    }
}

/// Actual over predicted time, by kind.
#[derive(Debug, Default)]
pub(super) struct Help {
    ratios: BTreeMap<Kind, f64>,
}

impl Help {
    /// Whether a job should be given to peers at all, if this node alone would need `alone_s` and all of them together
    /// are predicted to need `helped_s`. Being told no, a kind is forgiven a little, so that it is tried again.
    pub(super) fn pays(&mut self, kind: Kind, helped_s: f64, alone_s: f64) -> bool {
        let ratio = self.ratios.entry(kind).or_insert(1.0);
        let pays = helped_s * *ratio <= HELP_SHARE * alone_s;
        if !pays {
            *ratio += HELP_FORGET * (1.0 - *ratio);
        }
        pays
    }

    /// What a job that peers helped with took.
    pub(super) fn learn(&mut self, kind: Kind, predicted_s: f64, actual_s: f64) {
        if predicted_s > 0.0 {
            let ratio = self.ratios.entry(kind).or_insert(1.0);
            *ratio += HELP_LEARN * ((actual_s / predicted_s).clamp(1.0 / HELP_RATIO_MAX, HELP_RATIO_MAX) - *ratio);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_of_job_that_help_made_slower_is_kept_here_and_tried_again_later() {
        let mut help = Help::default();
        let kind = Kind::of(2e9, false);
        assert!(help.pays(kind, 0.7, 1.0));
        assert!(!help.pays(kind, 0.95, 1.0), "too little to gain");
        (0..8).for_each(|_| help.learn(kind, 0.7, 1.3));
        assert!(!help.pays(kind, 0.7, 1.0));
        assert!(help.pays(Kind::of(2e12, false), 0.7, 1.0), "other sizes know nothing of it");
        assert!(help.pays(Kind::of(2e9, true), 0.7, 1.0), "nor do jobs that need no transfer");
        let tries = (0..1000).position(|_| help.pays(kind, 0.7, 1.0));
        assert!(tries.is_some_and(|tries| tries > 5), "{tries:?}");
    }
}
