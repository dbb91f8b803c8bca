//! Embedding, norms, activations, sums, soft caps, the largest element.

use super::{assert_close, floats, gpu, weights};
use pangea_compute::gguf::GgmlType;
use pangea_compute::gpu::{Gpu, GpuActivation, GpuBuffer, GpuMatrix, GpuRows, ReadSlot, Readback};
use pangea_units::SplitMix64;
use std::sync::Arc;

/// Runs what `record` records and gives the rows of `y`.
fn run(gpu: &Arc<Gpu>, y: &GpuRows, record: impl FnOnce(&mut pangea_compute::gpu::Commands)) -> (Vec<f32>, Readback) {
    let mut commands = gpu.commands();
    record(&mut commands);
    let slot: ReadSlot = y.read(&mut commands, 0..y.rows()).unwrap();
    let readback = commands.finish().unwrap();
    (y.elements(&readback, slot), readback)
}

fn sized(values: impl Iterator<Item = f64>) -> Vec<(f64, f64)> {
    values.map(|value| (value, value.abs() + 1e-3)).collect()
}

#[test]
fn a_norm_divides_by_the_root_of_the_mean_square() {
    let Some(gpu) = gpu("a_norm_divides_by_the_root_of_the_mean_square") else { return };
    let mut random = SplitMix64::new(1);
    for (rows, cols) in [(1, 1), (2, 7), (33, 256), (3, 1000), (7, 2305)] {
        let (x, weight, before) =
            (floats(&mut random, rows * cols), floats(&mut random, cols), floats(&mut random, rows * cols));
        let on_gpu = GpuRows::of(&gpu, cols, &x, "x").unwrap();
        let of_weight = GpuBuffer::of(&gpu, &weight, "weight").unwrap();
        for add in [false, true] {
            let y = GpuRows::of(&gpu, cols, &before, "y").unwrap();
            let (got, readback) = run(&gpu, &y, |commands| {
                commands.rms_norm(&on_gpu, &of_weight, 1e-5, &y, rows, add, 5).unwrap();
            });
            assert_eq!(readback.fault, None);
            let want: Vec<(f64, f64)> = (0..rows * cols)
                .map(|at| {
                    let row = &x[at / cols * cols..][..cols];
                    let mean = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / cols as f64;
                    let normed = f64::from(x[at]) / (mean + 1e-5).sqrt() * f64::from(weight[at % cols]);
                    let before = if add { f64::from(before[at]) } else { 0.0 };
                    (normed + before, normed.abs() + before.abs())
                })
                .collect();
            assert_close(&format!("{rows} x {cols}"), &got, &want, 1e-6);
        }
    }
}

#[test]
fn a_value_that_is_not_finite_is_reported_with_the_least_code() {
    let Some(gpu) = gpu("a_value_that_is_not_finite_is_reported_with_the_least_code") else { return };
    let weight = GpuBuffer::of(&gpu, &[1.0f32; 40], "weight").unwrap();
    let y = GpuRows::new(&gpu, 3, 40, "y").unwrap();
    for (bad, at) in [(f32::NAN, 0), (f32::INFINITY, 79), (f32::NEG_INFINITY, 119), (2e19, 40)] {
        let mut elements = vec![1.0; 120];
        elements[at] = bad;
        let x = GpuRows::of(&gpu, 40, &elements, "x").unwrap();
        let (_, readback) = run(&gpu, &y, |commands| {
            commands.rms_norm(&x, &weight, 1e-5, &y, 3, false, 70_000).unwrap();
            commands.rms_norm(&x, &weight, 1e-5, &y, 3, false, 9).unwrap();
            commands.rms_norm(&x, &weight, 1e-5, &y, 3, false, 11).unwrap();
        });
        assert_eq!(readback.fault, Some(9), "{bad} at {at}");
    }
    let x = GpuRows::of(&gpu, 40, &[1.0; 120], "x").unwrap();
    let (_, readback) = run(&gpu, &y, |commands| commands.rms_norm(&x, &weight, 1e-5, &y, 3, false, 9).unwrap());
    assert_eq!(readback.fault, None);
}

#[test]
fn activations_gate_what_goes_up() {
    let Some(gpu) = gpu("activations_gate_what_goes_up") else { return };
    let mut random = SplitMix64::new(2);
    let (rows, cols) = (5, 203);
    let mut gate: Vec<f32> = floats(&mut random, rows * cols).iter().map(|x| 12.0 * x).collect();
    gate[..6].copy_from_slice(&[0.0, -0.0, 100.0, -100.0, 1e6, -1e6]);
    let up: Vec<f32> = floats(&mut random, rows * cols).iter().map(|x| 9.0 * x).collect();
    let of_up = GpuRows::of(&gpu, cols, &up, "up").unwrap();
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    for activation in [GpuActivation::Silu, GpuActivation::Gelu, GpuActivation::Clamped] {
        let y = GpuRows::of(&gpu, cols, &gate, "gate").unwrap();
        let (got, readback) = run(&gpu, &y, |commands| commands.activate(activation, &y, &of_up, rows, 1).unwrap());
        assert_eq!(readback.fault, None);
        let want = gate.iter().zip(&up).map(|(g, u)| {
            let (g, u) = (f64::from(*g), f64::from(*u));
            match activation {
                GpuActivation::Silu => g * sigmoid(g) * u,
                GpuActivation::Gelu => {
                    0.5 * g * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (g + 0.044715 * g.powi(3))).tanh()) * u
                }
                GpuActivation::Clamped => {
                    let g = g.min(7.0);
                    g * sigmoid(1.702 * g) * (u.clamp(-7.0, 7.0) + 1.0)
                }
            }
        });
        let want: Vec<(f64, f64)> =
            want.zip(&gate).map(|(value, gate)| (value, value.abs() + f64::from(gate.abs()) + 0.1)).collect();
        assert_close(&format!("{activation:?}"), &got, &want, 1e-5);
        let infinite = GpuRows::of(&gpu, 1, &[f32::NEG_INFINITY], "gate").unwrap();
        let one = GpuRows::of(&gpu, 1, &[1.0], "up").unwrap();
        let (_, readback) =
            run(&gpu, &infinite, |commands| commands.activate(activation, &infinite, &one, 1, 4).unwrap());
        assert_eq!(readback.fault, Some(4), "{activation:?}");
    }
}

#[test]
fn rows_are_added_scaled_and_capped() {
    let Some(gpu) = gpu("rows_are_added_scaled_and_capped") else { return };
    let mut random = SplitMix64::new(3);
    let (rows, cols) = (3, 300);
    let (x, y) = (floats(&mut random, rows * cols), floats(&mut random, rows * cols));
    let of_y = GpuRows::of(&gpu, cols, &y, "y").unwrap();
    let fresh = || GpuRows::of(&gpu, cols, &x, "x").unwrap();
    let of_x = fresh();
    let (got, _) = run(&gpu, &of_x, |commands| commands.add(&of_x, &of_y, rows, 1).unwrap());
    assert!(got.iter().zip(&x).zip(&y).all(|((got, x), y)| *got == x + y));
    let of_x = fresh();
    let (got, _) = run(&gpu, &of_x, |commands| commands.scale(&of_x, 33.941_124, rows, 1).unwrap());
    assert!(got.iter().zip(&x).all(|(got, x)| *got == x * 33.941_124));
    let of_x = fresh();
    let (got, _) = run(&gpu, &of_x, |commands| {
        commands.scale(&of_x, 50.0, rows, 1).unwrap();
        commands.soft_cap(&of_x, 30.0, rows, 1).unwrap();
    });
    assert_close("soft cap", &got, &sized(x.iter().map(|x| 30.0 * (50.0 * f64::from(*x) / 30.0).tanh())), 1e-5);
    // Only the rows that are asked for.
    let of_x = fresh();
    let (got, _) = run(&gpu, &of_x, |commands| commands.scale(&of_x, 0.0, 2, 1).unwrap());
    assert!(got[..2 * cols].iter().all(|x| *x == 0.0) && got[2 * cols..] == x[2 * cols..]);
}

#[test]
fn tokens_choose_rows_of_an_embedding_of_any_format_and_chunks() {
    let Some(gpu) = gpu("tokens_choose_rows_of_an_embedding_of_any_format_and_chunks") else { return };
    let mut random = SplitMix64::new(4);
    for ty in GgmlType::SUPPORTED {
        let (vocabulary, k) = (61, ty.block_len().max(32) * 3);
        let (bytes, values) = weights(&mut random, ty, vocabulary, k);
        let w = GpuMatrix::with_chunks_of(&gpu, ty, vocabulary, k, 1, 12_000).unwrap();
        w.write(&gpu, &bytes).unwrap();
        let tokens: Vec<u32> = vec![60, 0, 17, 17, 59, 3, 31];
        let on_gpu = GpuBuffer::of(&gpu, &tokens, "tokens").unwrap();
        let y = GpuRows::new(&gpu, tokens.len(), k, "y").unwrap();
        let (got, readback) = run(&gpu, &y, |commands| commands.embed(&w, &on_gpu, tokens.len(), 2.0, &y, 1).unwrap());
        assert_eq!(readback.fault, None);
        let want = tokens.iter().flat_map(|token| &values[*token as usize * k..][..k]);
        let range = values.iter().fold(0.0f32, |range, value| range.max(value.abs()));
        let want: Vec<(f64, f64)> = want.map(|value| (2.0 * f64::from(*value), f64::from(range))).collect();
        assert_close(ty.name(), &got, &want, 1e-6);
    }
}

#[test]
fn the_largest_element_is_found_and_of_equal_ones_the_first() {
    let Some(gpu) = gpu("the_largest_element_is_found_and_of_equal_ones_the_first") else { return };
    let mut random = SplitMix64::new(5);
    for cols in [1, 2, 255, 256, 257, 5000] {
        let rows = 9;
        let x: Vec<f32> = (0..rows * cols).map(|_| random.index(1 + cols / 20) as f32 - 7.0).collect();
        let on_gpu = GpuRows::of(&gpu, cols, &x, "x").unwrap();
        let chosen = GpuBuffer::new(&gpu, 4 * rows as u64, "chosen").unwrap();
        let mut commands = gpu.commands();
        commands.argmax(&on_gpu, &chosen, rows, 1).unwrap();
        let slot = commands.read(&chosen, 0..rows as u64).unwrap();
        let readback = commands.finish().unwrap();
        assert_eq!(readback.fault, None);
        let want: Vec<u32> = x
            .chunks_exact(cols)
            .map(|row| {
                let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                row.iter().position(|x| *x == most).unwrap() as u32
            })
            .collect();
        assert_eq!(readback.get::<u32>(slot), want, "{cols}");
    }
    let x = GpuRows::of(&gpu, 3, &[1.0, f32::NAN, 2.0], "x").unwrap();
    let chosen = GpuBuffer::new(&gpu, 4, "chosen").unwrap();
    let mut commands = gpu.commands();
    commands.argmax(&x, &chosen, 1, 6).unwrap();
    assert_eq!(commands.finish().unwrap().fault, Some(6));
}
