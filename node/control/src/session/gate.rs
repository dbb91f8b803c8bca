//! Decides which sender may send which message to a stage, before anything is queued for the
//! stage. Contents are not read.

use std::collections::BTreeMap;

use libp2p_identity::PeerId;

use super::{SessionId, StageAt};

/// A message to a stage, as far as its sender's permission depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Opens a request of `choices` answers whose first session is `session`.
    Open {
        /// The session of the first answer.
        session: SessionId,
        /// The number of answers.
        choices: u16,
        /// The node that the request names as its coordinator.
        coordinator: PeerId,
    },
    /// Ends a session.
    Close(SessionId),
    /// Signs for a session.
    Commit,
    /// Computes rows.
    Frame,
    /// Reports a frame that is done.
    Stepped,
    /// Reports a session that cannot go on.
    Failed,
}

/// Checks the senders of messages to one stage.
#[derive(Debug)]
pub struct Gate {
    /// The peers of all stages, in order.
    stages: Vec<PeerId>,
    index: usize,
    /// On the first stage: the coordinator of every open session.
    coordinators: BTreeMap<SessionId, PeerId>,
}

impl Gate {
    /// The gate of the stage at `index`.
    pub fn new(stages: &[StageAt], index: usize) -> Gate {
        Gate { stages: stages.iter().map(|stage| stage.peer).collect(), index, coordinators: BTreeMap::new() }
    }

    /// The peers of all stages of the chain, in order.
    pub fn stages(&self) -> &[PeerId] {
        &self.stages
    }

    /// Whether `from` may send this message. The sessions of an admitted opening are open from now on.
    pub fn admits(&mut self, from: &PeerId, ask: Ask) -> bool {
        let Some(previous) = self.index.checked_sub(1) else { return self.first_admits(from, ask) };
        match ask {
            Ask::Open { .. } | Ask::Close(_) | Ask::Commit | Ask::Frame => self.stages.get(previous) == Some(from),
            Ask::Stepped | Ask::Failed => false,
        }
    }

    fn first_admits(&mut self, from: &PeerId, ask: Ask) -> bool {
        match ask {
            Ask::Open { session, choices, coordinator } => {
                let sessions = || (0..choices).map(|choice| session.choice(choice));
                // A session belongs to one coordinator; another one that draws the same id is refused.
                if coordinator != *from || sessions().any(|session| self.coordinators.contains_key(&session)) {
                    return false;
                }
                self.coordinators.extend(sessions().map(|session| (session, coordinator)));
                true
            }
            Ask::Close(session) => self.coordinators.get(&session) == Some(from),
            Ask::Stepped => self.stages.last() == Some(from),
            Ask::Failed => self.stages.contains(from),
            Ask::Commit | Ask::Frame => false,
        }
    }

    /// Records that a session has ended.
    pub fn over(&mut self, session: &SessionId) {
        self.coordinators.remove(session);
    }

    /// Records that all sessions have ended.
    pub fn clear(&mut self) {
        self.coordinators.clear();
    }
}

/// The nodes that wait for a session, each once: its coordinator, and the first stage that schedules it.
pub(super) fn waiting_for(coordinator: PeerId, first_stage: PeerId) -> impl Iterator<Item = PeerId> {
    std::iter::once(coordinator).chain((first_stage != coordinator).then_some(first_stage))
}

/// The nodes to notify when the stage on `local` cannot accept an opening, so that they do not wait for it: the
/// coordinator and the first stage. Empty if `from` may not open sessions at this stage.
pub fn waiting_for_opening(local: &PeerId, from: &PeerId, stages: &[StageAt], coordinator: PeerId) -> Vec<PeerId> {
    let index = stages.iter().position(|stage| stage.peer == *local);
    match index.and_then(|index| index.checked_sub(1)) {
        Some(previous) if stages[previous].peer == *from => waiting_for(coordinator, stages[0].peer).collect(),
        Some(_) => Vec::new(),
        None => vec![*from],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_peers::peer;

    fn session(n: u8) -> SessionId {
        SessionId([n; 16])
    }

    /// Three stages on the peers 0, 1 and 2.
    fn stages() -> Vec<StageAt> {
        (0..3).map(|at| StageAt { peer: peer(u64::from(at)), layers: at..at + 1 }).collect()
    }

    /// The gates of a chain of those stages.
    fn gates() -> [Gate; 3] {
        [0, 1, 2].map(|index| Gate::new(&stages(), index))
    }

    #[test]
    fn an_opening_that_a_stage_cannot_accept_is_reported_to_waiting_nodes() {
        let reported = |at: u64, from: u64, coordinator: u64| {
            waiting_for_opening(&peer(at), &peer(from), &stages(), peer(coordinator))
        };
        assert_eq!(reported(0, 9, 9), [peer(9)]);
        assert_eq!(reported(1, 0, 9), [peer(9), peer(0)]);
        assert_eq!(reported(2, 1, 0), [peer(0)], "the coordinator is the first stage");
        // Only the previous stage forwards openings.
        assert!(reported(2, 0, 9).is_empty() && reported(1, 2, 9).is_empty() && reported(1, 9, 9).is_empty());
    }

    #[test]
    fn later_stages_accept_messages_only_from_the_previous_stage() {
        let [_, mut middle, mut last] = gates();
        let open = Ask::Open { session: session(1), choices: 1, coordinator: peer(9) };
        for ask in [open, Ask::Close(session(1)), Ask::Commit, Ask::Frame] {
            assert!(middle.admits(&peer(0), ask) && last.admits(&peer(1), ask), "{ask:?}");
            assert!([1, 2, 9].iter().all(|&from| !middle.admits(&peer(from), ask)), "{ask:?}");
            assert!([0, 2, 9].iter().all(|&from| !last.admits(&peer(from), ask)), "{ask:?}");
        }
        for ask in [Ask::Stepped, Ask::Failed] {
            assert!([0, 1, 2, 9].iter().all(|&from| !middle.admits(&peer(from), ask)), "{ask:?}");
        }
    }

    #[test]
    fn the_first_stage_accepts_reports_of_the_last_stage_and_failures_of_all() {
        let [mut first, ..] = gates();
        assert!([0, 1, 2, 9].map(|from| first.admits(&peer(from), Ask::Stepped)) == [false, false, true, false]);
        assert!([0, 1, 2, 9].map(|from| first.admits(&peer(from), Ask::Failed)) == [true, true, true, false]);
        assert!([0, 1, 2, 9].iter().all(|&from| !first.admits(&peer(from), Ask::Frame)));
        assert!([0, 1, 2, 9].iter().all(|&from| !first.admits(&peer(from), Ask::Commit)));
    }

    #[test]
    fn only_its_coordinator_closes_a_session() {
        let [mut first, ..] = gates();
        let open = |of, coordinator| Ask::Open { session: session(of), choices: 2, coordinator: peer(coordinator) };
        assert!(!first.admits(&peer(8), open(1, 9)), "a node cannot open a session in another's name");
        assert!(first.admits(&peer(9), open(1, 9)));
        assert!(!first.admits(&peer(8), open(1, 8)), "the id is in use");
        let other = session(1).choice(1);
        assert!(!first.admits(&peer(8), Ask::Close(session(1))) && !first.admits(&peer(1), Ask::Close(other)));
        assert!(first.admits(&peer(9), Ask::Close(session(1))) && first.admits(&peer(9), Ask::Close(other)));
        first.over(&session(1));
        assert!(!first.admits(&peer(9), Ask::Close(session(1))) && first.admits(&peer(9), Ask::Close(other)));
    }
}
