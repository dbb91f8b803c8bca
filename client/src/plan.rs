//! Where the layers of a model would be and where they are, as a node foretells it, with how it travels. Plain values.

use pangea_schema::plan_capnp::{chain, model_plan};
use serde::Serialize;

use crate::text::string;

/// What a node says of the placement of a model.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ModelPlan {
    /// The name that requests give.
    pub model: String,
    /// How many layers it has.
    pub layers: u32,
    /// Bytes of all its weights.
    pub weight_bytes: u64,
    /// Bytes that its sessions take at least.
    pub session_bytes: u64,
    /// What a master would decide now; `None` where the model fits nowhere.
    pub best: Option<PlannedChain>,
    /// Why this one; where there is none, what is missing.
    pub reason: String,
    /// The best of other kinds, the fastest first.
    pub alternatives: Vec<PlannedChain>,
    /// What the master has decided.
    pub current: Option<PlannedChain>,
    /// The current one's epoch; 0 where there is none.
    pub epoch: u64,
    /// Whether all stages of the current one are ready.
    pub ready: bool,
}

/// Nodes that compute a model's layers, in the order in which activations travel.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PlannedChain {
    /// Who computes what.
    pub stages: Vec<PlannedStage>,
    /// Foretold tokens of a single stream per second; 0 where they cannot be.
    pub decode_tokens_per_s: f64,
    /// Foretold tokens of a long prompt per second.
    pub prompt_tokens_per_s: f64,
}

/// A node's range of layers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PlannedStage {
    /// Its peer id.
    pub peer: String,
    /// Its name for people.
    pub name: String,
    /// Its layers, `[first, end)`, counting from 0.
    pub layers: [u32; 2],
}

impl ModelPlan {
    /// What travelled.
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

    /// What travels.
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
    /// What travelled; `None` for no stages.
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
