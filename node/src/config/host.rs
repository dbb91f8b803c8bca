//! What this host is and has: its name, memory, cores, and the person's folder. It reads, and changes nothing.

use std::path::PathBuf;

/// The host's name without its domain, `node` where it has none.
pub fn name() -> String {
    let uname = rustix::system::uname();
    let full = uname.nodename().to_string_lossy();
    match full.split('.').next() {
        Some(short) if !short.is_empty() => short.to_owned(),
        _ => "node".to_owned(),
    }
}

/// Cores that this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Memory of this host in bytes, or what a control group leaves of it. `None` where the system does not say.
pub fn memory_bytes() -> Option<u64> {
    let installed = installed_memory_bytes()?;
    Some(control_group_limit_bytes().map_or(installed, |limit| limit.min(installed)))
}

#[cfg(target_os = "linux")]
fn installed_memory_bytes() -> Option<u64> {
    let info = rustix::system::sysinfo();
    (info.totalram as u64).checked_mul(u64::from(info.mem_unit))
}

/// Asks the system's own tool: the library call behind it needs code that is not allowed here.
#[cfg(not(target_os = "linux"))]
fn installed_memory_bytes() -> Option<u64> {
    let output = std::process::Command::new("sysctl").args(["-n", "hw.memsize"]).output().ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}

/// The limit of the control group that a container runs in (version 2, then version 1).
fn control_group_limit_bytes() -> Option<u64> {
    ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
        .iter()
        .find_map(|path| std::fs::read_to_string(path).ok()?.trim().parse().ok())
}

/// The person's home folder.
pub fn home() -> Option<PathBuf> {
    std::env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from)
}
