//! Quarantine of a peer that was proven to lie, and storage of the evidence.

use libp2p::PeerId;

use super::FabricDriver;
use crate::fabric::evidence::Evidence;
use pangea_control::schedule::{AttemptId, LeaveReason, Operand, WorkerId};

impl FabricDriver {
    /// Handles a worker's result that failed its check: stores the evidence and convicts the peer.
    pub(super) fn quarantine(&mut self, worker: WorkerId, attempt: AttemptId) {
        let Some(peer) = self.peer_of(worker) else { return };
        let evidence = self.attempts.get(&attempt).and_then(|under_way| {
            let running = self.jobs.get(&under_way.job)?;
            let data = &running.data;
            Some(Evidence {
                peer: peer.to_string(),
                job: under_way.job,
                attempt: attempt.0,
                why: running.rejected.last().map_or_else(String::new, |rejection| rejection.why.clone()),
                operation: data.operation,
                a: data.operand(Operand::Band(under_way.tile.band)).ok()?,
                b: data.operand(Operand::Panel(under_way.tile.panel)).ok()?,
                c: under_way.result.clone()?,
            })
        });
        let why = match &evidence {
            Some(evidence) => format!("a result failed its check ({})", evidence.why),
            None => "a result failed its check".to_owned(),
        };
        if let (Some(evidence), Some(data_dir)) = (evidence, self.settings.data_dir.clone()) {
            tokio::task::spawn_blocking(move || match evidence.keep(&data_dir) {
                Ok(folder) => tracing::info!(event = "evidence_kept", folder = %folder.display()),
                Err(error) => {
                    tracing::warn!(event = "evidence_lost", %error, "cannot store evidence: {error}")
                }
            });
        }
        self.peers.convict(peer, &why);
        self.follow_convictions();
    }

    /// Executes the actions of convictions from other threads, or from evidence found at start.
    pub(super) fn follow_convictions(&mut self) {
        let pending = self.peers.take_pending();
        self.follow_peers(pending);
    }

    /// Ends everything with a convicted peer: task streams, connections and admission.
    pub(super) fn cut_off(&mut self, peer: PeerId, why: String) {
        tracing::warn!(event = "quarantined", %peer, why, "Peer {peer} is quarantined: {why}");
        self.close_link(peer, LeaveReason::Quarantined);
        if let Some(network) = self.network.clone() {
            tokio::task::spawn_local(async move { network.block(peer, &format!("quarantined: {why}")).await });
        }
    }
}
