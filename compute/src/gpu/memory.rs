//! How much memory an adapter has. `wgpu` does not say it, so its driver is asked.

/// Bytes of the memory that belongs to an adapter itself, as far as its driver says: Vulkan's largest heap on the device.
#[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd", target_os = "windows"))]
#[allow(unsafe_code, reason = "only the driver knows, and its interface is C")]
pub(super) fn memory_bytes(adapter: &wgpu::Adapter) -> Option<u64> {
    /// `VK_MEMORY_HEAP_DEVICE_LOCAL_BIT`
    const ON_DEVICE: u32 = 1;
    // SAFETY: the adapter is alive while its raw handle is used, and the handle is only asked for its properties.
    let heaps = unsafe {
        let vulkan = adapter.as_hal::<wgpu::hal::api::Vulkan>()?;
        let instance = vulkan.shared_instance().raw_instance();
        instance.get_physical_device_memory_properties(vulkan.raw_physical_device())
    };
    let count = usize::try_from(heaps.memory_heap_count).unwrap_or(0);
    let on_device = heaps.memory_heaps.iter().take(count).filter(|heap| heap.flags.as_raw() & ON_DEVICE != 0);
    on_device.map(|heap| heap.size).max().filter(|bytes| *bytes > 0)
}

/// Elsewhere, a GPU shares this machine's memory.
#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd", target_os = "windows")))]
pub(super) fn memory_bytes(_: &wgpu::Adapter) -> Option<u64> {
    None
}
