//! The eight bytes in front of every frame. Lengths are checked before anything is allocated.

use super::WireError;

/// Length of a frame's prefix.
pub const PREFIX_BYTES: usize = 8;

/// The longest header: the longest message (a failure with its text) is under 2 KiB.
pub const MAX_HEADER_BYTES: u32 = 4096;

/// The longest payload. Large enough that the cost per frame vanishes, small enough that a cancel
/// waits behind at most one of them: about a millisecond at 1 GB/s.
pub const MAX_PAYLOAD_BYTES: u32 = 1 << 20;

/// Lengths of a frame's two parts, both within their limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHead {
    header: u32,
    payload: u32,
}

impl FrameHead {
    /// The head of a frame with parts of these lengths, in bytes.
    pub fn new(header: u32, payload: u32) -> Result<FrameHead, WireError> {
        if header == 0 || header > MAX_HEADER_BYTES || !header.is_multiple_of(8) {
            return Err(WireError::HeaderLength(header));
        }
        if payload > MAX_PAYLOAD_BYTES {
            return Err(WireError::PayloadLength(payload));
        }
        Ok(FrameHead { header, payload })
    }

    /// Reads a prefix.
    pub fn parse(prefix: [u8; PREFIX_BYTES]) -> Result<FrameHead, WireError> {
        let [a, b, c, d, e, f, g, h] = prefix;
        FrameHead::new(u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]))
    }

    /// The prefix as sent.
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
