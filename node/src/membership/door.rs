//! This member's answers to nodes that want to join, one session per connection: tokens, PINs, and people who compare digits. What
//! may be answered is decided by `pangea_control::membership`; here are the secrets, and what is logged.

use std::net::IpAddr;

use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};
use pangea_control::membership::JoinRefusal;
use pangea_control::membership::join::{Grant, PinSide, Reply, Request, pin_proof};

use super::handle::{Belonging, Membership, Offer, unix_s};
use super::pake::Pake;

/// One connection of a node that wants to join.
pub struct JoinSession {
    peer: PeerId,
    host: Option<IpAddr>,
    /// The PIN that the node tried, its name, and the key that it must prove.
    pin: Option<(String, String, Vec<u8>)>,
}

impl JoinSession {
    /// The session of `peer`, whose id the connection authenticated, at `host`.
    pub fn new(peer: PeerId, host: Option<IpAddr>) -> JoinSession {
        JoinSession { peer, host, pin: None }
    }

    /// Where the node can be asked that listens on the TCP port `port`; `None` for port 0.
    fn address(&self, port: u16) -> Option<Multiaddr> {
        let host = self.host.filter(|_| port != 0)?;
        Some(Multiaddr::from(host).with(Protocol::Tcp(port)))
    }
}

impl Membership {
    /// Answers a request. Writes to the disk.
    pub fn answer(&self, session: &mut JoinSession, request: Request) -> Reply {
        self.try_answer(session, request).unwrap_or_else(|refusal| {
            let peer = session.peer;
            // Strangers may ask as often as they like; what a person should see of it is logged where it is decided.
            tracing::debug!(event = "join_refused", %peer, "Peer {peer} may not join: {}", of_the_other(refusal));
            Reply::Refused(refusal)
        })
    }

    fn try_answer(&self, session: &mut JoinSession, request: Request) -> Result<Reply, JoinRefusal> {
        let (peer, now) = (session.peer, unix_s());
        let mut guard = self.belonging();
        let belonging = &mut *guard;
        let pool = belonging.pool().ok_or(JoinRefusal::Open)?;
        if belonging.is_revoked(&peer) {
            return Err(JoinRefusal::Revoked);
        }
        let is_for_members = !matches!(request, Request::Introduce { .. } | Request::Offer { .. });
        if is_for_members && !belonging.may_admit() {
            return Err(JoinRefusal::CannotAdmit);
        }
        match request {
            Request::Token { name, secret } => {
                let terms = belonging.invitations.redeem(peer, &secret, now)?;
                let kept = self.stored().keep_invitations(&pool, belonging.invitations.open());
                kept.map_err(|error| not_stored(&error))?;
                Ok(Reply::Granted(self.grant(belonging, peer, &name, terms, [0; 32])?))
            }
            Request::Pin { name, message } => {
                let digits = belonging.invitations.try_pin(now)?;
                let pake = Pake::begin(PinSide::Member, &digits, &peer, &self.local());
                let answer = pake.message();
                let key = pake.finish(&message).ok_or(JoinRefusal::WrongPin)?;
                session.pin = Some((digits, name, key));
                Ok(Reply::Pin(answer))
            }
            Request::PinProof(proof) => {
                let (digits, name, key) = session.pin.take().ok_or(JoinRefusal::Malformed)?;
                // blake3::Hash compares in constant time.
                if pin_proof(&key, PinSide::Joiner) != proof {
                    let left = belonging.invitations.pin_tries_left();
                    tracing::warn!(event = "wrong_pin", %peer, left, "Peer {peer} tried a wrong PIN; {left} tries are left");
                    return Err(JoinRefusal::WrongPin);
                }
                let terms = belonging.invitations.pin_was_right(&digits, now)?;
                let proof = *pin_proof(&key, PinSide::Member).as_bytes();
                Ok(Reply::Granted(self.grant(belonging, peer, &name, terms, proof)?))
            }
            Request::Compare { name, commitment } => {
                let nonce = rand::random();
                let pending = belonging.pending.as_mut().ok_or(JoinRefusal::Open)?;
                pending.committed(peer, &name, session.host, commitment, nonce, now)?;
                Ok(Reply::Nonce { pool, name: self.name().to_owned(), nonce })
            }
            Request::Reveal(nonce) => {
                let pending = belonging.pending.as_mut().ok_or(JoinRefusal::Open)?;
                let node = pending.revealed(peer, &nonce, now)?;
                let (name, digits) = (&node.name, node.digits);
                tracing::info!(
                    event = "pending", %peer, name, %digits,
                    "Peer {peer} ({name}) asks to join: if its screen shows {digits} too, run: pangea members accept {} {}",
                    shell_word(name, &peer), digits.to_string().replace(' ', "")
                );
                self.needs_attention();
                Ok(Reply::Waiting)
            }
            Request::Poll => {
                let pending = belonging.pending.as_mut().ok_or(JoinRefusal::Open)?;
                match pending.polled(&peer, now)? {
                    None => Ok(Reply::Waiting),
                    Some((name, terms)) => Ok(Reply::Granted(self.grant(belonging, peer, &name, terms, [0; 32])?)),
                }
            }
            Request::Introduce { name, port } => {
                drop(guard);
                self.met_stranger(peer, &name, session.host, session.address(port));
                Ok(Reply::Introduced { name: self.name().to_owned() })
            }
            Request::Offer { name, port } => {
                let address = session.address(port).ok_or(JoinRefusal::Malformed)?;
                if !belonging.strangers.may_offer(session.host, now) {
                    return Err(JoinRefusal::Full);
                }
                drop(guard);
                tracing::debug!(event = "offered", %peer, name, "Peer {peer} ({name}) offers to admit this node");
                let is_passed_on = self.pass_on(Offer { member: peer, address });
                is_passed_on.then_some(Reply::Waiting).ok_or(JoinRefusal::Full)
            }
        }
    }

    fn grant(
        &self,
        belonging: &mut Belonging,
        peer: PeerId,
        name: &str,
        terms: pangea_control::membership::Terms,
        proof: [u8; 32],
    ) -> Result<Grant, JoinRefusal> {
        let (pool, chain) = self.issue_for(belonging, peer, name, terms).map_err(|error| not_stored(&error))?;
        let role = terms.role.name();
        tracing::info!(event = "admitted", %peer, name, role, "Admitted peer {peer} ({name}) as a {role}");
        Ok(Grant { pool, chain: chain.encode(), name: self.name().to_owned(), proof })
    }
}

fn not_stored(error: &pangea_client::Error) -> JoinRefusal {
    tracing::warn!(event = "join_not_stored", %error, "cannot admit a node: {error}");
    JoinRefusal::Internal
}

/// What a person may paste into a shell to name a node: its name if that is a plain word, else its peer id.
pub fn shell_word(name: &str, peer: &PeerId) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let is_word = !name.is_empty() && !name.starts_with('-') && name.chars().all(plain);
    if is_word { name.to_owned() } else { peer.to_string() }
}

/// The reason in the log of the member.
fn of_the_other(refusal: JoinRefusal) -> &'static str {
    match refusal {
        JoinRefusal::Unknown => "no open invitation has its secret",
        JoinRefusal::Expired => "its invitation has expired",
        JoinRefusal::Used => "its invitation has been used",
        JoinRefusal::NoPin => "no PIN is open (see `pangea invite`)",
        JoinRefusal::WrongPin => "its PIN is wrong",
        JoinRefusal::Full => "too many nodes wait, or it asked too often",
        JoinRefusal::Denied => "it does not wait to be accepted",
        JoinRefusal::CannotAdmit => "this node cannot admit others",
        JoinRefusal::Open => "this node runs with --open",
        JoinRefusal::Revoked => "its identity is revoked",
        JoinRefusal::Malformed => "it does not speak the join protocol",
        JoinRefusal::Internal => "this node could not store its decision",
    }
}
