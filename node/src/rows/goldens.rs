//! What every version sent, byte by byte: a difference is a change of the protocol. Then disturbed bytes.

use pangea_client::ErrorKind;
use pangea_control::devices::ROWS_BYTES_MAX;
use pangea_control::session::SessionId;

use super::message::{CHUNK_BYTES, RowsMessage};
use crate::wire::conformance::{self, encoded};
use crate::wire::{Header, PREFIX_BYTES};

/// One message of each kind, and the length of its payload.
fn one_of_each() -> Vec<(RowsMessage, usize)> {
    let session = SessionId(std::array::from_fn(|at| at as u8));
    vec![
        (RowsMessage::Wanted { session, layers: 4..9 }, 0),
        (RowsMessage::Chunk { total: 4 << 20, offset: 1 << 20 }, CHUNK_BYTES),
        (RowsMessage::Refusal { kind: ErrorKind::NotFound, message: "no longer kept".to_owned() }, 0),
    ]
}

fn read(_: &RowsMessage, header: &[u8], payload: usize) -> RowsMessage {
    RowsMessage::decode(header, payload).unwrap()
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
fn disturbed_bytes_never_panic_and_lengths_stay_within_their_limits() {
    conformance::assert_sturdy(&one_of_each(), |message, payload| match message {
        RowsMessage::Chunk { total, offset } => assert!(offset + payload as u64 <= total && total <= ROWS_BYTES_MAX),
        RowsMessage::Wanted { layers, .. } => assert!(!layers.is_empty() && payload == 0),
        RowsMessage::Refusal { .. } => assert_eq!(payload, 0),
    });
}

#[test]
fn more_rows_than_a_node_keeps_are_refused() {
    let chunk = |total: u64, offset: u64, payload: usize| {
        let message = RowsMessage::Chunk { total, offset };
        let mut bytes = Vec::new();
        message.encode(payload, &mut bytes).is_ok_and(|()| RowsMessage::decode(&bytes[PREFIX_BYTES..], payload).is_ok())
    };
    assert!(chunk(ROWS_BYTES_MAX, ROWS_BYTES_MAX - 4, 4) && !chunk(ROWS_BYTES_MAX + 4, 0, 4));
    assert!(!chunk(8, 8, 4) && !chunk(8, 0, 0) && chunk(8, 4, 4));
    let empty = encoded(&RowsMessage::Wanted { session: SessionId([1; 16]), layers: 3..3 }, 0);
    assert!(RowsMessage::decode(&empty[PREFIX_BYTES..], 0).is_err());
}
