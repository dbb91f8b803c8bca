//! Products against an f64 or i64 reference: every type, stride, shape and instruction set.
// A test may stop at the first thing that is not as it should be, in its helpers too.
#![allow(clippy::unwrap_used)]

use pangea_compute::{
    Cancel, DType, Error, ErrorKind, Isa, MAX_K_I8, PackedA, PackedB, Pool, ProductBytes, SharedCores, Tensor,
    TensorBuf, matmul, matmul_into, matmul_packed, matmul_packed_into, product_bytes,
};
use proptest::prelude::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const OPERANDS: [DType; 5] = [DType::F16, DType::Bf16, DType::F32, DType::F64, DType::I8];

fn pools() -> Vec<Pool> {
    let isas = Isa::ALL.into_iter().filter(|isa| isa.is_available());
    isas.flat_map(|isa| [1, 2].map(|threads| Pool::with_isa(threads, isa).unwrap())).collect()
}

/// A rows × cols tensor seen through one of several layouts.
fn laid_out(dtype: DType, rows: usize, cols: usize, layout: u8, seed: u64) -> Tensor {
    match layout % 4 {
        0 => Tensor::generate(dtype, rows, cols, seed).unwrap(),
        1 => Tensor::generate(dtype, cols, rows, seed).unwrap().transposed(),
        2 => Tensor::generate(dtype, rows + 3, cols + 5, seed).unwrap().slice(2..rows + 2, 3..cols + 3).unwrap(),
        _ => Tensor::generate(dtype, cols + 2, rows + 7, seed)
            .unwrap()
            .slice(1..cols + 1, 4..rows + 4)
            .unwrap()
            .transposed(),
    }
}

/// Fails unless `c` is `a·b` within the worst-case bound of the output type.
fn assert_product(a: &Tensor, b: &Tensor, c: &Tensor) {
    let out = DType::product(a.dtype(), b.dtype()).unwrap();
    assert_eq!(c.dtype(), out);
    assert_eq!(c.shape(), (a.rows(), b.cols()));
    let (sum, last) = match out {
        DType::F16 => (2f64.powi(-24), 2f64.powi(-11)),
        DType::Bf16 => (2f64.powi(-24), 2f64.powi(-8)),
        DType::F32 => (2f64.powi(-24), 0.0),
        DType::F64 => (2f64.powi(-53), 0.0),
        _ => (0.0, 0.0),
    };
    let k = a.cols();
    for i in 0..a.rows() {
        for j in 0..b.cols() {
            let (mut want, mut size) = (0.0, 0.0);
            for l in 0..k {
                let p = a.get(i, l).unwrap() * b.get(l, j).unwrap();
                want += p;
                size += p.abs();
            }
            let allowed = (k + 2) as f64 * sum * size + last * want.abs() + last * 2f64.powi(-14);
            let got = c.get(i, j).unwrap();
            assert!((got - want).abs() <= allowed, "{:?} · {:?} at ({i}, {j}): {got} for {want}", a, b);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_types_shapes_and_strides_give_the_product(
        m in 0usize..70,
        k in 0usize..90,
        n in 0usize..80,
        types in (0usize..5, 0usize..5),
        layouts in (0u8..4, 0u8..4),
        seed in any::<u64>(),
    ) {
        let a = laid_out(OPERANDS[types.0], m, k, layouts.0, seed);
        let b = laid_out(OPERANDS[types.1], k, n, layouts.1, seed ^ 1);
        let cancel = Cancel::new();
        for pool in pools() {
            let c = matmul(&a, &b, &pool, &cancel).unwrap();
            assert_product(&a, &b, &c);
            let pa = PackedA::new(&a, b.dtype(), &pool, &cancel).unwrap();
            let pb = PackedB::new(&b, a.dtype(), &pool, &cancel).unwrap();
            assert_product(&a, &b, &matmul_packed(&pa, &pb, &pool, &cancel).unwrap());
        }
    }
}

#[test]
fn sizes_beyond_one_pass_and_one_block_give_the_product() {
    let cancel = Cancel::new();
    for pool in pools() {
        for (m, k, n) in [(1, 4097, 33), (97, 1543, 101), (31, 385, 530), (15, 9000, 2)] {
            for dtype in OPERANDS {
                let a = laid_out(dtype, m, k, 0, 3);
                let b = laid_out(dtype, k, n, 1, 4);
                assert_product(&a, &b, &matmul(&a, &b, &pool, &cancel).unwrap());
            }
        }
    }
}

#[test]
fn sizes_beyond_one_slab_give_the_product() {
    // 4099 rows and columns are two slabs either way; k = 20 000 and 2 · 2050 lines are several in depth.
    let cancel = Cancel::new();
    let pool = Pool::new(2).unwrap();
    for dtype in OPERANDS {
        for (m, k, n) in [(4099, 37, 5), (5, 37, 4100), (2050, 20, 4099), (700, 20_011, 600)] {
            let a = Tensor::generate(dtype, m, k, 3).unwrap();
            let b = Tensor::generate(dtype, k, n, 4).unwrap();
            let c = matmul(&a, &b, &pool, &cancel).unwrap();
            for (i, j) in [(0, 0), (m - 1, n - 1), (m / 2, n / 3), (m - 1, 0), (m * 2 / 3, n - 1)] {
                let a = a.slice(i..i + 1, 0..k).unwrap();
                let b = b.slice(0..k, j..j + 1).unwrap();
                assert_product(&a, &b, &c.slice(i..i + 1, j..j + 1).unwrap());
            }
        }
    }
}

#[test]
fn integer_products_are_the_same_bits_on_every_instruction_set() {
    let cancel = Cancel::new();
    for (m, k, n) in [(61, 1021, 67), (3, 1, 40), (33, 3079, 31)] {
        let a = Tensor::generate(DType::I8, m, k, 8).unwrap();
        let b = Tensor::generate(DType::I8, k, n, 9).unwrap();
        let (x, y) = (a.view::<i8>().unwrap(), b.view::<i8>().unwrap());
        let want = Tensor::from_array(x.mapv(i32::from).dot(&y.mapv(i32::from)).view()).unwrap();
        for pool in pools() {
            let c = matmul(&a, &b, &pool, &cancel).unwrap();
            assert_eq!(c.digest(), want.digest(), "{pool:?}");
        }
    }
}

#[test]
fn the_longest_integer_product_does_not_overflow() {
    let cancel = Cancel::new();
    for (x, y) in [(-128i8, -128i8), (-128, 127), (127, 127)] {
        let a = Tensor::from_slice(1, MAX_K_I8, &vec![x; MAX_K_I8]).unwrap();
        let b = Tensor::from_slice(MAX_K_I8, 1, &vec![y; MAX_K_I8]).unwrap();
        let want = f64::from(x) * f64::from(y) * MAX_K_I8 as f64;
        for pool in pools() {
            let c = matmul(&a, &b, &pool, &cancel).unwrap();
            assert_eq!(c.get(0, 0), Some(want), "{pool:?}");
        }
    }
    let a = Tensor::generate(DType::I8, 1, MAX_K_I8 + 1, 0).unwrap();
    let error = matmul(&a, &a.transposed(), &Pool::new(1).unwrap(), &cancel).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.to_string().contains("131071"), "{error}");
}

#[test]
fn shapes_that_do_not_fit_are_refused_with_both_shapes() {
    let pool = Pool::new(1).unwrap();
    let a = Tensor::generate(DType::F32, 2, 3, 0).unwrap();
    let b = Tensor::generate(DType::F32, 4, 5, 0).unwrap();
    let error = matmul(&a, &b, &pool, &Cancel::new()).unwrap_err().to_string();
    assert!(error.contains("2 x 3") && error.contains("4 x 5"), "{error}");
}

#[test]
fn i32_operands_are_refused_with_what_to_do() {
    let pool = Pool::new(1).unwrap();
    let a = Tensor::generate(DType::I32, 2, 2, 0).unwrap();
    let error = matmul(&a, &a, &pool, &Cancel::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.to_string().contains("f64"), "{error}");
}

#[test]
fn an_empty_k_gives_zeros_even_over_old_contents() {
    let pool = Pool::new(2).unwrap();
    let a = Tensor::generate(DType::F32, 3, 0, 0).unwrap();
    let b = Tensor::generate(DType::F32, 0, 4, 0).unwrap();
    let mut out = TensorBuf::new(DType::F32, 5, 6).unwrap();
    out.bytes_mut().fill(1);
    matmul_into(&a, &b, &mut out, 1, 2, &pool, &Cancel::new()).unwrap();
    let out = out.freeze();
    let zeros = out.view::<f32>().unwrap().iter().filter(|v| **v == 0.0).count();
    assert_eq!(zeros, 12);
    assert_eq!(out.get(3, 5), Some(0.0));
}

#[test]
fn a_product_written_into_a_larger_tensor_touches_only_its_block() {
    let cancel = Cancel::new();
    for pool in pools() {
        for dtype in OPERANDS {
            let a = Tensor::generate(dtype, 37, 50, 1).unwrap();
            let b = Tensor::generate(dtype, 50, 45, 2).unwrap();
            let c = matmul(&a, &b, &pool, &cancel).unwrap();
            let packed =
                (PackedA::new(&a, dtype, &pool, &cancel).unwrap(), PackedB::new(&b, dtype, &pool, &cancel).unwrap());
            for prepacked in [false, true] {
                let mut out = TensorBuf::new(c.dtype(), 60, 70).unwrap();
                out.bytes_mut().fill(0x11);
                if prepacked {
                    matmul_packed_into(&packed.0, &packed.1, &mut out, 7, 9, &pool, &cancel).unwrap();
                } else {
                    matmul_into(&a, &b, &mut out, 7, 9, &pool, &cancel).unwrap();
                }
                let mut want = TensorBuf::new(c.dtype(), 60, 70).unwrap();
                want.bytes_mut().fill(0x11);
                want.write_block(7, 9, &c).unwrap();
                assert_eq!(out.bytes(), want.bytes(), "{dtype} {pool:?}");
            }
            let mut small = TensorBuf::new(c.dtype(), 40, 45).unwrap();
            assert!(matmul_into(&a, &b, &mut small, 4, 0, &pool, &cancel).is_err());
        }
    }
}

#[test]
fn nan_and_infinities_flow_through_as_ieee_says() {
    let cancel = Cancel::new();
    let inf = f32::INFINITY;
    for pool in pools() {
        let a = Tensor::from_slice(4, 2, &[inf, 1.0, f32::NAN, 1.0, inf, 0.0, 1.0, 2.0]).unwrap();
        let b = Tensor::from_slice(2, 3, &[1.0, -1.0, 0.0, 2.0, 3.0, inf]).unwrap();
        let c = matmul(&a, &b, &pool, &cancel).unwrap();
        let want = [[inf, -inf, f32::NAN], [f32::NAN; 3], [inf, -inf, f32::NAN], [5.0, 5.0, inf]];
        for (i, line) in want.iter().enumerate() {
            for (j, want) in line.iter().enumerate() {
                let got = c.get(i, j).unwrap() as f32;
                assert!(got == *want || (got.is_nan() && want.is_nan()), "({i}, {j}): {got}");
            }
        }
    }
}

#[test]
fn a_cancelled_product_stops_with_that_error() {
    let pool = Pool::new(2).unwrap();
    let a = Tensor::generate(DType::F32, 64, 64, 1).unwrap();
    let cancel = Cancel::new();
    cancel.cancel();
    assert!(matches!(matmul(&a, &a, &pool, &cancel), Err(Error::Cancelled)));
}

#[test]
fn operands_packed_for_other_types_are_refused() {
    let (pool, cancel) = (Pool::new(1).unwrap(), Cancel::new());
    let a = Tensor::generate(DType::F32, 8, 8, 1).unwrap();
    let pa = PackedA::new(&a, DType::F64, &pool, &cancel).unwrap();
    let pb = PackedB::new(&a, DType::F32, &pool, &cancel).unwrap();
    assert!(matmul_packed(&pa, &pb, &pool, &cancel).is_err());
}

#[test]
fn the_output_types_are_those_numpy_users_expect() {
    use DType::{Bf16, F16, F32, F64, I8, I32};
    for (a, b, out) in [
        (F16, F16, F16),
        (F16, Bf16, F32),
        (Bf16, Bf16, Bf16),
        (F32, F64, F64),
        (F16, F32, F32),
        (I8, F32, F32),
        (I8, F16, F16),
        (I8, Bf16, Bf16),
        (I8, F64, F64),
        (I8, I8, I32),
    ] {
        assert_eq!(DType::product(a, b).unwrap(), out);
        assert_eq!(DType::product(b, a).unwrap(), out);
    }
}

#[test]
fn several_threads_may_use_one_pool() {
    let pool = Pool::new(2).unwrap();
    let a = Tensor::generate(DType::F32, 300, 300, 1).unwrap();
    let want = matmul(&a, &a, &pool, &Cancel::new()).unwrap().digest();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..20 {
                    let c = matmul(&a, &a, &pool, &Cancel::new()).unwrap();
                    assert_eq!(c.digest(), want);
                }
            });
        }
    });
}

#[test]
fn sizes_of_a_product_are_known_before_anything_is_allocated() {
    let side = 10_000_000;
    let bytes = product_bytes((side, side), (side, side), DType::F32, DType::F32).unwrap();
    assert_eq!((bytes.a, bytes.c, bytes.total()), (400_000_000_000_000, 400_000_000_000_000, 1_200_000_000_000_000));
    // A long, thin product: its operands are small, its result is not.
    let thin = product_bytes((100_000, 1), (1, 100_000), DType::I8, DType::I8).unwrap();
    assert_eq!(thin, ProductBytes { a: 100_000, b: 100_000, c: 40_000_000_000 });
    let huge = product_bytes((1 << 40, 1), (1, 1 << 40), DType::F64, DType::F64).unwrap_err();
    assert_eq!(huge.kind(), ErrorKind::Overloaded);
    assert_eq!(
        huge.to_string(),
        "1099511627776 x 1099511627776 elements of f64 take more bytes than this machine can address; use smaller blocks"
    );
    assert_eq!(
        product_bytes((2, 3), (2, 3), DType::F32, DType::F32).unwrap_err().kind(),
        ErrorKind::InvalidInput,
        "shapes are checked first"
    );
}

/// Counts what a pool asks the cores for.
#[derive(Default)]
struct Counted {
    begun: AtomicUsize,
    pieces: AtomicUsize,
    ended: AtomicUsize,
}

impl SharedCores for Counted {
    fn begin(&self) {
        self.begun.fetch_add(1, Ordering::Relaxed);
    }

    fn next_piece(&self) {
        assert!(self.begun.load(Ordering::Relaxed) > self.ended.load(Ordering::Relaxed), "a piece outside of a turn");
        self.pieces.fetch_add(1, Ordering::Relaxed);
    }

    fn end(&self) {
        self.ended.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_product_on_shared_cores_asks_before_each_piece_and_has_the_same_bits() {
    let [a, b] = [(700, 300), (300, 500)].map(|(rows, cols)| Tensor::generate(DType::F32, rows, cols, 5).unwrap());
    for threads in [1, 2] {
        let alone = matmul(&a, &b, &Pool::new(threads).unwrap(), &Cancel::new()).unwrap();
        let cores = Arc::new(Counted::default());
        let pool = Pool::new(threads).unwrap().on(Arc::clone(&cores) as Arc<dyn SharedCores>);
        let shared = matmul(&a, &b, &pool, &Cancel::new()).unwrap();
        assert_eq!(shared.contiguous_bytes(), alone.contiguous_bytes());
        let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        assert_eq!(count(&cores.begun), count(&cores.ended));
        assert!(count(&cores.pieces) >= 8, "{} pieces", count(&cores.pieces));
    }
}
