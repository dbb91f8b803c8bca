//! The network below streams: transports, admission, the swarm, who is dialled and who is alive. What travels on the
//! streams is `link`'s and `wire`'s; nothing here knows a task. Whom to dial when, who is admitted, which of two connections
//! lives and who is dead is decided in `pangea_control::net`.
//!
//! | file | owns |
//! |---|---|
//! | `network` | the handle and the events: all that the rest of the node sees |
//! | `followers` | who hears of the events, each at its own pace |
//! | `swarm`, `swarm_behaviour` | the one task that drives everything; what of libp2p it drives, with its limits |
//! | `failures` | how dials and connections failed, for programs and for people |
//! | `transport`, `socket`, `yamux` | TCP and QUIC up to an admitted connection with streams |
//! | `pool_key` | the secret that admission proves |
//! | `peer_connections` | the connections that live: their bytes, and how each is cut off |
//! | `gossip` | the topic that nodes gossip on: limits and wiring of libp2p's gossipsub |
//! | `identity`, `peers_file`, `addresses` | `node.key`, `peers.json`, the address to show a person |
//! | `peer_address` | addresses of nodes as people write them |

pub mod addresses;
mod failures;
mod followers;
mod gossip;
pub mod identity;
mod network;
pub mod peer_address;
mod peer_connections;
pub mod peers_file;
mod pool_key;
mod socket;
mod swarm;
mod swarm_behaviour;
mod transport;
mod yamux;

pub use followers::{Follower, Followers, Interest};
pub use network::{
    Direction, Gossip, GossipConfig, GossipTicket, NetConfig, NetError, NetEvent, Network, Verdict, start,
};
pub use pangea_control::net::{FoundBy, Traffic, Transport};
pub use pool_key::{PoolKey, PoolKeyError, PoolKeyProblem};
