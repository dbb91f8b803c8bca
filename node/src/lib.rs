//! One Pangea node.
//!
//! * [`api`]: what programs reach a node by.
//! * [`fabric`]: jobs, from request to checked product.

pub mod api;
pub mod fabric;
