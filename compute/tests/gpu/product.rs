//! Products of rows with weights of every format.

use super::{assert_close, floats, gpu, reference, weights};
use pangea_compute::gguf::GgmlType;
use pangea_compute::gpu::{Gpu, GpuBuffer, GpuMatrix, GpuRows, Store};
use pangea_units::SplitMix64;
use std::sync::Arc;

/// Rounding of sums of some hundred addends in f32, in any order.
const BOUND: f64 = 4e-6;

/// Numbers of rows: each kernel for few rows whole and in part, the tiled one below, at and above a tile.
const ROWS: [usize; 6] = [1, 2, 7, 33, 64, 256];

/// `rows` rows of elements times a matrix.
fn product(gpu: &Arc<Gpu>, w: &GpuMatrix, elements: &[f32], rows: usize) -> Vec<f32> {
    let x = GpuRows::of(gpu, w.k(), elements, "x").unwrap();
    let y = GpuRows::new(gpu, rows, w.rows(), "y").unwrap();
    let mut commands = gpu.commands();
    commands.product(w, &x, &y, rows, Store::default()).unwrap();
    let slot = y.read(&mut commands, 0..rows).unwrap();
    y.elements(&commands.finish().unwrap(), slot)
}

fn check(ty: GgmlType, outs: usize, k: usize, row_counts: &[usize]) {
    let Some(gpu) = gpu("products on the GPU") else { return };
    let mut random = SplitMix64::new(u64::from(ty.id()) + 100 * k as u64);
    let (bytes, values) = weights(&mut random, ty, outs, k);
    let w = GpuMatrix::of_bytes(&gpu, ty, outs, k, &bytes).unwrap();
    for rows in row_counts.iter().copied() {
        let elements = floats(&mut random, rows * k);
        let got = product(&gpu, &w, &elements, rows);
        assert_close(
            &format!("{ty}, {rows} rows of {k}, {outs} outputs"),
            &got,
            &reference(&elements, &values, k),
            BOUND,
        );
    }
}

/// One test for each format: they share a device and the time of its compiler.
macro_rules! of_format {
    ($($name:ident: $ty:ident, $k:expr, $outs:expr;)*) => {
        $(#[test]
        fn $name() {
            check(GgmlType::$ty, $outs, $k, &ROWS);
            // One block, one output.
            check(GgmlType::$ty, 1, GgmlType::$ty.block_len().max(3), &[1, 33]);
        })*
    };
}

of_format! {
    products_of_f32: F32, 101, 67;
    products_of_f16: F16, 77, 66;
    products_of_bf16: BF16, 130, 63;
    products_of_q4_0: Q4_0, 96, 67;
    products_of_q4_1: Q4_1, 160, 65;
    products_of_q5_0: Q5_0, 96, 61;
    products_of_q5_1: Q5_1, 32, 70;
    products_of_q8_0: Q8_0, 1120, 33;
    products_of_iq4_nl: IQ4NL, 96, 67;
    products_of_iq4_xs: IQ4XS, 512, 67;
    products_of_mxfp4: MXFP4, 96, 67;
    products_of_q2_k: Q2K, 256, 67;
    products_of_q3_k: Q3K, 512, 31;
    products_of_q4_k: Q4K, 768, 67;
    products_of_q5_k: Q5K, 512, 66;
    products_of_q6_k: Q6K, 1280, 35;
}

#[test]
fn a_product_is_added_to_what_is_there_with_a_bias() {
    let Some(gpu) = gpu("a_product_is_added_to_what_is_there_with_a_bias") else { return };
    let mut random = SplitMix64::new(3);
    let (outs, k) = (37, 64);
    let (bytes, values) = weights(&mut random, GgmlType::Q8_0, outs, k);
    let w = GpuMatrix::of_bytes(&gpu, GgmlType::Q8_0, outs, k, &bytes).unwrap();
    let bias = floats(&mut random, outs);
    let on_gpu = GpuBuffer::of(&gpu, &bias, "bias").unwrap();
    for rows in [3, 40] {
        let (elements, before) = (floats(&mut random, rows * k), floats(&mut random, rows * outs));
        for (with_bias, add) in [(true, false), (false, true), (true, true)] {
            let x = GpuRows::of(&gpu, k, &elements, "x").unwrap();
            let y = GpuRows::of(&gpu, outs, &before, "y").unwrap();
            let mut commands = gpu.commands();
            commands.product(&w, &x, &y, rows, Store { bias: with_bias.then_some(&on_gpu), add, code: 0 }).unwrap();
            let slot = y.read(&mut commands, 0..rows).unwrap();
            let mut want = reference(&elements, &values, k);
            for (at, (value, size)) in want.iter_mut().enumerate() {
                let addends = [
                    f64::from(bias[at % outs]) * f64::from(u8::from(with_bias)),
                    f64::from(before[at]) * f64::from(u8::from(add)),
                ];
                *value += addends[0] + addends[1];
                *size += addends[0].abs() + addends[1].abs();
            }
            assert_close(
                &format!("{rows} rows, {with_bias} {add}"),
                &y.elements(&commands.finish().unwrap(), slot),
                &want,
                BOUND,
            );
        }
    }
}

#[test]
fn a_matrix_in_chunks_gives_what_it_gives_whole_in_another_order_of_rows() {
    let Some(gpu) = gpu("a_matrix_in_chunks_gives_what_it_gives_whole_in_another_order_of_rows") else { return };
    let mut random = SplitMix64::new(4);
    for (ty, k, chunk_bytes) in [(GgmlType::Q4_0, 96, 3000), (GgmlType::Q6K, 256, 4000), (GgmlType::F16, 33, 1000)] {
        let (outs, rows) = (101, 5);
        let (bytes, values) = weights(&mut random, ty, outs, k);
        let row_bytes = k / ty.block_len() * ty.block_bytes();
        let w = GpuMatrix::with_chunks_of(&gpu, ty, outs, k, 1, chunk_bytes).unwrap();
        assert!(format!("{w:?}").ends_with(" chunks)") && !format!("{w:?}").contains(" 1 chunks"), "{w:?}");
        // Last row first.
        w.write_rows(&gpu, |row, to| {
            let from = (outs - 1 - row) * row_bytes;
            to.extend_from_slice(&bytes[from..from + row_bytes]);
        })
        .unwrap();
        let elements = floats(&mut random, rows * k);
        let got = product(&gpu, &w, &elements, rows);
        let reversed: Vec<f32> = values.chunks_exact(k).rev().flatten().copied().collect();
        assert_close(&format!("{ty}"), &got, &reference(&elements, &reversed, k), BOUND);
    }
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let Some(gpu) = gpu("shapes_that_do_not_fit_are_errors") else { return };
    let w = GpuMatrix::of_bytes(&gpu, GgmlType::F32, 3, 4, &[0; 48]).unwrap();
    let rows = |rows, cols| GpuRows::new(&gpu, rows, cols, "rows").unwrap();
    let mut commands = gpu.commands();
    commands.product(&w, &rows(1, 4), &rows(1, 3), 0, Store::default()).unwrap();
    assert_eq!(commands.dispatches(), 0);
    assert!(commands.product(&w, &rows(2, 4), &rows(1, 3), 2, Store::default()).is_err());
    assert!(commands.product(&w, &rows(1, 5), &rows(1, 3), 1, Store::default()).is_err());
    assert!(commands.product(&w, &rows(1, 4), &rows(1, 4), 1, Store::default()).is_err());
    assert!(GpuMatrix::new(&gpu, GgmlType::Q4_0, 3, 31, 1).is_err());
    assert!(GpuMatrix::of_bytes(&gpu, GgmlType::Q4_0, 3, 32, &[0; 53]).is_err());
}

#[test]
fn work_that_would_take_too_long_is_submitted_in_parts() {
    let Some(gpu) = gpu("work_that_would_take_too_long_is_submitted_in_parts") else { return };
    let mut random = SplitMix64::new(5);
    let (outs, k, rows) = (70, 64, 200);
    let (bytes, values) = weights(&mut random, GgmlType::Q8_0, outs, k);
    let w = GpuMatrix::of_bytes(&gpu, GgmlType::Q8_0, outs, k, &bytes).unwrap();
    let elements = floats(&mut random, rows * k);
    let x = GpuRows::of(&gpu, k, &elements, "x").unwrap();
    for (bound, submissions) in [(u64::MAX, 1), (65 * (outs * k) as u64, 4), (1, 4)] {
        let y = GpuRows::new(&gpu, rows, outs, "y").unwrap();
        let mut commands = gpu.commands();
        commands.bound_submissions(bound);
        commands.product(&w, &x, &y, rows, Store::default()).unwrap();
        let slot = y.read(&mut commands, 0..rows).unwrap();
        let readback = commands.finish().unwrap();
        assert_eq!(readback.submissions, submissions, "{bound}");
        assert_close("parts", &y.elements(&readback, slot), &reference(&elements, &values, k), BOUND);
    }
}
