//! The meaning of a block of each storage type, written as plainly as possible: the reference for faster code.
//!
//! Source: the block structures of ggml's `ggml-common.h`.

use super::{GgmlType, codebooks, scales};
use crate::Error;
use half::{bf16, f16};

/// The elements of `bytes` as f32, in order; products and sums are rounded separately, never fused.
///
/// # Errors
/// [`Error::Invalid`] where `bytes` is not whole blocks or `out` does not have the blocks' length.
pub fn dequantize(ty: GgmlType, bytes: &[u8], out: &mut [f32]) -> Result<(), Error> {
    let (len, size) = (ty.block_len(), ty.block_bytes());
    if !bytes.len().is_multiple_of(size) || bytes.len() / size * len != out.len() {
        return Err(Error::invalid(
            "dequantize",
            format!(
                "{} bytes of {ty} are not the {} elements asked for: a block of {len} takes {size} bytes",
                bytes.len(),
                out.len()
            ),
        ));
    }
    let block = match ty {
        GgmlType::F32 => |b: &[u8], out: &mut [f32]| out[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
        GgmlType::F16 => |b: &[u8], out: &mut [f32]| out[0] = half_at(b, 0),
        GgmlType::BF16 => |b: &[u8], out: &mut [f32]| out[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32(),
        GgmlType::Q4_0 => q4_0,
        GgmlType::Q4_1 => q4_1,
        GgmlType::Q5_0 => q5_0,
        GgmlType::Q5_1 => q5_1,
        GgmlType::Q8_0 => q8_0,
        GgmlType::IQ4NL => iq4_nl,
        GgmlType::IQ4XS => iq4_xs,
        GgmlType::MXFP4 => mxfp4,
        GgmlType::Q2K => q2_k,
        GgmlType::Q3K => q3_k,
        GgmlType::Q4K => q4_k,
        GgmlType::Q5K => q5_k,
        GgmlType::Q6K => q6_k,
    };
    for (bytes, out) in bytes.chunks_exact(size).zip(out.chunks_exact_mut(len)) {
        block(bytes, out);
    }
    Ok(())
}

fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// The 4-bit value of element `j` of 32: the first 16 are the low nibbles.
fn nibble(qs: &[u8], j: usize) -> u8 {
    if j < 16 { qs[j] & 15 } else { qs[j - 16] >> 4 }
}

/// The fifth bit of element `j`, bit `j` of a little-endian u32, shifted to bit 4.
fn fifth(qh: &[u8], j: usize) -> u8 {
    ((qh[j / 8] >> (j % 8)) & 1) << 4
}

/// d f16, 16 bytes of nibbles.
fn q4_0(b: &[u8], out: &mut [f32]) {
    let d = half_at(b, 0);
    for (j, out) in out.iter_mut().enumerate() {
        *out = d * (f32::from(nibble(&b[2..], j)) - 8.0);
    }
}

/// d f16, m f16, 16 bytes of nibbles.
fn q4_1(b: &[u8], out: &mut [f32]) {
    let (d, m) = (half_at(b, 0), half_at(b, 2));
    for (j, out) in out.iter_mut().enumerate() {
        *out = d * f32::from(nibble(&b[4..], j)) + m;
    }
}

/// d f16, 4 bytes of fifth bits, 16 bytes of nibbles.
fn q5_0(b: &[u8], out: &mut [f32]) {
    let d = half_at(b, 0);
    for (j, out) in out.iter_mut().enumerate() {
        *out = d * (f32::from(nibble(&b[6..], j) | fifth(&b[2..], j)) - 16.0);
    }
}

/// d f16, m f16, 4 bytes of fifth bits, 16 bytes of nibbles.
fn q5_1(b: &[u8], out: &mut [f32]) {
    let (d, m) = (half_at(b, 0), half_at(b, 2));
    for (j, out) in out.iter_mut().enumerate() {
        *out = d * f32::from(nibble(&b[8..], j) | fifth(&b[4..], j)) + m;
    }
}

/// d f16, 32 signed bytes.
fn q8_0(b: &[u8], out: &mut [f32]) {
    let d = half_at(b, 0);
    for (q, out) in b[2..].iter().zip(out) {
        *out = d * f32::from(*q as i8);
    }
}

/// d f16, 16 bytes of nibbles.
fn iq4_nl(b: &[u8], out: &mut [f32]) {
    let d = half_at(b, 0);
    for (j, out) in out.iter_mut().enumerate() {
        *out = d * f32::from(codebooks::IQ4[usize::from(nibble(&b[2..], j))]);
    }
}

/// d f16, 6 bytes of scales, 128 bytes of nibbles: 16 bytes for each group.
fn iq4_xs(b: &[u8], out: &mut [f32]) {
    let d = half_at(b, 0);
    for ((group, out), scale) in out.chunks_exact_mut(32).enumerate().zip(scales::iq4_xs(&b[2..8])) {
        for (j, out) in out.iter_mut().enumerate() {
            let value = codebooks::IQ4[usize::from(nibble(&b[8 + 16 * group..], j))];
            *out = (d * f32::from(scale)) * f32::from(value);
        }
    }
}

/// An exponent of 8 bits, 16 bytes of nibbles.
fn mxfp4(b: &[u8], out: &mut [f32]) {
    let d = scales::mxfp4(b[0]);
    for (j, out) in out.iter_mut().enumerate() {
        *out = d * f32::from(codebooks::MXFP4[usize::from(nibble(&b[1..], j))]);
    }
}

/// 16 bytes of scales and minima, 64 bytes of codes, d f16, dmin f16. Of a half of 128 elements, quarter `t` has its codes in
/// 32 bytes at `2·t`.
fn q2_k(b: &[u8], out: &mut [f32]) {
    let (d, dmin) = (half_at(b, 80), half_at(b, 82));
    for ((group, out), (scale, min)) in out.chunks_exact_mut(16).enumerate().zip(scales::q2_k(&b[..16])) {
        let (scale, min) = (f32::from(scale), f32::from(min));
        let qs = &b[16 + group / 8 * 32 + group % 2 * 16..];
        for (j, out) in out.iter_mut().enumerate() {
            *out = (d * scale) * f32::from((qs[j] >> (group % 8 / 2 * 2)) & 3) - dmin * min;
        }
    }
}

/// 32 bytes of third bits (bit `g` of byte `j` belongs to element `32·g + j`), 64 bytes of low two bits, 12 bytes of scales, d f16.
/// Of a half of 128 elements, quarter `t` has its low bits in 32 bytes at `2·t`.
fn q3_k(b: &[u8], out: &mut [f32]) {
    let d = half_at(b, 108);
    let scales = scales::q3_k(&b[96..108]);
    for (i, out) in out.iter_mut().enumerate() {
        let (group, j) = (i / 32, i % 32);
        let low = (b[32 + group / 4 * 32 + j] >> (group % 4 * 2)) & 3;
        let third = (b[j] >> group) & 1;
        *out = (d * f32::from(scales[i / 16])) * (f32::from(low | third << 2) - 4.0);
    }
}

/// d f16, dmin f16, 12 bytes of scales and minima, 128 bytes of nibbles: 32 bytes for each pair of groups.
fn q4_k(b: &[u8], out: &mut [f32]) {
    let (d, dmin) = (half_at(b, 0), half_at(b, 2));
    for ((group, out), (scale, min)) in out.chunks_exact_mut(32).enumerate().zip(scales::q4_k(&b[4..16])) {
        let (scale, min) = (f32::from(scale), f32::from(min));
        let qs = &b[16 + group / 2 * 32..];
        for (j, out) in out.iter_mut().enumerate() {
            *out = (d * scale) * f32::from((qs[j] >> (group % 2 * 4)) & 15) - dmin * min;
        }
    }
}

/// d f16, dmin f16, 12 bytes of scales and minima, 32 bytes of fifth bits (bit `group` of byte `j`), 128 of nibbles.
fn q5_k(b: &[u8], out: &mut [f32]) {
    let (d, dmin) = (half_at(b, 0), half_at(b, 2));
    let qh = &b[16..48];
    for ((group, out), (scale, min)) in out.chunks_exact_mut(32).enumerate().zip(scales::q4_k(&b[4..16])) {
        let (scale, min) = (f32::from(scale), f32::from(min));
        let qs = &b[48 + group / 2 * 32..];
        for (j, out) in out.iter_mut().enumerate() {
            let q = ((qs[j] >> (group % 2 * 4)) & 15) | (((qh[j] >> group) & 1) << 4);
            *out = (d * scale) * f32::from(q) - dmin * min;
        }
    }
}

/// 128 bytes of low nibbles, 64 bytes of upper two bits, 16 signed scales, d f16. Halves of 128 elements: quarter `t` of
/// one has its nibbles in bytes `32·(t mod 2)…` (low ones first) and its upper bits at `2·t`.
fn q6_k(b: &[u8], out: &mut [f32]) {
    let d = half_at(b, 208);
    for (i, out) in out.iter_mut().enumerate() {
        let (half, quarter, j) = (i / 128, i % 128 / 32, i % 32);
        let low = (b[half * 64 + quarter % 2 * 32 + j] >> (quarter / 2 * 4)) & 15;
        let high = (b[128 + half * 32 + j] >> (quarter * 2)) & 3;
        let scale = b[192 + i / 16] as i8;
        *out = (d * f32::from(scale)) * (f32::from(low | (high << 4)) - 32.0);
    }
}
