//! A matrix times a few vectors, in one pass over the matrix: what the checks are made of. Floats in f64 against eight
//! vectors at once, integers exactly against one vector of 61-bit numbers in limbs. It decides nothing.
#![allow(unsafe_code)]

use crate::dtype::for_dtype;
use crate::{Element, Isa, Tensor};
use std::ops::Range;

/// How many vectors a float pass takes: one AVX-512 register of f64.
pub(crate) const VECTORS: usize = 8;
/// One row's sums.
pub(crate) type Lane = [f64; VECTORS];

/// Rows taken together, so that a vector's element is loaded once for all.
const ROWS: usize = 8;
/// Elements of a row converted at a time: two buffers of this depth stay in L1.
const DEPTH: usize = 128;

/// How elements become f64 on the way.
#[derive(Clone, Copy, Default)]
pub(crate) struct Reading<'a> {
    /// NaN and infinities count as zero.
    pub(crate) finite_only: bool,
    /// Every row's power-of-two factor, as two factors so that neither leaves the range; from row 0 on.
    pub(crate) scales: Option<&'a [(f64, f64)]>,
}

/// For every row of `rows`: `sums = t[row, :] · v` and `squares = Σ t[row, :]²`, in f64. `v`: `[t.cols()]` lanes.
pub(crate) fn thin(
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
        match isa {
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
fn pass_avx512<T: Element>(
    job: &Pass<'_, T>,
    rows: Range<usize>,
    sums: &mut [Lane],
    squares: &mut [f64],
) {
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
                    acc[r] =
                        _mm512_fmadd_pd(_mm512_set1_pd(*converted[r].get_unchecked(k)), v, acc[r]);
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
fn pass_avx2<T: Element>(
    job: &Pass<'_, T>,
    rows: Range<usize>,
    sums: &mut [Lane],
    squares: &mut [f64],
) {
    job.run(rows, sums, squares, |converted, v, sums| {
        use std::arch::x86_64::*;
        // SAFETY: called only inside this function, whose caller has AVX2; every access is inside its array.
        unsafe {
            for (rows, sums) in converted.chunks_exact(4).zip(sums.chunks_exact_mut(4)) {
                let mut acc = [[_mm256_setzero_pd(); 2]; 4];
                for (acc, sums) in acc.iter_mut().zip(sums.iter()) {
                    *acc = [
                        _mm256_loadu_pd(sums.as_ptr()),
                        _mm256_loadu_pd(sums.as_ptr().add(4)),
                    ];
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
                for (line, square) in converted.iter().zip(squares.iter_mut()) {
                    *square += sum_of_squares(&line[..v.len()]);
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
            }
        } else {
            for step in 0..k {
                let from = &self.source[row0 * row_stride + (k0 + step) * col_stride..];
                for (r, from) in from
                    .iter()
                    .step_by(row_stride.max(1))
                    .enumerate()
                    .take(rows)
                {
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

/// The Mersenne prime 2⁶¹ − 1: the field of the exact checks.
pub(crate) const P61: u64 = (1 << 61) - 1;

/// A vector over the field, cut into limbs that products of 32 bits can be summed with in 64.
pub(crate) struct Limbs {
    /// 31 and 30 bits, for i8: 2⁷ · 2³¹ · 2¹⁷ < 2⁶³.
    pub(crate) two: [Vec<i32>; 2],
    /// 21, 20 and 20 bits, for i32: 2³¹ · 2²¹ · 2¹⁰ < 2⁶³.
    pub(crate) three: [Vec<i32>; 3],
}

impl Limbs {
    pub(crate) fn new(x: &[u64]) -> Limbs {
        let part = |shift: u32, bits: u32| -> Vec<i32> {
            x.iter()
                .map(|x| ((x >> shift) & ((1 << bits) - 1)) as i32)
                .collect()
        };
        Limbs {
            two: [part(0, 31), part(31, 30)],
            three: [part(0, 21), part(21, 20), part(41, 20)],
        }
    }
}

/// For every row of `rows` of an i8 or i32 tensor: `t[row, :] · x` in the field.
pub(crate) fn thin_exact(isa: Isa, t: &Tensor, rows: Range<usize>, x: &Limbs, sums: &mut [u64]) {
    assert!(x.two[0].len() == t.cols() && rows.end <= t.rows() && sums.len() == rows.len());
    sums.fill(0);
    if t.is_empty() {
        return;
    }
    if let Some(source) = t.elements::<i8>() {
        let parts = [x.two[0].as_slice(), x.two[1].as_slice()];
        exact(isa, source, t, rows, &parts, &[0, 31], 1 << 17, sums);
    } else if let Some(source) = t.elements::<i32>() {
        let parts = [
            x.three[0].as_slice(),
            x.three[1].as_slice(),
            x.three[2].as_slice(),
        ];
        exact(isa, source, t, rows, &parts, &[0, 21, 41], 1 << 10, sums);
    }
}

#[allow(clippy::too_many_arguments)]
fn exact<T: Element + Into<i64>, const L: usize>(
    isa: Isa,
    source: &[T],
    t: &Tensor,
    rows: Range<usize>,
    limbs: &[&[i32]; L],
    shifts: &[u32; L],
    most: usize,
    sums: &mut [u64],
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
        let mut total: i128 = 0;
        for from in (0..cols).step_by(most) {
            let range = from..(from + most).min(cols);
            let parts = limbs.map(|limb| &limb[range.clone()]);
            let line = &line[range];
            let dots = match isa {
                // SAFETY: a pool's instruction set is available.
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => unsafe { dots_avx512(line, &parts) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => unsafe { dots_avx2(line, &parts) },
                _ => dots(line, &parts),
            };
            for (dot, shift) in dots.into_iter().zip(shifts) {
                total += i128::from(dot) << shift;
            }
        }
        *sum = total.rem_euclid(i128::from(P61)) as u64;
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn dots_avx512<T: Copy + Into<i64>, const L: usize>(line: &[T], limbs: &[&[i32]; L]) -> [i64; L] {
    dots(line, limbs)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn dots_avx2<T: Copy + Into<i64>, const L: usize>(line: &[T], limbs: &[&[i32]; L]) -> [i64; L] {
    dots(line, limbs)
}

/// Σ line · limb for every limb. Both factors fit in 32 bits, which the compiler turns into `pmuldq`.
#[inline(always)]
fn dots<T: Copy + Into<i64>, const L: usize>(line: &[T], limbs: &[&[i32]; L]) -> [i64; L] {
    let mut sums = [0i64; L];
    let limbs = limbs.map(|limb| &limb[..line.len()]);
    for (i, x) in line.iter().enumerate() {
        let x: i64 = (*x).into();
        for l in 0..L {
            sums[l] += x * i64::from(limbs[l][i]);
        }
    }
    sums
}
