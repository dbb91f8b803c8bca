//! The bytes of every message, pinned: a change here is a change of the protocol. Then the same bytes disturbed.

use pangea_client::ErrorKind;
use pangea_compute::Digest;

use super::BlobMessage;
use super::limits::CHUNK_BYTES;
use crate::wire::{FrameHead, Header, PREFIX_BYTES};

fn digest() -> Digest {
    let mut bytes = [0xaa; 32];
    bytes[0] = 1;
    Digest::from_bytes(bytes)
}

/// One message of each kind, and the length of its payload.
fn one_of_each() -> Vec<(BlobMessage, usize)> {
    vec![
        (BlobMessage::Manifest(digest()), 0),
        (BlobMessage::Have(digest()), 0),
        (BlobMessage::Part { model: digest(), piece: 271, part: 6 }, 0),
        (BlobMessage::Chunk { total: 4 << 20, offset: 3 << 18 }, CHUNK_BYTES),
        (BlobMessage::Refusal { kind: ErrorKind::NotFound, message: "nothing of it is here".to_owned() }, 0),
    ]
}

fn encoded(message: &BlobMessage, payload: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode(payload, &mut bytes).unwrap();
    bytes
}

fn hex(bytes: &[u8]) -> String {
    let word = |word: &[u8]| word.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    bytes.chunks(8).map(word).collect::<Vec<_>>().join(" ")
}

#[test]
fn the_bytes_of_every_message_are_pinned() {
    let text: String = one_of_each()
        .iter()
        .map(|(message, payload)| format!("{}\n  {}\n", message.name(), hex(&encoded(message, *payload))))
        .collect();
    assert_eq!(text, include_str!("goldens.txt"), "the protocol's bytes changed:\n{text}");
}

#[test]
fn every_message_comes_back_as_it_was() {
    for (message, payload) in one_of_each() {
        let bytes = encoded(&message, payload);
        let head = FrameHead::parse(bytes[..PREFIX_BYTES].try_into().unwrap(), BlobMessage::LIMITS).unwrap();
        assert_eq!((head.header_len(), head.payload_len()), (bytes.len() - PREFIX_BYTES, payload));
        assert_eq!(BlobMessage::decode(&bytes[PREFIX_BYTES..], payload).unwrap(), message);
    }
}

#[test]
fn disturbed_bytes_never_panic_and_chunks_stay_inside_their_answer() {
    for (message, payload) in one_of_each() {
        let bytes = encoded(&message, payload);
        for at in PREFIX_BYTES..bytes.len() {
            for bit in 0..8 {
                let mut disturbed = bytes.clone();
                disturbed[at] ^= 1 << bit;
                if let Ok(BlobMessage::Chunk { total, offset }) =
                    BlobMessage::decode(&disturbed[PREFIX_BYTES..], payload)
                {
                    assert!(offset + payload as u64 <= total && total <= 16 << 20);
                }
            }
            assert!(BlobMessage::decode(&bytes[PREFIX_BYTES..at], payload).is_err());
        }
    }
}

#[test]
fn a_payload_goes_with_chunks_only_and_is_never_empty() {
    let bytes = encoded(&BlobMessage::Have(digest()), 1);
    assert!(BlobMessage::decode(&bytes[PREFIX_BYTES..], 1).is_err());
    let bytes = encoded(&BlobMessage::Chunk { total: 8, offset: 0 }, 0);
    assert!(BlobMessage::decode(&bytes[PREFIX_BYTES..], 0).is_err(), "an empty chunk would go on for ever");
}
