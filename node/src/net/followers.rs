//! Distributes network events to followers, each at its own pace: a slow follower delays neither the swarm nor other
//! followers. `pangea_control::net::backlog` decides which events a slow follower still gets.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pangea_control::net::backlog::{Backlog, Kind, Topic};
use tokio::sync::{Notify, mpsc};

use super::network::{GossipJudgement, NetEvent, Network};

/// Which events a follower receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Every event.
    All,
    /// Every event except gossip.
    NoGossip,
    /// Only connects and disconnects of peers.
    Connections,
    /// Only nodes of other pools.
    Strangers,
}

impl Interest {
    fn covers(self, event: &NetEvent) -> bool {
        match self {
            Interest::All => true,
            Interest::NoGossip => !matches!(event, NetEvent::Gossip(_)),
            Interest::Connections => matches!(event, NetEvent::PeerUp { .. } | NetEvent::PeerDown { .. }),
            Interest::Strangers => matches!(event, NetEvent::Stranger { .. }),
        }
    }
}

/// Receives network events.
#[derive(Debug)]
pub struct Follower(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Notified when an event is queued or no more will come.
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    backlog: Backlog<NetEvent>,
    ended: bool,
    /// The follower was dropped.
    gone: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Follower {
    /// The next event; `None` once the network has ended and the queue is empty. Cancel-safe.
    pub async fn recv(&mut self) -> Option<NetEvent> {
        loop {
            {
                let mut state = self.0.lock();
                if let Some(event) = state.backlog.pop() {
                    return Some(event);
                }
                if state.ended {
                    return None;
                }
            }
            self.0.changed.notified().await;
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.gone = true;
        state.backlog = Backlog::default();
    }
}

/// Distributes network events to every follower.
pub struct Followers {
    events: mpsc::Receiver<NetEvent>,
    followers: Vec<(Interest, Arc<Shared>)>,
}

impl Followers {
    /// Distributes `events`; no follower yet.
    pub fn new(events: mpsc::Receiver<NetEvent>) -> Followers {
        Followers { events, followers: Vec::new() }
    }

    /// Adds a follower, which receives all events from now on that `interest` covers.
    pub fn follow(&mut self, interest: Interest) -> Follower {
        let shared = Arc::<Shared>::default();
        self.followers.push((interest, Arc::clone(&shared)));
        Follower(shared)
    }

    /// Distributes events until the network ends. Gossip that does not fit a follower's queue is judged `Ignore` here.
    pub async fn run(mut self, network: Option<Network>) {
        while let Some(event) = self.events.recv().await {
            for unheard in self.hand_on(&event) {
                if let (NetEvent::Gossip(gossip), Some(network)) = (unheard, &network) {
                    network.judge(gossip.ticket, GossipJudgement::Ignore).await;
                }
            }
        }
    }

    /// Queues a copy for each follower; returns the events that did not fit.
    fn hand_on(&self, event: &NetEvent) -> Vec<NetEvent> {
        let mut unheard = Vec::new();
        for (_, follower) in self.followers.iter().filter(|(interest, _)| interest.covers(event)) {
            let mut state = follower.lock();
            if !state.gone {
                unheard.extend(state.backlog.push(kind(event), event.clone()));
                follower.changed.notify_one();
            }
        }
        unheard
    }
}

impl Drop for Followers {
    fn drop(&mut self) {
        for (_, follower) in &self.followers {
            follower.lock().ended = true;
            follower.changed.notify_one();
        }
    }
}

fn kind(event: &NetEvent) -> Kind {
    match event {
        NetEvent::PeerUp { peer, .. } => Kind::Up(*peer),
        NetEvent::PeerDown { peer, .. } => Kind::Down(*peer),
        NetEvent::Rtt { peer, .. } => Kind::Latest(*peer, Topic::Rtt),
        NetEvent::PeerAddressesChanged { peer, .. } => Kind::Latest(*peer, Topic::Addresses),
        // A host listens on a few addresses and reports them at its start.
        NetEvent::Listening(_)
        | NetEvent::Discovered(_)
        | NetEvent::Gossip(_)
        | NetEvent::Refused { .. }
        | NetEvent::RefusedBy { .. }
        | NetEvent::Stranger { .. }
        | NetEvent::PeersFileBroken { .. }
        | NetEvent::PeersFileLoaded { .. } => Kind::Passing,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use libp2p::PeerId;

    use super::*;

    #[tokio::test]
    async fn a_follower_that_never_reads_delays_no_other() {
        let (sender, events) = mpsc::channel(8);
        let mut followers = Followers::new(events);
        let _stuck = followers.follow(Interest::All);
        let mut reader = followers.follow(Interest::NoGossip);
        let handing_on = tokio::spawn(followers.run(None));
        let gone = PeerId::random();
        for _ in 0..10_000 {
            sender.send(NetEvent::Rtt { peer: PeerId::random(), rtt: Duration::ZERO }).await.unwrap();
            assert!(matches!(reader.recv().await, Some(NetEvent::Rtt { .. })));
        }
        sender.send(NetEvent::PeerDown { peer: gone, why: "gone".to_owned(), silent: false }).await.unwrap();
        assert!(matches!(reader.recv().await, Some(NetEvent::PeerDown { peer, .. }) if peer == gone));
        drop(sender);
        handing_on.await.unwrap();
        assert_eq!(reader.recv().await, None);
    }
}
