//! What the owner of a node does about belonging: lists members, invites, joins, accepts and revokes. It carries out what
//! `membership` decides over the network, and knows names from adverts. Nothing is decided here but where to ask.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};
use pangea_client::{Error, ErrorKind, JoinedPool, MemberStatus, MembersStatus, Result};
use pangea_control::membership::join::Grant;
use pangea_control::membership::pending::WAIT_S;
use pangea_control::membership::{Matter, Question, Role, SixDigits, Terms, Token, invitation};
use tokio::sync::watch;
use tokio::time::Instant;

use super::Pool;
use crate::membership::{Invited, Joined, Membership, Offer};
use crate::net::joining::{Compared, Doorstep, is_joinable};
use crate::net::{Network, Unconnected, addresses};

/// Nodes that one command asks. With a PIN, each is a stranger that may guess once: 8 in 10⁶ for all of them.
const MAX_ASKED: usize = 8;

/// Addresses at which this node looks for one that it introduces itself to.
const MAX_TRIED: usize = 3;

/// Time for mDNS to announce the members on the local network to a node that has just started.
const DISCOVERY: Duration = Duration::from_secs(5);

/// Interval of looking again while nobody is found, and of asking whether this node has been accepted.
const AGAIN: Duration = Duration::from_millis(500);

/// Time for the members of a pool that was joined to connect.
const CONNECT: Duration = Duration::from_secs(5);

/// Time for a node of another pool to compare digits once it has taken an offer.
const COMPARE: Duration = Duration::from_secs(10);

/// Time in which a member that compares digits with this node can accept it.
const ACCEPT: Duration = Duration::from_secs(WAIT_S);

/// State of a node that can be admitted.
const PENDING: &str = "pending";

/// State of a member that may admit this node.
const COMPARING: &str = "comparing";

/// Terms of a node that is admitted without others being named: a member for ten years.
const DEFAULT_TERMS: Terms = Terms { role: Role::Member, member_for_s: 3650 * 24 * 3600 };

/// The handle on belonging. Clones share it.
#[derive(Clone)]
pub struct Members {
    membership: Membership,
    network: Network,
    pool: Pool,
    /// Members that compare digits with this node, by peer id; at most [`MAX_ASKED`].
    comparing: Arc<Mutex<BTreeMap<PeerId, Comparing>>>,
}

/// A member that compares digits with this node.
#[derive(Clone, Debug)]
struct Comparing {
    compared: Compared,
    since: Instant,
    /// Whether the member offered it; otherwise this node's owner asked for it.
    is_offer: bool,
}

impl Members {
    /// The handle of a running node.
    pub fn new(membership: Membership, network: Network, pool: Pool) -> Members {
        Members { membership, network, pool, comparing: Arc::default() }
    }

    /// Bytes sent to `peer` and received from it over its current connection.
    pub fn traffic(&self, peer: &PeerId) -> (u64, u64) {
        let traffic = self.network.traffic(peer);
        (traffic.sent_bytes, traffic.received_bytes)
    }

    /// Who belongs to the pool, and who waits to be accepted.
    pub fn list(&self) -> MembersStatus {
        let (view, overview) = (self.pool.view().borrow().clone(), self.membership.overview());
        let local = self.membership.local();
        let name_of = |peer: &PeerId| view.advert(peer).map(|advert| advert.name.clone());
        let mut members = vec![MemberStatus {
            peer: local.to_string(),
            name: self.membership.name().to_owned(),
            state: "this node".to_owned(),
            role: overview.role.map_or("member", |role| role.name()).to_owned(),
            admitted_by: overview.admitted_at.clone(),
            ..MemberStatus::default()
        }];
        for known in &overview.members {
            let state = match known.revoked {
                true => "revoked",
                false if view.connected.contains(&known.peer) => "connected",
                false => "away",
            };
            let by = known.admitted_by.as_ref();
            members.push(MemberStatus {
                peer: known.peer.to_string(),
                name: name_of(&known.peer).unwrap_or_else(|| known.name.clone()),
                state: state.to_owned(),
                role: known.role.map_or("", |role| role.name()).to_owned(),
                admitted_by: by.map_or_else(String::new, |by| name_of(by).unwrap_or_else(|| by.to_string())),
                expires_unix_s: known.expires_unix_s,
                digits: String::new(),
            });
        }
        let waiting = |peer: &PeerId, name: &str, state: &str, digits: String| MemberStatus {
            peer: peer.to_string(),
            name: name.to_owned(),
            state: state.to_owned(),
            digits,
            ..MemberStatus::default()
        };
        let pending = overview.pending.iter();
        members.extend(pending.map(|node| waiting(&node.peer, &node.name, PENDING, node.digits.to_string())));
        let comparing = self.all_comparing();
        for Comparing { compared, .. } in &comparing {
            members.push(waiting(&compared.member, &compared.name, COMPARING, compared.digits.to_string()));
        }
        for stranger in &overview.strangers {
            let compares = comparing.iter().any(|comparing| comparing.compared.member == stranger.peer);
            if !compares && !view.connected.contains(&stranger.peer) {
                members.push(waiting(&stranger.peer, &stranger.name, PENDING, String::new()));
            }
        }
        MembersStatus {
            pool: overview.pool.map_or_else(String::new, |pool| pool.to_string()),
            open: overview.pool.is_none(),
            holds_key: overview.holds_key,
            members,
        }
    }

    /// The one listed node that `named` names, by name, peer id or the end of a peer id, among those in one of `states`.
    fn find(&self, named: &str, states: &[&str]) -> Result<MemberStatus> {
        let listed = self.list().members.into_iter().filter(|member| states.contains(&member.state.as_str()));
        let is_named = |member: &MemberStatus| {
            member.name == named || member.peer == named || (named.len() >= 4 && member.peer.ends_with(named))
        };
        let found: Vec<MemberStatus> = listed.filter(is_named).collect();
        match &found[..] {
            [one] => Ok(one.clone()),
            [] => {
                Err(Error::new(ErrorKind::NotFound, format!("no node is called {named} (see `pangea members list`)")))
            }
            several => {
                let peers: Vec<&str> = several.iter().map(|member| member.peer.as_str()).collect();
                let message =
                    format!("{} nodes are called {named}; use a peer id: {}", several.len(), peers.join(", "));
                Err(Error::new(ErrorKind::InvalidInput, message))
            }
        }
    }

    /// Invites up to `uses` nodes with a token that is valid for `valid`, and one with a PIN if `pin`.
    ///
    /// # Errors
    /// Those of [`Membership::invite`]; `InvalidInput` if this node does not listen on TCP.
    pub async fn invite(&self, terms: Terms, valid: Duration, uses: u32, pin: bool) -> Result<Invited> {
        let interfaces = addresses::interfaces();
        let order = addresses::by_reach(&interfaces);
        let mut listening: Vec<Multiaddr> = self.network.listen_addresses().await;
        listening.retain(is_joinable);
        let rank = |address: &Multiaddr| {
            let ip = addresses::ip_of(address);
            ip.and_then(|ip| order.iter().position(|known| *known == ip)).unwrap_or(order.len())
        };
        listening.sort_by_key(rank);
        listening.truncate(invitation::MAX_TOKEN_ADDRESSES);
        if listening.is_empty() {
            return Err(listens_nowhere());
        }
        let plain = listening.iter().map(without_peer).collect();
        self.membership.invite(terms, valid.as_secs(), uses, pin, plain)
    }

    /// Joins the pool of `token`; members are reached when it returns, or the time for that has passed.
    ///
    /// # Errors
    /// Why the member does not admit this node; `Unavailable` if it cannot be reached.
    pub async fn join_with_token(&self, token: &Token) -> Result<JoinedPool> {
        let known = members_of(token);
        if self.membership.pool() == Some(token.pool) {
            self.network.keep(known).await;
            let overview = self.membership.overview();
            let role = overview.role.unwrap_or(token.role);
            let joined = Joined { pool: token.pool, member: overview.admitted_at, role };
            return Ok(self.connected(joined).await);
        }
        self.membership.may_join()?;
        self.may_become(token.role)?;
        let grant = ask_with_token(&self.membership, token).await?;
        self.become_member(grant, known).await
    }

    /// Joins the pool of the member that has `pin` open: one at `addresses`, or on the local network.
    ///
    /// # Errors
    /// `NotFound` if no member has a PIN open; why the member does not admit this node.
    pub async fn join_with_pin(&self, pin: &str, addresses: &[Multiaddr]) -> Result<JoinedPool> {
        self.membership.may_join()?;
        let (grant, member) = ask_with_pin(&self.membership, &self.network, pin, addresses).await?;
        self.become_member(grant, vec![member]).await
    }

    /// Asks the members at `addresses`, or on the local network, to admit this node; returns those that show digits now. A
    /// member that was asked lately shows the same digits as before.
    ///
    /// # Errors
    /// `NotFound` if there is nobody to ask, or why nobody took this node in.
    pub async fn ask(&self, addresses: &[Multiaddr]) -> Result<Vec<Compared>> {
        self.membership.may_join()?;
        let until = Instant::now() + DISCOVERY;
        let mut refusal = None;
        self.forget_ended().await;
        loop {
            for (peer, address) in candidates(&self.network, addresses).await {
                let is_asked =
                    |known: &Comparing| known.compared.address == address || Some(known.compared.member) == peer;
                if self.comparing(|comparing| comparing.len() >= MAX_ASKED || comparing.values().any(is_asked)) {
                    continue;
                }
                let attempt = async {
                    let doorstep = Doorstep::connect(&self.membership, &address, peer).await?;
                    doorstep.compare(self.membership.name()).await
                };
                match attempt.await {
                    Ok(compared) => self.compares(compared, false),
                    Err(error) => keep_worst(&mut refusal, error),
                }
            }
            let asked: Vec<Compared> = self.all_comparing().into_iter().map(|known| known.compared).collect();
            if !asked.is_empty() {
                return Ok(asked);
            }
            if Instant::now() >= until {
                return Err(refusal.unwrap_or_else(|| nobody_found("on the local network")));
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Waits until `member`, whose screen shows `digits`, has accepted this node, and joins its pool.
    ///
    /// # Errors
    /// `NotFound` if it was not asked, `VerificationFailed` for other digits, `DeadlineExceeded`; why the member does not
    /// admit this node.
    pub async fn await_acceptance(&self, member: PeerId, digits: SixDigits, time: Duration) -> Result<JoinedPool> {
        let compared = self.comparing(|comparing| Some(comparing.get(&member)?.compared.clone()));
        let compared = compared.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("peer {member} was not asked; run `pangea join` again"))
        })?;
        if compared.digits != digits {
            self.comparing(|comparing| drop(comparing.remove(&member)));
            let message = format!(
                "this node and {} show other digits: somebody may stand between them; nothing was joined",
                compared.name
            );
            return Err(Error::new(ErrorKind::VerificationFailed, message));
        }
        let until = Instant::now() + time;
        loop {
            let doorstep = Doorstep::connect(&self.membership, &compared.address, Some(member)).await;
            let answer = match doorstep {
                Ok(doorstep) => doorstep.poll().await,
                Err(error) => Err(error),
            };
            match answer {
                Ok(Some(grant)) if grant.pool == compared.pool => {
                    self.comparing(BTreeMap::clear);
                    let address = compared.address.with(Protocol::P2p(member));
                    return self.become_member(grant, vec![address]).await;
                }
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Unavailable => {
                    tracing::debug!(event = "member_not_asked", peer = %member, %error);
                }
                Err(error) => {
                    self.comparing(|comparing| drop(comparing.remove(&member)));
                    return Err(error);
                }
            }
            if Instant::now() >= until {
                let message = format!("{} has not accepted this node in time; run `pangea join` again", compared.name);
                return Err(Error::new(ErrorKind::DeadlineExceeded, message));
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Accepts the waiting node `named`, whose screen shows `digits`.
    ///
    /// # Errors
    /// Those of [`Membership::accept`]; `NotFound` or `InvalidInput` if `named` names no waiting node, or several.
    pub fn accept(&self, named: &str, digits: SixDigits, terms: Terms) -> Result<MemberStatus> {
        let node = self.find(named, &[PENDING])?;
        if node.digits.is_empty() {
            let message = format!(
                "{named} has not compared digits with this node yet: run `pangea members accept {named}` without digits first"
            );
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
        self.membership.accept(&parsed(&node.peer)?, digits, terms)?;
        self.membership.needs_attention();
        Ok(node)
    }

    /// Has the waiting node `named` compare digits with this member, unless it has done so; returns it with its digits.
    ///
    /// # Errors
    /// `NotFound` or `InvalidInput` if `named` names no waiting node, or several; those of [`Membership::may_admit`];
    /// `Unavailable` or `DeadlineExceeded` if the node does not answer; why it follows no offer.
    pub async fn compare(&self, named: &str) -> Result<MemberStatus> {
        self.membership.may_admit()?;
        let node = self.find(named, &[PENDING])?;
        if !node.digits.is_empty() {
            return Ok(node);
        }
        let peer = parsed(&node.peer)?;
        let by_itself = |why: &dyn std::fmt::Display| {
            Error::new(ErrorKind::Unavailable, format!("{named} cannot be asked ({why}): run `pangea join` on it"))
        };
        let address = match self.membership.address_of_stranger(&peer) {
            Some(address) => Some(address),
            None => self.address_of(&peer).await,
        };
        let address = address.ok_or_else(|| by_itself(&"its address is not known"))?;
        let port = self.port().await.ok_or_else(listens_nowhere)?;
        let mut attention = self.membership.attention();
        attention.mark_unchanged();
        let doorstep = Doorstep::connect(&self.membership, &address, Some(peer)).await;
        doorstep.map_err(|error| by_itself(&error))?.offer(self.membership.name(), port).await?;
        let compared = async {
            loop {
                if let Ok(node) = self.find(&node.peer, &[PENDING])
                    && !node.digits.is_empty()
                {
                    return node;
                }
                // Never fails: the sender is in `self.membership`.
                let _ = attention.changed().await;
            }
        };
        let compared = tokio::time::timeout(COMPARE, compared).await;
        compared.map_err(|_| {
            let message =
                format!("{named} took the offer but does not compare digits; see its log, or run `pangea join` on it");
            Error::new(ErrorKind::DeadlineExceeded, message)
        })
    }

    /// Introduces this node to the node `peer` of another pool, at `host`, wherever it may listen.
    pub(super) async fn introduce(&self, peer: PeerId, host: Option<IpAddr>) {
        let port = self.port().await.unwrap_or_default();
        let is_likely = |node: &Unconnected| node.peer.is_none_or(|known| known == peer);
        let mut nodes: Vec<Unconnected> = self.network.unconnected().await.into_iter().filter(is_likely).collect();
        // An address that is known to be its own comes first.
        nodes.sort_by_key(|node| node.peer.is_none());
        let addresses = nodes.iter().filter_map(|node| node.addresses.iter().find(|address| is_joinable(address)));
        for address in addresses.take(MAX_TRIED) {
            let address = without_peer(address);
            let attempt = async {
                let doorstep = Doorstep::connect(&self.membership, &address, Some(peer)).await?;
                doorstep.introduce(self.membership.name(), port).await
            };
            match attempt.await {
                Ok(name) => return self.membership.met_stranger(peer, &name, host, Some(address)),
                Err(error) => tracing::debug!(event = "not_introduced", %peer, %error),
            }
        }
    }

    /// Follows a member's offer: compares digits with it and says so in the log.
    pub(super) async fn follow(&self, offer: Offer) {
        let Offer { member, address } = offer;
        self.forget_ended().await;
        let known = self.comparing(|comparing| comparing.get(&member).map(|known| known.compared.clone()));
        let compared = match known {
            Some(compared) => Ok(compared),
            None => match Doorstep::connect(&self.membership, &address, Some(member)).await {
                Ok(doorstep) => doorstep.compare(self.membership.name()).await,
                Err(error) => Err(error),
            },
        };
        match compared {
            Ok(compared) => {
                let (name, digits) = (&compared.name, compared.digits);
                tracing::info!(
                    event = "offer", peer = %member, name, %digits,
                    "Peer {member} ({name}) offers to admit this node to its pool: if its screen shows {digits} too, run: pangea join --digits {}",
                    digits.to_string().replace(' ', "")
                );
                self.compares(compared, true);
                self.membership.needs_attention();
            }
            Err(error) => {
                tracing::info!(event = "offer_failed", peer = %member, %error, "cannot follow an offer of peer {member}: {error}");
            }
        }
    }

    /// Changes when a person may have something to decide.
    pub fn attention(&self) -> watch::Receiver<()> {
        self.membership.attention()
    }

    /// What a person may have to decide.
    pub fn questions(&self) -> Vec<Question> {
        let question = |node: &MemberStatus| {
            let peer: PeerId = node.peer.parse().ok()?;
            let digits = SixDigits::parse(&node.digits);
            let is_offer = || self.comparing(|comparing| comparing.get(&peer).is_some_and(|known| known.is_offer));
            let matter = match (node.state.as_str(), digits) {
                (PENDING, Some(digits)) => Matter::Admit(digits),
                (PENDING, None) if !node.name.is_empty() => Matter::Compare,
                (COMPARING, Some(digits)) if is_offer() => Matter::Join(digits),
                _ => return None,
            };
            Some(Question { peer, name: node.name.clone(), matter })
        };
        let may_admit = self.membership.may_admit().is_ok();
        let questions = self.list().members.iter().filter_map(question).collect::<Vec<_>>();
        questions.into_iter().filter(|question| may_admit || matches!(question.matter, Matter::Join(_))).collect()
    }

    /// The person says yes to a question. Takes until the other side has done its part.
    ///
    /// # Errors
    /// Those of [`Members::await_acceptance`], [`Members::accept`] and [`Members::compare`].
    pub async fn agree(&self, question: &Question) -> Result<()> {
        match question.matter {
            Matter::Join(digits) => self.await_acceptance(question.peer, digits, ACCEPT).await.map(drop),
            Matter::Admit(digits) => self.accept(&question.peer.to_string(), digits, DEFAULT_TERMS).map(drop),
            Matter::Compare => self.compare(&question.peer.to_string()).await.map(drop),
        }
    }

    /// The person says no to a question.
    pub fn decline(&self, question: &Question) {
        match question.matter {
            Matter::Join(_) => self.comparing(|comparing| drop(comparing.remove(&question.peer))),
            Matter::Admit(_) | Matter::Compare => drop(self.membership.dismiss(&question.peer)),
        }
    }

    /// The TCP port at which this node answers; `None` if it listens on none.
    async fn port(&self) -> Option<u16> {
        let port = |address: &Multiaddr| {
            address.iter().find_map(|part| match part {
                Protocol::Tcp(port) => Some(port),
                _ => None,
            })
        };
        self.network.listen_addresses().await.iter().filter(|address| is_joinable(address)).find_map(port)
    }

    /// Where a node that this one is not connected to can be asked.
    async fn address_of(&self, peer: &PeerId) -> Option<Multiaddr> {
        let known = candidates(&self.network, &[]).await;
        known.into_iter().find(|(of, _)| of.as_ref() == Some(peer)).map(|(_, address)| address)
    }

    /// Turns the waiting node `named` away, or revokes the member, and whoever it admitted, for good. Says which.
    ///
    /// # Errors
    /// Those of [`Membership::revoke`] and [`Members::accept`].
    pub fn revoke(&self, named: &str) -> Result<MemberStatus> {
        let states = [PENDING, "connected", "away", "this node"];
        // A peer that this node has never seen may be revoked too, by its id.
        let stranger = |error: Error| match named.parse::<PeerId>() {
            Ok(_) => Ok(MemberStatus { peer: named.to_owned(), state: "away".to_owned(), ..MemberStatus::default() }),
            Err(_) => Err(error),
        };
        let node = self.find(named, &states).or_else(stranger)?;
        let peer = parsed(&node.peer)?;
        if node.state == PENDING {
            self.membership.dismiss(&peer);
        } else {
            self.membership.revoke(peer)?;
        }
        Ok(node)
    }

    fn comparing<T>(&self, work: impl FnOnce(&mut BTreeMap<PeerId, Comparing>) -> T) -> T {
        let mut comparing = self.comparing.lock().unwrap_or_else(PoisonError::into_inner);
        comparing.retain(|_, known| known.since.elapsed() < ACCEPT);
        work(&mut comparing)
    }

    fn all_comparing(&self) -> Vec<Comparing> {
        self.comparing(|comparing| comparing.values().cloned().collect())
    }

    /// Remembers a member that compares digits with this node.
    fn compares(&self, compared: Compared, is_offer: bool) {
        let (member, since) = (compared.member, Instant::now());
        self.comparing(|comparing| {
            if comparing.len() < MAX_ASKED || comparing.contains_key(&member) {
                let is_offer = is_offer || comparing.get(&member).is_some_and(|known| known.is_offer);
                comparing.insert(member, Comparing { compared, since, is_offer });
            }
        });
    }

    /// Forgets the members that do not wait for this node's owner any more.
    async fn forget_ended(&self) {
        for Comparing { compared, .. } in self.all_comparing() {
            let still = match Doorstep::connect(&self.membership, &compared.address, Some(compared.member)).await {
                Ok(doorstep) => doorstep.poll().await.is_ok(),
                Err(_) => false,
            };
            if !still {
                self.comparing(|comparing| drop(comparing.remove(&compared.member)));
            }
        }
    }

    /// Whether this node, as it was started, may have `role`.
    ///
    /// # Errors
    /// `InvalidInput` for a node that computes for others, which a client does not, with what to do.
    fn may_become(&self, role: Role) -> Result<()> {
        if role != Role::Client || !self.pool.view().borrow().own.works {
            return Ok(());
        }
        let message = "the invitation is for a client, which uses the pool and computes for nobody: start the node with \
                       `pangea node --join TOKEN` or `pangea node --client --join TOKEN`, or ask for an invitation of a member";
        Err(Error::new(ErrorKind::InvalidInput, message))
    }

    async fn become_member(&self, grant: Grant, known: Vec<Multiaddr>) -> Result<JoinedPool> {
        let role = grant.role().map_err(|error| {
            Error::new(ErrorKind::VerificationFailed, format!("the member issued no valid certificate: {error}"))
        })?;
        self.may_become(role)?;
        let (membership, addresses) = (self.membership.clone(), known.clone());
        let joining = tokio::task::spawn_blocking(move || membership.join(grant, addresses)).await;
        let joined = joining.map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))??;
        self.network.keep(known).await;
        Ok(self.connected(joined).await)
    }

    /// Waits a while until a member is connected.
    async fn connected(&self, joined: Joined) -> JoinedPool {
        let mut view = self.pool.view();
        let membership = self.membership.clone();
        let is_member = move |peer: &PeerId| membership.has_proven(peer);
        let some = view.wait_for(|view| view.connected.iter().any(&is_member) && !view.nodes.is_empty());
        let _ = tokio::time::timeout(CONNECT, some).await;
        let members = view.borrow().connected.len();
        JoinedPool {
            pool: joined.pool.to_string(),
            member: joined.member,
            role: joined.role.name().to_owned(),
            connected: members as u32,
        }
    }
}

/// Where to ask: the addresses that were named, or else those of nodes that this one is not connected to.
async fn candidates(network: &Network, named: &[Multiaddr]) -> Vec<(Option<PeerId>, Multiaddr)> {
    if !named.is_empty() {
        let split = |address: &Multiaddr| (pangea_control::net::dial::peer_of(address), without_peer(address));
        return named.iter().map(split).collect();
    }
    let first = |node: Unconnected| {
        let address = node.addresses.iter().find(|address| is_joinable(address))?;
        Some((node.peer, without_peer(address)))
    };
    network.unconnected().await.into_iter().filter_map(first).collect()
}

/// Asks the member that has `pin` open to admit this node: one at `addresses`, or on the local network. Returns its grant and where
/// it is.
///
/// # Errors
/// `NotFound` if no member has a PIN open; why the member does not admit this node.
pub async fn ask_with_pin(
    membership: &Membership,
    network: &Network,
    pin: &str,
    addresses: &[Multiaddr],
) -> Result<(Grant, Multiaddr)> {
    let until = Instant::now() + DISCOVERY;
    let mut asked = BTreeSet::new();
    let mut refusal = None;
    loop {
        for (peer, address) in candidates(network, addresses).await {
            if asked.len() >= MAX_ASKED || asked.contains(&address) {
                continue;
            }
            let doorstep = match Doorstep::connect(membership, &address, peer).await {
                Ok(doorstep) => doorstep,
                Err(error) => {
                    keep_worst(&mut refusal, error);
                    continue;
                }
            };
            let member = doorstep.member();
            match doorstep.with_pin(membership.name(), pin).await {
                Ok(grant) => return Ok((grant, address.with(Protocol::P2p(member)))),
                Err(error) => {
                    // A node that has no PIN open may have one in a moment, and has learned nothing. Every other one may have
                    // guessed once, and is not asked again.
                    if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidInput) {
                        asked.insert(address);
                    }
                    keep_worst(&mut refusal, error);
                }
            }
        }
        let is_final = refusal.as_ref().is_some_and(|error: &Error| error.kind() == ErrorKind::Unauthorized);
        if is_final || Instant::now() >= until {
            break;
        }
        tokio::time::sleep(AGAIN).await;
    }
    Err(refusal.unwrap_or_else(|| nobody_found("with an open PIN")))
}

/// Asks the member of `token` to admit this node, at each of its addresses in turn.
///
/// # Errors
/// Why the member does not admit this node; `Unavailable` if it cannot be reached.
pub async fn ask_with_token(membership: &Membership, token: &Token) -> Result<Grant> {
    let mut failure = Error::new(ErrorKind::InvalidInput, "the token names no address");
    for address in &token.addresses {
        let attempt = async {
            let doorstep = Doorstep::connect(membership, address, Some(token.member)).await?;
            doorstep.with_token(membership.name(), token).await
        };
        match attempt.await {
            Err(error) if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::VerificationFailed) => {
                failure = error;
            }
            answer => return answer,
        }
    }
    Err(failure)
}

/// Where the member of `token` listens, with its peer id.
pub fn members_of(token: &Token) -> Vec<Multiaddr> {
    token.addresses.iter().map(|address| address.clone().with(Protocol::P2p(token.member))).collect()
}

fn without_peer(address: &Multiaddr) -> Multiaddr {
    address.iter().filter(|part| !matches!(part, Protocol::P2p(_))).collect()
}

fn parsed(peer: &str) -> Result<PeerId> {
    peer.parse().map_err(|_| Error::new(ErrorKind::Internal, format!("{peer} is not a peer id")))
}

/// Keeps what says most of several refusals: that a member turned this node down rather than that another one had no PIN.
fn keep_worst(kept: &mut Option<Error>, error: Error) {
    let rank = |error: &Error| match error.kind() {
        ErrorKind::Unauthorized => 3,
        ErrorKind::Overloaded => 2,
        ErrorKind::NotFound => 1,
        _ => 0,
    };
    if kept.as_ref().is_none_or(|kept| rank(&error) > rank(kept)) {
        *kept = Some(error);
    }
}

fn listens_nowhere() -> Error {
    let message = "this node does not listen on TCP, where nodes join: start it with --listen /ip4/0.0.0.0/tcp/7777";
    Error::new(ErrorKind::InvalidInput, message)
}

fn nobody_found(what: &str) -> Error {
    let message = format!(
        "no member {what} was found: is it running, on the same network, and does `pangea node` run here without --no-mdns? \
         Name it with --address HOST:PORT, or use a token"
    );
    Error::new(ErrorKind::NotFound, message)
}
