//! Sixteen lanes of SIMD, the same on every processor: kernels of the layer engine are written once over [`Simd`] and
//! run with AVX-512 VNNI, AVX2 without or with VNNI, NEON without or with matrix products, or portable code, with the same
//! bits (DESIGN §5). An operation here is exact (integers, comparisons, conversions that fit) or rounded once as IEEE 754
//! says; nothing approximates.
// Rows are read by index: the loops are unrolled whole.
#![allow(unsafe_code, clippy::needless_range_loop)]

use crate::Isa;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod plain;
#[cfg(test)]
mod tests;

/// Lanes of every vector: rows of a weight tile, keys of an attention block, partial sums of a reduction.
pub(crate) const LANES: usize = 16;

/// One family of vectors of [`LANES`] lanes.
///
/// # Safety
/// A method may be called only where the processor has the family's instructions, which [`dispatch`] ensures.
/// Implementations are `#[inline(always)]`: they become instructions of the caller that [`dispatch`] compiled for the
/// family.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    /// 16 × f32.
    type F: Copy;
    /// 16 × i32.
    type I: Copy;
    /// 16 lanes of 4 bytes.
    type B: Copy;
    /// 16 running sums of unsigned-by-signed products, in whatever width the processor adds them fastest.
    type D: Copy;
    /// Activation rows of a register tile: as many as keep their sums in registers, at most 8.
    const ROWS: usize;
    /// Vectors that the registers hold.
    const VECTORS: usize;
    /// Bias of [`Simd::dot_i8`]: each lane has this times the sum of the four `x` added to the dot product. (VNNI multiplies
    /// unsigned by signed, so weights are shifted by 128.) The caller subtracts the bias once per block.
    const I8_BIAS: i32;
    /// Whether [`Simd::dots_of_rows`] multiplies several rows at once; there is no bias then.
    const DOTS_OF_ROWS: bool = false;

    /// All lanes `x`.
    unsafe fn splat(x: f32) -> Self::F;
    /// Lane i is `from[i]`.
    unsafe fn load(from: *const f32) -> Self::F;
    /// Writes 16 floats.
    unsafe fn store(to: *mut f32, x: Self::F);
    /// Sixteen half-precision numbers (IEEE binary16), widened exactly.
    unsafe fn load_f16(from: *const u16) -> Self::F;
    /// Rounded to half precision, to nearest even.
    unsafe fn store_f16(to: *mut u16, x: Self::F);
    /// a + b.
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    /// a − b.
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    /// a · b.
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    /// a / b.
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// a · b + c, rounded once.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// c − a · b, rounded once.
    unsafe fn fnma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The larger of both; `b` where either is NaN.
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    /// The smaller of both; `b` where either is NaN.
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    /// |x|.
    unsafe fn abs(x: Self::F) -> Self::F;
    /// `magnitude` with the sign of `sign`.
    unsafe fn copysign(magnitude: Self::F, sign: Self::F) -> Self::F;
    /// The nearest whole number, ties to even; |x| < 2³¹.
    unsafe fn round(x: Self::F) -> Self::F;
    /// The nearest integer, ties to even; |x| < 2³¹.
    unsafe fn to_i32(x: Self::F) -> Self::I;
    /// Lane by lane `a < b ? yes : no`; `no` where either is NaN.
    unsafe fn select_lt(a: Self::F, b: Self::F, yes: Self::F, no: Self::F) -> Self::F;
    /// The first `n` lanes from `x`, the others from `other`; n ≤ 16.
    unsafe fn mask_prefix(x: Self::F, n: usize, other: Self::F) -> Self::F;
    /// x · 2ⁿ by adding n to the exponent. Unspecified unless |x| and the result are normal numbers.
    unsafe fn scale_exponent(x: Self::F, n: Self::I) -> Self::F;

    /// All lanes `x`.
    unsafe fn splat_i(x: i32) -> Self::I;
    /// Nearest float, ties to even; exact below 2²⁴.
    unsafe fn to_f32(x: Self::I) -> Self::F;
    /// a + b, wrapping.
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I;
    /// a − b, wrapping.
    unsafe fn sub_i(a: Self::I, b: Self::I) -> Self::I;
    /// a · b, the low 32 bits.
    unsafe fn mul_i(a: Self::I, b: Self::I) -> Self::I;
    /// Lane i is the unsigned byte `from[i]`.
    unsafe fn load_u8(from: *const u8) -> Self::I;
    /// Lane i is the low four bits of byte `from[i]`.
    unsafe fn load_low_nibbles(from: *const u8) -> Self::I;
    /// Lane i is the high four bits of byte `from[i]`.
    unsafe fn load_high_nibbles(from: *const u8) -> Self::I;
    /// Lane i is the signed byte `from[i]`.
    unsafe fn load_i8(from: *const i8) -> Self::I;
    /// The low byte of each lane.
    unsafe fn store_i8(to: *mut i8, x: Self::I);
    /// Writes 16 integers.
    #[cfg(test)]
    unsafe fn store_i(to: *mut i32, x: Self::I);

    /// 64 bytes; aligned to 64 where weights are.
    unsafe fn load_b(from: *const u8) -> Self::B;
    /// The same four bytes in every lane.
    unsafe fn splat_b(from: *const i8) -> Self::B;
    /// The low four bits of every byte.
    unsafe fn low_nibbles(x: Self::B) -> Self::B;
    /// The high four bits of every byte.
    unsafe fn high_nibbles(x: Self::B) -> Self::B;
    /// Every byte shifted left by 4: its low four bits become its high four. The low four bits are unspecified.
    unsafe fn shift_left_4(x: Self::B) -> Self::B;
    /// Every byte shifted right by 1; the top bit is unspecified.
    unsafe fn shift_right_1(x: Self::B) -> Self::B;
    /// Every byte shifted right by 2; the top two bits are unspecified.
    unsafe fn shift_right_2(x: Self::B) -> Self::B;
    /// Within each 16 bytes, byte i is the byte of `table` at `index[i]`; every index is below 16.
    unsafe fn lookup(table: Self::B, index: Self::B) -> Self::B;
    /// Byte by byte `x & mask`.
    unsafe fn masked(x: Self::B, mask: u8) -> Self::B;
    /// Byte by byte `x | (bits & mask)`.
    unsafe fn or_masked(x: Self::B, bits: Self::B, mask: u8) -> Self::B;

    /// Sums of zero.
    unsafe fn no_dots() -> Self::D;
    /// Per lane `sum + Σ w·x` over its four bytes; `w` unsigned, |x| ≤ 127. Between two [`Simd::settle_dots`] at most
    /// 8 of these with w ≤ 15, 4 with w ≤ 31, 2 with w ≤ 63: that is what 16 bits hold.
    unsafe fn add_dots(sum: Self::D, w: Self::B, x: Self::B) -> Self::D;
    /// Widens the sums, so that more products can be added.
    unsafe fn settle_dots(sum: Self::D) -> Self::D;
    /// The sums, exactly.
    unsafe fn sum_dots(sum: Self::D) -> Self::I;

    /// The largest lane; unspecified where one is NaN.
    unsafe fn max_lanes(x: Self::F) -> f32;
    /// The sum of all lanes, wrapping.
    unsafe fn sum_lanes(x: Self::I) -> i32;
    /// a · 2ⁿ for 0 ≤ n < 32, the low 32 bits.
    unsafe fn shift_left<const N: u32>(a: Self::I) -> Self::I;
    /// Sixteen numbers of bfloat16, widened exactly.
    unsafe fn load_bf16(from: *const u16) -> Self::F;
    /// Sixteen powers of two from their exponents: 2^(e − 127), exactly; infinity for 255.
    unsafe fn load_e8m0(from: *const u8) -> Self::F;
    /// Prefetches the cache line of `at`, which may be any address.
    unsafe fn prefetch(at: *const u8);
    /// Signed weights in the form that [`Simd::dot_i8`] takes.
    unsafe fn prepare_i8(w: Self::B) -> Self::B;
    /// Per lane `sum + Σ w·x + I8_BIAS·Σ x` over its four bytes; `w` from [`Simd::prepare_i8`], |x| ≤ 127.
    unsafe fn dot_i8(sum: Self::I, w: Self::B, x: Self::B) -> Self::I;
    /// [`Simd::dot_i8`] of `W` vectors of weights with N rows, from sums of zero: row i's four bytes for `w[j]` are at
    /// `x + i·stride + 4·j`. `W` is even.
    #[inline(always)]
    unsafe fn dots_of_rows<const N: usize, const W: usize>(
        w: [Self::B; W],
        x: *const i8,
        stride: usize,
    ) -> [Self::I; N] {
        // SAFETY: the caller's promise.
        unsafe {
            let mut sums = [Self::splat_i(0); N];
            for i in 0..N {
                for j in 0..W {
                    sums[i] = Self::dot_i8(sums[i], w[j], Self::splat_b(x.add(i * stride + 4 * j)));
                }
            }
            sums
        }
    }
}

/// A computation over any family. `run` is `#[inline(always)]`, and so is everything it calls that takes an `S`.
pub(crate) trait Body {
    /// The result.
    type Out;
    /// Whether it multiplies quantised weights; what does not is compiled once for families that differ in that alone.
    const DOTS: bool = false;
    /// Runs the computation.
    ///
    /// # Safety
    /// The processor has the family; beyond that, what the body itself asks for.
    unsafe fn run<S: Simd>(self) -> Self::Out;
}

/// Runs `body` with the family for `isa`. The AVX-512 family needs VNNI; without VNNI, AVX2 is used. Bodies without
/// [`Body::DOTS`] run with the family of [`Isa::base`].
///
/// # Safety
/// The conditions of the body. `isa` is available on this processor.
#[inline]
pub(crate) unsafe fn dispatch<T: Body>(isa: Isa, body: T) -> T::Out {
    debug_assert!(isa.is_available());
    // SAFETY: the caller's promise for the body; the pool checked the instruction set when it was made.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 if crate::isa::has_vnni() => avx512::enter(body),
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni if T::DOTS && crate::isa::has_avx_vnni() => avx2::enter_vex(body),
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni if T::DOTS => avx2::enter_evex(body),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::AvxVnni | Isa::Avx2 => avx2::enter(body),
            #[cfg(target_arch = "aarch64")]
            Isa::I8mm if T::DOTS => neon::enter_i8mm(body),
            #[cfg(target_arch = "aarch64")]
            Isa::I8mm | Isa::Neon => neon::enter(body),
            _ => plain::enter(body),
        }
    }
}

/// Folds 16 lanes in the one order that every reduction of the engine uses: halves onto halves.
#[inline(always)]
pub(crate) fn fold(mut lanes: [f32; LANES]) -> f32 {
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
    }
    lanes[0]
}
