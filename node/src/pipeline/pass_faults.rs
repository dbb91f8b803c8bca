//! Injected faults of a stage's passes, for tests: lies, silence, slowness, lack of memory. None by default.

use std::time::Instant;

use super::host::Pipeline;
use crate::fault::Fault;

/// A lying stage lies in one of this many passes, on average.
const LIE_EVERY: u64 = 8;

/// Frames after which a stage hangs, panics or sends an invalid frame.
const HANGS_AFTER: u64 = 12;

/// A stage lacks memory in one of this many frames.
const FULL_EVERY: u64 = 40;

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

    /// Panics after frame `number`, once.
    pub(super) fn panic(&self, number: u64) {
        let panics = number > HANGS_AFTER && self.pipeline.fault_once(Fault::PanicStage);
        assert!(!panics, "as the fault of this node says");
    }

    /// Whether frame `number` gets another number, once.
    pub(super) fn misnumbers(&self, number: u64) -> bool {
        number > HANGS_AFTER && self.pipeline.fault_once(Fault::Misfit)
    }
}
