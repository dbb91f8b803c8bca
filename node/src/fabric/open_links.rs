//! The open links over which this node gives work to peers, and the peers' statuses. The directory of peers
//! owns the facts about peers; nothing is decided here.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use libp2p::PeerId;
use tokio::sync::mpsc;

use super::feeder::{Feed, Resident};
use super::status::PeerStatus;
use crate::clock;
use crate::link::coordinator::TaskLink;
use pangea_control::Time;
use pangea_control::peers::{Directory, Peer, PeerState};
use pangea_control::schedule::WorkerId;

/// The link over which this node gives work to a peer.
pub(crate) struct OpenLink {
    /// Distinguishes links to the same peer.
    pub(crate) generation: u64,
    pub(crate) link: Rc<TaskLink>,
    /// The scheduler's id of the peer on this link; `None` until its hello, and for a peer that accepts no tasks.
    pub(crate) worker: Option<WorkerId>,
    pub(crate) resident: Resident,
    pub(crate) feeder: mpsc::Sender<Feed>,
    /// Bytes sent since the last finished attempt and the time that took; the cost model learns from them.
    pub(crate) sent: (u64, Duration),
    /// Work of other nodes queued at the peer.
    pub(crate) busy: Duration,
}

/// The open links, by peer.
#[derive(Default)]
pub(crate) struct OpenLinks(HashMap<PeerId, OpenLink>);

impl OpenLinks {
    pub(crate) fn insert(&mut self, peer: PeerId, link: OpenLink) {
        self.0.insert(peer, link);
    }

    pub(crate) fn remove(&mut self, peer: &PeerId) -> Option<OpenLink> {
        self.0.remove(peer)
    }

    pub(crate) fn get(&self, peer: &PeerId) -> Option<&OpenLink> {
        self.0.get(peer)
    }

    pub(crate) fn get_mut(&mut self, peer: &PeerId) -> Option<&mut OpenLink> {
        self.0.get_mut(peer)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&PeerId, &OpenLink)> {
        self.0.iter()
    }

    /// The open link of a worker.
    pub(crate) fn of_worker(&self, worker: WorkerId) -> Option<(PeerId, &OpenLink)> {
        self.0.iter().find(|(_, link)| link.worker == Some(worker)).map(|(peer, link)| (*peer, link))
    }

    /// The scheduler's id of a peer that accepts tasks.
    pub(crate) fn worker_of(&self, peer: &PeerId) -> Option<WorkerId> {
        self.get(peer)?.worker
    }

    /// The status of every peer, ordered by the text of its peer id.
    pub(crate) fn statuses(&self, directory: &Directory, in_flight: impl Fn(WorkerId) -> u32) -> Vec<PeerStatus> {
        let now = clock::now();
        let status = |(id, peer): (&PeerId, &Peer)| status(id, peer, self.worker_of(id).map_or(0, &in_flight), now);
        // A lite client uses the pool and is nobody's peer.
        let is_peer = |(_, peer): &(&PeerId, &Peer)| peer.hello.as_ref().is_none_or(|hello| hello.works);
        let mut statuses: Vec<PeerStatus> = directory.iter().filter(is_peer).map(status).collect();
        statuses.sort_by(|one, other| one.peer.cmp(&other.peer));
        statuses
    }
}

fn status(id: &PeerId, peer: &Peer, tasks_in_flight: u32, now: Time) -> PeerStatus {
    let state = match peer.state {
        _ if peer.is_quarantined() => "quarantined",
        PeerState::Gone => "gone",
        PeerState::Connecting => "connecting",
        PeerState::Connected => "connected",
    };
    PeerStatus {
        peer: id.to_string(),
        name: peer.name().to_owned(),
        state: state.to_owned(),
        addresses: peer.addresses.clone(),
        trust: peer.trust(now),
        quarantined: peer.is_quarantined(),
        why: peer.quarantined.clone().unwrap_or_else(|| peer.gone.clone()),
        transport: peer.transport.clone(),
        found_by: peer.found_by.clone(),
        rtt_ms: peer.rtt.map_or(0.0, |rtt| rtt.as_secs_f64() * 1e3),
        bytes_per_s: peer.bytes_per_s.unwrap_or_default(),
        gflops: peer.hello.as_ref().map_or(0.0, |hello| hello.f32_flops_per_s / 1e9),
        threads: peer.hello.as_ref().map_or(0, |hello| u32::from(hello.threads)),
        tasks_in_flight,
        tasks_checked: peer.tasks_checked,
        ..PeerStatus::default()
    }
}
