//! The state of a generation: one request for one or more answers, as its coordinator decides it.
//!
//! * [`answer_session`]: one answer: which tokens are known, what a reply of its stages means, when it fails over.
//! * [`state`]: the whole request: routing, the window in which it may be refused, answers held back until they are audited,
//!   recomputing without liars, and when the request is concluded with which verdict.
//! * [`event`], [`action`]: what happens to a request, and what is to be done.
//! * [`segment`]: who computed what of an answer, and how far.
//!
//! Tokens are numbers here; their text, the messages that carry them and the claims that stages sign are the driver's.

pub mod action;
pub mod answer_session;
pub mod event;
pub mod segment;
pub mod state;

pub use action::{Action, Conclusion, Route, TokenCounts};
pub use answer_session::{AnswerSession, Exclusions, NewTokens, Phase, Reply, ReportedTokens};
pub use event::{Event, Setup};
pub use segment::Segment;
pub use state::GenerationState;
