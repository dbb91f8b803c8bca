//! What this node knows about each peer: how it is reached, whether it may work, what it has earned.
//! It decides nothing about tasks and owns no stream; an open link is only kept here.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use libp2p::PeerId;
use tokio::sync::mpsc;

use super::feeder::{Feed, Resident};
use super::status::PeerStatus;
use crate::link::coordinator::Link;
use crate::wire::TaskHello;
use pangea_control::schedule::WorkerId;

/// Peers remembered, those that are gone included. The longest gone are forgotten first.
const PEERS_MAX: usize = 1024;

/// A peer that was found but has not connected for so long is not waited for.
const CONNECTING_FOR: Duration = Duration::from_secs(5);

/// Where a peer stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PeerState {
    /// Found, or connected but not yet known by its advert.
    Connecting,
    /// Admitted, adverts exchanged.
    Connected,
    /// Its connection ended.
    Gone,
}

/// One peer.
pub(crate) struct Peer {
    pub(crate) state: PeerState,
    pub(crate) since: Instant,
    pub(crate) addresses: Vec<String>,
    pub(crate) transport: String,
    pub(crate) found_by: String,
    pub(crate) rtt: Option<Duration>,
    pub(crate) bytes_per_s: f64,
    pub(crate) advert: Option<TaskHello>,
    pub(crate) link: Option<OpenLink>,
    /// Why it gets no more work.
    pub(crate) quarantined: Option<String>,
    /// Why it is gone.
    pub(crate) gone: String,
    /// Results of its that passed their check.
    pub(crate) tasks_checked: u64,
    /// Streams in a row that ended soon.
    pub(crate) reopened: u32,
}

/// The link over which this node gives a peer work.
pub(crate) struct OpenLink {
    /// Tells links to the same peer apart.
    pub(crate) generation: u64,
    pub(crate) link: Rc<Link>,
    pub(crate) worker: Option<WorkerId>,
    pub(crate) resident: Resident,
    pub(crate) feeder: mpsc::Sender<Feed>,
    /// Sent since the last finished attempt: what the cost model learns from.
    pub(crate) sent: (u64, Duration),
    /// What other nodes have queued there.
    pub(crate) busy: Duration,
}

impl Peer {
    fn new(now: Instant) -> Peer {
        Peer {
            state: PeerState::Connecting,
            since: now,
            addresses: Vec::new(),
            transport: String::new(),
            found_by: String::new(),
            rtt: None,
            bytes_per_s: 0.0,
            advert: None,
            link: None,
            quarantined: None,
            gone: String::new(),
            tasks_checked: 0,
            reopened: 0,
        }
    }

    /// From 0 to 1, by checked work alone: a new identity starts low, since identities are free.
    fn trust(&self) -> f64 {
        if self.quarantined.is_some() { 0.0 } else { 1.0 - 0.9 * 0.97_f64.powf(self.tasks_checked as f64) }
    }

    pub(crate) fn enter(&mut self, state: PeerState, now: Instant) {
        self.state = state;
        self.since = now;
    }

    pub(crate) fn name(&self) -> &str {
        self.advert.as_ref().map_or("", |advert| &advert.name)
    }
}

/// All peers.
#[derive(Default)]
pub(crate) struct Peers {
    by_id: HashMap<PeerId, Peer>,
}

impl Peers {
    /// The peer, which is remembered from now on.
    pub(crate) fn entry(&mut self, peer: PeerId, now: Instant) -> &mut Peer {
        if self.by_id.len() >= PEERS_MAX && !self.by_id.contains_key(&peer) {
            self.forget_one();
        }
        self.by_id.entry(peer).or_insert_with(|| Peer::new(now))
    }

    pub(crate) fn get(&self, peer: &PeerId) -> Option<&Peer> {
        self.by_id.get(peer)
    }

    pub(crate) fn get_mut(&mut self, peer: &PeerId) -> Option<&mut Peer> {
        self.by_id.get_mut(peer)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&PeerId, &Peer)> {
        self.by_id.iter()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (&PeerId, &mut Peer)> {
        self.by_id.iter_mut()
    }

    /// The open link of a worker.
    pub(crate) fn link_of(&mut self, worker: WorkerId) -> Option<(PeerId, &mut OpenLink)> {
        self.by_id.iter_mut().find_map(|(id, peer)| {
            let link = peer.link.as_mut().filter(|link| link.worker == Some(worker))?;
            Some((*id, link))
        })
    }

    /// Peers that are expected to be there soon.
    pub(crate) fn connecting(&self, now: Instant) -> usize {
        let soon =
            |peer: &&Peer| peer.state == PeerState::Connecting && now.duration_since(peer.since) < CONNECTING_FOR;
        self.by_id.values().filter(soon).count()
    }

    pub(crate) fn connected(&self) -> usize {
        self.by_id.values().filter(|peer| peer.state == PeerState::Connected).count()
    }

    /// Everything, ordered by peer id.
    pub(crate) fn statuses(&self, in_flight: impl Fn(WorkerId) -> u32) -> Vec<PeerStatus> {
        let mut statuses: Vec<PeerStatus> = self.by_id.iter().map(|(id, peer)| status(id, peer, &in_flight)).collect();
        statuses.sort_by(|one, other| one.peer.cmp(&other.peer));
        statuses
    }

    fn forget_one(&mut self) {
        let gone =
            self.by_id.iter().filter(|(_, peer)| peer.state != PeerState::Connected && peer.quarantined.is_none());
        if let Some(oldest) = gone.min_by_key(|(_, peer)| peer.since).map(|(id, _)| *id) {
            self.by_id.remove(&oldest);
        }
    }
}

fn status(id: &PeerId, peer: &Peer, in_flight: impl Fn(WorkerId) -> u32) -> PeerStatus {
    let state = match peer.state {
        PeerState::Gone => "gone",
        _ if peer.quarantined.is_some() => "quarantined",
        PeerState::Connecting => "connecting",
        PeerState::Connected => "connected",
    };
    let worker = peer.link.as_ref().and_then(|link| link.worker);
    PeerStatus {
        peer: id.to_string(),
        name: peer.name().to_owned(),
        state: state.to_owned(),
        addresses: peer.addresses.clone(),
        trust: peer.trust(),
        quarantined: peer.quarantined.is_some(),
        why: peer.quarantined.clone().unwrap_or_else(|| peer.gone.clone()),
        transport: peer.transport.clone(),
        found_by: peer.found_by.clone(),
        rtt_ms: peer.rtt.map_or(0.0, |rtt| rtt.as_secs_f64() * 1e3),
        bytes_per_s: peer.bytes_per_s,
        gflops: peer.advert.as_ref().map_or(0.0, |advert| advert.f32_flops_per_s / 1e9),
        threads: peer.advert.as_ref().map_or(0, |advert| u32::from(advert.threads)),
        tasks_in_flight: worker.map_or(0, in_flight),
        tasks_checked: peer.tasks_checked,
    }
}
