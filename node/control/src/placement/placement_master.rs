//! Decisions of the master: for each served model one placement that serves, and one that forms beside it if it is
//! better. On every other node this follows the master's decisions, so that a new master continues from them.
//!
//! * A placement with a stage that is gone, failed or disconnected is replaced at once. One whose chain failed for no
//!   known reason is placed again after a delay, and its nodes are excluded only if that repeats.
//! * A working placement is replaced only by a plan that was predicted to be clearly faster for some time and whose stages fit
//!   beside the old ones, or because flags require another one, or because one of its nodes is under suspicion.
//! * The old placement stays in force until every stage of the new one is ready.
//! * A model whose file no node has any more is placed on layers that are loaded already, and otherwise nowhere.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::Time;

use libp2p_identity::PeerId;
use pangea_units::Digest;

use super::cost::Prediction;
use super::loaded_chain::loaded_chain;
use super::measured::MeasuredSpeeds;
use super::model_placement::{ModelPlacement, Unplaced, Worth};
use super::no_plan::without_weights;
use super::plan::{plan, predict};
use super::running::Running;
use super::slowness::{self, Observed, SlowChain, Slowness};
use super::{PlacedStage, Placement, PlacementRefusal};
use super::{left_out, pool_facts};
use crate::pool::models_said::ModelsSaid;
use crate::pool::served::is_unloaded;
use crate::pool::{NameChoices, Term, View};
use crate::session::ChainId;

/// Time for which what was learned of a model's placements is kept after the last node that serves it left: nodes restart.
const ORPHANED: Duration = Duration::from_secs(120);

/// Models planned in one decision. Each plan considers a bounded number of nodes, so that a pool with many models delays no
/// decision about a lost stage.
const PLANS_PER_DECISION: usize = 4;

/// Why an excluded node gets no layers.
const EXCLUDED: &str = "a stage or a chain failed on it lately; it is tried again later";

/// Why a suspect gets no layers.
const SUSPECTED: &str = "it is under suspicion, and other nodes suffice";

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
    /// Nodes that came since a model was placed, and get no layers of it.
    LeftOut {
        /// Name of the model.
        name: String,
        /// The nodes, each with the reason as a clause.
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

/// How long a token of a working placement of the master takes.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenTime {
    /// Name of the model.
    pub name: String,
    /// Seconds per token that the measured speeds of its nodes and links predict.
    pub predicted_s: f64,
    /// Measured seconds per token.
    pub measured_s: f64,
}

/// Changes of the master's advert, and log lines.
pub(super) struct Decided {
    /// The current placements, if changed.
    pub(super) placements: Option<Vec<Placement>>,
    /// The models that cannot be placed, if changed.
    pub(super) refusals: Option<Vec<PlacementRefusal>>,
    /// What tokens of the working placements take, if changed; empty unless this node is the master.
    pub(super) token_times: Option<Vec<TokenTime>>,
    /// What to log.
    pub(super) notes: Vec<Note>,
}

#[derive(Debug, Default)]
pub(super) struct PlacementMaster {
    /// The term under which this node is the master.
    term: Option<Term>,
    models: BTreeMap<Digest, ModelPlacement>,
    /// What the needs of the models follow from, and the models that have them.
    said: ModelsSaid,
    served: Vec<Digest>,
    /// The highest epoch of each model in any advert.
    epochs: BTreeMap<Digest, u64>,
    /// Nodes that are slower than they say.
    slowness: Slowness,
    /// Nodes that are used last, the one under most suspicion first.
    suspects: Vec<PeerId>,
    /// The models that names stand for.
    names: NameChoices,
    published: Vec<Placement>,
    refused: Vec<PlacementRefusal>,
    /// What a token of each model's chain took last.
    token_times: BTreeMap<Digest, (ChainId, TokenTime)>,
    told_token_times: Vec<TokenTime>,
}

impl PlacementMaster {
    /// Records who is under suspicion now.
    pub(super) fn suspect(&mut self, suspects: Vec<PeerId>) {
        self.suspects = suspects;
    }

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
        let models = self.models.values().filter(|_| self.term.is_some());
        let say = models.clone().flat_map(ModelPlacement::in_force);
        let placements = (!say.clone().eq(&self.published)).then(|| say.cloned().collect());
        let refused: Vec<PlacementRefusal> = models.filter_map(ModelPlacement::refusal).collect();
        let refusals = (refused != self.refused).then_some(refused);
        if let Some(placements) = &placements {
            self.published.clone_from(placements);
        }
        if let Some(refusals) = &refusals {
            self.refused.clone_from(refusals);
        }
        Decided { placements, refusals, token_times: self.token_times(), notes }
    }

    /// What tokens of the working placements take, if that changed and this node is the master.
    fn token_times(&mut self) -> Option<Vec<TokenTime>> {
        let models = &self.models;
        self.token_times.retain(|digest, (chain, _)| {
            let serving = models.get(digest).and_then(|model| model.serving.as_ref());
            serving.is_some_and(|serving| serving.placement.chain() == *chain)
        });
        let times = self.token_times.values().filter(|_| self.term.is_some()).map(|(_, time)| time);
        if times.clone().eq(&self.told_token_times) {
            return None;
        }
        self.told_token_times = times.cloned().collect();
        Some(self.told_token_times.clone())
    }

    /// The current placements if this node is the master.
    pub(super) fn in_force(&self) -> Option<Vec<&Placement>> {
        self.term.map(|_| self.published.iter().collect())
    }

    fn observe_epochs(&mut self, view: &View) {
        let placed = view.everyone().flat_map(|advert| {
            let placements = advert.placements.iter().map(|placement| (&placement.model, placement.epoch));
            placements.chain(advert.stages.iter().map(|stage| (&stage.model, stage.epoch)))
        });
        // Every model that was ever served has an epoch.
        for (model, epoch) in placed.filter(|(_, epoch)| *epoch < MAX_EPOCH) {
            if let Some(highest) = self.epochs.get_mut(model) {
                *highest = epoch.max(*highest);
            }
        }
    }

    /// Records the models that the pool serves.
    fn observe_models(&mut self, view: &View, now: Time) {
        if self.said.changed(view) {
            self.served.clear();
            // A model that is unloaded everywhere is placed once a request comes for it.
            for (digest, needs) in pool_facts::models(view).into_iter().filter(|(digest, _)| !is_unloaded(view, digest))
            {
                self.served.push(digest);
                self.epochs.entry(digest).or_default();
                let model = self.models.entry(digest).or_insert_with(|| ModelPlacement::new(needs.clone(), now));
                let name = |owner| view.advert(owner).map(|advert| advert.name.clone());
                model.owners = needs.served_by.iter().filter_map(name).collect();
                model.needs = needs;
            }
        }
        for digest in &self.served {
            if let Some(model) = self.models.get_mut(digest) {
                model.served_at = now;
            }
        }
        self.models.retain(|_, model| {
            model.observe_file(view, now);
            let digest = &model.needs.digest;
            // What works goes on without those that began it.
            let stays = now.since(model.served_at) < ORPHANED || model.in_force().next().is_some();
            stays && !view.is_dropped(digest) && !is_unloaded(view, digest)
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
            if !self.slowness.is_due(view, &serving.placement, now) {
                continue;
            }
            // What the stages took for the same frames as the chain: on a machine that just became busy, both take longer.
            let mut offers = pool_facts::offers(view);
            MeasuredSpeeds::of(view, &model.needs).correct(&mut offers);
            let links = |from: &PeerId, to: &PeerId| pool_facts::link(view, from, to);
            let Some(predicted) = predict(&model.needs, &offers, links, &serving.placement.stages) else { continue };
            if let Some(measured_s) =
                slowness::token_s(view, &serving.placement).filter(|_| predicted.step_s.is_finite())
            {
                let (name, predicted_s) = (serving.placement.name.clone(), predicted.step_s);
                let time = TokenTime { name, predicted_s, measured_s };
                self.token_times.insert(model.needs.digest, (serving.placement.chain(), time));
            }
            match self.slowness.observe(view, &serving.placement, predicted.step_s, now) {
                Observed::Slow(SlowChain { suspects, predicted_s, took_s }) => {
                    model.planned_at = None;
                    notes.push(Note::Slow { name: model.needs.name.clone(), suspects, predicted_s, took_s });
                }
                Observed::Unclear => {}
                Observed::Steady => {
                    let hop_s = slowness::hop_s(view, &serving.placement, predicted.step_s);
                    hop_s.into_iter().for_each(|hop_s| model.speeds.observe_hops(hop_s));
                }
            }
        }
    }

    /// The models to plan now: those without a placement first, the first ones of each node, the longest unplanned, and only as
    /// many as bound the work of one decision.
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
        let Some(placements) = pool_facts::in_force(view) else { return };
        for model in self.models.values_mut() {
            let of = placements.iter().filter(|placement| placement.model == model.needs.digest);
            let mut of: Vec<&Placement> = of.copied().collect();
            if of.is_empty() {
                // A new master has published nothing yet; if it is lost now, the placements before it count.
                continue;
            }
            of.sort_by_key(|placement| std::cmp::Reverse(placement.epoch));
            let ready = of.iter().position(|placement| pool_facts::is_ready(view, placement));
            // Whoever takes a placement over observes its nodes from that moment on: what is known of them now does not matter.
            let running = |known: Option<Running>, placement: &Placement| {
                let known = known.filter(|known| known.placement == *placement);
                known.unwrap_or_else(|| Running::new(placement.clone(), view, now))
            };
            let (serving, forming) = (model.serving.take(), model.forming.take());
            model.serving = ready.map(|at| running(serving, of[at]));
            model.forming = of.first().filter(|_| ready != Some(0)).map(|newest| running(forming, newest));
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
        if !model.has_file() {
            return self.decide_without_file(digest, term, &reserved, view, now);
        }
        if model.waits_for_owner(view) {
            return None;
        }
        let mut all = model.offers(view, &reserved);
        self.slowness.add_to(&mut all);
        let (offers, best) = model.best(&all, &self.suspects, view, now);
        let excluded: Vec<PeerId> =
            all.iter().map(|offer| offer.peer).filter(|peer| offers.iter().all(|offer| offer.peer != *peer)).collect();
        let newly_left_out =
            best.as_ref().map_or_else(|_| Vec::new(), |plan| model.newly_left_out(&plan.left_out, view));
        let plan = match (best, &model.serving) {
            (Ok(plan), Some(serving)) => match model.worth_of(plan, serving, &offers, &self.suspects, view) {
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
                    model.tell_left_out(newly_left_out.iter().map(|(peer, _)| *peer), view);
                    let name = model.needs.name.clone();
                    return (!newly_left_out.is_empty()).then_some(Note::LeftOut { name, left_out: newly_left_out });
                }
            },
            (Ok(plan), None) => plan,
            (Err(no_plan), serving) => {
                if serving.is_some() {
                    return None;
                }
                // Excluded nodes become eligible again.
                let permanent = plan(&model.needs, &all, |from, to| model.speeds.link(view, from, to)).is_err();
                return model.refuse(Unplaced { why: no_plan.why, permanent });
            }
        };
        model.refused = None;
        model.replan_delay.clear();
        if !model.fits_beside(&plan, &offers, view) {
            // Flags require this plan: the serving placement makes room first.
            model.serving = None;
        }
        let placement = self.form(digest, term, plan.stages, view, now)?;
        let model = self.models.get_mut(&digest)?;
        model.tell_left_out(view.everyone().map(|advert| advert.peer), view);
        let used = |peer: &PeerId| placement.stages.iter().any(|stage| stage.peer == *peer);
        let left_out = plan.left_out.into_iter().filter(|(peer, _)| !excluded.contains(peer));
        let left_out = left_out
            .chain(excluded.iter().filter(|peer| !used(peer)).map(|peer| {
                let why = if self.suspects.contains(peer) { SUSPECTED } else { EXCLUDED };
                (*peer, why.to_owned())
            }))
            .chain(left_out::unmeasured(view))
            .chain(left_out::unfetched(view, &model.needs))
            .collect();
        Some(Note::Placed { placement, reason: plan.reason, prediction: plan.prediction, left_out })
    }

    /// Decides about a model whose file no node has any more.
    fn decide_without_file(
        &mut self,
        digest: Digest,
        term: Term,
        reserved: &BTreeMap<PeerId, u64>,
        view: &View,
        now: Time,
    ) -> Option<Note> {
        let model = self.models.get_mut(&digest).filter(|model| model.serving.is_none())?;
        let offers = model.offers(view, reserved);
        let links = |from: &PeerId, to: &PeerId| model.speeds.link(view, from, to);
        let chain = loaded_chain(view, &digest, model.needs.size.layers);
        let chain = chain.and_then(|stages| Some((predict(&model.needs, &offers, links, &stages)?, stages)));
        let Some((prediction, stages)) = chain else {
            let why = without_weights(&model.needs.name, model.owners.iter().map(String::as_str));
            return model.refuse(Unplaced { why, permanent: true });
        };
        model.refused = None;
        let placement = self.form(digest, term, stages, view, now)?;
        let reason = "no node has the file, and these have loaded the layers".to_owned();
        Some(Note::Placed { placement, reason, prediction, left_out: Vec::new() })
    }

    /// Lets a placement of these stages form, under the next epoch.
    fn form(
        &mut self,
        digest: Digest,
        term: Term,
        stages: Vec<PlacedStage>,
        view: &View,
        now: Time,
    ) -> Option<Placement> {
        let model = self.models.get_mut(&digest)?;
        let name = self.names.listed(&model.needs.name, &digest);
        let epoch = self.epochs.entry(digest).or_default();
        // A master that restarted may not know its own earlier epochs: those of a later incarnation are higher.
        *epoch = (*epoch + 1).max(view.own.incarnation.min(MAX_EPOCH));
        let placement = Placement { model: digest, name, epoch: *epoch, term, stages };
        model.forming = Some(Running::new(placement.clone(), view, now));
        Some(placement)
    }

    /// Bytes that the placements of all other models take on each node.
    fn reserved(&self, digest: &Digest, view: &View) -> BTreeMap<PeerId, u64> {
        let mut reserved = BTreeMap::new();
        for model in self.models.values().filter(|model| model.needs.digest != *digest) {
            for placement in model.in_force() {
                pool_facts::reserve(&mut reserved, &model.needs, placement, view);
            }
        }
        reserved
    }
}
