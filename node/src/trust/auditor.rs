//! Looks at signed answers again, when the node has nothing better to do: computes them from the model file, keeps the
//! outcome with the receipt, and accuses whoever signed something else. Which answers is drawn after they were signed.

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
use super::verify::{OutputCheck, Weights, verify};
use crate::compute_error;
use crate::devices::threads::Purpose;
use crate::devices::{Devices, Kind};
use crate::supervise::Supervisor;

/// Receipts that wait to be looked at: where more are signed than an idle node can check, the share is what it manages.
const WAITING: usize = 256;

/// Rows that are computed between two looks at whether the node is idle: a few hundredths of a second.
const CHUNK_ROWS: usize = 64;

/// How often a busy node is looked at again.
const BUSY: Duration = Duration::from_millis(50);

/// How long an audit waits for memory: products and loads that hold it end within seconds, or keep it for good.
const MEMORY_PATIENCE: Duration = Duration::from_secs(10);
/// What an audit asks of the node that it runs on.
pub trait AuditHost: Send + Sync {
    /// This node.
    fn local(&self) -> PeerId;

    /// Whether the node has better to do than an audit that nobody waits for.
    fn is_busy(&self) -> bool;

    /// The file of a model in which what is `wanted` reads as in the model, and what the whole file consists of. What is not on
    /// this node is fetched from `providers`. Blocks.
    ///
    /// # Errors
    /// `NotFound` where nothing of the model is here and nobody provides it; those of the download.
    fn fetch(&self, model: Digest, wanted: Wanted, providers: &[PeerId]) -> Result<ModelSource>;

    /// A replay refuted what a stage signed: the evidence is to be kept, and the peer quarantined.
    fn accuse(&self, failed: &FailedAudit<'_>);
}

/// Where a model can be read.
pub struct ModelSource {
    /// The file.
    pub path: PathBuf,
    /// What it consists of.
    pub manifest: Arc<Manifest>,
}

/// What an audit works with; clones are the same.
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

/// What the auditor's thread needs of the node.
pub struct AuditorParts {
    /// The share of sessions.
    pub policy: AuditPolicy,
    /// Where receipts are kept.
    pub store: ReceiptStore,
    /// The node that the audits run on.
    pub host: Box<dyn AuditHost>,
    /// Memory and compute threads.
    pub devices: Devices,
    /// Holds the auditor's threads.
    pub supervisor: Supervisor,
}

impl Auditor {
    /// Starts its thread.
    ///
    /// # Errors
    /// `Internal` where the system has none.
    pub fn start(parts: AuditorParts) -> Result<Auditor> {
        let (jobs, queue) = sync_channel(WAITING);
        let (receipts, kept) = sync_channel(WAITING);
        let inner = Inner { policy: parts.policy, receipts: receipts.clone(), jobs };
        let failed = |error| Error::new(ErrorKind::Internal, format!("cannot start the auditor's thread: {error}"));
        let store = parts.store.clone();
        // A write waits for the disk; answers and audits do not.
        let supervisor = parts.supervisor.clone();
        supervisor
            .restarted_thread("receipts", move || kept.iter().for_each(|receipt| put(&store, &receipt)))
            .map_err(failed)?;
        // The answer whose audit panicked counts as not checked: whoever waits finds its channel closed.
        supervisor.restarted_thread("auditor", move || run(&parts, &queue, &receipts)).map_err(failed)?;
        Ok(Auditor(Arc::new(inner)))
    }

    /// Whether every answer is held back until it is audited.
    pub fn audits_all(&self) -> bool {
        self.0.policy.is_all()
    }

    /// The share of sessions, to be drawn once their stages have signed.
    pub fn policy(&self) -> AuditPolicy {
        self.0.policy
    }

    /// Keeps a receipt, in a moment.
    pub fn keep(&self, receipt: Receipt) {
        let id = receipt.id.clone();
        if self.0.receipts.try_send(receipt).is_err() {
            tracing::warn!(event = "receipt_lost", receipt = id, "A receipt could not be kept: the disk is too slow");
        }
    }

    /// Has a receipt looked at; the same receipt comes back with what was found. `Overloaded` where too many wait.
    pub fn audit(&self, receipt: Receipt) -> oneshot::Receiver<Result<Receipt>> {
        let (done, result) = oneshot::channel();
        let job = Job { receipt, urgent: self.audits_all(), done };
        if let Err(error) = self.0.jobs.try_send(job) {
            let (std::sync::mpsc::TrySendError::Full(job) | std::sync::mpsc::TrySendError::Disconnected(job)) = error;
            let why = "more answers wait for their audit than this node manages";
            // Whoever asked may not wait for it.
            let _ = job.done.send(Err(Error::new(ErrorKind::Overloaded, why)));
        }
        result
    }
}

fn put(store: &ReceiptStore, receipt: &Receipt) {
    if let Err(error) = store.put(receipt) {
        tracing::warn!(event = "receipt_lost", receipt = receipt.id, %error, "A receipt could not be kept: {error}");
    }
}

fn run(parts: &AuditorParts, queue: &Receiver<Job>, receipts: &SyncSender<Receipt>) {
    let pool = OnceLock::new();
    while let Ok(Job { receipt, urgent, done }) = queue.recv() {
        let id = receipt.id.clone();
        let audited = replay_audit(parts, &pool, receipt, urgent);
        match &audited {
            // Behind the receipt as it was before; that thread ends after this one.
            Ok(receipt) => drop(receipts.send(receipt.clone())),
            Err(error) => {
                tracing::warn!(event = "audit_failed", receipt = id, %error, "An audit could not be made: {error}");
            }
        }
        // Whoever asked may not wait for it.
        let _ = done.send(audited);
    }
}

/// Computes an answer again and says of every stage on another node whether its part holds.
fn replay_audit(parts: &AuditorParts, pool: &OnceLock<Pool>, mut receipt: Receipt, urgent: bool) -> Result<Receipt> {
    let (host, model) = (&parts.host, receipt.model.digest);
    let stages = receipt.segments.iter().flat_map(|segment| &segment.stages);
    let providers: Vec<PeerId> = stages.filter_map(|stage| stage.peer.parse().ok()).collect();
    let ModelSource { path, manifest } = host.fetch(model, Wanted::header(), &providers)?;
    let file = ModelFile::open(&path).map_err(compute_error)?;
    let pool = match pool.get() {
        Some(pool) => pool,
        None => {
            let made = parts.devices.pool(Purpose::Audits)?;
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
    // Memory for as many layers as there is room for, and for the largest piece at least.
    let least = manifest.layer_bytes().max(manifest.embedding_bytes()).max(manifest.head_bytes());
    let most = roomy_audit_bytes(parts.devices.limit());
    let room = parts.devices.lease_up_to(Kind::Audits, least, most, MEMORY_PATIENCE)?;
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
