//! Facts about this host: name, memory, cores, private address, home folder; this process's own limit of open files, and how urgent
//! a thread is.

mod control_group;
mod freed_memory;
#[cfg(any(test, target_os = "linux"))]
mod topology;

use std::net::IpAddr;
use std::path::PathBuf;

pub use freed_memory::give_back_freed_memory;

/// The host's name without its domain; `node` if it has none.
pub fn name() -> String {
    let uname = rustix::system::uname();
    let full = uname.nodename().to_string_lossy();
    match full.split('.').next() {
        Some(short) if !short.is_empty() => short.to_owned(),
        _ => "node".to_owned(),
    }
}

/// Processors that this process may use at the same time, as affinity and control groups allow; hyperthreads count.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Cores for compute threads: the physical ones of the fastest kind that this process may use, or [`cores`] where the system
/// does not say which these are.
pub fn compute_cores() -> usize {
    physical_cores().map_or_else(cores, |physical| physical.min(cores()))
}

#[cfg(target_os = "linux")]
fn physical_cores() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    topology::linux_compute_cores(&status, |path| std::fs::read_to_string(path).ok())
}

/// Memory that programs can still get, in bytes, as far as the system says.
pub fn available_memory_bytes() -> Option<u64> {
    let lines = std::fs::read_to_string("/proc/meminfo").ok()?;
    let available = lines.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    available.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Runs the system's own tool, because the library call needs code that is not allowed here.
#[cfg(not(target_os = "linux"))]
fn physical_cores() -> Option<usize> {
    // Macs with one kind of cores do not know the first name.
    ["hw.perflevel0.physicalcpu", "hw.physicalcpu"].into_iter().find_map(|name| {
        let output = std::process::Command::new("sysctl").args(["-n", name]).output().ok()?;
        String::from_utf8(output.stdout).ok()?.trim().parse().ok().filter(|cores| *cores > 0)
    })
}

/// Open files that a node may need: the connections of all its doors and peers, and its own files.
const OPEN_FILES: u64 = 8192;

/// Raises this process's limit of open files to what a node may need, as far as the system allows. Many systems start with a
/// thousand or fewer, which strangers' connections alone could use up.
pub fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = maximum.map_or(OPEN_FILES, |maximum| maximum.min(OPEN_FILES));
    if current.is_some_and(|current| current < wanted)
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum })
    {
        tracing::debug!(event = "open_files_not_raised", %error, "the limit of open files stays as it is");
    }
}

/// How much less urgent than all others a thread is that nobody waits for: it gets a quarter of a core that others use as well.
#[cfg(target_os = "linux")]
const BACKGROUND_NICE: i32 = 5;

/// Makes the calling thread, and those that it starts, give way to all others for good. Systems other than Linux know the urgency
/// of processes only, and leave it as it is.
pub fn yield_to_others() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::nice(BACKGROUND_NICE) {
        tracing::debug!(event = "not_nice", %error, "a thread in the background is as urgent as others");
    }
}

/// Memory that this process may use, in bytes: the host's, or the limit of its control groups. `None` if the system does
/// not report it.
pub fn memory_bytes() -> Option<u64> {
    let installed = installed_memory_bytes()?;
    Some(control_group_limit_bytes().map_or(installed, |limit| limit.min(installed)))
}

#[cfg(target_os = "linux")]
fn installed_memory_bytes() -> Option<u64> {
    let info = rustix::system::sysinfo();
    (info.totalram as u64).checked_mul(u64::from(info.mem_unit))
}

/// Runs the system's own tool, because the library call needs code that is not allowed here.
#[cfg(not(target_os = "linux"))]
fn installed_memory_bytes() -> Option<u64> {
    let output = std::process::Command::new("sysctl").args(["-n", "hw.memsize"]).output().ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}

/// The memory limit of the control groups that this process is in.
fn control_group_limit_bytes() -> Option<u64> {
    let read = |path: &std::path::Path| std::fs::read_to_string(path).ok();
    let (group, mounts) = (read("/proc/self/cgroup".as_ref())?, read("/proc/self/mountinfo".as_ref())?);
    control_group::memory_limit_bytes(&group, &mounts, read)
}

/// This host's address in a private network, IPv4 before IPv6; `None` if it has none.
pub fn private_address() -> Option<IpAddr> {
    let mut addresses: Vec<IpAddr> =
        if_addrs::get_if_addrs().ok()?.iter().map(if_addrs::Interface::ip).filter(|&ip| is_private(ip)).collect();
    addresses.sort_by_key(IpAddr::is_ipv6);
    addresses.first().copied()
}

/// Whether an address is private: 10/8, 172.16/12, 192.168/16, 100.64/10 (shared, as VPNs use it), fc00::/7.
pub fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => ip.is_private() || (ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64),
        IpAddr::V6(ip) => ip.is_unique_local(),
    }
}

/// Home folder of the user.
pub fn home() -> Option<PathBuf> {
    std::env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_networks_are_those_of_the_documentation_and_no_public_one() {
        for (address, private) in [
            ("10.1.2.3", true),
            ("172.16.0.1", true),
            ("172.31.255.1", true),
            ("192.168.7.7", true),
            ("100.64.0.1", true),
            ("100.127.255.255", true),
            ("fd00::1", true),
            ("100.128.0.1", false),
            ("172.32.0.1", false),
            ("8.8.8.8", false),
            ("127.0.0.1", false),
            ("169.254.1.1", false),
            ("2001:db8::1", false),
            ("fe80::1", false),
        ] {
            assert_eq!(is_private(address.parse().unwrap()), private, "{address}");
        }
    }
}
