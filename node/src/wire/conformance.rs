//! Checks that the messages of every protocol between nodes must pass: pinned bytes, equality after a round trip, and
//! disturbed bytes that are refused or decode to a well-formed message. For tests; each protocol supplies its messages.

use std::fmt::Debug;

use super::{FrameHead, Header, PREFIX_BYTES, TraceParent};

/// The context of a trace, for messages that carry one.
pub(crate) fn trace() -> Option<TraceParent> {
    TraceParent::new([0x4b; 16], [0xb7; 8], true)
}

/// Bytes as hex digits, in words of eight bytes.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let word = |word: &[u8]| word.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    bytes.chunks(8).map(word).collect::<Vec<_>>().join(" ")
}

/// Prefix and header of a frame with a payload of `payload_len` bytes.
pub(crate) fn encoded<M: Header>(message: &M, payload_len: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode(payload_len, &mut bytes).unwrap();
    bytes
}

/// Checks that the encodings of `messages`, each with the length of its payload, equal `golden`: a difference is a change of
/// the protocol.
pub(crate) fn assert_pinned<M: Header>(messages: &[(M, usize)], golden: &str) {
    let text: String = messages
        .iter()
        .map(|(message, payload_len)| format!("{}\n  {}\n", message.name(), hex(&encoded(message, *payload_len))))
        .collect();
    assert_eq!(text, golden, "the protocol's encoding changed:\n{text}");
}

/// Checks that the frames of an earlier version, written as those of [`assert_pinned`], decode to `messages`; `receive` as in
/// [`assert_comes_back`].
pub(crate) fn assert_still_read<M: Header + Debug + PartialEq>(
    messages: &[(M, usize)],
    earlier: &str,
    receive: impl Fn(&M, &[u8], usize) -> M,
) {
    let frames: Vec<&str> = earlier.lines().filter_map(|line| line.strip_prefix("  ")).collect();
    assert_eq!(frames.len(), messages.len());
    for ((message, payload_len), frame) in messages.iter().zip(frames) {
        let digits: String = frame.split_whitespace().collect();
        let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
        let bytes: Vec<u8> = (0..digits.len()).step_by(2).map(byte).collect();
        assert_eq!(receive(message, &bytes[PREFIX_BYTES..], *payload_len), *message);
    }
}

/// Checks that each message's frame has the lengths it claims, and that `receive`, given the message, its header and
/// the length of its payload, returns an equal message.
pub(crate) fn assert_comes_back<M: Header + Debug + PartialEq>(
    messages: &[(M, usize)],
    receive: impl Fn(&M, &[u8], usize) -> M,
) {
    for (message, payload_len) in messages {
        let bytes = encoded(message, *payload_len);
        let (prefix, header) = bytes.split_first_chunk::<PREFIX_BYTES>().unwrap();
        let head = FrameHead::parse(*prefix, M::LIMITS).unwrap();
        assert_eq!((head.header_len(), head.payload_len()), (header.len(), *payload_len));
        assert_eq!(receive(message, header, *payload_len), *message);
    }
}

/// Checks that headers with one flipped bit never panic, that those which still decode satisfy `check` (which also gets
/// the length of the payload), and that truncated headers are refused.
pub(crate) fn assert_sturdy<M: Header>(messages: &[(M, usize)], check: impl Fn(M, usize)) {
    for (message, payload_len) in messages {
        let header = &encoded(message, *payload_len)[PREFIX_BYTES..];
        disturb(header, |bytes| M::decode(bytes, *payload_len).map(|message| check(message, *payload_len)).is_ok());
    }
}

/// Calls `read` with every one-bit change of `bytes` and with every proper prefix, which must be refused.
pub(crate) fn disturb(bytes: &[u8], read: impl Fn(&[u8]) -> bool) {
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut disturbed = bytes.to_vec();
            disturbed[at] ^= 1 << bit;
            read(&disturbed);
        }
        assert!(!read(&bytes[..at]), "cut at {at}");
    }
}
