//! f32 and f64 products on macOS through Apple's Accelerate, which alone reaches the matrix units. CBLAS is called here
//! and nowhere else. Threads of the pool share the rows of C; k is cut so that sums are as short as in the other
//! kernels.
#![allow(unsafe_code)]

// Links the framework.
use accelerate_src as _;

use super::SUM_BLOCK;
use super::blocked::Target;
use crate::{Cancel, DType, Error, Pool, Tensor};

const ROW_MAJOR: i32 = 101;
const NO_TRANS: i32 = 111;
const TRANS: i32 = 112;

unsafe extern "C" {
    fn cblas_sgemm(
        order: i32,
        trans_a: i32,
        trans_b: i32,
        m: i32,
        n: i32,
        k: i32,
        alpha: f32,
        a: *const f32,
        lda: i32,
        b: *const f32,
        ldb: i32,
        beta: f32,
        c: *mut f32,
        ldc: i32,
    );
    fn cblas_dgemm(
        order: i32,
        trans_a: i32,
        trans_b: i32,
        m: i32,
        n: i32,
        k: i32,
        alpha: f64,
        a: *const f64,
        lda: i32,
        b: *const f64,
        ldb: i32,
        beta: f64,
        c: *mut f64,
        ldc: i32,
    );
}

/// A tensor's layout for CBLAS: transposed or not, and the leading dimension. `None` for other layouts.
fn layout(t: &Tensor) -> Option<(i32, i32)> {
    let (row_stride, col_stride) = t.strides();
    let leading = |stride: usize, least: usize| i32::try_from(stride.max(least).max(1)).ok();
    if col_stride == 1 && (row_stride >= t.cols() || t.rows() == 1) {
        return Some((NO_TRANS, leading(row_stride, t.cols())?));
    }
    if row_stride == 1 && (col_stride >= t.rows() || t.cols() == 1) {
        return Some((TRANS, leading(col_stride, t.rows())?));
    }
    None
}

/// Whether Accelerate computes this product: both operands f32 or both f64, in layouts and of lengths that CBLAS
/// supports.
pub(crate) fn takes(a: &Tensor, b: &Tensor) -> bool {
    let short = |n: usize| i32::try_from(n).is_ok();
    a.dtype() == b.dtype()
        && matches!(a.dtype(), DType::F32 | DType::F64)
        && short(a.rows())
        && short(a.cols())
        && short(b.cols())
        && layout(a).is_some()
        && layout(b).is_some()
}

/// `c = a · b` for operands that [`takes`] accepts, no length being 0.
pub(crate) fn multiply(a: &Tensor, b: &Tensor, c: &Target<'_>, pool: &Pool, cancel: &Cancel) -> Result<(), Error> {
    assert!(takes(a, b) && a.cols() == b.rows());
    let c = c.dest(a.rows(), b.cols(), a.dtype());
    let (m, k, n) = (a.rows(), a.cols(), b.cols());
    let Some(ldc) = i32::try_from(c.ld).ok() else {
        return Err(Error::invalid("matmul", "the result's rows are too long for CBLAS"));
    };
    let threads = pool.threads();
    let step = m.div_ceil(threads).next_multiple_of(32);
    pool.run(threads, &|thread| {
        let rows = (thread * step).min(m)..((thread + 1) * step).min(m);
        for k0 in (0..k).step_by(SUM_BLOCK) {
            let depth = k0..(k0 + SUM_BLOCK).min(k);
            let (Ok(a), Ok(b)) = (a.slice(rows.clone(), depth.clone()), b.slice(depth.clone(), 0..n)) else {
                return;
            };
            let (Some((trans_a, lda)), Some((trans_b, ldb))) = (layout(&a), layout(&b)) else {
                return;
            };
            if rows.is_empty() || cancel.is_cancelled() {
                return;
            }
            let (m, n, k) = (rows.len() as i32, n as i32, depth.len() as i32);
            let add = k0 > 0;
            // SAFETY: the operands' slices begin at their first element and hold every element that the layout
            // reaches; C's rows are this thread's alone.
            unsafe {
                let c = c.at(rows.start, 0).ptr;
                if let (Some(a), Some(b)) = (a.elements::<f32>(), b.elements::<f32>()) {
                    cblas_sgemm(
                        ROW_MAJOR,
                        trans_a,
                        trans_b,
                        m,
                        n,
                        k,
                        1.0,
                        a.as_ptr(),
                        lda,
                        b.as_ptr(),
                        ldb,
                        f32::from(u8::from(add)),
                        c.cast(),
                        ldc,
                    );
                } else if let (Some(a), Some(b)) = (a.elements::<f64>(), b.elements::<f64>()) {
                    cblas_dgemm(
                        ROW_MAJOR,
                        trans_a,
                        trans_b,
                        m,
                        n,
                        k,
                        1.0,
                        a.as_ptr(),
                        lda,
                        b.as_ptr(),
                        ldb,
                        f64::from(u8::from(add)),
                        c.cast(),
                        ldc,
                    );
                }
            }
        }
    });
    cancel.check()
}
