//! The compute pool: the threads that products, checks and models run on, their scratch memory, and cancellation. What to
//! compute is the caller's decision.
//!
//! | file | owns |
//! |---|---|
//! | here | [`Pool`] |
//! | `cancel` | [`Cancel`] |
//! | `team` | the threads: one job at a time, on all of them |
//! | `barrier` | where the threads of a job wait for each other |
//! | `nesting` | that no job uses a pool |

mod barrier;
mod cancel;
mod nesting;
mod team;

pub use cancel::Cancel;
pub(crate) use team::Worker;

use crate::{Buffer, Error, Isa};
use nesting::{InJob, refuse_in_job};
use std::sync::{Arc, Mutex, PoisonError};
use team::Team;

/// Scratch buffers kept for reuse: packing needs two at a time, a check one more.
const KEPT_BUFFERS: usize = 3;

/// A fixed number of compute threads. The thread that calls a product is one of them; the others sleep when idle. One
/// product or check runs at a time; a second caller waits at each phase until the first has finished that phase. A job of a
/// pool cannot use a pool, neither the same nor another one: that panics.
pub struct Pool {
    team: Team,
    isa: Isa,
    scratch: Mutex<Vec<Buffer>>,
    cores: Option<Arc<dyn SharedCores>>,
}

/// Cores that several pools share: says when a pool may compute. No result depends on it.
pub trait SharedCores: Send + Sync {
    /// Called on the calling thread before a job of the pool. May block until others have computed.
    fn begin(&self);

    /// Called by every thread of a product or check before each piece of it, some hundred microseconds of work. May block
    /// until others have computed.
    fn next_piece(&self);

    /// Called once the job has ended, also where it panicked.
    fn end(&self);
}

impl Pool {
    /// A pool of `threads` threads (at least one) with the instruction set that `PANGEA_ISA` names, else the fastest one
    /// available.
    ///
    /// # Errors
    /// [`Error::Invalid`] where `PANGEA_ISA` names an instruction set that is not available.
    pub fn new(threads: usize) -> Result<Pool, Error> {
        Pool::with_isa(threads, Isa::from_env()?)
    }

    /// A pool that uses the given instruction set.
    ///
    /// # Errors
    /// [`Error::Invalid`] where this processor cannot run it.
    pub fn with_isa(threads: usize, isa: Isa) -> Result<Pool, Error> {
        if !isa.is_available() {
            return Err(Error::invalid("pool", format!("this processor has no {}", isa.name())));
        }
        Ok(Pool { team: Team::new(threads.max(1)), isa, scratch: Mutex::new(Vec::new()), cores: None })
    }

    /// The same pool on cores that others use as well.
    pub fn on(self, cores: Arc<dyn SharedCores>) -> Pool {
        Pool { cores: Some(cores), ..self }
    }

    /// The number of compute threads.
    pub fn threads(&self) -> usize {
        self.team.threads()
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Calls `job(i)` for every i < min(width, threads) at the same time; returns when all are done.
    ///
    /// # Panics
    /// With the first panic of a job, on whichever thread it was; the pool remains usable. Inside a job of any pool.
    pub(crate) fn run(&self, width: usize, job: &(dyn Fn(usize) + Sync)) {
        let _turn = self.turn();
        self.team.run(width, &|index| {
            let _in_job = InJob::enter();
            job(index);
        });
    }

    /// Calls `job` on every thread at the same time, with barriers available to it.
    ///
    /// # Panics
    /// As [`Pool::run`].
    pub(crate) fn together(&self, job: &(dyn Fn(Worker<'_>) + Sync)) {
        let _turn = self.turn();
        self.team.together(&|worker| {
            let _in_job = InJob::enter();
            job(worker);
        });
    }

    /// For every thread of a job, before each piece of work that can wait for others.
    pub(crate) fn next_piece(&self) {
        if let Some(cores) = &self.cores {
            cores.next_piece();
        }
    }

    /// The cores, until it is dropped.
    ///
    /// # Panics
    /// Inside a job.
    fn turn(&self) -> Turn<'_> {
        refuse_in_job();
        let cores = self.cores.as_deref();
        if let Some(cores) = cores {
            cores.begin();
        }
        Turn(cores)
    }

    /// At least `bytes` of scratch memory with unspecified content; return it with [`Pool::give_back`].
    pub(crate) fn scratch(&self, bytes: usize) -> Result<Buffer, Error> {
        let mut kept = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let fitting = (0..kept.len()).filter(|&i| kept[i].len() >= bytes).min_by_key(|&i| kept[i].len());
        match fitting {
            Some(i) => Ok(kept.swap_remove(i)),
            None => Buffer::zeroed(bytes.next_multiple_of(4096)),
        }
    }

    /// Keeps scratch memory for the next product; beyond [`KEPT_BUFFERS`] the smallest buffer is freed.
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

/// The time that a job computes.
struct Turn<'a>(Option<&'a dyn SharedCores>);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(cores) = self.0 {
            cores.end();
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({} threads, {})", self.threads(), self.isa.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::time::Duration;

    /// What `run` panics with; fails where it neither panics nor returns.
    fn panic_of(run: impl FnOnce() + Send + 'static) -> Option<String> {
        let (done, ended) = mpsc::sync_channel(1);
        // A deadlock would keep this thread for ever, so the test does not join it.
        std::thread::spawn(move || {
            let payload = catch_unwind(AssertUnwindSafe(run)).err();
            let text =
                payload.map(|payload| payload.downcast_ref::<&str>().map_or_else(String::new, |s| (*s).to_owned()));
            let _ = done.send(text);
        });
        ended.recv_timeout(Duration::from_secs(20)).expect("the pool waits for itself")
    }

    #[test]
    fn a_pool_inside_a_pools_job_is_refused_and_both_compute_on() {
        for threads in [1, 3] {
            for inner_threads in [1, 2] {
                for is_same in [true, false] {
                    for thread in 0..threads {
                        let outer = Arc::new(Pool::new(threads).unwrap());
                        let inner =
                            if is_same { Arc::clone(&outer) } else { Arc::new(Pool::new(inner_threads).unwrap()) };
                        let (first, second) = (Arc::clone(&outer), Arc::clone(&inner));
                        let panic = panic_of(move || {
                            first.together(&|worker| {
                                if worker.index == thread {
                                    second.run(inner_threads, &|_| {});
                                }
                                worker.barrier();
                            });
                        });
                        assert!(panic.is_some_and(|text| text.contains("inside a compute pool's job")));
                        for pool in [outer, inner] {
                            let count = AtomicUsize::new(0);
                            pool.run(pool.threads(), &|_| {
                                count.fetch_add(1, Ordering::Relaxed);
                            });
                            assert_eq!(count.into_inner(), pool.threads());
                        }
                    }
                }
            }
        }
    }
}
