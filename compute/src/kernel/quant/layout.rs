//! The memory layout of packed weights. A tile is 16 output rows, one SIMD lane each, as one sequential stream. Only
//! sizes and the places of scales are defined here.
//!
//! A quantised tile is a sequence of records: `HEAD` bytes of scales, then 1 or 8 blocks of 32 k. A block of b bits:
//!
//! | bits | vectors of 64 bytes; byte `4·lane + i` belongs to output row `lane` |
//! |---|---|
//! | 2, 3 | two vectors v of low bits, for j = 2v + t: bits 2t of k = 4j + i, bits 4 + 2t of k = 16 + 4j + i |
//! | 3 | then the third bits: bit j of k = 4j + i, bit 4 + j of k = 16 + 4j + i |
//! | 4, 5, 6 | j = 0…3: low nibble k = 4j + i, high nibble k = 16 + 4j + i |
//! | 5 | then the fifth bits: bit j of k = 4j + i, bit 4 + j of k = 16 + 4j + i |
//! | 6 | then two vectors v of upper bits, for j = 2v + t: bits 2t of k = 4j + i, bits 4 + 2t of k = 16 + 4j + i |
//! | 8 | j = 0…7: k = 4j + i, signed |
//!
//! A float tile is `[k][16]` in the type's own width.

use super::super::simd::{LANES, Simd};
use crate::gguf::GgmlType;
use crate::gguf::codebooks::{self, Codebook};
use std::ops::Range;

/// Output rows of a tile.
pub(crate) const TILE: usize = LANES;
/// Consecutive k that share one activation scale.
pub(super) const BLOCK: usize = 32;

/// The number of tiles of a matrix of `rows` rows.
pub(crate) fn tiles(rows: usize) -> usize {
    rows.div_ceil(TILE)
}

/// The rows of the given tiles.
pub(crate) fn rows_of(tiles: &Range<usize>, rows: usize) -> Range<usize> {
    (tiles.start * TILE).min(rows)..(tiles.end * TILE).min(rows)
}

/// Bytes of a packed matrix, a multiple of 16: whole tiles one after the other. `None` where the size does not fit
/// `usize` or `k` is not whole blocks of the type.
pub(crate) fn packed_bytes(ty: GgmlType, rows: usize, k: usize) -> Option<usize> {
    tile_bytes(ty, k)?.checked_mul(tiles(rows))
}

/// Bytes of a tile; `None` as for [`packed_bytes`].
pub(super) fn tile_bytes(ty: GgmlType, k: usize) -> Option<usize> {
    if !k.is_multiple_of(ty.block_len()) {
        return None;
    }
    match Layout::of(ty) {
        Layout::Float { width } => k.checked_mul(width * TILE),
        Layout::Quantized { bits, head, blocks, .. } => {
            (k / (BLOCK * blocks)).checked_mul(head + blocks * block_bytes(bits))
        }
    }
}

/// Bytes of a block without its scales.
pub(super) const fn block_bytes(bits: usize) -> usize {
    TILE * BLOCK / 8 * bits
}

/// The layout that a type is packed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// Bytes of an element.
    Float { width: usize },
    /// Records of `head` bytes of scales and `blocks` blocks of codes of `bits` bits, which stand for the values of
    /// `codebook`, or for themselves less `offset` where there is none.
    Quantized { bits: usize, offset: i32, codebook: Option<&'static Codebook>, head: usize, blocks: usize },
}

impl Layout {
    pub(super) fn of(ty: GgmlType) -> Layout {
        fn of<C: Scales>(bits: usize, offset: i32) -> Layout {
            Layout::Quantized { bits, offset, codebook: C::CODEBOOK, head: C::HEAD, blocks: C::BLOCKS }
        }
        match ty {
            GgmlType::F32 => Layout::Float { width: 4 },
            GgmlType::F16 | GgmlType::BF16 => Layout::Float { width: 2 },
            GgmlType::Q4_0 => of::<Scale>(4, 8),
            GgmlType::Q4_1 => of::<ScaleMin>(4, 0),
            GgmlType::Q5_0 => of::<Scale>(5, 16),
            GgmlType::Q5_1 => of::<ScaleMin>(5, 0),
            GgmlType::Q8_0 => of::<Scale>(8, 0),
            GgmlType::IQ4NL => of::<ScaleOfIq4>(4, 0),
            GgmlType::IQ4XS => of::<GroupsOfIq4>(4, 0),
            GgmlType::MXFP4 => of::<Exponents>(4, 0),
            GgmlType::Q2K => of::<HalvesMin>(2, 0),
            GgmlType::Q3K => of::<Halves>(3, 4),
            GgmlType::Q4K => of::<Groups>(4, 0),
            GgmlType::Q5K => of::<Groups>(5, 0),
            GgmlType::Q6K => of::<Halves>(6, 32),
        }
    }
}

/// How a block's minimum enters the sum.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Min {
    None,
    Added,
    Subtracted,
    /// Subtracted, with an integer minimum for each half ([`Scales::minima`]).
    OfHalves,
}

/// The layout of a record's scales, and the values that its codes stand for.
pub(super) trait Scales: Copy + Send + Sync + 'static {
    /// Blocks of a record.
    const BLOCKS: usize;
    /// Bytes of the scales of a record, before its blocks.
    const HEAD: usize;
    const MIN: Min;
    /// Whether the two halves of a block have their own integer scales ([`Scales::halves`]).
    const HALVES: bool = false;
    /// The values of the codes, where they are not evenly spaced.
    const CODEBOOK: Option<&'static Codebook> = None;

    /// Scale and minimum of the 16 rows for one block; zeros where there is no minimum.
    ///
    /// # Safety
    /// As for [`Simd`]; `head` points to a record, `block < BLOCKS`.
    unsafe fn read<S: Simd>(head: *const u8, block: usize) -> (S::F, S::F);

    /// The integer minima of the halves of one block; unspecified for layouts without them.
    ///
    /// # Safety
    /// As for [`Scales::read`].
    #[inline(always)]
    unsafe fn minima<S: Simd>(_head: *const u8, _block: usize) -> (S::I, S::I) {
        // SAFETY: the caller's promise.
        unsafe { (S::splat_i(0), S::splat_i(0)) }
    }

    /// The integer scales of the halves of one block; unspecified for layouts without them.
    ///
    /// # Safety
    /// As for [`Scales::read`].
    #[inline(always)]
    unsafe fn halves<S: Simd>(_head: *const u8, _block: usize) -> (S::I, S::I) {
        // SAFETY: the caller's promise.
        unsafe { (S::splat_i(0), S::splat_i(0)) }
    }
}

/// `[16]` f16 scales.
#[derive(Clone, Copy)]
pub(super) struct Scale;

impl Scales for Scale {
    const BLOCKS: usize = 1;
    const HEAD: usize = 2 * TILE;
    const MIN: Min = Min::None;

    #[inline(always)]
    unsafe fn read<S: Simd>(head: *const u8, _block: usize) -> (S::F, S::F) {
        // SAFETY: the caller's promise.
        unsafe { (S::load_f16(head.cast()), S::splat(0.0)) }
    }
}

/// [`Scale`], for codes of IQ4_NL.
#[derive(Clone, Copy)]
pub(super) struct ScaleOfIq4;

impl Scales for ScaleOfIq4 {
    const BLOCKS: usize = Scale::BLOCKS;
    const HEAD: usize = Scale::HEAD;
    const MIN: Min = Scale::MIN;
    const CODEBOOK: Option<&'static Codebook> = Some(&codebooks::IQ4);

    #[inline(always)]
    unsafe fn read<S: Simd>(head: *const u8, block: usize) -> (S::F, S::F) {
        // SAFETY: the caller's promise.
        unsafe { Scale::read::<S>(head, block) }
    }
}

/// `[16]` exponents of 8 bits; for codes of MXFP4.
#[derive(Clone, Copy)]
pub(super) struct Exponents;

impl Scales for Exponents {
    const BLOCKS: usize = 1;
    const HEAD: usize = TILE;
    const MIN: Min = Min::None;
    const CODEBOOK: Option<&'static Codebook> = Some(&codebooks::MXFP4);

    #[inline(always)]
    unsafe fn read<S: Simd>(head: *const u8, _block: usize) -> (S::F, S::F) {
        // SAFETY: the caller's promise.
        unsafe {
            let scale = S::load_e8m0(head);
            // The values are doubled, so the scale is halved; in this form infinity becomes NaN, as the type has it.
            (S::fnma(scale, S::splat(0.5), scale), S::splat(0.0))
        }
    }
}

/// `[16]` f16 scales, `[16]` f16 minima.
#[derive(Clone, Copy)]
pub(super) struct ScaleMin;

impl Scales for ScaleMin {
    const BLOCKS: usize = 1;
    const HEAD: usize = 4 * TILE;
    const MIN: Min = Min::Added;

    #[inline(always)]
    unsafe fn read<S: Simd>(head: *const u8, _block: usize) -> (S::F, S::F) {
        // SAFETY: the caller's promise.
        unsafe { (S::load_f16(head.cast()), S::load_f16(head.add(2 * TILE).cast())) }
    }
}

/// `[16]` f16 scales, `[16]` f16 scales of minima, then for each of 8 blocks `[16]` u8 scales and `[16]` u8 minima.
#[derive(Clone, Copy)]
pub(super) struct Groups;

impl Groups {
    /// Offset of the integers of `block`: scales, then minima.
    pub(super) const fn integers(block: usize) -> usize {
        4 * TILE + 2 * TILE * block
    }
}

impl Scales for Groups {
    const BLOCKS: usize = 8;
    const HEAD: usize = Groups::integers(8);
    const MIN: Min = Min::Subtracted;

    #[inline(always)]
    unsafe fn read<S: Simd>(head: *const u8, block: usize) -> (S::F, S::F) {
        // SAFETY: the caller's promise.
        unsafe {
            let integers = head.add(Groups::integers(block));
            let scale = S::to_f32(S::load_u8(integers));
            let min = S::to_f32(S::load_u8(integers.add(TILE)));
            (S::mul(S::load_f16(head.cast()), scale), S::mul(S::load_f16(head.add(2 * TILE).cast()), min))
        }
    }
}

/// `[16]` f16 scales, then for each of 8 blocks `[16]` i8 scales; for codes of IQ4_XS.
#[derive(Clone, Copy)]
pub(super) struct GroupsOfIq4;

impl GroupsOfIq4 {
    /// Offset of the integer scales of `block`.
    pub(super) const fn integers(block: usize) -> usize {
        2 * TILE + TILE * block
    }
}

impl Scales for GroupsOfIq4 {
    const BLOCKS: usize = 8;
    const HEAD: usize = GroupsOfIq4::integers(8);
    const MIN: Min = Min::None;
    const CODEBOOK: Option<&'static Codebook> = Some(&codebooks::IQ4);

    #[inline(always)]
    unsafe fn read<S: Simd>(head: *const u8, block: usize) -> (S::F, S::F) {
        // SAFETY: the caller's promise.
        unsafe {
            let scale = S::to_f32(S::load_i8(head.add(GroupsOfIq4::integers(block)).cast()));
            (S::mul(S::load_f16(head.cast()), scale), S::splat(0.0))
        }
    }
}

/// `[16]` f16 scales, then for each of 16 half blocks `[16]` i8 weights.
#[derive(Clone, Copy)]
pub(super) struct Halves;

impl Halves {
    /// Offset of the half block's integer scales.
    pub(super) const fn weights(half: usize) -> usize {
        2 * TILE + TILE * half
    }
}

impl Scales for Halves {
    const BLOCKS: usize = 8;
    const HEAD: usize = Halves::weights(16);
    const MIN: Min = Min::None;
    const HALVES: bool = true;

    #[inline(always)]
    unsafe fn read<S: Simd>(head: *const u8, _block: usize) -> (S::F, S::F) {
        // SAFETY: the caller's promise.
        unsafe { (S::load_f16(head.cast()), S::splat(0.0)) }
    }

    #[inline(always)]
    unsafe fn halves<S: Simd>(head: *const u8, block: usize) -> (S::I, S::I) {
        // SAFETY: the caller's promise.
        unsafe {
            let weights = head.add(Halves::weights(2 * block));
            (S::load_i8(weights.cast()), S::load_i8(weights.add(TILE).cast()))
        }
    }
}

/// `[16]` f16 scales, `[16]` f16 scales of minima, then for each of 16 half blocks `[16]` bytes: an integer scale in the low
/// four bits, an integer minimum in the high four.
#[derive(Clone, Copy)]
pub(super) struct HalvesMin;

impl HalvesMin {
    /// Offset of the half block's integers.
    pub(super) const fn integers(half: usize) -> usize {
        4 * TILE + TILE * half
    }
}

impl Scales for HalvesMin {
    const BLOCKS: usize = 8;
    const HEAD: usize = HalvesMin::integers(16);
    const MIN: Min = Min::OfHalves;
    const HALVES: bool = true;

    #[inline(always)]
    unsafe fn read<S: Simd>(head: *const u8, _block: usize) -> (S::F, S::F) {
        // SAFETY: the caller's promise.
        unsafe { (S::load_f16(head.cast()), S::load_f16(head.add(2 * TILE).cast())) }
    }

    #[inline(always)]
    unsafe fn halves<S: Simd>(head: *const u8, block: usize) -> (S::I, S::I) {
        // SAFETY: the caller's promise.
        unsafe {
            let integers = head.add(HalvesMin::integers(2 * block));
            (S::load_low_nibbles(integers), S::load_low_nibbles(integers.add(TILE)))
        }
    }

    #[inline(always)]
    unsafe fn minima<S: Simd>(head: *const u8, block: usize) -> (S::I, S::I) {
        // SAFETY: the caller's promise.
        unsafe {
            let integers = head.add(HalvesMin::integers(2 * block));
            (S::load_high_nibbles(integers), S::load_high_nibbles(integers.add(TILE)))
        }
    }
}
