//! Gated delta nets (Yang et al. 2024, "Gated Delta Networks", eq. 10; the code published with Qwen3-Next): a short causal
//! convolution, the gates, and the recurrence over positions. A result depends on the session's positions before it alone: the
//! recurrence takes one position after the other, in whatever pieces they come.
//!
//! # Numerics
//!
//! These rules are part of the engine's `numerics` version. Convolution of a channel: `sum = w[0] · x[0]`, then `sum = fma(w[j],
//! x[j], sum)` with the oldest position first; positions before the first are left out. What it gives goes through SiLU. Queries
//! and keys: `x · (factor / √(sum of squares + 10⁻⁶))`, squares summed as in [`norm`](super::norm), factor 1 / √key_dim for
//! queries, 1 for keys. Gates in f64: `beta = 1 / (1 + exp(−b))`
//! ([`sigmoid`](super::activation::sigmoid)), `decay = exp(a · ln(1 + exp(alpha + dt)))`, each rounded to f32.
//!
//! A state S is `[key_dim, value_dim]`. Each position, for all j: `m = 0`, then for i in order `m = fma(k[i], S[i][j], m)`; `d =
//! beta · (v[j] − decay · m)`; for i in order `S[i][j] = fma(k[i], d, decay · S[i][j])` and `o = fma(q[i], S[i][j], o)` from 0.
#![allow(unsafe_code)]

use crate::Isa;
use crate::kernel::float::{math, rope};
use crate::kernel::simd::{Body, LANES, Simd, dispatch, fold};

/// Added to a sum of squares under the root.
const UNIT_EPSILON: f32 = 1e-6;

struct Convolve<'a> {
    inputs: &'a [*const f32],
    weights: *const f32,
    ld: usize,
    out: &'a mut [f32],
}

impl Body for Convolve<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Convolve { inputs, weights, ld, out } = self;
        // SAFETY: inputs and weights have the channels of `out`, as `convolve` is told.
        unsafe {
            for (n, out) in out.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
                let mut sum = S::splat(0.0);
                let mut is_first = true;
                for (tap, input) in inputs.iter().enumerate() {
                    if input.is_null() {
                        continue;
                    }
                    let (w, x) = (S::load(weights.add(tap * ld + n * LANES)), S::load(input.add(n * LANES)));
                    sum = if is_first { S::mul(w, x) } else { S::fma(w, x, sum) };
                    is_first = false;
                }
                S::store(out.as_mut_ptr(), math::silu::<S>(sum));
            }
        }
    }
}

/// The convolution of `out.len()` channels, a multiple of 16. `inputs`: the channels at the position of each tap, the oldest
/// first; null before the first position. `weights`: `[taps][ld]`, from the first of these channels on.
///
/// # Safety
/// `isa` is available. Inputs that are not null, and each tap's weights, have these channels and are only read.
pub(crate) unsafe fn convolve(isa: Isa, inputs: &[*const f32], weights: *const f32, ld: usize, out: &mut [f32]) {
    assert!(out.len().is_multiple_of(LANES), "{} channels", out.len());
    // SAFETY: the caller's promise.
    unsafe { dispatch(isa, Convolve { inputs, weights, ld, out }) }
}

struct Unit<'a>(&'a mut [f32], f32);

impl Body for Unit<'_> {
    type Out = bool;
    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> bool {
        let chunks = self.0.as_chunks_mut::<LANES>().0;
        // SAFETY: chunks of sixteen.
        unsafe {
            let mut squares = S::splat(0.0);
            for x in chunks.iter() {
                let x = S::load(x.as_ptr());
                squares = S::fma(x, x, squares);
            }
            let mut lanes = [0.0; LANES];
            S::store(lanes.as_mut_ptr(), squares);
            let sum = fold(lanes);
            let scale = S::splat(self.1 / (sum + UNIT_EPSILON).sqrt());
            for x in chunks.iter_mut() {
                S::store(x.as_mut_ptr(), S::mul(S::load(x.as_ptr()), scale));
            }
            sum.is_finite()
        }
    }
}

/// Scales a head, a multiple of 16 elements, to the length `factor`. Returns whether its sum of squares is finite: where it is
/// not, numbers became zeros.
#[must_use = "an infinite sum makes zeros"]
pub(crate) fn unit(isa: Isa, x: &mut [f32], factor: f32) -> bool {
    assert!(x.len().is_multiple_of(LANES), "a head of {} elements", x.len());
    // SAFETY: nothing beyond the slice is touched; `isa` is one that a pool was made with.
    unsafe { dispatch(isa, Unit(x, factor)) }
}

/// Arguments of exponentials beyond which the results are 0 and infinity in single precision.
const EXP_RANGE: f64 = 200.0;

/// e to the power of a · ln(1 + eˣ), for a ≤ 0: what remains of a state. Right to the last place but one; not for NaN.
pub(crate) fn decay(x: f32, a: f32) -> f32 {
    let x = f64::from(x);
    let softplus = match x {
        x if x > 40.0 => x,
        // Beside 1, eˣ would lose its digits: the logarithm's series.
        x if x < -18.0 => {
            let e = rope::exp(x.max(-EXP_RANGE));
            e - e * e / 2.0
        }
        x => rope::ln(1.0 + rope::exp(x)),
    };
    rope::exp((f64::from(a) * softplus).max(-EXP_RANGE)) as f32
}

/// Vectors of a state's row that are computed together: with 128 rows they are 32 KiB, which stay in a core's first cache for
/// all positions, and their sums hide each other's latency.
const COLUMNS: usize = 4;

/// Some positions of one value head.
pub(crate) struct Recurrence {
    pub(crate) key_dim: usize,
    pub(crate) value_dim: usize,
    /// Positions, of which the first [`Recurrence::unseen`] give no output.
    pub(crate) positions: usize,
    pub(crate) unseen: usize,
    /// Query, key and value of the first position; the next one's are `ld` elements further.
    pub(crate) query: *const f32,
    pub(crate) key: *const f32,
    pub(crate) value: *const f32,
    pub(crate) ld: usize,
    /// Decay and beta of the first position; the next one's are `gates_ld` elements further.
    pub(crate) gates: *const f32,
    pub(crate) gates_ld: usize,
    /// The state before these positions; null for zeros.
    pub(crate) from: *const f32,
    /// Where the state after them goes.
    pub(crate) to: *mut f32,
    /// Where the states before some of these positions go, if they are kept.
    pub(crate) kept: [Option<(usize, *mut f32)>; 2],
    /// Where the output of position [`Recurrence::unseen`] goes; the next one's is `out_ld` elements further.
    pub(crate) out: *mut f32,
    pub(crate) out_ld: usize,
}

impl Recurrence {
    /// All positions.
    ///
    /// # Safety
    /// `isa` is available. All pointers are to as many elements as the sizes say; what is written overlaps nothing else, and no
    /// other thread uses it at the same time.
    pub(crate) unsafe fn run(&self, isa: Isa) {
        assert!(self.key_dim.is_multiple_of(LANES) && self.value_dim.is_multiple_of(LANES), "a state of odd size");
        // SAFETY: the caller's promise.
        unsafe { dispatch(isa, self) }
    }

    /// The positions for `N` vectors of the state's columns from `column` on.
    ///
    /// # Safety
    /// As [`Recurrence::run`].
    #[inline(always)]
    unsafe fn columns<S: Simd, const N: usize>(&self, column: usize) {
        let (key_dim, ld) = (self.key_dim, self.value_dim);
        // SAFETY: the caller's promise; the columns are within the state's.
        unsafe {
            let state = self.to.add(column);
            for i in 0..key_dim {
                for n in 0..N {
                    let at = i * ld + n * LANES;
                    let before = if self.from.is_null() { S::splat(0.0) } else { S::load(self.from.add(column + at)) };
                    S::store(state.add(at), before);
                }
            }
            for position in 0..self.positions {
                for (kept, to) in self.kept.into_iter().flatten() {
                    if kept == position {
                        copy::<S, N>(state, to.add(column), key_dim, ld);
                    }
                }
                let (query, key) = (self.query.add(position * self.ld), self.key.add(position * self.ld));
                let gates = self.gates.add(position * self.gates_ld);
                let (decay, beta) = (S::splat(*gates), S::splat(*gates.add(1)));
                let mut remembered = [S::splat(0.0); N];
                for i in 0..key_dim {
                    let k = S::splat(*key.add(i));
                    for (n, remembered) in remembered.iter_mut().enumerate() {
                        *remembered = S::fma(k, S::load(state.add(i * ld + n * LANES)), *remembered);
                    }
                }
                let mut delta = remembered;
                for (n, delta) in delta.iter_mut().enumerate() {
                    let value = S::load(self.value.add(position * self.ld + column + n * LANES));
                    *delta = S::mul(beta, S::sub(value, S::mul(decay, *delta)));
                }
                let mut out = [S::splat(0.0); N];
                for i in 0..key_dim {
                    let (k, q) = (S::splat(*key.add(i)), S::splat(*query.add(i)));
                    for (n, (delta, out)) in delta.iter().zip(&mut out).enumerate() {
                        let at = state.add(i * ld + n * LANES);
                        let after = S::fma(k, *delta, S::mul(decay, S::load(at)));
                        S::store(at, after);
                        *out = S::fma(q, after, *out);
                    }
                }
                if position >= self.unseen {
                    let to = self.out.add((position - self.unseen) * self.out_ld + column);
                    for (n, out) in out.iter().enumerate() {
                        S::store(to.add(n * LANES), *out);
                    }
                }
            }
        }
    }
}

/// Copies `N` vectors of `rows` rows.
///
/// # Safety
/// Both have as many rows, `ld` elements apart.
#[inline(always)]
unsafe fn copy<S: Simd, const N: usize>(from: *const f32, to: *mut f32, rows: usize, ld: usize) {
    for i in 0..rows {
        for n in 0..N {
            // SAFETY: the caller's promise.
            unsafe { S::store(to.add(i * ld + n * LANES), S::load(from.add(i * ld + n * LANES))) }
        }
    }
}

impl Body for &Recurrence {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let mut column = 0;
        // SAFETY: passed on from the caller.
        unsafe {
            while column + COLUMNS * LANES <= self.value_dim {
                self.columns::<S, COLUMNS>(column);
                column += COLUMNS * LANES;
            }
            while column < self.value_dim {
                self.columns::<S, 1>(column);
                column += LANES;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::float::activation::{gate_by_sigmoid, sigmoid};
    use pangea_units::SplitMix64;

    fn families() -> impl Iterator<Item = Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.is_available())
    }

    fn floats(random: &mut SplitMix64, len: usize) -> Vec<f32> {
        (0..len).map(|_| random.signed_unit()).collect()
    }

    #[test]
    fn gates_are_right_over_their_whole_range() {
        for i in -4000..4000 {
            let x = i as f32 * 0.05;
            let want = 1.0 / (1.0 + (-f64::from(x)).exp());
            assert!((f64::from(sigmoid(x)) - want).abs() <= 1.2e-7 * want + 1e-45, "sigmoid({x})");
            for a in [0.0, -1e-3, -0.5, -16.0, -1e30] {
                let softplus = f64::from(x).exp().ln_1p();
                let softplus = if softplus.is_finite() { softplus } else { f64::from(x) };
                let want = (f64::from(a) * softplus).exp();
                assert!((f64::from(decay(x, a)) - want).abs() <= 1.2e-7 * want + 1e-45, "decay({x}, {a})");
            }
        }
        for x in [f32::MAX, f32::MIN] {
            assert!(sigmoid(x).is_finite() && decay(x, -0.5).is_finite() && decay(x, 0.0) == 1.0, "{x}");
        }
    }

    #[test]
    fn sums_of_squares_that_are_not_finite_are_reported() {
        for isa in families() {
            for bad in [f32::NAN, f32::INFINITY, 1e20] {
                let mut x = [1.0; 32];
                x[17] = bad;
                assert!(!unit(isa, &mut x, 1.0), "{isa:?}: {bad}");
            }
            let mut x = [0.5; 32];
            assert!(unit(isa, &mut x, 2.0));
            assert!((x.iter().map(|x| x * x).sum::<f32>() - 4.0).abs() < 1e-5);
        }
    }

    #[test]
    fn convolutions_and_gates_are_right_and_the_same_on_every_family() {
        let mut random = SplitMix64::new(3);
        let (taps, channels) = (4, 48);
        let rows: Vec<Vec<f32>> = (0..taps).map(|_| floats(&mut random, channels)).collect();
        let weights = floats(&mut random, taps * channels);
        let gate = floats(&mut random, channels);
        for missing in 0..taps {
            let inputs: Vec<*const f32> = rows
                .iter()
                .enumerate()
                .map(|(n, row)| if n < missing { std::ptr::null() } else { row.as_ptr() })
                .collect();
            let mut first: Option<Vec<u32>> = None;
            for isa in families() {
                let mut out = vec![0.0; channels];
                // SAFETY: all rows have the channels.
                unsafe { convolve(isa, &inputs, weights.as_ptr(), channels, &mut out) };
                gate_by_sigmoid(isa, &mut out, &gate);
                for (channel, y) in out.iter().enumerate() {
                    let at = |tap: usize| f64::from(rows[tap][channel]) * f64::from(weights[tap * channels + channel]);
                    let sum: f64 = (missing..taps).map(at).sum();
                    let want = sum / (1.0 + (-sum).exp()) / (1.0 + (-f64::from(gate[channel])).exp());
                    assert!((f64::from(*y) - want).abs() < 1e-6, "{y} {want}");
                }
                let bits: Vec<u32> = out.iter().map(|x| x.to_bits()).collect();
                assert_eq!(*first.get_or_insert_with(|| bits.clone()), bits, "{isa:?}");
            }
        }
    }

    /// A head's whole input, its states and its outputs.
    struct Head {
        dims: (usize, usize),
        qkv: Vec<f32>,
        gates: Vec<f32>,
    }

    impl Head {
        fn new(key_dim: usize, value_dim: usize, positions: usize) -> Head {
            let mut random = SplitMix64::new(9);
            let mut qkv = floats(&mut random, positions * (2 * key_dim + value_dim));
            for row in qkv.chunks_exact_mut(2 * key_dim + value_dim) {
                assert!(unit(Isa::Plain, &mut row[..key_dim], 0.25));
                assert!(unit(Isa::Plain, &mut row[key_dim..2 * key_dim], 1.0));
            }
            let gates = (0..positions * 2).map(|_| 0.5 + 0.5 * random.signed_unit()).collect();
            Head { dims: (key_dim, value_dim), qkv, gates }
        }

        fn ld(&self) -> usize {
            2 * self.dims.0 + self.dims.1
        }

        /// Outputs of `unseen..end` and the state after `end` from the state before `start`, and that before `kept`.
        fn run(
            &self,
            isa: Isa,
            range: std::ops::Range<usize>,
            unseen: usize,
            from: Option<&[f32]>,
            kept: usize,
        ) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
            let (key_dim, value_dim) = self.dims;
            let (mut to, mut keep) = (vec![7.0; key_dim * value_dim], vec![7.0; key_dim * value_dim]);
            let mut out = vec![7.0; (range.len() - unseen) * value_dim];
            let row = &self.qkv[range.start * self.ld()..];
            let recurrence = Recurrence {
                key_dim,
                value_dim,
                positions: range.len(),
                unseen,
                query: row.as_ptr(),
                key: row[key_dim..].as_ptr(),
                value: row[2 * key_dim..].as_ptr(),
                ld: self.ld(),
                gates: self.gates[2 * range.start..].as_ptr(),
                gates_ld: 2,
                from: from.map_or(std::ptr::null(), <[f32]>::as_ptr),
                to: to.as_mut_ptr(),
                kept: [Some((kept - range.start, keep.as_mut_ptr())), None],
                out: out.as_mut_ptr(),
                out_ld: value_dim,
            };
            // SAFETY: the vectors have as many elements as the sizes say.
            unsafe { recurrence.run(isa) };
            (out, to, keep)
        }

        /// The same in f64, as the paper has it: S = S · decay; S += k ⊗ beta · (v − Sᵀk); o = Sᵀq.
        fn by_the_paper(&self, positions: usize) -> (Vec<f64>, Vec<f64>) {
            let (key_dim, value_dim) = self.dims;
            let (mut state, mut out) = (vec![0.0; key_dim * value_dim], Vec::new());
            for position in 0..positions {
                let row: Vec<f64> =
                    self.qkv[position * self.ld()..][..self.ld()].iter().map(|x| f64::from(*x)).collect();
                let (q, k, v) = (&row[..key_dim], &row[key_dim..2 * key_dim], &row[2 * key_dim..]);
                let (decay, beta) = (f64::from(self.gates[2 * position]), f64::from(self.gates[2 * position + 1]));
                state.iter_mut().for_each(|x| *x *= decay);
                for (j, v) in v.iter().enumerate() {
                    let remembered: f64 = (0..key_dim).map(|i| state[i * value_dim + j] * k[i]).sum();
                    let delta = beta * (v - remembered);
                    (0..key_dim).for_each(|i| state[i * value_dim + j] += k[i] * delta);
                    out.push((0..key_dim).map(|i| state[i * value_dim + j] * q[i]).sum());
                }
            }
            (out, state)
        }
    }

    #[test]
    fn the_recurrence_is_the_papers_and_any_cut_of_it_gives_the_same_bits() {
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
        for (key_dim, value_dim) in [(16, 16), (32, 48), (128, 128), (48, 80)] {
            const POSITIONS: usize = 21;
            let head = Head::new(key_dim, value_dim, POSITIONS);
            let (out, state, _) = head.run(Isa::Plain, 0..POSITIONS, 0, None, 0);
            let (paper_out, paper_state) = head.by_the_paper(POSITIONS);
            for (ours, theirs) in out.iter().zip(&paper_out).chain(state.iter().zip(&paper_state)) {
                assert!((f64::from(*ours) - theirs).abs() < 2e-5, "{ours} {theirs}");
            }
            for isa in families() {
                for cut in [1, 7, 20] {
                    let (first, between, _) = head.run(isa, 0..cut, 0, None, 0);
                    let (second, after, _) = head.run(isa, cut..POSITIONS, 0, Some(&between), cut);
                    assert_eq!(bits(&[first, second].concat()), bits(&out), "{isa:?} {cut}");
                    assert_eq!(bits(&after), bits(&state), "{isa:?} {cut}");
                    // The state before a position is kept on the way, and what was seen before gives no output again.
                    let (_, _, kept) = head.run(isa, 0..POSITIONS, 0, None, cut);
                    assert_eq!(bits(&kept), bits(&between), "{isa:?} {cut}");
                    let (again, after, _) = head.run(isa, 0..POSITIONS, cut, None, 0);
                    assert_eq!(bits(&again), bits(&out[cut * value_dim..]), "{isa:?} {cut}");
                    assert_eq!(bits(&after), bits(&state), "{isa:?} {cut}");
                }
            }
        }
    }
}
