//! Where a model would be placed now and where it is, for people who ask. It reads a view and changes nothing.

use std::collections::BTreeMap;

use libp2p::PeerId;
use pangea_client::{Error, ErrorKind, ModelPlan, PlannedChain, PlannedStage, Result};

use super::cost::Prediction;
use super::offer::{Link, ModelNeeds, NodeOffer};
use super::plan::{plan, predict};
use super::{PlacedStage, survey};
use crate::pool::View;

/// What a master would decide about `model`, and what the master has decided. An empty name means the only model.
///
/// # Errors
/// `NotFound` for a model that no node of the pool serves; `InvalidInput` where the name is empty and there are several.
pub fn preview(view: &View, model: &str) -> Result<ModelPlan> {
    let models = survey::models(view);
    let needs = named(models.values().collect(), model)?;
    let placements = survey::placements(view).unwrap_or_default();
    let mut offers = survey::offers(view);
    for placement in placements.iter().filter(|placement| placement.model != needs.digest) {
        let Some(others) = models.get(&placement.model) else { continue };
        for stage in &placement.stages {
            let taken = others.stage_bytes(&stage.layers);
            for offer in offers.iter_mut().filter(|offer| offer.peer == stage.peer) {
                offer.memory_bytes = offer.memory_bytes.saturating_sub(taken);
            }
        }
    }
    let links = |from: &PeerId, to: &PeerId| survey::link(view, from, to);
    let (best, reason, alternatives) = match plan(needs, &offers, links) {
        Ok(plan) => (Some((plan.stages, plan.prediction)), plan.reason, plan.alternatives),
        Err(no_plan) => (None, no_plan.why, Vec::new()),
    };
    let names: BTreeMap<PeerId, &str> =
        view.everyone().map(|standing| (standing.peer, standing.name.as_str())).collect();
    let chain = |stages: &[PlacedStage], prediction: Option<Prediction>| PlannedChain {
        stages: stages
            .iter()
            .map(|stage| PlannedStage {
                peer: stage.peer.to_string(),
                name: names.get(&stage.peer).copied().unwrap_or_default().to_owned(),
                layers: [stage.layers.start, stage.layers.end],
            })
            .collect(),
        decode_tokens_per_s: prediction.map_or(0.0, |prediction| prediction.decode_tokens_per_s()),
        prompt_tokens_per_s: prediction.map_or(0.0, |prediction| prediction.prompt_tokens_per_s()),
    };
    let of_model = placements.iter().filter(|placement| placement.model == needs.digest);
    // What answers counts; what forms beside it does where nothing answers.
    let current = of_model.max_by_key(|placement| (survey::is_ready(view, placement), placement.epoch));
    let whole = 0..needs.size.layers;
    Ok(ModelPlan {
        model: needs.name.clone(),
        layers: needs.size.layers,
        weight_bytes: needs.weight_bytes(&whole),
        session_bytes: needs.session_bytes(&whole),
        best: best.map(|(stages, prediction)| chain(&stages, Some(prediction))),
        reason,
        alternatives: alternatives.iter().map(|other| chain(&other.stages, Some(other.prediction))).collect(),
        epoch: current.map_or(0, |placement| placement.epoch),
        ready: current.is_some_and(|placement| survey::is_ready(view, placement)),
        current: current.map(|placement| chain(&placement.stages, foretold(needs, &offers, links, &placement.stages))),
    })
}

fn foretold(
    needs: &ModelNeeds,
    offers: &[NodeOffer],
    links: impl Fn(&PeerId, &PeerId) -> Option<Link>,
    stages: &[PlacedStage],
) -> Option<Prediction> {
    predict(needs, offers, links, stages)
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
