//! For how long something better than what works has been in sight, and whether that is long enough. It compares no plans.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::Time;

use libp2p_identity::PeerId;

/// Long enough in any case. Nodes come and go in less when they start.
const PATIENCE: Duration = Duration::from_secs(10);

/// Under `--split`, all nodes were asked for: long enough for those that came and have been there for so long without another
/// joining them, unless they come and go.
const SPLIT_PATIENCE: Duration = Duration::from_secs(3);

/// Who has been there for longer was not used for a reason: that this is better now may be a matter of measurement.
const NEW: Duration = Duration::from_secs(30);

/// A node that was lost so often,
const LOSSES: u32 = 2;

/// within this time, comes and goes.
const REMEMBERED: Duration = Duration::from_secs(600);

/// Something better.
#[derive(Debug)]
struct InSight {
    since: Time,
    /// The nodes that it would use and what works does not, with their runs.
    newcomers: BTreeMap<PeerId, u64>,
    /// Since when these are the ones.
    same_since: Time,
}

/// What is better for a model, and which of its nodes were lost lately.
#[derive(Debug, Default)]
pub(super) struct Patience {
    in_sight: Option<InSight>,
    losses: BTreeMap<PeerId, (u32, Time)>,
    /// The nodes that are there, their runs, and since when.
    there: BTreeMap<PeerId, (u64, Time)>,
}

impl Patience {
    /// These nodes are there, with their runs.
    pub(super) fn see(&mut self, nodes: impl Iterator<Item = (PeerId, u64)>, now: Time) {
        let before = std::mem::take(&mut self.there);
        let since =
            |peer: &PeerId, run: u64| before.get(peer).filter(|(known, _)| *known == run).map(|(_, since)| *since);
        self.there = nodes.map(|(peer, run)| (peer, (run, since(&peer, run).unwrap_or(now)))).collect();
    }

    /// Nothing better is in sight.
    pub(super) fn none(&mut self) {
        self.in_sight = None;
    }

    /// A node of a placement that worked is gone.
    pub(super) fn lost(&mut self, peer: PeerId, now: Time) {
        self.losses.retain(|_, (_, last)| now.since(*last) < REMEMBERED);
        let (times, last) = self.losses.entry(peer).or_insert((0, now));
        (*times, *last) = (*times + 1, now);
    }

    /// Something better is in sight, with these nodes that are not used yet: whether it has been for long enough.
    pub(super) fn is_over(&mut self, newcomers: BTreeMap<PeerId, u64>, split: bool, now: Time) -> bool {
        let comes_and_goes = |peer: &PeerId| {
            let lost = self.losses.get(peer).filter(|(_, last)| now.since(*last) < REMEMBERED);
            lost.is_some_and(|(times, _)| *times >= LOSSES)
        };
        let is_new = |peer: &PeerId| self.there.get(peer).is_some_and(|(_, since)| now.since(*since) < NEW);
        let fit = |peer: &PeerId| is_new(peer) && !comes_and_goes(peer);
        let steady = split && !newcomers.is_empty() && newcomers.keys().all(fit);
        let seen =
            self.in_sight.get_or_insert_with(|| InSight { since: now, newcomers: newcomers.clone(), same_since: now });
        if seen.newcomers != newcomers {
            (seen.newcomers, seen.same_since) = (newcomers, now);
        }
        now.since(seen.since) >= PATIENCE || (steady && now.since(seen.same_since) >= SPLIT_PATIENCE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::plan_tests::peer;

    fn nodes(numbers: &[u8]) -> BTreeMap<PeerId, u64> {
        numbers.iter().map(|number| (peer(*number), 1)).collect()
    }

    #[test]
    fn a_split_waits_for_who_joins_while_others_do_and_not_for_ever() {
        let began = Time::from_secs(1000);
        let at = |seconds| began + Duration::from_secs(seconds);
        let mut patience = Patience::default();
        patience.see(nodes(&[1, 2, 3, 4]).into_iter(), began);
        assert!(!patience.is_over(nodes(&[1]), true, at(0)));
        assert!(!patience.is_over(nodes(&[1, 2]), true, at(2)));
        // Begun anew: another run.
        let mut again = nodes(&[1, 2]);
        again.insert(peer(2), 2);
        assert!(!patience.is_over(again.clone(), true, at(4)));
        assert!(!patience.is_over(again.clone(), true, at(6)));
        assert!(patience.is_over(again, true, at(7)));
        assert!(!patience.is_over(nodes(&[3]), true, at(9)));
        assert!(patience.is_over(nodes(&[3, 4]), true, at(10)));
    }

    #[test]
    fn without_a_split_and_for_who_comes_and_goes_nothing_is_hurried() {
        let began = Time::from_secs(1000);
        let at = |seconds| began + Duration::from_secs(seconds);
        let mut patience = Patience::default();
        for split in [false, true] {
            patience.none();
            patience.see(nodes(&[1]).into_iter(), began);
            for second in 0..10 {
                assert!(!patience.is_over(nodes(&[1]), split, at(second)), "{split} {second}");
                if split && second == 2 {
                    // Lost once is lost; twice is another matter.
                    patience.lost(peer(1), at(2));
                    patience.lost(peer(1), at(2));
                }
            }
            assert!(patience.is_over(nodes(&[1]), split, at(10)));
        }
        // Long since forgotten; but who has been there all the time is in no hurry either, and who comes anew is.
        patience.none();
        assert!(!patience.is_over(nodes(&[1]), true, at(1000)));
        assert!(!patience.is_over(nodes(&[1]), true, at(1003)));
        patience.none();
        patience.see([(peer(1), 2)].into_iter(), at(2000));
        assert!(!patience.is_over(nodes(&[1]), true, at(2000)));
        assert!(patience.is_over(nodes(&[1]), true, at(2003)));
    }
}
