//! Decides whom to dial, where and when: a pure plan with no clock and no sockets. It keeps dialling what the user
//! named (with backoff after every loss), what mDNS announces, and, for a limited time, the addresses that nodes of the
//! pool report. What the user named is dialled first and always; how much of the rest is dialled, [`dial_budget`] limits.
//!
//! [`dial_budget`]: super::dial_budget

use std::time::Duration;

use libp2p_identity::PeerId;
use multiaddr::Multiaddr;
use multiaddr::Protocol;

use super::connection::Transport;
use super::dial_budget::{DialBudget, Report};
use crate::Time;
use crate::backoff::doubled;

/// Delay after the first failure; each further failure doubles it.
const FIRST_BACKOFF: Duration = Duration::from_millis(500);

/// Longest delay: a peer that comes back is found within this time.
const MAX_BACKOFF: Duration = Duration::from_secs(8);

/// Delay after a refusal: a key does not change by itself.
const REFUSED_BACKOFF: Duration = Duration::from_secs(30);

/// Time that the node with the larger id lets the other one dial first, after both discovered each other by mDNS.
const YIELD: Duration = Duration::from_millis(750);

/// Maximum peers discovered by mDNS: a LAN may be large or hostile.
pub const MAX_DISCOVERED: usize = 512;

/// Maximum addresses of one discovered peer.
const MAX_ADDRESSES: usize = 16;

/// Maximum peers reported by gossip: as many as a large pool has.
const MAX_HEARD: usize = 512;

/// Maximum strangers that one forwarder reports and that no dial has reached yet.
const MAX_STRANGERS: usize = 8;

/// Longest delay between two dials to a peer reported by gossip: its addresses may belong to another network,
/// as behind a tunnel.
const HEARD_BACKOFF: Duration = Duration::from_secs(60);

/// Delay of a dial for which there is no budget left.
const BUDGET_WAIT: Duration = Duration::from_millis(500);

/// Failed dials after which such a peer is removed: half an hour's worth.
const HEARD_FAILURES: u32 = 36;

/// How a peer was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FoundBy {
    /// mDNS announced it on the local network.
    Mdns,
    /// The user named it: `--peer`, `peers.json`, or a command.
    Manual,
    /// Another node of the pool reported it.
    Gossip,
    /// It connected to this node.
    Incoming,
}

impl std::fmt::Display for FoundBy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Mdns => "mdns",
            Self::Manual => "manual",
            Self::Gossip => "gossip",
            Self::Incoming => "incoming",
        })
    }
}

/// Source of a target; targets of a file are removed when the file no longer lists them. The first ones are dialled first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    Flag,
    File,
    Mdns,
    Gossip,
}

impl Source {
    /// Whether a person named the target.
    fn is_named(self) -> bool {
        matches!(self, Self::Flag | Self::File)
    }

    fn found_by(self) -> FoundBy {
        match self {
            Self::Flag | Self::File => FoundBy::Manual,
            Self::Mdns => FoundBy::Mdns,
            Self::Gossip => FoundBy::Gossip,
        }
    }
}

/// Identifies a target between a dial and its outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TargetId(u64);

/// One dial to make: all of `addresses` at once, one transport.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dial {
    /// The target; [`DialPlan::failed`] takes it.
    pub target: TargetId,
    /// The peer that must answer, if known.
    pub peer: Option<PeerId>,
    /// Addresses to dial, all at once.
    pub addresses: Vec<Multiaddr>,
    /// How the target became known.
    pub found_by: FoundBy,
}

/// A node that is known and not connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unconnected {
    /// Its peer id, if it is known.
    pub peer: Option<PeerId>,
    /// Where it listens, as far as is known.
    pub addresses: Vec<Multiaddr>,
    /// Whether a person named it; otherwise the network announces it.
    pub is_named: bool,
    /// Why the last dial failed; `None` if none has failed since the last connection.
    pub failed: Option<FailedDials>,
}

/// Dials in a row that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedDials {
    /// Whether one side refused the other.
    pub is_refused: bool,
    /// Why the last one failed.
    pub why: String,
    /// Number of dials that failed for that reason.
    pub count: u64,
}

/// How a dial failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Nobody answered, or the connection failed.
    Unreachable,
    /// One side refused the other.
    Refused,
    /// The two nodes were already connected or connecting.
    Duplicate(PeerId),
    /// The address is this node's own; it is never dialled again.
    Own,
}

#[derive(Debug)]
struct Target {
    id: TargetId,
    source: Source,
    /// Who reported the target, if gossip did.
    report: Option<Report>,
    /// Whether a dial has ever reached the target.
    reached: bool,
    /// Known from the address, from mDNS, or from an earlier connection.
    peer: Option<PeerId>,
    addresses: Vec<Multiaddr>,
    /// QUIC is tried next, because TCP failed just now.
    quic_next: bool,
    failures: u32,
    /// The failures since the last connection.
    failed: Option<FailedDials>,
    due: Time,
    dialling: bool,
    own: bool,
}

impl Target {
    /// Order of dials: what a person named, what the network announces, members of the pool, strangers; of these, those
    /// that failed least.
    fn priority(&self) -> (Source, bool, u32) {
        (self.source, self.report.is_some_and(|report| !report.proven), self.failures)
    }

    /// Notes a failed dial; returns whether the target did not fail in this way before.
    fn note(&mut self, failure: Failure, why: &str) -> bool {
        let is_refused = match failure {
            Failure::Unreachable => false,
            Failure::Refused => true,
            Failure::Duplicate(_) | Failure::Own => return false,
        };
        let count = match &self.failed {
            Some(before) if before.is_refused == is_refused => before.count + 1,
            _ => 1,
        };
        self.failed = Some(FailedDials { is_refused, why: why.to_owned(), count });
        count == 1
    }
}

/// The plan of all dials.
#[derive(Debug)]
pub struct DialPlan {
    local: PeerId,
    next_id: u64,
    targets: Vec<Target>,
    budget: DialBudget,
}

/// Transport of a connection to `address`.
pub fn transport_of(address: &Multiaddr) -> Transport {
    let quic = address.iter().any(|part| matches!(part, Protocol::QuicV1 | Protocol::Quic | Protocol::Udp(_)));
    if quic { Transport::Quic } else { Transport::Tcp }
}

/// The peer id at the end of `address`, if any.
pub fn peer_of(address: &Multiaddr) -> Option<PeerId> {
    match address.iter().last() {
        Some(Protocol::P2p(peer)) => Some(peer),
        _ => None,
    }
}

/// `address` without its peer id, if it can be dialled: TCP or QUIC at a specified address.
fn dialable(address: &Multiaddr) -> Option<Multiaddr> {
    let address: Multiaddr = address.iter().filter(|part| !matches!(part, Protocol::P2p(_))).collect();
    let mut parts = address.iter();
    let named = match parts.next()? {
        Protocol::Ip4(ip) => !ip.is_unspecified(),
        Protocol::Ip6(ip) => !ip.is_unspecified(),
        Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_) => true,
        _ => false,
    };
    let carried = match parts.next()? {
        Protocol::Tcp(port) => port != 0,
        Protocol::Udp(port) => port != 0 && parts.next() == Some(Protocol::QuicV1),
        _ => false,
    };
    (named && carried && parts.next().is_none()).then_some(address)
}

impl DialPlan {
    /// An empty plan of the node `local`.
    pub fn new(local: PeerId) -> Self {
        Self { local, next_id: 0, targets: Vec::new(), budget: DialBudget::default() }
    }

    fn push(&mut self, source: Source, peer: Option<PeerId>, address: Multiaddr, due: Time) {
        let own = peer == Some(self.local);
        let id = TargetId(self.next_id);
        self.next_id += 1;
        self.targets.push(Target {
            id,
            source,
            report: None,
            reached: false,
            peer,
            addresses: vec![address],
            quic_next: false,
            failures: 0,
            failed: None,
            due,
            dialling: false,
            own,
        });
    }

    /// Adds an address that the user named, with `--peer` or an invitation; one that is known is dialled at once.
    pub fn add_named(&mut self, address: Multiaddr, now: Time) {
        let known = |target: &&mut Target| target.source == Source::Flag && target.addresses[0] == address;
        if let Some(target) = self.targets.iter_mut().find(known) {
            (target.due, target.failures) = (now, 0);
            return;
        }
        self.push(Source::Flag, peer_of(&address), address, now);
    }

    /// Replaces the addresses of the peers file.
    pub fn set_listed(&mut self, addresses: &[Multiaddr], now: Time) {
        self.targets.retain(|target| target.source != Source::File || addresses.contains(&target.addresses[0]));
        for address in addresses {
            let known =
                self.targets.iter().any(|target| target.source == Source::File && target.addresses[0] == *address);
            if !known {
                self.push(Source::File, peer_of(address), address.clone(), now);
            }
        }
    }

    /// Records that mDNS announced `peer` at `address`; returns whether the peer is new.
    pub fn discovered(&mut self, peer: PeerId, address: Multiaddr, now: Time) -> bool {
        if let Some(target) =
            self.targets.iter_mut().find(|target| target.source == Source::Mdns && target.peer == Some(peer))
        {
            if !target.addresses.contains(&address) && target.addresses.len() < MAX_ADDRESSES {
                target.addresses.push(address);
            }
            return false;
        }
        if self.targets.iter().filter(|target| target.source == Source::Mdns).count() >= MAX_DISCOVERED {
            return false;
        }
        let due = if self.local.to_bytes() < peer.to_bytes() { now } else { now + YIELD };
        self.push(Source::Mdns, Some(peer), address, due);
        true
    }

    /// Records that an announcement expired.
    pub fn expired(&mut self, peer: PeerId, address: &Multiaddr) {
        for target in &mut self.targets {
            if target.source == Source::Mdns && target.peer == Some(peer) {
                target.addresses.retain(|known| known != address);
            }
        }
        self.targets.retain(|target| !target.addresses.is_empty());
    }

    /// Records the report that a node listens at `addresses`, replacing earlier ones; `own` are this node's.
    pub fn heard_of(&mut self, report: Report, addresses: &[Multiaddr], own: &[Multiaddr], now: Time) {
        let peer = report.peer;
        if peer == self.local {
            return;
        }
        let mut usable: Vec<Multiaddr> = Vec::new();
        for address in addresses.iter().filter_map(dialable) {
            // If another host listens at the same loopback address, dialling it would reach this node itself.
            if !own.contains(&address) && !usable.contains(&address) && usable.len() < MAX_ADDRESSES {
                usable.push(address);
            }
        }
        let known = |target: &Target| target.source == Source::Gossip && target.peer == Some(peer);
        if let Some(target) = self.targets.iter_mut().find(|target| known(target)) {
            if usable.is_empty() {
                self.targets.retain(|target| !known(target));
                return;
            }
            target.report = Some(report);
            if target.addresses != usable {
                target.addresses = usable;
                target.quic_next = false;
                target.failures = 0;
                target.due = target.due.min(now + YIELD);
            }
            return;
        }
        let Some((first, rest)) = usable.split_first() else { return };
        if !self.has_place_for(&report) {
            return;
        }
        let due = if self.local.to_bytes() < peer.to_bytes() { now } else { now + YIELD };
        self.push(Source::Gossip, Some(peer), first.clone(), due);
        if let Some(target) = self.targets.last_mut() {
            target.addresses.extend_from_slice(rest);
            target.report = Some(report);
        }
    }

    /// Whether one more report fits. A stranger takes the place of another one that the same forwarder reported and that
    /// cannot be reached.
    fn has_place_for(&mut self, report: &Report) -> bool {
        let heard = |target: &&Target| target.source == Source::Gossip;
        if !report.proven {
            let same = |target: &&Target| {
                let by = target.report.filter(|known| !known.proven).map(|known| known.forwarder);
                heard(target) && !target.reached && by == Some(report.forwarder)
            };
            let strangers: Vec<&Target> = self.targets.iter().filter(same).collect();
            if strangers.len() >= MAX_STRANGERS {
                let failed = |target: &&Target| (target.failures > 0 || target.quic_next) && !target.dialling;
                let failed = strangers.into_iter().filter(failed);
                let Some(worst) = failed.max_by_key(|target| target.failures).map(|target| target.id) else {
                    return false;
                };
                self.targets.retain(|target| target.id != worst);
            }
        }
        self.targets.iter().filter(heard).count() < MAX_HEARD
    }

    /// The nodes that the user named and that mDNS announces, without those connected.
    pub fn unconnected(&self, is_connected: impl Fn(&PeerId) -> bool) -> Vec<Unconnected> {
        let wanted = |target: &&Target| {
            target.source != Source::Gossip && !target.own && !target.peer.as_ref().is_some_and(&is_connected)
        };
        let unconnected = |target: &Target| Unconnected {
            peer: target.peer,
            addresses: target.addresses.clone(),
            is_named: target.source.is_named(),
            failed: target.failed.clone(),
        };
        self.targets.iter().filter(wanted).map(unconnected).collect()
    }

    /// How `peer` was found, if it was announced or reported.
    pub fn found(&self, peer: &PeerId) -> Option<FoundBy> {
        let by =
            |source| self.targets.iter().any(|target| target.source == source && target.peer.as_ref() == Some(peer));
        [Source::Mdns, Source::Gossip].into_iter().find(|source| by(*source)).map(Source::found_by)
    }

    /// Whether mDNS announces `peer`.
    #[cfg(test)]
    fn is_discovered(&self, peer: &PeerId) -> bool {
        self.found(peer) == Some(FoundBy::Mdns)
    }

    /// Everything to dial now. `skip`: peers that are connected or unwanted. Of the targets that nobody named, those with the
    /// fewest failures come first, so that a newcomer is tried before hosts that never answer.
    pub fn due(&mut self, now: Time, skip: impl Fn(&PeerId) -> bool) -> Vec<Dial> {
        let mut dials: Vec<Dial> = Vec::new();
        let dialling: Vec<PeerId> =
            self.targets.iter().filter(|target| target.dialling).filter_map(|target| target.peer).collect();
        let mut order: Vec<usize> = (0..self.targets.len()).collect();
        order.sort_by_key(|at| self.targets[*at].priority());
        for at in order {
            let target = &mut self.targets[at];
            let unwanted = target.own || target.dialling || target.due > now || target.peer.as_ref().is_some_and(&skip);
            // A reported address is not dialled while another dial to the same peer is in progress.
            let heard = target.source == Source::Gossip && target.peer.is_some_and(|peer| dialling.contains(&peer));
            if unwanted || heard || dials.iter().any(|dial| dial.peer.is_some() && dial.peer == target.peer) {
                continue;
            }
            let wanted = if target.quic_next { Transport::Quic } else { Transport::Tcp };
            let mut addresses: Vec<_> =
                target.addresses.iter().filter(|address| transport_of(address) == wanted).cloned().collect();
            if addresses.is_empty() {
                addresses.clone_from(&target.addresses);
            }
            let in_budget = match (target.source, &target.report) {
                (Source::Flag | Source::File, _) => true,
                (_, Some(report)) => self.budget.start_reported(target.id, report, &mut addresses, now),
                (_, None) => self.budget.start_announced(target.id),
            };
            if !in_budget {
                target.due = now + BUDGET_WAIT;
                continue;
            }
            target.dialling = true;
            dials.push(Dial { target: target.id, peer: target.peer, addresses, found_by: target.source.found_by() });
        }
        dials
    }

    /// Records that a dial reached `peer`.
    pub fn succeeded(&mut self, id: TargetId, peer: PeerId) {
        self.budget.succeeded(id);
        if let Some(target) = self.targets.iter_mut().find(|target| target.id == id) {
            target.dialling = false;
            target.reached = true;
            target.quic_next = false;
            target.failures = 0;
            target.failed = None;
            target.peer = Some(peer);
        }
    }

    /// Records that a dial failed, and `why`. Returns the address if a person should hear of it: a person named it, and it did not
    /// fail in this way before. Refusals are logged where they are decided.
    pub fn failed(&mut self, id: TargetId, failure: Failure, why: &str, now: Time) -> Option<Multiaddr> {
        self.budget.failed(id);
        let target = self.targets.iter_mut().find(|target| target.id == id)?;
        target.dialling = false;
        let is_news = target.note(failure, why);
        let named = target.addresses.first().filter(|_| is_news && target.source.is_named()).cloned();
        let mixed = target.addresses.iter().any(|address| transport_of(address) != transport_of(&target.addresses[0]));
        let heard = target.source == Source::Gossip;
        let longest = if heard { HEARD_BACKOFF } else { MAX_BACKOFF };
        match failure {
            // One of several reported addresses is this node's own; the others may not be.
            Failure::Own if !heard => target.own = true,
            Failure::Duplicate(peer) => {
                target.peer = Some(peer);
                target.due = now + FIRST_BACKOFF;
            }
            Failure::Refused => target.due = now + REFUSED_BACKOFF,
            Failure::Unreachable if mixed && !target.quic_next => {
                target.quic_next = true;
                target.due = now;
            }
            Failure::Unreachable | Failure::Own => {
                target.quic_next = false;
                target.due = now + doubled(FIRST_BACKOFF, target.failures, longest);
                target.failures += 1;
                if heard && target.failures >= HEARD_FAILURES {
                    self.targets.retain(|target| target.id != id);
                }
            }
        }
        named.filter(|_| failure == Failure::Unreachable)
    }

    /// Records that the last connection to `peer` ended; its targets become due again.
    pub fn lost(&mut self, peer: PeerId, now: Time) {
        for target in &mut self.targets {
            if target.peer == Some(peer) {
                target.failures = 0;
                // A short delay, so that the cause of the loss can pass.
                target.due = now + FIRST_BACKOFF;
                // An address without a peer id may lead to another node next time.
                if peer_of(&target.addresses[0]).is_none() && matches!(target.source, Source::Flag | Source::File) {
                    target.peer = None;
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "dial_tests.rs"]
mod tests;
