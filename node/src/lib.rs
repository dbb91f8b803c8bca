//! One Pangea node: everything between a program's request and the kernels in `pangea-compute`.
//!
//! ```text
//!  cli ──► api (Cap'n Proto service) ──► fabric ──► schedule (pure: who does what when)
//!                                          │
//!                  net (libp2p) ◄── link ◄─┴─► worker (operands, executor)
//!                                    └─ wire (bytes ↔ messages, pure)
//! ```
//!
//! The map, from the bottom up. A room uses rooms of lower layers only (`tests/layers.rs` checks it):
//!
//! | layer | room | owns |
//! |---|---|---|
//! | 0 | [`clock`] | the one clock that decisions are made by |
//! | 0 | [`fault`] | what a node does wrong on purpose, for tests |
//! | 0 | [`host`] | facts about this host: name, memory, cores, private address |
//! | 0 | [`data_dir`] | who has the data directory, and where that node is |
//! | 0 | [`storage`] | `state.redb`: what outlives the process |
//! | 0 | [`observe`] | what is counted, and how that reads |
//! | 0 | [`wire`] | the task protocol as bytes; sans-I/O |
//! | 0 | [`model_text`] | tokenizer, chat template and grammar of a model; prompts |
//! | 0 | `copying` | large copies made fast where the C library's way is slow |
//! | 1 | [`supervise`] | every thread and lasting task: what follows when one ends |
//! | 1 | [`engine_metrics`] | what is counted of one model's engine |
//! | 1 | [`devices`] | the memory and the compute threads: leases and pools |
//! | 1 | [`jobs`] | what was asked of this node: the handle on the registry |
//! | 1 | [`peers`] | the handle on what is known of each peer, and whether it may compute |
//! | 1 | [`net`] | transports, admission, who is connected |
//! | 1 | [`streams`] | framing, opening and bounding of streams, for every protocol |
//! | 2 | [`models`] | models on disk: names, where they come from, into memory |
//! | 2 | [`config`] | flags, environment and file, resolved once |
//! | 2 | [`worker`] | operands kept for peers, the compute queue, operands packed for the next task |
//! | 2 | [`trust`] | signed claims, receipts, which of them are replayed |
//! | 2 | [`pool`] | the nodes of a pool: adverts, the master, the graph of links |
//! | 3 | [`blob`] | pieces of model files: kept, offered to peers, fetched by need |
//! | 3 | [`link`] | task streams, both ends |
//! | 3 | [`placement`] | the driver of what decides which node computes which layers |
//! | 4 | [`fabric`] | drives products: check, merge, retry |
//! | 4 | [`pipeline`] | one model over several nodes: sessions, stages |
//! | 5 | [`serve`] | models by name and their requests: one engine each, continuous batching |
//! | 5 | [`runtime`] | the threads that all of this runs on |
//! | 6 | [`api`] | what programs reach a node by: the Cap'n Proto service, HTTP |
//! | 7 | [`daemon`] | `pangea node` from start to end |
//! | 8 | [`cli`] | the commands of the binary |
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
pub mod engine_metrics;
pub mod fabric;
pub mod fault;
pub mod host;
pub mod jobs;
pub mod link;
pub mod model_text;
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
