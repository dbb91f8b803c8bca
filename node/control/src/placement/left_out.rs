//! Why nodes get no layers of a model that is placed, as clauses for people. Plans are made elsewhere.

use std::sync::Arc;

use libp2p_identity::PeerId;
use pangea_units::ByteSize;

use super::cost::Costs;
use super::offer::ModelNeeds;
use crate::pool::{Advert, View};

/// The nodes that would compute for others and make no offer yet, each with the reason.
pub(super) fn unmeasured(view: &View) -> impl Iterator<Item = (PeerId, String)> {
    let unmeasured = view.everyone().filter(|advert| advert.works && advert.speed.is_none());
    unmeasured.map(|advert| (advert.peer, "it has not measured its speed yet".to_owned()))
}

/// Why a node that would have to fetch a model gets none of its layers.
const NOT_FETCHED: &str = "the nodes that serve it serve more models than others fetch, and it has no file of this one";

/// The nodes that would compute for others, and would have to fetch a model that others do not fetch, each with the reason.
pub(super) fn unfetched(view: &View, needs: &ModelNeeds) -> impl Iterator<Item = (PeerId, String)> {
    let computes = |advert: &&Arc<Advert>| advert.works && advert.speed.is_some();
    let unfetched =
        view.everyone().filter(computes).filter(|advert| !needs.fetched && !needs.files.contains(&advert.peer));
    unfetched.map(|advert| (advert.peer, NOT_FETCHED.to_owned()))
}

/// Why `node` has no part in `chain`.
pub(super) fn reason(costs: &Costs<'_>, chain: &[usize], node: usize) -> String {
    let needs = costs.needs;
    let ends = [(false, false), (true, false), (false, true)];
    if ends.iter().all(|(first, last)| costs.capacity(node, *first, *last) == 0) {
        let layer_bytes = needs.size.layer_bytes.saturating_add(needs.session_layer_bytes());
        let offered = ByteSize(costs.nodes[node].memory_bytes);
        return format!("it has {offered} left for it, and one layer takes {}", ByteSize(layer_bytes));
    }
    if costs.len() < 3 && costs.capacity(node, true, false) == 0 && costs.capacity(node, false, true) == 0 {
        let layers = needs.size.layers;
        let least = [0..1, layers.saturating_sub(1)..layers].iter().map(|stage| needs.stage_bytes(stage)).min();
        let (offered, least) = (ByteSize(costs.nodes[node].memory_bytes), ByteSize(least.unwrap_or(0)));
        return format!("it has {offered} left for it, and the first or the last of two stages takes at least {least}");
    }
    if chain.iter().any(|used| costs.nodes[*used].numerics != costs.nodes[node].numerics) {
        return "its version computes other bits; update it or the other nodes".to_owned();
    }
    let linked = |used: &usize| costs.step_hop_s(*used, node).is_some() && costs.step_hop_s(node, *used).is_some();
    if !chain.iter().any(linked) {
        return "it is not connected with the nodes that have layers".to_owned();
    }
    let delay_s = costs.delay_s(node);
    if delay_s > 0.0 {
        return format!("a chain with it took {delay_s:.2} s per token longer than its nodes account for");
    }
    match needs.split {
        true => "with it, the slowest stage would be no faster".to_owned(),
        false => "with it, answers would be no faster".to_owned(),
    }
}
