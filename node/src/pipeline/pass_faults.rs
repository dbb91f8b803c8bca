//! Injected faults of a stage, for tests: lies, withheld signatures, false reports, silence, slowness, lack of memory. None by
//! default.

use std::time::{Duration, Instant};

use libp2p::PeerId;
use pangea_client::{Error, ErrorKind, Result};

use super::host::Pipeline;
use super::wire::{EndReason, Open, SteppedSequence, TokenOut, Tokens};
use crate::fault::{Fault, twist_token};

/// A lying stage lies in one of this many passes, on average.
const LIE_EVERY: u64 = 8;

/// Frames after which a stage hangs, panics or sends an invalid frame.
const HANGS_AFTER: u64 = 12;

/// Time for which a frame is held back.
const STALL: Duration = Duration::from_millis(333);

/// A stage lacks memory in one of this many frames.
const FULL_EVERY: u64 = 40;

/// Tokens that a last stage sends after the end of an answer that it does not end.
const ENDLESS_TOKENS: u32 = 500;

/// A token of every vocabulary.
const SOME_TOKEN: u32 = 7;

/// The injected faults of one stage.
pub(super) struct PassFaults {
    pipeline: Pipeline,
    index: usize,
    /// Whether other stages see this one's output.
    has_others: bool,
}

impl PassFaults {
    pub(super) fn new(pipeline: Pipeline, index: usize, stages: usize) -> PassFaults {
        PassFaults { pipeline, index, has_others: stages > 1 }
    }

    /// Whether to lie in this way now: once in a while.
    pub(super) fn lies(&self, fault: Fault) -> bool {
        self.pipeline.fault() == Some(fault) && self.has_others && rand::random::<u64>().is_multiple_of(LIE_EVERY)
    }

    /// Whether to send this coordinator another token than the chosen one: once in a while.
    pub(super) fn lies_to(&self, coordinator: &PeerId) -> bool {
        let is_other = self.has_others || *coordinator != self.pipeline.local();
        self.is(Fault::CorruptToken) && is_other && rand::random::<u64>().is_multiple_of(LIE_EVERY)
    }

    /// Whether to lie about the log-probabilities of a prompt.
    pub(super) fn lies_about_prompts(&self) -> bool {
        self.is(Fault::CorruptScore) && self.has_others
    }

    /// Whether memory is missing in frame `number`.
    pub(super) fn is_full(&self, number: u64) -> bool {
        let now = number % FULL_EVERY == HANGS_AFTER;
        now && self.index > 0 && self.pipeline.fault() == Some(Fault::Full)
    }

    /// Hangs, or takes several times as long as since `began`.
    pub(super) fn delay(&self, number: u64, began: Instant) {
        match self.pipeline.fault() {
            Some(Fault::Hang) if self.has_others && number > HANGS_AFTER => loop {
                std::thread::park();
            },
            Some(Fault::Slow) if self.has_others => std::thread::sleep(began.elapsed() * 19),
            _ => {}
        }
    }

    fn is(&self, fault: Fault) -> bool {
        self.pipeline.fault() == Some(fault)
    }

    /// Whether the coordinator is sent a claim of its own.
    pub(super) fn signs_twice(&self) -> bool {
        self.is(Fault::SignsTwice) && self.has_others
    }

    /// Whether nothing is signed.
    pub(super) fn withholds_signatures(&self) -> bool {
        self.is(Fault::LieUnsigned) && self.has_others
    }

    /// The refusal of every request, if it is injected.
    pub(super) fn refuse(&self) -> Result<()> {
        match self.is(Fault::Refuse) && self.has_others {
            true => Err(Error::new(ErrorKind::InvalidInput, "by a fault on purpose, no request is valid")),
            false => Ok(()),
        }
    }

    /// Tokens that the stage at `index` says although it is not the last one, if it does: a whole answer.
    pub(super) fn tokens_out_of_turn(&self, open: &Open, index: usize) -> Option<Tokens> {
        let speaks = self.is(Fault::OutOfTurn) && index + 1 < open.stages.len();
        speaks.then(|| Tokens {
            session: open.session,
            position: open.tokens.len() as u32,
            tokens: vec![TokenOut { token: SOME_TOKEN, ..TokenOut::default() }; 3],
            ended: Some(EndReason::Stop),
            ..Tokens::default()
        })
    }

    /// Changes what a last stage reports of frame `number` to the first stage and to coordinators; returns the frame's number
    /// in the report.
    pub(super) fn misreport(
        &self,
        number: u64,
        advances: Option<&mut Vec<SteppedSequence>>,
        tokens: &mut Vec<(PeerId, Tokens)>,
    ) -> u64 {
        if !self.has_others {
            return number;
        }
        if self.is(Fault::FalseReports) && number > HANGS_AFTER {
            tokens.clear();
            advances.into_iter().flatten().for_each(|advance| advance.computed = rand::random());
            return number + rand::random::<u64>() % 8;
        }
        if self.lies(Fault::TwoFaced)
            && let Some((_, told)) = tokens.first_mut()
            && let Some(last) = told.tokens.last_mut()
        {
            last.token = twist_token(last.token, SOME_TOKEN as usize, rand::random());
        }
        if self.is(Fault::Endless) {
            let mut more = Vec::new();
            for (to, told) in tokens.iter_mut().filter(|(_, told)| told.ended.is_some()) {
                told.ended = None;
                let (session, first) = (told.session, told.position + told.tokens.len() as u32);
                let one = vec![TokenOut { token: SOME_TOKEN, ..TokenOut::default() }];
                let of = |position| Tokens { session, position, tokens: one.clone(), ..Tokens::default() };
                more.extend((first..first + ENDLESS_TOKENS).map(|position| (*to, of(position))));
            }
            tokens.extend(more);
        }
        number
    }

    /// Holds a frame back that is computed and measured.
    pub(super) fn stall(&self) {
        if self.index > 0 && self.pipeline.fault() == Some(Fault::Stall) {
            std::thread::sleep(STALL);
        }
    }

    /// Panics after frame `number`, once.
    pub(super) fn panic(&self, number: u64) {
        let panics = number > HANGS_AFTER && self.pipeline.fault_once(Fault::PanicStage);
        assert!(!panics, "as the fault of this node says");
    }

    /// Whether the stage's device is lost in frame `number`.
    pub(super) fn loses_device(&self, number: u64) -> bool {
        number > HANGS_AFTER && self.pipeline.fault_once(Fault::LoseDevice)
    }

    /// Whether frame `number` gets another number, once.
    pub(super) fn misnumbers(&self, number: u64) -> bool {
        number > HANGS_AFTER && self.pipeline.fault_once(Fault::Misfit)
    }
}
