//! How a job starts and ends early: waiting for peers, its plan, whether it is offloaded, cancellation, failure.
//! No tiles are handed out here.

use super::{Scheduler, Waiting};
use crate::schedule::job::Job;
use crate::schedule::limits::{AGING_FACTOR, CONNECT_WAIT};
use crate::schedule::offload_history::JobClass;
use crate::schedule::worker::Worker;
use crate::schedule::{Action, FailureKind, JobId, JobReport, JobSpec, Place, WorkerId};

impl Scheduler {
    pub(super) fn submit(&mut self, id: JobId, spec: JobSpec, now: f64, actions: &mut Vec<Action>) {
        debug_assert!(self.jobs().all(|job| job != id), "{id} is submitted twice");
        let until = now + CONNECT_WAIT.as_secs_f64();
        if spec.place == Place::Remote && self.connecting > 0 && self.workers.len() == 1 {
            self.waiting.push(Waiting { job: id, spec, submitted: now, until });
        } else {
            self.admit(Waiting { job: id, spec, submitted: now, until }, now, actions);
        }
    }

    pub(super) fn admit(&mut self, waiting: Waiting, now: f64, actions: &mut Vec<Action>) {
        let Waiting { job: id, spec, submitted, until } = waiting;
        let grid = match self.plan(&spec) {
            Ok(grid) => grid,
            Err(error) => {
                let (kind, why, report) = (FailureKind::InvalidInput, error.to_string(), JobReport::default());
                actions.push(Action::JobFailed { job: id, kind, why, report });
                return;
            }
        };
        let mut job = Job::new(id, spec, grid, submitted);
        job.spec.redundancy = job.spec.redundancy.max(1);
        job.connect_until = until;
        if job.remaining == 0 {
            actions.push(Action::Plan { job: id, grid });
            actions.push(Action::JobFinished { job: id, report: job.report(now) });
            return;
        }
        let alone = self.workers.get(&WorkerId::LOCAL);
        let alone_s = alone.map_or(0.0, |local| local.model.compute_s(job.spec.arithmetic, grid.shape().flops()));
        job.rank = submitted + AGING_FACTOR * alone_s;
        self.workers.values_mut().for_each(|worker| worker.look_ahead(now));
        let resident = std::mem::take(&mut job.spec.resident);
        job.class = Some(JobClass::of(grid.shape().flops(), !resident.is_empty()));
        let after = |other: &Job| (-other.spec.priority, other.rank) <= (-job.spec.priority, job.rank);
        let at = self.jobs.partition_point(after);
        self.jobs.insert(at, job);
        resident.into_iter().for_each(|(worker, operand)| self.hold(worker, id, operand));
        let mut job = self.jobs.remove(at);
        let all = |_: &Worker| true;
        job.predicted_s = (self.rest_done(&job, job.pending.len(), all) - submitted).max(0.0);
        if !job.predicted_s.is_finite() {
            job.predicted_s = alone_s;
        }
        if !self.offload_pays(&job, submitted) {
            self.forget_operands(&job);
            let spec = JobSpec { place: Place::Local, band_rows: None, panel_columns: None, ..job.spec };
            self.admit(Waiting { job: id, spec, submitted, until }, now, actions);
            return;
        }
        actions.push(Action::Plan { job: id, grid });
        self.jobs.insert(at, job);
    }

    /// Whether a job is offloaded to peers; always if the request fixes the place.
    pub(super) fn offload_pays(&mut self, job: &Job, submitted: f64) -> bool {
        let open = job.spec.place == Place::Auto && job.spec.redundancy == 1 && self.workers.len() > 1;
        let Some(class) = job.class.filter(|_| open) else { return true };
        let alone_s =
            (self.rest_done(job, job.pending.len(), |worker: &Worker| worker.id.is_local()) - submitted).max(0.0);
        self.offload_history.pays(class, job.predicted_s, alone_s)
    }

    pub(super) fn cancel_job(&mut self, id: JobId, now: f64, actions: &mut Vec<Action>) {
        let why = "the job was cancelled";
        if let Some(at) = self.waiting.iter().position(|waiting| waiting.job == id) {
            self.waiting.remove(at);
            let (kind, why, report) = (FailureKind::Cancelled, why.to_owned(), JobReport::default());
            actions.push(Action::JobFailed { job: id, kind, why, report });
        } else if self.jobs.iter().any(|job| job.id == id) {
            self.fail_job(id, FailureKind::Cancelled, why.to_owned(), now, actions);
        }
    }

    pub(super) fn fail_job(&mut self, id: JobId, kind: FailureKind, why: String, now: f64, actions: &mut Vec<Action>) {
        let Some(at) = self.jobs.iter().position(|job| job.id == id) else {
            return;
        };
        let mut job = self.jobs.remove(at);
        for record in std::mem::take(&mut job.records).into_values() {
            for (attempt, _) in record.active {
                self.drop_attempt(attempt, actions);
            }
            actions.extend(record.answers.iter().map(|answer| Action::Discard { attempt: answer.attempt }));
        }
        self.forget_operands(&job);
        let report = job.report(now);
        actions.push(Action::JobFailed { job: id, kind, why, report });
    }
}
