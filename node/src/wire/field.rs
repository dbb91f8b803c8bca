//! Fields that the messages of several protocols share: digests, error kinds, texts. Reading a field validates it. This file
//! knows no message.

use capnp::message::{Reader, ReaderOptions};
use capnp::serialize::BufferSegments;
use pangea_client::ErrorKind;
use pangea_compute::Digest;
use pangea_schema::task_capnp as wire;

use super::{TraceParent, WireError};

/// Writes a digest as four words.
pub(crate) fn write_digest(digest: &Digest, mut to: wire::digest::Builder<'_>) {
    let word = |i: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&digest.as_bytes()[i * 8..i * 8 + 8]);
        u64::from_le_bytes(bytes)
    };
    to.set_w0(word(0));
    to.set_w1(word(1));
    to.set_w2(word(2));
    to.set_w3(word(3));
}

/// Reads a digest from four words; every value is valid.
pub(crate) fn read_digest(from: wire::digest::Reader<'_>) -> Digest {
    let mut bytes = [0; 32];
    for (i, word) in [from.get_w0(), from.get_w1(), from.get_w2(), from.get_w3()].into_iter().enumerate() {
        bytes[i * 8..i * 8 + 8].copy_from_slice(&word.to_le_bytes());
    }
    Digest::from_bytes(bytes)
}

/// Reads a trace's context. A malformed one is none: what it comes with needs it for nothing.
pub(crate) fn read_trace(text: capnp::Result<capnp::text::Reader<'_>>) -> Option<TraceParent> {
    TraceParent::parse(text.ok()?.to_str().ok()?)
}

/// Encodes an error kind.
pub(crate) fn kind_to_wire(kind: ErrorKind) -> wire::ErrorKind {
    match kind {
        ErrorKind::InvalidInput => wire::ErrorKind::InvalidInput,
        ErrorKind::Unauthorized => wire::ErrorKind::Unauthorized,
        ErrorKind::NotFound => wire::ErrorKind::NotFound,
        ErrorKind::Overloaded => wire::ErrorKind::Overloaded,
        ErrorKind::Unavailable => wire::ErrorKind::Unavailable,
        ErrorKind::DeadlineExceeded => wire::ErrorKind::DeadlineExceeded,
        ErrorKind::Cancelled => wire::ErrorKind::Cancelled,
        ErrorKind::VerificationFailed => wire::ErrorKind::VerificationFailed,
        ErrorKind::Internal => wire::ErrorKind::Internal,
    }
}

/// Decodes an error kind.
pub(crate) fn kind_from_wire(kind: wire::ErrorKind) -> ErrorKind {
    match kind {
        wire::ErrorKind::InvalidInput => ErrorKind::InvalidInput,
        wire::ErrorKind::Unauthorized => ErrorKind::Unauthorized,
        wire::ErrorKind::NotFound => ErrorKind::NotFound,
        wire::ErrorKind::Overloaded => ErrorKind::Overloaded,
        wire::ErrorKind::Unavailable => ErrorKind::Unavailable,
        wire::ErrorKind::DeadlineExceeded => ErrorKind::DeadlineExceeded,
        wire::ErrorKind::Cancelled => ErrorKind::Cancelled,
        wire::ErrorKind::VerificationFailed => ErrorKind::VerificationFailed,
        wire::ErrorKind::Internal => ErrorKind::Internal,
    }
}

/// Reads a text of at most `max_bytes` bytes.
pub(crate) fn read_text(
    what: &str,
    text: capnp::Result<capnp::text::Reader<'_>>,
    max_bytes: usize,
) -> Result<String, WireError> {
    let text = text.map_err(header_error)?;
    if text.len() > max_bytes {
        return Err(WireError::Header(format!("`{what}` of {} bytes; at most {max_bytes} are allowed", text.len())));
    }
    text.to_str().map(str::to_owned).map_err(|_| WireError::Header(format!("`{what}` is not UTF-8")))
}

/// Replaces control characters, because peers' names are printed on terminals.
pub(crate) fn printable(text: String) -> String {
    if text.chars().any(char::is_control) { text.chars().filter(|c| !c.is_control()).collect() } else { text }
}

/// The longest prefix of at most `max_bytes` bytes that ends at a character boundary.
pub(crate) fn truncated(text: &str, max_bytes: usize) -> &str {
    &text[..text.floor_char_boundary(max_bytes)]
}

/// Converts an error of the Cap'n Proto library.
pub(crate) fn header_error(error: capnp::Error) -> WireError {
    WireError::Header(error.to_string())
}

/// The error for a number that this version has no name for.
pub(crate) fn unknown_variant(what: &str, number: u16) -> WireError {
    WireError::Header(format!("unknown {what} number {number}"))
}

/// Maximum depth of structs and lists in a header.
const NESTING: i32 = 8;

/// Reads one message that occupies all of `bytes`; at most `words` words may be traversed.
pub(crate) fn read_flat<T>(
    bytes: &[u8],
    words: usize,
    read: impl FnOnce(&Reader<BufferSegments<&[u8]>>) -> Result<T, WireError>,
) -> Result<T, WireError> {
    let mut aligned = capnp::Word::allocate_zeroed_vec(bytes.len().div_ceil(8));
    capnp::Word::words_to_bytes_mut(&mut aligned)[..bytes.len()].copy_from_slice(bytes);
    let mut rest = &capnp::Word::words_to_bytes(&aligned)[..bytes.len()];
    let mut options = ReaderOptions::new();
    options.traversal_limit_in_words(Some(words)).nesting_limit(NESTING);
    let reader = capnp::serialize::read_message_from_flat_slice(&mut rest, options).map_err(header_error)?;
    if !rest.is_empty() {
        return Err(WireError::Header(format!("{} bytes after the message", rest.len())));
    }
    read(&reader)
}
