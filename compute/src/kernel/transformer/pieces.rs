//! The pieces in which a thread computes its tiles of a product: each so short that a cancelled pass ends soon, and so long
//! that looking at the flag between them costs nothing.

use crate::Isa;
use crate::kernel::simd::LANES;
use std::ops::Range;

/// Multiply-adds of a piece, at most: some milliseconds of one thread. A single tile is never cut.
fn multiply_adds(isa: Isa) -> usize {
    match isa {
        // One to two thousand million per second, a tenth of what the others compute.
        Isa::Plain => 1 << 25,
        _ => 1 << 28,
    }
}

/// Tiles of a piece, for products of `rows` rows of `k` elements.
pub(super) fn tiles_at_once(isa: Isa, rows: usize, k: usize) -> usize {
    (multiply_adds(isa) / (rows * k * LANES).max(1)).max(1)
}

/// `tiles` in pieces of `at_once`, in order.
pub(super) fn pieces(tiles: Range<usize>, at_once: usize) -> impl Iterator<Item = Range<usize>> {
    let end = tiles.end;
    tiles.step_by(at_once).map(move |start| start..end.min(start + at_once))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_bounded_and_are_the_whole() {
        for isa in Isa::ALL {
            for (rows, k) in [(1, 64), (1, 4_096), (256, 4_096), (256, 14_336), (256, 1 << 20)] {
                let at_once = tiles_at_once(isa, rows, k);
                assert!(
                    at_once == 1 || at_once * rows * k * LANES <= multiply_adds(isa),
                    "{isa:?}: {rows} rows of {k}"
                );
                for tiles in [0..0, 3..4, 7..300] {
                    let cut: Vec<Range<usize>> = pieces(tiles.clone(), at_once).collect();
                    assert!(cut.iter().all(|piece| (1..=at_once).contains(&piece.len())));
                    assert_eq!(cut.into_iter().flatten().collect::<Vec<_>>(), tiles.collect::<Vec<_>>());
                }
            }
        }
    }
}
