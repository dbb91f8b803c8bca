//! Products of a packed matrix with rows of activations: the order of tiles and rows, and where results go. The
//! arithmetic is in the register tiles; threads are the caller's.

use super::super::simd::{Body, LANES, Simd, dispatch};
use super::float::{self, FloatWeights};
use super::integer;
use super::layout::{
    BLOCK, Exponents, Groups, GroupsOfIq4, Halves, HalvesMin, Scale, ScaleMin, ScaleOfIq4, Scales, TILE,
};
use super::quantized::GROUP;
use super::{Matrix, Quantized};
use crate::Isa;
use crate::gguf::GgmlType;
use std::marker::PhantomData;
use std::ops::Range;

/// Bytes of activations that are multiplied with all tiles before the next rows: they stay in a core's second-level
/// cache.
const CHUNK_BYTES: usize = 256 << 10;

/// The activations of a product.
#[derive(Clone, Copy)]
pub(crate) enum Input<'a> {
    /// For quantised weights.
    Quantized(&'a Quantized),
    /// For float weights: rows `[.., k]`.
    Floats(&'a [f32]),
}

/// How results are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Store {
    /// Results replace the content of the destination.
    Set,
    /// Results are added to the content of the destination.
    Add,
}

/// `out[row][16·tile ..] = W[tile] · x[row]` for the tiles `tiles` and rows `rows`; row `r` of the output is at `out +
/// r·ld`, where `out` itself may lie before the memory that is written. Columns beyond `w.rows()` are not written.
///
/// # Panics
/// Where `x` is not of the kind that `w` takes ([`Matrix::takes_floats`]) or has another k, or tiles or rows do not
/// exist.
///
/// # Safety
/// `isa` is available. The named tiles' columns of the named rows of the output are writable, and no other thread uses those
/// columns at the same time; `x` is only read.
// Callers have all of these apart.
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe fn product(
    isa: Isa,
    w: &Matrix,
    tiles: Range<usize>,
    x: Input<'_>,
    rows: Range<usize>,
    out: *mut f32,
    ld: usize,
    store: Store,
) {
    assert!(tiles.end <= w.tiles(), "tiles {tiles:?} of {}", w.tiles());
    let out = Out { to: out, ld, columns: w.rows(), store };
    let task = Task { w, tiles, rows, out };
    // SAFETY: the caller's promise, and what `integers` and `floats` check.
    unsafe {
        match (w.ty(), x) {
            (GgmlType::F32, Input::Floats(x)) => floats::<float::F32>(isa, task, x),
            (GgmlType::F16, Input::Floats(x)) => floats::<float::F16>(isa, task, x),
            (GgmlType::BF16, Input::Floats(x)) => floats::<float::Bf16>(isa, task, x),
            (GgmlType::Q4_0, Input::Quantized(x)) => integers::<Scale, 4, 3>(isa, task, x),
            (GgmlType::Q4_1, Input::Quantized(x)) => integers::<ScaleMin, 4, 0>(isa, task, x),
            (GgmlType::Q5_0, Input::Quantized(x)) => integers::<Scale, 5, 4>(isa, task, x),
            (GgmlType::Q5_1, Input::Quantized(x)) => integers::<ScaleMin, 5, 0>(isa, task, x),
            (GgmlType::Q8_0, Input::Quantized(x)) => integers::<Scale, 8, 0>(isa, task, x),
            (GgmlType::IQ4NL, Input::Quantized(x)) => integers::<ScaleOfIq4, 4, 0>(isa, task, x),
            (GgmlType::IQ4XS, Input::Quantized(x)) => integers::<GroupsOfIq4, 4, 0>(isa, task, x),
            (GgmlType::MXFP4, Input::Quantized(x)) => integers::<Exponents, 4, 4>(isa, task, x),
            (GgmlType::Q2K, Input::Quantized(x)) => integers::<HalvesMin, 2, 0>(isa, task, x),
            (GgmlType::Q3K, Input::Quantized(x)) => integers::<Halves, 3, 2>(isa, task, x),
            (GgmlType::Q4K, Input::Quantized(x)) => integers::<Groups, 4, 0>(isa, task, x),
            (GgmlType::Q5K, Input::Quantized(x)) => integers::<Groups, 5, 0>(isa, task, x),
            (GgmlType::Q6K, Input::Quantized(x)) => integers::<Halves, 6, 5>(isa, task, x),
            (ty, _) => panic!("weights in {ty} do not take activations of this kind"),
        }
    }
}

struct Task<'a> {
    w: &'a Matrix,
    tiles: Range<usize>,
    rows: Range<usize>,
    out: Out,
}

/// The destination of results.
#[derive(Clone, Copy)]
struct Out {
    to: *mut f32,
    ld: usize,
    columns: usize,
    store: Store,
}

impl Out {
    /// Writes the sums of one tile for N rows from `row` on.
    ///
    /// # Safety
    /// As for [`Simd`] and [`product`].
    #[inline(always)]
    unsafe fn put<S: Simd, const N: usize>(&self, tile: usize, row: usize, acc: [S::F; N]) {
        let width = self.columns - tile * TILE;
        for (i, acc) in acc.into_iter().enumerate() {
            // SAFETY: the caller's promise; only existing columns are touched.
            unsafe {
                let to = self.to.wrapping_add((row + i) * self.ld + tile * TILE);
                if width >= TILE {
                    let sum = if self.store == Store::Add { S::add(S::load(to), acc) } else { acc };
                    S::store(to, sum);
                } else {
                    let mut lanes = [0.0f32; LANES];
                    S::store(lanes.as_mut_ptr(), acc);
                    for (lane, sum) in lanes.into_iter().take(width).enumerate() {
                        let to = to.add(lane);
                        to.write(if self.store == Store::Add { to.read() + sum } else { sum });
                    }
                }
            }
        }
    }
}

/// Runs `$body` with `$N` bound to `$rows`, from 1 to `S::ROWS`.
macro_rules! with_rows {
    ($S:ident, $rows:expr, $N:ident => $body:expr) => {
        with_rows!(@ $S, $rows, $N, $body, 1 2 3 4 5 6 7 8)
    };
    (@ $S:ident, $rows:expr, $N:ident, $body:expr, $($n:literal)*) => {
        match $rows {
            $($n if $n <= $S::ROWS => { const $N: usize = $n; $body })*
            _ => unreachable!("a register tile has 1 to ROWS rows"),
        }
    };
}

/// # Safety
/// As for [`product`].
unsafe fn integers<C: Scales, const BITS: usize, const SHIFT: u32>(isa: Isa, task: Task<'_>, x: &Quantized) {
    assert!(x.k() == task.w.k() && task.rows.end <= x.rows(), "{:?} of {} rows of k = {}", task.rows, x.rows(), x.k());
    // SAFETY: the caller's promise; shapes were checked.
    unsafe { dispatch(isa, Integers::<C, BITS, SHIFT> { task, x, scales: PhantomData }) }
}

struct Integers<'a, C, const BITS: usize, const SHIFT: u32> {
    task: Task<'a>,
    x: &'a Quantized,
    scales: PhantomData<C>,
}

impl<C: Scales, const BITS: usize, const SHIFT: u32> Body for Integers<'_, C, BITS, SHIFT> {
    type Out = ();
    const DOTS: bool = true;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Task { w, tiles, rows, out } = self.task;
        let x = self.x;
        let records = w.k() / (BLOCK * C::BLOCKS);
        let chunk = (CHUNK_BYTES / x.group_bytes().max(1)).max(1) * GROUP;
        let mut start = rows.start;
        while start < rows.end {
            // Chunks end with a group, so that register tiles are whole.
            let end = rows.end.min((start / GROUP * GROUP).saturating_add(chunk));
            for tile in tiles.clone() {
                let weights = w.bytes()[tile * w.tile_bytes()..][..w.tile_bytes()].as_ptr();
                let mut row = start;
                while row < end {
                    let n = S::ROWS.min(end - row).min(GROUP - row % GROUP);
                    let (q, scale) = x.row(row);
                    let rows = integer::Rows { q, scale, record_bytes: x.record_bytes() };
                    // SAFETY: the tile has `records` records; `n` rows of one group begin at `row`.
                    unsafe {
                        with_rows!(S, n, N => {
                            out.put::<S, N>(tile, row, integer::tile::<S, C, BITS, SHIFT, N>(weights, records, rows));
                        });
                    }
                    row += n;
                }
            }
            start = end;
        }
    }
}

/// # Safety
/// As for [`product`].
unsafe fn floats<W: FloatWeights>(isa: Isa, task: Task<'_>, x: &[f32]) {
    let k = task.w.k();
    assert!(task.rows.end.checked_mul(k).is_some_and(|len| len <= x.len()), "rows {:?} of k = {k}", task.rows);
    // SAFETY: the caller's promise; shapes were checked.
    unsafe { dispatch(isa, Floats::<W> { task, x, weights: PhantomData }) }
}

struct Floats<'a, W> {
    task: Task<'a>,
    x: &'a [f32],
    weights: PhantomData<W>,
}

impl<W: FloatWeights> Body for Floats<'_, W> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Task { w, tiles, rows, out } = self.task;
        let k = w.k();
        let chunk = (CHUNK_BYTES / (k * size_of::<f32>()).max(1) / S::ROWS).max(1) * S::ROWS;
        let mut start = rows.start;
        while start < rows.end {
            let end = rows.end.min(start.saturating_add(chunk));
            for tile in tiles.clone() {
                let weights = w.bytes()[tile * w.tile_bytes()..][..w.tile_bytes()].as_ptr();
                let mut row = start;
                while row < end {
                    let n = S::ROWS.min(end - row);
                    let x = self.x[row * k..(row + n) * k].as_ptr();
                    // SAFETY: the tile has k times 16 weights; `n` rows of k floats begin at `x`.
                    unsafe {
                        with_rows!(S, n, N => {
                            out.put::<S, N>(tile, row, float::tile::<S, W, N>(weights, k, x, k));
                        });
                    }
                    row += n;
                }
            }
            start = end;
        }
    }
}
