//! The encoding of every message, pinned: a difference is a change of the protocol. Then disturbed bytes.

use pangea_client::ErrorKind;
use pangea_compute::Digest;

use super::accusation::SignedAccusation;
use super::message::{CHUNK_BYTES, EvidenceMessage, TOLD_MAX};
use crate::wire::conformance::{self, encoded};
use crate::wire::{Header, PREFIX_BYTES};

fn digest() -> Digest {
    let mut bytes = [0xaa; 32];
    bytes[0] = 1;
    Digest::from_bytes(bytes)
}

/// One message of each kind, and the length of its payload.
fn one_of_each() -> Vec<(EvidenceMessage, usize)> {
    vec![
        (EvidenceMessage::Told(3), 3 * SignedAccusation::BYTES),
        (EvidenceMessage::Wanted(digest()), 0),
        (EvidenceMessage::Chunk { total: 4 << 20, offset: 1 << 20 }, CHUNK_BYTES),
        (EvidenceMessage::Refusal { kind: ErrorKind::NotFound, message: "not on this node".to_owned() }, 0),
    ]
}

#[test]
fn the_bytes_of_every_message_are_pinned() {
    conformance::assert_pinned(&one_of_each(), include_str!("goldens.txt"));
}

#[test]
fn every_message_comes_back_as_it_was() {
    conformance::assert_comes_back(&one_of_each(), |_, header, payload| {
        EvidenceMessage::decode(header, payload).unwrap()
    });
}

#[test]
fn disturbed_bytes_never_panic_and_lengths_stay_within_their_limits() {
    conformance::assert_sturdy(&one_of_each(), |message, payload| match message {
        EvidenceMessage::Chunk { total, offset } => assert!(offset + payload as u64 <= total),
        EvidenceMessage::Told(number) => assert_eq!(number as usize * SignedAccusation::BYTES, payload),
        _ => {}
    });
}

#[test]
fn more_accusations_than_allowed_are_refused() {
    let told = |number: usize| {
        let bytes = encoded(&EvidenceMessage::Told(number as u32), number * SignedAccusation::BYTES);
        EvidenceMessage::decode(&bytes[PREFIX_BYTES..], number * SignedAccusation::BYTES)
    };
    assert!(told(TOLD_MAX).is_ok() && told(TOLD_MAX + 1).is_err() && told(0).is_err());
}
