//! Tests of the admission exchange: pinned bytes, and who is admitted.

use proptest::prelude::*;

use super::*;

/// The peer id of an ed25519 key whose secret is 32 times `byte`.
fn peer(byte: u8) -> PeerId {
    let keypair = libp2p_identity::Keypair::ed25519_from_bytes([byte; 32]).unwrap();
    keypair.public().to_peer_id()
}

/// The key from a pool key file of 32 times `byte`.
fn key(byte: u8) -> MacKey {
    blake3::derive_key("pangea 2026-11 admission/1 pool key", &[byte; 32])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a node with this key, or without any, has to show.
fn with_key(key: Option<&MacKey>) -> Credentials {
    key.map_or(Credentials::Open, |key| Credentials::Key { mac_key: *key, chain: b"issued here".to_vec() })
}

fn with_certificate(chain: &[u8]) -> Credentials {
    Credentials::Certificate { chain: chain.to_vec() }
}

fn proof(proof: ProofKind, nonce: u8) -> Shown {
    Frame::Hello { proof, nonce: [nonce; 32] }.into()
}

/// The check of a pool in which all chains count but `b"another pool"` and `b"revoked"`.
fn check(chain: &[u8]) -> Result<(), NotProven> {
    match chain {
        b"another pool" => Err(NotProven::Invalid(CertificateError::Signature)),
        b"revoked" => Err(NotProven::Revoked(peer(9))),
        _ => Ok(()),
    }
}

/// Encodes and parses what a node shows, as a stream would carry it.
fn carried(shown: Shown, log: &mut Vec<String>) -> Shown {
    let bytes = shown.frame.encode();
    log.push(hex(&bytes));
    let frame = Frame::parse(&bytes).unwrap();
    assert_eq!(frame.bytes_after(), shown.chain.len());
    Shown { frame, chain: shown.chain }
}

/// Runs an exchange with every frame encoded and parsed; returns the dialer's last step and the frames in hex.
fn exchange_of(dialer: Credentials, acceptor: Credentials) -> (DialerStep, Vec<String>) {
    let (mut dialer, hello) = Dialer::new(dialer, peer(1), peer(2), [0xd1; 32]);
    let mut acceptor = Acceptor::new(acceptor, peer(2), peer(1), [0xac; 32]);
    let mut log = Vec::new();
    let mut shown = Shown::from(hello);
    loop {
        let answer = match acceptor.handle(&carried(shown, &mut log), check) {
            AcceptorStep::Send(shown) | AcceptorStep::Proven(shown) => shown,
            AcceptorStep::Refuse(refusal) => Frame::Refuse(refusal).into(),
        };
        match dialer.handle(&carried(answer, &mut log), check) {
            DialerStep::Send(next) => shown = next,
            end => return (end, log),
        }
    }
}

fn exchange(dialer_key: Option<&MacKey>, acceptor_key: Option<&MacKey>) -> (DialerStep, Vec<String>) {
    exchange_of(with_key(dialer_key), with_key(acceptor_key))
}

#[test]
fn the_encoding_of_an_exchange_with_certificates_is_pinned() {
    let (end, log) = exchange_of(with_certificate(b"one"), with_certificate(b"other"));
    assert_eq!(end, DialerStep::Admitted);
    assert_eq!(
        log,
        [
            "ffff706701060000d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1",
            "ffff706701060000acacacacacacacacacacacacacacacacacacacacacacacacacacacacacacacac",
            "ffff7067010700000300000000000000000000000000000000000000000000000000000000000000",
            "ffff7067010700000500000000000000000000000000000000000000000000000000000000000000",
        ]
    );
}

#[test]
fn a_certificate_and_a_key_of_one_pool_admit_each_other_whoever_dials() {
    let certified = || with_certificate(b"one");
    assert_eq!(exchange_of(certified(), with_key(Some(&key(1)))).0, DialerStep::Admitted);
    assert_eq!(exchange_of(with_key(Some(&key(1))), certified()).0, DialerStep::Admitted);
}

#[test]
fn a_certificate_that_does_not_count_is_refused_by_the_side_that_sees_it() {
    let good = || with_certificate(b"one");
    for (bad, refusal) in [("another pool", Refusal::WrongKey), ("revoked", Refusal::Revoked)] {
        let bad = || with_certificate(bad.as_bytes());
        assert_eq!(exchange_of(bad(), good()).0, DialerStep::RefusedByAcceptor(refusal));
        assert_eq!(exchange_of(good(), bad()).0, DialerStep::Refuse(refusal));
    }
    let by = DialerStep::RefusedByAcceptor;
    assert_eq!(exchange_of(with_key(None), good()).0, by(Refusal::KeyRequired));
    assert_eq!(exchange_of(good(), with_key(None)).0, by(Refusal::KeylessHere));
}

#[test]
fn no_side_is_admitted_by_the_proof_that_was_not_agreed() {
    let mut acceptor = Acceptor::new(with_certificate(b"one"), peer(2), peer(1), [5; 32]);
    assert!(matches!(acceptor.handle(&proof(ProofKind::Key, 1), check), AcceptorStep::Send(_)));
    let mac = Frame::Proof([0; 32]).into();
    assert_eq!(acceptor.handle(&mac, check), AcceptorStep::Refuse(Refusal::Malformed));
    let (mut dialer, _) = Dialer::new(with_key(Some(&key(1))), peer(1), peer(2), [4; 32]);
    assert!(matches!(dialer.handle(&proof(ProofKind::Certificate, 1), check), DialerStep::Send(_)));
    let mac = Frame::Accept([0; 32]).into();
    assert_eq!(dialer.handle(&mac, check), DialerStep::Refuse(Refusal::Malformed));
}

#[test]
fn the_encoding_of_an_exchange_is_pinned() {
    let (end, log) = exchange(Some(&key(7)), Some(&key(7)));
    assert_eq!(end, DialerStep::Admitted);
    assert_eq!(
        log,
        [
            "ffff706701010000d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1",
            "ffff706701010000acacacacacacacacacacacacacacacacacacacacacacacacacacacacacacacac",
            "ffff7067010300002b7610426896278d365fa42bddc60985fa3cbeee64cabc48dbed3103f1e08f97",
            "ffff706701040000f423768b060f7133542fc60d9dde85ea3c7e2a36909cd3e55f7625a621f6912b",
        ]
    );
}

#[test]
fn the_encoding_of_a_keyless_exchange_is_pinned() {
    let (end, log) = exchange(None, None);
    assert_eq!(end, DialerStep::Admitted);
    assert_eq!(
        log,
        [
            "ffff706701020000d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1",
            "ffff706701020000acacacacacacacacacacacacacacacacacacacacacacacacacacacacacacacac",
            "ffff706701030000781410061a31b36d038ed6151f260d62ba284d9c4be37a4287d3b38e13873098",
            "ffff7067010400000ae6bd5a0bca16cb6c2ab29c33d8fd9bcefa7dafb47a4047099a6cdc8ba8903d",
        ]
    );
}

#[test]
fn the_encoding_of_every_refusal_is_pinned() {
    let log: Vec<_> =
        Refusal::ALL.iter().map(|refusal| format!("{refusal:?} {}", hex(&Frame::Refuse(*refusal).encode()))).collect();
    assert_eq!(
        log,
        [
            "KeyRequired ffff7067010501000000000000000000000000000000000000000000000000000000000000000000",
            "KeylessHere ffff7067010502000000000000000000000000000000000000000000000000000000000000000000",
            "WrongKey ffff7067010503000000000000000000000000000000000000000000000000000000000000000000",
            "Duplicate ffff7067010504000000000000000000000000000000000000000000000000000000000000000000",
            "Blocked ffff7067010505000000000000000000000000000000000000000000000000000000000000000000",
            "Version ffff7067010506000000000000000000000000000000000000000000000000000000000000000000",
            "Malformed ffff7067010507000000000000000000000000000000000000000000000000000000000000000000",
            "Full ffff7067010508000000000000000000000000000000000000000000000000000000000000000000",
            "Revoked ffff7067010509000000000000000000000000000000000000000000000000000000000000000000",
            "Expired ffff706701050a000000000000000000000000000000000000000000000000000000000000000000",
        ]
    );
}

#[test]
fn only_the_same_key_admits() {
    let refused = |dialer: Option<&MacKey>, acceptor: Option<&MacKey>| exchange(dialer, acceptor).0;
    let by = DialerStep::RefusedByAcceptor;
    assert_eq!(refused(Some(&key(1)), Some(&key(2))), by(Refusal::WrongKey));
    assert_eq!(refused(None, Some(&key(2))), by(Refusal::KeyRequired));
    assert_eq!(refused(Some(&key(1)), None), by(Refusal::KeylessHere));
}

#[test]
fn an_acceptor_that_lies_about_the_key_is_refused_by_the_dialer() {
    let (mut dialer, _) = Dialer::new(with_key(Some(&key(1))), peer(1), peer(2), [0; 32]);
    let keyless = proof(ProofKind::Nothing, 1);
    assert_eq!(dialer.handle(&keyless, check), DialerStep::Refuse(Refusal::KeyRequired));
    let (mut dialer, _) = Dialer::new(with_key(Some(&key(1))), peer(1), peer(2), [0; 32]);
    let DialerStep::Send(Shown { frame: Frame::Proof(mac), .. }) = dialer.handle(&proof(ProofKind::Key, 1), check)
    else {
        panic!("no proof")
    };
    // The dialer's own proof, reflected.
    assert_eq!(dialer.handle(&Frame::Accept(mac).into(), check), DialerStep::Refuse(Refusal::WrongKey));
}

#[test]
fn a_proof_relayed_through_a_third_node_does_not_admit() {
    // Dialer 1 talks to 3, which relays everything to 2 over a session of its own.
    let (mut dialer, hello) = Dialer::new(with_key(Some(&key(1))), peer(1), peer(3), [4; 32]);
    let mut acceptor = Acceptor::new(with_key(Some(&key(1))), peer(2), peer(3), [5; 32]);
    let AcceptorStep::Send(answer) = acceptor.handle(&hello.into(), check) else { panic!("no hello") };
    let DialerStep::Send(proof) = dialer.handle(&answer, check) else { panic!("no proof") };
    assert_eq!(acceptor.handle(&proof, check), AcceptorStep::Refuse(Refusal::WrongKey));
}

#[test]
fn a_replayed_proof_does_not_admit() {
    let (mut dialer, hello) = Dialer::new(with_key(Some(&key(1))), peer(1), peer(2), [4; 32]);
    let mut first = Acceptor::new(with_key(Some(&key(1))), peer(2), peer(1), [5; 32]);
    let AcceptorStep::Send(answer) = first.handle(&hello.clone().into(), check) else { panic!("no hello") };
    let DialerStep::Send(proof) = dialer.handle(&answer, check) else { panic!("no proof") };
    let mut second = Acceptor::new(with_key(Some(&key(1))), peer(2), peer(1), [6; 32]);
    second.handle(&hello.into(), check);
    assert_eq!(second.handle(&proof, check), AcceptorStep::Refuse(Refusal::WrongKey));
    assert!(matches!(first.handle(&proof, check), AcceptorStep::Proven(_)));
}

#[test]
fn frames_out_of_order_are_refused() {
    let mut acceptor = Acceptor::new(with_key(None), peer(2), peer(1), [5; 32]);
    assert_eq!(acceptor.handle(&Frame::Proof([0; 32]).into(), check), AcceptorStep::Refuse(Refusal::Malformed));
    let (mut dialer, _) = Dialer::new(with_key(None), peer(1), peer(2), [4; 32]);
    assert_eq!(dialer.handle(&Frame::Accept([0; 32]).into(), check), DialerStep::Refuse(Refusal::Malformed));
}

fn any_frame() -> impl Strategy<Value = Frame> {
    prop_oneof![
        (0..3usize, any::<[u8; 32]>()).prop_map(|(kind, nonce)| {
            let proof = [ProofKind::Key, ProofKind::Nothing, ProofKind::Certificate][kind];
            Frame::Hello { proof, nonce }
        }),
        (0..=MAX_CHAIN_BYTES).prop_map(|bytes| Frame::Certificate { bytes: bytes as u16 }),
        any::<[u8; 32]>().prop_map(Frame::Proof),
        any::<[u8; 32]>().prop_map(Frame::Accept),
        proptest::sample::select(Refusal::ALL.to_vec()).prop_map(Frame::Refuse),
    ]
}

proptest! {
    #[test]
    fn every_frame_survives_encoding(frame in any_frame()) {
        prop_assert_eq!(Frame::parse(&frame.encode()), Ok(frame));
    }

    #[test]
    fn every_frame_has_one_encoding(
        frame in any_frame(), at in 0..FRAME_BYTES, change in any::<u8>()
    ) {
        let mut bytes = frame.encode();
        bytes[at] ^= change;
        if let Ok(frame) = Frame::parse(&bytes) {
            prop_assert_eq!(frame.encode(), bytes);
        }
    }

    #[test]
    fn any_bytes_are_a_frame_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
        if let Ok(frame) = Frame::parse(&bytes) {
            prop_assert_eq!(&frame.encode()[..], &bytes[..]);
        }
    }

    #[test]
    fn any_change_to_a_proof_is_refused(at in 0..32usize, change in 1..=255u8) {
        let (mut dialer, hello) = Dialer::new(with_key(Some(&key(1))), peer(1), peer(2), [4; 32]);
        let mut acceptor = Acceptor::new(with_key(Some(&key(1))), peer(2), peer(1), [5; 32]);
        let AcceptorStep::Send(answer) = acceptor.handle(&hello.into(), check) else { panic!("no hello") };
        let DialerStep::Send(Shown { frame: Frame::Proof(mut proof), .. }) = dialer.handle(&answer, check) else { panic!("no proof") };
        proof[at] ^= change;
        prop_assert_eq!(acceptor.handle(&Frame::Proof(proof).into(), check), AcceptorStep::Refuse(Refusal::WrongKey));
    }
}
