//! Revocations: the pool's key says that a peer belongs to it no longer, and with it everyone that it admitted. One is for
//! good: the same identity is never admitted again, a new one may be. Values, their bytes and the set of those that are
//! known; nothing here holds a secret key.
//!
//! | bytes | field |
//! |---|---|
//! | 1 | version: 1 |
//! | 1 | length of the peer id |
//! | at most 64 | peer id |
//! | 8 | when it was revoked, in seconds since 1970, little-endian |
//! | 64 | ed25519 signature of the pool's key over [`DOMAIN`] and all bytes before |

use std::collections::BTreeMap;

use libp2p_identity::{PeerId, PublicKey};

use super::certificate::{MAX_PEER_BYTES, PoolId, SIGNATURE_BYTES};

/// What a signature of a revocation begins with, so that it signs nothing else.
pub const DOMAIN: &[u8] = b"/pangea/revocation/1";

/// Maximum bytes of a signed revocation.
pub const MAX_BYTES: usize = 2 + MAX_PEER_BYTES + 8 + SIGNATURE_BYTES;

/// Revocations that a node knows: far more than a household or a lab ever has. Only the holder of the pool key can make any.
pub const MAX_REVOCATIONS: usize = if cfg!(test) { 8 } else { 4096 };

const VERSION: u8 = 1;

/// A revocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// Who belongs to the pool no longer.
    pub peer: PeerId,
    /// Since when, in seconds since 1970.
    pub revoked_unix_s: u64,
}

impl Revocation {
    fn body(&self) -> Vec<u8> {
        let peer = self.peer.to_bytes();
        let mut bytes = vec![VERSION, peer.len() as u8];
        bytes.extend_from_slice(&peer);
        bytes.extend_from_slice(&self.revoked_unix_s.to_le_bytes());
        bytes
    }

    /// What the pool's key signs.
    pub fn signed_bytes(&self) -> Vec<u8> {
        [DOMAIN, &self.body()].concat()
    }
}

/// A revocation with its signature, which nobody has checked yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignedRevocation {
    /// What it says.
    pub revocation: Revocation,
    /// The signature over [`Revocation::signed_bytes`].
    pub signature: [u8; SIGNATURE_BYTES],
}

impl SignedRevocation {
    /// Encodes the revocation.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.revocation.body();
        bytes.extend_from_slice(&self.signature);
        bytes
    }

    /// Parses exactly one revocation; `None` for other bytes.
    pub fn parse(bytes: &[u8]) -> Option<SignedRevocation> {
        let (parsed, rest) = SignedRevocation::parse_first(bytes)?;
        rest.is_empty().then_some(parsed)
    }

    fn parse_first(bytes: &[u8]) -> Option<(SignedRevocation, &[u8])> {
        let ([VERSION, peer_bytes], rest) = bytes.split_first_chunk::<2>()? else { return None };
        let peer_bytes = usize::from(*peer_bytes);
        if peer_bytes > MAX_PEER_BYTES {
            return None;
        }
        let (peer, rest) = rest.split_at_checked(peer_bytes)?;
        let (revoked, rest) = rest.split_first_chunk()?;
        let (signature, rest) = rest.split_first_chunk()?;
        let revocation =
            Revocation { peer: PeerId::from_bytes(peer).ok()?, revoked_unix_s: u64::from_le_bytes(*revoked) };
        Some((SignedRevocation { revocation, signature: *signature }, rest))
    }
}

/// The revocations of a pool that a node knows. All of them are signed by the pool's key.
#[derive(Clone, Debug)]
pub struct Revocations {
    pool: PoolId,
    key: Option<PublicKey>,
    known: BTreeMap<PeerId, SignedRevocation>,
}

impl Revocations {
    /// No revocations of `pool`.
    pub fn new(pool: PoolId) -> Revocations {
        Revocations { pool, key: pool.key(), known: BTreeMap::new() }
    }

    /// Whether a peer is revoked.
    pub fn contains(&self, peer: &PeerId) -> bool {
        self.known.contains_key(peer)
    }

    /// Takes in a revocation; returns whether it is news. One without the pool's signature is none, and a full set takes no more.
    pub fn add(&mut self, signed: SignedRevocation) -> bool {
        let peer = signed.revocation.peer;
        if self.known.contains_key(&peer) || self.known.len() >= MAX_REVOCATIONS {
            return false;
        }
        let by_pool = |key: &PublicKey| key.verify(&signed.revocation.signed_bytes(), &signed.signature);
        if !self.key.as_ref().is_some_and(by_pool) {
            return false;
        }
        self.known.insert(peer, signed);
        true
    }

    /// All of them, by peer id.
    pub fn all(&self) -> impl Iterator<Item = &SignedRevocation> {
        self.known.values()
    }

    /// Encodes the set, for storage and for other nodes.
    pub fn encode(&self) -> Vec<u8> {
        self.all().flat_map(SignedRevocation::encode).collect()
    }

    /// Takes in an encoded set; returns those that are news. What follows malformed bytes is not read.
    pub fn take_in(&mut self, mut bytes: &[u8]) -> Vec<PeerId> {
        let mut news = Vec::new();
        while let Some((signed, rest)) = SignedRevocation::parse_first(bytes) {
            bytes = rest;
            if self.add(signed) {
                news.push(signed.revocation.peer);
            }
        }
        news
    }

    /// The pool.
    pub fn pool(&self) -> &PoolId {
        &self.pool
    }
}

#[cfg(test)]
mod tests {
    use libp2p_identity::Keypair;
    use proptest::prelude::*;

    use super::*;
    use crate::test_peers::fresh_peer;

    fn key(byte: u8) -> Keypair {
        Keypair::ed25519_from_bytes([byte; 32]).unwrap()
    }

    fn signed(peer: PeerId, revoked_unix_s: u64, by: u8) -> SignedRevocation {
        let revocation = Revocation { peer, revoked_unix_s };
        let signature = key(by).sign(&revocation.signed_bytes()).unwrap().try_into().unwrap();
        SignedRevocation { revocation, signature }
    }

    fn of_pool_1() -> Revocations {
        Revocations::new(PoolId::of(&key(1).public()).unwrap())
    }

    #[test]
    fn the_bytes_of_a_revocation_are_pinned() {
        let bytes = signed(key(2).public().to_peer_id(), 1_800_000_000, 1).encode();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            &hex[..96],
            "01260024080112208139770ea87d175f56a35466c34c7ecccb8d8a91b4ee37a25df60f5b8fc9b39400d2496b00000000"
        );
        assert_eq!(bytes.len(), 48 + SIGNATURE_BYTES);
    }

    #[test]
    fn only_the_pools_key_revokes_and_each_peer_once() {
        let (mut revocations, peer) = (of_pool_1(), fresh_peer());
        assert!(!revocations.add(signed(peer, 5, 2)) && !revocations.contains(&peer), "another pool's");
        let mut forged = signed(fresh_peer(), 5, 1);
        forged.revocation.peer = peer;
        assert!(!revocations.add(forged) && !revocations.contains(&peer));
        assert!(revocations.add(signed(peer, 5, 1)) && revocations.contains(&peer));
        assert!(!revocations.add(signed(peer, 6, 1)), "no news");
    }

    #[test]
    fn the_set_is_limited_and_survives_its_encoding() {
        let mut revocations = of_pool_1();
        for at in 0..MAX_REVOCATIONS as u64 + 3 {
            assert_eq!(revocations.add(signed(fresh_peer(), at, 1)), at < MAX_REVOCATIONS as u64);
        }
        let mut again = of_pool_1();
        assert_eq!(again.take_in(&revocations.encode()).len(), MAX_REVOCATIONS);
        assert_eq!(again.encode(), revocations.encode());
        assert!(again.take_in(&revocations.encode()).is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_bytes_are_revocations_or_not(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Some(parsed) = SignedRevocation::parse(&bytes) {
                prop_assert_eq!(parsed.encode(), bytes.clone());
            }
            prop_assert!(of_pool_1().take_in(&bytes).is_empty());
        }
    }
}
