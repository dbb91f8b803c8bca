//! Sets of small indices, and the set of a job's waiting tiles by band and by panel.
//! Costs and workers are unknown here.

use super::Tile;

const WORD: usize = u64::BITS as usize;

/// A set of indices below a fixed bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Indices {
    words: Vec<u64>,
    len: u32,
}

impl Indices {
    pub(super) fn new(bound: u32) -> Self {
        Self { words: vec![0; (bound as usize).div_ceil(WORD)], len: 0 }
    }

    pub(super) fn len(&self) -> u32 {
        self.len
    }

    pub(super) fn contains(&self, index: u32) -> bool {
        self.words[index as usize / WORD] >> (index as usize % WORD) & 1 == 1
    }

    /// Adds an index; returns whether it was new.
    pub(super) fn insert(&mut self, index: u32) -> bool {
        let new = !self.contains(index);
        self.words[index as usize / WORD] |= 1 << (index as usize % WORD);
        self.len += u32::from(new);
        new
    }

    /// Removes an index; returns whether it was present.
    pub(super) fn remove(&mut self, index: u32) -> bool {
        let old = self.contains(index);
        self.words[index as usize / WORD] &= !(1 << (index as usize % WORD));
        self.len -= u32::from(old);
        old
    }

    /// The indices in ascending order.
    pub(super) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        ones(self.words.iter().copied())
    }

    /// The indices in descending order.
    pub(super) fn iter_down(&self) -> impl Iterator<Item = u32> + '_ {
        self.words.iter().enumerate().rev().flat_map(|(at, &word)| {
            let mut rest = word;
            std::iter::from_fn(move || {
                let bit = rest.checked_ilog2()?;
                rest &= !(1 << bit);
                Some((at * WORD) as u32 + bit)
            })
        })
    }

    /// The indices in both sets, in ascending order.
    pub(super) fn iter_both<'a>(&'a self, other: &'a Indices) -> impl Iterator<Item = u32> + 'a {
        ones(self.words.iter().zip(&other.words).map(|(x, y)| x & y))
    }

    /// Number of indices in both sets.
    pub(super) fn count_both(&self, other: &Indices) -> u32 {
        self.words.iter().zip(&other.words).map(|(x, y)| (x & y).count_ones()).sum()
    }
}

fn ones(words: impl Iterator<Item = u64>) -> impl Iterator<Item = u32> {
    words.enumerate().flat_map(|(at, word)| {
        let mut rest = word;
        std::iter::from_fn(move || {
            let bit = (rest != 0).then(|| rest.trailing_zeros())?;
            rest &= rest - 1;
            Some((at * WORD) as u32 + bit)
        })
    })
}

/// The tiles of a job that wait to be started.
#[derive(Debug)]
pub(super) struct TileSet {
    by_band: Vec<Indices>,
    by_panel: Vec<Indices>,
    len: u32,
}

impl TileSet {
    /// All tiles of this many bands and panels.
    pub(super) fn full(bands: u32, panels: u32) -> Self {
        let all = |bound: u32| {
            let mut indices = Indices::new(bound);
            (0..bound).for_each(|index| {
                indices.insert(index);
            });
            indices
        };
        Self {
            by_band: vec![all(panels); bands as usize],
            by_panel: vec![all(bands); panels as usize],
            len: bands * panels,
        }
    }

    /// The tiles of each band with the panel of the same index.
    pub(super) fn paired(bands: u32) -> Self {
        let one = |index: u32| {
            let mut indices = Indices::new(bands);
            indices.insert(index);
            indices
        };
        let lines: Vec<Indices> = (0..bands).map(one).collect();
        Self { by_band: lines.clone(), by_panel: lines, len: bands }
    }

    pub(super) fn len(&self) -> u32 {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn contains(&self, tile: Tile) -> bool {
        self.by_band[tile.band as usize].contains(tile.panel)
    }

    pub(super) fn insert(&mut self, tile: Tile) {
        if self.by_band[tile.band as usize].insert(tile.panel) {
            self.by_panel[tile.panel as usize].insert(tile.band);
            self.len += 1;
        }
    }

    pub(super) fn remove(&mut self, tile: Tile) {
        if self.by_band[tile.band as usize].remove(tile.panel) {
            self.by_panel[tile.panel as usize].remove(tile.band);
            self.len -= 1;
        }
    }

    /// Panels whose tile with this band waits.
    pub(super) fn of_band(&self, band: u32) -> &Indices {
        &self.by_band[band as usize]
    }

    /// Bands whose tile with this panel waits.
    pub(super) fn of_panel(&self, panel: u32) -> &Indices {
        &self.by_panel[panel as usize]
    }
}
