//! The adapters of this machine: what each is, and why one is not used. Nothing is opened here; see [`Gpu::open`](super::Gpu::open).

use std::fmt;
use std::sync::OnceLock;

/// What an adapter is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AdapterKind {
    /// A card with memory of its own.
    Discrete,
    /// A part of the processor, which shares its memory.
    Integrated,
    /// A device that a hypervisor passes on.
    Virtual,
    /// The processor, which plays a GPU: right, and slow.
    Software,
    /// The driver does not say.
    Unknown,
}

impl fmt::Display for AdapterKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            AdapterKind::Discrete => "discrete",
            AdapterKind::Integrated => "integrated",
            AdapterKind::Virtual => "virtual",
            AdapterKind::Software => "software",
            AdapterKind::Unknown => "unknown",
        })
    }
}

/// Which adapter to open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GpuChoice<'a> {
    /// The first usable one that is not software: discrete before integrated before virtual ones.
    Best,
    /// As `Best`, and software where there is nothing else.
    BestOrSoftware,
    /// The first usable one whose name contains this, in any case; software too.
    Named(&'a str),
}

/// An adapter as people see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterReport {
    /// The name that the driver gives.
    pub name: String,
    /// The interface: `Vulkan`, `Metal` or `DX12`.
    pub backend: String,
    /// What it is made of.
    pub kind: AdapterKind,
    /// The driver with its version, as far as it says.
    pub driver: String,
    /// Bytes of memory of its own, which this machine's programs do not use; `None` where it shares this machine's, or its driver
    /// does not say.
    pub memory_bytes: Option<u64>,
    /// Bytes of one buffer, at most.
    pub max_buffer_bytes: u64,
    /// Bytes of a buffer that a kernel sees at once, at most. Larger matrices are cut into chunks of rows.
    pub max_binding_bytes: u64,
    /// Bytes of memory that the threads of a workgroup share, at most.
    pub workgroup_memory_bytes: u32,
    /// Why [`GpuChoice::Best`] never chooses it; `None` where it may.
    pub unused_because: Option<String>,
}

/// Bytes of parameters that a kernel takes.
pub(super) const IMMEDIATE_BYTES: u32 = 64;

/// What every kernel may rely on: the defaults of WebGPU, and parameters without a buffer.
const MIN_BINDING_BYTES: u64 = 128 << 20;
const MIN_WORKGROUP_MEMORY: u32 = 16 << 10;
const MIN_WORKGROUP_THREADS: u32 = 256;
const MIN_STORAGE_BUFFERS: u32 = 8;
const MIN_WORKGROUPS: u32 = 65_535;

#[derive(Clone)]
pub(super) struct Found {
    pub(super) adapter: wgpu::Adapter,
    pub(super) report: AdapterReport,
    /// What is missing, for any choice.
    pub(super) missing: Option<String>,
}

/// The adapters of this machine when it was first asked for them, the best first.
pub fn adapters() -> Vec<AdapterReport> {
    found().into_iter().map(|found| found.report).collect()
}

/// Looked for once: drivers take their time, and some write to the standard error output.
pub(super) fn found() -> Vec<Found> {
    static FOUND: OnceLock<Vec<Found>> = OnceLock::new();
    FOUND.get_or_init(look).clone()
}

fn look() -> Vec<Found> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
        flags: wgpu::InstanceFlags::empty(),
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    });
    let Some(adapters) = super::ready(instance.enumerate_adapters(wgpu::Backends::PRIMARY)) else { return Vec::new() };
    let mut found: Vec<Found> = Vec::new();
    for adapter in adapters {
        let (info, limits) = (adapter.get_info(), adapter.limits());
        let missing = missing(adapter.features(), adapter.get_downlevel_capabilities().flags, &limits);
        let same = found.iter().find(|other| {
            let other = other.adapter.get_info();
            (other.vendor, other.device, &other.name) == (info.vendor, info.device, &info.name)
                && other.backend != info.backend
        });
        let kind = kind(info.device_type);
        let unused_because = match (&missing, same) {
            (Some(missing), _) => Some(missing.clone()),
            (None, Some(same)) => Some(format!("it is used through {}", same.report.backend)),
            (None, None) if kind == AdapterKind::Software => {
                Some("it is software, slower than this processor's own kernels; name it to use it".to_owned())
            }
            (None, None) => None,
        };
        let driver = [info.driver, info.driver_info].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>();
        let has_own = matches!(kind, AdapterKind::Discrete | AdapterKind::Virtual | AdapterKind::Unknown);
        let memory_bytes = if has_own { super::memory::memory_bytes(&adapter) } else { None };
        let report = AdapterReport {
            name: info.name,
            backend: format!("{:?}", info.backend).replace("Dx12", "DX12"),
            kind,
            memory_bytes,
            driver: driver.join(" "),
            max_buffer_bytes: limits.max_buffer_size,
            max_binding_bytes: limits.max_storage_buffer_binding_size,
            workgroup_memory_bytes: limits.max_compute_workgroup_storage_size,
            unused_because,
        };
        found.push(Found { adapter, report, missing });
    }
    // The sort is stable: of one kind, the order is the driver's.
    found.sort_by_key(|found| match found.report.kind {
        AdapterKind::Discrete => 0,
        AdapterKind::Integrated => 1,
        AdapterKind::Virtual => 2,
        AdapterKind::Unknown => 3,
        AdapterKind::Software => 4,
    });
    found
}

fn kind(device_type: wgpu::DeviceType) -> AdapterKind {
    match device_type {
        wgpu::DeviceType::DiscreteGpu => AdapterKind::Discrete,
        wgpu::DeviceType::IntegratedGpu => AdapterKind::Integrated,
        wgpu::DeviceType::VirtualGpu => AdapterKind::Virtual,
        wgpu::DeviceType::Cpu => AdapterKind::Software,
        wgpu::DeviceType::Other => AdapterKind::Unknown,
    }
}

/// What an adapter lacks for the kernels, if anything.
fn missing(features: wgpu::Features, flags: wgpu::DownlevelFlags, limits: &wgpu::Limits) -> Option<String> {
    if !features.contains(wgpu::Features::IMMEDIATES) {
        return Some("its driver cannot pass parameters to kernels (immediates, or push constants)".to_owned());
    }
    if !flags.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS | wgpu::DownlevelFlags::SHADER_F16_IN_F32) {
        return Some("its driver cannot run kernels that read half floats".to_owned());
    }
    let least: [(&str, u64, u64); 7] = [
        ("bytes of parameters", limits.max_immediate_size.into(), IMMEDIATE_BYTES.into()),
        ("bytes of a buffer", limits.max_buffer_size, MIN_BINDING_BYTES),
        ("bytes of a buffer that a kernel sees", limits.max_storage_buffer_binding_size, MIN_BINDING_BYTES),
        ("bytes of workgroup memory", limits.max_compute_workgroup_storage_size.into(), MIN_WORKGROUP_MEMORY.into()),
        ("threads of a workgroup", limits.max_compute_invocations_per_workgroup.into(), MIN_WORKGROUP_THREADS.into()),
        ("buffers of a kernel", limits.max_storage_buffers_per_shader_stage.into(), MIN_STORAGE_BUFFERS.into()),
        ("workgroups in a dimension", limits.max_compute_workgroups_per_dimension.into(), MIN_WORKGROUPS.into()),
    ];
    let (what, has, needs) = least.into_iter().find(|(_, has, needs)| has < needs)?;
    Some(format!("it has {has} {what}, and the kernels need {needs}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_below_what_the_kernels_need_is_named() {
        let (features, flags) = (wgpu::Features::IMMEDIATES, wgpu::DownlevelFlags::all());
        let enough = wgpu::Limits { max_immediate_size: IMMEDIATE_BYTES, ..wgpu::Limits::default() };
        assert_eq!(missing(features, flags, &enough), None);
        let why = missing(wgpu::Features::empty(), flags, &enough).unwrap();
        assert!(why.contains("push constants"), "{why}");
        assert!(missing(features, wgpu::DownlevelFlags::empty(), &enough).unwrap().contains("half floats"));
        let little = wgpu::Limits { max_compute_workgroup_storage_size: MIN_WORKGROUP_MEMORY - 1, ..enough };
        assert_eq!(
            missing(features, flags, &little).unwrap(),
            "it has 16383 bytes of workgroup memory, and the kernels need 16384"
        );
    }
}
