//! Describes an operation on two tensors for the scheduler: sizes, and which parts of the operands belong together. No
//! operation is known by name.

use pangea_compute::{Cut, Error, Operation, Tensor, TensorShape};
use pangea_control::schedule::{ElementwiseShape, JobShape, ProductShape};

/// The shape of an operation on these operands.
///
/// # Errors
/// Those of [`Operation::gives`].
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
