//! This node's proof that it belongs to the pool, and the check of others' proofs, with the system's clock. A node that has
//! the pool key issues its own certificate; a pool without a key has no proofs.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use libp2p::PeerId;
use pangea_client::{Error, ErrorKind, Result};
use pangea_control::membership::{Certificate, NotProven, Proofs, Role};

use crate::net::{PoolKey, PoolSigner};

/// Validity of a certificate that a node issues for itself.
const VALIDITY: Duration = Duration::from_secs(7 * 24 * 3600);

/// Age at which a node renews its own certificate: a peer whose clock is up to six days ahead still accepts it.
const RENEWED_AFTER: Duration = Duration::from_secs(24 * 3600);

/// Who belongs to the pool.
pub struct Membership {
    local: PeerId,
    role: Role,
    keyed: Option<Keyed>,
}

struct Keyed {
    signer: PoolSigner,
    proofs: Proofs,
    certificate: Vec<u8>,
    /// Seconds since 1970.
    issued: u64,
}

impl Membership {
    /// The membership of `local` in the pool with this key, or in an open pool. `works`: whether the node computes for
    /// others.
    ///
    /// # Errors
    /// `Internal` if the node cannot issue its certificate.
    pub fn new(pool_key: Option<&PoolKey>, local: PeerId, works: bool) -> Result<Membership> {
        let role = if works { Role::Member } else { Role::Client };
        let mut membership = Membership { local, role, keyed: None };
        if let Some(pool_key) = pool_key {
            let signer = pool_key.signer().map_err(|why| cannot_issue(&why))?;
            let proofs = Proofs::new(signer.public());
            let now = unix_s();
            let certificate = membership.issue(&signer, now)?;
            membership.keyed = Some(Keyed { signer, proofs, certificate, issued: now });
        }
        Ok(membership)
    }

    /// Whether the pool has no key.
    pub fn is_open(&self) -> bool {
        self.keyed.is_none()
    }

    /// Checks the certificate that `author` shows.
    ///
    /// # Errors
    /// [`NotProven`]; always in an open pool.
    pub fn check(&mut self, author: &PeerId, certificate: &[u8]) -> std::result::Result<Role, NotProven> {
        let keyed = self.keyed.as_mut().ok_or(NotProven::NoCertificate)?;
        keyed.proofs.check(author, certificate, unix_s())
    }

    /// This node's certificate, renewed when it is due; empty in an open pool.
    pub fn certificate(&mut self) -> &[u8] {
        let now = unix_s();
        let due = |keyed: &&Keyed| now.abs_diff(keyed.issued) >= RENEWED_AFTER.as_secs();
        let renewed = self.keyed.as_ref().filter(due).map(|keyed| self.issue(&keyed.signer, now));
        let Some(keyed) = &mut self.keyed else { return &[] };
        match renewed {
            Some(Ok(certificate)) => (keyed.certificate, keyed.issued) = (certificate, now),
            Some(Err(error)) => tracing::warn!(event = "certificate_not_renewed", %error),
            None => {}
        }
        &keyed.certificate
    }

    fn issue(&self, signer: &PoolSigner, now: u64) -> Result<Vec<u8>> {
        let certificate = Certificate {
            peer: self.local,
            role: self.role,
            expires_unix_s: now.saturating_add(VALIDITY.as_secs()),
            serial: rand::random(),
        };
        Ok(signer.sign(certificate).map_err(|why| cannot_issue(&why))?.encode())
    }
}

fn cannot_issue(why: &str) -> Error {
    Error::new(ErrorKind::Internal, format!("cannot issue this node's certificate: {why}"))
}

/// Seconds since 1970.
fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_of_one_pool_accept_each_others_certificates_and_others_do_not() {
        let [one, other] = [1, 2].map(|byte| PoolKey::from_bytes(&[byte; 32]));
        let [a, b, c] = [(); 3].map(|()| PeerId::random());
        let mut at_a = Membership::new(Some(&one), a, true).unwrap();
        let mut at_b = Membership::new(Some(&one), b, false).unwrap();
        let mut at_c = Membership::new(Some(&other), c, true).unwrap();
        let mut open = Membership::new(None, c, true).unwrap();
        assert_eq!(at_a.check(&b, at_b.certificate()), Ok(Role::Client));
        assert_eq!(at_b.check(&a, at_a.certificate()), Ok(Role::Member));
        assert!(at_c.check(&a, at_a.certificate()).is_err());
        assert_eq!(at_a.check(&c, open.certificate()), Err(NotProven::NoCertificate));
        assert!(open.is_open() && open.check(&a, at_a.certificate()).is_err());
    }

    #[test]
    fn a_certificate_is_renewed_once_a_day() {
        let key = PoolKey::from_bytes(&[1; 32]);
        let mut node = Membership::new(Some(&key), PeerId::random(), true).unwrap();
        let first = node.certificate().to_vec();
        assert_eq!(node.certificate(), first);
        node.keyed.as_mut().unwrap().issued -= RENEWED_AFTER.as_secs();
        assert_ne!(node.certificate(), first);
    }
}
