//! Which whole models leave a node's memory, and when: dropped ones once their answers have ended, unused ones after a time.
//! Nothing is unloaded here.

use std::collections::BTreeMap;
use std::time::Duration;

use pangea_units::Digest;

use crate::Time;

/// Time for which answers may go on after their model was dropped: as long as at a node that is stopped.
const DRAIN: Duration = Duration::from_secs(10);

/// Use of a model on a node.
#[derive(Clone, Copy, Debug)]
pub struct WholeUse {
    /// Sessions of the node's chains of the model.
    pub sessions: usize,
    /// When the last session ended, or the model was loaded.
    pub used_at: Time,
    /// Whether the node serves it: only such a model is unloaded because nobody uses it.
    pub served: bool,
}

/// Why a model leaves memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaving {
    /// It was dropped.
    Dropped,
    /// Nobody has used it for so long.
    Unused(Duration),
}

/// The whole models of a node.
#[derive(Debug, Default)]
pub struct WholeModels {
    /// Time for which unused models stay; `None`: for ever.
    keep: Option<Duration>,
    /// Dropped models, with the time since when.
    retiring: BTreeMap<Digest, Time>,
}

impl WholeModels {
    /// Unused models stay in memory for `keep`; `None`: for ever.
    pub fn new(keep: Option<Duration>) -> WholeModels {
        WholeModels { keep, retiring: BTreeMap::new() }
    }

    /// A model is to end once its sessions have.
    pub fn retire(&mut self, model: Digest, now: Time) {
        self.retiring.entry(model).or_insert(now);
    }

    /// A model is wanted again.
    pub fn stays(&mut self, model: &Digest) {
        self.retiring.remove(model);
    }

    /// The models that leave memory now. `uses`: those in memory.
    pub fn leaving(&mut self, uses: &BTreeMap<Digest, WholeUse>, now: Time) -> Vec<(Digest, Leaving)> {
        self.retiring.retain(|model, _| uses.contains_key(model));
        let why = |(model, of): (&Digest, &WholeUse)| {
            if let Some(since) = self.retiring.get(model) {
                let over = of.sessions == 0 || now.since(*since) >= DRAIN;
                return over.then_some((*model, Leaving::Dropped));
            }
            let unused = now.since(of.used_at);
            let over = of.served && of.sessions == 0 && self.keep.is_some_and(|keep| unused >= keep);
            over.then_some((*model, Leaving::Unused(unused)))
        };
        let leaving: Vec<_> = uses.iter().filter_map(why).collect();
        for (model, _) in &leaving {
            self.retiring.remove(model);
        }
        leaving
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: Digest = Digest([1; 32]);

    fn used(sessions: usize, used_at: u64, served: bool) -> BTreeMap<Digest, WholeUse> {
        [(MODEL, WholeUse { sessions, used_at: Time::from_secs(used_at), served })].into()
    }

    #[test]
    fn a_dropped_model_leaves_with_its_last_session_and_no_later_than_a_drain_lasts() {
        let mut models = WholeModels::default();
        models.retire(MODEL, Time::from_secs(1));
        models.retire(MODEL, Time::from_secs(9));
        let busy = used(2, 1, false);
        assert!(models.leaving(&busy, Time::from_secs(10)).is_empty());
        assert_eq!(models.leaving(&busy, Time::from_secs(11)), [(MODEL, Leaving::Dropped)]);
        assert!(models.leaving(&busy, Time::from_secs(12)).is_empty(), "it has left");
        models.retire(MODEL, Time::from_secs(20));
        assert_eq!(models.leaving(&used(0, 20, true), Time::from_secs(20)), [(MODEL, Leaving::Dropped)]);
        models.retire(MODEL, Time::from_secs(30));
        models.stays(&MODEL);
        assert!(models.leaving(&used(0, 30, true), Time::from_secs(100)).is_empty(), "it was loaded again");
    }

    #[test]
    fn a_served_model_that_nobody_used_for_long_makes_room_and_no_other_does() {
        let mut models = WholeModels::new(Some(Duration::from_secs(60)));
        assert!(models.leaving(&used(0, 10, true), Time::from_secs(69)).is_empty());
        let unused = Leaving::Unused(Duration::from_secs(60));
        assert_eq!(models.leaving(&used(0, 10, true), Time::from_secs(70)), [(MODEL, unused)]);
        assert!(models.leaving(&used(1, 10, true), Time::from_secs(70)).is_empty());
        assert!(models.leaving(&used(0, 10, false), Time::from_secs(70)).is_empty(), "its placement decides");
        assert!(WholeModels::default().leaving(&used(0, 0, true), Time::from_secs(1 << 30)).is_empty(), "for ever");
    }
}
