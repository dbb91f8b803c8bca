//! Where a model would be placed now and where it is, for people who ask. It reads a view and changes nothing.

use std::collections::BTreeMap;

use libp2p_identity::PeerId;
use pangea_units::{Error, ErrorKind, Result};

use super::cost::Prediction;
use super::offer::ModelNeeds;
use super::plan::{plan, predict};
use super::{PlacedStage, pool_facts};
use crate::pool::View;

/// What a master would decide about a model, and what the master has decided.
#[derive(Clone, Debug)]
pub struct Preview {
    /// The model, and what it takes.
    pub needs: ModelNeeds,
    /// Bytes of the whole model's weights.
    pub weight_bytes: u64,
    /// Bytes of keys and values that the whole model needs at least.
    pub session_bytes: u64,
    /// The fastest chain; none where no plan fits.
    pub best: Option<ChainPreview>,
    /// Why that chain, or why none.
    pub reason: String,
    /// Chains that come after it.
    pub alternatives: Vec<ChainPreview>,
    /// The chain that is in force.
    pub current: Option<ChainPreview>,
    /// The epoch of the chain in force; 0 without one.
    pub epoch: u64,
    /// Whether every stage of the chain in force is ready.
    pub ready: bool,
}

/// A chain of stages and what it should give.
#[derive(Clone, Debug)]
pub struct ChainPreview {
    /// The stages, in the order in which activations travel, each with its node's name for people.
    pub stages: Vec<(PlacedStage, String)>,
    /// What it should give, where that can be predicted.
    pub prediction: Option<Prediction>,
}

/// What a master would decide about `model`, and what the master has decided. An empty name means the only model.
///
/// # Errors
/// `NotFound` for a model that no node of the pool serves; `InvalidInput` where the name is empty and there are several.
pub fn preview(view: &View, model: &str) -> Result<Preview> {
    let models = pool_facts::models(view);
    let needs = named(models.values().collect(), model)?;
    let placements = pool_facts::placements(view).unwrap_or_default();
    let mut offers = pool_facts::offers(view);
    for placement in placements.iter().filter(|placement| placement.model != needs.digest) {
        let Some(others) = models.get(&placement.model) else { continue };
        for stage in &placement.stages {
            let taken = others.stage_bytes(&stage.layers);
            for offer in offers.iter_mut().filter(|offer| offer.peer == stage.peer) {
                offer.memory_bytes = offer.memory_bytes.saturating_sub(taken);
            }
        }
    }
    let links = |from: &PeerId, to: &PeerId| pool_facts::link(view, from, to);
    let names: BTreeMap<PeerId, &str> = view.everyone().map(|advert| (advert.peer, advert.name.as_str())).collect();
    let chain = |stages: &[PlacedStage], prediction: Option<Prediction>| {
        let name = |stage: &PlacedStage| names.get(&stage.peer).copied().unwrap_or_default().to_owned();
        ChainPreview { stages: stages.iter().map(|stage| (stage.clone(), name(stage))).collect(), prediction }
    };
    let (best, reason, alternatives) = match plan(needs, &offers, links) {
        Ok(plan) => (Some(chain(&plan.stages, Some(plan.prediction))), plan.reason, plan.alternatives),
        Err(no_plan) => (None, no_plan.why, Vec::new()),
    };
    let of_model = placements.iter().filter(|placement| placement.model == needs.digest);
    // A chain that answers counts; one that forms beside it does only where nothing answers.
    let current = of_model.max_by_key(|placement| (pool_facts::is_ready(view, placement), placement.epoch));
    let whole = 0..needs.size.layers;
    Ok(Preview {
        weight_bytes: needs.weight_bytes(&whole),
        session_bytes: needs.session_bytes(&whole),
        best,
        reason,
        alternatives: alternatives.iter().map(|other| chain(&other.stages, Some(other.prediction))).collect(),
        epoch: current.map_or(0, |placement| placement.epoch),
        ready: current.is_some_and(|placement| pool_facts::is_ready(view, placement)),
        current: current.map(|placement| chain(&placement.stages, predict(needs, &offers, links, &placement.stages))),
        needs: needs.clone(),
    })
}

fn named<'a>(models: Vec<&'a ModelNeeds>, name: &str) -> Result<&'a ModelNeeds> {
    let names = || models.iter().map(|model| model.name.as_str()).collect::<Vec<_>>().join(", ");
    match (name, models.as_slice()) {
        (_, []) => {
            let message = "no node of the pool serves a model; start one with `pangea node --model NAME`";
            Err(Error::new(ErrorKind::NotFound, message))
        }
        ("", [only]) => Ok(only),
        ("", _) => {
            Err(Error::new(ErrorKind::InvalidInput, format!("the pool serves several models; name one of {}", names())))
        }
        (name, _) => models.iter().find(|model| model.name == name).copied().ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("no node of the pool serves {name}; there are {}", names()))
        }),
    }
}
