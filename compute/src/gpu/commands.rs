//! Recorded work: dispatches of kernels in order, and what is read back after them. Each dispatch sees what those before it
//! wrote. One submission carries a whole pass, unless it has more work than a driver lets run at once.

use super::pipeline::{KernelId, Shader};
use super::{Gpu, GpuBuffer, GpuRows};
use crate::Error;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;

/// Multiply-adds of one submission, about, at most, unless the caller knows the device better. Drivers reset devices whose submissions take too long, some after two
/// seconds; a device of 200 gigaflops takes 90 ms for as many.
const MAX_WORK: u64 = 1 << 33;

/// The fault flag before anything went wrong.
const NO_FAULT: u32 = u32::MAX;

/// Work that a GPU will do in order. Nothing runs before [`Commands::finish`], except the beginning of a very large pass.
pub struct Commands {
    gpu: Arc<Gpu>,
    /// Whether results have the CPU's bits.
    is_exact: bool,
    encoder: wgpu::CommandEncoder,
    pass: Option<wgpu::ComputePass<'static>>,
    max_work: u64,
    work: u64,
    submissions: usize,
    dispatches: usize,
    reads: Vec<(wgpu::Buffer, Range<u64>)>,
    /// A word: the least code of what went wrong. Of commands that can report such a thing.
    fault: Option<(GpuBuffer, ReadSlot)>,
}

/// What a range of a buffer holds once the commands are done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadSlot(usize);

/// What was read back.
pub struct Readback {
    bytes: Vec<u8>,
    ranges: Vec<Range<usize>>,
    /// Submissions that the commands took.
    pub submissions: usize,
    /// Dispatches of all of them.
    pub dispatches: usize,
    /// The least of the codes that operations were given and that reported a value that is NaN, infinite or too large. Then
    /// nothing that was computed counts.
    pub fault: Option<u32>,
}

impl Readback {
    /// The elements of that range. Empty for a slot of other commands.
    pub fn get<T: bytemuck::Pod>(&self, slot: ReadSlot) -> Vec<T> {
        let bytes = self.ranges.get(slot.0).and_then(|range| self.bytes.get(range.clone())).unwrap_or_default();
        bytemuck::pod_collect_to_vec(&bytes[..bytes.len() / size_of::<T>() * size_of::<T>()])
    }
}

/// One run of a kernel.
pub(super) struct Dispatch<'a> {
    pub(super) kernel: KernelId,
    /// In the order of the kernel's bindings.
    pub(super) buffers: &'a [&'a GpuBuffer],
    /// The kernel's parameters, at most [`IMMEDIATE_BYTES`](super::adapter::IMMEDIATE_BYTES).
    pub(super) parameters: &'a [u32],
    pub(super) workgroups: [u32; 3],
    /// Multiply-adds, about.
    pub(super) work: u64,
}

impl Commands {
    pub(super) fn new(gpu: Arc<Gpu>, is_exact: bool) -> Commands {
        let encoder = gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: None });
        Commands {
            gpu,
            is_exact,
            encoder,
            pass: None,
            max_work: MAX_WORK,
            work: 0,
            submissions: 0,
            dispatches: 0,
            reads: Vec::new(),
            fault: None,
        }
    }

    /// The GPU that will run them.
    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    /// Whether results have the CPU's bits.
    pub(super) fn is_exact(&self) -> bool {
        self.is_exact
    }

    /// The family of kernels of these commands: one whose results agree within rounding, or one with the CPU's bits.
    pub(super) fn either(&self, close: Shader, exact: Shader) -> Shader {
        if self.is_exact { exact } else { close }
    }

    /// Dispatches recorded so far.
    pub fn dispatches(&self) -> usize {
        self.dispatches
    }

    /// Bounds the multiply-adds of a submission: what the device does in 50 to 100 ms, so that its driver does not take it for hung.
    pub fn bound_submissions(&mut self, multiply_adds: u64) {
        self.max_work = multiply_adds.max(1);
    }

    /// Multiply-adds of a submission, at most.
    pub(super) fn max_work(&self) -> u64 {
        self.max_work
    }

    pub(super) fn dispatch(&mut self, dispatch: &Dispatch<'_>) -> Result<(), Error> {
        if dispatch.workgroups.contains(&0) {
            return Ok(());
        }
        if self.work > 0 && self.work.saturating_add(dispatch.work) > self.max_work {
            self.submit();
        }
        self.work = self.work.saturating_add(dispatch.work.max(1));
        self.dispatches += 1;
        let kernel = self.gpu.kernel(dispatch.kernel)?;
        let entries: Vec<wgpu::BindGroupEntry<'_>> = dispatch
            .buffers
            .iter()
            .zip(0..)
            .map(|(buffer, binding)| wgpu::BindGroupEntry { binding, resource: buffer.buffer.as_entire_binding() })
            .collect();
        let group = self.gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &kernel.bindings,
            entries: &entries,
        });
        let encoder = &mut self.encoder;
        let pass = self.pass.get_or_insert_with(|| {
            encoder
                .begin_compute_pass(&wgpu::ComputePassDescriptor { label: None, timestamp_writes: None })
                .forget_lifetime()
        });
        pass.set_pipeline(&kernel.pipeline);
        pass.set_bind_group(0, &group, &[]);
        pass.set_immediates(0, bytemuck::cast_slice(dispatch.parameters));
        let [x, y, z] = dispatch.workgroups;
        pass.dispatch_workgroups(x, y, z);
        Ok(())
    }

    /// Where kernels report what goes wrong.
    pub(super) fn fault(&mut self) -> Result<GpuBuffer, Error> {
        if let Some((fault, _)) = &self.fault {
            return Ok(fault.clone());
        }
        let fault = GpuBuffer::of(&self.gpu, &[NO_FAULT], "the fault flag of the GPU")?;
        let slot = self.read(&fault, 0..1)?;
        self.fault = Some((fault.clone(), slot));
        Ok(fault)
    }

    /// Copies bytes from one buffer to another; ranges are in words of 4 bytes.
    ///
    /// # Errors
    /// [`Error::Invalid`] where a range does not lie inside its buffer.
    pub fn copy(
        &mut self,
        from: &GpuBuffer,
        from_word: u64,
        to: &GpuBuffer,
        to_word: u64,
        words: u64,
    ) -> Result<(), Error> {
        let inside = |at: u64, size: u64| at.checked_add(words).is_some_and(|end| end <= size / 4);
        if !inside(from_word, from.size_bytes()) || !inside(to_word, to.size_bytes()) {
            return Err(Error::invalid("gpu", format!("{words} words do not lie in both buffers of a copy")));
        }
        self.pass = None;
        self.encoder.copy_buffer_to_buffer(&from.buffer, 4 * from_word, &to.buffer, 4 * to_word, 4 * words);
        Ok(())
    }

    /// Copies `count` rows, from row `first` on, to row `to_first` on of rows of the same length.
    ///
    /// # Errors
    /// [`Error::Invalid`] where they do not lie inside, or rows differ in length.
    pub fn copy_rows(
        &mut self,
        from: &GpuRows,
        first: usize,
        to: &GpuRows,
        to_first: usize,
        count: usize,
    ) -> Result<(), Error> {
        let inside = |rows: &GpuRows, first: usize| first.checked_add(count).is_some_and(|end| end <= rows.rows());
        if from.cols() != to.cols() || !inside(from, first) || !inside(to, to_first) {
            return Err(Error::invalid("gpu", format!("{count} rows of {from:?} do not lie in {to:?}")));
        }
        let at = |row: usize| (row * from.stride()) as u64;
        self.copy(&from.buffer, at(first), &to.buffer, at(to_first), at(count))
    }

    /// Reads `words` of a buffer after all that is recorded, before and after this call.
    ///
    /// # Errors
    /// [`Error::Invalid`] where they do not lie inside.
    pub fn read(&mut self, buffer: &GpuBuffer, words: Range<u64>) -> Result<ReadSlot, Error> {
        if words.start > words.end || words.end > buffer.size_bytes() / 4 {
            return Err(Error::invalid("gpu", format!("words {words:?} do not lie in {buffer:?}")));
        }
        self.reads.push((buffer.buffer.clone(), 4 * words.start..4 * words.end));
        Ok(ReadSlot(self.reads.len() - 1))
    }

    /// Submits what is recorded.
    fn submit(&mut self) -> wgpu::SubmissionIndex {
        self.pass = None;
        self.work = 0;
        self.submissions += 1;
        let next = self.gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: None });
        let encoder = std::mem::replace(&mut self.encoder, next);
        self.gpu.queue.submit([encoder.finish()])
    }

    /// Runs everything and waits for it.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; [`Error::DeviceLost`], after which nothing that was written counts.
    pub fn finish(mut self) -> Result<Readback, Error> {
        let mut ranges = Vec::new();
        let mut bytes = 0;
        for (_, range) in &self.reads {
            ranges.push(bytes as usize..(bytes + range.end - range.start) as usize);
            bytes += range.end - range.start;
        }
        let staging = match bytes {
            0 => None,
            _ => {
                let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
                let descriptor =
                    wgpu::BufferDescriptor { label: Some("readback"), size: bytes, usage, mapped_at_creation: false };
                Some(self.gpu.allocate(bytes, "results of the GPU", || self.gpu.device.create_buffer(&descriptor))?)
            }
        };
        self.pass = None;
        if let Some(staging) = &staging {
            for ((buffer, range), to) in self.reads.iter().zip(&ranges) {
                let size = range.end - range.start;
                self.encoder.copy_buffer_to_buffer(buffer, range.start, staging, to.start as u64, size);
            }
        }
        let submission = self.submit();
        let bytes = match staging {
            None => {
                self.gpu.wait(Some(submission))?;
                Vec::new()
            }
            Some(staging) => self.map(&staging, submission)?,
        };
        let Commands { submissions, dispatches, fault, .. } = self;
        let mut readback = Readback { bytes, ranges, submissions, dispatches, fault: None };
        readback.fault =
            fault.and_then(|(_, slot)| readback.get::<u32>(slot).first().copied()).filter(|code| *code != NO_FAULT);
        Ok(readback)
    }

    fn map(&self, staging: &wgpu::Buffer, submission: wgpu::SubmissionIndex) -> Result<Vec<u8>, Error> {
        let lost = |why: &str| Error::DeviceLost { device: self.gpu.report().name.clone(), why: why.to_owned() };
        self.gpu.check()?;
        let (mapped, is_mapped) = sync_channel(1);
        staging.map_async(wgpu::MapMode::Read, .., move |result| {
            let _ = mapped.try_send(result.is_ok());
        });
        self.gpu.wait(Some(submission))?;
        // Another thread that waits may be the one that is told, after this one has gone on.
        if !is_mapped.recv().unwrap_or(false) {
            return Err(lost("its results could not be read"));
        }
        let view = staging.get_mapped_range(..).map_err(|e| lost(&e.to_string()))?;
        Ok(view.to_vec())
    }
}
