//! The network below streams: transports, admission, the swarm, who is dialled and who is alive. What travels on the
//! streams is `link`'s and `wire`'s; nothing here knows a task.
//!
//! | file | owns |
//! |---|---|
//! | `network` | the handle and the events: all that the rest of the node sees |
//! | `swarm` | the one task that drives everything |
//! | `transport`, `socket`, `yamux` | TCP and QUIC up to an admitted connection with streams |
//! | `admission`, `pool_key` | the proof of the pool key: codec, both sides, the secret |
//! | `session` | which of two connections to a peer lives; bytes per peer |
//! | `gossip` | the topic that nodes gossip on: limits and wiring of libp2p's gossipsub |
//! | `dial`, `liveness` | pure: whom to dial when; who is dead |
//! | `identity`, `peers_file`, `addresses` | `node.key`, `peers.json`, the address to show a person |
//! | `peer_address` | addresses of nodes as people write them |

pub mod addresses;
pub mod admission;
mod gossip;
pub mod identity;
mod network;
pub mod peer_address;
pub mod peers_file;
mod pool_key;
mod session;
mod socket;
mod swarm;
mod transport;
mod yamux;

pub use network::{
    Direction, Gossip, GossipConfig, GossipTicket, NetConfig, NetError, NetEvent, Network, Verdict, start,
};
pub use pangea_control::net::{FoundBy, Traffic, Transport};
pub use pool_key::{PoolKey, PoolKeyError, PoolKeyProblem};
