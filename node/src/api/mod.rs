//! What programs reach a node by.
//!
//! * [`rpc`]: the Cap'n Proto service.

pub mod rpc;
