//! The tiles of one step's products, which threads take piece by piece: a thread on a faster core, or on one that nothing
//! else uses, takes more of them. Which thread computes a tile changes no bit of it.

use crate::Isa;
use crate::kernel::quant::Matrix;
use crate::kernel::simd::LANES;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Multiply-adds of a piece, at least: a microsecond or more, beside which taking the piece is nothing.
const LEAST_MULTIPLY_ADDS: usize = 1 << 15;

/// Multiply-adds of a piece, at most: some milliseconds of one thread, after which a cancelled pass ends. A tile is never cut.
fn most_multiply_adds(isa: Isa) -> usize {
    match isa {
        // One to two thousand million per second, a tenth of what the others compute.
        Isa::Plain => 1 << 24,
        _ => 1 << 26,
    }
}

/// Tiles of a piece, at least and at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PieceLimits {
    least: usize,
    most: usize,
}

impl PieceLimits {
    /// For tiles whose products with `rows` rows of `k` elements are computed; k counts all matrices that share a tile's number.
    pub(super) fn new(isa: Isa, rows: usize, k: usize) -> PieceLimits {
        let tile = (rows * k * LANES).max(1);
        let most = (most_multiply_adds(isa) / tile).max(1);
        PieceLimits { least: LEAST_MULTIPLY_ADDS.div_ceil(tile).min(most), most }
    }
}

/// How many of a step's tiles threads have taken.
#[derive(Debug, Default)]
pub(super) struct TakenTiles(AtomicUsize);

impl TakenTiles {
    /// The next piece of `total` tiles for one of `threads` threads; `None` once all are taken. Pieces shrink with what is
    /// left, so that threads end together (guided self-scheduling; Polychronopoulos & Kuck 1987): half of an equal share.
    pub(super) fn take(&self, total: usize, threads: usize, limits: PieceLimits) -> Option<Range<usize>> {
        let piece = |from: usize| {
            let left = total - from;
            from..from + left.div_ceil(2 * threads).clamp(limits.least, limits.most).min(left)
        };
        let next = |from: usize| (from < total).then(|| piece(from).end);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).ok().map(piece)
    }
}

/// The tiles of several matrices laid one after the other.
pub(super) fn tiles_of<'a>(matrices: impl IntoIterator<Item = &'a Matrix>) -> usize {
    matrices.into_iter().map(Matrix::tiles).sum()
}

/// A piece of [`tiles_of`] these matrices, as the tiles of each.
pub(super) fn split<'a>(
    piece: &Range<usize>,
    matrices: impl IntoIterator<Item = &'a Matrix>,
) -> impl Iterator<Item = Range<usize>> {
    let mut before = 0;
    matrices.into_iter().map(move |w| {
        let within = |at: usize| at.saturating_sub(before).min(w.tiles());
        let part = within(piece.start)..within(piece.end);
        before += w.tiles();
        part
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_the_whole_bounded_and_shrinking() {
        for isa in Isa::ALL {
            for (rows, k) in [(1, 64), (1, 4_096), (9, 576), (256, 4_096), (256, 14_336), (256, 1 << 20)] {
                let limits = PieceLimits::new(isa, rows, k);
                let multiply_adds = limits.most * rows * k * LANES;
                assert!(limits.most == 1 || multiply_adds <= most_multiply_adds(isa), "{isa:?}: {rows} rows of {k}");
                for (total, threads) in [(0, 2), (1, 3), (36, 2), (300, 1), (300, 8)] {
                    let taken = TakenTiles::default();
                    let pieces: Vec<Range<usize>> = std::iter::from_fn(|| taken.take(total, threads, limits)).collect();
                    assert!(pieces.is_sorted_by(|a, b| a.end == b.start && a.len() >= b.len()), "{pieces:?}");
                    assert!(pieces.iter().all(|piece| (1..=limits.most).contains(&piece.len())), "{pieces:?}");
                    assert_eq!(pieces.iter().map(Range::len).sum::<usize>(), total);
                    // What the last threads wait for each other is one short piece.
                    assert!(pieces.last().is_none_or(|last| last.len() <= limits.least.max(1)), "{pieces:?}");
                }
            }
        }
    }

    #[test]
    fn threads_that_take_at_the_same_time_take_every_tile_once() {
        // So many that the threads do meet.
        const TILES: usize = 4_000_000;
        let (taken, limits) = (TakenTiles::default(), PieceLimits { least: 1, most: 1 });
        let start = std::sync::Barrier::new(3);
        let count: usize = std::thread::scope(|scope| {
            let take = || {
                start.wait();
                std::iter::from_fn(|| taken.take(TILES, 3, limits)).map(|piece| piece.len()).sum::<usize>()
            };
            let threads: Vec<_> = (0..3).map(|_| scope.spawn(take)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(count, TILES);
    }
}
