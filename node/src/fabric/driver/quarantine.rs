//! Quarantine of a peer that was proven to lie, and suspicion of others.

use std::collections::BTreeSet;

use libp2p::PeerId;

use super::FabricDriver;
use crate::evidence::ProductEvidence;
use crate::fabric::job::JobId;
use crate::fabric::running::RunningJob;
use pangea_control::schedule::{AttemptId, Event, LeaveReason, Operand, WorkerId};

impl FabricDriver {
    /// Handles a worker's result that failed its check: convicts the peer, with the evidence.
    pub(super) fn quarantine(&mut self, worker: WorkerId, attempt: AttemptId) {
        let Some(peer) = self.peer_of(worker) else { return };
        let evidence = self.attempts.get(&attempt).and_then(|under_way| {
            let running = self.jobs.get(&under_way.job)?;
            let data = &running.data;
            Some(ProductEvidence {
                peer,
                job: under_way.job,
                attempt: attempt.0,
                why: running.rejected.last().map_or_else(String::new, |rejection| rejection.why.clone()),
                signed: under_way.signed.clone(),
                result_name: data.operation.result_name(),
                tensors: [
                    data.operand(Operand::Band(under_way.tile.band)).ok()?,
                    data.operand(Operand::Panel(under_way.tile.panel)).ok()?,
                    under_way.result.clone()?,
                ],
            })
        });
        match evidence {
            Some(evidence) => self.settings.findings.product(evidence),
            // The job has ended meanwhile.
            None => self.peers.convict(peer, "a result failed its check"),
        }
        self.follow_convictions();
    }

    /// Executes the actions of convictions from other threads, or from evidence found at start.
    pub(super) fn follow_convictions(&mut self) {
        let pending = self.peers.take_pending();
        self.follow_peers(pending);
    }

    /// Tells the scheduler who is under suspicion, if that changed.
    pub(super) fn follow_suspicions(&mut self) {
        let suspects = self.peers.suspects().into_iter();
        let workers: BTreeSet<WorkerId> = suspects.filter_map(|peer| self.worker_of(&peer)).collect();
        if workers != self.suspects {
            self.suspects.clone_from(&workers);
            self.events.push_back(Event::SuspectsChanged { workers });
        }
    }

    /// A merged tile of a convicted peer no longer counts.
    pub(super) fn revoke(&mut self, job: JobId) {
        if let Some(running) = self.jobs.get_mut(&job) {
            running.tasks_done -= 1;
            running.show_progress();
        }
    }

    /// A job is complete with the help of a peer that was convicted afterwards: it starts again where it has not been
    /// delivered, and is marked where it has.
    pub(super) fn suspect(&mut self, job: JobId, worker: WorkerId) {
        let Some(peer) = self.peer_of(worker) else { return };
        if self.finishing.remove(&job).is_some()
            && let Some(RunningJob { request, submitted, reply, .. }) = self.jobs.remove(&job)
        {
            tracing::info!(event = "job_restarted", job, %peer, "job {job} used peer {peer}, which is convicted; it starts again");
            self.executor.forget(job);
            self.submit(job, request, submitted, reply);
            return;
        }
        tracing::warn!(event = "job_suspect", job, %peer, "job {job} used peer {peer}, which was convicted later");
        self.settings.jobs.suspect(pangea_control::schedule::JobId(job));
    }

    /// Ends everything with a convicted peer: task streams, connections and admission.
    pub(super) fn cut_off(&mut self, peer: PeerId, why: String) {
        tracing::warn!(event = "quarantined", %peer, why, "Peer {peer} is quarantined: {why}");
        self.close_link(peer, LeaveReason::Quarantined);
        // Also where its link has ended already: what it computed is computed again.
        if let Some(worker) = self.worker_of(&peer) {
            self.events.push_back(Event::WorkerLeft { worker, why: LeaveReason::Quarantined });
        }
        if let Some(network) = self.network.clone() {
            tokio::task::spawn_local(async move { network.block(peer, &format!("quarantined: {why}")).await });
        }
    }
}
