//! The task streams that this node opens to peers: their events, and how they open, close and reopen.

use std::cell::RefCell;
use std::collections::HashSet;
use std::rc::Rc;
use std::time::{Duration, Instant};

use libp2p::PeerId;

use super::probes::{FIRST_PROBE_BYTES, PROBES_AFTER, measure};
use super::{FabricDriver, Notice};
use crate::fabric::feeder;
use crate::fabric::open_links::OpenLink;
use crate::link::coordinator::{self, LinkEvent};
use crate::streams::opening::{self, OpeningError};
use crate::wire::{PROTOCOL, TaskHello};
use pangea_control::peers::{self, Peer, PeerState, WorkerHello};
use pangea_control::schedule::{AttemptId, Event, LeaveReason, Progress as Step, WorkerId};

impl FabricDriver {
    pub(super) fn on_link_event(&mut self, peer: PeerId, generation: u64, event: LinkEvent) {
        if !self.is_current(&peer, generation) {
            return;
        }
        match event {
            LinkEvent::Opened(advert) => self.link_opened(peer, advert),
            LinkEvent::Sent { bytes, took } => {
                self.counters.bytes_sent += bytes;
                if let Some(link) = self.links.get_mut(&peer) {
                    link.sent.0 += bytes;
                    link.sent.1 += took;
                }
            }
            LinkEvent::Started(task) | LinkEvent::Result { task, .. } | LinkEvent::Failure { task, .. }
                if !self.is_asked(&peer, AttemptId(task)) =>
            {
                // The task was cancelled meanwhile, or was never given to this peer.
                tracing::debug!(event = "answer_unasked", %peer, task);
            }
            LinkEvent::Started(task) => {
                self.events.push_back(Event::AttemptProgress { attempt: AttemptId(task), progress: Step::Computing });
            }
            LinkEvent::Result { task, tensor, compute, receiving, signed } => {
                self.note_signature(peer, AttemptId(task), signed);
                self.remote_done(peer, AttemptId(task), tensor, compute, receiving)
            }
            LinkEvent::Failure { task, kind, message, retry_after } => {
                tracing::debug!(event = "task_failed", %peer, task, %kind, message, ?retry_after);
                self.attempt_refused(AttemptId(task), kind, retry_after);
            }
            LinkEvent::Missing { task, digests } => self.send_again(peer, AttemptId(task), digests),
            LinkEvent::Evicted(digest) => self.evicted(peer, digest),
            LinkEvent::Load { queued } => {
                if let Some(link) = self.links.get_mut(&peer) {
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
                self.tell_peers(peers::Event::StreamEnded(peer));
            }
        }
    }

    pub(super) fn open_stream(&self, peer: PeerId, after: Duration) {
        let Some(network) = self.network.as_ref().filter(|_| !self.served.borrow().draining) else { return };
        let control = network.streams();
        let notices = self.notices.clone();
        tokio::task::spawn_local(async move {
            tokio::time::sleep(after).await;
            let stream = opening::open(control, peer, PROTOCOL).await;
            let _ = notices.send(Notice::StreamOpened { peer, stream }).await;
        });
    }

    pub(super) fn stream_opened(&mut self, peer: PeerId, stream: std::result::Result<libp2p::Stream, OpeningError>) {
        let stream = match stream {
            Ok(stream) => stream,
            Err(why) => {
                let why = why.to_string();
                tracing::debug!(event = "open_failed", %peer, why);
                self.tell_peers(peers::Event::StreamRefused { peer, why });
                return;
            }
        };
        let is_there = |known: &Peer| known.state != PeerState::Gone && !known.is_quarantined();
        let is_there = self.peers.read(|directory| directory.get(&peer).is_some_and(is_there));
        if !is_there || self.links.get(&peer).is_some() {
            return;
        }
        let generation = self.next_generation;
        self.next_generation += 1;
        let link = Rc::new(coordinator::open(stream, peer, generation, self.hello(), self.link_events.clone()));
        let resident = Rc::new(RefCell::new(HashSet::new()));
        let notices = self.notices.clone();
        let feeder = feeder::start(peer, Rc::clone(&link), Rc::clone(&resident), move |attempt, error| {
            // If the notice is lost, the attempt fails as silent.
            let _ = notices.try_send(Notice::FeedFailed { attempt, error });
        });
        let sent = (0, Duration::ZERO);
        let open = OpenLink { generation, link, worker: None, resident, feeder, sent, busy: Duration::ZERO };
        self.links.insert(peer, open);
    }

    /// Whether a link is the open one to its peer.
    pub(super) fn is_current(&self, peer: &PeerId, generation: u64) -> bool {
        self.links.get(peer).is_some_and(|link| link.generation == generation)
    }

    pub(super) fn link_opened(&mut self, peer: PeerId, hello: TaskHello) {
        let may_compute = self.peers.may_compute(&peer);
        // The same as before where the peer was here before: what it computed then is known by this id.
        let known = self.worker_of(&peer);
        let worker = known.unwrap_or(WorkerId(self.next_worker));
        let Some(open) = self.links.get_mut(&peer) else { return };
        self.next_worker += u64::from(known.is_none());
        let works = hello.works && may_compute;
        open.worker = works.then_some(worker);
        let (link, probes) = (Rc::downgrade(&open.link), Rc::clone(&self.probes));
        let (notices, generation) = (self.notices.clone(), open.generation);
        self.workers.insert(worker, (peer, hello.name.clone()));
        tracing::info!(event = "connected", %peer, name = hello.name, "Connected to peer {peer}");
        self.tell_peers(peers::Event::Hello { peer, hello: worker_hello(hello) });
        tokio::task::spawn_local(async move {
            for (number, after) in PROBES_AFTER.into_iter().enumerate() {
                tokio::time::sleep(after).await;
                // A link that has ended in the meantime needs no probe.
                let Some(link) = link.upgrade() else { return };
                // Small probes warm up the path; the large one counts.
                if let Some((took, bytes)) = measure(link, Rc::clone(&probes), FIRST_PROBE_BYTES).await
                    && !took.is_zero()
                {
                    let (bytes_per_s, repeated) = (bytes as f64 / took.as_secs_f64(), number > 0);
                    let _ = notices.send(Notice::LinkMeasured { peer, generation, bytes_per_s, repeated }).await;
                }
            }
        });
    }

    /// Adds a peer as a worker.
    pub(super) fn join(&mut self, peer: PeerId) {
        if let (Some(worker), Some(estimate)) = (self.links.worker_of(&peer), self.estimate(&peer)) {
            self.events.push_back(Event::WorkerJoined { worker, estimate });
        }
    }

    /// The peer of a current or earlier worker: a result that is still being checked outlives its link.
    pub(super) fn peer_of(&self, worker: WorkerId) -> Option<PeerId> {
        self.workers.get(&worker).map(|(peer, _)| *peer)
    }

    /// The id of a peer that is or was a worker.
    pub(super) fn worker_of(&self, peer: &PeerId) -> Option<WorkerId> {
        self.workers.iter().find(|(_, (of, _))| of == peer).map(|(worker, _)| *worker)
    }

    pub(super) fn close_link(&mut self, peer: PeerId, why: LeaveReason) {
        let Some(link) = self.links.remove(&peer) else { return };
        if let Some(worker) = link.worker {
            self.attempts.retain(|_, attempt| attempt.worker != worker || attempt.result.is_some());
            self.events.push_back(Event::WorkerLeft { worker, why });
        }
    }
}

/// The part of a hello that decisions need.
fn worker_hello(hello: TaskHello) -> WorkerHello {
    WorkerHello {
        name: hello.name,
        threads: hello.threads,
        f32_flops_per_s: hello.f32_flops_per_s,
        f64_flops_per_s: hello.f64_flops_per_s,
        i8_flops_per_s: hello.i8_flops_per_s,
        store_bytes: hello.store_bytes,
        tasks_max: hello.tasks_max,
        works: hello.works,
    }
}
