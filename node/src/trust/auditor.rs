//! The auditor's handle and thread: answers wait here for their audit, receipts for the disk. The order, the share of time and
//! the deadline of audits are decided by `pangea_control::trust`; the replay itself is `replay_audit`'s.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use libp2p::PeerId;
use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::Digest;
use pangea_compute::commit::Profile;
use pangea_compute::model::{Manifest, Wanted};
use pangea_control::Time;
use pangea_control::peers::SuspicionReason;
use pangea_control::trust::{AuditPace, AuditPolicy, AuditQueue, Skipped, Urgency, Verdict};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tokio::sync::oneshot;
use tracing::Span;

use super::FailedAudit;
use super::chain::Signed;
use super::receipt::Receipt;
use super::replay_audit::{AuditReplayers, replay_audit};
use super::store::ReceiptStore;
use crate::clock;
use crate::devices::Devices;
use crate::observe::Observer;
use crate::supervise::Supervisor;
use crate::traces;

/// Receipts that wait for the disk: a slow disk loses receipts, and answers never wait for it.
const RECEIPTS_WAITING: usize = 256;

/// Interval at which the thread looks for answers whose deadline has passed while it has nothing to audit.
const IDLE_TICK: Duration = Duration::from_secs(60);

/// How audits end.
const RESULTS: [&str; 6] = ["passed", "refuted", "suspicious", "failed", "crowded", "late"];

/// What an audit needs from the node that it runs on.
pub trait AuditHost: Send + Sync {
    /// Peer id of this node.
    fn local(&self) -> PeerId;

    /// Whether the node has sessions, beside which an audit that nobody waits for gets only a share of the time.
    fn is_busy(&self) -> bool;

    /// A file that contains the `wanted` parts of a model, with the manifest of the whole model. Parts that are not on this
    /// node are fetched from `providers`. Blocks, not longer than `within`.
    ///
    /// # Errors
    /// `NotFound` if no part of the model is on this node and nobody provides it; `DeadlineExceeded`; the download's errors
    /// otherwise.
    fn fetch(&self, model: Digest, wanted: Wanted, providers: &[PeerId], within: Duration) -> Result<ModelSource>;

    /// How the output of a peer's engine is checked, as the peer says of itself.
    fn profile(&self, peer: &PeerId) -> Profile;

    /// The rows that a stage on `peer` gave in a session of this node, `values` numbers. Blocks, not longer than `within`.
    ///
    /// # Errors
    /// Why they are not opened.
    fn open(
        &self,
        peer: PeerId,
        session: [u8; 16],
        layers: Range<u32>,
        values: usize,
        within: Duration,
    ) -> Result<Vec<f32>>;

    /// Lowers the trust of a peer: something it did is suspicious and proves nothing.
    fn suspect(&self, peer: PeerId, reason: SuspicionReason);

    /// Whether a peer is a suspect, whose answers are audited for certain.
    fn is_suspect(&self, peer: &PeerId) -> bool;

    /// Called when a replay refuted a stage's signed output: stores the evidence and quarantines the peer.
    fn accuse(&self, failed: &FailedAudit<'_>);

    /// Called with two claims that one stage signed about one session: stores them and quarantines the peer if they contradict
    /// each other.
    fn contradicted(&self, first: &Signed, second: &Signed);
}

/// Where a model's weights are read from.
pub struct ModelSource {
    /// Path of the file.
    pub path: PathBuf,
    /// Tensors and layers of the file.
    pub manifest: Arc<Manifest>,
}

/// Handle of the auditor's thread; clones share it.
#[derive(Clone)]
pub struct Auditor(Arc<Inner>);

struct Inner {
    policy: AuditPolicy,
    receipts: SyncSender<Receipt>,
    waiting: Mutex<AuditQueue<Job>>,
    /// Notified when an answer is added.
    added: Condvar,
    host: Arc<dyn AuditHost>,
    audits: Family<ResultLabels, Counter>,
}

struct Job {
    receipt: Receipt,
    urgency: Urgency,
    done: oneshot::Sender<Result<Audited>>,
    /// The span of the audit, from now on.
    span: Span,
}

/// Result of an audit.
#[derive(Clone, Debug)]
pub struct Audited {
    /// The receipt, with the audit's results and verdict.
    pub receipt: Receipt,
    /// Peers whose output is wrong, refuted or not signed, or not confirmed because they did not open it or it differs too much.
    pub wrong: Vec<PeerId>,
}

/// How an audit ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

/// The parts of the node that the auditor uses.
pub struct AuditorParts {
    /// Share of sessions that are audited.
    pub policy: AuditPolicy,
    /// Folder of receipts.
    pub store: ReceiptStore,
    /// The node that the audits run on.
    pub host: Arc<dyn AuditHost>,
    /// Memory and compute threads of the node.
    pub devices: Devices,
    /// Starts and restarts the auditor's threads.
    pub supervisor: Supervisor,
    /// Registry of metrics.
    pub observer: Observer,
}

impl Auditor {
    /// Starts the auditor's threads.
    ///
    /// # Errors
    /// `Internal` if a thread cannot be started.
    pub fn start(parts: AuditorParts) -> Result<Auditor> {
        let (receipts, kept) = sync_channel(RECEIPTS_WAITING);
        let audits =
            parts.observer.counters("audits", "Audits by result", RESULTS.map(|result| ResultLabels { result }));
        let auditor = Auditor(Arc::new(Inner {
            policy: parts.policy,
            receipts,
            waiting: Mutex::default(),
            added: Condvar::new(),
            host: Arc::clone(&parts.host),
            audits,
        }));
        let failed = |error| Error::new(ErrorKind::Internal, format!("cannot start the auditor's thread: {error}"));
        let store = parts.store.clone();
        // Receipts are written on a thread of their own, so that answers and audits never wait for the disk.
        let supervisor = parts.supervisor.clone();
        supervisor.restarted_thread("receipts", move || write(&kept, &store)).map_err(failed)?;
        // If an audit panics, its answer counts as not checked: the waiter finds its channel closed.
        let (replayers, inner) = (AuditReplayers::default(), Arc::downgrade(&auditor.0));
        let run = move || {
            while let Some(inner) = inner.upgrade() {
                Auditor(inner).turn(&parts, &replayers);
            }
        };
        supervisor.restarted_thread("auditor", run).map_err(failed)?;
        Ok(auditor)
    }

    /// Whether every answer is held back until it is audited.
    pub fn audits_all(&self) -> bool {
        self.0.policy.is_all()
    }

    /// Policy by which sessions are drawn for audits, once their stages have signed.
    pub fn policy(&self) -> AuditPolicy {
        self.0.policy
    }

    /// Stores a receipt in the background.
    pub fn keep(&self, receipt: Receipt) {
        let id = receipt.id.clone();
        if self.0.receipts.try_send(receipt).is_err() {
            tracing::warn!(event = "receipt_lost", receipt = id, "receipt lost: the disk is too slow");
        }
    }

    /// Audits a receipt; `Overloaded` if too many audits wait already, `DeadlineExceeded` if it is not done in time.
    /// `awaited`: whether a request waits for it; `suspect`: whether it matters more than a drawn one.
    pub fn audit(
        &self,
        receipt: Receipt,
        awaited: bool,
        suspect: bool,
        span: Span,
    ) -> oneshot::Receiver<Result<Audited>> {
        let (done, result) = oneshot::channel();
        let urgency = match (awaited, suspect) {
            (true, _) => Urgency::Awaited,
            (false, true) => Urgency::Suspect,
            (false, false) => Urgency::Drawn,
        };
        let crowded = self.waiting().push(Job { receipt, urgency, done, span }, urgency, clock::now());
        self.0.added.notify_one();
        if let Some(job) = crowded {
            self.skip(job, Skipped::Crowded);
        }
        result
    }

    /// How the output of a peer's engine is checked, as the peer says of itself.
    pub fn profile(&self, peer: &PeerId) -> Profile {
        self.0.host.profile(peer)
    }

    /// Lowers the trust of a peer: something it did is suspicious and proves nothing.
    pub fn suspect(&self, peer: PeerId, reason: SuspicionReason) {
        self.0.host.suspect(peer, reason);
    }

    /// Accuses a stage of two signed claims that contradict each other; does nothing if they do not.
    pub fn contradicted(&self, first: &Signed, second: &Signed) {
        self.0.host.contradicted(first, second);
    }

    /// Whether a peer is a suspect, whose answers are audited for certain.
    pub fn is_suspect(&self, peer: &PeerId) -> bool {
        self.0.host.is_suspect(peer)
    }

    /// Records that an answer is not audited: it stays unchecked.
    fn skip(&self, job: Job, skipped: Skipped) {
        let (result, kind, why) = match skipped {
            Skipped::Crowded => {
                ("crowded", ErrorKind::Overloaded, "too many answers wait for their audit on this node")
            }
            Skipped::Late => ("late", ErrorKind::DeadlineExceeded, "the answer was not audited in time"),
        };
        let receipt = &job.receipt.id;
        tracing::warn!(event = "audit_skipped", receipt, why, "answer not audited: {why}");
        self.count(&job.span, result);
        // The requester may have gone.
        let _ = job.done.send(Err(Error::new(kind, why)));
    }

    fn count(&self, span: &Span, result: &'static str) {
        traces::set(span, "pangea.result", result);
        self.0.audits.get_or_create(&ResultLabels { result }).inc();
    }

    fn waiting(&self) -> MutexGuard<'_, AuditQueue<Job>> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the next answer and audits it; returns without one now and then.
    fn turn(&self, parts: &AuditorParts, replayers: &AuditReplayers) {
        let mut waiting = self.waiting();
        if waiting.is_empty() {
            waiting = self.0.added.wait_timeout(waiting, IDLE_TICK).unwrap_or_else(PoisonError::into_inner).0;
        }
        let late = waiting.take_late(clock::now());
        let next = waiting.pop();
        drop(waiting);
        late.into_iter().for_each(|job| self.skip(job, Skipped::Late));
        if let Some((job, deadline)) = next {
            self.audit_now(parts, replayers, job, deadline);
        }
    }

    fn audit_now(&self, parts: &AuditorParts, replayers: &AuditReplayers, job: Job, deadline: Time) {
        let Job { receipt, urgency, done, span } = job;
        let id = receipt.id.clone();
        let audited =
            replay_audit(parts, replayers, receipt, urgency == Urgency::Awaited, AuditPace::new(urgency, deadline));
        match &audited {
            Ok(audited) => {
                let passed = audited.receipt.verdict != Verdict::Unchecked;
                let refuted = !audited.receipt.refuted().is_empty();
                let result = match (refuted, passed) {
                    (true, _) => "refuted",
                    (false, true) => "passed",
                    (false, false) => "suspicious",
                };
                self.count(&span, result);
                // Written after the unaudited version of the same receipt: one thread writes both, in order.
                drop(self.0.receipts.send(audited.receipt.clone()));
            }
            Err(error) => {
                self.count(&span, if error.kind() == ErrorKind::DeadlineExceeded { "late" } else { "failed" });
                tracing::warn!(event = "audit_failed", receipt = id, %error, "audit failed: {error}");
            }
        }
        // The requester may have gone.
        let _ = done.send(audited);
    }
}

fn write(kept: &Receiver<Receipt>, store: &ReceiptStore) {
    kept.iter().for_each(|receipt| put(store, &receipt));
}

fn put(store: &ReceiptStore, receipt: &Receipt) {
    if let Err(error) = store.put(receipt) {
        tracing::warn!(event = "receipt_lost", receipt = receipt.id, %error, "cannot store receipt: {error}");
    }
}
