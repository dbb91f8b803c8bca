//! The header of a frame, for any protocol: one Cap'n Proto message that is validated while it is read, within the
//! limits of its protocol. This file knows no protocol.

use capnp::message::{Builder, HeapAllocator};

use super::WireError;
use super::field::{header_error, read_flat};
use super::frame::{FrameHead, FrameLimits, PREFIX_BYTES};

/// Words that most headers fit into.
const FIRST_SEGMENT_WORDS: u32 = 64;

/// The messages of one protocol. A value that exists is well formed.
pub trait Header: Sized {
    /// Maximum lengths of the protocol's frames.
    const LIMITS: FrameLimits;

    /// Name of the message in logs and errors.
    fn name(&self) -> &'static str;

    /// Writes the message as the root of a Cap'n Proto message.
    fn write(&self, to: capnp::any_pointer::Builder<'_>);

    /// Reads and validates the root of a Cap'n Proto message.
    ///
    /// # Errors
    /// Why the message is malformed.
    fn read(from: capnp::any_pointer::Reader<'_>) -> Result<Self, WireError>;

    /// Checks that a payload of `payload_len` bytes belongs to this message.
    ///
    /// # Errors
    /// [`WireError::Payload`] if it does not.
    fn check_payload(&self, payload_len: usize) -> Result<(), WireError>;

    /// Appends the prefix and the header of a frame with this message and a payload of
    /// `payload_len` bytes; the caller sends the payload itself.
    ///
    /// # Errors
    /// A length beyond its limit.
    fn encode(&self, payload_len: usize, out: &mut Vec<u8>) -> Result<(), WireError> {
        let mut builder = Builder::new(HeapAllocator::new().first_segment_words(FIRST_SEGMENT_WORDS));
        self.write(builder.init_root());
        let start = out.len();
        out.extend_from_slice(&[0; PREFIX_BYTES]);
        capnp::serialize::write_message(&mut *out, &builder).map_err(header_error)?;
        let header_len = u32::try_from(out.len() - start - PREFIX_BYTES).unwrap_or(u32::MAX);
        let payload_len = u32::try_from(payload_len).unwrap_or(u32::MAX);
        let prefix = FrameHead::new(header_len, payload_len, Self::LIMITS)?.to_bytes();
        out[start..start + PREFIX_BYTES].copy_from_slice(&prefix);
        Ok(())
    }

    /// Reads the header of a frame whose payload has `payload_len` bytes.
    ///
    /// # Errors
    /// Why the message is malformed.
    fn decode(header: &[u8], payload_len: usize) -> Result<Self, WireError> {
        // A header that refers to the same words many times must not cost more to read than a full one.
        let message = read_flat(header, Self::LIMITS.header_bytes as usize, |reader| {
            Self::read(reader.get_root().map_err(header_error)?)
        })?;
        message.check_payload(payload_len)?;
        Ok(message)
    }

    /// The error for a payload that does not belong to this message; `why` starts with a separator.
    fn refuse_payload(&self, payload_len: usize, why: String) -> Result<(), WireError> {
        let payload = u32::try_from(payload_len).unwrap_or(u32::MAX);
        Err(WireError::Payload { message: self.name(), payload, why })
    }
}
