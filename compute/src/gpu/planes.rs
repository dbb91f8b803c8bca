//! How blocks of weights lie on a GPU: the codes of 32 weights, their higher bits, and their scales, each in a plane of its own, so
//! that threads side by side read words side by side. Every format takes about as many bytes as in its file.
//!
//! A nibble, pair or bit of weight e of a block of 32, all four consecutive weights of a quad at the same place of a byte each:
//! nibbles in word e / 8, byte e % 4, the low one where e % 8 < 4; pairs in word e / 16, byte e % 4, at bit 2 · (e % 16 / 4); bits
//! in bit e. What becomes of a weight is written in `shaders/formats/`.

use crate::gguf::{GgmlType, scales};

/// Weights of a block on a GPU.
pub(super) const BLOCK: usize = 32;

/// Blocks that share what a format keeps for 256 weights. Rows begin at any block; what is written at once begins at a multiple
/// of these.
pub(super) const BLOCKS_AT_ONCE: usize = 8;

/// Planes of a format, at most.
pub(super) const PLANES: usize = 4;

/// Bytes of eight blocks in each plane.
pub(super) fn bytes_of_eight(ty: GgmlType) -> [usize; PLANES] {
    // Of one block: a word is 32, two bytes are 16. Of all eight together: a word is 4, two bytes are 2.
    match ty {
        GgmlType::F32 => [1024, 0, 0, 0],
        GgmlType::F16 | GgmlType::BF16 => [512, 0, 0, 0],
        GgmlType::Q4_0 | GgmlType::IQ4NL | GgmlType::MXFP4 => [128, 16, 0, 0],
        GgmlType::Q4_1 => [128, 32, 0, 0],
        GgmlType::Q5_0 => [128, 32, 16, 0],
        GgmlType::Q5_1 => [128, 32, 32, 0],
        GgmlType::Q8_0 => [256, 16, 0, 0],
        GgmlType::IQ4XS => [128, 8, 2, 0],
        GgmlType::Q2K => [64, 16, 4, 0],
        GgmlType::Q3K => [64, 32, 16, 2],
        GgmlType::Q4K => [128, 16, 4, 0],
        GgmlType::Q5K => [128, 32, 16, 4],
        GgmlType::Q6K => [128, 64, 16, 2],
    }
}

/// Whether weights of this type are floats, whose products take activations as they are.
pub(super) fn is_float(ty: GgmlType) -> bool {
    matches!(ty, GgmlType::F32 | GgmlType::F16 | GgmlType::BF16)
}

/// Blocks of a row of `k` weights.
pub(super) fn blocks_of(k: usize) -> usize {
    k.div_ceil(BLOCK)
}

/// Where each plane of `blocks` blocks begins, in bytes, and the end.
pub(super) fn offsets(ty: GgmlType, blocks: usize) -> [usize; PLANES + 1] {
    let mut offsets = [0; PLANES + 1];
    for (index, bytes) in bytes_of_eight(ty).into_iter().enumerate() {
        // A format of 256 weights has whole eights; the others have no plane of less than two bytes a block.
        offsets[index + 1] = offsets[index] + (blocks * bytes).div_ceil(8).next_multiple_of(16);
    }
    offsets
}

/// Appends `rows`, whole rows of `k` weights as a file stores them, to the planes.
pub(super) fn repack(ty: GgmlType, k: usize, rows: &[u8], planes: &mut [Vec<u8>; PLANES]) {
    let row_bytes = k / ty.block_len() * ty.block_bytes();
    if row_bytes == 0 {
        return;
    }
    for row in rows.chunks_exact(row_bytes) {
        match ty {
            GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => {
                planes[0].extend_from_slice(row);
                let padding = (blocks_of(k) * BLOCK - k) * ty.block_bytes();
                planes[0].resize(planes[0].len() + padding, 0);
            }
            _ => row.chunks_exact(ty.block_bytes()).for_each(|block| repack_block(ty, block, planes)),
        }
    }
}

/// One block of a file.
fn repack_block(ty: GgmlType, b: &[u8], planes: &mut [Vec<u8>; PLANES]) {
    let [p0, p1, p2, p3] = planes;
    match ty {
        // Whole rows.
        GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => {}
        GgmlType::Q4_0 | GgmlType::IQ4NL => {
            p0.extend(nibbles(&split_nibbles(&b[2..])));
            p1.extend(&b[..2]);
        }
        GgmlType::MXFP4 => {
            p0.extend(nibbles(&split_nibbles(&b[1..])));
            // The lower half of a power of two is zero.
            p1.extend(&scales::mxfp4(b[0]).to_le_bytes()[2..]);
        }
        GgmlType::Q4_1 => {
            p0.extend(nibbles(&split_nibbles(&b[4..])));
            p1.extend(&b[..4]);
        }
        GgmlType::Q5_0 => {
            p0.extend(nibbles(&split_nibbles(&b[6..])));
            p1.extend(&b[2..6]);
            p2.extend(&b[..2]);
        }
        GgmlType::Q5_1 => {
            p0.extend(nibbles(&split_nibbles(&b[8..])));
            p1.extend(&b[4..8]);
            p2.extend(&b[..4]);
        }
        GgmlType::Q8_0 => {
            p0.extend(&b[2..]);
            p1.extend(&b[..2]);
        }
        GgmlType::IQ4XS => {
            for (group, scale) in scales::iq4_xs(&b[2..8]).into_iter().enumerate() {
                p0.extend(nibbles(&split_nibbles(&b[8 + 16 * group..])));
                p1.push(scale as u8);
            }
            p2.extend(&b[..2]);
        }
        GgmlType::Q2K => {
            for group in 0..8 {
                let codes = |e: usize| (b[16 + group / 4 * 32 + e] >> (group % 4 * 2)) & 3;
                p0.extend(pairs(&std::array::from_fn(codes)));
            }
            p1.extend(&b[..16]);
            p2.extend(&b[80..84]);
        }
        GgmlType::Q3K => {
            for group in 0..8 {
                let codes = |e: usize| (b[32 + group / 4 * 32 + e] >> (group % 4 * 2)) & 3;
                p0.extend(pairs(&std::array::from_fn(codes)));
                p1.extend(bits(&std::array::from_fn(|e| (b[e] >> group) & 1)));
            }
            p2.extend(scales::q3_k(&b[96..108]).map(|scale| scale as u8));
            p3.extend(&b[108..110]);
        }
        GgmlType::Q4K => {
            for (group, (scale, min)) in scales::q4_k(&b[4..16]).into_iter().enumerate() {
                let codes = |e: usize| (b[16 + group / 2 * 32 + e] >> (group % 2 * 4)) & 15;
                p0.extend(nibbles(&std::array::from_fn(codes)));
                p1.extend([scale, min]);
            }
            p2.extend(&b[..4]);
        }
        GgmlType::Q5K => {
            for (group, (scale, min)) in scales::q4_k(&b[4..16]).into_iter().enumerate() {
                let codes = |e: usize| (b[48 + group / 2 * 32 + e] >> (group % 2 * 4)) & 15;
                p0.extend(nibbles(&std::array::from_fn(codes)));
                p1.extend(bits(&std::array::from_fn(|e| (b[16 + e] >> group) & 1)));
                p2.extend([scale, min]);
            }
            p3.extend(&b[..4]);
        }
        GgmlType::Q6K => {
            for group in 0..8 {
                let (half, quarter) = (group / 4, group % 4);
                let low = |e: usize| (b[half * 64 + quarter % 2 * 32 + e] >> (quarter / 2 * 4)) & 15;
                let high = |e: usize| (b[128 + half * 32 + e] >> (quarter * 2)) & 3;
                p0.extend(nibbles(&std::array::from_fn(low)));
                p1.extend(pairs(&std::array::from_fn(high)));
            }
            p2.extend(&b[192..208]);
            p3.extend(&b[208..210]);
        }
    }
}

/// The codes of a block whose first sixteen are low nibbles.
fn split_nibbles(qs: &[u8]) -> [u8; BLOCK] {
    std::array::from_fn(|e| if e < 16 { qs[e] & 15 } else { qs[e - 16] >> 4 })
}

fn nibbles(q: &[u8; BLOCK]) -> [u8; 16] {
    std::array::from_fn(|at| q[at / 4 * 8 + at % 4] | (q[at / 4 * 8 + 4 + at % 4] << 4))
}

fn pairs(q: &[u8; BLOCK]) -> [u8; 8] {
    std::array::from_fn(|at| {
        let of = |quad: usize| q[at / 4 * 16 + quad * 4 + at % 4] << (2 * quad);
        of(0) | of(1) | of(2) | of(3)
    })
}

fn bits(q: &[u8; BLOCK]) -> [u8; 4] {
    std::array::from_fn(|at| (0..8).fold(0, |byte, bit| byte | (q[8 * at + bit] << bit)))
}
