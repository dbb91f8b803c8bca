//! Predicts the time of a chain of nodes for a token and for a prompt, from measured speeds and links. Chains are evaluated
//! here, not chosen.
//!
//! * **Decoding** one stream reads every weight once per token: the stages' times add up, and every hop adds its latency,
//!   including the way back to the first stage.
//! * **Many streams** form as many groups as there are stages, so that all stages compute at once: the slowest stage
//!   sets the pace,
//!   or the round trip of a group if links are slow.
//! * **A prompt** is sent in chunks: the first passes all stages and links, the rest follow at the pace of the slowest.

use std::ops::Range;

use libp2p_identity::PeerId;

use super::offer::{LinkSpeed, ModelNeeds, NodeOffer};

/// Positions of the prompt that is predicted.
const PROMPT_POSITIONS: u32 = 1024;

/// Positions of one chunk of it.
const CHUNK_POSITIONS: u32 = 128;

/// Bits per weight: those of the common 4-bit types with their scales. Affects only the absolute speed of prompts.
pub(super) const WEIGHT_BITS: f64 = 5.0;

/// Bytes of an element of activations.
const ELEMENT_BYTES: f64 = 4.0;

/// Seconds per hop besides its link: framing, encryption, waking the next stage.
const HOP_S: f64 = 40e-6;

/// Round-trip time of an unmeasured link: that of a wireless network.
const UNKNOWN_RTT_S: f64 = 2e-3;

/// Speed of an unmeasured link: half of what gigabit Ethernet carries.
const UNKNOWN_BYTES_PER_S: f64 = 6e7;

/// Nodes whose measured speeds differ by less than this factor count as equal: measurements on a busy machine
/// vary by as much, and uneven stages of equal nodes cost more than even ones of slightly uneven nodes.
const EQUAL: f64 = 1.25;

/// The same factor where one of the speeds is a guess. A node that starts beside others is easily measured at half its speed; if
/// the nodes do differ by more than [`EQUAL`], their first answers show it.
const EQUAL_GUESSED: f64 = 2.0;

/// Share of the head's time that counts when layers are shared out evenly. A token needs the whole head, a prompt one row
/// of it: with all of it the stages would be even for tokens and uneven for prompts, whose delay people notice more. The head of
/// a small model takes as long as a dozen of its layers; with this share, equal nodes still get the same number of layers.
const HEAD_PART: f64 = 0.05;

/// Nodes in the order of their peer ids, with all costs for one model.
pub(super) struct Costs<'a> {
    pub(super) needs: &'a ModelNeeds,
    pub(super) nodes: Vec<&'a NodeOffer>,
    /// Seconds per token and layer, of each node.
    layer_s: Vec<f64>,
    /// The same with about equal nodes made equal, for sharing layers out.
    even_layer_s: Vec<f64>,
    /// Seconds per token for the head, of each node.
    head_s: Vec<f64>,
    /// Seconds per chunk and layer, of each node.
    chunk_layer_s: Vec<f64>,
    /// `[from][to]`: costs of a hop; `None` if the nodes are not connected or have different numerics.
    hops: Vec<Vec<Option<Hop>>>,
}

#[derive(Clone, Copy)]
struct Hop {
    /// Seconds for the activations of one position.
    step_s: f64,
    /// Seconds for those of a chunk.
    chunk_s: f64,
    /// Seconds for the id of a token.
    token_s: f64,
}

/// Prediction of a chain.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    /// Seconds between two tokens of one stream.
    pub step_s: f64,
    /// Seconds between two groups of streams, with as many groups as stages. About equal nodes count as equal, and the head counts
    /// as little as in the sharing of layers.
    pub pace_s: f64,
    /// Seconds until a prompt of 1024 tokens is read.
    pub prompt_s: f64,
}

impl Prediction {
    /// Tokens of a single stream per second.
    pub fn decode_tokens_per_s(&self) -> f64 {
        1.0 / self.step_s
    }

    /// Tokens of a long prompt per second.
    pub fn prompt_tokens_per_s(&self) -> f64 {
        f64::from(PROMPT_POSITIONS) / self.prompt_s
    }
}

impl<'a> Costs<'a> {
    /// Costs of `needs` on those of `nodes` whose figures make sense, in the order of their peer ids.
    pub(super) fn new(
        needs: &'a ModelNeeds,
        nodes: &'a [NodeOffer],
        links: &dyn Fn(&PeerId, &PeerId) -> Option<LinkSpeed>,
    ) -> Costs<'a> {
        let sensible = |speed: f64| speed.is_finite() && speed >= 1.0;
        let mut nodes: Vec<&NodeOffer> = nodes
            .iter()
            .filter(|node| sensible(node.speed.weight_bytes_per_s) && sensible(node.speed.macs_per_s))
            .collect();
        nodes.sort_by_key(|node| node.peer);
        nodes.dedup_by_key(|node| node.peer);
        let size = &needs.size;
        let layer_bytes = size.read_bytes();
        let macs = |bytes: u64| bytes as f64 * 8.0 / WEIGHT_BITS;
        let of = |seconds: &dyn Fn(&NodeOffer) -> f64| nodes.iter().map(|node| seconds(node)).collect();
        let even =
            equalized(&nodes.iter().map(|node| (node.speed.weight_bytes_per_s, node.measured)).collect::<Vec<_>>());
        let hop = |from: &NodeOffer, to: &NodeOffer| {
            let link = links(&from.peer, &to.peer).filter(|_| from.numerics == to.numerics)?;
            let rtt = if link.rtt.is_zero() { UNKNOWN_RTT_S } else { link.rtt.as_secs_f64() };
            let known = link.bytes_per_s.is_finite() && link.bytes_per_s >= 1.0;
            let bytes_per_s = if known { link.bytes_per_s } else { UNKNOWN_BYTES_PER_S };
            let position_s = f64::from(size.hidden_size) * ELEMENT_BYTES / bytes_per_s;
            let token_s = rtt / 2.0 + HOP_S;
            let chunk_s = position_s * f64::from(CHUNK_POSITIONS);
            Some(Hop { step_s: token_s + position_s, chunk_s, token_s })
        };
        Costs {
            layer_s: of(&|node| layer_bytes as f64 / node.speed.weight_bytes_per_s),
            even_layer_s: even.iter().map(|speed| layer_bytes as f64 / speed).collect(),
            head_s: of(&|node| size.head_bytes as f64 / node.speed.weight_bytes_per_s),
            chunk_layer_s: of(&|node| macs(layer_bytes) * f64::from(CHUNK_POSITIONS) / node.speed.macs_per_s),
            hops: nodes.iter().map(|from| nodes.iter().map(|to| hop(from, to)).collect()).collect(),
            needs,
            nodes,
        }
    }

    /// Number of nodes.
    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Seconds per token and layer of `node`.
    pub(super) fn layer_s(&self, node: usize) -> f64 {
        self.layer_s[node]
    }

    /// Seconds by which `node` delays every frame.
    pub(super) fn delay_s(&self, node: usize) -> f64 {
        let delay_s = self.nodes[node].delay_s;
        if delay_s.is_finite() { delay_s.max(0.0) } else { 0.0 }
    }

    /// Seconds by which the nodes of a chain delay every frame.
    pub(super) fn delays_s(&self, chain: &[usize]) -> f64 {
        chain.iter().map(|node| self.delay_s(*node)).sum()
    }

    /// Seconds per token of `node` for all layers.
    pub(super) fn alone_s(&self, node: usize) -> f64 {
        self.layer_s[node] * f64::from(self.needs.size.layers) + self.delay_s(node)
    }

    /// Seconds per token of `node` with this many layers, as they count where layers are shared out evenly: about equal nodes are
    /// equal.
    pub(super) fn share_s(&self, node: usize, count: u32, last: bool) -> f64 {
        f64::from(count) * self.even_layer_s[node] + HEAD_PART * self.head_s(node, last)
    }

    /// Whether all these nodes count as equally fast.
    pub(super) fn are_equal(&self, nodes: &[usize]) -> bool {
        nodes.windows(2).all(|pair| self.even_layer_s[pair[0]] == self.even_layer_s[pair[1]])
    }

    /// Seconds per token for the head on `node`; 0 unless it is the last stage.
    pub(super) fn head_s(&self, node: usize, last: bool) -> f64 {
        if last { self.head_s[node] } else { 0.0 }
    }

    /// Seconds for the activations of one position between two nodes; `None` if they are not connected.
    pub(super) fn step_hop_s(&self, from: usize, to: usize) -> Option<f64> {
        self.hops[from][to].map(|hop| hop.step_s)
    }

    /// Seconds for a token back to the first stage; `None` if the two are not connected.
    pub(super) fn return_s(&self, last: usize, first: usize) -> Option<f64> {
        if last == first { Some(0.0) } else { self.hops[last][first].map(|hop| hop.token_s) }
    }

    /// Seconds of all hops of a chain, including the way back; `None` if two neighbours are not connected.
    pub(super) fn hops_s(&self, chain: &[usize]) -> Option<f64> {
        let back = self.return_s(*chain.last()?, *chain.first()?)?;
        chain.windows(2).try_fold(back, |sum, pair| Some(sum + self.step_hop_s(pair[0], pair[1])?))
    }

    /// Maximum layers in `node`'s memory, at this end of the chain.
    pub(super) fn capacity(&self, node: usize, first: bool, last: bool) -> u32 {
        let layers = self.needs.size.layers;
        let ends = self.needs.ends_bytes(first, last);
        let Some(left) = self.nodes[node].memory_bytes.checked_sub(ends) else { return 0 };
        let each = self.needs.size.layer_bytes.saturating_add(self.needs.session_layer_bytes());
        left.checked_div(each).map_or(layers, |fit| u32::try_from(fit).unwrap_or(u32::MAX).min(layers))
    }

    /// Prediction of `chain` with these numbers of layers; `None` if its nodes are not connected.
    pub(super) fn predict(&self, chain: &[usize], counts: &[u32]) -> Option<Prediction> {
        let hops_s = self.hops_s(chain)?;
        let (mut sum_s, mut shares_s, mut slowest_s) = (0.0, 0.0, 0.0_f64);
        let (mut chunk_sum_s, mut chunk_slowest_s) = (0.0, 0.0_f64);
        for (at, (&node, &count)) in chain.iter().zip(counts).enumerate() {
            let last = at + 1 == chain.len();
            let stage_s = f64::from(count) * self.layer_s[node] + self.head_s(node, last);
            let chunk_s = f64::from(count) * self.chunk_layer_s[node];
            let hop = if last { None } else { self.hops[node][chain[at + 1]] };
            let link_s = hop.map_or(0.0, |hop| hop.chunk_s);
            sum_s += stage_s;
            let share_s = self.share_s(node, count, last);
            shares_s += share_s;
            slowest_s = slowest_s.max(share_s);
            chunk_sum_s += chunk_s + link_s + hop.map_or(0.0, |hop| hop.token_s);
            chunk_slowest_s = chunk_slowest_s.max(chunk_s).max(link_s);
        }
        // Which node causes a delay is not certain, so every one of them counts, also where stages compute at once.
        let delay_s = self.delays_s(chain);
        let chunks = f64::from(PROMPT_POSITIONS / CHUNK_POSITIONS);
        Some(Prediction {
            step_s: sum_s + hops_s + delay_s,
            pace_s: slowest_s.max((shares_s + hops_s) / chain.len() as f64) + delay_s,
            prompt_s: chunk_sum_s + (chunks - 1.0) * chunk_slowest_s + chunks * delay_s,
        })
    }

    /// The ranges of layers with these counts.
    pub(super) fn ranges(counts: &[u32]) -> Vec<Range<u32>> {
        let mut start = 0;
        counts
            .iter()
            .map(|count| {
                let range = start..start + count;
                start = range.end;
                range
            })
            .collect()
    }
}

/// Makes about equal speeds equal: starting at the fastest, each group of hardly slower nodes gets
/// the mean of its speeds. With each speed, whether it was measured.
fn equalized(speeds: &[(f64, bool)]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..speeds.len()).collect();
    order.sort_by(|a, b| speeds[*b].0.total_cmp(&speeds[*a].0));
    let mut even: Vec<f64> = speeds.iter().map(|(speed, _)| *speed).collect();
    while let Some(fastest) = order.first().copied() {
        let (most, measured) = speeds[fastest];
        let is_equal = |node: &usize| {
            let (speed, also) = speeds[*node];
            speed * if measured && also { EQUAL } else { EQUAL_GUESSED } > most
        };
        let (group, rest): (Vec<usize>, Vec<usize>) =
            order.iter().partition(|node| **node == fastest || is_equal(node));
        let mean = group.iter().map(|node| speeds[*node].0).sum::<f64>() / group.len() as f64;
        group.iter().for_each(|node| even[*node] = mean);
        order = rest;
    }
    even
}

#[cfg(test)]
mod tests {
    use super::equalized;

    fn measured(speeds: &[f64]) -> Vec<f64> {
        equalized(&speeds.iter().map(|speed| (*speed, true)).collect::<Vec<_>>())
    }

    #[test]
    fn speeds_within_noise_count_as_equal() {
        assert_eq!(measured(&[10.0, 9.0, 8.5, 4.0]), [27.5 / 3.0, 27.5 / 3.0, 27.5 / 3.0, 4.0]);
        assert_eq!(measured(&[5.0, 10.0]), [5.0, 10.0]);
        assert_eq!(measured(&[7.9, 10.0]), [7.9, 10.0]);
        assert_eq!(measured(&[3.0]), [3.0]);
        assert!(measured(&[]).is_empty());
    }

    #[test]
    fn a_guess_counts_as_equal_to_more() {
        assert_eq!(equalized(&[(10.0, false), (6.0, false)]), [8.0, 8.0]);
        assert_eq!(equalized(&[(10.0, true), (6.0, false)]), [8.0, 8.0]);
        assert_eq!(equalized(&[(10.0, false), (5.0, false)]), [10.0, 5.0]);
        assert_eq!(equalized(&[(10.0, true), (7.0, true), (6.0, false)]), [8.0, 7.0, 8.0]);
    }
}
