//! Commitments and receipts: stages sign their work, coordinators store it, anyone can check it later (DESIGN §6).
//!
//! ```text
//!  stage 0 ── chain ──► stage 1 ── chain ──► … ──► coordinator ──► Receipt ──► ReceiptStore
//!  signs its claim      countersigns what it got,   closes it        │
//!                       signs its own               AuditPolicy ──► replay (pangea_compute::commit)
//! ```
//!
//! * [`signature`]: a signature with its peer. [`product_claim`]: what a worker signs about a result.
//! * [`chain`]: the signed claims of one session, their checks and their encoding. [`gathered`]: what of them has arrived, and
//!   who is suspected if that does not cover the answer.
//! * [`receipt`](mod@receipt): the record of an answer, as JSON. [`rules`]: its sampling terms. `hex`: bytes in it.
//!   [`store`]: the folder of receipts.
//! * [`verify`](mod@verify): checks a receipt against its signatures and its model's file.
//! * [`opened`]: rows that stages without exact bits opened for an audit. `profile`: how a claim is checked, in JSON.
//! * `verdict`: a verdict in JSON. [`pangea_control::trust`] decides which sessions are audited.
//!
//! * [`auditor`]: replays drawn answers; [`claim_replay`]: one claim that somebody else accuses. Both reach the node through an
//!   [`AuditHost`]. `replay_audit`: the audit of one answer. `replayer`: what both recompute it with.
//!
//! This room reports who signed what; the fabric quarantines. It imports no other room of the node.

pub mod auditor;
pub mod chain;
pub mod claim_replay;
mod failed_audit;
pub mod gathered;
#[cfg(test)]
mod goldens;
mod hex;
pub mod opened;
pub mod product_claim;
mod profile;
pub mod receipt;
mod replay_audit;
mod replayer;
pub mod rules;
pub mod signature;
pub mod store;
mod verdict;
pub mod verify;

pub use auditor::{AuditHost, Audited, Auditor, AuditorParts, ModelSource};
pub use chain::{ChainFault, CommitChain, Expected, FaultKind, Signed};
pub use claim_replay::ClaimReplay;
pub use failed_audit::FailedAudit;
pub use gathered::Gathered;
pub use opened::{OpenedRows, ToldToken};
pub use product_claim::{ProductClaim, SignedProduct};
pub use receipt::{Audit, Receipt, ReceiptModel, ReceiptStage, Received, Segment};
pub use rules::{ReceiptSampling, terms_digest};
pub use signature::Signature;
pub use store::{ReceiptStore, Summary};
pub use verify::{OutputCheck, SegmentCheck, StageCheck, TokenCheck, Verification, Weights, verify};
