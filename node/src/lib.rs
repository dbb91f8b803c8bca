//! One Pangea node: everything between a program's request and the kernels in `pangea-compute`.
//!
//! ```text
//!  cli ──► api (Cap'n Proto service) ──► fabric ──► schedule (pure: who does what when)
//!                                          │
//!                  net (libp2p) ◄── link ◄─┴─► worker (operands, executor)
//!                                    └─ wire (bytes ↔ messages, pure)
//! ```
//!
//! | room | owns |
//! |---|---|
//! | [`api`] | what programs reach a node by |
//! | [`net`] | transports, admission, who is connected |
//! | [`wire`] | the task protocol as bytes; sans-I/O |
//! | [`peers`] | the handle on what is known of each peer, and whether it may compute |
//! | [`streams`] | framing, opening and bounding of streams, for every protocol |
//! | [`link`] | task streams, both ends |
//! | [`worker`] | operands kept for peers, the compute queue, operands packed for the next task |
//! | [`devices`] | the memory and the compute threads: leases and pools |
//! | [`fabric`] | drives all of these for jobs: check, merge, retry |
//! | [`serve`] | models: one engine each, continuous batching |
//! | [`models`] | models on disk: names, where they come from |
//! | [`blob`] | pieces of model files: kept, offered to peers, fetched by need |
//! | [`pool`] | the nodes of a pool: adverts, the master, the graph of links |
//! | [`placement`] | the driver of what decides which node computes which layers |
//! | [`pipeline`] | one model over several nodes: sessions, stages |
//! | [`trust`] | signed claims, receipts, what is looked at again |
//! | [`storage`] | `state.redb`: what outlives the process |
//! | [`config`] | flags, environment and file, resolved once |
//! | [`data_dir`] | who has the data directory, and where that node is |
//! | [`runtime`], [`daemon`] | the threads these run on; `pangea node` from start to end |
//! | [`observe`] | what is counted, and how that reads |
//! | [`supervise`] | every thread and lasting task: what follows when one ends |
//! | [`clock`] | the one clock that decisions are made by |
//! | [`cli`] | the commands of the binary |
//!
//! Never knows the kernels' insides.

pub mod api;
pub mod blob;
pub mod cli;
pub mod clock;
pub mod config;
mod copying;
pub mod daemon;
pub mod data_dir;
pub mod devices;
pub mod fabric;
pub mod jobs;
pub mod link;
pub mod models;
pub mod net;
pub mod observe;
pub mod peers;
pub mod pipeline;
pub mod placement;
pub mod pool;
pub mod runtime;
pub mod serve;
pub mod storage;
pub mod streams;
pub mod supervise;
pub mod trust;
pub mod wire;
pub mod worker;

use pangea_units::Error;

/// An error of the compute crate as the one error of every surface.
pub(crate) fn compute_error(error: pangea_compute::Error) -> Error {
    Error::new(error.kind(), error.to_string())
}
