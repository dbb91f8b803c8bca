//! Planning and scheduling of operations on tensors: how jobs are cut, and which worker gets which tile when.
//!
//! Pure state machines: events and the time go in, actions come out. Nothing here owns a socket, a
//! clock, randomness or tensor bytes; a driver feeds it, and the simulator runs the same type.
//!
//! ```text
//!  JobSpec ─► plan (TileGrid) ─┐
//!                              ▼
//!  Event ─► Scheduler ─► job (waiting tiles) × worker (attempts in flight) × cost (predicted times)
//!                  └─► Action: Start, Check, Accept, Cancel, …
//! ```

mod action;
mod cost;
mod event;
mod id;
mod job;
pub mod limits;
mod offload_history;
mod plan;
mod scheduler;
mod shape;
mod tile_set;
mod worker;

pub use crate::Time;
pub use action::{Action, JobReport, StartReason, TaskCounts, WorkerShare};
pub use cost::{Accuracy, Arithmetic, CostModel, Transfer, WorkerEstimate};
pub use pangea_units::ErrorKind as FailureKind;

pub use event::{CheckOutcome, Event, JobSpec, LeaveReason, Measured, Place, Progress};
pub use id::{AttemptId, JobId, WorkerId};
pub use plan::{Operand, Pace, PlanError, Tile, TileGrid};
pub use scheduler::{Scheduler, WorkerReport};
pub use shape::{ElementwiseShape, JobShape, ProductShape};
