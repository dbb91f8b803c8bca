//! Why a model cannot be placed, in sentences for people: what is missing or conflicting, and what to do. Text only.

use std::ops::Range;

use thiserror::Error;

use super::cost::Costs;
use super::offer::ModelNeeds;
use pangea_units::{ByteSize, LayerRange};

/// Names that a sentence lists; the rest are counted.
const NAMES: usize = 6;

/// The reason why there is no placement.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{why}")]
pub struct NoPlan {
    /// A sentence: what is wrong, and what to do.
    pub why: String,
}

/// Why a model whose file was on `owners`, names of nodes that are gone, is not computed.
pub fn without_weights<'a>(name: &str, owners: impl IntoIterator<Item = &'a str>) -> String {
    let mut owners: Vec<&str> = owners.into_iter().take(NAMES).collect();
    if owners.is_empty() {
        owners.push("a node that is gone");
    }
    format!(
        "no node that is here has the model's weights: {name} was on {}; start that node again, or another one with --model {name}",
        owners.join(", ")
    )
}

pub(super) fn layers(needs: &ModelNeeds, most: u32) -> NoPlan {
    let why = format!("{} says that it has {} layers; models have 1 to {most}", needs.name, needs.size.layers);
    NoPlan { why }
}

/// `first` and `second` are pinned to the same layers.
pub(super) fn pins_overlap(costs: &Costs<'_>, first: usize, second: usize) -> NoPlan {
    let name = |node: usize| &costs.nodes[node].name;
    let why = format!(
        "{} and {} are both to have some of the same layers of {}; give them separate ranges with --layers",
        name(first),
        name(second),
        costs.needs.name
    );
    NoPlan { why }
}

/// The layers pinned to `node` do not exist.
pub(super) fn pin_outside(costs: &Costs<'_>, node: usize, range: &Range<u32>) -> NoPlan {
    let why = format!(
        "{} is to have layers {}, and {} has layers {}; start it with other --layers",
        costs.nodes[node].name,
        LayerRange::from(range),
        costs.needs.name,
        LayerRange::from([0, costs.needs.size.layers])
    );
    NoPlan { why }
}

/// The layers pinned to `node` do not fit.
pub(super) fn pin_too_large(costs: &Costs<'_>, node: usize, range: &Range<u32>) -> NoPlan {
    let offer = costs.nodes[node];
    let why = format!(
        "{} is to have layers {} of {}, which take {}, and it has {} left for it; start it with fewer --layers or a larger --max-memory",
        offer.name,
        LayerRange::from(range),
        costs.needs.name,
        ByteSize(costs.needs.stage_bytes(range)),
        ByteSize(offer.memory_bytes)
    );
    NoPlan { why }
}

/// No chain can hold the model.
pub(super) fn memory(costs: &Costs<'_>, pins: &[Option<Range<u32>>]) -> NoPlan {
    let needs = costs.needs;
    let whole = 0..needs.size.layers;
    let takes = format!(
        "{} takes {} ({} of weights, {} for sessions)",
        needs.name,
        ByteSize(needs.stage_bytes(&whole)),
        ByteSize(needs.weight_bytes(&whole)),
        ByteSize(needs.session_bytes(&whole))
    );
    if costs.nodes.is_empty() {
        return NoPlan {
            why: format!(
                "{takes}, and no node offers to compute it; start one, or wait until it has measured its speed"
            ),
        };
    }
    let offers: Vec<String> = costs
        .nodes
        .iter()
        .take(NAMES)
        .map(|node| format!("{} {}", node.name, ByteSize(node.memory_bytes)))
        .chain((costs.len() > NAMES).then(|| format!("{} others", costs.len() - NAMES)))
        .collect();
    let offers = offers.join(", ");
    let layer_bytes = needs.size.layer_bytes.saturating_add(needs.session_layer_bytes());
    let most: u64 = (0..costs.len()).map(|node| u64::from(costs.capacity(node, false, false))).sum();
    let missing = u64::from(needs.size.layers).saturating_sub(most).saturating_mul(layer_bytes);
    // The two ends are on two nodes, at best on those with room to spare.
    let ends = needs.ends_bytes(true, true);
    let given = costs.nodes.iter().fold(0_u64, |sum, node| sum.saturating_add(node.memory_bytes));
    let missing = missing.max(needs.stage_bytes(&whole).saturating_sub(given));
    let why = match () {
        () if missing > 0 => format!(
            "{takes}, and the nodes have less left for it ({offers}): {} are missing; add a node or give more with --max-memory",
            ByteSize(missing)
        ),
        () if pins.iter().any(Option::is_some) => format!(
            "{takes}, and what is not fixed with --layers does not fit between it on the other nodes ({offers}), or they are not connected; change --layers, add a node or give more with --max-memory"
        ),
        () => format!(
            "{takes}, and no chain of nodes that are connected and compute the same bits holds it ({offers}): embedding and head alone take {}; connect the nodes with each other, add one or give more with --max-memory",
            ByteSize(ends)
        ),
    };
    NoPlan { why }
}
