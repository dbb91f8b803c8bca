//! The pool in one document, for the console: every node with what it holds and does, the links, the placements, and the peers
//! that are not in the pool. Built from a view and the directory of peers. A pure function.

use std::collections::BTreeMap;
use std::ops::Range;

use libp2p::PeerId;
use pangea_client::{PeerStatus, TopologyLink};
use pangea_compute::Digest;
use pangea_control::net::TrafficRate;
use pangea_control::peers::is_newcomer;
use pangea_control::placement::pool_facts;
use serde::Serialize;

use super::{Advert, StageAdvert, StageState, View, topology};

/// The pool as a node sees it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Overview {
    /// Peer id of the answering node.
    pub local: String,
    /// Peer id of the master; empty while there is none.
    pub master: String,
    /// The answering node first, then all others.
    pub nodes: Vec<OverviewNode>,
    /// Two for every connection, one in each direction.
    pub links: Vec<TopologyLink>,
    /// The placements in force.
    pub placements: Vec<PlacedModel>,
    /// Models that cannot be placed.
    pub refusals: Vec<RefusedModel>,
    /// Known peers without an advert: gone, refused, unreachable, connecting.
    pub absent: Vec<PeerStatus>,
}

/// A node of the pool.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OverviewNode {
    /// Peer id.
    pub peer: String,
    /// Name that the node gives itself.
    pub name: String,
    /// Whether it is the answering node.
    pub local: bool,
    /// Whether the answering node is connected to it.
    pub connected: bool,
    /// Whether it is the master.
    pub master: bool,
    /// Whether it computes for others; a lite client does not.
    pub works: bool,
    /// Version of its binary; empty while unknown.
    pub version: String,
    /// Version of its numerics.
    pub numerics: u32,
    /// What it computes with.
    pub device: String,
    /// Compute threads.
    pub threads: u16,
    /// Measured f32 speed in GFLOP/s.
    pub gflops: f64,
    /// Seconds since its start, when it published its advert.
    pub uptime_s: f64,
    /// Memory that it offers, in bytes.
    pub memory_bytes: u64,
    /// Bytes of that which its stages take: weights, and memory for sessions.
    pub held_bytes: u64,
    /// Measured speed of decoding: bytes of packed weights per second; 0 until measured.
    pub decode_bytes_per_s: f64,
    /// Measured speed of reading prompts: multiply-accumulates per second; 0 until measured.
    pub prompt_macs_per_s: f64,
    /// Trust from 0 to 1; 1 for the answering node.
    pub trust: f64,
    /// Its results that passed their check, which is what earns trust.
    pub tasks_checked: u64,
    /// Whether `trust` is low because little was checked so far, and for no other reason.
    pub newcomer: bool,
    /// Whether it gets no more work because a check failed.
    pub quarantined: bool,
    /// Why it is quarantined, or not connected; otherwise empty.
    pub why: String,
    /// Bytes sent to it over its current connection.
    pub sent_bytes: u64,
    /// Bytes received from it over its current connection.
    pub received_bytes: u64,
    /// Models that it serves or has pieces of.
    pub models: Vec<HeldModel>,
    /// Models that it answers with all layers of its own.
    pub serving: Vec<ServingModel>,
    /// Its stages.
    pub stages: Vec<HeldStage>,
}

/// A model that a node serves or has pieces of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HeldModel {
    /// Name in requests.
    pub name: String,
    /// Digest of the model.
    pub digest: String,
    /// Whether the node serves it.
    pub served: bool,
    /// Whether the node has the whole file.
    pub whole: bool,
    /// Number of layers.
    pub layers: u32,
    /// Bytes of all weights in memory.
    pub weight_bytes: u64,
}

/// A model that a node answers alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServingModel {
    /// Digest of the model.
    pub model: String,
    /// Name in requests.
    pub name: String,
    /// Answers that the node generates at once.
    pub places: u8,
    /// Answers that it generates now.
    pub running: u16,
    /// Answers that wait.
    pub waiting: u16,
    /// Tokens per second of a single answer; 0 until measured.
    pub tokens_per_s: u16,
}

/// A stage of a node.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HeldStage {
    /// Digest of the model.
    pub model: String,
    /// Name in requests.
    pub name: String,
    /// Layers `[first, end)`, counted from 0.
    pub layers: [u32; 2],
    /// Epoch of the placement.
    pub epoch: u64,
    /// `fetching`, `loading`, `ready` or `failed`.
    pub state: &'static str,
    /// Bytes of weights that are fetched.
    pub done_bytes: u64,
    /// Bytes of weights to fetch; 0 where nothing is fetched.
    pub total_bytes: u64,
    /// Why it failed; otherwise empty.
    pub why: String,
    /// Tokens per second of a single answer, as its chain measured it; 0 until then.
    pub tokens_per_s: f64,
}

/// A placement in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PlacedModel {
    /// Digest of the model.
    pub model: String,
    /// Name in requests.
    pub name: String,
    /// Version of the placement.
    pub epoch: u64,
    /// Whether every stage is ready.
    pub ready: bool,
    /// The stages, in the order in which activations travel.
    pub stages: Vec<PlacedLayers>,
}

/// A node's layers in a placement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PlacedLayers {
    /// Peer id of the node.
    pub peer: String,
    /// Layers `[first, end)`, counted from 0.
    pub layers: [u32; 2],
}

/// A model that the pool cannot hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RefusedModel {
    /// Name in requests.
    pub name: String,
    /// What is missing, and what to do.
    pub why: String,
}

/// The overview of `view`. `peers`: the statuses of all known peers; `traffic`: bytes sent to and received from one; `rate`: bytes per
/// second that this node exchanges with one now.
pub fn of(
    view: &View,
    peers: Vec<PeerStatus>,
    traffic: impl Fn(&PeerId) -> (u64, u64),
    rate: impl Fn(&PeerId) -> TrafficRate,
) -> Overview {
    let names: BTreeMap<Digest, &str> = view
        .everyone()
        .flat_map(|advert| advert.models.iter().map(|model| (model.digest, model.name.as_str())))
        .collect();
    let name = |digest: &Digest| names.get(digest).copied().unwrap_or_default().to_owned();
    let (known, absent): (Vec<PeerStatus>, Vec<PeerStatus>) =
        peers.into_iter().partition(|status| status.peer.parse().is_ok_and(|peer| view.advert(&peer).is_some()));
    let statuses: BTreeMap<&str, &PeerStatus> = known.iter().map(|status| (status.peer.as_str(), status)).collect();
    let node = |advert| node(view, advert, &statuses, traffic(&advert.peer), &name);
    let placed = pool_facts::placements(view).unwrap_or_default();
    let placements = placed.iter().map(|placement| PlacedModel {
        model: placement.model.to_string(),
        name: placement.name.clone(),
        epoch: placement.epoch,
        ready: pool_facts::is_ready(view, placement),
        stages: placement
            .stages
            .iter()
            .map(|stage| PlacedLayers { peer: stage.peer.to_string(), layers: bounds(&stage.layers) })
            .collect(),
    });
    let refused = names.iter().filter_map(|(digest, name)| {
        let why = pool_facts::refusal(view, digest).filter(|_| !view.is_dropped(digest))?;
        Some(RefusedModel { name: (*name).to_owned(), why })
    });
    Overview {
        local: view.local.to_string(),
        master: view.master().map_or_else(String::new, |peer| peer.to_string()),
        nodes: view.everyone().map(|advert| node(advert)).collect(),
        links: topology::of(view, rate).links,
        placements: placements.collect(),
        refusals: refused.collect(),
        absent,
    }
}

fn bounds(layers: &Range<u32>) -> [u32; 2] {
    [layers.start, layers.end]
}

fn node(
    view: &View,
    advert: &Advert,
    statuses: &BTreeMap<&str, &PeerStatus>,
    (sent_bytes, received_bytes): (u64, u64),
    name: &impl Fn(&Digest) -> String,
) -> OverviewNode {
    let peer = advert.peer.to_string();
    let (local, status) = (advert.peer == view.local, statuses.get(peer.as_str()));
    let served = |digest: &Digest| !view.is_dropped(digest);
    let stages = advert.stages.iter();
    OverviewNode {
        name: advert.name.clone(),
        local,
        connected: local || view.connected.contains(&advert.peer),
        master: view.master() == Some(advert.peer),
        works: advert.works,
        version: advert.software.clone(),
        numerics: advert.numerics,
        device: advert.device.clone(),
        threads: advert.threads,
        gflops: advert.f32_flops_per_s / 1e9,
        uptime_s: advert.uptime.as_secs_f64(),
        memory_bytes: advert.memory_bytes,
        held_bytes: stages.clone().map(|stage| stage_bytes(view, stage)).fold(0, u64::saturating_add),
        decode_bytes_per_s: advert.speed.map_or(0.0, |speed| speed.weight_bytes_per_s),
        prompt_macs_per_s: advert.speed.map_or(0.0, |speed| speed.macs_per_s),
        trust: status.map_or(1.0, |status| status.trust),
        tasks_checked: status.map_or(0, |status| status.tasks_checked),
        newcomer: status.is_some_and(|status| is_newcomer(status.trust, status.tasks_checked)),
        quarantined: status.is_some_and(|status| status.quarantined),
        why: status.map_or_else(String::new, |status| status.why.clone()),
        sent_bytes,
        received_bytes,
        models: advert
            .models
            .iter()
            .map(|model| HeldModel {
                name: model.name.clone(),
                digest: model.digest.to_string(),
                served: model.served && served(&model.digest),
                whole: model.whole,
                layers: model.size.layers,
                weight_bytes: model.size.weight_bytes(&(0..model.size.layers)),
            })
            .collect(),
        serving: advert
            .serving
            .iter()
            .map(|serving| ServingModel {
                model: serving.model.to_string(),
                name: name(&serving.model),
                places: serving.places,
                running: serving.running,
                waiting: serving.waiting,
                tokens_per_s: serving.tokens_per_s,
            })
            .collect(),
        stages: stages.map(|stage| held(stage, name(&stage.model))).collect(),
        peer,
    }
}

/// Bytes of a stage: its weights, and the memory for its sessions.
fn stage_bytes(view: &View, stage: &StageAdvert) -> u64 {
    let weights = pool_facts::model(view, &stage.model).map_or(0, |needs| needs.weight_bytes(&stage.layers));
    weights.saturating_add(stage.session_bytes)
}

fn held(stage: &StageAdvert, name: String) -> HeldStage {
    let (state, done_bytes, total_bytes, why) = match &stage.state {
        StageState::Fetching { done, total } => ("fetching", *done, *total, ""),
        StageState::Loading => ("loading", 0, 0, ""),
        StageState::Ready => ("ready", 0, 0, ""),
        StageState::Failed(why) => ("failed", 0, 0, why.as_str()),
    };
    // A token takes the time of this stage and of all the others.
    let token_s = stage.pace.map_or(0.0, |pace| (pace.step + pace.away).as_secs_f64());
    HeldStage {
        model: stage.model.to_string(),
        name,
        layers: bounds(&stage.layers),
        epoch: stage.epoch,
        state,
        done_bytes,
        total_bytes,
        why: why.to_owned(),
        tokens_per_s: if token_s > 0.0 { token_s.recip() } else { 0.0 },
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::pool::{ModelAdvert, ModelSize, StagePace, Term, advert_of};

    #[test]
    fn an_overview_has_what_every_node_holds_and_who_is_missing() {
        let [local, worker, gone] = [(); 3].map(|()| PeerId::random());
        let digest = Digest::from_bytes([7; 32]);
        let size = ModelSize { layers: 4, layer_bytes: 100, position_bytes: 1, context: 1, ..ModelSize::default() };
        let model = ModelAdvert {
            digest,
            name: "tiny".to_owned(),
            served: true,
            whole: true,
            split: false,
            pinned: None,
            size,
        };
        let stage = |state| StageAdvert {
            model: digest,
            layers: 2..4,
            epoch: 3,
            state,
            session_bytes: 50,
            broken: None,
            pace: Some(StagePace {
                epoch: 3,
                step: Duration::from_millis(4),
                away: Duration::from_millis(6),
                prompt_row: Duration::ZERO,
            }),
        };
        let fetching = StageState::Fetching { done: 30, total: 200 };
        let remote = Advert {
            stages: vec![stage(fetching), stage(StageState::Failed("no room".to_owned()))],
            ..advert_of(worker)
        };
        let view = View {
            local,
            own: Arc::new(Advert { models: vec![model], ..advert_of(local) }),
            term: Some(Term { counter: 1, master: worker }),
            nodes: BTreeMap::from([(worker, Arc::new(remote))]),
            connected: BTreeSet::from([worker]),
        };
        let status = |peer: PeerId, why: &str| PeerStatus {
            peer: peer.to_string(),
            trust: 0.1,
            why: why.to_owned(),
            ..PeerStatus::default()
        };
        let peers = vec![status(worker, ""), status(gone, "it left")];
        let traffic = |peer: &PeerId| if *peer == worker { (10, 20) } else { (0, 0) };
        let overview = of(&view, peers, traffic, |_| TrafficRate::default());
        assert_eq!((overview.local, overview.master), (local.to_string(), worker.to_string()));
        let [own, other] = &overview.nodes[..] else { panic!("{:?}", overview.nodes) };
        assert!(own.local && own.connected && !own.master && own.trust == 1.0 && !own.newcomer);
        assert_eq!((own.models[0].name.as_str(), own.models[0].weight_bytes), ("tiny", 400));
        assert!(!other.local && other.connected && other.master && other.trust == 0.1 && other.newcomer);
        assert_eq!((other.sent_bytes, other.received_bytes, other.held_bytes), (10, 20, 2 * (200 + 50)));
        let first = &other.stages[0];
        assert_eq!(
            (first.name.as_str(), first.state, first.done_bytes, first.total_bytes),
            ("tiny", "fetching", 30, 200)
        );
        assert_eq!((first.layers, first.tokens_per_s), ([2, 4], 100.0));
        assert_eq!((other.stages[1].state, other.stages[1].why.as_str()), ("failed", "no room"));
        assert_eq!(overview.absent.iter().map(|peer| peer.why.as_str()).collect::<Vec<_>>(), ["it left"]);
    }
}
