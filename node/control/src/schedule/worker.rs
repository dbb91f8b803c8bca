//! One worker as the scheduler sees it: its attempts in flight, and when they are predicted to be done.
//! Tiles are not chosen here.

use super::limits::{
    FAILURE_PAUSE, FAILURE_PAUSE_MAX, FAILURES_MAX, HASH_BYTES_PER_S, IN_FLIGHT_BYTES_MAX, LATE_FACTOR, LATE_REST,
    LATE_SLACK, OVERLOAD_PAUSE, OVERLOAD_PAUSE_MAX, PREFETCH_MARGIN, PREFETCH_TILES, RETRY_AFTER_MAX, SILENCE,
    SILENCE_FACTOR, SILENCE_MAX,
};
use super::{Arithmetic, AttemptId, CostModel, JobId, Tile, WorkerEstimate, WorkerId};
use crate::backoff::doubled;
use std::time::Duration;

/// One attempt in flight: operands, compute, answer.
#[derive(Debug, Clone)]
pub(super) struct Flight {
    pub(super) attempt: AttemptId,
    pub(super) job: JobId,
    pub(super) tile: Tile,
    pub(super) arithmetic: Arithmetic,
    pub(super) flops: f64,
    /// Operand and answer bytes in flight for it.
    pub(super) bytes: u64,
    pub(super) started: f64,
    /// Predicted time at which its operands have arrived and were compared with their digests.
    pub(super) arrive: f64,
    /// Seconds of that comparison.
    pub(super) hash_s: f64,
    /// Time at which the worker reported that it started to compute.
    pub(super) began: Option<f64>,
    pub(super) compute_s: f64,
    /// Seconds of the answer and half a round trip.
    pub(super) return_s: f64,
    /// End predicted at the start.
    pub(super) predicted_done: f64,
    /// End predicted since the worker last completed an earlier attempt.
    pub(super) due: f64,
    /// Currently predicted arrival of its answer. Updated by [`Worker::look_ahead`].
    pub(super) expected: f64,
    pub(super) last_moved: f64,
}

impl Flight {
    /// Time at which it counts as failed without any sign of it.
    pub(super) fn silent_at(&self) -> f64 {
        let allowed = SILENCE.as_secs_f64().max(SILENCE_FACTOR * (self.compute_s + self.return_s));
        (self.due.max(self.last_moved) + allowed).min(self.last_moved + SILENCE_MAX.as_secs_f64())
    }
}

/// When a worker is predicted to finish what it has.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Backlog {
    /// Time at which the last operand has been sent.
    pub(super) sent: f64,
    /// Time at which the last task has been computed.
    pub(super) computed: f64,
    /// Time at which the last answer has arrived.
    pub(super) returned: f64,
}

/// Prediction of one more tile on a worker.
#[derive(Debug, Clone, Copy)]
pub(super) struct Prospect {
    pub(super) sent: f64,
    pub(super) arrive: f64,
    pub(super) hash_s: f64,
    pub(super) computed: f64,
    pub(super) compute_s: f64,
    pub(super) return_s: f64,
    pub(super) done: f64,
}

#[derive(Debug)]
pub(super) struct Worker {
    pub(super) id: WorkerId,
    pub(super) model: CostModel,
    pub(super) max_in_flight: usize,
    pub(super) memory_bytes: u64,
    /// Attempts in the order in which they were started.
    pub(super) flights: Vec<Flight>,
    pub(super) flight_bytes: u64,
    /// Bytes of operands of all jobs that are expected to be at the worker.
    pub(super) resident_bytes: u64,
    pub(super) accepted: u64,
    pub(super) pause_until: f64,
    overloads: u32,
    failures: u32,
    send_free: f64,
    compute_free: f64,
    /// Updated by [`Worker::look_ahead`].
    pub(super) backlog: Backlog,
}

impl Worker {
    pub(super) fn new(id: WorkerId, estimate: &WorkerEstimate, now: f64) -> Self {
        let mut worker = Self {
            id,
            model: CostModel::new(estimate),
            max_in_flight: 1,
            memory_bytes: 0,
            flights: Vec::new(),
            flight_bytes: 0,
            resident_bytes: 0,
            accepted: 0,
            pause_until: 0.0,
            overloads: 0,
            failures: 0,
            send_free: 0.0,
            compute_free: 0.0,
            backlog: Backlog::default(),
        };
        worker.update(estimate, now);
        worker
    }

    pub(super) fn update(&mut self, estimate: &WorkerEstimate, now: f64) {
        self.model.update(estimate);
        self.max_in_flight = estimate.max_in_flight.max(1);
        self.memory_bytes = estimate.memory_bytes;
        if estimate.busy_s.is_finite() && estimate.busy_s > 0.0 && self.flights.is_empty() {
            self.compute_free = self.compute_free.max(now + estimate.busy_s.min(3600.0));
        }
    }

    pub(super) fn has_room(&self, now: f64) -> bool {
        // A worker that failed last time must succeed with one task first.
        let most = if self.failures > 0 { 1 } else { self.max_in_flight };
        self.flights.len() < most && self.pause_until <= now
    }

    /// Whether another tile can wait: the queued ones keep the worker busy while the next one's operands
    /// are sent.
    pub(super) fn has_enough(&self, now: f64, prospect: &Prospect, operand_s: f64) -> bool {
        if self.flights.len() < 2 {
            return false;
        }
        let enough = PREFETCH_TILES * prospect.compute_s + PREFETCH_MARGIN * operand_s + self.model.rtt_s;
        self.backlog.computed.max(self.backlog.sent) - now > enough
    }

    /// Whether this many more bytes may be in flight.
    pub(super) fn may_carry(&self, bytes: u64) -> bool {
        self.flights.is_empty() || self.flight_bytes + bytes <= IN_FLIGHT_BYTES_MAX
    }

    /// Predicts and stores the end of everything in flight.
    pub(super) fn look_ahead(&mut self, now: f64) {
        let mut backlog = Backlog { sent: self.send_free.max(now), computed: self.compute_free, returned: 0.0 };
        // A worker that is late with one task is as slow with the next.
        let mut slow = 1.0f64;
        for flight in &mut self.flights {
            let begin = flight.began.unwrap_or_else(|| backlog.computed.max(flight.arrive));
            let length = flight.compute_s * slow;
            let mut computed = begin + length;
            let mut done = (computed + flight.return_s).max(backlog.returned);
            if done < now {
                done = now;
                if now > late_at(begin, length + flight.return_s) {
                    done += LATE_REST * (now - begin);
                    slow = slow.max((done - begin) / (flight.compute_s + flight.return_s));
                }
                computed = done - flight.return_s;
            }
            flight.expected = done;
            backlog.computed = computed;
            backlog.returned = done;
        }
        backlog.computed = backlog.computed.max(now);
        self.backlog = backlog;
    }

    /// Time at which the first attempt counts as late, or, if it does, of the next check.
    pub(super) fn late_at(&self, now: f64) -> Option<f64> {
        let flight = self.flights.first()?;
        let begin = flight.began.unwrap_or_else(|| self.compute_free.max(flight.arrive));
        let late = late_at(begin, flight.compute_s + flight.return_s);
        Some(if late > now { late } else { now + (LATE_REST * (now - begin)).max(LATE_SLACK) })
    }

    /// Predicts one more tile, after everything in flight. Requires [`Worker::look_ahead`] first.
    pub(super) fn prospect(
        &self,
        arithmetic: Arithmetic,
        flops: f64,
        missing_bytes: u64,
        answer_bytes: u64,
    ) -> Prospect {
        let sent = self.backlog.sent + self.model.send_s(missing_bytes);
        let hash_s = missing_bytes as f64 / HASH_BYTES_PER_S;
        let arrive = sent + self.model.rtt_s / 2.0 + hash_s;
        let compute_s = self.model.compute_s(arithmetic, flops);
        let computed = self.backlog.computed.max(arrive) + compute_s;
        let return_s = self.model.receive_s(answer_bytes) + self.model.rtt_s / 2.0;
        let done = (computed + return_s).max(self.backlog.returned + self.model.receive_s(answer_bytes));
        Prospect { sent, arrive, hash_s, computed, compute_s, return_s, done }
    }

    pub(super) fn start(&mut self, flight: Flight, prospect: &Prospect) {
        self.flight_bytes += flight.bytes;
        self.send_free = prospect.sent;
        self.backlog = Backlog { sent: prospect.sent, computed: prospect.computed, returned: prospect.done };
        self.flights.push(flight);
    }

    /// Removes an attempt, whatever its outcome.
    pub(super) fn remove(&mut self, attempt: AttemptId) -> Option<Flight> {
        let at = self.flights.iter().position(|flight| flight.attempt == attempt)?;
        let flight = self.flights.remove(at);
        self.flight_bytes -= flight.bytes;
        Some(flight)
    }

    /// Removes an attempt whose answer has arrived; returns also when it must have started to compute.
    pub(super) fn finish(&mut self, attempt: AttemptId, now: f64) -> Option<(Flight, f64)> {
        let at = self.flights.iter().position(|flight| flight.attempt == attempt)?;
        let flight = self.remove(attempt)?;
        let begin = flight.began.unwrap_or_else(|| self.compute_free.max(flight.arrive)).min(now);
        self.compute_free = (now - flight.return_s).max(self.compute_free).min(now);
        // Later attempts move up, or are as late as this one was.
        let mut free = self.compute_free;
        for later in self.flights.iter_mut().skip(at) {
            free = free.max(later.arrive) + later.compute_s;
            later.due = free + later.return_s;
        }
        Some((flight, begin))
    }

    /// Records that everything up to this attempt was handed to the connection.
    pub(super) fn sent(&mut self, attempt: AttemptId, now: f64) {
        let Some(at) = self.flights.iter().position(|flight| flight.attempt == attempt) else {
            return;
        };
        let after_sent = self.model.rtt_s / 2.0 + self.flights[at].hash_s;
        let late = now - (self.flights[at].arrive - after_sent);
        self.flights[at].arrive = now + after_sent;
        if at + 1 == self.flights.len() {
            self.send_free = now;
        } else {
            self.flights[at + 1..].iter_mut().for_each(|flight| flight.arrive += late.max(0.0));
            self.send_free += late.max(0.0);
        }
    }

    pub(super) fn overloaded(&mut self, now: f64) {
        // Reports about attempts from before the pause are ignored.
        if self.pause_until > now {
            return;
        }
        self.pause_until = now + pause(OVERLOAD_PAUSE, self.overloads, OVERLOAD_PAUSE_MAX);
        self.overloads += 1;
    }

    /// Pauses an overloaded worker at least as long as it asks for, within a limit.
    pub(super) fn asked_to_wait(&mut self, retry_after: Duration, now: f64) {
        self.pause_until = self.pause_until.max(now + retry_after.min(RETRY_AFTER_MAX).as_secs_f64());
    }

    /// Records a failure; returns whether it counts against the worker. Failures of attempts from before a pause are
    /// ignored.
    pub(super) fn failed(&mut self, now: f64) -> bool {
        // This node is never paused: waiting gains nothing.
        if self.id.is_local() || (self.failures > 0 && self.pause_until > now) {
            return false;
        }
        self.pause_until = self.pause_until.max(now + pause(FAILURE_PAUSE, self.failures, FAILURE_PAUSE_MAX));
        self.failures += 1;
        true
    }

    /// Forgives a counted failure that was not the worker's fault.
    pub(super) fn forgive(&mut self, now: f64) {
        self.failures = self.failures.saturating_sub(1);
        if self.failures == 0 {
            self.pause_until = self.pause_until.min(now);
        }
    }

    /// Whether the worker failed last time, or often, and is paused now.
    pub(super) fn is_failing(&self, now: f64) -> bool {
        self.is_given_up() || (self.failures > 0 && self.pause_until > now)
    }

    /// Whether the worker has had so many consecutive failures that no job waits for it.
    pub(super) fn is_given_up(&self) -> bool {
        self.failures >= FAILURES_MAX
    }

    pub(super) fn refused(&mut self, now: f64) {
        self.failures += 1;
        self.pause_until = now + FAILURE_PAUSE_MAX.as_secs_f64();
    }

    pub(super) fn did_well(&mut self) {
        self.overloads = 0;
        self.failures = 0;
        self.accepted += 1;
    }
}

fn late_at(begin: f64, length: f64) -> f64 {
    begin + length * LATE_FACTOR + LATE_SLACK
}

fn pause(first: Duration, doublings: u32, longest: Duration) -> f64 {
    doubled(first, doublings, longest).as_secs_f64()
}
