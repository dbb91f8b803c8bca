//! Converts a preview of a model's placement to the client's type. [`pangea_control::placement`] decides what is placed
//! where.

use pangea_client::{ModelPlan, PlannedChain, PlannedStage};
use pangea_control::placement::{ChainPreview, Preview};

/// Converts a preview.
pub fn plan_report(preview: Preview) -> ModelPlan {
    ModelPlan {
        model: preview.needs.name,
        layers: preview.needs.size.layers,
        weight_bytes: preview.weight_bytes,
        session_bytes: preview.session_bytes,
        best: preview.best.map(chain),
        reason: preview.reason,
        alternatives: preview.alternatives.into_iter().map(chain).collect(),
        epoch: preview.epoch,
        ready: preview.ready,
        current: preview.current.map(chain),
    }
}

fn chain(chain: ChainPreview) -> PlannedChain {
    let stages = chain.stages.into_iter().map(|(stage, name)| PlannedStage {
        peer: stage.peer.to_string(),
        name,
        layers: [stage.layers.start, stage.layers.end],
    });
    PlannedChain {
        stages: stages.collect(),
        decode_tokens_per_s: chain.prediction.map_or(0.0, |prediction| prediction.decode_tokens_per_s()),
        prompt_tokens_per_s: chain.prediction.map_or(0.0, |prediction| prediction.prompt_tokens_per_s()),
    }
}
