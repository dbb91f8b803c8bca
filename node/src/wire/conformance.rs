//! What must hold for the messages of every protocol between nodes: pinned bytes, the same message at the other end, and
//! disturbed bytes that are refused or make a well-formed message. For tests; each protocol brings its messages.

use std::fmt::Debug;

use super::{FrameHead, Header, PREFIX_BYTES};

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

/// Messages, each with the length of its payload, have the bytes of `golden`: a change there is a change of the protocol.
pub(crate) fn assert_pinned<M: Header>(messages: &[(M, usize)], golden: &str) {
    let text: String = messages
        .iter()
        .map(|(message, payload_len)| format!("{}\n  {}\n", message.name(), hex(&encoded(message, *payload_len))))
        .collect();
    assert_eq!(text, golden, "the protocol's bytes changed:\n{text}");
}

/// Messages have the lengths that their frames claim, and are the same after `receive`, which takes the message, its header
/// and the length of its payload.
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

/// Headers with one flipped bit never panic; those that are still a message satisfy `check`, which gets the length of the
/// payload, too. Headers that are cut are refused.
pub(crate) fn assert_sturdy<M: Header>(messages: &[(M, usize)], check: impl Fn(M, usize)) {
    for (message, payload_len) in messages {
        let header = &encoded(message, *payload_len)[PREFIX_BYTES..];
        disturb(header, |bytes| M::decode(bytes, *payload_len).map(|message| check(message, *payload_len)).is_ok());
    }
}

/// Calls `read` with every one-bit change of `bytes`, and with every proper prefix, which it must refuse.
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
