//! The register tile of quantised weights: 16 output rows times N activation rows over all k. One kernel for every layout,
//! with the scales' places and the width of a code as parameters. It knows nothing of threads or blocking.
// Register tiles are read by index: the loops are unrolled whole.
#![allow(clippy::needless_range_loop)]

use super::super::simd::Simd;
use super::layout::{BLOCK, Min, Scales, block_bytes};
use super::quantized::Scale;

/// How far ahead of a tile with few rows the weights are asked for.
const AHEAD_BYTES: usize = 1024;

/// N activation rows of one group.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub(super) q: *const i8,
    pub(super) scale: *const Scale,
    /// From a block to the next.
    pub(super) record_bytes: usize,
}

/// The sums of one tile with codes of `BITS` bits, of which 2 to the `SHIFT` is the zero (none for `SHIFT` = 0).
///
/// # Safety
/// As for [`Simd`]; `w` points to `records` packed records, `x` to as many blocks of N rows.
#[inline(always)]
pub(super) unsafe fn tile<S: Simd, C: Scales, const BITS: usize, const SHIFT: u32, const N: usize>(
    w: *const u8,
    records: usize,
    mut x: Rows,
) -> [S::F; N] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut acc = [S::splat(0.0); N];
        let mut head = w;
        for _ in 0..records {
            let mut block = head.add(C::HEAD);
            for b in 0..C::BLOCKS {
                if N <= 2 {
                    let mut line = 0;
                    while line < block_bytes(BITS) {
                        S::prefetch(block.wrapping_add(AHEAD_BYTES + line));
                        line += 64;
                    }
                }
                let (low, high) = dots::<S, BITS, N>(block, x.q, C::HALVES);
                let (d, m) = C::read::<S>(head, b);
                let (weight_low, weight_high) = C::halves::<S>(head, b);
                for i in 0..N {
                    let scale = &*x.scale.add(i);
                    let sum = if C::HALVES {
                        let first = S::splat_i(scale.first);
                        let second = S::sub_i(S::splat_i(scale.sum), first);
                        let low = S::sub_i(low[i], S::shift_left::<SHIFT>(first));
                        let high = S::sub_i(high[i], S::shift_left::<SHIFT>(second));
                        S::add_i(S::mul_i(low, weight_low), S::mul_i(high, weight_high))
                    } else if SHIFT > 0 || (BITS == 8 && S::I8_BIAS != 0) {
                        debug_assert!(BITS != 8 || S::I8_BIAS == 128);
                        let sum = S::splat_i(scale.sum);
                        let zero = if BITS == 8 { S::shift_left::<7>(sum) } else { S::shift_left::<SHIFT>(sum) };
                        S::sub_i(low[i], zero)
                    } else {
                        low[i]
                    };
                    acc[i] = S::fma(S::mul(d, S::splat(scale.d)), S::to_f32(sum), acc[i]);
                    match C::MIN {
                        Min::None => {}
                        Min::Added => acc[i] = S::fma(m, S::splat(scale.d_sum), acc[i]),
                        Min::Subtracted => acc[i] = S::fnma(m, S::splat(scale.d_sum), acc[i]),
                    }
                }
                x.q = x.q.wrapping_byte_add(x.record_bytes);
                x.scale = x.scale.wrapping_byte_add(x.record_bytes);
                block = block.add(block_bytes(BITS));
            }
            head = head.add(C::HEAD + C::BLOCKS * block_bytes(BITS));
        }
        acc
    }
}

/// The integer dots of one block with N rows; in `apart`, those of its two halves.
///
/// # Safety
/// As for [`tile`].
#[inline(always)]
unsafe fn dots<S: Simd, const BITS: usize, const N: usize>(
    block: *const u8,
    q: *const i8,
    apart: bool,
) -> ([S::I; N], [S::I; N]) {
    // SAFETY: the caller's promise: `block_bytes(BITS)` bytes at `block`, `N` times 32 at `q`.
    unsafe {
        let (mut low, mut high) = ([S::splat_i(0); N], [S::splat_i(0); N]);
        if BITS == 8 {
            for j in 0..8 {
                let w = S::prepare_i8(S::load_b(block.add(64 * j)));
                for i in 0..N {
                    low[i] = S::dot_i8(low[i], w, S::splat_b(q.add(BLOCK * i + 4 * j)));
                }
            }
            return (low, high);
        }
        let (mut first, mut second) = ([S::no_dots(); N], [S::no_dots(); N]);
        // The bits above the nibbles: those of j = 0 in bits 0 and 4, moved down for the next j.
        let mut plane = S::load_b(block.add(if BITS > 4 { 256 } else { 0 }));
        for j in 0..4 {
            let nibbles = S::load_b(block.add(64 * j));
            let (mut w_first, mut w_second) = (S::low_nibbles(nibbles), S::high_nibbles(nibbles));
            if BITS > 4 {
                if BITS == 6 && j == 2 {
                    plane = S::load_b(block.add(320));
                }
                let mask = if BITS == 5 { 0x10 } else { 0x30 };
                w_first = S::or_masked(w_first, S::raise_4(plane), mask);
                w_second = S::or_masked(w_second, plane, mask);
                plane = if BITS == 5 { S::lower_1(plane) } else { S::lower_2(plane) };
            }
            for i in 0..N {
                let x = q.add(BLOCK * i + 4 * j);
                first[i] = S::add_dots(first[i], w_first, S::splat_b(x));
                if apart {
                    second[i] = S::add_dots(second[i], w_second, S::splat_b(x.add(16)));
                } else {
                    first[i] = S::add_dots(first[i], w_second, S::splat_b(x.add(16)));
                }
                // As many as fit: 8 of 4 bits, 4 of 5 bits, 2 of 6 bits.
                if j == 1 && BITS > 4 {
                    first[i] = S::settle_dots(first[i]);
                    second[i] = S::settle_dots(second[i]);
                }
            }
        }
        for i in 0..N {
            low[i] = S::sum_dots(first[i]);
            high[i] = S::sum_dots(second[i]);
        }
        (low, high)
    }
}
