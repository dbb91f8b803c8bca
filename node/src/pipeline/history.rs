//! A stage's state of one sequence: keys and values, and the leaves of its commitments, position by position. Nothing
//! is computed here.

use pangea_compute::commit::Leaf;
use pangea_compute::commit::merkle::row_leaf;
use pangea_compute::model::Cache;

/// One sequence at one stage.
pub(super) struct History {
    pub(super) cache: Cache,
    pub(super) rows: Rows,
    /// Positions that were taken over from another sequence.
    pub(super) reused: usize,
}

/// Leaves of the input and output by position. Token ids need no leaves here: the session has them.
#[derive(Clone, Debug, Default)]
pub(super) struct Rows {
    /// Leaves of received activations; empty on the first stage.
    pub(super) received: Vec<Leaf>,
    /// Leaves of computed activations; empty on the last stage.
    pub(super) given: Vec<Leaf>,
}

impl History {
    pub(super) fn empty(cache: Cache) -> History {
        History { cache, rows: Rows::default(), reused: 0 }
    }

    /// A new sequence with the same first positions.
    pub(super) fn fork(&self, positions: usize) -> History {
        let mut fork = History { cache: self.cache.fork(), rows: self.rows.prefix(positions), reused: positions };
        fork.cache.truncate(positions);
        fork
    }

    /// Adds the activations received for the positions from `start` on, `[positions, width]`.
    pub(super) fn receive(&mut self, start: usize, width: usize, values: &[f32]) {
        self.rows.received.extend(leaves(start, width, values));
    }

    /// Adds the activations computed for the positions from `start` on.
    pub(super) fn give(&mut self, start: usize, width: usize, values: &[f32]) {
        self.rows.given.extend(leaves(start, width, values));
    }

    /// Removes the positions from `positions` on.
    pub(super) fn truncate(&mut self, positions: usize) {
        self.cache.truncate(positions);
        self.rows.received.truncate(positions);
        self.rows.given.truncate(positions);
    }
}

fn leaves(start: usize, width: usize, values: &[f32]) -> impl Iterator<Item = Leaf> {
    values.chunks_exact(width).zip(start as u64..).map(|(row, position)| row_leaf(position, row))
}

impl Rows {
    /// The rows of the first `positions`.
    pub(super) fn prefix(&self, positions: usize) -> Rows {
        let first = |leaves: &[Leaf]| leaves[..positions.min(leaves.len())].to_vec();
        Rows { received: first(&self.received), given: first(&self.given) }
    }
}
