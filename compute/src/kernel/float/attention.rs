//! Scaled dot-product attention of a few query rows over the cached keys and values of one head (Vaswani et al. 2017),
//! in two passes. The order of operations of a row's result:
//!
//! * a score is one chain of fused multiply-adds over the head's elements, a lane being one key;
//! * the largest score is exact; e = exp(score − largest); the sum of e runs over sixteen lanes, lane i taking the keys at
//!   positions ≡ i modulo 16 in order, folded once; the e of a sink, which is a score without a key and a value (Xiao et al.
//!   2023; learned in gpt-oss), is added last;
//! * values are summed in order of position in chains of [`CHUNK`] positions, which begin at multiples of it, and the chains
//!   are added in order; the result is multiplied by 1 / sum.
//!
//! So a result depends on the row's own position and on the cache, never on which rows are computed together. A key
//! that a row must not attend to has e = 0 exactly. Adding it changes no sum, because every value is finite (the cache
//! accepts no others) and no partial sum that counts is −0.
#![allow(unsafe_code)]
// Register tiles are read by index: the loops are unrolled whole.
#![allow(clippy::needless_range_loop)]

use crate::Isa;
use crate::kernel::float::{activation::soft_cap_lanes, math};
use crate::kernel::page::PAGE_POSITIONS;
use crate::kernel::simd::{Body, LANES, Simd, dispatch, fold};

/// Length of the chains in which values are summed; a multiple of [`PAGE_POSITIONS`].
pub(crate) const CHUNK: usize = 256;

/// Rows computed together, at most.
pub(crate) const MAX_ROWS: usize = 8;

const _: () = assert!(CHUNK.is_multiple_of(PAGE_POSITIONS));

/// The cached keys and values of one key-value head of one layer. [`PageShape`](crate::kernel::page::PageShape) defines
/// their place: in each page, keys begin at `key_offset` and values at `value_offset`.
#[derive(Clone, Copy)]
pub(crate) struct KeysValues<'a> {
    pub(crate) pages: &'a [*mut u16],
    pub(crate) key_offset: usize,
    pub(crate) value_offset: usize,
    pub(crate) head_dim: usize,
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

struct Attend<'a> {
    rows: &'a [Row],
    cache: KeysValues<'a>,
    /// Positions that a row attends to, its own the last.
    window: usize,
    soft_cap: Option<f32>,
    scores: &'a mut [f32],
}

/// Floats of scratch memory that [`attend`] needs for rows up to `position`.
pub(crate) fn scratch_len(position: usize) -> usize {
    MAX_ROWS * (position / LANES + 1) * LANES
}

/// Attention of at most [`MAX_ROWS`] rows. Queries are already scaled.
///
/// # Safety
/// Each row's query and result are `head_dim` floats, and no other thread uses the result at the same time; pages exist
/// for every position up to the rows', with keys and values written for all positions that a row attends to; `isa` is
/// available; `scratch` has [`scratch_len`] of the last position.
pub(crate) unsafe fn attend(
    isa: Isa,
    rows: &[Row],
    cache: KeysValues<'_>,
    window: usize,
    soft_cap: Option<f32>,
    scratch: &mut [f32],
) {
    // SAFETY: passed on from the caller.
    unsafe { dispatch(isa, Attend { rows, cache, window, soft_cap, scores: scratch }) }
}

/// Calls `$f::<S, ROWS>` for the number of rows known only at run time.
macro_rules! by_rows {
    ($self:expr, $rows:expr, $f:ident($($arg:expr),*)) => {
        match $rows {
            1 => $self.$f::<S, 1>($($arg),*),
            2 => $self.$f::<S, 2>($($arg),*),
            3 => $self.$f::<S, 3>($($arg),*),
            4 => $self.$f::<S, 4>($($arg),*),
            5 => $self.$f::<S, 5>($($arg),*),
            6 => $self.$f::<S, 6>($($arg),*),
            7 => $self.$f::<S, 7>($($arg),*),
            _ => $self.$f::<S, 8>($($arg),*),
        }
    };
}

impl Body for Attend<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(mut self) {
        // SAFETY: passed on from the caller of `attend`.
        unsafe { by_rows!(self, self.rows.len(), rows()) }
    }
}

impl Attend<'_> {
    /// The first position that a row at `position` attends to.
    #[inline(always)]
    fn first(&self, position: usize) -> usize {
        (position + 1).saturating_sub(self.window)
    }

    #[inline(always)]
    unsafe fn rows<S: Simd, const ROWS: usize>(&mut self) {
        let mut rows = [Row::NONE; ROWS];
        rows.copy_from_slice(&self.rows[..ROWS]);
        let last = rows.iter().map(|row| row.position).max().unwrap_or(0);
        let first = rows.iter().map(|row| self.first(row.position)).min().unwrap_or(0);
        let blocks = first / LANES..last / LANES + 1;
        let stride = blocks.len() * LANES;
        assert!(self.scores.len() >= ROWS * stride, "too little scratch for attention");
        // SAFETY: passed on from the caller of `attend`; the scratch was checked.
        unsafe {
            let largest = self.scores::<S, ROWS>(&rows, blocks.clone(), stride);
            let mut inverse = [0.0; ROWS];
            for r in 0..ROWS {
                let scores = self.scores.as_mut_ptr().add(r * stride);
                let mut lanes = [0.0f32; LANES];
                S::store(lanes.as_mut_ptr(), largest[r]);
                let most = S::splat(lanes.into_iter().fold(rows[r].sink, f32::max));
                let mut sum = S::splat(0.0);
                for b in 0..blocks.len() {
                    let at = scores.add(b * LANES);
                    let e = math::exp::<S>(S::sub(S::load(at), most));
                    S::store(at, e);
                    sum = S::add(sum, e);
                }
                S::store(lanes.as_mut_ptr(), sum);
                let mut sum = fold(lanes);
                if rows[r].sink > f32::NEG_INFINITY {
                    S::store(lanes.as_mut_ptr(), math::exp::<S>(S::sub(S::splat(rows[r].sink), most)));
                    sum += lanes[0];
                }
                inverse[r] = 1.0 / sum;
            }
            let width = self.cache.head_dim;
            let mut column = 0;
            while column < width {
                // Two vectors of values serve all rows; with few rows, four keep the multipliers busy.
                if ROWS <= 4 && column + 4 * LANES <= width {
                    self.values::<S, ROWS, 4>(&rows, &inverse, column, first..last + 1, stride);
                    column += 4 * LANES;
                } else if column + 2 * LANES <= width {
                    self.values::<S, ROWS, 2>(&rows, &inverse, column, first..last + 1, stride);
                    column += 2 * LANES;
                } else {
                    self.values::<S, ROWS, 1>(&rows, &inverse, column, first..last + 1, stride);
                    column += LANES;
                }
            }
        }
    }

    /// Scores of the rows over key blocks, −∞ for keys that a row must not attend to; returns each row's maximum per
    /// lane.
    #[inline(always)]
    unsafe fn scores<S: Simd, const ROWS: usize>(
        &mut self,
        rows: &[Row; ROWS],
        blocks: std::ops::Range<usize>,
        stride: usize,
    ) -> [S::F; ROWS] {
        let width = self.cache.head_dim;
        let begin = blocks.start;
        // SAFETY: passed on from the caller.
        unsafe {
            let mut largest = [S::splat(f32::NEG_INFINITY); ROWS];
            let mut block = begin;
            while block < blocks.end {
                // Few rows make too few chains to hide a multiplier's latency, so two blocks are computed at once.
                if ROWS <= 4 && block + 2 <= blocks.end {
                    let keys = [self.keys(block), self.keys(block + 1)];
                    // The processor does not predict the next page, because pages are not adjacent.
                    let ahead = if block + 3 < blocks.end { self.keys(block + 2) } else { keys[0] };
                    let mut sums = [[S::splat(0.0); ROWS]; 2];
                    for d in 0..width {
                        S::prefetch(ahead.add(2 * d * LANES).cast());
                        let (k0, k1) = (S::load_f16(keys[0].add(d * LANES)), S::load_f16(keys[1].add(d * LANES)));
                        for r in 0..ROWS {
                            let q = S::splat(*rows[r].query.add(d));
                            sums[0][r] = S::fma(q, k0, sums[0][r]);
                            sums[1][r] = S::fma(q, k1, sums[1][r]);
                        }
                    }
                    self.keep::<S, ROWS>(rows, &sums[0], block, begin, stride, &mut largest);
                    self.keep::<S, ROWS>(rows, &sums[1], block + 1, begin, stride, &mut largest);
                    block += 2;
                } else {
                    let keys = self.keys(block);
                    let mut sums = [S::splat(0.0); ROWS];
                    for d in 0..width {
                        let k = S::load_f16(keys.add(d * LANES));
                        for r in 0..ROWS {
                            sums[r] = S::fma(S::splat(*rows[r].query.add(d)), k, sums[r]);
                        }
                    }
                    self.keep::<S, ROWS>(rows, &sums, block, begin, stride, &mut largest);
                    block += 1;
                }
            }
            largest
        }
    }

    /// Caps, masks and stores the scores of one block.
    #[inline(always)]
    unsafe fn keep<S: Simd, const ROWS: usize>(
        &mut self,
        rows: &[Row; ROWS],
        sums: &[S::F; ROWS],
        block: usize,
        begin: usize,
        stride: usize,
        largest: &mut [S::F; ROWS],
    ) {
        let from = block * LANES;
        // SAFETY: passed on from the caller.
        unsafe {
            let none = S::splat(f32::NEG_INFINITY);
            for r in 0..ROWS {
                let mut score = sums[r];
                if let Some(cap) = self.soft_cap {
                    score = soft_cap_lanes::<S>(score, cap);
                }
                let seen = (rows[r].position + 1).saturating_sub(from).min(LANES);
                let unseen = self.first(rows[r].position).saturating_sub(from).min(LANES);
                if seen < LANES {
                    score = S::mask_prefix(score, seen, none);
                }
                if unseen > 0 {
                    score = S::mask_prefix(none, unseen, score);
                }
                largest[r] = S::max(largest[r], score);
                S::store(self.scores.as_mut_ptr().add(r * stride + (block - begin) * LANES), score);
            }
        }
    }

    /// The rows' results in columns `column` to `column + VECTORS · 16`, from the values of e in the scratch memory.
    #[inline(always)]
    unsafe fn values<S: Simd, const ROWS: usize, const VECTORS: usize>(
        &self,
        rows: &[Row; ROWS],
        inverse: &[f32; ROWS],
        column: usize,
        positions: std::ops::Range<usize>,
        stride: usize,
    ) {
        let width = self.cache.head_dim;
        let origin = positions.start / LANES * LANES;
        let e = self.scores.as_ptr();
        // SAFETY: passed on from the caller; every position of the range is in a page and written.
        unsafe {
            let zero = S::splat(0.0);
            let mut total = [[zero; VECTORS]; ROWS];
            let mut at = positions.start;
            while at < positions.end {
                let chain_end = positions.end.min((at / CHUNK + 1) * CHUNK);
                let mut sum = [[zero; VECTORS]; ROWS];
                while at < chain_end {
                    let page_end = chain_end.min((at / PAGE_POSITIONS + 1) * PAGE_POSITIONS);
                    let mut values = self.cache.pages[at / PAGE_POSITIONS]
                        .add(self.cache.value_offset + (at % PAGE_POSITIONS) * width + column);
                    let ahead = if ROWS <= 4 && page_end < positions.end {
                        self.cache.pages[page_end / PAGE_POSITIONS].add(self.cache.value_offset + column)
                    } else {
                        values
                    };
                    let skipped = at % PAGE_POSITIONS;
                    for (n, j) in (at - origin..page_end - origin).enumerate() {
                        if ROWS <= 4 {
                            S::prefetch(ahead.add((skipped + n) * width).cast());
                            if VECTORS > 2 {
                                S::prefetch(ahead.add((skipped + n) * width + 2 * LANES).cast());
                            }
                        }
                        let mut v = [zero; VECTORS];
                        for i in 0..VECTORS {
                            v[i] = S::load_f16(values.add(i * LANES));
                        }
                        for r in 0..ROWS {
                            let e = S::splat(*e.add(r * stride + j));
                            for i in 0..VECTORS {
                                sum[r][i] = S::fma(e, v[i], sum[r][i]);
                            }
                        }
                        values = values.add(width);
                    }
                    at = page_end;
                }
                for r in 0..ROWS {
                    for i in 0..VECTORS {
                        total[r][i] = S::add(total[r][i], sum[r][i]);
                    }
                }
            }
            for r in 0..ROWS {
                for i in 0..VECTORS {
                    S::store(rows[r].out.add(column + i * LANES), S::mul(total[r][i], S::splat(inverse[r])));
                }
            }
        }
    }

    /// The keys of sixteen positions.
    #[inline(always)]
    unsafe fn keys(&self, block: usize) -> *const u16 {
        const PER_PAGE: usize = PAGE_POSITIONS / LANES;
        // SAFETY: the block lies in a page that the caller of `attend` promised.
        unsafe {
            self.cache.pages[block / PER_PAGE]
                .add(self.cache.key_offset + (block % PER_PAGE) * self.cache.head_dim * LANES)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;
    use proptest::prelude::*;

    const WIDTH: usize = 32;

    type Vectors = Vec<[f64; WIDTH]>;

    /// Pages of pseudo-random keys and values, and the same in f64: `[position][WIDTH]` each.
    fn cache(positions: usize, seed: u32) -> (Vec<Vec<u16>>, Vectors, Vectors) {
        let mut state = seed;
        let mut number = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f16::from_f32((state >> 8) as f32 / (1 << 23) as f32 - 1.0)
        };
        let mut pages = vec![vec![0u16; 2 * PAGE_POSITIONS * WIDTH]; positions.div_ceil(PAGE_POSITIONS)];
        let (mut keys, mut values) = (vec![[0.0; WIDTH]; positions], vec![[0.0; WIDTH]; positions]);
        for position in 0..positions {
            let (page, slot) = (&mut pages[position / PAGE_POSITIONS], position % PAGE_POSITIONS);
            for d in 0..WIDTH {
                let (key, value) = (number(), number());
                page[slot / LANES * WIDTH * LANES + d * LANES + slot % LANES] = key.to_bits();
                page[PAGE_POSITIONS * WIDTH + slot * WIDTH + d] = value.to_bits();
                (keys[position][d], values[position][d]) = (key.to_f64(), value.to_f64());
            }
        }
        (pages, keys, values)
    }

    fn attend_all(isa: Isa, pages: &mut [Vec<u16>], positions: &[usize], window: usize, cap: Option<f32>) -> Vec<f32> {
        let queries: Vec<f32> = (0..positions.len() * WIDTH).map(|i| ((i * 29) % 13) as f32 / 6.0 - 1.0).collect();
        let mut out = vec![0.0; queries.len()];
        let rows: Vec<Row> = positions
            .iter()
            .enumerate()
            .map(|(r, position)| Row {
                query: queries[r * WIDTH..].as_ptr(),
                out: out[r * WIDTH..].as_mut_ptr(),
                position: *position,
                ..Row::NONE
            })
            .collect();
        let starts: Vec<*mut u16> = pages.iter_mut().map(|page| page.as_mut_ptr()).collect();
        let cache = KeysValues { pages: &starts, key_offset: 0, value_offset: PAGE_POSITIONS * WIDTH, head_dim: WIDTH };
        let mut scratch = vec![f32::NAN; scratch_len(positions.iter().copied().max().unwrap_or(0))];
        // SAFETY: all of these are as long as the rows and positions ask for.
        unsafe { attend(isa, &rows, cache, window, cap, &mut scratch) };
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn rows_get_the_right_attention_and_the_same_bits_however_they_are_grouped(
            last in 0usize..700, rows in 1usize..=8, window in prop_oneof![Just(usize::MAX), 1usize..300],
            cap in prop_oneof![Just(None), Just(Some(5.0f32))], seed: u32,
        ) {
            let (mut pages, keys, values) = cache(last + 1, seed);
            let positions: Vec<usize> = (0..rows).map(|r| last - (r * 3).min(last)).collect();
            let together = attend_all(Isa::best(), &mut pages, &positions, window, cap);
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
                let same = attend_all(isa, &mut pages, &positions, window, cap);
                prop_assert_eq!(same.iter().map(|x| x.to_bits()).collect::<Vec<_>>(), together.iter().map(|x| x.to_bits()).collect::<Vec<_>>());
            }
            for (r, position) in positions.iter().enumerate() {
                let query: Vec<f64> = (0..WIDTH).map(|d| f64::from((((r * WIDTH + d) * 29) % 13) as f32 / 6.0 - 1.0)).collect();
                let seen = (position + 1).saturating_sub(window)..position + 1;
                let scores: Vec<f64> = seen.clone().map(|j| {
                    let dot: f64 = keys[j].iter().zip(&query).map(|(k, q)| k * q).sum();
                    cap.map_or(dot, |cap| f64::from(cap) * (dot / f64::from(cap)).tanh())
                }).collect();
                let most = scores.iter().copied().fold(f64::MIN, f64::max);
                let total: f64 = scores.iter().map(|s| (s - most).exp()).sum();
                for d in 0..WIDTH {
                    let want: f64 = seen.clone().zip(&scores).map(|(j, s)| (s - most).exp() / total * values[j][d]).sum();
                    prop_assert!((f64::from(together[r * WIDTH + d]) - want).abs() < 2e-5, "row {} at {}", r, position);
                }
            }
            let alone = attend_all(Isa::best(), &mut pages, &positions[..1], window, cap);
            prop_assert_eq!(&alone[..], &together[..WIDTH]);
        }
    }
}
