//! The orders in which nodes can be chained: every relevant order of few nodes, the promising ones of many.
//! Links, speeds and pins count here; the number of layers per node is decided elsewhere.

use std::ops::Range;

use super::cost::Costs;

/// Number of nodes up to which the search is complete: for every set, first and last node, the order with the shortest hops.
const ALL_OF: usize = 8;

/// Number of unpinned nodes up to which every order is tried.
const BESIDE_PINS: usize = 6;

/// Number of serving nodes that are tried as the first stage if there are many nodes.
const STARTS: usize = 4;

/// Chains to evaluate. Each names a node at most once; neighbours are connected, and so are the last and the first node.
pub(super) fn chains(costs: &Costs<'_>, pins: &[Option<Range<u32>>]) -> Vec<Vec<usize>> {
    let mut by_speed: Vec<usize> = (0..costs.len()).collect();
    by_speed.sort_by(|a, b| costs.alone_s(*a).total_cmp(&costs.alone_s(*b)).then(a.cmp(b)));
    if pins.iter().any(Option::is_some) {
        return around_pins(costs, pins, &by_speed);
    }
    if costs.len() <= ALL_OF {
        return shortest(costs, &(0..costs.len()).collect::<Vec<_>>());
    }
    let mut few = by_speed[..ALL_OF].to_vec();
    few.sort_unstable();
    let mut chains = shortest(costs, &few);
    chains.extend((0..costs.len()).map(|node| vec![node]));
    chains.extend(greedy(costs, by_speed));
    chains
}

/// For every subset of `nodes` and every first and last node, the order with the smallest sum of hops (Held and Karp).
fn shortest(costs: &Costs<'_>, nodes: &[usize]) -> Vec<Vec<usize>> {
    let count = nodes.len();
    let mut chains = Vec::new();
    for first in 0..count {
        // [set][last]: sum of the hops so far, and the last node but one.
        let mut best: Vec<Vec<Option<(f64, usize)>>> = vec![vec![None; count]; 1 << count];
        best[1 << first][first] = Some((0.0, first));
        for set in 0..1 << count {
            for last in 0..count {
                let Some((so_far, _)) = best[set][last] else { continue };
                if costs.return_s(nodes[last], nodes[first]).is_some() {
                    chains.push(backwards(&best, set, last, nodes));
                }
                for next in (0..count).filter(|next| set & (1 << next) == 0) {
                    let Some(hop) = costs.step_hop_s(nodes[last], nodes[next]) else { continue };
                    let known = &mut best[set | 1 << next][next];
                    if known.is_none_or(|(least, _)| so_far + hop < least) {
                        *known = Some((so_far + hop, last));
                    }
                }
            }
        }
    }
    chains
}

/// Reconstructs the chain with this set and last node.
fn backwards(best: &[Vec<Option<(f64, usize)>>], mut set: usize, mut last: usize, nodes: &[usize]) -> Vec<usize> {
    let mut chain = vec![nodes[last]];
    while let Some((_, before)) = best[set][last].filter(|(_, before)| *before != last) {
        set &= !(1 << last);
        last = before;
        chain.push(nodes[last]);
    }
    chain.reverse();
    chain
}

/// For many nodes: takes the fastest, the ones with the most memory, and those nearest to a serving node, as many as needed,
/// and chains each selection by going to the nearest node next.
fn greedy(costs: &Costs<'_>, by_speed: Vec<usize>) -> Vec<Vec<usize>> {
    let serves = |node: &usize| costs.needs.served_by.contains(&costs.nodes[*node].peer);
    let served: Vec<usize> = by_speed.iter().copied().filter(serves).take(STARTS).collect();
    let mut by_room = by_speed.clone();
    by_room.sort_by_key(|node| std::cmp::Reverse(costs.capacity(*node, false, false)));
    let hop = |from: usize, to: usize| costs.step_hop_s(from, to).unwrap_or(f64::INFINITY);
    let nearest_first = served.iter().map(|from| {
        let mut near = by_speed.clone();
        near.sort_by(|a, b| hop(*from, *a).total_cmp(&hop(*from, *b)));
        near
    });
    let orders: Vec<Vec<usize>> = nearest_first.chain([by_room, by_speed.clone()]).collect();
    let mut chains = Vec::new();
    for order in orders {
        for size in 2..=order.len() {
            let set = &order[..size];
            let firsts: Vec<usize> = served.iter().copied().filter(|node| set.contains(node)).collect();
            for first in firsts.into_iter().chain([order[0]]) {
                let mut chain = vec![first];
                let mut left: Vec<usize> = set.iter().copied().filter(|node| *node != first).collect();
                while let Some(last) = chain.last().copied()
                    && let Some(at) =
                        (0..left.len()).filter(|at| costs.step_hop_s(last, left[*at]).is_some()).min_by(|a, b| {
                            hop(last, left[*a]).total_cmp(&hop(last, left[*b])).then(left[*a].cmp(&left[*b]))
                        })
                {
                    chain.push(left.swap_remove(at));
                }
                if costs.hops_s(&chain).is_some() {
                    chains.push(chain);
                }
            }
        }
    }
    chains.sort_unstable();
    chains.dedup();
    chains
}

/// The pinned nodes in the order of their layers, with every gap filled in every way with the fastest other nodes.
fn around_pins(costs: &Costs<'_>, pins: &[Option<Range<u32>>], by_speed: &[usize]) -> Vec<Vec<usize>> {
    let mut pinned: Vec<(u32, usize)> =
        pins.iter().enumerate().filter_map(|(node, pin)| Some((pin.as_ref()?.start, node))).collect();
    pinned.sort_unstable();
    let free: Vec<usize> = by_speed.iter().copied().filter(|node| pins[*node].is_none()).take(BESIDE_PINS).collect();
    let pinned = pinned.into_iter().map(|(_, node)| node).collect();
    let mut search = Search { costs, pins, pinned, free, chain: Vec::new(), found: Vec::new() };
    search.step(0, 0, false);
    search.found
}

struct Search<'a> {
    costs: &'a Costs<'a>,
    pins: &'a [Option<Range<u32>>],
    pinned: Vec<usize>,
    free: Vec<usize>,
    chain: Vec<usize>,
    found: Vec<Vec<usize>>,
}

impl Search<'_> {
    /// Continues after `layer`; `next` is the next pinned node, `filled` whether this gap has a node yet.
    fn step(&mut self, next: usize, layer: u32, filled: bool) {
        let pinned = self.pinned.get(next).copied();
        let pin = pinned.and_then(|node| self.pins[node].clone());
        let gap_end = pin.as_ref().map_or(self.costs.needs.size.layers, |pin| pin.start);
        let gap = gap_end > layer;
        if filled == gap {
            match (pinned, pin) {
                (Some(node), Some(pin)) => self.with(node, |search| search.step(next + 1, pin.end, false)),
                _ if self.costs.hops_s(&self.chain).is_some() => self.found.push(self.chain.clone()),
                _ => {}
            }
        }
        if gap {
            for at in 0..self.free.len() {
                let node = self.free.remove(at);
                self.with(node, |search| search.step(next, layer, true));
                self.free.insert(at, node);
            }
        }
    }

    fn with(&mut self, node: usize, go_on: impl FnOnce(&mut Self)) {
        if self.chain.last().is_none_or(|last| self.costs.step_hop_s(*last, node).is_some()) {
            self.chain.push(node);
            go_on(self);
            self.chain.pop();
        }
    }
}
