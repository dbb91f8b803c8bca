//! Chains of certificates: a peer's own one, that of the member that admitted it, and so on up to one that the pool's key
//! signed. Its bytes are those of its certificates, one after the other, so that a chain of one is the certificate itself.
//! Values and their check; nothing here holds a secret key.

use libp2p_identity::{PeerId, PublicKey};

use super::certificate::{self, CertificateError, PoolId, Role, SignedCertificate};
use super::proofs::NotProven;

/// Maximum certificates of a chain: the pool's key admits a member, which admits one, which admits one, which admits one more. A
/// longer way is never needed, because each member may ask one that stands nearer to the key.
pub const MAX_CHAIN: usize = 4;

/// Maximum bytes of an encoded chain.
pub const MAX_CHAIN_BYTES: usize = MAX_CHAIN * certificate::MAX_BYTES;

/// A chain, which nobody has checked yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain(Vec<SignedCertificate>);

/// What a checked chain proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proven {
    /// Role of the peer.
    pub role: Role,
    /// When the first certificate of the chain expires, in seconds since 1970.
    pub expires_unix_s: u64,
    /// The peer, the member that admitted it, and so on.
    pub subjects: Vec<PeerId>,
}

impl Proven {
    /// The member that admitted the peer; `None` if the pool's key did.
    pub fn admitted_by(&self) -> Option<&PeerId> {
        self.subjects.get(1)
    }
}

impl Chain {
    /// A certificate that the pool's key signed.
    pub fn of_pool(certificate: SignedCertificate) -> Chain {
        Chain(vec![certificate])
    }

    /// The chain of a peer that the owner of this one admits; `None` if this one has its full length.
    pub fn extended(&self, certificate: SignedCertificate) -> Option<Chain> {
        let mut certificates = vec![certificate];
        certificates.extend_from_slice(&self.0);
        (certificates.len() <= MAX_CHAIN).then_some(Chain(certificates))
    }

    /// Whether the owner of this chain can admit another peer.
    pub fn may_admit(&self) -> bool {
        self.0.len() < MAX_CHAIN && self.0.first().is_some_and(|own| own.certificate.role.may_admit())
    }

    /// Role of the owner, as the chain says.
    pub fn role(&self) -> Role {
        self.0.first().map_or(Role::Client, |own| own.certificate.role)
    }

    /// Encodes the chain.
    pub fn encode(&self) -> Vec<u8> {
        self.0.iter().flat_map(SignedCertificate::encode).collect()
    }

    /// Parses exactly one chain.
    ///
    /// # Errors
    /// Those of [`SignedCertificate::parse`]; no signature is checked.
    pub fn parse(mut bytes: &[u8]) -> Result<Chain, CertificateError> {
        let mut certificates = Vec::new();
        while certificates.is_empty() || !bytes.is_empty() {
            if certificates.len() == MAX_CHAIN {
                return Err(CertificateError::Malformed);
            }
            let (certificate, rest) = SignedCertificate::parse_first(bytes)?;
            certificates.push(certificate);
            bytes = rest;
        }
        Ok(Chain(certificates))
    }

    /// What the chain proves about `owner` in the pool `pool`, whose key is `key`. `is_revoked` says whether a peer's certificates
    /// are revoked; `now_unix_s` is in seconds since 1970.
    ///
    /// # Errors
    /// [`NotProven`].
    pub fn verify(
        &self,
        owner: &PeerId,
        pool: &PoolId,
        now_unix_s: u64,
        is_revoked: impl Fn(&PeerId) -> bool,
    ) -> Result<Proven, NotProven> {
        let own = self.0.first().ok_or(NotProven::NoCertificate)?;
        if own.certificate.peer != *owner {
            return Err(NotProven::AnotherPeers(own.certificate.peer));
        }
        let expires_unix_s = self.0.iter().map(|signed| signed.certificate.expires_unix_s).min().unwrap_or(0);
        if expires_unix_s <= now_unix_s {
            return Err(NotProven::Expired);
        }
        if let Some(revoked) = self.0.iter().find(|signed| is_revoked(&signed.certificate.peer)) {
            return Err(NotProven::Revoked(revoked.certificate.peer));
        }
        let key = pool.key().ok_or(CertificateError::Signature)?;
        // The pool's signature first: a stranger costs one check.
        for (index, signed) in self.0.iter().enumerate().rev() {
            match self.0.get(index + 1) {
                None => signed.verify(&key).map(drop)?,
                Some(issuer) => {
                    let issuer = &issuer.certificate;
                    let by_issuer = issuer.role.may_admit()
                        && key_of(&issuer.peer).is_some_and(|key| {
                            key.verify(&signed.certificate.delegated_bytes(pool), &signed.signature)
                        });
                    if !by_issuer {
                        return Err(CertificateError::Issuer.into());
                    }
                }
            }
        }
        let subjects = self.0.iter().map(|signed| signed.certificate.peer).collect();
        Ok(Proven { role: own.certificate.role, expires_unix_s, subjects })
    }
}

/// The public key that a peer id contains: an ed25519 key is short enough for its id to be the key itself.
fn key_of(peer: &PeerId) -> Option<PublicKey> {
    const IDENTITY: u64 = 0;
    let hash = peer.as_ref();
    (hash.code() == IDENTITY).then(|| PublicKey::try_decode_protobuf(hash.digest()).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use libp2p_identity::Keypair;
    use proptest::prelude::*;

    use super::super::certificate::Certificate;
    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn key(byte: u8) -> Keypair {
        Keypair::ed25519_from_bytes([byte; 32]).unwrap()
    }

    fn pool(byte: u8) -> PoolId {
        PoolId::of(&key(byte).public()).unwrap()
    }

    fn peer(byte: u8) -> PeerId {
        key(byte).public().to_peer_id()
    }

    /// A certificate of peer `of`, by the pool's key `by`, or by the member `by` of the pool `within`.
    fn signed(of: u8, role: Role, by: u8, within: Option<PoolId>) -> SignedCertificate {
        let certificate = Certificate { peer: peer(of), role, expires_unix_s: NOW + u64::from(of), serial: 1 };
        let bytes = within.map_or_else(|| certificate.signed_bytes(), |pool| certificate.delegated_bytes(&pool));
        SignedCertificate { signature: key(by).sign(&bytes).unwrap().try_into().unwrap(), certificate }
    }

    /// The pool 1 admits 10, which admits 11, which admits 12 and so on, as members.
    fn chain(length: u8) -> Chain {
        (1..length).fold(Chain::of_pool(signed(10, Role::Member, 1, None)), |chain, next| {
            chain.extended(signed(10 + next, Role::Member, 9 + next, Some(pool(1)))).unwrap()
        })
    }

    fn verify(chain: &Chain, owner: u8) -> Result<Proven, NotProven> {
        Chain::parse(&chain.encode()).unwrap().verify(&peer(owner), &pool(1), NOW, |_| false)
    }

    #[test]
    fn a_chain_of_members_up_to_the_pools_key_proves_its_owner() {
        for length in 1..=MAX_CHAIN as u8 {
            let proven = verify(&chain(length), 9 + length).unwrap();
            assert_eq!((proven.role, proven.subjects.len()), (Role::Member, usize::from(length)));
            assert_eq!(proven.expires_unix_s, NOW + 10, "the earliest of the chain");
            assert_eq!(proven.admitted_by().copied(), (length > 1).then(|| peer(8 + length)));
        }
        let full = chain(MAX_CHAIN as u8);
        assert!(!full.may_admit() && full.extended(signed(14, Role::Client, 13, Some(pool(1)))).is_none());
        assert!(chain(1).may_admit());
    }

    #[test]
    fn only_a_member_of_this_very_pool_admits() {
        let issuer: Result<Proven, NotProven> = Err(CertificateError::Issuer.into());
        let admits = |signed: SignedCertificate| verify(&chain(1).extended(signed).unwrap(), 20);
        assert!(admits(signed(20, Role::Client, 10, Some(pool(1)))).is_ok());
        assert_eq!(admits(signed(20, Role::Member, 11, Some(pool(1)))), issuer, "signed by another");
        assert_eq!(admits(signed(20, Role::Member, 10, None)), issuer, "not a delegated signature");
        assert_eq!(admits(signed(20, Role::Member, 10, Some(pool(2)))), issuer, "for another pool");
        let client = Chain::of_pool(signed(10, Role::Client, 1, None));
        assert!(!client.may_admit());
        let by_client = client.extended(signed(20, Role::Member, 10, Some(pool(1)))).unwrap();
        assert_eq!(verify(&by_client, 20), issuer, "a client admits nobody");
        let other_pool = Chain::of_pool(signed(10, Role::Member, 2, None));
        assert_eq!(verify(&other_pool, 10), Err(CertificateError::Signature.into()));
        assert_eq!(verify(&chain(2), 10), Err(NotProven::AnotherPeers(peer(11))));
    }

    #[test]
    fn a_revocation_or_an_expiry_anywhere_in_the_chain_ends_it() {
        let chain = chain(3);
        for revoked in 10..=12 {
            let proven = chain.verify(&peer(12), &pool(1), NOW, |subject| *subject == peer(revoked));
            assert_eq!(proven, Err(NotProven::Revoked(peer(revoked))));
        }
        assert!(chain.verify(&peer(12), &pool(1), NOW, |subject| *subject == peer(13)).is_ok());
        assert!(chain.verify(&peer(12), &pool(1), NOW + 9, |_| false).is_ok());
        assert_eq!(chain.verify(&peer(12), &pool(1), NOW + 10, |_| false), Err(NotProven::Expired));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_chain_has_one_encoding_and_no_changed_one_counts(length in 1..=MAX_CHAIN as u8, at in 0..1000usize, change: u8) {
            let mut bytes = chain(length).encode();
            prop_assert!(bytes.len() <= MAX_CHAIN_BYTES);
            let at = at % bytes.len();
            bytes[at] ^= change;
            if let Ok(parsed) = Chain::parse(&bytes) {
                prop_assert_eq!(parsed.encode(), bytes);
                let proven = parsed.verify(&peer(9 + length), &pool(1), 0, |_| false);
                prop_assert_eq!(proven.is_ok(), change == 0);
            }
        }

        #[test]
        fn any_bytes_are_a_chain_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..700)) {
            if let Ok(parsed) = Chain::parse(&bytes) {
                prop_assert_eq!(parsed.encode(), bytes);
            }
        }
    }
}
