//! Which parts of a model file are somewhere: a set of (piece, part), as memory and as bytes. Pure.

use std::sync::Arc;

use pangea_compute::model::{Manifest, Wanted};

/// One part of one piece of a model file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartId {
    /// The piece's place in the manifest.
    pub piece: u32,
    /// The part of the piece, from 0.
    pub part: u32,
}

/// A set of parts of one model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartSet {
    /// For each piece, how many parts are before it; last, how many there are.
    before: Arc<[u32]>,
    /// One bit each, lowest first; those behind the last part are zero.
    bits: Vec<u8>,
}

impl PartSet {
    /// None of the model's parts.
    pub fn empty(manifest: &Manifest) -> PartSet {
        let mut before = vec![0u32];
        let mut parts = 0;
        for piece in manifest.pieces() {
            // A manifest's size bounds the number of its hashes far below this.
            parts += piece.parts().len() as u32;
            before.push(parts);
        }
        PartSet { before: before.into(), bits: vec![0; (parts as usize).div_ceil(8)] }
    }

    /// All of the model's parts.
    pub fn full(manifest: &Manifest) -> PartSet {
        let mut set = PartSet::empty(manifest);
        (0..set.parts()).for_each(|at| set.bits[at as usize / 8] |= 1 << (at % 8));
        set
    }

    /// The set that a peer's bytes are; `None` where they are of another length or name parts that there are not.
    pub fn from_bytes(manifest: &Manifest, bytes: &[u8]) -> Option<PartSet> {
        let mut set = PartSet::full(manifest);
        if bytes.len() != set.bits.len() || bytes.iter().zip(&set.bits).any(|(byte, all)| byte & !all != 0) {
            return None;
        }
        set.bits.copy_from_slice(bytes);
        Some(set)
    }

    /// One bit for each part, in the manifest's order, lowest first.
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

    /// Whether all that is `wanted` is in it.
    pub fn holds(&self, manifest: &Manifest, wanted: &Wanted) -> bool {
        parts_of(manifest, wanted).all(|id| self.contains(id))
    }

    /// Bytes of the parts in it.
    pub fn bytes(&self, manifest: &Manifest) -> u64 {
        all_parts(manifest).filter(|id| self.contains(*id)).map(|id| part_bytes(manifest, id)).sum()
    }
}

/// Every part of the pieces that `wanted` needs, in the file's order: the header's first.
pub fn parts_of(manifest: &Manifest, wanted: &Wanted) -> impl Iterator<Item = PartId> {
    let pieces = manifest.select(wanted);
    pieces.into_iter().flat_map(|piece| parts_of_piece(manifest, piece))
}

fn all_parts(manifest: &Manifest) -> impl Iterator<Item = PartId> {
    (0..manifest.pieces().len()).flat_map(|piece| parts_of_piece(manifest, piece))
}

fn parts_of_piece(manifest: &Manifest, piece: usize) -> impl Iterator<Item = PartId> + use<> {
    let parts = manifest.pieces()[piece].parts().len() as u32;
    (0..parts).map(move |part| PartId { piece: piece as u32, part })
}

/// The length of a part; 0 for one that there is not.
pub fn part_bytes(manifest: &Manifest, id: PartId) -> u64 {
    let piece = manifest.pieces().get(id.piece as usize);
    piece.and_then(|piece| piece.part_range(id.part)).map_or(0, |range| range.end - range.start)
}
