//! Serving models from this process.
//!
//! ```text
//!  api, cli ──► Served (names) ──► Engine ──► thread: stepper ◄─► batch (pure: which rows next)
//!                                    └ text (tokens, templates)  └─► sequence (logits to text) └─► pangea-compute
//! ```
//!
//! * [`served`]: the models of a node by name, loaded and probed. [`engine`]: the handle of one that is loaded.
//! * [`batch`]: which sequences are computed when; a pure state machine. `stepper`: the thread that does what it says.
//! * `sequence`: one answer under way. `text`: prompts to tokens. [`request`]: what is asked and answered. `metrics`: counters.
//!
//! It knows nothing of HTTP, peers or commands.

pub mod batch;
pub mod engine;
mod metrics;
pub mod request;
mod sequence;
pub mod served;
mod stepper;
mod text;

pub use engine::{Drafts, Engine, EngineSettings, Generation, ModelFacts, Refused};
pub use metrics::SECONDS_BUCKETS;
pub use request::{Delta, Event, Finish, Format, MAX_CHOICES, Prompt, Request, Summary, TokenLogprob, TokenText};
pub use served::{Served, ServedModel};
