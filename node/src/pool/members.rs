//! What the owner of a node does about belonging: lists members, invites, joins, accepts and revokes. It carries out what
//! `membership` decides over the network, and knows names from adverts. Nothing is decided here but where to ask.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};
use pangea_client::{Error, ErrorKind, JoinedPool, MemberStatus, MembersStatus, Result};
use pangea_control::membership::join::Grant;
use pangea_control::membership::{SixDigits, Terms, Token, invitation};
use tokio::time::Instant;

use super::Pool;
use crate::membership::{Invited, Joined, Membership};
use crate::net::joining::{Compared, Doorstep, is_joinable};
use crate::net::{Network, addresses};

/// Nodes that one command asks. With a PIN, each is a stranger that may guess once: 8 in 10⁶ for all of them.
const MAX_ASKED: usize = 8;

/// Time for mDNS to announce the members on the local network to a node that has just started.
const DISCOVERY: Duration = Duration::from_secs(5);

/// Interval of looking again while nobody is found, and of asking whether this node has been accepted.
const AGAIN: Duration = Duration::from_millis(500);

/// Time for the members of a pool that was joined to connect.
const CONNECT: Duration = Duration::from_secs(5);

/// The handle on belonging. Clones share it.
#[derive(Clone)]
pub struct Members {
    membership: Membership,
    network: Network,
    pool: Pool,
    /// Members that compare digits with this node, by peer id; at most [`MAX_ASKED`].
    comparing: Arc<Mutex<BTreeMap<PeerId, Compared>>>,
}

impl Members {
    /// The handle of a running node.
    pub fn new(membership: Membership, network: Network, pool: Pool) -> Members {
        Members { membership, network, pool, comparing: Arc::default() }
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
        let pending = overview.pending.iter().map(|node| MemberStatus {
            peer: node.peer.to_string(),
            name: node.name.clone(),
            state: "pending".to_owned(),
            digits: node.digits.to_string(),
            ..MemberStatus::default()
        });
        members.extend(pending);
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
            let message =
                "this node does not listen on TCP, where nodes join: start it with --listen /ip4/0.0.0.0/tcp/7777";
            return Err(Error::new(ErrorKind::InvalidInput, message));
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
        let grant = ask_with_token(&self.membership, token).await?;
        self.become_member(grant, known).await
    }

    /// Joins the pool of the member that has `pin` open: one at `addresses`, or on the local network.
    ///
    /// # Errors
    /// `NotFound` if no member has a PIN open; why the member does not admit this node.
    pub async fn join_with_pin(&self, pin: &str, addresses: &[Multiaddr]) -> Result<JoinedPool> {
        self.membership.may_join()?;
        let until = Instant::now() + DISCOVERY;
        let mut asked = BTreeSet::new();
        let mut refusal = None;
        loop {
            for (peer, address) in self.candidates(addresses).await {
                if asked.len() >= MAX_ASKED || asked.contains(&address) {
                    continue;
                }
                let doorstep = match Doorstep::connect(&self.membership, &address, peer).await {
                    Ok(doorstep) => doorstep,
                    Err(error) => {
                        keep_worst(&mut refusal, error);
                        continue;
                    }
                };
                let member = doorstep.member();
                match doorstep.with_pin(self.membership.name(), pin).await {
                    Ok(grant) => {
                        return self.become_member(grant, vec![address.with(Protocol::P2p(member))]).await;
                    }
                    Err(error) => {
                        // A node that has no PIN open may have one in a moment, and has learned nothing. Every other one may
                        // have guessed once, and is not asked again.
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
            for (peer, address) in self.candidates(addresses).await {
                let is_asked = |compared: &Compared| compared.address == address || Some(compared.member) == peer;
                if self.comparing(|comparing| comparing.len() >= MAX_ASKED || comparing.values().any(is_asked)) {
                    continue;
                }
                let attempt = async {
                    let doorstep = Doorstep::connect(&self.membership, &address, peer).await?;
                    doorstep.compare(self.membership.name()).await
                };
                match attempt.await {
                    Ok(compared) => self.comparing(|comparing| drop(comparing.insert(compared.member, compared))),
                    Err(error) => keep_worst(&mut refusal, error),
                }
            }
            let asked: Vec<Compared> = self.comparing(|comparing| comparing.values().cloned().collect());
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
        let compared = self.comparing(|comparing| comparing.get(&member).cloned());
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
        let node = self.find(named, &["pending"])?;
        self.membership.accept(&parsed(&node.peer)?, digits, terms)?;
        Ok(node)
    }

    /// Turns the waiting node `named` away, or revokes the member, and whoever it admitted, for good. Says which.
    ///
    /// # Errors
    /// Those of [`Membership::revoke`] and [`Members::accept`].
    pub fn revoke(&self, named: &str) -> Result<MemberStatus> {
        let states = ["pending", "connected", "away", "this node"];
        // A peer that this node has never seen may be revoked too, by its id.
        let stranger = |error: Error| match named.parse::<PeerId>() {
            Ok(_) => Ok(MemberStatus { peer: named.to_owned(), state: "away".to_owned(), ..MemberStatus::default() }),
            Err(_) => Err(error),
        };
        let node = self.find(named, &states).or_else(stranger)?;
        let peer = parsed(&node.peer)?;
        if node.state == "pending" {
            self.membership.dismiss(&peer);
        } else {
            self.membership.revoke(peer)?;
        }
        Ok(node)
    }

    fn comparing<T>(&self, work: impl FnOnce(&mut BTreeMap<PeerId, Compared>) -> T) -> T {
        work(&mut self.comparing.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Forgets the members that do not wait for this node's owner any more.
    async fn forget_ended(&self) {
        for compared in self.comparing(|comparing| comparing.values().cloned().collect::<Vec<_>>()) {
            let still = match Doorstep::connect(&self.membership, &compared.address, Some(compared.member)).await {
                Ok(doorstep) => doorstep.poll().await.is_ok(),
                Err(_) => false,
            };
            if !still {
                self.comparing(|comparing| drop(comparing.remove(&compared.member)));
            }
        }
    }

    /// Where to ask: the addresses that were named, or else those of nodes that this one is not connected to.
    async fn candidates(&self, named: &[Multiaddr]) -> Vec<(Option<PeerId>, Multiaddr)> {
        if !named.is_empty() {
            let split = |address: &Multiaddr| (pangea_control::net::dial::peer_of(address), without_peer(address));
            return named.iter().map(split).collect();
        }
        let strangers = self.network.strangers().await;
        let first = |stranger: crate::net::Stranger| {
            let address = stranger.addresses.iter().find(|address| is_joinable(address))?;
            Some((stranger.peer, without_peer(address)))
        };
        strangers.into_iter().filter_map(first).collect()
    }

    async fn become_member(&self, grant: Grant, known: Vec<Multiaddr>) -> Result<JoinedPool> {
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

fn nobody_found(what: &str) -> Error {
    let message = format!(
        "no member {what} was found: is it running, on the same network, and does `pangea node` run here without --no-mdns? \
         Name it with --address HOST:PORT, or use a token"
    );
    Error::new(ErrorKind::NotFound, message)
}
