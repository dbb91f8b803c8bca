//! Arithmetic and conversions on the numbers at which they go wrong: ties, cancellation, subnormal numbers, infinities, NaN.

use crate::Error;
use crate::gpu::commands::Dispatch;
use crate::gpu::pipeline::{KernelId, Shader};
use crate::gpu::{Gpu, GpuBuffer, dimension, spread};
use half::f16;
use pangea_units::SplitMix64;
use std::sync::Arc;

/// Numbers of each operation.
const COUNT: usize = 1 << 17;

/// What an operation gives.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Float,
    Half,
    Integer,
}

/// The operations in the order of `probe.wgsl`, on bits.
type Operation = (&'static str, Kind, fn(f32, f32, f32) -> u32);
const OPERATIONS: [Operation; 10] = [
    ("a sum", Kind::Float, |a, b, _| (a + b).to_bits()),
    ("a difference", Kind::Float, |a, b, _| (a - b).to_bits()),
    ("a product", Kind::Float, |a, b, _| (a * b).to_bits()),
    ("a fused multiply-add", Kind::Float, |a, b, c| a.mul_add(b, c).to_bits()),
    ("a quotient", Kind::Float, |a, b, _| (a / b).to_bits()),
    ("a root", Kind::Float, |a, _, _| a.sqrt().to_bits()),
    ("a rounding to an integer", Kind::Integer, |a, _, _| {
        // What is larger has no use.
        if a.abs() < (1 << 30) as f32 { a.round_ties_even() as i32 as u32 } else { 0 }
    }),
    ("an integer as a float", Kind::Float, |a, _, _| (a.to_bits() as i32 as f32).to_bits()),
    ("a half float, widened,", Kind::Float, |a, _, _| f16::from_bits(a.to_bits() as u16).to_f32().to_bits()),
    ("a rounding to a half float", Kind::Half, |a, _, _| f16::from_f32(a).to_bits().into()),
];

/// The first result that differs from the CPU's.
///
/// # Errors
/// [`Error::OutOfMemory`]; [`Error::DeviceLost`].
pub(super) fn probe(gpu: &Arc<Gpu>) -> Result<Option<String>, Error> {
    let vectors = vectors();
    let x = GpuBuffer::of(gpu, vectors.as_flattened(), "numbers on the GPU")?;
    let y = GpuBuffer::new(gpu, 4 * vectors.len() as u64, "results on the GPU")?;
    for (number, (what, kind, expected)) in (0..).zip(OPERATIONS) {
        let mut commands = gpu.exact_commands();
        let [across, deep] = spread(vectors.len().div_ceil(64))?;
        commands.dispatch(&Dispatch {
            kernel: KernelId { shader: Shader::ExactProbe, format: None, constants: [number, 0, 0] },
            buffers: &[&x, &y],
            parameters: &[dimension(vectors.len())?, 0, 0, 0],
            workgroups: [across, 1, deep],
            work: vectors.len() as u64,
        })?;
        let slot = commands.read(&y, 0..vectors.len() as u64)?;
        let ours: Vec<u32> = commands.finish()?.get(slot);
        for ([a, b, c, _], ours) in vectors.iter().zip(ours) {
            let [a, b, c] = [a, b, c].map(|bits| f32::from_bits(*bits));
            let expected = expected(a, b, c);
            if !same(kind, ours, expected) {
                return Ok(Some(format!("{what} of {a:e}, {b:e}, {c:e} gives {ours:08x}, not {expected:08x}")));
            }
        }
    }
    Ok(None)
}

/// Whether results are equal; one NaN is as good as another.
fn same(kind: Kind, ours: u32, expected: u32) -> bool {
    let is_nan = |bits: u32| match kind {
        Kind::Float => f32::from_bits(bits).is_nan(),
        Kind::Half => f16::from_bits(bits as u16).is_nan(),
        Kind::Integer => false,
    };
    ours == expected || is_nan(ours) && is_nan(expected)
}

/// Operands a, b, c, of which an operation takes as many as it has.
fn vectors() -> Vec<[u32; 4]> {
    let special = [
        0.0,
        f32::from_bits(1),
        f32::from_bits(0x007f_ffff),
        f32::MIN_POSITIVE,
        1.0,
        1.0 + f32::EPSILON,
        1.0 - f32::EPSILON / 2.0,
        0.5,
        2.5,
        3.0,
        65_504.0,
        65_520.0,
        16_777_215.0,
        f32::MAX,
        f32::INFINITY,
        f32::NAN,
    ];
    let special: Vec<u32> = special.into_iter().flat_map(|x: f32| [x.to_bits(), (-x).to_bits()]).collect();
    let mut vectors = Vec::new();
    for a in &special {
        for b in &special {
            vectors.extend(special.iter().map(|c| [*a, *b, *c, 0]));
        }
    }
    let mut random = SplitMix64::new(1);
    while vectors.len() < COUNT {
        let bits = random.bits();
        let (a, b) = (bits as u32, (bits >> 32) as u32);
        let c = random.bits() as u32;
        // Sign and fraction of x with this exponent.
        let with = |x: u32, exponent: i64| x & 0x807f_ffff | (exponent.clamp(0, 254) as u32) << 23;
        vectors.push(match vectors.len() % 6 {
            0 => [a, b, c, 0],
            // An addend in reach of the product.
            1 => {
                let (of_a, of_b) = (100 + random.index(50) as i64, 100 + random.index(50) as i64);
                [with(a, of_a), with(b, of_b), with(c, of_a + of_b - 127 + random.index(60) as i64 - 30), 0]
            }
            // Cancellation of all but the last places.
            2 => {
                let (a, b) = (with(a, 90 + random.index(70) as i64), with(b, 90 + random.index(70) as i64));
                let product = -f32::from_bits(a) * f32::from_bits(b);
                [a, b, product.to_bits() ^ (c & 3), 0]
            }
            // Ties: a product of 25 bits, or an addend of half a last place.
            3 => {
                let (a, b) = (with(a & !0xfff, 127), with(b & !0x7ff, 127));
                [a, b, if c & 1 == 0 { 0 } else { with(c & SIGN, 103 + i64::from(c >> 1 & 1)) }, 0]
            }
            // Results that are subnormal.
            4 => {
                let of_a = random.index(127) as i64;
                [with(a, of_a), with(b, random.index(30) as i64 + 100 - of_a), with(c, random.index(3) as i64), 0]
            }
            // What is rounded to integers and to half floats.
            _ => [with(a, 96 + random.index(62) as i64), with(b & !0x7f_ffff, 127), c, 0],
        });
    }
    vectors
}

const SIGN: u32 = 1 << 31;
