//! What happens to a peer that was found to lie, and what is kept of it.

use std::time::Instant;

use libp2p::PeerId;

use super::Driver;
use crate::fabric::evidence::Evidence;
use pangea_control::schedule::{AttemptId, Operand, WorkerId};

impl Driver {
    pub(super) fn quarantine(&mut self, worker: WorkerId, attempt: AttemptId) {
        let Some((peer, _)) = self.peers.link_of(worker) else { return };
        let evidence = self.attempts.get(&attempt).and_then(|under_way| {
            let running = self.jobs.get(&under_way.job)?;
            let data = &running.data;
            Some(Evidence {
                peer: peer.to_string(),
                job: under_way.job,
                attempt: attempt.0,
                why: running.rejected.last().map_or_else(String::new, |rejection| rejection.why.clone()),
                a: data.operand(Operand::Band(under_way.tile.band)).ok()?,
                b: data.operand(Operand::Panel(under_way.tile.panel)).ok()?,
                c: under_way.result.clone()?,
            })
        });
        let why =
            evidence.as_ref().map_or_else(|| "a result failed its check".to_owned(), |evidence| evidence.why.clone());
        tracing::warn!(event = "quarantined", %peer, why, "Peer {peer} is quarantined: a result of its failed the check ({why})");
        if let Some(known) = self.peers.get_mut(&peer) {
            known.quarantined = Some(why);
        }
        self.served.borrow_mut().quarantined.insert(peer);
        if let (Some(evidence), Some(data_dir)) = (evidence, self.settings.data_dir.clone()) {
            tokio::task::spawn_blocking(move || match evidence.keep(&data_dir) {
                Ok(folder) => tracing::info!(event = "evidence_kept", folder = %folder.display()),
                Err(error) => {
                    tracing::warn!(event = "evidence_lost", %error, "the evidence could not be written: {error}")
                }
            });
        }
    }

    /// A peer that was found to lie elsewhere than in tasks.
    pub(super) fn keep_out(&mut self, peer: PeerId, why: String) {
        tracing::warn!(event = "quarantined", %peer, why, "Peer {peer} is quarantined: {why}");
        self.peers.entry(peer, Instant::now()).quarantined = Some(why.clone());
        self.served.borrow_mut().quarantined.insert(peer);
        if let Some(network) = self.network.clone() {
            tokio::task::spawn_local(async move { network.block(peer, &format!("quarantined: {why}")).await });
        }
    }
}
