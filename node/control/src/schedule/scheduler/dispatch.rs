//! Which worker gets which tile now: a tile goes to a worker only if it is predicted to be done there before the other
//! workers would finish the job without that worker. Late tiles are copied to idle workers.

use super::forecast::{check_bytes, rest_done_with};
use super::{Attempt, Candidate, Scheduler};
use crate::schedule::job::Job;
use crate::schedule::limits::{CHECK_SHARE_MAX, HEDGE_MARGIN, HEDGES_MAX, JOBS_CONSIDERED, REFUSALS_MAX};
use crate::schedule::worker::{Flight, Worker};
use crate::schedule::{Action, AttemptId, Operand, Place, StartReason, Tile, WorkerId};

impl Scheduler {
    /// Hands out tiles until no worker gains one.
    pub(super) fn dispatch(&mut self, now: f64, actions: &mut Vec<Action>) {
        if self.jobs.is_empty() {
            return;
        }
        self.look_ahead(now);
        let workers: Vec<WorkerId> = self.workers.keys().copied().collect();
        let hungry = self.hungry();
        let mut started = !hungry.is_empty();
        while started {
            started = false;
            for &worker in &workers {
                if self.workers.get(&worker).is_some_and(|worker| worker.has_room(now)) {
                    started |= self.give_one(worker, &hungry, now, actions);
                }
            }
        }
        // Of the remaining jobs, the first; the others follow when it has gone.
        for at in self.hungry().into_iter().take(REFUSALS_MAX) {
            if self.jobs[at].active == 0 {
                self.give_somebody(at, &workers, now, actions);
            }
        }
        for &worker in &workers {
            self.hedge(worker, now, actions);
        }
    }

    /// The first jobs with waiting tiles.
    pub(super) fn hungry(&self) -> Vec<usize> {
        let jobs = self.jobs.iter().enumerate();
        jobs.filter(|(_, job)| !job.pending.is_empty()).map(|(at, _)| at).take(JOBS_CONSIDERED).collect()
    }

    /// Gives a worker the tile that suits it best, of the first job that gains from it.
    pub(super) fn give_one(&mut self, worker: WorkerId, hungry: &[usize], now: f64, actions: &mut Vec<Action>) -> bool {
        let mut refused = 0;
        for &at in hungry {
            let local = worker.is_local();
            let barred = match self.jobs[at].spec.place {
                Place::Auto => false,
                Place::Local => !local,
                Place::Remote => local && self.has_peers(&self.jobs[at], now),
            };
            if let Some(candidate) = self.candidate(at, worker, false, now)
                && self.make_room(at, worker, &candidate, actions)
            {
                self.start(at, worker, &candidate, false, now, actions);
                return true;
            }
            refused += usize::from(!barred);
            if refused >= REFUSALS_MAX {
                break;
            }
        }
        false
    }

    /// Called if every worker leaves the job to another: the one that would finish first gets a tile of it, once there
    /// is room.
    pub(super) fn give_somebody(&mut self, at: usize, workers: &[WorkerId], now: f64, actions: &mut Vec<Action>) {
        let mut first: Option<(WorkerId, Candidate)> = None;
        for &worker in workers {
            if self.workers.get(&worker).is_some_and(|worker| worker.pause_until <= now)
                && let Some(candidate) = self.candidate(at, worker, true, now)
                && first.as_ref().is_none_or(|(_, first)| candidate.done < first.done)
            {
                first = Some((worker, candidate));
            }
        }
        if let Some((worker, candidate)) = first
            && self.workers.get(&worker).is_some_and(|worker| worker.has_room(now))
            && self.make_room(at, worker, &candidate, actions)
        {
            self.start(at, worker, &candidate, false, now, actions);
        }
    }

    /// The tile of a job that suits a worker best, if the worker should have one: always if `force`, otherwise only if
    /// it does not end later than the job would without it.
    pub(super) fn candidate(&mut self, at: usize, id: WorkerId, force: bool, now: f64) -> Option<Candidate> {
        let job = &self.jobs[at];
        let place = job.spec.place;
        if job.pending.is_empty() || (place == Place::Local && !id.is_local()) {
            return None;
        }
        let worker = self.workers.get(&id)?;
        let arithmetic = job.spec.arithmetic;
        // Nobody waits for suspects where there are other peers.
        let used_last = !self.suspects.is_empty() && self.trusted_peers(now).next().is_some();
        let mut rest_done = f64::INFINITY;
        if !force && place != Place::Local && self.workers.len() > 1 {
            // No tile is cheaper than one whose operands are at the worker.
            let bytes = job.mean_answer_bytes as u64;
            let least = worker.prospect(arithmetic, job.mean_flops, 0, bytes);
            let operand_s = worker.model.send_s(job.mean_operand_bytes as u64);
            if !id.is_local() && worker.has_enough(now, &least, operand_s * job.missing_share(id).min(1.0)) {
                return None;
            }
            if !id.is_local() && place == Place::Auto && !self.is_worth_checking(job) {
                return None;
            }
            let others = |other: &Worker| {
                other.id != id
                    && (place == Place::Auto || !other.id.is_local())
                    && !(used_last && self.suspects.contains(&other.id))
            };
            rest_done = rest_done_with(&mut self.lanes, self.workers.values(), job, job.pending.len(), others);
            let pending_before = |job: &Job| f64::from(job.pending.len()) * job.mean_flops;
            let before: f64 = self.jobs[..at].iter().map(pending_before).sum();
            if before > 0.0 {
                let rate = self.workers.values().filter(|other| others(other));
                rest_done += before / rate.map(|other| other.model.flops_per_s(arithmetic)).sum::<f64>().max(1.0);
            }
            rest_done = rest_done.max(job.expected);
            let plain = job.spec.redundancy == 1 && job.records.len() as u32 <= job.active;
            if plain && least.done >= rest_done {
                return None;
            }
        }
        let tile = self.choose(at, id, now)?;
        let job = &self.jobs[at];
        if let Some(record) = job.records.get(&tile)
            && !(record.failed.is_empty() && record.answers.is_empty() && record.active.is_empty())
        {
            // Other workers that could take this tile instead.
            let others = |other: &Worker| {
                other.id != id
                    && (place == Place::Auto || !other.id.is_local())
                    && !record.bars(other.id)
                    && !(used_last && self.suspects.contains(&other.id))
            };
            rest_done = rest_done_with(&mut self.lanes, self.workers.values(), job, job.pending.len(), others);
        }
        let candidate = self.prospect(at, id, tile)?;
        (force || candidate.done < rest_done).then_some(candidate)
    }

    /// Whether checking an answer costs this node clearly less than computing it.
    pub(super) fn is_worth_checking(&self, job: &Job) -> bool {
        let Some(local) = self.workers.get(&WorkerId::LOCAL) else {
            return true;
        };
        let bytes = 2.0 * job.mean_operand_bytes + job.mean_answer_bytes;
        let compute_s = local.model.compute_s(job.spec.arithmetic, job.mean_flops);
        bytes * self.check_byte_s.value < CHECK_SHARE_MAX * compute_s
    }

    pub(super) fn choose(&self, at: usize, id: WorkerId, now: f64) -> Option<Tile> {
        let job = &self.jobs[at];
        if !id.is_local() {
            let retries = job.spec.max_retries;
            if self.suspects.contains(&id) && self.trusted_peers(now).next().is_some() {
                // Only tiles that no other peer can have.
                let mut tiles = job.records.keys().copied().filter(|&tile| job.pending.contains(tile));
                return tiles.find(|&tile| {
                    let record = &job.records[&tile];
                    !record.bars(id) && record.failures <= retries && !self.leaves_to_others(job, tile, id, now)
                });
            }
            return job.choose_remote(id, |tile| {
                (job.records.get(&tile)).is_none_or(|record| !record.bars(id) && record.failures <= retries)
            });
        }
        if job.spec.place == Place::Remote && self.has_peers(job, now) {
            // Only tiles that no peer can have.
            let mut tiles = job.records.keys().copied().filter(|&tile| job.pending.contains(tile));
            return tiles.find(|&tile| self.may_take(at, tile, id, now));
        }
        job.choose_local(|tile| job.records.get(&tile).is_none_or(|record| !record.bars(id)))
    }

    pub(super) fn prospect(&self, at: usize, id: WorkerId, tile: Tile) -> Option<Candidate> {
        let job = &self.jobs[at];
        let worker = self.workers.get(&id)?;
        let missing_bytes = job.missing_bytes(tile, id);
        let answer_bytes = if id.is_local() { 0 } else { job.grid.tile_bytes(tile) };
        let flops = job.grid.tile_flops(tile);
        let prospect = worker.prospect(job.spec.arithmetic, flops, missing_bytes, answer_bytes);
        let check_s = if id.is_local() { 0.0 } else { check_bytes(job, tile) as f64 * self.check_byte_s.value };
        Some(Candidate { tile, missing_bytes, prospect, done: prospect.done + check_s })
    }

    /// Makes room for the operands and the answer by releasing the least recently used operands.
    pub(super) fn make_room(
        &mut self,
        at: usize,
        id: WorkerId,
        candidate: &Candidate,
        actions: &mut Vec<Action>,
    ) -> bool {
        let Some(worker) = self.workers.get_mut(&id) else {
            return false;
        };
        if id.is_local() {
            return true;
        }
        let answer_bytes = self.jobs[at].grid.tile_bytes(candidate.tile);
        if !worker.may_carry(candidate.missing_bytes + answer_bytes) {
            return false;
        }
        let answers = answer_bytes.saturating_mul(worker.flights.len() as u64 + 1);
        let room = worker.memory_bytes.saturating_sub(answers).saturating_sub(candidate.missing_bytes);
        while worker.resident_bytes > room {
            let chosen = self.jobs[at].id;
            let coldest = self.jobs.iter().filter_map(|job| {
                let uses =
                    |tile: Tile, operand| operand == Operand::Band(tile.band) || operand == Operand::Panel(tile.panel);
                let needed = |operand| {
                    (job.id == chosen && uses(candidate.tile, operand))
                        || worker.flights.iter().any(|flight| flight.job == job.id && uses(flight.tile, operand))
                };
                job.coldest(id, needed).map(|(used, operand)| (used, job.id, operand))
            });
            // An idle worker gets the tile anyway: only the worker knows whether it fits.
            let Some((_, job, operand)) = coldest.min() else {
                return worker.flights.is_empty();
            };
            if let Some(job) = self.jobs.iter_mut().find(|other| other.id == job) {
                worker.resident_bytes -= job.drop_operand(id, operand);
            }
            actions.push(Action::Release { worker: id, job, operand });
        }
        true
    }

    pub(super) fn start(
        &mut self,
        at: usize,
        id: WorkerId,
        candidate: &Candidate,
        hedge: bool,
        now: f64,
        actions: &mut Vec<Action>,
    ) {
        debug_assert!(!self.quarantined.contains(&id), "{id} is quarantined");
        let (job, Some(worker)) = (&mut self.jobs[at], self.workers.get_mut(&id)) else {
            return;
        };
        debug_assert!(worker.has_room(now), "{id} has no room");
        let Candidate { tile, missing_bytes, prospect, done } = *candidate;
        let attempt = AttemptId(self.next_attempt);
        self.next_attempt += 1;
        self.starts += 1;
        let answer_bytes = if id.is_local() { 0 } else { job.grid.tile_bytes(tile) };
        if !id.is_local() {
            for operand in [Operand::Band(tile.band), Operand::Panel(tile.panel)] {
                worker.resident_bytes += job.hold(id, operand, self.starts);
            }
        }
        let flight = Flight {
            attempt,
            job: job.id,
            tile,
            arithmetic: job.spec.arithmetic,
            flops: job.grid.tile_flops(tile),
            bytes: missing_bytes + answer_bytes,
            started: now,
            arrive: prospect.arrive,
            hash_s: prospect.hash_s,
            began: None,
            compute_s: prospect.compute_s,
            return_s: prospect.return_s,
            predicted_done: prospect.done,
            due: prospect.done,
            expected: prospect.done,
            last_moved: now,
        };
        worker.start(flight, &prospect);
        if id.is_local() {
            job.local_started(tile);
        }
        let record = job.records.entry(tile).or_default();
        debug_assert!(!record.bars(id), "{id} has had this tile");
        record.active.push((attempt, id));
        job.active += 1;
        job.expected = job.expected.max(done);
        let reason = match (hedge, record.failures + record.overloads > 0) {
            (true, _) => StartReason::Hedge,
            (false, true) => StartReason::Retry,
            (false, false) if record.active.len() + record.answers.len() > 1 => StartReason::Check,
            (false, false) => StartReason::First,
        };
        job.tasks.hedged += u32::from(reason == StartReason::Hedge);
        job.tasks.retried += u32::from(reason == StartReason::Retry);
        let best = record.best().map_or(0, |(_, agreeing)| agreeing);
        if best + record.active.len() as u32 >= job.spec.redundancy {
            job.pending.remove(tile);
        }
        self.attempts.insert(attempt, Attempt { job: job.id, tile, worker: id, checking: None });
        actions.push(Action::Start { attempt, job: job.id, tile, worker: id, reason });
    }

    /// Lets an idle worker copy the task with the latest predicted end, if the copy is done sooner.
    pub(super) fn hedge(&mut self, id: WorkerId, now: f64, actions: &mut Vec<Action>) {
        let Some(worker) = self.workers.get(&id) else {
            return;
        };
        if !worker.flights.is_empty() || !worker.has_room(now) {
            return;
        }
        for at in 0..self.jobs.len() {
            let job = &self.jobs[at];
            if !job.pending.is_empty() || job.active == 0 {
                continue;
            }
            let copies = job.spec.redundancy as usize + HEDGES_MAX;
            let room = |tile: Tile| job.records.get(&tile).is_some_and(|record| record.active.len() < copies);
            let last = (self.workers.values().flat_map(|worker| &worker.flights))
                .filter(|flight| flight.job == job.id && room(flight.tile))
                .filter(|flight| self.may_take(at, flight.tile, id, now))
                .filter(|flight| !self.leaves_to_others(job, flight.tile, id, now))
                .max_by(|x, y| x.expected.total_cmp(&y.expected).then(y.attempt.cmp(&x.attempt)));
            let Some((tile, expected)) = last.map(|flight| (flight.tile, flight.expected)) else {
                continue;
            };
            if let Some(candidate) = self.prospect(at, id, tile)
                && candidate.done + HEDGE_MARGIN * (candidate.done - now) < expected
                && self.make_room(at, id, &candidate, actions)
            {
                self.start(at, id, &candidate, true, now, actions);
                return;
            }
        }
    }
}
