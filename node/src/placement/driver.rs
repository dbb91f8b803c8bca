//! The task that feeds a placer with events of the pool, the loader and the clock, and executes its actions. The loader
//! owns loaded stages; the placer decides.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use libp2p::PeerId;
use pangea_client::Result;
use pangea_compute::Digest;
use pangea_compute::probe::{self, LayerRates};
use tokio::sync::mpsc;

use crate::clock;
use crate::compute_error;
use crate::devices::threads::Purpose;
use crate::devices::{Devices, NodeGpu};
use crate::observe::Observer;
use crate::peers::Peers;
use crate::pool::{LayerSpeed, ModelAdvert, Pool, StagePace, View};
use crate::supervise::Supervisor;
use pangea_control::placement::{Action, Event, Note, Placer, StageOrder, StageReport, TokenTime, pool_facts};
use pangea_units::LayerRange;

/// Interval of the clock's ticks, and so of attempts that a placer makes again without an event: few, because each tick is decided on
/// another thread, also at a node that has nothing to place.
const TICK: Duration = Duration::from_millis(500);

/// Queued reports of stages: a few per stage, and a node has a handful.
const REPORTS: usize = 64;

/// Duration of a measurement of layers' speed, in milliseconds.
const PROBE_MS: u64 = 60;

/// Pauses before each measurement of layers' speed. The later ones only raise it: a busy machine, such as one on which several
/// nodes start, looks slow and never fast, and a node that looks slow would get no layers and never be measured by them.
const PROBE_PAUSES: [Duration; 3] = [Duration::ZERO, Duration::from_secs(5), Duration::from_secs(30)];

/// Fetches, loads and ends stages. Its methods return at once.
pub trait StageLoader: Send + Sync {
    /// Fetches and loads a stage on threads of its own, and reports its progress: `Fetching` as bytes arrive, `Loading`,
    /// then `Ready` or `Failed`. `Failed` is also reported later, if a stage that was ready ends by itself.
    fn fetch_and_load(&self, order: StageOrder, reports: mpsc::Sender<StageReport>);

    /// Ends a stage, also one that is still being fetched or loaded. An unknown stage is no error.
    fn unload(&self, model: Digest, layers: Range<u32>);
}

/// Reports the sessions of this node's stages: [`Sessions::changed`] is called whenever their number changes.
#[derive(Clone, Debug)]
pub struct Sessions {
    events: mpsc::Sender<Event>,
}

impl Sessions {
    /// The stage now has `open` sessions. Blocks while the queue is full; callable on any thread.
    pub fn changed(&self, model: Digest, layers: Range<u32>, open: usize) {
        // The placer ends only with the node.
        let _ = self.events.blocking_send(Event::Sessions { model, layers, open });
    }

    /// Like [`Sessions::changed`], within an asynchronous task.
    pub async fn changed_in_task(&self, model: Digest, layers: Range<u32>, open: usize) {
        let _ = self.events.send(Event::Sessions { model, layers, open }).await;
    }

    /// How fast the stage and the rest of its chain are, as measured.
    pub async fn paced_in_task(&self, model: Digest, layers: Range<u32>, pace: StagePace) {
        let _ = self.events.send(Event::Paced { model, layers, pace }).await;
    }

    /// The chain of this placement has failed and accepts no more sessions; the stage's layers are unaffected.
    pub async fn broke_in_task(&self, model: Digest, layers: Range<u32>, epoch: u64) {
        let _ = self.events.send(Event::Broke { model, layers, epoch }).await;
    }
}

/// A node's part in placement.
pub struct PlacementDriver {
    pool: Pool,
    loader: Arc<dyn StageLoader>,
    /// Layers that this node pins of every model that it does not serve itself.
    pinned: Option<Range<u32>>,
    placer: Placer,
    peers: Peers,
    /// The suspects that the placer knows.
    suspects: Vec<PeerId>,
    events: mpsc::Receiver<Event>,
    reports: mpsc::Receiver<StageReport>,
    report: mpsc::Sender<StageReport>,
    /// What tokens of this master's placements take, for `/metrics`.
    token_times: Arc<Mutex<Vec<TokenTime>>>,
}

impl PlacementDriver {
    /// A part in `pool` that loads with `loader`. `pinned`: the value of `--layers` on a node without `--model`. `observer` shows how
    /// long tokens take.
    pub fn new(
        pool: Pool,
        peers: Peers,
        loader: Arc<dyn StageLoader>,
        pinned: Option<Range<u32>>,
        observer: &Observer,
    ) -> (PlacementDriver, Sessions) {
        let view = Arc::clone(&pool.view().borrow());
        let (report, reports) = mpsc::channel(REPORTS);
        let (sender, events) = mpsc::channel(REPORTS);
        let (placer, suspects) = (Placer::new(view), Vec::new());
        let token_times = observe_token_times(observer);
        let driver =
            PlacementDriver { placer, peers, suspects, pool, loader, pinned, events, reports, report, token_times };
        (driver, Sessions { events: sender })
    }

    /// Runs until the pool ends.
    pub async fn run(mut self) {
        let mut view = self.pool.view();
        let mut tick = clock::ticks(TICK);
        let mut told = true;
        loop {
            let event = tokio::select! {
                changed = view.changed() => match changed {
                    Ok(()) => {
                        let view = Arc::clone(&view.borrow_and_update());
                        self.publish_pins(&view);
                        Event::View(view)
                    }
                    Err(_) => return,
                },
                Some(report) = self.reports.recv() => Event::Stage(report),
                event = self.events.recv(), if told => match event {
                    Some(event) => event,
                    // The sender of session changes has ended; stages continue.
                    None => {
                        told = false;
                        continue;
                    }
                },
                _ = tick.tick() => {
                    let suspects = self.peers.suspects();
                    match suspects == self.suspects {
                        true => Event::Tick,
                        false => {
                            self.suspects.clone_from(&suspects);
                            Event::Suspects(suspects)
                        }
                    }
                }
            };
            // Plans take time that the tasks of this thread do not have.
            let mut placer = self.placer;
            let decided = tokio::task::spawn_blocking(move || {
                let actions = placer.handle(event, clock::now());
                (placer, actions)
            });
            let actions = match decided.await {
                Ok((placer, actions)) => {
                    self.placer = placer;
                    actions
                }
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                // The runtime ends.
                Err(_) => return,
            };
            for action in actions {
                self.act(action);
            }
        }
    }

    fn act(&self, action: Action) {
        match action {
            Action::PublishPlacements(placements) => self.pool.update_advert(|own| own.placements = placements),
            Action::PublishRefusals(refusals) => self.pool.update_advert(|own| own.refusals = refusals),
            Action::PublishStages(stages) => self.pool.update_advert(|own| own.stages = stages),
            Action::Load(order) => {
                let layers = LayerRange::from(&order.layers).to_string();
                tracing::info!(
                    event = "stage_ordered",
                    model = order.name,
                    layers,
                    epoch = order.epoch,
                    "Loading layers {layers} of {}",
                    order.name
                );
                self.loader.fetch_and_load(order, self.report.clone());
            }
            Action::Cancel { model, layers } | Action::Unload { model, layers } => self.loader.unload(model, layers),
            Action::ShowTokenTimes(times) => {
                *self.token_times.lock().unwrap_or_else(PoisonError::into_inner) = times;
            }
            Action::Note(note) => self.log(note),
        }
    }

    fn log(&self, note: Note) {
        match note {
            Note::Placed { placement, reason, prediction, left_out } => {
                let view = Arc::clone(&self.pool.view().borrow());
                let name = |peer| view.advert(peer).map_or_else(|| peer.to_string(), |node| node.name.clone());
                let stages = placement.stages.iter();
                let stages: Vec<String> = stages
                    .map(|stage| format!("{} has layers {}", name(&stage.peer), LayerRange::from(&stage.layers)))
                    .collect();
                let (stages, model) = (stages.join(", "), placement.name);
                let tokens_per_s = prediction.decode_tokens_per_s().round();
                tracing::info!(
                    event = "placed",
                    model,
                    epoch = placement.epoch,
                    tokens_per_s,
                    "Placed {model}: {stages} ({reason})"
                );
                self.log_left_out(&model, &left_out);
            }
            Note::LeftOut { name: model, left_out } => self.log_left_out(&model, &left_out),
            Note::Slow { name: model, suspects, predicted_s, took_s } => {
                let view = Arc::clone(&self.pool.view().borrow());
                let name = |peer| view.advert(peer).map_or_else(|| peer.to_string(), |node| node.name.clone());
                let suspects: Vec<String> = suspects.iter().map(name).collect();
                let suspects = suspects.join(" or ");
                tracing::warn!(
                    event = "slow_stage",
                    model,
                    suspects,
                    predicted_s,
                    took_s,
                    "A token of {model} takes {took_s:.3} s, {predicted_s:.3} s predicted: {suspects} or a link is slower than measured"
                );
            }
            Note::Refused { name, why } => {
                tracing::warn!(event = "not_placed", model = name, "cannot place {name}: {why}");
            }
        }
    }

    fn log_left_out(&self, model: &str, left_out: &[(PeerId, String)]) {
        let view = Arc::clone(&self.pool.view().borrow());
        for (peer, why) in left_out {
            let node = view.advert(peer).map_or_else(|| peer.to_string(), |node| node.name.clone());
            tracing::info!(event = "left_out", model, %peer, why, "{node} has no layers of {model}: {why}");
        }
    }

    /// Pins the layers of `--layers`, given without `--model`, for each model of the pool that has them.
    fn publish_pins(&self, view: &View) {
        let Some(pinned) = &self.pinned else { return };
        let of_own = |digest| view.own.models.iter().find(|model| model.digest == digest);
        let unsaid: Vec<ModelAdvert> = pool_facts::models(view)
            .into_values()
            .filter(|needs| pinned.end <= needs.size.layers)
            .filter(|needs| of_own(needs.digest).is_none_or(|own| own.pinned.as_ref() != Some(pinned)))
            .map(|needs| ModelAdvert {
                digest: needs.digest,
                name: needs.name,
                served: false,
                whole: false,
                split: false,
                pinned: Some(pinned.clone()),
                size: needs.size,
            })
            .collect();
        if unsaid.is_empty() {
            return;
        }
        self.pool.update_advert(|own| {
            for model in unsaid {
                match own.models.iter_mut().find(|known| known.digest == model.digest) {
                    Some(known) => known.pinned = model.pinned,
                    None => own.models.push(model),
                }
            }
        });
    }
}

/// Registers what tokens of placements take, predicted and measured, with `observer`. Models without a placement have no series.
fn observe_token_times(observer: &Observer) -> Arc<Mutex<Vec<TokenTime>>> {
    let times: Arc<Mutex<Vec<TokenTime>>> = Arc::default();
    let read = |value: fn(&TokenTime) -> f64| {
        let times = Arc::clone(&times);
        move || {
            let times = times.lock().unwrap_or_else(PoisonError::into_inner);
            // Every name once, whatever the pool says.
            let by_model: BTreeMap<String, f64> = times.iter().map(|time| (time.name.clone(), value(time))).collect();
            by_model.into_iter().map(|(name, seconds)| ([("model", name)], seconds)).collect()
        }
    };
    let help = "Time of a token of a split model, as measured speeds predict it; only at the master";
    observer.gauges("chain_token_predicted_seconds", help, read(|time| time.predicted_s));
    let help = "Time of a token of a split model, as its stages measured it; only at the master";
    observer.gauges("chain_token_measured_seconds", help, read(|time| time.measured_s));
    times
}

/// How fast layers are computed now: by the GPU, as long as it is used, else by the threads of the processor.
fn measure_once(devices: &Devices) -> Result<LayerRates> {
    let measured = match devices.gpu().and_then(NodeGpu::works) {
        Some(gpu) => {
            let _turn = devices.turn(Purpose::Probe);
            probe::gpu_layers(gpu, PROBE_MS)
        }
        None => {
            let threads = devices.pool(Purpose::Probe)?;
            let _turn = devices.turn(Purpose::Probe);
            probe::layers(&threads, PROBE_MS)
        }
    };
    measured.map_err(compute_error)
}

/// Measures how fast this node computes layers, on a thread of its own, and publishes the speed: a first estimate, until the
/// frames of its stages show what models really take.
pub fn measure_speed(pool: Pool, devices: Devices, supervisor: &Supervisor) {
    let measure = move || {
        let mut best: Option<LayerSpeed> = None;
        for pause in PROBE_PAUSES {
            std::thread::sleep(pause);
            let measured = measure_once(&devices);
            match measured {
                Ok(rates) => {
                    let before = best.map_or([0.0; 2], |best| [best.weight_bytes_per_s, best.macs_per_s]);
                    let speed = LayerSpeed {
                        weight_bytes_per_s: rates.weight_bytes_per_s.max(before[0]),
                        macs_per_s: rates.macs_per_s.max(before[1]),
                    };
                    tracing::debug!(event = "measured", ?rates, "layers measured");
                    if best.replace(speed) != Some(speed) {
                        pool.update_advert(|own| own.speed = Some(speed));
                    }
                }
                Err(error) if best.is_none() => {
                    tracing::warn!(event = "not_measured", %error, "cannot measure this node's speed; it computes no layers of models: {error}");
                }
                Err(error) => tracing::debug!(event = "not_measured", %error),
            }
        }
    };
    // Without a speed, the pool gives this node no layers.
    if let Err(error) = supervisor.owned_thread("probe of layers", measure, |_| {}) {
        tracing::warn!(event = "not_measured", %error, "cannot start a thread to measure this node's speed; it computes no layers of models: {error}");
    }
}
