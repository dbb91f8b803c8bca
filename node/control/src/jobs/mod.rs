//! The jobs of a node: subject, owner, progress and outcome. Products, generations and downloads alike.
//!
//! * [`job`]: the state of one job.
//! * [`registry`]: all jobs, from submission to the bounded history of ended ones, and draining.
//!
//! How a job is computed is decided elsewhere; this room has what all kinds of jobs share.

pub mod job;
pub mod registry;

pub use job::{Api, Ending, Failover, Job, JobCounts, JobId, JobKind, JobProgress, JobSpec, JobState, Owner};
pub use registry::{Action, Event, JobEvent, Jobs};
