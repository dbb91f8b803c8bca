//! The rows of activations that stages of this node gave, kept where their engine's bits are not exact, and opened to the coordinators
//! of their sessions over `/pangea/rows/1`: whoever audits such a stage compares its rows by value (`canonical-grid/1`).
//!
//! ```text
//!  pipeline (a stage) ── keep, signed ──► RowStore ◄── streams ◄── /pangea/rows/1 ◄── another node's audit
//!                                            ▲
//!                 this node's audit ─ RowOpener ──► streams ──► /pangea/rows/1 ──► a stage's node
//! ```
//!
//! * [`store`]: the rows, within a bound; the oldest signed sessions make room.
//! * [`message`]: the protocol. [`streams`]: questions and answers on their way.
//!
//! Whether rows are those that a stage signed is checked by who asked.

#[cfg(test)]
mod goldens;
pub mod message;
pub mod store;
pub mod streams;

pub use message::RowsMessage;
pub use store::{KeptRow, RowStore, SignedRows};
pub use streams::RowOpener;

/// The protocol, versioned in its name.
pub const PROTOCOL: &str = "/pangea/rows/1";
