//! Predicts when workers finish what is left of a job. Nothing is decided here.

use super::{Lane, Scheduler};
use crate::schedule::job::Job;
use crate::schedule::worker::Worker;
use crate::schedule::{Arithmetic, Operand, Place, Tile, WorkerEstimate};

impl Scheduler {
    pub(super) fn look_ahead(&mut self, now: f64) {
        self.jobs.iter_mut().for_each(|job| job.expected = now);
        for worker in self.workers.values_mut() {
            worker.look_ahead(now);
            for flight in &worker.flights {
                if let Some(job) = self.jobs.iter_mut().find(|job| job.id == flight.job) {
                    job.expected = job.expected.max(flight.expected);
                }
            }
        }
    }

    /// Predicted time at which some of the workers finish this many tiles of a job, including the transfer of operands.
    pub(super) fn rest_done(&mut self, job: &Job, tiles: u32, among: impl Fn(&Worker) -> bool) -> f64 {
        let place = job.spec.place;
        let fits = |worker: &Worker| match place {
            Place::Auto => true,
            Place::Local => worker.id.is_local(),
            Place::Remote => !worker.id.is_local(),
        };
        rest_done_with(&mut self.lanes, self.workers.values(), job, tiles, |worker| fits(worker) && among(worker))
    }
}

/// Predicted time at which these workers finish this many tiles: each tile goes to the worker that is done with it first.
pub(super) fn rest_done_with<'a>(
    lanes: &mut Vec<Lane>,
    workers: impl Iterator<Item = &'a Worker>,
    job: &Job,
    tiles: u32,
    among: impl Fn(&Worker) -> bool,
) -> f64 {
    lanes.clear();
    lanes.extend(workers.filter(|worker| among(worker)).map(|worker| lane(worker, job)));
    if lanes.is_empty() {
        return f64::INFINITY;
    }
    let mut done = 0.0f64;
    if tiles as usize <= 4 * lanes.len() {
        for _ in 0..tiles {
            let ends = |lane: &Lane| lane.free + lane.tile_s;
            if let Some(first) = lanes.iter_mut().min_by(|x, y| ends(x).total_cmp(&ends(y))) {
                first.free += first.tile_s;
                done = done.max(first.free);
            }
        }
        return done;
    }
    // Many tiles: treated as divisible among the workers that are free before the end.
    loop {
        let rate: f64 = lanes.iter().map(|lane| 1.0 / lane.tile_s).sum();
        let head_start: f64 = lanes.iter().map(|lane| lane.free / lane.tile_s).sum();
        done = (f64::from(tiles) + head_start) / rate;
        let before = lanes.len();
        lanes.retain(|lane| lane.free < done);
        if lanes.len() == before || lanes.is_empty() {
            return done;
        }
    }
}

pub(super) fn lane(worker: &Worker, job: &Job) -> Lane {
    let compute_s = worker.model.compute_s(job.spec.arithmetic, job.mean_flops);
    if worker.id.is_local() {
        return Lane { free: worker.backlog.computed.max(worker.pause_until), tile_s: compute_s.max(1e-9) };
    }
    let lacks = job.missing_share(worker.id);
    let operand_s = worker.model.send_s(job.mean_operand_bytes as u64);
    let return_s = worker.model.receive_s(job.mean_answer_bytes as u64);
    // A worker with s bands and s panels of a product needs one more operand per s tiles.
    let shares = job.grid.shape().shares_operands();
    let side = if shares { f64::from(job.pending.len()).sqrt().max(1.0) } else { 1.0 };
    let tile_s = compute_s.max(return_s).max(2.0 * lacks * operand_s / side).max(1e-9);
    let first_s = if lacks == 1.0 { 2.0 * operand_s } else { 0.0 };
    let free = worker.backlog.computed.max(worker.backlog.sent + first_s).max(worker.pause_until);
    Lane { free: free + worker.model.rtt_s + return_s, tile_s }
}

/// Bytes that a check processes: both operands and the answer.
pub(super) fn check_bytes(job: &Job, tile: Tile) -> u64 {
    let operands =
        job.grid.operand_bytes(Operand::Band(tile.band)) + job.grid.operand_bytes(Operand::Panel(tile.panel));
    operands + job.grid.tile_bytes(tile)
}

/// An estimate with the learned values.
pub(super) fn believed(worker: &Worker) -> WorkerEstimate {
    let model = &worker.model;
    WorkerEstimate {
        flops_per_s: Arithmetic::ALL.map(|arithmetic| model.flops_per_s(arithmetic)),
        send_bytes_per_s: model.send_bytes_per_s(),
        receive_bytes_per_s: model.receive_bytes_per_s(),
        rtt_s: model.rtt_s,
        overhead_s: model.overhead_s,
        memory_bytes: worker.memory_bytes,
        max_in_flight: worker.max_in_flight,
        busy_s: 0.0,
    }
}
