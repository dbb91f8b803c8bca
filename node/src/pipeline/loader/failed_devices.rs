//! Layers whose device failed: they are loaded again, on the processor, from the file that they were read from. Their chains broke
//! when it failed, and answers go on at the chains that follow.

use pangea_client::Result;
use pangea_compute::model::ModelFile;
use pangea_compute::{Cancel, Isa};
use pangea_control::placement::StageReport;
use pangea_units::LayerRange;

use super::{Key, LoadedLayers, Loader, Order};
use crate::compute_error;
use crate::pipeline::wire::ChainId;
use crate::placement::measure_speed;
use crate::pool::StageState;

impl Loader {
    /// Gives up the layers whose device failed, and loads them again. Each one once: where that fails too, the log says why, and the
    /// next request or placement that needs them tries again.
    pub(super) fn replace_failed(&self) {
        let has_failed = |loaded: &LoadedLayers| loaded.model.device_failure();
        let failed: Vec<(Key, LoadedLayers, String)> = {
            let loaded = self.loaded();
            loaded.iter().filter_map(|(key, loaded)| Some((*key, loaded.clone(), has_failed(loaded)?))).collect()
        };
        for (key, layers, why) in failed {
            // Stages that have not noticed yet break first, and bring this here again: what broke is told before it is replaced.
            if self.0.pipeline.fail(&layers.model, &why) {
                continue;
            }
            if self.0.devices.give_up_gpu(&why) {
                self.advertise_processor();
            }
            self.loaded().remove(&key);
            // What the broken stages had is free for the same layers on the processor.
            self.0.pipeline.let_go(&layers.model);
            let loader = self.clone();
            let name = format!("loading layers {} of {} again", LayerRange::from(&(key.1..key.2)), layers.name);
            let work = move || {
                let (name, range) = (layers.name.to_string(), LayerRange::from(&(key.1..key.2)));
                match loader.load_again(key, layers) {
                    Ok(()) => {
                        tracing::info!(
                            event = "layers_reloaded",
                            model = name,
                            "Model {name}: layers {range} are on the processor now"
                        );
                    }
                    Err(error) => {
                        tracing::warn!(
                            event = "layers_not_reloaded",
                            model = name,
                            %error,
                            "Model {name}: cannot load layers {range} again on the processor: {error}"
                        );
                        loader.0.pipeline.end(ChainId::alone(key.0));
                        if let Some(Order { epoch, reports }) = loader.orders().remove(&key) {
                            let state = StageState::Failed(error.message().to_owned());
                            // The placer keeps reading; without it there is no receiver.
                            let _ =
                                reports.blocking_send(StageReport { model: key.0, layers: key.1..key.2, epoch, state });
                        }
                    }
                }
                loader.0.reloaded.notify_one();
            };
            if let Err(error) = self.0.pipeline.supervisor().owned_thread(&name, work, |_| {}) {
                tracing::warn!(event = "layers_not_reloaded", %error, "cannot start a thread to load layers again: {error}");
            }
        }
    }

    /// Tells the pool that layers are computed by the processor from now on, and how fast.
    fn advertise_processor(&self) {
        let (devices, pool) = (&self.0.devices, &self.0.pool);
        let (called, bytes) = (devices.called(Isa::best().name()), devices.offered_bytes());
        pool.update_advert(|own| {
            own.device = called;
            own.bits = devices.bits();
            own.memory_bytes = own.memory_bytes.min(bytes);
        });
        measure_speed(pool.clone(), devices.clone(), self.0.pipeline.supervisor());
    }

    fn load_again(&self, key: Key, layers: LoadedLayers) -> Result<()> {
        let file = ModelFile::open(&layers.path).map_err(compute_error)?;
        let LoadedLayers { name, budget, metrics, model, memory, .. } = layers;
        let session_bytes = budget.max_bytes();
        // Freed before as much is asked for.
        drop((budget, model, memory));
        self.pack((key.0, &name), &file, key.1..key.2, session_bytes, metrics, &Cancel::new()).map(drop)
    }
}
