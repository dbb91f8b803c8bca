//! Evidence as bytes: the files of its folder in a fixed order, so that every node that has the same evidence has the same
//! bytes, named by their BLAKE3 hash. This file knows which files evidence consists of and not what they mean.
//!
//! The bytes: `"pge1"`, the kind of evidence (u8), then for each file its length (u64, little-endian) and its content.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use pangea_compute::Digest;
use pangea_control::trust::accusations::EvidenceKind;

use super::accusation::code;

/// First bytes: the format and its version.
const MAGIC: &[u8; 4] = b"pge1";

/// Maximum bytes of evidence: two operands and a tile of a large product. Of larger products only the digests are kept, and
/// nobody else can check them.
pub(super) const BUNDLE_BYTES_MAX: u64 = 256 << 20;

/// The worker's signed statement ([`SignedProduct`](crate::trust::SignedProduct)).
pub(super) const STATEMENT: &str = "statement.bin";

/// Operands and result of a product.
pub(super) const TENSORS: [&str; 3] = ["a.npy", "b.npy", "c.npy"];

/// Which claim of a receipt is accused: index of the segment and of the stage within it, two u32, little-endian.
pub(super) const PLACE: &str = "place.bin";

/// The receipt with the accused claim.
pub(super) const RECEIPT: &str = "receipt.json";

/// Two claims that contradict each other, each followed by its stage's key and signature.
pub(super) const CLAIMS: &str = "claims.bin";

/// The files of evidence, in their order.
pub(super) fn files(kind: EvidenceKind) -> &'static [&'static str] {
    match kind {
        EvidenceKind::Product => &[STATEMENT, TENSORS[0], TENSORS[1], TENSORS[2]],
        EvidenceKind::Stage => &[PLACE, RECEIPT],
        EvidenceKind::Contradiction => &[CLAIMS],
    }
}

/// Writes the evidence in a folder to `to`.
pub(super) fn write(folder: &Path, kind: EvidenceKind, to: &mut impl Write) -> io::Result<()> {
    to.write_all(MAGIC)?;
    to.write_all(&[code(kind)])?;
    for name in files(kind) {
        let mut file = File::open(folder.join(name))?;
        let length = file.metadata()?.len();
        to.write_all(&length.to_le_bytes())?;
        if io::copy(&mut (&mut file).take(length), to)? != length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

/// Number of bytes that [`write`] writes.
pub(super) fn size(folder: &Path, kind: EvidenceKind) -> io::Result<u64> {
    let length = |name: &&str| std::fs::metadata(folder.join(name)).map(|facts| 8 + facts.len());
    let lengths = files(kind).iter().map(length).sum::<io::Result<u64>>()?;
    Ok(MAGIC.len() as u64 + 1 + lengths)
}

/// Creates the files of evidence in a folder from its bytes.
///
/// # Errors
/// `InvalidData` for bytes that are no evidence of this kind; errors of the disk.
pub(super) fn read(from: &mut impl Read, kind: EvidenceKind, folder: &Path) -> io::Result<()> {
    let wrong = || io::Error::new(io::ErrorKind::InvalidData, "not evidence of this kind");
    let mut head = [0; MAGIC.len() + 1];
    from.read_exact(&mut head)?;
    if head[..MAGIC.len()] != *MAGIC || head[MAGIC.len()] != code(kind) {
        return Err(wrong());
    }
    for name in files(kind) {
        let mut length = [0; 8];
        from.read_exact(&mut length)?;
        let length = u64::from_le_bytes(length);
        if io::copy(&mut from.take(length), &mut File::create_new(folder.join(name))?)? != length {
            return Err(wrong());
        }
    }
    match from.read(&mut [0])? {
        0 => Ok(()),
        _ => Err(wrong()),
    }
}

/// Hash and size of the evidence in a folder.
pub(super) fn address(folder: &Path, kind: EvidenceKind) -> io::Result<(Digest, u64)> {
    let mut hasher = Hasher::default();
    write(folder, kind, &mut hasher)?;
    Ok(hasher.finish())
}

/// Hashes what is written to it.
#[derive(Default)]
pub(super) struct Hasher {
    hasher: blake3::Hasher,
    bytes: u64,
}

impl Hasher {
    /// Hash and number of the bytes so far.
    pub(super) fn finish(&self) -> (Digest, u64) {
        (Digest::from_bytes(*self.hasher.finalize().as_bytes()), self.bytes)
    }
}

impl Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_evidence_come_back_from_its_bytes_under_the_same_hash() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(from.path().join(PLACE), [1, 0, 0, 0, 2, 0, 0, 0]).unwrap();
        std::fs::write(from.path().join(RECEIPT), b"{}").unwrap();
        let (kind, mut bytes) = (EvidenceKind::Stage, Vec::new());
        write(from.path(), kind, &mut bytes).unwrap();
        assert_eq!(bytes, b"pge1\x02\x08\0\0\0\0\0\0\0\x01\0\0\0\x02\0\0\0\x02\0\0\0\0\0\0\0{}");
        let named = address(from.path(), kind).unwrap();
        assert_eq!(size(from.path(), kind).unwrap(), bytes.len() as u64);
        assert_eq!(named, (Digest::from_bytes(*blake3::hash(&bytes).as_bytes()), bytes.len() as u64));
        read(&mut &bytes[..], kind, to.path()).unwrap();
        assert_eq!(address(to.path(), kind).unwrap(), named);
        assert_eq!(std::fs::read(to.path().join(RECEIPT)).unwrap(), b"{}");
    }

    #[test]
    fn other_bytes_are_no_evidence() {
        let from = tempfile::tempdir().unwrap();
        std::fs::write(from.path().join(CLAIMS), b"claims").unwrap();
        let mut bytes = Vec::new();
        write(from.path(), EvidenceKind::Contradiction, &mut bytes).unwrap();
        let reads = |bytes: &[u8], kind| {
            let to = tempfile::tempdir().unwrap();
            read(&mut &*bytes, kind, to.path()).is_ok()
        };
        assert!(reads(&bytes, EvidenceKind::Contradiction) && !reads(&bytes, EvidenceKind::Stage));
        for end in 0..bytes.len() {
            assert!(!reads(&bytes[..end], EvidenceKind::Contradiction), "{end}");
        }
        assert!(!reads(&[&bytes[..], b"x"].concat(), EvidenceKind::Contradiction));
    }
}
