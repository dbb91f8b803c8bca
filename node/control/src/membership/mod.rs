//! Who belongs to a pool, and how a node comes to: decisions and bytes, no secret keys.
//!
//! | file | owns |
//! |---|---|
//! | [`certificate`] | certificates: the pool's key, or a member's, says that a peer belongs to the pool |
//! | [`chain`] | chains of them, up to the pool's key |
//! | [`revocation`] | revocations by the pool's key |
//! | [`proofs`] | the check of the chains that others show |
//! | [`invitation`] | tokens, PINs, and which are open |
//! | [`pending`] | nodes that ask to be admitted; the six digits that people compare |
//! | [`strangers`] | nodes of other pools that were met on the network |
//! | [`questions`] | what is asked of the person at a node's terminal |
//! | [`join`] | the messages of `/pangea/join/1` |
//!
//! Who holds the pool's key, signs with it and stores what is decided is the driver's.

pub mod certificate;
pub mod chain;
pub mod invitation;
pub mod join;
pub mod pending;
pub mod proofs;
pub mod questions;
pub mod revocation;
pub mod strangers;

pub use certificate::{Certificate, CertificateError, PoolId, Role, SignedCertificate};
pub use chain::{Chain, MAX_CHAIN_BYTES, Proven};
pub use invitation::{Invitation, Invitations, Terms, Token};
pub use join::JoinRefusal;
pub use pending::{Pending, PendingNode, SixDigits};
pub use proofs::{NotProven, Proofs};
pub use questions::{Matter, Question, Questions};
pub use revocation::{Revocation, SignedRevocation};
pub use strangers::{Stranger, Strangers};
