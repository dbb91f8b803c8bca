//! How a product larger than memory is cut into blocks: bands of whole rows of A by panels of whole columns of B, and the
//! order of the blocks. Pure arithmetic; nothing here reads, sends or computes an element.

use std::ops::Range;

use crate::dtype::DType;
use crate::{Error, ErrorKind, Result};

/// Shape and dtypes of a product `C[m, n] = A[m, k] · B[k, n]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Rows of A and C.
    pub m: u64,
    /// Columns of A, rows of B.
    pub k: u64,
    /// Columns of B and C.
    pub n: u64,
    /// Dtype of A.
    pub a: DType,
    /// Dtype of B.
    pub b: DType,
    /// Dtype of C.
    pub c: DType,
}

impl Shape {
    /// `[m, k, n]`, as reports name them.
    pub fn extents(&self) -> [usize; 3] {
        [self.m, self.k, self.n].map(|extent| extent as usize)
    }

    /// Bytes of A, B and C together; saturates.
    pub fn size_bytes(&self) -> u64 {
        let Shape { m, k, n, a, b, c } = *self;
        let size = |rows: u64, cols: u64, dtype: DType| rows.saturating_mul(cols).saturating_mul(dtype.size_bytes());
        size(m, k, a).saturating_add(size(k, n, b)).saturating_add(size(m, n, c))
    }

    /// Whether there is nothing to compute.
    pub fn is_empty(&self) -> bool {
        self.m == 0 || self.k == 0 || self.n == 0
    }
}

/// One of the two operands of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// A, whose pieces are bands of rows.
    A,
    /// B, whose pieces are panels of columns.
    B,
}

impl Side {
    /// The other operand.
    pub fn other(self) -> Side {
        match self {
            Side::A => Side::B,
            Side::B => Side::A,
        }
    }
}

/// What starting a block costs, in bytes moved: planning, starting and checking a job take a few milliseconds, in which a
/// link of 1 GB/s moves this much. Without it the passing pieces would get as thin as a single line.
const BLOCK_COST_BYTES: u128 = 4 << 20;

/// Every job packs its operands for the kernels, the resident one, too: that takes about this fraction of moving them.
const PACKING_COST_DIVISOR: u128 = 4;

/// How a product is cut: bands of whole rows of A by panels of whole columns of B. A piece of one operand is resident
/// while the pieces of the other pass by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    shape: Shape,
    band_rows: u64,
    panel_cols: u64,
    resident: Side,
}

/// One block of C.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Rows of A and C.
    pub rows: Range<u64>,
    /// Columns of B and C.
    pub cols: Range<u64>,
}

impl Block {
    /// The lines of an operand that this block needs: rows of A, columns of B.
    pub fn lines(&self, side: Side) -> &Range<u64> {
        match side {
            Side::A => &self.rows,
            Side::B => &self.cols,
        }
    }
}

impl Plan {
    /// The cut that moves the fewest bytes in few blocks, while at most `budget_bytes` are held where the blocks are computed.
    ///
    /// # Errors
    /// `InvalidInput` where not even single rows and columns fit.
    pub fn new(shape: Shape, budget_bytes: u64) -> Result<Plan> {
        let fits = |plan: &Plan| plan.peak_bytes() <= u128::from(budget_bytes);
        let mut best: Option<Plan> = None;
        for resident in [Side::A, Side::B] {
            for bands in counts(shape.m) {
                let with_panels = |panel_cols: u64| {
                    let band_rows = shape.m.div_ceil(bands.max(1));
                    Plan { shape, band_rows, panel_cols, resident }
                };
                if !fits(&with_panels(shape.n.min(1))) {
                    continue;
                }
                let widest = largest(shape.n, |panel_cols| fits(&with_panels(panel_cols)));
                // Panels of one width rather than a narrow one at the end.
                let panels = shape.n.div_ceil(widest.max(1));
                let plan = with_panels(shape.n.div_ceil(panels.max(1)));
                if best.as_ref().is_none_or(|best| plan.cost() < best.cost()) {
                    best = Some(plan);
                }
            }
        }
        best.ok_or_else(|| {
            let least = [Side::A, Side::B]
                .map(|resident| Plan { shape, band_rows: 1, panel_cols: 1, resident }.peak_bytes())
                .into_iter()
                .min();
            Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "a product over {} columns of A needs at least {} bytes of memory; {budget_bytes} are allowed; \
                     allow more",
                    shape.k,
                    least.unwrap_or_default(),
                ),
            )
        })
    }

    /// What is multiplied.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The operand of which a piece stays while the pieces of the other pass by.
    pub fn resident(&self) -> Side {
        self.resident
    }

    /// Rows of a band; the last may have fewer.
    pub fn band_rows(&self) -> u64 {
        self.band_rows
    }

    /// Columns of a panel; the last may have fewer.
    pub fn panel_cols(&self) -> u64 {
        self.panel_cols
    }

    /// Bands of A.
    pub fn bands(&self) -> u64 {
        self.shape.m.div_ceil(self.band_rows.max(1))
    }

    /// Panels of B.
    pub fn panels(&self) -> u64 {
        self.shape.n.div_ceil(self.panel_cols.max(1))
    }

    /// Blocks of C.
    pub fn count(&self) -> u64 {
        self.bands() * self.panels()
    }

    /// The most bytes held at a time where the blocks are computed: the resident piece, the passing piece and the next one on
    /// its way, the block being computed and the block being stored.
    pub fn peak_bytes(&self) -> u128 {
        let (resident, passing) = self.piece_bytes();
        let block = u128::from(self.band_rows) * u128::from(self.panel_cols) * u128::from(self.shape.c.size_bytes());
        resident + 2 * passing + 2 * block
    }

    /// Bytes of a resident and of a passing piece.
    fn piece_bytes(&self) -> (u128, u128) {
        let Shape { k, a, b, .. } = self.shape;
        let bytes = |lines: u64, dtype: DType| u128::from(lines) * u128::from(k) * u128::from(dtype.size_bytes());
        let (band, panel) = (bytes(self.band_rows, a), bytes(self.panel_cols, b));
        match self.resident {
            Side::A => (band, panel),
            Side::B => (panel, band),
        }
    }

    /// What plans are compared by: bytes moved, those of the resident operand twice because nothing is multiplied while they
    /// are, and what the blocks cost beside them.
    fn cost(&self) -> u128 {
        let Shape { m, k, n, a, b, .. } = self.shape;
        let (lines, dtype) = if self.resident == Side::A { (m, a) } else { (n, b) };
        let unhidden_bytes = u128::from(lines) * u128::from(k) * u128::from(dtype.size_bytes());
        let (resident, passing) = self.piece_bytes();
        let block_cost = BLOCK_COST_BYTES + (resident + passing) / PACKING_COST_DIVISOR;
        self.upload_bytes() + unhidden_bytes + u128::from(self.count()) * block_cost
    }

    /// Operand bytes that are brought to where the blocks are computed, in all.
    pub fn upload_bytes(&self) -> u128 {
        let Shape { m, k, n, a, b, .. } = self.shape;
        let row = u128::from(k) * u128::from(a.size_bytes());
        let col = u128::from(k) * u128::from(b.size_bytes());
        let (whole_a, whole_b) = (u128::from(m) * row, u128::from(n) * col);
        let (bands, panels) = (self.bands(), self.panels());
        if bands == 0 || panels == 0 {
            return 0;
        }
        // At each turn of the resident operand the passing piece at that end stays.
        let kept = |turns: u64, extent: u64, piece: u64, pieces: u64| {
            let last = extent - piece * (pieces - 1);
            u128::from(turns.div_ceil(2)) * u128::from(last) + u128::from(turns / 2) * u128::from(piece)
        };
        match self.resident {
            Side::A => whole_a + u128::from(bands) * whole_b - kept(bands - 1, n, self.panel_cols, panels) * col,
            Side::B => whole_b + u128::from(panels) * whole_a - kept(panels - 1, m, self.band_rows, bands) * row,
        }
    }

    /// The blocks of C in the order they are computed: from one to the next only one operand
    /// changes.
    pub fn blocks(&self) -> impl Iterator<Item = Block> {
        let plan = *self;
        let (outer, inner) = match plan.resident {
            Side::A => (plan.bands(), plan.panels()),
            Side::B => (plan.panels(), plan.bands()),
        };
        (0..outer).flat_map(move |i| {
            (0..inner).map(move |step| {
                let j = if i % 2 == 0 { step } else { inner - 1 - step };
                match plan.resident {
                    Side::A => plan.block(i, j),
                    Side::B => plan.block(j, i),
                }
            })
        })
    }

    fn block(&self, band: u64, panel: u64) -> Block {
        let (row, col) = (band * self.band_rows, panel * self.panel_cols);
        Block {
            rows: row..(row + self.band_rows).min(self.shape.m),
            cols: col..(col + self.panel_cols).min(self.shape.n),
        }
    }
}

/// Numbers of bands worth trying: all small ones, then in steps of about a thousandth.
fn counts(extent: u64) -> impl Iterator<Item = u64> {
    std::iter::successors(Some(1u64), move |count| {
        let next = count + (count / 1024).max(1);
        (next <= extent).then_some(next)
    })
}

/// The largest number up to `limit` that `fits`, which holds for all smaller ones, too.
fn largest(limit: u64, fits: impl Fn(u64) -> bool) -> u64 {
    let (mut low, mut high) = (0, limit);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if fits(middle) { low = middle } else { high = middle - 1 }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const F32: Shape = Shape { m: 0, k: 0, n: 0, a: DType::F32, b: DType::F32, c: DType::F32 };

    /// What the blocks in their order really hold and load.
    fn simulate(plan: &Plan) -> (u128, u128) {
        let Shape { k, a, b, c, .. } = plan.shape;
        let (resident, passing) = (plan.resident, plan.resident.other());
        let piece = |block: &Block, side: Side| {
            let dtype = if side == Side::A { a } else { b };
            let lines = block.lines(side);
            u128::from(lines.end - lines.start) * u128::from(k) * u128::from(dtype.size_bytes())
        };
        let result = |block: &Block| {
            let elements = (block.rows.end - block.rows.start) * (block.cols.end - block.cols.start);
            u128::from(elements) * u128::from(c.size_bytes())
        };
        let blocks: Vec<Block> = plan.blocks().collect();
        let (mut loaded, mut peak) = (0, 0);
        let mut before: Option<&Block> = None;
        for (index, block) in blocks.iter().enumerate() {
            for side in [resident, passing] {
                if before.is_none_or(|before| before.lines(side) != block.lines(side)) {
                    loaded += piece(block, side);
                }
            }
            let next = blocks.get(index + 1).filter(|next| next.lines(passing) != block.lines(passing));
            let ahead = next.map_or(0, |next| piece(next, passing));
            let held = piece(block, resident) + piece(block, passing) + ahead;
            peak = peak.max(held + result(block) + before.map_or(0, result));
            before = Some(block);
        }
        (loaded, peak)
    }

    proptest! {
        #[test]
        fn every_element_is_computed_once_within_the_budget(
            m in 0u64..60, k in 0u64..60, n in 0u64..60, budget in 0u64..60_000,
        ) {
            let shape = Shape { m, k, n, b: DType::F64, c: DType::F64, ..F32 };
            let Ok(plan) = Plan::new(shape, budget) else {
                // Only ever refused where a single element of C does not fit.
                prop_assert!(k * (2 * 4 + 8) + 16 > budget);
                return Ok(());
            };
            let mut computed = vec![0u8; (m * n) as usize];
            for block in plan.blocks() {
                for row in block.rows.clone() {
                    for col in block.cols.clone() {
                        computed[(row * n + col) as usize] += 1;
                    }
                }
            }
            prop_assert!(computed.iter().all(|count| *count == 1));
            let (loaded, peak) = simulate(&plan);
            prop_assert!(peak <= u128::from(budget), "{peak} > {budget}: {plan:?}");
            prop_assert_eq!(loaded, plan.upload_bytes());
        }

        #[test]
        fn no_other_cut_of_the_same_budget_costs_less(
            m in 1u64..24, k in 1u64..24, n in 1u64..24, budget in 100u64..20_000,
        ) {
            let shape = Shape { m, k, n, ..F32 };
            let Ok(plan) = Plan::new(shape, budget) else { return Ok(()) };
            for band_rows in 1..=m {
                for panel_cols in 1..=n {
                    for resident in [Side::A, Side::B] {
                        let other = Plan { shape, band_rows, panel_cols, resident };
                        if other.peak_bytes() <= u128::from(budget) {
                            // Panels of even width may keep a little less at the turns.
                            let slack = u128::from(k * 4 * (m + n));
                            prop_assert!(plan.cost() <= other.cost() + slack);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_product_that_fits_is_one_block() {
        let plan = Plan::new(Shape { m: 100, k: 100, n: 100, ..F32 }, 1 << 30).unwrap();
        assert_eq!(plan.blocks().count(), 1);
        assert_eq!(plan.upload_bytes(), 80_000);
    }

    #[test]
    fn sixteen_gibibytes_in_one_sends_each_operand_a_few_times() {
        // A and B of 4 GiB each in 1 GiB of memory.
        let shape = Shape { m: 32768, k: 32768, n: 32768, ..F32 };
        let plan = Plan::new(shape, 1 << 30).unwrap();
        assert!(plan.upload_bytes() < 20 << 32, "{plan:?}");
    }

    #[test]
    fn a_budget_for_nothing_is_refused_with_what_is_needed() {
        let error = Plan::new(Shape { m: 1, k: 1000, n: 1, ..F32 }, 100).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.message().contains("12008 bytes"), "{error}");
    }

    #[test]
    fn the_operand_that_moves_less_is_resident() {
        let shape = Shape { m: 100_000, k: 1000, n: 500, ..F32 };
        assert_eq!(Plan::new(shape, 64 << 20).unwrap().resident(), Side::B);
        let shape = Shape { m: 500, k: 1000, n: 100_000, ..F32 };
        assert_eq!(Plan::new(shape, 64 << 20).unwrap().resident(), Side::A);
    }

    #[test]
    fn passing_pieces_are_no_single_lines() {
        // Two columns of B beside a band of 1023 rows would send the least.
        let shape = Shape { m: 4095, k: 4096, n: 4096, ..F32 };
        let plan = Plan::new(shape, 16_860_000).unwrap();
        assert!(plan.bands().max(plan.panels()) < 200, "{plan:?}");
    }

    #[test]
    fn an_outer_product_is_cut_even_where_its_result_is_nearly_all_of_it() {
        let shape = Shape { m: 10_000_000, k: 1, n: 10_000_000, ..F32 };
        let plan = Plan::new(shape, 64 << 20).unwrap();
        assert!(plan.peak_bytes() <= 64 << 20);
    }
}
