//! One attempt of one task: started on this node or at a peer, its result, its check, its merge. The scheduler decides when
//! and where.

use std::rc::Rc;
use std::time::Duration;

use libp2p::PeerId;
use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::{Cancel, Digest, Tensor};
use tracing::Span;

use super::{Attempt, FabricDriver, Notice};
use crate::fabric::checker::{Check, CheckVerdict, Checked};
use crate::fabric::feeder::Feed;
use crate::fabric::job::{JobId, Rejection};
use crate::fabric::running::RunningJob;
use crate::fabric::spans;
use crate::traces::{self, child};
use crate::trust::{ProductClaim, Signature, SignedProduct};
use crate::wire::ResultSignature;
use crate::worker::executor::{Outcome, PackKey, Side, Work};
use pangea_control::peers;
use pangea_control::schedule::{
    AttemptId, CheckOutcome, Event, FailureKind, Measured, Operand, StartReason, Tile, Transfer, WorkerId,
};

impl FabricDriver {
    pub(super) fn start(
        &mut self,
        attempt: AttemptId,
        job: JobId,
        tile: Tile,
        worker: WorkerId,
        reason: StartReason,
    ) -> Result<()> {
        let cancel = Cancel::new();
        let Some(running) = self.jobs.get(&job) else {
            return Err(Error::new(ErrorKind::Cancelled, "the job has ended"));
        };
        let span = spans::task(running.reply.span(), tile, self.peer_of(worker), reason);
        let under_way = Attempt {
            job,
            tile,
            worker,
            cancel: cancel.clone(),
            result: None,
            compute: Duration::ZERO,
            signed: None,
            span: span.clone(),
            checking: Span::none(),
        };
        self.attempts.insert(attempt, under_way);
        let priority = running.request.priority;
        if !worker.is_local() {
            let deadline = running.request.deadline.map(|within| within.saturating_sub(running.submitted.elapsed()));
            let job = Rc::clone(&running.data);
            let feed = Feed { attempt, job, tile, priority, deadline, cancel, lacking: None, span };
            let (_, link) =
                self.links.of_worker(worker).ok_or_else(|| Error::new(ErrorKind::Unavailable, "the peer is gone"))?;
            return link
                .feeder
                .try_send(feed)
                .map_err(|_| Error::new(ErrorKind::Overloaded, "too many tasks are queued for this peer"));
        }
        let key =
            |side, index| if running.data.is_one_tile() { PackKey::Once } else { PackKey::Local { job, side, index } };
        let notices = self.notices.clone();
        let work = Work {
            operation: running.data.operation,
            priority,
            owner: None,
            a: (key(Side::Left, tile.band), running.data.operand(Operand::Band(tile.band))?),
            b: (key(Side::Right, tile.panel), running.data.operand(Operand::Panel(tile.panel))?),
            keep_bytes: usize::try_from(running.data.grid.group_bytes()).unwrap_or(usize::MAX),
            cancel,
            span,
            started: None,
            done: Box::new(move |outcome| {
                // The driver never waits for the executor, so this does not block forever.
                let _ = notices.blocking_send(Notice::LocalDone { attempt, outcome });
            }),
        };
        self.executor.submit(work)
    }

    /// Ends an attempt without a result, and drops its state.
    pub(super) fn attempt_failed(&mut self, attempt: AttemptId, kind: FailureKind) {
        self.attempt_refused(attempt, kind, None);
    }

    /// The same, where an overloaded worker may say when to try again.
    pub(super) fn attempt_refused(&mut self, attempt: AttemptId, kind: FailureKind, retry_after: Option<Duration>) {
        if let Some(failed) = self.attempts.remove(&attempt) {
            traces::failed(&failed.span, kind);
        }
        self.events.push_back(Event::AttemptFailed { attempt, kind, retry_after });
    }

    pub(super) fn local_done(&mut self, attempt: AttemptId, outcome: Outcome) {
        let Some(under_way) = self.attempts.get_mut(&attempt) else { return };
        match outcome.result {
            Ok(tensor) => {
                under_way.result = Some(tensor);
                under_way.compute = outcome.compute;
                let measured =
                    Measured { compute_seconds: Some(outcome.compute.as_secs_f64()), sent: None, received: None };
                self.events.push_back(Event::AttemptFinished { attempt, measured });
            }
            Err(error) => {
                tracing::debug!(event = "local_task_failed", attempt = attempt.0, %error);
                let kind = error.kind();
                let job = self.attempts.get(&attempt).map(|under_way| under_way.job);
                if let Some(running) = job.and_then(|job| self.jobs.get_mut(&job)) {
                    running.refusal = Some(error);
                }
                self.attempt_failed(attempt, kind);
            }
        }
    }

    pub(super) fn remote_done(
        &mut self,
        peer: PeerId,
        attempt: AttemptId,
        tensor: Tensor,
        compute: Duration,
        receiving: Duration,
    ) {
        let bytes = tensor.size_bytes() as u64;
        self.counters.bytes_received += bytes;
        let Some(under_way) = self.attempts.get_mut(&attempt) else { return };
        under_way.result = Some(tensor);
        under_way.compute = compute;
        if let Some(running) = self.jobs.get_mut(&under_way.job) {
            running.bytes_received += bytes;
        }
        let sent = self.links.get_mut(&peer).map(|link| std::mem::take(&mut link.sent));
        let transfer = |(bytes, took): (u64, Duration)| {
            (bytes > 0 && !took.is_zero()).then_some(Transfer { bytes, seconds: took.as_secs_f64() })
        };
        let measured = Measured {
            compute_seconds: Some(compute.as_secs_f64()),
            sent: sent.and_then(transfer),
            received: transfer((bytes, receiving)),
        };
        if let Some(Transfer { bytes, seconds }) = measured.sent {
            self.tell_peers(peers::Event::Sent { peer, bytes, seconds });
        }
        self.events.push_back(Event::AttemptFinished { attempt, measured });
    }

    /// Notes what a worker signed about a result that just arrived.
    pub(super) fn note_signature(&mut self, peer: PeerId, attempt: AttemptId, signed: Option<ResultSignature>) {
        let Some(under_way) = self.attempts.get_mut(&attempt) else { return };
        under_way.signed = signed.and_then(|signed| {
            let data = &self.jobs.get(&under_way.job)?.data;
            let digest = |operand| data.digest_cell(operand).get().copied();
            let tile = under_way.tile;
            let operands = [digest(Operand::Band(tile.band))?, digest(Operand::Panel(tile.panel))?];
            let claim = ProductClaim { operation: data.operation, operands, result: signed.digest };
            Some(SignedProduct { claim, signature: Signature::of(&peer, signed.signature)? })
        });
    }

    pub(super) fn check(&mut self, attempt: AttemptId) {
        let inconclusive = Event::AttemptChecked { attempt, verdict: CheckOutcome::Inconclusive, seconds: 0.0 };
        let Some(Attempt { job, tile, worker, result: Some(c), signed, .. }) = self.attempts.get(&attempt) else {
            self.events.push_back(inconclusive);
            return;
        };
        let Some(running) = self.jobs.get(job) else {
            self.events.push_back(inconclusive);
            return;
        };
        let data = &running.data;
        let operands =
            data.operand(Operand::Band(tile.band)).and_then(|a| Ok((a, data.operand(Operand::Panel(tile.panel))?)));
        let notices = self.notices.clone();
        let submitted = operands.and_then(|(a, b)| {
            self.checker.submit(Check {
                operation: data.operation,
                a,
                b,
                c: c.clone(),
                dtype: data.result.dtype,
                probe: data.probe(tile.panel),
                worker: self.peer_of(*worker),
                signed: signed.clone(),
                done: Box::new(move |checked| {
                    let _ = notices.blocking_send(Notice::Checked { attempt, checked });
                }),
            })
        });
        match submitted {
            Ok(()) => {
                if let Some(under_way) = self.attempts.get_mut(&attempt) {
                    under_way.checking = child!(&under_way.span, "check");
                }
            }
            Err(error) => {
                tracing::warn!(event = "check_failed", attempt = attempt.0, %error);
                self.events.push_back(inconclusive);
            }
        }
    }

    pub(super) fn checked(&mut self, attempt: AttemptId, checked: Checked) {
        let Some(under_way) = self.attempts.get_mut(&attempt) else { return };
        let checking = std::mem::replace(&mut under_way.checking, Span::none());
        let (job, worker) = (under_way.job, under_way.worker);
        let peer = self.peer_of(worker);
        if let CheckVerdict::Bad(_) = checked.verdict {
            self.metrics.rejected.inc();
        }
        if let Some(running) = self.jobs.get_mut(&job) {
            running.check_seconds += checked.took.as_secs_f64();
            match &checked.verdict {
                CheckVerdict::Good(method) => {
                    running.method = method;
                    traces::set(&checking, "pangea.method", *method);
                }
                CheckVerdict::Bad(why) => {
                    traces::failed(&checking, ErrorKind::VerificationFailed);
                    let peer = peer.map_or_else(String::new, |peer| peer.to_string());
                    running.rejected.push(Rejection { peer, why: why.clone() });
                }
                CheckVerdict::Failed(_) => {}
            }
        }
        let verdict = match checked.verdict {
            CheckVerdict::Good(_) if !checked.is_signed => {
                // Whoever does not sign could lie without a proof for others.
                if let Some(peer) = peer {
                    self.peers.suspect(peer, peers::SuspicionReason::Unsigned);
                }
                CheckOutcome::Inconclusive
            }
            CheckVerdict::Good(_) => {
                if let Some(peer) = peer {
                    self.tell_peers(peers::Event::ResultPassed(peer));
                }
                CheckOutcome::Good { answer: self.answer_of(attempt) }
            }
            CheckVerdict::Bad(_) => CheckOutcome::Bad,
            CheckVerdict::Failed(why) => {
                tracing::warn!(event = "check_failed", attempt = attempt.0, why);
                CheckOutcome::Inconclusive
            }
        };
        self.events.push_back(Event::AttemptChecked { attempt, verdict, seconds: checked.took.as_secs_f64() });
    }

    /// Equal for answers that count as equal: by bits if results are exact; other checked answers agree
    /// within the same tolerance.
    pub(super) fn answer_of(&self, attempt: AttemptId) -> u64 {
        let Some(under_way) = self.attempts.get(&attempt) else { return 0 };
        let compared = |running: &RunningJob| running.request.redundancy > 1 && running.data.is_exact();
        let compared = self.jobs.get(&under_way.job).is_some_and(compared);
        match &under_way.result {
            Some(tensor) if compared => {
                let mut word = [0; 8];
                word.copy_from_slice(&tensor.digest().as_bytes()[..8]);
                u64::from_le_bytes(word)
            }
            _ => 0,
        }
    }

    pub(super) fn accept(&mut self, attempt: AttemptId, job: JobId, tile: Tile, worker: WorkerId) {
        let Some(Attempt { result: Some(part), span, .. }) = self.attempts.remove(&attempt) else { return };
        let _merging = child!(&span, "merge");
        let peer = self.peer_of(worker);
        if let Some(running) = self.jobs.get_mut(&job) {
            running.merge(tile, part);
            running.reply.landed(tile, peer);
            running.show_progress();
        }
        tracing::trace!(event = "accepted", attempt = attempt.0, job, worker = worker.0);
    }

    /// Whether an attempt was given to this peer; other peers may neither answer it nor get its operands.
    pub(super) fn is_asked(&self, peer: &PeerId, attempt: AttemptId) -> bool {
        let asked = self.attempts.get(&attempt).map(|attempt| attempt.worker);
        asked.is_some() && asked == self.links.worker_of(peer)
    }

    /// Sends operands again that the worker lacks unexpectedly.
    pub(super) fn send_again(&mut self, peer: PeerId, attempt: AttemptId, digests: Vec<Digest>) {
        for digest in &digests {
            self.evicted(peer, *digest);
        }
        let Some(under_way) = self.attempts.get(&attempt).filter(|_| self.is_asked(&peer, attempt)) else { return };
        let Some(running) = self.jobs.get(&under_way.job) else { return };
        let feed = Feed {
            attempt,
            job: Rc::clone(&running.data),
            tile: under_way.tile,
            priority: running.request.priority,
            deadline: None,
            cancel: under_way.cancel.clone(),
            lacking: Some(digests),
            span: under_way.span.clone(),
        };
        let Some(link) = self.links.get(&peer) else { return };
        if link.feeder.try_send(feed).is_err() {
            self.attempt_failed(attempt, FailureKind::Overloaded);
        }
    }

    pub(super) fn evicted(&mut self, peer: PeerId, digest: Digest) {
        let Some(link) = self.links.get(&peer) else { return };
        link.resident.borrow_mut().remove(&digest);
        let Some(worker) = link.worker else { return };
        for (job, running) in &self.jobs {
            let operands = running.data.operands_of(&digest);
            if !operands.is_empty() {
                self.events.push_back(Event::OperandsEvicted {
                    worker,
                    job: pangea_control::schedule::JobId(*job),
                    operands,
                });
            }
        }
    }

    pub(super) fn release(&mut self, worker: WorkerId, job: JobId, operand: Operand) {
        let Some(digest) = self.jobs.get(&job).and_then(|running| running.data.digest_cell(operand).get().copied())
        else {
            return;
        };
        if let Some((_, link)) = self.links.of_worker(worker) {
            // Only a hint: the worker drops the least recently used operands anyway.
            let _ = link.link.release(digest);
        }
    }
}
