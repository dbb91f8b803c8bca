//! A peer's Ed25519 signature over bytes, with the key that the peer id contains. This file does not know what is signed.

use libp2p::PeerId;
use libp2p::identity::{Keypair, PublicKey, ed25519};
use pangea_client::{Error, ErrorKind, Result};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::hex;

/// Multihash code of a peer id that contains its key, as those of Ed25519 keys do.
const IDENTITY: u64 = 0;

/// A signature with the signer's key.
#[derive(Clone, PartialEq, Eq)]
pub struct Signature {
    key: ed25519::PublicKey,
    bytes: [u8; 64],
}

impl Signature {
    /// Length of [`Signature::to_bytes`].
    pub const BYTES: usize = 32 + 64;

    /// Signs `message`.
    ///
    /// # Errors
    /// `Internal` for a key that is not Ed25519; a node has no other.
    pub fn make(keypair: &Keypair, message: &[u8]) -> Result<Signature> {
        let wrong = |why: String| Error::new(ErrorKind::Internal, format!("the node's key cannot sign: {why}"));
        let key = keypair.public().try_into_ed25519().map_err(|error| wrong(error.to_string()))?;
        let bytes = keypair.sign(message).map_err(|error| wrong(error.to_string()))?;
        let bytes = bytes.try_into().map_err(|_| wrong("a signature has 64 bytes".to_owned()))?;
        Ok(Signature { key, bytes })
    }

    /// The signature of a peer whose peer id contains its key, as those of all nodes do.
    pub fn of(peer: &PeerId, bytes: [u8; 64]) -> Option<Signature> {
        Some(Signature { key: key_of(peer)?, bytes })
    }

    /// The signature without the key.
    pub fn bytes(&self) -> [u8; 64] {
        self.bytes
    }

    /// The signer's peer id.
    pub fn peer(&self) -> PeerId {
        PublicKey::from(self.key.clone()).to_peer_id()
    }

    /// Whether the signature is valid for `message`.
    pub fn holds(&self, message: &[u8]) -> bool {
        self.key.verify(message, &self.bytes)
    }

    /// The key, followed by the signature.
    pub fn to_bytes(&self) -> [u8; Signature::BYTES] {
        let mut bytes = [0; Signature::BYTES];
        bytes[..32].copy_from_slice(&self.key.to_bytes());
        bytes[32..].copy_from_slice(&self.bytes);
        bytes
    }

    /// Parses a key and a signature; `None` if the first bytes are no Ed25519 key.
    pub fn parse(bytes: &[u8; Signature::BYTES]) -> Option<Signature> {
        let (key, signature) = bytes.split_first_chunk::<32>()?;
        let key = ed25519::PublicKey::try_from_bytes(key).ok()?;
        Some(Signature { key, bytes: *signature.first_chunk()? })
    }
}

impl std::fmt::Debug for Signature {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signature({})", self.peer())
    }
}

/// JSON form; the peer id contains the key.
#[derive(Serialize, Deserialize)]
struct Record {
    peer: PeerText,
    #[serde(with = "hex")]
    signature: [u8; 64],
}

#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct PeerText(String);

impl Serialize for Signature {
    fn serialize<S: Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        Record { peer: PeerText(self.peer().to_string()), signature: self.bytes }.serialize(to)
    }
}

impl<'de> Deserialize<'de> for Signature {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Signature, D::Error> {
        let Record { peer, signature } = Record::deserialize(from)?;
        let key = peer.0.parse().ok().and_then(|peer| key_of(&peer));
        let key = key.ok_or_else(|| serde::de::Error::custom("a peer id with an Ed25519 key is expected"))?;
        Ok(Signature { key, bytes: signature })
    }
}

/// The key that a peer id contains.
fn key_of(peer: &PeerId) -> Option<ed25519::PublicKey> {
    let multihash = peer.as_ref();
    if multihash.code() != IDENTITY {
        return None;
    }
    PublicKey::try_decode_protobuf(multihash.digest()).ok()?.try_into_ed25519().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_valid_for_its_message_and_names_its_peer() {
        let keypair = Keypair::generate_ed25519();
        let signature = Signature::make(&keypair, b"this").unwrap();
        assert!(signature.holds(b"this") && !signature.holds(b"that"));
        assert_eq!(signature.peer(), keypair.public().to_peer_id());
        let again = Signature::parse(&signature.to_bytes()).unwrap();
        assert_eq!(again, signature);
        let json = serde_json::to_string(&signature).unwrap();
        assert!(json.contains(&keypair.public().to_peer_id().to_string()), "{json}");
        assert_eq!(serde_json::from_str::<Signature>(&json).unwrap(), signature);
    }

    #[test]
    fn another_key_or_a_changed_bit_is_invalid() {
        let signature = Signature::make(&Keypair::generate_ed25519(), b"this").unwrap();
        let other = Signature::make(&Keypair::generate_ed25519(), b"this").unwrap();
        let mixed = Signature { key: other.key, bytes: signature.bytes };
        assert!(!mixed.holds(b"this"));
        let bytes = signature.to_bytes();
        for bit in 0..Signature::BYTES * 8 {
            let mut changed = bytes;
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(!Signature::parse(&changed).is_some_and(|changed| changed.holds(b"this")), "{bit}");
        }
    }

    #[test]
    fn a_peer_id_without_a_key_is_refused() {
        let json = r#"{"peer": "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N", "signature": "00"}"#;
        assert!(serde_json::from_str::<Signature>(json).is_err());
        let without: PeerId = "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N".parse().unwrap();
        assert!(key_of(&without).is_none() && Signature::of(&without, [0; 64]).is_none());
        let signature = Signature::make(&Keypair::generate_ed25519(), b"this").unwrap();
        assert_eq!(Signature::of(&signature.peer(), signature.bytes()), Some(signature));
    }
}
