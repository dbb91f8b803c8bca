//! Everything that this node knows of its peers, in one place: connection, addresses, measured link, hello,
//! trust, quarantine. Whether a peer may compute is answered here and nowhere else.
//!
//! * [`directory`]: all peers, as a state machine: reports and measurements go in, actions come out.
//! * [`peer`]: one peer, with the rules of its trust, of its link's smoothing and of its stream's backoff.
//! * [`suspicion`]: what lowers a peer's trust without a proof, and how that decays.

pub mod directory;
pub mod peer;
pub mod suspicion;

pub use directory::{Action, Directory, Event};
pub use peer::{Peer, PeerState, WorkerHello, is_newcomer};
pub use suspicion::{Suspicion, SuspicionReason};
