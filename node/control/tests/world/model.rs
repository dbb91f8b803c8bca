//! Models in the world: what is placed where, and loaders that take their time, wait for memory and fail.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use pangea_control::devices::Kind;
use pangea_control::placement::{Action, Event, StageOrder, StageReport};
use pangea_control::pool::StageState;
use pangea_control::session::ChainId;
use pangea_units::{Digest, Error};

use crate::checks::Broken;
use crate::memory::{Lease, Waiter};
use crate::node::{StageKey, needs};
use crate::scenario::{Micros, SECOND};
use crate::world::{Happening, World};

/// How long a load waits for memory that is leased now.
const MEMORY_PATIENCE: Micros = 5 * SECOND;

/// The layers of a node.
#[derive(Default)]
pub(crate) struct Layers {
    /// Those that are ready.
    pub(crate) loaded: BTreeMap<StageKey, Loaded>,
    loading: BTreeMap<StageKey, Loading>,
}

/// Layers that are ready.
pub(crate) struct Loaded {
    weights: Lease,
    sessions: Lease,
    /// Sessions that the placer was last told of.
    pub(crate) told: usize,
}

/// Layers on their way.
struct Loading {
    order: StageOrder,
    /// From the memory being there to the end.
    takes: Micros,
    fails: bool,
    weights: Option<Lease>,
    sessions: Option<Lease>,
}

/// A step of a load.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    /// Some of it is here.
    Fetching,
    /// All of it is.
    Fetched,
    /// The layers can be used, or cannot.
    Packed,
}

impl Layers {
    /// Whether layers are ready or on their way.
    pub(crate) fn has(&self, key: &StageKey) -> bool {
        self.loaded.contains_key(key) || self.loading.contains_key(key)
    }

    /// Layers are ready.
    pub(crate) fn insert(&mut self, key: StageKey, weights: Lease, sessions: Lease) {
        self.loaded.insert(key, Loaded { weights, sessions, told: 0 });
    }

    /// Memory for the sessions of layers.
    pub(crate) fn session_bytes(&self, key: &StageKey) -> u64 {
        self.loaded.get(key).map_or(0, |loaded| loaded.sessions.bytes())
    }

    /// Memory of all of them.
    pub(crate) fn bytes(&self) -> u64 {
        let loaded = self.loaded.values().map(|loaded| loaded.weights.bytes() + loaded.sessions.bytes());
        let loading = self.loading.values().flat_map(|loading| [&loading.weights, &loading.sessions]);
        loaded.chain(loading.flatten().map(Lease::bytes)).sum()
    }
}

impl World {
    /// The placer looks at the pool as it is now.
    pub(crate) fn look(&mut self, node: usize) -> Result<(), Broken> {
        let now = self.now;
        let Some(run) = &mut self.nodes[node].run else { return Ok(()) };
        run.looking = false;
        let view = Arc::new(run.view(now));
        let suspects = run.directory.suspects(run.time(now));
        // A decision on the view of a moment ago would count with those that were convicted since.
        self.place(node, Event::View(Arc::clone(&view)))?;
        if let Some(run) = self.nodes[node].run.as_mut().filter(|run| run.suspects != suspects) {
            run.suspects.clone_from(&suspects);
            self.place(node, Event::Suspects(suspects))?;
        }
        self.follow(node, &view)?;
        self.tell_sessions(node)?;
        self.routes_changed(node)
    }

    /// The placer hears of something.
    pub(crate) fn place(&mut self, node: usize, event: Event) -> Result<(), Broken> {
        let now = self.now;
        let Some(run) = &mut self.nodes[node].run else { return Ok(()) };
        let time = run.time(now);
        let actions = run.placer.handle(event, time);
        for action in actions {
            self.act(node, action)?;
        }
        Ok(())
    }

    fn act(&mut self, at: usize, action: Action) -> Result<(), Broken> {
        let now = self.now;
        let Some(run) = &mut self.nodes[at].run else { return Ok(()) };
        match action {
            Action::PublishPlacements(placements) => {
                self.checks.placed(now, at, &self.nodes, &placements)?;
                let Some(run) = &mut self.nodes[at].run else { return Ok(()) };
                run.advert.placements = placements;
                run.pace.changed();
            }
            Action::PublishRefusals(refusals) => {
                self.checks.refused(now, run, &refusals)?;
                run.advert.refusals = refusals;
                run.pace.changed();
            }
            Action::PublishStages(stages) => {
                run.advert.stages = stages;
                run.pace.changed();
            }
            Action::Load(order) => return self.load(at, order),
            Action::Cancel { model, layers } | Action::Unload { model, layers } => self.unload(at, model, &layers)?,
            Action::ShowTokenTimes(_) | Action::Note(_) => {}
        }
        self.soon_look(at);
        Ok(())
    }

    /// Layers are fetched and packed; what they take is leased once they are here.
    fn load(&mut self, at: usize, order: StageOrder) -> Result<(), Broken> {
        let fails = self.load_failures_one_in > 0 && self.chance.one_in(self.load_failures_one_in);
        let took = self.chance.within(100_000..3_000_000);
        let now = self.now;
        let Some(run) = &mut self.nodes[at].run else { return Ok(()) };
        let view = run.view(now);
        self.checks.ordered(now, at, &view, &order)?;
        let key = (order.model, order.layers.start, order.layers.end);
        let (epoch, number) = (order.epoch, run.number);
        let loading = Loading { order, takes: took / 2, fails, weights: None, sessions: None };
        let alone = run.stages.contains_key(&ChainId { model: key.0, epoch: 0 }) && key == World::whole(key.0);
        if run.layers.has(&key) && !alone {
            return Err(Broken::new(now, format!("node {at} loads a stage twice")));
        }
        run.layers.loading.insert(key, loading);
        self.after(took / 3, Happening::Load { node: at, run: number, key, epoch, step: Step::Fetching });
        self.after(took / 2, Happening::Load { node: at, run: number, key, epoch, step: Step::Fetched });
        Ok(())
    }

    /// A load gets on, unless it was cancelled.
    pub(crate) fn load_step(&mut self, at: usize, key: StageKey, epoch: u64, step: Step) -> Result<(), Broken> {
        let Some(run) = &mut self.nodes[at].run else { return Ok(()) };
        let Some(loading) = run.layers.loading.get(&key).filter(|loading| loading.order.epoch == epoch) else {
            return Ok(());
        };
        match step {
            Step::Fetching => self.report(at, key, epoch, StageState::Fetching { done: 5, total: 9 }),
            // They are here already, for the chain of this node alone.
            Step::Fetched if run.layers.loaded.contains_key(&key) => {
                run.layers.loading.remove(&key);
                self.report(at, key, epoch, StageState::Loading)?;
                self.report(at, key, epoch, StageState::Ready)
            }
            Step::Fetched => {
                let needs = needs(&loading.order);
                let layers = &loading.order.layers;
                // Weights and sessions as one: neither is of use alone.
                let both = needs.weight_bytes(layers) + needs.session_bytes(layers);
                self.report(at, key, epoch, StageState::Loading)?;
                match self.lease(at, Kind::Weights, both)? {
                    Ok(lease) => self.load_leased(at, key, epoch, Ok(lease)),
                    Err(_) => {
                        self.end_idle_whole(at, key.0)?;
                        self.lease_soon(at, Kind::Weights, both, MEMORY_PATIENCE, Waiter::Load { key, epoch })
                    }
                }
            }
            Step::Packed => {
                let fails = loading.fails;
                let Some(Loading { weights, sessions, .. }) = run.layers.loading.remove(&key) else { return Ok(()) };
                match (weights, sessions) {
                    (Some(weights), Some(sessions)) if !fails => {
                        run.layers.insert(key, weights, sessions);
                        run.advertise(key);
                        self.report(at, key, epoch, StageState::Ready)
                    }
                    _ => self.report(at, key, epoch, StageState::Failed("no".to_owned())),
                }
            }
        }
    }

    /// A load has the memory that it waited for, or will not have it.
    pub(crate) fn load_leased(
        &mut self,
        at: usize,
        key: StageKey,
        epoch: u64,
        leased: Result<Lease, Error>,
    ) -> Result<(), Broken> {
        let Some(run) = &mut self.nodes[at].run else { return Ok(()) };
        let number = run.number;
        let Some(loading) = run.layers.loading.get_mut(&key).filter(|loading| loading.order.epoch == epoch) else {
            return Ok(());
        };
        let Ok(mut lease) = leased else {
            self.checks.counts.add("loads without memory");
            run.layers.loading.remove(&key);
            return self.report(at, key, epoch, StageState::Failed("no memory".to_owned()));
        };
        let (needs, layers) = (needs(&loading.order), loading.order.layers.clone());
        if loading.weights.is_none() {
            lease.shrink(needs.weight_bytes(&layers));
            loading.weights = Some(lease);
            let (least, most) = (needs.session_bytes(&layers), loading.order.session_bytes);
            self.settle(at)?;
            let Some(run) = &self.nodes[at].run else { return Ok(()) };
            let wanted = run.memory.ledger().free_for(Kind::Sessions).clamp(least, most.max(least));
            return match self.lease(at, Kind::Sessions, wanted)? {
                Ok(lease) => self.load_leased(at, key, epoch, Ok(lease)),
                Err(_) => self.lease_soon(at, Kind::Sessions, least, MEMORY_PATIENCE, Waiter::Load { key, epoch }),
            };
        }
        loading.sessions = Some(lease);
        let takes = loading.takes;
        self.after(takes, Happening::Load { node: at, run: number, key, epoch, step: Step::Packed });
        Ok(())
    }

    fn report(&mut self, at: usize, key: StageKey, epoch: u64, state: StageState) -> Result<(), Broken> {
        let (model, start, end) = key;
        self.place(at, Event::Stage(StageReport { model, layers: start..end, epoch, state }))
    }

    fn unload(&mut self, at: usize, model: Digest, layers: &Range<u32>) -> Result<(), Broken> {
        let key = (model, layers.start, layers.end);
        self.stop_waiting(at, |waiter| matches!(waiter, Waiter::Load { key: of, .. } if *of == key));
        let Some(run) = &mut self.nodes[at].run else { return Ok(()) };
        run.layers.loading.remove(&key);
        // The chain of this node alone has them, too, and stays.
        if run.stages.contains_key(&ChainId { model, epoch: 0 }) && key == World::whole(model) {
            return Ok(());
        }
        run.layers.loaded.remove(&key);
        self.end_chains_of(at, key)
    }

    /// Gives up the chain of this node alone where no session uses it: both it and another chain's layers do not fit.
    fn end_idle_whole(&mut self, at: usize, model: Digest) -> Result<(), Broken> {
        let alone = ChainId { model, epoch: 0 };
        let Some(run) = &mut self.nodes[at].run else { return Ok(()) };
        if run.stages.get(&alone).is_some_and(|stage| stage.protocol.sessions() == 0) {
            run.layers.loaded.remove(&World::whole(model));
            self.end_stage(at, alone)?;
        }
        Ok(())
    }
}
