//! Whether stored weights are numbers. Scales are looked at, not elements: that is as good and sooner.

use super::{GgmlType, dequantize};

/// Whether all elements, or all scales of blocks, are finite.
pub(crate) fn is_finite(ty: GgmlType, bytes: &[u8]) -> bool {
    let half = |at: &[u8]| u16::from_le_bytes([at[0], at[1]]) & 0x7c00 != 0x7c00;
    let mut blocks = bytes.chunks_exact(ty.block_bytes());
    match ty {
        GgmlType::F32 => blocks.all(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) & 0x7f80_0000 != 0x7f80_0000),
        GgmlType::BF16 => blocks.all(|b| u16::from_le_bytes([b[0], b[1]]) & 0x7f80 != 0x7f80),
        GgmlType::F16 | GgmlType::Q4_0 | GgmlType::Q5_0 | GgmlType::Q8_0 | GgmlType::IQ4NL | GgmlType::IQ4XS => {
            blocks.all(half)
        }
        GgmlType::Q4_1 | GgmlType::Q5_1 | GgmlType::Q4K | GgmlType::Q5K => blocks.all(|b| half(b) && half(&b[2..])),
        // Below this exponent no element overflows.
        GgmlType::MXFP4 => blocks.all(|b| b[0] < 253 || elements_are_finite(ty, b)),
        GgmlType::Q2K => blocks.all(|b| half(&b[80..]) && half(&b[82..])),
        GgmlType::Q3K | GgmlType::Q6K => blocks.all(|b| half(&b[b.len() - 2..])),
    }
}

/// Whether the elements of a block are finite.
fn elements_are_finite(ty: GgmlType, block: &[u8]) -> bool {
    let mut elements = vec![0.0; ty.block_len()];
    dequantize(ty, block, &mut elements).is_ok() && elements.iter().all(|element| element.is_finite())
}
