//! Memory of a GPU: allocated with checked sizes, written in pieces, read through [`Commands::read`](super::Commands::read).

use super::Gpu;
use crate::Error;
use std::sync::Arc;

/// Memory of a GPU, zeros at first. A clone is the same memory.
#[derive(Clone)]
pub struct GpuBuffer {
    pub(super) buffer: wgpu::Buffer,
    bytes: u64,
}

/// Bytes that are copied to a device at once: staging memory is as much.
pub(super) const UPLOAD_BYTES: usize = 8 << 20;

impl GpuBuffer {
    /// Allocates `bytes`, rounded up to whole vectors of four words. `what`: what for, in the error.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where the device has less, or more than a kernel sees at once is asked for;
    /// [`Error::DeviceLost`].
    pub fn new(gpu: &Arc<Gpu>, bytes: u64, what: &'static str) -> Result<GpuBuffer, Error> {
        GpuBuffer::unowned(gpu, bytes, what)
    }

    pub(super) fn unowned(gpu: &Gpu, bytes: u64, what: &'static str) -> Result<GpuBuffer, Error> {
        let too_large = || Error::OutOfMemory { bytes, what };
        let size = bytes.max(1).checked_next_multiple_of(16).ok_or_else(too_large)?;
        if size > gpu.max_binding_bytes() {
            return Err(too_large());
        }
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC;
        let buffer = gpu.allocate(size, what, || {
            gpu.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(what),
                size,
                usage,
                mapped_at_creation: false,
            })
        })?;
        Ok(GpuBuffer { buffer, bytes: size })
    }

    /// Allocates and writes.
    ///
    /// # Errors
    /// As [`GpuBuffer::new`].
    pub fn of_bytes(gpu: &Arc<Gpu>, bytes: &[u8], what: &'static str) -> Result<GpuBuffer, Error> {
        let buffer = GpuBuffer::new(gpu, bytes.len() as u64, what)?;
        buffer.write(gpu, 0, bytes)?;
        Ok(buffer)
    }

    /// Allocates and writes numbers.
    ///
    /// # Errors
    /// As [`GpuBuffer::new`].
    pub fn of<T: bytemuck::Pod>(gpu: &Arc<Gpu>, elements: &[T], what: &'static str) -> Result<GpuBuffer, Error> {
        GpuBuffer::of_bytes(gpu, bytemuck::cast_slice(elements), what)
    }

    /// Its size in bytes, a multiple of 16.
    pub fn size_bytes(&self) -> u64 {
        self.bytes
    }

    /// Writes `bytes` from byte `at` on, a multiple of 4, before the next submission. The last word is filled up with zeros.
    ///
    /// # Errors
    /// [`Error::Invalid`] where they do not lie inside; [`Error::DeviceLost`].
    pub fn write(&self, gpu: &Gpu, at: u64, bytes: &[u8]) -> Result<(), Error> {
        let end = at.checked_add(bytes.len() as u64);
        if !at.is_multiple_of(4) || end.is_none_or(|end| end > self.bytes) {
            return Err(Error::invalid("gpu", format!("{} bytes at {at} do not lie in {}", bytes.len(), self.bytes)));
        }
        gpu.check()?;
        let (whole, rest) = bytes.split_at(bytes.len() / 4 * 4);
        for (index, piece) in whole.chunks(UPLOAD_BYTES).enumerate() {
            gpu.queue.write_buffer(&self.buffer, at + (index * UPLOAD_BYTES) as u64, piece);
            if piece.len() == UPLOAD_BYTES {
                // Staging memory is freed once its copy is done; without a wait it would be as large as the model.
                let submission = gpu.queue.submit([]);
                gpu.wait(Some(submission))?;
            }
        }
        if !rest.is_empty() {
            let mut word = [0; 4];
            word[..rest.len()].copy_from_slice(rest);
            gpu.queue.write_buffer(&self.buffer, at + whole.len() as u64, &word);
        }
        gpu.check()
    }
}

impl std::fmt::Debug for GpuBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GpuBuffer({} bytes)", self.bytes)
    }
}
