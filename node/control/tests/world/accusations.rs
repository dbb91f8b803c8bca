//! Accusations in the world: what a node proved travels with its evidence, and what a node hears is decided by the binary. Evidence is
//! genuine where its author really found the lie; whoever checks it sees that, if it has what a check takes.

use std::collections::BTreeMap;

use pangea_control::peers::{self, SuspicionReason};
use pangea_control::trust::accusations::{Accusation, Action, Event, EvidenceKind, Recheck};
use pangea_units::Digest;

use crate::checks::{Broken, Check};
use crate::deviations::Deviation;
use crate::node::digest;
use crate::scenario::Micros;
use crate::world::{Happening, World};

/// How long a check of evidence takes.
const CHECK_TAKES: std::ops::Range<Micros> = 10_000..400_000;

/// Bytes of evidence.
const EVIDENCE_BYTES: u64 = 10_000;

/// All evidence that was ever written: whether it proves what it says.
#[derive(Default)]
pub(crate) struct Evidence(BTreeMap<Digest, bool>);

impl World {
    /// A node writes evidence down, genuine or not, and says what it shows.
    pub(crate) fn write_evidence(&mut self, at: usize, of: usize, kind: EvidenceKind, is_genuine: bool) -> Accusation {
        let number = self.evidence.0.len() as u64;
        let mut bytes = [3; 32];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        let evidence = Digest(bytes);
        self.evidence.0.insert(evidence, is_genuine);
        let (accuser, accused) = (self.nodes[at].peer, self.nodes[of].peer);
        Accusation { accuser, accused, kind, evidence, evidence_bytes: EVIDENCE_BYTES }
    }

    /// A node tells what it decides about accusations that something happened, and does what follows.
    pub(crate) fn tell_accusations(&mut self, at: usize, event: Event) -> Result<(), Broken> {
        let now = self.now;
        let Some(run) = &mut self.nodes[at].run else { return Ok(()) };
        let (time, number) = (run.time(now), run.number);
        let directory = &run.directory;
        let is_member = |peer: &_| directory.may_compute(peer) && !directory.is_suspect(peer, time);
        for action in run.accusations.handle(event, time, is_member) {
            match action {
                Action::Tell { peer, accusations } => {
                    let to = self.index_of(&peer);
                    self.send_accusations(at, to, accusations);
                }
                Action::Fetch { evidence, from, .. } => {
                    let from = self.index_of(&from);
                    let delay = self.link(at, from).rtt + 1_000;
                    self.after(delay, Happening::EvidenceCame { at, run: number, from, evidence });
                }
                Action::Check(accusation) => {
                    let delay = self.chance.within(CHECK_TAKES);
                    self.after(delay, Happening::EvidenceChecked { at, run: number, accusation });
                }
                Action::Convict(accusation, _) => {
                    let of = self.index_of(&accusation.accused);
                    self.checks.counts.add("convictions on accusation");
                    self.convicted(at, of, accusation)?;
                }
                Action::Suspect(peer) => {
                    self.noticed(self.index_of(&peer), &[Deviation::FalselyAccuses]);
                    let reason = SuspicionReason::AccusedWrongly;
                    self.tell_peers(at, peers::Event::Suspected { peer, reason })?;
                }
                // Signatures are the driver's, what is fetched takes no room here, and nobody reads the log.
                Action::Accuse(_) | Action::Accused(_) | Action::Forget(_) => {}
            }
        }
        Ok(())
    }

    /// Sends accusations to a connected peer.
    pub(crate) fn send_accusations(&mut self, at: usize, to: usize, accusations: Vec<Accusation>) {
        if self.network.connection(at, to).is_some() {
            let delay = self.link(at, to).rtt / 2;
            self.after(delay, Happening::Accused { to, from: at, accusations });
        }
    }

    /// Accusations arrive.
    pub(crate) fn accused(&mut self, to: usize, from: usize, accusations: Vec<Accusation>) -> Result<(), Broken> {
        let from_peer = self.nodes[from].peer;
        for accusation in accusations {
            if self.network.connection(from, to).is_some() {
                self.tell_accusations(to, Event::Heard { from: from_peer, accusation })?;
            }
        }
        Ok(())
    }

    /// Evidence that was asked for comes, if whoever was asked still has it.
    pub(crate) fn evidence_came(&mut self, at: usize, from: usize, evidence: Digest) -> Result<(), Broken> {
        let has = self.nodes[from].run.as_ref().is_some_and(|run| run.accusations.is_proven(&evidence));
        let comes =
            self.network.connection(at, from).is_some() && (has || self.evidence.0.get(&evidence) == Some(&false));
        self.tell_accusations(at, if comes { Event::Fetched(evidence) } else { Event::FetchFailed(evidence) })
    }

    /// A node has checked evidence, as far as it can: without the model it cannot replay a session.
    pub(crate) fn evidence_checked(&mut self, at: usize, accusation: Accusation) -> Result<(), Broken> {
        let Some(run) = &self.nodes[at].run else { return Ok(()) };
        let can = accusation.kind != EvidenceKind::Stage || run.has_file(&digest(1));
        let outcome = match (can, self.evidence.0.get(&accusation.evidence)) {
            (false, _) => Recheck::Unable,
            (true, Some(true)) => Recheck::Proven,
            (true, _) => Recheck::Refuted,
        };
        self.checks.evaluated(Check::EvidenceIsChecked);
        self.tell_accusations(at, Event::Checked(accusation.evidence, outcome))
    }

    /// Everybody who is connected and can check has heard of every lie that an honest node proved.
    pub(crate) fn accusations_travelled(&mut self) -> Result<(), Broken> {
        let is_honest = |at: &usize| self.nodes[*at].spec.deviations.is_empty() && self.nodes[*at].run.is_some();
        let honest: Vec<usize> = (0..self.nodes.len()).filter(is_honest).collect();
        for at in &honest {
            for (of, accusation) in self.nodes[*at].disk.evidence.clone() {
                let silent = |other: &&usize| {
                    let reaches = self.network.connection(*at, **other).is_some();
                    // Whom a node suspects, it does not believe for now.
                    let listens = self.nodes[**other].run.as_ref().is_some_and(|run| {
                        let (peer, time) = (self.nodes[*at].peer, run.time(self.now));
                        run.directory.may_compute(&peer) && !run.directory.is_suspect(&peer, time)
                    });
                    let can = accusation.kind != EvidenceKind::Stage;
                    reaches && listens && can && !self.checks.is_quarantined(**other, of)
                };
                if let Some(other) = honest.iter().find(silent) {
                    let what = format!("node {other} has not heard what node {at} proved of {of}");
                    return Err(Broken::new(self.now, what));
                }
                self.checks.evaluated(Check::AccusationsTravel);
            }
        }
        Ok(())
    }
}
