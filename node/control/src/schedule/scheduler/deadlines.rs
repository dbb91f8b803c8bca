//! Effects of time: waits for peers, deadlines, silent attempts, and the wake-ups for them.

use std::time::Duration;

use super::Scheduler;
use crate::schedule::{Action, AttemptId, FailureKind, JobSpec, Time};

impl Scheduler {
    /// Ends what is due: waits for peers, deadlines, silent attempts.
    pub(super) fn expire(&mut self, now: f64, actions: &mut Vec<Action>) {
        while let Some(at) = self.waiting.iter().position(|waiting| {
            self.connecting == 0 || self.workers.len() > 1 || waiting.until <= now || self.overdue(&waiting.spec, now)
        }) {
            let waiting = self.waiting.remove(at);
            self.admit(waiting, now, actions);
        }
        while let Some(job) = self.jobs.iter().find(|job| self.overdue(&job.spec, now)) {
            let why = "the deadline passed before the job was done".to_owned();
            self.fail_job(job.id, FailureKind::DeadlineExceeded, why, now, actions);
        }
        let peers = self.workers.values().filter(|worker| !worker.id.is_local());
        let silent = peers.flat_map(|peer| &peer.flights).filter(|flight| flight.silent_at() <= now);
        let silent: Vec<AttemptId> = silent.map(|flight| flight.attempt).collect();
        for attempt in silent {
            if let Some(worker) = self.attempts.get(&attempt).map(|attempt| attempt.worker) {
                actions.push(Action::Cancel { attempt, worker });
                self.fail(attempt, FailureKind::Unavailable, now, actions);
            }
        }
    }

    pub(super) fn overdue(&self, spec: &JobSpec, now: f64) -> bool {
        spec.deadline.is_some_and(|deadline| self.since_origin(deadline) <= now)
    }

    pub(super) fn since_origin(&self, time: Time) -> f64 {
        time.since(self.origin.unwrap_or_default()).as_secs_f64()
    }

    /// Requests a wake-up for the next effect of time.
    pub(super) fn ask_to_wake(&mut self, now: f64, actions: &mut Vec<Action>) {
        let mut next = f64::INFINITY;
        let mut at = |time: f64| next = next.min(time);
        for waiting in &self.waiting {
            at(waiting.until);
        }
        let waits = self.waiting.iter().map(|waiting| &waiting.spec);
        let deadlines = waits.chain(self.jobs.iter().map(|job| &job.spec)).filter_map(|spec| spec.deadline);
        deadlines.for_each(|deadline| at(self.since_origin(deadline)));
        let hungry = self.jobs.iter().any(|job| !job.pending.is_empty());
        for job in self.jobs.iter().filter(|job| !job.pending.is_empty() && self.awaits_peers(job, now)) {
            at(job.connect_until);
        }
        let company = self.workers.len() > 1;
        for worker in self.workers.values() {
            if worker.pause_until > now && (hungry || !self.attempts.is_empty()) {
                at(worker.pause_until);
            }
            if company && let Some(late) = worker.late_at(now) {
                at(late);
            }
            if !worker.id.is_local() {
                worker.flights.iter().for_each(|flight| at(flight.silent_at()));
            }
        }
        if next.is_finite() && self.wake_at.is_none_or(|asked| next < asked || asked <= now) {
            self.wake_at = Some(next);
            // Rounded up, so that the time has come when the tick arrives.
            let since_origin = Duration::from_secs_f64(next.max(now)) + Duration::from_micros(1);
            actions.push(Action::WakeAt(self.origin.unwrap_or_default() + since_origin));
        }
    }
}
