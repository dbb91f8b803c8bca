//! Decides whom to dial, where and when: a pure plan with no clock and no sockets. It keeps dialling what the user
//! named (with backoff after every loss), what mDNS announces, and, for a limited time, the addresses that nodes of the
//! pool report.

use std::time::Duration;

use libp2p_identity::PeerId;
use multiaddr::Multiaddr;
use multiaddr::Protocol;

use super::connection::Transport;
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

/// Dials in progress at once to peers that nobody named: hosts that do not answer hold up others of their kind no longer
/// than a dial takes, and never a peer that the user named.
const MAX_UNNAMED_DIALS: usize = 32;

/// Maximum addresses of one discovered peer.
const MAX_ADDRESSES: usize = 16;

/// Maximum peers reported by gossip: as many as a large pool has.
const MAX_HEARD: usize = 512;

/// Longest delay between two dials to a peer reported by gossip: its addresses may belong to another network,
/// as behind a tunnel.
const HEARD_BACKOFF: Duration = Duration::from_secs(60);

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

/// Source of a target; targets of a file are removed when the file no longer lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Flag,
    File,
    Mdns,
    Gossip,
}

impl Source {
    /// Whether the user named the target.
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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
    /// Known from the address, from mDNS, or from an earlier connection.
    peer: Option<PeerId>,
    addresses: Vec<Multiaddr>,
    /// QUIC is tried next, because TCP failed just now.
    quic_next: bool,
    failures: u32,
    due: Time,
    dialling: bool,
    own: bool,
}

/// The plan of all dials.
#[derive(Debug)]
pub struct DialPlan {
    local: PeerId,
    next_id: u64,
    targets: Vec<Target>,
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
        Self { local, next_id: 0, targets: Vec::new() }
    }

    fn push(&mut self, source: Source, peer: Option<PeerId>, address: Multiaddr, due: Time) {
        let own = peer == Some(self.local);
        let id = TargetId(self.next_id);
        self.next_id += 1;
        self.targets.push(Target {
            id,
            source,
            peer,
            addresses: vec![address],
            quic_next: false,
            failures: 0,
            due,
            dialling: false,
            own,
        });
    }

    /// Adds an address named with `--peer`.
    pub fn add_named(&mut self, address: Multiaddr, now: Time) {
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

    /// Records that a node of the pool listens at `addresses`, replacing earlier ones; `own` are this node's.
    pub fn heard_of(&mut self, peer: PeerId, addresses: &[Multiaddr], own: &[Multiaddr], now: Time) {
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
            } else if target.addresses != usable {
                target.addresses = usable;
                target.quic_next = false;
                target.failures = 0;
                target.due = target.due.min(now + YIELD);
            }
            return;
        }
        let Some((first, rest)) = usable.split_first() else { return };
        if self.targets.iter().filter(|target| target.source == Source::Gossip).count() >= MAX_HEARD {
            return;
        }
        let due = if self.local.to_bytes() < peer.to_bytes() { now } else { now + YIELD };
        self.push(Source::Gossip, Some(peer), first.clone(), due);
        if let Some(target) = self.targets.last_mut() {
            target.addresses.extend_from_slice(rest);
        }
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
        let mut unnamed = self.targets.iter().filter(|target| target.dialling && !target.source.is_named()).count();
        let mut order: Vec<usize> = (0..self.targets.len()).collect();
        order.sort_by_key(|at| match &self.targets[*at] {
            target if target.source.is_named() => 0,
            target => target.failures,
        });
        for at in order {
            let target = &mut self.targets[at];
            let unwanted = target.own || target.dialling || target.due > now || target.peer.as_ref().is_some_and(&skip);
            // A reported address is not dialled while another dial to the same peer is in progress.
            let heard = target.source == Source::Gossip && target.peer.is_some_and(|peer| dialling.contains(&peer));
            if unwanted || heard || dials.iter().any(|dial| dial.peer.is_some() && dial.peer == target.peer) {
                continue;
            }
            if !target.source.is_named() {
                if unnamed >= MAX_UNNAMED_DIALS {
                    continue;
                }
                unnamed += 1;
            }
            let wanted = if target.quic_next { Transport::Quic } else { Transport::Tcp };
            let mut addresses: Vec<_> =
                target.addresses.iter().filter(|address| transport_of(address) == wanted).cloned().collect();
            if addresses.is_empty() {
                addresses.clone_from(&target.addresses);
            }
            target.dialling = true;
            dials.push(Dial { target: target.id, peer: target.peer, addresses, found_by: target.source.found_by() });
        }
        dials
    }

    /// Records that a dial reached `peer`.
    pub fn succeeded(&mut self, id: TargetId, peer: PeerId) {
        if let Some(target) = self.targets.iter_mut().find(|target| target.id == id) {
            target.dialling = false;
            target.quic_next = false;
            target.failures = 0;
            target.peer = Some(peer);
        }
    }

    /// Records that a dial failed.
    pub fn failed(&mut self, id: TargetId, failure: Failure, now: Time) {
        let Some(target) = self.targets.iter_mut().find(|target| target.id == id) else {
            return;
        };
        target.dialling = false;
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
mod tests {
    use super::*;

    const TCP: &str = "/ip4/10.0.0.1/tcp/7777";
    const QUIC: &str = "/ip4/10.0.0.1/udp/7777/quic-v1";

    fn plan() -> DialPlan {
        DialPlan::new(crate::test_peers::fresh_peer())
    }

    fn address(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    fn seconds(seconds: f64) -> Time {
        Time::ZERO + Duration::from_secs_f64(seconds)
    }

    fn nobody(_: &PeerId) -> bool {
        false
    }

    #[test]
    fn a_named_address_is_dialled_at_growing_intervals_until_it_answers() {
        let mut plan = plan();
        plan.add_named(address(TCP), Time::ZERO);
        let (mut now, mut waits) = (Time::ZERO, Vec::new());
        for _ in 0..8 {
            let dials = plan.due(now, nobody);
            assert_eq!(dials.len(), 1);
            assert!(plan.due(now, nobody).is_empty(), "one dial at a time");
            plan.failed(dials[0].target, Failure::Unreachable, now);
            let start = now;
            while plan.targets[0].due > now {
                now += Duration::from_millis(100);
            }
            waits.push(now.since(start).as_millis());
        }
        assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 8000, 8000, 8000]);
    }

    #[test]
    fn hosts_that_never_answer_delay_no_named_peer_and_no_newcomer() {
        let mut plan = plan();
        for number in 0..100 {
            plan.discovered(crate::test_peers::peer(number), address(TCP), Time::ZERO);
        }
        let mut now = seconds(1.0);
        let hanging = plan.due(now, nobody);
        assert_eq!(hanging.len(), MAX_UNNAMED_DIALS);
        plan.add_named(address(QUIC), now);
        assert_eq!(plan.due(now, nobody).len(), 1, "a named peer does not wait");
        for dial in hanging {
            plan.failed(dial.target, Failure::Unreachable, now);
        }
        let newcomer = crate::test_peers::fresh_peer();
        for _ in 0..2 {
            now += Duration::from_secs(60);
            for dial in plan.due(now, nobody) {
                plan.failed(dial.target, Failure::Unreachable, now);
            }
        }
        now += Duration::from_secs(60);
        plan.discovered(newcomer, address(TCP), Time::ZERO);
        assert!(plan.due(now, nobody).iter().any(|dial| dial.peer == Some(newcomer)));
    }

    #[test]
    fn a_lost_peer_is_dialled_again_soon_and_a_connected_one_is_not() {
        let (mut plan, peer) = (plan(), crate::test_peers::fresh_peer());
        plan.add_named(address(TCP), Time::ZERO);
        let dial = plan.due(Time::ZERO, nobody).remove(0);
        plan.succeeded(dial.target, peer);
        assert!(plan.due(seconds(100.0), |connected| *connected == peer).is_empty());
        plan.lost(peer, seconds(100.0));
        assert!(plan.due(seconds(100.1), nobody).is_empty());
        let again = plan.due(seconds(100.5), nobody);
        assert_eq!(again[0].peer, None, "the address has no peer id, so any node there is accepted");
    }

    #[test]
    fn tcp_is_tried_first_and_quic_right_after_it_fails() {
        let (mut plan, peer) = (plan(), crate::test_peers::fresh_peer());
        plan.discovered(peer, address(QUIC), Time::ZERO);
        plan.discovered(peer, address(TCP), Time::ZERO);
        let dial = plan.due(seconds(1.0), nobody).remove(0);
        assert_eq!(dial.addresses, [address(TCP)]);
        plan.failed(dial.target, Failure::Unreachable, seconds(1.0));
        let dial = plan.due(seconds(1.0), nobody).remove(0);
        assert_eq!(dial.addresses, [address(QUIC)]);
        plan.failed(dial.target, Failure::Unreachable, seconds(1.0));
        assert!(plan.due(seconds(1.0), nobody).is_empty());
        assert_eq!(plan.due(seconds(2.0), nobody)[0].addresses, [address(TCP)]);
    }

    #[test]
    fn one_of_two_nodes_that_discover_each_other_dials_first() {
        let (a, b) = (crate::test_peers::fresh_peer(), crate::test_peers::fresh_peer());
        let (mut at_a, mut at_b) = (DialPlan::new(a), DialPlan::new(b));
        assert!(at_a.discovered(b, address(TCP), Time::ZERO));
        assert!(at_b.discovered(a, address(TCP), Time::ZERO));
        assert!(!at_b.discovered(a, address(QUIC), Time::ZERO), "new once only");
        assert_eq!(at_a.due(Time::ZERO, nobody).len() + at_b.due(Time::ZERO, nobody).len(), 1);
        assert_eq!(
            at_a.due(Time::ZERO + YIELD, nobody).len() + at_b.due(Time::ZERO + YIELD, nobody).len(),
            1,
            "the other one dials if the first does not"
        );
    }

    #[test]
    fn a_list_that_changes_adds_and_drops_targets() {
        let mut plan = plan();
        plan.set_listed(&[address(TCP), address(QUIC)], Time::ZERO);
        assert_eq!(plan.due(Time::ZERO, nobody).len(), 2);
        plan.set_listed(&[address(QUIC), address("/ip4/10.0.0.2/tcp/1")], Time::ZERO);
        let dials = plan.due(Time::ZERO, nobody);
        assert_eq!(dials.len(), 1, "a dial in progress is not repeated");
        assert_eq!(dials[0].addresses, [address("/ip4/10.0.0.2/tcp/1")]);
        assert_eq!(plan.targets.len(), 2);
    }

    #[test]
    fn the_own_address_is_never_dialled_again() {
        let mut plan = plan();
        let own = plan.local;
        plan.add_named(address(&format!("{TCP}/p2p/{own}")), Time::ZERO);
        assert!(plan.due(seconds(1.0), nobody).is_empty());
        plan.add_named(address(TCP), Time::ZERO);
        let dial = plan.due(seconds(1.0), nobody).remove(0);
        plan.failed(dial.target, Failure::Own, seconds(1.0));
        assert!(plan.due(seconds(1e6), nobody).is_empty());
    }

    #[test]
    fn expired_announcements_are_removed_and_may_return() {
        let (mut plan, peer) = (plan(), crate::test_peers::fresh_peer());
        assert!(plan.discovered(peer, address(TCP), Time::ZERO));
        plan.expired(peer, &address(TCP));
        assert!(!plan.is_discovered(&peer));
        assert!(plan.due(seconds(9.0), nobody).is_empty());
    }

    #[test]
    fn strangers_on_the_network_cannot_fill_the_plan() {
        let mut plan = plan();
        for _ in 0..MAX_DISCOVERED + 10 {
            plan.discovered(crate::test_peers::fresh_peer(), address(TCP), Time::ZERO);
        }
        assert_eq!(plan.targets.len(), MAX_DISCOVERED);
    }

    #[test]
    fn reported_addresses_are_dialled_less_and_less_often_and_then_removed() {
        let (mut plan, peer) = (plan(), crate::test_peers::fresh_peer());
        plan.heard_of(peer, &[address(TCP)], &[], Time::ZERO);
        let (mut now, mut dials) = (Time::ZERO, 0);
        while now < seconds(7200.0) {
            now += Duration::from_millis(250);
            // The peer reports the same addresses repeatedly.
            if dials < HEARD_FAILURES {
                plan.heard_of(peer, &[address(TCP)], &[], now);
            }
            for dial in plan.due(now, nobody) {
                assert_eq!((dial.found_by, dial.peer), (FoundBy::Gossip, Some(peer)));
                plan.failed(dial.target, Failure::Unreachable, now);
                dials += 1;
            }
        }
        assert_eq!(dials, HEARD_FAILURES);
        assert_eq!(plan.found(&peer), None, "forgotten");
    }

    #[test]
    fn invalid_and_own_addresses_are_not_dialled() {
        let (mut plan, peer) = (plan(), crate::test_peers::fresh_peer());
        let said =
            ["/ip4/127.0.0.1/tcp/7777", "/ip4/0.0.0.0/tcp/7777", "/ip4/10.0.0.1/tcp/0", "/ip4/10.0.0.1", "/unix/x"];
        plan.heard_of(peer, &said.map(address), &[address("/ip4/127.0.0.1/tcp/7777")], Time::ZERO);
        assert!(plan.due(seconds(9.0), nobody).is_empty());
        let named = address(&format!("{TCP}/p2p/{peer}"));
        plan.heard_of(peer, &[address("/ip4/127.0.0.1/tcp/9"), named], &[], seconds(9.0));
        let dial = plan.due(seconds(10.0), nobody).remove(0);
        assert_eq!(dial.addresses, [address("/ip4/127.0.0.1/tcp/9"), address(TCP)]);
        plan.failed(dial.target, Failure::Own, seconds(10.0));
        assert_eq!(
            plan.due(seconds(12.0), nobody).len(),
            1,
            "one of several addresses is this node's own; the others may not be"
        );
        plan.heard_of(plan.local, &[address(TCP)], &[], seconds(12.0));
        assert_eq!(plan.targets.len(), 1);
    }

    #[test]
    fn a_peer_being_dialled_is_not_dialled_at_reported_addresses_as_well() {
        let (mut plan, peer) = (plan(), crate::test_peers::fresh_peer());
        plan.discovered(peer, address(TCP), Time::ZERO);
        assert_eq!(plan.due(seconds(1.0), nobody).len(), 1);
        plan.heard_of(peer, &[address(QUIC)], &[], seconds(1.0));
        assert!(plan.due(seconds(5.0), nobody).is_empty());
    }
}
