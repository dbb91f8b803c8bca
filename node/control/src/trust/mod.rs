//! The decisions about trust: which sessions are audited, how far an answer can be trusted, and what follows from an accusation.
//!
//! * [`accusations`]: whom this node convicts by what other members found.
//! * [`audit`]: the share of sessions that are audited, and the draw.
//! * [`audit_queue`]: which audit comes next, and how much of the time it gets.
//! * [`verdict`]: how far an answer can be trusted.
//!
//! Signatures, receipts and the replay of an audit are the node's.

pub mod accusations;
pub mod audit;
pub mod audit_queue;
pub mod verdict;

pub use audit::AuditPolicy;
pub use audit_queue::{AuditPace, AuditQueue, Pace, Skipped, Urgency};
pub use verdict::Verdict;
