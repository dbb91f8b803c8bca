//! When a tile is done: enough workers agree on its answer, or no worker is left. Also decides which workers may take a
//! tile.

use super::Scheduler;
use crate::schedule::job::{CheckedAnswer, Job};
use crate::schedule::limits::DELIVERED_KEPT;
use crate::schedule::worker::Worker;
use crate::schedule::{Action, JobId, Place, Tile, WorkerId, WorkerShare};

impl Scheduler {
    /// Accepts a tile if enough workers agree on it, or if no worker is left; otherwise records whether it waits for
    /// another start.
    pub(super) fn settle(&mut self, id: JobId, tile: Tile, now: f64, actions: &mut Vec<Action>) {
        let Some(at) = self.jobs.iter().position(|job| job.id == id) else {
            return;
        };
        let job = &mut self.jobs[at];
        let Some(record) = job.records.get(&tile) else {
            return;
        };
        let best = record.best();
        let agreeing = best.map_or(0, |(_, agreeing)| agreeing);
        let asked = record.active.len() as u32;
        let enough = agreeing >= job.spec.redundancy;
        if !enough && agreeing + asked < job.spec.redundancy {
            job.pending.insert(tile);
        } else {
            job.pending.remove(tile);
        }
        let mut live = self.workers.values().filter(|worker| worker.id.is_local() || !worker.is_given_up());
        let nobody_left = asked == 0 && !live.any(|worker| self.may_take(at, tile, worker.id, now));
        if let Some((answer, agreeing)) = best
            && (enough || nobody_left)
        {
            self.accept(at, tile, answer, agreeing, now, actions);
        }
    }

    pub(super) fn accept(
        &mut self,
        at: usize,
        tile: Tile,
        best: CheckedAnswer,
        agreeing: u32,
        now: f64,
        actions: &mut Vec<Action>,
    ) {
        let job = &mut self.jobs[at];
        let id = job.id;
        job.pending.remove(tile);
        let record = job.records.remove(&tile).unwrap_or_default();
        job.active -= record.active.len() as u32;
        job.remaining -= 1;
        let count = if best.worker.is_local() { &mut job.tasks.local } else { &mut job.tasks.remote };
        *count += 1;
        match job.shares.iter_mut().find(|share| share.worker == best.worker) {
            Some(share) => {
                share.tasks += 1;
                share.seconds += best.seconds;
            }
            None => job.shares.push(WorkerShare { worker: best.worker, tasks: 1, seconds: best.seconds }),
        }
        if !best.worker.is_local() {
            job.merged.entry(best.worker).or_default().push(tile);
        }
        actions.push(Action::Accept { attempt: best.attempt, job: id, tile, worker: best.worker, agreeing });
        for (attempt, _) in record.active {
            self.drop_attempt(attempt, actions);
        }
        let others = record.answers.iter().filter(|answer| answer.attempt != best.attempt);
        actions.extend(others.map(|answer| Action::Discard { attempt: answer.attempt }));
        if self.jobs[at].remaining == 0 {
            let mut job = self.jobs.remove(at);
            debug_assert!(job.pending.is_empty() && job.active == 0 && job.records.is_empty());
            self.forget_operands(&job);
            let peers = std::mem::take(&mut job.merged).into_keys().collect::<Vec<_>>();
            if !peers.is_empty() {
                if self.delivered.len() == DELIVERED_KEPT {
                    self.delivered.pop_front();
                }
                self.delivered.push_back((id, peers));
            }
            let report = job.report(now);
            if let Some(class) = job.class.filter(|_| report.tasks.remote > 0 && job.spec.place == Place::Auto) {
                self.offload_history.learn(class, report.predicted_seconds, report.actual_seconds);
            }
            actions.push(Action::JobFinished { job: id, report });
        }
    }

    /// Whether a worker may ever have this tile, now or later.
    pub(super) fn may_take(&self, at: usize, tile: Tile, worker: WorkerId, now: f64) -> bool {
        let job = &self.jobs[at];
        let record = job.records.get(&tile);
        let retries = record.map_or(0, |record| record.failures);
        let fit = |worker: WorkerId| {
            (worker.is_local() || retries <= job.spec.max_retries) && !record.is_some_and(|record| record.bars(worker))
        };
        let has_it =
            |peer: WorkerId| record.is_some_and(|record| record.active.iter().any(|&(_, active)| active == peer));
        let here = || {
            let mut peers = self.workers.values().filter(|worker| !worker.id.is_local());
            let can = peers.any(|peer| has_it(peer.id) || (fit(peer.id) && !peer.is_failing(now)));
            !can && (self.workers.len() > 1 || !self.has_peers(job, now))
        };
        fit(worker)
            && match job.spec.place {
                Place::Auto => true,
                Place::Local => worker.is_local(),
                Place::Remote => !worker.is_local() || here(),
            }
    }

    /// Whether a suspect leaves a tile to the other peers: they are used first.
    pub(super) fn leaves_to_others(&self, job: &Job, tile: Tile, worker: WorkerId, now: f64) -> bool {
        if !self.suspects.contains(&worker) {
            return false;
        }
        let record = job.records.get(&tile);
        let retries = record.map_or(0, |record| record.failures);
        let can = |other: WorkerId| retries <= job.spec.max_retries && !record.is_some_and(|record| record.bars(other));
        self.trusted_peers(now).any(|other| can(other.id))
    }

    /// The peers that nobody suspects and that may get tiles.
    pub(super) fn trusted_peers(&self, now: f64) -> impl Iterator<Item = &Worker> {
        let peers = self.workers.values().filter(|worker| !worker.id.is_local());
        peers.filter(move |peer| !self.suspects.contains(&peer.id) && !peer.is_failing(now))
    }

    /// Whether a job for peers has some, or waits for some.
    pub(super) fn has_peers(&self, job: &Job, now: f64) -> bool {
        let mut peers = self.workers.values().filter(|worker| !worker.id.is_local());
        peers.any(|peer| !peer.is_failing(now)) || (self.workers.len() == 1 && self.awaits_peers(job, now))
    }

    pub(super) fn awaits_peers(&self, job: &Job, now: f64) -> bool {
        self.connecting > 0 && now < job.connect_until
    }
}

#[cfg(test)]
#[path = "settle_tests.rs"]
mod tests;
