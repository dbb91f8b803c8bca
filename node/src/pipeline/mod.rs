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
//! | [`host`] | the stages of this node, the sessions that it coordinates, and who gets which message |
//! | [`loader`] | the layers that are here, and the chains they are part of |
//! | `stage` | the thread of one stage: it turns messages into events, and actions into passes and messages |
//! | `layers` | what that thread computes with: layers, caches, and what is signed of them |
//! | `sampler` | on the last stage: from logits to tokens |
//! | `pass_faults` | the faults of passes that tests ask for |
//! | `history` | what a stage has of one sequence |
//! | [`wire`], [`payload`], [`limits`] | the messages of `/pangea/session/1`, their raw bytes, their bounds |
//! | [`links`] | the streams that they travel on |
//!
//! Which rows are computed, who is told what, and how long chains are kept is decided in `pangea_control::session`.
//!
//! A model that is whole on one node is a chain of one stage; nothing else is different. It knows tokens and activations,
//! no text, no HTTP.

mod history;
pub mod host;
mod layers;
pub mod limits;
pub mod links;
pub mod loader;
mod pass_faults;
pub mod payload;
mod sampler;
mod stage;
pub mod wire;

pub use host::{Pipeline, SessionEvent, StageSetup};
pub use loader::{ChainLimits, Loader};
pub use pangea_control::session::ChainId;
pub use pangea_control::session::Drafts;
