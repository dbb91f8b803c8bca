//! Products of a node over its service, checked against a reference that this process computes.

use pangea_client::blocking::Client;
use pangea_client::{JobReport, MatmulOptions, Place, Progress, Result, TensorBytes, TensorInfo};
use pangea_compute::{Buffer, Cancel, DType, Pool, Tensor, matmul};

/// A product and its report.
pub struct Product {
    /// The product.
    pub c: Tensor,
    /// The node's report.
    pub report: JobReport,
}

/// Options for a product on peers.
pub fn remote() -> MatmulOptions {
    MatmulOptions { place: Place::Remote, ..MatmulOptions::default() }
}

/// `[m, k]` and `[k, n]` of pseudo-random numbers.
pub fn operands(dtype: DType, m: usize, k: usize, n: usize) -> (Tensor, Tensor) {
    (Tensor::generate(dtype, m, k, 11).unwrap(), Tensor::generate(dtype, k, n, 12).unwrap())
}

/// Uploads both operands, multiplies, reads the product back.
pub fn multiply(client: &Client, a: &Tensor, b: &Tensor, options: &MatmulOptions) -> Result<Product> {
    multiply_watching(client, a, b, options, &mut |_| {})
}

/// Uploads, multiplies and reads back, passing each progress to `on_progress`.
pub fn multiply_watching(
    client: &Client,
    a: &Tensor,
    b: &Tensor,
    options: &MatmulOptions,
    on_progress: &mut dyn FnMut(Progress),
) -> Result<Product> {
    let (a, b) = (upload(client, a)?, upload(client, b)?);
    let (job, product) = client.matmul(&a, &b, options);
    let report = client.wait(&job, on_progress)?;
    let info = client.block_on(product.info())?;
    let mut bytes = Vec::new();
    client.read_into(&product, &mut bytes)?;
    Ok(Product { c: tensor(&info, &bytes), report })
}

/// Sends a tensor to a node.
pub fn upload(client: &Client, tensor: &Tensor) -> Result<pangea_client::Tensor> {
    let info = TensorInfo {
        dtype: pangea_client::DType::from_name(tensor.dtype().name())?,
        rows: tensor.rows() as u64,
        cols: tensor.cols() as u64,
    };
    client.upload(&mut TensorBytes::new(info, tensor.contiguous_bytes().unwrap())?)
}

fn tensor(info: &TensorInfo, bytes: &[u8]) -> Tensor {
    let dtype = DType::from_name(info.dtype.name()).unwrap();
    Tensor::from_buffer(dtype, info.rows as usize, info.cols as usize, Buffer::copy_of(bytes).unwrap()).unwrap()
}

/// The reference product, computed by one thread of this process.
pub fn reference(a: &Tensor, b: &Tensor) -> Tensor {
    matmul(a, b, &Pool::new(1).unwrap(), &Cancel::new()).unwrap()
}

/// Checks that `c` is the product of `a` and `b`: bit for bit for integers; for floats within the rounding error of
/// operands in [−1, 1), which is hundreds of times less than the smallest lie of `--fault`. A column of `b` with larger
/// values may be off by as much more.
///
/// # Panics
/// Where `c` is not the product.
pub fn assert_product(a: &Tensor, b: &Tensor, c: &Tensor) {
    let right = reference(a, b);
    assert_eq!((c.dtype(), c.shape()), (right.dtype(), right.shape()));
    let tolerance = match c.dtype() {
        DType::F16 | DType::Bf16 => a.cols() as f64 * 8e-3,
        DType::F32 => a.cols() as f64 * 4.0 * f64::from(f32::EPSILON),
        DType::F64 => a.cols() as f64 * 4.0 * f64::EPSILON,
        DType::I8 | DType::I32 => 0.0,
    };
    if tolerance == 0.0 {
        assert_eq!(c.digest(), right.digest(), "an integer product has other bits");
        return;
    }
    for col in 0..c.cols() {
        let scale = (0..b.rows()).map(|row| b.get(row, col).unwrap().abs()).fold(1.0, f64::max);
        let tolerance = tolerance * scale;
        for row in 0..c.rows() {
            let (got, want) = (c.get(row, col).unwrap(), right.get(row, col).unwrap());
            assert!((got - want).abs() <= tolerance, "element ({row}, {col}) is {got}, not {want}");
        }
    }
}
