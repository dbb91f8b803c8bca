//! What follows from accusations: own findings and what other members say go in with the outcome of this node's own checks,
//! convictions come out. A peer is convicted by evidence that this node checked, or, where this node cannot check it, by two
//! members that did. Signatures, evidence and checks are the driver's.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use libp2p_identity::PeerId;
use pangea_units::Digest;

use crate::Time;

/// Members, the accuser among them, that must have checked evidence themselves before it counts at a node that cannot: the
/// memory of one auditor may be the broken one.
const ACCUSERS_MIN: usize = 2;

/// Accusations of one accuser that are looked at in one run of the node: more liars than a pool of honest people ever has,
/// and few enough that false ones cost little.
const CASES_PER_ACCUSER: usize = 32;

/// Bytes of evidence that are fetched for one accuser in one run of the node: a few of the largest.
const BYTES_PER_ACCUSER: u64 = 1 << 30;

/// Cases remembered in all. Beyond it settled ones without a conviction are forgotten, convictions never; the accusations of
/// every peer of the largest pool fit.
const CASES_MAX: usize = 8192;

/// Accusers remembered per case: [`ACCUSERS_MIN`] suffice, and some of them may turn out to be no members.
const ACCUSERS_PER_CASE: usize = 8;

/// Accusations of this node that are remembered, so that each is reported once. Further ones tell its owner nothing new.
const AGAINST_SELF_MAX: usize = 64;

/// Interval at which every connected peer is told again: what got lost on the way arrives with the next one.
const TELL_INTERVAL: Duration = Duration::from_secs(60);

/// What evidence shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EvidenceKind {
    /// A signed result of an operation that is not the result of its operands.
    Product,
    /// A signed claim of a stage that a replay with the model refutes.
    Stage,
    /// Two signed claims that contradict each other.
    Contradiction,
}

/// One member's statement that it checked evidence of a lie itself. Its signature was verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Accusation {
    /// Who says so.
    pub accuser: PeerId,
    /// Who lied.
    pub accused: PeerId,
    /// What the evidence shows.
    pub kind: EvidenceKind,
    /// Content address of the evidence.
    pub evidence: Digest,
    /// Size of the evidence.
    pub evidence_bytes: u64,
}

/// Outcome of this node's own check of evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recheck {
    /// The evidence proves the lie.
    Proven,
    /// The evidence proves nothing.
    Refuted,
    /// The accused signed it, but this node cannot recompute it: it has not got the model, or not the memory.
    Unable,
}

/// Input.
#[derive(Clone, Debug)]
pub enum Event {
    /// This node proved a lie, now or in an earlier run, and has convicted the peer.
    Found(Accusation),
    /// A connected peer passed an accusation on. It counts only if its accuser is a member in good standing.
    Heard {
        /// The peer that sent it.
        from: PeerId,
        /// The accusation.
        accusation: Accusation,
    },
    /// Evidence that was asked for is here and has its digest.
    Fetched(Digest),
    /// Evidence could not be fetched from the peer that was asked.
    FetchFailed(Digest),
    /// This node's check of evidence ended.
    Checked(Digest, Recheck),
    /// A peer connected.
    Up(PeerId),
    /// A peer is gone.
    Down(PeerId),
    /// Time passed.
    Tick,
}

/// What the driver does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send these accusations to a peer.
    Tell {
        /// The peer.
        peer: PeerId,
        /// The accusations, of this node and of others.
        accusations: Vec<Accusation>,
    },
    /// Fetch evidence.
    Fetch {
        /// Content address of the evidence.
        evidence: Digest,
        /// Its size; more is not read.
        evidence_bytes: u64,
        /// The peer to ask.
        from: PeerId,
    },
    /// Check fetched evidence against its accusation.
    Check(Accusation),
    /// Convict the accused and keep the evidence.
    Convict(Accusation, Ground),
    /// Sign an accusation of this node's own, by the same evidence; it is told in the actions that follow.
    Accuse(Accusation),
    /// An accusation was refuted: its accuser is suspected.
    Suspect(PeerId),
    /// A member accuses this node. Once for each evidence; nothing follows but that its owner is told.
    Accused(Accusation),
    /// Remove fetched evidence: it is of no use.
    Forget(Digest),
}

/// Why a peer is convicted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ground {
    /// This node checked the evidence.
    Checked,
    /// This node could not check the evidence; these members did.
    Confirmed(Vec<PeerId>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// To be fetched from a source.
    Waiting,
    Fetching,
    Checking,
    /// This node cannot check it.
    Unable,
    /// The accused is convicted by it.
    Proven,
    Refuted,
}

/// Evidence and who stands for it.
#[derive(Clone, Debug)]
struct Case {
    /// The first accusation of it.
    first: Accusation,
    /// Everyone who accuses by this evidence.
    accusers: BTreeSet<PeerId>,
    /// Peers that may have the evidence and were not asked since they said so.
    sources: BTreeSet<PeerId>,
    state: State,
    /// Number of the case: the order in which cases were opened.
    number: u64,
}

/// What one accuser has used of its share.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
    cases: usize,
    bytes: u64,
    /// Checks made for it: whoever had fewest is next.
    checks: u64,
}

/// All accusations that this node knows.
#[derive(Debug)]
pub struct Accusations {
    local: PeerId,
    cases: BTreeMap<Digest, Case>,
    /// The cases that wait for a source or for their turn.
    waiting: BTreeSet<Digest>,
    /// The case that is being fetched or checked; one at a time.
    busy: Option<Digest>,
    /// Refuted cases, by number.
    refuted: BTreeMap<u64, Digest>,
    shares: BTreeMap<PeerId, Share>,
    convicted: BTreeSet<PeerId>,
    /// Evidence by which members accuse this node.
    against_self: BTreeSet<Digest>,
    connected: BTreeSet<PeerId>,
    next_number: u64,
    told: Time,
}

impl Accusations {
    /// Without any, on the node `local`.
    pub fn new(local: PeerId) -> Accusations {
        Accusations {
            local,
            cases: BTreeMap::new(),
            waiting: BTreeSet::new(),
            busy: None,
            refuted: BTreeMap::new(),
            shares: BTreeMap::new(),
            convicted: BTreeSet::new(),
            against_self: BTreeSet::new(),
            connected: BTreeSet::new(),
            next_number: 0,
            told: Time::ZERO,
        }
    }

    /// Processes an event; returns the actions in order. `is_member`: whether a peer belongs to the pool and is neither
    /// quarantined nor suspected.
    pub fn handle(&mut self, event: Event, now: Time, is_member: impl Fn(&PeerId) -> bool) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Found(accusation) => self.found(accusation, &mut actions),
            Event::Heard { from, accusation } => self.heard(from, accusation, &is_member, &mut actions),
            Event::Fetched(evidence) => match self.case_in(evidence, State::Fetching) {
                Some(case) => {
                    case.state = State::Checking;
                    actions.push(Action::Check(case.first));
                }
                // This node proved it itself meanwhile.
                None => self.free(evidence),
            },
            Event::FetchFailed(evidence) => {
                self.free(evidence);
                if let Some(case) = self.case_in(evidence, State::Fetching) {
                    case.state = State::Waiting;
                    self.waiting.insert(evidence);
                }
            }
            Event::Checked(evidence, outcome) => self.checked(evidence, outcome, &is_member, &mut actions),
            Event::Up(peer) => {
                self.connected.insert(peer);
                self.tell(peer, &mut actions);
            }
            Event::Down(peer) => {
                self.connected.remove(&peer);
                for case in self.cases.values_mut() {
                    case.sources.remove(&peer);
                }
            }
            Event::Tick => {
                if now.since(self.told) >= TELL_INTERVAL {
                    self.told = now;
                    let peers: Vec<PeerId> = self.connected.iter().copied().collect();
                    peers.into_iter().for_each(|peer| self.tell(peer, &mut actions));
                }
            }
        }
        self.fetch_next(&mut actions);
        actions
    }

    /// Whether an accusation is known already, so that its signature need not be verified again.
    pub fn knows(&self, accuser: &PeerId, evidence: &Digest) -> bool {
        self.cases.get(evidence).is_some_and(|case| case.accusers.contains(accuser))
    }

    /// Whether this node convicted a peer by the evidence, and so may pass it on.
    pub fn is_proven(&self, evidence: &Digest) -> bool {
        self.cases.get(evidence).is_some_and(|case| case.state == State::Proven)
    }

    fn found(&mut self, accusation: Accusation, actions: &mut Vec<Action>) {
        self.convicted.insert(accusation.accused);
        let case = self.open(accusation);
        case.accusers.insert(accusation.accuser);
        case.state = State::Proven;
        self.waiting.remove(&accusation.evidence);
        self.tell_all(accusation.evidence, actions);
    }

    fn heard(
        &mut self,
        from: PeerId,
        accusation: Accusation,
        is_member: &impl Fn(&PeerId) -> bool,
        actions: &mut Vec<Action>,
    ) {
        let Accusation { accuser, accused, evidence, evidence_bytes, .. } = accusation;
        if accuser == accused || accuser == self.local || !is_member(&accuser) {
            return;
        }
        if accused == self.local {
            if self.against_self.len() < AGAINST_SELF_MAX && self.against_self.insert(evidence) {
                actions.push(Action::Accused(accusation));
            }
            return;
        }
        if let Some(case) = self.cases.get_mut(&evidence) {
            // Whoever names other facts for the same evidence speaks of something else.
            let is_same = Accusation { accuser: case.first.accuser, ..accusation } == case.first;
            if is_same && case.accusers.len() < ACCUSERS_PER_CASE {
                case.accusers.insert(accuser);
                case.sources.insert(from);
                self.confirm(evidence, is_member, actions);
            }
            return;
        }
        // One proof is enough.
        if self.convicted.contains(&accused) || !self.make_room() {
            return;
        }
        let share = self.shares.entry(accuser).or_default();
        if share.cases >= CASES_PER_ACCUSER || evidence_bytes > BYTES_PER_ACCUSER - share.bytes {
            return;
        }
        share.cases += 1;
        share.bytes += evidence_bytes;
        let case = self.open(accusation);
        case.accusers.insert(accuser);
        case.sources.insert(from);
    }

    fn checked(
        &mut self,
        evidence: Digest,
        outcome: Recheck,
        is_member: &impl Fn(&PeerId) -> bool,
        actions: &mut Vec<Action>,
    ) {
        let local = self.local;
        self.free(evidence);
        let Some(case) = self.case_in(evidence, State::Checking) else { return };
        match outcome {
            Recheck::Proven => {
                case.state = State::Proven;
                case.accusers.insert(local);
                let first = case.first;
                self.convicted.insert(first.accused);
                actions.push(Action::Convict(first, Ground::Checked));
                actions.push(Action::Accuse(Accusation { accuser: local, ..first }));
                self.tell_all(evidence, actions);
            }
            Recheck::Refuted => {
                case.state = State::Refuted;
                actions.extend(case.accusers.iter().map(|accuser| Action::Suspect(*accuser)));
                actions.push(Action::Forget(evidence));
                let number = case.number;
                self.refuted.insert(number, evidence);
            }
            Recheck::Unable => {
                case.state = State::Unable;
                self.confirm(evidence, is_member, actions);
            }
        }
    }

    /// Convicts by the word of members that checked the evidence, where this node cannot and they are enough.
    fn confirm(&mut self, evidence: Digest, is_member: &impl Fn(&PeerId) -> bool, actions: &mut Vec<Action>) {
        let Some(case) = self.case_in(evidence, State::Unable) else { return };
        let by: Vec<PeerId> = case.accusers.iter().filter(|accuser| is_member(accuser)).copied().collect();
        if by.len() < ACCUSERS_MIN {
            return;
        }
        case.state = State::Proven;
        let first = case.first;
        self.convicted.insert(first.accused);
        actions.push(Action::Convict(first, Ground::Confirmed(by)));
        self.tell_all(evidence, actions);
    }

    fn open(&mut self, first: Accusation) -> &mut Case {
        self.next_number += 1;
        let number = self.next_number;
        let (accusers, sources) = (BTreeSet::new(), BTreeSet::new());
        let case = Case { first, accusers, sources, state: State::Waiting, number };
        self.waiting.insert(first.evidence);
        self.cases.entry(first.evidence).or_insert(case)
    }

    /// The evidence is neither fetched nor checked any more.
    fn free(&mut self, evidence: Digest) {
        if self.busy == Some(evidence) {
            self.busy = None;
        }
    }

    fn case_in(&mut self, evidence: Digest, state: State) -> Option<&mut Case> {
        self.cases.get_mut(&evidence).filter(|case| case.state == state)
    }

    /// Forgets the oldest settled case that convicts nobody where there are too many; `false` if there is none.
    fn make_room(&mut self) -> bool {
        if self.cases.len() < CASES_MAX {
            return true;
        }
        let oldest = self.refuted.pop_first();
        oldest.and_then(|(_, evidence)| self.cases.remove(&evidence)).is_some()
    }

    /// Starts the next fetch, one at a time: that of the accuser for whom the fewest checks were made.
    fn fetch_next(&mut self, actions: &mut Vec<Action>) {
        if self.busy.is_some() {
            return;
        }
        let is_open = |case: &&Case| {
            // Another case may have convicted the accused meanwhile.
            !case.sources.is_empty() && !self.convicted.contains(&case.first.accused)
        };
        let checks = |case: &&Case| (self.shares.get(&case.first.accuser).map_or(0, |share| share.checks), case.number);
        let open = self.waiting.iter().filter_map(|evidence| self.cases.get(evidence)).filter(is_open);
        let Some(evidence) = open.min_by_key(checks).map(|case| case.first.evidence) else { return };
        let Some(case) = self.cases.get_mut(&evidence) else { return };
        let Some(from) = case.sources.pop_first() else { return };
        case.state = State::Fetching;
        let Accusation { evidence_bytes, accuser, .. } = case.first;
        self.busy = Some(evidence);
        self.waiting.remove(&evidence);
        self.shares.entry(accuser).or_default().checks += 1;
        actions.push(Action::Fetch { evidence, evidence_bytes, from });
    }

    /// The accusations that stand behind a conviction: this node's own, or those of the members that it believed.
    fn standing(&self, case: &Case) -> Vec<Accusation> {
        if case.state != State::Proven || case.first.evidence_bytes == 0 {
            return Vec::new();
        }
        if case.accusers.contains(&self.local) {
            return vec![Accusation { accuser: self.local, ..case.first }];
        }
        case.accusers.iter().map(|accuser| Accusation { accuser: *accuser, ..case.first }).collect()
    }

    fn tell(&self, peer: PeerId, actions: &mut Vec<Action>) {
        let accusations: Vec<Accusation> = self.cases.values().flat_map(|case| self.standing(case)).collect();
        if !accusations.is_empty() {
            actions.push(Action::Tell { peer, accusations });
        }
    }

    fn tell_all(&self, evidence: Digest, actions: &mut Vec<Action>) {
        let accusations = self.cases.get(&evidence).map(|case| self.standing(case)).unwrap_or_default();
        if !accusations.is_empty() {
            let tell = |peer: &PeerId| Action::Tell { peer: *peer, accusations: accusations.clone() };
            actions.extend(self.connected.iter().map(tell));
        }
    }
}

#[cfg(test)]
#[path = "accusations_tests.rs"]
mod tests;
