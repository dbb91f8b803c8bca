//! One model over one or several nodes: a request's coordinator, and the stages that compute its layers.
//!
//! ```text
//!  serve::Engine ── Open, Close ──► front ── Frame ──► … ── Frame ──► last ── Tokens ──► coordinator
//!                                     ▲                                 └─ Stepped ─┐
//!                                     └─────────────────────────────────────────────┘
//! ```
//!
//! | file | owns |
//! |---|---|
//! | [`host`] | the stages of this node, the sessions that it coordinates, and who gets which message |
//! | [`loader`] | the layers that are here, and the chains they are part of |
//! | `stage` | the thread of one stage: its layers, its compute threads and every cache |
//! | `front` | on the first stage: which rows are computed next |
//! | [`batch`] | how that is decided: continuous batching, pure |
//! | `grouping` | in how many groups answers go through the stages, as measured |
//! | `tail` | on the last stage: from logits to tokens |
//! | `history` | what a stage has of one sequence |
//! | [`wire`], [`payload`], [`limits`] | the messages of `/pangea/session/1`, their raw bytes, their bounds |
//! | [`links`] | the streams that they travel on |
//!
//! A model that is whole on one node is a chain of one stage; nothing else is different. It knows tokens and activations,
//! no text, no HTTP.

mod front;
mod history;
pub mod host;
pub mod limits;
pub mod links;
pub mod loader;
pub mod payload;
mod stage;
mod tail;
pub mod wire;

pub use host::{Pipeline, SessionEvent, StageSetup};
pub use loader::{ChainLimits, Loader};
pub use pangea_control::session::ChainId;
pub use stage::Drafts;
