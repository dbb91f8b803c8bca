//! What a worker does with the tasks that one peer sends over one stream: which it takes, when each starts, how each ends. It
//! moves no bytes and computes nothing.
//!
//! * [`Intake`]: the tasks of one stream, from their arrival to their end.

mod intake;

pub use intake::{Action, Event, Intake, Refusal, TaskId, Terms, peer_priority};
