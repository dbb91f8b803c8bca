//! Checks of products whose rows and columns are of very different sizes, or not finite: nothing hides a lie in another
//! place, and no honest product is refused.
// A test may stop at the first thing that is not as it should be, in its helpers too.
#![allow(clippy::unwrap_used)]

use pangea_compute::{Cancel, ColumnProbe, DType, Isa, Mismatch, Pool, Tensor, detection_limit, likely_limit, matmul};

const M: usize = 16;
const K: usize = 64;
const N: usize = 96;

fn pools() -> Vec<Pool> {
    Isa::ALL.into_iter().filter(|isa| isa.is_available()).map(|isa| Pool::with_isa(1, isa).unwrap()).collect()
}

fn check(a: &Tensor, b: &Tensor, c: &Tensor, seed: u64, pool: &Pool) -> Result<(), Mismatch> {
    let mut bytes = [0xa7; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    ColumnProbe::new(b, c.dtype(), bytes, pool).unwrap().check(a, b, c, pool).map(|_| ())
}

fn values(t: &Tensor) -> Vec<f64> {
    (0..t.rows() * t.cols()).map(|i| t.get(i / t.cols(), i % t.cols()).unwrap()).collect()
}

fn tensor(dtype: DType, rows: usize, cols: usize, values: &[f64]) -> Tensor {
    pangea_compute::csv::convert(&Tensor::from_slice(rows, cols, values).unwrap(), dtype).unwrap()
}

/// `c` with another value at (row, col).
fn changed(c: &Tensor, row: usize, col: usize, change: impl Fn(f64) -> f64) -> Tensor {
    let mut values = values(c);
    values[row * c.cols() + col] = change(values[row * c.cols() + col]);
    tensor(c.dtype(), c.rows(), c.cols(), &values)
}

/// Of numbers whose squares may be out of range.
fn norm(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let largest = values.clone().fold(0.0f64, |max, v| max.max(v.abs()));
    if largest == 0.0 { 0.0 } else { largest * values.map(|v| (v / largest).powi(2)).sum::<f64>().sqrt() }
}

/// Numbers that look random, in 0..1.
fn noise(seed: u64) -> f64 {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (seed >> 7);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((x ^ (x >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

/// Operands whose rows, columns and inner lines have these sizes.
fn operands(
    dtype: DType,
    seed: u64,
    row: impl Fn(usize) -> f64,
    inner: impl Fn(usize) -> f64,
    col: impl Fn(usize) -> f64,
) -> (Tensor, Tensor) {
    let value = |index: usize| noise(seed * 1_000_003 + index as u64) * 2.0 - 1.0;
    let a: Vec<f64> = (0..M * K).map(|i| value(i) * row(i / K) * inner(i % K)).collect();
    let b: Vec<f64> = (0..K * N).map(|i| value(i + M * K) * inner(i / N) * col(i % N)).collect();
    (tensor(dtype, M, K, &a), tensor(dtype, K, N, &b))
}

/// 2^e for an e in −20..=20.
fn wild(index: usize) -> f64 {
    2f64.powi((noise(index as u64 + 77) * 41.0) as i32 - 20)
}

/// Operands of every character: uniform, wild rows and columns, one huge column, one huge row, one huge inner line,
/// columns of zeros, columns of subnormal numbers, tiny rows.
fn characters(dtype: DType) -> Vec<(&'static str, (Tensor, Tensor))> {
    let one = |_: usize| 1.0;
    let huge = |at: usize, size: f64| move |index: usize| if index == at { size } else { 1.0 };
    let (subnormal, tiny) = if dtype == DType::F64 { (-1030, -950) } else { (-130, -70) };
    let seventh = move |size: f64| move |index: usize| if index % 7 == 3 { size } else { 1.0 };
    vec![
        ("uniform", operands(dtype, 1, one, one, one)),
        ("wild", operands(dtype, 2, wild, one, wild)),
        ("a column of 1e6", operands(dtype, 3, one, one, huge(0, 1e6))),
        ("a column of 2^60", operands(dtype, 4, one, one, huge(90, 2f64.powi(60)))),
        ("a row of 1e6", operands(dtype, 5, huge(3, 1e6), one, one)),
        ("an inner line of 1e6", operands(dtype, 6, one, huge(5, 1e6), one)),
        ("columns of zeros", operands(dtype, 7, wild, one, seventh(0.0))),
        ("subnormal columns", operands(dtype, 8, one, one, seventh(2f64.powi(subnormal)))),
        ("tiny columns", operands(dtype, 9, one, one, seventh(2f64.powi(tiny)))),
        ("tiny rows", operands(dtype, 10, |row| if row % 5 == 1 { 2f64.powi(-40) } else { 1.0 }, one, wild)),
    ]
}

/// The norms of row and column, and what the spacing of subnormal numbers hides at most.
fn unit(a: &Tensor, b: &Tensor, row: usize, col: usize) -> (f64, f64) {
    let size = norm((0..K).map(|l| a.get(row, l).unwrap())) * norm((0..K).map(|l| b.get(l, col).unwrap()));
    let tiny = if a.dtype() == DType::F64 { f64::from_bits(1) } else { 2f64.powi(-149) };
    (size, 32.0 * (K + 1) as f64 * (N as f64).sqrt() * tiny)
}

#[test]
fn a_lie_of_the_published_size_is_found_in_any_element_whatever_the_others_are() {
    const TRIALS: usize = 200;
    let (pools, cancel) = (pools(), Cancel::new());
    let pool = pools.last().unwrap();
    for dtype in [DType::F32, DType::F64] {
        for (name, (a, b)) in characters(dtype) {
            let c = matmul(&a, &b, pool, &cancel).unwrap();
            let caught = |limit: f64| {
                let is_caught = |trial: &usize| {
                    let (row, col) = (trial * 5 % M, trial * 37 % N);
                    let (size, subnormal) = unit(&a, &b, row, col);
                    let sign = if trial.is_multiple_of(2) { 1.0 } else { -1.0 };
                    // Where the column is zero, so is the limit: the smallest number is a lie.
                    let lie = if size == 0.0 { subnormal } else { 1.01 * limit * size + subnormal };
                    let lie = changed(&c, row, col, |value| value + sign * lie);
                    check(&a, &b, &lie, *trial as u64, pool).is_err()
                };
                (0..TRIALS).filter(is_caught).count()
            };
            let certain = caught(detection_limit(K, N, dtype));
            assert_eq!(certain, TRIALS, "{dtype}, {name}: above the certain limit");
            let likely = caught(likely_limit(K, N, dtype));
            // 1 in 256 at most is expected to pass.
            assert!(likely >= TRIALS - 4, "{dtype}, {name}: {likely} of {TRIALS} above the likely limit");
        }
    }
}

#[test]
fn honest_products_of_all_sizes_pass_whatever_the_instruction_set() {
    let (pools, cancel) = (pools(), Cancel::new());
    for dtype in [DType::F16, DType::Bf16, DType::F32, DType::F64] {
        for (name, (a, b)) in characters(if dtype == DType::F64 { DType::F64 } else { DType::F32 }) {
            let (a, b) = (tensor(dtype, M, K, &values(&a)), tensor(dtype, K, N, &values(&b)));
            for pool in &pools {
                let c = matmul(&a, &b, pool, &cancel).unwrap();
                for checker in &pools {
                    for seed in 0..8 {
                        assert_eq!(check(&a, &b, &c, seed, checker), Ok(()), "{dtype}, {name}, {pool:?}");
                    }
                }
                // The same operands as transposed views.
                let product = matmul(&b.transposed(), &a.transposed(), pool, &cancel).unwrap();
                assert_eq!(check(&b.transposed(), &a.transposed(), &product, 1, pool), Ok(()), "{dtype}, {name}");
            }
        }
    }
}

#[test]
fn f64_columns_over_the_whole_range_of_exponents_hide_nothing() {
    let (pools, cancel) = (pools(), Cancel::new());
    let pool = pools.last().unwrap();
    for (least, most) in [(-850, 850), (-1000, 700), (0, 1000), (-1010, -200)] {
        let size = |col: usize| 2f64.powi(least + (most - least) * col as i32 / (N as i32 - 1));
        let (a, b) = operands(DType::F64, 11, |_| 1.0, |_| 1.0, size);
        let c = matmul(&a, &b, pool, &cancel).unwrap();
        for trial in 0..N {
            assert_eq!(check(&a, &b, &c, trial as u64, pool), Ok(()), "{least}..{most}");
            let (row, (exact, subnormal)) = (trial % M, unit(&a, &b, trial % M, trial));
            let lie =
                changed(&c, row, trial, |value| value + 1.01 * detection_limit(K, N, DType::F64) * exact + subnormal);
            assert!(check(&a, &b, &lie, trial as u64, pool).is_err(), "{least}..{most}, column {trial}");
        }
    }
}

/// A product with a NaN and infinities in some rows of A and columns of B.
fn with_special_values(dtype: DType, pool: &Pool) -> (Tensor, Tensor, Tensor) {
    let (a, b) = operands(dtype, 12, |_| 1.0, |_| 1.0, |_| 1.0);
    let (mut a, mut b) = (values(&a), values(&b));
    a[2 * K + 7] = f64::NAN;
    a[5 * K] = f64::INFINITY;
    (a[9 * K + 3], a[9 * K + 60]) = (f64::NEG_INFINITY, f64::INFINITY);
    b[4 * N + 11] = f64::NAN;
    b[20 * N + 30] = f64::NEG_INFINITY;
    (b[7 * N + 80], b[8 * N + 80]) = (f64::INFINITY, f64::INFINITY);
    // Zero times an infinity.
    (b[80], a[6 * K + 20]) = (0.0, 0.0);
    let (a, b) = (tensor(dtype, M, K, &a), tensor(dtype, K, N, &b));
    let c = matmul(&a, &b, pool, &Cancel::new()).unwrap();
    (a, b, c)
}

#[test]
fn every_element_that_is_not_finite_is_checked_and_hides_no_other() {
    for pool in pools() {
        for dtype in [DType::F16, DType::Bf16, DType::F32, DType::F64] {
            let (a, b, c) = with_special_values(dtype, &pool);
            for seed in 0..20 {
                assert_eq!(check(&a, &b, &c, seed, &pool), Ok(()), "{dtype} {pool:?}");
            }
            for row in [2, 5, 6, 9, 10] {
                for col in [0, 11, 30, 80, 90] {
                    let right = c.get(row, col).unwrap();
                    let lies = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 300.0];
                    for lie in lies.into_iter().filter(|lie| *lie != right && !(lie.is_nan() && right.is_nan())) {
                        let wrong = changed(&c, row, col, |_| lie);
                        let checked = check(&a, &b, &wrong, 1, &pool);
                        assert!(checked.is_err(), "{dtype} {pool:?}: {lie} at ({row}, {col}) instead of {right}");
                    }
                }
            }
        }
    }
}

#[test]
fn rows_with_many_honest_overflows_hide_no_lie_in_their_other_elements() {
    for pool in pools() {
        for (dtype, large) in [(DType::F16, 200.0), (DType::F32, 1e19), (DType::F64, 1e154)] {
            // Every second column overflows, in rows of the same sign.
            let size = |col: usize| if col.is_multiple_of(2) { large * 4.0 } else { large / 64.0 };
            let a = tensor(dtype, M, K, &vec![large; M * K]);
            let b: Vec<f64> = (0..K * N).map(|i| (0.5 + noise(i as u64)) * size(i % N)).collect();
            let b = tensor(dtype, K, N, &b);
            let c = matmul(&a, &b, &pool, &Cancel::new()).unwrap();
            let overflowed = values(&c).iter().filter(|value| value.is_infinite()).count();
            assert_eq!(overflowed, M * N / 2, "{dtype}");
            for trial in 0..60 {
                assert_eq!(check(&a, &b, &c, trial as u64, &pool), Ok(()), "{dtype} {pool:?}");
                let (row, col) = (trial * 5 % M, (trial * 2 + 1) % N);
                let lie = changed(&c, row, col, |value| value * 0.5);
                assert!(check(&a, &b, &lie, trial as u64, &pool).is_err(), "{dtype} {pool:?} ({row}, {col})");
            }
        }
    }
}
