//! Packs GGUF blocks into tiles: one unpacker per format, one packer per layout. Bits are moved exactly; nothing is
//! computed.

use super::layout::{BLOCK, Groups, GroupsOfIq4, Halves, HalvesMin, Layout, TILE, block_bytes, tile_bytes};
use crate::gguf::{GgmlType, scales};
use std::ops::Range;

/// 32 codes of up to 8 bits, in order of k; four to a little-endian word.
type Codes = [u32; 8];

/// Packs the tiles `tiles` of a matrix `[rows, k]`, whose blocks are `src` row by row, into `dst`, which holds those
/// tiles only. Threads may pack different tiles at the same time.
///
/// # Panics
/// Where `src` or `dst` does not have the size of the shape ([`packed_bytes`](super::packed_bytes)).
pub(crate) fn pack(ty: GgmlType, rows: usize, k: usize, src: &[u8], tiles: Range<usize>, dst: &mut [u8]) {
    let row_bytes = k / ty.block_len() * ty.block_bytes();
    let Some(tile_bytes) = tile_bytes(ty, k) else {
        panic!("k = {k} is not whole blocks of {ty}");
    };
    assert!(src.len() == rows * row_bytes, "{} bytes are not a matrix {rows} x {k} of {ty}", src.len());
    assert!(tiles.end <= rows.div_ceil(TILE) && dst.len() == tiles.len() * tile_bytes, "tiles of {rows} x {k} {ty}");
    if tile_bytes == 0 {
        return;
    }
    for (tile, dst) in tiles.zip(dst.chunks_exact_mut(tile_bytes)) {
        let rows = &src[tile * TILE * row_bytes..rows.min((tile + 1) * TILE) * row_bytes];
        if rows.len() < TILE * row_bytes {
            dst.fill(0);
        }
        match ty {
            GgmlType::F32 => floats::<4>(rows, k, dst),
            GgmlType::F16 | GgmlType::BF16 => floats::<2>(rows, k, dst),
            GgmlType::Q4_0 => records::<Q4_0>(rows, row_bytes, dst),
            GgmlType::Q4_1 => records::<Q4_1>(rows, row_bytes, dst),
            GgmlType::Q5_0 => records::<Q5_0>(rows, row_bytes, dst),
            GgmlType::Q5_1 => records::<Q5_1>(rows, row_bytes, dst),
            GgmlType::Q8_0 => records::<Q8_0>(rows, row_bytes, dst),
            GgmlType::IQ4NL => records::<Iq4Nl>(rows, row_bytes, dst),
            GgmlType::IQ4XS => records::<Iq4Xs>(rows, row_bytes, dst),
            GgmlType::MXFP4 => records::<Mxfp4>(rows, row_bytes, dst),
            GgmlType::Q2K => records::<Q2K>(rows, row_bytes, dst),
            GgmlType::Q3K => records::<Q3K>(rows, row_bytes, dst),
            GgmlType::Q4K => records::<Q4K>(rows, row_bytes, dst),
            GgmlType::Q5K => records::<Q5K>(rows, row_bytes, dst),
            GgmlType::Q6K => records::<Q6K>(rows, row_bytes, dst),
        }
    }
}

/// `[rows][k]` to `[k][16]`, elements of `W` bytes.
fn floats<const W: usize>(rows: &[u8], k: usize, dst: &mut [u8]) {
    for (lane, row) in rows.chunks_exact(k * W).enumerate() {
        let (row, _) = row.as_chunks::<W>();
        for (element, dst) in row.iter().zip(dst.as_chunks_mut::<W>().0[lane..].iter_mut().step_by(TILE)) {
            *dst = *element;
        }
    }
}

/// How a GGUF type stores scales and codes. `block` is one of the type's own blocks, of 32 or 256 elements.
trait Source {
    const TYPE: GgmlType;
    /// Bits of a code.
    const BITS: usize;
    /// Copies the scales of row `lane` into the record's head.
    fn scales(block: &[u8], lane: usize, head: &mut [u8]);
    /// The codes of the `group`th 32 elements.
    fn codes(block: &[u8], group: usize) -> Codes;
}

fn records<T: Source>(rows: &[u8], row_bytes: usize, dst: &mut [u8]) {
    let Layout::Quantized { bits, head, blocks, .. } = Layout::of(T::TYPE) else {
        return;
    };
    debug_assert_eq!(bits, T::BITS);
    let source_bytes = T::TYPE.block_bytes();
    for (record, dst) in dst.chunks_exact_mut(head + blocks * block_bytes(T::BITS)).enumerate() {
        let (head, packed) = dst.split_at_mut(head);
        for (lane, row) in rows.chunks_exact(row_bytes).enumerate() {
            let source = &row[record * source_bytes..(record + 1) * source_bytes];
            T::scales(source, lane, head);
            for (group, packed) in packed.chunks_exact_mut(block_bytes(T::BITS)).enumerate() {
                interleave::<T>(T::codes(source, group), lane, packed.as_chunks_mut::<4>().0);
            }
        }
    }
}

/// Writes the codes of one row of a block to its places; `packed`: `[vector][16]` words.
#[inline(always)]
fn interleave<T: Source>(codes: Codes, lane: usize, packed: &mut [[u8; 4]]) {
    let mut put = |vector: usize, word: u32| packed[vector * TILE + lane] = word.to_le_bytes();
    if T::BITS == 8 {
        for (vector, word) in codes.into_iter().enumerate() {
            put(vector, word);
        }
        return;
    }
    if T::BITS < 4 {
        let low = |word: u32| word & 0x0303_0303;
        for v in 0..2 {
            let pair = |t: usize| (low(codes[2 * v + t]) | low(codes[2 * v + t + 4]) << 4) << (2 * t);
            put(v, pair(0) | pair(1));
        }
        if T::BITS == 3 {
            let third = |word: u32| (word >> 2) & 0x0101_0101;
            put(2, (0..4).fold(0, |bits, j| bits | third(codes[j]) << j | third(codes[j + 4]) << (4 + j)));
        }
        return;
    }
    for j in 0..4 {
        put(j, (codes[j] & LOW_4) | ((codes[j + 4] & LOW_4) << 4));
    }
    if T::BITS == 5 {
        let fifth = |word: u32| (word >> 4) & 0x0101_0101;
        put(4, (0..4).fold(0, |bits, j| bits | fifth(codes[j]) << j | fifth(codes[j + 4]) << (4 + j)));
    }
    if T::BITS == 6 {
        let upper = |word: u32| (word >> 4) & 0x0303_0303;
        for v in 0..2 {
            let pair = |t: usize| (upper(codes[2 * v + t]) | upper(codes[2 * v + t + 4]) << 4) << (2 * t);
            put(4 + v, pair(0) | pair(1));
        }
    }
}

const LOW_4: u32 = 0x0f0f_0f0f;

fn word(bytes: &[u8], index: usize) -> u32 {
    let at = 4 * index;
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Elements 0…15 in the low nibbles of 16 bytes, 16…31 in the high ones.
fn nibbles(bytes: &[u8]) -> Codes {
    std::array::from_fn(|i| (word(bytes, i % 4) >> (i / 4 * 4)) & LOW_4)
}

/// Adds bit `i` of `bits` to element `i` as its fifth.
fn with_fifths(codes: Codes, bits: u32) -> Codes {
    // Four bits into four bytes: copies shifted by 0, 7, 14 and 21 do not overlap.
    std::array::from_fn(|i| codes[i] | ((((bits >> (4 * i)) & 15) * 0x0020_4081) & 0x0101_0101) << 4)
}

/// Copies the f16 at `from` to place `index` of the head's `[…][16]` f16 numbers for this lane.
fn put_half(block: &[u8], from: usize, head: &mut [u8], index: usize, lane: usize) {
    let at = 2 * (TILE * index + lane);
    head[at..at + 2].copy_from_slice(&block[from..from + 2]);
}

/// The types with blocks of 32 elements, which begin with f16 numbers.
macro_rules! simple {
    ($name:ident, $ty:expr, $bits:expr, $halves:expr, |$block:ident| $codes:expr) => {
        struct $name;
        impl Source for $name {
            const TYPE: GgmlType = $ty;
            const BITS: usize = $bits;
            #[inline(always)]
            fn scales(block: &[u8], lane: usize, head: &mut [u8]) {
                for index in 0..$halves {
                    put_half(block, 2 * index, head, index, lane);
                }
            }
            #[inline(always)]
            fn codes($block: &[u8], _group: usize) -> Codes {
                $codes
            }
        }
    };
}

simple!(Q4_0, GgmlType::Q4_0, 4, 1, |block| nibbles(&block[2..18]));
simple!(Q4_1, GgmlType::Q4_1, 4, 2, |block| nibbles(&block[4..20]));
simple!(Q5_0, GgmlType::Q5_0, 5, 1, |block| with_fifths(nibbles(&block[6..22]), word(&block[2..6], 0)));
simple!(Q5_1, GgmlType::Q5_1, 5, 2, |block| with_fifths(nibbles(&block[8..24]), word(&block[4..8], 0)));
simple!(Q8_0, GgmlType::Q8_0, 8, 1, |block| std::array::from_fn(|i| word(&block[2..34], i)));
simple!(Iq4Nl, GgmlType::IQ4NL, 4, 1, |block| nibbles(&block[2..18]));

/// An exponent of 8 bits, 16 bytes of nibbles.
struct Mxfp4;
impl Source for Mxfp4 {
    const TYPE: GgmlType = GgmlType::MXFP4;
    const BITS: usize = 4;
    #[inline(always)]
    fn scales(block: &[u8], lane: usize, head: &mut [u8]) {
        head[lane] = block[0];
    }
    #[inline(always)]
    fn codes(block: &[u8], _group: usize) -> Codes {
        nibbles(&block[1..17])
    }
}

/// d f16, 6 bytes of scales, 128 bytes of nibbles: 16 bytes for each group.
struct Iq4Xs;
impl Source for Iq4Xs {
    const TYPE: GgmlType = GgmlType::IQ4XS;
    const BITS: usize = 4;
    fn scales(block: &[u8], lane: usize, head: &mut [u8]) {
        put_half(block, 0, head, 0, lane);
        for (group, scale) in scales::iq4_xs(&block[2..8]).into_iter().enumerate() {
            head[GroupsOfIq4::integers(group) + lane] = scale as u8;
        }
    }
    #[inline(always)]
    fn codes(block: &[u8], group: usize) -> Codes {
        nibbles(&block[8 + 16 * group..][..16])
    }
}

/// The scales and minima of Q4_K and Q5_K.
fn group_scales(block: &[u8], lane: usize, head: &mut [u8]) {
    put_half(block, 0, head, 0, lane);
    put_half(block, 2, head, 1, lane);
    for (group, (scale, min)) in scales::q4_k(&block[4..16]).into_iter().enumerate() {
        let at = Groups::integers(group) + lane;
        head[at] = scale;
        head[at + TILE] = min;
    }
}

/// d f16, dmin f16, 12 bytes of scales and minima, 128 bytes of nibbles: 32 bytes for each pair of groups.
struct Q4K;
impl Source for Q4K {
    const TYPE: GgmlType = GgmlType::Q4K;
    const BITS: usize = 4;
    fn scales(block: &[u8], lane: usize, head: &mut [u8]) {
        group_scales(block, lane, head);
    }
    #[inline(always)]
    fn codes(block: &[u8], group: usize) -> Codes {
        let qs = &block[16 + group / 2 * 32..][..32];
        std::array::from_fn(|i| (word(qs, i) >> (group % 2 * 4)) & LOW_4)
    }
}

/// As Q4_K, with 32 bytes of fifth bits before the nibbles: bit `group` of byte `j`.
struct Q5K;
impl Source for Q5K {
    const TYPE: GgmlType = GgmlType::Q5K;
    const BITS: usize = 5;
    fn scales(block: &[u8], lane: usize, head: &mut [u8]) {
        group_scales(block, lane, head);
    }
    #[inline(always)]
    fn codes(block: &[u8], group: usize) -> Codes {
        let (qh, qs) = (&block[16..48], &block[48 + group / 2 * 32..][..32]);
        std::array::from_fn(|i| {
            ((word(qs, i) >> (group % 2 * 4)) & LOW_4) | ((word(qh, i) >> group) & 0x0101_0101) << 4
        })
    }
}

/// 16 bytes of scales and minima, 64 bytes of codes, d f16, dmin f16. Of a half of 128 elements, quarter `t` has its codes in
/// 32 bytes at `2·t`.
struct Q2K;
impl Source for Q2K {
    const TYPE: GgmlType = GgmlType::Q2K;
    const BITS: usize = 2;
    fn scales(block: &[u8], lane: usize, head: &mut [u8]) {
        put_half(block, 80, head, 0, lane);
        put_half(block, 82, head, 1, lane);
        for (half, both) in block[..16].iter().enumerate() {
            head[HalvesMin::integers(half) + lane] = *both;
        }
    }
    #[inline(always)]
    fn codes(block: &[u8], group: usize) -> Codes {
        let qs = &block[16 + group / 4 * 32..][..32];
        std::array::from_fn(|i| (word(qs, i) >> (group % 4 * 2)) & 0x0303_0303)
    }
}

/// 32 bytes of third bits (bit `group` of byte `j`), 64 bytes of low two bits, 12 bytes of scales, d f16. Of a half of 128 elements,
/// quarter `t` has its low bits in 32 bytes at `2·t`.
struct Q3K;
impl Source for Q3K {
    const TYPE: GgmlType = GgmlType::Q3K;
    const BITS: usize = 3;
    fn scales(block: &[u8], lane: usize, head: &mut [u8]) {
        put_half(block, 108, head, 0, lane);
        for (half, scale) in scales::q3_k(&block[96..108]).into_iter().enumerate() {
            head[Halves::weights(half) + lane] = scale as u8;
        }
    }
    #[inline(always)]
    fn codes(block: &[u8], group: usize) -> Codes {
        let (third, low) = (&block[..32], &block[32 + group / 4 * 32..][..32]);
        std::array::from_fn(|i| {
            ((word(low, i) >> (group % 4 * 2)) & 0x0303_0303) | ((word(third, i) >> group) & 0x0101_0101) << 2
        })
    }
}

/// 128 bytes of low nibbles, 64 bytes of upper two bits, 16 signed scales, d f16. Halves of 128 elements: quarter `t` of
/// one has its nibbles in bytes `32·(t mod 2)…` (low ones first) and its upper bits at `2·t`.
struct Q6K;
impl Source for Q6K {
    const TYPE: GgmlType = GgmlType::Q6K;
    const BITS: usize = 6;
    fn scales(block: &[u8], lane: usize, head: &mut [u8]) {
        put_half(block, 208, head, 0, lane);
        for (half, weight) in block[192..208].iter().enumerate() {
            head[Halves::weights(half) + lane] = *weight;
        }
    }
    #[inline(always)]
    fn codes(block: &[u8], group: usize) -> Codes {
        let (half, quarter) = (group / 4, group % 4);
        let low = &block[half * 64 + quarter % 2 * BLOCK..][..BLOCK];
        let high = &block[128 + half * 32..][..32];
        std::array::from_fn(|i| {
            ((word(low, i) >> (quarter / 2 * 4)) & LOW_4) | ((word(high, i) >> (quarter * 2)) & 0x0303_0303) << 4
        })
    }
}
