//! Statuses of a node and its peers. Plain values, the same on every surface.

pub use pangea_client::{LinkProbe, NodeStatus, PeerStatus};
