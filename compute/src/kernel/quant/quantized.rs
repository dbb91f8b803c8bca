//! Activations in 8 bits: rows of integers with their scales, laid out for the integer kernels. The rounding of
//! activations is here (see the numerics of [`super`]).
//!
//! Rows are in groups of up to 8. A record is one block of 32 k of one group: `[group][32]` i8, then `[group]`
//! [`Scale`]. All that a register tile reads is at fixed distances from one pointer.

use super::super::simd::{Body, LANES, Simd, dispatch};
use super::layout::BLOCK;
use crate::{Error, Isa};
use std::cell::UnsafeCell;

/// Rows of a full group: as many as a register tile takes at most.
pub(super) const GROUP: usize = 8;

/// The numbers of a row's block besides its integers.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Scale {
    /// Factor of the integers.
    pub(super) d: f32,
    /// `d · sum`.
    pub(super) d_sum: f32,
    /// The sum of the integers.
    pub(super) sum: i32,
    /// The sum of the first 16 integers.
    pub(super) first: i32,
}

pub(super) const SCALE_BYTES: usize = size_of::<Scale>();

/// A cache line that threads write different parts of.
#[repr(C, align(64))]
struct Line(UnsafeCell<[u8; 64]>);

/// Quantised rows `[rows, k]`; the memory is kept for later rows.
#[derive(Default)]
pub(crate) struct Quantized {
    lines: Vec<Line>,
    rows: usize,
    k: usize,
}

// SAFETY: rows are written only through `quantize_row`, whose callers guarantee exclusive use of the row.
unsafe impl Sync for Quantized {}

impl Quantized {
    /// Makes room for `rows` rows of `k` elements; the content of a row is unspecified until it is quantised.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub(crate) fn reshape(&mut self, rows: usize, k: usize) -> Result<(), Error> {
        let group = rows.min(GROUP);
        let bytes = k
            .div_ceil(BLOCK)
            .checked_mul(group * (BLOCK + SCALE_BYTES))
            .and_then(|record| record.checked_mul(rows.div_ceil(GROUP)));
        let lines = bytes.map_or(usize::MAX, |bytes| bytes.div_ceil(64));
        if lines > self.lines.len() {
            let more = lines - self.lines.len();
            self.lines.try_reserve_exact(more).map_err(|_| Error::OutOfMemory {
                bytes: (lines as u64).saturating_mul(64),
                what: "quantised activations",
            })?;
            self.lines.resize_with(lines, || Line(UnsafeCell::new([0; 64])));
        }
        (self.rows, self.k) = (rows, k);
        Ok(())
    }

    /// How many rows there are.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Elements of a row.
    pub(crate) fn k(&self) -> usize {
        self.k
    }

    /// Rows of a group.
    pub(super) fn group(&self) -> usize {
        self.rows.min(GROUP)
    }

    /// Bytes from a block to the next of the same rows.
    pub(super) fn record_bytes(&self) -> usize {
        self.group() * (BLOCK + SCALE_BYTES)
    }

    /// Bytes of all blocks of a group.
    pub(super) fn group_bytes(&self) -> usize {
        self.k.div_ceil(BLOCK) * self.record_bytes()
    }

    /// Pointers to the first integer and the first scale of a row; the next block's are [`Quantized::record_bytes`]
    /// further.
    pub(super) fn row(&self, row: usize) -> (*const i8, *const Scale) {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        let (group, place) = (row / GROUP, row % GROUP);
        let base = self.lines.as_ptr().cast::<u8>().wrapping_add(group * self.group_bytes());
        let scales = base.wrapping_add(self.group() * BLOCK + place * SCALE_BYTES);
        (base.wrapping_add(place * BLOCK).cast(), scales.cast())
    }

    /// Quantises row `row` from `x`: `[k]`. Returns whether all of x is finite; if not, the row's content is
    /// unspecified.
    ///
    /// # Safety
    /// No other thread reads or writes this row at the same time. `isa` is available.
    pub(crate) unsafe fn quantize_row(&self, isa: Isa, x: &[f32], row: usize) -> bool {
        assert!(x.len() == self.k, "{} elements for a row of {}", x.len(), self.k);
        let mut at = self.row_blocks(row);
        // SAFETY: the caller's promise; there is room for all blocks of x.
        unsafe { dispatch(isa, Rounding { x, at: &mut at }) }
    }

    /// Where the blocks of row `row` go.
    #[inline(always)]
    fn row_blocks(&self, row: usize) -> RowBlocks {
        let (q, scale) = self.row(row);
        RowBlocks { q: q.cast_mut(), scale: scale.cast_mut(), record_bytes: self.record_bytes() }
    }
}

/// Where the next block of a row goes.
struct RowBlocks {
    q: *mut i8,
    scale: *mut Scale,
    record_bytes: usize,
}

struct Rounding<'a> {
    x: &'a [f32],
    at: &'a mut RowBlocks,
}

impl Body for Rounding<'_> {
    type Out = bool;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> bool {
        let (blocks, rest) = self.x.as_chunks::<BLOCK>();
        // SAFETY: `dispatch` chose S; every block has 32 floats; the caller of `quantize_row` owns the row.
        unsafe {
            let mut check = S::splat(0.0);
            for x in blocks {
                check = quantize_block::<S>(S::load(x.as_ptr()), S::load(x.as_ptr().add(LANES)), self.at, check);
            }
            if !rest.is_empty() {
                let mut x = [0.0; BLOCK];
                x[..rest.len()].copy_from_slice(rest);
                check = quantize_block::<S>(S::load(x.as_ptr()), S::load(x.as_ptr().add(LANES)), self.at, check);
            }
            let mut lanes = [0.0; LANES];
            S::store(lanes.as_mut_ptr(), check);
            lanes.iter().all(|lane| *lane == 0.0)
        }
    }
}

/// Quantises the 32 elements `a`, `b` as the next block of a row and moves on. Returns `check` with lanes that were zero
/// made NaN by infinite or NaN elements.
///
/// # Safety
/// As for [`Simd`] and [`Quantized::quantize_row`]; the row has a block left.
#[inline(always)]
unsafe fn quantize_block<S: Simd>(a: S::F, b: S::F, at: &mut RowBlocks, check: S::F) -> S::F {
    // SAFETY: the caller's promise.
    unsafe {
        let largest = S::max_lanes(S::max(S::abs(a), S::abs(b)));
        let mut inverse = 127.0 / largest;
        let mut d = largest / 127.0;
        if !inverse.is_finite() {
            (inverse, d) = (0.0, 0.0);
        }
        let inverse = S::splat(inverse);
        let (qa, qb) = (S::to_i32(S::mul(a, inverse)), S::to_i32(S::mul(b, inverse)));
        S::store_i8(at.q, qa);
        S::store_i8(at.q.add(LANES), qb);
        let first = S::sum_lanes(qa);
        let sum = first.wrapping_add(S::sum_lanes(qb));
        at.scale.write(Scale { d, d_sum: d * sum as f32, sum, first });
        at.q = at.q.wrapping_byte_add(at.record_bytes);
        at.scale = at.scale.wrapping_byte_add(at.record_bytes);
        let zero = S::splat(0.0);
        S::fma(b, zero, S::fma(a, zero, check))
    }
}
