//! Decides which connections stay open at one port when more arrive than there are places for: a newcomer gets the place
//! of the connection that has shown least and waited longest, at the address that takes most places. It never sees a
//! socket; the driver closes what it names.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::Time;

/// Where a caller is: an IPv4 address, or the /64 network of an IPv6 address, because whoever has one address of such a
/// network has all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin(IpAddr);

impl Origin {
    /// This host.
    pub const LOCAL: Origin = Origin(IpAddr::V4(Ipv4Addr::LOCALHOST));

    /// The origin of a caller at `address`.
    pub fn of(address: IpAddr) -> Origin {
        match address.to_canonical() {
            address if address.is_loopback() => Origin::LOCAL,
            IpAddr::V4(address) => Origin(address.into()),
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                Origin(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into())
            }
        }
    }

    /// Whether the caller is on this host.
    pub fn is_local(self) -> bool {
        self == Origin::LOCAL
    }
}

/// Places of one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallerLimits {
    /// Connections open at once.
    pub total: usize,
    /// Connections of one other host that are open at once.
    pub per_origin: usize,
    /// Places that only callers on this host can take.
    pub local: usize,
}

/// What a connection has shown so far. The order is the order in which places are taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// It has not shown that it may call.
    Unproven,
    /// It may call, and nothing of it is being done.
    Idle,
    /// Something of it is being done: its place is not taken away.
    Busy,
}

/// Identifies a connection at one port, forever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallerNumber(u64);

/// What becomes of a newcomer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// The connection is open from now on.
    Enters {
        /// Its number.
        number: CallerNumber,
        /// The connection to close for it.
        instead_of: Option<CallerNumber>,
    },
    /// Every place is busy.
    Refused,
}

#[derive(Clone, Copy, Debug)]
struct Caller {
    origin: Origin,
    standing: Standing,
    /// Since when it stands like this.
    since: Time,
}

/// The connections of one port.
#[derive(Debug)]
pub struct Callers {
    limits: CallerLimits,
    next: u64,
    open: BTreeMap<CallerNumber, Caller>,
}

impl Callers {
    /// No connections yet.
    pub fn new(limits: CallerLimits) -> Callers {
        Callers { limits, next: 0, open: BTreeMap::new() }
    }

    /// A connection from `origin` has arrived.
    pub fn arrived(&mut self, origin: Origin, now: Time) -> Arrival {
        let count = |of: &dyn Fn(Origin) -> bool| self.open.values().filter(|caller| of(caller.origin)).count();
        let remote = |origin: Origin| !origin.is_local();
        let shared = self.limits.total.saturating_sub(self.limits.local);
        let instead_of = if remote(origin) && count(&|of| of == origin) >= self.limits.per_origin {
            Some(self.least(|of| of == origin))
        } else if remote(origin) && count(&remote) >= shared {
            Some(self.least(remote))
        } else if self.open.len() >= self.limits.total {
            Some(self.least(|_| true))
        } else {
            None
        };
        let instead_of = match instead_of {
            Some(None) => return Arrival::Refused,
            Some(evicted) => evicted,
            None => None,
        };
        if let Some(evicted) = instead_of {
            self.open.remove(&evicted);
        }
        let number = CallerNumber(self.next);
        self.next += 1;
        self.open.insert(number, Caller { origin, standing: Standing::Unproven, since: now });
        Arrival::Enters { number, instead_of }
    }

    /// The connection to close first among those of `scope`: unproven before idle, then of the origin with most of these,
    /// then the one that has waited longest. `None` if all are busy.
    fn least(&self, scope: impl Fn(Origin) -> bool) -> Option<CallerNumber> {
        let in_scope = || self.open.iter().filter(|(_, caller)| scope(caller.origin));
        let standing = in_scope().map(|(_, caller)| caller.standing).min().filter(|least| *least != Standing::Busy)?;
        let candidates = || in_scope().filter(|(_, caller)| caller.standing == standing);
        let mut by_origin: BTreeMap<Origin, usize> = BTreeMap::new();
        for (_, caller) in candidates() {
            *by_origin.entry(caller.origin).or_default() += 1;
        }
        let most = by_origin.values().max().copied()?;
        candidates()
            .filter(|(_, caller)| by_origin.get(&caller.origin) == Some(&most))
            .min_by_key(|(number, caller)| (caller.since, **number))
            .map(|(number, _)| *number)
    }

    /// A connection stands otherwise now. Nothing happens if it was closed.
    pub fn stands(&mut self, number: CallerNumber, standing: Standing, now: Time) {
        if let Some(caller) = self.open.get_mut(&number) {
            (caller.standing, caller.since) = (standing, now);
        }
    }

    /// A connection has ended.
    pub fn left(&mut self, number: CallerNumber) {
        self.open.remove(&number);
    }

    /// Number of open connections.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether no connection is open.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const LIMITS: CallerLimits = CallerLimits { total: 8, per_origin: 4, local: 2 };

    fn at(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(seconds)
    }

    fn origin(text: &str) -> Origin {
        Origin::of(text.parse().unwrap())
    }

    fn enter(callers: &mut Callers, from: &str, seconds: u64) -> (CallerNumber, Option<CallerNumber>) {
        match callers.arrived(origin(from), at(seconds)) {
            Arrival::Enters { number, instead_of } => (number, instead_of),
            Arrival::Refused => panic!("refused"),
        }
    }

    #[test]
    fn an_ipv6_network_and_a_mapped_address_are_one_origin() {
        assert_eq!(origin("2001:db8:1:2::1"), origin("2001:db8:1:2:ffff::9"));
        assert_ne!(origin("2001:db8:1:2::1"), origin("2001:db8:1:3::1"));
        assert_eq!(origin("::ffff:10.0.0.1"), origin("10.0.0.1"));
        assert_ne!(origin("10.0.0.1"), origin("10.0.0.2"));
        assert!(["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"].iter().all(|text| origin(text).is_local()));
    }

    #[test]
    fn a_newcomer_gets_the_place_of_the_oldest_at_its_own_full_address() {
        let mut callers = Callers::new(LIMITS);
        let (first, _) = enter(&mut callers, "10.0.0.1", 0);
        for second in 1..4 {
            assert_eq!(enter(&mut callers, "10.0.0.1", second).1, None);
        }
        assert_eq!(enter(&mut callers, "10.0.0.2", 4).1, None, "another address is not affected");
        assert_eq!(enter(&mut callers, "10.0.0.1", 5).1, Some(first));
        assert_eq!(callers.len(), 5);
    }

    #[test]
    fn the_greediest_address_pays_for_a_newcomer() {
        let mut callers = Callers::new(LIMITS);
        let (honest, _) = enter(&mut callers, "10.0.0.1", 0);
        let greedy: Vec<_> = (1..4).map(|second| enter(&mut callers, "10.0.0.2", second).0).collect();
        let others: Vec<_> = (4..6).map(|second| enter(&mut callers, "10.0.0.3", second).0).collect();
        assert_eq!(callers.len(), LIMITS.total - LIMITS.local);
        assert_eq!(enter(&mut callers, "10.0.0.4", 9).1, Some(greedy[0]));
        // Two addresses have two each now; the one that waits longest pays.
        assert_eq!(enter(&mut callers, "10.0.0.5", 10).1, Some(greedy[1]));
        assert_eq!(enter(&mut callers, "10.0.0.6", 11).1, Some(others[0]));
        assert_eq!(enter(&mut callers, "10.0.0.7", 12).1, Some(honest), "one each: the oldest");
    }

    #[test]
    fn callers_on_this_host_always_find_a_place_beside_those_of_others() {
        let mut callers = Callers::new(LIMITS);
        for host in 0..6 {
            let (number, _) = enter(&mut callers, &format!("10.0.0.{host}"), 0);
            callers.stands(number, Standing::Busy, at(0));
        }
        assert_eq!(callers.arrived(origin("10.0.1.1"), at(1)), Arrival::Refused);
        let (first, none) = enter(&mut callers, "127.0.0.1", 1);
        assert_eq!((none, enter(&mut callers, "::1", 2).1), (None, None));
        assert_eq!(enter(&mut callers, "127.0.0.1", 3).1, Some(first));
    }

    #[test]
    fn unproven_callers_pay_before_idle_ones_and_busy_ones_never() {
        let mut callers = Callers::new(CallerLimits { total: 3, per_origin: 3, local: 0 });
        let (busy, _) = enter(&mut callers, "127.0.0.1", 0);
        let (idle, _) = enter(&mut callers, "127.0.0.1", 1);
        callers.stands(busy, Standing::Busy, at(2));
        callers.stands(idle, Standing::Idle, at(2));
        let (unproven, _) = enter(&mut callers, "127.0.0.1", 3);
        let (next, evicted) = enter(&mut callers, "127.0.0.1", 4);
        assert_eq!(evicted, Some(unproven));
        callers.stands(unproven, Standing::Busy, at(4));
        callers.stands(next, Standing::Busy, at(4));
        assert_eq!(enter(&mut callers, "127.0.0.1", 5).1, Some(idle));
        callers.left(next);
        assert_eq!(enter(&mut callers, "127.0.0.1", 6).1, None);
    }
}
