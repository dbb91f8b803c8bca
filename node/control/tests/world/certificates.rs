//! What adverts carry besides their content: who signed the message, and the certificate with which its author proves that it
//! belongs to the pool. Certificates are real ones of the pool's key; who signed a message is taken as read, because nobody can
//! sign for another.

use std::sync::Arc;

use libp2p_identity::{Keypair, PeerId};
use pangea_control::membership::{Certificate, NotProven, PoolId, Proofs, Role, SignedCertificate};
use pangea_control::pool::Advert;

use crate::node::{EPOCH_UNIX_S, Run};

/// Until when every node of the world belongs to the pool, in seconds since 1970: later than any clock of it shows.
const EXPIRES_UNIX_S: u64 = EPOCH_UNIX_S + 365 * 86_400;

/// A message of gossip.
#[derive(Clone, Debug)]
pub(crate) struct Published {
    /// Whoever signed it.
    pub(crate) source: PeerId,
    /// The author's proof, as bytes that nobody has read yet.
    pub(crate) certificate: Arc<[u8]>,
    pub(crate) advert: Advert,
    /// Whether it says what its source may not say. No node is told.
    pub(crate) is_forged: bool,
}

/// Why a message is refused before anything of it is believed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Unbelieved {
    NotProven(NotProven),
    AnotherPeers,
    ClientThatWorks,
}

/// The key of the world's pool, and that of another pool.
pub(crate) fn pool_key(of_another: bool) -> Keypair {
    Keypair::ed25519_from_bytes([7 + u8::from(of_another); 32]).unwrap()
}

/// A certificate signed with this key.
pub(crate) fn certify(key: &Keypair, peer: PeerId, role: Role, expires_unix_s: u64) -> Arc<[u8]> {
    let certificate = Certificate { peer, role, expires_unix_s, serial: 0 };
    let signature = key.sign(&certificate.signed_bytes()).unwrap().try_into().unwrap();
    SignedCertificate { certificate, signature }.encode().into()
}

/// The certificate of a node of the pool.
pub(crate) fn certificate_of(key: &Keypair, peer: PeerId, works: bool) -> Arc<[u8]> {
    certify(key, peer, if works { Role::Member } else { Role::Client }, EXPIRES_UNIX_S)
}

impl Run {
    /// Whether the author of a message has proven that it belongs to the pool; a node that was admitted need not, again.
    pub(crate) fn proves(&mut self, message: &Published, unix_s: u64) -> Result<bool, Unbelieved> {
        let Published { source, certificate, advert, .. } = message;
        let role = match self.proofs.check(source, certificate, unix_s) {
            Ok(role) => Some(role),
            Err(_) if self.roster.was_admitted(source) => None,
            Err(why) => return Err(Unbelieved::NotProven(why)),
        };
        match role {
            _ if advert.peer != *source => Err(Unbelieved::AnotherPeers),
            Some(Role::Client) if advert.works => Err(Unbelieved::ClientThatWorks),
            role => Ok(role.is_some()),
        }
    }
}

/// The proofs of a node that starts.
pub(crate) fn proofs() -> Proofs {
    Proofs::new(PoolId::of(&pool_key(false).public()).unwrap())
}
