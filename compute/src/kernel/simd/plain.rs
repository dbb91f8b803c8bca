//! The family in portable Rust: arrays that the compiler may vectorise. It defines the results of all families.
#![allow(unsafe_code, clippy::needless_range_loop)]

use super::{Body, LANES, Simd};
use half::f16;

/// Portable lanes. Every method is safe apart from its pointers.
#[derive(Clone, Copy)]
pub(crate) struct Plain;

/// Runs `body` with this family. A fused multiply-add is a function call where the compiler may not assume the instruction;
/// where the processor has it, the same code is compiled with it.
///
/// # Safety
/// The conditions of the body.
#[inline]
pub(super) unsafe fn enter<T: Body>(body: T) -> T::Out {
    #[cfg(target_arch = "x86_64")]
    {
        /// # Safety
        /// The processor has the instructions; the conditions of the body.
        #[target_feature(enable = "fma")]
        unsafe fn fused<T: Body>(body: T) -> T::Out {
            // SAFETY: the caller's promise.
            unsafe { body.run::<Plain>() }
        }
        if is_x86_feature_detected!("fma") {
            // SAFETY: the caller's promise; just asked.
            return unsafe { fused(body) };
        }
    }
    // SAFETY: the caller's promise.
    unsafe { body.run::<Plain>() }
}

#[inline(always)]
fn map(a: [f32; LANES], f: impl Fn(f32) -> f32) -> [f32; LANES] {
    let mut out = [0.0; LANES];
    for i in 0..LANES {
        out[i] = f(a[i]);
    }
    out
}

#[inline(always)]
fn zip<T: Copy + Default>(a: [T; LANES], b: [T; LANES], f: impl Fn(T, T) -> T) -> [T; LANES] {
    let mut out = [T::default(); LANES];
    for i in 0..LANES {
        out[i] = f(a[i], b[i]);
    }
    out
}

// SAFETY of every block below: the caller's pointers are valid for the accesses that the method's name says: 16
// elements, 64 bytes, or 4.
impl Simd for Plain {
    type F = [f32; LANES];
    type I = [i32; LANES];
    type B = [u8; 64];
    type D = [i32; LANES];
    const ROWS: usize = 2;
    const VECTORS: usize = 4;
    const I8_BIAS: i32 = 0;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::F {
        // SAFETY: see above.
        unsafe { from.cast::<Self::F>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, x: Self::F) {
        // SAFETY: see above.
        unsafe { to.cast::<Self::F>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self::F {
        // SAFETY: see above.
        let bits = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        let mut out = [0.0; LANES];
        for i in 0..LANES {
            out[i] = f16::from_bits(bits[i]).to_f32();
        }
        out
    }
    #[inline(always)]
    unsafe fn store_f16(to: *mut u16, x: Self::F) {
        let mut bits = [0u16; LANES];
        for i in 0..LANES {
            bits[i] = f16::from_f32(x[i]).to_bits();
        }
        // SAFETY: see above.
        unsafe { to.cast::<[u16; LANES]>().write_unaligned(bits) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        let mut out = c;
        for i in 0..LANES {
            out[i] = a[i].mul_add(b[i], c[i]);
        }
        out
    }
    #[inline(always)]
    unsafe fn fnma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        let mut out = c;
        for i in 0..LANES {
            out[i] = (-a[i]).mul_add(b[i], c[i]);
        }
        out
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn abs(x: Self::F) -> Self::F {
        map(x, f32::abs)
    }
    #[inline(always)]
    unsafe fn copysign(magnitude: Self::F, sign: Self::F) -> Self::F {
        zip(magnitude, sign, f32::copysign)
    }
    #[inline(always)]
    unsafe fn round(x: Self::F) -> Self::F {
        map(x, f32::round_ties_even)
    }
    #[inline(always)]
    unsafe fn to_i32(x: Self::F) -> Self::I {
        let mut out = [0; LANES];
        for i in 0..LANES {
            out[i] = x[i].round_ties_even() as i32;
        }
        out
    }
    #[inline(always)]
    unsafe fn select_lt(a: Self::F, b: Self::F, yes: Self::F, no: Self::F) -> Self::F {
        let mut out = no;
        for i in 0..LANES {
            if a[i] < b[i] {
                out[i] = yes[i];
            }
        }
        out
    }
    #[inline(always)]
    unsafe fn mask_prefix(x: Self::F, n: usize, other: Self::F) -> Self::F {
        let mut out = other;
        for i in 0..LANES {
            if i < n {
                out[i] = x[i];
            }
        }
        out
    }
    #[inline(always)]
    unsafe fn scale_exponent(x: Self::F, n: Self::I) -> Self::F {
        let mut out = x;
        for i in 0..LANES {
            out[i] = f32::from_bits(x[i].to_bits().wrapping_add((n[i] as u32) << 23));
        }
        out
    }
    #[inline(always)]
    unsafe fn splat_i(x: i32) -> Self::I {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn to_f32(x: Self::I) -> Self::F {
        let mut out = [0.0; LANES];
        for i in 0..LANES {
            out[i] = x[i] as f32;
        }
        out
    }
    #[inline(always)]
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, i32::wrapping_add)
    }
    #[inline(always)]
    unsafe fn sub_i(a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, i32::wrapping_sub)
    }
    #[inline(always)]
    unsafe fn mul_i(a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, i32::wrapping_mul)
    }
    #[inline(always)]
    unsafe fn load_u8(from: *const u8) -> Self::I {
        // SAFETY: see above.
        let bytes = unsafe { from.cast::<[u8; LANES]>().read_unaligned() };
        let mut out = [0; LANES];
        for i in 0..LANES {
            out[i] = i32::from(bytes[i]);
        }
        out
    }
    #[inline(always)]
    unsafe fn load_low_nibbles(from: *const u8) -> Self::I {
        // SAFETY: see above.
        unsafe { Self::load_u8(from) }.map(|both| both & 15)
    }
    #[inline(always)]
    unsafe fn load_high_nibbles(from: *const u8) -> Self::I {
        // SAFETY: see above.
        unsafe { Self::load_u8(from) }.map(|both| both >> 4)
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self::I {
        // SAFETY: see above.
        let bytes = unsafe { from.cast::<[i8; LANES]>().read_unaligned() };
        let mut out = [0; LANES];
        for i in 0..LANES {
            out[i] = i32::from(bytes[i]);
        }
        out
    }
    #[inline(always)]
    unsafe fn store_i8(to: *mut i8, x: Self::I) {
        let mut bytes = [0i8; LANES];
        for i in 0..LANES {
            bytes[i] = x[i] as i8;
        }
        // SAFETY: see above.
        unsafe { to.cast::<[i8; LANES]>().write_unaligned(bytes) }
    }
    #[cfg(test)]
    #[inline(always)]
    unsafe fn store_i(to: *mut i32, x: Self::I) {
        // SAFETY: see above.
        unsafe { to.cast::<Self::I>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn load_b(from: *const u8) -> Self::B {
        // SAFETY: see above.
        unsafe { from.cast::<Self::B>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn splat_b(from: *const i8) -> Self::B {
        // SAFETY: see above.
        let four = unsafe { from.cast::<[u8; 4]>().read_unaligned() };
        let mut out = [0; 64];
        for i in 0..64 {
            out[i] = four[i % 4];
        }
        out
    }
    #[inline(always)]
    unsafe fn low_nibbles(x: Self::B) -> Self::B {
        x.map(|byte| byte & 15)
    }
    #[inline(always)]
    unsafe fn high_nibbles(x: Self::B) -> Self::B {
        x.map(|byte| byte >> 4)
    }
    #[inline(always)]
    unsafe fn shift_left_4(x: Self::B) -> Self::B {
        x.map(|byte| byte << 4)
    }
    #[inline(always)]
    unsafe fn shift_right_1(x: Self::B) -> Self::B {
        x.map(|byte| byte >> 1)
    }
    #[inline(always)]
    unsafe fn shift_right_2(x: Self::B) -> Self::B {
        x.map(|byte| byte >> 2)
    }
    #[inline(always)]
    unsafe fn lookup(table: Self::B, index: Self::B) -> Self::B {
        let mut out = [0; 64];
        for i in 0..64 {
            out[i] = table[i / 16 * 16 + usize::from(index[i] % 16)];
        }
        out
    }
    #[inline(always)]
    unsafe fn masked(x: Self::B, mask: u8) -> Self::B {
        x.map(|byte| byte & mask)
    }
    #[inline(always)]
    unsafe fn or_masked(mut x: Self::B, bits: Self::B, mask: u8) -> Self::B {
        for i in 0..64 {
            x[i] |= bits[i] & mask;
        }
        x
    }
    #[inline(always)]
    unsafe fn no_dots() -> Self::D {
        [0; LANES]
    }
    #[inline(always)]
    unsafe fn add_dots(mut sum: Self::D, w: Self::B, x: Self::B) -> Self::D {
        for i in 0..LANES {
            for j in 4 * i..4 * i + 4 {
                sum[i] += i32::from(w[j]) * i32::from(x[j] as i8);
            }
        }
        sum
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
        x.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
    #[inline(always)]
    unsafe fn sum_lanes(x: Self::I) -> i32 {
        x.into_iter().fold(0, i32::wrapping_add)
    }
    #[inline(always)]
    unsafe fn shift_left<const N: u32>(a: Self::I) -> Self::I {
        a.map(|a| a << N)
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self::F {
        // SAFETY: see above.
        let bits = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        bits.map(|bits| f32::from_bits(u32::from(bits) << 16))
    }
    #[inline(always)]
    unsafe fn load_e8m0(from: *const u8) -> Self::F {
        // SAFETY: see above.
        let exponents = unsafe { from.cast::<[u8; LANES]>().read_unaligned() };
        exponents.map(|e| if e == 0 { 2f32.powi(-127) } else { f32::from_bits(u32::from(e) << 23) })
    }
    #[inline(always)]
    unsafe fn prefetch(_at: *const u8) {}
    #[inline(always)]
    unsafe fn prepare_i8(w: Self::B) -> Self::B {
        w
    }
    #[inline(always)]
    unsafe fn dot_i8(mut sum: Self::I, w: Self::B, x: Self::B) -> Self::I {
        for i in 0..LANES {
            for j in 4 * i..4 * i + 4 {
                sum[i] += i32::from(w[j] as i8) * i32::from(x[j] as i8);
            }
        }
        sum
    }
}
