//! The state of a generation: one request for one or more answers, from its coordinator's view.
//!
//! * [`answer_session`]: one answer: which tokens are known, what a reply of its stages means, when it fails over.
//! * [`state`]: the whole request: routing, the window in which it may be refused, answers held back until their audit,
//!   recomputation without liars, and the request's conclusion with its verdict.
//! * [`reply`]: what stages say. [`event`], [`action`]: input and output of a request.
//! * [`prompt_pace`]: when a first token is late.
//! * [`segment`]: which stages computed which part of an answer. `retired`: what they sign of it when the answer goes on
//!   elsewhere.
//!
//! Tokens are numbers here; the driver owns their text, the messages that carry them and the stages' claims.

pub mod action;
pub mod answer_session;
mod answer_state;
pub mod event;
pub mod prompt_pace;
pub mod reply;
mod retired;
pub mod segment;
pub mod state;

pub use action::{Action, Conclusion, Route, TokenCounts};
pub use answer_session::{AnswerSession, AnswerTerms, Exclusions, Phase, SignedClaims};
pub use event::{ClaimsFault, Event, Setup};
pub use prompt_pace::PromptPace;
pub use reply::{NewTokens, Reply, ReportedTokens};
pub use segment::Segment;
pub use state::GenerationState;
