//! Who holds which part of a node's memory: one [`Ledger`] of leases, whose sum never passes `--max-memory`. The ledger decides
//! and counts; it allocates nothing.
//!
//! Rules, from which follows that nothing waits for ever and nobody is starved:
//!
//! * A lease is granted whole or not at all. What does not fit now is refused with the numbers, or waits with a deadline.
//! * Waiting requests of one kind are served in their order; between kinds, whichever was asked first and fits.
//! * [`own_work_bytes`] of the memory are kept free of everything but this node's own products, audits and parts of model files
//!   on their way: a node whose memory is full of layers, or of what peers sent, still computes in blocks, still checks what it
//!   was told, and still gives other nodes the layers that they need. Half of it at most goes to peers' downloads.
//! * Peers together have at most half of the memory for operands and a quarter for results ([`Kind::most_bytes`]): operands
//!   that wait for their product never take the room that the product needs.
//! * Packed operands are kept only in memory that nobody else asks for: where a request would be refused, the driver drops
//!   them and asks again.

mod kind;
mod ledger;
mod shortage;
pub mod turns;

pub use kind::{Kind, models_bytes, own_work_bytes, roomy_audit_bytes, roomy_sessions_bytes};
pub use ledger::{Action, Event, LeaseId, Ledger, MAX_WAITING};
pub use shortage::Shortage;
