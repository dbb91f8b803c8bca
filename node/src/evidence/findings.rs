//! The handle through which a lie that this node found comes in. The liar is convicted before a call returns; storing the
//! evidence and telling others follows on other threads.

use std::sync::{Arc, OnceLock};

use libp2p::PeerId;
use pangea_client::Result;
use pangea_compute::Tensor;
use pangea_compute::commit::Claim;
use tokio::sync::mpsc;

use crate::peers::Peers;
use crate::trust::{FailedAudit, Receipt, Signed, SignedProduct};

/// Findings queued to be stored: liars are rare, and each is found once.
const QUEUE: usize = 64;

/// A result of an operation that failed its check on this node.
#[derive(Debug)]
pub struct ProductEvidence {
    /// The worker.
    pub peer: PeerId,
    /// Number of the job.
    pub job: u64,
    /// Number of the attempt.
    pub attempt: u64,
    /// What is wrong.
    pub why: String,
    /// What the worker signed; without it nobody else is convinced.
    pub signed: Option<SignedProduct>,
    /// What the result is called, such as `product`.
    pub result_name: &'static str,
    /// Operands and result.
    pub tensors: [Tensor; 3],
}

/// Replays claims of stages with the models of this node.
pub trait StageReplay: Send + Sync {
    /// Whether a replay refutes the claim of a stage of a receipt. Uses only what is on this node. Blocks.
    ///
    /// # Errors
    /// If it cannot be replayed here.
    fn refutes(&self, receipt: &Receipt, segment: usize, stage: usize) -> Result<bool>;
}

/// A lie that this node found.
pub(super) enum Finding {
    Product(Box<ProductEvidence>),
    Stage { peer: PeerId, why: String, receipt: Box<Receipt>, segment: usize, stage: usize, position: Option<u64> },
    Contradiction { peer: PeerId, why: String, claims: Box<[Signed; 2]> },
}

impl Finding {
    /// Who lied.
    pub(super) fn peer(&self) -> PeerId {
        match self {
            Finding::Product(evidence) => evidence.peer,
            Finding::Stage { peer, .. } | Finding::Contradiction { peer, .. } => *peer,
        }
    }
}

/// The handle; clones share it.
#[derive(Clone)]
pub struct Findings {
    peers: Peers,
    queue: mpsc::Sender<Finding>,
    replay: Arc<OnceLock<Box<dyn StageReplay>>>,
}

/// What the driver reads.
pub struct FindingsInlet {
    pub(super) queue: mpsc::Receiver<Finding>,
    pub(super) replay: Arc<OnceLock<Box<dyn StageReplay>>>,
}

impl Findings {
    /// The handle, which convicts peers in `peers`, and what the driver reads.
    pub fn new(peers: Peers) -> (Findings, FindingsInlet) {
        let (sender, queue) = mpsc::channel(QUEUE);
        let replay = Arc::default();
        (Findings { peers, queue: sender, replay: Arc::clone(&replay) }, FindingsInlet { queue, replay })
    }

    /// Lets this node check evidence about stages. A second call has no effect.
    pub fn check_stages_with(&self, replay: Box<dyn StageReplay>) {
        let _ = self.replay.set(replay);
    }

    /// A result failed its check.
    pub fn product(&self, evidence: ProductEvidence) {
        self.peers.convict(evidence.peer, &product_sentence(&evidence.why));
        self.queue(evidence.peer, Finding::Product(Box::new(evidence)));
    }

    /// A replay refuted the signed claim of a stage. Does nothing if the receipt holds no such claim.
    pub fn stage(&self, failed: &FailedAudit<'_>) {
        let Some((peer, why)) = failed.accusation() else { return };
        self.peers.convict(peer, &why);
        let FailedAudit { receipt, segment, stage, position } = *failed;
        let receipt = Box::new(receipt.clone());
        self.queue(peer, Finding::Stage { peer, why, receipt, segment, stage, position });
    }

    /// A stage signed two claims that contradict each other. Does nothing if they do not.
    pub fn contradiction(&self, first: &Signed, second: &Signed) {
        if !contradict(first, second) {
            return;
        }
        let peer = first.peer();
        let why = format!(
            "it signed two different outputs of the same layers {}-{} of one session",
            first.claim.layers.start, first.claim.layers.end
        );
        self.peers.convict(peer, &why);
        self.queue(peer, Finding::Contradiction { peer, why, claims: Box::new([first.clone(), second.clone()]) });
    }

    fn queue(&self, peer: PeerId, finding: Finding) {
        if self.queue.try_send(finding).is_err() {
            tracing::warn!(event = "evidence_lost", %peer, "cannot store evidence: too much is waiting to be stored");
        }
    }
}

/// Why a worker is convicted whose result failed its check.
pub(super) fn product_sentence(why: &str) -> String {
    match why {
        "" => "a result failed its check".to_owned(),
        why => format!("a result failed its check ({why})"),
    }
}

/// Whether one stage signed two different outputs of the same work on the same input.
pub(super) fn contradict(first: &Signed, second: &Signed) -> bool {
    let work = |claim: &Claim| Claim { output: [0; 32], ..claim.clone() };
    first.peer() == second.peer()
        && first.is_signed()
        && second.is_signed()
        && work(&first.claim) == work(&second.claim)
        && first.claim.output != second.claim.output
}
