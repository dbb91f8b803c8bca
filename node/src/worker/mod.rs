//! The worker's side of a node: how it computes.
//!
//! * [`cost`]: an operation as the scheduler counts it.
//! * [`executor`]: the one thread that owns the compute pool, and its queue.
//! * `liar`: wrong, late and missing results on purpose, for tests.
//!
//! It never knows who a peer is beyond a key, and never touches a socket; `link` brings it work.

pub mod cost;
pub mod executor;
mod liar;
