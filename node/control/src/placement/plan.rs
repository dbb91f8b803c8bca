//! Plans which nodes compute which layers of a model: the fastest chain that fits, predicted from the nodes' offers. Pure:
//! the same nodes and links, in any order, give the same plan. The placer decides when a plan replaces a running placement.
//!
//! * The criterion is **the decoding speed of a single stream**, which people notice. Splitting cannot improve it if
//!   the fastest node
//!   holds the model alone, so that node gets it all. Otherwise it gets as much as it holds, and others the rest.
//! * Plans within [`SAME`] of the fastest count as equal: of these, the one with the fewest stages wins, then one whose
//!   first stage
//!   serves the model, then the one with the fewest weights to send, then the one whose slowest stage is the fastest.
//! * **`--split`** optimises for many streams instead: all nodes that make the slowest stage faster share the layers by
//!   their speed. Without another node, one computes alone.
//! * **Pinned layers** are obeyed, or the plan is refused with the node's name.

use pangea_units::limits::MAX_LAYERS;
use std::collections::BTreeMap;
use std::ops::Range;

use libp2p_identity::PeerId;

use super::PlacedStage;
use super::chains::chains;
use super::cost::{Costs, Prediction};
use super::left_out;
use super::no_plan::{self, NoPlan};
use super::offer::{LinkSpeed, ModelNeeds, NodeOffer};
use super::shares::Chain;

/// Predictions that differ by less than this factor count as equal: a short measurement is no more precise.
const SAME: f64 = 1.1;

/// Paces that differ by less than this factor count as equal: shares are whole layers, and links are measured with noise.
const SAME_PACE: f64 = 1.03;

/// Maximum number of nodes considered: pinned and serving ones first, then the fastest.
const MAX_NODES: usize = 64;

/// Number of alternatives reported beside the chosen plan.
const ALTERNATIVES: usize = 8;

/// The best plan and its reason.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The stages.
    pub stages: Vec<PlacedStage>,
    /// Predicted speed.
    pub prediction: Prediction,
    /// Reason, as a clause for people.
    pub reason: String,
    /// Whether its nodes count as equally fast.
    pub equal: bool,
    /// The best plans of other kinds, fastest first.
    pub alternatives: Vec<Alternative>,
    /// The nodes that get no layers, each with the reason as a clause.
    pub left_out: Vec<(PeerId, String)>,
}

/// A plan that was not chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Alternative {
    /// The stages.
    pub stages: Vec<PlacedStage>,
    /// Predicted speed.
    pub prediction: Prediction,
}

/// A chain with its layers shared out.
#[derive(Clone, Debug)]
struct Candidate {
    chain: Vec<usize>,
    counts: Vec<u32>,
    prediction: Prediction,
}

/// The best placement of a model on `nodes`; `links` returns the link between two nodes.
///
/// # Errors
/// [`NoPlan`] if the model fits nowhere or the flags cannot be obeyed, with a sentence that says why.
pub fn plan(
    needs: &ModelNeeds,
    nodes: &[NodeOffer],
    links: impl Fn(&PeerId, &PeerId) -> Option<LinkSpeed>,
) -> Result<Plan, NoPlan> {
    if !(1..=MAX_LAYERS).contains(&needs.size.layers) {
        return Err(no_plan::layers(needs, MAX_LAYERS));
    }
    let nodes = looked_at(needs, nodes);
    let costs = Costs::new(needs, &nodes, &links);
    let pins = pins(&costs)?;
    let chains: Vec<Vec<usize>> = chains(&costs, &pins);
    let fitting: Vec<(&Vec<usize>, Chain<'_>)> =
        chains.iter().filter_map(|nodes| Some((nodes, Chain::new(&costs, nodes, &pins)?))).collect();
    let several = fitting.iter().any(|(nodes, _)| nodes.len() > 1);
    let spread = needs.split && several;
    let share = |chain: &Chain<'_>| if spread { chain.even() } else { chain.fastest() };
    let candidates: Vec<Candidate> =
        fitting.iter().filter_map(|(nodes, chain)| Candidate::new(&costs, nodes, share(chain))).collect();
    // A model stays where its owner put it, if that node can hold it: how fast others look is no reason to move it.
    let at_owner = |candidate: &Candidate| matches!(candidate.chain[..], [node] if needs.served_by.contains(&costs.nodes[node].peer));
    let stays = !spread && pins.iter().all(Option::is_none) && candidates.iter().any(at_owner);
    let fits = |candidate: &&Candidate| (!spread || candidate.chain.len() > 1) && (!stays || at_owner(candidate));
    let kept = candidates.iter().filter(fits);
    let best = if spread { steadiest(&costs, kept.collect()) } else { fastest(&costs, &pins, kept.collect()) };
    let Some(best) = best else { return Err(no_plan::memory(&costs, &pins)) };
    Ok(Plan {
        reason: reason(&costs, &pins, &best, &candidates),
        equal: costs.are_equal(&best.chain),
        alternatives: alternatives(&costs, &best, &candidates),
        left_out: left_out(&costs, &best),
        stages: best.stages(&costs),
        prediction: best.prediction,
    })
}

/// Prediction of existing `stages`; `None` if a node is gone or not connected.
pub fn predict(
    needs: &ModelNeeds,
    nodes: &[NodeOffer],
    links: impl Fn(&PeerId, &PeerId) -> Option<LinkSpeed>,
    stages: &[PlacedStage],
) -> Option<Prediction> {
    let of = |stage: &PlacedStage| nodes.iter().find(|node| node.peer == stage.peer).cloned();
    let used: Vec<NodeOffer> = stages.iter().map(of).collect::<Option<_>>()?;
    // With the nodes that a plan would consider: which of them count as equal depends on all.
    let mut nodes = looked_at(needs, nodes);
    nodes.extend(used);
    let costs = Costs::new(needs, &nodes, &links);
    let at: BTreeMap<PeerId, usize> = costs.nodes.iter().enumerate().map(|(at, node)| (node.peer, at)).collect();
    let chain: Vec<usize> = stages.iter().map(|stage| at.get(&stage.peer).copied()).collect::<Option<_>>()?;
    let counts: Vec<u32> = stages.iter().map(|stage| stage.layers.end.saturating_sub(stage.layers.start)).collect();
    costs.predict(&chain, &counts)
}

fn looked_at(needs: &ModelNeeds, nodes: &[NodeOffer]) -> Vec<NodeOffer> {
    let mut nodes = nodes.to_vec();
    let pinned = |peer: &PeerId| needs.pins.iter().any(|(pinned, _)| pinned == peer);
    nodes.sort_by(|a, b| {
        let first = |node: &NodeOffer| (!pinned(&node.peer), !needs.served_by.contains(&node.peer));
        first(a)
            .cmp(&first(b))
            .then(b.speed.weight_bytes_per_s.total_cmp(&a.speed.weight_bytes_per_s))
            .then(a.peer.cmp(&b.peer))
    });
    nodes.truncate(MAX_NODES);
    nodes
}

/// The checked pin of each node, if any.
fn pins(costs: &Costs<'_>) -> Result<Vec<Option<Range<u32>>>, NoPlan> {
    let mut pins: Vec<Option<Range<u32>>> = vec![None; costs.len()];
    for (peer, range) in &costs.needs.pins {
        let Some(node) = costs.nodes.iter().position(|node| node.peer == *peer) else { continue };
        if range.is_empty() || range.end > costs.needs.size.layers {
            return Err(no_plan::pin_outside(costs, node, range));
        }
        let mut others = pins.iter().enumerate().filter_map(|(node, pin)| Some((node, pin.as_ref()?)));
        if let Some((other, _)) = others.find(|(_, pin)| pin.start < range.end && range.start < pin.end) {
            return Err(no_plan::pins_overlap(costs, node.min(other), node.max(other)));
        }
        let (first, last) = (range.start == 0, range.end == costs.needs.size.layers);
        if costs.capacity(node, first, last) < range.end - range.start {
            return Err(no_plan::pin_too_large(costs, node, range));
        }
        pins[node] = Some(range.clone());
    }
    Ok(pins)
}

impl Candidate {
    fn new(costs: &Costs<'_>, chain: &[usize], counts: Vec<u32>) -> Option<Candidate> {
        Some(Candidate { prediction: costs.predict(chain, &counts)?, chain: chain.to_vec(), counts })
    }

    fn stages(&self, costs: &Costs<'_>) -> Vec<PlacedStage> {
        let ranges = Costs::ranges(&self.counts).into_iter();
        self.chain
            .iter()
            .zip(ranges)
            .map(|(node, layers)| PlacedStage { peer: costs.nodes[*node].peer, layers })
            .collect()
    }

    /// 0 if requests arrive at the first stage.
    fn away(&self, costs: &Costs<'_>) -> usize {
        let first = self.chain.first().map(|node| costs.nodes[*node].peer);
        usize::from(!first.is_some_and(|peer| costs.needs.served_by.contains(&peer)))
    }

    /// Number of nodes to which weights must be sent.
    fn fetching(&self, costs: &Costs<'_>) -> usize {
        self.chain.iter().filter(|node| !costs.needs.files.contains(&costs.nodes[**node].peer)).count()
    }
}

/// The best candidate for a single stream, with layers shared out more evenly if that costs almost nothing.
fn fastest(costs: &Costs<'_>, pins: &[Option<Range<u32>>], candidates: Vec<&Candidate>) -> Option<Candidate> {
    let least_s = candidates.iter().map(|candidate| candidate.prediction.step_s).fold(f64::INFINITY, f64::min);
    let limit_s = least_s * SAME;
    let good = candidates.into_iter().filter(|candidate| candidate.prediction.step_s <= limit_s);
    let good: Vec<&Candidate> = good.collect();
    let stages = good.iter().map(|candidate| candidate.chain.len()).min()?;
    let equalized = good.into_iter().filter(|candidate| candidate.chain.len() == stages).filter_map(|candidate| {
        let chain = Chain::new(costs, &candidate.chain, pins)?;
        let counts = chain.even_within(limit_s - costs.hops_s(&candidate.chain)?);
        Candidate::new(costs, &candidate.chain, counts)
    });
    equalized.min_by(|a, b| {
        let whole = |c: &Candidate| (c.away(costs), c.fetching(costs));
        whole(a)
            .cmp(&whole(b))
            .then(a.prediction.pace_s.total_cmp(&b.prediction.pace_s))
            .then(a.prediction.step_s.total_cmp(&b.prediction.step_s))
            .then(a.chain.cmp(&b.chain))
    })
}

/// The best candidate for many streams.
fn steadiest(costs: &Costs<'_>, candidates: Vec<&Candidate>) -> Option<Candidate> {
    let least_s = candidates.iter().map(|candidate| candidate.prediction.pace_s).fold(f64::INFINITY, f64::min);
    let good = candidates.into_iter().filter(|candidate| candidate.prediction.pace_s <= least_s * SAME_PACE);
    let best = good.min_by(|a, b| {
        a.away(costs)
            .cmp(&b.away(costs))
            .then(a.prediction.pace_s.total_cmp(&b.prediction.pace_s))
            .then(a.prediction.step_s.total_cmp(&b.prediction.step_s))
            .then(a.chain.cmp(&b.chain))
    });
    best.cloned()
}

fn reason(costs: &Costs<'_>, pins: &[Option<Range<u32>>], best: &Candidate, candidates: &[Candidate]) -> String {
    let name = |node: usize| costs.nodes[node].name.clone();
    let pinned: Vec<String> = (0..costs.len()).filter(|node| pins[*node].is_some()).map(name).collect();
    let alone = candidates.iter().filter(|candidate| candidate.chain.len() == 1);
    let alone = alone.min_by(|a, b| a.prediction.step_s.total_cmp(&b.prediction.step_s));
    match (best.chain.as_slice(), alone) {
        _ if !pinned.is_empty() => format!("the layers of {} are fixed with --layers", pinned.join(" and ")),
        ([node], _) if costs.needs.split => {
            format!("--split asks for more nodes, and only {} can take part", name(*node))
        }
        ([node], _) if costs.len() == 1 => format!("{} is the only node", name(*node)),
        ([node], _) => format!("{} holds all of it, and no split would be faster for a single stream", name(*node)),
        _ if costs.needs.split => "--split asks for it".to_owned(),
        (_, Some(alone)) => {
            let times = alone.prediction.step_s / best.prediction.step_s;
            format!("{times:.1} times as fast as {} alone, the fastest node that holds all of it", name(alone.chain[0]))
        }
        (_, None) => "no node holds all of it".to_owned(),
    }
}

fn left_out(costs: &Costs<'_>, best: &Candidate) -> Vec<(PeerId, String)> {
    let others = (0..costs.len()).filter(|node| !best.chain.contains(node));
    others.map(|node| (costs.nodes[node].peer, left_out::reason(costs, &best.chain, node))).collect()
}

/// The fastest single nodes, and the fastest chain of each number of stages, without the chosen one.
fn alternatives(costs: &Costs<'_>, best: &Candidate, candidates: &[Candidate]) -> Vec<Alternative> {
    let mut kinds: BTreeMap<(usize, usize), &Candidate> = BTreeMap::new();
    for candidate in candidates.iter().filter(|candidate| candidate.chain != best.chain) {
        let stages = candidate.chain.len();
        let kind = (stages, if stages == 1 { candidate.chain[0] } else { 0 });
        let faster = |known: &&Candidate| candidate.prediction.step_s < known.prediction.step_s;
        if kinds.get(&kind).is_none_or(faster) {
            kinds.insert(kind, candidate);
        }
    }
    let mut others: Vec<&Candidate> = kinds.into_values().collect();
    others.sort_by(|a, b| a.prediction.step_s.total_cmp(&b.prediction.step_s));
    let told = others.into_iter().take(ALTERNATIVES);
    told.map(|other| Alternative { stages: other.stages(costs), prediction: other.prediction }).collect()
}
