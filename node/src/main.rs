//! The binary `pangea`: starts [`pangea_node::cli`] and sets the allocator.

use std::process::ExitCode;

/// Many small messages and a few large tensors on several threads, for which the system's allocator is slow.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    pangea_node::cli::main()
}
