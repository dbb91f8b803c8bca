//! Whether this thread runs a job of a pool. From there no pool can be used: a job's threads would wait for the pool, and
//! the pool for the job, for ever; those of another pool would compete for the same cores.

use std::cell::Cell;

thread_local! {
    static IN_JOB: Cell<bool> = const { Cell::new(false) };
}

/// # Panics
/// Where this thread runs a job.
pub(super) fn refuse_in_job() {
    assert!(
        !IN_JOB.get(),
        "a compute pool was used inside a compute pool's job, where it would wait for itself for ever; use it from outside, after the job"
    );
}

/// Marks this thread as running a job, until it is dropped.
pub(super) struct InJob(());

impl InJob {
    pub(super) fn enter() -> InJob {
        IN_JOB.set(true);
        InJob(())
    }
}

impl Drop for InJob {
    fn drop(&mut self) {
        IN_JOB.set(false);
    }
}
