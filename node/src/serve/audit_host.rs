//! The node's side of audits: parts of model files, rows that stages open, whether the node is idle, and accusations. Nothing is
//! audited here.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use libp2p::PeerId;
use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::commit::Profile;
use pangea_compute::model::Wanted;
use pangea_compute::{Cancel, Digest};
use pangea_control::peers::SuspicionReason;
use pangea_control::session::SessionId;
use tokio::sync::watch;

use crate::blob::Blobs;
use crate::evidence::{Findings, StageReplay};
use crate::fabric::Fabric;
use crate::pipeline::Pipeline;
use crate::pool::View;
use crate::trust::{AuditHost, ClaimReplay, FailedAudit, ModelSource, Receipt, Signed};

/// This node, as audits use it.
#[derive(Clone)]
pub struct NodeAuditHost {
    /// Source of model files.
    pub blobs: Blobs,
    /// Reports whether the node is idle.
    pub pipeline: Pipeline,
    /// Where refuted claims go.
    pub findings: Findings,
    /// Knows which peers are suspects.
    pub fabric: Fabric,
    /// What nodes say of themselves.
    pub view: watch::Receiver<Arc<View>>,
}

/// Waits for something that runs on the network's threads.
fn wait<T>(work: impl Future<Output = T>) -> Result<T> {
    let failed = |error: std::io::Error| Error::new(ErrorKind::Internal, format!("cannot wait for a peer: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    Ok(runtime.block_on(work))
}

impl AuditHost for NodeAuditHost {
    fn local(&self) -> PeerId {
        self.pipeline.local()
    }

    fn is_busy(&self) -> bool {
        self.pipeline.is_busy()
    }

    fn fetch(&self, model: Digest, wanted: Wanted, providers: &[PeerId], within: Duration) -> Result<ModelSource> {
        let here = self.blobs.have(&model);
        if let Some(whole) = here.filter(|here| here.is_whole()) {
            return Ok(ModelSource { path: whole.path, manifest: whole.manifest });
        }
        let (cancel, mut progress) = (Cancel::new(), |_, _| {});
        let fetched = self.blobs.fetch(model, wanted, providers.to_vec(), &mut progress, &cancel);
        let late = |_| Error::new(ErrorKind::DeadlineExceeded, "the model's parts did not arrive in time");
        let path = wait(async { tokio::time::timeout(within, fetched).await.map_err(late) });
        cancel.cancel();
        let path = path???;
        let unknown = || Error::new(ErrorKind::NotFound, "no part of the model's file is on this node");
        Ok(ModelSource { path, manifest: self.blobs.have(&model).ok_or_else(unknown)?.manifest })
    }

    fn profile(&self, peer: &PeerId) -> Profile {
        let view = self.view.borrow();
        let advert = if *peer == view.local { Some(&view.own) } else { view.nodes.get(peer) };
        advert.map_or(Profile::Exact, |advert| match &*advert.bits {
            "" => Profile::Exact,
            _ => Profile::Grid,
        })
    }

    fn open(
        &self,
        peer: PeerId,
        session: [u8; 16],
        layers: Range<u32>,
        values: usize,
        within: Duration,
    ) -> Result<Vec<f32>> {
        let none = || Error::new(ErrorKind::Unavailable, "this node has no network");
        let opener = self.pipeline.rows().ok_or_else(none)?;
        wait(opener.open(peer, SessionId(session), layers, values, within))?
    }

    fn suspect(&self, peer: PeerId, reason: SuspicionReason) {
        self.fabric.suspect(peer, reason);
    }

    fn is_suspect(&self, peer: &PeerId) -> bool {
        self.fabric.is_suspect(peer)
    }

    fn accuse(&self, failed: &FailedAudit<'_>) {
        self.findings.stage(failed);
    }

    fn contradicted(&self, first: &Signed, second: &Signed) {
        self.findings.contradiction(first, second);
    }
}

impl StageReplay for ClaimReplay<NodeAuditHost> {
    fn refutes(&self, receipt: &Receipt, segment: usize, stage: usize) -> Result<bool> {
        ClaimReplay::refutes(self, receipt, segment, stage)
    }
}
