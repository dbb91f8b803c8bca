//! For which sessions a stage computes now, and which of them their coordinators have closed: a pass that nobody waits for any
//! more is cancelled, instead of keeping the others waiting for seconds. Closings pass here as they arrive, because the
//! stage's thread reads its messages only between passes.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pangea_compute::Cancel;

use super::wire::SessionId;

/// The pass that a stage computes, shared with those who deliver its messages; clones are the same.
#[derive(Clone, Default)]
pub(super) struct RunningPass(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// Sessions of the pass; empty between passes.
    sessions: Vec<SessionId>,
    cancel: Cancel,
    /// Closed sessions whose closing the stage has not read yet: no more than messages that its queue holds.
    closed: HashSet<SessionId>,
}

impl RunningPass {
    /// A pass for these sessions begins. The flag is set once all of them are closed.
    pub(super) fn begin(&self, sessions: Vec<SessionId>) -> Cancel {
        let mut state = self.state();
        state.sessions = sessions;
        state.cancel = Cancel::new();
        state.cancel_if_unwanted();
        state.cancel.clone()
    }

    /// The pass has ended.
    pub(super) fn finish(&self) {
        self.state().sessions.clear();
    }

    /// A session's closing has arrived.
    pub(super) fn close(&self, session: SessionId) {
        let mut state = self.state();
        state.closed.insert(session);
        state.cancel_if_unwanted();
    }

    /// The stage has read the closing of a session.
    pub(super) fn closing_read(&self, session: &SessionId) {
        self.state().closed.remove(session);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn cancel_if_unwanted(&self) {
        let are_closed = || self.sessions.iter().all(|session| self.closed.contains(session));
        if !self.sessions.is_empty() && are_closed() {
            self.cancel.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(number: u8) -> SessionId {
        SessionId([number; 16])
    }

    #[test]
    fn a_pass_is_cancelled_when_the_last_of_its_sessions_is_closed() {
        let pass = RunningPass::default();
        let cancel = pass.begin(vec![session(1), session(2)]);
        pass.close(session(3));
        pass.close(session(1));
        assert!(!cancel.is_cancelled());
        pass.close(session(2));
        assert!(cancel.is_cancelled());
        pass.finish();
        // A session of another pass, whose closing came between two passes.
        assert!(pass.begin(vec![session(3)]).is_cancelled());
        pass.finish();
        pass.closing_read(&session(1));
        assert!(!pass.begin(vec![session(1)]).is_cancelled(), "the same id, opened again");
    }

    #[test]
    fn a_pass_without_sessions_is_for_nobody_to_close() {
        let pass = RunningPass::default();
        let cancel = pass.begin(Vec::new());
        pass.close(session(1));
        assert!(!cancel.is_cancelled());
    }
}
