//! What a coordinator of the world does about signatures: it reads the stages' claims, keeps what an audit needs, replays, and
//! convicts or suspects. When it does so is the binary's decision.

use pangea_control::generation::{ClaimsFault, Event, SignedClaims};
use pangea_control::jobs::JobId;
use pangea_control::peers::{self, SuspicionReason};
use pangea_control::trust::Verdict;
use pangea_control::trust::accusations::EvidenceKind;

use crate::chat::Chat;
use crate::checks::{Broken, Check};
use crate::claims::{Gathered, Receipt, gather, replay};
use crate::deviations::Deviation;
use crate::world::{Happening, World};

/// One audit in this many cannot be done.
const UNDONE_ONE_IN: u64 = 8;

impl World {
    /// Reads what the stages of an answer signed.
    pub(crate) fn check_claims(
        &mut self,
        at: usize,
        job: JobId,
        choice: usize,
        signed: &SignedClaims,
    ) -> Result<Option<ClaimsFault>, Broken> {
        let Some(chat) = self.chat_of(at, job) else { return Ok(None) };
        let Some(segment) = chat.state.segments(choice).last() else { return Ok(None) };
        let gathered = gather(signed, segment, chat.state.answer(choice).tokens(), |peer| self.index_of(peer));
        let Gathered { fault, contradicted, .. } = gathered.clone();
        self.checks.evaluated(Check::ClaimsAreRead);
        for (peer, reason) in fault.iter().flat_map(|fault| &fault.suspects) {
            let of = self.index_of(peer);
            match reason {
                SuspicionReason::Unsigned => {
                    self.noticed(of, &[Deviation::WithholdsSignature, Deviation::LiesUnsigned]);
                }
                _ => self.noticed(of, &[Deviation::SendsOtherwise, Deviation::SignsOtherwise]),
            }
        }
        if let Some(run) = &mut self.nodes[at].run
            && let Some(chat) = run.chats.chats.get_mut(&job)
        {
            chat.gathered.insert(choice, gathered);
        }
        if let Some(of) = contradicted.filter(|of| *of != at) {
            self.noticed(of, &[Deviation::SignsTwice]);
            self.convict(at, of, EvidenceKind::Contradiction)?;
        }
        Ok(fault)
    }

    /// Whether a stage of an answer is on a suspect.
    pub(crate) fn has_suspect(&self, at: usize, job: JobId, choice: usize) -> bool {
        let (Some(run), Some(chat)) = (&self.nodes[at].run, self.chat_of(at, job)) else { return false };
        let time = run.time(self.now);
        let stages = chat.state.segments(choice).iter().flat_map(|segment| &segment.stages);
        stages.into_iter().any(|stage| run.directory.is_suspect(&stage.peer, time))
    }

    /// Starts the audit of an answer.
    pub(crate) fn audit(&mut self, at: usize, job: JobId, choice: usize, awaited: bool) {
        let delay = self.chance.within(100_000..2_000_000);
        let Some(run) = &self.nodes[at].run else { return };
        let Some(chat) = self.chat_of(at, job) else { return };
        let gathered = chat.gathered.get(&choice).cloned().unwrap_or_default();
        let receipt = Receipt {
            seed: chat.asked.seed + choice as u64,
            prompt_len: chat.state.answer(choice).prompt_len(),
            tokens: chat.state.answer(choice).tokens().to_vec(),
            segments: chat.state.segments(choice).to_vec(),
            claims: gathered.claims,
            is_signed: gathered.fault.is_none(),
        };
        let (run, receipt) = (run.number, Box::new(receipt));
        self.checks.counts.add(if awaited { "awaited audits" } else { "drawn audits" });
        self.after(delay, Happening::Audited { node: at, run, job, awaited, receipt });
    }

    /// An audit ends.
    pub(crate) fn audited(&mut self, at: usize, job: JobId, awaited: bool, receipt: &Receipt) -> Result<(), Broken> {
        if self.chance.one_in(UNDONE_ONE_IN) {
            self.checks.counts.add("audits that could not be done");
            return self.tell_verdict(at, job, awaited, Err("it is overloaded".to_owned()), Vec::new());
        }
        let replayed = replay(receipt, |peer| self.index_of(peer));
        self.checks.evaluated(Check::AuditsAreReplayed);
        for liar in replayed.liars.iter().copied().filter(|liar| *liar != at) {
            self.noticed(liar, &[Deviation::LiesSigned, Deviation::SignsOtherwise]);
            self.convict(at, liar, EvidenceKind::Stage)?;
        }
        for peer in &replayed.wrong {
            let of = self.index_of(peer);
            if of != at && !replayed.liars.contains(&of) {
                self.noticed(of, &[Deviation::LiesUnsigned, Deviation::SendsOtherwise]);
                self.suspect(at, of, SuspicionReason::WrongUnsigned)?;
            }
        }
        let holds = replayed.wrong.is_empty() && receipt.is_signed && receipt.segments.len() == 1;
        let verdict = if holds { Verdict::Audited } else { Verdict::Unchecked };
        self.tell_verdict(at, job, awaited, Ok(verdict), replayed.wrong)
    }

    fn tell_verdict(
        &mut self,
        at: usize,
        job: JobId,
        awaited: bool,
        verdict: Result<Verdict, String>,
        wrong: Vec<libp2p_identity::PeerId>,
    ) -> Result<(), Broken> {
        if awaited { self.chat(at, job, Event::Audited { verdict, wrong }) } else { Ok(()) }
    }

    /// A node suspects another one.
    pub(crate) fn suspect(&mut self, at: usize, of: usize, reason: SuspicionReason) -> Result<(), Broken> {
        match reason {
            SuspicionReason::BrokeProtocol => {
                self.noticed(of, &[Deviation::SpeaksOutOfTurn, Deviation::NeverEnds]);
            }
            SuspicionReason::Late => self.noticed(of, &[Deviation::HoldsFirstTokens]),
            SuspicionReason::RefusedWrongly => self.noticed(of, &[Deviation::RefusesSession]),
            _ => {}
        }
        let peer = self.nodes[of].peer;
        self.tell_peers(at, peers::Event::Suspected { peer, reason })
    }

    fn chat_of(&self, at: usize, job: JobId) -> Option<&Chat> {
        self.nodes[at].run.as_ref()?.chats.chats.get(&job)
    }
}
