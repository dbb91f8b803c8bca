//! The compute pool: N threads that products and checks run on, scratch memory they reuse, and cancellation.
//! It never decides what to compute.

mod barrier;
mod team;

pub(crate) use team::Worker;

use crate::{Buffer, Error, Isa};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use team::Team;

/// Scratch buffers kept for reuse: packing needs two at a time, a probe a third.
const KEPT_BUFFERS: usize = 3;

/// Exactly N compute threads. The calling thread of a product is one of them; the others sleep when idle. One product
/// or check runs at a time; a second caller waits for its turn at each phase.
pub struct Pool {
    team: Team,
    isa: Isa,
    scratch: Mutex<Vec<Buffer>>,
}

impl Pool {
    /// A pool of `threads` threads (at least one) that uses what `PANGEA_ISA` asks for, else the best this
    /// processor has.
    ///
    /// # Errors
    /// [`Error::Invalid`] where `PANGEA_ISA` names what is not there.
    pub fn new(threads: usize) -> Result<Pool, Error> {
        Pool::with_isa(threads, Isa::from_env()?)
    }

    /// A pool that uses one family of kernels.
    ///
    /// # Errors
    /// [`Error::Invalid`] where this processor cannot run it.
    pub fn with_isa(threads: usize, isa: Isa) -> Result<Pool, Error> {
        if !isa.is_available() {
            return Err(Error::invalid("pool", format!("this processor has no {}", isa.name())));
        }
        Ok(Pool { team: Team::new(threads.max(1)), isa, scratch: Mutex::new(Vec::new()) })
    }

    /// How many threads compute.
    pub fn threads(&self) -> usize {
        self.team.threads()
    }

    /// The family of kernels in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Calls `job(i)` for every i < min(width, threads) at the same time; returns when all are done. Not from
    /// inside a job.
    pub(crate) fn run(&self, width: usize, job: &(dyn Fn(usize) + Sync)) {
        self.team.run(width, job);
    }

    /// Calls `job` on every thread at the same time; inside, they may meet. Not from inside a job.
    pub(crate) fn together(&self, job: &(dyn Fn(Worker<'_>) + Sync)) {
        self.team.together(job);
    }

    /// At least `bytes` of scratch, with whatever was in it; hand it back with [`Pool::give_back`].
    pub(crate) fn scratch(&self, bytes: usize) -> Result<Buffer, Error> {
        let mut kept = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let fitting = (0..kept.len()).filter(|&i| kept[i].len() >= bytes).min_by_key(|&i| kept[i].len());
        match fitting {
            Some(i) => Ok(kept.swap_remove(i)),
            None => Buffer::zeroed(bytes.next_multiple_of(4096)),
        }
    }

    /// Keeps scratch for the next product; the smallest goes where there are too many.
    pub(crate) fn give_back(&self, buffer: Buffer) {
        let mut kept = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push(buffer);
        if kept.len() > KEPT_BUFFERS
            && let Some(smallest) = (0..kept.len()).min_by_key(|&i| kept[i].len())
        {
            kept.swap_remove(smallest);
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({} threads, {})", self.threads(), self.isa.name())
    }
}

/// A flag that stops a running product within milliseconds. Cloning gives the same flag.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// A flag that is not set.
    pub fn new() -> Cancel {
        Cancel::default()
    }

    /// Sets the flag, for good.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it is set.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// [`Error::Cancelled`] where the flag is set.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.is_cancelled() {
            return Err(Error::Cancelled);
        }
        Ok(())
    }
}
