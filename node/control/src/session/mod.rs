//! The decisions of sessions on chains of stages.
//!
//! * [`batch`]: continuous batching on the first stage: which rows of which sequence are computed next.
//! * [`grouping`]: in how many groups answers go through the stages, as measured.
//! * [`link_state`]: which streams make the link to a peer.

pub mod batch;
pub mod grouping;
pub mod link_state;
