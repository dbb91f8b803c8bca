//! What a stage has of one sequence: keys and values, and the leaves of its commitments, position by position. It computes
//! nothing.

use pangea_compute::commit::Leaf;
use pangea_compute::commit::merkle::row_leaf;
use pangea_compute::model::Cache;

/// One sequence at one stage.
pub(super) struct History {
    pub(super) cache: Cache,
    pub(super) rows: Rows,
    /// Positions that came from another sequence.
    pub(super) reused: usize,
}

/// What went in and came out, by position. Token ids need no hashes here: the session has them.
#[derive(Clone, Debug, Default)]
pub(super) struct Rows {
    /// Of activations that came in; empty on the first stage.
    pub(super) received: Vec<Leaf>,
    /// Of activations that went out; empty on the last stage.
    pub(super) given: Vec<Leaf>,
}

impl History {
    pub(super) fn empty(cache: Cache) -> History {
        History { cache, rows: Rows::default(), reused: 0 }
    }

    /// Another sequence with the same first positions.
    pub(super) fn fork(&self, positions: usize) -> History {
        let mut fork = History { cache: self.cache.fork(), rows: self.rows.prefix(positions), reused: positions };
        fork.cache.truncate(positions);
        fork
    }

    /// Takes in the activations that came for the positions from `start` on, `[positions, width]`.
    pub(super) fn receive(&mut self, start: usize, width: usize, values: &[f32]) {
        self.rows.received.extend(leaves(start, width, values));
    }

    /// The same of activations that went out.
    pub(super) fn give(&mut self, start: usize, width: usize, values: &[f32]) {
        self.rows.given.extend(leaves(start, width, values));
    }

    /// Forgets the positions from `positions` on.
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
    /// Those of the first `positions`.
    pub(super) fn prefix(&self, positions: usize) -> Rows {
        let first = |leaves: &[Leaf]| leaves[..positions.min(leaves.len())].to_vec();
        Rows { received: first(&self.received), given: first(&self.given) }
    }
}
