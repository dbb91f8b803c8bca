//! Decides about the tasks that one peer sends over one stream: which are accepted, when each starts, how each ends. No
//! bytes are moved and nothing is computed here.
//!
//! * [`Intake`]: the tasks of one stream, from their arrival to their end.

mod intake;

pub use intake::{Action, Event, Intake, Refusal, TaskId, Terms, peer_priority};
