//! Leases of a node's memory: one [`Ledger`], in which the sum of the leases never exceeds `--max-memory`. The ledger
//! decides and counts; it allocates nothing.
//!
//! The rules, by which no request waits forever and no kind is starved:
//!
//! * A lease is granted whole or not at all. A request that does not fit now is refused with the numbers, or waits with
//!   a deadline.
//! * Waiting requests of one kind are served in their order. Between kinds, the oldest that fits is served first.
//! * [`own_work_bytes`] of the memory are kept free of everything but this node's own products, audits and parts of model
//!   files on their way. A node whose memory is full of layers, or of tensors that peers sent, still computes in blocks,
//!   still checks the results of others, and still gives other nodes the layers that they need. At most half of these
//!   bytes are used to send parts to peers.
//! * Peers together have at most half of the memory for operands and a quarter for results ([`Kind::most_bytes`]): operands
//!   that wait for their product never take the room that the product needs.
//! * Packed operands are kept only in memory that is not needed otherwise: before a request is refused, the driver drops
//!   them and asks again.

mod kind;
mod ledger;
mod shortage;
pub mod turns;

pub use kind::{
    Kind, ROWS_BYTES_MAX, models_bytes, own_work_bytes, roomy_audit_bytes, roomy_sessions_bytes, rows_bytes,
};
pub use ledger::{Action, Event, LeaseId, Ledger, MAX_WAITING};
pub use shortage::Shortage;
