//! What every version sent, byte by byte: a difference is a change of the protocol. Then disturbed bytes.

use libp2p::identity::Keypair;
use pangea_client::ErrorKind;
use pangea_compute::Digest;
use pangea_control::trust::accusations::{Accusation, EvidenceKind};

use super::accusation::{SignedAccusation, Unverified};
use super::bundle;
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

fn read(_: &EvidenceMessage, header: &[u8], payload: usize) -> EvidenceMessage {
    EvidenceMessage::decode(header, payload).unwrap()
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

fn keypair(n: u8) -> Keypair {
    Keypair::ed25519_from_bytes([n; 32]).unwrap()
}

#[test]
fn accusations_of_every_version_are_read_and_their_signatures_hold() {
    let accusation = |kind| Accusation {
        accuser: keypair(1).public().to_peer_id(),
        accused: keypair(2).public().to_peer_id(),
        kind,
        evidence: digest(),
        evidence_bytes: 1 << 20,
    };
    let kinds = [
        ("product", EvidenceKind::Product),
        ("stage", EvidenceKind::Stage),
        ("contradiction", EvidenceKind::Contradiction),
    ];
    let signed = |kind| SignedAccusation::new(accusation(kind), &keypair(1)).unwrap();
    conformance::assert_values_recorded(
        "accusation/1",
        |_| kinds.map(|(name, kind)| (name, signed(kind))).into(),
        SignedAccusation::to_bytes,
        |bytes| SignedAccusation::parse(bytes.try_into().ok()?).and_then(Unverified::verify),
    );
}

#[test]
fn evidence_of_every_version_is_unpacked() {
    let kinds = [
        ("product", EvidenceKind::Product),
        ("stage", EvidenceKind::Stage),
        ("contradiction", EvidenceKind::Contradiction),
    ];
    // What is in a file is recorded by the room that owns it.
    let files = |kind| bundle::files(kind).iter().map(|name| format!("content of {name}")).collect::<Vec<_>>();
    conformance::assert_values_recorded(
        "evidence-bundle/1",
        |_| kinds.map(|(name, kind)| (name, (kind, files(kind)))).into(),
        |(kind, files)| {
            let folder = tempfile::tempdir().unwrap();
            for (name, content) in bundle::files(*kind).iter().zip(files) {
                std::fs::write(folder.path().join(name), content).unwrap();
            }
            let mut bytes = Vec::new();
            bundle::write(folder.path(), *kind, &mut bytes).unwrap();
            bytes
        },
        |bytes| {
            kinds.iter().find_map(|(_, kind)| {
                let folder = tempfile::tempdir().unwrap();
                bundle::read(&mut &bytes[..], *kind, folder.path()).ok()?;
                let content = |name: &&str| std::fs::read_to_string(folder.path().join(name)).unwrap();
                Some((*kind, bundle::files(*kind).iter().map(content).collect()))
            })
        },
    );
}
