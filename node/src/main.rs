//! The binary `pangea`: nothing but the start of [`pangea_node::cli`], and the allocator.

use std::process::ExitCode;

/// Many small messages and a few large tensors on several threads: what the system's allocator is slow at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    pangea_node::cli::main()
}
