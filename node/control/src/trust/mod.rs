//! The decisions about trust in answers: which sessions are audited, and how far an answer can be trusted.
//!
//! * [`audit`]: the share of sessions that are audited, and the draw.
//! * [`verdict`]: how far an answer can be trusted.
//!
//! Signatures, receipts and the replay of an audit are the node's.

pub mod audit;
pub mod verdict;

pub use audit::AuditPolicy;
pub use verdict::Verdict;
