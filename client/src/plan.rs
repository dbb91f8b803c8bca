//! Where a node would place the layers of a model, where they are placed, and the wire form of both. Plain values.

use pangea_schema::plan_capnp::{chain, model_plan};
use serde::Serialize;

use crate::text::string;

/// The placement of a model as a node sees and predicts it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ModelPlan {
    /// Name of the model in requests.
    pub model: String,
    /// Number of layers.
    pub layers: u32,
    /// Bytes of all weights.
    pub weight_bytes: u64,
    /// Smallest number of bytes for sessions.
    pub session_bytes: u64,
    /// The chain that a master would choose now; `None` where the model does not fit.
    pub best: Option<PlannedChain>,
    /// Why `best` was chosen, or what is missing where there is none.
    pub reason: String,
    /// The best chains of other kinds, the fastest first.
    pub alternatives: Vec<PlannedChain>,
    /// The chain of the master's placement.
    pub current: Option<PlannedChain>,
    /// Epoch of `current`; 0 where there is no placement.
    pub epoch: u64,
    /// Whether all stages of `current` are ready.
    pub ready: bool,
}

/// Nodes that compute a model's layers, in the order in which activations travel.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PlannedChain {
    /// The stages, in order of their layers.
    pub stages: Vec<PlannedStage>,
    /// Predicted tokens per second of a single stream; 0 where there is no prediction.
    pub decode_tokens_per_s: f64,
    /// Predicted tokens per second of a long prompt.
    pub prompt_tokens_per_s: f64,
}

/// A node's range of layers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PlannedStage {
    /// Peer id of the node.
    pub peer: String,
    /// Name that the node gives itself.
    pub name: String,
    /// Layers of the stage, `[first, end)`, from 0.
    pub layers: [u32; 2],
}

impl ModelPlan {
    /// Reads the wire form.
    pub fn from_wire(wire: model_plan::Reader<'_>) -> capnp::Result<ModelPlan> {
        Ok(ModelPlan {
            model: string(wire.get_model()?)?,
            layers: wire.get_layers(),
            weight_bytes: wire.get_weight_bytes(),
            session_bytes: wire.get_session_bytes(),
            best: PlannedChain::from_wire(wire.get_best()?)?,
            reason: string(wire.get_reason()?)?,
            alternatives: wire
                .get_alternatives()?
                .iter()
                .filter_map(|chain| PlannedChain::from_wire(chain).transpose())
                .collect::<capnp::Result<_>>()?,
            current: PlannedChain::from_wire(wire.get_current()?)?,
            epoch: wire.get_epoch(),
            ready: wire.get_ready(),
        })
    }

    /// Writes the wire form.
    pub fn to_wire(&self, mut wire: model_plan::Builder<'_>) {
        wire.set_model(&self.model);
        wire.set_layers(self.layers);
        wire.set_weight_bytes(self.weight_bytes);
        wire.set_session_bytes(self.session_bytes);
        if let Some(best) = &self.best {
            best.to_wire(wire.reborrow().init_best());
        }
        wire.set_reason(&self.reason);
        let mut alternatives = wire.reborrow().init_alternatives(self.alternatives.len() as u32);
        for (index, chain) in self.alternatives.iter().enumerate() {
            chain.to_wire(alternatives.reborrow().get(index as u32));
        }
        if let Some(current) = &self.current {
            current.to_wire(wire.reborrow().init_current());
        }
        wire.set_epoch(self.epoch);
        wire.set_ready(self.ready);
    }
}

impl PlannedChain {
    /// Reads the wire form; `None` for no stages.
    fn from_wire(wire: chain::Reader<'_>) -> capnp::Result<Option<PlannedChain>> {
        let stages = wire.get_stages()?.iter().map(|stage| {
            Ok(PlannedStage {
                peer: string(stage.get_peer()?)?,
                name: string(stage.get_name()?)?,
                layers: [stage.get_first(), stage.get_end()],
            })
        });
        let stages: Vec<PlannedStage> = stages.collect::<capnp::Result<_>>()?;
        Ok((!stages.is_empty()).then(|| PlannedChain {
            stages,
            decode_tokens_per_s: wire.get_decode_tokens_per_s(),
            prompt_tokens_per_s: wire.get_prompt_tokens_per_s(),
        }))
    }

    fn to_wire(&self, mut wire: chain::Builder<'_>) {
        let mut stages = wire.reborrow().init_stages(self.stages.len() as u32);
        for (index, stage) in self.stages.iter().enumerate() {
            let mut wire = stages.reborrow().get(index as u32);
            wire.set_peer(&stage.peer);
            wire.set_name(&stage.name);
            wire.set_first(stage.layers[0]);
            wire.set_end(stage.layers[1]);
        }
        wire.set_decode_tokens_per_s(self.decode_tokens_per_s);
        wire.set_prompt_tokens_per_s(self.prompt_tokens_per_s);
    }
}
