//! A node's whole part in placement: what it decides where it is the master, and which stages it holds. Pure: what happens
//! comes in with the time, and what is to be done goes out.

use crate::Time;
use std::ops::Range;
use std::sync::Arc;

use pangea_units::Digest;

use super::placement_master::{Note, PlacementMaster};
use super::pool_facts;
use super::stage_manager::{StageManager, StageOrder, StageReport, Wish};
use super::{Placement, PlacementRefusal};
use crate::pool::{StageAdvert, View};

/// What happens.
#[derive(Clone, Debug)]
pub enum Event {
    /// Something in the pool has changed.
    View(Arc<View>),
    /// A stage gets on, or has ended.
    Stage(StageReport),
    /// How many sessions a stage has now.
    Sessions {
        /// The model's digest.
        model: Digest,
        /// The layers.
        layers: Range<u32>,
        /// How many.
        open: usize,
    },
    /// The chain of a placement broke here, though this stage's layers are fine.
    Broke {
        /// The model's digest.
        model: Digest,
        /// The layers.
        layers: Range<u32>,
        /// The placement.
        epoch: u64,
    },
    /// Some time has passed.
    Tick,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// These are the placements that this node has decided on; before, others were.
    SayPlacements(Vec<Placement>),
    /// These are the models that this node could not place; before, others were.
    SayRefusals(Vec<PlacementRefusal>),
    /// This is how the stages of this node are.
    SayStages(Vec<StageAdvert>),
    /// A stage is to be fetched and loaded.
    Load(StageOrder),
    /// A stage that is being fetched or loaded is not needed any more.
    Cancel {
        /// The model's digest.
        model: Digest,
        /// The layers.
        layers: Range<u32>,
    },
    /// A stage that was ready is not needed any more.
    Unload {
        /// The model's digest.
        model: Digest,
        /// The layers.
        layers: Range<u32>,
    },
    /// People should hear of this.
    Note(Note),
}

/// The state machine.
#[derive(Debug)]
pub struct Placer {
    view: Arc<View>,
    placement_master: PlacementMaster,
    stage_manager: StageManager,
}

impl Placer {
    /// A node that holds nothing yet and sees this.
    pub fn new(view: Arc<View>) -> Placer {
        Placer { view, placement_master: PlacementMaster::default(), stage_manager: StageManager::default() }
    }

    /// Takes in what happened; what is to be done, in this order.
    pub fn handle(&mut self, event: Event, now: Time) -> Vec<Action> {
        match event {
            Event::View(view) => self.view = view,
            Event::Stage(report) => self.stage_manager.report(report),
            Event::Sessions { model, layers, open } => self.stage_manager.sessions(model, &layers, open),
            Event::Broke { model, layers, epoch } => self.stage_manager.broke(model, &layers, epoch),
            Event::Tick => {}
        }
        let decided = self.placement_master.decide(&self.view, now);
        let mut actions: Vec<Action> = decided.notes.into_iter().map(Action::Note).collect();
        actions.extend(decided.placements.map(Action::SayPlacements));
        actions.extend(decided.refusals.map(Action::SayRefusals));
        // A master obeys itself at once; what it says of itself comes back a moment later.
        let placements = self.placement_master.in_force().or_else(|| pool_facts::placements(&self.view));
        actions.extend(self.stage_manager.wishes(&self.view, placements, now).into_iter().map(|wish| match wish {
            Wish::Say(stages) => Action::SayStages(stages),
            Wish::Load(order) => Action::Load(order),
            Wish::Cancel(model, layers) => Action::Cancel { model, layers },
            Wish::Unload(model, layers) => Action::Unload { model, layers },
        }));
        actions
    }
}
