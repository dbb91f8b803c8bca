//! The register tiles of attention: a group of rows, each with its scores, exponentials and chains of values. Which
//! blocks pass which groups, and when, is the caller's decision.
#![allow(unsafe_code)]
// Register tiles are read by index: the loops are unrolled whole.
#![allow(clippy::needless_range_loop)]

use super::{CHAIN, KeysValues, Row, Terms};
use crate::kernel::float::{activation::soft_cap_lanes, math};
use crate::kernel::page::PAGE_POSITIONS;
use crate::kernel::simd::{LANES, Simd, fold};
use std::ops::Range;

/// Rows of a group, at most.
const MAX_GROUP: usize = 8;

/// Floats of the exponentials of one group and one chain: `[blocks][rows][16]`.
pub(super) const WEIGHTS: usize = CHAIN * MAX_GROUP;

/// Up to this many rows, keys and values arrive from memory more slowly than they are used, so the next page is prefetched:
/// pages are not adjacent, and the processor does not predict them.
const FEW_ROWS: usize = 4;

/// Rows of a group with this family: as many as keep one vector of sums each in registers, beside two operands.
#[inline(always)]
pub(super) fn rows<S: Simd>() -> usize {
    (S::VECTORS - 2).min(MAX_GROUP)
}

/// Whether tiles of `vectors` vectors for each of `rows` rows stay in registers and are no larger than it takes to hide a
/// multiplier's latency.
#[inline(always)]
const fn fits<S: Simd>(rows: usize, vectors: usize) -> bool {
    rows * vectors <= MAX_GROUP && vectors * (rows + 1) < S::VECTORS
}

/// Calls `$f::<S, ROWS>` for the group's number of rows, known only at run time.
macro_rules! by_rows {
    ($S:ident, $rows:expr, $f:ident($($arg:expr),*)) => {
        by_rows!(@ $S, $rows, $f($($arg),*), 1 2 3 4 5 6 7 8)
    };
    (@ $S:ident, $rows:expr, $f:ident $args:tt, $($n:literal)*) => {
        match $rows {
            $($n if $n <= rows::<$S>() => by_rows!(# $S, $n, $f $args),)*
            _ => unreachable!("a group has one row to as many as a register tile holds"),
        }
    };
    (# $S:ident, $n:literal, $f:ident($($arg:expr),*)) => {
        $f::<$S, $n>($($arg),*)
    };
}

/// Rows of one register tile, and their scratch memory.
#[derive(Clone)]
pub(super) struct Group<'a> {
    pub(super) rows: &'a [Row],
    /// The blocks of keys that any of the rows attends to.
    pub(super) blocks: Range<usize>,
    /// The positions that any of the rows attends to.
    pub(super) positions: Range<usize>,
    /// The positions that every row attends to.
    common: Range<usize>,
    /// `[rows][16]`: the largest score per lane, then in every lane.
    largest: *mut f32,
    /// `[rows][16]`: sums of e.
    sums: *mut f32,
    /// `[blocks][rows][16]`
    scores: *mut f32,
}

impl<'a> Group<'a> {
    /// No group.
    pub(super) const NONE: Group<'static> = Group {
        rows: &[],
        blocks: 0..0,
        positions: 0..0,
        common: 0..0,
        largest: std::ptr::null_mut(),
        sums: std::ptr::null_mut(),
        scores: std::ptr::null_mut(),
    };

    /// Floats of scratch memory of a row, besides its scores.
    pub(super) const FLOATS_OF_ROW: usize = 2 * LANES;

    /// The group of these rows, at least one, with no scores yet. `own`: [`Group::FLOATS_OF_ROW`] floats of each row.
    ///
    /// # Safety
    /// `own` is that long; there is room for all scores at `scores` once the other methods are called.
    #[inline(always)]
    pub(super) unsafe fn new(rows: &'a [Row], terms: &Terms, own: *mut f32, scores: *mut f32) -> Group<'a> {
        let (mut least, mut last) = (usize::MAX, 0);
        for row in rows {
            (least, last) = (least.min(row.position), last.max(row.position));
        }
        let positions = terms.first(least)..last + 1;
        let blocks = positions.start / LANES..last / LANES + 1;
        // SAFETY: the caller's promise.
        let sums = unsafe {
            let sums = own.add(rows.len() * LANES);
            for i in 0..rows.len() * LANES {
                own.add(i).write(f32::NEG_INFINITY);
                sums.add(i).write(0.0);
            }
            sums
        };
        Group { rows, blocks, positions, common: terms.first(last)..least + 1, largest: own, sums, scores }
    }

    /// Floats of the scores of all blocks.
    #[inline(always)]
    pub(super) fn scores_len(&self) -> usize {
        self.blocks.len() * self.rows.len() * LANES
    }

    /// The largest score of a row among those that were computed and its sink.
    ///
    /// # Safety
    /// The row is one of the group's.
    #[inline(always)]
    pub(super) unsafe fn largest(&self, row: usize) -> f32 {
        // SAFETY: sixteen floats of each row.
        let lanes = unsafe { self.largest.add(row * LANES).cast::<[f32; LANES]>().read() };
        lanes.into_iter().fold(self.rows[row].sink, f32::max)
    }

    /// Sets the largest of all scores of a row, before its exponentials are computed.
    ///
    /// # Safety
    /// The row is one of the group's.
    #[inline(always)]
    pub(super) unsafe fn settle_largest(&self, row: usize, largest: f32) {
        // SAFETY: sixteen floats of each row.
        unsafe { self.largest.add(row * LANES).cast::<[f32; LANES]>().write([largest; LANES]) };
    }

    /// Divides the rows' results by their sums of e.
    ///
    /// # Safety
    /// As for [`Simd`]; all chains of the group are complete.
    #[inline(always)]
    pub(super) unsafe fn finish<S: Simd>(&self, head_dim: usize) {
        for (r, row) in self.rows.iter().enumerate() {
            // SAFETY: sixteen sums of each row; results are the caller's promise.
            unsafe {
                let sums = self.sums.add(r * LANES).cast::<[f32; LANES]>().read();
                let inverse = S::splat(1.0 / sum_of::<S>(sums, row.sink, self.largest.add(r * LANES).read()));
                for column in (0..head_dim).step_by(LANES) {
                    let to = row.out.add(column);
                    S::store(to, S::mul(S::load(to), inverse));
                }
            }
        }
    }

    /// The scores of a block: `[rows][16]`.
    ///
    /// # Safety
    /// The block is one of the group's.
    #[inline(always)]
    pub(super) unsafe fn scores_of(&self, block: usize) -> *mut f32 {
        // SAFETY: the caller's promise.
        unsafe { self.scores.add((block - self.blocks.start) * self.rows.len() * LANES) }
    }
}

/// The sum of a row's exponentials, whose lanes are `lanes`, and of its sink's. `largest`: the largest score, the sink included.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
pub(super) unsafe fn sum_of<S: Simd>(lanes: [f32; LANES], sink: f32, largest: f32) -> f32 {
    let sum = fold(lanes);
    if sink == f32::NEG_INFINITY {
        return sum;
    }
    let mut e = [0.0; LANES];
    // SAFETY: sixteen floats.
    unsafe { S::store(e.as_mut_ptr(), math::exp::<S>(S::sub(S::splat(sink), S::splat(largest)))) };
    sum + e[0]
}

/// Scores of the group over some of its blocks, −∞ for keys that a row must not attend to, and their maxima.
///
/// # Safety
/// As for [`attend`](super::attend); the blocks are the group's.
#[inline(always)]
pub(super) unsafe fn scores<S: Simd>(group: &Group<'_>, cache: &KeysValues<'_>, terms: &Terms, blocks: Range<usize>) {
    // SAFETY: the caller's promise.
    unsafe { by_rows!(S, group.rows.len(), scores_of_rows(group, cache, terms, blocks)) }
}

#[inline(always)]
unsafe fn scores_of_rows<S: Simd, const ROWS: usize>(
    group: &Group<'_>,
    cache: &KeysValues<'_>,
    terms: &Terms,
    blocks: Range<usize>,
) {
    let mut block = blocks.start;
    // SAFETY: the caller's promise.
    unsafe {
        while block < blocks.end {
            if fits::<S>(ROWS, 4) && block + 4 <= blocks.end {
                score_tile::<S, ROWS, 4>(group, cache, terms, block);
                block += 4;
            } else if fits::<S>(ROWS, 2) && block + 2 <= blocks.end {
                score_tile::<S, ROWS, 2>(group, cache, terms, block);
                block += 2;
            } else {
                score_tile::<S, ROWS, 1>(group, cache, terms, block);
                block += 1;
            }
        }
    }
}

#[inline(always)]
unsafe fn score_tile<S: Simd, const ROWS: usize, const BLOCKS: usize>(
    group: &Group<'_>,
    cache: &KeysValues<'_>,
    terms: &Terms,
    block: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut keys = [std::ptr::null(); BLOCKS];
        // Blocks of the next pages: `[BLOCKS]`, of which each prefetch covers two where there are two.
        let mut ahead = [std::ptr::null(); BLOCKS];
        for i in 0..BLOCKS {
            keys[i] = cache.keys(block + i);
            ahead[i] = cache.keys((block + i + BLOCKS.max(2)).min(group.blocks.end - 1));
        }
        let mut queries = [std::ptr::null(); ROWS];
        for r in 0..ROWS {
            queries[r] = group.rows[r].query;
        }
        let mut sums = [[S::splat(0.0); BLOCKS]; ROWS];
        for d in 0..cache.head_dim {
            let mut k = [S::splat(0.0); BLOCKS];
            for i in 0..BLOCKS {
                k[i] = S::load_f16(keys[i].add(d * LANES));
            }
            if ROWS <= FEW_ROWS && BLOCKS == 1 {
                S::prefetch(ahead[0].add(d * LANES).cast());
            } else if ROWS <= FEW_ROWS {
                for i in (0..BLOCKS).step_by(2) {
                    S::prefetch(ahead[i].wrapping_add(2 * d * LANES).cast());
                }
            }
            for r in 0..ROWS {
                let q = S::splat(*queries[r].add(d));
                for i in 0..BLOCKS {
                    sums[r][i] = S::fma(q, k[i], sums[r][i]);
                }
            }
        }
        let none = S::splat(f32::NEG_INFINITY);
        for i in 0..BLOCKS {
            let from = (block + i) * LANES;
            let is_common = group.common.start <= from && from + LANES <= group.common.end;
            let to = group.scores_of(block + i);
            for r in 0..ROWS {
                let mut score = sums[r][i];
                if let Some(cap) = terms.soft_cap {
                    score = soft_cap_lanes::<S>(score, cap);
                }
                if !is_common {
                    let position = group.rows[r].position;
                    let seen = (position + 1).saturating_sub(from).min(LANES);
                    let unseen = terms.first(position).saturating_sub(from).min(LANES);
                    score = S::mask_prefix(none, unseen, S::mask_prefix(score, seen, none));
                }
                let largest = group.largest.add(r * LANES);
                S::store(largest, S::max(S::load(largest), score));
                S::store(to.add(r * LANES), score);
            }
        }
    }
}

/// The values of e at the positions of one chain into `weights`, and their sums.
///
/// # Safety
/// As for [`Simd`]; the group's scores are complete and its largest settled; chains come in order.
#[inline(always)]
pub(super) unsafe fn exponentials<S: Simd>(group: &Group<'_>, positions: &Range<usize>, weights: *mut f32) {
    let rows = group.rows.len();
    let blocks = positions.start / LANES..positions.end.div_ceil(LANES);
    // SAFETY: the caller's promise.
    unsafe {
        let scores = group.scores_of(blocks.start);
        for r in 0..rows {
            let largest = S::load(group.largest.add(r * LANES));
            let mut sum = S::load(group.sums.add(r * LANES));
            for block in 0..blocks.len() {
                let at = (block * rows + r) * LANES;
                let e = math::exp::<S>(S::sub(S::load(scores.add(at)), largest));
                S::store(weights.add(at), e);
                sum = S::add(sum, e);
            }
            S::store(group.sums.add(r * LANES), sum);
        }
    }
}

/// Where a chain's sums go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Total {
    /// They begin the rows' results.
    Begin,
    /// They are added to the rows' results.
    Add,
}

/// The chain of values over `positions`, which lie in one chain. `weights`: the values of e from the first position's block
/// on.
///
/// # Safety
/// As for [`attend`](super::attend); chains that are added come in order, each once.
#[inline(always)]
pub(super) unsafe fn chain<S: Simd>(
    group: &Group<'_>,
    cache: &KeysValues<'_>,
    positions: Range<usize>,
    weights: *const f32,
    total: Total,
) {
    // SAFETY: the caller's promise.
    unsafe { by_rows!(S, group.rows.len(), chain_of_rows(group, cache, positions, weights, total)) }
}

#[inline(always)]
unsafe fn chain_of_rows<S: Simd, const ROWS: usize>(
    group: &Group<'_>,
    cache: &KeysValues<'_>,
    positions: Range<usize>,
    weights: *const f32,
    total: Total,
) {
    let mut column = 0;
    // SAFETY: the caller's promise.
    unsafe {
        while column < cache.head_dim {
            if fits::<S>(ROWS, 4) && column + 4 * LANES <= cache.head_dim {
                chain_tile::<S, ROWS, 4>(group, cache, column, &positions, weights, total);
                column += 4 * LANES;
            } else if fits::<S>(ROWS, 2) && column + 2 * LANES <= cache.head_dim {
                chain_tile::<S, ROWS, 2>(group, cache, column, &positions, weights, total);
                column += 2 * LANES;
            } else {
                chain_tile::<S, ROWS, 1>(group, cache, column, &positions, weights, total);
                column += LANES;
            }
        }
    }
}

#[inline(always)]
unsafe fn chain_tile<S: Simd, const ROWS: usize, const VECTORS: usize>(
    group: &Group<'_>,
    cache: &KeysValues<'_>,
    column: usize,
    positions: &Range<usize>,
    weights: *const f32,
    total: Total,
) {
    let width = cache.head_dim;
    // SAFETY: the caller's promise; every position is in a page and written.
    unsafe {
        let zero = S::splat(0.0);
        let mut sums = [[zero; VECTORS]; ROWS];
        let mut at = positions.start;
        let mut e = weights;
        while at < positions.end {
            let end = positions.end.min((at / LANES + 1) * LANES);
            let mut values = cache.values(at).add(column);
            let mut ahead = cache.values((at + PAGE_POSITIONS).min(group.positions.end - 1)).wrapping_add(column);
            for lane in at % LANES..at % LANES + (end - at) {
                if ROWS <= FEW_ROWS {
                    S::prefetch(ahead.cast());
                    if VECTORS > 2 {
                        S::prefetch(ahead.wrapping_add(2 * LANES).cast());
                    }
                    ahead = ahead.wrapping_add(width);
                }
                let mut v = [zero; VECTORS];
                for i in 0..VECTORS {
                    v[i] = S::load_f16(values.add(i * LANES));
                }
                for r in 0..ROWS {
                    let e = S::splat(*e.add(r * LANES + lane));
                    for i in 0..VECTORS {
                        sums[r][i] = S::fma(e, v[i], sums[r][i]);
                    }
                }
                values = values.add(width);
            }
            e = e.add(ROWS * LANES);
            at = end;
        }
        for r in 0..ROWS {
            for i in 0..VECTORS {
                let to = group.rows[r].out.add(column + i * LANES);
                let before = if total == Total::Begin { zero } else { S::load(to) };
                S::store(to, S::add(before, sums[r][i]));
            }
        }
    }
}
