//! The Cap'n Proto service of a node (`schema/node.capnp`), on a thread of its own.
//!
//! * [`backend`]: the interface to the rest of the node.
//! * `connections`: from accepting to draining.
//! * [`limits`]: limits on what one client holds.
//! * `account`: what one connection holds: counted, reserved, released.
//! * `socket`: the bytes of one connection, counted, with back-pressure on a client that does not read.
//! * `login`: what a client gets that has not shown the node's key yet.
//! * `node`, `tensor`, `job`, `model`, `members`: the capabilities.
//!
//! Nothing is computed here and nothing blocks for long: a call either copies a chunk or
//! awaits the backend. The service knows nothing of peers, streams or tasks.

mod account;
pub mod backend;
mod connections;
mod job;
pub mod limits;
mod login;
mod members;
mod model;
mod node;
mod slot;
mod socket;
mod tensor;

pub use backend::{Backend, RunningJob, RunningNode};
pub use connections::{Ports, bind, bind_local, serve};
pub use limits::Limits;
