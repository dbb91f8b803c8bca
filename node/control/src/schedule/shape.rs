//! The properties of a job that planning needs: sizes of operands and result, which parts of them belong together, and
//! the cost. Nothing is cut here, and operations are unknown.

use super::limits::{CHECK_SHARE, FLOPS_PER_BYTE, TILE_SIDE_MIN};
use super::{Pace, PlanError};

/// Sizes of a job, and which parts of its operands belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobShape {
    /// Every band of A meets every panel of B.
    Product(ProductShape),
    /// Each band of A meets the same rows of B, and nothing else.
    Elementwise(ElementwiseShape),
}

/// C `[m, n]` = A `[m, k]` · B `[k, n]`, with the bytes of one element of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProductShape {
    /// Rows of A and C.
    pub m: u64,
    /// Columns of A, rows of B.
    pub k: u64,
    /// Columns of B and C.
    pub n: u64,
    /// Bytes of an element of A.
    pub a_element_bytes: u64,
    /// Bytes of an element of B.
    pub b_element_bytes: u64,
    /// Bytes of an element of C.
    pub c_element_bytes: u64,
}

/// Each element of C `[rows, cols]` is computed from the elements of A and B at the same place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ElementwiseShape {
    /// Rows of A, B and C.
    pub rows: u64,
    /// Columns of A, B and C.
    pub cols: u64,
    /// Bytes of an element of A.
    pub a_element_bytes: u64,
    /// Bytes of an element of B.
    pub b_element_bytes: u64,
    /// Bytes of an element of C.
    pub c_element_bytes: u64,
}

impl From<ProductShape> for JobShape {
    fn from(shape: ProductShape) -> JobShape {
        JobShape::Product(shape)
    }
}

impl From<ElementwiseShape> for JobShape {
    fn from(shape: ElementwiseShape) -> JobShape {
        JobShape::Elementwise(shape)
    }
}

impl ProductShape {
    /// Additions and multiplications of the whole product.
    pub fn flops(&self) -> f64 {
        2.0 * self.m as f64 * self.k as f64 * self.n as f64
    }
}

impl ElementwiseShape {
    /// Bytes of one row of A, B and C together.
    pub(super) fn row_bytes(&self) -> u64 {
        let element_bytes = self.a_element_bytes + self.b_element_bytes + self.c_element_bytes;
        self.cols.saturating_mul(element_bytes)
    }

    /// Cost of this many rows, in additions and multiplications of a product that takes as long.
    pub(super) fn flops_of(&self, rows: u64) -> f64 {
        rows as f64 * self.row_bytes() as f64 * FLOPS_PER_BYTE
    }
}

impl JobShape {
    /// Cost of the whole job, in additions and multiplications of a product that takes as long.
    pub fn flops(&self) -> f64 {
        match self {
            JobShape::Product(shape) => shape.flops(),
            JobShape::Elementwise(shape) => shape.flops_of(shape.rows),
        }
    }

    /// Bytes of A, B and C. Only for shapes that [`JobShape::check`] has passed.
    pub(super) fn bytes(&self) -> [u64; 3] {
        self.sides().map(|(rows, cols, element_bytes)| rows * cols * element_bytes)
    }

    /// Whether one part of an operand serves several tiles.
    pub(super) fn shares_operands(&self) -> bool {
        matches!(self, JobShape::Product(_))
    }

    /// Checks that all numbers of bytes fit 64 bits.
    ///
    /// # Errors
    /// [`PlanError::TooLarge`] if they do not.
    pub(super) fn check(&self) -> Result<(), PlanError> {
        let mut sizes =
            self.sides().map(|(rows, cols, element)| rows.checked_mul(cols)?.checked_mul(element)).into_iter();
        let total = sizes.try_fold(0u64, |total, bytes| total.checked_add(bytes?));
        total.map(drop).ok_or(PlanError::TooLarge)
    }

    /// Bytes of the operands of a tile of this cost.
    pub(super) fn tile_operand_bytes(&self, flops: f64) -> f64 {
        match self {
            JobShape::Product(ProductShape { k, a_element_bytes, b_element_bytes, .. }) => {
                let side = (flops / (2.0 * (*k).max(1) as f64)).sqrt().max(TILE_SIDE_MIN as f64);
                side * *k as f64 * (a_element_bytes + b_element_bytes) as f64
            }
            JobShape::Elementwise(_) => {
                let [a, b, _] = self.bytes();
                (a + b) as f64 * (flops / self.flops().max(1.0)).min(1.0)
            }
        }
    }

    /// Cost from which a tile's check is cheap compared with computing it; 0 if larger tiles are no cheaper to check.
    pub(super) fn checkable_flops(&self, here: Pace) -> f64 {
        match self {
            // Checking processes the sides of a tile, computing its area.
            JobShape::Product(ProductShape { k, a_element_bytes, b_element_bytes, .. }) => {
                let element_bytes = (a_element_bytes + b_element_bytes) as f64;
                let side = element_bytes * here.flops_per_s / here.check_bytes_per_s / (2.0 * CHECK_SHARE);
                2.0 * side * side * *k as f64
            }
            JobShape::Elementwise(_) => 0.0,
        }
    }

    /// Rows, columns and bytes of an element of A, B and C.
    fn sides(&self) -> [(u64, u64, u64); 3] {
        match *self {
            JobShape::Product(ProductShape { m, k, n, a_element_bytes, b_element_bytes, c_element_bytes }) => {
                [(m, k, a_element_bytes), (k, n, b_element_bytes), (m, n, c_element_bytes)]
            }
            JobShape::Elementwise(ElementwiseShape {
                rows,
                cols,
                a_element_bytes,
                b_element_bytes,
                c_element_bytes,
            }) => [a_element_bytes, b_element_bytes, c_element_bytes].map(|bytes| (rows, cols, bytes)),
        }
    }
}
