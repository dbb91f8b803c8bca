//! The binary `pangea`: starts [`pangea_node::cli`] and sets the allocator.

use std::process::ExitCode;

/// Many small messages and a few large tensors on several threads, for which the system's allocator is slow.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    without_a_screen();
    pangea_node::cli::main()
}

/// Keeps GPU drivers silent on machines without a screen: a layer of Mesa's would look for one, and Wayland's library prints an error
/// where there is none.
#[allow(unsafe_code)]
fn without_a_screen() {
    if std::env::var_os("XDG_RUNTIME_DIR").is_none() && std::env::var_os("NODEVICE_SELECT").is_none() {
        // SAFETY: no other thread runs yet.
        unsafe { std::env::set_var("NODEVICE_SELECT", "1") };
    }
}
