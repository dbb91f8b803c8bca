//! The compute threads: one fork-join job at a time, on the calling thread and all others, with a barrier inside the job.
//! Between jobs the threads spin for a moment, then sleep. The one `unsafe` lends a borrowed job to the other threads.
#![allow(unsafe_code)]

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::barrier::Barrier;

/// Iterations that a thread waits for the next job before it sleeps: some tens of microseconds, the time between two phases
/// of one product, and far less than a scheduler's time slice.
const SPINS: u32 = 2_000;

type Job<'a> = &'a (dyn Fn(usize) + Sync);

struct Slot {
    epoch: u64,
    /// The job and the number of threads that run it. `None` before the first job.
    job: Option<(Job<'static>, usize)>,
    stop: bool,
}

struct Shared {
    slot: Mutex<Slot>,
    /// A copy of `slot.epoch` that threads spin on.
    epoch: AtomicU64,
    wake: Condvar,
    remaining: AtomicUsize,
    /// The payload of the job's first panic, on whichever thread it was.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    finished: Mutex<()>,
    all_done: Condvar,
    barrier: Barrier,
}

/// One thread's view of a job that all threads run.
#[derive(Clone, Copy)]
pub(crate) struct Worker<'a> {
    /// Index of this thread, from 0.
    pub(crate) index: usize,
    /// The number of threads.
    pub(crate) width: usize,
    barrier: &'a Barrier,
}

impl Worker<'_> {
    /// Waits until every thread of the job has called this; all writes before the barrier are visible after it.
    ///
    /// # Panics
    /// Where another thread of the job panicked.
    pub(crate) fn barrier(&self) {
        self.barrier.wait(self.width);
    }

    /// This thread's contiguous share of `0..n`; the threads' shares differ by at most one in length.
    pub(crate) fn share(&self, n: usize) -> std::ops::Range<usize> {
        n * self.index / self.width..n * (self.index + 1) / self.width
    }
}

/// A fixed number of threads, one of which is the caller of [`Team::run`].
pub(crate) struct Team {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held during a job, so that a second caller waits.
    turn: Mutex<()>,
}

/// Ignores poisoning: jobs' panics are caught and kept in `panic`, and the data under these locks is valid at every step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Team {
    /// Starts `threads − 1` threads, or fewer where the system refuses to start more.
    pub(crate) fn new(threads: usize) -> Team {
        let shared = Arc::new(Shared {
            slot: Mutex::new(Slot { epoch: 0, job: None, stop: false }),
            epoch: AtomicU64::new(0),
            wake: Condvar::new(),
            remaining: AtomicUsize::new(0),
            panic: Mutex::new(None),
            finished: Mutex::new(()),
            all_done: Condvar::new(),
            barrier: Barrier::new(),
        });
        let workers = (1..threads)
            .map_while(|index| {
                let shared = Arc::clone(&shared);
                std::thread::Builder::new().name(format!("pangea-cpu-{index}")).spawn(move || work(&shared, index)).ok()
            })
            .collect();
        Team { shared, workers, turn: Mutex::new(()) }
    }

    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `job` on every thread at the same time. All threads must call [`Worker::barrier`] the same number of times.
    /// Must not be called from inside a job.
    ///
    /// # Panics
    /// As [`Team::run`].
    pub(crate) fn together(&self, job: &(dyn Fn(Worker<'_>) + Sync)) {
        let width = self.threads();
        let barrier = &self.shared.barrier;
        self.run(width, &|index| job(Worker { index, width, barrier }));
    }

    /// Calls `job(i)` once for every i < min(width, threads), each on its own thread, and returns when all are done.
    /// Must not be called from inside a job.
    ///
    /// # Panics
    /// Where a job panicked, on any thread, with the payload of the first panic. All threads have left the job by then, and
    /// the team takes the next one.
    pub(crate) fn run(&self, width: usize, job: &(dyn Fn(usize) + Sync)) {
        let width = width.min(self.threads());
        if width <= 1 {
            if width == 1 {
                job(0);
            }
            return;
        }
        let turn = lock(&self.turn);
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. Nothing between here and `wait_for_others` unwinds, and that waits until every
        // thread that was given this job has returned from it, so no use outlives the borrow; the slot is not read again
        // before it is overwritten, except by threads that skip it because they do not take part.
        let lent: Job<'static> = unsafe { std::mem::transmute::<Job<'_>, Job<'static>>(job) };
        shared.barrier.reset();
        shared.remaining.store(width - 1, Ordering::Relaxed);
        {
            let mut slot = lock(&shared.slot);
            slot.epoch += 1;
            slot.job = Some((lent, width));
            shared.epoch.store(slot.epoch, Ordering::Release);
        }
        shared.wake.notify_all();
        shared.take_part(job, 0);
        shared.wait_for_others();
        // Taken before the next caller gets its turn.
        let panic = lock(&shared.panic).take();
        drop(turn);
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }
}

impl Shared {
    /// Runs one thread's part of a job. A panic is kept for the caller of the job, and ends the others' waits.
    fn take_part(&self, job: Job<'_>, index: usize) {
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| job(index))) {
            let mut panic = lock(&self.panic);
            match &*panic {
                None => *panic = Some(payload),
                // Not dropped: a payload's own code could panic again, and end this thread.
                Some(_) => std::mem::forget(payload),
            }
            // Kept before the barrier breaks, whose panics on the other threads are consequences of this one.
            drop(panic);
            self.barrier.break_up();
        }
    }

    /// Waits until the other threads are done.
    fn wait_for_others(&self) {
        for _ in 0..SPINS {
            if self.remaining.load(Ordering::Acquire) == 0 {
                return;
            }
            std::hint::spin_loop();
        }
        let mut guard = lock(&self.finished);
        while self.remaining.load(Ordering::Acquire) != 0 {
            guard = self.all_done.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn work(shared: &Shared, index: usize) {
    let mut seen = 0;
    loop {
        let mut spins = 0;
        while shared.epoch.load(Ordering::Acquire) == seen && spins < SPINS {
            std::hint::spin_loop();
            spins += 1;
        }
        let (job, width) = {
            let mut slot = lock(&shared.slot);
            while slot.epoch == seen && !slot.stop {
                slot = shared.wake.wait(slot).unwrap_or_else(PoisonError::into_inner);
            }
            if slot.stop {
                return;
            }
            seen = slot.epoch;
            match slot.job {
                Some(job) => job,
                None => continue,
            }
        };
        if index >= width {
            continue;
        }
        shared.take_part(job, index);
        if shared.remaining.fetch_sub(1, Ordering::AcqRel) == 1 {
            let _guard = lock(&shared.finished);
            shared.all_done.notify_one();
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        lock(&self.shared.slot).stop = true;
        self.shared.epoch.fetch_add(1, Ordering::Release);
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            // Jobs' panics do not end a thread; they were reported to the callers of the jobs.
            let _ = worker.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Team;
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

    /// What `run` panics with, as the number that its job panicked with.
    fn panic_of(run: impl FnOnce()) -> Option<u32> {
        let payload = catch_unwind(AssertUnwindSafe(run)).err()?;
        Some(*payload.downcast::<u32>().expect("the payload of the job's own panic"))
    }

    #[test]
    fn a_panic_on_any_thread_before_any_barrier_is_the_callers_and_the_team_computes_on() {
        const THREADS: usize = 4;
        const BARRIERS: u32 = 3;
        let team = Team::new(THREADS);
        for round in 0..50 {
            for thread in 0..THREADS {
                for at in 0..=BARRIERS {
                    let number = round * 1_000 + at * 10 + thread as u32;
                    let panic = panic_of(|| {
                        team.together(&|worker| {
                            for barrier in 0..=BARRIERS {
                                if (worker.index, barrier) == (thread, at) {
                                    resume_unwind(Box::new(number));
                                }
                                if barrier < BARRIERS {
                                    worker.barrier();
                                }
                            }
                        });
                    });
                    assert_eq!(panic, Some(number), "thread {thread}, barrier {at}");
                    let present = AtomicU32::new(0);
                    team.together(&|worker| {
                        present.fetch_add(1, Ordering::Relaxed);
                        worker.barrier();
                        assert_eq!(present.load(Ordering::Relaxed) as usize, THREADS);
                        worker.barrier();
                    });
                }
            }
        }
    }

    /// A payload that panics when it is dropped.
    struct Bomb(u32);
    impl Drop for Bomb {
        fn drop(&mut self) {
            resume_unwind(Box::new(()));
        }
    }

    #[test]
    fn payloads_that_panic_themselves_end_no_thread() {
        let team = Team::new(3);
        for round in 0..100 {
            let payload = catch_unwind(AssertUnwindSafe(|| team.run(3, &|_| resume_unwind(Box::new(Bomb(round))))));
            let bomb = payload.unwrap_err().downcast::<Bomb>().unwrap();
            assert_eq!(bomb.0, round);
            std::mem::forget(bomb);
        }
    }

    /// Runs jobs, each with a barrier, when it is dropped.
    struct ComputesWhenDropped<'a>(&'a Team, &'a Mutex<usize>);
    impl Drop for ComputesWhenDropped<'_> {
        fn drop(&mut self) {
            for _ in 0..ROUNDS {
                self.0.together(&|worker| {
                    worker.barrier();
                    *self.1.lock().unwrap() += 1;
                });
            }
        }
    }

    /// Often enough that a thread is still on its way out of the barrier when the caller's part of the job has ended.
    const ROUNDS: usize = 2_000;

    #[test]
    fn jobs_of_a_thread_that_unwinds_from_elsewhere_are_computed() {
        let (team, computed) = (Team::new(3), Mutex::new(0));
        let panic = panic_of(|| {
            let _computes = ComputesWhenDropped(&team, &computed);
            resume_unwind(Box::new(7_u32));
        });
        assert_eq!((panic, computed.into_inner().unwrap()), (Some(7), 3 * ROUNDS));
    }

    #[test]
    fn every_panic_is_told_to_its_own_caller_while_others_compute() {
        const JOBS: u32 = 1_500;
        let (team, done) = (Team::new(2), AtomicBool::new(false));
        let misplaced = AtomicU32::new(0);
        let lost = std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        let honest = catch_unwind(AssertUnwindSafe(|| team.run(2, &|_| {})));
                        misplaced.fetch_add(u32::from(honest.is_err()), Ordering::Relaxed);
                    }
                });
            }
            // Panics without the message that would fill the log.
            let job = |index: usize| {
                if index == 1 {
                    resume_unwind(Box::new(()));
                }
            };
            let lost = (0..JOBS).filter(|_| catch_unwind(AssertUnwindSafe(|| team.run(2, &job))).is_ok()).count();
            done.store(true, Ordering::Relaxed);
            lost
        });
        assert_eq!((lost, misplaced.into_inner()), (0, 0), "panics lost and panics told to another caller");
    }
}
