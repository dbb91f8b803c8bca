//! Workers that join, leave and are convicted, and the operands that they have. No tiles are handed out here.

use super::Scheduler;
use crate::schedule::job::{Held, Job};
use crate::schedule::worker::Worker;
use crate::schedule::{Action, AttemptId, JobId, LeaveReason, Operand, Tile, WorkerEstimate, WorkerId};

impl Scheduler {
    pub(super) fn join(&mut self, id: WorkerId, estimate: &WorkerEstimate, now: f64, actions: &mut Vec<Action>) {
        if self.quarantined.contains(&id) {
            return;
        }
        if id.is_local() {
            if let Some(local) = self.workers.get_mut(&id) {
                local.update(estimate, now);
            }
            return;
        }
        self.leave(id, LeaveReason::Lost, now, actions);
        self.workers.insert(id, Worker::new(id, estimate, now));
    }

    pub(super) fn leave(&mut self, id: WorkerId, why: LeaveReason, now: f64, actions: &mut Vec<Action>) {
        if id.is_local() {
            return;
        }
        let convicted = why == LeaveReason::Quarantined;
        if convicted {
            self.quarantined.insert(id);
            self.disown(id, actions);
        }
        let worker = self.workers.remove(&id);
        let changed = convicted || worker.is_some();
        if let Some(worker) = worker {
            self.jobs.iter_mut().for_each(|job| job.drop_holder(id));
            for flight in worker.flights {
                self.attempts.remove(&flight.attempt);
                actions.push(Action::Cancel { attempt: flight.attempt, worker: id });
                if let Some(job) = self.jobs.iter_mut().find(|job| job.id == flight.job) {
                    job.active -= 1;
                    if let Some(record) = job.records.get_mut(&flight.tile) {
                        record.active.retain(|&(attempt, _)| attempt != flight.attempt);
                        record.failures += 1;
                    }
                }
            }
        }
        if changed {
            self.settle_all(now, actions);
        }
    }

    /// Re-examines every started tile, because the workers that it waits for may be gone.
    pub(super) fn settle_all(&mut self, now: f64, actions: &mut Vec<Action>) {
        let tiles: Vec<(JobId, Tile)> =
            (self.jobs.iter()).flat_map(|job| job.records.keys().map(move |&tile| (job.id, tile))).collect();
        tiles.into_iter().for_each(|(job, tile)| self.settle(job, tile, now, actions));
    }

    pub(super) fn quarantine(&mut self, id: WorkerId, evidence: AttemptId, now: f64, actions: &mut Vec<Action>) {
        if self.quarantined.insert(id) {
            actions.push(Action::Quarantine { worker: id, attempt: evidence });
        }
        self.leave(id, LeaveReason::Quarantined, now, actions);
    }

    /// Takes back every answer of a convicted peer, whether it is being checked, waits for others that agree, or has
    /// been merged.
    fn disown(&mut self, id: WorkerId, actions: &mut Vec<Action>) {
        let theirs = self.attempts.iter().filter(|(_, attempt)| attempt.worker == id && attempt.checking.is_some());
        let theirs: Vec<AttemptId> = theirs.map(|(&attempt, _)| attempt).collect();
        for attempt in theirs {
            if let Some(gone) = self.drop_attempt(attempt, actions)
                && let Some(job) = self.jobs.iter_mut().find(|job| job.id == gone.job)
            {
                job.active -= 1;
                if let Some(record) = job.records.get_mut(&gone.tile) {
                    record.active.retain(|&(active, _)| active != attempt);
                    record.failures += 1;
                }
            }
        }
        for job in &mut self.jobs {
            for record in job.records.values_mut() {
                let gone = record.answers.iter().filter(|answer| answer.worker == id);
                actions.extend(gone.map(|answer| Action::Discard { attempt: answer.attempt }));
                record.answers.retain(|answer| answer.worker != id);
            }
            let id_of_job = job.id;
            let revoked = job.revoke(id).into_iter();
            actions.extend(revoked.map(|tile| Action::Revoke { job: id_of_job, tile, worker: id }));
        }
        for (job, peers) in &mut self.delivered {
            if peers.contains(&id) {
                peers.retain(|peer| *peer != id);
                actions.push(Action::Suspect { job: *job, worker: id });
            }
        }
    }

    pub(super) fn hold(&mut self, worker: WorkerId, job: JobId, operand: Operand) {
        if worker.is_local() {
            return;
        }
        let job = self.jobs.iter_mut().find(|other| other.id == job);
        if let (Some(job), Some(worker)) = (job, self.workers.get_mut(&worker)) {
            worker.resident_bytes += job.hold(worker.id, operand, self.starts);
        }
    }

    pub(super) fn drop_operand(&mut self, worker: WorkerId, job: JobId, operand: Operand) {
        let job = self.jobs.iter_mut().find(|other| other.id == job);
        if let (Some(job), Some(worker)) = (job, self.workers.get_mut(&worker)) {
            worker.resident_bytes -= job.drop_operand(worker.id, operand);
        }
    }

    pub(super) fn forget_operands(&mut self, job: &Job) {
        for (worker, Held { bytes, .. }) in &job.held {
            if let Some(worker) = self.workers.get_mut(worker) {
                worker.resident_bytes -= bytes;
            }
        }
    }
}
