//! Decides which announcements on the local network are believed, and for how long. Anyone on that network can announce
//! any number of nodes with any lifetime; what is kept here is bounded, and a newcomer is always heard once. It never
//! sees a packet.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use libp2p_identity::PeerId;
use multiaddr::Multiaddr;

use super::dial::MAX_DISCOVERED;
use super::rate::{Rate, RateLimiter};
use crate::Time;

/// Time after which everything announced must have been announced again. A node announces itself every few seconds.
pub const LEASE: Duration = Duration::from_secs(300);

/// Time after the end of a lease in which the nodes that are still there announce themselves again.
pub const GRACE: Duration = Duration::from_secs(30);

/// Addresses kept of one announced node: a host's interfaces, each with two transports.
const MAX_ADDRESSES: usize = 16;

/// Newcomers that are heard: a whole network at once, and then a few per second. Each takes a line in the log and a dial.
const NEWCOMERS: Rate = Rate { per_second: 4.0, burst: MAX_DISCOVERED as f64 };

/// What follows from an announcement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// A node is announced at an address, for the first time.
    Discovered(PeerId, Multiaddr),
    /// The announcement is over, or gave its place to another.
    Expired(PeerId, Multiaddr),
}

/// Announced nodes.
#[derive(Debug)]
pub struct Announcements {
    /// The addresses of each node, with the lease in which each was announced last.
    known: BTreeMap<PeerId, BTreeMap<Multiaddr, u64>>,
    /// The nodes in the order of their first announcement.
    order: VecDeque<PeerId>,
    newcomers: RateLimiter<()>,
    lease: u64,
    lease_since: Time,
    /// Whether what was not announced again in this lease is still kept.
    in_grace: bool,
}

impl Announcements {
    /// Nothing is announced yet.
    pub fn new(now: Time) -> Announcements {
        Announcements {
            known: BTreeMap::new(),
            order: VecDeque::new(),
            newcomers: RateLimiter::new(NEWCOMERS),
            lease: 0,
            lease_since: now,
            in_grace: false,
        }
    }

    /// `peer` is announced at `address`. Where there is no room, the node that was announced first gives its place:
    /// a node that is there has been dialled by then.
    pub fn announced(&mut self, peer: PeerId, address: Multiaddr, now: Time) -> Vec<News> {
        let lease = self.lease;
        let mut news = Vec::new();
        if let Some(addresses) = self.known.get_mut(&peer) {
            if let Some(announced) = addresses.get_mut(&address) {
                *announced = lease;
            } else if addresses.len() < MAX_ADDRESSES {
                addresses.insert(address.clone(), lease);
                news.push(News::Discovered(peer, address));
            }
            return news;
        }
        if self.newcomers.ask(&(), now).is_err() {
            return news;
        }
        if self.known.len() >= MAX_DISCOVERED
            && let Some(first) = self.order.pop_front()
        {
            let gone = self.known.remove(&first).unwrap_or_default();
            news.extend(gone.into_keys().map(|address| News::Expired(first, address)));
        }
        self.known.insert(peer, BTreeMap::from([(address.clone(), lease)]));
        self.order.push_back(peer);
        news.push(News::Discovered(peer, address));
        news
    }

    /// The announcement of `peer` at `address` is over by its own lifetime.
    pub fn withdrawn(&mut self, peer: PeerId, address: &Multiaddr) -> Vec<News> {
        self.remove(|of, at, _| of == peer && at == address)
    }

    /// Whether a lease is over in which something was announced: the driver then listens as if it had heard nothing yet, so
    /// that every node that is still there is announced again.
    pub fn renew(&mut self, now: Time) -> bool {
        let over = now.since(self.lease_since) >= LEASE && !self.known.is_empty();
        if over {
            self.lease += 1;
            self.lease_since = now;
            self.in_grace = true;
        }
        over
    }

    /// Drops what was not announced again after the last renewal.
    pub fn tick(&mut self, now: Time) -> Vec<News> {
        if !self.in_grace || now.since(self.lease_since) < GRACE {
            return Vec::new();
        }
        self.in_grace = false;
        let lease = self.lease;
        self.remove(|_, _, announced| announced < lease)
    }

    fn remove(&mut self, is_over: impl Fn(PeerId, &Multiaddr, u64) -> bool) -> Vec<News> {
        let mut news = Vec::new();
        for (peer, addresses) in &mut self.known {
            addresses.retain(|address, announced| {
                let over = is_over(*peer, address, *announced);
                if over {
                    news.push(News::Expired(*peer, address.clone()));
                }
                !over
            });
        }
        self.known.retain(|_, addresses| !addresses.is_empty());
        self.order.retain(|peer| self.known.contains_key(peer));
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_peers::{fresh_peer, peer};

    fn address(host: u8) -> Multiaddr {
        format!("/ip4/10.0.0.{host}/tcp/7777").parse().unwrap()
    }

    #[test]
    fn a_newcomer_is_heard_however_many_are_announced_and_nothing_grows() {
        let mut announcements = Announcements::new(Time::ZERO);
        let first = peer(0);
        announcements.announced(first, address(1), Time::ZERO);
        for number in 1..MAX_DISCOVERED as u64 {
            assert_eq!(announcements.announced(peer(number), address(1), Time::ZERO).len(), 1);
        }
        let honest = fresh_peer();
        assert!(announcements.announced(honest, address(2), Time::ZERO).is_empty(), "too many at once");
        let news = announcements.announced(honest, address(2), Time::from_secs(1));
        assert_eq!(news, [News::Expired(first, address(1)), News::Discovered(honest, address(2))]);
        assert_eq!((announcements.known.len(), announcements.order.len()), (MAX_DISCOVERED, MAX_DISCOVERED));
        for host in 0..=255 {
            announcements.announced(honest, address(host), Time::from_secs(1));
        }
        assert_eq!(announcements.known[&honest].len(), MAX_ADDRESSES);
    }

    #[test]
    fn what_is_not_announced_again_ends_with_its_lease_whatever_lifetime_it_claimed() {
        let mut announcements = Announcements::new(Time::ZERO);
        let (there, gone) = (peer(1), peer(2));
        announcements.announced(there, address(1), Time::ZERO);
        announcements.announced(gone, address(2), Time::ZERO);
        let over = Time::ZERO + LEASE;
        assert!(!announcements.renew(over - Duration::from_nanos(1)) && announcements.renew(over));
        assert!(announcements.announced(there, address(1), over).is_empty(), "it is not discovered again");
        assert!(announcements.tick(over + GRACE - Duration::from_nanos(1)).is_empty());
        assert_eq!(announcements.tick(over + GRACE), [News::Expired(gone, address(2))]);
        assert!(announcements.tick(over + GRACE).is_empty());
        assert_eq!(announcements.withdrawn(there, &address(1)), [News::Expired(there, address(1))]);
        assert!(announcements.known.is_empty() && announcements.order.is_empty());
    }
}
