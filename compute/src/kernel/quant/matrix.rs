//! A packed weight matrix: a place in an arena that many matrices share, with type and shape.

use super::layout::{
    BLOCK, Groups, GroupsOfIq4, Halves, HalvesMin, Layout, TILE, block_bytes, packed_bytes, tile_bytes, tiles,
};
use crate::gguf::{GgmlType, scales};
use crate::{Buffer, Error};
use half::{bf16, f16};
use std::sync::Arc;

/// A matrix `[rows, k]`, packed by [`pack`](super::pack()).
#[derive(Clone, Debug)]
pub(crate) struct Matrix {
    ty: GgmlType,
    rows: usize,
    k: usize,
    arena: Arc<Buffer>,
    /// Offset of the first tile in the arena.
    start: usize,
    tile_bytes: usize,
}

impl Matrix {
    /// The matrix packed at `start` in `arena`.
    ///
    /// # Errors
    /// [`Error::Invalid`] where `k` is not whole blocks of the type or the arena is too short.
    pub(crate) fn new(ty: GgmlType, rows: usize, k: usize, arena: Arc<Buffer>, start: usize) -> Result<Matrix, Error> {
        let end = packed_bytes(ty, rows, k).and_then(|bytes| bytes.checked_add(start));
        match (end, tile_bytes(ty, k)) {
            (Some(end), Some(tile_bytes)) if end <= arena.len() => Ok(Matrix { ty, rows, k, arena, start, tile_bytes }),
            _ => Err(Error::invalid(
                "packed matrix",
                format!("{rows} x {k} in {ty} is not {} bytes at {start}, or k is not whole blocks", arena.len()),
            )),
        }
    }

    /// The type that the matrix was packed from.
    pub(crate) fn ty(&self) -> GgmlType {
        self.ty
    }

    /// Output features.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    pub(crate) fn k(&self) -> usize {
        self.k
    }

    /// The number of tiles; the last one may be partly filled.
    pub(crate) fn tiles(&self) -> usize {
        tiles(self.rows)
    }

    /// Bytes of all tiles.
    pub(crate) fn size_bytes(&self) -> usize {
        self.tiles() * self.tile_bytes
    }

    /// Whether products of this matrix take activations as floats, not quantised.
    pub(crate) fn takes_floats(&self) -> bool {
        matches!(Layout::of(self.ty), Layout::Float { .. })
    }

    pub(super) fn tile_bytes(&self) -> usize {
        self.tile_bytes
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.arena.as_slice()[self.start..self.start + self.size_bytes()]
    }

    /// The elements of one row, exactly as [`dequantize`](crate::gguf::dequantize) gives them. `out`: `[k]`.
    ///
    /// # Panics
    /// Where the row does not exist or `out` has another length.
    pub(crate) fn unpack_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.k, "row {row} of {} x {} into {}", self.rows, self.k, out.len());
        let (tile, lane) = (row / TILE, row % TILE);
        let tile = &self.bytes()[tile * self.tile_bytes..][..self.tile_bytes];
        match (Layout::of(self.ty), self.ty) {
            (Layout::Quantized { bits, offset, codebook, head, blocks }, ty) => {
                let records = tile.chunks_exact(head + blocks * block_bytes(bits));
                for (record, out) in records.zip(out.chunks_exact_mut(BLOCK * blocks)) {
                    let (head, packed) = record.split_at(head);
                    let packed = packed.chunks_exact(block_bytes(bits));
                    for (block, (packed, out)) in packed.zip(out.chunks_exact_mut(BLOCK)).enumerate() {
                        let halves = block_scales(ty, head, block, lane);
                        for (j, out) in out.iter_mut().enumerate() {
                            let (d, m) = halves[j / 16];
                            let code = code(bits, packed, lane, j);
                            let value = codebook.map_or(code - offset, |values| i32::from(values[code as usize]));
                            *out = d * value as f32 + m;
                        }
                    }
                }
            }
            (Layout::Float { width }, ty) => {
                for (element, out) in tile.chunks_exact(width).skip(lane).step_by(TILE).zip(out) {
                    *out = match (ty, element) {
                        (GgmlType::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
                        (GgmlType::F16, _) => half_at(element, 0),
                        _ => bf16::from_le_bytes([element[0], element[1]]).to_f32(),
                    };
                }
            }
        }
    }
}

fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// Scale and offset for the two halves of a block of one row. (Adding −0 changes nothing, not even a zero's sign.)
fn block_scales(ty: GgmlType, head: &[u8], block: usize, lane: usize) -> [(f32, f32); 2] {
    if ty == GgmlType::MXFP4 {
        return [(scales::mxfp4(head[lane]), -0.0); 2];
    }
    let d = half_at(head, 2 * lane);
    match ty {
        GgmlType::Q4_1 | GgmlType::Q5_1 => [(d, half_at(head, 2 * (TILE + lane))); 2],
        GgmlType::Q4K | GgmlType::Q5K => {
            let at = Groups::integers(block) + lane;
            let (scale, min) = (f32::from(head[at]), f32::from(head[at + TILE]));
            [(d * scale, -(half_at(head, 2 * (TILE + lane)) * min)); 2]
        }
        GgmlType::IQ4XS => [(d * f32::from(head[GroupsOfIq4::integers(block) + lane] as i8), -0.0); 2],
        GgmlType::Q2K => [0, 1].map(|half| {
            let both = head[HalvesMin::integers(2 * block + half) + lane];
            (d * f32::from(both & 15), -(half_at(head, 2 * (TILE + lane)) * f32::from(both >> 4)))
        }),
        GgmlType::Q3K | GgmlType::Q6K => {
            let scale = |half: usize| d * f32::from(head[Halves::weights(2 * block + half) + lane] as i8);
            [(scale(0), -0.0), (scale(1), -0.0)]
        }
        _ => [(d, -0.0); 2],
    }
}

/// The code of element `j` of a block, signed where it has 8 bits.
fn code(bits: usize, packed: &[u8], lane: usize, j: usize) -> i32 {
    let byte = |vector: usize| packed[vector * 64 + lane * 4 + j % 4];
    if bits == 8 {
        return i32::from(byte(j / 4) as i8);
    }
    let (high, vector) = (j / 16, j % 16 / 4);
    if bits < 4 {
        let low = (byte(vector / 2) >> (4 * high + vector % 2 * 2)) & 3;
        let third = if bits == 3 { (byte(2) >> (4 * high + vector)) & 1 } else { 0 };
        return i32::from(low | third << 2);
    }
    let low = (byte(vector) >> (4 * high)) & 15;
    let upper = match bits {
        5 => (byte(4) >> (4 * high + vector)) & 1,
        6 => (byte(4 + vector / 2) >> (4 * high + vector % 2 * 2)) & 3,
        _ => 0,
    };
    i32::from(low | upper << 4)
}
