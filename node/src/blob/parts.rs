//! The parts of a model file, as sets over its manifest. [`pangea_control::blob`] decides which part is requested from which
//! peer.

use pangea_compute::model::{Manifest, Wanted};
pub use pangea_control::blob::parts::{PartId, PartSet};

/// Number of parts of each piece, in the manifest's order. The limit on a manifest's size keeps their sum far
/// below `u32::MAX`.
pub fn part_counts(manifest: &Manifest) -> impl Iterator<Item = u32> {
    manifest.pieces().iter().map(|piece| piece.parts().len() as u32)
}

/// Whether `set` contains every `wanted` part.
pub fn holds(set: &PartSet, manifest: &Manifest, wanted: &Wanted) -> bool {
    parts_of(manifest, wanted).all(|id| set.contains(id))
}

/// Bytes of the parts in `set`.
pub fn set_bytes(set: &PartSet, manifest: &Manifest) -> u64 {
    all_parts(manifest).filter(|id| set.contains(*id)).map(|id| part_bytes(manifest, id)).sum()
}

/// Every part of the pieces that `wanted` needs, in the file's order; the header's come first.
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

/// Length of a part in bytes; 0 if the part does not exist.
pub fn part_bytes(manifest: &Manifest, id: PartId) -> u64 {
    let piece = manifest.pieces().get(id.piece as usize);
    piece.and_then(|piece| piece.part_range(id.part)).map_or(0, |range| range.end - range.start)
}
