//! Checks the certificates with which the authors of gossip prove that they belong to the pool. A certificate that was
//! verified is remembered, so that a message with the same certificate costs no signature check.

use std::collections::BTreeMap;

use libp2p_identity::{PeerId, PublicKey};
use thiserror::Error;

use super::certificate::{CertificateError, Role, SignedCertificate};

/// Verified certificates that are remembered: more than a pool has nodes. Beyond it the one that expires first is forgotten
/// and verified again. Tests reach a smaller limit.
const MAX_VERIFIED: usize = if cfg!(test) { 16 } else { 2048 };

/// Why an author has not proved that it belongs to the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NotProven {
    /// The message has no certificate.
    #[error("it shows no certificate of the pool")]
    NoCertificate,
    /// The certificate is not one of this pool.
    #[error(transparent)]
    Invalid(#[from] CertificateError),
    /// The certificate is another peer's.
    #[error("it shows the certificate of {0}")]
    AnotherPeers(PeerId),
    /// The certificate has expired.
    #[error("its certificate has expired; if it is new, compare the clocks of the two nodes")]
    Expired,
}

#[derive(Debug)]
struct Verified {
    /// BLAKE3 of the certificate's bytes.
    digest: blake3::Hash,
    role: Role,
    expires_unix_s: u64,
}

/// The proofs of membership in one pool.
#[derive(Debug)]
pub struct Proofs {
    pool: PublicKey,
    verified: BTreeMap<PeerId, Verified>,
    /// Signatures checked so far.
    checks: u64,
}

impl Proofs {
    /// Proofs of membership in the pool with this public key.
    pub fn new(pool: PublicKey) -> Proofs {
        Proofs { pool, verified: BTreeMap::new(), checks: 0 }
    }

    /// Checks the certificate that `author` shows; an empty one is none. `now_unix_s`: seconds since 1970.
    ///
    /// # Errors
    /// [`NotProven`].
    pub fn check(&mut self, author: &PeerId, bytes: &[u8], now_unix_s: u64) -> Result<Role, NotProven> {
        if bytes.is_empty() {
            return Err(NotProven::NoCertificate);
        }
        let digest = blake3::hash(bytes);
        let known = self.verified.get(author).filter(|verified| verified.digest == digest);
        let (role, expires_unix_s) = match known {
            Some(verified) => (verified.role, verified.expires_unix_s),
            None => self.verify(author, bytes, digest, now_unix_s)?,
        };
        if expires_unix_s <= now_unix_s {
            self.verified.remove(author);
            return Err(NotProven::Expired);
        }
        Ok(role)
    }

    fn verify(
        &mut self,
        author: &PeerId,
        bytes: &[u8],
        digest: blake3::Hash,
        now_unix_s: u64,
    ) -> Result<(Role, u64), NotProven> {
        let signed = SignedCertificate::parse(bytes)?;
        if signed.certificate.peer != *author {
            return Err(NotProven::AnotherPeers(signed.certificate.peer));
        }
        if signed.certificate.expires_unix_s <= now_unix_s {
            return Err(NotProven::Expired);
        }
        self.checks += 1;
        let certificate = signed.verify(&self.pool)?;
        let (role, expires_unix_s) = (certificate.role, certificate.expires_unix_s);
        if self.verified.len() >= MAX_VERIFIED
            && let Some(first) =
                self.verified.iter().min_by_key(|(_, known)| known.expires_unix_s).map(|(peer, _)| *peer)
        {
            self.verified.remove(&first);
        }
        self.verified.insert(*author, Verified { digest, role, expires_unix_s });
        Ok((role, expires_unix_s))
    }

    /// Signatures checked so far.
    pub fn checks(&self) -> u64 {
        self.checks
    }
}

#[cfg(test)]
mod tests {
    use libp2p_identity::Keypair;

    use super::super::certificate::Certificate;
    use super::*;
    use crate::test_peers::{fresh_peer, peer};

    const NOW: u64 = 1_800_000_000;

    fn pool(byte: u8) -> Keypair {
        Keypair::ed25519_from_bytes([byte; 32]).unwrap()
    }

    fn certificate(of: PeerId, expires_unix_s: u64, serial: u64, by: u8) -> Vec<u8> {
        let certificate = Certificate { peer: of, role: Role::Member, expires_unix_s, serial };
        let signature = pool(by).sign(&certificate.signed_bytes()).unwrap().try_into().unwrap();
        SignedCertificate { certificate, signature }.encode()
    }

    #[test]
    fn only_an_authors_own_valid_certificate_of_the_pool_proves_anything() {
        let mut proofs = Proofs::new(pool(1).public());
        let mut check = |bytes: &[u8]| proofs.check(&peer(5), bytes, NOW);
        assert_eq!(check(&certificate(peer(5), NOW + 1, 0, 1)), Ok(Role::Member));
        assert_eq!(check(&[]), Err(NotProven::NoCertificate));
        assert_eq!(check(&[1, 2, 3]), Err(NotProven::Invalid(CertificateError::Malformed)));
        assert_eq!(
            check(&certificate(peer(5), NOW + 1, 0, 2)),
            Err(NotProven::Invalid(CertificateError::Signature)),
            "another pool's"
        );
        assert_eq!(check(&certificate(peer(6), NOW + 1, 0, 1)), Err(NotProven::AnotherPeers(peer(6))));
        assert_eq!(check(&certificate(peer(5), NOW, 0, 1)), Err(NotProven::Expired));
    }

    #[test]
    fn a_certificate_is_verified_once_and_still_expires() {
        let mut proofs = Proofs::new(pool(1).public());
        let bytes = certificate(peer(5), NOW + 10, 0, 1);
        for now in [NOW, NOW + 1, NOW + 9] {
            assert_eq!(proofs.check(&peer(5), &bytes, now), Ok(Role::Member));
        }
        assert_eq!(proofs.checks(), 1);
        assert_eq!(proofs.check(&peer(5), &bytes, NOW + 10), Err(NotProven::Expired));
        assert_eq!(
            proofs.check(&peer(5), &certificate(peer(5), NOW + 20, 1, 1), NOW + 10),
            Ok(Role::Member),
            "renewed"
        );
        assert_eq!(proofs.checks(), 2);
        let mut other = certificate(peer(5), NOW + 20, 1, 1);
        let last = other.len() - 1;
        other[last] ^= 1;
        assert!(proofs.check(&peer(5), &other, NOW + 10).is_err(), "not the bytes that were verified");
    }

    #[test]
    fn the_certificates_that_are_remembered_are_limited() {
        let mut proofs = Proofs::new(pool(1).public());
        for serial in 0..MAX_VERIFIED as u64 + 10 {
            let author = fresh_peer();
            assert_eq!(proofs.check(&author, &certificate(author, NOW + 1 + serial, serial, 1), NOW), Ok(Role::Member));
        }
        assert_eq!(proofs.verified.len(), MAX_VERIFIED);
    }
}
