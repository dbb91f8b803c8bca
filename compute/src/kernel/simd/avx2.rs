//! The families for AVX2 with FMA and F16C, without and with VNNI: two registers a vector.
#![allow(unsafe_code)]

use super::{Body, Simd};
use std::arch::asm;
use std::arch::x86_64::*;
use std::marker::PhantomData;

/// AVX2, FMA and F16C; bytes are multiplied by `D`.
#[derive(Clone, Copy)]
pub(crate) struct Avx2<D>(PhantomData<D>);

/// Compiles `body` for AVX2 alone and runs it.
///
/// # Safety
/// The processor has these features; the conditions of the body.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn enter<T: Body>(body: T) -> T::Out {
    // SAFETY: the caller's promise.
    unsafe { body.run::<Avx2<Maddubs>>() }
}

/// Compiles `body` for VNNI in its own encoding and runs it.
///
/// # Safety
/// As for [`enter`].
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
pub(super) unsafe fn enter_vex<T: Body>(body: T) -> T::Out {
    // SAFETY: the caller's promise.
    unsafe { body.run::<Avx2<Vnni<Vex>>>() }
}

/// Compiles `body` for VNNI in the encoding of AVX-512 and runs it.
///
/// # Safety
/// As for [`enter`]; the processor has AVX-512 VNNI and VL.
// These two are not enabled: the compiler has sixteen registers and no other instructions than with `Vex`, so that tests and
// measurements tell of that as well.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn enter_evex<T: Body>(body: T) -> T::Out {
    // SAFETY: the caller's promise.
    unsafe { body.run::<Avx2<Vnni<Evex>>>() }
}

const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

/// Applies a two-operand instruction to both halves.
macro_rules! halves {
    ($f:ident, $a:expr, $b:expr) => {
        ($f($a.0, $b.0), $f($a.1, $b.1))
    };
}

/// Two registers: 16 × i32, or 64 bytes.
type Pair = (__m256i, __m256i);

/// Products of bytes: the methods of [`Simd`] that the families of this file differ in.
///
/// # Safety
/// As for [`Simd`].
pub(crate) trait Dots: Copy + Send + Sync + 'static {
    type D: Copy;
    const ROWS: usize;
    const I8_BIAS: i32;
    unsafe fn none() -> Self::D;
    unsafe fn add(sum: Self::D, w: Pair, x: Pair) -> Self::D;
    unsafe fn settle(sum: Self::D) -> Self::D;
    unsafe fn sum(sum: Self::D) -> Pair;
    unsafe fn prepare_i8(w: Pair) -> Pair;
    unsafe fn dot_i8(sum: Pair, w: Pair, x: Pair) -> Pair;
}

/// Pairs of products in 16 bits.
#[derive(Clone, Copy)]
pub(crate) struct Maddubs;

// SAFETY of every block below: the caller runs inside `enter`.
impl Dots for Maddubs {
    /// Settled sums of 32 bits; sums of 16 bits, two to a lane.
    type D = (Pair, Pair);
    const ROWS: usize = 6;
    const I8_BIAS: i32 = 0;

    #[inline(always)]
    unsafe fn none() -> Self::D {
        // SAFETY: see above.
        unsafe {
            let zero = (_mm256_setzero_si256(), _mm256_setzero_si256());
            (zero, zero)
        }
    }
    #[inline(always)]
    unsafe fn add(sum: Self::D, w: Pair, x: Pair) -> Self::D {
        // SAFETY: see above.
        unsafe {
            let pairs = halves!(_mm256_maddubs_epi16, w, x);
            (sum.0, halves!(_mm256_add_epi16, sum.1, pairs))
        }
    }
    #[inline(always)]
    unsafe fn settle(sum: Self::D) -> Self::D {
        // SAFETY: see above.
        unsafe {
            let zero = _mm256_setzero_si256();
            (Self::sum(sum), (zero, zero))
        }
    }
    #[inline(always)]
    unsafe fn sum(sum: Self::D) -> Pair {
        // SAFETY: see above.
        unsafe {
            let one = _mm256_set1_epi16(1);
            let pairs = (_mm256_madd_epi16(sum.1.0, one), _mm256_madd_epi16(sum.1.1, one));
            halves!(_mm256_add_epi32, sum.0, pairs)
        }
    }
    #[inline(always)]
    unsafe fn prepare_i8(w: Pair) -> Pair {
        w
    }
    #[inline(always)]
    unsafe fn dot_i8(sum: Pair, w: Pair, x: Pair) -> Pair {
        // SAFETY: see above. |w| ≤ 128 unsigned times ±x, |x| ≤ 127: two products fit 16 bits. The other way round, −(−128)
        // would not.
        unsafe {
            let ones = _mm256_set1_epi16(1);
            let low = _mm256_maddubs_epi16(_mm256_abs_epi8(w.0), _mm256_sign_epi8(x.0, w.0));
            let high = _mm256_maddubs_epi16(_mm256_abs_epi8(w.1), _mm256_sign_epi8(x.1, w.1));
            halves!(_mm256_add_epi32, sum, (_mm256_madd_epi16(low, ones), _mm256_madd_epi16(high, ones)))
        }
    }
}

/// VNNI, with its instruction in the encoding `E`.
#[derive(Clone, Copy)]
pub(crate) struct Vnni<E>(PhantomData<E>);

/// An encoding of `vpdpbusd`.
pub(crate) trait Encoding: Copy + Send + Sync + 'static {
    /// Per lane `sum + Σ w·x` over its four bytes, `w` unsigned, `x` signed.
    ///
    /// # Safety
    /// The processor has the encoding.
    unsafe fn dpbusd(sum: __m256i, w: __m256i, x: __m256i) -> __m256i;
}

/// The encoding of AVX-VNNI.
#[derive(Clone, Copy)]
pub(crate) struct Vex;

impl Encoding for Vex {
    #[inline(always)]
    unsafe fn dpbusd(sum: __m256i, w: __m256i, x: __m256i) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe { _mm256_dpbusd_avx_epi32(sum, w, x) }
    }
}

/// The encoding of AVX-512 VNNI and VL.
#[derive(Clone, Copy)]
pub(crate) struct Evex;

impl Encoding for Evex {
    #[inline]
    #[target_feature(enable = "avx")]
    unsafe fn dpbusd(mut sum: __m256i, w: __m256i, x: __m256i) -> __m256i {
        // SAFETY: the caller's promise; registers only. (The intrinsic is for code that has AVX-512 enabled.)
        unsafe {
            asm!("{{evex}} vpdpbusd {0}, {1}, {2}", inout(ymm_reg) sum, in(ymm_reg) w, in(ymm_reg) x,
                options(pure, nomem, nostack, preserves_flags));
        }
        sum
    }
}

// SAFETY of every block below: the caller runs inside `enter_vex` or `enter_evex`.
impl<E: Encoding> Dots for Vnni<E> {
    type D = Pair;
    /// Sums, activations and weights of more rows do not fit sixteen registers.
    const ROWS: usize = 4;
    const I8_BIAS: i32 = 128;

    #[inline(always)]
    unsafe fn none() -> Self::D {
        // SAFETY: see above.
        unsafe { (_mm256_setzero_si256(), _mm256_setzero_si256()) }
    }
    #[inline(always)]
    unsafe fn add(sum: Self::D, w: Pair, x: Pair) -> Self::D {
        // SAFETY: see above.
        unsafe { (E::dpbusd(sum.0, w.0, x.0), E::dpbusd(sum.1, w.1, x.1)) }
    }
    #[inline(always)]
    unsafe fn settle(sum: Self::D) -> Self::D {
        sum
    }
    #[inline(always)]
    unsafe fn sum(sum: Self::D) -> Pair {
        sum
    }
    #[inline(always)]
    unsafe fn prepare_i8(w: Pair) -> Pair {
        // SAFETY: see above.
        unsafe {
            let bias = _mm256_set1_epi8(-128);
            (_mm256_xor_si256(w.0, bias), _mm256_xor_si256(w.1, bias))
        }
    }
    #[inline(always)]
    unsafe fn dot_i8(sum: Pair, w: Pair, x: Pair) -> Pair {
        // SAFETY: see above.
        unsafe { Self::add(sum, w, x) }
    }
}

// SAFETY of every block below: the caller runs inside `enter` or its like, and its pointers are valid for the accesses
// that the method's name says.
impl<D: Dots> Simd for Avx2<D> {
    type F = (__m256, __m256);
    type I = Pair;
    type B = Pair;
    type D = D::D;
    const ROWS: usize = D::ROWS;
    const VECTORS: usize = 8;
    const I8_BIAS: i32 = D::I8_BIAS;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        // SAFETY: see above.
        unsafe { (_mm256_set1_ps(x), _mm256_set1_ps(x)) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::F {
        // SAFETY: see above.
        unsafe { (_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, x: Self::F) {
        // SAFETY: see above.
        unsafe {
            _mm256_storeu_ps(to, x.0);
            _mm256_storeu_ps(to.add(8), x.1);
        }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self::F {
        // SAFETY: see above.
        unsafe { (_mm256_cvtph_ps(_mm_loadu_si128(from.cast())), _mm256_cvtph_ps(_mm_loadu_si128(from.add(8).cast()))) }
    }
    #[inline(always)]
    unsafe fn store_f16(to: *mut u16, x: Self::F) {
        // SAFETY: see above.
        unsafe {
            _mm_storeu_si128(to.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x.0));
            _mm_storeu_si128(to.add(8).cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x.1));
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { halves!(_mm256_add_ps, a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { halves!(_mm256_sub_ps, a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { halves!(_mm256_mul_ps, a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { halves!(_mm256_div_ps, a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { (_mm256_fmadd_ps(a.0, b.0, c.0), _mm256_fmadd_ps(a.1, b.1, c.1)) }
    }
    #[inline(always)]
    unsafe fn fnma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { (_mm256_fnmadd_ps(a.0, b.0, c.0), _mm256_fnmadd_ps(a.1, b.1, c.1)) }
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { halves!(_mm256_max_ps, a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { halves!(_mm256_min_ps, a, b) }
    }
    #[inline(always)]
    unsafe fn abs(x: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe {
            let bit = _mm256_set1_ps(-0.0);
            (_mm256_andnot_ps(bit, x.0), _mm256_andnot_ps(bit, x.1))
        }
    }
    #[inline(always)]
    unsafe fn copysign(magnitude: Self::F, sign: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe {
            let bit = _mm256_set1_ps(-0.0);
            (
                _mm256_or_ps(_mm256_andnot_ps(bit, magnitude.0), _mm256_and_ps(bit, sign.0)),
                _mm256_or_ps(_mm256_andnot_ps(bit, magnitude.1), _mm256_and_ps(bit, sign.1)),
            )
        }
    }
    #[inline(always)]
    unsafe fn round(x: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { (_mm256_round_ps::<NEAREST>(x.0), _mm256_round_ps::<NEAREST>(x.1)) }
    }
    #[inline(always)]
    unsafe fn to_i32(x: Self::F) -> Self::I {
        // SAFETY: see above. Rounded first, so that the rounding mode of the conversion does not matter.
        unsafe {
            (_mm256_cvttps_epi32(_mm256_round_ps::<NEAREST>(x.0)), _mm256_cvttps_epi32(_mm256_round_ps::<NEAREST>(x.1)))
        }
    }
    #[inline(always)]
    unsafe fn select_lt(a: Self::F, b: Self::F, yes: Self::F, no: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe {
            (
                _mm256_blendv_ps(no.0, yes.0, _mm256_cmp_ps::<_CMP_LT_OQ>(a.0, b.0)),
                _mm256_blendv_ps(no.1, yes.1, _mm256_cmp_ps::<_CMP_LT_OQ>(a.1, b.1)),
            )
        }
    }
    #[inline(always)]
    unsafe fn mask_prefix(x: Self::F, n: usize, other: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe {
            let n = _mm256_set1_epi32(n as i32);
            let low = _mm256_cmpgt_epi32(n, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
            let high = _mm256_cmpgt_epi32(n, _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15));
            (
                _mm256_blendv_ps(other.0, x.0, _mm256_castsi256_ps(low)),
                _mm256_blendv_ps(other.1, x.1, _mm256_castsi256_ps(high)),
            )
        }
    }
    #[inline(always)]
    unsafe fn scale_exponent(x: Self::F, n: Self::I) -> Self::F {
        // SAFETY: see above.
        unsafe {
            let n = (_mm256_slli_epi32::<23>(n.0), _mm256_slli_epi32::<23>(n.1));
            let sum = halves!(_mm256_add_epi32, (_mm256_castps_si256(x.0), _mm256_castps_si256(x.1)), n);
            (_mm256_castsi256_ps(sum.0), _mm256_castsi256_ps(sum.1))
        }
    }
    #[inline(always)]
    unsafe fn splat_i(x: i32) -> Self::I {
        // SAFETY: see above.
        unsafe { (_mm256_set1_epi32(x), _mm256_set1_epi32(x)) }
    }
    #[inline(always)]
    unsafe fn to_f32(x: Self::I) -> Self::F {
        // SAFETY: see above.
        unsafe { (_mm256_cvtepi32_ps(x.0), _mm256_cvtepi32_ps(x.1)) }
    }
    #[inline(always)]
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: see above.
        unsafe { halves!(_mm256_add_epi32, a, b) }
    }
    #[inline(always)]
    unsafe fn sub_i(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: see above.
        unsafe { halves!(_mm256_sub_epi32, a, b) }
    }
    #[inline(always)]
    unsafe fn mul_i(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: see above.
        unsafe { halves!(_mm256_mullo_epi32, a, b) }
    }
    #[inline(always)]
    unsafe fn load_u8(from: *const u8) -> Self::I {
        // SAFETY: see above.
        unsafe {
            let bytes = _mm_loadu_si128(from.cast());
            (_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128::<8>(bytes)))
        }
    }
    #[inline(always)]
    unsafe fn load_low_nibbles(from: *const u8) -> Self::I {
        // SAFETY: see above.
        unsafe {
            let mask = _mm256_set1_epi32(15);
            let both = Self::load_u8(from);
            (_mm256_and_si256(both.0, mask), _mm256_and_si256(both.1, mask))
        }
    }
    #[inline(always)]
    unsafe fn load_high_nibbles(from: *const u8) -> Self::I {
        // SAFETY: see above.
        unsafe {
            let both = Self::load_u8(from);
            (_mm256_srli_epi32::<4>(both.0), _mm256_srli_epi32::<4>(both.1))
        }
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self::I {
        // SAFETY: see above.
        unsafe {
            let bytes = _mm_loadu_si128(from.cast());
            (_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(_mm_srli_si128::<8>(bytes)))
        }
    }
    #[inline(always)]
    unsafe fn store_i8(to: *mut i8, x: Self::I) {
        // SAFETY: see above.
        unsafe {
            // The low byte of each lane to the front of its 128-bit half, then the four halves together.
            let pick = _mm256_setr_epi8(
                0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1,
                -1, -1, -1, -1, -1,
            );
            let (a, b) = (_mm256_shuffle_epi8(x.0, pick), _mm256_shuffle_epi8(x.1, pick));
            let a = _mm_unpacklo_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256::<1>(a));
            let b = _mm_unpacklo_epi32(_mm256_castsi256_si128(b), _mm256_extracti128_si256::<1>(b));
            _mm_storeu_si128(to.cast(), _mm_unpacklo_epi64(a, b));
        }
    }
    #[cfg(test)]
    #[inline(always)]
    unsafe fn store_i(to: *mut i32, x: Self::I) {
        // SAFETY: see above.
        unsafe {
            _mm256_storeu_si256(to.cast(), x.0);
            _mm256_storeu_si256(to.add(8).cast(), x.1);
        }
    }
    #[inline(always)]
    unsafe fn load_b(from: *const u8) -> Self::B {
        // SAFETY: see above.
        unsafe { (_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast())) }
    }
    #[inline(always)]
    unsafe fn splat_b(from: *const i8) -> Self::B {
        // SAFETY: see above.
        unsafe {
            let four = _mm256_set1_epi32(from.cast::<i32>().read_unaligned());
            (four, four)
        }
    }
    #[inline(always)]
    unsafe fn low_nibbles(x: Self::B) -> Self::B {
        // SAFETY: see above.
        unsafe {
            let mask = _mm256_set1_epi8(15);
            (_mm256_and_si256(x.0, mask), _mm256_and_si256(x.1, mask))
        }
    }
    #[inline(always)]
    unsafe fn high_nibbles(x: Self::B) -> Self::B {
        // SAFETY: see above.
        unsafe {
            let mask = _mm256_set1_epi8(15);
            (_mm256_and_si256(_mm256_srli_epi16::<4>(x.0), mask), _mm256_and_si256(_mm256_srli_epi16::<4>(x.1), mask))
        }
    }
    #[inline(always)]
    unsafe fn shift_left_4(x: Self::B) -> Self::B {
        // SAFETY: see above.
        unsafe { (_mm256_slli_epi16::<4>(x.0), _mm256_slli_epi16::<4>(x.1)) }
    }
    #[inline(always)]
    unsafe fn shift_right_1(x: Self::B) -> Self::B {
        // SAFETY: see above.
        unsafe { (_mm256_srli_epi16::<1>(x.0), _mm256_srli_epi16::<1>(x.1)) }
    }
    #[inline(always)]
    unsafe fn shift_right_2(x: Self::B) -> Self::B {
        // SAFETY: see above.
        unsafe { (_mm256_srli_epi16::<2>(x.0), _mm256_srli_epi16::<2>(x.1)) }
    }
    #[inline(always)]
    unsafe fn lookup(table: Self::B, index: Self::B) -> Self::B {
        // SAFETY: see above.
        unsafe { halves!(_mm256_shuffle_epi8, table, index) }
    }
    #[inline(always)]
    unsafe fn masked(x: Self::B, mask: u8) -> Self::B {
        // SAFETY: see above.
        unsafe {
            let mask = _mm256_set1_epi8(mask as i8);
            (_mm256_and_si256(x.0, mask), _mm256_and_si256(x.1, mask))
        }
    }
    #[inline(always)]
    unsafe fn or_masked(x: Self::B, bits: Self::B, mask: u8) -> Self::B {
        // SAFETY: see above.
        unsafe {
            let mask = _mm256_set1_epi8(mask as i8);
            (_mm256_or_si256(x.0, _mm256_and_si256(bits.0, mask)), _mm256_or_si256(x.1, _mm256_and_si256(bits.1, mask)))
        }
    }
    #[inline(always)]
    unsafe fn no_dots() -> Self::D {
        // SAFETY: see above.
        unsafe { D::none() }
    }
    #[inline(always)]
    unsafe fn add_dots(sum: Self::D, w: Self::B, x: Self::B) -> Self::D {
        // SAFETY: see above.
        unsafe { D::add(sum, w, x) }
    }
    #[inline(always)]
    unsafe fn settle_dots(sum: Self::D) -> Self::D {
        // SAFETY: see above.
        unsafe { D::settle(sum) }
    }
    #[inline(always)]
    unsafe fn sum_dots(sum: Self::D) -> Self::I {
        // SAFETY: see above.
        unsafe { D::sum(sum) }
    }
    #[inline(always)]
    unsafe fn prepare_i8(w: Self::B) -> Self::B {
        // SAFETY: see above.
        unsafe { D::prepare_i8(w) }
    }
    #[inline(always)]
    unsafe fn dot_i8(sum: Self::I, w: Self::B, x: Self::B) -> Self::I {
        // SAFETY: see above.
        unsafe { D::dot_i8(sum, w, x) }
    }
    #[inline(always)]
    unsafe fn max_lanes(x: Self::F) -> f32 {
        // SAFETY: see above.
        unsafe {
            let x = _mm256_max_ps(x.0, x.1);
            let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)))
        }
    }
    #[inline(always)]
    unsafe fn sum_lanes(x: Self::I) -> i32 {
        // SAFETY: see above.
        unsafe {
            let x = _mm256_add_epi32(x.0, x.1);
            let x = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
            let x = _mm_add_epi32(x, _mm_unpackhi_epi64(x, x));
            _mm_cvtsi128_si32(_mm_add_epi32(x, _mm_shuffle_epi32::<1>(x)))
        }
    }
    #[inline(always)]
    unsafe fn shift_left<const N: u32>(a: Self::I) -> Self::I {
        // SAFETY: see above.
        unsafe {
            let n = _mm_cvtsi32_si128(N as i32);
            (_mm256_sll_epi32(a.0, n), _mm256_sll_epi32(a.1, n))
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self::F {
        // SAFETY: see above.
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.add(8).cast()));
            (_mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)), _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)))
        }
    }
    #[inline(always)]
    unsafe fn load_e8m0(from: *const u8) -> Self::F {
        // SAFETY: see above.
        unsafe {
            let (low, high) = Self::load_u8(from);
            // The exponent 0 is that of numbers below the normal ones; 2⁻¹²⁷ is among them.
            let least = _mm256_set1_epi32(0x0040_0000);
            let scale = |e| _mm256_castsi256_ps(_mm256_max_epi32(_mm256_slli_epi32::<23>(e), least));
            (scale(low), scale(high))
        }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: see above.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
}
