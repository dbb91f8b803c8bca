//! Decisions of the master: for each served model one placement that serves, and one that forms beside it if it is
//! better. On every other node this follows the master's decisions, so that a new master continues from them.
//!
//! * A placement with a stage that is gone, failed or disconnected is replaced at once. One whose chain failed for no
//!   known reason
//!   is placed again after a delay, and its nodes are excluded only if that repeats.
//! * A working placement is replaced only by a plan that was predicted to be [`GAIN`] times as fast for some time
//!   and whose stages fit beside the old ones, or because flags require another one.
//! * The old placement stays in force until every stage of the new one is ready.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::Time;
use crate::backoff::doubled;

use libp2p_identity::PeerId;
use pangea_units::Digest;

use super::cooldown::{Cooldowns, Culpability};
use super::cost::Prediction;
use super::load_failures::LoadFailures;
use super::measured::MeasuredSpeeds;
use super::offer::{ModelNeeds, NodeOffer};
use super::plan::{Plan, plan, predict};
use super::pool_facts;
use super::replan_delay::ReplanDelay;
use super::running::{Health, Running};
use super::slowness::{self, SlowChain, Slowness};
use super::{Placement, PlacementRefusal};
use crate::pool::{Advert, NameChoices, Term, View};

/// Predicted speed-up that a plan must have over a working placement. Measurements vary by less.
const GAIN: f64 = 1.25;

/// The same under `--split`, where an additional node gains less if there are many.
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

/// Consecutive failures after which the nodes that advertise the failure are excluded.
const BREAKS_BEFORE_EXCLUSION: u32 = 3;

/// Time for which a model is still placed after the last node that serves it left: answers continue, and nodes restart.
const ORPHANED: Duration = Duration::from_secs(120);

/// Models planned in one decision. Each plan considers a bounded number of nodes, so that a pool with many models delays no
/// decision about a lost stage.
const PLANS_PER_DECISION: usize = 4;

/// Why a node that would have to fetch a model gets none of its layers.
const NOT_FETCHED: &str = "the nodes that serve it serve more models than others fetch, and it has no file of this one";

/// Why an excluded node gets no layers.
const EXCLUDED: &str = "a stage or a chain failed on it lately; it is tried again later";

/// Epochs from this value on are ignored, so that no advert can exhaust them.
pub(super) const MAX_EPOCH: u64 = u64::MAX / 2;

/// A decision to log.
#[derive(Clone, Debug, PartialEq)]
pub enum Note {
    /// A new placement.
    Placed {
        /// The placement.
        placement: Placement,
        /// Reason, as a clause.
        reason: String,
        /// Predicted speed.
        prediction: Prediction,
        /// The nodes that got no layers, each with the reason as a clause.
        left_out: Vec<(PeerId, String)>,
    },
    /// A working placement is slower than its stages say that they are.
    Slow {
        /// Name of the model.
        name: String,
        /// The nodes that may be the cause.
        suspects: Vec<PeerId>,
        /// Predicted seconds per token.
        predicted_s: f64,
        /// Measured seconds per token.
        took_s: f64,
    },
    /// A model has no placement.
    Refused {
        /// Name of the model.
        name: String,
        /// What is missing, and what to do.
        why: String,
    },
}

/// Changes of the master's advert, and log lines.
pub(super) struct Decided {
    /// The current placements, if changed.
    pub(super) placements: Option<Vec<Placement>>,
    /// The models that cannot be placed, if changed.
    pub(super) refusals: Option<Vec<PlacementRefusal>>,
    /// What to log.
    pub(super) notes: Vec<Note>,
}

/// Why there is no plan.
#[derive(Debug)]
struct Unplaced {
    why: String,
    /// Whether the nodes of the pool do not suffice even including the ones excluded for now.
    permanent: bool,
}

/// Whether a plan should replace a working placement.
enum Worth {
    Nothing,
    /// After it has been better for some time.
    Later(Plan),
    Now(Plan),
}

#[derive(Debug, Default)]
pub(super) struct PlacementMaster {
    /// The term under which this node is the master.
    term: Option<Term>,
    models: BTreeMap<Digest, ModelPlacement>,
    /// The highest epoch of each model in any advert.
    epochs: BTreeMap<Digest, u64>,
    /// Nodes that are slower than they say.
    slowness: Slowness,
    /// The models that names stand for.
    names: NameChoices,
    published: Vec<Placement>,
    refused: Vec<PlacementRefusal>,
}

/// The placements of one model.
#[derive(Debug)]
struct ModelPlacement {
    needs: ModelNeeds,
    served_at: Time,
    /// The placement that serves requests.
    serving: Option<Running>,
    /// The placement that takes over once its stages are ready.
    forming: Option<Running>,
    planned_at: Option<Time>,
    replan_delay: ReplanDelay,
    refused: Option<Unplaced>,
    cooldowns: Cooldowns,
    /// Consecutive failures of chains whose nodes were all present.
    breaks: u32,
    speeds: MeasuredSpeeds,
    load_failures: LoadFailures,
}

impl PlacementMaster {
    /// Decides about every model.
    pub(super) fn decide(&mut self, view: &View, now: Time) -> Decided {
        let mut notes = Vec::new();
        self.observe_models(view, now);
        self.observe_names(view, now);
        self.observe_epochs(view);
        self.observe_speeds(view, now, &mut notes);
        match view.term.filter(|term| term.master == view.local) {
            Some(term) => {
                if self.term.replace(term) != Some(term) {
                    self.take_over(view, term, now);
                }
                self.models.values_mut().for_each(|model| model.check(view, now));
                for digest in self.due(now) {
                    notes.extend(self.decide_model(digest, term, view, now));
                }
            }
            None => {
                self.term = None;
                self.follow(view, now);
            }
        }
        let say: Vec<Placement> = match self.term {
            Some(_) => self.models.values().flat_map(ModelPlacement::in_force).cloned().collect(),
            None => Vec::new(),
        };
        let refused: Vec<PlacementRefusal> = match self.term {
            Some(_) => self.models.values().filter_map(ModelPlacement::refusal).collect(),
            None => Vec::new(),
        };
        let (changed, changed_refusals) = (say != self.published, refused != self.refused);
        self.published.clone_from(&say);
        self.refused.clone_from(&refused);
        Decided { placements: changed.then_some(say), refusals: changed_refusals.then_some(refused), notes }
    }

    /// The current placements if this node is the master.
    pub(super) fn in_force(&self) -> Option<Vec<Placement>> {
        self.term.map(|_| self.published.clone())
    }

    fn observe_epochs(&mut self, view: &View) {
        let placed = |advert: &Advert| -> Vec<(Digest, u64)> {
            let placements = advert.placements.iter().map(|placement| (placement.model, placement.epoch));
            placements.chain(advert.stages.iter().map(|stage| (stage.model, stage.epoch))).collect()
        };
        for (model, epoch) in view.everyone().flat_map(|advert| placed(advert)) {
            if epoch < MAX_EPOCH && (self.models.contains_key(&model) || self.epochs.contains_key(&model)) {
                let highest = self.epochs.entry(model).or_default();
                *highest = epoch.max(*highest);
            }
        }
    }

    /// Records the models that the pool serves.
    fn observe_models(&mut self, view: &View, now: Time) {
        for (digest, needs) in pool_facts::models(view) {
            self.epochs.entry(digest).or_default();
            let model = self.models.entry(digest).or_insert_with(|| ModelPlacement::new(needs.clone(), now));
            (model.needs, model.served_at) = (needs, now);
        }
        self.models.retain(|_, model| {
            if model.served_at != now {
                model.needs.served_by.clear();
            }
            now.since(model.served_at) < ORPHANED
        });
    }

    /// Follows the names of models, so that placements tell every node which of several models with one name is meant.
    fn observe_names(&mut self, view: &View, now: Time) {
        let own = view.own.models.iter().filter(|model| model.served && model.whole);
        let own: Vec<_> = own.map(|model| (model.name.clone(), Some(model.digest))).collect();
        // The catalogue of each node logs its own choices.
        let _ = self.names.update(view, &own, now);
        for model in self.models.values_mut() {
            let name = self.names.listed(&model.needs.name, &model.needs.digest);
            for running in [&mut model.serving, &mut model.forming].into_iter().flatten() {
                if self.term.is_some() && running.placement.name != name {
                    running.placement.name.clone_from(&name);
                }
            }
        }
    }

    /// Learns how fast the stages of working placements are.
    fn observe_speeds(&mut self, view: &View, now: Time, notes: &mut Vec<Note>) {
        self.slowness.expire(now);
        for model in self.models.values_mut() {
            model.speeds.observe(view, &model.needs);
            let Some(serving) = &model.serving else { continue };
            if !self.slowness.has_news(view, &serving.placement) {
                continue;
            }
            let mut offers = pool_facts::offers(view);
            model.speeds.correct(&mut offers);
            let links = |from: &PeerId, to: &PeerId| pool_facts::link(view, from, to);
            let Some(predicted) = predict(&model.needs, &offers, links, &serving.placement.stages) else { continue };
            if let Some(slow) = self.slowness.observe(view, &serving.placement, predicted.step_s, now) {
                model.planned_at = None;
                let SlowChain { suspects, predicted_s, took_s } = slow;
                notes.push(Note::Slow { name: model.needs.name.clone(), suspects, predicted_s, took_s });
            } else if let Some(hop_s) = slowness::hop_s(view, &serving.placement, predicted.step_s) {
                model.speeds.observe_hops(hop_s);
            }
        }
    }

    /// The models to plan now: those without a placement first, the first ones of each node, the longest unplanned, and only as many as bound the
    /// work of one decision.
    fn due(&self, now: Time) -> Vec<Digest> {
        let due = self.models.iter().filter(|(_, model)| model.is_due(now));
        let urgency = |model: &ModelPlacement| {
            (model.refused.is_some(), model.serving.is_some(), !model.needs.fetched, model.planned_at)
        };
        let mut due: Vec<_> = due.map(|(digest, model)| (urgency(model), *digest)).collect();
        due.sort_unstable();
        due.into_iter().take(PLANS_PER_DECISION).map(|(_, digest)| digest).collect()
    }

    /// Follows the master's decisions.
    fn follow(&mut self, view: &View, now: Time) {
        let Some(placements) = pool_facts::placements(view) else { return };
        for model in self.models.values_mut() {
            let mut of: Vec<&Placement> =
                placements.iter().filter(|placement| placement.model == model.needs.digest).collect();
            if of.is_empty() {
                // A new master has published nothing yet; if it is lost now, the placements before it count.
                continue;
            }
            of.sort_by_key(|placement| std::cmp::Reverse(placement.epoch));
            let ready = of.iter().position(|placement| pool_facts::is_ready(view, placement));
            let running = |placement: &Placement| Running::new(placement.clone(), view, now);
            model.serving = ready.map(|at| running(of[at]));
            model.forming = of.first().filter(|_| ready != Some(0)).map(|newest| running(newest));
            model.replan_delay.clear();
            model.refused = None;
        }
    }

    /// Takes over the last master's placements under this node's term.
    fn take_over(&mut self, view: &View, term: Term, now: Time) {
        for model in self.models.values_mut() {
            let highest = self.epochs.entry(model.needs.digest).or_default();
            let renumbered =
                model.serving.as_ref().is_some_and(|serving| pool_facts::is_ambiguous(view, &serving.placement));
            if renumbered
                || model.forming.as_ref().is_some_and(|forming| pool_facts::is_ambiguous(view, &forming.placement))
            {
                // Another master used the same epoch for other stages. The serving placement gets a new epoch, which
                // its stages must advertise first; a forming one is planned again.
                model.forming = model.serving.take().filter(|_| renumbered);
                if let Some(forming) = &mut model.forming {
                    *highest += 1;
                    forming.placement.epoch = *highest;
                }
            }
            for running in [&mut model.serving, &mut model.forming].into_iter().flatten() {
                *highest = running.placement.epoch.max(*highest);
                let placement = Placement { term, ..running.placement.clone() };
                *running = Running::new(placement, view, now);
            }
        }
    }

    fn decide_model(&mut self, digest: Digest, term: Term, view: &View, now: Time) -> Option<Note> {
        let reserved = self.reserved(&digest, view);
        let model = self.models.get_mut(&digest)?;
        model.planned_at = Some(now);
        let speeds = model.speeds.clone();
        let links = |from: &PeerId, to: &PeerId| speeds.link(view, from, to);
        let mut all = model.offers(view, &reserved);
        self.slowness.add_to(&mut all);
        let mut offers = model.cooldowns.eligible(&all, true, view, now);
        let mut best = plan(&model.needs, &offers, links);
        let excluded: Vec<PeerId> =
            all.iter().map(|offer| offer.peer).filter(|peer| offers.iter().all(|offer| offer.peer != *peer)).collect();
        if best.is_err() {
            offers = model.cooldowns.eligible(&all, false, view, now);
            best = plan(&model.needs, &offers, links);
        }
        let plan = match (best, &model.serving) {
            (Ok(plan), Some(serving)) => match model.worth_of(plan, serving, &offers, view) {
                Worth::Now(plan) => plan,
                Worth::Later(plan) => {
                    let newcomers = serving.newcomers(&plan.stages, view);
                    if !model.replan_delay.has_elapsed(newcomers, model.needs.split, now) {
                        return None;
                    }
                    plan
                }
                Worth::Nothing => {
                    model.replan_delay.clear();
                    return None;
                }
            },
            (Ok(plan), None) => plan,
            (Err(no_plan), serving) => {
                if serving.is_some() {
                    return None;
                }
                // Excluded nodes become eligible again.
                let permanent = plan(&model.needs, &all, links).is_err();
                let refused = Unplaced { why: no_plan.why, permanent };
                let known = model.refused.as_ref().is_some_and(|known| known.why == refused.why);
                let why = model.refused.insert(refused).why.clone();
                return (!known).then(|| Note::Refused { name: model.needs.name.clone(), why });
            }
        };
        model.refused = None;
        model.replan_delay.clear();
        if !model.fits_beside(&plan, &offers, view) {
            // Flags require this plan: the serving placement makes room first.
            model.serving = None;
        }
        let name = self.names.listed(&model.needs.name, &digest);
        let epoch = self.epochs.entry(digest).or_default();
        // A master that restarted may not know its own earlier epochs: those of a later incarnation are higher.
        *epoch = (*epoch + 1).max(view.own.incarnation.min(MAX_EPOCH));
        let placement = Placement { model: digest, name, epoch: *epoch, term, stages: plan.stages };
        model.forming = Some(Running::new(placement.clone(), view, now));
        let used = |peer: &PeerId| placement.stages.iter().any(|stage| stage.peer == *peer);
        let unmeasured = view.everyone().filter(|advert| advert.works && advert.speed.is_none());
        let fetched = |peer: &PeerId| model.needs.fetched || model.needs.files.contains(peer);
        let unfetched = view.everyone().filter(|advert| advert.works && !fetched(&advert.peer));
        let left_out = plan.left_out.into_iter().filter(|(peer, _)| !excluded.contains(peer));
        let left_out = left_out
            .chain(excluded.iter().filter(|peer| !used(peer)).map(|peer| (*peer, EXCLUDED.to_owned())))
            .chain(unmeasured.map(|advert| (advert.peer, "it has not measured its speed yet".to_owned())))
            .chain(unfetched.map(|advert| (advert.peer, NOT_FETCHED.to_owned())))
            .collect();
        Some(Note::Placed { placement, reason: plan.reason, prediction: plan.prediction, left_out })
    }

    /// Bytes that the placements of all other models take on each node.
    fn reserved(&self, digest: &Digest, view: &View) -> BTreeMap<PeerId, u64> {
        let mut reserved = BTreeMap::new();
        for model in self.models.values().filter(|model| model.needs.digest != *digest) {
            for placement in model.in_force() {
                reserve(&mut reserved, &model.needs, placement, view);
            }
        }
        reserved
    }
}

/// Adds the bytes that a placement's stages take on their nodes.
fn reserve(reserved: &mut BTreeMap<PeerId, u64>, needs: &ModelNeeds, placement: &Placement, view: &View) {
    for stage in &placement.stages {
        let bytes: &mut u64 = reserved.entry(stage.peer).or_default();
        *bytes = bytes.saturating_add(pool_facts::placed_bytes(view, needs, stage));
    }
}

impl ModelPlacement {
    fn new(needs: ModelNeeds, now: Time) -> ModelPlacement {
        ModelPlacement {
            needs,
            served_at: now,
            serving: None,
            forming: None,
            planned_at: None,
            replan_delay: ReplanDelay::default(),
            refused: None,
            cooldowns: Cooldowns::default(),
            breaks: 0,
            speeds: MeasuredSpeeds::default(),
            load_failures: LoadFailures::default(),
        }
    }

    /// The refusal to publish if the pool cannot hold the model.
    fn refusal(&self) -> Option<PlacementRefusal> {
        let refused = self.refused.as_ref().filter(|refused| refused.permanent && self.in_force().next().is_none())?;
        Some(PlacementRefusal { model: self.needs.digest, why: refused.why.clone() })
    }

    fn in_force(&self) -> impl Iterator<Item = &Placement> {
        [&self.serving, &self.forming].into_iter().flatten().map(|running| &running.placement)
    }

    /// Drops a failed placement, and switches to a forming one that is ready.
    fn check(&mut self, view: &View, now: Time) {
        self.replan_delay.observe_nodes(view.everyone().map(|advert| (advert.peer, advert.incarnation)), now);
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
        if let Some(mut serving) = self.serving.take() {
            let health = serving.health(view, now, true);
            self.serving = self.kept(serving, health, view, now);
        }
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

    fn is_due(&self, now: Time) -> bool {
        let every = match (&self.serving, &self.forming) {
            (_, Some(_)) => return false,
            (Some(_), None) => REPLAN_INTERVAL,
            (None, None) if !self.load_failures.allow(now) => return false,
            (None, None) => RETRY_INTERVAL,
        };
        self.planned_at.is_none_or(|at| now.since(at) >= every)
    }

    /// Each node's offer for this model: its memory minus that of other models, its speed as measured.
    fn offers(&self, view: &View, reserved: &BTreeMap<PeerId, u64>) -> Vec<NodeOffer> {
        let mut offers = pool_facts::offers(view);
        self.speeds.correct(&mut offers);
        pool_facts::without_fetching(&self.needs, &mut offers);
        for offer in &mut offers {
            let taken = reserved.get(&offer.peer).copied().unwrap_or(0);
            offer.memory_bytes = offer.memory_bytes.saturating_sub(taken);
        }
        offers
    }

    /// The offers minus the memory of the serving stages.
    fn beside(&self, offers: &[NodeOffer], view: &View) -> Vec<NodeOffer> {
        let mut taken = BTreeMap::new();
        if let Some(serving) = &self.serving {
            reserve(&mut taken, &self.needs, &serving.placement, view);
        }
        let mut offers = offers.to_vec();
        for offer in &mut offers {
            offer.memory_bytes = offer.memory_bytes.saturating_sub(taken.get(&offer.peer).copied().unwrap_or(0));
        }
        offers
    }

    /// Whether the new stages fit beside the serving ones. A stage that stays unchanged takes nothing more.
    fn fits_beside(&self, plan: &Plan, offers: &[NodeOffer], view: &View) -> bool {
        let beside = self.beside(offers, view);
        let stays = |stage| self.serving.as_ref().is_some_and(|serving| serving.placement.stages.contains(stage));
        plan.stages.iter().all(|stage| {
            let takes = self.needs.stage_bytes(&stage.layers);
            stays(stage) || beside.iter().any(|offer| offer.peer == stage.peer && offer.memory_bytes >= takes)
        })
    }

    /// Whether the best plan should replace the working placement.
    fn worth_of(&self, best: Plan, serving: &Running, offers: &[NodeOffer], view: &View) -> Worth {
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
        let (Ok(best), Some(is)) = (plan(&self.needs, &beside, links), predict(&self.needs, offers, links, current))
        else {
            return Worth::Nothing;
        };
        let newcomers = !serving.newcomers(&best.stages, view).is_empty();
        let better = match self.needs.split {
            true => is.pace_s >= best.prediction.pace_s * if newcomers { SPLIT_GAIN } else { GAIN },
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
