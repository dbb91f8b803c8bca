//! The sessions that this node coordinates: which node may send what about each of them, before anything is queued. What a
//! message means for an answer is not decided here.

use std::collections::BTreeMap;

use libp2p_identity::PeerId;

use super::SessionId;

/// Where a message about a session goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery<'a, Queue> {
    /// To this queue, of which the sender may use every place.
    Any(&'a Queue),
    /// To this queue, of which half must stay free: the tokens of the last stage find a place there, whatever the other
    /// stages send.
    Half(&'a Queue),
}

/// A session and its stages.
#[derive(Debug)]
struct Coordinated<Queue> {
    stages: Vec<PeerId>,
    queue: Queue,
}

/// The sessions that this node coordinates, each with the queue of its events.
#[derive(Debug)]
pub struct CoordinatedSessions<Queue> {
    sessions: BTreeMap<SessionId, Coordinated<Queue>>,
}

impl<Queue> Default for CoordinatedSessions<Queue> {
    fn default() -> CoordinatedSessions<Queue> {
        CoordinatedSessions { sessions: BTreeMap::new() }
    }
}

impl<Queue> CoordinatedSessions<Queue> {
    /// Adds a session that is opened at `stages`, in order.
    pub fn insert(&mut self, session: SessionId, stages: Vec<PeerId>, queue: Queue) {
        self.sessions.insert(session, Coordinated { stages, queue });
    }

    /// Removes a session: nobody may send anything about it from now on.
    pub fn remove(&mut self, session: &SessionId) {
        self.sessions.remove(session);
    }

    /// Where a message of `from` about a session goes; `None` unless `from` is a stage of the session.
    pub fn delivery(&self, session: &SessionId, from: &PeerId) -> Option<Delivery<'_, Queue>> {
        let Coordinated { stages, queue } = self.sessions.get(session)?;
        let is_last = stages.last() == Some(from);
        let delivery = if is_last { Delivery::Any(queue) } else { Delivery::Half(queue) };
        stages.contains(from).then_some(delivery)
    }

    /// The queues of all sessions that a peer is a stage of.
    pub fn of_peer(&self, peer: &PeerId) -> impl Iterator<Item = &Queue> {
        self.sessions.values().filter(move |session| session.stages.contains(peer)).map(|session| &session.queue)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_peers::peer;

    fn sessions() -> (CoordinatedSessions<u8>, [SessionId; 2]) {
        let mut sessions = CoordinatedSessions::default();
        let ids = [SessionId([1; 16]), SessionId([2; 16])];
        sessions.insert(ids[0], vec![peer(1), peer(2), peer(3)], 10);
        sessions.insert(ids[1], vec![peer(3)], 20);
        (sessions, ids)
    }

    #[test]
    fn only_the_stages_of_a_session_reach_its_coordinator() {
        let (mut sessions, [one, other]) = sessions();
        assert_eq!(sessions.delivery(&one, &peer(3)), Some(Delivery::Any(&10)));
        assert_eq!(sessions.delivery(&one, &peer(1)), Some(Delivery::Half(&10)));
        assert_eq!(sessions.delivery(&one, &peer(2)), Some(Delivery::Half(&10)));
        assert_eq!(sessions.delivery(&one, &peer(9)), None, "a stranger");
        assert_eq!(sessions.delivery(&other, &peer(1)), None, "a stage of another session");
        assert_eq!(sessions.delivery(&SessionId([3; 16]), &peer(1)), None);
        sessions.remove(&one);
        assert_eq!(sessions.delivery(&one, &peer(3)), None);
    }

    #[test]
    fn the_loss_of_a_peer_concerns_the_sessions_that_it_is_a_stage_of() {
        let (sessions, _) = sessions();
        let of = |n| sessions.of_peer(&peer(n)).copied().collect::<Vec<u8>>();
        assert_eq!((of(1), of(3), of(9)), (vec![10], vec![10, 20], vec![]));
    }
}
