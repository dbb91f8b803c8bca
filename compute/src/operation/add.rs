//! `C = A + B`, element by element, of two f32, f64 or i32 tensors of one shape. A sum has the same bits on every processor:
//! IEEE 754 rounds it in one way only, a NaN is always the same NaN here, and a sum that leaves i32 is an error, as i32 never
//! wraps in a product either. The check computes again and compares bits, which costs what the sum cost.

use super::TensorShape;
use crate::check::Mismatch;
use crate::{Cancel, DType, Element, Error, Pool, Tensor, TensorBuf};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// The name of the check in reports.
pub(super) const METHOD: &str = "recomputed";

/// Elements that a thread is woken for, and elements of a piece that it takes: some 100 and 50 µs.
const ELEMENTS_PER_THREAD: usize = 200_000;
const ELEMENTS_PER_PIECE: usize = 100_000;

/// The sum's type and shape.
pub(super) fn gives(a: TensorShape, b: TensorShape) -> Result<TensorShape, Error> {
    let refused = |dtype: String, hint| Err(Error::Dtype { operation: "add", dtype, hint });
    for operand in [a, b] {
        if !matches!(operand.dtype, DType::F32 | DType::F64 | DType::I32) {
            return refused(operand.dtype.to_string(), "convert both operands to f32, f64 or i32");
        }
    }
    if a.dtype != b.dtype {
        return refused(format!("{} with {}", a.dtype, b.dtype), "A and B must have one dtype; convert one of them");
    }
    if (a.rows, a.cols) != (b.rows, b.cols) {
        return Err(Error::Shape {
            operation: "add",
            a: (a.rows, a.cols),
            b: (b.rows, b.cols),
            hint: "A and B must have one shape; neither is repeated to fit the other",
        });
    }
    Ok(a)
}

/// The sum.
pub(super) fn compute(a: &Tensor, b: &Tensor, pool: &Pool, cancel: &Cancel) -> Result<Tensor, Error> {
    let TensorShape { dtype, rows, cols } = gives(a.into(), b.into())?;
    let mut c = TensorBuf::unspecified(dtype, rows, cols)?;
    match dtype {
        DType::F64 => sum::<f64>(a, b, &mut c, pool, cancel)?,
        DType::I32 => sum::<i32>(a, b, &mut c, pool, cancel)?,
        _ => sum::<f32>(a, b, &mut c, pool, cancel)?,
    }
    Ok(c.freeze())
}

/// Whether `c` is the sum, to the bit.
pub(super) fn check(a: &Tensor, b: &Tensor, c: &Tensor, pool: &Pool) -> Result<&'static str, Mismatch> {
    let (expected, got) = (gives(a.into(), b.into()), TensorShape::from(c));
    match expected {
        Ok(sum) if sum == got => {}
        _ => {
            let what = format!("{c:?} cannot be the sum of {a:?} and {b:?}");
            return Err(Mismatch { row: 0, col: None, residual: f64::INFINITY, threshold: 0.0, what });
        }
    }
    match got.dtype {
        DType::F64 => compare::<f64>(a, b, c, pool)?,
        DType::I32 => compare::<i32>(a, b, c, pool)?,
        _ => compare::<f32>(a, b, c, pool)?,
    }
    Ok(METHOD)
}

/// An element that is added.
trait Addend: Element {
    /// The sum, and whether it does not fit the type.
    fn plus(self, other: Self) -> (Self, bool);
}

macro_rules! float_addend {
    ($t:ty, $nan:expr) => {
        impl Addend for $t {
            #[inline(always)]
            fn plus(self, other: $t) -> ($t, bool) {
                let sum = self + other;
                // Which of two NaNs a processor keeps, and with which sign, differs.
                (if sum.is_nan() { <$t>::from_bits($nan) } else { sum }, false)
            }
        }
    };
}
float_addend!(f32, 0x7fc0_0000);
float_addend!(f64, 0x7ff8_0000_0000_0000);

impl Addend for i32 {
    #[inline(always)]
    fn plus(self, other: i32) -> (i32, bool) {
        self.overflowing_add(other)
    }
}

fn sum<T: Addend>(a: &Tensor, b: &Tensor, c: &mut TensorBuf, pool: &Pool, cancel: &Cancel) -> Result<(), Error> {
    let (rows, cols) = a.shape();
    let (Some(out), Some(step)) = (c.elements_mut::<T>(), rows_per_piece(rows, cols)) else { return Ok(()) };
    let pieces = (0..rows).step_by(step).zip(out.chunks_mut(step * cols));
    by_pieces(pool, rows * cols, pieces, &|first: usize, out: &mut [T]| {
        cancel.check()?;
        for (row, out) in (first..).zip(out.chunks_exact_mut(cols)) {
            if add_row(a, b, row, out) {
                return Err(leaves::<T>(a, b, row));
            }
        }
        Ok(())
    })
}

fn compare<T: Addend>(a: &Tensor, b: &Tensor, c: &Tensor, pool: &Pool) -> Result<(), Mismatch> {
    let (rows, cols) = a.shape();
    let Some(step) = rows_per_piece(rows, cols) else { return Ok(()) };
    let pieces = (0..rows).step_by(step).map(|first| (first, first..(first + step).min(rows)));
    by_pieces(pool, rows * cols, pieces, &|_, rows: Range<usize>| {
        let (mut sum, mut got) = (vec![<T as bytemuck::Zeroable>::zeroed(); cols], vec![0; cols * size_of::<T>()]);
        for row in rows {
            let overflow = add_row(a, b, row, &mut sum);
            c.read_bytes((row * got.len()) as u64, &mut got);
            if overflow {
                let what = leaves::<T>(a, b, row).to_string();
                return Err(Mismatch { row, col: None, residual: f64::INFINITY, threshold: 0.0, what });
            }
            if bytemuck::cast_slice::<T, u8>(&sum) != got {
                return Err(mismatch(row, &sum, &got));
            }
        }
        Ok(())
    })
}

/// Writes the sums of one row to `out`; whether any of them does not fit the type.
fn add_row<T: Addend>(a: &Tensor, b: &Tensor, row: usize, out: &mut [T]) -> bool {
    fn add<'t, T: Addend>(a: impl Iterator<Item = &'t T>, b: impl Iterator<Item = &'t T>, out: &mut [T]) -> bool {
        let mut overflow = false;
        for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
            let (sum, leaves) = a.plus(*b);
            *out = sum;
            overflow |= leaves;
        }
        overflow
    }
    let (Ok(a), Ok(b)) = (a.view::<T>(), b.view::<T>()) else { return false };
    let (a, b) = (a.row(row), b.row(row));
    match (a.as_slice(), b.as_slice()) {
        (Some(a), Some(b)) => add(a.iter(), b.iter(), out),
        _ => add(a.iter(), b.iter(), out),
    }
}

/// That a sum of this row does not fit its type, with the first that does not.
fn leaves<T: Addend>(a: &Tensor, b: &Tensor, row: usize) -> Error {
    let pairs = || Some((a.view::<T>().ok()?, b.view::<T>().ok()?));
    let first = pairs().and_then(|(a, b)| {
        let mut pairs = a.row(row).to_vec().into_iter().zip(b.row(row).to_vec());
        pairs.find(|(a, b)| a.plus(*b).1)
    });
    let sum = first.map_or_else(|| "a sum".to_owned(), |(a, b)| format!("{a:?} + {b:?}"));
    Error::invalid("add", format!("{sum} does not fit {}; convert both operands to f64, which is exact", T::DTYPE))
}

fn mismatch<T: Addend>(row: usize, sum: &[T], got: &[u8]) -> Mismatch {
    let size = size_of::<T>();
    let col = sum.iter().zip(got.chunks_exact(size)).position(|(sum, got)| bytemuck::bytes_of(sum) != got);
    let pair = col.map(|col| (sum[col], bytemuck::pod_read_unaligned::<T>(&got[col * size..(col + 1) * size])));
    let what = pair.map_or_else(
        || format!("row {row} is not the sum"),
        |(sum, got)| format!("element ({row}, {}) is {got:?}, not {sum:?}", col.unwrap_or_default()),
    );
    let residual = pair.map_or(f64::INFINITY, |(sum, got)| (sum.to_f64() - got.to_f64()).abs());
    Mismatch { row, col, residual, threshold: 0.0, what }
}

/// Rows of one piece; `None` where there are no elements.
fn rows_per_piece(rows: usize, cols: usize) -> Option<usize> {
    (rows > 0 && cols > 0).then(|| (ELEMENTS_PER_PIECE / cols).max(1))
}

/// Calls `work` with every piece and its number, on the pool's threads; pieces are in ascending order. The error is that of the
/// first piece with one, whichever thread is faster.
fn by_pieces<P: Send, E: Send>(
    pool: &Pool,
    elements: usize,
    pieces: impl Iterator<Item = (usize, P)> + Send,
    work: &(dyn Fn(usize, P) -> Result<(), E> + Sync),
) -> Result<(), E> {
    let width = pool.threads().min(elements / ELEMENTS_PER_THREAD).max(1);
    // What comes after an error is not begun; what came before it has begun already.
    let state = Mutex::new((pieces, None::<(usize, E)>));
    let lock = || state.lock().unwrap_or_else(PoisonError::into_inner);
    pool.run(width, &|_| {
        loop {
            let next = {
                let (pieces, failed) = &mut *lock();
                if failed.is_some() { None } else { pieces.next() }
            };
            let Some((number, piece)) = next else { return };
            if let Err(error) = work(number, piece) {
                let (_, failed) = &mut *lock();
                if failed.as_ref().is_none_or(|(first, _)| number < *first) {
                    *failed = Some((number, error));
                }
            }
        }
    });
    let (_, failed) = state.into_inner().unwrap_or_else(PoisonError::into_inner);
    failed.map_or(Ok(()), |(_, error)| Err(error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ErrorKind, Operation};

    const DTYPES: [DType; 3] = [DType::F32, DType::F64, DType::I32];

    fn add(a: &Tensor, b: &Tensor, pool: &Pool) -> Result<Tensor, Error> {
        Operation::Add.compute(a, b, pool, &Cancel::new())
    }

    fn verify(a: &Tensor, b: &Tensor, c: &Tensor, pool: &Pool) -> Result<&'static str, Mismatch> {
        let probe = Operation::Add.probe(b, c.dtype(), [0; 32], pool).unwrap();
        probe.check(a, b, c, pool)
    }

    /// Numbers whose sums fit every type.
    fn operand(dtype: DType, rows: usize, cols: usize, seed: u64) -> Tensor {
        if dtype != DType::I32 {
            return Tensor::generate(dtype, rows, cols, seed).unwrap();
        }
        let wide = Tensor::generate(DType::I32, rows, cols, seed).unwrap().to_array::<i32>().unwrap();
        Tensor::from_array(wide.mapv(|v| v / 2).view()).unwrap()
    }

    #[test]
    fn sums_are_those_of_single_elements_for_every_layout_and_any_number_of_threads() {
        for (rows, cols) in [(0, 3), (3, 0), (1, 1), (7, 5), (1, 250_001), (700, 900)] {
            for dtype in DTYPES {
                let plain = [operand(dtype, rows, cols, 1), operand(dtype, rows, cols, 2)];
                let turned = operand(dtype, cols, rows, 3).transposed();
                let part = operand(dtype, rows + 2, cols + 3, 4).slice(1..rows + 1, 2..cols + 2).unwrap();
                for (a, b) in [(&plain[0], &plain[1]), (&plain[0], &turned), (&turned, &part)] {
                    let c = add(a, b, &Pool::new(1).unwrap()).unwrap();
                    for (row, col) in [(0, 0), (rows / 2, cols / 2), (rows.max(1) - 1, cols.max(1) - 1)] {
                        let single = a.get(row, col).zip(b.get(row, col)).map(|(a, b)| match dtype {
                            DType::F32 => f64::from(a as f32 + b as f32),
                            _ => a + b,
                        });
                        assert_eq!(c.get(row, col), single, "{dtype} at ({row}, {col}) of {a:?}");
                    }
                    let pool = Pool::new(3).unwrap();
                    assert_eq!(add(a, b, &pool).unwrap().digest(), c.digest());
                    assert_eq!(verify(a, b, &c, &pool).unwrap(), METHOD);
                }
            }
        }
    }

    #[test]
    fn a_nan_is_always_the_same_nan() {
        let pool = Pool::new(1).unwrap();
        let a = [f32::NAN, f32::from_bits(0xffc0_1234), f32::INFINITY, 1.0, -0.0];
        let b = [1.0, f32::from_bits(0x7fa0_0001), f32::NEG_INFINITY, f32::from_bits(0xff80_0001), -0.0];
        let [a, b] = [a, b].map(|elements| Tensor::from_slice(1, 5, &elements).unwrap());
        let c = add(&a, &b, &pool).unwrap().to_array::<f32>().unwrap();
        let bits: Vec<u32> = c.iter().map(|c| c.to_bits()).collect();
        assert_eq!(bits, [0x7fc0_0000, 0x7fc0_0000, 0x7fc0_0000, 0x7fc0_0000, 0x8000_0000]);
        let c = Tensor::from_slice(1, 2, &[f64::NEG_INFINITY + f64::INFINITY, -f64::NAN]).unwrap();
        let c = add(&c, &c, &pool).unwrap().to_array::<f64>().unwrap();
        assert!(c.iter().all(|c| c.to_bits() == 0x7ff8_0000_0000_0000));
    }

    #[test]
    fn a_sum_that_leaves_i32_is_refused_with_its_operands_and_one_at_the_limit_is_not() {
        for threads in [1, 4] {
            let pool = Pool::new(threads).unwrap();
            let ones = Tensor::from_slice(1000, 1000, &vec![1; 1_000_000]).unwrap();
            let mut most = vec![0; 1_000_000];
            most[777_777] = i32::MAX - 1;
            let at = |elements: &[i32]| Tensor::from_slice(1000, 1000, elements).unwrap();
            let sum = add(&at(&most), &ones, &pool).unwrap();
            assert_eq!(sum.get(777, 777), Some(f64::from(i32::MAX)));
            most[777_777] = i32::MAX;
            most[999_999] = i32::MAX;
            let error = add(&at(&most), &ones, &pool).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.to_string().contains("2147483647 + 1 does not fit i32; convert"), "{error}");
            assert!(verify(&at(&most), &ones, &sum, &pool).is_err());
        }
    }

    #[test]
    fn what_cannot_be_added_is_refused_by_name() {
        let shape = |dtype, rows, cols| TensorShape { dtype, rows, cols };
        let refusal = |a, b| Operation::Add.gives(a, b).unwrap_err();
        for dtype in [DType::F16, DType::Bf16, DType::I8] {
            for (a, b) in [(dtype, DType::F32), (DType::F32, dtype), (dtype, dtype)] {
                let error = refusal(shape(a, 2, 2), shape(b, 2, 2));
                assert_eq!(error.kind(), ErrorKind::InvalidInput);
                assert!(error.to_string().contains(&format!("dtype {dtype} is not supported")), "{error}");
            }
        }
        let error = refusal(shape(DType::F32, 2, 2), shape(DType::I32, 2, 2));
        assert!(error.to_string().contains("f32 with i32"), "{error}");
        for (rows, cols) in [(3, 2), (2, 1), (1, 3), (2, 0)] {
            let error = refusal(shape(DType::F64, 2, 3), shape(DType::F64, rows, cols));
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.to_string().contains(&format!("A is 2 x 3 and B is {rows} x {cols}")), "{error}");
        }
    }

    #[test]
    fn one_changed_bit_is_found_wherever_it_is() {
        let pool = Pool::new(2).unwrap();
        for dtype in DTYPES {
            let (a, b) = (operand(dtype, 500, 700, 1), operand(dtype, 500, 700, 2));
            let honest = add(&a, &b, &pool).unwrap();
            let element_bytes = dtype.size_bytes();
            for (row, col) in [(0, 0), (250, 333), (499, 699)] {
                for bit in 0..8 * element_bytes {
                    let mut lie = TensorBuf::new(dtype, 500, 700).unwrap();
                    lie.write_block(0, 0, &honest).unwrap();
                    lie.bytes_mut()[(row * 700 + col) * element_bytes + bit / 8] ^= 1 << (bit % 8);
                    let found = verify(&a, &b, &lie.freeze(), &pool).unwrap_err();
                    assert_eq!((found.row, found.col), (row, Some(col)), "{dtype}, bit {bit}");
                }
            }
            let other = operand(dtype, 499, 700, 3);
            assert!(verify(&a, &b, &other, &pool).is_err(), "a result of another shape");
        }
    }

    #[test]
    fn a_cancelled_sum_stops() {
        let (a, cancel) = (operand(DType::F32, 10, 10, 1), Cancel::new());
        cancel.cancel();
        let stopped = Operation::Add.compute(&a, &a, &Pool::new(1).unwrap(), &cancel);
        assert_eq!(stopped.unwrap_err().kind(), ErrorKind::Cancelled);
    }
}
