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
//! | 0 | [`clock`] | the one clock of all decisions |
//! | 0 | [`fault`] | faults injected on purpose, for tests |
//! | 0 | [`host`] | facts about this host: name, memory, cores, private address |
//! | 0 | `https` | HTTP and HTTPS towards servers that are no peers |
//! | 0 | [`storage`] | `state.redb`, state that survives the process; files that are whole or not there |
//! | 0 | [`observe`] | metrics and how they are registered |
//! | 0 | [`wire`] | the task protocol as bytes; sans-I/O |
//! | 0 | [`model_text`] | tokenizer, chat template and grammar of a model; prompts |
//! | 0 | `copying` | fast large copies where the C library's are slow |
//! | 0 | [`service`] | a node as a service of systemd or launchd: texts and places |
//! | 1 | [`data_dir`] | the lock of the data directory, and `node.json` |
//! | 1 | [`api_keys`] | keys that the owner of a node gives to others, as digests |
//! | 1 | [`supervise`] | every thread and lasting task, and what follows when one ends |
//! | 1 | [`engine_metrics`] | metrics of one model's engine |
//! | 1 | [`devices`] | memory and compute threads: leases and thread pools |
//! | 1 | [`jobs`] | the handle on the registry of jobs |
//! | 1 | [`membership`] | this node's place in its pool: secrets, certificates, invitations |
//! | 1 | [`peers`] | the handle on the directory of peers; whether a peer may compute |
//! | 1 | [`streams`] | framing, opening and limits of streams, for every protocol |
//! | 1 | [`traces`] | spans of requests for an OpenTelemetry collector, and their way between nodes |
//! | 2 | [`net`] | transports, admission, connections, joining |
//! | 2 | [`models`] | models on disk: names, sources, loading into memory |
//! | 3 | [`config`] | flags, environment and file, resolved once |
//! | 3 | [`worker`] | the compute queue, packed operands |
//! | 3 | [`trust`] | signed claims, receipts, audits |
//! | 3 | [`rows`] | rows that stages without exact bits gave: kept, opened to their coordinators |
//! | 3 | [`pool`] | the nodes of a pool: adverts, the master, the graph of links |
//! | 3 | [`blob`] | pieces of model files: stored, served to peers, fetched |
//! | 4 | [`evidence`] | evidence of lies: kept, told to the members, checked again |
//! | 4 | [`doctor`] | what keeps this machine from being a good node: each check with what to do |
//! | 4 | [`link`] | task streams, both sides |
//! | 4 | [`tunnel`] | whole requests to a model on their way to the node that serves it |
//! | 4 | [`placement`] | the driver of placement: which node computes which layers |
//! | 5 | [`fabric`] | the driver of products: checking, merging, retries |
//! | 5 | [`pipeline`] | one model over several nodes: sessions, stages |
//! | 6 | [`serve`] | models by name and requests to them: one engine each, continuous batching |
//! | 6 | [`runtime`] | the threads that the rooms run on |
//! | 7 | [`federation`] | the driver of votes: several samples of one answer |
//! | 8 | [`api`] | the services for programs: Cap'n Proto, HTTP |
//! | 8 | [`prompt`] | questions on the terminal of `pangea node` |
//! | 9 | [`daemon`] | `pangea node` from start to end |
//! | 10 | [`cli`] | the commands of the binary |
//!
//! This crate never knows the kernels' insides.

pub mod api;
pub mod api_keys;
pub mod blob;
pub mod cli;
pub mod clock;
pub mod config;
mod copying;
pub mod daemon;
pub mod data_dir;
pub mod devices;
pub mod doctor;
pub mod engine_metrics;
pub mod evidence;
pub mod fabric;
pub mod fault;
pub mod federation;
pub mod host;
mod https;
pub mod jobs;
pub mod link;
pub mod membership;
pub mod model_text;
pub mod models;
pub mod net;
pub mod observe;
pub mod peers;
pub mod pipeline;
pub mod placement;
pub mod pool;
pub mod prompt;
pub mod rows;
pub mod runtime;
pub mod serve;
pub mod service;
pub mod storage;
pub mod streams;
pub mod supervise;
pub mod traces;
pub mod trust;
pub mod tunnel;
pub mod wire;
pub mod worker;

use pangea_units::Error;

/// Converts an error of the compute crate.
pub(crate) fn compute_error(error: pangea_compute::Error) -> Error {
    Error::new(error.kind(), error.to_string())
}
