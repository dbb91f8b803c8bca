//! A matrix times a few vectors, in one pass over the matrix: the products that checks need. Floats in f64 against
//! eight vectors at once, integers exactly against one vector of 61-bit numbers in limbs.
#![allow(unsafe_code)]
// Register tiles are read by index: the loops are unrolled whole.
#![allow(clippy::needless_range_loop)]

use crate::dtype::for_dtype;
use crate::{Element, Isa, Tensor};
use std::ops::Range;

/// Vectors of a float pass: one AVX-512 register of f64.
pub(crate) const VECTORS: usize = 8;
/// One row's sums, one per vector.
pub(crate) type Lane = [f64; VECTORS];

/// Rows computed together, so that a vector's element is loaded once for all of them.
const ROWS: usize = 8;
/// Elements of a row converted at a time: two buffers of this depth stay in L1.
const DEPTH: usize = 128;

/// How elements are converted to f64.
#[derive(Clone, Copy, Default)]
pub(crate) struct Reading<'a> {
    /// Read NaN and infinities as zero.
    pub(crate) finite_only: bool,
    /// Power-of-two factor of every row, from row 0 on; two factors each, so that neither leaves the range of f64.
    pub(crate) scales: Option<&'a [(f64, f64)]>,
    /// Factor of every column, `[t.cols()]`, in the sum of squares only.
    pub(crate) weights: Option<&'a [f64]>,
}

/// For every row of `rows`: `sums = t[row, :] · v` and `squares = Σ (weights · t[row, :])²`, in f64. `v`: `[t.cols()]`
/// lanes.
pub(crate) fn skinny(
    isa: Isa,
    t: &Tensor,
    rows: Range<usize>,
    v: &[Lane],
    reading: Reading<'_>,
    sums: &mut [Lane],
    squares: &mut [f64],
) {
    assert!(v.len() == t.cols() && rows.end <= t.rows());
    assert!(sums.len() == rows.len() && squares.len() == rows.len());
    sums.fill([0.0; VECTORS]);
    squares.fill(0.0);
    if t.is_empty() {
        return;
    }
    for_dtype!(t.dtype(), T => if let Some(source) = t.elements::<T>() {
        let job = Pass { source, strides: t.strides(), v, reading };
        match isa.base() {
            // SAFETY: a pool's instruction set is available.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { pass_avx512(&job, rows, sums, squares) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { pass_avx2(&job, rows, sums, squares) },
            _ => job.run(rows, sums, squares, fold_plain),
        }
    });
}

struct Pass<'a, T> {
    source: &'a [T],
    strides: (usize, usize),
    v: &'a [Lane],
    reading: Reading<'a>,
}

/// `[ROWS][DEPTH]`
type Converted = [[f64; DEPTH]; ROWS];

/// Adds `converted[r][..v.len()] · v` to `sums[r]` for every r.
type Fold = fn(&Converted, &[Lane], &mut [Lane; ROWS]);

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn pass_avx512<T: Element>(job: &Pass<'_, T>, rows: Range<usize>, sums: &mut [Lane], squares: &mut [f64]) {
    job.run(rows, sums, squares, |converted, v, sums| {
        use std::arch::x86_64::*;
        // SAFETY: called only inside this function, whose caller has AVX-512; every access is inside its array.
        unsafe {
            let mut acc = [_mm512_setzero_pd(); ROWS];
            for (acc, sums) in acc.iter_mut().zip(sums.iter()) {
                *acc = _mm512_loadu_pd(sums.as_ptr());
            }
            for (k, v) in v.iter().enumerate().take(DEPTH) {
                let v = _mm512_loadu_pd(v.as_ptr());
                for r in 0..ROWS {
                    acc[r] = _mm512_fmadd_pd(_mm512_set1_pd(*converted[r].get_unchecked(k)), v, acc[r]);
                }
            }
            for (acc, sums) in acc.iter().zip(sums.iter_mut()) {
                _mm512_storeu_pd(sums.as_mut_ptr(), *acc);
            }
        }
    });
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn pass_avx2<T: Element>(job: &Pass<'_, T>, rows: Range<usize>, sums: &mut [Lane], squares: &mut [f64]) {
    job.run(rows, sums, squares, |converted, v, sums| {
        use std::arch::x86_64::*;
        // SAFETY: called only inside this function, whose caller has AVX2; every access is inside its array.
        unsafe {
            for (rows, sums) in converted.chunks_exact(4).zip(sums.chunks_exact_mut(4)) {
                let mut acc = [[_mm256_setzero_pd(); 2]; 4];
                for (acc, sums) in acc.iter_mut().zip(sums.iter()) {
                    *acc = [_mm256_loadu_pd(sums.as_ptr()), _mm256_loadu_pd(sums.as_ptr().add(4))];
                }
                for (k, v) in v.iter().enumerate().take(DEPTH) {
                    let v0 = _mm256_loadu_pd(v.as_ptr());
                    let v1 = _mm256_loadu_pd(v.as_ptr().add(4));
                    for r in 0..4 {
                        let x = _mm256_set1_pd(*rows[r].get_unchecked(k));
                        acc[r][0] = _mm256_fmadd_pd(x, v0, acc[r][0]);
                        acc[r][1] = _mm256_fmadd_pd(x, v1, acc[r][1]);
                    }
                }
                for (acc, sums) in acc.iter().zip(sums.iter_mut()) {
                    _mm256_storeu_pd(sums.as_mut_ptr(), acc[0]);
                    _mm256_storeu_pd(sums.as_mut_ptr().add(4), acc[1]);
                }
            }
        }
    });
}

fn fold_plain(converted: &Converted, v: &[Lane], sums: &mut [Lane; ROWS]) {
    for (row, sums) in converted.iter().zip(sums) {
        for (x, v) in row.iter().zip(v) {
            for (sum, v) in sums.iter_mut().zip(v) {
                *sum += x * v;
            }
        }
    }
}

impl<T: Element> Pass<'_, T> {
    #[inline(always)]
    fn run(&self, rows: Range<usize>, sums: &mut [Lane], squares: &mut [f64], fold: Fold) {
        let first = rows.start;
        let mut converted: Converted = [[0.0; DEPTH]; ROWS];
        let blocks = sums.chunks_mut(ROWS).zip(squares.chunks_mut(ROWS));
        for (block, (sums, squares)) in blocks.enumerate() {
            let row0 = first + block * ROWS;
            let mut acc = [[0.0; VECTORS]; ROWS];
            for (chunk, v) in self.v.chunks(DEPTH).enumerate() {
                self.convert(row0, sums.len(), chunk * DEPTH, v.len(), &mut converted);
                match self.reading.weights {
                    None => {
                        for (line, square) in converted.iter().zip(squares.iter_mut()) {
                            *square += sum_of_squares(&line[..v.len()]);
                        }
                    }
                    Some(weights) => {
                        let weights = &weights[chunk * DEPTH..][..v.len()];
                        let mut weighted = [0.0; DEPTH];
                        for (line, square) in converted.iter().zip(squares.iter_mut()) {
                            for ((to, x), weight) in weighted.iter_mut().zip(line).zip(weights) {
                                *to = x * weight;
                            }
                            *square += sum_of_squares(&weighted[..v.len()]);
                        }
                    }
                }
                fold(&converted, v, &mut acc);
            }
            sums.copy_from_slice(&acc[..sums.len()]);
        }
    }

    #[inline(always)]
    fn convert(&self, row0: usize, rows: usize, k0: usize, k: usize, to: &mut Converted) {
        let (row_stride, col_stride) = self.strides;
        if col_stride == 1 {
            for (r, to) in to.iter_mut().enumerate().take(rows) {
                let from = &self.source[(row0 + r) * row_stride + k0..][..k];
                for (to, from) in to.iter_mut().zip(from) {
                    *to = from.to_f64();
                }
                // Chunks are too short for the processor's own prefetching of the next one.
                #[cfg(target_arch = "x86_64")]
                for line in (0..k * size_of::<T>()).step_by(64) {
                    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
                    let next = from.as_ptr().wrapping_add(k).cast::<i8>();
                    // SAFETY: a prefetch reads nothing and never faults, wherever it points.
                    unsafe { _mm_prefetch::<_MM_HINT_T0>(next.wrapping_add(line)) };
                }
            }
        } else {
            for step in 0..k {
                let from = &self.source[row0 * row_stride + (k0 + step) * col_stride..];
                for (r, from) in from.iter().step_by(row_stride.max(1)).enumerate().take(rows) {
                    to[r][step] = from.to_f64();
                }
            }
        }
        if self.reading.finite_only {
            for line in to.iter_mut().take(rows) {
                for x in &mut line[..k] {
                    *x = if x.is_finite() { *x } else { 0.0 };
                }
            }
        }
        if let Some(scales) = self.reading.scales {
            for (line, scale) in to.iter_mut().zip(&scales[row0..]).take(rows) {
                for x in &mut line[..k] {
                    *x = *x * scale.0 * scale.1;
                }
            }
        }
    }
}

#[inline(always)]
fn sum_of_squares(line: &[f64]) -> f64 {
    let mut lanes = [0.0; 8];
    let chunks = line.chunks_exact(8);
    let rest: f64 = chunks.remainder().iter().map(|x| x * x).sum();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += x * x;
        }
    }
    lanes.iter().sum::<f64>() + rest
}

/// For every column of `cols`: Σ t[:, col]², in f64.
pub(crate) fn column_squares(isa: Isa, t: &Tensor, cols: Range<usize>, squares: &mut [f64]) {
    assert!(cols.end <= t.cols() && squares.len() == cols.len());
    squares.fill(0.0);
    if t.is_empty() {
        return;
    }
    for_dtype!(t.dtype(), T => if let Some(source) = t.elements::<T>() {
        match isa.base() {
            // SAFETY: a pool's instruction set is available.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { columns_avx512(source, t.rows(), t.strides(), cols, squares) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { columns_avx2(source, t.rows(), t.strides(), cols, squares) },
            _ => columns(source, t.rows(), t.strides(), cols, squares),
        }
    });
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn columns_avx512<T: Element>(
    source: &[T],
    rows: usize,
    strides: (usize, usize),
    cols: Range<usize>,
    squares: &mut [f64],
) {
    columns(source, rows, strides, cols, squares);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn columns_avx2<T: Element>(
    source: &[T],
    rows: usize,
    strides: (usize, usize),
    cols: Range<usize>,
    squares: &mut [f64],
) {
    columns(source, rows, strides, cols, squares);
}

#[inline(always)]
fn columns<T: Element>(
    source: &[T],
    rows: usize,
    (row_stride, col_stride): (usize, usize),
    cols: Range<usize>,
    squares: &mut [f64],
) {
    if col_stride == 1 {
        for row in 0..rows {
            let line = &source[row * row_stride + cols.start..][..cols.len()];
            for (square, x) in squares.iter_mut().zip(line) {
                let x = x.to_f64();
                *square += x * x;
            }
        }
        return;
    }
    let mut line = [0.0; DEPTH];
    for (square, col) in squares.iter_mut().zip(cols) {
        for first in (0..rows).step_by(DEPTH) {
            let from = source[first * row_stride + col * col_stride..].iter().step_by(row_stride.max(1));
            let count = DEPTH.min(rows - first);
            for (to, x) in line.iter_mut().zip(from).take(count) {
                *to = x.to_f64();
            }
            *square += sum_of_squares(&line[..count]);
        }
    }
}

/// The Mersenne prime 2⁶¹ − 1: the field of the exact checks.
pub(crate) const P61: u64 = (1 << 61) - 1;

/// A vector over the field, cut into limbs so that sums of products fit one machine word.
pub(crate) struct Limbs {
    /// Four signed digits to the base 2¹⁶, for i8: sums of [`DIGIT_RUN`] products fit in i32.
    digits: [Vec<i16>; 4],
    /// 21, 20 and 20 bits, for i32: sums of [`LIMB_RUN`] products, 2³¹ · 2²¹ · 2¹⁰, fit in i64.
    limbs: [Vec<i32>; 3],
}

const DIGIT_RUN: usize = 480;
const _: () = assert!(DIGIT_RUN * 128 * 32_768 < 1 << 31);
const LIMB_RUN: usize = 1 << 10;

impl Limbs {
    pub(crate) fn new(x: &[u64]) -> Limbs {
        let limb = |shift: u32, bits: u32| -> Vec<i32> {
            x.iter().map(|x| ((x >> shift) & ((1 << bits) - 1)) as i32).collect()
        };
        // A digit is the remainder cut to 16 signed bits; subtracting the digit leaves a multiple of 2¹⁶.
        let mut rest: Vec<i64> = x.iter().map(|x| *x as i64).collect();
        let mut digit = || -> Vec<i16> {
            rest.iter_mut()
                .map(|rest| {
                    let digit = *rest as i16;
                    *rest = (*rest - i64::from(digit)) >> 16;
                    digit
                })
                .collect()
        };
        Limbs { digits: [digit(), digit(), digit(), digit()], limbs: [limb(0, 21), limb(21, 20), limb(41, 20)] }
    }

    pub(crate) fn len(&self) -> usize {
        self.limbs[0].len()
    }

    /// The memory it holds, in bytes.
    pub(crate) fn size_bytes(&self) -> usize {
        self.len() * 20
    }
}

/// For every row of `rows` of an i8 or i32 tensor: `t[row, :] · x` in the field.
pub(crate) fn skinny_exact(isa: Isa, t: &Tensor, rows: Range<usize>, x: &Limbs, sums: &mut [u64]) {
    assert!(x.len() == t.cols() && rows.end <= t.rows() && sums.len() == rows.len());
    sums.fill(0);
    if t.is_empty() {
        return;
    }
    if let Some(source) = t.elements::<i8>() {
        let [d0, d1, d2, d3] = &x.digits;
        let parts: [&[i16]; 4] = [d0, d1, d2, d3];
        exact(isa, source, t, rows, DIGIT_RUN, sums, &|isa, line, run| {
            let dots = digit_dots(isa, line, &parts.map(|part| &part[run.clone()]));
            let shifted = dots.iter().zip([0, 16, 32, 48]);
            shifted.map(|(dot, shift)| i128::from(*dot) << shift).sum()
        });
    } else if let Some(source) = t.elements::<i32>() {
        let [l0, l1, l2] = &x.limbs;
        let parts: [&[i32]; 3] = [l0, l1, l2];
        exact(isa, source, t, rows, LIMB_RUN, sums, &|isa, line, run| {
            let dots = limb_dots(isa, line, &parts.map(|part| &part[run.clone()]));
            let shifted = dots.iter().zip([0, 21, 41]);
            shifted.map(|(dot, shift)| i128::from(*dot) << shift).sum()
        });
    }
}

/// Computes one run of a line times the same run of the vector.
type Run<'a, T> = &'a dyn Fn(Isa, &[T], Range<usize>) -> i128;

/// Iterates rows, strides and runs around `dot`, which multiplies one run of a line with the same run of the vector.
fn exact<T: Element>(
    isa: Isa,
    source: &[T],
    t: &Tensor,
    rows: Range<usize>,
    run: usize,
    sums: &mut [u64],
    dot: Run<'_, T>,
) {
    let (row_stride, col_stride) = t.strides();
    let cols = t.cols();
    let mut gathered = Vec::new();
    for (row, sum) in rows.zip(sums) {
        let from = &source[row * row_stride..];
        let line = if col_stride == 1 {
            &from[..cols]
        } else {
            gathered.clear();
            gathered.extend(from.iter().step_by(col_stride).take(cols).copied());
            &gathered
        };
        let runs = line.chunks(run).zip((0..).step_by(run));
        // At most 2^7 · 2^61 · 2^17 or 2^31 · 2^61 · 2^31: well within i128.
        let total: i128 = runs.map(|(part, from)| dot(isa, part, from..from + part.len())).sum();
        *sum = total.rem_euclid(i128::from(P61)) as u64;
    }
}

/// Defines `$name(isa, line, parts)`: Σ line · part for every part, in `$sum`. The caller guarantees that sums fit. The
/// compiler turns these loops into `vpmaddwd` and `vpmuldq`.
macro_rules! dots {
    ($name:ident, $avx512:ident, $avx2:ident, $plain:ident, $t:ty, $part:ty, $sum:ty, $l:expr) => {
        fn $name(isa: Isa, line: &[$t], parts: &[&[$part]; $l]) -> [$sum; $l] {
            match isa.base() {
                // SAFETY: a pool's instruction set is available.
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => unsafe { $avx512(line, parts) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => unsafe { $avx2(line, parts) },
                _ => $plain(line, parts),
            }
        }

        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
        fn $avx512(line: &[$t], parts: &[&[$part]; $l]) -> [$sum; $l] {
            $plain(line, parts)
        }

        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2")]
        fn $avx2(line: &[$t], parts: &[&[$part]; $l]) -> [$sum; $l] {
            $plain(line, parts)
        }

        #[inline(always)]
        fn $plain(line: &[$t], parts: &[&[$part]; $l]) -> [$sum; $l] {
            let mut sums: [$sum; $l] = [0; $l];
            let parts = parts.map(|part| &part[..line.len()]);
            for (i, x) in line.iter().enumerate() {
                for (sum, part) in sums.iter_mut().zip(&parts) {
                    *sum += <$sum>::from(*x) * <$sum>::from(part[i]);
                }
            }
            sums
        }
    };
}
dots!(digit_dots, digit_dots_avx512, digit_dots_avx2, digit_dots_plain, i8, i16, i32, 4);
dots!(limb_dots, limb_dots_avx512, limb_dots_avx2, limb_dots_plain, i32, i32, i64, 3);
