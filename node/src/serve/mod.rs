//! Serving models from this node, whoever computes them.
//!
//! ```text
//!  api, cli ──► Served (names) ──► Engine ──► Generation (a request) ──► pipeline (sessions at stages)
//!                                    └ model_text (tokens)         └─► pangea_control::generation (every decision), answer (text)
//! ```
//!
//! * [`catalogue`]: the models of a node by name, loaded and probed. [`engine`]: the handle of one that can be asked.
//! * `generation`: the driver of a request under way. `answer`: the text of one answer. `signed_answer`: what is signed of it.
//! * [`route`]: which chains of stages a model has; `pooled`: those that the pool placed. [`request`]: what is asked and answered.
//!   `metrics`: counters. `audit_host`: what audits ask of this node.
//!
//! It knows nothing of HTTP or commands, and of peers only that they have names.

mod answer;
mod audit_host;
pub mod catalogue;
pub mod engine;
mod generation;
mod metrics;
mod pooled;
pub mod request;
pub mod route;
mod signed_answer;

pub use crate::model_text::{ModelText, Prompt, TokenText, WrongField, role};
pub use crate::pipeline::Drafts;
pub use audit_host::NodeAuditHost;
pub use catalogue::{Served, ServedModel};
pub use engine::{Engine, EngineSettings, ModelFacts, Refused};
pub use generation::Generation;
pub(crate) use metrics::observe;
pub use request::{Delta, Event, Finish, MAX_CHOICES, Request, Summary, TokenLogprob};
