//! Loads layers as the placement orders: fetched and packed on a thread of their own, reported step by step, unloaded. The
//! placement decides which layers.

use std::ops::Range;
use std::time::{Duration, Instant};

use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::model::ModelFile;
use pangea_compute::{Cancel, Digest};
use pangea_control::placement::{StageOrder, StageReport};
use pangea_control::session::ChainId;
use pangea_units::LayerRange;
use tokio::sync::mpsc;

use super::{Loader, Order};
use crate::blob::Wanted;
use crate::compute_error;
use crate::placement::StageLoader;
use crate::pool::StageState;

/// Retries after a fetch that found no provider.
const FETCH_RETRIES: u32 = 4;

/// Delay between them: connections of nodes that have just met may be replaced.
const FETCH_RETRY: Duration = Duration::from_millis(300);

impl Loader {
    fn load(&self, order: &StageOrder, cancel: &Cancel, report: &(dyn Fn(StageState) + Sync)) -> Result<()> {
        let wanted = Wanted { layers: order.layers.clone(), embedding: order.layers.start == 0, head: order.last };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Error::new(ErrorKind::Internal, format!("cannot fetch layers: {error}")))?;
        let began = Instant::now();
        let (name, layers) = (&order.name, &order.layers);
        let blobs = self.0.blobs.called(name);
        // A file of the user is not fetched once more.
        self.finds_on_disk(order.model, name);
        let path = runtime.block_on(async {
            let mut attempt = 0;
            loop {
                let mut progress = |done, total| report(StageState::Fetching { done, total });
                let holders = order.providers.clone();
                let fetched = blobs.fetch(order.model, wanted.clone(), holders, &mut progress, cancel).await;
                match fetched {
                    // Connections of nodes that have just met may be replaced.
                    Err(error) if error.kind() == ErrorKind::Unavailable && attempt < FETCH_RETRIES => {
                        attempt += 1;
                        tokio::time::sleep(FETCH_RETRY).await;
                    }
                    fetched => return fetched,
                }
            }
        })?;
        report(StageState::Loading);
        let file = ModelFile::open(&path).map_err(compute_error)?;
        let metrics = self.metrics(order.model);
        self.pack((order.model, &order.name), &file, layers.clone(), order.session_bytes, metrics, cancel)?;
        self.advertise(order.model, name);
        let (range, millis) = (LayerRange::from(layers), began.elapsed().as_millis() as u64);
        tracing::info!(
            event = "layers_ready",
            model = name,
            first = range.first,
            last = range.last,
            millis,
            "Model {name}: layers {range} are ready"
        );
        self.0.changed.send_modify(|version| *version += 1);
        Ok(())
    }
}

impl StageLoader for Loader {
    fn fetch_and_load(&self, order: StageOrder, reports: mpsc::Sender<StageReport>) {
        let cancel = Cancel::new();
        let key = (order.model, order.layers.start, order.layers.end);
        self.loading().insert(key, cancel.clone());
        self.orders().insert(key, Order { epoch: order.epoch, reports: reports.clone() });
        let loader = self.clone();
        let report = {
            let (model, layers, epoch) = (order.model, order.layers.clone(), order.epoch);
            move |state| {
                let report = StageReport { model, layers: layers.clone(), epoch, state };
                if matches!(report.state, StageState::Fetching { .. }) {
                    // The next report contains more.
                    let _ = reports.try_send(report);
                } else {
                    // The placer keeps reading; without it there is no receiver.
                    let _ = reports.blocking_send(report);
                }
            }
        };
        let (failed, panicked) = (report.clone(), report.clone());
        let name = format!("loading layers {} of {}", LayerRange::from(&order.layers), order.name);
        let loaded = self.clone();
        let work = move || {
            let state = match loader.load(&order, &cancel, &report) {
                Ok(()) => StageState::Ready,
                Err(error) => StageState::Failed(error.message().to_owned()),
            };
            if let StageState::Failed(why) = &state {
                let (model, range) = (&order.name, LayerRange::from(&order.layers));
                tracing::warn!(
                    event = "stage_failed",
                    model,
                    why,
                    "Model {model}: cannot load layers {range} on this node: {why}"
                );
            }
            loader.loading().remove(&key);
            report(state);
        };
        let on_panic = move |why: &str| {
            loaded.loading().remove(&key);
            panicked(StageState::Failed(format!("loading the layers panicked: {why}")));
        };
        if let Err(error) = self.0.pipeline.supervisor().owned_thread(&name, work, on_panic) {
            failed(StageState::Failed(format!("cannot start a thread to load layers: {error}")));
        }
    }

    fn unload(&self, model: Digest, layers: Range<u32>) {
        let key = (model, layers.start, layers.end);
        self.orders().remove(&key);
        if let Some(cancel) = self.loading().remove(&key) {
            cancel.cancel();
        }
        // The chain of this node alone uses them as well, and stays.
        if self.0.pipeline.has(ChainId::alone(model)) && self.is_whole(&key) {
            return;
        }
        if let Some(loaded) = self.loaded().remove(&key) {
            let chains = self.chains().of(&model);
            for chain in chains {
                if self.0.pipeline.uses(chain, &loaded.model) {
                    self.0.pipeline.end(chain);
                    self.chains().remove(&chain);
                }
            }
        }
    }
}
