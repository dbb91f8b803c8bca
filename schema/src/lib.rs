//! The Cap'n Proto schemas of Pangea and the Rust generated from them.
//!
//! It owns the wire forms and nothing of their meaning: every crate parses them at its border.
//! The generated code is committed, so that building needs no `capnp`; a test checks that it is current.

/// What the schema compiler wrote. Never edited by hand.
#[allow(missing_docs, unreachable_pub, unsafe_code, clippy::all)]
pub mod generated {
    #[rustfmt::skip]
    pub mod task_capnp;
}

pub use generated::task_capnp;
