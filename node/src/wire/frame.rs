//! The eight bytes in front of every frame. Lengths are checked before anything is allocated.

use super::WireError;

/// Length of a frame's prefix.
pub const PREFIX_BYTES: usize = 8;

/// Maximum lengths of the two parts of a protocol's frames, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameLimits {
    /// Maximum length of the header.
    pub header_bytes: u32,
    /// Maximum length of the payload.
    pub payload_bytes: u32,
}

/// Lengths of a frame's two parts, both within their limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHead {
    header: u32,
    payload: u32,
}

impl FrameHead {
    /// The head of a frame with parts of these lengths, in bytes.
    pub fn new(header: u32, payload: u32, limits: FrameLimits) -> Result<FrameHead, WireError> {
        if header == 0 || header > limits.header_bytes || !header.is_multiple_of(8) {
            return Err(WireError::HeaderLength { bytes: header, max_bytes: limits.header_bytes });
        }
        if payload > limits.payload_bytes {
            return Err(WireError::PayloadLength { bytes: payload, max_bytes: limits.payload_bytes });
        }
        Ok(FrameHead { header, payload })
    }

    /// Parses a prefix.
    pub fn parse(prefix: [u8; PREFIX_BYTES], limits: FrameLimits) -> Result<FrameHead, WireError> {
        let [a, b, c, d, e, f, g, h] = prefix;
        FrameHead::new(u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]), limits)
    }

    /// Encodes the prefix.
    pub fn to_bytes(self) -> [u8; PREFIX_BYTES] {
        let mut bytes = [0; PREFIX_BYTES];
        bytes[..4].copy_from_slice(&self.header.to_le_bytes());
        bytes[4..].copy_from_slice(&self.payload.to_le_bytes());
        bytes
    }

    /// Length of the header in bytes.
    pub fn header_len(self) -> usize {
        self.header as usize
    }

    /// Length of the payload in bytes.
    pub fn payload_len(self) -> usize {
        self.payload as usize
    }
}
