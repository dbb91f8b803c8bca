//! The Cap'n Proto schemas of Pangea (`*.capnp` beside this crate, one per concern) as Rust.
//!
//! * [`tensor_capnp`]: tensors and how their bytes travel to and from programs.
//! * [`job_capnp`]: jobs, their options, progress and reports.
//! * [`model_capnp`]: language models: requests, answers as they come.
//! * [`node_capnp`]: the service a node offers to programs, and how errors travel.
//! * [`task_capnp`]: what nodes say to each other about tasks.
//! * [`session_capnp`]: what the stages of a model say to each other.
//! * [`blob_capnp`]: what nodes say to each other about pieces of model files.
//! * [`tunnel_capnp`]: requests to a model that one node has another one answer.
//! * [`evidence_capnp`]: what nodes say to each other about lies.
//! * [`rows_capnp`]: the activations of a stage that another node checks.
//! * [`plan_capnp`]: where the layers of a model would be, and are.
//! * [`membership_capnp`]: who belongs to a node's pool.
//! * [`pool_capnp`]: what a node says of itself to its pool.
//!
//! The Rust under `generated/` is committed, so that building needs no Cap'n Proto compiler;
//! a test compares it with the schemas, and `PANGEA_REGENERATE=1 cargo test -p pangea-schema`
//! renews it. There is no behaviour here.

/// Generated from `tensor.capnp`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::unwrap_used, clippy::unimplemented)]
#[rustfmt::skip]
#[path = "generated/tensor_capnp.rs"]
pub mod tensor_capnp;

/// Generated from `job.capnp`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::unwrap_used, clippy::unimplemented)]
#[rustfmt::skip]
#[path = "generated/job_capnp.rs"]
pub mod job_capnp;

/// Generated from `model.capnp`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::unwrap_used, clippy::unimplemented)]
#[rustfmt::skip]
#[path = "generated/model_capnp.rs"]
pub mod model_capnp;

/// Generated from `membership.capnp`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::unwrap_used, clippy::unimplemented)]
#[rustfmt::skip]
#[path = "generated/membership_capnp.rs"]
pub mod membership_capnp;

/// Generated from `node.capnp`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::unwrap_used, clippy::unimplemented)]
#[rustfmt::skip]
#[path = "generated/node_capnp.rs"]
pub mod node_capnp;

/// Generated from `task.capnp`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::unwrap_used, clippy::unimplemented)]
#[rustfmt::skip]
#[path = "generated/task_capnp.rs"]
pub mod task_capnp;

/// Generated from `session.capnp`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::unwrap_used, clippy::unimplemented)]
#[rustfmt::skip]
#[path = "generated/session_capnp.rs"]
pub mod session_capnp;

/// Generated from `blob.capnp`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::unwrap_used, clippy::unimplemented)]
#[rustfmt::skip]
#[path = "generated/blob_capnp.rs"]
pub mod blob_capnp;

/// Generated from `plan.capnp`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::unwrap_used, clippy::unimplemented)]
#[rustfmt::skip]
#[path = "generated/plan_capnp.rs"]
pub mod plan_capnp;

/// Generated from `pool.capnp`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::unwrap_used, clippy::unimplemented)]
#[rustfmt::skip]
#[path = "generated/pool_capnp.rs"]
pub mod pool_capnp;

/// Generated from `rows.capnp`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::unwrap_used, clippy::unimplemented)]
#[rustfmt::skip]
#[path = "generated/rows_capnp.rs"]
pub mod rows_capnp;

/// Generated from `evidence.capnp`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::unwrap_used, clippy::unimplemented)]
#[rustfmt::skip]
#[path = "generated/evidence_capnp.rs"]
pub mod evidence_capnp;

/// Generated from `tunnel.capnp`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::unwrap_used, clippy::unimplemented)]
#[rustfmt::skip]
#[path = "generated/tunnel_capnp.rs"]
pub mod tunnel_capnp;
