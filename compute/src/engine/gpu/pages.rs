//! The pages of a stage's sessions in a GPU's memory: for each of its layers a buffer, in which a page has the same place as in the
//! buffers of the other layers of its kind. Buffers grow as places are taken.

use crate::Error;
use crate::gpu::{Gpu, GpuBuffer};
use crate::kernel::page::KINDS;
use crate::model::CacheShape;
use crate::model::cache::PageStore;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Places of a buffer when the first one is taken.
const FIRST_PLACES: u32 = 8;

pub(super) struct GpuPages {
    gpu: Arc<Gpu>,
    /// Of each kind, bytes of a page in one layer.
    layer_bytes: [u64; KINDS],
    /// Of each kind, the buffers of its layers.
    kinds: [Mutex<Layers>; KINDS],
    /// Why the stage cannot compute any more, once it cannot.
    failure: OnceLock<String>,
}

#[derive(Default)]
struct Layers {
    /// Places that each buffer has.
    places: u32,
    buffers: Vec<GpuBuffer>,
    /// The number of layers.
    count: usize,
}

impl GpuPages {
    pub(super) fn new(gpu: &Arc<Gpu>, shape: &CacheShape) -> GpuPages {
        let layers = |kind: usize| Mutex::new(Layers { count: shape.device_pages[kind].layers, ..Layers::default() });
        GpuPages {
            gpu: Arc::clone(gpu),
            layer_bytes: shape.device_pages.map(|shape| (shape.bytes() / shape.layers.max(1)) as u64),
            kinds: std::array::from_fn(layers),
            failure: OnceLock::new(),
        }
    }

    /// The buffers of the layers of a kind.
    pub(super) fn buffers(&self, kind: usize) -> Vec<GpuBuffer> {
        self.kind(kind).buffers.clone()
    }

    /// Passes a result on, and notes an error after which no further pass can be computed: the device is gone, or its memory,
    /// which a budget had promised, is not there. A budget that is used up is none of these.
    pub(super) fn noted<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        if let Err(error @ (Error::DeviceLost { .. } | Error::OutOfMemory { .. })) = &result {
            let _ = self.failure.set(error.to_string());
        }
        result
    }

    pub(super) fn failure(&self) -> Option<String> {
        self.failure.get().cloned()
    }

    fn kind(&self, kind: usize) -> MutexGuard<'_, Layers> {
        self.kinds[kind].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PageStore for GpuPages {
    fn reserve(&self, kind: usize, places: u32, most: u32) -> Result<(), Error> {
        self.noted(self.grow(kind, places, most))
    }

    fn copy(&self, kind: usize, from: u32, to: u32) -> Result<(), Error> {
        self.noted(self.copy_page(kind, from, to))
    }
}

impl GpuPages {
    fn grow(&self, kind: usize, places: u32, most: u32) -> Result<(), Error> {
        let mut layers = self.kind(kind);
        if places <= layers.places {
            return Ok(());
        }
        // As many again, so that few copies are made, but no more than there will be; more than a buffer holds is the device's to
        // refuse.
        let of_buffer = self.gpu.max_binding_bytes() / self.layer_bytes[kind].max(1);
        let most = most.min(u32::try_from(of_buffer).unwrap_or(u32::MAX));
        let room = places.max((2 * layers.places).max(FIRST_PLACES).min(most));
        let bytes = u64::from(room) * self.layer_bytes[kind];
        let new = || GpuBuffer::new(&self.gpu, bytes, "keys and values on the GPU");
        let buffers = (0..layers.count).map(|_| new()).collect::<Result<Vec<_>, _>>()?;
        let words = u64::from(layers.places) * self.layer_bytes[kind] / 4;
        if words > 0 {
            let mut commands = self.gpu.commands();
            for (from, to) in layers.buffers.iter().zip(&buffers) {
                commands.copy(from, 0, to, 0, words)?;
            }
            commands.finish()?;
        }
        (layers.buffers, layers.places) = (buffers, room);
        Ok(())
    }

    fn copy_page(&self, kind: usize, from: u32, to: u32) -> Result<(), Error> {
        let bytes = self.layer_bytes[kind];
        let words = bytes / 4;
        // A copy within a buffer is not allowed.
        let between = GpuBuffer::new(&self.gpu, bytes, "a page on its way on the GPU")?;
        let mut commands = self.gpu.commands();
        for buffer in &self.kind(kind).buffers {
            commands.copy(buffer, u64::from(from) * words, &between, 0, words)?;
            commands.copy(&between, 0, buffer, u64::from(to) * words, words)?;
        }
        commands.finish().map(|_| ())
    }
}
