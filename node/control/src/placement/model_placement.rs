//! The placements of one model at the master: the one that serves, the one that forms beside it, and whether a better plan is
//! worth its replacement. Which models are planned when, and by whom, is decided elsewhere.

use std::collections::BTreeMap;
use std::time::Duration;

use libp2p_identity::PeerId;

use super::cooldown::{Cooldowns, Culpability};
use super::load_failures::LoadFailures;
use super::measured::MeasuredSpeeds;
use super::offer::{ModelNeeds, NodeOffer};
use super::placement_master::Note;
use super::plan::{Plan, plan, predict};
use super::pool_facts;
use super::replan_delay::ReplanDelay;
use super::running::{Health, Running};
use super::{NoPlan, PlacedStage, Placement, PlacementRefusal};
use crate::Time;
use crate::backoff::doubled;
use crate::pool::View;

/// Predicted speed-up that a plan must have over a working placement. Measurements vary by less.
const GAIN: f64 = 1.25;

/// The same under `--split` with an additional node, which gains less if there are many, and where nodes count as equal: to be
/// shared out unevenly again, they have to differ by [`GAIN`].
const SPLIT_GAIN: f64 = 1.1;

/// Interval of searches for a better plan.
const REPLAN_INTERVAL: Duration = Duration::from_secs(1);

/// Interval of attempts to plan a model that has no placement. A failed stage makes the next attempt due at once.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// Delay before a chain that failed although all its nodes are present is placed again: by then the loss of a node is known.
/// Doubles with each consecutive failure.
const CHAIN_RETRY_DELAY: Duration = Duration::from_millis(200);

/// Upper bound of that delay.
const CHAIN_RETRY_DELAY_MAX: Duration = Duration::from_secs(10);

/// Time after which a placement counts as stable, so that its next failure starts with the shortest delay.
const STABLE_AFTER: Duration = Duration::from_secs(60);

/// Suspects, of those under most suspicion, that a plan which cannot do without suspects is tried without: each takes a plan.
const SPARED_MAX: usize = 8;

/// Consecutive failures after which the nodes that advertise the failure are excluded.
const BREAKS_BEFORE_EXCLUSION: u32 = 3;

/// Uptime within which a node that has a model may still be loading it and measuring its speed.
const OWNER_START: Duration = Duration::from_secs(5);

/// Why there is no plan.
#[derive(Debug)]
pub(super) struct Unplaced {
    pub(super) why: String,
    /// Whether the nodes of the pool do not suffice even including the ones excluded for now.
    pub(super) permanent: bool,
}

/// Whether a plan should replace a working placement.
pub(super) enum Worth {
    Nothing,
    /// After it has been better for some time.
    Later(Plan),
    Now(Plan),
}

/// The placements of one model.
#[derive(Debug)]
pub(super) struct ModelPlacement {
    pub(super) needs: ModelNeeds,
    /// When a node that serves the model was there last, and the names of those that were.
    pub(super) served_at: Time,
    pub(super) owners: Vec<String>,
    /// Whether some node has the whole file. Without it only layers that are loaded already can be placed.
    has_file: bool,
    /// The placement that serves requests.
    pub(super) serving: Option<Running>,
    /// The placement that takes over once its stages are ready.
    pub(super) forming: Option<Running>,
    pub(super) planned_at: Option<Time>,
    pub(super) replan_delay: ReplanDelay,
    pub(super) refused: Option<Unplaced>,
    pub(super) cooldowns: Cooldowns,
    /// Consecutive failures of chains whose nodes were all present.
    breaks: u32,
    pub(super) speeds: MeasuredSpeeds,
    load_failures: LoadFailures,
    /// Since when some owner of the model answers it alone.
    answered_since: Option<Time>,
    /// Incarnations of the nodes of which it was logged that they get layers or why they get none.
    told: BTreeMap<PeerId, u64>,
}

impl ModelPlacement {
    pub(super) fn new(needs: ModelNeeds, now: Time) -> ModelPlacement {
        ModelPlacement {
            needs,
            served_at: now,
            owners: Vec::new(),
            has_file: true,
            serving: None,
            forming: None,
            planned_at: None,
            replan_delay: ReplanDelay::default(),
            refused: None,
            cooldowns: Cooldowns::default(),
            breaks: 0,
            speeds: MeasuredSpeeds::default(),
            load_failures: LoadFailures::default(),
            answered_since: None,
            told: BTreeMap::new(),
        }
    }

    /// The nodes without layers of a model that several nodes compute of which that was not logged yet, each with the reason.
    pub(super) fn newly_left_out(&self, left_out: &[(PeerId, String)], view: &View) -> Vec<(PeerId, String)> {
        let is_spread = self.serving.as_ref().is_some_and(|serving| serving.placement.stages.len() > 1);
        if !self.needs.split && !is_spread {
            return Vec::new();
        }
        let is_new =
            |peer: &PeerId| view.advert(peer).is_some_and(|advert| self.told.get(peer) != Some(&advert.incarnation));
        left_out.iter().filter(|(peer, _)| is_new(peer)).cloned().collect()
    }

    /// Records that these nodes' part in the model, or the lack of one, is logged.
    pub(super) fn tell_left_out(&mut self, peers: impl Iterator<Item = PeerId>, view: &View) {
        self.told.retain(|peer, _| view.advert(peer).is_some());
        self.told.extend(peers.filter_map(|peer| Some((peer, view.advert(&peer)?.incarnation))));
    }

    /// Records why there is no plan; returns what to log, if that was not known.
    pub(super) fn refuse(&mut self, refused: Unplaced) -> Option<Note> {
        let known = self.refused.as_ref().is_some_and(|known| known.why == refused.why);
        let why = self.refused.insert(refused).why.clone();
        (!known).then(|| Note::Refused { name: self.needs.name.clone(), why })
    }

    /// The refusal to publish if the pool cannot hold the model.
    pub(super) fn refusal(&self) -> Option<PlacementRefusal> {
        let refused = self.refused.as_ref().filter(|refused| refused.permanent && self.in_force().next().is_none())?;
        Some(PlacementRefusal { model: self.needs.digest, why: refused.why.clone() })
    }

    pub(super) fn in_force(&self) -> impl Iterator<Item = &Placement> + Clone {
        [&self.serving, &self.forming].into_iter().flatten().map(|running| &running.placement)
    }

    /// Records whether some node has the whole file.
    pub(super) fn observe_file(&mut self, view: &View, now: Time) {
        let is_served = self.served_at == now;
        if !is_served {
            self.needs.served_by.clear();
        }
        let had_file =
            std::mem::replace(&mut self.has_file, is_served || pool_facts::has_file(view, &self.needs.digest));
        if self.has_file != had_file {
            (self.refused, self.planned_at) = (None, None);
        }
    }

    /// Whether some node has the whole file, as far as [`ModelPlacement::observe_file`] knows.
    pub(super) fn has_file(&self) -> bool {
        self.has_file
    }

    /// Drops a failed placement, and switches to a forming one that is ready.
    pub(super) fn check(&mut self, view: &View, now: Time) {
        self.replan_delay.observe_nodes(view.everyone().map(|advert| (advert.peer, advert.incarnation)), now);
        let answered = self.needs.served_by.iter().any(|owner| self.answers(owner, view));
        self.answered_since = answered.then(|| self.answered_since.unwrap_or(now));
        let is_free = !self.needs.split && self.needs.pins.is_empty();
        let planned_without = |forming: &mut Running| self.answered_since.is_some_and(|since| forming.made < since);
        if is_free && self.forming.take_if(planned_without).is_some() {
            // It was planned while no owner was there: with one, the plan is another.
            self.planned_at = None;
        }
        if let Some(mut forming) = self.forming.take() {
            match forming.health(view, now, false) {
                Health::Ready => {
                    (self.serving, self.planned_at) = (Some(forming), Some(now));
                    self.load_failures.clear();
                }
                health => {
                    if let Some(why) = self.load_failures.observe(&forming, &health, view, now) {
                        self.refused = Some(Unplaced { why, permanent: true });
                    }
                    self.forming = self.kept(forming, health, view, now);
                }
            }
        }
        let is_unfetchable = |forming: &mut Running| !pool_facts::is_loaded(view, &forming.placement);
        if !self.has_file && self.forming.take_if(is_unfetchable).is_some() {
            self.planned_at = None;
        }
        if let Some(mut serving) = self.serving.take() {
            let health = serving.health(view, now, true);
            self.serving = self.kept(serving, health, view, now);
        }
    }

    /// Whether a node answers the model with all layers of its own.
    fn answers(&self, node: &PeerId, view: &View) -> bool {
        let advert = view.advert(node);
        advert.is_some_and(|advert| advert.serving.iter().any(|serving| serving.model == self.needs.digest))
    }

    /// The placement, unless its health requires dropping it.
    fn kept(&mut self, running: Running, health: Health, view: &View, now: Time) -> Option<Running> {
        match health {
            Health::Ready | Health::Forming => return Some(running),
            Health::Broken { suspects, gone } => {
                for peer in gone {
                    self.replan_delay.node_lost(peer, now);
                }
                for peer in suspects {
                    self.cooldowns.exclude(peer, Culpability::Certain, view, now);
                }
            }
            Health::Disconnected { since, by } => {
                let steady = now.since(running.made) >= STABLE_AFTER;
                let before = if steady { 0 } else { self.breaks };
                let delay = doubled(CHAIN_RETRY_DELAY, before, CHAIN_RETRY_DELAY_MAX);
                if now.since(since) < delay {
                    return Some(running);
                }
                self.breaks = before + 1;
                if self.breaks >= BREAKS_BEFORE_EXCLUSION {
                    for peer in by {
                        self.cooldowns.exclude(peer, Culpability::Possible, view, now);
                    }
                }
            }
        }
        self.planned_at = None;
        None
    }

    pub(super) fn is_due(&self, now: Time) -> bool {
        let every = match (&self.serving, &self.forming) {
            (_, Some(_)) => return false,
            (Some(_), None) => REPLAN_INTERVAL,
            (None, None) if !self.load_failures.allow(now) => return false,
            (None, None) => RETRY_INTERVAL,
        };
        self.planned_at.is_none_or(|at| now.since(at) >= every)
    }

    /// Whether a node that has the model has just started, or answers it already, and has not measured its speed: with a plan that
    /// does not know that node the model would leave it.
    pub(super) fn waits_for_owner(&self, view: &View) -> bool {
        let waits = |owner: &PeerId| {
            view.advert(owner).is_some_and(|advert| {
                let answers = self.answers(owner, view);
                advert.works && advert.speed.is_none() && (answers || advert.uptime < OWNER_START)
            })
        };
        let free = !self.needs.split && self.needs.pins.is_empty() && self.in_force().next().is_none();
        free && self.needs.served_by.iter().any(waits)
    }

    /// Each node's offer for this model: its memory minus that of other models, its speed as measured.
    pub(super) fn offers(&self, view: &View, reserved: &BTreeMap<PeerId, u64>) -> Vec<NodeOffer> {
        let mut offers = pool_facts::offers(view);
        self.speeds.correct(&mut offers);
        pool_facts::without_fetching(&self.needs, &mut offers);
        pool_facts::take_memory(&mut offers, reserved);
        offers
    }

    /// The best plan, and the offers that it was made of: without nodes that failed lately and without suspects if possible,
    /// then without suspects, then without those that failed lately, then of all that may be used. Where it takes suspects, those
    /// under most suspicion are left out as far as others suffice: all nodes of a chain are suspected alike, and who is in a second
    /// such chain is suspected more.
    pub(super) fn best(
        &self,
        all: &[NodeOffer],
        suspects: &[PeerId],
        view: &View,
        now: Time,
    ) -> (Vec<NodeOffer>, Result<Plan, NoPlan>) {
        let links = |from: &PeerId, to: &PeerId| self.speeds.link(view, from, to);
        let mut last = None;
        for (trusted, strict) in [(true, true), (true, false), (false, true), (false, false)] {
            let mut offers = self.cooldowns.eligible(all, strict, view, now);
            offers.retain(|offer| !trusted || !suspects.contains(&offer.peer));
            if let Some((known, _)) = &last
                && *known == offers
            {
                continue;
            }
            let mut best = plan(&self.needs, &offers, links);
            let found = best.is_ok();
            // Where all are suspects, nothing tells them apart.
            if found && !trusted && offers.iter().any(|offer| !suspects.contains(&offer.peer)) {
                for suspect in suspects.iter().take(SPARED_MAX) {
                    let fewer: Vec<_> = offers.iter().filter(|offer| offer.peer != *suspect).cloned().collect();
                    let without = plan(&self.needs, &fewer, links);
                    if without.is_ok() {
                        (offers, best) = (fewer, without);
                    }
                }
            }
            last = Some((offers, best));
            if found {
                break;
            }
        }
        last.unwrap_or_else(|| (Vec::new(), plan(&self.needs, &[], links)))
    }

    /// The offers minus the memory of the serving stages.
    fn beside(&self, offers: &[NodeOffer], view: &View) -> Vec<NodeOffer> {
        let mut taken = BTreeMap::new();
        if let Some(serving) = &self.serving {
            pool_facts::reserve(&mut taken, &self.needs, &serving.placement, view);
        }
        let mut offers = offers.to_vec();
        pool_facts::take_memory(&mut offers, &taken);
        offers
    }

    /// Whether the new stages fit beside the serving ones. A stage that stays unchanged takes nothing more.
    pub(super) fn fits_beside(&self, plan: &Plan, offers: &[NodeOffer], view: &View) -> bool {
        let beside = self.beside(offers, view);
        let stays = |stage| self.serving.as_ref().is_some_and(|serving| serving.placement.stages.contains(stage));
        plan.stages.iter().all(|stage| {
            let takes = self.needs.stage_bytes(&stage.layers);
            stays(stage) || beside.iter().any(|offer| offer.peer == stage.peer && offer.memory_bytes >= takes)
        })
    }

    /// Whether the best plan should replace the working placement.
    pub(super) fn worth_of(
        &self,
        best: Plan,
        serving: &Running,
        offers: &[NodeOffer],
        suspects: &[PeerId],
        view: &View,
    ) -> Worth {
        let current = &serving.placement.stages;
        if best.stages == *current {
            return Worth::Nothing;
        }
        let links = |from: &PeerId, to: &PeerId| self.speeds.link(view, from, to);
        let pinned = |(peer, layers): &(PeerId, std::ops::Range<u32>)| {
            let there = best.stages.iter().any(|stage| stage.peer == *peer);
            !there || current.iter().any(|stage| stage.peer == *peer && stage.layers == *layers)
        };
        let forced =
            !self.needs.pins.iter().all(pinned) || (self.needs.split && current.len() == 1 && best.stages.len() > 1);
        if forced {
            return Worth::Now(best);
        }
        // The new stages must fit beside the old ones, which serve meanwhile.
        let beside = self.beside(offers, view);
        let Ok(best) = plan(&self.needs, &beside, links) else { return Worth::Nothing };
        let uses = |stages: &[PlacedStage], suspect: &PeerId| stages.iter().any(|stage| stage.peer == *suspect);
        // The one under most suspicion decides.
        let apart = suspects.iter().find(|suspect| uses(current, suspect) != uses(&best.stages, suspect));
        if apart.is_some_and(|suspect| uses(current, suspect)) {
            return Worth::Now(best);
        }
        let Some(is) = predict(&self.needs, offers, links, current) else { return Worth::Nothing };
        let newcomers = !serving.newcomers(&best.stages, view).is_empty();
        let better = match self.needs.split {
            // Of equal nodes none is to have clearly more layers than another, whatever they looked like before.
            true => is.pace_s >= best.prediction.pace_s * if newcomers || best.equal { SPLIT_GAIN } else { GAIN },
            false => is.step_s >= best.prediction.step_s * GAIN,
        };
        let mut undelayed = offers.to_vec();
        undelayed.iter_mut().for_each(|offer| offer.delay_s = 0.0);
        let claimed = predict(&self.needs, &undelayed, links, current);
        match better {
            // It is slower than it says: that was measured long enough.
            true if claimed.is_some_and(|claimed| claimed.step_s * GAIN < is.step_s) => Worth::Now(best),
            true => Worth::Later(best),
            false => Worth::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use pangea_units::Digest;

    use super::*;
    use crate::pool::{Advert, LayerSpeed, ModelAdvert, ModelSize, ServingAdvert, advert_of};
    use crate::test_peers::peer;

    #[test]
    fn a_model_waits_for_an_owner_that_starts_or_answers_it_and_has_no_speed_yet() {
        let digest = Digest([7; 32]);
        let size = ModelSize { layers: 4, ..ModelSize::default() };
        let (name, served, whole, split, pinned) = ("tiny".to_owned(), true, true, false, None);
        let model = ModelAdvert { digest, name, served, whole, split, pinned, size };
        let waits = |change: &dyn Fn(&mut Advert)| {
            let mut owner = Advert { models: vec![model.clone()], ..advert_of(peer(2)) };
            change(&mut owner);
            let nodes = [(peer(2), Arc::new(owner))].into();
            let own = Arc::new(advert_of(peer(1)));
            let view = View { local: peer(1), own, term: None, nodes, connected: BTreeSet::new() };
            let needs = pool_facts::models(&view).remove(&digest).unwrap();
            ModelPlacement::new(needs, Time::ZERO).waits_for_owner(&view)
        };
        let answers = ServingAdvert { model: digest, places: 8, running: 0, waiting: 0, tokens_per_s: 0 };
        let long = OWNER_START * 2;
        assert!(waits(&|owner| owner.uptime = Duration::from_secs(1)));
        assert!(waits(&|owner| (owner.uptime, owner.serving) = (long, vec![answers])));
        assert!(!waits(&|owner| owner.uptime = long), "it neither answers nor measures itself");
        let speed = LayerSpeed { weight_bytes_per_s: 1e9, macs_per_s: 1e9 };
        assert!(!waits(&|owner| owner.speed = Some(speed)));
        assert!(!waits(&|owner| owner.works = false));
        assert!(!waits(&|owner| owner.models[0].split = true), "a split asks for the others as well");
    }
}
