//! The encoding of every message, pinned: a difference is a change of the protocol. Then disturbed bytes.

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

#[test]
fn the_bytes_of_every_message_are_pinned() {
    conformance::assert_pinned(&one_of_each(), include_str!("goldens.txt"));
}

#[test]
fn a_question_of_a_node_that_knows_no_traces_is_read() {
    conformance::assert_still_read(&[(part(None), 0)], include_str!("goldens_untraced.txt"), |_, header, payload| {
        BlobMessage::decode(header, payload).unwrap()
    });
}

#[test]
fn every_message_comes_back_as_it_was() {
    conformance::assert_comes_back(&one_of_each(), |_, header, payload| BlobMessage::decode(header, payload).unwrap());
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
