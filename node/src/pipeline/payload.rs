//! The raw bytes of a message, kept aligned so that activations and tokens are read in place (the wire is
//! little-endian, like every machine that Pangea runs on). This file knows no message and no stream.

/// Bytes that are aligned for f32 and u32.
#[derive(Clone, Default)]
pub struct Payload {
    /// As many words as hold the bytes; the rest of the last word is zero.
    words: Vec<f32>,
    /// Length in bytes.
    len: usize,
}

impl Payload {
    /// No bytes.
    pub fn empty() -> Payload {
        Payload::default()
    }

    /// These numbers, little-endian, without a copy.
    pub fn from_f32(values: Vec<f32>) -> Payload {
        let len = size_of_val(values.as_slice());
        Payload { words: values, len }
    }

    /// These bytes, copied to an aligned buffer.
    pub fn from_bytes(bytes: Vec<u8>) -> Payload {
        let mut payload = Payload::zeroed(bytes.len());
        payload.as_mut_bytes().copy_from_slice(&bytes);
        payload
    }

    /// These numbers, little-endian.
    pub fn from_u32(values: &[u32]) -> Payload {
        let mut payload = Payload::zeroed(size_of_val(values));
        payload.as_mut_bytes().copy_from_slice(bytemuck::cast_slice(values));
        payload
    }

    /// `len` zero bytes, for reading from a stream.
    pub fn zeroed(len: usize) -> Payload {
        Payload { words: vec![0.0; len.div_ceil(size_of::<f32>())], len }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the length is zero.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.len]
    }

    /// The bytes, mutable.
    pub fn as_mut_bytes(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.words)[..self.len]
    }

    /// The bytes as f32; an incomplete last number is left out.
    pub fn as_f32(&self) -> &[f32] {
        &self.words[..self.len / size_of::<f32>()]
    }

    /// The bytes as u32; an incomplete last number is left out.
    pub fn to_u32(&self) -> Vec<u32> {
        bytemuck::cast_slice(self.as_f32()).to_vec()
    }

    /// Takes the numbers out, without a copy.
    pub fn into_f32(mut self) -> Vec<f32> {
        self.words.truncate(self.len / size_of::<f32>());
        self.words
    }
}

impl PartialEq for Payload {
    fn eq(&self, other: &Payload) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Payload {}

impl std::fmt::Debug for Payload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Payload({} bytes)", self.len)
    }
}
