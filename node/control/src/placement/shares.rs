//! How many layers each node of a chain gets: as many as possible on the fastest, or such that the slowest stage is as
//! fast as possible, or between the two. Memory is never exceeded and every node gets at least one layer. Chains are
//! not compared here.

use std::ops::Range;

use super::cost::Costs;

/// Bisection steps in the search for a ceiling: finer steps are below the precision of a prediction.
const HALVINGS: usize = 12;

/// Rounding of times that ought to be equal.
const ROUNDING: f64 = 1e-9;

/// A chain with resolved pins: runs of nodes that share their layers freely.
pub(super) struct Chain<'a> {
    costs: &'a Costs<'a>,
    nodes: &'a [usize],
    runs: Vec<Run>,
    /// Maximum layers of each node.
    capacity: Vec<u32>,
}

/// Neighbouring nodes that share a contiguous range of layers.
struct Run {
    /// Indices in the chain.
    places: Range<usize>,
    layers: u32,
}

impl<'a> Chain<'a> {
    /// The chain of these nodes; `None` if the layers do not fit. `pins`: by node, if any.
    pub(super) fn new(costs: &'a Costs<'a>, nodes: &'a [usize], pins: &[Option<Range<u32>>]) -> Option<Chain<'a>> {
        let end = nodes.len();
        let capacity: Vec<u32> = (0..end).map(|at| costs.capacity(nodes[at], at == 0, at + 1 == end)).collect();
        let mut runs = Vec::new();
        let (mut open, mut layer) = (0, 0);
        for (at, node) in nodes.iter().enumerate() {
            if let Some(pin) = &pins[*node] {
                runs.push(Run { places: open..at, layers: pin.start.checked_sub(layer)? });
                runs.push(Run { places: at..at + 1, layers: pin.end - pin.start });
                (open, layer) = (at + 1, pin.end);
            }
        }
        runs.push(Run { places: open..end, layers: costs.needs.size.layers.checked_sub(layer)? });
        let chain = Chain { costs, nodes, runs, capacity };
        chain.runs.iter().all(|run| chain.fits(run)).then_some(chain)
    }

    fn fits(&self, run: &Run) -> bool {
        let capacity = &self.capacity[run.places.clone()];
        let most: u64 = capacity.iter().map(|most| u64::from(*most)).sum();
        capacity.len() as u64 <= run.layers.into() && most >= run.layers.into() && capacity.iter().all(|most| *most > 0)
    }

    fn stage_s(&self, at: usize, count: u32) -> f64 {
        let node = self.nodes[at];
        f64::from(count) * self.costs.layer_s(node) + self.costs.head_s(node, at + 1 == self.nodes.len())
    }

    /// Time of a stage in an even sharing, in seconds.
    fn share_s(&self, at: usize, count: u32) -> f64 {
        self.costs.share_s(self.nodes[at], count, at + 1 == self.nodes.len())
    }

    /// Time of the slowest stage, in seconds.
    fn slowest_s(&self, counts: &[u32]) -> f64 {
        counts.iter().enumerate().map(|(at, count)| self.stage_s(at, *count)).fold(0.0, f64::max)
    }

    /// Time of all stages together with their delays, in seconds.
    fn sum_s(&self, counts: &[u32]) -> f64 {
        let stages_s: f64 = counts.iter().enumerate().map(|(at, count)| self.stage_s(at, *count)).sum();
        stages_s + self.costs.delays_s(self.nodes)
    }

    /// The counts that make all stages about equally fast for prompts and tokens: each layer goes to the node that finishes
    /// soonest with one more.
    pub(super) fn even(&self) -> Vec<u32> {
        let mut counts = vec![1; self.nodes.len()];
        for run in &self.runs {
            let left = run.layers.saturating_sub(run.places.len() as u32);
            for _ in 0..left {
                let room = run.places.clone().filter(|at| counts[*at] < self.capacity[*at]);
                let soonest = room.min_by(|a, b| {
                    self.share_s(*a, counts[*a] + 1).total_cmp(&self.share_s(*b, counts[*b] + 1)).then(a.cmp(b))
                });
                if let Some(at) = soonest {
                    counts[at] += 1;
                }
            }
        }
        counts
    }

    /// The counts with the smallest sum of times such that no stage takes longer than `ceiling_s`: as many as fit on the
    /// fastest node, then the next. `None` if not all layers fit.
    fn fastest_below(&self, ceiling_s: f64) -> Option<Vec<u32>> {
        let mut counts = vec![1; self.nodes.len()];
        for run in &self.runs {
            let mut left = run.layers.saturating_sub(run.places.len() as u32);
            let mut places: Vec<usize> = run.places.clone().collect();
            places.sort_by(|a, b| {
                self.costs.layer_s(self.nodes[*a]).total_cmp(&self.costs.layer_s(self.nodes[*b])).then(a.cmp(b))
            });
            for at in places {
                let within = (ceiling_s * (1.0 + ROUNDING) - self.stage_s(at, 0)) / self.costs.layer_s(self.nodes[at]);
                // A float beyond u32 saturates.
                let most = self.capacity[at].min(within as u32);
                let more = left.min(most.saturating_sub(counts[at]));
                counts[at] += more;
                left -= more;
            }
            if left > 0 {
                return None;
            }
        }
        Some(counts)
    }

    /// The counts with the smallest sum of times.
    pub(super) fn fastest(&self) -> Vec<u32> {
        self.fastest_below(f64::INFINITY).unwrap_or_else(|| self.even())
    }

    /// Among the counts whose times sum to at most `limit_s`, those whose slowest stage is about the fastest.
    pub(super) fn even_within(&self, limit_s: f64) -> Vec<u32> {
        let even = self.even();
        if self.sum_s(&even) <= limit_s {
            return even;
        }
        let mut best = self.fastest();
        let (mut low, mut high) = (self.slowest_s(&even), self.slowest_s(&best));
        for _ in 0..HALVINGS {
            let middle = (low + high) / 2.0;
            match self.fastest_below(middle).filter(|counts| self.sum_s(counts) <= limit_s) {
                Some(counts) => (best, high) = (counts, middle),
                None => low = middle,
            }
        }
        best
    }
}
