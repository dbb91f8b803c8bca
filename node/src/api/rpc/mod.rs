//! The Cap'n Proto service of a node (`schema/node.capnp`), on a thread of its own.
//!
//! * [`backend`]: what the service asks of the rest of the node.
//! * `connections`: from the accepted socket to the last job.
//! * [`limits`]: what one client may hold.
//! * `account`: what one connection holds; counted, reserved, given back.
//! * `socket`: the bytes of one connection, counted, and held up by a client that does not read.
//! * `node`, `tensor`, `job`, `model`: the capabilities.
//!
//! Nothing is computed here and nothing waits here for long: a call either copies a chunk, or
//! awaits the backend. It knows nothing of peers, streams or tasks.

mod account;
pub mod backend;
mod connections;
mod job;
pub mod limits;
mod model;
mod node;
mod slot;
mod socket;
mod tensor;

pub use backend::{Backend, RunningJob, RunningNode};
pub use connections::{bind, serve};
pub use limits::Limits;
