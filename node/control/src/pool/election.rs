//! Who is the master: a pure state machine of one node over what the others say. No clock, no sockets, no storage: what it
//! decides is carried out, and remembered, by its driver.
//!
//! A master claims its term by naming itself in its advert; a node follows the highest claim of anyone who is there, and
//! never one below a term that it has lived under. With no claim, the best ranked node makes one with a counter above all
//! that are known. Where two claim (a partition healed), the one that ranks higher takes the next counter, once, and the
//! other steps down; a newcomer accepts the master that is there, unless it alone was started to be the master.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use libp2p_identity::PeerId;

use super::advert::{Advert, Term};
use crate::Time;

/// A node that starts hears who is there before it elects itself.
pub const LISTEN: Duration = Duration::from_secs(3);

/// After the master's connection broke: the time for its next advert to come through others, if it lives.
const GRACE_BROKEN: Duration = Duration::from_millis(1500);

/// After the master was silent for seconds, or gave up its term: only for others to notice, too.
const GRACE_SILENT: Duration = Duration::from_millis(250);

/// How long each better ranked node may take to make its claim.
const PATIENCE: Duration = Duration::from_millis(750);

/// Better ranked nodes that are waited for: one master within 5 s whatever the others do.
const MOST_PATIENCE: u32 = 2;

/// Uptimes that differ by less count as equal: they were measured, and travelled.
const SAME_UPTIME: Duration = Duration::from_secs(2);

/// Counters further above all that is known are no outcome of elections: who names one is not heard, lest it use them up.
const LEAP: u64 = 1 << 32;

/// What a node says that matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Voice {
    /// Whether it can be the master at all.
    pub works: bool,
    /// Whether it was started to be the master.
    pub force_master: bool,
    /// How long it has been up.
    pub uptime: Duration,
    /// The term that it lives under.
    pub term: Option<Term>,
    /// The highest counter that it knows of.
    pub counter: u64,
}

impl Voice {
    /// What `advert` says.
    pub fn of(advert: &Advert) -> Voice {
        Voice {
            works: advert.works,
            force_master: advert.force_master,
            uptime: advert.uptime,
            term: advert.term,
            counter: advert.counter,
        }
    }
}

/// What happened.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    /// A node that is there said something new.
    Heard(PeerId, Voice),
    /// A node is gone; `silent`: it had not been heard for seconds.
    Gone {
        /// Who.
        peer: PeerId,
        /// Whether it fell silent, rather than that its connection broke.
        silent: bool,
    },
    /// Time passed.
    Tick,
}

/// What is to be done: the node lives under another term, or under none. To be remembered before it is told to anyone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changed(pub Option<Term>);

#[derive(Clone, Copy, Debug)]
struct Other {
    voice: Voice,
    heard: Time,
}

impl Other {
    fn uptime(&self, now: Time) -> Duration {
        self.voice.uptime.saturating_add(now.since(self.heard))
    }

    /// The term that it claims to be the master of.
    fn claim(&self, peer: PeerId) -> Option<Term> {
        self.voice.term.filter(|term| term.master == peer && self.voice.works)
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

/// The election as one node sees it. Times are since it started.
#[derive(Debug)]
pub struct Election {
    local: PeerId,
    works: bool,
    force_master: bool,
    others: BTreeMap<PeerId, Other>,
    /// The term that this node lives under.
    term: Option<Term>,
    /// The highest one that it has ever lived under.
    floor: Option<Term>,
    counter: u64,
    /// With no master: from when on this node may stand.
    open: Time,
    /// Rival masters that this node has outbid; a second time it gives in, so that two who disagree on their rank come to an end.
    outbid: BTreeSet<PeerId>,
}

impl Election {
    /// A node that starts now, having lived under `remembered` in an earlier run. One that does not work never becomes the master.
    pub fn new(local: PeerId, works: bool, force_master: bool, remembered: Option<Term>) -> Election {
        Election {
            local,
            works,
            force_master,
            others: BTreeMap::new(),
            term: None,
            floor: remembered,
            counter: remembered.map_or(0, |term| term.counter),
            open: Time::ZERO + LISTEN,
            outbid: BTreeSet::new(),
        }
    }

    /// The term that this node lives under.
    pub fn term(&self) -> Option<Term> {
        self.term
    }

    /// The highest counter that this node knows of.
    pub fn counter(&self) -> u64 {
        self.counter
    }

    /// Takes in `event`, decides.
    pub fn handle(&mut self, event: Event, now: Time) -> Option<Changed> {
        let mut grace = GRACE_SILENT;
        match event {
            Event::Heard(peer, voice) if peer != self.local => {
                let counter = voice.counter.max(voice.term.map_or(0, |term| term.counter));
                if counter <= self.counter.saturating_add(LEAP) {
                    self.counter = self.counter.max(counter);
                    self.others.insert(peer, Other { voice, heard: now });
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

    /// The term is over when its master is gone, or claims it no longer.
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
        // Whoever has lived under a higher term, and is under none now, follows no lower one.
        let above = |other: &Other| other.voice.term.is_none() && other.voice.counter > term.counter;
        if self.others.values().any(above) {
            self.claim();
        }
    }

    fn as_follower(&mut self, term: Term, now: Time) {
        if let Some((_, claim)) = self.highest_claim().filter(|(_, claim)| *claim > term) {
            self.enter(claim);
            return;
        }
        let forced = self.others.get(&term.master).is_some_and(|master| master.voice.force_master);
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
            .filter(|(_, other)| other.voice.works && other.uptime(now) >= LISTEN)
            .filter(|(peer, other)| rank_of(**peer, other, now).outranks(&own))
            .count();
        // A master below what this node has lived under learns of that and takes a higher term.
        let waits = u32::try_from(better).unwrap_or(u32::MAX).saturating_add(u32::from(claim.is_some()) * 2);
        if now >= self.open + PATIENCE * waits.min(MOST_PATIENCE) {
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
    Rank { force_master: other.voice.force_master, uptime: other.uptime(now), peer }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_names_an_impossible_term_is_not_heard() {
        let (local, liar) = (crate::test_peers::fresh_peer(), crate::test_peers::fresh_peer());
        let mut election = Election::new(local, true, false, None);
        let term = Term { counter: u64::MAX - 1, master: liar };
        let voice = Voice { works: true, force_master: true, uptime: LISTEN, term: Some(term), counter: u64::MAX };
        assert_eq!(election.handle(Event::Heard(liar, voice), Time::ZERO), None);
        assert_eq!(
            election.handle(Event::Tick, Time::ZERO + LISTEN),
            Some(Changed(Some(Term { counter: 1, master: local })))
        );
    }

    #[test]
    fn of_two_masters_who_each_take_themselves_for_the_better_one_gives_in() {
        let (local, rival) = (crate::test_peers::fresh_peer(), crate::test_peers::fresh_peer());
        let mut election = Election::new(local, true, false, None);
        let now = Time::from_secs(60);
        election.handle(Event::Tick, now);
        // A second after its start, by its own account, whenever it is heard.
        let claims = |counter| Voice {
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
