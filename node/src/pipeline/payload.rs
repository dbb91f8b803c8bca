//! The raw bytes behind a message, kept aligned so that activations and tokens are read where they lie (the wire is
//! little-endian, and so is every machine that Pangea runs on). It knows no message and no stream.

/// Bytes whose start is aligned for f32 and u32.
#[derive(Clone, Default)]
pub struct Payload {
    /// As many words as hold the bytes; what is behind them is zero.
    words: Vec<f32>,
    /// Length in bytes.
    len: usize,
}

impl Payload {
    /// No bytes.
    pub fn empty() -> Payload {
        Payload::default()
    }

    /// These numbers, little-endian; nothing is copied.
    pub fn from_f32(values: Vec<f32>) -> Payload {
        let len = size_of_val(values.as_slice());
        Payload { words: values, len }
    }

    /// These bytes; they are copied to where they are aligned.
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

    /// `len` zero bytes, for a stream to read into.
    pub fn zeroed(len: usize) -> Payload {
        Payload { words: vec![0.0; len.div_ceil(size_of::<f32>())], len }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.len]
    }

    /// The bytes, to be written.
    pub fn as_mut_bytes(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.words)[..self.len]
    }

    /// The numbers; a last piece of less than one is left out.
    pub fn as_f32(&self) -> &[f32] {
        &self.words[..self.len / size_of::<f32>()]
    }

    /// The numbers as u32; a last piece of less than one is left out.
    pub fn to_u32(&self) -> Vec<u32> {
        bytemuck::cast_slice(self.as_f32()).to_vec()
    }

    /// The numbers as their owner, without copying.
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
