//! One model over one or several nodes: a request's coordinator, and the stages that compute its layers.
//!
//! ```text
//!  serve::Engine ── Open, Close ──► first ── Frame ──► … ── Frame ──► last ── Tokens ──► coordinator
//!                                     ▲                                 └─ Stepped ─┐
//!                                     └─────────────────────────────────────────────┘
//! ```
//!
//! | file | owns |
//! |---|---|
//! | [`host`] | the stages of this node, the sessions that it coordinates, and the routing of messages |
//! | [`loader`] | the loaded layers, and the chains that use them |
//! | `stage` | the thread of one stage, which turns messages into events, and actions into passes and messages |
//! | `layers` | the layers of that thread, their caches, and the stage's claims |
//! | `sampler` | on the last stage: choosing tokens from logits |
//! | `pass_faults` | injected faults of passes, for tests |
//! | `stage_requests` | which request each session of a stage belongs to, and its open answers |
//! | `request_log` | the log lines of a stage about another node's request |
//! | `spans` | what a trace shows of a stage's work for a request |
//! | `history` | a stage's state of one sequence |
//! | `draft` | the small model of a node that drafts for larger ones |
//! | [`wire`], [`payload`], [`limits`] | the messages of `/pangea/session/1`, their raw bytes, their limits |
//! | [`links`] | the streams of those messages |
//!
//! `pangea_control::session` decides which rows are computed, who is notified, and how long chains are kept.
//!
//! A model that one node computes alone is a chain of one stage; nothing else differs. This room knows tokens and
//! activations, no text and no HTTP.

mod draft;
mod history;
pub mod host;
mod layers;
pub mod limits;
pub mod links;
pub mod loader;
mod pass_faults;
pub mod payload;
mod request_log;
mod running_pass;
mod sampler;
mod spans;
mod stage;
mod stage_requests;
pub mod wire;

pub use draft::Draft;
pub use host::{Pipeline, SessionEvent, StageSetup};
pub use loader::{ChainLimits, Loader};
pub use pangea_control::session::ChainId;
pub use pangea_control::session::Drafts;
