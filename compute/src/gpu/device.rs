//! An opened GPU: its queue, its compiled kernels, and what became of it. A lost device, a reset and any error that is not
//! expected end it for good: everything after that is [`Error::DeviceLost`], and never a panic.

use super::adapter::{self, AdapterKind, AdapterReport, GpuChoice, IMMEDIATE_BYTES};
use super::buffer::GpuBuffer;
use super::certify::Probe;
use super::commands::Commands;
use super::pipeline::{Kernel, KernelId};
use crate::Error;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

/// An opened GPU. Buffers, matrices and recorded commands belong to one.
pub struct Gpu {
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    report: AdapterReport,
    max_binding_bytes: u64,
    loss: Arc<Loss>,
    kernels: Mutex<HashMap<KernelId, Arc<Kernel>>>,
    /// What this device was held to, and what it gave otherwise, if anything.
    pub(super) probed: Mutex<HashMap<Probe, Option<String>>>,
    /// What kernels see where an optional input is left out.
    nothing: OnceLock<GpuBuffer>,
}

/// Why a device was lost, once it is.
#[derive(Default)]
struct Loss(OnceLock<String>);

/// Bytes of a binding that kernels are given at most: their indices are 32 bits wide, in words.
const MAX_BINDING_BYTES: u64 = 1 << 31;

impl Gpu {
    /// Opens the adapter of that choice. One that is open in this process already, and not lost, is shared.
    ///
    /// # Errors
    /// [`Error::Invalid`] where no adapter of this machine is of that choice, with the names of those that there are, or why each
    /// is not used;
    /// [`Error::DeviceLost`] where its driver refuses.
    pub fn open(choice: GpuChoice<'_>) -> Result<Arc<Gpu>, Error> {
        // One device of an adapter has its compiled kernels; two would compile them twice.
        static OPEN: Mutex<Vec<Weak<Gpu>>> = Mutex::new(Vec::new());
        let found = choose(choice)?;
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|gpu| gpu.strong_count() > 0);
        let shared =
            open.iter().filter_map(Weak::upgrade).find(|gpu| gpu.report == found.report && gpu.check().is_ok());
        if let Some(gpu) = shared {
            return Ok(gpu);
        }
        let gpu = Arc::new(Gpu::new(found)?);
        open.push(Arc::downgrade(&gpu));
        Ok(gpu)
    }

    /// Opens the adapter of that choice for this caller alone.
    ///
    /// # Errors
    /// As [`Gpu::open`].
    pub fn open_alone(choice: GpuChoice<'_>) -> Result<Arc<Gpu>, Error> {
        Gpu::new(choose(choice)?).map(Arc::new)
    }

    fn new(found: adapter::Found) -> Result<Gpu, Error> {
        let adapter::Found { adapter, report, .. } = found;
        let limits = wgpu::Limits { max_immediate_size: IMMEDIATE_BYTES, ..adapter.limits() };
        let max_binding_bytes = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size);
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("pangea"),
            required_features: wgpu::Features::IMMEDIATES,
            required_limits: limits,
            ..wgpu::DeviceDescriptor::default()
        };
        let refused = |why: String| Error::DeviceLost { device: report.name.clone(), why };
        let (device, queue) = super::ready(adapter.request_device(&descriptor))
            .ok_or_else(|| refused("its driver did not answer".to_owned()))?
            .map_err(|e| refused(e.to_string()))?;
        let loss = Arc::new(Loss::default());
        let of_callback = loss.clone();
        device.set_device_lost_callback(move |reason, why| of_callback.set(format!("{reason:?}: {why}")));
        let of_handler = loss.clone();
        // Expected errors are caught where they arise. After any other one, results cannot be trusted.
        device.on_uncaptured_error(Arc::new(move |e: wgpu::Error| of_handler.set(e.to_string())));
        Ok(Gpu {
            device,
            queue,
            report,
            max_binding_bytes: max_binding_bytes.min(MAX_BINDING_BYTES),
            loss,
            kernels: Mutex::default(),
            probed: Mutex::default(),
            nothing: OnceLock::new(),
        })
    }

    /// What was opened.
    pub fn report(&self) -> &AdapterReport {
        &self.report
    }

    /// Bytes of a buffer that a kernel sees at once, at most.
    pub fn max_binding_bytes(&self) -> u64 {
        self.max_binding_bytes
    }

    /// Begins to record work, whose results agree with the CPU's within rounding.
    pub fn commands(self: &Arc<Self>) -> Commands {
        Commands::new(self.clone(), false)
    }

    /// Begins to record work whose results have the CPU's bits, where the device passes
    /// [`Gpu::certify`](super::Gpu::certify).
    pub(crate) fn exact_commands(self: &Arc<Self>) -> Commands {
        Commands::new(self.clone(), true)
    }

    /// Whether the device still works.
    ///
    /// # Errors
    /// [`Error::DeviceLost`].
    pub fn check(&self) -> Result<(), Error> {
        match self.loss.0.get() {
            None => Ok(()),
            Some(why) => Err(Error::DeviceLost { device: self.report.name.clone(), why: why.clone() }),
        }
    }

    /// Ends the device, as a reset by its driver would: for tests of what comes after.
    pub fn lose(&self) {
        self.loss.set("it was given up".to_owned());
        self.device.destroy();
    }

    /// Waits until a submission, or all of them, are done.
    pub(super) fn wait(&self, submission_index: Option<wgpu::SubmissionIndex>) -> Result<(), Error> {
        self.check()?;
        let poll = || self.device.poll(wgpu::PollType::Wait { submission_index, timeout: None });
        // `poll` panics where the device is lost while it waits.
        match catch_unwind(AssertUnwindSafe(poll)) {
            Ok(Ok(_)) => {}
            Ok(Err(e)) => self.loss.set(e.to_string()),
            Err(_) => self.loss.set("its driver failed while work was waited for".to_owned()),
        }
        self.check()
    }

    /// Runs `make`, which allocates `bytes` for `what`.
    pub(super) fn allocate<T>(&self, bytes: u64, what: &'static str, make: impl FnOnce() -> T) -> Result<T, Error> {
        self.check()?;
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let made = make();
        match super::ready(scope.pop()) {
            Some(None) => self.check().map(|()| made),
            Some(Some(_)) => Err(Error::OutOfMemory { bytes, what }),
            None => Err(Error::DeviceLost {
                device: self.report.name.clone(),
                why: "its driver did not say whether memory was allocated".to_owned(),
            }),
        }
    }

    /// The compiled kernel; compiled once.
    pub(super) fn kernel(&self, id: KernelId) -> Result<Arc<Kernel>, Error> {
        let mut kernels = self.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernel) = kernels.get(&id) {
            return Ok(kernel.clone());
        }
        let kernel = Arc::new(Kernel::compile(&self.device, id));
        self.check()?;
        kernels.insert(id, kernel.clone());
        Ok(kernel)
    }

    /// A small buffer of zeros, for inputs that are left out.
    pub(super) fn nothing(self: &Arc<Self>) -> Result<&GpuBuffer, Error> {
        if let Some(nothing) = self.nothing.get() {
            return Ok(nothing);
        }
        let made = GpuBuffer::unowned(self, 64, "a placeholder")?;
        Ok(self.nothing.get_or_init(|| made))
    }
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gpu({})", self.report.name)
    }
}

impl Loss {
    /// The first reason stays.
    fn set(&self, why: String) {
        let _ = self.0.set(why);
    }
}

fn choose(choice: GpuChoice<'_>) -> Result<adapter::Found, Error> {
    let mut found = adapter::found();
    let fits = |found: &adapter::Found| match choice {
        GpuChoice::Best => found.report.unused_because.is_none(),
        GpuChoice::BestOrSoftware => {
            found.report.unused_because.is_none()
                || found.missing.is_none() && found.report.kind == AdapterKind::Software
        }
        GpuChoice::Named(name) => found.missing.is_none() && is_named(&found.report, name),
    };
    match found.iter().position(fits) {
        Some(first) => Ok(found.swap_remove(first)),
        None => {
            let all: Vec<_> = found.iter().map(|found| (&found.report, found.missing.as_deref())).collect();
            Err(Error::invalid("gpu", refusal(choice, &all)))
        }
    }
}

/// Whether an adapter is meant by a part of its name, in any case.
fn is_named(report: &AdapterReport, name: &str) -> bool {
    report.name.to_lowercase().contains(&name.to_lowercase())
}

/// Why no adapter is of that choice, from all that there are with what each lacks for any choice: which ones can be named, if a
/// name fits none; why each is not used, otherwise.
fn refusal(choice: GpuChoice<'_>, all: &[(&AdapterReport, Option<&str>)]) -> String {
    let called = |report: &AdapterReport| format!("{} ({})", report.name, report.backend);
    let because = |(report, missing): &(&AdapterReport, Option<&str>)| {
        let why = missing.or(report.unused_because.as_deref()).unwrap_or("it is not of this choice");
        format!("{}: {why}", called(report))
    };
    let (wanted, meant): (String, Vec<_>) = match choice {
        GpuChoice::Named(name) => (
            format!("no usable GPU of this machine is named {name:?}"),
            all.iter().filter(|(report, _)| is_named(report, name)).collect(),
        ),
        _ => ("this machine has no usable GPU".to_owned(), all.iter().collect()),
    };
    let usable: Vec<String> =
        all.iter().filter(|(_, missing)| missing.is_none()).map(|(report, _)| called(report)).collect();
    let reasons = |of: Vec<&(&AdapterReport, Option<&str>)>| of.into_iter().map(because).collect::<Vec<_>>().join("; ");
    if all.is_empty() {
        format!("{wanted}: no GPU was found; install a driver for Vulkan, Metal or DirectX 12")
    } else if !meant.is_empty() {
        format!("{wanted}: {}", reasons(meant))
    } else if usable.is_empty() {
        format!("{wanted}, and none of those found can be used: {}", reasons(all.iter().collect()))
    } else {
        format!("{wanted}; those found are {}", usable.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter(name: &str, kind: AdapterKind, unused_because: Option<&str>) -> AdapterReport {
        AdapterReport {
            name: name.to_owned(),
            backend: "Vulkan".to_owned(),
            kind,
            driver: String::new(),
            memory_bytes: None,
            max_buffer_bytes: 0,
            max_binding_bytes: 0,
            workgroup_memory_bytes: 0,
            unused_because: unused_because.map(str::to_owned),
        }
    }

    #[test]
    fn a_name_that_no_gpu_has_is_answered_with_the_names_that_there_are() {
        let card = adapter("RTX 4090", AdapterKind::Discrete, None);
        let software = adapter("llvmpipe", AdapterKind::Software, Some("it is software"));
        let old = adapter("Old Card", AdapterKind::Discrete, Some("it lacks halves"));
        let (card, software, old) = ((&card, None), (&software, None), (&old, Some("it lacks halves")));
        let named = GpuChoice::Named("nosuch");
        let unknown = "no usable GPU of this machine is named \"nosuch\"";
        let found = format!("{unknown}; those found are RTX 4090 (Vulkan), llvmpipe (Vulkan)");
        assert_eq!(refusal(named, &[card, old, software]), found);
        let none = format!("{unknown}: no GPU was found; install a driver for Vulkan, Metal or DirectX 12");
        assert_eq!(refusal(named, &[]), none);
        let useless = format!("{unknown}, and none of those found can be used: Old Card (Vulkan): it lacks halves");
        assert_eq!(refusal(named, &[old]), useless);
        // Who means a card that is there learns why it is not used, and who names none, what keeps each from being used.
        let meant = refusal(GpuChoice::Named("old"), &[card, old]);
        assert_eq!(meant, "no usable GPU of this machine is named \"old\": Old Card (Vulkan): it lacks halves");
        let best = refusal(GpuChoice::Best, &[old, software]);
        let why =
            "this machine has no usable GPU: Old Card (Vulkan): it lacks halves; llvmpipe (Vulkan): it is software";
        assert_eq!(best, why);
    }
}
