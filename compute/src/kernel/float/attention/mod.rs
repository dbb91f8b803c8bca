//! Scaled dot-product attention of query rows over the cached keys and values of one head (Vaswani et al. 2017), in two
//! passes. The order of operations of a row's result:
//!
//! * a score is one chain of fused multiply-adds over the head's elements, a lane being one key;
//! * the largest score is exact; e = exp(score − largest); the sum of e runs over sixteen lanes, lane i taking the keys at
//!   positions ≡ i modulo 16 in order, folded once; the e of a sink, which is a score without a key and a value (Xiao et al.
//!   2023; learned in gpt-oss), is added last;
//! * values are summed in order of position in chains of [`CHAIN`] positions, which begin at multiples of it, and the chains
//!   are added in order; the result is multiplied by 1 / sum.
//!
//! So a result depends on the row's own position and on the cache, never on which rows are computed together. A key
//! that a row must not attend to has e = 0 exactly. Adding it changes no sum, because every value is finite (the cache
//! accepts no others) and no partial sum that counts is −0.
//!
//! Rows are taken in groups of as many as a register tile holds. Keys and values pass all groups block by block while they
//! are in a core's first or second cache.
//!
//! | file | owns |
//! |---|---|
//! | here | what rows and caches are, the order of blocks and groups |
//! | `split` | the attention of one sequence's rows, computed by all threads together |
//! | `tile` | the register tiles: scores, exponentials, chains of values |
//! | `whole` | the attention of one row, to which other engines' kernels are held |
#![allow(unsafe_code)]

mod split;
#[cfg(test)]
mod tests;
mod tile;
mod whole;

pub(crate) use split::{SPLIT_ROWS, SplitHead, SplitShape, SplitStep};
pub(crate) use whole::attend_alone;

use crate::Isa;
use crate::kernel::page::PAGE_POSITIONS;
use crate::kernel::simd::{Body, LANES, Simd, dispatch};
use std::ops::Range;
use tile::{Group, Total};

/// Length of the chains in which values are summed; a multiple of [`PAGE_POSITIONS`].
pub(crate) const CHAIN: usize = 256;

const _: () = assert!(CHAIN.is_multiple_of(PAGE_POSITIONS) && PAGE_POSITIONS.is_multiple_of(LANES));

/// Rows computed together, at most: whole groups of every instruction set. Their queries stay in the first cache, and each
/// key and value that leaves the second one serves them all.
pub(crate) const MAX_ROWS: usize = 48;

/// Bytes of the scores of rows that are computed together, at most, where that leaves [`MIN_ROWS`]: a core's second cache, or a
/// part of the last one. A thread has as much scratch memory, and attention to a long context takes some milliseconds at a time.
const SCORE_BYTES: usize = 1 << 20;

/// Rows that are computed together however long the context is: a group of any instruction set.
pub(crate) const MIN_ROWS: usize = 8;

/// Key blocks that pass all groups before the next: a part of the first cache.
const BLOCKS_AT_ONCE: usize = 4;

/// The cached keys and values of one key-value head of one layer. [`PageShape`](crate::kernel::page::PageShape) defines
/// their place: in each page, keys begin at `key_offset` and values at `value_offset`.
#[derive(Clone, Copy)]
pub(crate) struct KeysValues<'a> {
    pub(crate) pages: &'a [*mut u16],
    pub(crate) key_offset: usize,
    pub(crate) value_offset: usize,
    pub(crate) head_dim: usize,
}

impl KeysValues<'_> {
    /// The keys of the sixteen positions of a block: `[head_dim][16]`.
    ///
    /// # Safety
    /// The block's page exists.
    #[inline(always)]
    unsafe fn keys(&self, block: usize) -> *const u16 {
        const PER_PAGE: usize = PAGE_POSITIONS / LANES;
        // SAFETY: the block lies in a page, which the caller promised.
        unsafe { self.pages[block / PER_PAGE].add(self.key_offset + (block % PER_PAGE) * self.head_dim * LANES) }
    }

    /// The values of a position: `[head_dim]`. Those of the page's next positions follow.
    ///
    /// # Safety
    /// The position's page exists.
    #[inline(always)]
    unsafe fn values(&self, position: usize) -> *const u16 {
        // SAFETY: the position lies in a page, which the caller promised.
        unsafe {
            self.pages[position / PAGE_POSITIONS].add(self.value_offset + (position % PAGE_POSITIONS) * self.head_dim)
        }
    }
}

/// Which keys a row attends to, and what becomes of its scores before the softmax.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    /// Positions that a row attends to, its own the last.
    pub(crate) window: usize,
    pub(crate) soft_cap: Option<f32>,
}

impl Terms {
    /// The first position that a row at `position` attends to.
    #[inline(always)]
    pub(crate) fn first(&self, position: usize) -> usize {
        (position + 1).saturating_sub(self.window)
    }
}

/// One row: pointers to its query and its result, and its position.
#[derive(Clone, Copy)]
pub(crate) struct Row {
    pub(crate) query: *const f32,
    pub(crate) out: *mut f32,
    pub(crate) position: usize,
    /// The score of a key without a value; −∞ for none.
    pub(crate) sink: f32,
}

// SAFETY: the pointers are used under the conditions of `attend` only.
unsafe impl Send for Row {}

impl Row {
    /// No row.
    pub(crate) const NONE: Row =
        Row { query: std::ptr::null(), out: std::ptr::null_mut(), position: 0, sink: f32::NEG_INFINITY };
}

/// Rows to compute together where the last of them is at `position`.
pub(crate) fn rows_at_once(isa: Isa, position: usize) -> usize {
    // Portable code takes many times longer, and a cancelled pass ends with the rows that it has begun.
    if isa == Isa::Plain {
        return MIN_ROWS;
    }
    let bytes_of_row = (position / LANES + 1) * LANES * size_of::<f32>();
    (SCORE_BYTES / bytes_of_row / MIN_ROWS * MIN_ROWS).clamp(MIN_ROWS, MAX_ROWS)
}

/// Floats of scratch memory that [`attend`] needs for `rows` rows up to `position`.
pub(crate) fn scratch_len(rows: usize, position: usize) -> usize {
    rows * (Group::FLOATS_OF_ROW + (position / LANES + 1) * LANES) + tile::WEIGHTS
}

/// Attention of at most [`MAX_ROWS`] rows. Queries are already scaled.
///
/// # Safety
/// Each row's query and result are `head_dim` floats, and no other thread uses the result at the same time; pages exist
/// for every position up to the rows', with keys and values written for all positions that a row attends to; `isa` is
/// available.
///
/// # Panics
/// Where there are more rows, or `scratch` has less than [`scratch_len`] of the rows and their last position.
pub(crate) unsafe fn attend(isa: Isa, rows: &[Row], cache: KeysValues<'_>, terms: Terms, scratch: &mut [f32]) {
    let last = rows.iter().map(|row| row.position).max().unwrap_or(0);
    assert!(rows.len() <= MAX_ROWS, "{} rows of attention", rows.len());
    assert!(scratch.len() >= scratch_len(rows.len(), last), "too little scratch for attention");
    // SAFETY: passed on from the caller; the scratch was checked.
    unsafe { dispatch(isa, Attend { rows, cache, terms, scratch }) }
}

struct Attend<'a> {
    rows: &'a [Row],
    cache: KeysValues<'a>,
    terms: Terms,
    scratch: &'a mut [f32],
}

impl Body for Attend<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: passed on from the caller of `attend`.
        unsafe {
            let weights = self.scratch.as_mut_ptr();
            let mut free = weights.add(tile::WEIGHTS);
            let mut groups = [Group::NONE; MAX_ROWS];
            let mut count = 0;
            for rows in self.rows.chunks(tile::rows::<S>()) {
                let scores = free.add(rows.len() * Group::FLOATS_OF_ROW);
                groups[count] = Group::new(rows, &self.terms, free, scores);
                free = scores.add(groups[count].scores_len());
                count += 1;
            }
            let groups = &groups[..count];
            let start = groups.iter().map(|group| group.blocks.start).min().unwrap_or(0);
            let end = groups.iter().map(|group| group.blocks.end).max().unwrap_or(0);
            for from in (start..end).step_by(BLOCKS_AT_ONCE) {
                for group in groups {
                    let blocks = within(from..from + BLOCKS_AT_ONCE, &group.blocks);
                    tile::scores::<S>(group, &self.cache, &self.terms, blocks);
                }
            }
            for group in groups {
                for row in 0..group.rows.len() {
                    group.settle_largest(row, group.largest(row));
                }
            }
            for chain in start * LANES / CHAIN..(end * LANES).div_ceil(CHAIN) {
                for group in groups {
                    let positions = within(chain * CHAIN..(chain + 1) * CHAIN, &group.positions);
                    if !positions.is_empty() {
                        tile::exponentials::<S>(group, &positions, weights);
                        let is_first = positions.start == group.positions.start;
                        let total = if is_first { Total::Begin } else { Total::Add };
                        tile::chain::<S>(group, &self.cache, positions, weights, total);
                    }
                }
            }
            for group in groups {
                group.finish::<S>(self.cache.head_dim);
            }
        }
    }
}

/// The part of `range` that lies in `bounds`; empty where there is none.
#[inline(always)]
fn within(range: Range<usize>, bounds: &Range<usize>) -> Range<usize> {
    let start = range.start.max(bounds.start);
    start..range.end.min(bounds.end).max(start)
}
