//! Task streams: the only code that touches them.
//!
//! * [`coordinator`]: the side that opened the stream: sends operands and tasks, receives results.
//! * [`serve`]: the side that accepted it: receives operands and tasks, sends results.
//! * [`limits`]: the numbers both sides keep to.
//!
//! A node opens one long-lived stream to every peer, and serves the one that the peer opened. Reading
//! and writing always go on at once (a multiplexer may deadlock otherwise). Everything here runs on
//! the network thread; it never computes, hashes or decides.

pub mod coordinator;
pub mod limits;
pub mod serve;
