//! What this node knows of every peer, in one place: connection, addresses, measured link, what the peer says of itself,
//! trust, quarantine. Whether a peer may compute is answered here and nowhere else.
//!
//! * [`directory`]: all peers, as a state machine: what is heard and measured goes in, what is to be done comes out.
//! * [`peer`]: one peer, with the rules of its trust, its link's smoothing and its stream's backoff.

pub mod directory;
pub mod peer;

pub use directory::{Action, Directory, Event};
pub use peer::{Peer, PeerState, WorkerHello};
