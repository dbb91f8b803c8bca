//! A worker's signed statement about one task: this is the result of this operation on these operands. It is true or false by
//! itself, whoever asked for it and why, so that a wrong result with its signature proves a lie to everyone who has the
//! operands. Nothing is recomputed here.

use libp2p::PeerId;
use libp2p::identity::Keypair;
use pangea_client::Result;
use pangea_compute::{Digest, Operation};

use super::Signature;

/// First bytes of every statement: the format and its version.
const TAG: &[u8; 23] = b"pangea product/1 claim\0";

/// What a worker states about its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProductClaim {
    /// The operation.
    pub operation: Operation,
    /// Digests of the operands, left and right.
    pub operands: [Digest; 2],
    /// Digest of the result.
    pub result: Digest,
}

impl ProductClaim {
    /// Length of [`ProductClaim::to_bytes`].
    pub const BYTES: usize = TAG.len() + 1 + 3 * 32;

    /// The canonical bytes: the tag `"pangea product/1 claim\0"`, the operation as one byte, the digests of the operands and of
    /// the result.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(ProductClaim::BYTES);
        bytes.extend(TAG);
        bytes.push(code(self.operation));
        for digest in [&self.operands[0], &self.operands[1], &self.result] {
            bytes.extend(digest.as_bytes());
        }
        bytes
    }

    /// Parses a statement; `None` for bytes that are not canonical.
    pub fn parse(bytes: &[u8; ProductClaim::BYTES]) -> Option<ProductClaim> {
        let (tag, rest) = bytes.split_first_chunk()?;
        let (number, rest) = rest.split_first()?;
        let operation = Operation::ALL.into_iter().find(|operation| code(*operation) == *number)?;
        let mut digests = rest.chunks_exact(32).filter_map(|digest| Some(Digest::from_bytes(digest.try_into().ok()?)));
        let claim = ProductClaim { operation, operands: [digests.next()?, digests.next()?], result: digests.next()? };
        (tag == TAG).then_some(claim)
    }
}

/// The byte that stands for an operation in a statement; never changed.
fn code(operation: Operation) -> u8 {
    match operation {
        Operation::Matmul => 1,
        Operation::Add => 2,
    }
}

/// A statement with the worker's signature, which may be invalid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedProduct {
    /// The statement.
    pub claim: ProductClaim,
    /// The worker's signature over the statement's bytes.
    pub signature: Signature,
}

impl SignedProduct {
    /// Length of [`SignedProduct::to_bytes`].
    pub const BYTES: usize = ProductClaim::BYTES + Signature::BYTES;

    /// Signs a statement.
    ///
    /// # Errors
    /// As [`Signature::make`].
    pub fn new(claim: ProductClaim, keypair: &Keypair) -> Result<SignedProduct> {
        Ok(SignedProduct { claim, signature: Signature::make(keypair, &claim.to_bytes())? })
    }

    /// Whether `peer` signed the statement.
    pub fn is_by(&self, peer: &PeerId) -> bool {
        self.signature.peer() == *peer && self.signature.holds(&self.claim.to_bytes())
    }

    /// The statement, then the key and the signature.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.claim.to_bytes();
        bytes.extend(self.signature.to_bytes());
        bytes
    }

    /// Parses what [`SignedProduct::to_bytes`] gives; `None` for anything else.
    pub fn parse(bytes: &[u8]) -> Option<SignedProduct> {
        let (claim, signature) = bytes.split_first_chunk()?;
        let signature: &[u8; Signature::BYTES] = signature.try_into().ok()?;
        Some(SignedProduct { claim: ProductClaim::parse(claim)?, signature: Signature::parse(signature)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim() -> ProductClaim {
        let [a, b, c] = [1, 2, 3].map(|byte| Digest::from_bytes([byte; 32]));
        ProductClaim { operation: Operation::Matmul, operands: [a, b], result: c }
    }

    #[test]
    fn the_bytes_that_a_worker_signs_are_pinned() {
        let mut bytes = b"pangea product/1 claim\0\x01".to_vec();
        for byte in [1, 2, 3] {
            bytes.extend([byte; 32]);
        }
        assert_eq!(claim().to_bytes(), bytes);
        let add = ProductClaim { operation: Operation::Add, ..claim() };
        assert_eq!(add.to_bytes()[TAG.len()], 2);
    }

    #[test]
    fn a_signed_statement_comes_back_and_no_changed_one_is_by_its_signer() {
        let keypair = Keypair::generate_ed25519();
        let worker = keypair.public().to_peer_id();
        let signed = SignedProduct::new(claim(), &keypair).unwrap();
        let bytes = signed.to_bytes();
        assert_eq!((bytes.len(), SignedProduct::parse(&bytes)), (SignedProduct::BYTES, Some(signed.clone())));
        assert!(signed.is_by(&worker) && !signed.is_by(&PeerId::random()));
        for bit in 0..SignedProduct::BYTES * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(!SignedProduct::parse(&changed).is_some_and(|changed| changed.is_by(&worker)), "{bit}");
        }
        assert_eq!(SignedProduct::parse(&bytes[1..]), None);
    }
}
