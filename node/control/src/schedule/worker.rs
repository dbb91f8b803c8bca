//! One worker as the scheduler sees it: what is in flight there, and when that would be done.
//! Never chooses a tile.

use super::limits::{
    FAILURE_PAUSE, FAILURE_PAUSE_MAX, FAILURES_MAX, IN_FLIGHT_BYTES_MAX, LATE_FACTOR, LATE_REST, LATE_SLACK,
    OVERLOAD_PAUSE, OVERLOAD_PAUSE_MAX, PREFETCH_MARGIN, PREFETCH_TILES, SILENCE, SILENCE_FACTOR,
};
use super::{Arithmetic, AttemptId, CostModel, JobId, Tile, WorkerEstimate, WorkerId};
use crate::backoff::doubled;
use std::time::Duration;

/// One attempt on its way: operands, compute, answer.
#[derive(Debug, Clone)]
pub(super) struct Flight {
    pub(super) attempt: AttemptId,
    pub(super) job: JobId,
    pub(super) tile: Tile,
    pub(super) arithmetic: Arithmetic,
    pub(super) flops: f64,
    /// Operand and answer bytes that are on the way because of it.
    pub(super) bytes: u64,
    pub(super) started: f64,
    /// When its operands should be there.
    pub(super) arrive: f64,
    /// When it was said to begin computing.
    pub(super) began: Option<f64>,
    pub(super) compute_s: f64,
    /// Answer and half a round trip.
    pub(super) return_s: f64,
    /// What was predicted at the start.
    pub(super) predicted_done: f64,
    /// What is predicted since the worker last ended something that went before it.
    pub(super) due: f64,
    /// When its answer should be there, as things stand. Kept by [`Worker::look_ahead`].
    pub(super) expected: f64,
    pub(super) last_moved: f64,
}

impl Flight {
    /// When it counts as failed, if nothing is heard of it.
    pub(super) fn silent_at(&self) -> f64 {
        self.due.max(self.last_moved) + SILENCE.as_secs_f64().max(SILENCE_FACTOR * (self.compute_s + self.return_s))
    }
}

/// When a worker would be through with what it has.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Backlog {
    /// The last operand has been sent.
    pub(super) sent: f64,
    /// The last task has been computed.
    pub(super) computed: f64,
    /// The last answer has come.
    pub(super) returned: f64,
}

/// What one more tile would mean for a worker.
#[derive(Debug, Clone, Copy)]
pub(super) struct Prospect {
    pub(super) sent: f64,
    pub(super) arrive: f64,
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
    /// In the order in which they were started.
    pub(super) flights: Vec<Flight>,
    pub(super) flight_bytes: u64,
    /// Operands counted on being there, of all jobs.
    pub(super) resident_bytes: u64,
    pub(super) accepted: u64,
    pub(super) pause_until: f64,
    overloads: u32,
    failures: u32,
    send_free: f64,
    compute_free: f64,
    /// Kept by [`Worker::look_ahead`].
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
        // Whoever failed last time shows with one task that it can again.
        let most = if self.failures > 0 { 1 } else { self.max_in_flight };
        self.flights.len() < most && self.pause_until <= now
    }

    /// Whether another tile can wait: there is enough queued to keep the worker busy while what the next one needs
    /// is sent.
    pub(super) fn has_enough(&self, now: f64, prospect: &Prospect, operand_s: f64) -> bool {
        if self.flights.len() < 2 {
            return false;
        }
        let enough = PREFETCH_TILES * prospect.compute_s + PREFETCH_MARGIN * operand_s + self.model.rtt_s;
        self.backlog.computed.max(self.backlog.sent) - now > enough
    }

    /// Whether so many more bytes may be on the way.
    pub(super) fn may_carry(&self, bytes: u64) -> bool {
        self.flights.is_empty() || self.flight_bytes + bytes <= IN_FLIGHT_BYTES_MAX
    }

    /// Predicts the end of everything in flight, and keeps it.
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

    /// When the first flight counts as late, or, if it does, when to look again.
    pub(super) fn late_at(&self, now: f64) -> Option<f64> {
        let flight = self.flights.first()?;
        let begin = flight.began.unwrap_or_else(|| self.compute_free.max(flight.arrive));
        let late = late_at(begin, flight.compute_s + flight.return_s);
        Some(if late > now { late } else { now + (LATE_REST * (now - begin)).max(LATE_SLACK) })
    }

    /// One more tile, behind everything in flight. Counts on [`Worker::look_ahead`] having been called.
    pub(super) fn prospect(
        &self,
        arithmetic: Arithmetic,
        flops: f64,
        missing_bytes: u64,
        answer_bytes: u64,
    ) -> Prospect {
        let sent = self.backlog.sent + self.model.send_s(missing_bytes);
        let arrive = sent + self.model.rtt_s / 2.0;
        let compute_s = self.model.compute_s(arithmetic, flops);
        let computed = self.backlog.computed.max(arrive) + compute_s;
        let return_s = self.model.receive_s(answer_bytes) + self.model.rtt_s / 2.0;
        let done = (computed + return_s).max(self.backlog.returned + self.model.receive_s(answer_bytes));
        Prospect { sent, arrive, computed, compute_s, return_s, done }
    }

    pub(super) fn start(&mut self, flight: Flight, prospect: &Prospect) {
        self.flight_bytes += flight.bytes;
        self.send_free = prospect.sent;
        self.backlog = Backlog { sent: prospect.sent, computed: prospect.computed, returned: prospect.done };
        self.flights.push(flight);
    }

    /// Takes an attempt out, whatever became of it.
    pub(super) fn remove(&mut self, attempt: AttemptId) -> Option<Flight> {
        let at = self.flights.iter().position(|flight| flight.attempt == attempt)?;
        let flight = self.flights.remove(at);
        self.flight_bytes -= flight.bytes;
        Some(flight)
    }

    /// Takes out an attempt whose answer has come, and says when it will have begun to compute.
    pub(super) fn finish(&mut self, attempt: AttemptId, now: f64) -> Option<(Flight, f64)> {
        let at = self.flights.iter().position(|flight| flight.attempt == attempt)?;
        let flight = self.remove(attempt)?;
        let begin = flight.began.unwrap_or_else(|| self.compute_free.max(flight.arrive)).min(now);
        self.compute_free = (now - flight.return_s).max(self.compute_free).min(now);
        // What was started later has come nearer, or is as much later as this one was.
        let mut free = self.compute_free;
        for later in self.flights.iter_mut().skip(at) {
            free = free.max(later.arrive) + later.compute_s;
            later.due = free + later.return_s;
        }
        Some((flight, begin))
    }

    /// Everything up to this attempt has been handed to the connection.
    pub(super) fn sent(&mut self, attempt: AttemptId, now: f64) {
        let Some(at) = self.flights.iter().position(|flight| flight.attempt == attempt) else {
            return;
        };
        let late = now - (self.flights[at].arrive - self.model.rtt_s / 2.0);
        self.flights[at].arrive = now + self.model.rtt_s / 2.0;
        if at + 1 == self.flights.len() {
            self.send_free = now;
        } else {
            self.flights[at + 1..].iter_mut().for_each(|flight| flight.arrive += late.max(0.0));
            self.send_free += late.max(0.0);
        }
    }

    pub(super) fn overloaded(&mut self, now: f64) {
        // What was on its way when the pause began says nothing new.
        if self.pause_until > now {
            return;
        }
        self.pause_until = now + pause(OVERLOAD_PAUSE, self.overloads, OVERLOAD_PAUSE_MAX);
        self.overloads += 1;
    }

    /// Takes in a failure; whether it counts against the worker. What was on its way when a pause began says nothing new.
    pub(super) fn failed(&mut self, now: f64) -> bool {
        // The peer of this node is this node: nothing is won by waiting.
        if self.id.is_local() || (self.failures > 0 && self.pause_until > now) {
            return false;
        }
        self.pause_until = self.pause_until.max(now + pause(FAILURE_PAUSE, self.failures, FAILURE_PAUSE_MAX));
        self.failures += 1;
        true
    }

    /// A failure that counted was not the worker's fault.
    pub(super) fn forgive(&mut self, now: f64) {
        self.failures = self.failures.saturating_sub(1);
        if self.failures == 0 {
            self.pause_until = self.pause_until.min(now);
        }
    }

    /// Whether it failed the last time, or often, and is left alone for now.
    pub(super) fn is_failing(&self, now: f64) -> bool {
        self.is_given_up() || (self.failures > 0 && self.pause_until > now)
    }

    /// Whether it failed so often in a row that nothing waits for it any more.
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
