//! The fabric: takes jobs, drives the scheduler, moves operands and results, checks and merges.
//!
//! ```text
//!  Fabric (handle, any thread) ── Command ──► Driver (network thread)
//!                                               │  Scheduler (pure): what next?
//!                    ┌──────────────┬───────────┼────────────┬──────────────┐
//!                 executor       feeder       link        checker        merge
//!               (local tiles) (digests, order) (peers)  (Freivalds)   (result buffer)
//! ```
//!
//! * [`job`], [`status`]: what callers ask and get; plain values.
//! * [`handle`]: the handle.
//! * [`driver`]: the one task that owns all state; decisions are the scheduler's.
//! * `running`: one job's tensors, tiles and accounts.
//! * `feeder`: per peer, gets operands ready and sent in the scheduler's order.
//! * `checker`: the thread that verifies results.
//! * `open_links`: the open link to each peer that takes tasks.
//! * [`evidence`]: what is kept of a failed check or audit.
//!
//! It never computes products and never parses bytes from peers.

mod checker;
pub mod driver;
pub mod evidence;
mod feeder;
pub mod handle;
pub mod job;
mod open_links;
mod running;
pub mod status;

pub use driver::{Driver, Settings};
pub use handle::Fabric;
pub use job::{Job, JobId, JobOutcome, JobReport, JobRequest, Place, Progress, VerifyPolicy};
pub use status::{LinkProbe, NodeStatus, PeerStatus};

/// Commands that may wait for the driver, which handles each in microseconds. A caller that finds the
/// queue full is told `Overloaded`.
const COMMANDS: usize = 1024;
