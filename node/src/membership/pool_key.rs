//! The pool key: 32 secret bytes, the file that holds them, and the first key of a node that has a pool of its own. The key never
//! leaves this node: only MACs and signatures made with keys derived from it do (see `admission` and
//! `pangea_control::membership`), and nothing prints it.

use std::fmt;
use std::path::{Path, PathBuf};

use libp2p::identity::Keypair;
use pangea_control::membership::{Certificate, PoolId, Revocation, SignedCertificate, SignedRevocation};
use thiserror::Error;

use crate::storage::whole_file;

/// Hex digits in a pool key file: 32 bytes.
const HEX_DIGITS: usize = 64;

/// Maximum bytes of a pool key file: the digits and some white space.
const MAX_FILE_BYTES: u64 = 1024;

/// Context of the derivation of the admission key. Nodes with different contexts cannot admit each other.
const ADMISSION_CONTEXT: &str = "pangea 2026-11 admission/1 pool key";

/// Context of the derivation of the signing key. Nodes with different contexts reject each other's certificates.
const SIGNING_CONTEXT: &str = "pangea 2026-11 certificate/1 pool signing key";

/// The secret that the nodes of a pool share.
#[derive(Clone, PartialEq, Eq)]
pub struct PoolKey {
    /// Key of the MACs: derived, so that the file's bytes are never used for two purposes.
    mac_key: [u8; 32],
    /// Secret of the key that signs certificates.
    signing_seed: [u8; 32],
}

impl PoolKey {
    /// A pool key from its 32 bytes.
    pub fn from_bytes(bytes: &[u8; 32]) -> Self {
        Self {
            mac_key: blake3::derive_key(ADMISSION_CONTEXT, bytes),
            signing_seed: blake3::derive_key(SIGNING_CONTEXT, bytes),
        }
    }

    /// Parses the text of a pool key file: 64 hex digits, with optional white space around them.
    ///
    /// # Errors
    /// [`PoolKeyProblem`] with the position of the wrong digit, or the number of digits. The text is never quoted.
    pub fn parse(text: &str) -> Result<Self, PoolKeyProblem> {
        let trimmed = text.trim();
        if trimmed.is_empty() {
            return Err(PoolKeyProblem::Empty);
        }
        let mut digits = Vec::with_capacity(HEX_DIGITS);
        for (index, character) in trimmed.chars().enumerate() {
            let Some(digit) = character.to_digit(16) else {
                return Err(PoolKeyProblem::NotHex { position: index + 1 });
            };
            digits.push(digit as u8);
        }
        if digits.len() != HEX_DIGITS {
            return Err(PoolKeyProblem::Length { found: digits.len() });
        }
        let mut bytes = [0u8; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = pair[0] << 4 | pair[1];
        }
        Ok(Self::from_bytes(&bytes))
    }

    /// Reads a pool key file; creates nothing.
    ///
    /// # Errors
    /// [`PoolKeyError`]: the file cannot be read, or is not 64 hex digits. The caller treats both as bad usage.
    pub fn load(path: &Path) -> Result<Self, PoolKeyError> {
        let problem = |problem| PoolKeyError { path: path.to_owned(), problem };
        let file_bytes = std::fs::metadata(path).map_err(|e| problem(PoolKeyProblem::Unreadable(e.to_string())))?.len();
        if file_bytes > MAX_FILE_BYTES {
            return Err(problem(PoolKeyProblem::TooLarge { bytes: file_bytes }));
        }
        let bytes = std::fs::read(path).map_err(|e| problem(PoolKeyProblem::Unreadable(e.to_string())))?;
        let text = String::from_utf8(bytes)
            .map_err(|e| problem(PoolKeyProblem::NotHex { position: e.utf8_error().valid_up_to() + 1 }))?;
        Self::parse(&text).map_err(problem)
    }

    /// Reads a pool key file, or creates it with a new key. Two nodes that start at once on one folder get the same key.
    ///
    /// # Errors
    /// [`PoolKeyError`]: the file can be neither read nor created, or is not 64 hex digits. Nothing is ever overwritten.
    pub fn load_or_create(path: &Path) -> Result<Self, PoolKeyError> {
        if path.exists() {
            return Self::load(path);
        }
        let digits: String = rand::random::<[u8; 32]>().iter().map(|byte| format!("{byte:02x}")).collect();
        match whole_file::create(path, format!("{digits}\n").as_bytes()) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                let problem = PoolKeyProblem::Unwritable(error.to_string());
                Err(PoolKeyError { path: path.to_owned(), problem })
            }
            _ => Self::load(path),
        }
    }

    /// A new key that is not stored.
    pub fn ephemeral() -> Self {
        Self::from_bytes(&rand::random())
    }

    /// Key of the admission MACs.
    pub(super) fn mac_key(&self) -> &[u8; 32] {
        &self.mac_key
    }

    /// The key that signs the pool's certificates; its public half verifies them.
    ///
    /// # Errors
    /// The error of the library of keys, for a secret that it does not take.
    pub fn signer(&self) -> Result<PoolSigner, String> {
        let keypair = Keypair::ed25519_from_bytes(self.signing_seed).map_err(|error| error.to_string())?;
        Ok(PoolSigner { keypair })
    }
}

/// Issues the certificates of a pool. Whoever has the pool key has it.
pub struct PoolSigner {
    keypair: Keypair,
}

impl PoolSigner {
    /// The pool; its public key verifies the pool's certificates.
    ///
    /// # Panics
    /// Never: the key is ed25519.
    pub fn pool(&self) -> PoolId {
        PoolId::of(&self.keypair.public()).unwrap_or(PoolId([0; 32]))
    }

    /// Signs `revocation`.
    ///
    /// # Errors
    /// The error of the library of keys.
    pub fn revoke(&self, revocation: Revocation) -> Result<SignedRevocation, String> {
        let signature = self.keypair.sign(&revocation.signed_bytes()).map_err(|error| error.to_string())?;
        let signature = signature.try_into().map_err(|_| "the signature has another length".to_owned())?;
        Ok(SignedRevocation { revocation, signature })
    }

    /// Signs `certificate`.
    ///
    /// # Errors
    /// The error of the library of keys.
    pub fn sign(&self, certificate: Certificate) -> Result<SignedCertificate, String> {
        let signature = self.keypair.sign(&certificate.signed_bytes()).map_err(|error| error.to_string())?;
        let signature = signature.try_into().map_err(|_| "the signature has another length".to_owned())?;
        Ok(SignedCertificate { certificate, signature })
    }
}

impl fmt::Debug for PoolKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PoolKey(secret)")
    }
}

/// Why a pool key file cannot be used.
#[derive(Debug, Error)]
#[error("the pool key file {} {problem}; it must contain 64 hex digits, the same on every node of the pool (create one with: openssl rand -hex 32)", path.display())]
pub struct PoolKeyError {
    /// Path of the file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: PoolKeyProblem,
}

/// What is wrong with a pool key.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PoolKeyProblem {
    /// The file cannot be read.
    #[error("cannot be read: {0}")]
    Unreadable(String),
    /// The file cannot be created.
    #[error("cannot be created: {0}")]
    Unwritable(String),
    /// The file contains only white space.
    #[error("is empty")]
    Empty,
    /// The file is larger than any key.
    #[error("is {bytes} bytes long")]
    TooLarge {
        /// Size of the file.
        bytes: u64,
    },
    /// A character that is not a hex digit.
    #[error("has a character that is not a hex digit at position {position}")]
    NotHex {
        /// 1-based position, leading white space not counted.
        position: usize,
    },
    /// Too few or too many digits.
    #[error("has {found} hex digits")]
    Length {
        /// Number of hex digits found.
        found: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_and_surrounding_white_space_do_not_matter() {
        let lower = PoolKey::parse(&"ab".repeat(32)).unwrap();
        let upper = PoolKey::parse(&format!("  {}\n", "AB".repeat(32))).unwrap();
        assert!(lower == upper);
        assert!(lower != PoolKey::parse(&"ac".repeat(32)).unwrap());
    }

    #[test]
    fn errors_name_the_exact_problem() {
        assert_eq!(PoolKey::parse(" \n").unwrap_err(), PoolKeyProblem::Empty);
        assert_eq!(PoolKey::parse(&"a".repeat(63)).unwrap_err(), PoolKeyProblem::Length { found: 63 });
        assert_eq!(PoolKey::parse(&"a".repeat(66)).unwrap_err(), PoolKeyProblem::Length { found: 66 });
        assert_eq!(
            PoolKey::parse(&format!("{}g{}", "a".repeat(10), "a".repeat(53))).unwrap_err(),
            PoolKeyProblem::NotHex { position: 11 }
        );
        assert_eq!(
            PoolKey::parse(&format!("{} {}", "a".repeat(32), "a".repeat(32))).unwrap_err(),
            PoolKeyProblem::NotHex { position: 33 }
        );
    }

    #[test]
    fn files_are_loaded_and_errors_name_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pool.key");
        let missing = PoolKey::load(&path).unwrap_err();
        assert!(matches!(missing.problem, PoolKeyProblem::Unreadable(_)), "{missing}");
        assert!(missing.to_string().contains("pool.key"), "{missing}");
        std::fs::write(&path, "0123456789abcdef".repeat(4)).unwrap();
        assert!(PoolKey::load(&path).unwrap() == PoolKey::parse(&"0123456789abcdef".repeat(4)).unwrap());
        std::fs::write(&path, [b'a', 0xff, b'b']).unwrap();
        assert_eq!(PoolKey::load(&path).unwrap_err().problem, PoolKeyProblem::NotHex { position: 2 });
        std::fs::write(&path, vec![b'a'; 4096]).unwrap();
        assert_eq!(PoolKey::load(&path).unwrap_err().problem, PoolKeyProblem::TooLarge { bytes: 4096 });
    }

    #[test]
    fn a_nodes_own_key_is_created_once_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pool.key");
        let first = PoolKey::load_or_create(&path).unwrap();
        assert!(PoolKey::load_or_create(&path).unwrap() == first && PoolKey::load(&path).unwrap() == first);
        std::fs::write(&path, "not a key").unwrap();
        assert!(PoolKey::load_or_create(&path).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"not a key", "nothing is overwritten");
        assert!(PoolKey::ephemeral() != PoolKey::ephemeral());
    }

    #[test]
    fn the_key_is_never_printed() {
        assert_eq!(format!("{:?}", PoolKey::from_bytes(&[7; 32])), "PoolKey(secret)");
    }

    #[test]
    fn each_pool_key_has_a_signing_key_of_its_own() {
        let [one, other] = [1, 2].map(|byte| PoolKey::from_bytes(&[byte; 32]).signer().unwrap());
        let peer = libp2p::PeerId::random();
        let keys = [&one, &other].map(|signer| signer.pool().key().unwrap());
        let certificate =
            Certificate { peer, role: pangea_control::membership::Role::Member, expires_unix_s: 9, serial: 1 };
        let signed = one.sign(certificate.clone()).unwrap();
        assert_eq!(signed.verify(&keys[0]), Ok(&certificate));
        assert!(signed.verify(&keys[1]).is_err());
        // The derivation is part of the protocol: nodes of every release must get the same key.
        assert_eq!(
            one.pool().0.iter().map(|byte| format!("{byte:02x}")).collect::<String>(),
            "64ac608fe2ee2add6a2eb95cc34bc7bbbe3ec40b11f0922d31d19e6d3f7c9afe"
        );
    }
}
