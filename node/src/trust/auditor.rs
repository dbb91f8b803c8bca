//! The auditor: while the node is idle, recomputes signed answers from the model file, stores the result with the
//! receipt, and accuses a peer that signed a wrong output. Which answers are audited is drawn after they were signed.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use libp2p::PeerId;
use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::commit::ReplayPace;
use pangea_compute::model::{Manifest, ModelFile, ModelPart, Wanted};
use pangea_compute::{Cancel, Digest, Pool};
use pangea_control::devices::roomy_audit_bytes;
use pangea_control::trust::{AuditPolicy, Verdict};
use tokio::sync::oneshot;

use super::FailedAudit;
use super::receipt::{Audit, Receipt};
use super::store::ReceiptStore;
use super::verify::{OutputCheck, Weights, least_room, verify};
use crate::compute_error;
use crate::devices::threads::Purpose;
use crate::devices::{Devices, Kind};
use crate::supervise::Supervisor;

/// Receipts that wait for an audit. Beyond it audits are refused with `Overloaded`: an idle node cannot check more.
const WAITING: usize = 256;

/// Rows computed between two checks of whether the node is idle: a few hundredths of a second.
const CHUNK_ROWS: usize = 64;

/// Interval at which a waiting audit checks whether the node is idle again.
const BUSY: Duration = Duration::from_millis(50);

/// Time that an audit waits for memory: products and loads release theirs within seconds, or keep it for good.
const MEMORY_TIMEOUT: Duration = Duration::from_secs(10);

/// What an audit needs from the node that it runs on.
pub trait AuditHost: Send + Sync {
    /// Peer id of this node.
    fn local(&self) -> PeerId;

    /// Whether the node has work that takes precedence over an audit nobody waits for.
    fn is_busy(&self) -> bool;

    /// A file that contains the `wanted` parts of a model, with the manifest of the whole model. Parts that are not on this
    /// node are fetched from `providers`. Blocks.
    ///
    /// # Errors
    /// `NotFound` if no part of the model is on this node and nobody provides it; the download's errors otherwise.
    fn fetch(&self, model: Digest, wanted: Wanted, providers: &[PeerId]) -> Result<ModelSource>;

    /// Called when a replay refuted a stage's signed output: stores the evidence and quarantines the peer.
    fn accuse(&self, failed: &FailedAudit<'_>);
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
    jobs: SyncSender<Job>,
}

struct Job {
    receipt: Receipt,
    urgent: bool,
    done: oneshot::Sender<Result<Receipt>>,
}

/// The parts of the node that the auditor uses.
pub struct AuditorParts {
    /// Share of sessions that are audited.
    pub policy: AuditPolicy,
    /// Folder of receipts.
    pub store: ReceiptStore,
    /// The node that the audits run on.
    pub host: Box<dyn AuditHost>,
    /// Memory and compute threads of the node.
    pub devices: Devices,
    /// Starts and restarts the auditor's threads.
    pub supervisor: Supervisor,
}

impl Auditor {
    /// Starts the auditor's threads.
    ///
    /// # Errors
    /// `Internal` if a thread cannot be started.
    pub fn start(parts: AuditorParts) -> Result<Auditor> {
        let (jobs, queue) = sync_channel(WAITING);
        let (receipts, kept) = sync_channel(WAITING);
        let inner = Inner { policy: parts.policy, receipts: receipts.clone(), jobs };
        let failed = |error| Error::new(ErrorKind::Internal, format!("cannot start the auditor's thread: {error}"));
        let store = parts.store.clone();
        // Receipts are written on a thread of their own, so that answers and audits never wait for the disk.
        let supervisor = parts.supervisor.clone();
        supervisor
            .restarted_thread("receipts", move || kept.iter().for_each(|receipt| put(&store, &receipt)))
            .map_err(failed)?;
        // If an audit panics, its answer counts as not checked: the waiter finds its channel closed.
        supervisor.restarted_thread("auditor", move || run(&parts, &queue, &receipts)).map_err(failed)?;
        Ok(Auditor(Arc::new(inner)))
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

    /// Audits a receipt and returns it with the audits' results. `Overloaded` if too many audits wait already.
    pub fn audit(&self, receipt: Receipt) -> oneshot::Receiver<Result<Receipt>> {
        let (done, result) = oneshot::channel();
        let job = Job { receipt, urgent: self.audits_all(), done };
        if let Err(error) = self.0.jobs.try_send(job) {
            let (std::sync::mpsc::TrySendError::Full(job) | std::sync::mpsc::TrySendError::Disconnected(job)) = error;
            let why = "too many answers wait for their audit on this node";
            // The requester may have gone.
            let _ = job.done.send(Err(Error::new(ErrorKind::Overloaded, why)));
        }
        result
    }
}

fn put(store: &ReceiptStore, receipt: &Receipt) {
    if let Err(error) = store.put(receipt) {
        tracing::warn!(event = "receipt_lost", receipt = receipt.id, %error, "cannot store receipt: {error}");
    }
}

fn run(parts: &AuditorParts, queue: &Receiver<Job>, receipts: &SyncSender<Receipt>) {
    let pool = OnceLock::new();
    while let Ok(Job { receipt, urgent, done }) = queue.recv() {
        let id = receipt.id.clone();
        let audited = replay_audit(parts, &pool, receipt, urgent);
        match &audited {
            // Written after the unaudited version of the same receipt: one thread writes both, in order.
            Ok(receipt) => drop(receipts.send(receipt.clone())),
            Err(error) => {
                tracing::warn!(event = "audit_failed", receipt = id, %error, "audit failed: {error}");
            }
        }
        // The requester may have gone.
        let _ = done.send(audited);
    }
}

/// Recomputes an answer and records, for each stage on another node, whether its output is right.
fn replay_audit(parts: &AuditorParts, pool: &OnceLock<Pool>, mut receipt: Receipt, urgent: bool) -> Result<Receipt> {
    let (host, model) = (&parts.host, receipt.model.digest);
    let stages = receipt.segments.iter().flat_map(|segment| &segment.stages);
    let providers: Vec<PeerId> = stages.filter_map(|stage| stage.peer.parse().ok()).collect();
    let ModelSource { path, manifest } = host.fetch(model, Wanted::header(), &providers)?;
    let file = ModelFile::open(&path).map_err(compute_error)?;
    let pool = match pool.get() {
        Some(pool) => pool,
        None => {
            // Whether answers are held back for their audits is a policy of the node: each audit is urgent, or none.
            let made = parts.devices.pool(if urgent { Purpose::AwaitedAudits } else { Purpose::Audits })?;
            pool.get_or_init(|| made)
        }
    };
    let cancel = Cancel::new();
    let mut wait = |_| {
        while !urgent && host.is_busy() {
            std::thread::sleep(BUSY);
        }
    };
    wait(0);
    let mut pace = ReplayPace { chunk_rows: CHUNK_ROWS, cancel: &cancel, between: &mut wait };
    let mut fetch = |part: &ModelPart| host.fetch(model, Wanted::of_part(part), &providers).map(drop);
    // Memory for as many layers as fit, but at least for a single one.
    let least = least_room(&receipt, &file, pool.threads(), CHUNK_ROWS)?;
    let most = roomy_audit_bytes(parts.devices.limit());
    let room = parts.devices.lease_up_to(Kind::Audits, least, most, MEMORY_TIMEOUT)?;
    let mut weights = Weights { file: &file, manifest: &manifest, room: room.bytes(), fetch: &mut fetch };
    let found = verify(&receipt, &mut weights, pool, &mut pace)?;
    let local = host.local().to_string();
    let unix_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    for (segment, checked) in found.segments.iter().enumerate() {
        for (stage, check) in checked.stages.iter().enumerate() {
            let claimed = receipt.segments.get(segment).is_some_and(|segment| !segment.claims.is_empty());
            if !claimed || check.peer == local || check.output == OutputCheck::FollowsWrong {
                continue;
            }
            let position = match check.output {
                OutputCheck::Wrong { position } => position.map(|position| position as u64),
                _ => None,
            };
            receipt.audits.push(Audit { segment, stage, by: local.clone(), holds: check.holds(), position, unix_ms });
        }
    }
    if found.holds && receipt.is_audited() {
        receipt.verdict = Verdict::Audited;
    }
    for (segment, checked) in found.segments.iter().enumerate() {
        for (stage, check) in checked.stages.iter().enumerate().filter(|(_, check)| check.is_lie()) {
            let OutputCheck::Wrong { position } = check.output else { continue };
            let position = position.map(|position| position as u64);
            host.accuse(&FailedAudit { receipt: &receipt, segment, stage, position });
        }
    }
    Ok(receipt)
}
