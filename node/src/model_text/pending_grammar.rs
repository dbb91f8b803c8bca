//! A grammar that is being compiled beside a stage's thread, which has other sessions to compute. What is done with the grammar
//! is unknown here.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::sample::AnswerFormat;
use pangea_compute::sample::grammar::Grammar;
use pangea_control::session::GRAMMAR_TIMEOUT;

use super::ModelText;
use crate::compute_error;

/// Time limit of a compilation with its wait for a place, and with a model's vocabulary, which takes seconds to prepare for
/// the first grammar: ends before the first stage takes the wait for a lie.
const TIMEOUT: Duration = Duration::from_secs(GRAMMAR_TIMEOUT.as_secs() - 2);

/// A grammar that is being compiled, or is compiled; clones share it.
#[derive(Clone)]
pub(crate) struct PendingGrammar {
    shared: Arc<Shared>,
    began: Instant,
}

struct Shared {
    result: Mutex<Option<Result<Grammar>>>,
}

impl Shared {
    fn result(&self) -> MutexGuard<'_, Option<Result<Grammar>>> {
        self.result.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Completes the grammar even if its thread panics.
struct Completed(Arc<Shared>);

impl Drop for Completed {
    fn drop(&mut self) {
        let broken = || Err(Error::new(ErrorKind::Internal, "the JSON Schema could not be compiled"));
        self.0.result().get_or_insert_with(broken);
    }
}

impl PendingGrammar {
    /// Starts to compile the grammar of `format`, which then processes `tokens`, on a thread of its own; `None` for free text.
    ///
    /// # Errors
    /// `Overloaded` if no thread can be started.
    pub(crate) fn start(
        text: &Arc<ModelText>,
        format: &AnswerFormat,
        tokens: &[u32],
    ) -> Result<Option<PendingGrammar>> {
        if *format == AnswerFormat::Text {
            return Ok(None);
        }
        let (text, format, tokens) = (Arc::clone(text), format.clone(), tokens.to_vec());
        PendingGrammar::run(move || {
            let mut grammar = text
                .grammar(&format)?
                .ok_or_else(|| Error::new(ErrorKind::Internal, "a format other than text has no grammar"))?;
            tokens.iter().try_for_each(|&token| grammar.accept(token)).map_err(compute_error)?;
            Ok(grammar)
        })
        .map(Some)
    }

    /// Starts to compile a grammar on a thread of its own.
    ///
    /// # Errors
    /// `Overloaded` if no thread can be started.
    pub(crate) fn run(compile: impl FnOnce() -> Result<Grammar> + Send + 'static) -> Result<PendingGrammar> {
        let shared = Arc::new(Shared { result: Mutex::default() });
        let completed = Completed(Arc::clone(&shared));
        let run = move || {
            let result = compile();
            *completed.0.result() = Some(result);
        };
        std::thread::Builder::new().name("grammar of a session".to_owned()).spawn(run).map_err(|error| {
            Error::new(ErrorKind::Overloaded, format!("no thread can be started to compile a JSON Schema: {error}"))
        })?;
        Ok(PendingGrammar { shared, began: Instant::now() })
    }

    /// Whether the thread still runs.
    pub(crate) fn is_running(&self) -> bool {
        self.shared.result().is_none()
    }

    /// A copy of the grammar; `None` while it is being compiled.
    ///
    /// # Errors
    /// Those of the compilation; `Overloaded` once it takes too long.
    pub(crate) fn get(&self) -> Result<Option<Grammar>> {
        match &*self.shared.result() {
            Some(result) => result.clone().map(Some),
            None if self.began.elapsed() > TIMEOUT => {
                Err(Error::new(ErrorKind::Overloaded, "the JSON Schema takes too long to compile; try again later"))
            }
            None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;

    #[test]
    fn a_grammar_is_pending_until_its_thread_ends_and_a_panic_is_an_error() {
        let (release, wait) = sync_channel::<()>(0);
        let pending = PendingGrammar::run(move || {
            // Compiled on the caller's thread, it would wait for ever.
            wait.recv_timeout(Duration::from_secs(60)).unwrap();
            panic!("on purpose");
        })
        .unwrap();
        assert!(pending.is_running() && pending.get().unwrap().is_none());
        release.send(()).unwrap();
        while pending.is_running() {
            std::thread::yield_now();
        }
        assert_eq!(pending.get().map(drop).unwrap_err().kind(), ErrorKind::Internal);
    }
}
