//! What strangers and members say about who belongs to a pool: messages of `/pangea/join/1`, chains of certificates, revocations,
//! and the text of a token.

use libp2p::identity::Keypair;
use pangea_control::membership::join::{Grant, Reply, Request};
use pangea_control::membership::{
    Certificate, Chain, JoinRefusal, PoolId, Revocation, Role, SignedCertificate, SignedRevocation, Token,
};

fn key(byte: u8) -> Keypair {
    Keypair::ed25519_from_bytes([byte; 32]).expect("32 bytes")
}

fn pool() -> PoolId {
    PoolId::of(&key(1).public()).expect("an ed25519 key")
}

/// A request or a reply: every message has one encoding.
pub fn join_message(bytes: &[u8]) {
    if let Ok(request) = Request::parse(bytes) {
        assert_eq!(request.encode(), bytes);
    }
    if let Ok(reply) = Reply::parse(bytes) {
        assert_eq!(reply.encode(), bytes);
    }
}

pub(super) fn join_message_seeds() -> Vec<Vec<u8>> {
    let name = || "mac2".to_owned();
    let requests = [
        Request::Token { name: name(), secret: [7; 16] },
        Request::Pin { name: name(), message: [7; 33] },
        Request::PinProof([7; 32]),
        Request::Compare { name: name(), commitment: [7; 32] },
        Request::Reveal([7; 32]),
        Request::Poll,
        Request::Introduce { name: name(), port: 7777 },
        Request::Offer { name: name(), port: 7777 },
    ];
    let replies = [
        Reply::Granted(Grant { pool: pool(), chain: chain().encode(), name: name(), proof: [8; 32] }),
        Reply::Refused(JoinRefusal::WrongPin),
        Reply::Pin([7; 33]),
        Reply::Nonce { pool: pool(), name: name(), nonce: [7; 32] },
        Reply::Waiting,
        Reply::Introduced { name: name() },
    ];
    requests.iter().map(Request::encode).chain(replies.iter().map(Reply::encode)).collect()
}

fn chain() -> Chain {
    let certificate = |of: u8| Certificate {
        peer: key(of).public().to_peer_id(),
        role: Role::Member,
        expires_unix_s: 1_800_000_000,
        serial: 7,
    };
    let sign = |by: u8, bytes: &[u8]| key(by).sign(bytes).expect("a signature").try_into().expect("64 bytes");
    let [member, other] = [certificate(2), certificate(3)];
    let by_pool = SignedCertificate { signature: sign(1, &member.signed_bytes()), certificate: member };
    let by_member = SignedCertificate { signature: sign(2, &other.delegated_bytes(&pool())), certificate: other };
    Chain::of_pool(by_pool).extended(by_member).expect("a chain of two")
}

/// A chain of certificates or revocations: each has one encoding, and nobody but the pool's key says what counts.
pub fn certificates(bytes: &[u8]) {
    if let Ok(parsed) = Chain::parse(bytes) {
        assert_eq!(parsed.encode(), bytes);
        let owner = key(3).public().to_peer_id();
        if parsed.verify(&owner, &pool(), 0, |_| false).is_ok() {
            assert_eq!(parsed, chain(), "a chain that nobody signed");
        }
    }
    if let Some(parsed) = SignedRevocation::parse(bytes) {
        assert_eq!(parsed.encode(), bytes);
    }
}

pub(super) fn certificates_seeds() -> Vec<Vec<u8>> {
    let revocation = Revocation { peer: key(2).public().to_peer_id(), revoked_unix_s: 5 };
    let signature = key(1).sign(&revocation.signed_bytes()).expect("a signature").try_into().expect("64 bytes");
    vec![chain().encode(), SignedRevocation { revocation, signature }.encode()]
}

/// The text of a token: what is read can be written and read again.
pub fn token(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(parsed) = Token::parse(text) {
        assert_eq!(Token::parse(&parsed.to_text()).as_ref(), Ok(&parsed));
    }
}

pub(super) fn token_seeds() -> Vec<Vec<u8>> {
    let token = Token {
        member: key(2).public().to_peer_id(),
        pool: pool(),
        role: Role::Client,
        expires_unix_s: 1_800_000_000,
        secret: [7; 16],
        addresses: vec!["/ip4/192.168.1.20/tcp/7777".parse().expect("an address")],
    };
    vec![token.to_text().into_bytes()]
}
