//! `/pangea/join/1`: what a node that wants to belong to a pool and a member say to each other, as bytes. It runs on a connection of
//! its own, over Noise, which authenticates both peer ids, and ends before the pool's protocols begin. Sans-I/O: what the
//! messages are answered with is decided by [`super::invitation`], [`super::pending`] and [`super::strangers`].
//!
//! ```text
//! joiner                                        member
//!   Token { name, secret }              ──►
//!                                       ◄──     Granted                          or Refused { why }
//!   Pin { name, SPAKE2 message }        ──►
//!                                       ◄──     Pin { SPAKE2 message }           or Refused { why }
//!   PinProof { MAC }                    ──►
//!                                       ◄──     Granted with a MAC               or Refused { why }
//!   Compare { name, commitment }        ──►
//!                                       ◄──     Nonce                            or Refused { why }
//!   Reveal { nonce }                    ──►
//!                                       ◄──     Waiting                          or Refused { why }
//!   Poll, on later connections          ──►
//!                                       ◄──     Waiting, Granted                 or Refused { why }
//! node of another pool                          node
//!   Introduce { name, port }            ──►
//!                                       ◄──     Introduced { name }              or Refused { why }
//! member                                        node of another pool
//!   Offer { name, port }                ──►
//!                                       ◄──     Waiting, then Compare as above   or Refused { why }
//! ```
//!
//! A message is its length (2 bytes, little-endian), a tag and its fields in order; texts and certificates have lengths of
//! 2 bytes before them.

use libp2p_identity::PeerId;
use thiserror::Error;

use super::certificate::{CertificateError, PoolId, Role};
use super::chain::{Chain, MAX_CHAIN_BYTES};

/// Maximum bytes of a message without its length: a grant with the longest chain and name.
pub const MAX_MESSAGE_BYTES: usize = 1 + 32 + 2 + MAX_CHAIN_BYTES + 2 + MAX_NAME_BYTES + 32;

/// Maximum bytes of a node's name: 64 characters of UTF-8.
pub const MAX_NAME_BYTES: usize = 256;

/// Bytes of an invitation's secret.
pub const SECRET_BYTES: usize = 16;

/// Bytes of a message of SPAKE2 over ed25519: its side and a point.
pub const PAKE_BYTES: usize = 33;

/// What a node that wants to join says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// It has the secret of an invitation.
    Token {
        /// Name of the node.
        name: String,
        /// The secret.
        secret: [u8; SECRET_BYTES],
    },
    /// It has the PIN of an invitation.
    Pin {
        /// Name of the node.
        name: String,
        /// Its message of SPAKE2.
        message: [u8; PAKE_BYTES],
    },
    /// It has the key that SPAKE2 gives to whoever knows the PIN.
    PinProof([u8; 32]),
    /// It has nothing: people compare digits.
    Compare {
        /// Name of the node.
        name: String,
        /// Commitment to its nonce.
        commitment: [u8; 32],
    },
    /// The nonce of the commitment.
    Reveal([u8; 32]),
    /// It asks whether it has been accepted.
    Poll,
    /// It belongs to another pool and introduces itself.
    Introduce {
        /// Name of the node.
        name: String,
        /// TCP port at which it can be asked; 0 if it cannot.
        port: u16,
    },
    /// A member: it offers to admit the node that it asks, which is to compare digits with it.
    Offer {
        /// Name of the member.
        name: String,
        /// TCP port at which the member answers.
        port: u16,
    },
}

/// What the member answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The node belongs to the pool.
    Granted(Grant),
    /// The node is not admitted.
    Refused(JoinRefusal),
    /// The member's message of SPAKE2.
    Pin([u8; PAKE_BYTES]),
    /// The member's nonce.
    Nonce {
        /// The pool.
        pool: PoolId,
        /// Name of the member.
        name: String,
        /// 32 random bytes.
        nonce: [u8; 32],
    },
    /// Nobody has accepted the node yet.
    Waiting,
    /// The answer to an introduction.
    Introduced {
        /// Name of the node that was asked.
        name: String,
    },
}

/// What a node gets that belongs to a pool from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The pool.
    pub pool: PoolId,
    /// The node's chain of certificates, encoded.
    pub chain: Vec<u8>,
    /// Name of the member that admits it.
    pub name: String,
    /// Proof that the member knows the PIN; zeros where there is none.
    pub proof: [u8; 32],
}

impl Grant {
    /// The role that the grant gives, as it says; nothing of it is checked.
    ///
    /// # Errors
    /// Those of [`Chain::parse`].
    pub fn role(&self) -> Result<Role, CertificateError> {
        Ok(Chain::parse(&self.chain)?.role())
    }
}

/// Why a member does not admit a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum JoinRefusal {
    /// No invitation has this secret.
    #[error("it knows no such invitation: it may have been withdrawn, or have expired")]
    Unknown,
    /// The invitation has expired.
    #[error("the invitation has expired; ask for a new one")]
    Expired,
    /// Other nodes have used up the invitation.
    #[error("the invitation has been used; ask for a new one")]
    Used,
    /// No PIN is open there.
    #[error("no PIN is open there; a PIN is for one node, and only for a few minutes")]
    NoPin,
    /// The PIN is wrong.
    #[error("the PIN is wrong")]
    WrongPin,
    /// Too many nodes wait to be accepted.
    #[error("too many nodes wait to be accepted there; try again in some minutes, or ask for an invitation")]
    Full,
    /// The node has not asked, or too long ago, or was turned away.
    #[error("it has turned this node away, or nobody accepted it in time")]
    Denied,
    /// The member can admit nobody.
    #[error("that node cannot admit others; ask a member that stands nearer to the pool's key")]
    CannotAdmit,
    /// The node belongs to an open pool, which has no members.
    #[error("that node runs with --open: start this one with --open too, there is nothing to join")]
    Open,
    /// The identity of the node is revoked.
    #[error("this node's identity is revoked in that pool; a new identity (move node.key away) can be admitted")]
    Revoked,
    /// The message has no place here.
    #[error("it did not understand this node; run the same release on both")]
    Malformed,
    /// The member could not store its answer.
    #[error("it could not store its decision; see its log")]
    Internal,
}

impl JoinRefusal {
    const ALL: [JoinRefusal; 12] = [
        JoinRefusal::Unknown,
        JoinRefusal::Expired,
        JoinRefusal::Used,
        JoinRefusal::NoPin,
        JoinRefusal::WrongPin,
        JoinRefusal::Full,
        JoinRefusal::Denied,
        JoinRefusal::CannotAdmit,
        JoinRefusal::Open,
        JoinRefusal::Revoked,
        JoinRefusal::Malformed,
        JoinRefusal::Internal,
    ];

    fn code(self) -> u8 {
        JoinRefusal::ALL.iter().position(|refusal| *refusal == self).map_or(0, |index| index as u8 + 1)
    }

    /// Whether asking again may be answered otherwise.
    pub fn may_pass(self) -> bool {
        matches!(self, JoinRefusal::Full | JoinRefusal::Internal)
    }
}

/// Bytes that are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not a message of the join protocol")]
pub struct NoMessage;

impl Request {
    /// Encodes the message without its length.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self {
            Request::Token { name, secret } => {
                bytes.push(1);
                put_text(name, &mut bytes);
                bytes.extend_from_slice(secret);
            }
            Request::Pin { name, message } => {
                bytes.push(2);
                put_text(name, &mut bytes);
                bytes.extend_from_slice(message);
            }
            Request::PinProof(mac) => {
                bytes.push(3);
                bytes.extend_from_slice(mac);
            }
            Request::Compare { name, commitment } => {
                bytes.push(4);
                put_text(name, &mut bytes);
                bytes.extend_from_slice(commitment);
            }
            Request::Reveal(nonce) => {
                bytes.push(5);
                bytes.extend_from_slice(nonce);
            }
            Request::Poll => bytes.push(6),
            Request::Introduce { name, port } => {
                bytes.push(7);
                put_text(name, &mut bytes);
                bytes.extend_from_slice(&port.to_le_bytes());
            }
            Request::Offer { name, port } => {
                bytes.push(8);
                put_text(name, &mut bytes);
                bytes.extend_from_slice(&port.to_le_bytes());
            }
        }
        bytes
    }

    /// Parses exactly one message without its length.
    ///
    /// # Errors
    /// [`NoMessage`].
    pub fn parse(bytes: &[u8]) -> Result<Request, NoMessage> {
        let mut fields = Fields(bytes);
        let request = match fields.byte()? {
            1 => Request::Token { name: fields.text()?, secret: fields.array()? },
            2 => Request::Pin { name: fields.text()?, message: fields.array()? },
            3 => Request::PinProof(fields.array()?),
            4 => Request::Compare { name: fields.text()?, commitment: fields.array()? },
            5 => Request::Reveal(fields.array()?),
            6 => Request::Poll,
            7 => Request::Introduce { name: fields.text()?, port: u16::from_le_bytes(fields.array()?) },
            8 => Request::Offer { name: fields.text()?, port: u16::from_le_bytes(fields.array()?) },
            _ => return Err(NoMessage),
        };
        fields.end(request)
    }
}

impl Reply {
    /// Encodes the message without its length.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self {
            Reply::Granted(grant) => {
                bytes.push(1);
                bytes.extend_from_slice(&grant.pool.0);
                put_bytes(&grant.chain, &mut bytes);
                put_text(&grant.name, &mut bytes);
                bytes.extend_from_slice(&grant.proof);
            }
            Reply::Refused(refusal) => bytes.extend_from_slice(&[2, refusal.code()]),
            Reply::Pin(message) => {
                bytes.push(3);
                bytes.extend_from_slice(message);
            }
            Reply::Nonce { pool, name, nonce } => {
                bytes.push(4);
                bytes.extend_from_slice(&pool.0);
                put_text(name, &mut bytes);
                bytes.extend_from_slice(nonce);
            }
            Reply::Waiting => bytes.push(5),
            Reply::Introduced { name } => {
                bytes.push(6);
                put_text(name, &mut bytes);
            }
        }
        bytes
    }

    /// Parses exactly one message without its length.
    ///
    /// # Errors
    /// [`NoMessage`].
    pub fn parse(bytes: &[u8]) -> Result<Reply, NoMessage> {
        let mut fields = Fields(bytes);
        let reply = match fields.byte()? {
            1 => Reply::Granted(Grant {
                pool: PoolId(fields.array()?),
                chain: fields.bytes(MAX_CHAIN_BYTES)?.to_vec(),
                name: fields.text()?,
                proof: fields.array()?,
            }),
            2 => {
                let code = fields.byte()?;
                Reply::Refused(JoinRefusal::ALL.into_iter().find(|known| known.code() == code).ok_or(NoMessage)?)
            }
            3 => Reply::Pin(fields.array()?),
            4 => Reply::Nonce { pool: PoolId(fields.array()?), name: fields.text()?, nonce: fields.array()? },
            5 => Reply::Waiting,
            6 => Reply::Introduced { name: fields.text()? },
            _ => return Err(NoMessage),
        };
        fields.end(reply)
    }
}

fn put_bytes(field: &[u8], bytes: &mut Vec<u8>) {
    bytes.extend_from_slice(&(field.len() as u16).to_le_bytes());
    bytes.extend_from_slice(field);
}

/// Encodes a name; one that is too long is cut.
fn put_text(text: &str, bytes: &mut Vec<u8>) {
    let end = (0..=text.len().min(MAX_NAME_BYTES)).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    put_bytes(&text.as_bytes()[..end], bytes);
}

/// The fields of a message that are not parsed yet.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], NoMessage> {
        let (field, rest) = self.0.split_first_chunk::<N>().ok_or(NoMessage)?;
        self.0 = rest;
        Ok(*field)
    }

    fn byte(&mut self) -> Result<u8, NoMessage> {
        Ok(self.array::<1>()?[0])
    }

    fn bytes(&mut self, max: usize) -> Result<&'a [u8], NoMessage> {
        let length = usize::from(u16::from_le_bytes(self.array()?));
        let (field, rest) = self.0.split_at_checked(length).filter(|_| length <= max).ok_or(NoMessage)?;
        self.0 = rest;
        Ok(field)
    }

    /// A name. Control characters would confuse a terminal.
    fn text(&mut self) -> Result<String, NoMessage> {
        let text = std::str::from_utf8(self.bytes(MAX_NAME_BYTES)?).map_err(|_| NoMessage)?;
        if text.chars().any(char::is_control) { Err(NoMessage) } else { Ok(text.to_owned()) }
    }

    fn end<T>(self, parsed: T) -> Result<T, NoMessage> {
        if self.0.is_empty() { Ok(parsed) } else { Err(NoMessage) }
    }
}

/// Who proves to know the PIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinSide {
    /// The node that wants to join.
    Joiner,
    /// The member.
    Member,
}

/// The identity of one side in SPAKE2: its part and the peer id that the connection authenticated, so that a PIN's exchange cannot
/// be passed on through a third node.
pub fn pake_identity(side: PinSide, peer: &PeerId) -> Vec<u8> {
    let side: &[u8] = match side {
        PinSide::Joiner => b"/pangea/join/1 joiner ",
        PinSide::Member => b"/pangea/join/1 member ",
    };
    [side, &peer.to_bytes()].concat()
}

/// The proof that one side has the key that SPAKE2 gave.
pub fn pin_proof(pake_key: &[u8], side: PinSide) -> blake3::Hash {
    let key = blake3::derive_key("pangea 2026-11 join/1 PIN proof", pake_key);
    blake3::keyed_hash(
        &key,
        match side {
            PinSide::Joiner => b"joiner",
            PinSide::Member => b"member",
        },
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn the_encoding_of_every_request_is_pinned() {
        let name = || "mac2".to_owned();
        for (request, bytes) in [
            (Request::Token { name: name(), secret: [7; 16] }, format!("0104006d616332{}", "07".repeat(16))),
            (Request::Pin { name: name(), message: [7; 33] }, format!("0204006d616332{}", "07".repeat(33))),
            (Request::PinProof([7; 32]), format!("03{}", "07".repeat(32))),
            (Request::Compare { name: name(), commitment: [7; 32] }, format!("0404006d616332{}", "07".repeat(32))),
            (Request::Reveal([7; 32]), format!("05{}", "07".repeat(32))),
            (Request::Poll, "06".to_owned()),
            (Request::Introduce { name: name(), port: 7777 }, "0704006d616332611e".to_owned()),
            (Request::Offer { name: name(), port: 7777 }, "0804006d616332611e".to_owned()),
        ] {
            assert_eq!(hex(&request.encode()), bytes);
            assert_eq!(Request::parse(&request.encode()), Ok(request));
        }
    }

    #[test]
    fn the_encoding_of_every_reply_is_pinned() {
        let (pool, name) = (PoolId([9; 32]), || "mac1".to_owned());
        let grant = Grant { pool, chain: vec![1, 2, 3], name: name(), proof: [8; 32] };
        for (reply, bytes) in [
            (Reply::Granted(grant), format!("01{}030001020304006d616331{}", "09".repeat(32), "08".repeat(32))),
            (Reply::Pin([7; 33]), format!("03{}", "07".repeat(33))),
            (
                Reply::Nonce { pool, name: name(), nonce: [7; 32] },
                format!("04{}04006d616331{}", "09".repeat(32), "07".repeat(32)),
            ),
            (Reply::Waiting, "05".to_owned()),
            (Reply::Introduced { name: name() }, "0604006d616331".to_owned()),
        ] {
            assert_eq!(hex(&reply.encode()), bytes);
            assert_eq!(Reply::parse(&reply.encode()), Ok(reply));
        }
        let refusals: Vec<String> = JoinRefusal::ALL.iter().map(|why| hex(&Reply::Refused(*why).encode())).collect();
        assert_eq!(
            refusals,
            ["0201", "0202", "0203", "0204", "0205", "0206", "0207", "0208", "0209", "020a", "020b", "020c"]
        );
    }

    #[test]
    fn the_proofs_of_the_two_sides_and_of_two_keys_differ() {
        let proofs = [
            pin_proof(b"key", PinSide::Joiner),
            pin_proof(b"key", PinSide::Member),
            pin_proof(b"other", PinSide::Joiner),
        ];
        assert!(proofs[0] != proofs[1] && proofs[0] != proofs[2]);
    }

    #[test]
    fn the_longest_grant_fits_and_long_names_are_cut_between_characters() {
        let grant =
            |name: String| Grant { pool: PoolId([0; 32]), chain: vec![0; MAX_CHAIN_BYTES], name, proof: [0; 32] };
        let encoded = Reply::Granted(grant("é".repeat(1000))).encode();
        assert_eq!(encoded.len(), MAX_MESSAGE_BYTES);
        assert_eq!(Reply::parse(&encoded), Ok(Reply::Granted(grant("é".repeat(MAX_NAME_BYTES / 2)))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_with_one_encoding_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200), tag in 0..10u8) {
            let bytes = [vec![tag], bytes].concat();
            if let Ok(request) = Request::parse(&bytes) {
                prop_assert_eq!(request.encode(), bytes.clone());
            }
            if let Ok(reply) = Reply::parse(&bytes) {
                prop_assert_eq!(reply.encode(), bytes);
            }
        }
    }
}
