//! What programs reach a node by.
//!
//! * [`rpc`]: the Cap'n Proto service.
//! * [`http`]: the HTTP API.

pub mod http;
pub mod rpc;
