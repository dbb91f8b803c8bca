//! The operations on tensors: what each needs, gives and costs, which parts of its operands go together, how it is computed, and
//! how a result of another node is checked (DESIGN §2, §6). A new operation is a variant here, and a file of this folder where
//! its arithmetic has no module of its own. Where it is computed is the node's decision.

mod add;

use crate::check::proof::{self, Proof};
use crate::check::{ColumnProbe, Mismatch};
use crate::product::check_operands;
use crate::tensor::checked_bytes;
use crate::{Cancel, DType, Error, Pool, Tensor, matmul};

/// What is computed from two tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// `C[m, n] = A[m, k] · B[k, n]`.
    Matmul,
    /// `C = A + B`, element by element, of one shape and dtype (f32, f64 or i32).
    Add,
}

/// Which parts of the operands one part of the result needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Some rows of A and some columns of B; each of them serves other parts, too.
    Crossed,
    /// The same rows of A and of B, and nothing else needs them.
    Paired,
}

/// The element type and the shape of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorShape {
    /// Type of the elements.
    pub dtype: DType,
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
}

impl From<&Tensor> for TensorShape {
    fn from(tensor: &Tensor) -> TensorShape {
        TensorShape { dtype: tensor.dtype(), rows: tensor.rows(), cols: tensor.cols() }
    }
}

impl TensorShape {
    /// Bytes of the whole tensor.
    ///
    /// # Errors
    /// [`Error::TooLarge`] where the address space cannot hold them.
    pub fn size_bytes(&self) -> Result<u64, Error> {
        checked_bytes(self.dtype, self.rows, self.cols).map(|bytes| bytes as u64)
    }
}

impl Operation {
    /// Every operation.
    pub const ALL: [Operation; 2] = [Operation::Matmul, Operation::Add];

    /// Its name in programs: `matmul`, `add`.
    pub fn name(self) -> &'static str {
        match self {
            Operation::Matmul => "matmul",
            Operation::Add => "add",
        }
    }

    /// What its result is called: `product`, `sum`.
    pub fn result_name(self) -> &'static str {
        match self {
            Operation::Matmul => "product",
            Operation::Add => "sum",
        }
    }

    /// Which parts of the operands go together.
    pub fn cut(self) -> Cut {
        match self {
            Operation::Matmul => Cut::Crossed,
            Operation::Add => Cut::Paired,
        }
    }

    /// The result for operands of these types and shapes, without computing it.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::Dtype`] where the operation does not take them.
    pub fn gives(self, a: TensorShape, b: TensorShape) -> Result<TensorShape, Error> {
        match self {
            Operation::Matmul => {
                let dtype = check_operands((a.rows, a.cols), (b.rows, b.cols), a.dtype, b.dtype)?;
                Ok(TensorShape { dtype, rows: a.rows, cols: b.cols })
            }
            Operation::Add => add::gives(a, b),
        }
    }

    /// Additions and multiplications for operands of these shapes.
    pub fn flops(self, a: TensorShape, b: TensorShape) -> f64 {
        match self {
            Operation::Matmul => 2.0 * a.rows as f64 * a.cols as f64 * b.cols as f64,
            Operation::Add => a.rows as f64 * a.cols as f64,
        }
    }

    /// The result.
    ///
    /// # Errors
    /// As [`Operation::gives`]; [`Error::OutOfMemory`], [`Error::Cancelled`].
    pub fn compute(self, a: &Tensor, b: &Tensor, pool: &Pool, cancel: &Cancel) -> Result<Tensor, Error> {
        match self {
            Operation::Matmul => matmul(a, b, pool, cancel),
            Operation::Add => add::compute(a, b, pool, cancel),
        }
    }

    /// Whether a result of this type has the same bits wherever it is computed, and its check finds any other.
    pub fn is_exact(self, dtype: DType) -> bool {
        match self {
            Operation::Matmul => !dtype.is_float(),
            Operation::Add => true,
        }
    }

    /// Prepares checks of results of type `dtype` with this part of B. `seed` must be secret and fresh.
    ///
    /// # Errors
    /// [`Error::Dtype`] where no result with `b` has this type.
    pub fn probe(self, b: &Tensor, dtype: DType, seed: [u8; 32], pool: &Pool) -> Result<ResultProbe, Error> {
        match self {
            Operation::Matmul => ColumnProbe::new(b, dtype, seed, pool).map(ResultProbe::Matmul),
            Operation::Add => Ok(ResultProbe::Add),
        }
    }

    /// Looks for a proof, for nodes that never worked with its worker, that `c` is not the result for `a` and `b`. `seed` must be
    /// fresh. Costs as much as the result.
    ///
    /// # Errors
    /// As [`Operation::compute`].
    pub fn prove(self, [a, b, c]: [&Tensor; 3], seed: [u8; 32], pool: &Pool, cancel: &Cancel) -> Result<Proof, Error> {
        self.gives(a.into(), b.into())?;
        match self {
            Operation::Matmul => proof::product(a, b, c, seed, pool, cancel),
            Operation::Add => Ok(match add::check(a, b, c, pool) {
                Ok(_) => Proof::Passes,
                // A sum has the same bits everywhere.
                Err(mismatch) => Proof::Wrong(mismatch),
            }),
        }
    }
}

/// What checks results with one part of B; whoever computes them must never learn it.
#[derive(Debug)]
pub enum ResultProbe {
    /// Secret vectors, see [`ColumnProbe`].
    Matmul(ColumnProbe),
    /// Nothing: the sum is computed again.
    Add,
}

impl ResultProbe {
    /// Checks that `c` is the result for `a` and `b`; gives the name of the method.
    ///
    /// # Errors
    /// [`Mismatch`] with the first row found wrong.
    pub fn check(&self, a: &Tensor, b: &Tensor, c: &Tensor, pool: &Pool) -> Result<&'static str, Mismatch> {
        match self {
            ResultProbe::Matmul(probe) => probe.check(a, b, c, pool).map(|report| report.method),
            ResultProbe::Add => add::check(a, b, c, pool),
        }
    }
}
