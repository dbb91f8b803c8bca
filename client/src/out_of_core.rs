//! Products whose operands or result are larger than memory: cut into blocks that fit a budget,
//! multiplied one after another by a node, read and written where they lie. The plan is pure;
//! only [`multiply`] talks to a node.

use std::ops::Range;

use crate::connection::Client;
use crate::dtype::DType;
use crate::job::MatmulOptions;
use crate::report::JobReport;
use crate::tensor::{Tensor, TensorDestination, TensorInfo, TensorSource};
use crate::{Error, ErrorKind, Result};

/// A matrix that is too large to hold, such as a memory-mapped file.
pub trait MatrixSource {
    /// What it is.
    fn info(&self) -> TensorInfo;

    /// Fills `bytes` with what lies in `row` from its byte `offset` on: row-major, little-endian,
    /// never beyond the row.
    fn read(&mut self, row: u64, offset: u64, bytes: &mut [u8]) -> Result<()>;
}

/// Where a result that is too large to hold goes, such as a file that is written as it comes.
pub trait MatrixDestination {
    /// Takes `bytes` of `row` from its byte `offset` on: row-major, little-endian, never beyond
    /// the row. Each byte comes once; blocks come in no particular order.
    fn write(&mut self, row: u64, offset: u64, bytes: &[u8]) -> Result<()>;
}

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

/// Which operand stays on the node while the pieces of the other pass by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resident {
    /// A band of A.
    A,
    /// A panel of B.
    B,
}

/// How a product is cut: bands of whole rows of A by panels of whole columns of B.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    shape: Shape,
    band_rows: u64,
    panel_cols: u64,
    resident: Resident,
}

/// One block of C.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Rows of A and C.
    pub rows: Range<u64>,
    /// Columns of B and C.
    pub cols: Range<u64>,
}

impl Plan {
    /// The cut that sends the fewest bytes while the node holds at most `budget_bytes`: the two
    /// operands of a block, the next operand on its way there, the block being computed and the
    /// one being read. `InvalidInput` where not even single rows and columns fit.
    pub fn new(shape: Shape, budget_bytes: u64) -> Result<Plan> {
        let fits = |band_rows: u64, panel_cols: u64| {
            Plan { shape, band_rows, panel_cols, resident: Resident::A }.node_bytes() <= u128::from(budget_bytes)
        };
        if !fits(shape.m.min(1), shape.n.min(1)) {
            let least = Plan { shape, band_rows: 1, panel_cols: 1, resident: Resident::A };
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "a product over {} columns of A needs at least {} bytes of memory, and {} \
                     are allowed; allow more",
                    shape.k,
                    least.node_bytes(),
                    budget_bytes
                ),
            ));
        }
        let mut best: Option<Plan> = None;
        for bands in counts(shape.m) {
            let band_rows = shape.m.div_ceil(bands.max(1));
            if !fits(band_rows, shape.n.min(1)) {
                continue;
            }
            let most = largest(shape.n, |panel_cols| fits(band_rows, panel_cols));
            // Panels of one width rather than a narrow one at the end.
            let panels = shape.n.div_ceil(most.max(1));
            let panel_cols = shape.n.div_ceil(panels.max(1));
            for resident in [Resident::A, Resident::B] {
                let plan = Plan { shape, band_rows, panel_cols, resident };
                let better = |best: &Plan| {
                    let cost = |plan: &Plan| (plan.upload_bytes(), plan.bands() * plan.panels());
                    cost(&plan) < cost(best)
                };
                if best.as_ref().is_none_or(better) {
                    best = Some(plan);
                }
            }
        }
        best.ok_or_else(|| Error::new(ErrorKind::Internal, "no cut fits where the smallest does"))
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

    /// The most the node holds at a time.
    pub fn node_bytes(&self) -> u128 {
        let Shape { k, a, b, c, .. } = self.shape;
        let bytes =
            |rows: u64, cols: u64, dtype: DType| u128::from(rows) * u128::from(cols) * u128::from(dtype.size_bytes());
        let band = bytes(self.band_rows, k, a);
        let panel = bytes(k, self.panel_cols, b);
        band + panel + band.max(panel) + 2 * bytes(self.band_rows, self.panel_cols, c)
    }

    /// Operand bytes that are sent to the node in all.
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
            Resident::A => whole_a + u128::from(bands) * whole_b - kept(bands - 1, n, self.panel_cols, panels) * col,
            Resident::B => whole_b + u128::from(panels) * whole_a - kept(panels - 1, m, self.band_rows, bands) * row,
        }
    }

    /// The blocks of C in the order they are computed: from one to the next only one operand
    /// changes.
    pub fn blocks(&self) -> impl Iterator<Item = Block> {
        let plan = *self;
        let (outer, inner) = match plan.resident {
            Resident::A => (plan.bands(), plan.panels()),
            Resident::B => (plan.panels(), plan.bands()),
        };
        (0..outer).flat_map(move |i| {
            (0..inner).map(move |step| {
                let j = if i % 2 == 0 { step } else { inner - 1 - step };
                match plan.resident {
                    Resident::A => plan.block(i, j),
                    Resident::B => plan.block(j, i),
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

/// How far a product is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockProgress {
    /// Blocks of C that are computed and written.
    pub blocks_done: u64,
    /// Blocks of C in all.
    pub blocks_total: u64,
}

/// Multiplies `a` by `b` block by block as `plan` says and writes the product to `destination`.
/// Blocks are sent, computed and read at the same time. Dropping the future cancels all of it.
/// The report adds up those of the blocks; `None` where the product has no elements.
pub async fn multiply(
    client: &Client,
    plan: &Plan,
    options: &MatmulOptions,
    a: &mut dyn MatrixSource,
    b: &mut dyn MatrixSource,
    destination: &mut dyn MatrixDestination,
    on_progress: &mut dyn FnMut(BlockProgress),
) -> Result<Option<JobReport>> {
    let Shape { m, k, n, .. } = plan.shape;
    let mut operands = Operands { client, k, a, b, band: None, panel: None };
    let blocks: Vec<Block> = plan.blocks().collect();
    let mut progress = BlockProgress { blocks_done: 0, blocks_total: blocks.len() as u64 };
    on_progress(progress);
    let mut whole: Option<JobReport> = None;
    let mut finished: Option<(Tensor, Block)> = None;
    for (index, block) in blocks.iter().enumerate() {
        let (band, panel) = operands.fetch(block).await?;
        let (job, product) = client.matmul(&band, &panel, options);
        drop((band, panel));
        // While it is computed: the result before it comes back, the operand after it goes there.
        let was_finished = finished.take();
        tokio::try_join!(
            async {
                if let Some((product, block)) = &was_finished {
                    read_block(product, block, plan.shape.c, destination).await?;
                    progress.blocks_done += 1;
                    on_progress(progress);
                }
                Ok(())
            },
            async {
                match blocks.get(index + 1) {
                    Some(next) => operands.fetch(next).await.map(drop),
                    None => Ok(()),
                }
            }
        )?;
        drop(was_finished);
        let report = job.report().await?;
        match &mut whole {
            Some(whole) => whole.absorb(&report),
            None => whole = Some(JobReport { shape: [m as usize, k as usize, n as usize], ..report }),
        }
        finished = Some((product, block.clone()));
    }
    if let Some((product, block)) = finished {
        read_block(&product, &block, plan.shape.c, destination).await?;
        progress.blocks_done += 1;
        on_progress(progress);
    }
    Ok(whole)
}

/// The operands that are on the node now: one band, one panel.
struct Operands<'a> {
    client: &'a Client,
    k: u64,
    a: &'a mut dyn MatrixSource,
    b: &'a mut dyn MatrixSource,
    band: Option<(Range<u64>, Tensor)>,
    panel: Option<(Range<u64>, Tensor)>,
}

impl Operands<'_> {
    /// The operands of `block`, sent where they are not there yet. What is replaced is let go
    /// only then: the block before may still need it.
    async fn fetch(&mut self, block: &Block) -> Result<(Tensor, Tensor)> {
        let band = match &self.band {
            Some((rows, band)) if *rows == block.rows => band.clone(),
            _ => {
                let mut piece = Piece { matrix: &mut *self.a, rows: block.rows.clone(), cols: 0..self.k };
                let band = self.client.upload(&mut piece).await?;
                self.band.insert((block.rows.clone(), band)).1.clone()
            }
        };
        let panel = match &self.panel {
            Some((cols, panel)) if *cols == block.cols => panel.clone(),
            _ => {
                let mut piece = Piece { matrix: &mut *self.b, rows: 0..self.k, cols: block.cols.clone() };
                let panel = self.client.upload(&mut piece).await?;
                self.panel.insert((block.cols.clone(), panel)).1.clone()
            }
        };
        Ok((band, panel))
    }
}

async fn read_block(
    product: &Tensor,
    block: &Block,
    dtype: DType,
    destination: &mut dyn MatrixDestination,
) -> Result<()> {
    product.read_into(&mut Window { matrix: destination, block, dtype, taken: 0 }).await.map(drop)
}

/// The runs of whole or partial rows that `length` bytes from byte `offset` of a row-major block
/// cover: (row of the block, byte within that row, bytes).
fn runs(row_bytes: u64, offset: u64, length: u64) -> impl Iterator<Item = (u64, u64, usize)> {
    let (mut offset, mut left) = (offset, length);
    std::iter::from_fn(move || {
        if left == 0 {
            return None;
        }
        let (row, within) = (offset / row_bytes, offset % row_bytes);
        let take = left.min(row_bytes - within);
        offset += take;
        left -= take;
        // At most a chunk, which fits any address space.
        Some((row, within, take as usize))
    })
}

/// A rectangle of a matrix as something to upload.
struct Piece<'a> {
    matrix: &'a mut dyn MatrixSource,
    rows: Range<u64>,
    cols: Range<u64>,
}

impl TensorSource for Piece<'_> {
    fn info(&self) -> TensorInfo {
        TensorInfo {
            dtype: self.matrix.info().dtype,
            rows: self.rows.end - self.rows.start,
            cols: self.cols.end - self.cols.start,
        }
    }

    fn read(&mut self, offset: u64, chunk: &mut [u8]) -> Result<()> {
        let size = self.matrix.info().dtype.size_bytes();
        let row_bytes = (self.cols.end - self.cols.start) * size;
        let mut rest = chunk;
        for (row, within, take) in runs(row_bytes, offset, rest.len() as u64) {
            let (now, later) = rest.split_at_mut(take);
            self.matrix.read(self.rows.start + row, self.cols.start * size + within, now)?;
            rest = later;
        }
        Ok(())
    }
}

/// The place of a block in a matrix as something to read into.
struct Window<'a> {
    matrix: &'a mut dyn MatrixDestination,
    block: &'a Block,
    dtype: DType,
    taken: u64,
}

impl TensorDestination for Window<'_> {
    fn begin(&mut self, info: &TensorInfo) -> Result<()> {
        let Block { rows, cols } = self.block;
        let expected = TensorInfo { dtype: self.dtype, rows: rows.end - rows.start, cols: cols.end - cols.start };
        if *info != expected {
            let message = format!("a block of the product is {info:?} instead of {expected:?}");
            return Err(Error::new(ErrorKind::Internal, message));
        }
        Ok(())
    }

    fn write(&mut self, chunk: &[u8]) -> Result<()> {
        let size = self.dtype.size_bytes();
        let row_bytes = (self.block.cols.end - self.block.cols.start) * size;
        let mut rest = chunk;
        for (row, within, take) in runs(row_bytes, self.taken, chunk.len() as u64) {
            let (now, later) = rest.split_at(take);
            self.matrix.write(self.block.rows.start + row, self.block.cols.start * size + within, now)?;
            rest = later;
        }
        self.taken += chunk.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const F32: Shape = Shape { m: 0, k: 0, n: 0, a: DType::F32, b: DType::F32, c: DType::F32 };

    /// What the blocks in their order really need and send.
    fn simulate(plan: &Plan) -> (u128, u128) {
        let Shape { k, a, b, c, .. } = plan.shape;
        let bytes = |range: &Range<u64>, other: u64, dtype: DType| {
            u128::from(range.end - range.start) * u128::from(other) * u128::from(dtype.size_bytes())
        };
        let blocks: Vec<Block> = plan.blocks().collect();
        let (mut sent, mut peak) = (0, 0);
        let mut before: Option<&Block> = None;
        for (index, block) in blocks.iter().enumerate() {
            let band = bytes(&block.rows, k, a);
            let panel = bytes(&block.cols, k, b);
            let changed = |old: Option<&Block>, new: &Block| {
                let rows = old.is_none_or(|old| old.rows != new.rows);
                let cols = old.is_none_or(|old| old.cols != new.cols);
                (if rows { bytes(&new.rows, k, a) } else { 0 }) + (if cols { bytes(&new.cols, k, b) } else { 0 })
            };
            sent += changed(before, block);
            let next = blocks.get(index + 1).map_or(0, |next| changed(Some(block), next));
            let result = |block: &Block| bytes(&block.rows, block.cols.end - block.cols.start, c);
            peak = peak.max(band + panel + next + result(block) + before.map_or(0, result));
            before = Some(block);
        }
        (sent, peak)
    }

    proptest! {
        #[test]
        fn every_element_is_computed_once_within_the_budget(
            m in 0u64..60, k in 0u64..60, n in 0u64..60, budget in 0u64..60_000,
            resident in proptest::bool::ANY,
        ) {
            let shape = Shape { m, k, n, b: DType::F64, c: DType::F64, ..F32 };
            let Ok(mut plan) = Plan::new(shape, budget) else {
                // Only ever refused where a single element of C does not fit.
                prop_assert!((k * (4 + 8 + 8) + 16) as u128 > u128::from(budget));
                return Ok(());
            };
            if resident {
                plan.resident = Resident::B;
            }
            let mut computed = vec![0u8; (m * n) as usize];
            for block in plan.blocks() {
                for row in block.rows.clone() {
                    for col in block.cols.clone() {
                        computed[(row * n + col) as usize] += 1;
                    }
                }
            }
            prop_assert!(computed.iter().all(|count| *count == 1));
            let (sent, peak) = simulate(&plan);
            prop_assert!(peak <= u128::from(budget), "{peak} > {budget}: {plan:?}");
            prop_assert_eq!(sent, plan.upload_bytes());
        }

        #[test]
        fn no_other_cut_of_the_same_budget_sends_less(
            m in 1u64..24, k in 1u64..24, n in 1u64..24, budget in 100u64..20_000,
        ) {
            let shape = Shape { m, k, n, ..F32 };
            let Ok(plan) = Plan::new(shape, budget) else { return Ok(()) };
            for band_rows in 1..=m {
                for panel_cols in 1..=n {
                    for resident in [Resident::A, Resident::B] {
                        let other = Plan { shape, band_rows, panel_cols, resident };
                        if other.node_bytes() <= u128::from(budget) {
                            // Panels of even width may keep a little less at the turns.
                            let slack = u128::from(k * 4 * (m + n));
                            prop_assert!(plan.upload_bytes() <= other.upload_bytes() + slack);
                        }
                    }
                }
            }
        }

        #[test]
        fn runs_cover_a_range_in_order(row_bytes in 1u64..50, offset in 0u64..500, length in 0u64..500) {
            let mut at = offset;
            for (row, within, take) in runs(row_bytes, offset, length) {
                prop_assert_eq!(row * row_bytes + within, at);
                prop_assert!(take > 0 && within + take as u64 <= row_bytes);
                at += take as u64;
            }
            prop_assert_eq!(at, offset + length);
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
}
