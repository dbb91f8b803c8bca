//! The fabric: accepts jobs, drives the scheduler, moves operands and results, checks and merges.
//!
//! ```text
//!  Fabric (handle, any thread) ── Command ──► FabricDriver (network thread)
//!                                               │  Scheduler (pure): what next?
//!                    ┌──────────────┬───────────┼────────────┬──────────────┐
//!                 executor       feeder       link        checker        merge
//!               (local tiles) (digests, order) (peers)  (Freivalds)   (result buffer)
//! ```
//!
//! * [`job`], [`status`]: requests, outcomes and statuses; plain values.
//! * [`handle`]: the handle.
//! * [`driver`]: the task that owns all state; the scheduler decides.
//! * `running`: one job's tensors, tiles and counts.
//! * `feeder`: per peer, prepares operands and sends them in the scheduler's order.
//! * `checker`: the thread that checks results.
//! * `metrics`: what is counted of products.
//! * `spans`: what a trace shows of a job.
//! * `open_links`: the open link to each peer that accepts tasks. `unconnected`: why other nodes are not connected.
//!
//! The fabric never computes products and never parses bytes from peers.

mod checker;
pub mod driver;
mod feeder;
pub mod handle;
pub mod job;
mod metrics;
mod open_links;
mod running;
mod spans;
pub mod status;
mod unconnected;

pub use driver::{FabricDriver, FabricSettings};
pub use handle::Fabric;
pub use job::{Job, JobId, JobOutcome, JobReport, JobRequest, Place, Progress, VerifyPolicy};
pub use status::{LinkProbe, NodeStatus, PeerStatus};

/// Maximum queued commands for the driver, which handles each in microseconds. If the
/// queue is full, the caller gets `Overloaded`.
const COMMANDS: usize = 1024;
