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
//! Nodes without a pool key run the same exchange with a public key and declare it in their `Hello`.

use libp2p_identity::PeerId;
use thiserror::Error;

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
        /// Whether the sender has a pool key.
        keyed: bool,
        /// 32 fresh random bytes.
        nonce: [u8; 32],
    },
    /// The dialer's MAC.
    Proof([u8; 32]),
    /// The acceptor's MAC; the dialer is admitted.
    Accept([u8; 32]),
    /// The acceptor refuses the dialer.
    Refuse(Refusal),
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

    /// Reason in the log of the node that refuses.
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

    /// Reason in the log of the refused node, with what to do.
    pub const fn of_this_node(self) -> &'static str {
        match self {
            Self::KeyRequired => {
                "it belongs to a pool and this node has no pool key: start this one with --pool-key FILE"
            }
            Self::KeylessHere => "it has no pool key and this node has one: start both with the same --pool-key",
            Self::WrongKey => "its pool key is another one: give both nodes the same --pool-key file",
            Self::Duplicate => "it is already connected to this node",
            Self::Blocked => "it has quarantined this node",
            Self::Version => "it speaks another version of the admission protocol: run the same release on both",
            Self::Malformed => "it did not understand this node: run the same release on both",
            Self::Full => "it has as many connections as it takes",
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

    /// Encodes the frame: magic (4), version (1), kind (1), refusal code or 0 (1), 0 (1), body or zeros (32).
    pub fn encode(&self) -> [u8; FRAME_BYTES] {
        let (kind, code, body) = match self {
            Self::Hello { keyed: true, nonce } => (Self::HELLO_KEYED, 0, *nonce),
            Self::Hello { keyed: false, nonce } => (Self::HELLO_KEYLESS, 0, *nonce),
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
            Self::HELLO_KEYED => Ok(Self::Hello { keyed: true, nonce: body }),
            Self::HELLO_KEYLESS => Ok(Self::Hello { keyed: false, nonce: body }),
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

/// Side of the exchange, bound into its MAC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Dialer,
    Acceptor,
}

/// The data that both sides authenticate with their MACs.
struct Transcript {
    mac_key: MacKey,
    keyed: bool,
    dialer: PeerId,
    acceptor: PeerId,
}

impl Transcript {
    fn new(pool_mac_key: Option<&MacKey>, dialer: PeerId, acceptor: PeerId) -> Self {
        let mac_key = pool_mac_key.map_or_else(|| blake3::derive_key(KEYLESS_CONTEXT, &[]), |key| *key);
        Self { mac_key, keyed: pool_mac_key.is_some(), dialer, acceptor }
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

/// State of the dialling side.
pub struct Dialer {
    transcript: Transcript,
    nonce: [u8; 32],
    acceptor_nonce: Option<[u8; 32]>,
}

/// The dialer's next step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DialerStep {
    /// Send this frame and wait for the next one.
    Send(Frame),
    /// The acceptor has admitted this node and has proved that it knows the key.
    Admitted,
    /// The acceptor refuses this node: close the connection.
    RefusedByAcceptor(Refusal),
    /// This node refuses the acceptor: close the connection.
    Refuse(Refusal),
}

impl Dialer {
    /// Starts the exchange over a session in which `local` dialled `remote`; returns the opening frame as well.
    /// `nonce`: 32 fresh random bytes.
    pub fn new(mac_key: Option<&MacKey>, local: PeerId, remote: PeerId, nonce: [u8; 32]) -> (Self, Frame) {
        let transcript = Transcript::new(mac_key, local, remote);
        let hello = Frame::Hello { keyed: transcript.keyed, nonce };
        (Self { transcript, nonce, acceptor_nonce: None }, hello)
    }

    /// Processes a frame from the acceptor.
    pub fn handle(&mut self, frame: &Frame) -> DialerStep {
        match (self.acceptor_nonce, frame) {
            (_, Frame::Refuse(refusal)) => DialerStep::RefusedByAcceptor(*refusal),
            (None, Frame::Hello { keyed, .. }) if *keyed != self.transcript.keyed => {
                DialerStep::Refuse(if *keyed { Refusal::KeylessHere } else { Refusal::KeyRequired })
            }
            (None, Frame::Hello { nonce, .. }) => {
                self.acceptor_nonce = Some(*nonce);
                DialerStep::Send(Frame::Proof(*self.transcript.mac(Role::Dialer, &self.nonce, nonce).as_bytes()))
            }
            (Some(acceptor_nonce), Frame::Accept(mac)) => {
                // blake3::Hash compares in constant time.
                if self.transcript.mac(Role::Acceptor, &self.nonce, &acceptor_nonce) == *mac {
                    DialerStep::Admitted
                } else {
                    DialerStep::Refuse(Refusal::WrongKey)
                }
            }
            _ => DialerStep::Refuse(Refusal::Malformed),
        }
    }
}

/// State of the accepting side.
pub struct Acceptor {
    transcript: Transcript,
    nonce: [u8; 32],
    dialer_nonce: Option<[u8; 32]>,
}

/// The acceptor's next step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AcceptorStep {
    /// Send this frame and wait for the next one.
    Send(Frame),
    /// The dialer has proved that it has the key. Send this frame to admit it, or `Frame::Refuse` for another reason.
    Proven(Frame),
    /// Refuse the dialer: send `Frame::Refuse` with this and close.
    Refuse(Refusal),
}

impl Acceptor {
    /// Starts the exchange over a session in which `remote` dialled `local`. `nonce`: 32 fresh random bytes.
    pub fn new(mac_key: Option<&MacKey>, local: PeerId, remote: PeerId, nonce: [u8; 32]) -> Self {
        Self { transcript: Transcript::new(mac_key, remote, local), nonce, dialer_nonce: None }
    }

    /// Processes a frame from the dialer.
    pub fn handle(&mut self, frame: &Frame) -> AcceptorStep {
        match (self.dialer_nonce, frame) {
            (None, Frame::Hello { keyed, .. }) if *keyed != self.transcript.keyed => {
                AcceptorStep::Refuse(if *keyed { Refusal::KeylessHere } else { Refusal::KeyRequired })
            }
            (None, Frame::Hello { nonce, .. }) => {
                self.dialer_nonce = Some(*nonce);
                AcceptorStep::Send(Frame::Hello { keyed: self.transcript.keyed, nonce: self.nonce })
            }
            (Some(dialer_nonce), Frame::Proof(mac)) => {
                // blake3::Hash compares in constant time.
                if self.transcript.mac(Role::Dialer, &dialer_nonce, &self.nonce) == *mac {
                    AcceptorStep::Proven(Frame::Accept(
                        *self.transcript.mac(Role::Acceptor, &dialer_nonce, &self.nonce).as_bytes(),
                    ))
                } else {
                    AcceptorStep::Refuse(Refusal::WrongKey)
                }
            }
            _ => AcceptorStep::Refuse(Refusal::Malformed),
        }
    }
}

#[cfg(test)]
mod tests {
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

    /// Runs an exchange with every frame encoded and parsed; returns the dialer's last step and the frames in hex.
    fn exchange(dialer_key: Option<&MacKey>, acceptor_key: Option<&MacKey>) -> (DialerStep, Vec<String>) {
        let (mut dialer, mut frame) = Dialer::new(dialer_key, peer(1), peer(2), [0xd1; 32]);
        let mut acceptor = Acceptor::new(acceptor_key, peer(2), peer(1), [0xac; 32]);
        let mut log = Vec::new();
        loop {
            log.push(hex(&frame.encode()));
            let answer = match acceptor.handle(&Frame::parse(&frame.encode()).unwrap()) {
                AcceptorStep::Send(frame) | AcceptorStep::Proven(frame) => frame,
                AcceptorStep::Refuse(refusal) => Frame::Refuse(refusal),
            };
            log.push(hex(&answer.encode()));
            match dialer.handle(&Frame::parse(&answer.encode()).unwrap()) {
                DialerStep::Send(next) => frame = next,
                end => return (end, log),
            }
        }
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
        let log: Vec<_> = Refusal::ALL
            .iter()
            .map(|refusal| format!("{refusal:?} {}", hex(&Frame::Refuse(*refusal).encode())))
            .collect();
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
        let (mut dialer, _) = Dialer::new(Some(&key(1)), peer(1), peer(2), [0; 32]);
        let keyless = Frame::Hello { keyed: false, nonce: [1; 32] };
        assert_eq!(dialer.handle(&keyless), DialerStep::Refuse(Refusal::KeyRequired));
        let (mut dialer, _) = Dialer::new(Some(&key(1)), peer(1), peer(2), [0; 32]);
        let DialerStep::Send(Frame::Proof(proof)) = dialer.handle(&Frame::Hello { keyed: true, nonce: [1; 32] }) else {
            panic!("no proof")
        };
        // The dialer's own proof, reflected.
        assert_eq!(dialer.handle(&Frame::Accept(proof)), DialerStep::Refuse(Refusal::WrongKey));
    }

    #[test]
    fn a_proof_relayed_through_a_third_node_does_not_admit() {
        // Dialer 1 talks to 3, which relays everything to 2 over a session of its own.
        let (mut dialer, hello) = Dialer::new(Some(&key(1)), peer(1), peer(3), [4; 32]);
        let mut acceptor = Acceptor::new(Some(&key(1)), peer(2), peer(3), [5; 32]);
        let AcceptorStep::Send(answer) = acceptor.handle(&hello) else { panic!("no hello") };
        let DialerStep::Send(proof) = dialer.handle(&answer) else { panic!("no proof") };
        assert_eq!(acceptor.handle(&proof), AcceptorStep::Refuse(Refusal::WrongKey));
    }

    #[test]
    fn a_replayed_proof_does_not_admit() {
        let (mut dialer, hello) = Dialer::new(Some(&key(1)), peer(1), peer(2), [4; 32]);
        let mut first = Acceptor::new(Some(&key(1)), peer(2), peer(1), [5; 32]);
        let AcceptorStep::Send(answer) = first.handle(&hello) else { panic!("no hello") };
        let DialerStep::Send(proof) = dialer.handle(&answer) else { panic!("no proof") };
        let mut second = Acceptor::new(Some(&key(1)), peer(2), peer(1), [6; 32]);
        second.handle(&hello);
        assert_eq!(second.handle(&proof), AcceptorStep::Refuse(Refusal::WrongKey));
        assert!(matches!(first.handle(&proof), AcceptorStep::Proven(_)));
    }

    #[test]
    fn frames_out_of_order_are_refused() {
        let mut acceptor = Acceptor::new(None, peer(2), peer(1), [5; 32]);
        assert_eq!(acceptor.handle(&Frame::Proof([0; 32])), AcceptorStep::Refuse(Refusal::Malformed));
        let (mut dialer, _) = Dialer::new(None, peer(1), peer(2), [4; 32]);
        assert_eq!(dialer.handle(&Frame::Accept([0; 32])), DialerStep::Refuse(Refusal::Malformed));
    }

    fn any_frame() -> impl Strategy<Value = Frame> {
        prop_oneof![
            (any::<bool>(), any::<[u8; 32]>()).prop_map(|(keyed, nonce)| Frame::Hello { keyed, nonce }),
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
            let (mut dialer, hello) = Dialer::new(Some(&key(1)), peer(1), peer(2), [4; 32]);
            let mut acceptor = Acceptor::new(Some(&key(1)), peer(2), peer(1), [5; 32]);
            let AcceptorStep::Send(answer) = acceptor.handle(&hello) else { panic!("no hello") };
            let DialerStep::Send(Frame::Proof(mut proof)) = dialer.handle(&answer) else { panic!("no proof") };
            proof[at] ^= change;
            prop_assert_eq!(acceptor.handle(&Frame::Proof(proof)), AcceptorStep::Refuse(Refusal::WrongKey));
        }
    }
}
