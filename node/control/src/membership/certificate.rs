//! Certificates of a pool: the pool's key says that a peer belongs to it, in which role and until when. Values and their
//! bytes, of which each certificate has exactly one form; nothing here holds a secret key.
//!
//! | bytes | field |
//! |---|---|
//! | 1 | version: 1 |
//! | 1 | role: 1 member, 2 client |
//! | 1 | length of the peer id |
//! | at most 64 | peer id |
//! | 8 | expiry, in seconds since 1970, little-endian |
//! | 8 | serial, little-endian |
//! | 64 | ed25519 signature over [`DOMAIN`] and all bytes before, by the pool's key; or over [`DELEGATED_DOMAIN`], the pool's public key and all bytes before, by the key of a member |

use libp2p_identity::{PeerId, PublicKey};
use thiserror::Error;

/// What a signature of a certificate begins with, so that it signs nothing else.
pub const DOMAIN: &[u8] = b"/pangea/certificate/1";

/// What a member's signature of another peer's certificate begins with. The pool's public key follows, because a node may belong to
/// one pool after another.
pub const DELEGATED_DOMAIN: &[u8] = b"/pangea/delegated-certificate/1";

/// Bytes of an ed25519 signature.
pub const SIGNATURE_BYTES: usize = 64;

/// Maximum bytes of a signed certificate.
pub const MAX_BYTES: usize = 3 + MAX_PEER_BYTES + 16 + SIGNATURE_BYTES;

const VERSION: u8 = 1;

/// Maximum bytes of a peer id.
pub(super) const MAX_PEER_BYTES: usize = 64;

/// What a peer may do in the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Computes for others and may become the master.
    Member,
    /// Uses the pool and computes for nobody.
    Client,
}

impl Role {
    /// Name on every surface.
    pub const fn name(self) -> &'static str {
        match self {
            Role::Member => "member",
            Role::Client => "client",
        }
    }

    /// The role with this name.
    pub fn named(name: &str) -> Option<Role> {
        [Role::Member, Role::Client].into_iter().find(|role| role.name() == name)
    }

    /// Whether a node in this role may admit others. A client may not: it takes no part in the pool.
    pub const fn may_admit(self) -> bool {
        matches!(self, Role::Member)
    }

    pub(super) const fn code(self) -> u8 {
        match self {
            Role::Member => 1,
            Role::Client => 2,
        }
    }
}

/// A pool: the public half of its ed25519 signing key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolId(pub [u8; 32]);

impl PoolId {
    /// The pool whose signing key this is; `None` for a key that is not ed25519.
    pub fn of(key: &PublicKey) -> Option<PoolId> {
        key.clone().try_into_ed25519().ok().map(|key| PoolId(key.to_bytes()))
    }

    /// The key that verifies the pool's certificates; `None` if the bytes are no key.
    pub fn key(&self) -> Option<PublicKey> {
        libp2p_identity::ed25519::PublicKey::try_from_bytes(&self.0).ok().map(PublicKey::from)
    }
}

/// The first eight hex digits, by which people tell pools apart.
impl std::fmt::Display for PoolId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0[..4].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What a certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Who belongs to the pool.
    pub peer: PeerId,
    /// As what.
    pub role: Role,
    /// Until when, in seconds since 1970.
    pub expires_unix_s: u64,
    /// Tells certificates of one peer apart, for a revocation.
    pub serial: u64,
}

/// Why bytes are no certificate, or none that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CertificateError {
    /// The bytes are no certificate.
    #[error("malformed certificate")]
    Malformed,
    /// The certificate has another version.
    #[error("certificate of version {0}; this release knows version {VERSION}")]
    Version(u8),
    /// Another key signed it.
    #[error("the certificate is not signed by this pool's key")]
    Signature,
    /// A member's signature in the chain is wrong, or its author may admit nobody.
    #[error("the certificate is not signed by a member that may admit others")]
    Issuer,
}

impl Certificate {
    /// The bytes without the signature.
    fn body(&self) -> Vec<u8> {
        let peer = self.peer.to_bytes();
        let mut bytes = vec![VERSION, self.role.code(), peer.len() as u8];
        bytes.extend_from_slice(&peer);
        bytes.extend_from_slice(&self.expires_unix_s.to_le_bytes());
        bytes.extend_from_slice(&self.serial.to_le_bytes());
        bytes
    }

    /// What the pool's key signs.
    pub fn signed_bytes(&self) -> Vec<u8> {
        [DOMAIN, &self.body()].concat()
    }

    /// What the key of a member of `pool` signs.
    pub fn delegated_bytes(&self, pool: &PoolId) -> Vec<u8> {
        [DELEGATED_DOMAIN, &pool.0, &self.body()].concat()
    }
}

/// A certificate with its signature, which nobody has checked yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedCertificate {
    /// What it says.
    pub certificate: Certificate,
    /// The signature over [`Certificate::signed_bytes`].
    pub signature: [u8; SIGNATURE_BYTES],
}

impl SignedCertificate {
    /// Encodes the certificate.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.certificate.body();
        bytes.extend_from_slice(&self.signature);
        bytes
    }

    /// Parses exactly one certificate.
    ///
    /// # Errors
    /// [`CertificateError::Version`] or [`CertificateError::Malformed`]; the signature is not checked.
    pub fn parse(bytes: &[u8]) -> Result<SignedCertificate, CertificateError> {
        match SignedCertificate::parse_first(bytes)? {
            (parsed, []) => Ok(parsed),
            _ => Err(CertificateError::Malformed),
        }
    }

    /// Parses the certificate that `bytes` begin with; returns the bytes behind it as well.
    ///
    /// # Errors
    /// Those of [`SignedCertificate::parse`].
    pub(super) fn parse_first(bytes: &[u8]) -> Result<(SignedCertificate, &[u8]), CertificateError> {
        let error = match bytes.first() {
            Some(version) if *version != VERSION => CertificateError::Version(*version),
            _ => CertificateError::Malformed,
        };
        let (parsed, rest) = SignedCertificate::parse_fields(bytes).ok_or(error)?;
        let own = &bytes[..bytes.len() - rest.len()];
        if parsed.encode() == own { Ok((parsed, rest)) } else { Err(error) }
    }

    fn parse_fields(bytes: &[u8]) -> Option<(SignedCertificate, &[u8])> {
        let ([_version, role, peer_bytes], rest) = bytes.split_first_chunk::<3>()?;
        let role = [Role::Member, Role::Client].into_iter().find(|known| known.code() == *role)?;
        let (peer, rest) = rest.split_at_checked(usize::from(*peer_bytes).min(MAX_PEER_BYTES))?;
        let (expires, rest) = rest.split_first_chunk()?;
        let (serial, rest) = rest.split_first_chunk()?;
        let (signature, rest) = rest.split_first_chunk()?;
        let certificate = Certificate {
            peer: PeerId::from_bytes(peer).ok()?,
            role,
            expires_unix_s: u64::from_le_bytes(*expires),
            serial: u64::from_le_bytes(*serial),
        };
        Some((SignedCertificate { certificate, signature: *signature }, rest))
    }

    /// The certificate, if the pool with this public key signed it. Its expiry is not looked at.
    ///
    /// # Errors
    /// [`CertificateError::Signature`].
    pub fn verify(&self, pool: &PublicKey) -> Result<&Certificate, CertificateError> {
        if pool.verify(&self.certificate.signed_bytes(), &self.signature) {
            Ok(&self.certificate)
        } else {
            Err(CertificateError::Signature)
        }
    }
}

#[cfg(test)]
mod tests {
    use libp2p_identity::Keypair;
    use proptest::prelude::*;

    use super::*;
    use crate::test_peers::peer;

    fn pool(byte: u8) -> Keypair {
        Keypair::ed25519_from_bytes([byte; 32]).unwrap()
    }

    fn certificate() -> Certificate {
        let peer = pool(2).public().to_peer_id();
        Certificate { peer, role: Role::Member, expires_unix_s: 1_800_000_000, serial: 7 }
    }

    fn signed(certificate: Certificate, by: &Keypair) -> SignedCertificate {
        let signature = by.sign(&certificate.signed_bytes()).unwrap().try_into().unwrap();
        SignedCertificate { certificate, signature }
    }

    #[test]
    fn the_bytes_of_a_certificate_are_pinned() {
        let hex: String = signed(certificate(), &pool(1)).encode().iter().map(|byte| format!("{byte:02x}")).collect();
        let lines: Vec<&str> = (0..hex.len()).step_by(64).map(|at| &hex[at..(at + 64).min(hex.len())]).collect();
        assert_eq!(
            lines,
            [
                "0101260024080112208139770ea87d175f56a35466c34c7ecccb8d8a91b4ee37",
                "a25df60f5b8fc9b39400d2496b00000000070000000000000086e06573163b62",
                "b4997088def243afdd8d47bd05f407e332def595f2f90572cec949fee53c0a36",
                "c8a2c4a7ad801b7bcdb6ed7ae604b6240f8c4ff75faafaab04",
            ]
        );
    }

    #[test]
    fn only_the_pools_own_signature_counts() {
        let signed = signed(certificate(), &pool(1));
        assert_eq!(signed.verify(&pool(1).public()), Ok(&certificate()));
        assert_eq!(signed.verify(&pool(3).public()), Err(CertificateError::Signature));
        for change in [
            Certificate { peer: peer(1), ..certificate() },
            Certificate { role: Role::Client, ..certificate() },
            Certificate { expires_unix_s: u64::MAX, ..certificate() },
            Certificate { serial: 8, ..certificate() },
        ] {
            let forged = SignedCertificate { certificate: change, ..signed.clone() };
            assert_eq!(forged.verify(&pool(1).public()), Err(CertificateError::Signature));
        }
    }

    #[test]
    fn a_later_version_is_named() {
        let mut bytes = signed(certificate(), &pool(1)).encode();
        bytes[0] = 2;
        assert_eq!(SignedCertificate::parse(&bytes), Err(CertificateError::Version(2)));
        assert_eq!(SignedCertificate::parse(&[]), Err(CertificateError::Malformed));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_certificate_has_one_encoding(role in any::<bool>(), expires_unix_s: u64, serial: u64, at in 0..126usize, change: u8) {
            let role = if role { Role::Member } else { Role::Client };
            let signed = signed(Certificate { role, expires_unix_s, serial, ..certificate() }, &pool(1));
            let mut bytes = signed.encode();
            prop_assert!(bytes.len() <= MAX_BYTES);
            prop_assert_eq!(SignedCertificate::parse(&bytes), Ok(signed));
            let at = at % bytes.len();
            bytes[at] ^= change;
            if let Ok(parsed) = SignedCertificate::parse(&bytes) {
                prop_assert_eq!(parsed.encode(), bytes);
                prop_assert_eq!(parsed.verify(&pool(1).public()).is_ok(), change == 0);
            }
        }

        #[test]
        fn any_bytes_are_a_certificate_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..160)) {
            if let Ok(parsed) = SignedCertificate::parse(&bytes) {
                prop_assert_eq!(parsed.encode(), bytes);
            }
        }
    }
}
