//! Kernels without a matrix of weights: norms, activations, soft caps, rotation with the cache, attention, routing, sums of experts.

use super::first_difference;
use crate::gpu::{
    AttentionShape, GPU_PAGE_POSITIONS, Gpu, GpuActivation, GpuBuffer, GpuChosen, GpuGating, GpuPlaces, GpuRows,
    GpuSequence, QueryKeyValue, ReadSlot, Readback, Rotation,
};
use crate::kernel::float::activation::{Activation, gate_by_sigmoid, gated, soft_cap};
use crate::kernel::float::attention::{Terms, attend_alone};
use crate::kernel::float::mixture::{Chosen, Gating, add_scaled, route};
use crate::kernel::float::norm::{rms_norm, rms_norm_head};
use crate::kernel::float::rope;
use crate::{Error, Isa};
use half::f16;
use pangea_units::SplitMix64;
use std::sync::Arc;

/// The difference of a kernel's results from the CPU's, if there is one.
type Difference = Result<Option<String>, Error>;

const EPSILON: f32 = 1e-5;

/// The first result that differs from the CPU's.
///
/// # Errors
/// [`Error::OutOfMemory`]; [`Error::DeviceLost`].
pub(super) fn probe(gpu: &Arc<Gpu>) -> Difference {
    let kernels: [fn(&Arc<Gpu>) -> Difference; 5] = [norms, activations, caps, experts, attention];
    for kernel in kernels {
        if let Some(difference) = kernel(gpu)? {
            return Ok(Some(difference));
        }
    }
    Ok(None)
}

fn floats(random: &mut SplitMix64, count: usize, size: f32) -> Vec<f32> {
    (0..count).map(|_| size * random.signed_unit()).collect()
}

/// Runs what `record` records and gives the rows of `y`.
fn run(
    gpu: &Arc<Gpu>,
    y: &GpuRows,
    record: impl FnOnce(&mut crate::gpu::Commands) -> Result<(), Error>,
) -> Result<(Vec<f32>, Readback), Error> {
    let mut commands = gpu.exact_commands();
    record(&mut commands)?;
    let slot: ReadSlot = y.read(&mut commands, 0..y.rows())?;
    let readback = commands.finish()?;
    Ok((y.elements(&readback, slot), readback))
}

fn norms(gpu: &Arc<Gpu>) -> Difference {
    let mut random = SplitMix64::new(11);
    for (rows, cols) in [(5, 300), (3, 64), (1, 7)] {
        let (x, weight) = (floats(&mut random, rows * cols, 30.0), floats(&mut random, cols, 2.0));
        let before = floats(&mut random, rows * cols, 1.0);
        for add in [false, true] {
            let y = GpuRows::of(gpu, cols, &before, "norms on the GPU")?;
            let x_on_gpu = GpuRows::of(gpu, cols, &x, "rows on the GPU")?;
            let weight_on_gpu = GpuBuffer::of(gpu, &weight, "weights on the GPU")?;
            let (ours, _) =
                run(gpu, &y, |commands| commands.rms_norm(&x_on_gpu, &weight_on_gpu, EPSILON, &y, rows, add, 0))?;
            let mut expected = before.clone();
            for (x, expected) in x.chunks_exact(cols).zip(expected.chunks_exact_mut(cols)) {
                let mut normed = vec![0.0; cols];
                // Of finite numbers.
                let _ = rms_norm(Isa::best(), x, &weight, EPSILON, &mut normed);
                let sum = |(y, x): (&mut f32, f32)| *y = if add { *y + x } else { x };
                expected.iter_mut().zip(normed).for_each(sum);
            }
            if let Some(difference) = first_difference(format!("a norm of {cols}"), &ours, &expected) {
                return Ok(Some(difference));
            }
        }
    }
    Ok(None)
}

/// Numbers within and beyond the range of exponentials, of both signs, and those at its ends.
fn sweep(random: &mut SplitMix64, count: usize) -> Vec<f32> {
    let ends = [0.0, -0.0, 1e-40, -1e-40, 87.0, 88.0, 88.7, 89.0, -87.0, -87.01, -104.0, 1e30, -1e30, 7.0, -7.0, 3e-8];
    let rest = (ends.len()..count).map(|at| {
        let size = [4.0, 30.0, 100.0, 1e-3][at % 4];
        size * random.signed_unit()
    });
    ends.into_iter().chain(rest).collect()
}

fn activations(gpu: &Arc<Gpu>) -> Difference {
    let mut random = SplitMix64::new(12);
    let cols = 1 << 13;
    let (x, u) = (sweep(&mut random, cols), floats(&mut random, cols, 10.0));
    let kinds = [
        (GpuActivation::Silu, Activation::Silu),
        (GpuActivation::Gelu, Activation::Gelu),
        (GpuActivation::Clamped, Activation::Clamped),
    ];
    for (on_gpu, activation) in kinds {
        let (gate, up) =
            (GpuRows::of(gpu, cols, &x, "gates on the GPU")?, GpuRows::of(gpu, cols, &u, "rows on the GPU")?);
        let (ours, _) = run(gpu, &gate, |commands| commands.activate(on_gpu, &gate, &up, 1, 0))?;
        let mut expected = x.clone();
        gated(Isa::best(), activation, &mut expected, &u);
        if let Some(difference) = first_difference(format!("{activation:?}"), &ours, &expected) {
            return Ok(Some(difference));
        }
    }
    Ok(None)
}

fn caps(gpu: &Arc<Gpu>) -> Difference {
    let mut random = SplitMix64::new(13);
    let cols = 1 << 12;
    let (x, y) = (sweep(&mut random, cols), floats(&mut random, cols, 3.0));
    let rows = |elements: &[f32]| GpuRows::of(gpu, cols, elements, "rows on the GPU");
    let (capped, scaled, summed, addend) = (rows(&x)?, rows(&x)?, rows(&x)?, rows(&y)?);
    let (ours, _) = run(gpu, &capped, |commands| commands.soft_cap(&capped, 30.0, 1, 0))?;
    let mut expected = x.clone();
    soft_cap(Isa::best(), &mut expected, 30.0);
    if let Some(difference) = first_difference("a soft cap", &ours, &expected) {
        return Ok(Some(difference));
    }
    let (ours, _) = run(gpu, &scaled, |commands| commands.scale(&scaled, 0.3, 1, 0))?;
    let expected: Vec<f32> = x.iter().map(|x| x * 0.3).collect();
    if let Some(difference) = first_difference("a factor", &ours, &expected) {
        return Ok(Some(difference));
    }
    let (ours, _) = run(gpu, &summed, |commands| commands.add(&summed, &addend, 1, 0))?;
    let expected: Vec<f32> = x.iter().zip(&y).map(|(x, y)| x + y).collect();
    Ok(first_difference("a sum of rows", &ours, &expected))
}

fn experts(gpu: &Arc<Gpu>) -> Difference {
    let mut random = SplitMix64::new(14);
    let (rows, experts, used, shared, cols) = (9, 40, 6, 1, 70);
    let correction = floats(&mut random, experts, 0.5);
    let correction_on_gpu = GpuBuffer::of(gpu, &correction, "corrections on the GPU")?;
    let sigmoid = Gating::Sigmoid { correction: Some(correction.clone()), scale: 2.5 };
    let on_gpu = GpuGating::Sigmoid { correction: Some(&correction_on_gpu), scale: 2.5 };
    for (gating, on_gpu) in [(Gating::Softmax, GpuGating::Softmax), (sigmoid, on_gpu)] {
        // Coarse, so that some are equal.
        let logits: Vec<f32> = (0..rows * experts).map(|_| (random.signed_unit() * 20.0).round() / 4.0).collect();
        let per_row = used + shared;
        let results = floats(&mut random, rows * per_row * cols, 1.0);
        let logits_on_gpu = GpuRows::of(gpu, experts, &logits, "logits on the GPU")?;
        let results_on_gpu = GpuRows::of(gpu, cols, &results, "rows on the GPU")?;
        let chosen = GpuChosen::new(gpu, rows, experts, used, shared)?;
        let sums = GpuRows::new(gpu, rows, cols, "sums on the GPU")?;
        let mut slot = None;
        let (ours, readback) = run(gpu, &sums, |commands| {
            commands.route(on_gpu, &logits_on_gpu, &sums, None, &chosen, rows, 0)?;
            commands.expert_sum(&results_on_gpu, &chosen, &sums, rows, false, 0)?;
            slot = Some(commands.read(chosen.buffer(), 0..2 * (rows * per_row) as u64)?);
            Ok(())
        })?;
        let choices: Vec<[u32; 2]> = slot.map(|slot| readback.get(slot)).unwrap_or_default();
        let (mut expected, mut weights, mut expected_weights) = (vec![0.0; rows * cols], Vec::new(), Vec::new());
        for row in 0..rows {
            let mut of_row = vec![Chosen::default(); used];
            // Of finite logits.
            let _ = route(Isa::best(), &gating, &mut logits[row * experts..][..experts].to_vec(), &mut of_row);
            of_row.push(Chosen { expert: experts as u32, weight: 1.0 });
            for (n, chosen) in of_row.iter().enumerate() {
                let slot = row * per_row + n;
                let [expert, weight] = choices.get(slot).copied().unwrap_or_default();
                weights.extend([expert as f32, f32::from_bits(weight)]);
                expected_weights.extend([chosen.expert as f32, chosen.weight]);
                let result = &results[slot * cols..][..cols];
                add_scaled(Isa::best(), chosen.weight, result, &mut expected[row * cols..][..cols]);
            }
        }
        let difference = first_difference("a choice of experts", &weights, &expected_weights)
            .or_else(|| first_difference("a sum of experts", &ours, &expected));
        if difference.is_some() {
            return Ok(difference);
        }
    }
    Ok(None)
}

/// A layer's attention, with all that there may be: norms, a window, a soft cap, sinks, gates.
struct Case {
    shape: AttentionShape,
    rows: usize,
    norms: bool,
    sinks: bool,
}

fn attention(gpu: &Arc<Gpu>) -> Difference {
    let shape = |heads, kv_heads, head_dim| AttentionShape {
        heads,
        kv_heads,
        head_dim,
        has_gates: false,
        window: usize::MAX,
        soft_cap: None,
    };
    let cases = [
        // Over two chains.
        Case { shape: shape(2, 1, 32), rows: 300, norms: false, sinks: false },
        Case { shape: AttentionShape { window: 21, ..shape(4, 2, 64) }, rows: 70, norms: true, sinks: true },
        Case {
            shape: AttentionShape { soft_cap: Some(20.0), has_gates: true, ..shape(2, 2, 80) },
            rows: 40,
            norms: false,
            sinks: false,
        },
    ];
    for case in cases {
        if let Some(difference) = attention_of(gpu, &case)? {
            return Ok(Some(difference));
        }
    }
    Ok(None)
}

fn attention_of(gpu: &Arc<Gpu>, case: &Case) -> Difference {
    let isa = Isa::best();
    let mut random = SplitMix64::new(15);
    let (shape, rows) = (case.shape, case.rows);
    let AttentionShape { heads, kv_heads, head_dim, .. } = shape;
    // Some of a head is not rotated.
    let pairs = head_dim / 2 - 4;
    let scale = 0.3;
    let (q, k, v) = (
        floats(&mut random, rows * shape.query_cols(), 2.0),
        floats(&mut random, rows * shape.kv_cols(), 2.0),
        floats(&mut random, rows * shape.kv_cols(), 2.0),
    );
    let (norms, sinks) = (floats(&mut random, 2 * head_dim, 1.5), floats(&mut random, heads, 3.0));
    let frequencies: Vec<f64> = (0..pairs).map(|pair| 1.0 / (1.0 + pair as f64)).collect();
    let mut angles = vec![0.0; rows * 2 * pairs];
    for (position, angles) in angles.chunks_exact_mut(2 * pairs).enumerate() {
        let (cos, sin) = angles.split_at_mut(pairs);
        rope::angles(position, &frequencies, 1.0, cos, sin);
    }

    let pages: Vec<u32> = (0..rows.div_ceil(GPU_PAGE_POSITIONS) as u32).rev().collect();
    let sequence = GpuSequence { rows: 0..rows, position: 0, pages: &pages };
    let places = GpuPlaces::new(gpu, shape, &[sequence])?;
    let of = |cols: usize, elements: &[f32]| GpuRows::of(gpu, cols, elements, "rows on the GPU");
    let (q_on_gpu, k_on_gpu) = (of(shape.query_cols(), &q)?, of(shape.kv_cols(), &k)?);
    let v_on_gpu = of(shape.kv_cols(), &v)?;
    let cache = GpuBuffer::new(gpu, pages.len() as u64 * shape.page_bytes(), "keys and values on the GPU")?;
    let buffer = |elements: &[f32]| GpuBuffer::of(gpu, elements, "vectors on the GPU");
    let (angles_on_gpu, norms_on_gpu, sinks_on_gpu) = (buffer(&angles)?, buffer(&norms)?, buffer(&sinks)?);
    let rotation = Rotation {
        angles: &angles_on_gpu,
        pairs,
        interleaved: false,
        norms: case.norms.then_some(&norms_on_gpu),
        epsilon: EPSILON,
        query_scale: scale,
    };
    let out = GpuRows::new(gpu, rows, heads * head_dim, "results on the GPU")?;
    let mut slot = None;
    let (ours, readback) = run(gpu, &out, |commands| {
        let of_rows = QueryKeyValue { q: &q_on_gpu, k: &k_on_gpu, v: &v_on_gpu };
        commands.rope_and_cache(&places, of_rows, rotation, &cache, 0)?;
        commands.attend(&places, &q_on_gpu, &cache, case.sinks.then_some(&sinks_on_gpu), &out, 0)?;
        slot = Some(q_on_gpu.read(commands, 0..rows)?);
        Ok(())
    })?;
    let our_queries = slot.map(|slot| q_on_gpu.elements(&readback, slot)).unwrap_or_default();

    let turned = |x: &[f32], norm: &[f32], row: usize, scale: f32| {
        let mut x = x.to_vec();
        if case.norms {
            // Of finite numbers.
            let _ = rms_norm_head(isa, &mut x, norm, EPSILON);
        }
        let (cos, sin) = angles[row * 2 * pairs..][..2 * pairs].split_at(pairs);
        rope::rotate(isa, &mut x, cos, sin, scale);
        x
    };
    let halves = |x: &[f32]| -> Vec<f16> { x.iter().map(|x| f16::from_f32(*x)).collect() };
    let stride = shape.query_cols() / heads;
    let (mut expected, mut expected_queries) = (vec![0.0; rows * heads * head_dim], q.clone());
    for kv_head in 0..kv_heads {
        let of_row = |x: &[f32], row: usize| x[row * shape.kv_cols() + kv_head * head_dim..][..head_dim].to_vec();
        let keys: Vec<Vec<f16>> =
            (0..rows).map(|row| halves(&turned(&of_row(&k, row), &norms[head_dim..], row, 1.0))).collect();
        let values: Vec<Vec<f16>> = (0..rows).map(|row| halves(&of_row(&v, row))).collect();
        for row in 0..rows {
            for head in kv_head * (heads / kv_heads)..(kv_head + 1) * (heads / kv_heads) {
                let from = row * shape.query_cols() + head * stride;
                let query = turned(&q[from..from + head_dim], &norms[..head_dim], row, scale);
                expected_queries[from..from + head_dim].copy_from_slice(&query);
                let terms = Terms { window: shape.window, soft_cap: shape.soft_cap };
                let sink = if case.sinks { sinks[head] } else { f32::NEG_INFINITY };
                let mut result = attend_alone(&query, &keys[..=row], &values[..=row], terms, sink);
                if shape.has_gates {
                    gate_by_sigmoid(isa, &mut result, &q[from + head_dim..from + 2 * head_dim]);
                }
                expected[(row * heads + head) * head_dim..][..head_dim].copy_from_slice(&result);
            }
        }
    }
    Ok(first_difference("a rotation", &our_queries, &expected_queries)
        .or_else(|| first_difference("attention", &ours, &expected)))
}
