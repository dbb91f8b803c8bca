//! The decisions about trust: which sessions are audited, how far an answer can be trusted, and what follows from an accusation.
//!
//! * [`accusations`]: whom this node convicts by what other members found.
//! * [`audit`]: the share of sessions that are audited, and the draw.
//! * [`verdict`]: how far an answer can be trusted.
//!
//! Signatures, receipts and the replay of an audit are the node's.

pub mod accusations;
pub mod audit;
pub mod verdict;

pub use audit::AuditPolicy;
pub use verdict::Verdict;
