//! Which node is the master, as one node decides it from the adverts of the others. Its driver stores and publishes the
//! decisions.
//!
//! A master claims its term by naming itself in its advert. A node follows the highest claim of any node of the pool, and
//! never one below a term that it has followed. Without a claim, the highest ranked node claims a term with a counter above
//! all known ones. Where two nodes claim (a partition healed), the one that ranks higher takes the next counter, once, and
//! the other steps down. A newcomer accepts the master of the pool, unless it alone was started with `--force-master`.
//!
//! Counters that are further apart than [`LEAP`] cannot both come from elections of one pool. Then the lower one counts: a
//! claim far above another one, or far above the own term, is not followed, and a node that has followed a term far above a
//! claim forgets that term. So no message raises the counters of a pool to a height from which it does not come down, and
//! counters start again at 1 after [`MAX_COUNTER`].

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
const CLAIM_WAIT: Duration = Duration::from_millis(500);

/// Maximum number of higher ranked nodes to wait for, so that there is a master within 5 s whatever they do, even where the first
/// claim is answered by a higher one.
const MAX_CLAIM_WAITS: u32 = 2;

/// Difference up to which two uptimes count as equal: they are measured, and adverts take time to arrive.
const SAME_UPTIME: Duration = Duration::from_secs(2);

/// Largest difference of two counters that elections of one pool explain: more than an election per second on one side of a
/// partition that lasts for twelve days.
pub const LEAP: u64 = 1 << 20;

/// Highest counter of a claim; claims above it do not count. The claim after it has the counter 1, which every node
/// follows, because it is more than [`LEAP`] lower.
pub const MAX_COUNTER: u64 = 1 << 48;

/// Shortest time between two claims that a master makes only because others know higher counters. A node that reports ever
/// higher counters causes no more than that.
const RECLAIM_INTERVAL: Duration = Duration::from_secs(1);

/// Counters of this node's own claims that it remembers: one attacker can cause a claim per [`RECLAIM_INTERVAL`], for an hour.
const CLAIMS_KEPT: usize = 3_600;

/// Time for which a node claims nothing after its disk refused the term that it claimed.
const REFUSED_WAIT: Duration = Duration::from_secs(2);

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
    /// The disk refused a term that this node claimed.
    NotStored(Term),
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
        let claims = |term: &Term| term.master == peer && self.candidate.works && term.counter <= MAX_COUNTER;
        self.candidate.term.filter(claims)
    }

    /// The highest counter that this node reports.
    fn counter(&self) -> u64 {
        self.candidate.counter.max(self.candidate.term.map_or(0, |term| term.counter))
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
    /// The last term that this node followed, in an earlier run or in this one. It follows none below it.
    floor: Option<Term>,
    /// The floor before this node made its last claim, in case the disk refuses the claim.
    floor_before_claim: Option<Term>,
    claimed: Time,
    /// Counters that this node has claimed.
    own_claims: BTreeSet<u64>,
    /// Those that it claimed before its floor came down. It claims none of them again: a term in which a node says one thing must not
    /// come back with another.
    spent_claims: BTreeSet<u64>,
    /// Earliest time at which this node may claim a term after its disk refused one.
    may_claim_from: Time,
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
            floor_before_claim: stored,
            claimed: Time::ZERO,
            own_claims: BTreeSet::new(),
            spent_claims: BTreeSet::new(),
            may_claim_from: Time::ZERO,
            open: Time::ZERO + LISTEN,
            outbid: BTreeSet::new(),
        }
    }

    /// The term that this node follows.
    pub fn term(&self) -> Option<Term> {
        self.term
    }

    /// The counter that this node publishes: the highest one that it knows and believes, or one more where the highest claim
    /// has the counter of the last term that this node followed, but not its rank. This node cannot follow that claim, and
    /// its master learns only from a higher counter that it has to claim another term.
    pub fn counter(&self) -> u64 {
        let claim = self.highest_claim().filter(|_| self.term.is_none()).map(|(_, claim)| claim);
        let tied = self.floor.zip(claim).filter(|(floor, claim)| floor.counter == claim.counter && floor > claim);
        let above = tied.map(|(floor, _)| (floor.counter + 1).min(MAX_COUNTER));
        above.into_iter().chain([self.known()]).max().unwrap_or(0)
    }

    fn known(&self) -> u64 {
        let reported = self.others.values().map(Other::counter).filter(|counter| *counter > 0);
        let lowest = self.lowest().unwrap_or(0);
        let believed = |counter: &u64| *counter <= lowest.saturating_add(LEAP).min(MAX_COUNTER);
        let own = self.floor.map(|floor| floor.counter);
        own.into_iter().chain(reported.filter(believed)).max().unwrap_or(0)
    }

    /// Processes an event; returns the new term if it changes.
    pub fn handle(&mut self, event: Event, now: Time) -> Option<Changed> {
        let before = self.term;
        let mut grace = GRACE_SILENT;
        match event {
            Event::Heard(peer, candidate) if peer != self.local => {
                let other = Other { candidate, heard: now };
                // A counter that no election gave: nothing of the advert counts.
                if other.counter() <= MAX_COUNTER {
                    self.others.insert(peer, other)
                } else {
                    self.others.remove(&peer)
                };
            }
            Event::Gone { peer, silent } => {
                self.others.remove(&peer);
                grace = if silent { GRACE_SILENT } else { GRACE_BROKEN };
            }
            Event::NotStored(term) if term.master == self.local && self.term == Some(term) => {
                self.term = None;
                self.floor = self.floor_before_claim;
                self.may_claim_from = now + REFUSED_WAIT;
            }
            Event::Heard(..) | Event::NotStored(_) | Event::Tick => {}
        }
        let others = &self.others;
        self.outbid.retain(|rival| others.get(rival).is_some_and(|other| other.claim(*rival).is_some()));
        self.drop_unbelievable();
        self.drop_vacated(grace, now);
        match self.term {
            Some(term) if term.master == self.local => self.as_master(term, now),
            Some(term) => self.as_follower(term, now),
            None => self.with_none(now),
        }
        (self.term != before).then_some(Changed(self.term))
    }

    /// Forgets the terms that this node has followed if they are far above a claim.
    fn drop_unbelievable(&mut self) {
        let unbelievable = |term: &Option<Term>| term.is_some_and(|term| !self.believes(term.counter));
        let (term, floor) = (unbelievable(&self.term), unbelievable(&self.floor));
        if term {
            self.term = None;
        }
        if floor {
            self.floor = None;
            self.spent_claims.append(&mut self.own_claims);
        }
    }

    /// Ends a term whose master is gone or no longer claims it.
    fn drop_vacated(&mut self, grace: Duration, now: Time) {
        let Some(term) = self.term.filter(|term| term.master != self.local) else { return };
        let claim = self.others.get(&term.master).and_then(|other| other.claim(term.master));
        if claim.is_none_or(|claim| claim < term || !self.believes(claim.counter)) {
            self.term = None;
            self.open = self.open.max(now + grace);
        }
    }

    fn as_master(&mut self, term: Term, now: Time) {
        if let Some((rival, other)) = self.highest_claim().filter(|(_, claim)| *claim > term) {
            let outranks =
                self.others.get(&rival).is_some_and(|other| self.rank(now).outranks(&rank_of(rival, other, now)));
            if outranks && self.outbid.insert(rival) {
                self.claim(now);
            } else {
                self.enter(other);
            }
            return;
        }
        // A node that has followed a higher term follows no lower one.
        let above = |other: &Other| {
            other.candidate.term.is_none()
                && other.candidate.counter > term.counter
                && self.believes(other.candidate.counter)
        };
        if now >= self.claimed + RECLAIM_INTERVAL && self.others.values().any(above) {
            self.claim(now);
        }
    }

    fn as_follower(&mut self, term: Term, now: Time) {
        if let Some((_, claim)) = self.highest_claim().filter(|(_, claim)| *claim > term) {
            self.enter(claim);
            return;
        }
        let forced = self.others.get(&term.master).is_some_and(|master| master.candidate.force_master);
        if self.force_master && !forced && self.may_claim(now) && now >= self.open {
            self.claim(now);
        }
    }

    fn with_none(&mut self, now: Time) {
        let claim = self.highest_claim();
        // A node that starts and has followed no term yet hears the others out before it follows a counter that few elections
        // reach.
        let starts = self.floor.is_none() && now < Time::ZERO + LISTEN;
        let awaits_others = |claim: &Term| starts && claim.counter > LEAP;
        if let Some((_, claim)) = claim.filter(|(_, claim)| Some(*claim) >= self.floor && !awaits_others(claim)) {
            self.enter(claim);
            return;
        }
        if !self.may_claim(now) {
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
            self.claim(now);
        }
    }

    /// Whether this node may claim a term now.
    fn may_claim(&self, now: Time) -> bool {
        self.works && now >= self.may_claim_from
    }

    /// The claims of other nodes.
    fn claims(&self) -> impl Iterator<Item = (PeerId, Term)> {
        self.others.iter().filter_map(|(peer, other)| Some((*peer, other.claim(*peer)?)))
    }

    /// The lowest counter that this node compares others with: those of all claims and, if it can make a claim of its own,
    /// that of the term that it followed last.
    fn lowest(&self) -> Option<u64> {
        let own = self.floor.filter(|_| self.works).map(|floor| floor.counter);
        self.claims().map(|(_, claim)| claim.counter).chain(own).min()
    }

    /// Whether a counter can come from elections of the same pool as the lowest one.
    fn believes(&self, counter: u64) -> bool {
        self.lowest().is_none_or(|lowest| counter <= lowest.saturating_add(LEAP))
    }

    /// The highest claim of another node, without those that are far above another one.
    fn highest_claim(&self) -> Option<(PeerId, Term)> {
        self.claims().filter(|(_, claim)| self.believes(claim.counter)).max_by_key(|(_, claim)| *claim)
    }

    fn rank(&self, now: Time) -> Rank {
        Rank { force_master: self.force_master, uptime: now.elapsed(), peer: self.local }
    }

    fn claim(&mut self, now: Time) {
        let known = self.known();
        // A counter that others would not believe makes nobody follow, and this node follow another one in the next moment.
        let believed = self.lowest().map_or(u64::MAX, |lowest| lowest.saturating_add(LEAP));
        let counter = if known < MAX_COUNTER { (known + 1).min(believed) } else { 1 };
        let is_fresh = |counter: &u64| !self.spent_claims.contains(counter);
        let fresh = (counter..=believed.min(MAX_COUNTER)).find(is_fresh).or_else(|| (1..counter).rev().find(is_fresh));
        let counter = fresh.unwrap_or(counter);
        self.own_claims.insert(counter);
        for claims in [&mut self.own_claims, &mut self.spent_claims] {
            while claims.len() > CLAIMS_KEPT {
                claims.pop_first();
            }
        }
        self.claimed = now;
        self.floor_before_claim = self.floor;
        self.enter(Term { counter, master: self.local });
    }

    fn enter(&mut self, term: Term) {
        self.term = Some(term);
        self.floor = Some(term);
    }
}

fn rank_of(peer: PeerId, other: &Other, now: Time) -> Rank {
    Rank { force_master: other.candidate.force_master, uptime: other.uptime(now), peer }
}

#[cfg(test)]
#[path = "election_tests.rs"]
mod tests;
