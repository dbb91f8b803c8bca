//! The handle on this node's place in its pool, shared by the connections, the gossip and the commands: what this node shows, what
//! others prove, whom it invites and admits, and which pool it joins. It holds the secrets and asks the clock; the decisions
//! are those of `pangea_control::membership`. It opens no connection.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use libp2p::identity::Keypair;
use libp2p::{Multiaddr, PeerId};
use pangea_client::{Error, ErrorKind, Result};
use pangea_control::membership::join::{Grant, SECRET_BYTES};
use pangea_control::membership::pending::NotAccepted;
use pangea_control::membership::{
    Certificate, Chain, Invitation, Invitations, NotProven, Pending, PoolId, Proofs, Revocation, Role,
    SignedCertificate, SixDigits, Strangers, Terms, Token, invitation,
};
use pangea_control::net::admission::{Credentials, Refusal};
use tokio::sync::{mpsc, watch};

use super::pool_key::{PoolKey, PoolSigner};
use super::stored::{Admitted, KeptCertificate, MAX_ADMITTED, Stored};

/// Validity of a certificate that a node issues for itself.
const VALIDITY: Duration = Duration::from_secs(7 * 24 * 3600);

/// Age at which a node renews its own certificate: a peer whose clock is up to six days ahead still accepts it.
const RENEWED_AFTER: Duration = Duration::from_secs(24 * 3600);

/// Longest time from letting a connection in to its being connected.
const ARRIVAL: Duration = Duration::from_secs(10);

/// Offers of members that wait to be followed; what may be followed is limited by [`Strangers`].
const OFFERS: usize = 8;

/// A member's offer to admit this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The member.
    pub member: PeerId,
    /// Where it answers, without its peer id.
    pub address: Multiaddr,
}

/// This node's place in its pool. Clones share it.
#[derive(Clone)]
pub struct Membership(Arc<Inner>);

struct Inner {
    keypair: Keypair,
    local: PeerId,
    name: String,
    stored: Stored,
    belonging: Mutex<Belonging>,
    changes: watch::Sender<Changes>,
    /// Changes when a person may have something to decide.
    attention: watch::Sender<()>,
    offers: mpsc::Sender<Offer>,
    /// Taken by the task that follows offers.
    offered: Mutex<Option<mpsc::Receiver<Offer>>>,
}

/// What has changed since the node started: how often it joined another pool, and which revocations it knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Pools joined.
    pub joined: u64,
    /// The encoded revocations.
    pub revocations: Vec<u8>,
}

/// Who signs for this node.
pub(super) enum Signer {
    /// Nobody: the pool is open.
    Nobody,
    /// The pool's key is here.
    Pool { signer: Box<PoolSigner>, mac_key: [u8; 32], role: Role, issued_unix_s: u64 },
    /// This node's own key, with the chain that another member issued.
    Node,
}

/// The state behind the handle.
pub(super) struct Belonging {
    pub(super) signer: Signer,
    /// The proofs of others; `None` in an open pool.
    pub(super) proofs: Option<Proofs>,
    /// What this node shows; `None` in an open pool.
    pub(super) chain: Option<Chain>,
    /// Name of the member that admitted this node; empty where its own key did.
    pub(super) admitted_at: String,
    pub(super) invitations: Invitations,
    pub(super) pending: Option<Pending>,
    pub(super) strangers: Strangers,
    pub(super) admitted: Vec<Admitted>,
    /// Peers whose connections were let in within the last [`ARRIVAL`], since this node belongs to the pool.
    arriving: BTreeMap<PeerId, Instant>,
    /// Peers that were arriving when this node left the pool before.
    left_behind: BTreeSet<PeerId>,
}

/// A new invitation.
#[derive(Clone, Debug)]
pub struct Invited {
    /// Text of the token.
    pub token: String,
    /// The PIN.
    pub pin: Option<String>,
    /// When the token expires, in seconds since 1970.
    pub expires_unix_s: u64,
}

/// A pool that this node has joined.
#[derive(Clone, Debug)]
pub struct Joined {
    /// The pool.
    pub pool: PoolId,
    /// Name of the member that admitted this node.
    pub member: String,
    /// This node's role.
    pub role: Role,
}

impl Membership {
    /// A node of an open pool.
    pub fn open(keypair: &Keypair) -> Membership {
        let belonging = Belonging {
            signer: Signer::Nobody,
            proofs: None,
            chain: None,
            admitted_at: String::new(),
            invitations: Invitations::default(),
            pending: None,
            strangers: Strangers::default(),
            admitted: Vec::new(),
            arriving: BTreeMap::new(),
            left_behind: BTreeSet::new(),
        };
        Membership::with(keypair, "", Stored::default(), belonging)
    }

    /// A node that holds the key of its pool, with what it stored about that pool.
    ///
    /// # Errors
    /// `Internal` if the node cannot issue its certificate or read its revocations.
    pub fn holder(keypair: &Keypair, key: &PoolKey, role: Role, name: &str, stored: Stored) -> Result<Membership> {
        let signer = key.signer().map_err(|why| cannot_issue(&why))?;
        let (pool, now) = (signer.pool(), unix_s());
        let local = keypair.public().to_peer_id();
        let chain = issue_own(&signer, local, role, now)?;
        let signer = Signer::Pool { signer: Box::new(signer), mac_key: *key.mac_key(), role, issued_unix_s: now };
        let belonging = Belonging::new(local, pool, signer, chain, String::new(), &stored)?;
        Ok(Membership::with(keypair, name, stored, belonging))
    }

    /// A node that another member admitted.
    ///
    /// # Errors
    /// `InvalidInput` if its certificate does not count any more, with what to do; `Internal` if it cannot read its revocations.
    pub fn member(keypair: &Keypair, kept: KeptCertificate, name: &str, stored: Stored) -> Result<Membership> {
        let local = keypair.public().to_peer_id();
        let KeptCertificate { pool, chain, member, .. } = kept;
        let belonging = Belonging::new(local, pool, Signer::Node, chain, member, &stored)?;
        let known = belonging.proofs.as_ref();
        let is_revoked = |peer: &PeerId| known.is_some_and(|proofs| proofs.is_revoked(peer));
        let proven = belonging.chain.as_ref().map(|chain| chain.verify(&local, &pool, unix_s(), is_revoked));
        if let Some(Err(why)) = proven {
            let message = format!(
                "this node's certificate does not count any more ({why}): move the file `certificate` out of the data \
                 directory to start with a pool of its own, or join again with --join TOKEN"
            );
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
        Ok(Membership::with(keypair, name, stored, belonging))
    }

    fn with(keypair: &Keypair, name: &str, stored: Stored, belonging: Belonging) -> Membership {
        let revocations = belonging.proofs.as_ref().map(Proofs::encoded_revocations).unwrap_or_default();
        let (offers, offered) = mpsc::channel(OFFERS);
        Membership(Arc::new(Inner {
            keypair: keypair.clone(),
            local: keypair.public().to_peer_id(),
            name: name.to_owned(),
            stored,
            belonging: Mutex::new(belonging),
            changes: watch::Sender::new(Changes { joined: 0, revocations }),
            attention: watch::Sender::new(()),
            offers,
            offered: Mutex::new(Some(offered)),
        }))
    }

    pub(super) fn belonging(&self) -> MutexGuard<'_, Belonging> {
        self.0.belonging.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn stored(&self) -> &Stored {
        &self.0.stored
    }

    /// This node.
    pub fn local(&self) -> PeerId {
        self.0.local
    }

    /// This node's key.
    pub fn keypair(&self) -> &Keypair {
        &self.0.keypair
    }

    /// This node's role in its pool; `None` in an open pool.
    pub fn role(&self) -> Option<Role> {
        self.belonging().chain.as_ref().map(Chain::role)
    }

    /// This node's name, as those who join see it.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Whether the pool is open.
    pub fn is_open(&self) -> bool {
        self.belonging().proofs.is_none()
    }

    /// The pool; `None` if it is open.
    pub fn pool(&self) -> Option<PoolId> {
        self.belonging().pool()
    }

    /// Changes with every pool joined and every revocation.
    pub fn changes(&self) -> watch::Receiver<Changes> {
        self.0.changes.subscribe()
    }

    /// Changes when a person may have something to decide: a node waits, or a member offers to admit this one.
    pub fn attention(&self) -> watch::Receiver<()> {
        self.0.attention.subscribe()
    }

    /// A person may have something to decide.
    pub fn needs_attention(&self) {
        self.0.attention.send_replace(());
    }

    /// The offers of members to admit this node, for the one task that follows them.
    pub fn take_offers(&self) -> Option<mpsc::Receiver<Offer>> {
        self.0.offered.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Passes an offer on; returns whether there was room.
    pub(super) fn pass_on(&self, offer: Offer) -> bool {
        self.0.offers.try_send(offer).is_ok()
    }

    /// What this node proves with that it belongs to its pool.
    pub fn credentials(&self) -> Credentials {
        let mut belonging = self.belonging();
        let chain = belonging.shown(self.0.local);
        match &belonging.signer {
            Signer::Nobody => Credentials::Open,
            Signer::Pool { mac_key, .. } => Credentials::Key { mac_key: *mac_key, chain },
            Signer::Node => Credentials::Certificate { chain },
        }
    }

    /// This node's chain of certificates, renewed when it is due; empty in an open pool.
    pub fn certificate(&self) -> Vec<u8> {
        self.belonging().shown(self.0.local)
    }

    /// Checks the chain of certificates that `owner` shows.
    ///
    /// # Errors
    /// [`NotProven`]; always in an open pool.
    pub fn check(&self, owner: &PeerId, chain: &[u8]) -> std::result::Result<Role, NotProven> {
        let mut belonging = self.belonging();
        let proofs = belonging.proofs.as_mut().ok_or(NotProven::NoCertificate)?;
        proofs.check(owner, chain, unix_s())
    }

    /// Whether `peer` has proved that it belongs to this pool.
    pub fn has_proven(&self, peer: &PeerId) -> bool {
        self.belonging().proofs.as_ref().is_some_and(|proofs| proofs.proven(peer).is_some())
    }

    /// Lets in the connection of `peer`, which has proved that it belongs to `pool`, `None` for an open one.
    ///
    /// # Errors
    /// [`Refusal::Revoked`]; [`Refusal::WrongKey`] if this node has joined another pool meanwhile.
    pub fn let_in(&self, peer: PeerId, pool: Option<PoolId>) -> std::result::Result<(), Refusal> {
        let mut belonging = self.belonging();
        if belonging.pool() != pool {
            return Err(Refusal::WrongKey);
        }
        if belonging.is_revoked(&peer) {
            return Err(Refusal::Revoked);
        }
        let now = Instant::now();
        belonging.arriving.retain(|_, at| now.duration_since(*at) < ARRIVAL);
        belonging.arriving.insert(peer, now);
        belonging.left_behind.remove(&peer);
        Ok(())
    }

    /// Whether `peer` was let in lately, since this node belongs to its pool.
    pub fn is_arriving(&self, peer: &PeerId) -> bool {
        self.belonging().arriving.contains_key(peer)
    }

    /// Whether `peer` was let in just before this node left the pool before.
    pub fn is_left_behind(&self, peer: &PeerId) -> bool {
        self.belonging().left_behind.contains(peer)
    }

    /// Whether a peer, or one that admitted it, is revoked.
    pub fn is_revoked(&self, peer: &PeerId) -> bool {
        self.belonging().is_revoked(peer)
    }

    /// Takes in revocations that a peer told. Those that the pool's key did not sign are none.
    ///
    /// # Errors
    /// `Internal` if they cannot be stored; they count nevertheless, until the node ends.
    pub fn revocations_told(&self, encoded: &[u8]) -> Result<()> {
        let mut belonging = self.belonging();
        let Some(proofs) = &mut belonging.proofs else { return Ok(()) };
        let gone = proofs.revoke(encoded);
        if gone.is_empty() {
            return Ok(());
        }
        let (pool, revocations) = (*proofs.pool(), proofs.encoded_revocations());
        drop(belonging);
        for peer in &gone {
            tracing::warn!(event = "revoked", %peer, "Peer {peer} belongs to the pool no longer (revoked)");
        }
        let kept = self.0.stored.keep_revocations(&pool, &revocations);
        self.0.changes.send_modify(|changes| changes.revocations = revocations);
        kept
    }

    /// Revokes `peer` and everyone that it admitted, for good.
    ///
    /// # Errors
    /// `Unauthorized` if this node does not hold the pool's key; `InvalidInput` for this node itself; `Internal`.
    pub fn revoke(&self, peer: PeerId) -> Result<()> {
        if peer == self.0.local {
            return Err(Error::new(ErrorKind::InvalidInput, "a node cannot revoke itself"));
        }
        let revocation = Revocation { peer, revoked_unix_s: unix_s() };
        let signed = match &self.belonging().signer {
            Signer::Pool { signer, .. } => signer.revoke(revocation).map_err(|why| cannot_issue(&why))?,
            Signer::Nobody | Signer::Node => {
                let message = "only a node that holds the pool's key can revoke: run the command there";
                return Err(Error::new(ErrorKind::Unauthorized, message));
            }
        };
        self.revocations_told(&signed.encode())
    }

    /// Revokes `peer`, which was proven to lie, if this node holds the pool's key. Other members learn of it, and one without the
    /// key leaves it to them: they are told of the evidence.
    ///
    /// # Errors
    /// `Internal` if the revocation cannot be signed or stored.
    pub fn revoke_liar(&self, peer: PeerId) -> Result<()> {
        let is_due = {
            let belonging = self.belonging();
            matches!(belonging.signer, Signer::Pool { .. }) && !belonging.is_revoked(&peer) && peer != self.0.local
        };
        if is_due { self.revoke(peer) } else { Ok(()) }
    }

    /// Issues the certificate of a node that is admitted; returns the pool and the chain.
    pub(super) fn issue_for(
        &self,
        belonging: &mut Belonging,
        peer: PeerId,
        name: &str,
        terms: Terms,
    ) -> Result<(PoolId, Chain)> {
        let pool = belonging.pool().ok_or_else(|| cannot_issue("the pool is open"))?;
        let expires_unix_s = unix_s().saturating_add(terms.member_for_s);
        let certificate = Certificate { peer, role: terms.role, expires_unix_s, serial: rand::random() };
        let chain = match (&belonging.signer, &belonging.chain) {
            (Signer::Pool { signer, .. }, _) => {
                Chain::of_pool(signer.sign(certificate).map_err(|why| cannot_issue(&why))?)
            }
            (Signer::Node, Some(own)) => {
                let signature = self.0.keypair.sign(&certificate.delegated_bytes(&pool));
                let signature = signature.map_err(|error| cannot_issue(&error.to_string()))?;
                let signature = signature.try_into().map_err(|_| cannot_issue("its signature has another length"))?;
                own.extended(SignedCertificate { certificate, signature })
                    .ok_or_else(|| cannot_issue("this node stands too far from the pool's key"))?
            }
            _ => return Err(cannot_issue("this node has no certificate")),
        };
        belonging.admitted.retain(|known| known.peer != peer.to_string());
        if belonging.admitted.len() >= MAX_ADMITTED {
            belonging.admitted.remove(0);
        }
        belonging.strangers.forget(&peer);
        let role = terms.role.name().to_owned();
        belonging.admitted.push(Admitted { peer: peer.to_string(), name: name.to_owned(), role, expires_unix_s });
        self.0.stored.keep_admitted(&pool, &belonging.admitted)?;
        Ok((pool, chain))
    }

    /// Opens an invitation for `uses` nodes, with a token that names `addresses`, and with a PIN if `pin`.
    ///
    /// # Errors
    /// `InvalidInput` in an open pool, or if this node may admit nobody; `Overloaded` if too many are open; `Internal`.
    pub fn invite(
        &self,
        terms: Terms,
        valid_s: u64,
        uses: u32,
        pin: bool,
        addresses: Vec<Multiaddr>,
    ) -> Result<Invited> {
        let mut belonging = self.belonging();
        let pool = self.pool_to_admit_to(&belonging)?;
        let (now, secret) = (unix_s(), rand::random::<[u8; SECRET_BYTES]>());
        let expires_unix_s = now.saturating_add(valid_s);
        let secret_hash = invitation::secret_hash(&secret);
        let new = Invitation { secret_hash, terms, expires_unix_s, uses, used_by: Default::default() };
        let full = |_| {
            let message =
                format!("{} invitations are open already; wait until some have expired", invitation::MAX_INVITATIONS);
            Error::new(ErrorKind::Overloaded, message)
        };
        belonging.invitations.add(new, now).map_err(full)?;
        self.0.stored.keep_invitations(&pool, belonging.invitations.open())?;
        let pin = pin.then(|| {
            let digits = format!("{:06}", rand::random_range(0..1_000_000_u32));
            belonging.invitations.set_pin(digits.clone(), terms, now);
            digits
        });
        let token = Token { member: self.0.local, pool, role: terms.role, expires_unix_s, secret, addresses };
        Ok(Invited { token: token.to_text(), pin, expires_unix_s })
    }

    /// Whether this node may admit others.
    ///
    /// # Errors
    /// `InvalidInput` in an open pool; `Unauthorized` if this node is a client or stands too far from the pool's key.
    pub fn may_admit(&self) -> Result<()> {
        self.pool_to_admit_to(&self.belonging()).map(drop)
    }

    fn pool_to_admit_to(&self, belonging: &Belonging) -> Result<PoolId> {
        let pool = belonging.pool().ok_or_else(|| {
            let message = "this node runs with --open: whoever is on the network is in, there is nobody to invite";
            Error::new(ErrorKind::InvalidInput, message)
        })?;
        if !belonging.may_admit() {
            let message = "this node may not admit others: it is a client, or stands too far from the pool's key; run the command on another member";
            return Err(Error::new(ErrorKind::Unauthorized, message));
        }
        Ok(pool)
    }

    /// The owner accepts the waiting node `peer`, whose screen shows `digits`.
    ///
    /// # Errors
    /// `NotFound` if it does not wait, `VerificationFailed` for other digits; those of [`Membership::invite`].
    pub fn accept(&self, peer: &PeerId, digits: SixDigits, terms: Terms) -> Result<()> {
        let mut belonging = self.belonging();
        self.pool_to_admit_to(&belonging)?;
        let Some(pending) = &mut belonging.pending else { return Ok(()) };
        pending.accept(peer, digits, terms, unix_s()).map_err(|why| match why {
            NotAccepted::NotPending => {
                Error::new(ErrorKind::NotFound, format!("peer {peer} does not wait to be accepted"))
            }
            NotAccepted::OtherDigits => {
                let message = format!(
                    "peer {peer} shows other digits here: somebody may stand between the two nodes; it was turned away"
                );
                Error::new(ErrorKind::VerificationFailed, message)
            }
        })
    }

    /// Turns a waiting node away, or one of another pool that was met; returns whether it waited.
    pub fn dismiss(&self, peer: &PeerId) -> bool {
        let mut belonging = self.belonging();
        let was_stranger = belonging.strangers.dismiss(peer);
        let waited = belonging.pending.as_mut().is_some_and(|pending| pending.dismiss(peer));
        drop(belonging);
        self.needs_attention();
        was_stranger || waited
    }

    /// Whether this node may join another pool.
    ///
    /// # Errors
    /// `InvalidInput` if it runs with `--open`.
    pub fn may_join(&self) -> Result<()> {
        let message = "this node runs with --open: start it without, then it can join a pool";
        if self.is_open() { Err(Error::new(ErrorKind::InvalidInput, message)) } else { Ok(()) }
    }

    /// Makes this node a member of the pool that `grant` admits it to; members are at `addresses`. On disk when it returns.
    ///
    /// # Errors
    /// `VerificationFailed` if the grant does not hold; `Internal` if it cannot be stored.
    pub fn join(&self, grant: Grant, addresses: Vec<Multiaddr>) -> Result<Joined> {
        let refused = |why: &dyn std::fmt::Display| {
            Error::new(ErrorKind::VerificationFailed, format!("the member issued no valid certificate: {why}"))
        };
        let chain = Chain::parse(&grant.chain).map_err(|error| refused(&error))?;
        let proven = chain.verify(&self.0.local, &grant.pool, unix_s(), |_| false).map_err(|error| refused(&error))?;
        let kept = KeptCertificate { pool: grant.pool, chain, member: grant.name, addresses };
        self.0.stored.keep_certificate(&kept)?;
        let KeptCertificate { pool, chain, member, .. } = kept;
        let mut new = Belonging::new(self.0.local, pool, Signer::Node, chain, member.clone(), &self.0.stored)?;
        let revocations = new.proofs.as_ref().map(Proofs::encoded_revocations).unwrap_or_default();
        {
            let mut belonging = self.belonging();
            // Whoever is on the network is so for the new pool, too.
            new.strangers = std::mem::take(&mut belonging.strangers);
            let before = std::mem::replace(&mut *belonging, new);
            belonging.left_behind = before.arriving.into_keys().collect();
        }
        let role = proven.role;
        tracing::info!(event = "joined", %pool, member, role = role.name(), "Joined the pool of {member} as a {}", role.name());
        self.0.changes.send_modify(|changes| {
            changes.joined += 1;
            changes.revocations = revocations;
        });
        Ok(Joined { pool, member, role })
    }
}

impl Belonging {
    fn new(
        local: PeerId,
        pool: PoolId,
        signer: Signer,
        chain: Chain,
        admitted_at: String,
        stored: &Stored,
    ) -> Result<Belonging> {
        let mut proofs = Proofs::new(pool);
        proofs.revoke(&stored.revocations(&pool)?);
        Ok(Belonging {
            signer,
            proofs: Some(proofs),
            chain: Some(chain),
            admitted_at,
            invitations: Invitations::stored(stored.invitations(&pool)),
            pending: Some(Pending::new(local, pool)),
            strangers: Strangers::default(),
            admitted: stored.admitted(&pool),
            arriving: BTreeMap::new(),
            left_behind: BTreeSet::new(),
        })
    }

    pub(super) fn pool(&self) -> Option<PoolId> {
        self.proofs.as_ref().map(|proofs| *proofs.pool())
    }

    pub(super) fn is_revoked(&self, peer: &PeerId) -> bool {
        self.proofs.as_ref().is_some_and(|proofs| proofs.is_revoked(peer))
    }

    /// Whether `peer`, which belongs to another pool, may be admitted to this one.
    pub(super) fn may_be_stranger(&self, peer: &PeerId) -> bool {
        self.proofs.as_ref().is_some_and(|proofs| proofs.proven(peer).is_none() && !proofs.is_revoked(peer))
    }

    pub(super) fn may_admit(&self) -> bool {
        self.chain.as_ref().is_some_and(Chain::may_admit)
    }

    /// The encoded chain of the node `local`, renewed when it is due.
    fn shown(&mut self, local: PeerId) -> Vec<u8> {
        let now = unix_s();
        if let Signer::Pool { signer, role, issued_unix_s, .. } = &mut self.signer
            && now.abs_diff(*issued_unix_s) >= RENEWED_AFTER.as_secs()
        {
            match issue_own(signer, local, *role, now) {
                Ok(renewed) => (self.chain, *issued_unix_s) = (Some(renewed), now),
                Err(error) => tracing::warn!(event = "certificate_not_renewed", %error),
            }
        }
        self.chain.as_ref().map(Chain::encode).unwrap_or_default()
    }
}

/// The certificate that the holder of the pool's key issues for itself.
fn issue_own(signer: &PoolSigner, local: PeerId, role: Role, now_unix_s: u64) -> Result<Chain> {
    let expires_unix_s = now_unix_s.saturating_add(VALIDITY.as_secs());
    let certificate = Certificate { peer: local, role, expires_unix_s, serial: rand::random() };
    Ok(Chain::of_pool(signer.sign(certificate).map_err(|why| cannot_issue(&why))?))
}

fn cannot_issue(why: &str) -> Error {
    Error::new(ErrorKind::Internal, format!("cannot issue a certificate: {why}"))
}

/// Seconds since 1970.
pub fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// The membership of a node with the data directory `data_dir`: what it joined, or its own pool. A node that `rejoins` is about to
/// join a pool: it is in its own one until then if its certificate does not count any more.
///
/// # Errors
/// Those of [`Membership::member`], [`Membership::holder`], [`KeptCertificate::load`]; `InvalidInput` for a damaged `pool.key`.
pub fn own_or_joined(
    keypair: &Keypair,
    role: Role,
    data_dir: &Path,
    name: &str,
    stored: Stored,
    rejoins: bool,
) -> Result<(Membership, Vec<Multiaddr>)> {
    if let Some(kept) = KeptCertificate::load(data_dir)? {
        let addresses = kept.addresses.clone();
        match Membership::member(keypair, kept, name, stored.clone()) {
            Ok(membership) => return Ok((membership, addresses)),
            Err(error) if rejoins && error.kind() == ErrorKind::InvalidInput => {
                tracing::info!(event = "certificate_over", "{error}");
            }
            Err(error) => return Err(error),
        }
    }
    let key = PoolKey::load_or_create(&data_dir.join("pool.key"))
        .map_err(|error| Error::new(ErrorKind::InvalidInput, error.to_string()))?;
    Ok((Membership::holder(keypair, &key, role, name, stored)?, Vec::new()))
}

#[cfg(test)]
#[path = "handle_tests.rs"]
mod tests;
