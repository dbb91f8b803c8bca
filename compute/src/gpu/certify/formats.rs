//! Kernels that read weights: activations in 8 bits, products, products of experts, embeddings.

use super::first_difference;
use crate::Error;
use crate::gguf::{GgmlType, dequantize, is_finite};
use crate::gpu::{Gpu, GpuBuffer, GpuChosen, GpuGating, GpuMatrix, GpuRows, Store};
use crate::kernel::quant::whole_product;
use pangea_units::SplitMix64;
use std::sync::Arc;

/// Outputs: more than a workgroup has, and not a multiple.
const OUTS: usize = 70;

/// Rows of products: each kernel, whole and in part.
const ROWS: [usize; 3] = [1, 3, 13];

/// The first result that differs from the CPU's.
///
/// # Errors
/// [`Error::OutOfMemory`]; [`Error::DeviceLost`].
pub(super) fn probe(gpu: &Arc<Gpu>, ty: GgmlType) -> Result<Option<String>, Error> {
    let mut random = SplitMix64::new(u64::from(ty.id()));
    // Float weights in rows that are not whole blocks.
    let k = if ty.block_len() == 1 { 77 } else { ty.block_len().max(96).next_multiple_of(ty.block_len()) * 2 };
    let bytes = weights(&mut random, ty, OUTS * k / ty.block_len());
    let w = GpuMatrix::of_bytes(gpu, ty, OUTS, k, &bytes)?;
    for rows in ROWS {
        let elements = activations(&mut random, rows * k);
        let x = GpuRows::of(gpu, k, &elements, "activations on the GPU")?;
        let y = GpuRows::new(gpu, rows, OUTS, "products on the GPU")?;
        let mut commands = gpu.exact_commands();
        commands.quantize(&x, rows, 0)?;
        commands.product(&w, &x, &y, rows, Store::default())?;
        let slot = y.read(&mut commands, 0..rows)?;
        let ours = y.elements(&commands.finish()?, slot);
        let expected = whole_product(ty, (OUTS, k), &bytes, &elements)?;
        if let Some(difference) = first_difference(format!("a product of {rows} rows with {ty}"), &ours, &expected) {
            return Ok(Some(difference));
        }
    }
    if let Some(difference) = experts(gpu, ty, &mut random, k)? {
        return Ok(Some(difference));
    }
    let tokens: Vec<u32> = (0..OUTS as u32).rev().collect();
    let scale = 15.5;
    let y = GpuRows::new(gpu, OUTS, k, "embeddings on the GPU")?;
    let mut commands = gpu.exact_commands();
    let tokens_on_gpu = GpuBuffer::of(gpu, &tokens, "tokens on the GPU")?;
    commands.embed(&w, &tokens_on_gpu, OUTS, scale, &y, 0)?;
    let slot = y.read(&mut commands, 0..OUTS)?;
    let ours = y.elements(&commands.finish()?, slot);
    let mut expected = vec![0.0; OUTS * k];
    dequantize(ty, &bytes, &mut expected)?;
    let expected: Vec<f32> = expected.chunks_exact(k).rev().flatten().map(|x| x * scale).collect();
    Ok(first_difference(format!("an embedding in {ty}"), &ours, &expected))
}

/// Products of slots with their experts.
fn experts(gpu: &Arc<Gpu>, ty: GgmlType, random: &mut SplitMix64, k: usize) -> Result<Option<String>, Error> {
    let (experts, used, rows) = (3, 2, 4);
    let bytes = weights(random, ty, experts * OUTS * k / ty.block_len());
    let w = GpuMatrix::new(gpu, ty, experts * OUTS, k, OUTS)?;
    w.write(gpu, &bytes)?;
    let elements = activations(random, rows * k);
    let logits: Vec<f32> = (0..rows * experts).map(|_| random.signed_unit()).collect();
    let x = GpuRows::of(gpu, k, &elements, "activations on the GPU")?;
    let logits = GpuRows::of(gpu, experts, &logits, "logits on the GPU")?;
    let y = GpuRows::new(gpu, rows * used, OUTS, "products on the GPU")?;
    let chosen = GpuChosen::new(gpu, rows, experts, used, 0)?;
    let mut commands = gpu.exact_commands();
    commands.quantize(&x, rows, 0)?;
    commands.route(GpuGating::Softmax, &logits, &x, None, &chosen, rows, 0)?;
    commands.expert_product(&w, &chosen, &x, true, &y, rows, None)?;
    let (slot, choice) =
        (y.read(&mut commands, 0..rows * used)?, commands.read(chosen.buffer(), 0..2 * (rows * used) as u64)?);
    let readback = commands.finish()?;
    // [rows, experts, outputs]
    let all = whole_product(ty, (experts * OUTS, k), &bytes, &elements)?;
    let choice: Vec<[u32; 2]> = readback.get(choice);
    let expected: Vec<f32> = (0..rows * used)
        .flat_map(|slot| {
            let expert = choice.get(slot).map_or(0, |[expert, _]| (*expert as usize).min(experts - 1));
            &all[(slot / used * experts + expert) * OUTS..][..OUTS]
        })
        .copied()
        .collect();
    Ok(first_difference(format!("a product of experts in {ty}"), &y.elements(&readback, slot), &expected))
}

/// Blocks of any codes, with scales of any size that is finite.
fn weights(random: &mut SplitMix64, ty: GgmlType, blocks: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..blocks {
        let start = bytes.len();
        let any = |random: &mut SplitMix64| random.signed_unit() * 2f32.powi(random.index(40) as i32 - 20);
        match ty {
            GgmlType::F32 => bytes.extend(any(random).to_le_bytes()),
            GgmlType::BF16 => bytes.extend(half::bf16::from_f32(any(random)).to_le_bytes()),
            _ => loop {
                bytes.truncate(start);
                bytes.resize_with(start + ty.block_bytes(), || random.bits() as u8);
                if is_finite(ty, &bytes[start..]) {
                    break;
                }
            },
        }
    }
    bytes
}

/// Numbers of several sizes; blocks of zeros, and of numbers too small to have a scale.
fn activations(random: &mut SplitMix64, count: usize) -> Vec<f32> {
    let of = |at: usize, random: &mut SplitMix64| match at / 32 % 7 {
        3 => 0.0,
        5 => 1e-40 * random.signed_unit(),
        6 => random.signed_unit() * 2f32.powi(random.index(60) as i32 - 30),
        // Halves of the largest one's 127th part: ties.
        1 => (random.index(255) as f32 - 127.0) / 2.0,
        _ => random.signed_unit(),
    };
    (0..count).map(|at| of(at, random)).collect()
}
