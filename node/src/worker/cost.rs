//! An operation on two tensors as the scheduler counts it: sizes, and which parts of the operands go together. It knows no
//! operation by name.

use pangea_compute::{Cut, Error, Operation, Tensor, TensorShape};
use pangea_control::schedule::{ElementwiseShape, JobShape, ProductShape};

/// What an operation on these operands is to the scheduler.
///
/// # Errors
/// As [`Operation::gives`].
pub fn job_shape(operation: Operation, a: &Tensor, b: &Tensor) -> Result<JobShape, Error> {
    let (a, b) = (TensorShape::from(a), TensorShape::from(b));
    let c = operation.gives(a, b)?;
    let [a_element_bytes, b_element_bytes, c_element_bytes] = [a, b, c].map(|tensor| tensor.dtype.size_bytes() as u64);
    let (m, n) = (c.rows as u64, c.cols as u64);
    Ok(match operation.cut() {
        Cut::Crossed => {
            ProductShape { m, k: a.cols as u64, n, a_element_bytes, b_element_bytes, c_element_bytes }.into()
        }
        Cut::Paired => ElementwiseShape { rows: m, cols: n, a_element_bytes, b_element_bytes, c_element_bytes }.into(),
    })
}
