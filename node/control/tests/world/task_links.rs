//! The task streams that a coordinator opens towards peers: how they open, what is heard on them, how they end. What is sent
//! on them is `product`'s.

use std::collections::BTreeSet;
use std::time::Duration;

use pangea_control::peers::{self, PeerState, WorkerHello};
use pangea_control::schedule::limits::IN_FLIGHT_MAX;
use pangea_control::schedule::{Arithmetic, AttemptId, Event, LeaveReason, Progress, WorkerEstimate, WorkerId};
use pangea_control::tasks::TASKS_PER_PEER;
use pangea_units::{Digest, ErrorKind};

use crate::checks::Broken;
use crate::deviations::{Deviation, UNASKED};
use crate::network::{Message, Protocol, StreamNumber};
use crate::worker::TaskMessage;
use crate::world::{Happening, World};

/// What a link is taken to do until it is measured.
const DEFAULT_BYTES_PER_S: f64 = 100e6;

/// What a round trip is taken to be until a ping has told.
const DEFAULT_RTT: Duration = Duration::from_millis(1);

/// Streams that one peer may have open towards a node: one, and one that replaces it.
const SERVED_STREAMS_PER_PEER: usize = 2;

/// The link over which a node gives a peer work.
pub(crate) struct TaskLink {
    /// The stream.
    pub(crate) stream: StreamNumber,
    /// The scheduler's name of the peer on this link.
    pub(crate) worker: Option<WorkerId>,
    /// Operands that the peer has, as far as this node knows.
    pub(crate) resident: BTreeSet<Digest>,
    /// Tasks that were given up: what has not been sent then is not sent.
    pub(crate) given_up: BTreeSet<u64>,
    /// Bytes sent since the last finished attempt, and how many seconds that took.
    pub(crate) sent: (u64, f64),
}

impl World {
    /// The directory of peers asked for a task stream a moment ago.
    pub(crate) fn open_tasks(&mut self, at: usize, of: usize) -> Result<(), Broken> {
        let peer = self.nodes[of].peer;
        let Some(run) = &self.nodes[at].run else { return Ok(()) };
        let known = run.directory.get(&peer);
        let is_there = known.is_some_and(|known| known.state != PeerState::Gone && !known.is_quarantined());
        if run.draining || !is_there || run.products.links.contains_key(&of) {
            return Ok(());
        }
        let Some(stream) = self.open_stream(at, of, Protocol::Tasks) else {
            return self.tell_peers(at, peers::Event::StreamRefused { peer, why: "no connection".to_owned() });
        };
        if let Some(run) = &mut self.nodes[at].run {
            let (resident, given_up) = (BTreeSet::new(), BTreeSet::new());
            let link = TaskLink { stream, worker: None, resident, given_up, sent: (0, 0.0) };
            run.products.links.insert(of, link);
        }
        let asking = self.nodes[at].peer;
        let takes = self.nodes[of].run.as_ref().is_some_and(|run| {
            run.directory.may_compute(&asking) && run.served.streams_of(at) < SERVED_STREAMS_PER_PEER
        });
        if !takes {
            self.end_stream(stream);
            return Ok(());
        }
        self.serve(of, at, stream);
        self.send(of, stream, 0, Message::Task(TaskMessage::Hello));
        Ok(())
    }

    /// Whether a task was given up before its worker heard of it.
    pub(crate) fn is_given_up(&self, at: usize, of: usize, task: u64) -> bool {
        let run = self.nodes[at].run.as_ref();
        run.and_then(|run| run.products.links.get(&of)).is_some_and(|link| link.given_up.contains(&task))
    }

    /// Something came from a worker.
    pub(crate) fn worker_says(
        &mut self,
        at: usize,
        of: usize,
        stream: StreamNumber,
        message: TaskMessage,
    ) -> Result<(), Broken> {
        let Some(run) = &self.nodes[at].run else { return Ok(()) };
        let Some(link) = run.products.links.get(&of).filter(|link| link.stream == stream) else { return Ok(()) };
        let worker = link.worker;
        // Cancelled meanwhile, where it is not.
        let asked = |attempt| run.products.worker_of(attempt) == worker && worker.is_some();
        match message {
            TaskMessage::Hello => self.link_opened(at, of, stream),
            TaskMessage::Started(task) if asked(AttemptId(task)) => {
                let (attempt, progress) = (AttemptId(task), Progress::Computing);
                self.schedule(at, Event::AttemptProgress { attempt, progress })
            }
            TaskMessage::Result { task, seconds, bytes, wrong } if asked(AttemptId(task)) => {
                self.remote_done(at, of, AttemptId(task), seconds, bytes, wrong)
            }
            TaskMessage::Failure { task, error } if asked(AttemptId(task)) => {
                if error.kind() == ErrorKind::InvalidInput && self.is_one_that(of, Deviation::RefusesTask) {
                    self.checks.caught(Deviation::RefusesTask);
                }
                self.checks.attempt_refused(self.now, at, of, &error);
                self.attempt_failed(at, AttemptId(task), error.kind())
            }
            TaskMessage::Missing { task, digests } => self.send_again(at, of, AttemptId(task), digests),
            TaskMessage::Evicted(digest) => self.evicted(at, of, digest),
            TaskMessage::Result { task, .. } if task >= UNASKED => {
                self.checks.caught(Deviation::AnswersUnasked);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn link_opened(&mut self, at: usize, of: usize, stream: StreamNumber) -> Result<(), Broken> {
        let (peer, spec) = (self.nodes[of].peer, &self.nodes[of].spec);
        let boast = if self.is_one_that(of, Deviation::Boasts) { 1e3 } else { 1.0 };
        let (works, flops_per_s, link) = (spec.works, spec.flops_per_s * spec.claims * boast, self.link(at, of));
        let store_bytes = self.nodes[of].run.as_ref().map_or(0, |run| run.served.store.quota());
        let Some(run) = &mut self.nodes[at].run else { return Ok(()) };
        let (number, works) = (run.number, works && run.directory.may_compute(&peer));
        let worker = run.products.worker_at(of).unwrap_or_else(|| {
            let worker = WorkerId(run.products.next_worker);
            run.products.next_worker += 1;
            run.products.workers.insert(worker, of);
            worker
        });
        if let Some(open) = run.products.links.get_mut(&of) {
            open.worker = works.then_some(worker);
        }
        let hello = WorkerHello {
            name: String::new(),
            threads: 1,
            f32_flops_per_s: flops_per_s,
            f64_flops_per_s: flops_per_s,
            i8_flops_per_s: flops_per_s,
            store_bytes,
            tasks_max: TASKS_PER_PEER as u16,
            works,
        };
        self.tell_peers(at, peers::Event::Hello { peer, hello })?;
        let probed = Happening::Probed { at, run: number, of, stream };
        self.after(2 * link.rtt + 1_000, probed);
        Ok(())
    }

    /// A peer can be given work.
    pub(crate) fn join(&mut self, at: usize, of: usize) -> Result<(), Broken> {
        let Some(run) = &self.nodes[at].run else { return Ok(()) };
        let worker = run.products.links.get(&of).and_then(|link| link.worker);
        match (worker, self.estimate(at, of)) {
            (Some(worker), Some(estimate)) => self.schedule(at, Event::WorkerJoined { worker, estimate }),
            _ => Ok(()),
        }
    }

    /// The link to a peer was measured.
    pub(crate) fn probed(&mut self, at: usize, of: usize, stream: StreamNumber) -> Result<(), Broken> {
        let bytes_per_s = self.link(at, of).bytes_per_s * self.nodes[of].spec.claims;
        let Some(run) = &self.nodes[at].run else { return Ok(()) };
        if run.products.links.get(&of).is_none_or(|link| link.stream != stream) {
            return Ok(());
        }
        let peer = self.nodes[of].peer;
        self.tell_peers(at, peers::Event::LinkProbed { peer, bytes_per_s, repeated: false })
    }

    /// What is believed of a peer as a worker has changed.
    pub(crate) fn update_worker(&mut self, at: usize, of: usize) -> Result<(), Broken> {
        let Some(run) = &self.nodes[at].run else { return Ok(()) };
        let worker = run.products.links.get(&of).and_then(|link| link.worker);
        match (worker, self.estimate(at, of)) {
            (Some(worker), Some(estimate)) => self.schedule(at, Event::WorkerUpdated { worker, estimate }),
            _ => Ok(()),
        }
    }

    fn estimate(&self, at: usize, of: usize) -> Option<WorkerEstimate> {
        let known = self.nodes[at].run.as_ref()?.directory.get(&self.nodes[of].peer)?;
        let hello = known.hello.as_ref()?;
        let bytes_per_s = known.bytes_per_s.unwrap_or(DEFAULT_BYTES_PER_S);
        let rtt = known.rtt.unwrap_or(DEFAULT_RTT).as_secs_f64();
        let rates = [hello.f32_flops_per_s; Arithmetic::COUNT];
        let mut estimate = WorkerEstimate::remote(rates, bytes_per_s, rtt, hello.store_bytes);
        estimate.max_in_flight = usize::from(hello.tasks_max).clamp(1, IN_FLIGHT_MAX);
        Some(estimate)
    }

    /// The stream of a link ended, though the peer is connected.
    pub(crate) fn task_stream_ended(&mut self, at: usize, of: usize, stream: StreamNumber) -> Result<(), Broken> {
        self.stop_serving_stream(at, stream)?;
        let Some(run) = &self.nodes[at].run else { return Ok(()) };
        if run.products.links.get(&of).is_none_or(|link| link.stream != stream) {
            return Ok(());
        }
        self.close_link(at, of, LeaveReason::Lost)?;
        let peer = self.nodes[of].peer;
        self.tell_peers(at, peers::Event::StreamEnded(peer))
    }

    /// Nothing more is asked of a peer over its link.
    pub(crate) fn close_link(&mut self, at: usize, of: usize, why: LeaveReason) -> Result<(), Broken> {
        let Some(run) = &mut self.nodes[at].run else { return Ok(()) };
        let Some(link) = run.products.links.remove(&of) else { return Ok(()) };
        if self.network.stream(link.stream).is_some() {
            self.end_stream(link.stream);
        }
        let Some(worker) = link.worker else { return Ok(()) };
        let Some(run) = &mut self.nodes[at].run else { return Ok(()) };
        run.products.forget_unfinished(worker);
        self.schedule(at, Event::WorkerLeft { worker, why })
    }
}
