//! Serving models from this node, whichever nodes compute them.
//!
//! ```text
//!  api, cli ──► Served (names) ──► Engine ──► Generation (a request) ──► pipeline (sessions at stages)
//!                                    └ model_text (tokens)         └─► pangea_control::generation, answer (text)
//! ```
//!
//! * [`catalogue`]: the models of a node by name, loaded and probed. [`engine`]: the handle of a model.
//! * `embedding`: embeddings of texts. `generation`: the driver of a request. `answer`: the text of one answer. `signed_answer`: its commitments.
//! * [`route`]: the chains of stages of a model; `pooled`: those that the pool placed, and the nodes that
//!   answer alone. `model_digest`: the digest of a model, before and after its file is hashed. `dispatch`: what was sent to which of them. `remote`: models whose
//!   requests other nodes answer as a whole. [`request`]: requests and their
//!   events. `metrics`: counters. `request_log`: its log lines. `spans`: what a trace shows of it. `audit_host`: the node's side of audits.
//!
//! This room knows nothing of HTTP or commands, and of peers only their ids.

mod answer;
mod audit_host;
pub mod catalogue;
mod dispatch;
mod embedding;
pub mod engine;
mod generation;
mod metrics;
mod model_digest;
mod pooled;
mod remote;
pub mod request;
mod request_log;
pub mod route;
mod signed_answer;
mod spans;

pub use crate::model_text::{ModelText, Prompt, TokenText, WrongField, role};
pub use crate::pipeline::{Draft, Drafts};
pub use audit_host::NodeAuditHost;
pub use catalogue::{Served, ServedModel};
pub use embedding::Embedding;
pub use engine::{Engine, EngineSettings, ModelFacts, RequestRefused};
pub use generation::Generation;
pub(crate) use metrics::observe;
pub use remote::RemoteModel;
pub use request::{Delta, Event, Finish, MAX_CHOICES, Prefill, Request, Summary, TokenLogprob};
