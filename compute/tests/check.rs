//! Checks of products: lies of every size against the published limit, honest products of every nastiness.
//! The judge of what is honest here is our own kernels, on every instruction set.
// A test may stop at the first thing that is not as it should be, in its helpers too.
#![allow(clippy::unwrap_used)]

use pangea_compute::{Cancel, ColumnProbe, DType, Isa, Mismatch, Pool, Tensor, detection_limit, matmul};

const FLOATS: [DType; 4] = [DType::F16, DType::Bf16, DType::F32, DType::F64];

fn seed(n: u64) -> [u8; 32] {
    let mut seed = [0x5a; 32];
    seed[..8].copy_from_slice(&n.to_le_bytes());
    seed
}

fn check(a: &Tensor, b: &Tensor, c: &Tensor, s: u64, pool: &Pool) -> Result<(), Mismatch> {
    let probe = ColumnProbe::new(b, c.dtype(), seed(s), pool).unwrap();
    probe.check(a, b, c, pool).map(|_| ())
}

/// `values` as a tensor of `dtype`.
fn tensor(dtype: DType, rows: usize, cols: usize, values: &[f64]) -> Tensor {
    let t = Tensor::from_slice(rows, cols, values).unwrap();
    match dtype {
        DType::I8 => Tensor::from_slice(rows, cols, &values.iter().map(|v| *v as i8).collect::<Vec<_>>()).unwrap(),
        _ => pangea_compute::csv::convert(&t, dtype).unwrap(),
    }
}

/// `c` with `change` applied to the element at (row, col).
fn changed(c: &Tensor, row: usize, col: usize, change: impl Fn(f64) -> f64) -> Tensor {
    let mut values: Vec<f64> = (0..c.rows() * c.cols()).map(|i| c.get(i / c.cols(), i % c.cols()).unwrap()).collect();
    values[row * c.cols() + col] = change(values[row * c.cols() + col]);
    pangea_compute::csv::convert(&Tensor::from_slice(c.rows(), c.cols(), &values).unwrap(), c.dtype()).unwrap()
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|v| v * v).sum::<f64>().sqrt()
}

/// Row norm of `a` times column norm of `b`: the unit of the published limit.
fn unit(a: &Tensor, b: &Tensor, row: usize, col: usize) -> f64 {
    norm((0..a.cols()).map(|l| a.get(row, l).unwrap())) * norm((0..b.rows()).map(|l| b.get(l, col).unwrap()))
}

#[test]
fn every_lie_above_the_published_limit_is_caught_and_few_far_below() {
    let (pool, cancel) = (Pool::new(1).unwrap(), Cancel::new());
    let (m, k, n) = (12, 600, 512);
    for dtype in FLOATS {
        let a = Tensor::generate(dtype, m, k, 1).unwrap();
        let b = Tensor::generate(dtype, k, n, 2).unwrap();
        let c = matmul(&a, &b, &pool, &cancel).unwrap();
        let limit = detection_limit(k, n, dtype);
        let mut rates = Vec::new();
        for factor in [0.01, 0.3, 0.7, 1.05, 2.0, 10.0] {
            let caught = (0..40u64)
                .filter(|s| {
                    let (row, col) = (*s as usize % m, (*s as usize * 97) % n);
                    let sign = if s % 2 == 0 { 1.0 } else { -1.0 };
                    let lie = changed(&c, row, col, |v| v + sign * factor * limit * unit(&a, &b, row, col));
                    check(&a, &b, &lie, *s, &pool).is_err()
                })
                .count();
            rates.push((factor, caught));
        }
        println!("{dtype}: limit {limit:.2e}, caught of 40 by lie size ÷ limit: {rates:?}");
        for (factor, caught) in &rates {
            assert!(*factor < 1.0 || *caught == 40, "{dtype}: {rates:?}");
        }
        // The limit is a bound, not wishful: an order below it almost nothing is seen.
        assert!(rates[0].1 < 4, "{dtype}: {rates:?}");
    }
}

#[test]
fn one_percent_of_the_norms_is_above_the_limit_for_every_panel_up_to_4096() {
    for k in [1, 64, 512, 1000, 4096] {
        for n in [512, 1024, 2048, 4096] {
            for dtype in [DType::F32, DType::F64] {
                let limit = detection_limit(k, n, dtype);
                assert!(limit < 0.01, "{dtype} k {k} n {n}: {limit}");
            }
        }
    }
    assert_eq!(detection_limit(4096, 4096, DType::I32), 0.0);
    assert!(detection_limit(4096, 512, DType::F16) < 0.01);
}

#[test]
fn one_element_off_by_one_percent_of_its_norms_is_always_caught() {
    let (pool, cancel) = (Pool::new(2).unwrap(), Cancel::new());
    for (m, k, n) in [(64, 4096, 512), (40, 700, 2048)] {
        // Entries in [0, 1): sums are large, so the lie is a hundredth of the element itself.
        let positive = |rows: usize, cols: usize, s: u64| {
            let t = Tensor::generate(DType::F32, rows, cols, s).unwrap();
            let t = t.to_array::<f32>().unwrap().mapv(f32::abs);
            Tensor::from_array(t.view()).unwrap()
        };
        let (a, b) = (positive(m, k, 5), positive(k, n, 6));
        let c = matmul(&a, &b, &pool, &cancel).unwrap();
        for s in 0..30 {
            let (row, col) = (s * 7 % m, s * 131 % n);
            let column = norm((0..k).map(|l| b.get(l, col).unwrap()));
            let size = 0.01 * column * norm((0..k).map(|l| a.get(row, l).unwrap()));
            let lie = changed(&c, row, col, |v| v + size);
            let mismatch = check(&a, &b, &lie, s as u64, &pool).unwrap_err();
            assert_eq!(mismatch.row, row, "{mismatch}");
        }
    }
}

#[test]
fn stale_results_zeros_and_noise_everywhere_are_caught() {
    let (pool, cancel) = (Pool::new(1).unwrap(), Cancel::new());
    for dtype in [DType::F16, DType::Bf16, DType::F32, DType::F64, DType::I8] {
        let a = Tensor::generate(dtype, 64, 96, 1).unwrap();
        let old = Tensor::generate(dtype, 64, 96, 9).unwrap();
        let b = Tensor::generate(dtype, 96, 80, 2).unwrap();
        let c = matmul(&a, &b, &pool, &cancel).unwrap();
        let stale = matmul(&old, &b, &pool, &cancel).unwrap();
        let zeros = pangea_compute::TensorBuf::new(c.dtype(), 64, 80).unwrap().freeze();
        let values: Vec<f64> = (0..64 * 80).map(|i| c.get(i / 80, i % 80).unwrap()).collect();
        let doubled: Vec<f64> = values.iter().map(|v| v * 2.0).collect();
        let doubled = pangea_compute::csv::convert(&Tensor::from_slice(64, 80, &doubled).unwrap(), c.dtype()).unwrap();
        for s in 0..20 {
            assert!(check(&a, &b, &c, s, &pool).is_ok());
            for lie in [&stale, &zeros, &doubled] {
                assert!(check(&a, &b, lie, s, &pool).is_err(), "{dtype}");
            }
        }
        let transposed = c.slice(0..64, 0..64).unwrap().transposed();
        assert!(check(&a, &b.slice(0..96, 0..64).unwrap(), &transposed, 3, &pool).is_err());
        assert!(check(&a, &b, &transposed, 3, &pool).is_err(), "another shape");
    }
}

#[test]
fn an_integer_product_off_by_one_anywhere_is_caught() {
    let cancel = Cancel::new();
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        let pool = Pool::with_isa(2, isa).unwrap();
        for (m, k, n) in [(7, 1300, 1100), (1, 1, 1), (40, 3, 2100)] {
            let a = Tensor::generate(DType::I8, m, k, 1).unwrap();
            let b = Tensor::generate(DType::I8, n, k, 2).unwrap().transposed();
            let c = matmul(&a, &b, &pool, &cancel).unwrap();
            for s in 0..10 {
                assert_eq!(check(&a, &b, &c, s, &pool), Ok(()));
                let (row, col) = (s as usize % m, s as usize * 61 % n);
                let lie = changed(&c, row, col, |v| v + 1.0);
                assert_eq!(check(&a, &b, &lie, s, &pool).unwrap_err().row, row);
            }
        }
        // The largest sums there are.
        let k = pangea_compute::MAX_K_I8;
        let a = Tensor::from_slice(2, k, &vec![-128i8; 2 * k]).unwrap();
        let c = matmul(&a, &a.transposed(), &pool, &cancel).unwrap();
        assert_eq!(check(&a, &a.transposed(), &c, 1, &pool), Ok(()));
    }
}

/// A counter-based source of nasty matrices.
struct Nasty(u64);

impl Nasty {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let x = self.0 ^ (self.0 >> 29);
        x.wrapping_mul(0xbf58_476d_1ce4_e5b9) ^ (x >> 32)
    }

    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 33) % n
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// `len` values of one of several characters; lines are `width` long.
    fn values(&mut self, character: u64, len: usize, width: usize, dtype: DType) -> Vec<f64> {
        let (small, large) = match dtype {
            DType::F16 => (-24.0, 7.0),
            DType::Bf16 | DType::F32 => (-149.0, 60.0),
            _ => (-1070.0, 500.0),
        };
        let constant = self.unit() * 4.0 - 2.0;
        (0..len)
            .map(|i| {
                let v = self.unit() * 2.0 - 1.0;
                match character {
                    0 => v,
                    1 => v.abs(),
                    2 => constant,
                    // Cancellation: neighbours nearly annihilate each other.
                    3 => (if i % 2 == 0 { 1.0 } else { -1.0 }) * (1.0 + v * 1e-6) * 100.0,
                    // Exponents over half the type's range.
                    4 => v.signum() * 2f64.powf(small * 0.4 + self.unit() * (large - small) * 0.4),
                    // Subnormal numbers and products.
                    5 => v * 2f64.powf(small + 6.0),
                    6 => v * 2f64.powf(small / 2.0),
                    // Mostly zeros; a few large rows.
                    7 => {
                        if self.below(20) == 0 {
                            v * 50.0
                        } else {
                            0.0
                        }
                    }
                    8 => v * 2f64.powf(((i / width.max(1)) % 9) as f64 * large / 18.0),
                    _ => v * 2f64.powf(large * 0.95),
                }
            })
            .collect()
    }
}

#[test]
fn a_hundred_thousand_honest_products_raise_no_alarm() {
    let pools: Vec<Pool> =
        Isa::ALL.into_iter().filter(|isa| isa.is_available()).map(|isa| Pool::with_isa(1, isa).unwrap()).collect();
    let cancel = Cancel::new();
    let mut nasty = Nasty(20_261_121);
    // Few operand pairs, many secrets: what could raise an alarm is the product meeting a secret.
    let (mut products, mut secrets) = (0u32, 0u64);
    while products < 100_000 {
        let dtype = [DType::F16, DType::Bf16, DType::F32, DType::F32, DType::F64, DType::I8][nasty.below(6) as usize];
        let side = |nasty: &mut Nasty| match nasty.below(8) {
            0 => 1 + nasty.below(3) as usize,
            7 => 30 + nasty.below(60) as usize,
            _ => 1 + nasty.below(24) as usize,
        };
        let (m, n) = (side(&mut nasty), side(&mut nasty));
        let k = if nasty.below(20) == 0 { 500 + nasty.below(700) as usize } else { side(&mut nasty) };
        let (x, y) = (nasty.below(10), nasty.below(10));
        let (a, b) = if dtype == DType::I8 {
            let s = nasty.next();
            (Tensor::generate(dtype, m, k, s).unwrap(), Tensor::generate(dtype, k, n, s + 1).unwrap())
        } else {
            let (va, vb) = (nasty.values(x, m * k, k, dtype), nasty.values(y, k * n, n, dtype));
            (tensor(dtype, m, k, &va), tensor(dtype, k, n, &vb))
        };
        let pool = &pools[nasty.below(pools.len() as u64) as usize];
        let c = matmul(&a, &b, pool, &cancel).unwrap();
        for _ in 0..4 {
            secrets += 1;
            products += 1;
            if let Err(mismatch) = check(&a, &b, &c, secrets, pool) {
                panic!("{a:?} · {b:?} (characters {x}, {y}, {pool:?}): {mismatch}");
            }
        }
    }
}

#[test]
fn honest_constant_matrices_with_long_sums_raise_no_alarm() {
    // The drift that independent rounding does not explain: the same addend, again and again.
    let cancel = Cancel::new();
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        let pool = Pool::with_isa(2, isa).unwrap();
        for (k, value) in [(4096, 0.1), (512, 1.0 / 3.0), (9000, 0.7), (384, 1.1), (768, 0.3)] {
            let a = tensor(DType::F32, 3, k, &vec![value; 3 * k]);
            let b = tensor(DType::F32, k, 200, &vec![value * 1.3; k * 200]);
            let c = matmul(&a, &b, &pool, &cancel).unwrap();
            for s in 0..200 {
                assert_eq!(check(&a, &b, &c, s, &pool), Ok(()), "{value} {k} {pool:?}");
            }
        }
    }
}

#[test]
fn nan_and_infinities_that_belong_there_pass_and_others_do_not() {
    let cancel = Cancel::new();
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        let pool = Pool::with_isa(1, isa).unwrap();
        for dtype in FLOATS {
            let mut va: Vec<f64> = (0..20 * 30).map(|i| ((i * 37) % 19) as f64 - 9.0).collect();
            let mut vb: Vec<f64> = (0..30 * 25).map(|i| ((i * 53) % 17) as f64 - 8.0).collect();
            va[3 * 30 + 4] = f64::INFINITY;
            va[7 * 30 + 1] = f64::NAN;
            vb[5 * 25 + 6] = f64::NEG_INFINITY;
            vb[8 * 25 + 11] = f64::NAN;
            let (a, b) = (tensor(dtype, 20, 30, &va), tensor(dtype, 30, 25, &vb));
            let c = matmul(&a, &b, &pool, &cancel).unwrap();
            for s in 0..50 {
                assert_eq!(check(&a, &b, &c, s, &pool), Ok(()), "{dtype} {pool:?}");
            }
            // A finite row and column: a NaN, an infinity or a wrong number there is a lie.
            for lie in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 5000.0] {
                let lie = changed(&c, 0, 0, |_| lie);
                assert!(check(&a, &b, &lie, 1, &pool).is_err(), "{dtype} {pool:?}");
            }
            // Numbers where NaN should be are sampled: all of them wrong cannot pass.
            let finite: Vec<f64> = (0..20 * 25)
                .map(|i| c.get(i / 25, i % 25).unwrap())
                .map(|v| if v.is_finite() { v } else { 1.0 })
                .collect();
            assert!(check(&a, &b, &tensor(dtype, 20, 25, &finite), 1, &pool).is_err());
        }
    }
}

#[test]
fn overflow_is_honest_only_where_the_true_value_is_out_of_range() {
    let (pool, cancel) = (Pool::new(1).unwrap(), Cancel::new());
    for (dtype, large) in [(DType::F32, 1e25), (DType::F16, 300.0), (DType::Bf16, 1e25), (DType::F64, 1e200)] {
        let mut va = vec![1.0; 8 * 16];
        va[2 * 16] = large;
        let mut vb = vec![1.0; 16 * 9];
        vb[4] = large;
        let (a, b) = (tensor(dtype, 8, 16, &va), tensor(dtype, 16, 9, &vb));
        let c = matmul(&a, &b, &pool, &cancel).unwrap();
        assert_eq!(c.get(2, 4), Some(f64::INFINITY), "{dtype}");
        for s in 0..20 {
            assert_eq!(check(&a, &b, &c, s, &pool), Ok(()), "{dtype}");
        }
        for (row, col) in [(2, 3), (1, 1), (7, 4)] {
            let lie = changed(&c, row, col, |_| f64::INFINITY);
            assert!(check(&a, &b, &lie, 1, &pool).is_err(), "{dtype} ({row}, {col})");
        }
        let lie = changed(&c, 2, 4, |_| f64::NEG_INFINITY);
        assert!(check(&a, &b, &lie, 1, &pool).is_err(), "{dtype}: the other infinity");
    }
}

#[test]
fn a_lie_beside_an_honest_overflow_is_caught() {
    let (pool, cancel) = (Pool::new(1).unwrap(), Cancel::new());
    for (dtype, x, y) in
        [(DType::F16, 50.0, 50.0), (DType::Bf16, 1e19, 1e18), (DType::F32, 1e19, 1e18), (DType::F64, 1e154, 1e153)]
    {
        // Column 4 is four times the others: it alone overflows, in every row.
        let column = |i: usize| if i % 9 == 4 { 4.0 * y } else { y };
        let a = tensor(dtype, 8, 16, &[x; 8 * 16]);
        let b = tensor(dtype, 16, 9, &(0..16 * 9).map(column).collect::<Vec<_>>());
        let c = matmul(&a, &b, &pool, &cancel).unwrap();
        assert_eq!(c.get(2, 4), Some(f64::INFINITY), "{dtype}");
        assert!(c.get(2, 1).unwrap().is_finite());
        for s in 0..20 {
            assert_eq!(check(&a, &b, &c, s, &pool), Ok(()), "{dtype}");
            let lie = changed(&c, 2, 1, |v| v * 0.5);
            assert!(check(&a, &b, &lie, s, &pool).is_err(), "{dtype}");
        }
    }
}

#[test]
fn empty_products_pass() {
    let pool = Pool::new(1).unwrap();
    for (m, k, n) in [(0, 3, 4), (3, 0, 4), (3, 4, 0), (0, 0, 0)] {
        for dtype in [DType::F32, DType::I8] {
            let a = Tensor::generate(dtype, m, k, 1).unwrap();
            let b = Tensor::generate(dtype, k, n, 2).unwrap();
            let c = matmul(&a, &b, &pool, &Cancel::new()).unwrap();
            assert_eq!(check(&a, &b, &c, 1, &pool), Ok(()), "{m} {k} {n}");
        }
    }
}
