//! Packing: one panel of an operand, of any strides and element type, becomes a sequence that a micro-kernel reads in
//! order. Elements are converted on the way; only VNNI's column sums are computed here.

use super::Kernel;
use crate::dtype::{bf16_to_f32, f16_to_f32};
use crate::{DType, Element, Tensor};
use half::{bf16, f16};

/// An element type of packed operands, and the tensor types that convert to it.
pub(crate) trait PackElem: bytemuck::Pod + Send + Sync {
    /// Packs a panel of `t`; see [`Lines`].
    fn pack(t: &Tensor, lines: Lines, out: &mut [Self], xor: u8);
    fn xor(self, bits: u8) -> Self;
    fn to_i32(self) -> i32 {
        0
    }
}

trait Convert<S>: Copy {
    fn convert(from: S) -> Self;
}
macro_rules! convert {
    ($($from:ty => $to:ty: $f:expr;)*) => { $(
        impl Convert<$from> for $to {
            #[inline(always)]
            fn convert(from: $from) -> $to { $f(from) }
        }
    )* };
}
convert! {
    f16 => f32: f16_to_f32;
    bf16 => f32: bf16_to_f32;
    f32 => f32: std::convert::identity;
    i8 => f32: f32::from;
    f16 => f64: |v| f64::from(f16_to_f32(v));
    bf16 => f64: |v| f64::from(bf16_to_f32(v));
    f32 => f64: f64::from;
    f64 => f64: std::convert::identity;
    i8 => f64: f64::from;
    i8 => i8: std::convert::identity;
    i8 => i16: i16::from;
}

macro_rules! pack_elem {
    ($to:ty, $zero:expr, $xor:expr, $int:expr; $($dtype:ident $from:ty),*) => {
        impl PackElem for $to {
            fn pack(t: &Tensor, lines: Lines, out: &mut [Self], xor: u8) {
                match t.dtype() {
                    $(DType::$dtype => if let Some(source) = t.elements::<$from>() {
                        pack_lines::<$from, $to>(source, t.strides(), lines, out, xor);
                    },)*
                    other => unreachable!("{other} never reaches this kernel"),
                }
            }
            #[inline(always)]
            fn xor(self, bits: u8) -> Self { $xor(self, bits) }
            #[inline(always)]
            fn to_i32(self) -> i32 { $int(self) }
        }
    };
}
pack_elem!(f32, 0.0, |v, _| v, |_| 0; F16 f16, Bf16 bf16, F32 f32, I8 i8);
pack_elem!(f64, 0.0, |v, _| v, |_| 0; F16 f16, Bf16 bf16, F32 f32, F64 f64, I8 i8);
pack_elem!(i8, 0, |v: i8, bits: u8| v ^ bits as i8, i32::from; I8 i8);
pack_elem!(i16, 0, |v, _| v, i32::from; I8 i8);

/// The part of a tensor that becomes a panel. A line is a row of A or a column of B; k runs along the line.
#[derive(Clone, Copy)]
pub(crate) struct Lines {
    /// Whether lines are the tensor's columns (B) rather than its rows (A).
    pub(crate) columns: bool,
    pub(crate) first: usize,
    /// The number of lines.
    pub(crate) count: usize,
    /// Lines that the panel has room for; lines beyond `count` are zeros.
    pub(crate) width: usize,
    pub(crate) k0: usize,
    pub(crate) k: usize,
    /// Consecutive k that are stored together.
    pub(crate) unit: usize,
}

/// `out`: `[ceil(k / unit)][width][unit]`.
fn pack_lines<S: Element, D: Convert<S> + PackElem>(
    source: &[S],
    strides: (usize, usize),
    lines: Lines,
    out: &mut [D],
    xor: u8,
) {
    let Lines { columns, first, count, width, k0, k, unit } = lines;
    let (line_stride, k_stride) = if columns { (strides.1, strides.0) } else { strides };
    if k == 0 || count == 0 {
        out.fill(D::zeroed());
        return;
    }
    let source = &source[first * line_stride + k0 * k_stride..];
    let group = width * unit;
    if count < width || !k.is_multiple_of(unit) {
        out.fill(D::zeroed());
    }
    if line_stride == 1 && unit == 1 {
        // One step of k is `count` adjacent elements on both sides.
        for (step, to) in out.chunks_exact_mut(group).take(k).enumerate() {
            let from = &source[step * k_stride..][..count];
            for (to, from) in to[..count].iter_mut().zip(from) {
                *to = D::convert(*from);
            }
        }
    } else if line_stride == 1 && unit == 4 {
        // Four rows side by side become quadruples.
        for (g, to) in out.chunks_exact_mut(group).enumerate() {
            let take = unit.min(k - g * unit);
            if take == 4 {
                let row = |step: usize| &source[(g * 4 + step) * k_stride..][..count];
                let (r0, r1, r2, r3) = (row(0), row(1), row(2), row(3));
                for ((((to, a), b), c), d) in to.chunks_exact_mut(4).zip(r0).zip(r1).zip(r2).zip(r3) {
                    to[0] = D::convert(*a).xor(xor);
                    to[1] = D::convert(*b).xor(xor);
                    to[2] = D::convert(*c).xor(xor);
                    to[3] = D::convert(*d).xor(xor);
                }
            } else {
                for step in 0..take {
                    let from = &source[(g * 4 + step) * k_stride..][..count];
                    for (line, from) in from.iter().enumerate() {
                        to[line * 4 + step] = D::convert(*from).xor(xor);
                    }
                }
            }
        }
    } else if k_stride == 1 {
        for line in 0..count {
            let from = &source[line * line_stride..][..k];
            if unit == 1 {
                for (to, from) in out[line..].iter_mut().step_by(width).zip(from) {
                    *to = D::convert(*from);
                }
            } else {
                let to = out.chunks_exact_mut(group);
                for (to, from) in to.zip(from.chunks(unit)) {
                    let to = &mut to[line * unit..][..unit];
                    for (to, from) in to.iter_mut().zip(from) {
                        *to = D::convert(*from).xor(xor);
                    }
                }
            }
        }
    } else {
        for (g, to) in out.chunks_exact_mut(group).enumerate() {
            for step in 0..unit.min(k - g * unit) {
                let from = &source[(g * unit + step) * k_stride..];
                let from = from.iter().step_by(line_stride).take(count);
                for (line, from) in from.enumerate() {
                    to[line * unit + step] = D::convert(*from).xor(xor);
                }
            }
        }
    }
}

/// Packs rows `first..first + count` of A, k from `k0` on.
pub(crate) fn pack_a<K: Kernel>(a: &Tensor, first: usize, count: usize, k0: usize, k: usize, out: &mut [u8]) {
    let lines = Lines { columns: false, first, count, width: count, k0, k, unit: K::KUNIT };
    K::Elem::pack(a, lines, bytemuck::cast_slice_mut(out), K::A_XOR);
}

/// Packs columns `first..first + count` of B, k from `k0` on, with its header.
pub(crate) fn pack_b<K: Kernel>(b: &Tensor, first: usize, count: usize, k0: usize, k: usize, out: &mut [u8]) {
    let lines = Lines { columns: true, first, count, width: K::NR, k0, k, unit: K::KUNIT };
    let (header, body) = out.split_at_mut(K::HEADER);
    let body: &mut [K::Elem] = bytemuck::cast_slice_mut(body);
    K::Elem::pack(b, lines, body, 0);
    if K::HEADER > 0 {
        let header: &mut [i32] = bytemuck::cast_slice_mut(header);
        header.fill(0);
        for group in body.chunks_exact(K::NR * K::KUNIT) {
            for (sum, column) in header.iter_mut().zip(group.chunks_exact(K::KUNIT)) {
                *sum -= 128 * column.iter().map(|v| v.to_i32()).sum::<i32>();
            }
        }
    }
}
