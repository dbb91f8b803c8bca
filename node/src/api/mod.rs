//! What programs reach a node by.
//!
//! * [`rpc`]: the Cap'n Proto service.
//! * [`http`]: the HTTP API.
//! * `service`: the thread, the accepting and the end that both have.

pub mod http;
pub mod rpc;
mod service;

pub use service::Service;
