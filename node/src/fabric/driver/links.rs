//! The task streams that this node opens towards peers: what is heard on them, and how they open, close and open again.

use std::cell::RefCell;
use std::collections::HashSet;
use std::rc::Rc;
use std::time::{Duration, Instant};

use libp2p::{PeerId, StreamProtocol};
use pangea_client::{Error, ErrorKind};

use super::probes::{FIRST_PROBE_BYTES, measure};
use super::{Driver, Notice};
use crate::fabric::feeder;
use crate::fabric::peers::{OpenLink, PeerState, Peers};
use crate::link::coordinator::{self, LinkEvent};
use crate::wire::{PROTOCOL, TaskHello};
use pangea_control::schedule::{AttemptId, Event, LeaveReason, Progress as Step, WorkerId};

/// Until a connected peer has taken a stream.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// A stream that ended is opened again after this at first, then twice as long each time.
const REOPEN_FIRST: Duration = Duration::from_millis(100);

/// And at most this long; a stream that lasted longer was a good one.
const REOPEN_LATEST: Duration = Duration::from_secs(30);

impl Driver {
    pub(super) fn on_link_event(&mut self, peer: PeerId, generation: u64, event: LinkEvent) {
        let current = |peers: &Peers| {
            peers.get(&peer).and_then(|known| known.link.as_ref()).is_some_and(|link| link.generation == generation)
        };
        if !current(&self.peers) {
            return;
        }
        match event {
            LinkEvent::Opened(advert) => self.link_opened(peer, advert),
            LinkEvent::Sent { bytes, took } => {
                self.counters.bytes_sent += bytes;
                if let Some(link) = self.peers.get_mut(&peer).and_then(|known| known.link.as_mut()) {
                    link.sent.0 += bytes;
                    link.sent.1 += took;
                }
            }
            LinkEvent::Started(task) => {
                self.events.push_back(Event::AttemptProgress { attempt: AttemptId(task), progress: Step::Computing });
            }
            LinkEvent::Result { task, tensor, compute, receiving } => {
                self.remote_done(peer, AttemptId(task), tensor, compute, receiving)
            }
            LinkEvent::Failure { task, kind, message } => {
                tracing::debug!(event = "task_failed", %peer, task, %kind, message);
                self.events.push_back(Event::AttemptFailed { attempt: AttemptId(task), kind });
            }
            LinkEvent::Missing { task, digests } => self.send_again(peer, AttemptId(task), digests),
            LinkEvent::Evicted(digest) => self.evicted(peer, digest),
            LinkEvent::Load { queued } => {
                if let Some(link) = self.peers.get_mut(&peer).and_then(|known| known.link.as_mut()) {
                    link.busy = queued;
                }
                self.update_worker(peer);
            }
            LinkEvent::Probed(nonce) => {
                if let Some(waiting) = self.probes.borrow_mut().waiting.remove(&nonce) {
                    let _ = waiting.send(Instant::now());
                }
            }
            LinkEvent::Closed(why) => {
                tracing::debug!(event = "link_closed", %peer, %why);
                self.close_link(peer, LeaveReason::Lost);
                self.reopen(peer);
            }
        }
    }

    pub(super) fn open_stream(&self, peer: PeerId, after: Duration) {
        let Some(network) = &self.network else { return };
        let mut control = network.streams();
        let notices = self.notices.clone();
        tokio::task::spawn_local(async move {
            tokio::time::sleep(after).await;
            let opening = control.open_stream(peer, StreamProtocol::new(PROTOCOL));
            let stream = match tokio::time::timeout(OPEN_TIMEOUT, opening).await {
                Ok(opened) => opened.map_err(|error| error.to_string()),
                Err(_) => Err(format!("no stream within {} s", OPEN_TIMEOUT.as_secs())),
            };
            let _ = notices.send(Notice::StreamOpened { peer, stream }).await;
        });
    }

    /// Opens a new stream where the connection outlived the old one: later and later, if they keep ending.
    pub(super) fn reopen(&mut self, peer: PeerId) {
        if self.served.borrow().draining {
            return;
        }
        let Some(known) = self.peers.get_mut(&peer).filter(|known| known.state != PeerState::Gone) else { return };
        let lasted = known.since.elapsed();
        known.enter(PeerState::Connecting, Instant::now());
        known.reopened = if lasted > REOPEN_LATEST { 0 } else { known.reopened.saturating_add(1) };
        let after = REOPEN_FIRST.saturating_mul(1 << known.reopened.min(16)).min(REOPEN_LATEST);
        self.open_stream(peer, after);
    }

    pub(super) fn stream_opened(&mut self, peer: PeerId, stream: std::result::Result<libp2p::Stream, String>) {
        let stream = match stream {
            Ok(stream) => stream,
            Err(why) => {
                tracing::debug!(event = "open_failed", %peer, why);
                let (waiting, others) =
                    std::mem::take(&mut self.waiting_for).into_iter().partition(|(of, ..)| *of == peer);
                self.waiting_for = others;
                let waiting: Vec<_> = waiting;
                for (_, _, answer) in waiting {
                    let why = format!("{peer} is connected but offers no {PROTOCOL}: {why}");
                    let _ = answer.send(Err(Error::new(ErrorKind::Unavailable, why)));
                }
                return;
            }
        };
        if !self.peers.get(&peer).is_some_and(|known| known.state != PeerState::Gone && known.link.is_none()) {
            return;
        }
        let generation = self.next_generation;
        self.next_generation += 1;
        let link = Rc::new(coordinator::open(stream, peer, generation, self.advert(), self.link_events.clone()));
        let resident = Rc::new(RefCell::new(HashSet::new()));
        let notices = self.notices.clone();
        let feeder = feeder::start(peer, Rc::clone(&link), Rc::clone(&resident), move |attempt, error| {
            // A lost notice leaves the attempt to the detector of silent workers.
            let _ = notices.try_send(Notice::FeedFailed { attempt, error });
        });
        if let Some(known) = self.peers.get_mut(&peer) {
            known.link = Some(OpenLink {
                generation,
                link,
                worker: None,
                resident,
                feeder,
                sent: (0, Duration::ZERO),
                busy: Duration::ZERO,
            });
        }
    }

    pub(super) fn link_opened(&mut self, peer: PeerId, advert: TaskHello) {
        let now = Instant::now();
        let worker = WorkerId(self.next_worker);
        self.next_worker += 1;
        let Some(known) = self.peers.get_mut(&peer) else { return };
        let Some(link) = known.link.as_mut() else { return };
        let works = advert.works && known.quarantined.is_none();
        let measured = measure(Rc::clone(&link.link), Rc::clone(&self.probes), FIRST_PROBE_BYTES);
        let (notices, generation) = (self.notices.clone(), link.generation);
        self.worker_names.insert(worker, (peer.to_string(), advert.name.clone()));
        link.worker = works.then_some(worker);
        known.advert = Some(advert);
        known.enter(PeerState::Connected, now);
        tracing::info!(event = "connected", %peer, name = known.name(), "Connected to peer {peer}");
        tokio::task::spawn_local(async move {
            // The first small one warms the path up; what counts is the second.
            if let Some((took, bytes)) = measured.await
                && !took.is_zero()
            {
                let bytes_per_s = bytes as f64 / took.as_secs_f64();
                let _ = notices.send(Notice::LinkMeasured { peer, generation, bytes_per_s }).await;
            }
        });
        if works && let Some(estimate) = self.estimate(&peer) {
            self.events.push_back(Event::WorkerJoined { worker, estimate });
        }
        let (answered, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.waiting_for).into_iter().partition(|(of, ..)| *of == peer);
        self.waiting_for = waiting;
        for (_, _, answer) in answered {
            let _ = answer.send(Ok(peer.to_string()));
        }
        self.count_connecting();
    }

    pub(super) fn close_link(&mut self, peer: PeerId, why: LeaveReason) {
        let Some(link) = self.peers.get_mut(&peer).and_then(|known| known.link.take()) else { return };
        if let Some(worker) = link.worker {
            self.attempts.retain(|_, attempt| attempt.worker != worker || attempt.result.is_some());
            self.events.push_back(Event::WorkerLeft { worker, why });
        }
    }
}
