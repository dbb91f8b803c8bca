//! The stages of this node: which to fetch and load, which to keep for running sessions, which to unload, as the
//! master of the highest term decided. Nothing is loaded here.
//!
//! A stage is one range of layers of a model. A newer placement that gives this node the same range changes the stage's
//! epoch and nothing else. A stage that no placement names any more is kept until its last session has ended.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use crate::Time;

use libp2p_identity::PeerId;
use pangea_units::{ByteSize, Digest};

use super::Placement;
use super::offer::ModelNeeds;
use super::pool_facts;
use crate::devices::{models_bytes, roomy_sessions_bytes};
use crate::pool::served::is_unloaded;
use crate::pool::{StageAdvert, StagePace, StageState, View};

/// Time for which a stage is kept after a newer placement left it out: requests routed by the older placement still arrive.
const LINGER: Duration = Duration::from_secs(2);

/// Time for which a stage is kept after the master stopped naming its model: a new master needs some time to place it.
const ORPHANED: Duration = Duration::from_secs(30);

/// Time for which sessions of an earlier placement may hold the memory that a new stage waits for.
const YIELD_AFTER: Duration = Duration::from_secs(5);

/// Time for which sessions may use a stage after its model was dropped: as long as a node that is stopped lets answers end.
const DROPPED_GRACE: Duration = Duration::from_secs(10);

/// Least time between two adverts that differ only in bytes fetched.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

/// A stage to fetch and load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageOrder {
    /// Digest of the model.
    pub model: Digest,
    /// Name of the model.
    pub name: String,
    /// Layers of the stage. Layer 0 comes with the embedding, the last layer with the head.
    pub layers: Range<u32>,
    /// Whether the head belongs to the stage.
    pub last: bool,
    /// Epoch of the placement.
    pub epoch: u64,
    /// Memory for its sessions, in bytes.
    pub session_bytes: u64,
    /// Nodes with pieces of the file, those with the whole file first.
    pub providers: Vec<PeerId>,
}

/// The state of an ordered stage: while it is loaded, and when it ends later.
#[derive(Clone, Debug, PartialEq)]
pub struct StageReport {
    /// Digest of the model.
    pub model: Digest,
    /// Layers of the stage.
    pub layers: Range<u32>,
    /// Epoch of the order.
    pub epoch: u64,
    /// State of the stage.
    pub state: StageState,
}

/// What the placer does for this node's stages.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Effect {
    Publish(Vec<StageAdvert>),
    Load(StageOrder),
    Cancel(Digest, Range<u32>),
    Unload(Digest, Range<u32>),
}

/// Digest of the model, first layer, end.
type Key = (Digest, u32, u32);

#[derive(Debug)]
struct Stage {
    /// The epoch of the order. Reports of earlier orders are ignored.
    ordered: u64,
    /// The epoch of the newest placement that names the stage.
    epoch: u64,
    state: StageState,
    weight_bytes: u64,
    session_bytes: u64,
    sessions: usize,
    /// The epoch of the newest placement whose chain failed on this node.
    broken: Option<u64>,
    pace: Option<StagePace>,
    unwanted_since: Option<Time>,
}

impl Stage {
    fn bytes(&self) -> u64 {
        match self.state {
            StageState::Failed(_) => 0,
            _ => self.weight_bytes.saturating_add(self.session_bytes),
        }
    }
}

/// A stage that a placement assigns to this node.
struct Wanted {
    epoch: u64,
    last: bool,
}

#[derive(Debug, Default)]
pub(super) struct StageManager {
    stages: BTreeMap<Key, Stage>,
    /// Stages that wait for memory, with the time since when.
    waiting: BTreeMap<Key, Time>,
    published: Vec<StageAdvert>,
    published_at: Option<Time>,
}

impl StageManager {
    /// Records the state of a stage.
    pub(super) fn report(&mut self, report: StageReport) {
        let key = (report.model, report.layers.start, report.layers.end);
        if let Some(stage) = self.stages.get_mut(&key).filter(|stage| stage.ordered == report.epoch) {
            stage.state = report.state;
        }
    }

    /// Records the number of sessions of a stage.
    pub(super) fn sessions(&mut self, model: Digest, layers: &Range<u32>, open: usize) {
        if let Some(stage) = self.stages.get_mut(&(model, layers.start, layers.end)) {
            stage.sessions = open;
        }
    }

    /// Records that the chain of a placement failed although this node's stage is intact.
    pub(super) fn broke(&mut self, model: Digest, layers: &Range<u32>, epoch: u64) {
        if let Some(stage) = self.stages.get_mut(&(model, layers.start, layers.end)) {
            stage.broken = stage.broken.max(Some(epoch));
        }
    }

    /// Records how fast a stage and the rest of its chain are.
    pub(super) fn paced(&mut self, model: Digest, layers: &Range<u32>, pace: StagePace) {
        if let Some(stage) = self.stages.get_mut(&(model, layers.start, layers.end)) {
            stage.pace = Some(pace);
        }
    }

    /// What to do now. `placements`: those of the current master; `None` while its advert is unknown.
    pub(super) fn effects(&mut self, view: &View, placements: Option<&[&Placement]>, now: Time) -> Vec<Effect> {
        let mut effects = Vec::new();
        if let Some(placements) = placements.filter(|_| view.own.works) {
            let wanted = wanted(placements, view.local);
            self.mark(&wanted, now);
            self.unload_unwanted(view, placements, now, &mut effects);
            self.order_missing(view, &wanted, now, &mut effects);
        }
        self.publish(now, &mut effects);
        effects
    }

    fn mark(&mut self, wanted: &BTreeMap<Key, Wanted>, now: Time) {
        for (key, stage) in &mut self.stages {
            match wanted.get(key) {
                Some(wanted) => {
                    stage.unwanted_since = None;
                    let failed = matches!(stage.state, StageState::Failed(_));
                    // A failed stage keeps its error until a newer epoch orders it again.
                    if !failed {
                        stage.epoch = stage.epoch.max(wanted.epoch);
                    }
                }
                None => {
                    stage.unwanted_since.get_or_insert(now);
                }
            }
        }
    }

    /// Unloads stages that no placement names any more and that no session uses.
    fn unload_unwanted(&mut self, view: &View, placements: &[&Placement], now: Time, effects: &mut Vec<Effect>) {
        let needed = self.waiting.values().min().copied();
        self.stages.retain(|(model, start, end), stage| {
            let Some(since) = stage.unwanted_since else { return true };
            let gone_for = now.since(since);
            let dropped = view.is_dropped(model);
            let replaced =
                dropped || is_unloaded(view, model) || placements.iter().any(|placement| placement.model == *model);
            let grace = match (replaced, needed) {
                (true, Some(_)) => Duration::ZERO,
                (true, None) => LINGER,
                (false, _) => ORPHANED,
            };
            let yields =
                needed.is_some_and(|since| now.since(since) >= YIELD_AFTER) || (dropped && gone_for >= DROPPED_GRACE);
            let layers = *start..*end;
            match stage.state {
                _ if gone_for < grace => return true,
                StageState::Ready if stage.sessions > 0 && !yields => return true,
                StageState::Ready => effects.push(Effect::Unload(*model, layers)),
                StageState::Fetching { .. } | StageState::Loading => effects.push(Effect::Cancel(*model, layers)),
                StageState::Failed(_) => {}
            }
            false
        });
    }

    /// Orders the stages that are missing, as far as memory allows.
    fn order_missing(&mut self, view: &View, wanted: &BTreeMap<Key, Wanted>, now: Time, effects: &mut Vec<Effect>) {
        self.waiting.retain(|key, _| wanted.contains_key(key));
        for (key, stage_wanted) in wanted {
            let again = match self.stages.get(key) {
                Some(stage) => matches!(stage.state, StageState::Failed(_)) && stage.ordered < stage_wanted.epoch,
                None => true,
            };
            if !again {
                continue;
            }
            // The placement may arrive before the advert with the model's sizes.
            let Some(needs) = pool_facts::model(view, &key.0) else { continue };
            let layers = key.1..key.2;
            let memory = models_bytes(view.own.memory_bytes);
            let weight_bytes = needs.weight_bytes(&layers);
            let least = needs.session_bytes(&layers);
            let held = self.stages.values().map(Stage::bytes).fold(0, u64::saturating_add);
            let left = memory.saturating_sub(held);
            let mut stage = Stage {
                ordered: stage_wanted.epoch,
                epoch: stage_wanted.epoch,
                state: StageState::Fetching { done: 0, total: weight_bytes },
                weight_bytes,
                session_bytes: 0,
                sessions: 0,
                broken: None,
                pace: None,
                unwanted_since: None,
            };
            match left.checked_sub(weight_bytes).filter(|left| *left >= least) {
                Some(left) => {
                    // Other stages that are still to be ordered get their share of the rest.
                    let others = wanted.keys().filter(|other| *other != key && !self.stages.contains_key(other));
                    let others = others.map(|other| least_bytes(view, other)).fold(0, u64::saturating_add);
                    let spare = left.saturating_sub(others) / 2;
                    stage.session_bytes = least.max(roomy_sessions_bytes(view.own.memory_bytes).min(spare));
                    effects.push(Effect::Load(StageOrder {
                        model: key.0,
                        name: needs.name.clone(),
                        layers,
                        last: stage_wanted.last,
                        epoch: stage_wanted.epoch,
                        session_bytes: stage.session_bytes,
                        providers: providers(view, &needs),
                    }));
                }
                None if self.stages.values().any(|stage| stage.unwanted_since.is_some()) => {
                    self.waiting.entry(*key).or_insert(now);
                    continue;
                }
                None => {
                    let takes = weight_bytes.saturating_add(least);
                    stage.state = StageState::Failed(format!("needs {}; {} free", ByteSize(takes), ByteSize(left)));
                }
            }
            self.waiting.remove(key);
            self.stages.insert(*key, stage);
        }
    }

    /// Publishes the states of the stages if they have changed.
    fn publish(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let published = |((model, start, end), stage): (&Key, &Stage)| StageAdvert {
            model: *model,
            layers: *start..*end,
            epoch: stage.epoch,
            state: stage.state.clone(),
            session_bytes: stage.session_bytes,
            broken: stage.broken,
            pace: stage.pace,
        };
        let stages = self.stages.iter().map(published);
        if stages.len() == self.published.len()
            && stages.clone().zip(&self.published).all(|(now, before)| now == *before)
        {
            return;
        }
        let stages: Vec<StageAdvert> = stages.collect();
        let recently = self.published_at.is_some_and(|at| now.since(at) < PROGRESS_INTERVAL);
        if recently && only_progress(&self.published, &stages) {
            return;
        }
        (self.published, self.published_at) = (stages.clone(), Some(now));
        effects.push(Effect::Publish(stages));
    }
}

/// Minimum bytes of a stage.
fn least_bytes(view: &View, key: &Key) -> u64 {
    pool_facts::model(view, &key.0).map_or(0, |needs| needs.stage_bytes(&(key.1..key.2)))
}

/// Whether only the fetched bytes have changed.
fn only_progress(before: &[StageAdvert], now: &[StageAdvert]) -> bool {
    let fetching = |state: &StageState| matches!(state, StageState::Fetching { .. });
    before.len() == now.len()
        && before.iter().zip(now).all(|(before, now)| {
            let same_state = before.state == now.state || (fetching(&before.state) && fetching(&now.state));
            same_state
                && (before.model, &before.layers, before.epoch, before.session_bytes, before.broken, before.pace)
                    == (now.model, &now.layers, now.epoch, now.session_bytes, now.broken, now.pace)
        })
}

fn wanted(placements: &[&Placement], local: PeerId) -> BTreeMap<Key, Wanted> {
    let mut wanted: BTreeMap<Key, Wanted> = BTreeMap::new();
    for placement in placements {
        for (at, stage) in placement.stages.iter().enumerate().filter(|(_, stage)| stage.peer == local) {
            let last = at + 1 == placement.stages.len();
            let key = (placement.model, stage.layers.start, stage.layers.end);
            let known = wanted.entry(key).or_insert(Wanted { epoch: placement.epoch, last });
            known.epoch = known.epoch.max(placement.epoch);
        }
    }
    wanted
}

/// Nodes with pieces of the file, those with the whole file first.
fn providers(view: &View, needs: &ModelNeeds) -> Vec<PeerId> {
    let mut providers: Vec<(bool, PeerId)> = view
        .everyone()
        .flat_map(|advert| advert.models.iter().map(move |model| (advert.peer, model)))
        .filter(|(_, model)| model.digest == needs.digest)
        .map(|(peer, model)| (!model.whole, peer))
        .collect();
    providers.sort_unstable();
    providers.into_iter().map(|(_, peer)| peer).collect()
}
