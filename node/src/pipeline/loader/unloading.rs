//! Whole models that leave this node's memory, because they were dropped or because nobody uses them, and the models that
//! requests here wait for. `pangea_control::session::whole_models` decides which leave when.

use std::collections::BTreeMap;
use std::time::Duration;

use pangea_compute::Digest;
use pangea_control::devices::models_bytes;
use pangea_control::placement::Placement;
use pangea_control::session::whole_models::{Leaving, WholeUse};
use pangea_units::ByteSize;

use super::{Key, LoadedLayers, Loader};
use crate::clock;
use crate::devices::Kind;
use crate::pipeline::wire::ChainId;
use crate::pool::View;
use crate::pool::codec::MAX_WANTED;

/// Time for which a waiting request's wish for an unloaded model is advertised: every node hears an advert within a second, and
/// requests that still wait ask again.
const WANTED: Duration = Duration::from_secs(3);

impl Loader {
    /// Ends the chain of this node alone of a model that was dropped, once its answers have ended.
    pub fn retire(&self, model: Digest) {
        self.whole_models().retire(model, clock::now());
    }

    /// Bytes that a model may take now, and all bytes that models may take.
    pub fn memory_for_models(&self) -> (u64, u64) {
        (self.0.devices.free_for(Kind::Weights), models_bytes(self.0.devices.limit()))
    }

    /// Whether this node has unloaded a model that it serves.
    pub fn is_unloaded(&self, model: &Digest) -> bool {
        self.view().borrow().own.unloaded.contains(model)
    }

    /// Records that a model that this node serves is in memory, or is to be placed, again.
    pub fn stays(&self, model: Digest) {
        self.whole_models().stays(&model);
        self.0.pool.update_advert(|own| own.unloaded.retain(|unloaded| *unloaded != model));
    }

    /// Tells the nodes that have unloaded a model that a request at this node waits for it.
    pub fn want(&self, model: Digest) {
        let mut wanted = self.wanted();
        if wanted.len() < MAX_WANTED || wanted.contains_key(&model) {
            let is_new = wanted.insert(model, clock::now()).is_none();
            drop(wanted);
            if is_new {
                self.say_wanted();
            }
        }
    }

    fn say_wanted(&self) {
        let models: Vec<Digest> = self.wanted().keys().copied().collect();
        self.0.pool.update_advert(|own| own.wanted = models);
    }

    /// Unloads the models that leave memory now.
    pub(super) fn unload_unused(&self, view: &View, placements: &[Placement]) {
        let now = clock::now();
        let expired = {
            let mut wanted = self.wanted();
            let before = wanted.len();
            wanted.retain(|_, since| now.since(*since) < WANTED);
            wanted.len() != before
        };
        if expired {
            self.say_wanted();
        }
        let leaving = self.whole_models().leaving(&self.uses(view), now);
        for (model, why) in leaving {
            self.end_alone(model, why);
            let is_elsewhere = placements
                .iter()
                .filter(|placement| placement.model == model)
                .any(|placement| placement.stages.iter().all(|stage| !self.is_local(&stage.peer)));
            // Where other nodes have all layers, requests go on there.
            if matches!(why, Leaving::Unused(_)) && !is_elsewhere {
                self.0.pool.update_advert(|own| {
                    own.unloaded.retain(|unloaded| *unloaded != model);
                    own.unloaded.push(model);
                });
            }
        }
    }

    /// How the models of which this node has layers are used.
    fn uses(&self, view: &View) -> BTreeMap<Digest, WholeUse> {
        let pipeline = &self.0.pipeline;
        let own = view.own.models.iter().filter(|model| model.served && !view.own.unloaded.contains(&model.digest));
        let served: Vec<Digest> = own.map(|model| model.digest).collect();
        let alone = self.loaded().keys().map(|key| key.0).collect::<Vec<_>>();
        let alone = alone.into_iter().filter(|model| pipeline.has(ChainId::alone(*model)));
        let uses = alone.chain(served.iter().copied()).filter_map(|model| {
            let (sessions, used_at) = pipeline.use_of(&model)?;
            Some((model, WholeUse { sessions, used_at, served: served.contains(&model) }))
        });
        uses.collect()
    }

    /// Ends the chain of this node alone, and gives its layers up unless a placement uses them.
    fn end_alone(&self, model: Digest, why: Leaving) {
        let pipeline = &self.0.pipeline;
        if !pipeline.has(ChainId::alone(model)) {
            return;
        }
        pipeline.end(ChainId::alone(model));
        let placed = self.chains().of(&model);
        let is_over = |key: &Key, loaded: &LoadedLayers| {
            // What a placement uses ends with its stage.
            let is_placed = placed.iter().any(|chain| pipeline.uses(*chain, &loaded.model));
            key.0 == model && loaded.model.is_whole() && !is_placed
        };
        self.loaded().retain(|key, loaded| {
            let is_over = is_over(key, loaded);
            if key.0 == model && loaded.model.is_whole() {
                let (name, bytes) = (&loaded.name, loaded.model.memory_bytes());
                let why = match why {
                    Leaving::Dropped => "it was dropped".to_owned(),
                    Leaving::Unused(unused) => format!("nobody used it for {} s", unused.as_secs()),
                };
                let size = ByteSize(bytes);
                tracing::info!(event = "model_unloaded", model = %name, bytes, why, "Unloaded model {name}, {size}: {why}");
            }
            !is_over
        });
        self.forget_stand_in(model);
        self.0.changed.send_modify(|version| *version += 1);
    }
}
