//! The faults of a stage's passes that tests ask for: lies, silence, slowness, want of memory. None without being asked.

use std::time::Instant;

use super::host::Pipeline;
use crate::fault::Fault;

/// A lying stage lies in one of this many passes, on average.
const LIE_EVERY: u64 = 8;

/// Frames after which a stage hangs, panics or sends a frame that does not fit.
const HANGS_AFTER: u64 = 12;

/// A stage without memory is so in one of this many frames.
const FULL_EVERY: u64 = 40;

/// The faults of one stage.
pub(super) struct PassFaults {
    pipeline: Pipeline,
    index: usize,
    /// Whether other stages see what this one does.
    has_others: bool,
}

impl PassFaults {
    pub(super) fn new(pipeline: Pipeline, index: usize, stages: usize) -> PassFaults {
        PassFaults { pipeline, index, has_others: stages > 1 }
    }

    /// Whether it is time for a lie of this kind: once in a while.
    pub(super) fn lies(&self, fault: Fault) -> bool {
        self.pipeline.fault() == Some(fault) && self.has_others && rand::random::<u64>().is_multiple_of(LIE_EVERY)
    }

    /// Whether there is to be no memory in frame `number`.
    pub(super) fn is_full(&self, number: u64) -> bool {
        let now = number % FULL_EVERY == HANGS_AFTER;
        now && self.index > 0 && self.pipeline.fault() == Some(Fault::Full)
    }

    /// Hangs, or takes longer than since `began`.
    pub(super) fn delay(&self, number: u64, began: Instant) {
        match self.pipeline.fault() {
            Some(Fault::Hang) if self.has_others && number > HANGS_AFTER => loop {
                std::thread::park();
            },
            Some(Fault::Slow) if self.has_others => std::thread::sleep(began.elapsed() * 19),
            _ => {}
        }
    }

    /// Panics behind frame `number`, once.
    pub(super) fn panic(&self, number: u64) {
        let panics = number > HANGS_AFTER && self.pipeline.fault_once(Fault::PanicStage);
        assert!(!panics, "as the fault of this node says");
    }

    /// Whether frame `number` is to have another number, once.
    pub(super) fn misnumbers(&self, number: u64) -> bool {
        number > HANGS_AFTER && self.pipeline.fault_once(Fault::Misfit)
    }
}
