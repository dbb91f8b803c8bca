//! Packed products against a second, element-wise implementation of the numerics on the GGUF bytes; bit for bit, in
//! every family that this processor has. Codes and scales come from [`dequantize`] of blocks with neutral scales, not
//! from the packer.

use super::*;
use crate::gguf::{GgmlType, dequantize};
use crate::{Buffer, Isa};
use half::{bf16, f16};
use pangea_units::SplitMix64;
use proptest::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// What blocks are made of.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// Scales as models have them.
    Usual,
    /// Codes at their ends, scales zero, subnormal, tiny and huge.
    Extreme,
    /// Any bytes: infinite and NaN scales too.
    Any,
}

/// Where the f16 numbers of a block are.
fn halves_of(ty: GgmlType) -> &'static [usize] {
    match ty {
        GgmlType::Q4_0 | GgmlType::Q5_0 | GgmlType::Q8_0 | GgmlType::IQ4NL | GgmlType::IQ4XS => &[0],
        GgmlType::Q4_1 | GgmlType::Q5_1 | GgmlType::Q4K | GgmlType::Q5K => &[0, 2],
        GgmlType::Q2K => &[80, 82],
        GgmlType::Q3K => &[108],
        GgmlType::Q6K => &[208],
        _ => &[],
    }
}

fn weights(ty: GgmlType, rows: usize, k: usize, kind: Kind, random: &mut SplitMix64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..rows * k / ty.block_len() {
        let start = bytes.len();
        let fill = [None, Some(0), Some(0xff), Some(0x80)][random.index(4)];
        for _ in 0..ty.block_bytes() {
            let byte = random.bits() as u8;
            bytes.push(if kind == Kind::Extreme { fill.unwrap_or(byte) } else { byte });
        }
        let block = &mut bytes[start..];
        match (ty, kind) {
            (_, Kind::Any) => {}
            (GgmlType::F32, _) => block.copy_from_slice(&random.signed_unit().to_le_bytes()),
            (GgmlType::F16, _) => block.copy_from_slice(&f16::from_f32(random.signed_unit()).to_le_bytes()),
            (GgmlType::BF16, _) => block.copy_from_slice(&bf16::from_f32(random.signed_unit()).to_le_bytes()),
            _ => {
                if ty == GgmlType::MXFP4 {
                    let odd = [0, 1, 2, 127, 252, 254];
                    block[0] = if kind == Kind::Extreme { odd[random.index(6)] } else { 110 + random.index(20) as u8 };
                }
                for at in halves_of(ty) {
                    let usual = f16::from_f32(random.signed_unit() * 0.02);
                    let odd = [f16::ZERO, f16::NEG_ZERO, f16::MAX, f16::MIN, f16::from_bits(1), f16::from_bits(0x8003)];
                    let scale = if kind == Kind::Extreme { odd[random.index(6)] } else { usual };
                    block[*at..*at + 2].copy_from_slice(&scale.to_le_bytes());
                }
            }
        }
    }
    bytes
}

fn activations(rows: usize, k: usize, random: &mut SplitMix64) -> Vec<f32> {
    let mut x = Vec::new();
    for i in 0..rows * k {
        let factor = match random.index(40) {
            0 => 1000.0,
            1 => 0.0,
            // Whole blocks that are zero or too small to have a scale.
            _ if i / 32 % 11 == 3 => 0.0,
            _ if i / 32 % 11 == 5 => 1e-40,
            _ => 1.0,
        };
        x.push(random.signed_unit() * factor);
    }
    x
}

/// One row of a quantised matrix, as the numerics see it.
struct Block {
    codes: Vec<f32>,
    /// Of the two halves, for Q2_K, Q3_K and Q6_K; else 1.
    halves: [i32; 2],
    scale: f32,
    min: Option<f32>,
    /// Integers that the sums of the two halves are multiplied with, for Q2_K; the minimum is then their scale.
    minima: Option<[i32; 2]>,
}

/// The blocks of 32 in one GGUF block.
fn blocks(ty: GgmlType, bytes: &[u8]) -> Vec<Block> {
    let values = |change: &dyn Fn(&mut [u8])| {
        let mut bytes = bytes.to_vec();
        change(&mut bytes);
        let mut out = vec![0.0; ty.block_len()];
        dequantize(ty, &bytes, &mut out).unwrap();
        out
    };
    let set = |bytes: &mut [u8], at: usize, value: f32| {
        bytes[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
    };
    let get = |at: usize| f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32();
    let ones: &[u8] = &[1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1];
    let neutral = |bytes: &mut [u8]| match ty {
        GgmlType::Q6K => {
            set(bytes, 208, 1.0);
            bytes[192..208].fill(1);
        }
        GgmlType::Q2K => {
            set(bytes, 80, 1.0);
            bytes[..16].fill(1);
        }
        GgmlType::Q3K => {
            set(bytes, 108, 1.0);
            // 33 each, so 1 after 32 is taken off.
            bytes[96..104].fill(0x11);
            bytes[104..108].fill(0xaa);
        }
        GgmlType::IQ4XS => {
            set(bytes, 0, 1.0);
            // 33 each, so 1 after 32 is taken off.
            bytes[2..4].fill(0xaa);
            bytes[4..8].fill(0x11);
        }
        // 2, of which half is the factor.
        GgmlType::MXFP4 => bytes[0] = 128,
        GgmlType::Q4K | GgmlType::Q5K => {
            set(bytes, 0, 1.0);
            set(bytes, 2, 0.0);
            bytes[4..16].copy_from_slice(ones);
        }
        _ => {
            set(bytes, 0, 1.0);
            if halves_of(ty).len() == 2 {
                set(bytes, 2, 0.0);
            }
        }
    };
    let codes = values(&neutral);
    let groups = codes.chunks_exact(32).map(<[f32]>::to_vec);
    let one = [1, 1];
    match ty {
        GgmlType::Q4K | GgmlType::Q5K => {
            // All codes 1 give the scales; all codes 0 the minima.
            let start = if ty == GgmlType::Q4K { 16 } else { 48 };
            let scales = values(&|bytes| {
                set(bytes, 0, 1.0);
                set(bytes, 2, 0.0);
                bytes[16..start].fill(0);
                bytes[start..].fill(0x11);
            });
            let mins = values(&|bytes| {
                set(bytes, 0, 0.0);
                set(bytes, 2, 1.0);
                bytes[16..].fill(0);
            });
            let block = |(g, codes): (usize, Vec<f32>)| Block {
                codes,
                halves: one,
                scale: get(0) * scales[32 * g],
                min: Some(-(get(2) * -mins[32 * g])),
                minima: None,
            };
            groups.enumerate().map(block).collect()
        }
        GgmlType::IQ4XS => {
            // All codes 8, whose value is 1, give the scales.
            let scales = values(&|bytes| {
                set(bytes, 0, 1.0);
                bytes[8..].fill(0x88);
            });
            let block = |(g, codes): (usize, _)| Block {
                codes,
                halves: one,
                scale: get(0) * scales[32 * g],
                min: None,
                minima: None,
            };
            groups.enumerate().map(block).collect()
        }
        GgmlType::MXFP4 => {
            // All codes 1, whose doubled value is 1, give the scale.
            let scale = values(&|bytes| bytes[1..].fill(0x11))[0];
            groups.map(|codes| Block { codes, halves: one, scale, min: None, minima: None }).collect()
        }
        GgmlType::Q2K => {
            // All codes 1 give the scales; all codes 0 the minima.
            let scales = values(&|bytes| {
                set(bytes, 80, 1.0);
                set(bytes, 82, 0.0);
                bytes[16..80].fill(0x55);
            });
            let minima = values(&|bytes| {
                set(bytes, 80, 0.0);
                set(bytes, 82, 1.0);
                bytes[16..80].fill(0);
            });
            let block = |(g, codes)| Block {
                codes,
                halves: [0, 1].map(|half: usize| scales[32 * g + 16 * half] as i32),
                scale: get(80),
                min: Some(get(82)),
                minima: Some([0, 1].map(|half: usize| -(minima[32 * g + 16 * half] as i32))),
            };
            groups.enumerate().map(block).collect()
        }
        GgmlType::Q3K => {
            // All codes 5, so 1 after 4 is taken off, give the scales.
            let scales = values(&|bytes| {
                set(bytes, 108, 1.0);
                bytes[..32].fill(0xff);
                bytes[32..96].fill(0x55);
            });
            let weight = |half: usize| scales[16 * half] as i32;
            let block = |(g, codes)| Block {
                codes,
                halves: [weight(2 * g), weight(2 * g + 1)],
                scale: get(108),
                min: None,
                minima: None,
            };
            groups.enumerate().map(block).collect()
        }
        GgmlType::Q6K => {
            let weight = |half: usize| i32::from(bytes[192 + half] as i8);
            let block = |(g, codes)| Block {
                codes,
                halves: [weight(2 * g), weight(2 * g + 1)],
                scale: get(208),
                min: None,
                minima: None,
            };
            groups.enumerate().map(block).collect()
        }
        _ => {
            let min = (halves_of(ty).len() == 2).then(|| get(2));
            groups.map(|codes| Block { codes, halves: one, scale: get(0), min, minima: None }).collect()
        }
    }
}

/// The activations of one block: integers and their scale.
fn quantise(x: &[f32]) -> (Vec<i32>, f32) {
    let largest = x.iter().fold(0.0f32, |a, x| a.max(x.abs()));
    let inverse = 127.0f32 / largest;
    if !inverse.is_finite() {
        return (vec![0; 32], 0.0);
    }
    (x.iter().map(|x| (x * inverse).round_ties_even() as i32).collect(), largest / 127.0)
}

/// One element of the product.
fn reference(ty: GgmlType, row: &[u8], x: &[f32]) -> f32 {
    let mut acc = 0.0f32;
    if matches!(ty, GgmlType::F32 | GgmlType::F16 | GgmlType::BF16) {
        let mut w = vec![0.0; x.len()];
        dequantize(ty, row, &mut w).unwrap();
        return w.iter().zip(x).fold(acc, |acc, (w, x)| w.mul_add(*x, acc));
    }
    let blocks = row.chunks_exact(ty.block_bytes()).flat_map(|bytes| blocks(ty, bytes));
    for (block, x) in blocks.zip(x.chunks_exact(32)) {
        let (q, d) = quantise(x);
        let mut dot = 0i32;
        for (j, (code, q)) in block.codes.iter().zip(&q).enumerate() {
            dot += block.halves[j / 16] * *code as i32 * q;
        }
        acc = (block.scale * d).mul_add(dot as f32, acc);
        if let (Some(min), Some([first, second])) = (block.min, block.minima) {
            let sum = first * q[..16].iter().sum::<i32>() + second * q[16..].iter().sum::<i32>();
            acc = (-(min * d)).mul_add(sum as f32, acc);
        } else if let Some(min) = block.min {
            acc = min.mul_add(d * q.iter().sum::<i32>() as f32, acc);
        }
    }
    acc
}

fn packed(ty: GgmlType, rows: usize, k: usize, src: &[u8]) -> Matrix {
    packed_over(0xa5, ty, rows, k, src)
}

/// The matrix packed where every byte was `before`, tile by tile.
fn packed_over(before: u8, ty: GgmlType, rows: usize, k: usize, src: &[u8]) -> Matrix {
    let bytes = packed_bytes(ty, rows, k).unwrap();
    let start = 64;
    let mut arena = Buffer::zeroed(start + bytes).unwrap();
    arena.as_mut_slice().fill(before);
    let mut rest = &mut arena.as_mut_slice()[start..];
    for tile in 0..tiles(rows) {
        let (dst, after) = rest.split_at_mut(bytes / tiles(rows));
        pack(ty, rows, k, src, tile..tile + 1, dst);
        rest = after;
    }
    Matrix::new(ty, rows, k, Arc::new(arena), start).unwrap()
}

fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
}

fn families() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.is_available())
}

const UNTOUCHED: f32 = 12345.0;

/// A product in pieces: every tile range of `tile_step`, every row range of `row_step`.
fn compute(isa: Isa, w: &Matrix, x: &[f32], n: usize, tile_step: usize, row_step: usize, store: Store) -> Vec<f32> {
    let (k, ld) = (w.k(), w.rows() + 3);
    let mut quantized = Quantized::default();
    let input = if w.takes_floats() {
        Input::Floats(x)
    } else {
        quantized.reshape(n, k).unwrap();
        for (row, x) in x.chunks_exact(k).enumerate() {
            // SAFETY: one thread; the family was found available.
            assert!(unsafe { quantized.quantize_row(isa, x, row) });
        }
        Input::Quantized(&quantized)
    };
    let mut out = vec![UNTOUCHED; n * ld];
    let steps = |end: usize, step: usize| (0..end).step_by(step).map(move |at| at..end.min(at + step));
    for tiles in steps(w.tiles(), tile_step) {
        for rows in steps(n, row_step) {
            // SAFETY: `out` has n rows of ld, and one thread.
            unsafe { product(isa, w, tiles.clone(), input, rows, out.as_mut_ptr(), ld, store) };
        }
    }
    out
}

fn check(ty: GgmlType, rows: usize, k: usize, kind: Kind, ns: Range<usize>, seed: u64) {
    let random = &mut SplitMix64::new(seed);
    let src = weights(ty, rows, k, kind, random);
    let w = packed(ty, rows, k, &src);
    let x = activations(ns.end, k, random);
    let row_bytes = src.len() / rows;
    let expected: Vec<f32> = x
        .chunks_exact(k)
        .flat_map(|x| src.chunks_exact(row_bytes).map(|row| reference(ty, row, x)).collect::<Vec<_>>())
        .collect();
    for isa in families() {
        for n in ns.clone() {
            let (tile_step, row_step) = (1 + random.index(w.tiles()), 1 + random.index(n));
            let store = if random.index(2) == 0 { Store::Set } else { Store::Add };
            let out = compute(isa, &w, &x[..n * k], n, tile_step, row_step, store);
            for (r, out) in out.chunks_exact(rows + 3).enumerate() {
                for (c, out) in out.iter().enumerate() {
                    let expected = match store {
                        _ if c >= rows => UNTOUCHED,
                        Store::Set => expected[r * rows + c],
                        Store::Add => UNTOUCHED + expected[r * rows + c],
                    };
                    assert!(
                        same(*out, expected),
                        "{ty} {rows} x {k} {kind:?} {isa:?} n = {n} by {tile_step} tiles, {row_step} rows, {store:?}, \
                         seed {seed}: [{r}, {c}] is {out:e}, not {expected:e}"
                    );
                }
            }
        }
    }
}

fn depth(ty: GgmlType, blocks: usize) -> usize {
    if ty.block_len() == 1 { 7 * blocks } else { ty.block_len() * blocks }
}

#[test]
fn every_type_gives_the_numerics_bit_for_bit_in_every_family_and_batch() {
    for ty in GgmlType::SUPPORTED {
        for (kind, seed) in [(Kind::Usual, 1), (Kind::Extreme, 2), (Kind::Any, 3)] {
            check(ty, 37, depth(ty, 3), kind, 1..21, seed);
        }
    }
}

#[test]
fn more_rows_than_one_chunk_of_activations_change_nothing() {
    for ty in [GgmlType::Q4_1, GgmlType::Q6K, GgmlType::F32] {
        check(ty, 17, 2560, Kind::Usual, 77..78, 4);
    }
}

#[test]
fn the_smallest_weights_do_not_saturate() {
    let k = 64;
    let mut src = vec![0x80u8; 16 * k / 32 * 34];
    for block in src.chunks_exact_mut(34) {
        block[..2].copy_from_slice(&f16::ONE.to_le_bytes());
    }
    let w = packed(GgmlType::Q8_0, 16, k, &src);
    for (sign, x) in [(1.0, vec![127.0f32; k]), (-1.0, vec![-127.0f32; k])] {
        for isa in families() {
            let out = compute(isa, &w, &x, 1, 1, 1, Store::Set);
            assert_eq!(out[..16], [sign * -128.0 * 127.0 * k as f32; 16], "{isa:?}");
        }
    }
}

#[test]
fn no_sum_of_the_largest_codes_and_activations_overflows() {
    for ty in GgmlType::SUPPORTED.into_iter().filter(|ty| ty.block_len() > 1) {
        let k = depth(ty, 2);
        for fill in [0x00u8, 0x77, 0x80, 0x88, 0xff] {
            let mut src = vec![fill; 16 * k / ty.block_len() * ty.block_bytes()];
            for block in src.chunks_exact_mut(ty.block_bytes()) {
                halves_of(ty).iter().for_each(|at| block[*at..*at + 2].copy_from_slice(&f16::ONE.to_le_bytes()));
                if ty == GgmlType::MXFP4 {
                    block[0] = 127;
                }
            }
            let w = packed(ty, 16, k, &src);
            for x in [vec![127.0f32; k], vec![-127.0f32; k]] {
                let expected = reference(ty, &src[..src.len() / 16], &x);
                for isa in families() {
                    let out = compute(isa, &w, &x, 1, 1, 1, Store::Set);
                    assert_eq!(out[..16], [expected; 16], "{ty} of {fill:x} {isa:?}");
                }
            }
        }
    }
}

#[test]
fn a_packed_row_is_the_dequantised_row() {
    for ty in GgmlType::SUPPORTED {
        for (kind, seed) in [(Kind::Usual, 1), (Kind::Extreme, 2), (Kind::Any, 3)] {
            let (rows, k) = (21, depth(ty, 4));
            let src = weights(ty, rows, k, kind, &mut SplitMix64::new(seed));
            let w = packed(ty, rows, k, &src);
            assert!(w.bytes() == packed_over(0x5a, ty, rows, k, &src).bytes(), "{ty}: not every byte is written");
            for (row, bytes) in src.chunks_exact(src.len() / rows).enumerate() {
                let (mut out, mut expected) = (vec![1.0; k], vec![2.0; k]);
                w.unpack_row(row, &mut out);
                dequantize(ty, bytes, &mut expected).unwrap();
                let all = out.iter().zip(&expected).all(|(a, b)| same(*a, *b));
                assert!(all, "{ty} {kind:?} row {row}: {out:?}, not {expected:?}");
            }
        }
    }
}

#[test]
fn packing_does_not_grow_by_more_than_a_twentieth() {
    for ty in GgmlType::SUPPORTED {
        let bytes = packed_bytes(ty, 64, 512).unwrap();
        let file = 64 * 512 / ty.block_len() * ty.block_bytes();
        assert!(bytes >= file && bytes as f64 <= 1.05 * file as f64, "{ty}: {bytes} for {file}");
        assert_eq!(bytes % 16, 0);
    }
    assert_eq!(packed_bytes(GgmlType::Q4K, 16, 128), None);
    assert_eq!(packed_bytes(GgmlType::F32, usize::MAX, 1 << 40), None);
    let arena = Arc::new(Buffer::zeroed(64).unwrap());
    assert!(Matrix::new(GgmlType::Q4_0, 16, 32, arena, 0).is_err());
}

/// Quantises one row in a family and reads it back: integers, scales and whether it was finite.
fn quantised(isa: Isa, x: &[f32]) -> (Vec<i32>, Vec<quantized::Scale>, bool) {
    let mut rows = Quantized::default();
    rows.reshape(11, x.len()).unwrap();
    // SAFETY: one thread; the family was found available.
    let finite = unsafe { rows.quantize_row(isa, x, 9) };
    let (q, scale) = rows.row(9);
    let (mut qs, mut scales) = (Vec::new(), Vec::new());
    for block in 0..x.len().div_ceil(32) {
        // SAFETY: every block of the row was written.
        unsafe {
            let (q, scale) = (q.byte_add(block * rows.record_bytes()), scale.byte_add(block * rows.record_bytes()));
            qs.extend((0..32).map(|j| i32::from(*q.add(j))));
            scales.push(*scale);
        }
    }
    (qs, scales, finite)
}

#[test]
fn activations_are_rounded_to_nearest_even_under_their_largest() {
    // a = 127: the factor is 1, and halves show the direction.
    let mut x = [0.0f32; 32];
    x[..8].copy_from_slice(&[-127.0, 0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 125.49]);
    for isa in families() {
        let (q, scale, finite) = quantised(isa, &x);
        assert_eq!(q[..8], [-127, 0, 2, 2, 0, -2, 126, 125], "{isa:?}");
        let sum = q.iter().sum::<i32>();
        assert_eq!(scale, [quantized::Scale { d: 1.0, d_sum: sum as f32, sum, first: sum }]);
        assert!(finite);
    }
}

#[test]
fn what_is_not_finite_is_reported_and_what_is_tiny_is_zero() {
    for isa in families() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 15, 16, 31, 40, 67] {
                let mut x = vec![1.0f32; 68];
                x[at] = bad;
                assert!(!quantised(isa, &x).2, "{isa:?}: {bad} at {at}");
            }
        }
        for tiny in [0.0, -0.0, 1e-45, 3.7e-37] {
            let (q, scale, finite) = quantised(isa, &[tiny; 33]);
            assert!(finite && q.iter().all(|q| *q == 0), "{isa:?} {tiny:e}");
            assert!(scale.iter().all(|scale| scale.d.to_bits() == 0 && scale.d_sum.to_bits() == 0));
        }
        let (q, scale, finite) = quantised(isa, &[f32::MAX; 32]);
        assert!(finite && q == [127; 32] && scale[0].d == f32::MAX / 127.0, "{isa:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_blocks_of_any_shape_give_the_numerics(
        ty in prop::sample::select(GgmlType::SUPPORTED.to_vec()),
        kind in prop::sample::select(vec![Kind::Usual, Kind::Extreme, Kind::Any]),
        rows in 1usize..70, depths in 1usize..5, n in 1usize..13, seed: u64,
    ) {
        check(ty, rows, depth(ty, depths), kind, n..n + 1, seed);
    }

    #[test]
    fn any_activations_are_quantised_alike(
        bits in prop::collection::vec(any::<u32>(), 1..100), exponent in 0u32..255, wild: bool,
    ) {
        // Either any floats at all, or finite ones of about one size.
        let x: Vec<f32> = bits.iter().map(|bits| {
            f32::from_bits(if wild { *bits } else { bits & 0x80ff_ffff | (exponent << 23) & 0x7f00_0000 })
        }).collect();
        let finite = x.iter().all(|x| x.is_finite());
        let mut filled = x.clone();
        filled.resize(x.len().next_multiple_of(32), 0.0);
        for isa in families() {
            let (q, scales, said) = quantised(isa, &x);
            prop_assert_eq!(said, finite);
            if !finite {
                continue;
            }
            for (i, x) in filled.chunks_exact(32).enumerate() {
                let (expected, d) = quantise(x);
                prop_assert_eq!(&q[32 * i..32 * i + 32], &expected[..]);
                let (sum, first) = (expected.iter().sum(), expected[..16].iter().sum());
                prop_assert_eq!(scales[i], quantized::Scale { d, d_sum: d * sum as f32, sum, first });
            }
        }
    }
}
