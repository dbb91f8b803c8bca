//! Speeds up large memory copies where the C library's implementation is measured to be slow.
//!
//! glibc copies blocks above 8 KiB with `rep movsb`, which AMD's Zen 3 and 4 run several times slower than a vector
//! loop where source and destination lie alike within their pages (glibc bug 30994), as large buffers do. Tensor
//! bytes are copied some eight times between two nodes, so this halves the throughput of a link. The threshold can
//! only be set by a variable that the C library reads when the process starts, so the process restarts itself once.

/// The variable, and the setting in it that disables `rep movsb`.
#[cfg(all(target_os = "linux", target_env = "gnu", target_arch = "x86_64"))]
const TUNABLES: &str = "GLIBC_TUNABLES";
#[cfg(all(target_os = "linux", target_env = "gnu", target_arch = "x86_64"))]
const SETTING: &str = "glibc.cpu.x86_rep_movsb_threshold";

/// Restarts this process once with fast copies, if that helps; otherwise returns.
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
    // Returns only if the restart failed; then this process continues as it is.
    let _ = again.args(arguments).env(TUNABLES, format!("{set}{separator}{SETTING}={}", 1u64 << 40)).exec();
}

/// Nothing to do on this platform.
#[cfg(not(all(target_os = "linux", target_env = "gnu", target_arch = "x86_64")))]
pub(crate) fn make_fast() {}
