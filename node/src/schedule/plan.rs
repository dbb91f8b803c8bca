//! How a product is cut: A into row bands, B into column panels, C into one tile for each pair.
//! Never decides where a tile runs, and never touches an element.

use super::limits::{
    OPERAND_BYTES_MAX, TILE_ALIGNMENT, TILE_MEMORY_SHARE, TILE_OVERHEADS_MIN, TILE_SECONDS,
    TILE_SECONDS_ALONE, TILE_SECONDS_MIN, TILE_SIDE_MIN, TILES_MAX, TILES_PER_WORKER, USEFUL_SHARE,
};
use super::{Arithmetic, WorkerEstimate};
use std::ops::Range;

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

impl ProductShape {
    /// Additions and multiplications of the whole product.
    pub fn flops(&self) -> f64 {
        2.0 * self.m as f64 * self.k as f64 * self.n as f64
    }
}

/// One band or one panel of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operand {
    /// Rows of A.
    Band(u32),
    /// Columns of B.
    Panel(u32),
}

/// The part of C that one task computes: band `band` of A times panel `panel` of B.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tile {
    /// Index of the band.
    pub band: u32,
    /// Index of the panel.
    pub panel: u32,
}

/// Why a product cannot be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// It would take too many tiles to keep each within its bounds.
    #[error(
        "the product needs {tiles} tiles, more than {TILES_MAX}; use fewer rows or columns, or allow more memory"
    )]
    TooManyTiles {
        /// How many.
        tiles: u64,
    },
    /// A number of bytes does not fit 64 bits.
    #[error("the operands are too large to be addressed")]
    TooLarge,
    /// A cut from before is not a positive number of rows or columns.
    #[error("a band or panel has no rows or columns")]
    EmptyCut,
}

/// How one product is cut. All bands but the last have the same number of rows, all panels but the last the
/// same number of columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TileGrid {
    shape: ProductShape,
    band_rows: u64,
    panel_columns: u64,
    bands: u32,
    panels: u32,
}

impl TileGrid {
    /// Cuts a product for these workers (this node among them): tiles of a length that suits the slowest useful
    /// one, enough of them for balance, each small enough for every worker's memory. `band_rows` and
    /// `panel_columns` fix a side that has been cut before.
    ///
    /// # Errors
    /// [`PlanError`] if the sizes overflow, a fixed side is 0, or the tiles would be too many.
    pub fn cut(
        shape: ProductShape,
        arithmetic: Arithmetic,
        workers: &[WorkerEstimate],
        band_rows: Option<u64>,
        panel_columns: Option<u64>,
    ) -> Result<Self, PlanError> {
        shape.check()?;
        if let (Some(rows), Some(columns)) = (band_rows, panel_columns) {
            return Self::with_sides(shape, rows, columns);
        }
        let ProductShape { m, k, n, .. } = shape;
        let most = Bounds::new(&shape, workers);
        let flops = tile_flops(&shape, arithmetic, workers);
        if flops >= shape.flops() && m <= most.rows && n <= most.columns && most.fits(m, n) {
            return Self::with_sides(
                shape,
                band_rows.unwrap_or(m.max(1)),
                panel_columns.unwrap_or(n.max(1)),
            );
        }
        // Rows times columns of a tile; as near to a square as the sides of C allow.
        let area = flops / (2.0 * k.max(1) as f64);
        let square = align(area.sqrt());
        let mut rows = band_rows.unwrap_or_else(|| {
            if n < square {
                align(area / n as f64)
            } else {
                square
            }
        });
        rows = rows.min(m.max(1));
        let mut columns = panel_columns
            .unwrap_or_else(|| align(area / rows as f64))
            .min(n.max(1));
        if band_rows.is_none() {
            rows = rows.min(most.rows);
        }
        if panel_columns.is_none() {
            columns = columns.min(most.columns);
        }
        while !most.fits(rows, columns) {
            let narrower = |side: u64| {
                if side > TILE_ALIGNMENT {
                    align_down(side / 2)
                } else {
                    (side / 2).max(1)
                }
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

    /// The grid of bands of `band_rows` rows and panels of `panel_columns` columns.
    ///
    /// # Errors
    /// [`PlanError`] as for [`TileGrid::cut`].
    pub fn with_sides(
        shape: ProductShape,
        band_rows: u64,
        panel_columns: u64,
    ) -> Result<Self, PlanError> {
        shape.check()?;
        if band_rows == 0 || panel_columns == 0 {
            return Err(PlanError::EmptyCut);
        }
        let (bands, panels) = (shape.m.div_ceil(band_rows), shape.n.div_ceil(panel_columns));
        let tiles = bands.saturating_mul(panels);
        // A grid of no tiles may still have a long side, and indices are 32 bits wide.
        if tiles > TILES_MAX || bands > TILES_MAX || panels > TILES_MAX {
            return Err(PlanError::TooManyTiles {
                tiles: tiles.max(bands).max(panels),
            });
        }
        Ok(Self {
            shape,
            band_rows,
            panel_columns,
            bands: bands as u32,
            panels: panels as u32,
        })
    }

    /// The product that is cut.
    pub fn shape(&self) -> &ProductShape {
        &self.shape
    }

    /// Rows of every band but the last.
    pub fn band_rows(&self) -> u64 {
        self.band_rows
    }

    /// Columns of every panel but the last.
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
        self.bands * self.panels
    }

    /// Rows of A and C in a band. Empty beyond the last band.
    pub fn rows(&self, band: u32) -> Range<u64> {
        let start = (u64::from(band) * self.band_rows).min(self.shape.m);
        start..(start + self.band_rows).min(self.shape.m)
    }

    /// Columns of B and C in a panel. Empty beyond the last panel.
    pub fn columns(&self, panel: u32) -> Range<u64> {
        let start = (u64::from(panel) * self.panel_columns).min(self.shape.n);
        start..(start + self.panel_columns).min(self.shape.n)
    }

    /// Bytes of one operand.
    pub fn operand_bytes(&self, operand: Operand) -> u64 {
        match operand {
            Operand::Band(band) => {
                length(&self.rows(band)) * self.shape.k * self.shape.a_element_bytes
            }
            Operand::Panel(panel) => {
                length(&self.columns(panel)) * self.shape.k * self.shape.b_element_bytes
            }
        }
    }

    /// Bytes of a tile of C.
    pub fn tile_bytes(&self, tile: Tile) -> u64 {
        length(&self.rows(tile.band))
            * length(&self.columns(tile.panel))
            * self.shape.c_element_bytes
    }

    /// Additions and multiplications of one tile.
    pub fn tile_flops(&self, tile: Tile) -> f64 {
        let (rows, columns) = (
            length(&self.rows(tile.band)),
            length(&self.columns(tile.panel)),
        );
        2.0 * rows as f64 * columns as f64 * self.shape.k as f64
    }
}

impl ProductShape {
    fn check(&self) -> Result<(), PlanError> {
        let bytes = |x: u64, y: u64, element: u64| x.checked_mul(y)?.checked_mul(element);
        let a = bytes(self.m, self.k, self.a_element_bytes);
        let b = bytes(self.k, self.n, self.b_element_bytes);
        let c = bytes(self.m, self.n, self.c_element_bytes);
        match (a, b, c) {
            (Some(a), Some(b), Some(c))
                if a.checked_add(b).and_then(|ab| ab.checked_add(c)).is_some() =>
            {
                Ok(())
            }
            _ => Err(PlanError::TooLarge),
        }
    }
}

/// What keeps a tile small enough to be sent and held.
struct Bounds {
    shape: ProductShape,
    rows: u64,
    columns: u64,
    tile_bytes: u64,
}

impl Bounds {
    fn new(shape: &ProductShape, workers: &[WorkerEstimate]) -> Self {
        let memory = workers
            .iter()
            .map(|worker| worker.memory_bytes)
            .min()
            .unwrap_or(u64::MAX);
        let side = |element: u64| match shape.k.saturating_mul(element) {
            0 => u64::MAX,
            line => {
                let lines = (OPERAND_BYTES_MAX / line).max(1);
                if lines >= TILE_ALIGNMENT {
                    align_down(lines)
                } else {
                    lines
                }
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
        let ProductShape {
            k,
            a_element_bytes,
            b_element_bytes,
            c_element_bytes,
            ..
        } = self.shape;
        let operands = (rows.saturating_mul(a_element_bytes))
            .saturating_add(columns.saturating_mul(b_element_bytes))
            .saturating_mul(k);
        operands.saturating_add(rows.saturating_mul(columns).saturating_mul(c_element_bytes))
            <= self.tile_bytes
    }
}

/// How much work one tile should be.
fn tile_flops(shape: &ProductShape, arithmetic: Arithmetic, workers: &[WorkerEstimate]) -> f64 {
    let rate = |worker: &WorkerEstimate| worker.flops_per_s(arithmetic);
    let fastest = workers.iter().map(rate).fold(0.0, f64::max);
    let useful = workers
        .iter()
        .filter(|worker| rate(worker) >= fastest * USEFUL_SHARE);
    let (count, slowest, overhead) = useful.fold(
        (0u64, f64::INFINITY, 0.0f64),
        |(count, slowest, overhead), worker| {
            (
                count + 1,
                slowest.min(rate(worker)),
                overhead.max(worker.overhead_s + worker.rtt_s),
            )
        },
    );
    if count == 0 {
        return f64::INFINITY;
    }
    if count == 1 {
        return TILE_SECONDS_ALONE * slowest;
    }
    let shortest = TILE_SECONDS_MIN.max(overhead * TILE_OVERHEADS_MIN) * slowest;
    let balanced = shape.flops() / (count * TILES_PER_WORKER) as f64;
    balanced.min(TILE_SECONDS * slowest).max(shortest)
}

/// The nearest whole number of kernel blocks, not less than the narrowest tile.
fn align(side: f64) -> u64 {
    let blocks = (side / TILE_ALIGNMENT as f64)
        .round()
        .min(u64::MAX as f64 / 128.0) as u64;
    (blocks * TILE_ALIGNMENT).max(TILE_SIDE_MIN)
}

fn align_down(side: u64) -> u64 {
    (side / TILE_ALIGNMENT * TILE_ALIGNMENT).max(1)
}

/// Shares `total` out over as many parts as parts of `side` would take, so that the last is not a sliver.
fn even(total: u64, side: u64) -> u64 {
    let share = total.div_ceil(total.div_ceil(side).max(1)).max(1);
    if side >= TILE_ALIGNMENT {
        share
            .next_multiple_of(TILE_ALIGNMENT)
            .min(side)
            .min(total.max(1))
    } else {
        share.min(side)
    }
}

fn length(range: &Range<u64>) -> u64 {
    range.end - range.start
}
