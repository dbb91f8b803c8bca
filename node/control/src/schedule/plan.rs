//! How a job is cut. A product: A into row bands, B into column panels, C into one tile per pair. An elementwise
//! operation: all three into the same row bands, one tile each.
//! Where a tile runs is decided elsewhere, and no element is touched.

use super::limits::{
    LOCAL_GROUP_BYTES, LOCAL_GROUP_SHARE, OPERAND_BYTES_MAX, TILE_ALIGNMENT, TILE_MEMORY_SHARE, TILE_OVERHEADS_MIN,
    TILE_SECONDS, TILE_SECONDS_ALONE, TILE_SECONDS_FASTEST_MIN, TILE_SECONDS_MIN, TILE_SIDE_MIN, TILES_MAX,
    TILES_PER_WORKER, USEFUL_SHARE, USEFUL_START, WHOLE_SECONDS,
};
use super::{Arithmetic, ElementwiseShape, JobShape, ProductShape, WorkerEstimate};
use std::ops::Range;

/// One part of an operand of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operand {
    /// Rows of A.
    Band(u32),
    /// Columns of B in a product; rows of B in an elementwise operation.
    Panel(u32),
}

/// The part of C that one task computes, from band `band` of A and panel `panel` of B.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tile {
    /// Index of the band.
    pub band: u32,
    /// Index of the panel.
    pub panel: u32,
}

/// How fast this node computes, and how fast it checks other workers' answers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    /// Additions and multiplications per second.
    pub flops_per_s: f64,
    /// Bytes of operands and answer checked per second.
    pub check_bytes_per_s: f64,
}

/// Why a job cannot be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Too many tiles would be needed to keep each within its limits.
    #[error("the job needs {tiles} tiles, more than {TILES_MAX}; use fewer rows or columns, or allow more memory")]
    TooManyTiles {
        /// Number of tiles.
        tiles: u64,
    },
    /// A number of bytes does not fit 64 bits.
    #[error("the operands are too large to be addressed")]
    TooLarge,
    /// A given side of bands or panels is zero.
    #[error("a band or panel has no rows or columns")]
    EmptyCut,
}

/// How one job is cut. All bands but the last have the same number of rows, all panels but the last the same number of
/// columns. In an elementwise operation panels are rows of B, as many as there are bands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TileGrid {
    shape: JobShape,
    band_rows: u64,
    panel_columns: u64,
    bands: u32,
    panels: u32,
}

impl TileGrid {
    /// Cuts a job for these workers (including this node): tiles of a length that suits the slowest useful
    /// worker, enough of them for balance, each small enough for every worker's memory. `band_rows` and
    /// `panel_columns` fix sides that have been cut before.
    ///
    /// # Errors
    /// [`PlanError`] if the sizes overflow, a fixed side is 0, or the tiles would be too many.
    pub fn cut(
        shape: impl Into<JobShape>,
        arithmetic: Arithmetic,
        workers: &[WorkerEstimate],
        here: Pace,
        band_rows: Option<u64>,
        panel_columns: Option<u64>,
    ) -> Result<Self, PlanError> {
        let job = shape.into();
        job.check()?;
        let flops = tile_flops(&job, arithmetic, workers, here);
        match job {
            JobShape::Product(shape) => Self::cut_product(shape, flops, workers, band_rows, panel_columns),
            JobShape::Elementwise(shape) => Self::cut_rows(shape, flops, workers, band_rows),
        }
    }

    /// Cuts a product into tiles of about this cost.
    fn cut_product(
        shape: ProductShape,
        flops: f64,
        workers: &[WorkerEstimate],
        band_rows: Option<u64>,
        panel_columns: Option<u64>,
    ) -> Result<Self, PlanError> {
        if let (Some(rows), Some(columns)) = (band_rows, panel_columns) {
            return Self::with_sides(shape, rows, columns);
        }
        let ProductShape { m, k, n, .. } = shape;
        let most = Bounds::new(&shape, workers);
        if flops >= shape.flops() && m <= most.rows && n <= most.columns && most.fits(m, n) {
            return Self::with_sides(shape, band_rows.unwrap_or(m.max(1)), panel_columns.unwrap_or(n.max(1)));
        }
        // Rows times columns of a tile: twice as wide as high, if the sides of C allow it. Checking and packing
        // a band costs less with wider tiles; square ones would need the fewest bytes, by 6 %.
        let area = flops / (2.0 * k.max(1) as f64);
        let height = align((area / 2.0).sqrt());
        let mut rows = band_rows.unwrap_or_else(|| if n < 2 * height { align(area / n as f64) } else { height });
        rows = rows.min(m.max(1));
        let mut columns = panel_columns.unwrap_or_else(|| align(area / rows as f64)).min(n.max(1));
        if band_rows.is_none() {
            rows = rows.min(most.rows);
        }
        if panel_columns.is_none() {
            columns = columns.min(most.columns);
        }
        while !most.fits(rows, columns) {
            let narrower = |side: u64| {
                if side > TILE_ALIGNMENT { align_down(side / 2) } else { (side / 2).max(1) }
            };
            let (old_rows, old_columns) = (rows, columns);
            if panel_columns.is_none() && (columns >= rows || band_rows.is_some()) {
                columns = narrower(columns);
            } else if band_rows.is_none() {
                rows = narrower(rows);
            }
            if (rows, columns) == (old_rows, old_columns) {
                break;
            }
        }
        let rows = band_rows.unwrap_or_else(|| even(m, rows));
        let columns = panel_columns.unwrap_or_else(|| even(n, columns));
        Self::with_sides(shape, rows, columns)
    }

    /// Cuts an elementwise operation into tiles of about this cost.
    fn cut_rows(
        shape: ElementwiseShape,
        flops: f64,
        workers: &[WorkerEstimate],
        band_rows: Option<u64>,
    ) -> Result<Self, PlanError> {
        // Bands of a product may be too narrow for an operation that shares no operands.
        if let Some(grid) = band_rows.and_then(|rows| Self::with_sides(shape, rows, rows).ok()) {
            return Ok(grid);
        }
        let memory = workers.iter().map(|worker| worker.memory_bytes).min().unwrap_or(u64::MAX);
        let operand_row_bytes = shape.cols.saturating_mul(shape.a_element_bytes.max(shape.b_element_bytes));
        let most =
            (OPERAND_BYTES_MAX / operand_row_bytes.max(1)).min(memory / TILE_MEMORY_SHARE / shape.row_bytes().max(1));
        let wanted = (flops / shape.flops_of(1).max(1.0)).round().min(u64::MAX as f64) as u64;
        // The set of waiting tiles has a place for every pair of band and panel, though only one pair per row is a tile.
        let least = shape.rows.div_ceil(TILES_MAX.isqrt());
        let rows = even(shape.rows, wanted.max(least).min(most).max(1));
        Self::with_sides(shape, rows, rows)
    }

    /// The grid of bands of `band_rows` rows and panels of `panel_columns` columns; an elementwise operation has bands only.
    ///
    /// # Errors
    /// [`PlanError`] as for [`TileGrid::cut`].
    pub fn with_sides(shape: impl Into<JobShape>, band_rows: u64, panel_columns: u64) -> Result<Self, PlanError> {
        let shape = shape.into();
        shape.check()?;
        if band_rows == 0 || panel_columns == 0 {
            return Err(PlanError::EmptyCut);
        }
        let (bands, panels) = match shape {
            JobShape::Product(ProductShape { m, n, .. }) => (m.div_ceil(band_rows), n.div_ceil(panel_columns)),
            JobShape::Elementwise(ElementwiseShape { rows, cols, .. }) => {
                let bands = if cols == 0 { 0 } else { rows.div_ceil(band_rows) };
                (bands, bands)
            }
        };
        let tiles = bands.saturating_mul(panels);
        // A grid without tiles may still have a long side, and indices are 32 bits wide.
        if tiles > TILES_MAX || bands > TILES_MAX || panels > TILES_MAX {
            return Err(PlanError::TooManyTiles { tiles: tiles.max(bands).max(panels) });
        }
        Ok(Self { shape, band_rows, panel_columns, bands: bands as u32, panels: panels as u32 })
    }

    /// The shape of the job.
    pub fn shape(&self) -> &JobShape {
        &self.shape
    }

    /// Rows of every band but the last.
    pub fn band_rows(&self) -> u64 {
        self.band_rows
    }

    /// Columns of every panel but the last, in a product.
    pub fn panel_columns(&self) -> u64 {
        self.panel_columns
    }

    /// Number of bands; 0 if A has no rows.
    pub fn bands(&self) -> u32 {
        self.bands
    }

    /// Number of panels; 0 if B has no columns.
    pub fn panels(&self) -> u32 {
        self.panels
    }

    /// Number of tiles.
    pub fn tiles(&self) -> u32 {
        match self.shape {
            JobShape::Product(_) => self.bands * self.panels,
            JobShape::Elementwise(_) => self.bands,
        }
    }

    /// Whether this band and this panel make a tile.
    pub fn is_tile(&self, tile: Tile) -> bool {
        let inside = tile.band < self.bands && tile.panel < self.panels;
        inside && (self.shape.shares_operands() || tile.band == tile.panel)
    }

    /// Bytes of panels and a band that this node keeps packed at a time for this job.
    pub fn group_bytes(&self) -> u64 {
        let [a, b, c] = self.shape.bytes();
        ((a + b + c) / LOCAL_GROUP_SHARE).min(LOCAL_GROUP_BYTES)
    }

    /// Rows and columns of A in a band, or of B in a panel. Empty beyond the last.
    pub fn part(&self, operand: Operand) -> (Range<u64>, Range<u64>) {
        match (self.shape, operand) {
            (JobShape::Product(ProductShape { m, k, .. }), Operand::Band(band)) => {
                (piece(band, self.band_rows, m), 0..k)
            }
            (JobShape::Product(ProductShape { k, n, .. }), Operand::Panel(panel)) => {
                (0..k, piece(panel, self.panel_columns, n))
            }
            (
                JobShape::Elementwise(ElementwiseShape { rows, cols, .. }),
                Operand::Band(index) | Operand::Panel(index),
            ) => (piece(index, self.band_rows, rows), 0..cols),
        }
    }

    /// Rows and columns of C in a tile.
    pub fn place(&self, tile: Tile) -> (Range<u64>, Range<u64>) {
        (self.part(Operand::Band(tile.band)).0, self.part(Operand::Panel(tile.panel)).1)
    }

    /// Bytes of one operand.
    pub fn operand_bytes(&self, operand: Operand) -> u64 {
        let (rows, columns) = self.part(operand);
        let (JobShape::Product(ProductShape { a_element_bytes, b_element_bytes, .. })
        | JobShape::Elementwise(ElementwiseShape { a_element_bytes, b_element_bytes, .. })) = self.shape;
        let element_bytes = if matches!(operand, Operand::Band(_)) { a_element_bytes } else { b_element_bytes };
        length(&rows) * length(&columns) * element_bytes
    }

    /// Bytes of a tile of C.
    pub fn tile_bytes(&self, tile: Tile) -> u64 {
        let (rows, columns) = self.place(tile);
        let (JobShape::Product(ProductShape { c_element_bytes, .. })
        | JobShape::Elementwise(ElementwiseShape { c_element_bytes, .. })) = self.shape;
        length(&rows) * length(&columns) * c_element_bytes
    }

    /// Cost of one tile, in additions and multiplications of a product that takes as long.
    pub fn tile_flops(&self, tile: Tile) -> f64 {
        let (rows, columns) = self.place(tile);
        match &self.shape {
            JobShape::Product(shape) => 2.0 * length(&rows) as f64 * length(&columns) as f64 * shape.k as f64,
            JobShape::Elementwise(shape) => shape.flops_of(length(&rows)),
        }
    }
}

/// Lines of the part with this index, if all parts but the last have `side` lines of `total`.
fn piece(index: u32, side: u64, total: u64) -> Range<u64> {
    let start = (u64::from(index) * side).min(total);
    start..(start + side).min(total)
}

/// Limits that keep a tile small enough to be sent and held.
struct Bounds {
    shape: ProductShape,
    rows: u64,
    columns: u64,
    tile_bytes: u64,
}

impl Bounds {
    fn new(shape: &ProductShape, workers: &[WorkerEstimate]) -> Self {
        let memory = workers.iter().map(|worker| worker.memory_bytes).min().unwrap_or(u64::MAX);
        let side = |element: u64| match shape.k.saturating_mul(element) {
            0 => u64::MAX,
            line => {
                let lines = (OPERAND_BYTES_MAX / line).max(1);
                if lines >= TILE_ALIGNMENT { align_down(lines) } else { lines }
            }
        };
        Self {
            shape: *shape,
            rows: side(shape.a_element_bytes),
            columns: side(shape.b_element_bytes),
            tile_bytes: memory / TILE_MEMORY_SHARE,
        }
    }

    fn fits(&self, rows: u64, columns: u64) -> bool {
        let ProductShape { k, a_element_bytes, b_element_bytes, c_element_bytes, .. } = self.shape;
        let operands = (rows.saturating_mul(a_element_bytes))
            .saturating_add(columns.saturating_mul(b_element_bytes))
            .saturating_mul(k);
        operands.saturating_add(rows.saturating_mul(columns).saturating_mul(c_element_bytes)) <= self.tile_bytes
    }
}

/// Target cost of one tile.
fn tile_flops(shape: &JobShape, arithmetic: Arithmetic, workers: &[WorkerEstimate], here: Pace) -> f64 {
    let rate = |worker: &WorkerEstimate| worker.flops_per_s(arithmetic);
    let fixed_s = |worker: &WorkerEstimate| worker.overhead_s + worker.rtt_s;
    // This node may have to compute any tile itself.
    let most = TILE_SECONDS_ALONE * here.flops_per_s;
    let fastest = workers.iter().map(rate).fold(0.0, f64::max);
    // The worker that would finish the whole job first alone.
    let [a_bytes, b_bytes, _] = shape.bytes();
    let operand_bytes = (a_bytes + b_bytes) as f64;
    let alone = |worker: &WorkerEstimate| {
        fixed_s(worker) + operand_bytes / worker.send_bytes_per_s.max(1.0) + shape.flops() / rate(worker)
    };
    let alone_s = workers.iter().map(alone).fold(f64::INFINITY, f64::min);
    // Finer tiles than it needs delay the first one, so the other workers must be useful.
    let useful = |worker: &&WorkerEstimate| {
        let flops = TILE_SECONDS_MIN * rate(worker);
        let bytes = shape.tile_operand_bytes(flops);
        let first_s = fixed_s(worker) + bytes / worker.send_bytes_per_s.max(1.0) + TILE_SECONDS_MIN;
        rate(worker) >= fastest * USEFUL_SHARE && first_s <= alone_s * USEFUL_START
    };
    let (mut count, mut linked) = (0u64, false);
    let (mut slowest, mut shortest) = (fastest, TILE_SECONDS_FASTEST_MIN * fastest);
    for worker in workers.iter().filter(useful) {
        count += 1;
        linked |= worker.send_bytes_per_s.is_finite();
        slowest = slowest.min(rate(worker));
        shortest = shortest.max(fixed_s(worker) * TILE_OVERHEADS_MIN * rate(worker));
    }
    // No useful worker besides this node: there is no transfer to hide behind another tile.
    if count == 0 || (count == 1 && !linked) {
        return if shape.flops() <= WHOLE_SECONDS * here.flops_per_s { shape.flops() } else { most };
    }
    let balanced = shape.flops() / (count * TILES_PER_WORKER) as f64;
    let checkable = shape.checkable_flops(here);
    balanced.min((TILE_SECONDS * slowest).max(checkable)).max(TILE_SECONDS_MIN * slowest).max(shortest).min(most)
}

/// The nearest whole number of kernel blocks, at least the minimum side.
fn align(side: f64) -> u64 {
    let blocks = (side / TILE_ALIGNMENT as f64).round().min(u64::MAX as f64 / 128.0) as u64;
    (blocks * TILE_ALIGNMENT).max(TILE_SIDE_MIN)
}

fn align_down(side: u64) -> u64 {
    (side / TILE_ALIGNMENT * TILE_ALIGNMENT).max(1)
}

/// Splits `total` evenly into as many parts as parts of `side` would give, so that the last is not a sliver.
fn even(total: u64, side: u64) -> u64 {
    let share = total.div_ceil(total.div_ceil(side).max(1)).max(1);
    if side >= TILE_ALIGNMENT {
        share.next_multiple_of(TILE_ALIGNMENT).min(side).min(total.max(1))
    } else {
        share.min(side)
    }
}

fn length(range: &Range<u64>) -> u64 {
    range.end - range.start
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shapes() -> impl Strategy<Value = ProductShape> {
        let side = || prop_oneof![0u64..3, 1u64..300, 1u64..20_000, Just(131_071u64)];
        let element = || prop_oneof![Just(1u64), Just(2), Just(4), Just(8)];
        (side(), side(), side(), element(), element(), element()).prop_map(|(m, k, n, a, b, c)| ProductShape {
            m,
            k,
            n,
            a_element_bytes: a,
            b_element_bytes: b,
            c_element_bytes: c,
        })
    }

    fn workers() -> impl Strategy<Value = Vec<WorkerEstimate>> {
        let worker = (1e8..1e13f64, 1e5..1e10f64, 0.0..0.2f64, 26u32..40).prop_map(|(flops, bytes, rtt, memory)| {
            WorkerEstimate::remote([flops; Arithmetic::COUNT], bytes, rtt, 1 << memory)
        });
        prop::collection::vec(worker, 0..9)
    }

    fn pace(flops_per_s: f64) -> Pace {
        Pace { flops_per_s, check_bytes_per_s: 8e9 }
    }

    /// Whether the ranges are contiguous from 0 to `end`, none empty.
    fn covers(parts: impl Iterator<Item = Range<u64>>, end: u64) -> bool {
        let mut at = 0;
        parts.into_iter().all(|part| {
            let follows = part.start == at && part.end > at;
            at = part.end;
            follows
        }) && at == end
    }

    proptest! {
        #[test]
        fn bands_and_panels_cover_every_element_once(
            shape in shapes(),
            workers in workers(),
            flops_per_s in 1e8..1e13f64,
            band_rows in prop::option::of(1u64..5_000),
            panel_columns in prop::option::of(1u64..5_000),
        ) {
            let grid = match TileGrid::cut(shape, Arithmetic::F32, &workers, pace(flops_per_s), band_rows, panel_columns) {
                Ok(grid) => grid,
                Err(error) => {
                    prop_assert!(matches!(error, PlanError::TooManyTiles { .. }), "{}", error);
                    return Ok(());
                }
            };
            prop_assert!(covers((0..grid.bands()).map(|band| grid.part(Operand::Band(band)).0), shape.m));
            prop_assert!(covers((0..grid.panels()).map(|panel| grid.part(Operand::Panel(panel)).1), shape.n));
            prop_assert!(band_rows.is_none_or(|rows| grid.band_rows() == rows));
            prop_assert!(panel_columns.is_none_or(|columns| grid.panel_columns() == columns));
            let tiles = (0..grid.bands()).flat_map(|band| (0..grid.panels()).map(move |panel| Tile { band, panel }));
            let flops: f64 = tiles.clone().map(|tile| grid.tile_flops(tile)).sum();
            prop_assert!((flops - shape.flops()).abs() <= 1e-9 * shape.flops());
            let bytes: u64 = tiles.map(|tile| grid.tile_bytes(tile)).sum();
            prop_assert_eq!(bytes, shape.m * shape.n * shape.c_element_bytes);
        }

        #[test]
        fn tiles_fit_the_memory_of_every_worker_and_are_whole_kernel_blocks(
            shape in shapes(),
            workers in workers(),
        ) {
            let Ok(grid) = TileGrid::cut(shape, Arithmetic::F32, &workers, pace(100e9), None, None) else { return Ok(()) };
            if grid.tiles() == 0 {
                return Ok(());
            }
            let bounds = Bounds::new(&shape, &workers);
            let (rows, columns) = (grid.band_rows(), grid.panel_columns());
            // One line of A and B may already exceed the memory; nothing can be narrower.
            prop_assert!(bounds.fits(rows, columns) || (rows <= TILE_ALIGNMENT && columns <= TILE_ALIGNMENT));
            let whole = |side: u64, all: u64| side >= all || side < TILE_ALIGNMENT || side.is_multiple_of(TILE_ALIGNMENT);
            prop_assert!(whole(rows, shape.m) && whole(columns, shape.n), "{rows} x {columns}");
        }
    }

    proptest! {
        #[test]
        fn rows_of_an_elementwise_operation_are_cut_alike_in_all_three_and_fit_every_worker(
            rows in prop_oneof![0u64..3, 1u64..300, 1u64..2_000_000],
            cols in prop_oneof![0u64..3, 1u64..20_000],
            element in prop_oneof![Just(4u64), Just(8)],
            workers in workers(),
            flops_per_s in 1e8..1e13f64,
            band_rows in prop::option::of(1u64..5_000),
        ) {
            let shape = elementwise(rows, cols, element);
            let arithmetic = Arithmetic::Elementwise;
            let grid = match TileGrid::cut(shape, arithmetic, &workers, pace(flops_per_s), band_rows, None) {
                Ok(grid) => grid,
                Err(error) => {
                    prop_assert!(matches!(error, PlanError::TooManyTiles { .. }), "{}", error);
                    return Ok(());
                }
            };
            let whole = if cols == 0 { 0 } else { rows };
            let tiles = || (0..grid.bands()).map(|index| Tile { band: index, panel: index });
            prop_assert_eq!((grid.panels(), grid.tiles()), (grid.bands(), grid.bands()));
            prop_assert!(tiles().all(|tile| grid.is_tile(tile)));
            prop_assert!(covers(tiles().map(|tile| grid.place(tile).0), whole));
            for tile in tiles() {
                let place = grid.place(tile);
                prop_assert_eq!(&place.1, &(0..cols));
                prop_assert_eq!(&place, &grid.part(Operand::Band(tile.band)));
                prop_assert_eq!(&place, &grid.part(Operand::Panel(tile.panel)));
            }
            let flops: f64 = tiles().map(|tile| grid.tile_flops(tile)).sum();
            prop_assert!((flops - JobShape::from(shape).flops()).abs() <= 1e-9 * flops.max(1.0) || cols == 0);
            prop_assert_eq!(tiles().map(|tile| grid.tile_bytes(tile)).sum::<u64>(), whole * cols * element);
            if band_rows.is_none() {
                let memory = workers.iter().map(|worker| worker.memory_bytes).min().unwrap_or(u64::MAX);
                let bytes = grid.band_rows() * 3 * cols * element;
                prop_assert!(bytes <= memory / TILE_MEMORY_SHARE || grid.band_rows() == 1, "{} bytes", bytes);
            }
        }
    }

    fn elementwise(rows: u64, cols: u64, element: u64) -> ElementwiseShape {
        ElementwiseShape { rows, cols, a_element_bytes: element, b_element_bytes: element, c_element_bytes: element }
    }

    #[test]
    fn rows_cut_too_narrow_for_an_elementwise_operation_are_cut_again() {
        let shape = elementwise(10_000, 100, 4);
        let workers = [WorkerEstimate::local([100e9; Arithmetic::COUNT], 4 << 30)];
        let cut =
            |rows| TileGrid::cut(shape, Arithmetic::Elementwise, &workers, pace(100e9), Some(rows), None).unwrap();
        assert_eq!(cut(128).band_rows(), 128);
        assert_eq!(cut(1).tiles(), 1, "10 000 rows alone would be more tiles than are allowed");
    }

    #[test]
    fn a_small_product_stays_whole() {
        let shape = ProductShape { m: 256, k: 256, n: 256, a_element_bytes: 4, b_element_bytes: 4, c_element_bytes: 4 };
        let rates = [100e9; Arithmetic::COUNT];
        let workers = [WorkerEstimate::local(rates, 1 << 33), WorkerEstimate::remote(rates, 1.1e9, 1e-4, 1 << 33)];
        let grid = TileGrid::cut(shape, Arithmetic::F32, &workers, pace(100e9), None, None).unwrap();
        assert_eq!(grid.tiles(), 1);
    }

    #[test]
    fn a_long_k_makes_narrow_bands() {
        let shape = ProductShape {
            m: 1 << 14,
            k: 1 << 22,
            n: 1 << 14,
            a_element_bytes: 4,
            b_element_bytes: 4,
            c_element_bytes: 4,
        };
        let workers = [WorkerEstimate::local([100e9; Arithmetic::COUNT], 4 << 30)];
        let grid = TileGrid::cut(shape, Arithmetic::F32, &workers, pace(100e9), None, None).unwrap();
        assert!(grid.operand_bytes(Operand::Band(0)) <= OPERAND_BYTES_MAX);
        assert!(grid.operand_bytes(Operand::Panel(0)) <= OPERAND_BYTES_MAX);
    }

    #[test]
    fn overflowing_sizes_and_too_many_tiles_are_refused() {
        let shape =
            ProductShape { m: 1 << 40, k: 1 << 30, n: 1, a_element_bytes: 8, b_element_bytes: 4, c_element_bytes: 4 };
        assert_eq!(TileGrid::with_sides(shape, 1, 1), Err(PlanError::TooLarge));
        let shape = ProductShape { m: 1 << 20, k: 1, n: 1 << 20, ..shape };
        assert_eq!(TileGrid::with_sides(shape, 1, 1), Err(PlanError::TooManyTiles { tiles: 1 << 40 }));
        assert_eq!(TileGrid::with_sides(shape, 0, 1), Err(PlanError::EmptyCut));
    }
}
