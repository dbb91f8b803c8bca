//! A mixture of experts: the choice, the products, the weighted sum.

use super::{assert_close, floats, gpu, reference, weights};
use pangea_compute::gguf::GgmlType;
use pangea_compute::gpu::{GpuBuffer, GpuChosen, GpuGating, GpuMatrix, GpuRows};
use pangea_units::SplitMix64;

/// Experts and weights of the rows as the router's rules give them.
fn routed(
    logits: &[f32],
    experts: usize,
    used: usize,
    sigmoid: bool,
    correction: Option<&[f32]>,
    scale: f64,
) -> Vec<Vec<(u32, f64)>> {
    logits
        .chunks_exact(experts)
        .map(|logits| {
            let p =
                |at: usize| if sigmoid { 1.0 / (1.0 + (-f64::from(logits[at])).exp()) } else { f64::from(logits[at]) };
            let score = |at: usize| p(at) + correction.map_or(0.0, |correction| f64::from(correction[at]));
            let mut order: Vec<usize> = (0..experts).collect();
            order.sort_by(|a, b| score(*b).total_cmp(&score(*a)).then(a.cmp(b)));
            order.truncate(used);
            order.sort_unstable();
            let weight = |at: usize| if sigmoid { p(at) } else { p(at).exp() };
            let sum: f64 = order.iter().map(|at| weight(*at)).sum();
            order.iter().map(|at| (*at as u32, weight(*at) / sum * scale)).collect()
        })
        .collect()
}

#[test]
fn the_router_chooses_the_largest_and_of_equal_ones_the_lower_index() {
    let Some(gpu) = gpu("the_router_chooses_the_largest_and_of_equal_ones_the_lower_index") else { return };
    let mut random = SplitMix64::new(1);
    for (case, (experts, used)) in [(1, 1), (4, 4), (60, 4), (128, 8), (512, 10), (1000, 64)].into_iter().enumerate() {
        let rows = 7;
        // Many are equal, and the others are apart in f32 as well.
        let logits: Vec<f32> =
            (0..rows * experts).map(|_| random.index((experts / 3 + 2).min(64)) as f32 / 16.0 - 2.0).collect();
        let correction: Vec<f32> = (0..experts).map(|_| random.index(3) as f32).collect();
        let of_logits = GpuRows::of(&gpu, experts, &logits, "logits").unwrap();
        let of_correction = GpuBuffer::of(&gpu, &correction, "correction").unwrap();
        let x = floats(&mut random, rows * 33);
        let of_x = GpuRows::of(&gpu, 33, &x, "x").unwrap();
        let gate = floats(&mut random, 33);
        let of_gate = GpuBuffer::of(&gpu, &gate, "gate").unwrap();
        let shared = case % 3;
        for (sigmoid, corrected, gated) in [(false, false, false), (true, false, true), (true, true, false)] {
            let chosen = GpuChosen::new(&gpu, rows, experts, used, shared).unwrap();
            let gating = match sigmoid {
                false => GpuGating::Softmax,
                true => GpuGating::Sigmoid { correction: corrected.then_some(&of_correction), scale: 2.5 },
            };
            let mut commands = gpu.commands();
            commands.route(gating, &of_logits, &of_x, gated.then_some(&of_gate), &chosen, rows, 1).unwrap();
            let slot = commands.read(chosen.buffer(), 0..2 * chosen.slots() as u64).unwrap();
            let readback = commands.finish().unwrap();
            assert_eq!(readback.fault, None);
            let got: Vec<u32> = readback.get(slot);
            let scale = if sigmoid { 2.5 } else { 1.0 };
            let want = routed(&logits, experts, used, sigmoid, corrected.then_some(correction.as_slice()), scale);
            for (row, (got, want)) in got.chunks_exact(2 * (used + shared)).zip(want).enumerate() {
                let got: Vec<(u32, f32)> = got.chunks_exact(2).map(|slot| (slot[0], f32::from_bits(slot[1]))).collect();
                let dot: f64 = x[row * 33..][..33].iter().zip(&gate).map(|(x, g)| f64::from(*x) * f64::from(*g)).sum();
                let of_shared = if gated { 1.0 / (1.0 + (-dot).exp()) } else { 1.0 };
                let want = want.into_iter().chain((0..shared).map(|at| ((experts + at) as u32, of_shared)));
                for (got, want) in got.iter().zip(want) {
                    assert_eq!(got.0, want.0, "{experts} experts, {used} of them, {sigmoid} {corrected}");
                    assert!((f64::from(got.1) - want.1).abs() < 1e-5 * (want.1 + 0.01), "{got:?} {want:?}");
                }
            }
        }
    }
}

#[test]
fn each_row_is_computed_by_its_experts_in_chunks_and_their_results_are_weighed() {
    let Some(gpu) = gpu("each_row_is_computed_by_its_experts_in_chunks_and_their_results_are_weighed") else { return };
    let mut random = SplitMix64::new(2);
    let (experts, used, shared, hidden, intermediate) = (7, 2, 1, 96, 37);
    let all = experts + shared;
    // Slots on their own; by expert, in tiles in part; and more than a tile of one expert.
    let cases = [
        (GgmlType::Q4_0, GgmlType::F16, 9),
        (GgmlType::Q4_0, GgmlType::F16, 40),
        (GgmlType::MXFP4, GgmlType::F32, 130),
    ];
    for (up_type, down_type, rows) in cases {
        let (up_bytes, up_values) = weights(&mut random, up_type, all * intermediate, hidden);
        let (down_bytes, down_values) = weights(&mut random, down_type, all * hidden, intermediate);
        let up = GpuMatrix::with_chunks_of(&gpu, up_type, all * intermediate, hidden, intermediate, 8000).unwrap();
        up.write(&gpu, &up_bytes).unwrap();
        let down = GpuMatrix::with_chunks_of(&gpu, down_type, all * hidden, intermediate, hidden, 60_000).unwrap();
        down.write(&gpu, &down_bytes).unwrap();
        let (x, logits, bias, before) = (
            floats(&mut random, rows * hidden),
            floats(&mut random, rows * experts),
            floats(&mut random, all * intermediate),
            floats(&mut random, rows * hidden),
        );
        let of_x = GpuRows::of(&gpu, hidden, &x, "x").unwrap();
        let of_logits = GpuRows::of(&gpu, experts, &logits, "logits").unwrap();
        let of_bias = GpuBuffer::of(&gpu, &bias, "bias").unwrap();
        let chosen = GpuChosen::new(&gpu, rows, experts, used, shared).unwrap();
        let middle = GpuRows::new(&gpu, chosen.slots(), intermediate, "middle").unwrap();
        let results = GpuRows::new(&gpu, chosen.slots(), hidden, "results").unwrap();
        let y = GpuRows::of(&gpu, hidden, &before, "y").unwrap();
        let mut commands = gpu.commands();
        commands.route(GpuGating::Softmax, &of_logits, &of_x, None, &chosen, rows, 1).unwrap();
        commands.expert_product(&up, &chosen, &of_x, true, &middle, rows, Some(&of_bias)).unwrap();
        commands.expert_product(&down, &chosen, &middle, false, &results, rows, None).unwrap();
        commands.expert_sum(&results, &chosen, &y, rows, true, 2).unwrap();
        let slot = y.read(&mut commands, 0..rows).unwrap();
        let readback = commands.finish().unwrap();
        assert_eq!(readback.fault, None);
        let got = y.elements(&readback, slot);
        let mut want = Vec::new();
        for (row, chosen) in routed(&logits, experts, used, false, None, 1.0).into_iter().enumerate() {
            let mut sums: Vec<(f64, f64)> =
                before[row * hidden..][..hidden].iter().map(|x| (f64::from(*x), 1.0)).collect();
            for (expert, weight) in chosen.into_iter().chain((0..shared).map(|at| ((experts + at) as u32, 1.0))) {
                let expert = expert as usize;
                let w = &up_values[expert * intermediate * hidden..][..intermediate * hidden];
                let middle: Vec<f32> = reference(&x[row * hidden..][..hidden], w, hidden)
                    .into_iter()
                    .zip(&bias[expert * intermediate..])
                    .map(|((value, _), bias)| (value + f64::from(*bias)) as f32)
                    .collect();
                let w = &down_values[expert * hidden * intermediate..][..hidden * intermediate];
                for (sum, (value, size)) in sums.iter_mut().zip(reference(&middle, w, intermediate)) {
                    *sum = (sum.0 + weight * value, sum.1 + weight * size);
                }
            }
            want.extend(sums);
        }
        assert_close(up_type.name(), &got, &want, 1e-5);
    }
}
