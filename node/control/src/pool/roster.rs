//! Decides which nodes are in the pool, from gossiped adverts and connections: whether an advert is newer than the
//! known one, and when a node counts as gone.
//!
//! A node is in the pool while it is connected, or while newer adverts of it arrive through other nodes. A node whose
//! connection ended is gone until it publishes a newer advert: relayed copies of earlier adverts do not bring it back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use libp2p_identity::PeerId;

use super::advert::Advert;
use crate::Time;

/// Silence after which a node that is not connected counts as gone: the time of several adverts.
pub const SILENT: Duration = Duration::from_millis(4000);

/// Time for which adverts published before a connection ended may still arrive: they are relayed within milliseconds.
const HOLD: Duration = Duration::from_millis(300);

/// Maximum known nodes of a pool, far more than a node connects to. Adverts of further nodes are ignored.
const MAX_NODES: usize = 1024;

/// Maximum remembered nodes that are gone, so that their earlier adverts are recognised.
const MAX_GONE: usize = 4096;

/// How an advert compares with the known ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// The first advert of a node that was not in the pool.
    Joined,
    /// Newer than the last known advert of its node.
    Newer,
    /// A copy, or older than the known one. It is not relayed.
    Old,
}

/// Order of a node's adverts: incarnation, then sequence.
type Edition = (u64, u64);

#[derive(Debug)]
struct Member {
    advert: Arc<Advert>,
    heard: Time,
}

#[derive(Debug)]
struct Gone {
    edition: Edition,
    /// Adverts of the same incarnation are ignored until then.
    until: Time,
    since: Time,
}

/// The nodes of the pool except this one.
#[derive(Debug)]
pub struct Roster {
    local: PeerId,
    members: BTreeMap<PeerId, Member>,
    connected: BTreeSet<PeerId>,
    gone: BTreeMap<PeerId, Gone>,
    /// Quarantined nodes: never members, whatever they or others advertise.
    excluded: BTreeSet<PeerId>,
}

impl Roster {
    /// The roster of node `local`, which is never listed itself.
    pub fn new(local: PeerId) -> Roster {
        Roster {
            local,
            members: BTreeMap::new(),
            connected: BTreeSet::new(),
            gone: BTreeMap::new(),
            excluded: BTreeSet::new(),
        }
    }

    /// Processes an advert.
    pub fn heard(&mut self, advert: Advert, now: Time) -> Heard {
        let (peer, edition) = (advert.peer, (advert.incarnation, advert.sequence));
        if peer == self.local || self.excluded.contains(&peer) {
            return Heard::Old;
        }
        if let Some(member) = self.members.get_mut(&peer) {
            if edition <= (member.advert.incarnation, member.advert.sequence) {
                return Heard::Old;
            }
            *member = Member { advert: Arc::new(advert), heard: now };
            return Heard::Newer;
        }
        if let Some(gone) = self.gone.get_mut(&peer) {
            let known = gone.edition;
            if edition <= known {
                return Heard::Old;
            }
            if edition.0 == known.0 && now < gone.until && !self.connected.contains(&peer) {
                gone.edition = edition;
                return Heard::Old;
            }
        }
        if self.members.len() >= MAX_NODES {
            return Heard::Old;
        }
        self.gone.remove(&peer);
        self.members.insert(peer, Member { advert: Arc::new(advert), heard: now });
        Heard::Joined
    }

    /// Records a connection to `peer`.
    pub fn connected(&mut self, peer: PeerId) {
        self.connected.insert(peer);
    }

    /// Records that the last connection to `peer` ended; returns whether the peer was in the pool until now.
    pub fn disconnected(&mut self, peer: PeerId, now: Time) -> bool {
        self.connected.remove(&peer);
        self.lose(peer, now)
    }

    /// Excludes `peer` from the pool: its adverts are neither processed nor relayed. Returns whether it was in the pool
    /// until now.
    pub fn exclude(&mut self, peer: PeerId, now: Time) -> bool {
        self.excluded.insert(peer);
        self.lose(peer, now)
    }

    /// Removes nodes that have been silent for too long, and returns them.
    pub fn silent(&mut self, now: Time) -> Vec<PeerId> {
        let silent = |(peer, member): (&PeerId, &Member)| {
            let away = !self.connected.contains(peer) && now.since(member.heard) >= SILENT;
            away.then_some(*peer)
        };
        let silent: Vec<PeerId> = self.members.iter().filter_map(silent).collect();
        for peer in &silent {
            self.lose(*peer, now);
        }
        silent
    }

    fn lose(&mut self, peer: PeerId, now: Time) -> bool {
        let Some(member) = self.members.remove(&peer) else { return false };
        if self.gone.len() >= MAX_GONE
            && let Some(oldest) = self.gone.iter().min_by_key(|(_, gone)| gone.since).map(|(peer, _)| *peer)
        {
            self.gone.remove(&oldest);
        }
        let edition = (member.advert.incarnation, member.advert.sequence);
        self.gone.insert(peer, Gone { edition, until: now + HOLD, since: now });
        true
    }

    /// Whether `peer` is in the pool.
    pub fn contains(&self, peer: &PeerId) -> bool {
        self.members.contains_key(peer)
    }

    /// Whether there is a connection to `peer`.
    pub fn is_connected(&self, peer: &PeerId) -> bool {
        self.connected.contains(peer)
    }

    /// The connected peers.
    pub fn connections(&self) -> &BTreeSet<PeerId> {
        &self.connected
    }

    /// The latest adverts of all nodes of the pool.
    pub fn adverts(&self) -> impl Iterator<Item = &Arc<Advert>> {
        self.members.values().map(|member| &member.advert)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::Term;
    use crate::pool::advert_of;
    use crate::pool::election::{Candidate, Changed, Election, Event};

    fn ms(ms: u64) -> Time {
        Time::from_millis(ms)
    }

    struct Case {
        roster: Roster,
        peer: PeerId,
    }

    impl Case {
        fn new() -> Case {
            Case { roster: Roster::new(crate::test_peers::fresh_peer()), peer: crate::test_peers::fresh_peer() }
        }

        fn hear(&mut self, incarnation: u64, sequence: u64, at: u64) -> Heard {
            let advert = Advert { incarnation, sequence, ..advert_of(self.peer) };
            self.roster.heard(advert, ms(at))
        }
    }

    #[test]
    fn copies_and_older_adverts_are_ignored() {
        let mut case = Case::new();
        assert_eq!(case.hear(5, 1, 0), Heard::Joined);
        assert_eq!(case.hear(5, 2, 0), Heard::Newer);
        assert_eq!(case.hear(5, 2, 0), Heard::Old);
        assert_eq!(case.hear(5, 1, 0), Heard::Old);
        assert_eq!(case.hear(4, 9, 0), Heard::Old, "an earlier run");
        assert_eq!(case.hear(6, 1, 0), Heard::Newer, "a later run");
        let own = Advert { peer: case.roster.local, ..advert_of(case.peer) };
        assert_eq!(case.roster.heard(own, ms(0)), Heard::Old);
    }

    #[test]
    fn adverts_in_flight_when_a_node_died_do_not_bring_it_back() {
        let mut case = Case::new();
        case.roster.connected(case.peer);
        case.hear(5, 7, 0);
        assert!(case.roster.disconnected(case.peer, ms(1000)));
        assert!(!case.roster.contains(&case.peer));
        assert_eq!(case.hear(5, 7, 1001), Heard::Old, "a copy");
        assert_eq!(case.hear(5, 8, 1200), Heard::Old, "sent before it died, relayed late");
        assert_eq!(case.hear(5, 8, 9000), Heard::Old, "the same, much later");
        assert_eq!(case.hear(5, 9, 9000), Heard::Joined, "a newer advert: only the connection had failed");
    }

    #[test]
    fn a_node_that_restarts_or_reconnects_is_back_at_once() {
        let mut case = Case::new();
        case.hear(5, 7, 0);
        case.roster.disconnected(case.peer, ms(1000));
        assert_eq!(case.hear(6, 1, 1001), Heard::Joined);
        case.roster.disconnected(case.peer, ms(2000));
        case.roster.connected(case.peer);
        assert_eq!(case.hear(6, 2, 2001), Heard::Joined);
    }

    #[test]
    fn a_relayed_node_is_gone_when_it_falls_silent() {
        let mut case = Case::new();
        case.hear(5, 1, 0);
        assert!(case.roster.silent(ms(3999)).is_empty());
        assert_eq!(case.roster.silent(ms(4000)), [case.peer]);
        assert!(case.roster.silent(ms(5000)).is_empty(), "once");
        case.roster.connected(case.peer);
        assert_eq!(case.hear(5, 2, 5000), Heard::Joined);
        assert!(case.roster.silent(ms(60_000)).is_empty(), "the network decides when a connected node is dead");
    }

    #[test]
    fn a_quarantined_node_is_gone_and_its_adverts_are_ignored() {
        let mut case = Case::new();
        let mut election = Election::new(case.roster.local, true, false, None);
        let term = Term { counter: 3, master: case.peer };
        let claims = |sequence| Advert {
            incarnation: 5,
            sequence,
            term: Some(term),
            works: true,
            force_master: true,
            uptime: Duration::from_secs(3600),
            ..advert_of(case.peer)
        };
        let voice = Candidate::of(&claims(1));
        assert_eq!(case.roster.heard(claims(1), ms(0)), Heard::Joined);
        assert_eq!(election.handle(Event::Heard(case.peer, voice), ms(0)), Some(Changed(Some(term))));

        assert!(case.roster.exclude(case.peer, ms(1000)));
        assert_eq!(election.handle(Event::Gone { peer: case.peer, silent: true }, ms(1000)), Some(Changed(None)));
        assert_eq!(case.roster.heard(claims(2), ms(1100)), Heard::Old);
        case.roster.connected(case.peer);
        assert_eq!(case.roster.heard(Advert { incarnation: 6, ..claims(1) }, ms(60_000)), Heard::Old, "a later run");
        assert!(!case.roster.contains(&case.peer));
        let own = Term { counter: 4, master: case.roster.local };
        assert_eq!(election.handle(Event::Tick, ms(10_000)), Some(Changed(Some(own))));
        assert!(!case.roster.exclude(case.peer, ms(60_001)), "it was no longer a member");
    }

    #[test]
    fn the_number_of_known_nodes_is_limited() {
        let mut case = Case::new();
        for _ in 0..MAX_NODES + 10 {
            case.peer = crate::test_peers::fresh_peer();
            case.hear(1, 1, 0);
        }
        assert_eq!(case.roster.adverts().count(), MAX_NODES);
    }
}
