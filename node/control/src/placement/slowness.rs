//! Nodes that are slower than they say: a chain whose tokens take longer than its stages account for has a stage, or a link,
//! that hides its time. What a node says of itself counts for nothing here; how long the others of its chain waited does.
//!
//! Every stage tells how long its answers were away from it. Nobody can make the others' waiting look short, but all stages
//! of a chain wait for the same one, so a slow chain has several suspects. They share the blame: the next plan uses as few of
//! them as possible. A chain that is as fast as predicted clears its nodes, one that is slow again leaves only the suspects
//! that are in both, and so one that keeps answers waiting is alone in the end. A node that says falsely that it waited
//! is itself a suspect of every such chain.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use libp2p_identity::PeerId;

use super::offer::NodeOffer;
use super::{PlacedStage, Placement};
use crate::Time;
use crate::backoff::doubled;
use crate::pool::{StagePace, View};
use crate::session::ChainId;

/// Factor by which a token may take longer than predicted before its chain counts as slow. Predictions of honest nodes are
/// off by less.
const SLOW: f64 = 2.5;

/// Time per stage that a token may take besides: waking threads and encoding frames on a busy machine. Where seven threads want each
/// core, every stage of an honest chain waits for 15 ms.
const ALLOWANCE_S: f64 = 50e-3;

/// Time for which a chain must be slow before anyone is suspected: what the other stages measured meanwhile has arrived by then,
/// and a busy moment is over.
const SLOW_FOR: Duration = Duration::from_secs(3);

/// Time for which a suspicion is remembered; doubled with each further chain that confirms it.
const REMEMBERED: Duration = Duration::from_secs(600);

/// Upper bound of that time.
const REMEMBERED_MAX: Duration = Duration::from_secs(4 * 3600);

/// Suspicions remembered at most. The one that is forgotten soonest goes first.
const SUSPICIONS_MAX: usize = 256;

/// A chain that was slow, and who may be the cause.
#[derive(Debug)]
struct Suspicion {
    suspects: BTreeSet<PeerId>,
    /// Seconds per token that nobody accounts for.
    seconds: f64,
    /// The chain that showed it last, and the number of chains before it that did.
    chain: ChainId,
    confirmed: u32,
    until: Time,
}

/// A chain that turned out to be slow.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct SlowChain {
    /// The nodes that may be the cause.
    pub(super) suspects: Vec<PeerId>,
    /// Predicted seconds per token.
    pub(super) predicted_s: f64,
    /// Measured seconds per token.
    pub(super) took_s: f64,
}

/// What the times of a chain say.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Observed {
    /// About as fast as predicted, or slow as before.
    Steady,
    /// Slow, but not for long enough.
    Unclear,
    /// Slow, with suspects that are new.
    Slow(SlowChain),
}

/// The slow chains of a pool.
#[derive(Debug, Default)]
pub(super) struct Slowness {
    suspicions: Vec<Suspicion>,
    /// The last observed times of each chain, so that each counts once.
    seen: BTreeMap<ChainId, BTreeMap<PeerId, StagePace>>,
    /// Chains that are slow, but not for long enough, and since when.
    slow_since: BTreeMap<ChainId, Time>,
}

impl Slowness {
    /// Whether the adverts show times of a placement that were not observed yet, or that have been slow for long enough.
    pub(super) fn is_due(&self, view: &View, placement: &Placement, now: Time) -> bool {
        let (chain, paces) = (placement.chain(), paces(view, placement));
        let is_late = || self.slow_since.get(&chain).is_some_and(|since| now.since(*since) >= SLOW_FOR);
        !paces.is_empty() && (self.seen.get(&chain) != Some(&paces) || is_late())
    }

    /// Forgets what was too long ago.
    pub(super) fn expire(&mut self, now: Time) {
        self.suspicions.retain(|suspicion| suspicion.until > now);
    }

    /// Learns from the times of a working placement. `predicted_s`: seconds per token that its stages account for.
    pub(super) fn observe(&mut self, view: &View, placement: &Placement, predicted_s: f64, now: Time) -> Observed {
        let (chain, paces) = (placement.chain(), paces(view, placement));
        self.seen.retain(|other, _| other.model != placement.model);
        self.seen.insert(chain, paces.clone());
        self.slow_since.retain(|other, _| other.model != placement.model || *other == chain);
        let peers: BTreeSet<PeerId> = placement.stages.iter().map(|stage| stage.peer).collect();
        if peers.len() < 2 || !predicted_s.is_finite() {
            return Observed::Steady;
        }
        let limit_s = limit_s(predicted_s, peers.len());
        let Some((suspects, took_s)) = suspects(&view.local, &peers, &paces, limit_s) else {
            self.slow_since.remove(&chain);
            for suspicion in &mut self.suspicions {
                suspicion.suspects.retain(|peer| !peers.contains(peer));
            }
            self.suspicions.retain(|suspicion| !suspicion.suspects.is_empty());
            return Observed::Steady;
        };
        if now.since(*self.slow_since.entry(chain).or_insert(now)) < SLOW_FOR {
            return Observed::Unclear;
        }
        self.slow_since.remove(&chain);
        match self.suspect(suspects, took_s - predicted_s, chain, now) {
            Some(suspects) => {
                Observed::Slow(SlowChain { suspects: suspects.into_iter().collect(), predicted_s, took_s })
            }
            None => Observed::Steady,
        }
    }

    /// Records suspects; returns who is left of them if that is new.
    fn suspect(
        &mut self,
        suspects: BTreeSet<PeerId>,
        seconds: f64,
        chain: ChainId,
        now: Time,
    ) -> Option<BTreeSet<PeerId>> {
        let both =
            |known: &Suspicion| -> BTreeSet<PeerId> { known.suspects.intersection(&suspects).copied().collect() };
        let known = self.suspicions.iter_mut().find(|known| known.chain == chain || !both(known).is_empty());
        let Some(known) = known else {
            let until = now + REMEMBERED;
            self.suspicions.push(Suspicion { suspects: suspects.clone(), seconds, chain, confirmed: 0, until });
            if self.suspicions.len() > SUSPICIONS_MAX {
                let soonest = (0..self.suspicions.len()).min_by_key(|at| self.suspicions[*at].until);
                soonest.map(|at| self.suspicions.remove(at));
            }
            return Some(suspects);
        };
        let left = both(known);
        let left = if left.is_empty() { suspects.clone() } else { left };
        let new = known.suspects != left;
        known.confirmed += u32::from(known.chain != chain);
        (known.suspects, known.seconds, known.chain) = (left.clone(), seconds, chain);
        known.until = now + doubled(REMEMBERED, known.confirmed, REMEMBERED_MAX);
        new.then_some(left)
    }

    /// Adds the known delays to offers.
    pub(super) fn add_to(&self, offers: &mut [NodeOffer]) {
        for offer in offers {
            let of = self.suspicions.iter().filter(|suspicion| suspicion.suspects.contains(&offer.peer));
            let parts = of.map(|suspicion| suspicion.seconds / suspicion.suspects.len() as f64);
            offer.delay_s = parts.fold(0.0, f64::max);
        }
    }
}

/// Who may delay a chain, and the seconds per token that it took; `None` if it is as fast as predicted.
fn suspects(
    local: &PeerId,
    peers: &BTreeSet<PeerId>,
    paces: &BTreeMap<PeerId, StagePace>,
    limit_s: f64,
) -> Option<(BTreeSet<PeerId>, f64)> {
    let took_s = |pace: &StagePace| (pace.step + pace.away).as_secs_f64();
    let waiting: BTreeSet<PeerId> =
        paces.iter().filter(|(_, pace)| took_s(pace) > limit_s).map(|(peer, _)| *peer).collect();
    let slowest_s = waiting.iter().filter_map(|peer| paces.get(peer)).map(took_s).fold(0.0, f64::max);
    // What this node saw itself is certain.
    match paces.get(local) {
        Some(_) if !waiting.contains(local) => return None,
        Some(pace) => {
            // Who says that nobody waited contradicts it. Who says nothing yet may be heard later than others.
            let denies = |peer: &&PeerId| paces.contains_key(peer) && !waiting.contains(peer);
            let denying: BTreeSet<PeerId> = peers.iter().filter(denies).copied().collect();
            let others = || peers.iter().copied().filter(|peer| peer != local).collect();
            return Some((if denying.is_empty() { others() } else { denying }, took_s(pace)));
        }
        None => {}
    }
    // Of others, at least half must say so.
    if waiting.is_empty() || waiting.len() * 2 < paces.len() {
        return None;
    }
    Some((peers.clone(), slowest_s))
}

/// Seconds per token beyond which a chain counts as slow.
fn limit_s(predicted_s: f64, stages: usize) -> f64 {
    predicted_s * SLOW + ALLOWANCE_S * stages as f64
}

/// Seconds per token of a working placement: as this node measured them if it has a stage, otherwise the least that one of its
/// stages says, so that none can make it look slow alone.
pub(super) fn token_s(view: &View, placement: &Placement) -> Option<f64> {
    let paces = paces(view, placement);
    let took_s = |pace: &StagePace| (!pace.step.is_zero()).then(|| (pace.step + pace.away).as_secs_f64());
    let own_s = paces.get(&view.local).and_then(took_s);
    own_s.or_else(|| paces.values().filter_map(took_s).min_by(f64::total_cmp))
}

/// Seconds that each hop of a working placement takes besides its link. `predicted_s`: seconds per token that its stages and
/// links account for. What makes a chain slow has a cause of its own, and does not count.
pub(super) fn hop_s(view: &View, placement: &Placement, predicted_s: f64) -> Option<f64> {
    let hops = placement.stages.len();
    let took_s = token_s(view, placement).filter(|_| hops > 1 && predicted_s.is_finite())?;
    Some((took_s.min(limit_s(predicted_s, hops)) - predicted_s).max(0.0) / hops as f64)
}

/// What the stages of a placement say about its times.
fn paces(view: &View, placement: &Placement) -> BTreeMap<PeerId, StagePace> {
    let said = |placed: &PlacedStage| {
        let stages = &view.advert(&placed.peer)?.stages;
        let stage = stages.iter().find(|stage| stage.model == placement.model && stage.layers == placed.layers)?;
        let pace = stage.pace.filter(|pace| pace.epoch == placement.epoch && !pace.away.is_zero())?;
        Some((placed.peer, pace))
    };
    placement.stages.iter().filter_map(said).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::placement::plan_tests::peer;

    const FAST: Duration = Duration::from_millis(50);
    const LIMIT_S: f64 = 0.3;

    fn set(numbers: &[u8]) -> BTreeSet<PeerId> {
        numbers.iter().map(|number| peer(*number)).collect()
    }

    /// What node 1 makes of a chain of nodes, each of which says that a token took this many milliseconds, or nothing.
    fn suspected(chain: &[(u8, Option<u64>)]) -> Option<BTreeSet<PeerId>> {
        let peers = chain.iter().map(|(number, _)| peer(*number)).collect();
        let pace = |ms| StagePace { epoch: 1, step: FAST, away: Duration::from_millis(ms) - FAST, prompt_row: FAST };
        let said = chain.iter().filter_map(|(number, ms)| Some((peer(*number), pace((*ms)?))));
        suspects(&peer(1), &peers, &said.collect(), LIMIT_S).map(|(suspects, _)| suspects)
    }

    #[test]
    fn who_waited_is_no_suspect_of_a_node_that_waited_itself() {
        assert_eq!(suspected(&[(1, Some(100)), (2, Some(5000)), (3, Some(5000))]), None, "this node did not wait");
        assert_eq!(suspected(&[(1, Some(5000)), (2, Some(5000)), (3, Some(5000))]), Some(set(&[2, 3])));
        assert_eq!(suspected(&[(1, Some(5000)), (2, Some(5000)), (3, None)]), Some(set(&[2, 3])), "3 is heard later");
        assert_eq!(suspected(&[(1, Some(5000)), (2, Some(5000)), (3, Some(100))]), Some(set(&[3])), "it lies");
    }

    #[test]
    fn one_word_against_another_makes_both_suspects_and_one_against_several_nobody() {
        assert_eq!(suspected(&[(2, Some(5000)), (3, Some(100))]), Some(set(&[2, 3])));
        assert_eq!(suspected(&[(2, Some(5000)), (3, Some(100)), (4, Some(100))]), None);
        assert_eq!(suspected(&[(2, Some(5000)), (3, None), (4, Some(5000))]), Some(set(&[2, 3, 4])));
        assert_eq!(suspected(&[(2, Some(100)), (3, None)]), None);
    }

    #[test]
    fn each_further_chain_leaves_fewer_suspects_until_one_is_left() {
        let mut slowness = Slowness::default();
        let chain = |epoch| ChainId { model: pangea_units::Digest([1; 32]), epoch };
        let at = Time::from_secs;
        assert_eq!(slowness.suspect(set(&[2, 3, 4]), 6.0, chain(1), at(1)), Some(set(&[2, 3, 4])));
        assert_eq!(slowness.suspect(set(&[2, 3, 4]), 6.0, chain(1), at(2)), None, "nothing new");
        assert_eq!(slowness.suspect(set(&[2, 5]), 6.0, chain(2), at(3)), Some(set(&[2])));
        assert_eq!(slowness.suspicions[0].until, at(3) + 2 * REMEMBERED);
        // Another one, of whom the first is not.
        assert_eq!(slowness.suspect(set(&[3, 4]), 2.0, chain(3), at(4)), Some(set(&[3, 4])));
        assert_eq!(slowness.suspicions.len(), 2);
        for epoch in 4..10 + SUSPICIONS_MAX as u64 {
            slowness.suspicions.retain(|suspicion| suspicion.suspects != set(&[9]));
            slowness.suspect(set(&[(epoch % 200 + 10) as u8]), 2.0, chain(epoch), at(5));
        }
        assert!(slowness.suspicions.len() <= SUSPICIONS_MAX);
    }
}
