//! What a node says of itself and of its peers. Plain values, the same on every surface.

pub use pangea_client::{LinkProbe, NodeStatus, PeerStatus};
