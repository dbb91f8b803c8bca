//! Micro-kernels for AVX-512: 14 rows by two registers, 28 accumulators; the last rows of a matrix get a kernel of
//! their own size. i8 uses VNNI's `vpdpbusd`, whose wrap-around sums are exact once the true result fits.
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
            6 => $f::<6>($($arg),*),
            7 => $f::<7>($($arg),*),
            8 => $f::<8>($($arg),*),
            9 => $f::<9>($($arg),*),
            10 => $f::<10>($($arg),*),
            11 => $f::<11>($($arg),*),
            12 => $f::<12>($($arg),*),
            13 => $f::<13>($($arg),*),
            _ => $f::<14>($($arg),*),
        }
    };
}

macro_rules! float_kernel {
    ($name:ident, $f:ident, $t:ty, $v:ty, $lanes:expr, $kc:expr, $zero:ident, $load:ident, $store:ident, $set1:ident, $fma:ident, $add:ident) => {
        pub(crate) struct $name;
        impl Kernel for $name {
            type Elem = $t;
            type Acc = $t;
            const MR: usize = 14;
            const NR: usize = 2 * $lanes;
            const KUNIT: usize = 1;
            const KC: usize = $kc;

            unsafe fn micro(rows: usize, groups: usize, a: *const $t, b: *const u8, c: *mut $t, ldc: usize, add: bool) {
                // SAFETY: passed on from the caller; 1 ≤ rows ≤ 14.
                unsafe { by_rows!(rows, $f(groups, a, b.cast(), c, ldc, add)) }
            }
        }

        /// # Safety
        /// As [`Kernel::micro`], with `rows` = R.
        #[target_feature(enable = "avx512f")]
        unsafe fn $f<const R: usize>(k: usize, a: *const $t, b: *const $t, c: *mut $t, ldc: usize, add: bool) {
            let mut acc: [[$v; 2]; R] = [[$zero(); 2]; R];
            // SAFETY: k steps of R elements of A and 2 · lanes of B; R rows of C, each 2 · lanes wide, `ldc` apart.
            unsafe {
                for i in 0..R {
                    let row = c.add(i * ldc);
                    _mm_prefetch::<_MM_HINT_T0>(row.cast());
                    _mm_prefetch::<_MM_HINT_T0>(row.add($lanes).cast());
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
    __m512,
    16,
    384,
    _mm512_setzero_ps,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_set1_ps,
    _mm512_fmadd_ps,
    _mm512_add_ps
);
float_kernel!(
    F64,
    f64_tile,
    f64,
    __m512d,
    8,
    256,
    _mm512_setzero_pd,
    _mm512_loadu_pd,
    _mm512_storeu_pd,
    _mm512_set1_pd,
    _mm512_fmadd_pd,
    _mm512_add_pd
);

/// i8 products with VNNI. A is stored as a + 128 (unsigned); a B panel begins with −128 · its column sums.
pub(crate) struct I8;

impl Kernel for I8 {
    type Elem = i8;
    type Acc = i32;
    const MR: usize = 14;
    const NR: usize = 32;
    const KUNIT: usize = 4;
    const KC: usize = 1536;
    const A_XOR: u8 = 0x80;
    const HEADER: usize = 32 * 4;

    unsafe fn micro(rows: usize, groups: usize, a: *const i8, b: *const u8, c: *mut i32, ldc: usize, add: bool) {
        // SAFETY: passed on from the caller; 1 ≤ rows ≤ 14.
        unsafe { by_rows!(rows, i8_tile(groups, a, b, c, ldc, add)) }
    }
}

/// # Safety
/// As [`Kernel::micro`], with `rows` = R.
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn i8_tile<const R: usize>(groups: usize, a: *const i8, b: *const u8, c: *mut i32, ldc: usize, add: bool) {
    // SAFETY: a header of 32 i32, then `groups` steps of R · 4 bytes of A and 32 · 4 of B; R rows of 32 of C.
    unsafe {
        let start = [_mm512_loadu_si512(b.cast()), _mm512_loadu_si512(b.add(64).cast())];
        let mut acc: [[__m512i; 2]; R] = [start; R];
        let (mut a, mut b) = (a, b.add(128));
        for _ in 0..groups {
            let b0 = _mm512_loadu_si512(b.cast());
            let b1 = _mm512_loadu_si512(b.add(64).cast());
            for i in 0..R {
                let ai = _mm512_set1_epi32(a.add(4 * i).cast::<i32>().read_unaligned());
                acc[i][0] = _mm512_dpbusd_epi32(acc[i][0], ai, b0);
                acc[i][1] = _mm512_dpbusd_epi32(acc[i][1], ai, b1);
            }
            a = a.add(4 * R);
            b = b.add(128);
        }
        for i in 0..R {
            let row = c.add(i * ldc);
            for half in 0..2 {
                let at = row.add(half * 16).cast();
                let sum = if add { _mm512_add_epi32(_mm512_loadu_si512(at), acc[i][half]) } else { acc[i][half] };
                _mm512_storeu_si512(row.add(half * 16).cast(), sum);
            }
        }
    }
}
