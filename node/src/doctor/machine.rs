//! This machine: memory, clock, threads, GPUs.

use std::path::Path;
use std::time::{Duration, SystemTime};

use pangea_compute::gpu::{AdapterReport, adapters};
use pangea_units::ByteSize;

use super::Finding;
use crate::host;

/// Memory below which models of a useful size do not fit.
const LITTLE_MEMORY: u64 = 2 << 30;

/// By how much files may be younger than now: file systems of other machines.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);

pub(super) fn memory() -> Finding {
    memory_of(host::memory_bytes(), host::available_memory_bytes())
}

fn memory_of(all: Option<u64>, available: Option<u64>) -> Finding {
    let Some(all) = all else {
        return Finding::note(
            "memory",
            "this system does not say how much memory it has",
            "say it with --max-memory when you start a node",
        );
    };
    // The system counts all of its memory as available; this process may be limited to a part of it.
    let free = available.unwrap_or(all).min(all);
    let what = format!("{} of memory, {} of it free", ByteSize(all), ByteSize(free));
    if free < LITTLE_MEMORY {
        let advice =
            "end other programs, or start the node with a small --max-memory: it uses the models of other nodes";
        return Finding::note("memory", what, advice);
    }
    Finding::good("memory", what)
}

pub(super) fn clock(data_dir: &Path) -> Finding {
    // What a node wrote last, if one ever ran here.
    let written = std::fs::metadata(data_dir.join("state.redb")).and_then(|file| file.modified()).ok();
    clock_of(SystemTime::now(), written)
}

fn clock_of(now: SystemTime, written: Option<SystemTime>) -> Finding {
    let ahead = written.and_then(|written| written.duration_since(now).ok());
    match ahead {
        Some(ahead) if ahead > CLOCK_TOLERANCE => Finding::problem(
            "clock",
            format!("the clock is {} s behind the last run of a node here", ahead.as_secs()),
            "set the clock (timedatectl set-ntp true): certificates and records have times",
        ),
        _ => Finding::good("clock", "the clock has not been set back"),
    }
}

pub(super) fn threads(threads: u32) -> Finding {
    threads_of(threads as usize, host::cores(), host::compute_cores())
}

fn threads_of(threads: usize, cores: usize, fast: usize) -> Finding {
    let what = format!("{threads} compute threads on {cores} cores, of which {fast} are fast and physical");
    if threads > cores {
        let advice = "start the node with fewer --threads: threads that share a core wait for each other";
        return Finding::problem("threads", what, advice);
    }
    if threads > fast {
        return Finding::note("threads", what, format!("--threads {fast} is usually fastest"));
    }
    Finding::good("threads", what)
}

pub(super) fn devices() -> Vec<Finding> {
    devices_of(&adapters())
}

fn devices_of(adapters: &[AdapterReport]) -> Vec<Finding> {
    if adapters.is_empty() {
        return vec![Finding::note(
            "GPU",
            "no driver shows a GPU; layers are computed by the processor",
            "if there is one, install its driver for Vulkan (Linux: mesa-vulkan-drivers, or the vendor's)",
        )];
    }
    let finding = |adapter: &AdapterReport| {
        let memory = adapter.memory_bytes.map_or_else(String::new, |bytes| format!(", {}", ByteSize(bytes)));
        let what = format!("{} ({}, {}{memory})", adapter.name, adapter.kind, adapter.backend);
        match &adapter.unused_because {
            None => Finding::good("GPU", format!("{what} can compute layers: pangea node --device auto")),
            Some(why) => Finding::note("GPU", format!("{what} is not used by itself: {why}"), advice_for(adapter)),
        }
    };
    adapters.iter().map(finding).collect()
}

fn advice_for(adapter: &AdapterReport) -> String {
    use pangea_compute::gpu::AdapterKind;
    match adapter.kind {
        AdapterKind::Software => format!("for tests: pangea node --device 'gpu:{}'", adapter.name),
        _ => "a newer driver may have what is missing; layers are computed by the processor until then".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;
    use pangea_compute::gpu::AdapterKind;

    #[test]
    fn little_memory_and_a_clock_that_was_set_back_are_found() {
        assert_eq!(memory_of(Some(16 << 30), Some(8 << 30)).level, Level::Good);
        let little = memory_of(Some(16 << 30), Some(1 << 30));
        assert!(little.level == Level::Note && little.what.contains("1.00 GiB of it free"), "{little:?}");
        let limited = memory_of(Some(1 << 30), Some(8 << 30));
        assert!(limited.level == Level::Note && limited.what.contains("1.00 GiB of it free"), "{limited:?}");
        assert!(memory_of(None, None).advice.contains("--max-memory"));
        let now = SystemTime::now();
        let behind = |seconds| clock_of(now, Some(now + Duration::from_secs(seconds)));
        assert_eq!((behind(5).level, clock_of(now, None).level), (Level::Good, Level::Good));
        assert!(behind(3600).level == Level::Problem && behind(3600).what.contains("3600 s"));
    }

    #[test]
    fn more_threads_than_cores_are_a_problem() {
        assert_eq!(threads_of(4, 8, 4).level, Level::Good);
        assert!(threads_of(8, 8, 4).advice.contains("--threads 4"));
        assert_eq!(threads_of(9, 8, 4).level, Level::Problem);
    }

    #[test]
    fn a_gpu_that_is_not_used_says_why_and_what_to_do() {
        let adapter = |name: &str, kind, unused_because: Option<&str>| AdapterReport {
            name: name.to_owned(),
            backend: "Vulkan".to_owned(),
            kind,
            driver: String::new(),
            memory_bytes: (kind == AdapterKind::Discrete).then_some(8 << 30),
            max_buffer_bytes: 1 << 30,
            max_binding_bytes: 1 << 30,
            workgroup_memory_bytes: 32 << 10,
            unused_because: unused_because.map(str::to_owned),
        };
        let found = devices_of(&[
            adapter("Card", AdapterKind::Discrete, None),
            adapter("Old", AdapterKind::Integrated, Some("its driver cannot pass parameters")),
            adapter("llvmpipe", AdapterKind::Software, Some("it is software")),
        ]);
        assert!(found[0].level == Level::Good && found[0].what.contains("8.00 GiB) can compute layers"), "{found:?}");
        assert!(found[1].what.contains("cannot pass parameters") && found[1].advice.contains("driver"), "{found:?}");
        assert!(found[2].advice.contains("gpu:llvmpipe"), "{found:?}");
        assert!(devices_of(&[])[0].advice.contains("Vulkan"));
    }
}
