//! The family for AVX-512 with VNNI: one register a vector.
#![allow(unsafe_code)]

use super::{Body, Simd};
use std::arch::x86_64::*;

/// AVX-512 F, BW, DQ, VL and VNNI.
#[derive(Clone, Copy)]
pub(crate) struct Avx512;

/// Compiles `body` for this family and runs it.
///
/// # Safety
/// The processor has these features; the conditions of the body.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn enter<T: Body>(body: T) -> T::Out {
    // SAFETY: the caller's promise.
    unsafe { body.run::<Avx512>() }
}

const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

// SAFETY of every block below: the caller runs inside `enter`, and its pointers are valid for the accesses that the
// method's name says.
impl Simd for Avx512 {
    type F = __m512;
    type I = __m512i;
    type B = __m512i;
    type D = __m512i;
    const ROWS: usize = 8;
    const VECTORS: usize = 32;
    const I8_BIAS: i32 = 128;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        // SAFETY: see above.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::F {
        // SAFETY: see above.
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, x: Self::F) {
        // SAFETY: see above.
        unsafe { _mm512_storeu_ps(to, x) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self::F {
        // SAFETY: see above.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn store_f16(to: *mut u16, x: Self::F) {
        // SAFETY: see above.
        unsafe { _mm256_storeu_si256(to.cast(), _mm512_cvtps_ph::<NEAREST>(x)) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn fnma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { _mm512_fnmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn abs(x: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { _mm512_abs_ps(x) }
    }
    #[inline(always)]
    unsafe fn copysign(magnitude: Self::F, sign: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe {
            let bit = _mm512_set1_ps(-0.0);
            _mm512_or_ps(_mm512_andnot_ps(bit, magnitude), _mm512_and_ps(bit, sign))
        }
    }
    #[inline(always)]
    unsafe fn round(x: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { _mm512_roundscale_ps::<NEAREST>(x) }
    }
    #[inline(always)]
    unsafe fn to_i32(x: Self::F) -> Self::I {
        // SAFETY: see above.
        unsafe { _mm512_cvt_roundps_epi32::<NEAREST>(x) }
    }
    #[inline(always)]
    unsafe fn select_lt(a: Self::F, b: Self::F, yes: Self::F, no: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), no, yes) }
    }
    #[inline(always)]
    unsafe fn mask_prefix(x: Self::F, n: usize, other: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { _mm512_mask_blend_ps(((1u32 << n) - 1) as u16, other, x) }
    }
    #[inline(always)]
    unsafe fn scale_exponent(x: Self::F, n: Self::I) -> Self::F {
        // SAFETY: see above.
        unsafe { _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x), _mm512_slli_epi32::<23>(n))) }
    }
    #[inline(always)]
    unsafe fn splat_i(x: i32) -> Self::I {
        // SAFETY: see above.
        unsafe { _mm512_set1_epi32(x) }
    }
    #[inline(always)]
    unsafe fn to_f32(x: Self::I) -> Self::F {
        // SAFETY: see above.
        unsafe { _mm512_cvtepi32_ps(x) }
    }
    #[inline(always)]
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: see above.
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn sub_i(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: see above.
        unsafe { _mm512_sub_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn mul_i(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: see above.
        unsafe { _mm512_mullo_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn load_u8(from: *const u8) -> Self::I {
        // SAFETY: see above.
        unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_low_nibbles(from: *const u8) -> Self::I {
        // SAFETY: see above.
        unsafe { _mm512_and_si512(Self::load_u8(from), _mm512_set1_epi32(15)) }
    }
    #[inline(always)]
    unsafe fn load_high_nibbles(from: *const u8) -> Self::I {
        // SAFETY: see above.
        unsafe { _mm512_srli_epi32::<4>(Self::load_u8(from)) }
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self::I {
        // SAFETY: see above.
        unsafe { _mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast())) }
    }
    #[inline(always)]
    unsafe fn store_i8(to: *mut i8, x: Self::I) {
        // SAFETY: see above.
        unsafe { _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(x)) }
    }
    #[cfg(test)]
    #[inline(always)]
    unsafe fn store_i(to: *mut i32, x: Self::I) {
        // SAFETY: see above.
        unsafe { _mm512_storeu_si512(to.cast(), x) }
    }
    #[inline(always)]
    unsafe fn load_b(from: *const u8) -> Self::B {
        // SAFETY: see above.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    unsafe fn splat_b(from: *const i8) -> Self::B {
        // SAFETY: see above.
        unsafe { _mm512_set1_epi32(from.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn low_nibbles(x: Self::B) -> Self::B {
        // SAFETY: see above.
        unsafe { _mm512_and_si512(x, _mm512_set1_epi8(15)) }
    }
    #[inline(always)]
    unsafe fn high_nibbles(x: Self::B) -> Self::B {
        // SAFETY: see above.
        unsafe { _mm512_and_si512(_mm512_srli_epi16::<4>(x), _mm512_set1_epi8(15)) }
    }
    #[inline(always)]
    unsafe fn shift_left_4(x: Self::B) -> Self::B {
        // SAFETY: see above.
        unsafe { _mm512_slli_epi16::<4>(x) }
    }
    #[inline(always)]
    unsafe fn shift_right_1(x: Self::B) -> Self::B {
        // SAFETY: see above.
        unsafe { _mm512_srli_epi16::<1>(x) }
    }
    #[inline(always)]
    unsafe fn shift_right_2(x: Self::B) -> Self::B {
        // SAFETY: see above.
        unsafe { _mm512_srli_epi16::<2>(x) }
    }
    #[inline(always)]
    unsafe fn lookup(table: Self::B, index: Self::B) -> Self::B {
        // SAFETY: see above.
        unsafe { _mm512_shuffle_epi8(table, index) }
    }
    #[inline(always)]
    unsafe fn masked(x: Self::B, mask: u8) -> Self::B {
        // SAFETY: see above.
        unsafe { _mm512_and_si512(x, _mm512_set1_epi8(mask as i8)) }
    }
    #[inline(always)]
    unsafe fn or_masked(x: Self::B, bits: Self::B, mask: u8) -> Self::B {
        // SAFETY: see above.
        unsafe { _mm512_or_si512(x, _mm512_and_si512(bits, _mm512_set1_epi8(mask as i8))) }
    }
    #[inline(always)]
    unsafe fn no_dots() -> Self::D {
        // SAFETY: see above.
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    unsafe fn add_dots(sum: Self::D, w: Self::B, x: Self::B) -> Self::D {
        // SAFETY: see above.
        unsafe { _mm512_dpbusd_epi32(sum, w, x) }
    }
    #[inline(always)]
    unsafe fn settle_dots(sum: Self::D) -> Self::D {
        sum
    }
    #[inline(always)]
    unsafe fn sum_dots(sum: Self::D) -> Self::I {
        sum
    }
    #[inline(always)]
    unsafe fn max_lanes(x: Self::F) -> f32 {
        // SAFETY: see above.
        unsafe { _mm512_reduce_max_ps(x) }
    }
    #[inline(always)]
    unsafe fn sum_lanes(x: Self::I) -> i32 {
        // SAFETY: see above.
        unsafe { _mm512_reduce_add_epi32(x) }
    }
    #[inline(always)]
    unsafe fn shift_left<const N: u32>(a: Self::I) -> Self::I {
        // SAFETY: see above.
        unsafe { _mm512_slli_epi32::<N>(a) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self::F {
        // SAFETY: see above.
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast())))) }
    }
    #[inline(always)]
    unsafe fn load_e8m0(from: *const u8) -> Self::F {
        // SAFETY: see above.
        unsafe {
            // The exponent 0 is that of numbers below the normal ones; 2⁻¹²⁷ is among them.
            let least = _mm512_set1_epi32(0x0040_0000);
            _mm512_castsi512_ps(_mm512_max_epi32(_mm512_slli_epi32::<23>(Self::load_u8(from)), least))
        }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: see above.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
    #[inline(always)]
    unsafe fn prepare_i8(w: Self::B) -> Self::B {
        // SAFETY: see above.
        unsafe { _mm512_xor_si512(w, _mm512_set1_epi8(-128)) }
    }
    #[inline(always)]
    unsafe fn dot_i8(sum: Self::I, w: Self::B, x: Self::B) -> Self::I {
        // SAFETY: see above.
        unsafe { _mm512_dpbusd_epi32(sum, w, x) }
    }
}
