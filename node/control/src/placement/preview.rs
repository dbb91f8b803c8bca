//! A model's planned and current placement, for people. It reads a view and changes nothing.

use std::collections::BTreeMap;

use libp2p_identity::PeerId;
use pangea_units::{Error, ErrorKind, Result};

use super::cost::Prediction;
use super::measured::MeasuredSpeeds;
use super::offer::ModelNeeds;
use super::plan::{plan, predict};
use super::{PlacedStage, Placement, left_out, pool_facts, slowness};
use crate::pool::{View, full_name, is_full_name};

/// A master's decision about a model, planned and current.
#[derive(Clone, Debug)]
pub struct Preview {
    /// The model and its sizes.
    pub needs: ModelNeeds,
    /// Bytes of the whole model's weights.
    pub weight_bytes: u64,
    /// Minimum bytes of keys and values of the whole model.
    pub session_bytes: u64,
    /// The fastest chain; `None` if no plan fits.
    pub best: Option<ChainPreview>,
    /// Why that chain was chosen, or why there is none.
    pub reason: String,
    /// The nodes without layers in it: the node, its name, and why, as a clause.
    pub left_out: Vec<(PeerId, String, String)>,
    /// The next best chains.
    pub alternatives: Vec<ChainPreview>,
    /// The current chain.
    pub current: Option<ChainPreview>,
    /// Epoch of the current chain; 0 without one.
    pub epoch: u64,
    /// Whether every stage of the current chain is ready.
    pub ready: bool,
}

/// A chain of stages and its prediction.
#[derive(Clone, Debug)]
pub struct ChainPreview {
    /// The stages, in the order in which activations travel, each with its node's name for people.
    pub stages: Vec<(PlacedStage, String)>,
    /// The prediction, if one can be made.
    pub prediction: Option<Prediction>,
}

/// The planned and current placement of `model`. An empty name means the only model.
///
/// # Errors
/// `NotFound` for a model that no node of the pool serves; `InvalidInput` if the name is ambiguous or empty with
/// several models.
pub fn preview(view: &View, model: &str) -> Result<Preview> {
    let models = pool_facts::models(view);
    let needs = named(models.values().collect(), model)?;
    let placements = pool_facts::placements(view).unwrap_or_default();
    let mut offers = pool_facts::offers(view);
    let mut reserved = BTreeMap::new();
    for placement in placements.iter().filter(|placement| placement.model != needs.digest) {
        let Some(others) = models.get(&placement.model) else { continue };
        pool_facts::reserve(&mut reserved, others, placement, view);
    }
    pool_facts::take_memory(&mut offers, &reserved);
    pool_facts::without_fetching(needs, &mut offers);
    let mut speeds = MeasuredSpeeds::of(view, needs);
    speeds.correct(&mut offers);
    let names: BTreeMap<PeerId, &str> = view.everyone().map(|advert| (advert.peer, advert.name.as_str())).collect();
    let chain = |stages: &[PlacedStage], prediction: Option<Prediction>| {
        let name = |stage: &PlacedStage| names.get(&stage.peer).copied().unwrap_or_default().to_owned();
        ChainPreview { stages: stages.iter().map(|stage| (stage.clone(), name(stage))).collect(), prediction }
    };
    let of_model = placements.iter().filter(|placement| placement.model == needs.digest);
    // A ready chain takes precedence over one that is forming.
    let current = of_model.max_by_key(|placement| (pool_facts::is_ready(view, placement), placement.epoch));
    let accounted = |placement: &Placement| {
        let links = |from: &PeerId, to: &PeerId| pool_facts::link(view, from, to);
        predict(needs, &offers, links, &placement.stages)
    };
    let hop_s = current.and_then(|current| slowness::hop_s(view, current, accounted(current)?.step_s));
    if let Some(hop_s) = hop_s {
        speeds.observe_hops(hop_s);
    }
    let links = |from: &PeerId, to: &PeerId| speeds.link(view, from, to);
    // What a chain's tokens took says more than what its stages and links take each.
    let took_s = current.and_then(|placement| slowness::token_s(view, placement));
    let as_measured = |stages: &[PlacedStage], predicted: Prediction| match took_s {
        Some(step_s) if current.is_some_and(|current| current.stages == stages) => Prediction { step_s, ..predicted },
        _ => predicted,
    };
    let (best, reason, alternatives, left_out) = match plan(needs, &offers, links) {
        Ok(plan) => {
            let prediction = as_measured(&plan.stages, plan.prediction);
            (Some(chain(&plan.stages, Some(prediction))), plan.reason, plan.alternatives, plan.left_out)
        }
        Err(no_plan) => (None, no_plan.why, Vec::new(), Vec::new()),
    };
    let left_out = left_out.into_iter().chain(left_out::unmeasured(view)).chain(left_out::unfetched(view, needs));
    let name = |peer: PeerId| names.get(&peer).copied().unwrap_or_default().to_owned();
    let whole = 0..needs.size.layers;
    Ok(Preview {
        weight_bytes: needs.weight_bytes(&whole),
        session_bytes: needs.session_bytes(&whole),
        best,
        reason,
        left_out: left_out.map(|(peer, why)| (peer, name(peer), why)).collect(),
        alternatives: alternatives.iter().map(|other| chain(&other.stages, Some(other.prediction))).collect(),
        epoch: current.map_or(0, |placement| placement.epoch),
        ready: current.is_some_and(|placement| pool_facts::is_ready(view, placement)),
        current: current.map(|placement| {
            let predicted = predict(needs, &offers, links, &placement.stages);
            chain(&placement.stages, predicted.map(|predicted| as_measured(&placement.stages, predicted)))
        }),
        needs: needs.clone(),
    })
}

fn named<'a>(models: Vec<&'a ModelNeeds>, name: &str) -> Result<&'a ModelNeeds> {
    let full = |model: &ModelNeeds| full_name(&model.name, &model.digest);
    let shared = |model: &ModelNeeds| models.iter().filter(|other| other.name == model.name).count() > 1;
    let names = || {
        let name = |model: &&ModelNeeds| if shared(model) { full(model) } else { model.name.clone() };
        models.iter().map(name).collect::<Vec<_>>().join(", ")
    };
    let several = |what: String| Err(Error::new(ErrorKind::InvalidInput, format!("{what}; name one of {}", names())));
    match (name, models.as_slice()) {
        (_, []) => {
            let message = "no node of the pool serves a model; start one with `pangea node --model NAME`";
            Err(Error::new(ErrorKind::NotFound, message))
        }
        ("", [only]) => Ok(only),
        ("", _) => several("the pool serves several models".to_owned()),
        (name, _) => match models
            .iter()
            .find(|model| model.name == name || is_full_name(name, &model.name, &model.digest))
            .copied()
        {
            Some(model) if model.name == name && shared(model) => several(format!("several models are called {name}")),
            Some(model) => Ok(model),
            None => Err(Error::new(
                ErrorKind::NotFound,
                format!("no node of the pool serves {name}; there are {}", names()),
            )),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use pangea_units::Digest;

    use super::*;
    use crate::pool::served::FETCHED_PER_NODE;
    use crate::pool::{Advert, LayerSpeed, ModelAdvert, ModelSize, StageAdvert, StageState, Term, advert_of};
    use crate::test_peers::peer;

    /// A pool of one node, its master, that has placed the model `placed` and serves the model `asked`, too. The sessions of
    /// the placed stage were given `session_bytes`.
    fn pool_of_one(session_bytes: u64) -> View {
        let (local, layers) = (peer(1), 0..10);
        let size = ModelSize {
            layers: 10,
            hidden_size: 64,
            context: 64,
            layer_bytes: 10 << 20,
            active_layer_bytes: 0,
            embedding_bytes: 0,
            head_bytes: 1 << 20,
            position_bytes: 64,
        };
        let served = |number: u8, name: &str| ModelAdvert {
            digest: Digest([number; 32]),
            name: name.to_owned(),
            served: true,
            whole: true,
            split: false,
            pinned: None,
            size,
        };
        let term = Term { counter: 1, master: local };
        let placed = Digest([1; 32]);
        let own = Advert {
            works: true,
            memory_bytes: 1 << 30,
            speed: Some(LayerSpeed { weight_bytes_per_s: 1e10, macs_per_s: 1e11 }),
            term: Some(term),
            models: vec![served(1, "placed"), served(2, "asked")],
            stages: vec![StageAdvert {
                model: placed,
                layers: layers.clone(),
                epoch: 1,
                state: StageState::Ready,
                session_bytes,
                broken: None,
                pace: None,
            }],
            placements: vec![Placement {
                model: placed,
                name: "placed".to_owned(),
                epoch: 1,
                term,
                stages: vec![PlacedStage { peer: local, layers }],
            }],
            ..advert_of(local)
        };
        let own = Arc::new(own);
        View { local, own, term: Some(term), nodes: Default::default(), connected: Default::default() }
    }

    #[test]
    fn a_preview_respects_the_memory_of_other_models_sessions() {
        assert!(preview(&pool_of_one(64 << 20), "asked").unwrap().best.is_some());
        // The sessions of the placed model have all the rest of the node's memory, which the master considers as well.
        assert!(preview(&pool_of_one(900 << 20), "asked").unwrap().best.is_none());
    }

    #[test]
    fn a_preview_says_why_a_node_that_would_have_to_fetch_a_model_has_none_of_it() {
        let mut view = pool_of_one(64 << 20);
        let mut own = (*view.own).clone();
        for number in 3..=FETCHED_PER_NODE as u8 + 1 {
            let model = ModelAdvert { digest: Digest([number; 32]), name: number.to_string(), ..own.models[0].clone() };
            own.models.push(model);
        }
        let (names, beyond): (Vec<_>, _) = (own.models.iter().map(|model| model.name.clone()).collect(), 1);
        let idle = Advert { works: true, memory_bytes: 1 << 30, speed: own.speed, ..advert_of(peer(2)) };
        view.own = Arc::new(own);
        view.nodes.insert(peer(2), Arc::new(idle));
        let why = |name: &String| preview(&view, name).unwrap().left_out;
        let unfetched =
            |(of, _, why): &(PeerId, String, String)| *of == peer(2) && why.contains("has no file of this one");
        let told = names.iter().filter(|name| why(name).iter().any(unfetched)).count();
        assert_eq!(told, beyond, "{FETCHED_PER_NODE} models of a node are fetched");
    }

    #[test]
    fn models_with_one_name_are_requested_by_their_full_names() {
        let mut view = pool_of_one(64 << 20);
        let mut own = (*view.own).clone();
        own.models[1].name = "placed".to_owned();
        view.own = Arc::new(own);
        let error = preview(&view, "placed").unwrap_err();
        assert_eq!(error.message(), "several models are called placed; name one of placed@01010101, placed@02020202");
        assert_eq!(preview(&view, "placed@02020202").unwrap().needs.digest, Digest([2; 32]));
        assert_eq!(preview(&view, "placed@03030303").unwrap_err().kind(), ErrorKind::NotFound);
    }
}
