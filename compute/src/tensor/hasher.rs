//! The digest of a tensor whose bytes come one piece after another, such as those that are just being sent. The same
//! digest as that of the whole tensor.

use crate::{DType, Digest};

/// First bytes of what is hashed: the format and its version.
const DOMAIN: &[u8] = b"pangea tensor 1\0";

/// Hashes the canonical bytes of one tensor.
#[derive(Clone, Debug)]
pub struct TensorHasher(blake3::Hasher);

impl TensorHasher {
    /// For a tensor of this type and shape.
    pub fn new(dtype: DType, rows: usize, cols: usize) -> TensorHasher {
        let mut hasher = blake3::Hasher::new();
        hasher.update(DOMAIN);
        hasher.update(&[dtype.code()]);
        hasher.update(&(rows as u64).to_le_bytes());
        hasher.update(&(cols as u64).to_le_bytes());
        TensorHasher(hasher)
    }

    /// Adds the next bytes, in row-major order.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest, once all bytes were added.
    pub fn finish(&self) -> Digest {
        Digest(*self.0.finalize().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tensor;

    #[test]
    fn pieces_have_the_digest_of_the_whole_tensor() {
        let tensor = Tensor::generate(DType::F32, 70, 90, 7).unwrap();
        for piece in [1, 4096, 1 << 20] {
            let mut hasher = TensorHasher::new(DType::F32, 70, 90);
            tensor.contiguous_bytes().unwrap().chunks(piece).for_each(|bytes| hasher.update(bytes));
            assert_eq!(hasher.finish(), tensor.digest());
        }
    }
}
