//! The decisions of sessions on chains of stages.
//!
//! * [`batch`]: continuous batching on the first stage: which rows of which sequence are computed next.
//! * [`grouping`]: in how many groups answers go through the stages, as measured.
//! * [`link_state`]: which streams make the link to a peer.

pub mod batch;
mod frame;
pub mod grouping;
mod id;
pub mod link_state;
mod token;

pub use frame::{FrameRows, Start, StartSource, SteppedSequence};
pub use id::{ChainId, SessionId, StageAt};
pub use token::{EndReason, TokenOut};
