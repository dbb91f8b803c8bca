//! Where the threads of one job wait for each other between its phases: they spin for a moment, since the others are
//! about as far, then sleep. It knows nothing of threads or jobs.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

/// How often a thread looks before it sleeps: some tens of microseconds, more than the threads' shares of a phase differ
/// by when they all run, far less than a scheduler's time slice.
const SPINS: u32 = 4_000;

/// Meets again and again; the threads need not be the same number each time, but must agree on it.
pub(crate) struct Barrier {
    arrived: AtomicUsize,
    /// Counts the meetings.
    generation: AtomicU32,
    broken: AtomicBool,
    sleepers: Mutex<u32>,
    wake: Condvar,
}

impl Barrier {
    pub(crate) fn new() -> Barrier {
        Barrier {
            arrived: AtomicUsize::new(0),
            generation: AtomicU32::new(0),
            broken: AtomicBool::new(false),
            sleepers: Mutex::new(0),
            wake: Condvar::new(),
        }
    }

    /// Forgets a broken meeting. Only while nobody waits.
    pub(crate) fn reset(&self) {
        self.arrived.store(0, Ordering::Relaxed);
        self.broken.store(false, Ordering::Release);
    }

    /// Waits for `width` threads, this one included.
    ///
    /// # Panics
    /// Where somebody called [`Barrier::break_up`].
    pub(crate) fn wait(&self, width: usize) {
        if width == 1 {
            return;
        }
        let generation = self.generation.load(Ordering::Acquire);
        // A break-up before this was loaded is seen now, a later one ends the meeting.
        self.check();
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == width {
            self.arrived.store(0, Ordering::Relaxed);
            self.release();
            return;
        }
        for _ in 0..SPINS {
            if self.generation.load(Ordering::Acquire) != generation {
                self.check();
                return;
            }
            std::hint::spin_loop();
        }
        let mut sleepers = self.sleepers.lock().unwrap_or_else(PoisonError::into_inner);
        *sleepers += 1;
        while self.generation.load(Ordering::Acquire) == generation {
            sleepers = self.wake.wait(sleepers).unwrap_or_else(PoisonError::into_inner);
        }
        *sleepers -= 1;
        drop(sleepers);
        self.check();
    }

    /// Lets everybody go who waits or will wait: one of the threads does not come.
    pub(crate) fn break_up(&self) {
        self.broken.store(true, Ordering::Relaxed);
        self.release();
    }

    fn release(&self) {
        let sleepers = {
            // The lock orders this with who is about to sleep.
            let sleepers = self.sleepers.lock().unwrap_or_else(PoisonError::into_inner);
            self.generation.fetch_add(1, Ordering::Release);
            *sleepers
        };
        if sleepers > 0 {
            self.wake.notify_all();
        }
    }

    fn check(&self) {
        assert!(!self.broken.load(Ordering::Relaxed), "another compute thread panicked");
    }
}

#[cfg(test)]
mod tests {
    use super::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn nobody_passes_before_everybody_is_there() {
        let (barrier, count) = (Barrier::new(), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for round in 0..2_000 {
                        count.fetch_add(1, Ordering::Relaxed);
                        barrier.wait(3);
                        assert_eq!(count.load(Ordering::Relaxed), 3 * (round + 1));
                        barrier.wait(3);
                    }
                });
            }
        });
    }

    #[test]
    fn a_thread_that_does_not_come_holds_nobody() {
        let barrier = Barrier::new();
        let waited = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| barrier.wait(2));
            barrier.break_up();
            waiting.join()
        });
        assert!(waited.is_err());
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| barrier.wait(2))).is_err());
        barrier.reset();
        std::thread::scope(|scope| {
            scope.spawn(|| barrier.wait(2));
            barrier.wait(2);
        });
    }
}
