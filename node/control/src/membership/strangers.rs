//! Nodes of other pools that were met on the network. Each waits to be admitted without having asked: its name and where it can
//! be asked to compare digits are kept for a while. Anyone can be any number of strangers, so that the list, what is kept of one
//! host and what is logged are bounded. Pure: the time is passed in.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;

use libp2p_identity::PeerId;
use multiaddr::Multiaddr;

use super::pending::WAIT_S;

/// Strangers that are kept. A household or a lab sets up fewer devices at once.
pub const MAX_STRANGERS: usize = 32;

/// Strangers of one host that are kept, so that one host that invents identities leaves places for others.
pub const MAX_PER_HOST: usize = 4;

/// Time in seconds after which a stranger that was not met again is forgotten: it is gone, or has joined.
pub const KEPT_S: u64 = 150;

/// Interval in seconds of meeting a stranger again. Shorter than [`KEPT_S`], so that one that stays is listed without a gap.
pub const MEET_INTERVAL_S: u64 = 60;

/// Strangers that are logged within [`WAIT_S`]; those beyond are only listed.
pub const MAX_LOGGED: usize = 8;

/// Offers that this node follows within [`WAIT_S`]: each is one attempt to match somebody else's digits, in plain sight of the
/// log.
pub const MAX_OFFERS: usize = 8;

/// Offers of one host among them.
pub const MAX_OFFERS_PER_HOST: usize = 3;

/// A node of another pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stranger {
    /// The node.
    pub peer: PeerId,
    /// What it calls itself; empty until it was met.
    pub name: String,
    /// Where it can be asked, without its peer id; `None` while unknown.
    pub address: Option<Multiaddr>,
    /// When it was seen first, in seconds since 1970.
    pub since_unix_s: u64,
}

/// What the log says of a stranger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLine {
    /// How to admit it.
    Stranger,
    /// That there are more, which are only listed.
    More,
}

#[derive(Clone, Debug)]
struct Entry {
    name: String,
    address: Option<Multiaddr>,
    host: Option<IpAddr>,
    since_unix_s: u64,
    seen_unix_s: u64,
    /// When this node last met it, or tried to.
    tried_unix_s: u64,
    /// Order of arrival, for strangers that were seen in the same second.
    number: u64,
    is_dismissed: bool,
}

/// The strangers that a node has met.
#[derive(Debug, Default)]
pub struct Strangers {
    known: BTreeMap<PeerId, Entry>,
    arrivals: u64,
    /// When strangers were logged, within the last [`WAIT_S`].
    logged: VecDeque<u64>,
    /// Offers that were followed, within the last [`WAIT_S`].
    offers: VecDeque<(u64, Option<IpAddr>)>,
}

impl Strangers {
    fn forget_old(&mut self, now_unix_s: u64) {
        self.known.retain(|_, entry| now_unix_s.saturating_sub(entry.seen_unix_s) < KEPT_S);
        self.logged.retain(|at| now_unix_s.saturating_sub(*at) < WAIT_S);
        self.offers.retain(|(at, _)| now_unix_s.saturating_sub(*at) < WAIT_S);
    }

    /// The entry of `peer`, made where there is none. A newcomer takes the place of the one of its host that was met longest ago
    /// where that host has all its places, else, in a full list, of one of the host that has most.
    fn entry(&mut self, peer: PeerId, host: Option<IpAddr>, now_unix_s: u64) -> &mut Entry {
        self.forget_old(now_unix_s);
        if !self.known.contains_key(&peer) {
            let of = |host: Option<IpAddr>| self.known.values().filter(move |entry| entry.host == host);
            let crowded = if of(host).count() >= MAX_PER_HOST {
                Some(host)
            } else if self.known.len() >= MAX_STRANGERS {
                self.known.values().map(|entry| entry.host).max_by_key(|host| of(*host).count())
            } else {
                None
            };
            let oldest = crowded.and_then(|host| {
                let theirs = self.known.iter().filter(|(_, entry)| entry.host == host);
                theirs.min_by_key(|(_, entry)| (entry.seen_unix_s, entry.number)).map(|(peer, _)| *peer)
            });
            if let Some(oldest) = oldest {
                self.known.remove(&oldest);
            }
        }
        self.arrivals += 1;
        let number = self.arrivals;
        let entry = self.known.entry(peer).or_insert_with(|| Entry {
            name: String::new(),
            address: None,
            host,
            since_unix_s: now_unix_s,
            seen_unix_s: now_unix_s,
            tried_unix_s: 0,
            number,
            is_dismissed: false,
        });
        entry.seen_unix_s = now_unix_s;
        entry
    }

    /// `peer`, at `host`, belongs to another pool. Returns whether this node is to meet it now, that is, to exchange names.
    pub fn seen(&mut self, peer: PeerId, host: Option<IpAddr>, now_unix_s: u64) -> bool {
        let entry = self.entry(peer, host, now_unix_s);
        let is_due = now_unix_s.saturating_sub(entry.tried_unix_s) >= MEET_INTERVAL_S;
        if is_due {
            entry.tried_unix_s = now_unix_s;
        }
        is_due
    }

    /// `peer`, at `host`, was met: it is called `name` and can be asked at `address`. Returns what is to be logged.
    pub fn met(
        &mut self,
        peer: PeerId,
        name: &str,
        host: Option<IpAddr>,
        address: Option<Multiaddr>,
        now_unix_s: u64,
    ) -> Option<LogLine> {
        let entry = self.entry(peer, host, now_unix_s);
        entry.tried_unix_s = now_unix_s;
        if address.is_some() {
            entry.address = address;
        }
        let is_news = entry.name != name && !entry.is_dismissed;
        name.clone_into(&mut entry.name);
        if !is_news || self.logged.len() > MAX_LOGGED {
            return None;
        }
        self.logged.push_back(now_unix_s);
        Some(if self.logged.len() > MAX_LOGGED { LogLine::More } else { LogLine::Stranger })
    }

    /// Whether an offer from `host` to compare digits is followed; one that is counts.
    pub fn may_offer(&mut self, host: Option<IpAddr>, now_unix_s: u64) -> bool {
        self.forget_old(now_unix_s);
        let of_host = self.offers.iter().filter(|(_, by)| host.is_some() && *by == host).count();
        let may = self.offers.len() < MAX_OFFERS && of_host < MAX_OFFERS_PER_HOST;
        if may {
            self.offers.push_back((now_unix_s, host));
        }
        may
    }

    /// The owner of this node does not want to admit `peer`: it is not listed while it stays. Returns whether it was listed.
    pub fn dismiss(&mut self, peer: &PeerId) -> bool {
        let Some(entry) = self.known.get_mut(peer) else { return false };
        !std::mem::replace(&mut entry.is_dismissed, true)
    }

    /// `peer` is no stranger any more.
    pub fn forget(&mut self, peer: &PeerId) {
        self.known.remove(peer);
    }

    /// The strangers, by peer id.
    pub fn list(&mut self, now_unix_s: u64) -> Vec<Stranger> {
        self.forget_old(now_unix_s);
        let listed = self.known.iter().filter(|(_, entry)| !entry.is_dismissed);
        let stranger = |(peer, entry): (&PeerId, &Entry)| Stranger {
            peer: *peer,
            name: entry.name.clone(),
            address: entry.address.clone(),
            since_unix_s: entry.since_unix_s,
        };
        listed.map(stranger).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::test_peers::{fresh_peer, peer};

    const NOW: u64 = 1_800_000_000;

    fn host(number: u8) -> Option<IpAddr> {
        Some(IpAddr::from([10, 0, 0, number]))
    }

    fn names(strangers: &mut Strangers, now: u64) -> Vec<String> {
        let mut names: Vec<String> = strangers.list(now).into_iter().map(|stranger| stranger.name).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn a_stranger_is_met_once_a_minute_logged_once_and_forgotten_once_it_is_gone() {
        let mut strangers = Strangers::default();
        assert!(strangers.seen(peer(1), host(1), NOW));
        assert!(!strangers.seen(peer(1), host(1), NOW + MEET_INTERVAL_S - 1));
        assert_eq!(strangers.list(NOW)[0].name, "");
        let address: Multiaddr = "/ip4/10.0.0.1/tcp/7777".parse().unwrap();
        let met = |strangers: &mut Strangers, address, at| strangers.met(peer(1), "mac2", host(1), address, at);
        assert_eq!(met(&mut strangers, Some(address.clone()), NOW + 1), Some(LogLine::Stranger));
        assert_eq!(met(&mut strangers, None, NOW + 2), None);
        assert!(!strangers.seen(peer(1), host(1), NOW + 2 + MEET_INTERVAL_S - 1), "it has introduced itself");
        assert!(strangers.seen(peer(1), host(1), NOW + 2 + MEET_INTERVAL_S));
        let listed = Stranger { peer: peer(1), name: "mac2".to_owned(), address: Some(address), since_unix_s: NOW };
        let last = NOW + 2 + MEET_INTERVAL_S + KEPT_S - 1;
        assert_eq!(strangers.list(last), [listed]);
        assert!(strangers.list(last + 1).is_empty());
    }

    #[test]
    fn one_host_that_invents_identities_displaces_only_its_own() {
        let mut strangers = Strangers::default();
        strangers.met(peer(1), "honest", host(1), None, NOW);
        for number in 0..1000 {
            strangers.met(fresh_peer(), &format!("invented {number}"), host(2), None, NOW);
        }
        assert_eq!(
            names(&mut strangers, NOW),
            ["honest", "invented 996", "invented 997", "invented 998", "invented 999"]
        );
    }

    #[test]
    fn in_a_full_list_a_newcomer_takes_a_place_of_the_host_that_has_most() {
        let mut strangers = Strangers::default();
        strangers.met(peer(1), "honest", host(100), None, NOW);
        let hosts = (MAX_STRANGERS / MAX_PER_HOST) as u8;
        for number in 0..hosts * MAX_PER_HOST as u8 - 1 {
            strangers.met(fresh_peer(), "invented", host(number % hosts), None, NOW + 1);
        }
        assert_eq!(strangers.known.len(), MAX_STRANGERS);
        strangers.met(peer(2), "newcomer", host(101), None, NOW + 2);
        let names = names(&mut strangers, NOW + 2);
        assert_eq!(names.len(), MAX_STRANGERS);
        assert!(names.contains(&"honest".to_owned()) && names.contains(&"newcomer".to_owned()));
    }

    #[test]
    fn a_flood_of_strangers_takes_few_lines_of_the_log() {
        let mut strangers = Strangers::default();
        let mut lines = |at, count: usize| -> Vec<LogLine> {
            (0..count).filter_map(|_| strangers.met(fresh_peer(), "mac", None, None, at)).collect()
        };
        let logged = lines(NOW, 1000);
        assert_eq!(logged.len(), MAX_LOGGED + 1);
        assert!(logged[..MAX_LOGGED].iter().all(|line| *line == LogLine::Stranger));
        assert_eq!(logged[MAX_LOGGED], LogLine::More);
        assert!(lines(NOW + WAIT_S - 1, 10).is_empty());
        assert_eq!(lines(NOW + WAIT_S, 1), [LogLine::Stranger]);
    }

    #[test]
    fn one_that_was_turned_away_is_neither_listed_nor_logged_again_while_it_stays() {
        let mut strangers = Strangers::default();
        strangers.met(peer(1), "mac2", host(1), None, NOW);
        assert!(strangers.dismiss(&peer(1)) && !strangers.dismiss(&peer(1)) && !strangers.dismiss(&peer(2)));
        assert_eq!(strangers.met(peer(1), "mac3", host(1), None, NOW + 1), None);
        assert!(strangers.list(NOW + 1).is_empty());
        let returned = NOW + 1 + KEPT_S;
        assert_eq!(strangers.met(peer(1), "mac2", host(1), None, returned), Some(LogLine::Stranger));
        strangers.forget(&peer(1));
        assert!(strangers.list(returned).is_empty());
    }

    #[test]
    fn offers_are_limited_by_host_and_in_all() {
        let mut strangers = Strangers::default();
        for _ in 0..MAX_OFFERS_PER_HOST {
            assert!(strangers.may_offer(host(1), NOW));
        }
        assert!(!strangers.may_offer(host(1), NOW));
        for number in 2..=(MAX_OFFERS - MAX_OFFERS_PER_HOST) as u8 + 1 {
            assert!(strangers.may_offer(host(number), NOW));
        }
        assert!(!strangers.may_offer(host(99), NOW + WAIT_S - 1));
        assert!(strangers.may_offer(host(99), NOW + WAIT_S));
    }

    proptest! {
        #[test]
        fn whatever_comes_the_list_stays_bounded(events in prop::collection::vec((0..200u64, 0..40u8, 0..400u64), 0..400)) {
            let (mut strangers, mut now) = (Strangers::default(), NOW);
            for (number, at, later) in events {
                now += later / 100;
                strangers.met(peer(number), "mac", host(at), None, now);
                let listed = strangers.list(now);
                prop_assert!(listed.len() <= MAX_STRANGERS);
                prop_assert!(listed.iter().any(|stranger| stranger.peer == peer(number)), "the last one is listed");
                let most = (0..40u8).map(|at| strangers.known.values().filter(|entry| entry.host == host(at)).count());
                prop_assert!(most.max().unwrap_or(0) <= MAX_PER_HOST);
            }
        }
    }
}
