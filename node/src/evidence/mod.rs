//! Evidence of lies, about products and stages alike: kept on this node, told to the other members, `/pangea/evidence/1`, and
//! checked again before anyone acts on it. `pangea_control::trust::accusations` decides whom this node convicts.
//!
//! ```text
//!  fabric, auditor ── Findings (handle, any thread) ──► driver (network thread) ──► accusations (pure)
//!                                                        │
//!     accusations told and evidence asked for: streams ◄─┼─► folder: evidence on disk
//!                                                        └─► recheck: on a thread of its own
//! ```
//!
//! * [`findings`]: the handle through which a lie that was just found comes in; the peer is convicted at once.
//! * [`accusation`]: what a member signs about evidence that it checked. [`message`]: the protocol.
//! * `bundle`: evidence as bytes, named by their hash. `folder`: evidence on disk, which also keeps its peer quarantined
//!   when the node restarts; removing its folder ends the quarantine.
//! * `recheck`: whether evidence proves the lie. `streams`: accusations and evidence on their way. `metrics`: what is counted.
//! * `driver`: all of it.

pub mod accusation;
mod bundle;
mod driver;
pub mod findings;
mod folder;
#[cfg(test)]
mod goldens;
pub mod message;
mod metrics;
mod recheck;
mod streams;

pub use driver::{EvidenceDriver, EvidenceSettings};
pub use findings::{Findings, ProductEvidence, StageReplay};
pub use folder::EvidenceFolder;

/// The protocol, versioned in its name.
pub const PROTOCOL: &str = "/pangea/evidence/1";
