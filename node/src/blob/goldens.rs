//! What every version sent, byte by byte: a difference is a change of the protocol. Then disturbed bytes.

use pangea_client::ErrorKind;
use pangea_compute::Digest;

use super::BlobMessage;
use super::limits::CHUNK_BYTES;
use crate::wire::conformance::{self, encoded};
use crate::wire::{Header, PREFIX_BYTES, TraceParent};

fn digest() -> Digest {
    let mut bytes = [0xaa; 32];
    bytes[0] = 1;
    Digest::from_bytes(bytes)
}

fn part(trace: Option<TraceParent>) -> BlobMessage {
    BlobMessage::Part { model: digest(), piece: 271, part: 6, trace }
}

/// One message of each kind, and the length of its payload.
fn one_of_each() -> Vec<(BlobMessage, usize)> {
    vec![
        (BlobMessage::Manifest(digest()), 0),
        (BlobMessage::Have(digest()), 0),
        (part(None), 0),
        (part(conformance::trace()), 0),
        (BlobMessage::Chunk { total: 4 << 20, offset: 3 << 18 }, CHUNK_BYTES),
        (BlobMessage::Refusal { kind: ErrorKind::NotFound, message: "nothing of it is here".to_owned() }, 0),
    ]
}

fn read(_: &BlobMessage, header: &[u8], payload: usize) -> BlobMessage {
    BlobMessage::decode(header, payload).unwrap()
}

#[test]
fn messages_of_every_version_are_read() {
    conformance::assert_frames_recorded(super::PROTOCOL, |_| one_of_each(), read);
}

#[test]
fn fields_of_later_versions_are_ignored() {
    conformance::assert_later_fields_are_ignored(&one_of_each(), read);
}

#[test]
fn disturbed_bytes_never_panic_and_chunks_stay_inside_their_answer() {
    conformance::assert_sturdy(&one_of_each(), |message, payload| {
        if let BlobMessage::Chunk { total, offset } = message {
            assert!(offset + payload as u64 <= total && total <= 16 << 20);
        }
    });
}

#[test]
fn a_payload_goes_with_chunks_only_and_is_never_empty() {
    let bytes = encoded(&BlobMessage::Have(digest()), 1);
    assert!(BlobMessage::decode(&bytes[PREFIX_BYTES..], 1).is_err());
    let bytes = encoded(&BlobMessage::Chunk { total: 8, offset: 0 }, 0);
    assert!(BlobMessage::decode(&bytes[PREFIX_BYTES..], 0).is_err(), "an empty chunk would never finish");
}
