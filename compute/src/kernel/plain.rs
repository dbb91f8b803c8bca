//! Micro-kernels in portable Rust: fixed-size arrays that the compiler keeps in registers and vectorises. Correct
//! everywhere, fast with 32 vector registers (NEON).
#![allow(unsafe_code)]
// Register tiles are read by index: the loops are unrolled whole.
#![allow(clippy::needless_range_loop)]

use super::Kernel;

macro_rules! plain_float {
    ($name:ident, $t:ty, $mr:expr, $nr:expr, $kc:expr) => {
        pub(crate) struct $name;
        impl Kernel for $name {
            type Elem = $t;
            type Acc = $t;
            const MR: usize = $mr;
            const NR: usize = $nr;
            const KUNIT: usize = 1;
            const KC: usize = $kc;

            unsafe fn micro(rows: usize, groups: usize, a: *const $t, b: *const u8, c: *mut $t, ldc: usize, add: bool) {
                // SAFETY: the caller's promise: packed panels of `groups` groups, `rows` rows of C.
                let (a, b) = unsafe {
                    (
                        std::slice::from_raw_parts(a, groups * rows),
                        std::slice::from_raw_parts(b.cast::<$t>(), groups * $nr),
                    )
                };
                let mut acc = [[0 as $t; $nr]; $mr];
                if rows == $mr {
                    for (a, b) in a.chunks_exact($mr).zip(b.chunks_exact($nr)) {
                        for i in 0..$mr {
                            for j in 0..$nr {
                                acc[i][j] = fused(a[i], b[j], acc[i][j]);
                            }
                        }
                    }
                } else {
                    for (a, b) in a.chunks_exact(rows).zip(b.chunks_exact($nr)) {
                        for (acc, a) in acc.iter_mut().zip(a) {
                            for j in 0..$nr {
                                acc[j] = fused(*a, b[j], acc[j]);
                            }
                        }
                    }
                }
                for (i, acc) in acc.iter().enumerate().take(rows) {
                    // SAFETY: row i < rows of C, NR elements, ours alone.
                    let c = unsafe { std::slice::from_raw_parts_mut(c.add(i * ldc), $nr) };
                    for (c, acc) in c.iter_mut().zip(acc) {
                        *c = if add { *c + acc } else { *acc };
                    }
                }
            }
        }
    };
}

/// a·b + c: fused where that is one instruction, else rounded twice (a function call per product would be far slower).
#[inline(always)]
fn fused<T: Copy + std::ops::Mul<Output = T> + std::ops::Add<Output = T> + MulAdd>(a: T, b: T, c: T) -> T {
    if cfg!(target_arch = "aarch64") { a.mul_add_to(b, c) } else { a * b + c }
}

trait MulAdd {
    fn mul_add_to(self, b: Self, c: Self) -> Self;
}
impl MulAdd for f32 {
    #[inline(always)]
    fn mul_add_to(self, b: f32, c: f32) -> f32 {
        self.mul_add(b, c)
    }
}
impl MulAdd for f64 {
    #[inline(always)]
    fn mul_add_to(self, b: f64, c: f64) -> f64 {
        self.mul_add(b, c)
    }
}

// NEON has 32 registers of 16 bytes, SSE2 has 16.
#[cfg(target_arch = "aarch64")]
plain_float!(F32, f32, 6, 16, 384);
#[cfg(target_arch = "aarch64")]
plain_float!(F64, f64, 6, 8, 256);
#[cfg(not(target_arch = "aarch64"))]
plain_float!(F32, f32, 4, 8, 384);
#[cfg(not(target_arch = "aarch64"))]
plain_float!(F64, f64, 4, 4, 256);

/// i8 products, exact in i32, from pairs widened to i16.
pub(crate) struct I8;

impl Kernel for I8 {
    type Elem = i16;
    type Acc = i32;
    const MR: usize = 4;
    const NR: usize = 8;
    const KUNIT: usize = 2;
    const KC: usize = 1024;

    unsafe fn micro(rows: usize, groups: usize, a: *const i16, b: *const u8, c: *mut i32, ldc: usize, add: bool) {
        // SAFETY: the caller's promise: packed panels of `groups` groups, `rows` rows of C.
        let (a, b) = unsafe {
            (std::slice::from_raw_parts(a, groups * rows * 2), std::slice::from_raw_parts(b.cast::<i16>(), groups * 16))
        };
        let mut acc = [[0i32; 8]; 4];
        for (a, b) in a.chunks_exact(rows * 2).zip(b.chunks_exact(16)) {
            for (acc, a) in acc.iter_mut().zip(a.chunks_exact(2)) {
                let (a0, a1) = (i32::from(a[0]), i32::from(a[1]));
                for j in 0..8 {
                    acc[j] += a0 * i32::from(b[2 * j]) + a1 * i32::from(b[2 * j + 1]);
                }
            }
        }
        for (i, acc) in acc.iter().enumerate().take(rows) {
            // SAFETY: row i < rows of C, NR elements, ours alone.
            let c = unsafe { std::slice::from_raw_parts_mut(c.add(i * ldc), 8) };
            for (c, acc) in c.iter_mut().zip(acc) {
                *c = if add { *c + acc } else { *acc };
            }
        }
    }
}
