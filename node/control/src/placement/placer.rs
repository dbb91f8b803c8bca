//! A node's whole part in placement: its decisions as the master, and the stages that it holds.

use crate::Time;
use std::ops::Range;
use std::sync::Arc;

use libp2p_identity::PeerId;
use pangea_units::Digest;

use super::placement_master::{Note, PlacementMaster, TokenTime};
use super::pool_facts;
use super::stage_manager::{Effect, StageManager, StageOrder, StageReport};
use super::{Placement, PlacementRefusal};
use crate::pool::{StageAdvert, StagePace, View};

/// Input of the placer.
#[derive(Clone, Debug)]
pub enum Event {
    /// Something in the pool has changed.
    View(Arc<View>),
    /// The state of a stage has changed.
    Stage(StageReport),
    /// The number of open sessions of a stage has changed.
    Sessions {
        /// Digest of the model.
        model: Digest,
        /// Layers of the stage.
        layers: Range<u32>,
        /// Number of open sessions.
        open: usize,
    },
    /// The chain of a placement has failed, although this node's stage is intact.
    Broke {
        /// Digest of the model.
        model: Digest,
        /// Layers of the stage.
        layers: Range<u32>,
        /// Epoch of the placement.
        epoch: u64,
    },
    /// How fast a stage of this node and the rest of its chain are, as measured.
    Paced {
        /// Digest of the model.
        model: Digest,
        /// Layers of the stage.
        layers: Range<u32>,
        /// The measured times.
        pace: StagePace,
    },
    /// The nodes under suspicion changed, the one under most first: they get layers only where no plan without them is possible.
    Suspects(Vec<PeerId>),
    /// Time has passed.
    Tick,
}

/// What the driver does next.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Publish these placements, replacing the ones published before.
    PublishPlacements(Vec<Placement>),
    /// Publish that these models cannot be placed, replacing the refusals published before.
    PublishRefusals(Vec<PlacementRefusal>),
    /// Publish these states of this node's stages.
    PublishStages(Vec<StageAdvert>),
    /// Fetch and load a stage.
    Load(StageOrder),
    /// Stop fetching or loading a stage.
    Cancel {
        /// Digest of the model.
        model: Digest,
        /// Layers of the stage.
        layers: Range<u32>,
    },
    /// Unload a stage that was ready.
    Unload {
        /// Digest of the model.
        model: Digest,
        /// Layers of the stage.
        layers: Range<u32>,
    },
    /// Show what tokens of this master's working placements take, in place of what was shown before.
    ShowTokenTimes(Vec<TokenTime>),
    /// Log a decision.
    Note(Note),
}

/// The state machine of a node's part in placement.
#[derive(Debug)]
pub struct Placer {
    view: Arc<View>,
    placement_master: PlacementMaster,
    stage_manager: StageManager,
}

impl Placer {
    /// The placer of a node without stages.
    pub fn new(view: Arc<View>) -> Placer {
        Placer { view, placement_master: PlacementMaster::default(), stage_manager: StageManager::default() }
    }

    /// Processes an event; returns the actions in order.
    pub fn handle(&mut self, event: Event, now: Time) -> Vec<Action> {
        match event {
            Event::View(view) => self.view = view,
            Event::Stage(report) => self.stage_manager.report(report),
            Event::Sessions { model, layers, open } => self.stage_manager.sessions(model, &layers, open),
            Event::Broke { model, layers, epoch } => self.stage_manager.broke(model, &layers, epoch),
            Event::Paced { model, layers, pace } => self.stage_manager.paced(model, &layers, pace),
            Event::Suspects(suspects) => self.placement_master.suspect(suspects),
            Event::Tick => {}
        }
        let decided = self.placement_master.decide(&self.view, now);
        let mut actions: Vec<Action> = decided.notes.into_iter().map(Action::Note).collect();
        actions.extend(decided.placements.map(Action::PublishPlacements));
        actions.extend(decided.refusals.map(Action::PublishRefusals));
        actions.extend(decided.token_times.map(Action::ShowTokenTimes));
        // A master follows its own placements at once, before its advert shows them.
        let placements = self.placement_master.in_force().or_else(|| pool_facts::in_force(&self.view));
        actions.extend(self.stage_manager.effects(&self.view, placements.as_deref(), now).into_iter().map(|effect| {
            match effect {
                Effect::Publish(stages) => Action::PublishStages(stages),
                Effect::Load(order) => Action::Load(order),
                Effect::Cancel(model, layers) => Action::Cancel { model, layers },
                Effect::Unload(model, layers) => Action::Unload { model, layers },
            }
        }));
        actions
    }
}
