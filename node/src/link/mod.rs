//! Task streams. No other code reads or writes them.
//!
//! * [`coordinator`]: the side that opened the stream; sends operands and tasks, receives results.
//! * [`serve`]: the side that accepted it; receives operands and tasks, sends results.
//! * `result_shares`: what each peer's results may take of this node's memory.
//! * [`limits`]: limits that both sides obey.
//!
//! A node opens one long-lived stream to every peer and serves the one that the peer opened. Reading
//! and writing always proceed in parallel (a multiplexer may deadlock otherwise). Everything here runs on
//! the network thread and never computes, hashes or decides.

pub mod coordinator;
pub mod limits;
mod result_shares;
pub mod serve;
