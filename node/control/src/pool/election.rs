//! Which node is the master, as one node decides it from the adverts of the others. Its driver stores and publishes the
//! decisions.
//!
//! A master claims its term by naming itself in its advert. A node follows the highest claim of any node of the pool, and
//! never one below a term that it has followed. Without a claim, the highest ranked node claims a term with a counter above
//! all known ones. Where two nodes claim (a partition healed), the one that ranks higher takes the next counter, once, and
//! the other steps down. A newcomer accepts the master of the pool, unless it alone was started with `--force-master`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use libp2p_identity::PeerId;

use super::advert::{Advert, Term};
use crate::Time;

/// Time for which a node that starts listens before it claims mastership.
pub const LISTEN: Duration = Duration::from_secs(3);

/// Time after the master's connection broke within which its next advert may still arrive through other nodes.
const GRACE_BROKEN: Duration = Duration::from_millis(1500);

/// Time after the master fell silent or gave up its term, within which other nodes notice that, too.
const GRACE_SILENT: Duration = Duration::from_millis(250);

/// Time that each higher ranked node has to make its claim.
const CLAIM_WAIT: Duration = Duration::from_millis(750);

/// Maximum number of higher ranked nodes to wait for, so that there is a master within 5 s whatever they do.
const MAX_CLAIM_WAITS: u32 = 2;

/// Difference up to which two uptimes count as equal: they are measured, and adverts take time to arrive.
const SAME_UPTIME: Duration = Duration::from_secs(2);

/// Largest plausible lead of a counter over all known ones. Adverts with a higher counter are ignored, so that no node can
/// exhaust the counters.
const MAX_COUNTER_LEAD: u64 = 1 << 32;

/// What the election takes from a node's advert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Whether the node computes for others, and so can be the master.
    pub works: bool,
    /// Whether the node was started with `--force-master`.
    pub force_master: bool,
    /// How long the node has been up.
    pub uptime: Duration,
    /// The term that the node follows.
    pub term: Option<Term>,
    /// The highest counter that the node knows.
    pub counter: u64,
}

impl Candidate {
    /// The candidate that an advert describes.
    pub fn of(advert: &Advert) -> Candidate {
        Candidate {
            works: advert.works,
            force_master: advert.force_master,
            uptime: advert.uptime,
            term: advert.term,
            counter: advert.counter,
        }
    }
}

/// Input of the election.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    /// A node of the pool published a newer advert.
    Heard(PeerId, Candidate),
    /// A node is gone.
    Gone {
        /// The node.
        peer: PeerId,
        /// Whether it fell silent for seconds; otherwise its connection broke.
        silent: bool,
    },
    /// Time passed.
    Tick,
}

/// The node follows another term, or none. The term must be stored before it is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changed(pub Option<Term>);

#[derive(Clone, Copy, Debug)]
struct Other {
    candidate: Candidate,
    heard: Time,
}

impl Other {
    fn uptime(&self, now: Time) -> Duration {
        self.candidate.uptime.saturating_add(now.since(self.heard))
    }

    /// The term that this node claims.
    fn claim(&self, peer: PeerId) -> Option<Term> {
        self.candidate.term.filter(|term| term.master == peer && self.candidate.works)
    }
}

/// Rank in an election.
#[derive(Clone, Copy)]
struct Rank {
    force_master: bool,
    uptime: Duration,
    peer: PeerId,
}

impl Rank {
    fn outranks(&self, other: &Rank) -> bool {
        if self.force_master != other.force_master {
            return self.force_master;
        }
        if self.uptime.abs_diff(other.uptime) > SAME_UPTIME {
            return self.uptime > other.uptime;
        }
        self.peer > other.peer
    }
}

/// The election as one node sees it. Times count from the node's start.
#[derive(Debug)]
pub struct Election {
    local: PeerId,
    works: bool,
    force_master: bool,
    others: BTreeMap<PeerId, Other>,
    /// The term that this node follows.
    term: Option<Term>,
    /// The highest term that this node has ever followed.
    floor: Option<Term>,
    counter: u64,
    /// Without a master: the earliest time at which this node may claim mastership.
    open: Time,
    /// Rivals over which this node has claimed a higher counter. It yields to a rival that comes back, so that two
    /// nodes that disagree about their ranks do not outbid each other forever.
    outbid: BTreeSet<PeerId>,
}

impl Election {
    /// The election of a node that starts. `stored`: the term that it followed in an earlier run. A node that does not
    /// compute for others never becomes the master.
    pub fn new(local: PeerId, works: bool, force_master: bool, stored: Option<Term>) -> Election {
        Election {
            local,
            works,
            force_master,
            others: BTreeMap::new(),
            term: None,
            floor: stored,
            counter: stored.map_or(0, |term| term.counter),
            open: Time::ZERO + LISTEN,
            outbid: BTreeSet::new(),
        }
    }

    /// The term that this node follows.
    pub fn term(&self) -> Option<Term> {
        self.term
    }

    /// The highest counter that this node knows.
    pub fn counter(&self) -> u64 {
        self.counter
    }

    /// Processes an event; returns the new term if it changes.
    pub fn handle(&mut self, event: Event, now: Time) -> Option<Changed> {
        let mut grace = GRACE_SILENT;
        match event {
            Event::Heard(peer, candidate) if peer != self.local => {
                let counter = candidate.counter.max(candidate.term.map_or(0, |term| term.counter));
                if counter <= self.counter.saturating_add(MAX_COUNTER_LEAD) {
                    self.counter = self.counter.max(counter);
                    self.others.insert(peer, Other { candidate, heard: now });
                }
            }
            Event::Gone { peer, silent } => {
                self.others.remove(&peer);
                grace = if silent { GRACE_SILENT } else { GRACE_BROKEN };
            }
            Event::Heard(..) | Event::Tick => {}
        }
        let others = &self.others;
        self.outbid.retain(|rival| others.get(rival).is_some_and(|other| other.claim(*rival).is_some()));
        let before = self.term;
        self.drop_vacated(grace, now);
        match self.term {
            Some(term) if term.master == self.local => self.as_master(term, now),
            Some(term) => self.as_follower(term, now),
            None => self.with_none(now),
        }
        (self.term != before).then_some(Changed(self.term))
    }

    /// Ends a term whose master is gone or no longer claims it.
    fn drop_vacated(&mut self, grace: Duration, now: Time) {
        let Some(term) = self.term.filter(|term| term.master != self.local) else { return };
        let claim = self.others.get(&term.master).and_then(|other| other.claim(term.master));
        if claim.is_none_or(|claim| claim < term) {
            self.term = None;
            self.open = self.open.max(now + grace);
        }
    }

    fn as_master(&mut self, term: Term, now: Time) {
        if let Some((rival, other)) = self.highest_claim().filter(|(_, claim)| *claim > term) {
            let outranks =
                self.others.get(&rival).is_some_and(|other| self.rank(now).outranks(&rank_of(rival, other, now)));
            if outranks && self.outbid.insert(rival) {
                self.claim();
            } else {
                self.enter(other);
            }
            return;
        }
        // A node that has followed a higher term follows no lower one.
        let above = |other: &Other| other.candidate.term.is_none() && other.candidate.counter > term.counter;
        if self.others.values().any(above) {
            self.claim();
        }
    }

    fn as_follower(&mut self, term: Term, now: Time) {
        if let Some((_, claim)) = self.highest_claim().filter(|(_, claim)| *claim > term) {
            self.enter(claim);
            return;
        }
        let forced = self.others.get(&term.master).is_some_and(|master| master.candidate.force_master);
        if self.works && self.force_master && !forced && now >= self.open {
            self.claim();
        }
    }

    fn with_none(&mut self, now: Time) {
        let claim = self.highest_claim();
        if let Some((_, claim)) = claim.filter(|(_, claim)| Some(*claim) >= self.floor) {
            self.enter(claim);
            return;
        }
        if !self.works {
            return;
        }
        let own = self.rank(now);
        let better = self
            .others
            .iter()
            .filter(|(_, other)| other.candidate.works && other.uptime(now) >= LISTEN)
            .filter(|(peer, other)| rank_of(**peer, other, now).outranks(&own))
            .count();
        // A master whose term is lower than one that this node has followed learns of that and claims a higher one.
        let waits = u32::try_from(better).unwrap_or(u32::MAX).saturating_add(u32::from(claim.is_some()) * 2);
        if now >= self.open + CLAIM_WAIT * waits.min(MAX_CLAIM_WAITS) {
            self.claim();
        }
    }

    /// The highest claim of another node.
    fn highest_claim(&self) -> Option<(PeerId, Term)> {
        let claims = self.others.iter().filter_map(|(peer, other)| Some((*peer, other.claim(*peer)?)));
        claims.max_by_key(|(_, claim)| *claim)
    }

    fn rank(&self, now: Time) -> Rank {
        Rank { force_master: self.force_master, uptime: now.elapsed(), peer: self.local }
    }

    fn claim(&mut self) {
        self.enter(Term { counter: self.counter.saturating_add(1), master: self.local });
    }

    fn enter(&mut self, term: Term) {
        self.term = Some(term);
        self.floor = self.floor.max(self.term);
        self.counter = self.counter.max(term.counter);
    }
}

fn rank_of(peer: PeerId, other: &Other, now: Time) -> Rank {
    Rank { force_master: other.candidate.force_master, uptime: other.uptime(now), peer }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_advert_with_an_implausible_term_is_ignored() {
        let (local, liar) = (crate::test_peers::fresh_peer(), crate::test_peers::fresh_peer());
        let mut election = Election::new(local, true, false, None);
        let term = Term { counter: u64::MAX - 1, master: liar };
        let candidate =
            Candidate { works: true, force_master: true, uptime: LISTEN, term: Some(term), counter: u64::MAX };
        assert_eq!(election.handle(Event::Heard(liar, candidate), Time::ZERO), None);
        assert_eq!(
            election.handle(Event::Tick, Time::ZERO + LISTEN),
            Some(Changed(Some(Term { counter: 1, master: local })))
        );
    }

    #[test]
    fn one_of_two_masters_that_both_rank_themselves_higher_gives_in() {
        let (local, rival) = (crate::test_peers::fresh_peer(), crate::test_peers::fresh_peer());
        let mut election = Election::new(local, true, false, None);
        let now = Time::from_secs(60);
        election.handle(Event::Tick, now);
        // The rival always claims to have started a second ago.
        let claims = |counter| Candidate {
            works: true,
            force_master: false,
            uptime: Duration::from_secs(1),
            term: Some(Term { counter, master: rival }),
            counter,
        };
        let outbid = election.handle(Event::Heard(rival, claims(5)), now);
        assert_eq!(outbid, Some(Changed(Some(Term { counter: 6, master: local }))));
        let given_in = election.handle(Event::Heard(rival, claims(7)), now);
        assert_eq!(given_in, Some(Changed(Some(Term { counter: 7, master: rival }))));
    }
}
