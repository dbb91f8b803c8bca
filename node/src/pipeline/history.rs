//! A stage's state of one sequence: keys and values, and the leaves of its commitments, position by position, with the rows
//! themselves where the stage has to open them. Nothing is computed here.

use std::sync::Arc;

use pangea_compute::commit::Leaf;
use pangea_compute::commit::merkle::row_leaf;
use pangea_compute::model::Cache;

use crate::rows::{KeptRow, RowStore};

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
    /// Computed activations that the stage has to open; `None` where it has not, or where memory did not suffice.
    pub(super) values: Option<Vec<Arc<KeptRow>>>,
}

impl History {
    /// `keeps`: whether the stage has to open what it gives.
    pub(super) fn empty(cache: Cache, keeps: bool) -> History {
        History { cache, rows: Rows { values: keeps.then(Vec::new), ..Rows::default() }, reused: 0 }
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

    /// Adds the activations computed for the positions from `start` on, with themselves where the stage has to open them.
    pub(super) fn give(&mut self, start: usize, width: usize, values: &[f32], store: Option<&RowStore>) {
        self.rows.given.extend(leaves(start, width, values));
        if let (Some(kept), Some(store)) = (&mut self.rows.values, store) {
            let all: Option<Vec<_>> = values.chunks_exact(width).map(|row| store.keep(row)).collect();
            match all {
                Some(all) => kept.extend(all),
                None => self.rows.values = None,
            }
        }
    }

    /// Removes the positions from `positions` on.
    pub(super) fn truncate(&mut self, positions: usize) {
        self.cache.truncate(positions);
        self.rows.received.truncate(positions);
        self.rows.given.truncate(positions);
        if let Some(values) = &mut self.rows.values {
            values.truncate(positions);
        }
    }
}

fn leaves(start: usize, width: usize, values: &[f32]) -> impl Iterator<Item = Leaf> {
    values.chunks_exact(width).zip(start as u64..).map(|(row, position)| row_leaf(position, row))
}

impl Rows {
    /// The rows of the first `positions`.
    pub(super) fn prefix(&self, positions: usize) -> Rows {
        let first = |leaves: &[Leaf]| leaves[..positions.min(leaves.len())].to_vec();
        let values = self.values.as_ref().map(|values| values[..positions.min(values.len())].to_vec());
        Rows { received: first(&self.received), given: first(&self.given), values }
    }
}
