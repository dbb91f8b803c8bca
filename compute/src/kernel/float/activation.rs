//! Activation functions of feed-forward blocks, gates, and the soft cap of logits. Computed element by element, so the bits do
//! not depend on how elements are divided.
#![allow(unsafe_code)]

use crate::Isa;
use crate::kernel::float::{math, rope};
use crate::kernel::simd::{Body, LANES, Simd, dispatch};

/// The activation of the gate in a gated feed-forward block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activation {
    /// x · sigmoid(x).
    Silu,
    /// GELU, tanh form.
    Gelu,
    /// Of gpt-oss (OpenAI 2025, model code): g · sigmoid(1.702 · g), with g = min(x, 7); what it gates, u, becomes
    /// 1 + u within −7 to 7. Infinities become numbers here: [`all_finite`] is asked before.
    Clamped,
}

/// Factor inside the sigmoid of [`Activation::Clamped`], and the limit of its inputs.
const CLAMPED_ALPHA: f32 = 1.702;
const CLAMPED_LIMIT: f32 = 7.0;

impl Activation {
    /// Whether infinities become numbers.
    pub(crate) fn hides_infinities(self) -> bool {
        self == Activation::Clamped
    }
}

struct Gated<'a> {
    activation: Activation,
    gate: &'a mut [f32],
    up: &'a [f32],
}

impl Body for Gated<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Gated { activation, gate, up } = self;
        let (gates, gate_rest) = gate.as_chunks_mut::<LANES>();
        let (ups, up_rest) = up.as_chunks::<LANES>();
        // SAFETY: chunks of sixteen.
        unsafe {
            for (gate, up) in gates.iter_mut().zip(ups) {
                gated_lanes::<S>(activation, gate, up);
            }
            if !gate_rest.is_empty() {
                let (mut gate, mut up) = ([0.0; LANES], [0.0; LANES]);
                gate[..gate_rest.len()].copy_from_slice(gate_rest);
                up[..up_rest.len()].copy_from_slice(up_rest);
                gated_lanes::<S>(activation, &mut gate, &up);
                gate_rest.copy_from_slice(&gate[..gate_rest.len()]);
            }
        }
    }
}

/// One vector of [`gated`]; a function, because a closure would not be compiled for the family.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
unsafe fn gated_lanes<S: Simd>(activation: Activation, gate: &mut [f32; LANES], up: &[f32; LANES]) {
    // SAFETY: sixteen of each.
    unsafe {
        let (x, up) = (S::load(gate.as_ptr()), S::load(up.as_ptr()));
        let y = match activation {
            Activation::Silu => S::mul(math::silu::<S>(x), up),
            Activation::Gelu => S::mul(math::gelu::<S>(x), up),
            Activation::Clamped => {
                let (one, limit) = (S::splat(1.0), S::splat(CLAMPED_LIMIT));
                let x = S::min(x, limit);
                let up = S::max(S::min(up, limit), S::splat(-CLAMPED_LIMIT));
                let e = math::exp::<S>(S::mul(S::splat(-CLAMPED_ALPHA), x));
                S::mul(S::div(x, S::add(one, e)), S::add(up, one))
            }
        };
        S::store(gate.as_mut_ptr(), y);
    }
}

/// `gate = activation(gate) · up`, or as the activation says; both of one length.
pub(crate) fn gated(isa: Isa, activation: Activation, gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "a gate and what it gates differ in length");
    // SAFETY: the lengths were checked; `isa` is one that a pool was made with.
    unsafe { dispatch(isa, Gated { activation, gate, up }) }
}

struct SoftCap<'a>(&'a mut [f32], f32);

impl Body for SoftCap<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (whole, rest) = self.0.as_chunks_mut::<LANES>();
        // SAFETY: chunks of sixteen.
        unsafe {
            for chunk in whole {
                S::store(chunk.as_mut_ptr(), soft_cap_lanes::<S>(S::load(chunk.as_ptr()), self.1));
            }
            if !rest.is_empty() {
                let mut last = [0.0; LANES];
                last[..rest.len()].copy_from_slice(rest);
                S::store(last.as_mut_ptr(), soft_cap_lanes::<S>(S::load(last.as_ptr()), self.1));
                rest.copy_from_slice(&last[..rest.len()]);
            }
        }
    }
}

/// cap · tanh(x / cap).
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
pub(crate) unsafe fn soft_cap_lanes<S: Simd>(x: S::F, cap: f32) -> S::F {
    // SAFETY: passed on from the caller.
    unsafe { S::mul(S::splat(cap), math::tanh::<S>(S::div(x, S::splat(cap)))) }
}

/// `x = cap · tanh(x / cap)` (Gemma 2 report, §2).
pub(crate) fn soft_cap(isa: Isa, x: &mut [f32], cap: f32) {
    // SAFETY: nothing beyond the slice is touched; `isa` is one that a pool was made with.
    unsafe { dispatch(isa, SoftCap(x, cap)) }
}

struct GateBySigmoid<'a> {
    x: &'a mut [f32],
    gate: &'a [f32],
}

impl Body for GateBySigmoid<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: chunks of sixteen.
        unsafe {
            for (x, gate) in self.x.as_chunks_mut::<LANES>().0.iter_mut().zip(self.gate.as_chunks::<LANES>().0) {
                let e = math::exp::<S>(S::sub(S::splat(0.0), S::load(gate.as_ptr())));
                S::store(x.as_mut_ptr(), S::div(S::load(x.as_ptr()), S::add(S::splat(1.0), e)));
            }
        }
    }
}

/// `x = x · sigmoid(gate)`: the gate at the output of attention. Both of one length, a multiple of 16.
pub(crate) fn gate_by_sigmoid(isa: Isa, x: &mut [f32], gate: &[f32]) {
    assert!(x.len() == gate.len() && x.len().is_multiple_of(LANES), "a gate and what it gates differ in length");
    // SAFETY: the lengths were checked; `isa` is one that a pool was made with.
    unsafe { dispatch(isa, GateBySigmoid { x, gate }) }
}

/// 1 / (1 + e⁻ˣ), right to the last place but one; not for NaN.
pub(crate) fn sigmoid(x: f32) -> f32 {
    (1.0 / (1.0 + rope::exp(-f64::from(x).clamp(-200.0, 200.0)))) as f32
}

/// Whether no element is NaN or infinite.
pub(crate) fn all_finite(x: &[f32]) -> bool {
    // Finite means that the exponent is not all ones. A maximum over integers is vectorised, `all` is not.
    x.iter().fold(0, |most, x| most.max(x.to_bits() & 0x7fff_ffff)) < 0x7f80_0000
}
