//! The attention of a few rows of one sequence with a long context, cut by positions, so that any number of threads
//! computes the heads together. Chain by chain in three steps, with a barrier between them: scores; exponentials and chains of
//! values; sums. The order of operations is that of [`attend`](super::attend), because chains are cut nowhere, and the sums of
//! the last step run over them in order.
#![allow(unsafe_code)]

use super::tile::{self, Group, Total};
use super::{CHAIN, KeysValues, LANES, Row, Terms, within};
use crate::Isa;
use crate::kernel::simd::{Body, Simd, dispatch};
use std::ops::Range;

/// Rows of a head, at most: some register tiles. More are a prompt's, which threads take apart by rows.
pub(crate) const SPLIT_ROWS: usize = 16;

/// The memory that the threads share for one head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SplitShape {
    rows: usize,
    head_dim: usize,
    /// Of the whole context.
    blocks: usize,
    /// Of the whole context.
    chains: usize,
}

impl SplitShape {
    /// For `rows` rows of a head, at most [`SPLIT_ROWS`], the last of them at `position`.
    pub(crate) fn new(rows: usize, position: usize, head_dim: usize) -> SplitShape {
        assert!(rows <= SPLIT_ROWS, "{rows} rows of a head");
        SplitShape { rows, head_dim, blocks: position / LANES + 1, chains: position / CHAIN + 1 }
    }

    /// Chains of the whole context, of which a layer with a sliding window uses the last ones.
    pub(crate) fn chains(&self) -> usize {
        self.chains
    }

    /// Rows of the head.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Floats of the memory: scores `[blocks][rows][16]` of each register tile, the largest score of each chain
    /// `[chains][rows]`, the sums of each chain `[chains][rows][head_dim]`.
    pub(crate) fn floats(&self) -> usize {
        self.rows * (self.blocks * LANES + self.chains * (1 + self.head_dim))
    }
}

/// One head's rows and the memory that threads share for them. Each step is complete on all threads before the next begins.
#[derive(Clone, Copy)]
pub(crate) struct SplitHead<'a> {
    pub(crate) shape: SplitShape,
    pub(crate) rows: &'a [Row],
    pub(crate) cache: KeysValues<'a>,
    pub(crate) terms: Terms,
    /// [`SplitShape::floats`] floats.
    pub(crate) memory: *mut f32,
}

/// A step of one head's attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SplitStep {
    /// The scores of a chain.
    Scores { chain: usize },
    /// The exponentials of a chain and its sums of values.
    Values { chain: usize },
    /// The result of a row.
    Sum { row: usize },
}

impl SplitHead<'_> {
    /// Computes one step. Chains to which no row attends are left out.
    ///
    /// # Safety
    /// As for [`attend`](super::attend); `memory` is as long as the shape says; no other thread computes the same step at the
    /// same time; the steps of the kind before are complete.
    pub(crate) unsafe fn run(&self, isa: Isa, step: SplitStep) {
        // SAFETY: passed on from the caller.
        unsafe { dispatch(isa, Run { head: *self, step }) }
    }

    /// The largest score of each row within a chain.
    unsafe fn largest(&self, chain: usize) -> *mut f32 {
        // SAFETY: the memory has this part.
        unsafe { self.memory.add(self.shape.rows * (self.shape.blocks * LANES + chain)) }
    }

    /// The sums of values of a row within a chain.
    unsafe fn sums(&self, chain: usize, row: usize) -> *mut f32 {
        let SplitShape { rows, head_dim, blocks, chains } = self.shape;
        // SAFETY: the memory has this part.
        unsafe { self.memory.add(rows * (blocks * LANES + chains) + (chain * rows + row) * head_dim) }
    }
}

struct Run<'a> {
    head: SplitHead<'a>,
    step: SplitStep,
}

impl Body for Run<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Run { head, step } = self;
        let tile_rows = tile::rows::<S>();
        // The register tiles' own floats; the largest group has eight rows.
        let mut own = [0.0f32; SPLIT_ROWS * Group::FLOATS_OF_ROW];
        for (index, rows) in head.rows.chunks(tile_rows).enumerate() {
            let first = index * tile_rows;
            // SAFETY: passed on from the caller; each register tile has its part of the memory.
            unsafe {
                let scores = head.memory.add(first * head.shape.blocks * LANES);
                match step {
                    SplitStep::Scores { chain } => {
                        let group = Group::new(rows, &head.terms, own.as_mut_ptr(), scores);
                        let positions = within(positions_of(chain), &group.positions);
                        if positions.is_empty() {
                            continue;
                        }
                        let blocks = positions.start / LANES..positions.end.div_ceil(LANES);
                        tile::scores::<S>(&group, &head.cache, &head.terms, blocks);
                        for row in 0..rows.len() {
                            head.largest(chain).add(first + row).write(group.largest(row));
                        }
                    }
                    SplitStep::Values { chain } => {
                        // The chain's sums are kept apart from the other chains'.
                        let mut parts = [Row::NONE; SPLIT_ROWS];
                        for (row, part) in rows.iter().zip(&mut parts) {
                            *part = *row;
                        }
                        for (row, part) in parts[..rows.len()].iter_mut().enumerate() {
                            part.out = head.sums(chain, first + row);
                        }
                        let group = Group::new(&parts[..rows.len()], &head.terms, own.as_mut_ptr(), scores);
                        let positions = within(positions_of(chain), &group.positions);
                        if positions.is_empty() {
                            continue;
                        }
                        for row in 0..rows.len() {
                            let of_chain = |chain: usize| head.largest(chain).add(first + row).read();
                            let largest = chains_of(&group).map(of_chain).fold(f32::NEG_INFINITY, f32::max);
                            group.settle_largest(row, largest);
                        }
                        let weights = group.scores_of(positions.start / LANES);
                        tile::exponentials::<S>(&group, &positions, weights);
                        tile::chain::<S>(&group, &head.cache, positions, weights, Total::Begin);
                    }
                    SplitStep::Sum { row } if (first..first + rows.len()).contains(&row) => {
                        let group = Group::new(rows, &head.terms, own.as_mut_ptr(), scores);
                        sum::<S>(&head, &group, row, row - first, rows.len());
                    }
                    SplitStep::Sum { .. } => {}
                }
            }
        }
    }
}

/// The result of row `row` of the head, which is `place` of the `rows` rows of its register tile.
///
/// # Safety
/// As for [`SplitHead::run`].
#[inline(always)]
unsafe fn sum<S: Simd>(head: &SplitHead<'_>, group: &Group<'_>, row: usize, place: usize, rows: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut e = S::splat(0.0);
        for block in 0..group.blocks.len() {
            e = S::add(e, S::load(group.scores_of(group.blocks.start).add((block * rows + place) * LANES)));
        }
        let mut lanes = [0.0f32; LANES];
        S::store(lanes.as_mut_ptr(), e);
        let of_chain = |chain: usize| head.largest(chain).add(row).read();
        let largest = chains_of(group).map(of_chain).fold(f32::NEG_INFINITY, f32::max);
        let inverse = S::splat(1.0 / tile::sum_of::<S>(lanes, head.rows[row].sink, largest));
        for column in (0..head.shape.head_dim).step_by(LANES) {
            let mut total = S::splat(0.0);
            for chain in chains_of(group) {
                total = S::add(total, S::load(head.sums(chain, row).add(column)));
            }
            S::store(head.rows[row].out.add(column), S::mul(total, inverse));
        }
    }
}

/// The positions of a chain.
fn positions_of(chain: usize) -> Range<usize> {
    chain * CHAIN..(chain + 1) * CHAIN
}

/// The chains that any row of the group attends to.
#[inline(always)]
fn chains_of(group: &Group<'_>) -> Range<usize> {
    group.positions.start / CHAIN..group.positions.end.div_ceil(CHAIN)
}
