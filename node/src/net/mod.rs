//! The network below streams: transports, admission, the swarm, dialling and liveness. `link` and `wire` own what
//! travels on the streams; nothing here knows a task. `pangea_control::net` decides whom to dial when, who is admitted,
//! which of two connections lives and who is dead.
//!
//! | file | owns |
//! |---|---|
//! | `network` | the handle and the events: the interface to the rest of the node |
//! | `followers` | distribution of the events, to each follower at its own pace |
//! | `swarm`, `swarm_behaviour` | the task that drives libp2p; the parts of libp2p in use, with their limits |
//! | `failures` | errors of dials and connections, for programs and for people |
//! | `transport`, `socket`, `yamux` | TCP and QUIC up to an admitted connection with streams |
//! | `admitting`, `doorway` | what holds for every transport: places for handshakes, dials that end; the places of any port |
//! | `mdns` | announcements on the local network, as far as they are believed |
//! | `inbound` | streams that peers open, until they are taken |
//! | [`joining`] | `/pangea/join/1`: how a node asks a member to be admitted, and is answered |
//! | `peer_connections` | open connections: their bytes, in total and per second, and how each is cut off |
//! | `pings` | how often each end of a connection pings |
//! | [`way_back`] | `/pangea/wayback/1`: whether a peer can open a connection to this node |
//! | `metrics` | what is counted of connections, for `/metrics` |
//! | `gossip` | the gossip topic: limits and configuration of libp2p's gossipsub |
//! | `identity`, `peers_file`, `addresses` | `node.key`, `peers.json`, the address to show a person |
//! | `peer_address` | addresses of nodes as people write them |

pub mod addresses;
mod admitting;
mod doorway;
mod failures;
mod followers;
mod gossip;
pub mod identity;
mod inbound;
pub mod joining;
mod mdns;
mod metrics;
mod network;
pub mod peer_address;
mod peer_connections;
pub mod peers_file;
mod pings;
mod socket;
mod swarm;
mod swarm_behaviour;
mod transport;
pub mod way_back;
mod yamux;

pub use doorway::{Caller, Doorway};
pub use followers::{Follower, Followers, Interest};
pub use inbound::{AcceptedTwice, IncomingStreams};
pub use network::{
    Direction, Gossip, GossipConfig, GossipJudgement, GossipTicket, NetConfig, NetError, NetEvent, Network, start,
    with_free_ports,
};
pub use pangea_control::net::dial::Unconnected;
pub use pangea_control::net::dial_budget::Report;
pub use pangea_control::net::{FoundBy, Traffic, TrafficRate, Transport};
