//! Makes large copies fast where the C library's way of doing them is slow; measured, and nothing else.
//!
//! glibc copies blocks above 8 KiB with `rep movsb`, which AMD's Zen 3 and 4 run several times slower than a vector
//! loop where source and destination lie alike within their pages (glibc bug 30994), as large buffers do. Tensor
//! bytes are copied some eight times between two nodes, so that this halves what a link carries. The threshold can
//! only be set by a variable that the C library reads as the process starts: hence the second start.

/// The variable, and the setting that turns `rep movsb` off.
#[cfg(all(target_os = "linux", target_env = "gnu", target_arch = "x86_64"))]
const TUNABLES: &str = "GLIBC_TUNABLES";
#[cfg(all(target_os = "linux", target_env = "gnu", target_arch = "x86_64"))]
const SETTING: &str = "glibc.cpu.x86_rep_movsb_threshold";

/// Starts this process anew with fast copies, once, where that helps. Returns where it does not, or cannot.
#[cfg(all(target_os = "linux", target_env = "gnu", target_arch = "x86_64"))]
pub(crate) fn make_fast() {
    use std::os::unix::process::CommandExt;

    let set = std::env::var(TUNABLES).unwrap_or_default();
    let amd = std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.contains("AuthenticAMD"));
    if set.contains(SETTING) || !amd {
        return;
    }
    let Ok(program) = std::env::current_exe() else { return };
    let separator = if set.is_empty() { "" } else { ":" };
    let mut arguments = std::env::args_os();
    let mut again = std::process::Command::new(program);
    if let Some(name) = arguments.next() {
        again.arg0(name);
    }
    // Comes back only where the start failed: then this process goes on as it is.
    let _ = again.args(arguments).env(TUNABLES, format!("{set}{separator}{SETTING}={}", 1u64 << 40)).exec();
}

/// Nothing to do on this platform.
#[cfg(not(all(target_os = "linux", target_env = "gnu", target_arch = "x86_64")))]
pub(crate) fn make_fast() {}
