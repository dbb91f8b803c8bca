//! This node's place in a pool: the secrets, files and clock behind the decisions of `pangea_control::membership`. Nothing here
//! opens a connection: `net` shows and checks certificates on its connections and carries `/pangea/join/1`, `pool` tells members
//! of revocations.
//!
//! | file | owns |
//! |---|---|
//! | [`handle`] | the handle: who this node is in its pool, what others prove, invitations, joining |
//! | [`door`] | answers to nodes that want to join |
//! | [`overview`] | who belongs to the pool, for people |
//! | [`pool_key`] | the pool key and its file |
//! | [`pake`] | the exchange that a PIN protects |
//! | [`strangers`] | nodes of other pools that were met on the network |
//! | [`stored`] | what survives a restart: the certificate, invitations, revocations, who was admitted |

pub mod door;
#[cfg(test)]
mod goldens;
pub mod handle;
pub mod overview;
pub mod pake;
pub mod pool_key;
pub mod stored;
pub mod strangers;

pub use handle::{Invited, Joined, Membership, Offer, unix_s};
pub use overview::{KnownMember, Overview};
pub use pool_key::{PoolKey, PoolKeyError, PoolKeyProblem, PoolSigner};
pub use stored::{KeptCertificate, Stored};
