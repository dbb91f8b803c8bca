//! The register tile of quantised weights: 16 output rows times N activation rows over all k. One kernel for every
//! layout, parameterised by the places of the scales and the bits of a code. Threads and blocking are the caller's.
// Register tiles are read by index: the loops are unrolled whole.
#![allow(clippy::needless_range_loop)]

use super::super::simd::Simd;
use super::layout::{BLOCK, Min, Scales, block_bytes};
use super::quantized::Scale;

/// Distance of prefetches: what one core reads while memory answers, some 100 ns at 25 to 35 GB/s, and a part of the first
/// cache. The processor's own prefetching stops at page ends, and with few rows blocks are consumed faster than they arrive.
const AHEAD_BYTES: usize = 4096;

/// N activation rows of one group.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub(super) q: *const i8,
    pub(super) scale: *const Scale,
    /// Bytes from a block to the next.
    pub(super) record_bytes: usize,
}

/// The sums of one tile with codes of `BITS` bits and a zero point of 2 to the `SHIFT` (none for `SHIFT` = 0).
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
            prefetch::<S>(head, C::HEAD);
            let mut block = head.add(C::HEAD);
            for b in 0..C::BLOCKS {
                prefetch::<S>(block, block_bytes(BITS));
                let mut sums;
                if C::HALVES {
                    // The halves are computed in turn, so that registers hold the sums of one half at a time.
                    let (first, second) = C::halves::<S>(head, b);
                    sums = dots::<S, C, BITS, SHIFT, N, true, false>(block, x.q);
                    for i in 0..N {
                        if SHIFT > 0 {
                            let zero = S::shift_left::<SHIFT>(S::splat_i((*x.scale.add(i)).first));
                            sums[i] = S::sub_i(sums[i], zero);
                        }
                        sums[i] = S::mul_i(sums[i], first);
                    }
                    let mut others = dots::<S, C, BITS, SHIFT, N, false, true>(block, x.q);
                    for i in 0..N {
                        if SHIFT > 0 {
                            let scale = &*x.scale.add(i);
                            let zero = S::shift_left::<SHIFT>(S::sub_i(S::splat_i(scale.sum), S::splat_i(scale.first)));
                            others[i] = S::sub_i(others[i], zero);
                        }
                        sums[i] = S::add_i(sums[i], S::mul_i(others[i], second));
                    }
                } else {
                    sums = dots::<S, C, BITS, SHIFT, N, true, true>(block, x.q);
                    for i in 0..N {
                        let sum = S::splat_i((*x.scale.add(i)).sum);
                        if signed::<C, BITS, SHIFT>() && S::I8_BIAS != 0 {
                            debug_assert!(S::I8_BIAS == 128);
                            sums[i] = S::sub_i(sums[i], S::shift_left::<7>(sum));
                        } else if SHIFT > 0 {
                            sums[i] = S::sub_i(sums[i], S::shift_left::<SHIFT>(sum));
                        }
                    }
                }
                let (d, m) = C::read::<S>(head, b);
                for i in 0..N {
                    let scale = &*x.scale.add(i);
                    acc[i] = S::fma(S::mul(d, S::splat(scale.d)), S::to_f32(sums[i]), acc[i]);
                    match C::MIN {
                        Min::None => {}
                        Min::Added => acc[i] = S::fma(m, S::splat(scale.d_sum), acc[i]),
                        Min::OfHalves => {
                            let (first, second) = C::minima::<S>(head, b);
                            let rest = S::sub_i(S::splat_i(scale.sum), S::splat_i(scale.first));
                            let sum = S::add_i(S::mul_i(S::splat_i(scale.first), first), S::mul_i(rest, second));
                            acc[i] = S::fnma(S::mul(m, S::splat(scale.d)), S::to_f32(sum), acc[i]);
                        }
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

/// Whether the codes become signed bytes, not unsigned ones with a zero point.
const fn signed<C: Scales, const BITS: usize, const SHIFT: u32>() -> bool {
    BITS == 8 || C::CODEBOOK.is_some() && SHIFT == 0
}

/// The values of a code book plus its zero point, for each quarter of a vector.
const fn quarters<C: Scales, const SHIFT: u32>() -> [u8; 64] {
    let zero = if SHIFT == 0 { 0 } else { 1 << SHIFT };
    let mut bytes = [0; 64];
    if let Some(values) = C::CODEBOOK {
        let mut i = 0;
        while i < 64 {
            let value = values[i % 16] as i32 + zero;
            assert!(SHIFT == 0 || value >= 0 && value < 32, "the dots are settled as those of 5 bits");
            bytes[i] = value as u8;
            i += 1;
        }
    }
    bytes
}

/// Prefetches what comes [`AHEAD_BYTES`] behind the `len` bytes that are about to be read.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
unsafe fn prefetch<S: Simd>(from: *const u8, len: usize) {
    let mut line = 0;
    while line < len {
        // SAFETY: the caller's promise; any address may be prefetched.
        unsafe { S::prefetch(from.wrapping_add(AHEAD_BYTES + line)) };
        line += 64;
    }
}

/// The integer dots of one block with N rows, or of one of its halves alone.
///
/// # Safety
/// As for [`tile`].
#[inline(always)]
unsafe fn dots<
    S: Simd,
    C: Scales,
    const BITS: usize,
    const SHIFT: u32,
    const N: usize,
    const FIRST: bool,
    const SECOND: bool,
>(
    block: *const u8,
    q: *const i8,
) -> [S::I; N] {
    // SAFETY: the caller's promise: `block_bytes(BITS)` bytes at `block`, `N` times 32 at `q`.
    unsafe {
        if S::DOTS_OF_ROWS && N > 1 {
            let w = weights::<S, C, BITS, SHIFT>(block);
            return match (FIRST, SECOND) {
                (true, true) => S::dots_of_rows(w, q, BLOCK),
                (true, false) => S::dots_of_rows([w[0], w[1], w[2], w[3]], q, BLOCK),
                _ => S::dots_of_rows([w[4], w[5], w[6], w[7]], q.add(BLOCK / 2), BLOCK),
            };
        }
        let mut sums = [S::splat_i(0); N];
        if BITS == 8 {
            for j in 0..8 {
                let w = S::prepare_i8(S::load_b(block.add(64 * j)));
                for i in 0..N {
                    sums[i] = S::dot_i8(sums[i], w, S::splat_b(q.add(BLOCK * i + 4 * j)));
                }
            }
            return sums;
        }
        let mut codes = Codes::<S>::new::<C, BITS, SHIFT>(block);
        if signed::<C, BITS, SHIFT>() {
            for j in 0..4 {
                let (low, high) = codes.next::<C, BITS>(j);
                for i in 0..N {
                    let x = q.add(BLOCK * i + 4 * j);
                    sums[i] = S::dot_i8(sums[i], low, S::splat_b(x));
                    sums[i] = S::dot_i8(sums[i], high, S::splat_b(x.add(16)));
                }
            }
            return sums;
        }
        let mut dots = [S::no_dots(); N];
        for j in 0..4 {
            let (low, high) = codes.next::<C, BITS>(j);
            for i in 0..N {
                let x = q.add(BLOCK * i + 4 * j);
                if FIRST {
                    dots[i] = S::add_dots(dots[i], low, S::splat_b(x));
                }
                if SECOND {
                    dots[i] = S::add_dots(dots[i], high, S::splat_b(x.add(16)));
                }
                // Settled before 16 bits overflow: 8 products of 4 bits, 4 of 5 bits, 2 of 6 bits.
                if j == 1 && (BITS > 4 || C::CODEBOOK.is_some()) {
                    dots[i] = S::settle_dots(dots[i]);
                }
            }
        }
        for i in 0..N {
            sums[i] = S::sum_dots(dots[i]);
        }
        sums
    }
}

/// The weights of one block in order of k, four of each row in a vector; signed ones as [`Simd::dot_i8`] takes them.
///
/// # Safety
/// As for [`Simd`]; `block_bytes(BITS)` bytes at `block`.
#[inline(always)]
unsafe fn weights<S: Simd, C: Scales, const BITS: usize, const SHIFT: u32>(block: *const u8) -> [S::B; 8] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut w = [S::load_b(block); 8];
        if BITS == 8 {
            for j in 0..8 {
                w[j] = S::prepare_i8(S::load_b(block.add(64 * j)));
            }
        } else {
            let mut codes = Codes::<S>::new::<C, BITS, SHIFT>(block);
            for j in 0..4 {
                (w[j], w[j + 4]) = codes.next::<C, BITS>(j);
            }
        }
        w
    }
}

/// The codes of a block of less than 8 bits, unpacked step by step.
struct Codes<S: Simd> {
    block: *const u8,
    /// The values of a code book.
    values: S::B,
    /// The bits above the nibbles, or above two bits: those of j = 0 are in bits 0 and 4; each step shifts the next ones there.
    plane: S::B,
}

impl<S: Simd> Codes<S> {
    /// # Safety
    /// As for [`weights`].
    #[inline(always)]
    unsafe fn new<C: Scales, const BITS: usize, const SHIFT: u32>(block: *const u8) -> Codes<S> {
        // SAFETY: the caller's promise.
        unsafe {
            let values = S::load_b(const { &quarters::<C, SHIFT>() }.as_ptr());
            Codes {
                block,
                values: if signed::<C, BITS, SHIFT>() { S::prepare_i8(values) } else { values },
                plane: S::load_b(block.add(match BITS {
                    3 => 128,
                    2 | 4 => 0,
                    _ => 256,
                })),
            }
        }
    }

    /// The values of k = 4j … 4j + 3 and of k = 16 + 4j …; j = 0, 1, 2, 3 in turn.
    ///
    /// # Safety
    /// As for [`weights`].
    #[inline(always)]
    unsafe fn next<C: Scales, const BITS: usize>(&mut self, j: usize) -> (S::B, S::B) {
        let Codes { block, values, plane } = self;
        // SAFETY: the caller's promise.
        unsafe {
            let (mut low, mut high);
            if BITS < 4 {
                let mut pairs = S::load_b(block.add(64 * (j / 2)));
                if j % 2 == 1 {
                    pairs = S::shift_right_2(pairs);
                }
                (low, high) = (S::masked(pairs, 0x03), S::masked(S::high_nibbles(pairs), 0x03));
                if BITS == 3 {
                    low = S::or_masked(low, S::shift_right_2(S::shift_left_4(*plane)), 0x04);
                    high = S::or_masked(high, S::shift_right_2(*plane), 0x04);
                    *plane = S::shift_right_1(*plane);
                }
            } else {
                let nibbles = S::load_b(block.add(64 * j));
                (low, high) = (S::low_nibbles(nibbles), S::high_nibbles(nibbles));
                if C::CODEBOOK.is_some() {
                    (low, high) = (S::lookup(*values, low), S::lookup(*values, high));
                }
            }
            if BITS > 4 {
                if BITS == 6 && j == 2 {
                    *plane = S::load_b(block.add(320));
                }
                let mask = if BITS == 5 { 0x10 } else { 0x30 };
                low = S::or_masked(low, S::shift_left_4(*plane), mask);
                high = S::or_masked(high, *plane, mask);
                *plane = if BITS == 5 { S::shift_right_1(*plane) } else { S::shift_right_2(*plane) };
            }
            (low, high)
        }
    }
}
