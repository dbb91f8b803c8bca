//! One weight matrix of a GGUF file, packed, and its product with rows of f32 activations: a linear layer as one call.
//! A model does not use this: it packs its matrices together and fuses the steps between them.
#![allow(unsafe_code)]

use crate::gguf::GgmlType;
use crate::kernel::float::activation::all_finite;
use crate::kernel::quant::{Input, Matrix, Quantized, Store, pack, packed_bytes, product, tiles};
use crate::kernel::shared::Shared;
use crate::{Buffer, Error, Pool};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Tiles that a thread packs at a time: some hundred KiB.
const PACKED_AT_ONCE: usize = 32;

/// A weight matrix `[rows, k]` in its packed form.
pub struct Linear {
    matrix: Matrix,
    /// The memory of the matrix.
    arena: Arc<Buffer>,
    /// Memory for quantised activations, kept from product to product.
    quantized: Mutex<Quantized>,
}

impl Linear {
    /// Packs the matrix whose GGUF blocks are `bytes`, row by row, on all threads of the pool.
    ///
    /// # Errors
    /// [`Error::Invalid`] where `k` is not whole blocks of the type or `bytes` is not `rows` such rows;
    /// [`Error::OutOfMemory`].
    pub fn new(pool: &Pool, ty: GgmlType, rows: usize, k: usize, bytes: &[u8]) -> Result<Linear, Error> {
        let expected = (k / ty.block_len()).checked_mul(ty.block_bytes()).and_then(|row| row.checked_mul(rows));
        let size = packed_bytes(ty, rows, k).filter(|_| expected == Some(bytes.len())).ok_or_else(|| {
            Error::invalid(
                "linear",
                format!(
                    "{} bytes of {ty} are not a matrix of {rows} x {k}: a block of {} takes {} bytes",
                    bytes.len(),
                    ty.block_len(),
                    ty.block_bytes()
                ),
            )
        })?;
        let mut arena = Buffer::zeroed(size)?;
        if size > 0 {
            let tile_bytes = size / tiles(rows);
            let pieces = Mutex::new(arena.as_mut_slice().chunks_mut(tile_bytes * PACKED_AT_ONCE).enumerate());
            pool.run(pool.threads(), &|_| {
                loop {
                    let piece = pieces.lock().unwrap_or_else(PoisonError::into_inner).next();
                    let Some((piece, dst)) = piece else { return };
                    let start = piece * PACKED_AT_ONCE;
                    pack(ty, rows, k, bytes, start..start + dst.len() / tile_bytes, dst);
                }
            });
        }
        let arena = Arc::new(arena);
        let matrix = Matrix::new(ty, rows, k, Arc::clone(&arena), 0)?;
        Ok(Linear { matrix, arena, quantized: Mutex::default() })
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.matrix.rows()
    }

    /// Input features.
    pub fn k(&self) -> usize {
        self.matrix.k()
    }

    /// The packed size in bytes.
    pub fn size_bytes(&self) -> usize {
        self.matrix.size_bytes()
    }

    /// Removes the weights from the processor's caches, so that the next product reads them from memory as a model's does, whose
    /// weights are larger than any cache. Processors of other kinds than x86-64 and 64-bit ARM keep them.
    pub fn leave_caches(&self) {
        // Lines are 64 bytes or more.
        for line in self.arena.as_slice().chunks(64) {
            // SAFETY: the address is that of readable memory; its contents stay as they are.
            #[cfg(target_arch = "x86_64")]
            unsafe {
                std::arch::x86_64::_mm_clflush(line.as_ptr());
            }
            // SAFETY: likewise; programs may use this instruction on Linux and macOS.
            #[cfg(target_arch = "aarch64")]
            unsafe {
                std::arch::asm!("dc civac, {}", in(reg) line.as_ptr(), options(nostack, preserves_flags));
            }
            #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
            let _ = line;
        }
        // What follows waits until the lines are written back: a fence of the language is the processor's as well.
        std::sync::atomic::fence(Ordering::SeqCst);
    }

    /// `out = x · Wᵀ`; x `[n, k]`, out `[n, rows]`, both row-major. The same bits for any n, thread count and
    /// instruction set.
    ///
    /// # Errors
    /// [`Error::Invalid`] where lengths do not fit or x has infinite or NaN elements; [`Error::OutOfMemory`].
    pub fn apply(&self, pool: &Pool, x: &[f32], out: &mut [f32]) -> Result<(), Error> {
        let (rows, k) = (self.rows(), self.k());
        let n = x.len().checked_div(k).unwrap_or(0);
        if x.len() != n * k || n.checked_mul(rows) != Some(out.len()) {
            return Err(Error::invalid(
                "linear",
                format!("{} activations and {} results do not fit a matrix of {rows} x {k}", x.len(), out.len()),
            ));
        }
        let mut quantized = self.quantized.lock().unwrap_or_else(PoisonError::into_inner);
        let input = if self.matrix.takes_floats() {
            if !all_finite(x) {
                return Err(non_finite());
            }
            Input::Floats(x)
        } else {
            quantized.reshape(n, k)?;
            Input::Quantized(&quantized)
        };
        let (finite, out) = (AtomicBool::new(true), Shared::new(out));
        pool.together(&|worker| {
            if let Input::Quantized(quantized) = input {
                for row in worker.share(n) {
                    // SAFETY: each row belongs to one thread; a pool's instruction set is available.
                    if !unsafe { quantized.quantize_row(pool.isa(), &x[row * k..(row + 1) * k], row) } {
                        finite.store(false, Ordering::Relaxed);
                    }
                }
                worker.barrier();
                if !finite.load(Ordering::Relaxed) {
                    return;
                }
            }
            let tiles = worker.share(self.matrix.tiles());
            // SAFETY: out is `[n, rows]`, and each tile's columns belong to one thread.
            unsafe { product(pool.isa(), &self.matrix, tiles, input, 0..n, out.start(), rows, Store::Set) };
        });
        if !finite.into_inner() {
            return Err(non_finite());
        }
        Ok(())
    }
}

fn non_finite() -> Error {
    Error::invalid("linear", "the activations have infinite or NaN elements")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::gguf::dequantize;

    #[test]
    fn a_product_is_near_the_exact_one_and_the_same_on_any_pool() {
        let (rows, k, n) = (531, 512, 3);
        for ty in GgmlType::SUPPORTED {
            let mut bytes = vec![0u8; rows * k / ty.block_len() * ty.block_bytes()];
            for (i, byte) in bytes.iter_mut().enumerate() {
                // Numbers of moderate size in every type: no exponent comes near its end.
                *byte = (i * 37 % 61 % 48) as u8;
            }
            let x: Vec<f32> = (0..n * k).map(|i| ((i * 29 % 83) as f32 - 41.0) / 41.0).collect();
            let mut weights = vec![0.0; rows * k];
            dequantize(ty, &bytes, &mut weights).unwrap();
            let mut results: Vec<Vec<f32>> = Vec::new();
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
                for threads in [1, 3] {
                    let pool = Pool::with_isa(threads, isa).unwrap();
                    let linear = Linear::new(&pool, ty, rows, k, &bytes).unwrap();
                    let mut out = vec![f32::NAN; n * rows];
                    linear.apply(&pool, &x, &mut out).unwrap();
                    results.push(out.clone());
                    linear.leave_caches();
                    linear.apply(&pool, &x, &mut out).unwrap();
                    results.push(out);
                }
            }
            assert!(results.iter().all(|out| out == &results[0]), "{ty}");
            for (i, out) in results[0].iter().enumerate() {
                let (x, w) = (&x[i / rows * k..][..k], &weights[i % rows * k..][..k]);
                let exact: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                let size: f64 = x.iter().zip(w).map(|(x, w)| f64::from((x * w).abs())).sum();
                assert!((f64::from(*out) - exact).abs() <= size / 100.0, "{ty} {i}: {out}, exactly {exact}");
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let pool = Pool::new(1).unwrap();
        assert!(Linear::new(&pool, GgmlType::Q4_0, 1, 33, &[0; 18]).is_err());
        assert!(Linear::new(&pool, GgmlType::Q4_0, 2, 32, &[0; 18]).is_err());
        assert!(Linear::new(&pool, GgmlType::F32, usize::MAX, 4, &[0; 16]).is_err());
        let linear = Linear::new(&pool, GgmlType::Q4_0, 2, 32, &[0; 36]).unwrap();
        assert!(linear.apply(&pool, &[0.0; 33], &mut [0.0; 2]).is_err());
        assert!(linear.apply(&pool, &[0.0; 64], &mut [0.0; 2]).is_err());
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = [0.0; 32];
            x[31] = bad;
            for (ty, bytes) in [(GgmlType::Q4_0, 18), (GgmlType::F32, 128), (GgmlType::F16, 64), (GgmlType::BF16, 64)] {
                let linear = Linear::new(&pool, ty, 2, 32, &vec![0; 2 * bytes]).unwrap();
                assert!(linear.apply(&pool, &x, &mut [0.0; 2]).is_err(), "{ty}: {bad}");
            }
        }
        assert!(linear.apply(&pool, &[0.0; 32], &mut [0.0; 2]).is_ok());
        assert!(linear.apply(&pool, &[], &mut []).is_ok());
    }
}
