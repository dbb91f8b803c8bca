//! The families for AArch64 with dot products, without and with matrix products: four registers a vector.
// Rows are read by index: the loops are unrolled whole.
#![allow(unsafe_code, clippy::needless_range_loop)]

use super::{Body, Simd};
use std::arch::aarch64::*;
use std::arch::asm;

/// NEON with SDOT, and with SMMLA where `I8MM`.
#[derive(Clone, Copy)]
pub(crate) struct Neon<const I8MM: bool>;

/// Compiles `body` for SDOT alone and runs it.
///
/// # Safety
/// The processor has these features; the conditions of the body.
#[target_feature(enable = "neon,dotprod")]
pub(super) unsafe fn enter<T: Body>(body: T) -> T::Out {
    // SAFETY: the caller's promise.
    unsafe { body.run::<Neon<false>>() }
}

/// Compiles `body` for SMMLA and runs it.
///
/// # Safety
/// As for [`enter`].
#[target_feature(enable = "neon,dotprod,i8mm")]
pub(super) unsafe fn enter_i8mm<T: Body>(body: T) -> T::Out {
    // SAFETY: the caller's promise.
    unsafe { body.run::<Neon<true>>() }
}

/// The four registers of a vector, `$i` counting them.
macro_rules! quarters {
    ($i:ident => $e:expr) => {
        [
            { const $i: usize = 0; $e },
            { const $i: usize = 1; $e },
            { const $i: usize = 2; $e },
            { const $i: usize = 3; $e },
        ]
    };
}

/// `sum + Σ w·x` of four signed bytes a lane.
///
/// # Safety
/// The processor has SDOT.
#[inline(always)]
unsafe fn sdot(mut sum: int32x4_t, w: uint8x16_t, x: uint8x16_t) -> int32x4_t {
    // SAFETY: the caller's promise; registers only. (The intrinsic is not stable yet.)
    unsafe {
        asm!("sdot {0:v}.4s, {1:v}.16b, {2:v}.16b", inout(vreg) sum, in(vreg) w, in(vreg) x,
            options(pure, nomem, nostack, preserves_flags));
    }
    sum
}

/// `sum + w · xᵀ` of two by eight signed bytes each: lane `2·i + j` has row i of `w` times row j of `x`.
///
/// # Safety
/// The processor has SMMLA.
#[inline(always)]
unsafe fn smmla(mut sum: int32x4_t, w: uint8x16_t, x: uint8x16_t) -> int32x4_t {
    // SAFETY: the caller's promise; registers only. (The intrinsic is not stable yet.)
    unsafe {
        asm!("smmla {0:v}.4s, {1:v}.16b, {2:v}.16b", inout(vreg) sum, in(vreg) w, in(vreg) x,
            options(pure, nomem, nostack, preserves_flags));
    }
    sum
}

/// The first two lanes of `a`, each with that of `b` behind it.
#[inline(always)]
unsafe fn zip1(a: uint8x16_t, b: uint8x16_t) -> uint8x16_t {
    // SAFETY: registers only; every AArch64 has it.
    unsafe { vreinterpretq_u8_u32(vzip1q_u32(vreinterpretq_u32_u8(a), vreinterpretq_u32_u8(b))) }
}

/// The last two lanes of `a`, each with that of `b` behind it.
#[inline(always)]
unsafe fn zip2(a: uint8x16_t, b: uint8x16_t) -> uint8x16_t {
    // SAFETY: as for `zip1`.
    unsafe { vreinterpretq_u8_u32(vzip2q_u32(vreinterpretq_u32_u8(a), vreinterpretq_u32_u8(b))) }
}

/// Four half-precision numbers, widened.
#[inline(always)]
unsafe fn widen(half: uint16x4_t) -> float32x4_t {
    let wide: float32x4_t;
    // SAFETY: registers only; every AArch64 has it. (The type of the intrinsic is not stable yet.)
    unsafe {
        asm!("fcvtl {0:v}.4s, {1:v}.4h", lateout(vreg) wide, in(vreg) half, options(pure, nomem, nostack, preserves_flags));
    }
    wide
}

/// Four numbers rounded to half precision.
#[inline(always)]
unsafe fn narrow(wide: float32x4_t) -> uint16x4_t {
    let half: uint16x4_t;
    // SAFETY: as for `widen`.
    unsafe {
        asm!("fcvtn {0:v}.4h, {1:v}.4s", lateout(vreg) half, in(vreg) wide, options(pure, nomem, nostack, preserves_flags));
    }
    half
}

// SAFETY of every block below: the caller runs inside `enter`, and its pointers are valid for the accesses that the
// method's name says.
impl<const I8MM: bool> Simd for Neon<I8MM> {
    type F = [float32x4_t; 4];
    type I = [int32x4_t; 4];
    type B = [uint8x16_t; 4];
    type D = [int32x4_t; 4];
    const ROWS: usize = if I8MM { 8 } else { 4 };
    const VECTORS: usize = 8;
    const I8_BIAS: i32 = 0;
    const DOTS_OF_ROWS: bool = I8MM;
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        // SAFETY: see above.
        unsafe { [vdupq_n_f32(x); 4] }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::F {
        // SAFETY: see above.
        unsafe { quarters!(Q => vld1q_f32(from.add(4 * Q))) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, x: Self::F) {
        // SAFETY: see above.
        unsafe {
            quarters!(Q => vst1q_f32(to.add(4 * Q), x[Q]));
        }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self::F {
        // SAFETY: see above.
        unsafe { quarters!(Q => widen(vld1_u16(from.add(4 * Q)))) }
    }
    #[inline(always)]
    unsafe fn store_f16(to: *mut u16, x: Self::F) {
        // SAFETY: see above.
        unsafe {
            quarters!(Q => vst1_u16(to.add(4 * Q), narrow(x[Q])));
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { quarters!(Q => vaddq_f32(a[Q], b[Q])) }
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { quarters!(Q => vsubq_f32(a[Q], b[Q])) }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { quarters!(Q => vmulq_f32(a[Q], b[Q])) }
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { quarters!(Q => vdivq_f32(a[Q], b[Q])) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { quarters!(Q => vfmaq_f32(c[Q], a[Q], b[Q])) }
    }
    #[inline(always)]
    unsafe fn fnma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { quarters!(Q => vfmsq_f32(c[Q], a[Q], b[Q])) }
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { quarters!(Q => vbslq_f32(vcgtq_f32(a[Q], b[Q]), a[Q], b[Q])) }
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { quarters!(Q => vbslq_f32(vcltq_f32(a[Q], b[Q]), a[Q], b[Q])) }
    }
    #[inline(always)]
    unsafe fn abs(x: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { quarters!(Q => vabsq_f32(x[Q])) }
    }
    #[inline(always)]
    unsafe fn copysign(magnitude: Self::F, sign: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe {
            let bit = vdupq_n_u32(1 << 31);
            quarters!(Q => vbslq_f32(bit, sign[Q], magnitude[Q]))
        }
    }
    #[inline(always)]
    unsafe fn round(x: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { quarters!(Q => vrndnq_f32(x[Q])) }
    }
    #[inline(always)]
    unsafe fn to_i32(x: Self::F) -> Self::I {
        // SAFETY: see above.
        unsafe { quarters!(Q => vcvtnq_s32_f32(x[Q])) }
    }
    #[inline(always)]
    unsafe fn select_lt(a: Self::F, b: Self::F, yes: Self::F, no: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { quarters!(Q => vbslq_f32(vcltq_f32(a[Q], b[Q]), yes[Q], no[Q])) }
    }
    #[inline(always)]
    unsafe fn mask_prefix(x: Self::F, n: usize, other: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe {
            const INDEX: [i32; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
            let n = vdupq_n_s32(n as i32);
            quarters!(Q => vbslq_f32(vcgtq_s32(n, vld1q_s32(INDEX.as_ptr().add(4 * Q))), x[Q], other[Q]))
        }
    }
    #[inline(always)]
    unsafe fn scale_exponent(x: Self::F, n: Self::I) -> Self::F {
        // SAFETY: see above.
        unsafe {
            quarters!(Q => vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(x[Q]), vshlq_n_s32::<23>(n[Q]))))
        }
    }
    #[inline(always)]
    unsafe fn splat_i(x: i32) -> Self::I {
        // SAFETY: see above.
        unsafe { [vdupq_n_s32(x); 4] }
    }
    #[inline(always)]
    unsafe fn to_f32(x: Self::I) -> Self::F {
        // SAFETY: see above.
        unsafe { quarters!(Q => vcvtq_f32_s32(x[Q])) }
    }
    #[inline(always)]
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: see above.
        unsafe { quarters!(Q => vaddq_s32(a[Q], b[Q])) }
    }
    #[inline(always)]
    unsafe fn sub_i(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: see above.
        unsafe { quarters!(Q => vsubq_s32(a[Q], b[Q])) }
    }
    #[inline(always)]
    unsafe fn mul_i(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: see above.
        unsafe { quarters!(Q => vmulq_s32(a[Q], b[Q])) }
    }
    #[inline(always)]
    unsafe fn load_u8(from: *const u8) -> Self::I {
        // SAFETY: see above.
        unsafe {
            let bytes = vld1q_u8(from);
            let (low, high) = (vmovl_u8(vget_low_u8(bytes)), vmovl_u8(vget_high_u8(bytes)));
            let four = [vget_low_u16(low), vget_high_u16(low), vget_low_u16(high), vget_high_u16(high)];
            quarters!(Q => vreinterpretq_s32_u32(vmovl_u16(four[Q])))
        }
    }
    #[inline(always)]
    unsafe fn load_low_nibbles(from: *const u8) -> Self::I {
        // SAFETY: see above.
        unsafe {
            let both = Self::load_u8(from);
            quarters!(Q => vandq_s32(both[Q], vdupq_n_s32(15)))
        }
    }
    #[inline(always)]
    unsafe fn load_high_nibbles(from: *const u8) -> Self::I {
        // SAFETY: see above.
        unsafe {
            let both = Self::load_u8(from);
            quarters!(Q => vshrq_n_s32::<4>(both[Q]))
        }
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self::I {
        // SAFETY: see above.
        unsafe {
            let bytes = vld1q_s8(from);
            let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_s8(vget_high_s8(bytes)));
            let four = [vget_low_s16(low), vget_high_s16(low), vget_low_s16(high), vget_high_s16(high)];
            quarters!(Q => vmovl_s16(four[Q]))
        }
    }
    #[inline(always)]
    unsafe fn store_i8(to: *mut i8, x: Self::I) {
        // SAFETY: see above.
        unsafe {
            let low = vmovn_s16(vcombine_s16(vmovn_s32(x[0]), vmovn_s32(x[1])));
            let high = vmovn_s16(vcombine_s16(vmovn_s32(x[2]), vmovn_s32(x[3])));
            vst1q_s8(to, vcombine_s8(low, high));
        }
    }
    #[cfg(test)]
    #[inline(always)]
    unsafe fn store_i(to: *mut i32, x: Self::I) {
        // SAFETY: see above.
        unsafe {
            quarters!(Q => vst1q_s32(to.add(4 * Q), x[Q]));
        }
    }
    #[inline(always)]
    unsafe fn load_b(from: *const u8) -> Self::B {
        // SAFETY: see above.
        unsafe { quarters!(Q => vld1q_u8(from.add(16 * Q))) }
    }
    #[inline(always)]
    unsafe fn splat_b(from: *const i8) -> Self::B {
        // SAFETY: see above.
        unsafe { [vreinterpretq_u8_s32(vdupq_n_s32(from.cast::<i32>().read_unaligned())); 4] }
    }
    #[inline(always)]
    unsafe fn low_nibbles(x: Self::B) -> Self::B {
        // SAFETY: see above.
        unsafe { quarters!(Q => vandq_u8(x[Q], vdupq_n_u8(15))) }
    }
    #[inline(always)]
    unsafe fn high_nibbles(x: Self::B) -> Self::B {
        // SAFETY: see above.
        unsafe { quarters!(Q => vshrq_n_u8::<4>(x[Q])) }
    }
    #[inline(always)]
    unsafe fn shift_left_4(x: Self::B) -> Self::B {
        // SAFETY: see above.
        unsafe { quarters!(Q => vshlq_n_u8::<4>(x[Q])) }
    }
    #[inline(always)]
    unsafe fn shift_right_1(x: Self::B) -> Self::B {
        // SAFETY: see above.
        unsafe { quarters!(Q => vshrq_n_u8::<1>(x[Q])) }
    }
    #[inline(always)]
    unsafe fn shift_right_2(x: Self::B) -> Self::B {
        // SAFETY: see above.
        unsafe { quarters!(Q => vshrq_n_u8::<2>(x[Q])) }
    }
    #[inline(always)]
    unsafe fn lookup(table: Self::B, index: Self::B) -> Self::B {
        // SAFETY: see above.
        unsafe { quarters!(Q => vqtbl1q_u8(table[Q], index[Q])) }
    }
    #[inline(always)]
    unsafe fn masked(x: Self::B, mask: u8) -> Self::B {
        // SAFETY: see above.
        unsafe { quarters!(Q => vandq_u8(x[Q], vdupq_n_u8(mask))) }
    }
    #[inline(always)]
    unsafe fn or_masked(x: Self::B, bits: Self::B, mask: u8) -> Self::B {
        // SAFETY: see above.
        unsafe { quarters!(Q => vorrq_u8(x[Q], vandq_u8(bits[Q], vdupq_n_u8(mask)))) }
    }
    #[inline(always)]
    unsafe fn no_dots() -> Self::D {
        // SAFETY: see above.
        unsafe { [vdupq_n_s32(0); 4] }
    }
    #[inline(always)]
    unsafe fn add_dots(sum: Self::D, w: Self::B, x: Self::B) -> Self::D {
        // SAFETY: see above.
        unsafe { quarters!(Q => sdot(sum[Q], w[Q], x[Q])) }
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
    unsafe fn prepare_i8(w: Self::B) -> Self::B {
        w
    }
    #[inline(always)]
    unsafe fn dot_i8(sum: Self::I, w: Self::B, x: Self::B) -> Self::I {
        // SAFETY: see above.
        unsafe { quarters!(Q => sdot(sum[Q], w[Q], x[Q])) }
    }
    /// With SMMLA two rows and eight k at a time; a row that is left over takes SDOT.
    #[inline(always)]
    unsafe fn dots_of_rows<const N: usize, const W: usize>(
        w: [Self::B; W],
        x: *const i8,
        stride: usize,
    ) -> [Self::I; N] {
        // SAFETY: see above.
        unsafe {
            let mut sums = [Self::splat_i(0); N];
            let paired = if I8MM { N / 2 * 2 } else { 0 };
            // Lanes with eight k each: the first two of every quarter, and the last two.
            let mut wide = [(w[0], w[0]); W];
            for j in 0..W / 2 {
                let (a, b) = (w[2 * j], w[2 * j + 1]);
                wide[j] = (quarters!(Q => zip1(a[Q], b[Q])), quarters!(Q => zip2(a[Q], b[Q])));
            }
            for i in (0..paired).step_by(2) {
                let (mut first, mut last) = (Self::splat_i(0), Self::splat_i(0));
                for j in 0..W / 2 {
                    let x = x.add(i * stride + 8 * j).cast();
                    let both = vcombine_u8(vld1_u8(x), vld1_u8(x.add(stride)));
                    first = quarters!(Q => smmla(first[Q], wide[j].0[Q], both));
                    last = quarters!(Q => smmla(last[Q], wide[j].1[Q], both));
                }
                // The sums of both rows alternate.
                sums[i] = quarters!(Q => vuzp1q_s32(first[Q], last[Q]));
                sums[i + 1] = quarters!(Q => vuzp2q_s32(first[Q], last[Q]));
            }
            for i in paired..N {
                for j in 0..W {
                    sums[i] = Self::dot_i8(sums[i], w[j], Self::splat_b(x.add(i * stride + 4 * j)));
                }
            }
            sums
        }
    }
    #[inline(always)]
    unsafe fn max_lanes(x: Self::F) -> f32 {
        // SAFETY: see above.
        unsafe { vmaxvq_f32(vmaxq_f32(vmaxq_f32(x[0], x[1]), vmaxq_f32(x[2], x[3]))) }
    }
    #[inline(always)]
    unsafe fn sum_lanes(x: Self::I) -> i32 {
        // SAFETY: see above.
        unsafe { vaddvq_s32(vaddq_s32(vaddq_s32(x[0], x[1]), vaddq_s32(x[2], x[3]))) }
    }
    #[inline(always)]
    unsafe fn shift_left<const N: u32>(a: Self::I) -> Self::I {
        // SAFETY: see above.
        unsafe {
            let n = vdupq_n_s32(N as i32);
            quarters!(Q => vshlq_s32(a[Q], n))
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self::F {
        // SAFETY: see above.
        unsafe { quarters!(Q => vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(from.add(4 * Q))))) }
    }
    #[inline(always)]
    unsafe fn load_e8m0(from: *const u8) -> Self::F {
        // SAFETY: see above.
        unsafe {
            let e = Self::load_u8(from);
            // The exponent 0 is that of numbers below the normal ones; 2⁻¹²⁷ is among them.
            let least = vdupq_n_s32(0x0040_0000);
            quarters!(Q => vreinterpretq_f32_s32(vmaxq_s32(vshlq_n_s32::<23>(e[Q]), least)))
        }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: see above.
        unsafe { asm!("prfm pldl1keep, [{0}]", in(reg) at, options(readonly, nostack, preserves_flags)) }
    }
}
