//! What the master decides: one placement that answers for each model that is served, and one that forms beside it where
//! that is better. A state machine; on a node that is not the master it remembers, so that it can go on where another ended.
//!
//! * A placement with a stage that is gone, failed or cut off gives way at once; one whose chain broke for no such reason, after
//!   a moment, and nobody is blamed for that unless it goes on.
//! * One that works gives way only to what has been foretold as [`GAIN`] times as good for some time, where the new stages
//!   fit beside the old ones; or because flags ask for something else.
//! * The old one stays in force until every stage of the new one is ready.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::Time;

use libp2p_identity::PeerId;
use pangea_units::Digest;

use super::cooldown::{Blame, Fault};
use super::cost::Prediction;
use super::offer::{ModelNeeds, NodeOffer};
use super::plan::{Plan, plan, predict};
use super::pool_facts;
use super::replan_delay::Patience;
use super::running::{Health, Running};
use super::{Placement, PlacementRefusal};
use crate::pool::{Advert, Term, View};

/// How many times better a plan must be than what works. Measurements vary by less.
const GAIN: f64 = 1.25;

/// The same under `--split`, where a node more is to be used even beside many.
const SPLIT_GAIN: f64 = 1.1;

/// Between two looks for something better.
const LOOK: Duration = Duration::from_secs(1);

/// Between two plans where none worked; a stage that fails makes one due at once.
const AGAIN: Duration = Duration::from_millis(200);

/// A chain that broke though all its nodes are there is placed anew after this: by then a node that is gone is known to be,
/// which is another matter. After twice as long every other time.
const MEND: Duration = Duration::from_millis(200);

/// But not longer.
const MEND_MOST: Duration = Duration::from_secs(10);

/// A placement that lasted so long did not break for the reason of the one before.
const STEADY: Duration = Duration::from_secs(60);

/// Where it breaks so often in a row, those that say so are done without.
const BREAKS: u32 = 3;

/// A model whose last serving node left is still answered for so long: answers go on, and nodes restart.
const ORPHANED: Duration = Duration::from_secs(120);

/// Epochs from here on are nobody's: so that no word from outside can use them all up.
const MAX_EPOCH: u64 = u64::MAX / 2;

/// What people should hear of a decision.
#[derive(Clone, Debug, PartialEq)]
pub enum Note {
    /// A new placement.
    Placed {
        /// It.
        placement: Placement,
        /// Why, a clause.
        reason: String,
        /// What is foretold.
        prediction: Prediction,
    },
    /// A model has no placement.
    Refused {
        /// Its name.
        name: String,
        /// Why, and what to do.
        why: String,
    },
}

/// What is to be said, where it changed.
pub(super) struct Decided {
    /// The placements that are in force.
    pub(super) placements: Option<Vec<Placement>>,
    /// The models that cannot be placed.
    pub(super) refusals: Option<Vec<PlacementRefusal>>,
    /// What people should hear.
    pub(super) notes: Vec<Note>,
}

/// Why there is no plan.
#[derive(Debug)]
struct Refused {
    why: String,
    /// Whether all nodes that are there do not suffice, those included that are left out for now.
    for_good: bool,
}

/// What a plan is worth beside what works.
enum Worth {
    Nothing,
    /// It is to replace that once it has been better for some time.
    InTime(Plan),
    Now(Plan),
}

#[derive(Debug, Default)]
pub(super) struct PlacementMaster {
    /// The term under which this node decides.
    term: Option<Term>,
    models: BTreeMap<Digest, Ruling>,
    /// The highest epoch of each model that anyone named.
    epochs: BTreeMap<Digest, u64>,
    said: Vec<Placement>,
    refused: Vec<PlacementRefusal>,
}

/// One model.
#[derive(Debug)]
struct Ruling {
    needs: ModelNeeds,
    served_at: Time,
    /// What answers.
    serving: Option<Running>,
    /// What is to.
    forming: Option<Running>,
    planned_at: Option<Time>,
    patience: Patience,
    refused: Option<Refused>,
    blame: Blame,
    /// How often in a row the chain broke though all nodes were there.
    breaks: u32,
}

impl PlacementMaster {
    /// What is to be said.
    pub(super) fn decide(&mut self, view: &View, now: Time) -> Decided {
        let mut notes = Vec::new();
        self.see_models(view, now);
        self.see_epochs(view);
        match view.term.filter(|term| term.master == view.local) {
            Some(term) => {
                if self.term.replace(term) != Some(term) {
                    self.take_over(view, term, now);
                }
                for digest in self.models.keys().copied().collect::<Vec<_>>() {
                    notes.extend(self.rule(digest, term, view, now));
                }
            }
            None => {
                self.term = None;
                self.follow(view, now);
            }
        }
        let say: Vec<Placement> = match self.term {
            Some(_) => self.models.values().flat_map(Ruling::in_force).cloned().collect(),
            None => Vec::new(),
        };
        let refused: Vec<PlacementRefusal> = match self.term {
            Some(_) => self.models.values().filter_map(Ruling::refusal).collect(),
            None => Vec::new(),
        };
        let (changed, changed_refusals) = (say != self.said, refused != self.refused);
        self.said.clone_from(&say);
        self.refused.clone_from(&refused);
        Decided { placements: changed.then_some(say), refusals: changed_refusals.then_some(refused), notes }
    }

    /// What this node has decided, where it is the master.
    pub(super) fn in_force(&self) -> Option<Vec<Placement>> {
        self.term.map(|_| self.said.clone())
    }

    fn see_epochs(&mut self, view: &View) {
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

    /// Which models there are, and what is asked for each.
    fn see_models(&mut self, view: &View, now: Time) {
        for (digest, needs) in pool_facts::models(view) {
            self.epochs.entry(digest).or_default();
            let ruling = self.models.entry(digest).or_insert_with(|| Ruling::new(needs.clone(), now));
            (ruling.needs, ruling.served_at) = (needs, now);
        }
        self.models.retain(|_, ruling| {
            if ruling.served_at != now {
                ruling.needs.served_by.clear();
            }
            now.since(ruling.served_at) < ORPHANED
        });
    }

    /// Remembers what the master decides.
    fn follow(&mut self, view: &View, now: Time) {
        let Some(placements) = pool_facts::placements(view) else { return };
        for ruling in self.models.values_mut() {
            let mut of: Vec<&Placement> =
                placements.iter().filter(|placement| placement.model == ruling.needs.digest).collect();
            if of.is_empty() {
                // A new master says nothing for a moment; should it end then, what was before counts.
                continue;
            }
            of.sort_by_key(|placement| std::cmp::Reverse(placement.epoch));
            let ready = of.iter().position(|placement| pool_facts::is_ready(view, placement));
            let running = |placement: &Placement| Running::new(placement.clone(), view, now);
            ruling.serving = ready.map(|at| running(of[at]));
            ruling.forming = of.first().filter(|_| ready != Some(0)).map(|newest| running(newest));
            ruling.patience.none();
            ruling.refused = None;
        }
    }

    /// Goes on with what the last master decided, under this node's own term.
    fn take_over(&mut self, view: &View, term: Term, now: Time) {
        for ruling in self.models.values_mut() {
            let highest = self.epochs.entry(ruling.needs.digest).or_default();
            let renumbered = ruling.serving.as_ref().is_some_and(|serving| ambiguous(view, &serving.placement));
            if renumbered || ruling.forming.as_ref().is_some_and(|forming| ambiguous(view, &forming.placement)) {
                // Another master gave the same number to other stages. What answers does so under a new one, once its
                // stages have heard of that; what was forming is planned anew.
                ruling.forming = ruling.serving.take().filter(|_| renumbered);
                if let Some(forming) = &mut ruling.forming {
                    *highest += 1;
                    forming.placement.epoch = *highest;
                }
            }
            for running in [&mut ruling.serving, &mut ruling.forming].into_iter().flatten() {
                *highest = running.placement.epoch.max(*highest);
                let placement = Placement { term, ..running.placement.clone() };
                *running = Running::new(placement, view, now);
            }
        }
    }

    fn rule(&mut self, digest: Digest, term: Term, view: &View, now: Time) -> Option<Note> {
        let reserved = self.reserved(&digest, view);
        let ruling = self.models.get_mut(&digest)?;
        ruling.check(view, now);
        if !ruling.is_due(now) {
            return None;
        }
        ruling.planned_at = Some(now);
        let links = |from: &PeerId, to: &PeerId| pool_facts::link(view, from, to);
        let all = Ruling::offers(view, &reserved);
        let mut offers = ruling.blame.spared(&all, true, view, now);
        let mut best = plan(&ruling.needs, &offers, links);
        if best.is_err() {
            offers = ruling.blame.spared(&all, false, view, now);
            best = plan(&ruling.needs, &offers, links);
        }
        let plan = match (best, &ruling.serving) {
            (Ok(plan), Some(serving)) => match ruling.is_worth_it(plan, serving, &offers, view) {
                Worth::Now(plan) => plan,
                Worth::InTime(plan) => {
                    let newcomers = serving.newcomers(&plan.stages, view);
                    if !ruling.patience.is_over(newcomers, ruling.needs.split, now) {
                        return None;
                    }
                    plan
                }
                Worth::Nothing => {
                    ruling.patience.none();
                    return None;
                }
            },
            (Ok(plan), None) => plan,
            (Err(no_plan), serving) => {
                if serving.is_some() {
                    return None;
                }
                // Who is left out now comes back.
                let for_good = plan(&ruling.needs, &all, links).is_err();
                let refused = Refused { why: no_plan.why, for_good };
                let known = ruling.refused.as_ref().is_some_and(|known| known.why == refused.why);
                let why = ruling.refused.insert(refused).why.clone();
                return (!known).then(|| Note::Refused { name: ruling.needs.name.clone(), why });
            }
        };
        ruling.refused = None;
        ruling.patience.none();
        if !ruling.fits_beside(&plan, &offers, view) {
            // Asked for by flags: what answers makes room first.
            ruling.serving = None;
        }
        let epoch = self.epochs.entry(digest).or_default();
        // A master that restarts may have decided what it has not heard of again: a later run's epochs are higher.
        *epoch = (*epoch + 1).max(view.own.incarnation.min(MAX_EPOCH));
        let placement =
            Placement { model: digest, name: ruling.needs.name.clone(), epoch: *epoch, term, stages: plan.stages };
        ruling.forming = Some(Running::new(placement.clone(), view, now));
        Some(Note::Placed { placement, reason: plan.reason, prediction: plan.prediction })
    }

    /// What the placements of all other models take on each node.
    fn reserved(&self, digest: &Digest, view: &View) -> BTreeMap<PeerId, u64> {
        let mut reserved = BTreeMap::new();
        for ruling in self.models.values().filter(|ruling| ruling.needs.digest != *digest) {
            for placement in ruling.in_force() {
                reserve(&mut reserved, &ruling.needs, placement, view);
            }
        }
        reserved
    }
}

/// Adds what the stages of a placement take on their nodes.
fn reserve(reserved: &mut BTreeMap<PeerId, u64>, needs: &ModelNeeds, placement: &Placement, view: &View) {
    for stage in &placement.stages {
        let bytes: &mut u64 = reserved.entry(stage.peer).or_default();
        *bytes = bytes.saturating_add(pool_facts::placed_bytes(view, needs, stage));
    }
}

/// Whether someone uses the placement's epoch for other stages, or a later one.
fn ambiguous(view: &View, placement: &Placement) -> bool {
    view.everyone().any(|advert| {
        let placements = advert.placements.iter().filter(|other| other.model == placement.model);
        let mut epochs = placements.filter(|other| other.stages != placement.stages).map(|other| other.epoch);
        let stages = advert.stages.iter().filter(|stage| stage.model == placement.model);
        let placed = |stage: &crate::pool::StageAdvert| {
            let here = placement.stages.iter().filter(|placed| placed.peer == advert.peer);
            here.clone().any(|placed| placed.layers == stage.layers)
        };
        let mut others = stages.filter(|stage| !placed(stage)).map(|stage| stage.epoch);
        let taken = |epoch: u64| epoch >= placement.epoch && epoch < MAX_EPOCH;
        epochs.any(taken) || others.any(taken)
    })
}

impl Ruling {
    fn new(needs: ModelNeeds, now: Time) -> Ruling {
        Ruling {
            needs,
            served_at: now,
            serving: None,
            forming: None,
            planned_at: None,
            patience: Patience::default(),
            refused: None,
            blame: Blame::default(),
            breaks: 0,
        }
    }

    /// That no nodes that are there can hold it, if so.
    fn refusal(&self) -> Option<PlacementRefusal> {
        let refused = self.refused.as_ref().filter(|refused| refused.for_good && self.in_force().next().is_none())?;
        Some(PlacementRefusal { model: self.needs.digest, why: refused.why.clone() })
    }

    fn in_force(&self) -> impl Iterator<Item = &Placement> {
        [&self.serving, &self.forming].into_iter().flatten().map(|running| &running.placement)
    }

    /// Gives up what does not work and goes over to what is ready.
    fn check(&mut self, view: &View, now: Time) {
        self.patience.see(view.everyone().map(|advert| (advert.peer, advert.incarnation)), now);
        if let Some(mut forming) = self.forming.take() {
            match forming.health(view, now, false) {
                Health::Ready => (self.serving, self.planned_at) = (Some(forming), Some(now)),
                health => self.forming = self.kept(forming, health, view, now),
            }
        }
        if let Some(mut serving) = self.serving.take() {
            let health = serving.health(view, now, true);
            self.serving = self.kept(serving, health, view, now);
        }
    }

    /// A placement that is not given up for how it is.
    fn kept(&mut self, running: Running, health: Health, view: &View, now: Time) -> Option<Running> {
        match health {
            Health::Ready | Health::Forming => return Some(running),
            Health::Broken { blamed, gone } => {
                for peer in gone {
                    self.patience.lost(peer, now);
                }
                for peer in blamed {
                    self.blame.shun(peer, Fault::Its, view, now);
                }
            }
            Health::Parted { since, by } => {
                let steady = now.since(running.made) >= STEADY;
                let before = if steady { 0 } else { self.breaks };
                let mend = MEND.saturating_mul(1 << before.min(16)).min(MEND_MOST);
                if now.since(since) < mend {
                    return Some(running);
                }
                self.breaks = before + 1;
                if self.breaks >= BREAKS {
                    for peer in by {
                        self.blame.shun(peer, Fault::Perhaps, view, now);
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
            (Some(_), None) => LOOK,
            (None, None) => AGAIN,
        };
        self.planned_at.is_none_or(|at| now.since(at) >= every)
    }

    /// What nodes have left for this model.
    fn offers(view: &View, reserved: &BTreeMap<PeerId, u64>) -> Vec<NodeOffer> {
        let mut offers = pool_facts::offers(view);
        for offer in &mut offers {
            let taken = reserved.get(&offer.peer).copied().unwrap_or(0);
            offer.memory_bytes = offer.memory_bytes.saturating_sub(taken);
        }
        offers
    }

    /// What nodes have left beside the stages that answer.
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

    /// Whether the new stages and those that answer fit at once; a stage that stays as it is takes nothing.
    fn fits_beside(&self, plan: &Plan, offers: &[NodeOffer], view: &View) -> bool {
        let beside = self.beside(offers, view);
        let stays = |stage| self.serving.as_ref().is_some_and(|serving| serving.placement.stages.contains(stage));
        plan.stages.iter().all(|stage| {
            let takes = self.needs.stage_bytes(&stage.layers);
            stays(stage) || beside.iter().any(|offer| offer.peer == stage.peer && offer.memory_bytes >= takes)
        })
    }

    /// What the best plan is worth beside what works.
    fn is_worth_it(&self, best: Plan, serving: &Running, offers: &[NodeOffer], view: &View) -> Worth {
        let current = &serving.placement.stages;
        if best.stages == *current {
            return Worth::Nothing;
        }
        let links = |from: &PeerId, to: &PeerId| pool_facts::link(view, from, to);
        let pinned = |(peer, layers): &(PeerId, std::ops::Range<u32>)| {
            let there = best.stages.iter().any(|stage| stage.peer == *peer);
            !there || current.iter().any(|stage| stage.peer == *peer && stage.layers == *layers)
        };
        let forced =
            !self.needs.pins.iter().all(pinned) || (self.needs.split && current.len() == 1 && best.stages.len() > 1);
        if forced {
            return Worth::Now(best);
        }
        // The new stages are to fit beside the old ones, which answer meanwhile.
        let beside = self.beside(offers, view);
        let (Ok(best), Some(is)) = (plan(&self.needs, &beside, links), predict(&self.needs, offers, links, current))
        else {
            return Worth::Nothing;
        };
        let better = match self.needs.split {
            true => is.pace_s >= best.prediction.pace_s * SPLIT_GAIN,
            false => is.step_s >= best.prediction.step_s * GAIN,
        };
        if better { Worth::InTime(best) } else { Worth::Nothing }
    }
}
