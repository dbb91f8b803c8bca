//! `/pangea/admission/1`: codec and state machines of both sides of the mutual proof that two nodes share a pool key.
//! Sans-I/O: bytes and frames in, frames and decisions out. No socket, clock or randomness is used here:
//! nonces are passed in, and the caller owns the authenticated session (Noise, QUIC) that carries the frames.
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
//! authenticated, so a proof relayed through a third node does not verify; the role prevents the reflection of a
//! proof. A stranger learns from the acceptor that it is refused, and nothing that depends on the key.
//! Nodes of an open pool run the same exchange with a public key and declare it in their `Hello`.
//!
//! Where one of the two has no pool key but a certificate, both show their certificates instead of MACs: each names the
//! peer id that the session authenticated, so nobody else can use it. The caller checks it.
//!
//! ```text
//!   Hello { certified or keyed }        ──►
//!                                       ◄──     Hello { certified }
//!   Certificate, and its bytes          ──►
//!                                       ◄──     Certificate, and its bytes        or Refuse { why }
//! ```

use libp2p_identity::PeerId;
use thiserror::Error;

use crate::membership::{CertificateError, MAX_CHAIN_BYTES, NotProven};

/// A key derived from the pool key's file, with which admission MACs are made.
pub type MacKey = [u8; 32];

/// Size of every frame. It is fixed, so that nothing has to be buffered or bounded.
pub const FRAME_BYTES: usize = 40;

/// Bytes of the magic at the start of every frame. No multistream-select message starts with it (its length
/// prefix would be out of range), so stock libp2p peers drop a stream that does and are recognised by it.
pub const MAGIC: [u8; 4] = [0xff, 0xff, b'p', b'g'];

/// The version of this exchange.
pub const VERSION: u8 = 1;

/// Context of the public key that nodes without a pool key use.
const KEYLESS_CONTEXT: &str = "pangea 2026-11 admission/1 no pool key";

/// Domain of the MAC.
const MAC_DOMAIN: &[u8] = b"/pangea/admission/1";

/// One message of the exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Opens the exchange, from both sides.
    Hello {
        /// How the sender proves that it belongs to the pool.
        proof: ProofKind,
        /// 32 fresh random bytes.
        nonce: [u8; 32],
    },
    /// The dialer's MAC.
    Proof([u8; 32]),
    /// The acceptor's MAC; the dialer is admitted.
    Accept([u8; 32]),
    /// The acceptor refuses the dialer.
    Refuse(Refusal),
    /// The sender's chain of certificates follows, this many bytes.
    Certificate {
        /// At most [`MAX_CHAIN_BYTES`].
        bytes: u16,
    },
}

/// How a node proves that it belongs to the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProofKind {
    /// It knows the pool key.
    Key,
    /// It belongs to an open pool and proves nothing.
    Nothing,
    /// It has a certificate.
    Certificate,
}

/// What a node has to prove that it belongs to its pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credentials {
    /// Nothing: its pool is open.
    Open,
    /// The pool key, and a certificate that it has issued for itself.
    Key {
        /// Key of the MACs.
        mac_key: MacKey,
        /// The encoded chain of certificates.
        chain: Vec<u8>,
    },
    /// A certificate that another member has issued.
    Certificate {
        /// The encoded chain of certificates.
        chain: Vec<u8>,
    },
}

impl Credentials {
    fn kind(&self) -> ProofKind {
        match self {
            Self::Open => ProofKind::Nothing,
            Self::Key { .. } => ProofKind::Key,
            Self::Certificate { .. } => ProofKind::Certificate,
        }
    }

    /// How two nodes with these credentials and that offer prove themselves to each other; `None` if they cannot.
    fn agree(&self, offered: ProofKind) -> Option<ProofKind> {
        match (self.kind(), offered) {
            (ProofKind::Nothing, ProofKind::Nothing) => Some(ProofKind::Nothing),
            (ProofKind::Nothing, _) | (_, ProofKind::Nothing) => None,
            (ProofKind::Key, ProofKind::Key) => Some(ProofKind::Key),
            _ => Some(ProofKind::Certificate),
        }
    }

    fn mac_key(&self) -> MacKey {
        match self {
            Self::Key { mac_key, .. } => *mac_key,
            Self::Open | Self::Certificate { .. } => blake3::derive_key(KEYLESS_CONTEXT, &[]),
        }
    }

    fn chain(&self) -> &[u8] {
        match self {
            Self::Key { chain, .. } | Self::Certificate { chain } => chain,
            Self::Open => &[],
        }
    }

    fn shown(&self) -> Shown {
        let chain = self.chain().to_vec();
        Shown { frame: Frame::Certificate { bytes: u16::try_from(chain.len()).unwrap_or(u16::MAX) }, chain }
    }

    /// Why this node refuses one whose offer it cannot agree with.
    fn no_agreement(&self) -> Refusal {
        if matches!(self, Self::Open) { Refusal::KeylessHere } else { Refusal::KeyRequired }
    }
}

/// A frame with the bytes that follow it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// The frame.
    pub frame: Frame,
    /// Bytes behind it; empty but for certificates.
    pub chain: Vec<u8>,
}

impl From<Frame> for Shown {
    fn from(frame: Frame) -> Shown {
        Shown { frame, chain: Vec::new() }
    }
}

/// Why a node refuses another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Refusal {
    /// This node has a pool key, the other node has none.
    KeyRequired,
    /// This node has no pool key, the other node has one.
    KeylessHere,
    /// The two nodes have different pool keys.
    WrongKey,
    /// The two nodes are connected already, or are connecting.
    Duplicate,
    /// The other node is quarantined by this one.
    Blocked,
    /// The other node speaks another version of this exchange.
    Version,
    /// The other node sent something that is not part of this exchange.
    Malformed,
    /// This node accepts no more connections.
    Full,
    /// The certificate of the other node, or of one that admitted it, has been revoked.
    Revoked,
    /// The certificate of the other node has expired.
    Expired,
}

impl Refusal {
    /// Every refusal.
    pub const ALL: [Self; 10] = [
        Self::KeyRequired,
        Self::KeylessHere,
        Self::WrongKey,
        Self::Duplicate,
        Self::Blocked,
        Self::Version,
        Self::Malformed,
        Self::Full,
        Self::Revoked,
        Self::Expired,
    ];

    /// Name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::KeyRequired => "key_required",
            Self::KeylessHere => "keyless_here",
            Self::WrongKey => "wrong_key",
            Self::Duplicate => "duplicate",
            Self::Blocked => "quarantined",
            Self::Version => "version",
            Self::Malformed => "malformed",
            Self::Full => "full",
            Self::Revoked => "revoked",
            Self::Expired => "expired",
        }
    }

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
            Self::Revoked => 9,
            Self::Expired => 10,
        }
    }

    /// Reason in the log of the node that refuses.
    pub const fn of_the_other(self) -> &'static str {
        match self {
            Self::KeyRequired => "it has no pool key",
            Self::KeylessHere => "it has a pool key and this node has none",
            Self::WrongKey => "it belongs to another pool",
            Self::Duplicate => "already connected",
            Self::Blocked => "quarantined",
            Self::Version => "it speaks another version of the admission protocol",
            Self::Malformed => "it does not speak the admission protocol",
            Self::Full => "too many connections",
            Self::Revoked => "its certificate is revoked",
            Self::Expired => "its certificate has expired",
        }
    }

    /// Reason in the log of the refused node, with what to do.
    pub const fn of_this_node(self) -> &'static str {
        match self {
            Self::KeyRequired => {
                "it belongs to a pool and this node runs with --open: start this one without, and join the pool with `pangea join`"
            }
            Self::KeylessHere => "it runs with --open and this node does not: start both with it, or neither",
            Self::WrongKey => {
                "it belongs to another pool: join that one with `pangea join`, or give both nodes the same --pool-key file"
            }
            Self::Duplicate => "it is already connected to this node",
            Self::Blocked => "it has quarantined this node",
            Self::Version => "it speaks another version of the admission protocol: run the same release on both",
            Self::Malformed => "it did not understand this node: run the same release on both",
            Self::Full => "it has as many connections as it takes",
            Self::Revoked => "this node's certificate is revoked there: a new identity can be admitted again",
            Self::Expired => {
                "this node's certificate has expired: ask a member for an invitation, or compare the clocks"
            }
        }
    }
}

/// Bytes that are not a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum FrameError {
    /// The length is not [`FRAME_BYTES`].
    #[error("an admission frame has {FRAME_BYTES} bytes, not {0}")]
    Length(usize),
    /// The bytes do not start with [`MAGIC`].
    #[error("not an admission frame")]
    Magic,
    /// The version is not [`VERSION`].
    #[error("admission version {0}")]
    Version(u8),
    /// Unknown kind, unknown code, or non-zero padding.
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
    const HELLO_CERTIFIED: u8 = 6;
    const CERTIFICATE: u8 = 7;

    /// Encodes the frame: magic (4), version (1), kind (1), refusal code or 0 (1), 0 (1), body or zeros (32).
    pub fn encode(&self) -> [u8; FRAME_BYTES] {
        let (kind, code, body) = match self {
            Self::Hello { proof: ProofKind::Key, nonce } => (Self::HELLO_KEYED, 0, *nonce),
            Self::Hello { proof: ProofKind::Nothing, nonce } => (Self::HELLO_KEYLESS, 0, *nonce),
            Self::Hello { proof: ProofKind::Certificate, nonce } => (Self::HELLO_CERTIFIED, 0, *nonce),
            Self::Proof(mac) => (Self::PROOF, 0, *mac),
            Self::Accept(mac) => (Self::ACCEPT, 0, *mac),
            Self::Refuse(refusal) => (Self::REFUSE, refusal.code(), [0; 32]),
            Self::Certificate { bytes } => {
                let mut body = [0; 32];
                body[..2].copy_from_slice(&bytes.to_le_bytes());
                (Self::CERTIFICATE, 0, body)
            }
        };
        let mut bytes = [0; FRAME_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..8].copy_from_slice(&[VERSION, kind, code, 0]);
        bytes[8..].copy_from_slice(&body);
        bytes
    }

    /// Parses exactly one frame. Every frame has one encoding only.
    ///
    /// # Errors
    /// [`FrameError`] for the first problem.
    pub fn parse(bytes: &[u8]) -> Result<Self, FrameError> {
        let bytes: &[u8; FRAME_BYTES] = bytes.try_into().map_err(|_| FrameError::Length(bytes.len()))?;
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
            Self::HELLO_KEYED => Ok(Self::Hello { proof: ProofKind::Key, nonce: body }),
            Self::HELLO_KEYLESS => Ok(Self::Hello { proof: ProofKind::Nothing, nonce: body }),
            Self::HELLO_CERTIFIED => Ok(Self::Hello { proof: ProofKind::Certificate, nonce: body }),
            Self::CERTIFICATE => {
                let bytes = u16::from_le_bytes([body[0], body[1]]);
                let fits = usize::from(bytes) <= MAX_CHAIN_BYTES && body[2..] == [0; 30];
                fits.then_some(Self::Certificate { bytes }).ok_or(FrameError::Malformed)
            }
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

    /// Bytes that follow this frame.
    pub fn bytes_after(&self) -> usize {
        match self {
            Self::Certificate { bytes } => usize::from(*bytes),
            _ => 0,
        }
    }
}

impl From<NotProven> for Refusal {
    fn from(why: NotProven) -> Refusal {
        match why {
            NotProven::Expired => Refusal::Expired,
            NotProven::Revoked(_) => Refusal::Revoked,
            NotProven::Invalid(CertificateError::Signature) => Refusal::WrongKey,
            NotProven::Invalid(CertificateError::Version(_)) => Refusal::Version,
            NotProven::NoCertificate | NotProven::AnotherPeers(_) | NotProven::Invalid(_) => Refusal::Malformed,
        }
    }
}

/// Side of the exchange, bound into its MAC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Dialer,
    Acceptor,
}

/// The data that both sides authenticate with their MACs.
struct Transcript {
    mac_key: MacKey,
    dialer: PeerId,
    acceptor: PeerId,
}

impl Transcript {
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

/// State of the dialling side.
pub struct Dialer {
    credentials: Credentials,
    transcript: Transcript,
    nonce: [u8; 32],
    awaits: Awaits,
}

/// What a side waits for.
enum Awaits {
    /// The other side's `Hello`.
    Hello,
    /// The other side's MAC over this nonce of it.
    Mac([u8; 32]),
    /// The other side's certificate.
    Certificate,
}

/// The dialer's next step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DialerStep {
    /// Send this and wait for the next frame.
    Send(Shown),
    /// The acceptor has admitted this node and has proved that it belongs to the pool.
    Admitted,
    /// The acceptor refuses this node: close the connection.
    RefusedByAcceptor(Refusal),
    /// This node refuses the acceptor: close the connection.
    Refuse(Refusal),
}

impl Dialer {
    /// Starts the exchange over a session in which `local` dialled `remote`; returns the opening frame as well.
    /// `nonce`: 32 fresh random bytes.
    pub fn new(credentials: Credentials, local: PeerId, remote: PeerId, nonce: [u8; 32]) -> (Self, Frame) {
        let transcript = Transcript { mac_key: credentials.mac_key(), dialer: local, acceptor: remote };
        let hello = Frame::Hello { proof: credentials.kind(), nonce };
        (Self { credentials, transcript, nonce, awaits: Awaits::Hello }, hello)
    }

    /// Processes a frame from the acceptor, with the bytes that follow it. `check` checks the acceptor's chain of
    /// certificates.
    pub fn handle(&mut self, shown: &Shown, check: impl FnOnce(&[u8]) -> Result<(), NotProven>) -> DialerStep {
        match (&self.awaits, &shown.frame) {
            (_, Frame::Refuse(refusal)) => DialerStep::RefusedByAcceptor(*refusal),
            (Awaits::Hello, Frame::Hello { proof, nonce }) => match self.credentials.agree(*proof) {
                Some(ProofKind::Certificate) => {
                    self.awaits = Awaits::Certificate;
                    DialerStep::Send(self.credentials.shown())
                }
                Some(ProofKind::Key | ProofKind::Nothing) => {
                    self.awaits = Awaits::Mac(*nonce);
                    let mac = self.transcript.mac(Role::Dialer, &self.nonce, nonce);
                    DialerStep::Send(Frame::Proof(*mac.as_bytes()).into())
                }
                None => DialerStep::Refuse(self.credentials.no_agreement()),
            },
            (Awaits::Mac(acceptor_nonce), Frame::Accept(mac)) => {
                // blake3::Hash compares in constant time.
                if self.transcript.mac(Role::Acceptor, &self.nonce, acceptor_nonce) == *mac {
                    DialerStep::Admitted
                } else {
                    DialerStep::Refuse(Refusal::WrongKey)
                }
            }
            (Awaits::Certificate, Frame::Certificate { .. }) => match check(&shown.chain) {
                Ok(()) => DialerStep::Admitted,
                Err(why) => DialerStep::Refuse(why.into()),
            },
            _ => DialerStep::Refuse(Refusal::Malformed),
        }
    }
}

/// State of the accepting side.
pub struct Acceptor {
    credentials: Credentials,
    transcript: Transcript,
    nonce: [u8; 32],
    awaits: Awaits,
}

/// The acceptor's next step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AcceptorStep {
    /// Send this and wait for the next frame.
    Send(Shown),
    /// The dialer has proved that it belongs to the pool. Send this to admit it, or `Frame::Refuse` for another reason.
    Proven(Shown),
    /// Refuse the dialer: send `Frame::Refuse` with this and close.
    Refuse(Refusal),
}

impl Acceptor {
    /// Starts the exchange over a session in which `remote` dialled `local`. `nonce`: 32 fresh random bytes.
    pub fn new(credentials: Credentials, local: PeerId, remote: PeerId, nonce: [u8; 32]) -> Self {
        let transcript = Transcript { mac_key: credentials.mac_key(), dialer: remote, acceptor: local };
        Self { credentials, transcript, nonce, awaits: Awaits::Hello }
    }

    /// Processes a frame from the dialer, with the bytes that follow it. `check` checks the dialer's chain of certificates.
    pub fn handle(&mut self, shown: &Shown, check: impl FnOnce(&[u8]) -> Result<(), NotProven>) -> AcceptorStep {
        match (&self.awaits, &shown.frame) {
            (Awaits::Hello, Frame::Hello { proof, nonce }) => match self.credentials.agree(*proof) {
                Some(agreed) => {
                    let certified = agreed == ProofKind::Certificate;
                    self.awaits = if certified { Awaits::Certificate } else { Awaits::Mac(*nonce) };
                    AcceptorStep::Send(Frame::Hello { proof: agreed, nonce: self.nonce }.into())
                }
                None => AcceptorStep::Refuse(self.credentials.no_agreement()),
            },
            (Awaits::Mac(dialer_nonce), Frame::Proof(mac)) => {
                // blake3::Hash compares in constant time.
                if self.transcript.mac(Role::Dialer, dialer_nonce, &self.nonce) == *mac {
                    let accepted = self.transcript.mac(Role::Acceptor, dialer_nonce, &self.nonce);
                    AcceptorStep::Proven(Frame::Accept(*accepted.as_bytes()).into())
                } else {
                    AcceptorStep::Refuse(Refusal::WrongKey)
                }
            }
            (Awaits::Certificate, Frame::Certificate { .. }) => match check(&shown.chain) {
                Ok(()) => AcceptorStep::Proven(self.credentials.shown()),
                Err(why) => AcceptorStep::Refuse(why.into()),
            },
            _ => AcceptorStep::Refuse(Refusal::Malformed),
        }
    }
}

#[cfg(test)]
#[path = "admission_tests.rs"]
mod tests;
