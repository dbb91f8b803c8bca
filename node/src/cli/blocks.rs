//! How a product larger than memory is cut: which operand stays in blocks while the other passes by, and how large the
//! blocks are. Pure arithmetic; it moves nothing.

use std::ops::Range;

/// Which operand's blocks stay while those of the other pass by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stays {
    /// Row bands of A; column panels of B pass by.
    A,
    /// Column panels of B; row bands of A pass by.
    B,
}

/// What is to be multiplied: `[m, k] · [k, n]` and the bytes of an element of A, B and C.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    pub(super) m: usize,
    pub(super) k: usize,
    pub(super) n: usize,
    pub(super) element_bytes: [usize; 3],
}

/// A product cut into row bands of A times column panels of B.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Blocks {
    pub(super) stays: Stays,
    /// Rows of A in a band.
    pub(super) rows: usize,
    /// Columns of B in a panel.
    pub(super) cols: usize,
}

impl Extent {
    /// Bytes of A, B and C together; saturates.
    pub(super) fn size_bytes(&self) -> u64 {
        let [a, b, c] = self.element_bytes.map(|bytes| bytes as u64);
        let (m, k, n) = (self.m as u64, self.k as u64, self.n as u64);
        let size = |rows: u64, cols: u64, bytes: u64| rows.saturating_mul(cols).saturating_mul(bytes);
        size(m, k, a).saturating_add(size(k, n, b)).saturating_add(size(m, n, c))
    }

    /// Whether there is nothing to compute.
    pub(super) fn is_empty(&self) -> bool {
        self.m == 0 || self.k == 0 || self.n == 0
    }

    /// Blocks that fit into `budget` bytes: one that stays, two that pass by and two of C, because the next comes while
    /// one is multiplied. Of all such cuts nearly the one that moves the least. `None` where not even single rows and
    /// columns fit.
    pub(super) fn blocks(&self, budget: u64) -> Option<Blocks> {
        let [a, b, c] = self.element_bytes.map(|bytes| bytes as u64);
        let (m, k, n) = (self.m as u64, self.k as u64, self.n as u64);
        let cut = |stays, staying: (u64, u64), passing: (u64, u64)| {
            let ((lines, line_bytes), (other_lines, other_bytes)) = (staying, passing);
            let stay = (budget / 2 / (line_bytes).max(1)).min(lines);
            let room = budget.saturating_sub(stay.saturating_mul(line_bytes));
            let pass_bytes = other_bytes.saturating_add(stay.saturating_mul(c)).saturating_mul(2);
            let pass = (room / pass_bytes.max(1)).min(other_lines);
            (stay > 0 && pass > 0).then(|| {
                let passes = u128::from(lines.div_ceil(stay));
                let moved = u128::from(lines) * u128::from(line_bytes)
                    + passes * u128::from(other_lines) * u128::from(other_bytes);
                let (rows, cols) = if stays == Stays::A { (stay, pass) } else { (pass, stay) };
                (moved, Blocks { stays, rows: rows as usize, cols: cols as usize })
            })
        };
        let of_a = (m, k.saturating_mul(a));
        let of_b = (n, k.saturating_mul(b));
        let cuts = [cut(Stays::A, of_a, of_b), cut(Stays::B, of_b, of_a)];
        cuts.into_iter().flatten().min_by_key(|(moved, _)| *moved).map(|(_, blocks)| blocks)
    }
}

impl Blocks {
    /// How many products of blocks there are.
    pub(super) fn count(&self, extent: &Extent) -> usize {
        extent.m.div_ceil(self.rows) * extent.n.div_ceil(self.cols)
    }

    /// The rows of A and the columns of B of every product, in order.
    pub(super) fn products(&self, extent: &Extent) -> Vec<(Range<usize>, Range<usize>)> {
        let bands = || (0..extent.m).step_by(self.rows).map(|row| row..extent.m.min(row + self.rows));
        let panels = || (0..extent.n).step_by(self.cols).map(|col| col..extent.n.min(col + self.cols));
        match self.stays {
            Stays::A => bands().flat_map(|rows| panels().map(move |cols| (rows.clone(), cols))).collect(),
            Stays::B => panels().flat_map(|cols| bands().map(move |rows| (rows, cols.clone()))).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn blocks_cover_every_element_once_and_fit(m in 1usize..60, k in 1usize..60, n in 1usize..60, budget in 1u64..20_000) {
            let extent = Extent { m, k, n, element_bytes: [4, 2, 8] };
            let Some(blocks) = extent.blocks(budget) else { return Ok(()) };
            let (rows, cols) = (blocks.rows as u64, blocks.cols as u64);
            let (band, panel) = (rows * k as u64 * 4, cols * k as u64 * 2);
            let (stays, passes) = if blocks.stays == Stays::A { (band, panel) } else { (panel, band) };
            prop_assert!(stays + 2 * passes + 2 * rows * cols * 8 <= budget);
            let mut seen = vec![0; m * n];
            let products = blocks.products(&extent);
            prop_assert_eq!(products.len(), blocks.count(&extent));
            for (rows, cols) in products {
                for row in rows {
                    for col in cols.clone() {
                        seen[row * n + col] += 1;
                    }
                }
            }
            prop_assert!(seen.iter().all(|times| *times == 1));
        }
    }

    #[test]
    fn the_smaller_operand_stays_when_that_moves_less() {
        let extent = Extent { m: 100_000, k: 1000, n: 500, element_bytes: [4, 4, 4] };
        assert_eq!(extent.blocks(64 << 20).map(|blocks| blocks.stays), Some(Stays::B));
        let extent = Extent { m: 500, k: 1000, n: 100_000, element_bytes: [4, 4, 4] };
        assert_eq!(extent.blocks(64 << 20).map(|blocks| blocks.stays), Some(Stays::A));
        assert_eq!(extent.blocks(4000), None);
    }
}
