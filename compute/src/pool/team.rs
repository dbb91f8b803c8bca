//! The compute threads: one fork-join job at a time, on the calling thread and all others, with a barrier inside the job.
//! Between jobs the threads spin for a moment, then sleep. The one `unsafe` lends a borrowed job to the other threads.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
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
    panicked: AtomicBool,
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

/// Ignores poisoning: `panicked` reports panics, and the data under these locks is valid at every step.
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
            panicked: AtomicBool::new(false),
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
    /// Where a job panicked.
    pub(crate) fn together(&self, job: &(dyn Fn(Worker<'_>) + Sync)) {
        let width = self.threads();
        let barrier = &self.shared.barrier;
        self.run(width, &|index| job(Worker { index, width, barrier }));
    }

    /// Calls `job(i)` once for every i < min(width, threads), each on its own thread, and returns when all are done.
    /// Must not be called from inside a job.
    ///
    /// # Panics
    /// Where a job panicked.
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
        // SAFETY: only the lifetime changes. `Finish` below waits, also while unwinding, until every thread that was
        // given this job has returned from it, so no use outlives the borrow; the slot is not read again before it is
        // overwritten, except by threads that skip it because they do not take part.
        let lent: Job<'static> = unsafe { std::mem::transmute::<Job<'_>, Job<'static>>(job) };
        shared.panicked.store(false, Ordering::Relaxed);
        shared.barrier.reset();
        shared.remaining.store(width - 1, Ordering::Relaxed);
        {
            let mut slot = lock(&shared.slot);
            slot.epoch += 1;
            slot.job = Some((lent, width));
            shared.epoch.store(slot.epoch, Ordering::Release);
        }
        shared.wake.notify_all();
        {
            let _finish = Finish(shared);
            job(0);
        }
        // Read before the next caller gets its turn and resets it.
        let panicked = shared.panicked.load(Ordering::Relaxed);
        drop(turn);
        assert!(!panicked, "a compute thread panicked");
    }
}

/// Waits, when dropped, until the other threads are done.
struct Finish<'a>(&'a Shared);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.barrier.break_up();
        }
        for _ in 0..SPINS {
            if self.0.remaining.load(Ordering::Acquire) == 0 {
                return;
            }
            std::hint::spin_loop();
        }
        let mut guard = lock(&self.0.finished);
        while self.0.remaining.load(Ordering::Acquire) != 0 {
            guard = self.0.all_done.wait(guard).unwrap_or_else(PoisonError::into_inner);
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
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| job(index))).is_err() {
            shared.panicked.store(true, Ordering::Relaxed);
            shared.barrier.break_up();
        }
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
            // A thread's panic was already reported to the caller of the job.
            let _ = worker.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Team;
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

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
