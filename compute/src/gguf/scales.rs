//! Scales and minima as their types store them, unpacked: once, for the plain reference and for the packed layouts alike.
//!
//! Source: the block structures of ggml's `ggml-common.h`.

/// Q2_K: scale and minimum of 16 groups of 16, in the low and the high four bits of a byte each. `packed`: `[16]`.
pub(crate) fn q2_k(packed: &[u8]) -> [(u8, u8); 16] {
    std::array::from_fn(|j| (packed[j] & 15, packed[j] >> 4))
}

/// Q3_K: the scales of 16 groups of 16, 6 bits each, less 32. The low four bits of group `j` are a nibble of bytes 0–7, low
/// nibbles first; its upper two lie in bytes 8–11, those of four groups in a row at the same place. `packed`: `[12]`.
pub(crate) fn q3_k(packed: &[u8]) -> [i8; 16] {
    std::array::from_fn(|j| {
        let low = (packed[j % 8] >> (j / 8 * 4)) & 15;
        let upper = (packed[8 + j % 4] >> (j / 4 * 2)) & 3;
        (low | upper << 4) as i8 - 32
    })
}

/// Q4_K and Q5_K: scale and minimum of 8 groups of 32, 6 bits each. Four of each kind lie in the low bits of bytes 0–7; the
/// other four have their low nibbles in bytes 8–11 and their upper two bits on top of bytes 0–7. `packed`: `[12]`.
pub(crate) fn q4_k(packed: &[u8]) -> [(u8, u8); 8] {
    std::array::from_fn(|j| {
        if j < 4 {
            return (packed[j] & 63, packed[j + 4] & 63);
        }
        let (scale, min) = (packed[j + 4] & 15, packed[j + 4] >> 4);
        (scale | packed[j - 4] >> 6 << 4, min | packed[j] >> 6 << 4)
    })
}

/// IQ4_XS: the scales of 8 groups of 32, 6 bits each, less 32. Bytes 0–1 are a little-endian number of the upper two bits of each
/// group; bytes 2–5 hold the low four, low nibbles first. `packed`: `[6]`.
pub(crate) fn iq4_xs(packed: &[u8]) -> [i8; 8] {
    std::array::from_fn(|j| {
        let low = (packed[2 + j / 2] >> (j % 2 * 4)) & 15;
        let upper = (packed[j / 4] >> (j % 4 * 2)) & 3;
        (low | upper << 4) as i8 - 32
    })
}

/// MXFP4: half of a block's scale 2^(e − 127) (OCP Microscaling Formats 1.0, E8M0), since the values of
/// [`codebooks::MXFP4`](super::codebooks::MXFP4) are doubled. Exact; NaN for 255.
pub(crate) fn mxfp4(e: u8) -> f32 {
    match e {
        255 => f32::NAN,
        // Below the normal numbers.
        0 | 1 => f32::from_bits(0x0020_0000 << e),
        _ => f32::from_bits((u32::from(e) - 1) << 23),
    }
}
