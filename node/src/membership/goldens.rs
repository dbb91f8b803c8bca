//! What belonging to a pool consists of on the wire, as every version sent it, byte by byte: certificates, tokens, revocations, the
//! messages of joining and of admission. Each has exactly one encoding.

use libp2p::PeerId;
use libp2p::identity::Keypair;
use pangea_control::membership::join::{Grant, JoinRefusal, Reply, Request};
use pangea_control::membership::{
    Certificate, Chain, PoolId, Revocation, Role, SignedCertificate, SignedRevocation, Token,
};
use pangea_control::net::admission::{Frame, ProofKind, Refusal};

use crate::wire::conformance::assert_values_recorded;

const EXPIRES: u64 = 1_800_000_000;

fn keypair(n: u8) -> Keypair {
    Keypair::ed25519_from_bytes([n; 32]).unwrap()
}

fn peer(n: u8) -> PeerId {
    keypair(n).public().to_peer_id()
}

fn pool() -> PoolId {
    PoolId::of(&keypair(1).public()).unwrap()
}

fn signature(by: u8, bytes: &[u8]) -> [u8; 64] {
    keypair(by).sign(bytes).unwrap().try_into().unwrap()
}

/// A certificate that the pool's key signed.
fn of_pool(role: Role) -> SignedCertificate {
    let certificate = Certificate { peer: peer(2), role, expires_unix_s: EXPIRES, serial: 7 };
    SignedCertificate { signature: signature(1, &certificate.signed_bytes()), certificate }
}

/// A chain whose second certificate the first one's owner signed.
fn chain() -> Chain {
    let certificate = Certificate { peer: peer(3), role: Role::Client, expires_unix_s: EXPIRES, serial: 8 };
    let delegated = SignedCertificate { signature: signature(2, &certificate.delegated_bytes(&pool())), certificate };
    Chain::of_pool(of_pool(Role::Member)).extended(delegated).unwrap()
}

#[test]
fn certificates_of_every_version_are_read_and_their_signatures_hold() {
    let roles = [("member", Role::Member), ("client", Role::Client)];
    assert_values_recorded(
        "certificate/1",
        |_| roles.map(|(name, role)| (name, of_pool(role))).into(),
        SignedCertificate::encode,
        |bytes| SignedCertificate::parse(bytes).ok().filter(|signed| signed.verify(&keypair(1).public()).is_ok()),
    );
}

#[test]
fn chains_of_certificates_of_every_version_prove_what_they_proved() {
    assert_values_recorded(
        "certificate-chain/1",
        |_| vec![("delegated", chain())],
        Chain::encode,
        |bytes| {
            let chain = Chain::parse(bytes).ok()?;
            let proven = chain.verify(&peer(3), &pool(), EXPIRES - 1, |_| false).ok()?;
            (proven.role == Role::Client && proven.admitted_by() == Some(&peer(2))).then_some(chain)
        },
    );
}

#[test]
fn revocations_of_every_version_are_read_and_their_signatures_hold() {
    let revocation = Revocation { peer: peer(2), revoked_unix_s: EXPIRES };
    let signed = SignedRevocation { revocation, signature: signature(1, &revocation.signed_bytes()) };
    assert_values_recorded(
        "/pangea/members/1",
        |_| vec![("revocation", signed)],
        SignedRevocation::encode,
        |bytes| {
            let signed = SignedRevocation::parse(bytes)?;
            keypair(1).public().verify(&signed.revocation.signed_bytes(), &signed.signature).then_some(signed)
        },
    );
}

#[test]
fn tokens_of_every_version_are_read() {
    let token = Token {
        member: peer(2),
        pool: pool(),
        role: Role::Member,
        expires_unix_s: EXPIRES,
        secret: [7; 16],
        addresses: ["/ip4/192.168.1.20/tcp/7777", "/ip6/fd00::7/tcp/1"].map(|text| text.parse().unwrap()).into(),
    };
    assert_values_recorded(
        "token/1",
        |_| vec![("token", token.clone())],
        |token| token.to_text().into_bytes(),
        |bytes| Token::parse(std::str::from_utf8(bytes).unwrap()).ok(),
    );
}

#[test]
fn messages_of_joining_of_every_version_are_read() {
    let name = || "mac2".to_owned();
    assert_values_recorded(
        "/pangea/join/1/requests",
        |_| {
            vec![
                ("token", Request::Token { name: name(), secret: [7; 16] }),
                ("pin", Request::Pin { name: name(), message: [8; 33] }),
                ("pin proof", Request::PinProof([9; 32])),
                ("compare", Request::Compare { name: name(), commitment: [10; 32] }),
                ("reveal", Request::Reveal([11; 32])),
                ("poll", Request::Poll),
                ("introduce", Request::Introduce { name: name(), port: 7777 }),
                ("offer", Request::Offer { name: name(), port: 7778 }),
            ]
        },
        Request::encode,
        |bytes| Request::parse(bytes).ok(),
    );
    assert_values_recorded(
        "/pangea/join/1/replies",
        |_| {
            vec![
                (
                    "granted",
                    Reply::Granted(Grant { pool: pool(), chain: chain().encode(), name: name(), proof: [8; 32] }),
                ),
                ("refused: unknown", Reply::Refused(JoinRefusal::Unknown)),
                ("refused: expired", Reply::Refused(JoinRefusal::Expired)),
                ("refused: used", Reply::Refused(JoinRefusal::Used)),
                ("refused: no PIN", Reply::Refused(JoinRefusal::NoPin)),
                ("refused: wrong PIN", Reply::Refused(JoinRefusal::WrongPin)),
                ("refused: full", Reply::Refused(JoinRefusal::Full)),
                ("refused: denied", Reply::Refused(JoinRefusal::Denied)),
                ("refused: cannot admit", Reply::Refused(JoinRefusal::CannotAdmit)),
                ("refused: open", Reply::Refused(JoinRefusal::Open)),
                ("refused: revoked", Reply::Refused(JoinRefusal::Revoked)),
                ("refused: malformed", Reply::Refused(JoinRefusal::Malformed)),
                ("refused: internal", Reply::Refused(JoinRefusal::Internal)),
                ("pin", Reply::Pin([9; 33])),
                ("nonce", Reply::Nonce { pool: pool(), name: name(), nonce: [10; 32] }),
                ("waiting", Reply::Waiting),
                ("introduced", Reply::Introduced { name: name() }),
            ]
        },
        Reply::encode,
        |bytes| Reply::parse(bytes).ok(),
    );
}

#[test]
fn messages_of_admission_of_every_version_are_read() {
    let hello = |proof| Frame::Hello { proof, nonce: [7; 32] };
    assert_values_recorded(
        "admission/1",
        |_| {
            vec![
                ("hello with a key", hello(ProofKind::Key)),
                ("hello with nothing", hello(ProofKind::Nothing)),
                ("hello with a certificate", hello(ProofKind::Certificate)),
                ("certificate", Frame::Certificate { bytes: 252 }),
                ("proof", Frame::Proof([8; 32])),
                ("accept", Frame::Accept([9; 32])),
                ("refuse: key required", Frame::Refuse(Refusal::KeyRequired)),
                ("refuse: no key here", Frame::Refuse(Refusal::KeylessHere)),
                ("refuse: wrong key", Frame::Refuse(Refusal::WrongKey)),
                ("refuse: duplicate", Frame::Refuse(Refusal::Duplicate)),
                ("refuse: quarantined", Frame::Refuse(Refusal::Blocked)),
                ("refuse: version", Frame::Refuse(Refusal::Version)),
                ("refuse: malformed", Frame::Refuse(Refusal::Malformed)),
                ("refuse: full", Frame::Refuse(Refusal::Full)),
                ("refuse: revoked", Frame::Refuse(Refusal::Revoked)),
                ("refuse: expired", Frame::Refuse(Refusal::Expired)),
            ]
        },
        |frame| frame.encode().to_vec(),
        |bytes| Frame::parse(bytes).ok(),
    );
}
