//! Products of two matrices of a task.

use super::{assert_close, floats, gpu};
use half::{bf16, f16};
use pangea_compute::gpu::Gpu;
use pangea_compute::{Cancel, DType, Element, Error, Tensor};
use pangea_units::SplitMix64;

/// Odd sizes, tiles in part and more than one of them.
const SHAPES: [(usize, usize, usize); 6] =
    [(1, 1, 1), (3, 5, 2), (128, 16, 128), (129, 33, 131), (37, 300, 259), (260, 17, 5)];

fn reference(a: &Tensor, b: &Tensor) -> Vec<(f64, f64)> {
    let mut results = Vec::new();
    for row in 0..a.rows() {
        for col in 0..b.cols() {
            let addends = (0..a.cols()).map(|k| a.get(row, k).unwrap() * b.get(k, col).unwrap());
            results.push(addends.fold((0.0, 0.0), |(sum, size), addend| (sum + addend, size + addend.abs())));
        }
    }
    results
}

fn values(c: &Tensor) -> Vec<f32> {
    (0..c.rows() * c.cols()).map(|at| c.get(at / c.cols(), at % c.cols()).unwrap() as f32).collect()
}

fn check<A: Element, B: Element>(of_a: impl Fn(f32) -> A, of_b: impl Fn(f32) -> B, bound: f64) {
    let Some(gpu) = gpu("products of matrices on the GPU") else { return };
    let mut random = SplitMix64::new(1);
    for (m, k, n) in SHAPES {
        let a: Vec<A> = floats(&mut random, m * k).into_iter().map(&of_a).collect();
        let b: Vec<B> = floats(&mut random, k * n).into_iter().map(&of_b).collect();
        let (a, b) = (Tensor::from_slice(m, k, &a).unwrap(), Tensor::from_slice(k, n, &b).unwrap());
        let c = gpu.matmul(&a, &b, &Cancel::new()).unwrap();
        assert_eq!((c.shape(), c.dtype()), ((m, n), DType::product(A::DTYPE, B::DTYPE).unwrap()));
        assert_close(&format!("{m} x {k} x {n}"), &values(&c), &reference(&a, &b), bound);
    }
}

#[test]
fn products_of_f32_matrices() {
    check(|x| x, |x| x, 2e-6);
}

#[test]
fn products_of_halves_are_rounded_once() {
    // Half a unit in the last place of the result.
    check(f16::from_f32, f16::from_f32, 2f64.powi(-11) + 2e-6);
    check(bf16::from_f32, bf16::from_f32, 2f64.powi(-8) + 2e-6);
}

#[test]
fn products_of_different_float_types() {
    check(f16::from_f32, |x| x, 2e-6);
    check(|x| x, bf16::from_f32, 2e-6);
    check(bf16::from_f32, f16::from_f32, 2e-6);
}

#[test]
fn products_of_i8_matrices_are_exact() {
    let Some(gpu) = gpu("products_of_i8_matrices_are_exact") else { return };
    let mut random = SplitMix64::new(2);
    for (m, k, n) in SHAPES.into_iter().chain([(2, 131_071, 3)]) {
        let mut bytes =
            |len: usize| -> Vec<i8> { (0..len).map(|_| if k > 1000 { -128 } else { random.bits() as i8 }).collect() };
        let (a, b) = (bytes(m * k), bytes(k * n));
        let (a, b) = (Tensor::from_slice(m, k, &a).unwrap(), Tensor::from_slice(k, n, &b).unwrap());
        let c = gpu.matmul(&a, &b, &Cancel::new()).unwrap();
        assert_eq!(c.dtype(), DType::I32);
        let want: Vec<f64> = reference(&a, &b).into_iter().map(|(value, _)| value).collect();
        let got: Vec<f64> = (0..m * n).map(|at| c.get(at / n, at % n).unwrap()).collect();
        assert_eq!(got, want, "{m} x {k} x {n}");
    }
}

#[test]
fn views_of_any_strides_are_multiplied_and_empty_ones_give_zeros() {
    let Some(gpu) = gpu("views_of_any_strides_are_multiplied_and_empty_ones_give_zeros") else { return };
    let mut random = SplitMix64::new(3);
    let whole = Tensor::from_slice(40, 50, &floats(&mut random, 2000)).unwrap();
    let (a, b) = (whole.slice(3..20, 5..25).unwrap(), whole.transposed().slice(10..30, 7..38).unwrap());
    let c = gpu.matmul(&a, &b, &Cancel::new()).unwrap();
    assert_close("views", &values(&c), &reference(&a, &b), 2e-6);
    let (a, b) = (whole.slice(0..3, 0..0).unwrap(), whole.slice(0..0, 0..4).unwrap());
    assert_eq!(values(&gpu.matmul(&a, &b, &Cancel::new()).unwrap()), [0.0; 12]);
}

#[test]
fn what_the_gpu_does_not_multiply_is_an_error() {
    let Some(gpu) = gpu("what_the_gpu_does_not_multiply_is_an_error") else { return };
    let f32s = Tensor::from_slice(2, 2, &[1.0f32; 4]).unwrap();
    let f64s = Tensor::from_slice(2, 2, &[1.0f64; 4]).unwrap();
    let wide = Tensor::from_slice(1, 2, &[1.0f32; 2]).unwrap();
    let multiply = |a: &Tensor, b: &Tensor| gpu.matmul(a, b, &Cancel::new()).unwrap_err();
    assert!(matches!(multiply(&f64s, &f64s), Error::Dtype { .. }));
    assert!(matches!(multiply(&f32s, &wide), Error::Shape { .. }));
    let long = Tensor::from_slice(1, 131_072, &[0i8; 131_072]).unwrap();
    assert!(matches!(multiply(&long, &long.transposed()), Error::Shape { .. }));
    assert!(Gpu::multiplies(DType::F16, DType::F32) && !Gpu::multiplies(DType::I8, DType::F32));
    let cancel = Cancel::new();
    cancel.cancel();
    assert!(matches!(gpu.matmul(&f32s, &f32s, &cancel), Err(Error::Cancelled)));
}
