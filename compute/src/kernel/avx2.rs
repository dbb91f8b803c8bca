//! Micro-kernels for AVX2 and FMA: 6 rows by two registers, 12 accumulators. i8 is widened to i16 pairs for
//! `vpmaddwd`, which is exact.
#![allow(unsafe_code)]
// Register tiles are read by index: the loops are unrolled whole.
#![allow(clippy::needless_range_loop)]

use super::Kernel;
use std::arch::x86_64::*;

/// Calls `$f::<rows>` for `rows` known only at run time.
macro_rules! by_rows {
    ($rows:expr, $f:ident($($arg:expr),*)) => {
        match $rows {
            1 => $f::<1>($($arg),*),
            2 => $f::<2>($($arg),*),
            3 => $f::<3>($($arg),*),
            4 => $f::<4>($($arg),*),
            5 => $f::<5>($($arg),*),
            _ => $f::<6>($($arg),*),
        }
    };
}

macro_rules! float_kernel {
    ($name:ident, $f:ident, $t:ty, $v:ty, $lanes:expr, $kc:expr, $zero:ident, $load:ident, $store:ident, $set1:ident, $fma:ident, $add:ident) => {
        pub(crate) struct $name;
        impl Kernel for $name {
            type Elem = $t;
            type Acc = $t;
            const MR: usize = 6;
            const NR: usize = 2 * $lanes;
            const KUNIT: usize = 1;
            const KC: usize = $kc;

            unsafe fn micro(rows: usize, groups: usize, a: *const $t, b: *const u8, c: *mut $t, ldc: usize, add: bool) {
                // SAFETY: passed on from the caller; 1 ≤ rows ≤ 6.
                unsafe { by_rows!(rows, $f(groups, a, b.cast(), c, ldc, add)) }
            }
        }

        /// # Safety
        /// As [`Kernel::micro`], with `rows` = R.
        #[target_feature(enable = "avx2,fma")]
        unsafe fn $f<const R: usize>(k: usize, a: *const $t, b: *const $t, c: *mut $t, ldc: usize, add: bool) {
            let mut acc: [[$v; 2]; R] = [[$zero(); 2]; R];
            // SAFETY: k steps of R elements of A and 2 · lanes of B; R rows of C, each 2 · lanes wide, `ldc` apart.
            unsafe {
                for i in 0..R {
                    _mm_prefetch::<_MM_HINT_T0>(c.add(i * ldc).cast());
                }
                let (mut a, mut b) = (a, b);
                for _ in 0..k {
                    let b0 = $load(b);
                    let b1 = $load(b.add($lanes));
                    for i in 0..R {
                        let ai = $set1(*a.add(i));
                        acc[i][0] = $fma(ai, b0, acc[i][0]);
                        acc[i][1] = $fma(ai, b1, acc[i][1]);
                    }
                    a = a.add(R);
                    b = b.add(2 * $lanes);
                }
                for i in 0..R {
                    let row = c.add(i * ldc);
                    for half in 0..2 {
                        let at = row.add(half * $lanes);
                        let sum = if add { $add($load(at), acc[i][half]) } else { acc[i][half] };
                        $store(at, sum);
                    }
                }
            }
        }
    };
}
float_kernel!(
    F32,
    f32_tile,
    f32,
    __m256,
    8,
    384,
    _mm256_setzero_ps,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_set1_ps,
    _mm256_fmadd_ps,
    _mm256_add_ps
);
float_kernel!(
    F64,
    f64_tile,
    f64,
    __m256d,
    4,
    256,
    _mm256_setzero_pd,
    _mm256_loadu_pd,
    _mm256_storeu_pd,
    _mm256_set1_pd,
    _mm256_fmadd_pd,
    _mm256_add_pd
);

/// i8 products from pairs widened to i16.
pub(crate) struct I8;

impl Kernel for I8 {
    type Elem = i16;
    type Acc = i32;
    const MR: usize = 6;
    const NR: usize = 16;
    const KUNIT: usize = 2;
    const KC: usize = 1024;

    unsafe fn micro(rows: usize, groups: usize, a: *const i16, b: *const u8, c: *mut i32, ldc: usize, add: bool) {
        // SAFETY: passed on from the caller; 1 ≤ rows ≤ 6.
        unsafe { by_rows!(rows, i8_tile(groups, a, b, c, ldc, add)) }
    }
}

/// # Safety
/// As [`Kernel::micro`], with `rows` = R.
#[target_feature(enable = "avx2")]
unsafe fn i8_tile<const R: usize>(groups: usize, a: *const i16, b: *const u8, c: *mut i32, ldc: usize, add: bool) {
    let mut acc: [[__m256i; 2]; R] = [[_mm256_setzero_si256(); 2]; R];
    // SAFETY: `groups` steps of R pairs of A and 16 pairs of B; R rows of C, each 16 wide, `ldc` apart.
    unsafe {
        let (mut a, mut b) = (a, b);
        for _ in 0..groups {
            let b0 = _mm256_loadu_si256(b.cast());
            let b1 = _mm256_loadu_si256(b.add(32).cast());
            for i in 0..R {
                let ai = _mm256_set1_epi32(a.add(2 * i).cast::<i32>().read_unaligned());
                acc[i][0] = _mm256_add_epi32(acc[i][0], _mm256_madd_epi16(ai, b0));
                acc[i][1] = _mm256_add_epi32(acc[i][1], _mm256_madd_epi16(ai, b1));
            }
            a = a.add(2 * R);
            b = b.add(64);
        }
        for i in 0..R {
            let row = c.add(i * ldc);
            for half in 0..2 {
                let at: *mut __m256i = row.add(half * 8).cast();
                let sum = if add { _mm256_add_epi32(_mm256_loadu_si256(at), acc[i][half]) } else { acc[i][half] };
                _mm256_storeu_si256(at, sum);
            }
        }
    }
}
