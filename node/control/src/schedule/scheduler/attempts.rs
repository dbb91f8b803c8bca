//! Outcomes of attempts: progress, answer, check, failure. No attempt is started here.

use super::forecast::check_bytes;
use super::{Attempt, Scheduler};
use crate::schedule::job::CheckedAnswer;
use crate::schedule::limits::{OVERLOADS_LOCAL_MAX, OVERLOADS_MAX};
use crate::schedule::{Action, AttemptId, CheckOutcome, FailureKind, Measured, Operand, Progress, Transfer};

impl Scheduler {
    pub(super) fn progress(&mut self, id: AttemptId, progress: Progress, now: f64) {
        let Some(attempt) = self.attempts.get(&id) else {
            return;
        };
        let Some(worker) = self.workers.get_mut(&attempt.worker) else {
            return;
        };
        if progress == Progress::Sent {
            worker.sent(id, now);
        }
        if let Some(flight) = worker.flights.iter_mut().find(|flight| flight.attempt == id) {
            if progress == Progress::Computing {
                // A worker that hangs can say so for ever.
                if flight.began.is_some() {
                    return;
                }
                flight.began = Some((now - worker.model.rtt_s / 2.0).max(flight.started));
            }
            flight.last_moved = now;
        }
    }

    pub(super) fn finish(&mut self, id: AttemptId, measured: &Measured, now: f64, actions: &mut Vec<Action>) {
        let Some(attempt) = self.attempts.get_mut(&id) else {
            return;
        };
        let Some(worker) = self.workers.get_mut(&attempt.worker) else {
            return;
        };
        let Some((flight, begin)) = worker.finish(id, now) else {
            return;
        };
        let elsewhere = flight.return_s + worker.model.overhead_s;
        let compute_s = measured.compute_seconds.filter(|seconds| seconds.is_finite() && *seconds >= 0.0);
        let compute_s = compute_s.unwrap_or_else(|| (now - begin - elsewhere).max(0.0));
        worker.model.observe_compute(flight.arithmetic, flight.flops, compute_s);
        if let Some(sent) = measured.sent {
            worker.model.observe_send(sent);
        }
        if let Some(received) = measured.received {
            worker.model.observe_receive(received);
        }
        worker.model.observe_attempt(flight.predicted_done - flight.started, now - flight.started);
        attempt.checking = Some(compute_s);
        let trusted = attempt.worker.is_local();
        let alone = (self.jobs.iter()).any(|job| job.id == flight.job && job.spec.redundancy == 1);
        if trusted && alone {
            // This node's own answers need no check; any number identifies its one answer.
            self.answer(id, 0, now, actions);
        } else {
            actions.push(Action::Check { attempt: id });
        }
    }

    pub(super) fn checked(
        &mut self,
        id: AttemptId,
        verdict: CheckOutcome,
        seconds: f64,
        now: f64,
        actions: &mut Vec<Action>,
    ) {
        let Some(attempt) = self.attempts.get(&id).filter(|attempt| attempt.checking.is_some()) else {
            return;
        };
        let (worker, tile) = (attempt.worker, attempt.tile);
        if let Some(job) = self.jobs.iter_mut().find(|job| job.id == attempt.job) {
            let bytes = check_bytes(job, tile);
            self.check_byte_s.observe_transfer(Transfer { bytes, seconds });
            job.tasks.wrong += u32::from(verdict == CheckOutcome::Bad);
        }
        match verdict {
            CheckOutcome::Good { answer } => self.answer(id, answer, now, actions),
            CheckOutcome::Bad if !worker.is_local() => self.quarantine(worker, id, now, actions),
            CheckOutcome::Bad | CheckOutcome::Inconclusive => {
                self.fail(id, FailureKind::VerificationFailed, now, actions)
            }
        }
    }

    /// Keeps a good answer.
    pub(super) fn answer(&mut self, id: AttemptId, answer: u64, now: f64, actions: &mut Vec<Action>) {
        let Some(attempt) = self.attempts.remove(&id) else {
            return;
        };
        if let Some(worker) = self.workers.get_mut(&attempt.worker) {
            worker.did_well();
        }
        let Some(job) = self.jobs.iter_mut().find(|job| job.id == attempt.job) else {
            return;
        };
        job.active -= 1;
        let record = job.records.entry(attempt.tile).or_default();
        record.active.retain(|&(active, _)| active != id);
        let seconds = attempt.checking.unwrap_or(0.0);
        record.answers.push(CheckedAnswer { attempt: id, worker: attempt.worker, answer, seconds });
        self.settle(attempt.job, attempt.tile, now, actions);
    }

    /// Ends an attempt without a good answer.
    pub(super) fn fail(&mut self, id: AttemptId, kind: FailureKind, now: f64, actions: &mut Vec<Action>) {
        let Some(attempt) = self.attempts.remove(&id) else {
            return;
        };
        let local = attempt.worker.is_local();
        if attempt.checking.is_some() {
            actions.push(Action::Discard { attempt: id });
        }
        let (mut given_up, mut counts) = (false, false);
        if let Some(worker) = self.workers.get_mut(&attempt.worker) {
            worker.remove(id);
            match kind {
                FailureKind::Overloaded => worker.overloaded(now),
                FailureKind::Unauthorized => worker.refused(now),
                // The operand is sent again; an inconclusive check is nobody's fault.
                FailureKind::NotFound | FailureKind::VerificationFailed => {}
                _ => counts = worker.failed(now),
            }
            given_up = worker.is_given_up();
        }
        if kind == FailureKind::NotFound {
            self.drop_operand(attempt.worker, attempt.job, Operand::Band(attempt.tile.band));
            self.drop_operand(attempt.worker, attempt.job, Operand::Panel(attempt.tile.panel));
        }
        let Some(job) = self.jobs.iter_mut().find(|job| job.id == attempt.job) else {
            return;
        };
        job.active -= 1;
        let record = job.records.entry(attempt.tile).or_default();
        record.active.retain(|&(active, _)| active != id);
        let overloaded = kind == FailureKind::Overloaded;
        record.overloads += u32::from(overloaded);
        record.failures += u32::from(!overloaded);
        record.local_failures += u32::from(local && !overloaded);
        if !local && kind != FailureKind::NotFound && (!overloaded || record.overloads > OVERLOADS_MAX) {
            record.failed.push(attempt.worker);
        }
        if counts {
            job.counted_failures.push((attempt.worker, kind));
        } else if local && matches!(kind, FailureKind::InvalidInput | FailureKind::Internal) {
            // A worker that failed in the same way as this node was right: the job is at fault, not the worker.
            job.counted_failures.retain(|(failed, how)| {
                let agrees = *how == kind;
                if agrees && let Some(worker) = self.workers.get_mut(failed) {
                    worker.forgive(now);
                }
                !agrees
            });
        }
        let is_final = kind == FailureKind::InvalidInput
            || record.local_failures > job.spec.max_retries
            || record.overloads > OVERLOADS_LOCAL_MAX;
        if local && is_final {
            let why = match kind {
                FailureKind::InvalidInput => "this node cannot compute the job as asked",
                FailureKind::Overloaded => {
                    "this node has not enough memory for the job; try again later or raise --max-memory"
                }
                FailureKind::VerificationFailed => "every answer of this node fails its check",
                _ => "this node cannot compute a part of the job",
            };
            self.fail_job(attempt.job, kind, why.to_owned(), now, actions);
        } else {
            self.settle(attempt.job, attempt.tile, now, actions);
        }
        if given_up {
            self.settle_all(now, actions);
        }
    }

    /// Removes an attempt from flight or from its check; the caller updates the tile's record.
    pub(super) fn drop_attempt(&mut self, id: AttemptId, actions: &mut Vec<Action>) -> Option<Attempt> {
        let attempt = self.attempts.remove(&id)?;
        if attempt.checking.is_some() {
            actions.push(Action::Discard { attempt: id });
        } else {
            if let Some(worker) = self.workers.get_mut(&attempt.worker) {
                worker.remove(id);
            }
            actions.push(Action::Cancel { attempt: id, worker: attempt.worker });
        }
        Some(attempt)
    }
}

#[cfg(test)]
#[path = "attempts_tests.rs"]
mod tests;
