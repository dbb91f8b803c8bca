//! How a job ends: the final check of its result, its report, its failure.

use pangea_client::Error;
use pangea_compute::{Cut, Tensor};

use super::{FabricDriver, Notice};
use crate::fabric::checker::{Check, CheckVerdict, Checked, PanelProbe};
use crate::fabric::job::{
    JobId, JobOutcome, JobReport, JobRequest, TaskCounts, Verification, VerifyPolicy, WorkerShare,
};
use crate::fabric::metrics::mode;
use crate::fabric::running::RunningJob;
use crate::traces::child;
use crate::worker::executor::Side;
use pangea_control::schedule::FailureKind;

impl FabricDriver {
    pub(super) fn finished(&mut self, job: JobId, report: pangea_control::schedule::JobReport) {
        let Some(running) = self.jobs.get_mut(&job) else { return };
        let Some(whole) = running.whole() else {
            self.failed(job, FailureKind::Internal, "the result is incomplete".to_owned(), &report);
            return;
        };
        if running.request.verify == VerifyPolicy::Standard {
            self.deliver(job, &report, whole);
            return;
        }
        let notices = self.notices.clone();
        let storage = whole.storage_id();
        let checking = child!(running.reply.span(), "check");
        let submitted = self.checker.submit(Check {
            operation: running.data.operation,
            a: running.request.a.clone(),
            b: running.request.b.clone(),
            c: whole.clone(),
            dtype: running.data.result.dtype,
            probe: std::sync::Arc::new(PanelProbe::default()),
            worker: None,
            signed: None,
            done: Box::new(move |checked| {
                let _ = notices.blocking_send(Notice::WholeChecked { job, storage, checked });
            }),
        });
        match submitted {
            Ok(()) => {
                self.finishing.insert(job, (report, whole, checking));
            }
            Err(error) => self.failed(job, FailureKind::Overloaded, error.to_string(), &report),
        }
    }

    /// The result with this storage was checked. A job that has started again since has another one.
    pub(super) fn whole_checked(&mut self, job: JobId, storage: u64, checked: Checked) {
        if self.finishing.get(&job).is_none_or(|(_, whole, _)| whole.storage_id() != storage) {
            return;
        }
        let Some((report, whole, checking)) = self.finishing.remove(&job) else { return };
        drop(checking);
        let Some(running) = self.jobs.get_mut(&job) else { return };
        running.check_seconds += checked.took.as_secs_f64();
        let name = running.data.operation.result_name();
        match checked.verdict {
            CheckVerdict::Good(method) => {
                running.method = method;
                self.deliver(job, &report, whole);
            }
            CheckVerdict::Bad(why) => {
                self.metrics.rejected.inc();
                let why = format!("the whole {name} failed its check: {why}");
                self.failed(job, FailureKind::VerificationFailed, why, &report);
            }
            CheckVerdict::Failed(why) => {
                self.failed(job, FailureKind::Internal, format!("cannot check the result: {why}"), &report)
            }
        }
    }

    pub(super) fn deliver(&mut self, job: JobId, report: &pangea_control::schedule::JobReport, result: Tensor) {
        let Some(running) = self.jobs.remove(&job) else { return };
        self.executor.forget(job);
        let seconds = running.submitted.elapsed().as_secs_f64();
        self.metrics.done(report);
        if report.tasks.remote > 0 {
            // Peers have these parts: the next job with one of the operands is cut the same way.
            let grid = &running.data.grid;
            self.remember_side(&running.data.a, Side::Left, grid.band_rows());
            match running.data.operation.cut() {
                Cut::Crossed => self.remember_side(&running.data.b, Side::Right, grid.panel_columns()),
                Cut::Paired => self.remember_side(&running.data.b, Side::Left, grid.band_rows()),
            }
        }
        let report = self.report(&running, report, seconds);
        tracing::debug!(event = "job_done", job, seconds, predicted = report.predicted_seconds, mode = report.mode);
        running.reply.done(JobOutcome { result, report });
    }

    pub(super) fn failed(
        &mut self,
        job: JobId,
        kind: FailureKind,
        why: String,
        report: &pangea_control::schedule::JobReport,
    ) {
        self.finishing.remove(&job);
        self.executor.forget(job);
        let (reply, refusal) = match (self.submitting.remove(&job), self.jobs.remove(&job)) {
            (Some(submitting), _) => (submitting.reply, None),
            (None, Some(running)) => (running.reply, running.refusal),
            (None, None) => return,
        };
        // The worker that computed with the operands knows best what is wrong with them.
        let refusal = refusal.filter(|refusal| kind == FailureKind::InvalidInput && refusal.kind() == kind);
        let why = refusal.map_or(why, |refusal| refusal.message().to_owned());
        tracing::debug!(event = "job_failed", job, ?kind, why, seconds = report.actual_seconds);
        reply.failed(Error::new(kind, why));
    }

    pub(super) fn report(
        &self,
        running: &RunningJob,
        report: &pangea_control::schedule::JobReport,
        seconds: f64,
    ) -> JobReport {
        let JobRequest { operation, a, b, .. } = &running.request;
        let summed = match operation.cut() {
            Cut::Crossed => a.cols(),
            Cut::Paired => 1,
        };
        let shape = [a.rows(), summed, b.cols()];
        let flops = operation.flops(a.into(), b.into());
        let tasks = TaskCounts {
            total: report.tasks.total,
            remote: report.tasks.remote,
            local: report.tasks.local,
            retried: report.tasks.retried,
            hedged: report.tasks.hedged,
        };
        let mode = mode(report);
        let verdict = match (tasks.remote, running.data.is_exact()) {
            (0, _) => "local",
            (_, true) => "verified",
            (_, false) => "tolerance-checked",
        };
        JobReport {
            shape,
            dtype: running.data.result.dtype.name().to_owned(),
            seconds,
            gflops: if seconds > 0.0 { flops / seconds / 1e9 } else { 0.0 },
            tasks,
            workers: report.workers.iter().map(|share| self.share(share)).collect(),
            bytes_sent: running.data.bytes_sent.get(),
            bytes_received: running.bytes_received,
            verification: Verification {
                method: running.method.to_owned(),
                verdict: verdict.to_owned(),
                rejected: running.rejected.clone(),
                seconds: running.check_seconds,
            },
            mode: mode.to_owned(),
            predicted_seconds: report.predicted_seconds,
        }
    }

    pub(super) fn share(&self, share: &pangea_control::schedule::WorkerShare) -> WorkerShare {
        let (peer, name) = if share.worker.is_local() {
            (self.settings.peer.to_string(), self.settings.name.clone())
        } else {
            let known = self.workers.get(&share.worker);
            known.map(|(peer, name)| (peer.to_string(), name.clone())).unwrap_or_default()
        };
        WorkerShare { peer, name, tasks: share.tasks, seconds: share.seconds }
    }
}
