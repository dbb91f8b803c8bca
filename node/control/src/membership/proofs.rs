//! Checks the chains of certificates with which nodes prove that they belong to the pool, when they connect and as authors of
//! gossip. A chain that was verified is remembered, so that a message with the same chain costs no signature check.

use std::collections::BTreeMap;

use libp2p_identity::PeerId;
use thiserror::Error;

use super::certificate::{CertificateError, PoolId, Role};
use super::chain::{Chain, Proven};
use super::revocation::{Revocations, SignedRevocation};

/// Verified certificates that are remembered: more than a pool has nodes. Beyond it the one that expires first is forgotten
/// and verified again. Tests reach a smaller limit.
const MAX_VERIFIED: usize = if cfg!(test) { 16 } else { 2048 };

/// Why a node has not proved that it belongs to the pool.
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
    /// The certificate of this peer, which is the node or one that admitted it, is revoked.
    #[error("the certificate of {0} is revoked")]
    Revoked(PeerId),
}

#[derive(Debug)]
struct Verified {
    /// BLAKE3 of the chain's bytes.
    digest: blake3::Hash,
    proven: Proven,
}

/// The proofs of membership in one pool.
#[derive(Debug)]
pub struct Proofs {
    pool: PoolId,
    revocations: Revocations,
    verified: BTreeMap<PeerId, Verified>,
    /// Chains checked so far.
    checks: u64,
}

impl Proofs {
    /// Proofs of membership in `pool`.
    pub fn new(pool: PoolId) -> Proofs {
        Proofs { pool, revocations: Revocations::new(pool), verified: BTreeMap::new(), checks: 0 }
    }

    /// Checks the chain that `owner` shows; an empty one is none. `now_unix_s`: seconds since 1970.
    ///
    /// # Errors
    /// [`NotProven`].
    pub fn check(&mut self, owner: &PeerId, bytes: &[u8], now_unix_s: u64) -> Result<Role, NotProven> {
        if bytes.is_empty() {
            return Err(NotProven::NoCertificate);
        }
        let digest = blake3::hash(bytes);
        let known = self.verified.get(owner).filter(|verified| verified.digest == digest);
        let (role, expires_unix_s) = match known {
            Some(Verified { proven, .. }) => {
                if let Some(revoked) = proven.subjects.iter().find(|subject| self.revocations.contains(subject)) {
                    return Err(NotProven::Revoked(*revoked));
                }
                (proven.role, proven.expires_unix_s)
            }
            None => self.verify(owner, bytes, digest, now_unix_s)?,
        };
        if expires_unix_s <= now_unix_s {
            self.verified.remove(owner);
            return Err(NotProven::Expired);
        }
        Ok(role)
    }

    fn verify(
        &mut self,
        owner: &PeerId,
        bytes: &[u8],
        digest: blake3::Hash,
        now_unix_s: u64,
    ) -> Result<(Role, u64), NotProven> {
        let chain = Chain::parse(bytes)?;
        self.checks += 1;
        let revocations = &self.revocations;
        let proven = chain.verify(owner, &self.pool, now_unix_s, |peer| revocations.contains(peer))?;
        let (role, expires_unix_s) = (proven.role, proven.expires_unix_s);
        if self.verified.len() >= MAX_VERIFIED
            && let Some(first) =
                self.verified.iter().min_by_key(|(_, known)| known.proven.expires_unix_s).map(|(peer, _)| *peer)
        {
            self.verified.remove(&first);
        }
        self.verified.insert(*owner, Verified { digest, proven });
        Ok((role, expires_unix_s))
    }

    /// What `peer` has proved last, if it is remembered.
    pub fn proven(&self, peer: &PeerId) -> Option<&Proven> {
        self.verified.get(peer).map(|verified| &verified.proven)
    }

    /// What every peer that is remembered has proved, by peer id.
    pub fn all_proven(&self) -> impl Iterator<Item = (&PeerId, &Proven)> {
        self.verified.iter().map(|(peer, verified)| (peer, &verified.proven))
    }

    /// Whether a peer, or one that admitted it as far as is known, is revoked.
    pub fn is_revoked(&self, peer: &PeerId) -> bool {
        let by_chain = |proven: &Proven| proven.subjects.iter().any(|subject| self.revocations.contains(subject));
        self.revocations.contains(peer) || self.proven(peer).is_some_and(by_chain)
    }

    /// Takes in an encoded set of revocations. Returns the peers that belong to the pool no longer because of it: those
    /// revoked and, of those that are remembered, those that they admitted.
    pub fn revoke(&mut self, revocations: &[u8]) -> Vec<PeerId> {
        let mut gone = self.revocations.take_in(revocations);
        if !gone.is_empty() {
            let admitted: Vec<PeerId> =
                self.verified.keys().filter(|peer| !gone.contains(peer) && self.is_revoked(peer)).copied().collect();
            gone.extend(admitted);
        }
        gone
    }

    /// The revocations that are known.
    pub fn revocations(&self) -> impl Iterator<Item = &SignedRevocation> {
        self.revocations.all()
    }

    /// The revocations that are known, encoded.
    pub fn encoded_revocations(&self) -> Vec<u8> {
        self.revocations.encode()
    }

    /// The pool.
    pub fn pool(&self) -> &PoolId {
        &self.pool
    }

    /// Chains checked so far.
    pub fn checks(&self) -> u64 {
        self.checks
    }
}

#[cfg(test)]
mod tests {
    use libp2p_identity::Keypair;

    use super::super::certificate::{Certificate, SignedCertificate};
    use super::super::revocation::Revocation;
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
        let mut proofs = Proofs::new(PoolId::of(&pool(1).public()).unwrap());
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
        let mut proofs = Proofs::new(PoolId::of(&pool(1).public()).unwrap());
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
    fn a_revocation_ends_what_was_verified_and_nobody_else_revokes() {
        let mut proofs = Proofs::new(PoolId::of(&pool(1).public()).unwrap());
        let bytes = certificate(peer(5), NOW + 10, 0, 1);
        assert_eq!(proofs.check(&peer(5), &bytes, NOW), Ok(Role::Member));
        let revocation = |by: u8| {
            let revocation = Revocation { peer: peer(5), revoked_unix_s: NOW };
            let signature = pool(by).sign(&revocation.signed_bytes()).unwrap().try_into().unwrap();
            SignedRevocation { revocation, signature }.encode()
        };
        assert!(proofs.revoke(&revocation(2)).is_empty() && !proofs.is_revoked(&peer(5)));
        assert_eq!(proofs.revoke(&revocation(1)), [peer(5)]);
        assert!(proofs.is_revoked(&peer(5)));
        assert_eq!(proofs.check(&peer(5), &bytes, NOW), Err(NotProven::Revoked(peer(5))));
        assert!(proofs.revoke(&revocation(1)).is_empty(), "no news");
    }

    #[test]
    fn whoever_a_revoked_member_admitted_goes_with_it() {
        let mut proofs = Proofs::new(PoolId::of(&pool(1).public()).unwrap());
        let (admitter, admitted) = (pool(7), pool(8).public().to_peer_id());
        let by_pool = certificate(admitter.public().to_peer_id(), NOW + 10, 0, 1);
        let certificate = Certificate { peer: admitted, role: Role::Member, expires_unix_s: NOW + 10, serial: 0 };
        let signature = admitter.sign(&certificate.delegated_bytes(proofs.pool())).unwrap().try_into().unwrap();
        let chain = [SignedCertificate { certificate, signature }.encode(), by_pool].concat();
        assert_eq!(proofs.check(&admitted, &chain, NOW), Ok(Role::Member));
        let revocation = Revocation { peer: admitter.public().to_peer_id(), revoked_unix_s: NOW };
        let signature = pool(1).sign(&revocation.signed_bytes()).unwrap().try_into().unwrap();
        let gone = proofs.revoke(&SignedRevocation { revocation, signature }.encode());
        assert_eq!(gone, [admitter.public().to_peer_id(), admitted]);
        assert!(matches!(proofs.check(&admitted, &chain, NOW), Err(NotProven::Revoked(_))));
    }

    #[test]
    fn the_certificates_that_are_remembered_are_limited() {
        let mut proofs = Proofs::new(PoolId::of(&pool(1).public()).unwrap());
        for serial in 0..MAX_VERIFIED as u64 + 10 {
            let author = fresh_peer();
            assert_eq!(proofs.check(&author, &certificate(author, NOW + 1 + serial, serial, 1), NOW), Ok(Role::Member));
        }
        assert_eq!(proofs.verified.len(), MAX_VERIFIED);
    }
}
