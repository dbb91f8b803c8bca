//! The elements of GGUF tensors as f64, by the formulas of the GGML types' definitions (ggml's `ggml-common.h` describes the
//! blocks): what a weight is, apart from the engine's own unpacking. Every block is read byte by byte.

use pangea_compute::gguf::{GgmlType, Gguf};

/// All elements of the tensor, row after row; `None` where the file has no such tensor.
pub(crate) fn tensor(file: &Gguf, name: &str) -> Option<Vec<f64>> {
    let view = file.tensor(name).unwrap()?;
    Some(
        view.bytes
            .chunks_exact(view.ggml_type.block_bytes())
            .flat_map(|block| elements(view.ggml_type, block))
            .collect(),
    )
}

/// The number at `at` in half precision (IEEE 754 binary16), from its definition.
fn half(block: &[u8], at: usize) -> f64 {
    let bits = u16::from_le_bytes([block[at], block[at + 1]]);
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023));
    match exponent {
        0 => sign * fraction * 2f64.powi(-24),
        _ => sign * (1.0 + fraction / 1024.0) * 2f64.powi(exponent - 15),
    }
}

fn elements(ty: GgmlType, b: &[u8]) -> Vec<f64> {
    // Of 32 elements, the first 16 are in the low halves of 16 bytes, the others in the high halves.
    let nibble = |at: usize, i: usize| f64::from(if i < 16 { b[at + i] & 15 } else { b[at + i - 16] >> 4 });
    let fifth = |at: usize, i: usize| f64::from((b[at + i / 8] >> (i % 8) & 1) << 4);
    match ty {
        GgmlType::F32 => vec![f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))],
        GgmlType::F16 => vec![half(b, 0)],
        // The upper half of a number in single precision.
        GgmlType::BF16 => vec![f64::from(f32::from_le_bytes([0, 0, b[0], b[1]]))],
        GgmlType::Q8_0 => (0..32).map(|i| half(b, 0) * f64::from(b[2 + i] as i8)).collect(),
        GgmlType::Q4_0 => (0..32).map(|i| half(b, 0) * (nibble(2, i) - 8.0)).collect(),
        GgmlType::Q4_1 => (0..32).map(|i| half(b, 0) * nibble(4, i) + half(b, 2)).collect(),
        GgmlType::Q5_0 => (0..32).map(|i| half(b, 0) * (nibble(6, i) + fifth(2, i) - 16.0)).collect(),
        GgmlType::Q5_1 => (0..32).map(|i| half(b, 0) * (nibble(8, i) + fifth(4, i)) + half(b, 2)).collect(),
        GgmlType::IQ4NL => (0..32).map(|i| half(b, 0) * iq4_value(nibble(2, i))).collect(),
        GgmlType::IQ4XS => (0..256)
            .map(|i| {
                let group = i / 32;
                let low = b[4 + group / 2] >> (4 * (group % 2)) & 15;
                let high = u16::from_le_bytes([b[2], b[3]]) >> (2 * group) & 3;
                let scale = f64::from(low) + 16.0 * f64::from(high) - 32.0;
                half(b, 0) * scale * iq4_value(nibble(8 + 16 * group, i % 32))
            })
            .collect(),
        GgmlType::MXFP4 => (0..32)
            .map(|i| {
                let code = nibble(1, i) as u8;
                let sign = if code >> 3 == 1 { -1.0 } else { 1.0 };
                let (exponent, fraction) = (i32::from(code >> 1 & 3), f64::from(code & 1));
                let value = match exponent {
                    0 => fraction / 2.0,
                    _ => (1.0 + fraction / 2.0) * 2f64.powi(exponent - 1),
                };
                sign * value * 2f64.powi(i32::from(b[0]) - 127)
            })
            .collect(),
        GgmlType::Q2K => (0..256)
            .map(|i| {
                let (part, run, at, group) = (i / 128, i % 128 / 32, i % 32, b[i / 16]);
                let code = b[16 + part * 32 + at] >> (2 * run) & 3;
                half(b, 80) * f64::from(group & 15) * f64::from(code) - half(b, 82) * f64::from(group >> 4)
            })
            .collect(),
        GgmlType::Q3K => (0..256)
            .map(|i| {
                let (part, run, at, group) = (i / 128, i % 128 / 32, i % 32, i / 16);
                let low = b[32 + part * 32 + at] >> (2 * run) & 3;
                let high = b[at] >> (i / 32) & 1;
                let scale =
                    (b[96 + group % 8] >> (4 * (group / 8)) & 15) + 16 * (b[104 + group % 4] >> (2 * (group / 4)) & 3);
                half(b, 108) * (f64::from(scale) - 32.0) * (f64::from(low + 4 * high) - 4.0)
            })
            .collect(),
        GgmlType::Q4K => (0..256)
            .map(|i| {
                let (scale, min) = group_scale(b, i / 32);
                let byte = b[16 + i / 64 * 32 + i % 32];
                half(b, 0) * scale * f64::from(if i % 64 < 32 { byte & 15 } else { byte >> 4 }) - half(b, 2) * min
            })
            .collect(),
        GgmlType::Q5K => (0..256)
            .map(|i| {
                let (scale, min) = group_scale(b, i / 32);
                let byte = b[48 + i / 64 * 32 + i % 32];
                let low = if i % 64 < 32 { byte & 15 } else { byte >> 4 };
                let high = b[16 + i % 32] >> (i / 32) & 1;
                half(b, 0) * scale * f64::from(low + 16 * high) - half(b, 2) * min
            })
            .collect(),
        GgmlType::Q6K => (0..256)
            .map(|i| {
                // 128 elements share 64 bytes of low bits and 32 bytes of high bits; four runs of 32.
                let (part, run, at) = (i / 128, i % 128 / 32, i % 32);
                let byte = b[part * 64 + run % 2 * 32 + at];
                let low = if run < 2 { byte & 15 } else { byte >> 4 };
                let high = b[128 + part * 32 + at] >> (2 * run) & 3;
                let scale = f64::from(b[192 + i / 16] as i8);
                half(b, 208) * scale * (f64::from(low + 16 * high) - 32.0)
            })
            .collect(),
    }
}

/// What a code of IQ4_NL or IQ4_XS stands for.
fn iq4_value(code: f64) -> f64 {
    const NEGATIVE: [f64; 8] = [127.0, 104.0, 83.0, 65.0, 49.0, 35.0, 22.0, 10.0];
    const POSITIVE: [f64; 8] = [1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0];
    if code < 8.0 { -NEGATIVE[code as usize] } else { POSITIVE[code as usize - 8] }
}

/// Scale and minimum of a group of 32 in Q4_K and Q5_K: 6 bits each in the 12 bytes from byte 4 on.
fn group_scale(b: &[u8], group: usize) -> (f64, f64) {
    let s = &b[4..16];
    let (scale, min) = match group {
        0..4 => (s[group] & 63, s[group + 4] & 63),
        _ => {
            let low = s[group + 4];
            ((low & 15) + (s[group - 4] >> 6) * 16, (low >> 4) + (s[group] >> 6) * 16)
        }
    };
    (f64::from(scale), f64::from(min))
}
