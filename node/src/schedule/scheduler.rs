//! The scheduler: `handle(event, now)` pushes actions. Everything that it knows comes from events.
//! Never reads a clock, never blocks, never sees a byte of a tensor.

use super::{
    Accuracy, Action, Arithmetic, CostModel, Event, JobSpec, PlanError, TileGrid, Time,
    WorkerEstimate, WorkerId,
};
use std::collections::BTreeMap;

/// What is believed about one worker.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WorkerReport {
    /// Believed rates, indexed by [`Arithmetic`].
    pub flops_per_s: [f64; Arithmetic::COUNT],
    /// Believed bytes a second to it.
    pub send_bytes_per_s: f64,
    /// Believed bytes a second from it.
    pub receive_bytes_per_s: f64,
    /// How well predictions have held.
    pub accuracy: Accuracy,
    /// Attempts in flight.
    pub in_flight: usize,
    /// Attempts accepted so far.
    pub accepted: u64,
}

/// Decides for all jobs of this node which worker computes which tile when.
#[derive(Debug)]
pub struct Scheduler {
    workers: BTreeMap<WorkerId, CostModel>,
}

impl Scheduler {
    /// A scheduler that knows this node only.
    pub fn new(local: WorkerEstimate) -> Self {
        Self {
            workers: BTreeMap::from([(WorkerId::LOCAL, CostModel::new(&local))]),
        }
    }

    /// Takes in one event at a time that never goes back, and pushes what is to be done, in order.
    pub fn handle(&mut self, event: Event, now: Time, actions: &mut Vec<Action>) {
        let _ = (event, now, actions, &self.workers);
    }

    /// How a job would be cut now. Submitted with these sides fixed, it will be cut so.
    ///
    /// # Errors
    /// [`PlanError`] if it cannot be cut.
    pub fn plan(&self, spec: &JobSpec) -> Result<TileGrid, PlanError> {
        TileGrid::cut(
            spec.shape,
            spec.arithmetic,
            &[],
            spec.band_rows,
            spec.panel_columns,
        )
    }
}
