//! Decides how long a better plan must have been better before it replaces a working placement. Plans are not compared here.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::Time;

use libp2p_identity::PeerId;

/// Time for which a plan must have been better before it replaces a working placement. Nodes that are starting appear
/// and disappear within this time.
const REPLAN_DELAY: Duration = Duration::from_secs(10);

/// The same under `--split`, for a plan whose additional nodes all joined within `NEWCOMER_AGE` and are not flapping: there
/// every node is wanted, and each one that joins restarts the time.
const SPLIT_REPLAN_DELAY: Duration = Duration::from_secs(3);

/// Age up to which a node counts as a newcomer. An older node was left out for a reason; a better plan with it
/// may be measurement noise.
const NEWCOMER_AGE: Duration = Duration::from_secs(30);

/// Losses within `FLAP_WINDOW` after which a node counts as flapping.
const FLAP_LOSSES: u32 = 2;

/// Time for which the loss of a node is remembered.
const FLAP_WINDOW: Duration = Duration::from_secs(600);

/// A plan that is better than the working placement.
#[derive(Debug)]
struct BetterPlan {
    since: Time,
    /// The nodes that the plan uses and the working placement does not, each with its incarnation.
    newcomers: BTreeMap<PeerId, u64>,
    /// Time since which the newcomers are the same.
    same_since: Time,
}

/// When a better plan of one model may replace a working placement.
#[derive(Debug, Default)]
pub(super) struct ReplanDelay {
    better: Option<BetterPlan>,
    losses: BTreeMap<PeerId, (u32, Time)>,
    /// The nodes of the pool: incarnation, and time since when.
    nodes: BTreeMap<PeerId, (u64, Time)>,
}

impl ReplanDelay {
    /// Records the nodes of the pool, each with its incarnation.
    pub(super) fn observe_nodes(&mut self, nodes: impl IntoIterator<Item = (PeerId, u64)> + Clone, now: Time) {
        let is_known = |(peer, run): (PeerId, u64)| self.nodes.get(&peer).is_some_and(|(known, _)| *known == run);
        if nodes.clone().into_iter().count() == self.nodes.len() && nodes.clone().into_iter().all(is_known) {
            return;
        }
        let before = std::mem::take(&mut self.nodes);
        let since =
            |peer: &PeerId, run: u64| before.get(peer).filter(|(known, _)| *known == run).map(|(_, since)| *since);
        self.nodes = nodes.into_iter().map(|(peer, run)| (peer, (run, since(&peer, run).unwrap_or(now)))).collect();
    }

    /// Records that no plan is better than the working placement.
    pub(super) fn clear(&mut self) {
        self.better = None;
    }

    /// Records that a node of a working placement was lost.
    pub(super) fn node_lost(&mut self, peer: PeerId, now: Time) {
        self.losses.retain(|_, (_, last)| now.since(*last) < FLAP_WINDOW);
        let (times, last) = self.losses.entry(peer).or_insert((0, now));
        (*times, *last) = (*times + 1, now);
    }

    /// Records that a plan with these additional nodes is better; returns whether it has been for long enough.
    pub(super) fn has_elapsed(&mut self, newcomers: BTreeMap<PeerId, u64>, split: bool, now: Time) -> bool {
        let is_flapping = |peer: &PeerId| {
            let lost = self.losses.get(peer).filter(|(_, last)| now.since(*last) < FLAP_WINDOW);
            lost.is_some_and(|(times, _)| *times >= FLAP_LOSSES)
        };
        let is_new = |peer: &PeerId| self.nodes.get(peer).is_some_and(|(_, since)| now.since(*since) < NEWCOMER_AGE);
        let fit = |peer: &PeerId| is_new(peer) && !is_flapping(peer);
        let steady = split && !newcomers.is_empty() && newcomers.keys().all(fit);
        let seen =
            self.better.get_or_insert_with(|| BetterPlan { since: now, newcomers: newcomers.clone(), same_since: now });
        if seen.newcomers != newcomers {
            (seen.newcomers, seen.same_since) = (newcomers, now);
        }
        now.since(seen.since) >= REPLAN_DELAY || (steady && now.since(seen.same_since) >= SPLIT_REPLAN_DELAY)
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
    fn a_split_waits_while_nodes_join_for_a_limited_time() {
        let began = Time::from_secs(1000);
        let at = |seconds| began + Duration::from_secs(seconds);
        let mut replan_delay = ReplanDelay::default();
        replan_delay.observe_nodes(nodes(&[1, 2, 3, 4]), began);
        assert!(!replan_delay.has_elapsed(nodes(&[1]), true, at(0)));
        assert!(!replan_delay.has_elapsed(nodes(&[1, 2]), true, at(2)));
        // The node restarted: another incarnation.
        let mut again = nodes(&[1, 2]);
        again.insert(peer(2), 2);
        assert!(!replan_delay.has_elapsed(again.clone(), true, at(4)));
        assert!(!replan_delay.has_elapsed(again.clone(), true, at(6)));
        assert!(replan_delay.has_elapsed(again, true, at(7)));
        assert!(!replan_delay.has_elapsed(nodes(&[3]), true, at(9)));
        assert!(replan_delay.has_elapsed(nodes(&[3, 4]), true, at(10)));
    }

    #[test]
    fn without_a_split_and_for_a_flapping_node_the_full_delay_counts() {
        let began = Time::from_secs(1000);
        let at = |seconds| began + Duration::from_secs(seconds);
        let mut replan_delay = ReplanDelay::default();
        for split in [false, true] {
            replan_delay.clear();
            replan_delay.observe_nodes(nodes(&[1]), began);
            for second in 0..10 {
                assert!(!replan_delay.has_elapsed(nodes(&[1]), split, at(second)), "{split} {second}");
                if split && second == 2 {
                    // Two losses within the window make it flap.
                    replan_delay.node_lost(peer(1), at(2));
                    replan_delay.node_lost(peer(1), at(2));
                }
            }
            assert!(replan_delay.has_elapsed(nodes(&[1]), split, at(10)));
        }
        // The losses have expired. A node that was present all the time is no newcomer; one that returns is.
        replan_delay.clear();
        assert!(!replan_delay.has_elapsed(nodes(&[1]), true, at(1000)));
        assert!(!replan_delay.has_elapsed(nodes(&[1]), true, at(1003)));
        replan_delay.clear();
        replan_delay.observe_nodes([(peer(1), 2)], at(2000));
        assert!(!replan_delay.has_elapsed(nodes(&[1]), true, at(2000)));
        assert!(replan_delay.has_elapsed(nodes(&[1]), true, at(2003)));
    }
}
