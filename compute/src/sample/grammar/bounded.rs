//! Runs the compilation of grammars in a bounded place: a thread with a large stack for each, few at a time, within a time
//! limit. What is compiled is unknown here.

use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{OPERATION, invalid};
use crate::Error;

/// Stack of a compilation, in bytes of address space; only what is used takes memory. The deepest schema within the limits
/// takes less than a quarter of it, in unoptimised builds too.
const COMPILE_STACK_BYTES: usize = 256 << 20;

/// Compilations at once: a compilation that goes on after its time limit still leaves a place for others.
const MAX_COMPILATIONS: usize = 2;

/// Time limit of one compilation. Schemas in use take milliseconds.
const COMPILE_TIMEOUT: Duration = Duration::from_secs(10);

/// Time for which a compilation waits for a place.
const PLACE_TIMEOUT: Duration = Duration::from_secs(10);

/// The places of one process.
struct Places {
    taken: Mutex<usize>,
    freed: Condvar,
}

static PLACES: Places = Places { taken: Mutex::new(0), freed: Condvar::new() };

/// A place that is held; freed when dropped.
struct Place(&'static Places);

impl Places {
    fn taken(&self) -> MutexGuard<'_, usize> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&'static self, timeout: Duration) -> Option<Place> {
        let full = |taken: &mut usize| *taken >= MAX_COMPILATIONS;
        let (mut taken, waited) =
            self.freed.wait_timeout_while(self.taken(), timeout, full).unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() && *taken >= MAX_COMPILATIONS {
            return None;
        }
        *taken += 1;
        Some(Place(self))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *self.0.taken() -= 1;
        self.0.freed.notify_one();
    }
}

/// Runs `compile` on a thread of its own and waits for it.
///
/// # Errors
/// Those of `compile`; `InvalidInput` if it takes too long or panics, `Overloaded` if no place becomes free in time or no
/// thread can be started.
pub(super) fn compile<T: Send + 'static>(
    compile: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    within(&PLACES, PLACE_TIMEOUT, COMPILE_TIMEOUT, compile)
}

/// [`compile`] without time limits, for tests of the other ones on busy machines.
#[cfg(test)]
pub(super) fn compile_slowly<T: Send + 'static>(
    compile: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let long = Duration::from_secs(3600);
    within(&PLACES, long, long, compile)
}

fn within<T: Send + 'static>(
    places: &'static Places,
    place_timeout: Duration,
    compile_timeout: Duration,
    compile: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let busy = |what: &str| Error::Busy { what: format!("{OPERATION}: {what}; try again later") };
    let place = places.take(place_timeout).ok_or_else(|| busy("too many JSON Schemas are being compiled"))?;
    // One result.
    let (send, receive) = sync_channel(1);
    let began = Instant::now();
    let run = move || {
        // Held as long as the compilation runs, also after its time limit.
        let _place = place;
        let _ = send.send(compile());
    };
    std::thread::Builder::new()
        .name("grammar".to_owned())
        .stack_size(COMPILE_STACK_BYTES)
        .spawn(run)
        .map_err(|error| busy(&format!("no thread can be started to compile a JSON Schema ({error})")))?;
    match receive.recv_timeout(compile_timeout.saturating_sub(began.elapsed())) {
        Ok(result) => result,
        Err(RecvTimeoutError::Timeout) => Err(invalid(format!(
            "the JSON Schema takes more than {} s to compile; make it simpler",
            compile_timeout.as_secs()
        ))),
        Err(RecvTimeoutError::Disconnected) => Err(invalid("the JSON Schema cannot be compiled".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Barrier};

    use super::*;
    use crate::ErrorKind;

    #[test]
    fn a_compilation_that_takes_too_long_keeps_its_place_until_it_ends() {
        static PLACES: Places = Places { taken: Mutex::new(0), freed: Condvar::new() };
        let long = Duration::from_secs(60);
        let release = Arc::new(Barrier::new(MAX_COMPILATIONS + 1));
        for _ in 0..MAX_COMPILATIONS {
            let release = Arc::clone(&release);
            let late = within(&PLACES, long, Duration::ZERO, move || {
                release.wait();
                Ok(())
            });
            assert_eq!(late.unwrap_err().kind(), ErrorKind::InvalidInput);
        }
        let refused = within(&PLACES, Duration::ZERO, long, || Ok(())).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Overloaded);
        release.wait();
        within(&PLACES, long, long, || Ok(())).unwrap();
    }

    #[test]
    fn a_compilation_that_panics_is_an_error_and_frees_its_place() {
        static PLACES: Places = Places { taken: Mutex::new(0), freed: Condvar::new() };
        let long = Duration::from_secs(60);
        for _ in 0..=MAX_COMPILATIONS {
            let failed: Result<(), Error> = within(&PLACES, long, long, || panic!("on purpose"));
            assert_eq!(failed.unwrap_err().kind(), ErrorKind::InvalidInput);
        }
    }
}
