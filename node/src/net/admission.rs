//! `/pangea/admission/1`: the codec and the two sides' states of the mutual proof that two nodes share a pool key.
//! Sans-I/O: bytes and frames in, frames and verdicts out. It never touches a socket, a clock or randomness:
//! nonces are passed in, and the authenticated session (Noise, QUIC) that carries the frames is the caller's.
//!
//! ```text
//! dialer                                        acceptor
//!   Hello { keyed, nonce_d }            ──►
//!                                       ◄──     Hello { keyed, nonce_a }         or Refuse { why }
//!   Proof MAC(dialer, ids, nonces)      ──►
//!                                       ◄──     Accept MAC(acceptor, ids, nonces) or Refuse { why }
//! ```
//!
//! MAC = keyed BLAKE3 over the role, both peer ids and both nonces. The peer ids are those that the session
//! authenticated, so a proof relayed through a third node does not verify; the role keeps a proof from being
//! reflected. A stranger learns from the acceptor that it is refused, and nothing that depends on the key.
//! Nodes without a pool key run the same exchange with a public key and say so in their `Hello`.

use libp2p::PeerId;
use thiserror::Error;

use super::pool_key::PoolKey;

/// Every frame has this size, so that nothing has to be buffered or bounded.
pub const FRAME_BYTES: usize = 40;

/// Bytes of the magic at the start of every frame. No multistream-select message starts with it (its length
/// prefix would be out of range), so stock libp2p peers drop a stream that does, and are told apart by it.
pub const MAGIC: [u8; 4] = [0xff, 0xff, b'p', b'g'];

/// The version of this exchange.
pub const VERSION: u8 = 1;

/// Public stand-in for the pool key of nodes that have none.
const KEYLESS_CONTEXT: &str = "pangea 2026-11 admission/1 no pool key";

/// Domain of the MAC.
const MAC_DOMAIN: &[u8] = b"/pangea/admission/1";

/// One message of the exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Opens the exchange, from both sides.
    Hello {
        /// Whether the sender has a pool key.
        keyed: bool,
        /// 32 fresh random bytes.
        nonce: [u8; 32],
    },
    /// The dialer's MAC.
    Proof([u8; 32]),
    /// The acceptor's MAC: the dialer is admitted.
    Accept([u8; 32]),
    /// The acceptor wants nothing to do with the dialer.
    Refuse(Refusal),
}

/// Why a node refuses another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// This node has a pool key, the other has none.
    KeyRequired,
    /// This node has no pool key, the other has one.
    KeylessHere,
    /// Both have a pool key, not the same.
    WrongKey,
    /// The two are connected already, or about to be.
    Duplicate,
    /// The other is quarantined here.
    Blocked,
    /// The other speaks another version of this exchange.
    Version,
    /// The other sent something that is not part of this exchange.
    Malformed,
    /// This node has as many connections as it takes.
    Full,
}

impl Refusal {
    const ALL: [Self; 8] = [
        Self::KeyRequired,
        Self::KeylessHere,
        Self::WrongKey,
        Self::Duplicate,
        Self::Blocked,
        Self::Version,
        Self::Malformed,
        Self::Full,
    ];

    const fn code(self) -> u8 {
        match self {
            Self::KeyRequired => 1,
            Self::KeylessHere => 2,
            Self::WrongKey => 3,
            Self::Duplicate => 4,
            Self::Blocked => 5,
            Self::Version => 6,
            Self::Malformed => 7,
            Self::Full => 8,
        }
    }

    /// What the node that refuses says about the one it refused.
    pub const fn of_the_other(self) -> &'static str {
        match self {
            Self::KeyRequired => "it has no pool key",
            Self::KeylessHere => "it has a pool key and this node has none",
            Self::WrongKey => "wrong pool key",
            Self::Duplicate => "already connected",
            Self::Blocked => "quarantined",
            Self::Version => "it speaks another version of the admission protocol",
            Self::Malformed => "it does not speak the admission protocol",
            Self::Full => "too many connections",
        }
    }

    /// What the node that was refused says about it, with what to do.
    pub const fn of_this_node(self) -> &'static str {
        match self {
            Self::KeyRequired => {
                "it belongs to a pool and this node has no pool key: start this one with --pool-key FILE"
            }
            Self::KeylessHere => {
                "it has no pool key and this node has one: start both with the same --pool-key"
            }
            Self::WrongKey => {
                "its pool key is another one: give both nodes the same --pool-key file"
            }
            Self::Duplicate => "it is already connected to this node",
            Self::Blocked => "it has quarantined this node",
            Self::Version => {
                "it speaks another version of the admission protocol: run the same release on both"
            }
            Self::Malformed => "it did not understand this node: run the same release on both",
            Self::Full => "it has as many connections as it takes",
        }
    }
}

/// Bytes that are not a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum FrameError {
    /// Not [`FRAME_BYTES`] long.
    #[error("an admission frame has {FRAME_BYTES} bytes, this has {0}")]
    Length(usize),
    /// Does not start with [`MAGIC`].
    #[error("not an admission frame")]
    Magic,
    /// Another version.
    #[error("admission version {0}")]
    Version(u8),
    /// An unknown kind, an unknown code, or something where zeros belong.
    #[error("malformed admission frame")]
    Malformed,
}

impl From<FrameError> for Refusal {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Version(_) => Self::Version,
            FrameError::Length(_) | FrameError::Magic | FrameError::Malformed => Self::Malformed,
        }
    }
}

impl Frame {
    const HELLO_KEYED: u8 = 1;
    const HELLO_KEYLESS: u8 = 2;
    const PROOF: u8 = 3;
    const ACCEPT: u8 = 4;
    const REFUSE: u8 = 5;

    /// The frame's bytes: magic (4), version (1), kind (1), refusal code or 0 (1), 0 (1), body or zeros (32).
    pub fn encode(&self) -> [u8; FRAME_BYTES] {
        let (kind, code, body) = match self {
            Self::Hello { keyed: true, nonce } => (Self::HELLO_KEYED, 0, *nonce),
            Self::Hello {
                keyed: false,
                nonce,
            } => (Self::HELLO_KEYLESS, 0, *nonce),
            Self::Proof(mac) => (Self::PROOF, 0, *mac),
            Self::Accept(mac) => (Self::ACCEPT, 0, *mac),
            Self::Refuse(refusal) => (Self::REFUSE, refusal.code(), [0; 32]),
        };
        let mut bytes = [0; FRAME_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..8].copy_from_slice(&[VERSION, kind, code, 0]);
        bytes[8..].copy_from_slice(&body);
        bytes
    }

    /// The frame that `bytes` are, if they are exactly one. Every frame has one encoding only.
    ///
    /// # Errors
    /// [`FrameError`], by what is wrong first.
    pub fn parse(bytes: &[u8]) -> Result<Self, FrameError> {
        let bytes: &[u8; FRAME_BYTES] = bytes
            .try_into()
            .map_err(|_| FrameError::Length(bytes.len()))?;
        if bytes[..4] != MAGIC {
            return Err(FrameError::Magic);
        }
        if bytes[4] != VERSION {
            return Err(FrameError::Version(bytes[4]));
        }
        let (kind, code) = (bytes[5], bytes[6]);
        let mut body = [0; 32];
        body.copy_from_slice(&bytes[8..]);
        if bytes[7] != 0 || (code != 0 && kind != Self::REFUSE) {
            return Err(FrameError::Malformed);
        }
        match kind {
            Self::HELLO_KEYED => Ok(Self::Hello {
                keyed: true,
                nonce: body,
            }),
            Self::HELLO_KEYLESS => Ok(Self::Hello {
                keyed: false,
                nonce: body,
            }),
            Self::PROOF => Ok(Self::Proof(body)),
            Self::ACCEPT => Ok(Self::Accept(body)),
            Self::REFUSE if body == [0; 32] => Refusal::ALL
                .into_iter()
                .find(|refusal| refusal.code() == code)
                .map(Self::Refuse)
                .ok_or(FrameError::Malformed),
            _ => Err(FrameError::Malformed),
        }
    }
}

/// Which side of the exchange, bound into its MAC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Dialer,
    Acceptor,
}

/// What both sides put under their MACs.
struct Transcript {
    mac_key: [u8; 32],
    keyed: bool,
    dialer: PeerId,
    acceptor: PeerId,
}

impl Transcript {
    fn new(pool_key: Option<&PoolKey>, dialer: PeerId, acceptor: PeerId) -> Self {
        let mac_key = pool_key.map_or_else(
            || blake3::derive_key(KEYLESS_CONTEXT, &[]),
            |key| *key.mac_key(),
        );
        Self {
            mac_key,
            keyed: pool_key.is_some(),
            dialer,
            acceptor,
        }
    }

    /// MAC = BLAKE3(key; domain, role, len‖dialer id, len‖acceptor id, dialer nonce, acceptor nonce).
    fn mac(&self, role: Role, dialer_nonce: &[u8; 32], acceptor_nonce: &[u8; 32]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.mac_key);
        hasher.update(MAC_DOMAIN);
        hasher.update(match role {
            Role::Dialer => b"dialer..",
            Role::Acceptor => b"acceptor",
        });
        for peer in [self.dialer, self.acceptor] {
            let id = peer.to_bytes();
            hasher.update(&(id.len() as u64).to_le_bytes());
            hasher.update(&id);
        }
        hasher.update(dialer_nonce);
        hasher.update(acceptor_nonce);
        hasher.finalize()
    }
}

/// The dialer's side.
pub struct Dialer {
    transcript: Transcript,
    nonce: [u8; 32],
    acceptor_nonce: Option<[u8; 32]>,
}

/// What the dialer does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DialerStep {
    /// Send this and wait for the next frame.
    Send(Frame),
    /// The acceptor has admitted this node and has proved that it may.
    Admitted,
    /// The acceptor refuses this node: close.
    RefusedByAcceptor(Refusal),
    /// This node refuses the acceptor: close.
    Refuse(Refusal),
}

impl Dialer {
    /// Starts the exchange over a session in which `local` dialled `remote`, and the frame that opens it.
    /// `nonce`: 32 fresh random bytes.
    pub fn new(
        pool_key: Option<&PoolKey>,
        local: PeerId,
        remote: PeerId,
        nonce: [u8; 32],
    ) -> (Self, Frame) {
        let transcript = Transcript::new(pool_key, local, remote);
        let hello = Frame::Hello {
            keyed: transcript.keyed,
            nonce,
        };
        (
            Self {
                transcript,
                nonce,
                acceptor_nonce: None,
            },
            hello,
        )
    }

    /// The step that `frame` from the acceptor leads to.
    pub fn handle(&mut self, frame: &Frame) -> DialerStep {
        match (self.acceptor_nonce, frame) {
            (_, Frame::Refuse(refusal)) => DialerStep::RefusedByAcceptor(*refusal),
            (None, Frame::Hello { keyed, .. }) if *keyed != self.transcript.keyed => {
                DialerStep::Refuse(if *keyed {
                    Refusal::KeylessHere
                } else {
                    Refusal::KeyRequired
                })
            }
            (None, Frame::Hello { nonce, .. }) => {
                self.acceptor_nonce = Some(*nonce);
                DialerStep::Send(Frame::Proof(
                    *self
                        .transcript
                        .mac(Role::Dialer, &self.nonce, nonce)
                        .as_bytes(),
                ))
            }
            (Some(acceptor_nonce), Frame::Accept(mac)) => {
                // blake3::Hash compares in constant time.
                if self
                    .transcript
                    .mac(Role::Acceptor, &self.nonce, &acceptor_nonce)
                    == *mac
                {
                    DialerStep::Admitted
                } else {
                    DialerStep::Refuse(Refusal::WrongKey)
                }
            }
            _ => DialerStep::Refuse(Refusal::Malformed),
        }
    }
}

/// The acceptor's side.
pub struct Acceptor {
    transcript: Transcript,
    nonce: [u8; 32],
    dialer_nonce: Option<[u8; 32]>,
}

/// What the acceptor does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AcceptorStep {
    /// Send this and wait for the next frame.
    Send(Frame),
    /// The dialer has proved that it has the key. Send this to admit it, or `Frame::Refuse` for another reason.
    Proven(Frame),
    /// Refuse the dialer: send `Frame::Refuse` with this and close.
    Refuse(Refusal),
}

impl Acceptor {
    /// Starts the exchange over a session in which `remote` dialled `local`. `nonce`: 32 fresh random bytes.
    pub fn new(pool_key: Option<&PoolKey>, local: PeerId, remote: PeerId, nonce: [u8; 32]) -> Self {
        Self {
            transcript: Transcript::new(pool_key, remote, local),
            nonce,
            dialer_nonce: None,
        }
    }

    /// The step that `frame` from the dialer leads to.
    pub fn handle(&mut self, frame: &Frame) -> AcceptorStep {
        match (self.dialer_nonce, frame) {
            (None, Frame::Hello { keyed, .. }) if *keyed != self.transcript.keyed => {
                AcceptorStep::Refuse(if *keyed {
                    Refusal::KeylessHere
                } else {
                    Refusal::KeyRequired
                })
            }
            (None, Frame::Hello { nonce, .. }) => {
                self.dialer_nonce = Some(*nonce);
                AcceptorStep::Send(Frame::Hello {
                    keyed: self.transcript.keyed,
                    nonce: self.nonce,
                })
            }
            (Some(dialer_nonce), Frame::Proof(mac)) => {
                // blake3::Hash compares in constant time.
                if self
                    .transcript
                    .mac(Role::Dialer, &dialer_nonce, &self.nonce)
                    == *mac
                {
                    AcceptorStep::Proven(Frame::Accept(
                        *self
                            .transcript
                            .mac(Role::Acceptor, &dialer_nonce, &self.nonce)
                            .as_bytes(),
                    ))
                } else {
                    AcceptorStep::Refuse(Refusal::WrongKey)
                }
            }
            _ => AcceptorStep::Refuse(Refusal::Malformed),
        }
    }
}
