//! The jobs of a node: what was asked of it, by whom, how far it is and what it came to. Products and generations alike.
//!
//! * [`job`]: what is known of one job.
//! * [`registry`]: all jobs, from being submitted to the bounded history of ended ones, and draining.
//!
//! How a job is computed is decided elsewhere; here is only what every kind of job has.

pub mod job;
pub mod registry;

pub use job::{Api, Ending, Job, JobId, JobKind, JobProgress, JobSpec, JobState, Owner};
pub use registry::{Action, Event, JobEvent, Jobs};
