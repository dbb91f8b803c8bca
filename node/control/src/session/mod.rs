//! The decisions of sessions on chains of stages.
//!
//! * [`stage`]: the protocol of one stage: sessions, frames, signatures, failures, in order.
//! * `first_stage`: on the first stage, the sequences and the frames in flight. `frame_watch`: how long a frame may take.
//! * [`gate`]: which sender may send which message to a stage. [`coordinated`]: the same for a session's coordinator.
//! * [`batch`]: continuous batching on the first stage: which rows of which sequence are computed next.
//! * [`grouping`]: in how many groups answers pass through the stages, as measured.
//! * [`chains`]: how long a node keeps its stages of chains; [`whole_models`]: how long it keeps whole models.
//! * `pace`: how long a stage and the rest of its chain take for a frame.
//! * [`link_state`]: which streams form the link to a peer.
//! * `id`, `frame`, `token`: the values that messages and decisions share.

pub mod batch;
pub mod chains;
pub mod coordinated;
mod first_stage;
mod frame;
mod frame_watch;
pub mod gate;
pub mod grouping;
mod id;
pub mod link_state;
mod pace;
pub mod stage;
mod token;
pub mod whole_models;

pub use first_stage::{Drafter, Drafts, GRAMMAR_TIMEOUT};
pub use frame::{FrameRows, Start, StartSource, SteppedSequence};
pub use id::{ChainId, SessionId, StageAt};
pub use token::{EndReason, TokenOut};
