//! Where the threads of one job wait for each other between phases. A thread spins for a moment, because the others arrive
//! at about the same time, then sleeps.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

/// Iterations that a thread spins before it sleeps: some tens of microseconds, more than the threads' phases differ by while
/// all of them run, and far less than a scheduler's time slice.
const SPINS: u32 = 4_000;

/// A reusable barrier. The number of threads may change from use to use; all threads of one use must name the same number.
pub(crate) struct Barrier {
    arrived: AtomicUsize,
    /// Completed waits.
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

    /// Makes a broken barrier usable again. Must not be called while a thread waits.
    pub(crate) fn reset(&self) {
        self.arrived.store(0, Ordering::Relaxed);
        self.broken.store(false, Ordering::Release);
    }

    /// Waits for `width` threads, including the caller.
    ///
    /// # Panics
    /// Where [`Barrier::break_up`] was called.
    pub(crate) fn wait(&self, width: usize) {
        if width == 1 {
            return;
        }
        let generation = self.generation.load(Ordering::Acquire);
        // A break-up before this load is seen here; a later one changes the generation.
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

    /// Makes every wait panic, now and until [`Barrier::reset`], because one of the threads will not arrive.
    pub(crate) fn break_up(&self) {
        self.broken.store(true, Ordering::Relaxed);
        self.release();
    }

    fn release(&self) {
        let sleepers = {
            // The lock orders this with a thread that is about to sleep.
            let sleepers = self.sleepers.lock().unwrap_or_else(PoisonError::into_inner);
            self.generation.fetch_add(1, Ordering::Release);
            *sleepers
        };
        if sleepers > 0 {
            self.wake.notify_all();
        }
    }

    fn check(&self) {
        if self.broken.load(Ordering::Relaxed) {
            // Not through the panic hook: the first panic was told already, and this one only ends the thread's job.
            std::panic::resume_unwind(Box::new("another compute thread panicked"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn no_thread_passes_before_all_have_arrived() {
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
    fn a_thread_that_panicked_blocks_no_other() {
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
