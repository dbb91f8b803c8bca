//! A set of parts of a model file, as (piece, part), in memory and as bytes.

use std::sync::Arc;

/// One part of one piece of a model file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartId {
    /// Index of the piece in the manifest.
    pub piece: u32,
    /// Index of the part within the piece.
    pub part: u32,
}

/// A set of parts of one model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartSet {
    /// For each piece, the number of parts before it; the last element is the total.
    before: Arc<[u32]>,
    /// One bit per part, lowest first; bits after the last part are zero.
    bits: Vec<u8>,
}

impl PartSet {
    /// The empty set for a model whose pieces have these numbers of parts.
    pub fn empty(part_counts: impl IntoIterator<Item = u32>) -> PartSet {
        let mut before = vec![0u32];
        let mut parts = 0;
        for count in part_counts {
            parts += count;
            before.push(parts);
        }
        PartSet { before: before.into(), bits: vec![0; (parts as usize).div_ceil(8)] }
    }

    /// The full set for a model whose pieces have these numbers of parts.
    pub fn full(part_counts: impl IntoIterator<Item = u32>) -> PartSet {
        let mut set = PartSet::empty(part_counts);
        (0..set.parts()).for_each(|at| set.bits[at as usize / 8] |= 1 << (at % 8));
        set
    }

    /// Parses a peer's set ([`PartSet::as_bytes`]) for a model whose pieces have these numbers of parts; `None` if
    /// the bytes have another length or name a part that the model does not have.
    pub fn from_bytes(part_counts: impl IntoIterator<Item = u32>, bytes: &[u8]) -> Option<PartSet> {
        let mut set = PartSet::full(part_counts);
        if bytes.len() != set.bits.len() || bytes.iter().zip(&set.bits).any(|(byte, all)| byte & !all != 0) {
            return None;
        }
        set.bits.copy_from_slice(bytes);
        Some(set)
    }

    /// One bit per part, in the manifest's order, lowest first.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bits
    }

    fn parts(&self) -> u32 {
        self.before.last().copied().unwrap_or(0)
    }

    fn at(&self, id: PartId) -> Option<u32> {
        let before = *self.before.get(id.piece as usize)?;
        let end = *self.before.get(id.piece as usize + 1)?;
        before.checked_add(id.part).filter(|at| *at < end)
    }

    /// Whether the part is in it; one that there is not never is.
    pub fn contains(&self, id: PartId) -> bool {
        self.at(id).is_some_and(|at| self.bits[at as usize / 8] & 1 << (at % 8) != 0)
    }

    /// Takes a part in. One that there is not changes nothing.
    pub fn insert(&mut self, id: PartId) {
        if let Some(at) = self.at(id) {
            self.bits[at as usize / 8] |= 1 << (at % 8);
        }
    }

    /// Takes a part out.
    pub fn remove(&mut self, id: PartId) {
        if let Some(at) = self.at(id) {
            self.bits[at as usize / 8] &= !(1 << (at % 8));
        }
    }

    /// Whether it is the whole model.
    pub fn is_full(&self) -> bool {
        self.bits.iter().map(|byte| byte.count_ones()).sum::<u32>() == self.parts()
    }
}
