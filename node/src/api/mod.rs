//! The services that programs use to reach a node.
//!
//! * [`rpc`]: the Cap'n Proto service.
//! * [`http`]: the HTTP API.
//! * `terms`: what an owner may say of invitations, for both.
//! * `service`: the life cycle that both share: thread, accepting, shutdown.

pub mod http;
pub mod rpc;
mod service;
mod terms;

pub use service::Service;
