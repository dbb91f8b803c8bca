//! Why an answer can be believed: stages sign what they did, coordinators keep it, anyone can check it later (DESIGN §6).
//!
//! ```text
//!  stage 0 ── chain ──► stage 1 ── chain ──► … ──► coordinator ──► Receipt ──► ReceiptStore
//!  signs its claim      countersigns what it got,   closes it        │
//!                       signs its own               AuditPolicy ──► replay (pangea_compute::commit)
//! ```
//!
//! * [`signature`]: a peer's signature, and the peer.
//! * [`chain`]: the signed claims of one session, and what must hold between them; as bytes from peers.
//! * [`receipt`](mod@receipt): what is kept of an answer, as JSON. [`rules`]: by which its tokens were chosen. `hex`:
//!   bytes in it. [`store`]: the folder of receipts.
//! * [`verify`](mod@verify): a receipt held against its signatures and its model's file.
//! * `verdict`: a verdict in JSON. Which sessions are audited is decided by [`pangea_control::trust`].
//!
//! * [`auditor`]: replays answers that were drawn; what it needs of the node is handed in as an [`AuditHost`].
//!
//! What is wrong with whom is told; quarantine is the fabric's. It imports no other room of the node.

pub mod auditor;
pub mod chain;
mod failed_audit;
mod hex;
pub mod receipt;
pub mod rules;
pub mod signature;
pub mod store;
mod verdict;
pub mod verify;

pub use auditor::{AuditHost, Auditor, AuditorParts, ModelSource};
pub use chain::{ChainFault, CommitChain, Expected, Signed};
pub use failed_audit::FailedAudit;
pub use receipt::{Audit, Receipt, ReceiptModel, ReceiptStage, Segment};
pub use rules::{ReceiptSampling, terms_digest};
pub use signature::Signature;
pub use store::{ReceiptStore, Summary};
pub use verify::{OutputCheck, SegmentCheck, StageCheck, TokenCheck, Verification, Weights, verify};
