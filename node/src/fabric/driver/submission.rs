//! How a job is submitted: its description for the scheduler, the cut of its operands, its counts. No task is started here.

use std::time::Instant;

use pangea_client::Result;
use pangea_compute::{Cut, Tensor};

use super::estimate::arithmetic;
use super::{FabricDriver, Submitting};
use crate::fabric::job::{JobId, JobReply, JobRequest, Place};
use crate::fabric::open_links::OpenLink;
use crate::fabric::running::{JobData, RunningJob};
use crate::traces::{self, child};
use crate::worker::cost::job_shape;
use crate::worker::executor::Side;
use pangea_control::schedule::{Event, JobSpec, Operand, TileGrid};

/// Maximum remembered cuts of tensors, so that jobs with the same operand are cut the same way and use
/// operands that peers have already.
const GRIDS_MAX: usize = 256;

impl FabricDriver {
    pub(super) fn submit(&mut self, job: JobId, request: JobRequest, submitted: Instant, reply: JobReply) {
        let spec = match self.spec(&request) {
            Ok(spec) => spec,
            Err(error) => {
                reply.failed(error);
                return;
            }
        };
        let planning = child!(reply.span(), "plan");
        self.submitting.insert(job, Submitting { request, submitted, reply, planning });
        self.events.push_back(Event::JobSubmitted { job: pangea_control::schedule::JobId(job), spec });
    }

    /// The scheduler's description of a job, with the operands that peers have already.
    pub(super) fn spec(&self, request: &JobRequest) -> Result<JobSpec> {
        let JobRequest { operation, a, b, .. } = request;
        let shape = job_shape(*operation, a, b).map_err(crate::compute_error)?;
        let mut spec = JobSpec::new(shape, arithmetic(*operation, a.dtype(), b.dtype()));
        spec.place = match request.place {
            Place::Auto => pangea_control::schedule::Place::Auto,
            Place::Local => pangea_control::schedule::Place::Local,
            Place::Remote => pangea_control::schedule::Place::Remote,
        };
        spec.redundancy = u32::from(request.redundancy);
        spec.priority = i32::from(request.priority);
        spec.max_retries = u32::from(request.max_retries);
        spec.deadline = request.deadline.map(|within| self.now() + within);
        match operation.cut() {
            Cut::Crossed => {
                spec.band_rows = self.side_of(a, Side::Left);
                spec.panel_columns = self.side_of(b, Side::Right);
            }
            Cut::Paired => spec.band_rows = self.side_of(a, Side::Left).or_else(|| self.side_of(b, Side::Left)),
        }
        if spec.band_rows.is_some() || spec.panel_columns.is_some() {
            self.note_resident(&mut spec, request)?;
        }
        Ok(spec)
    }

    pub(super) fn note_resident(&self, spec: &mut JobSpec, request: &JobRequest) -> Result<()> {
        let Ok(grid) = self.scheduler.plan(spec) else { return Ok(()) };
        spec.band_rows = Some(grid.band_rows());
        spec.panel_columns = Some(grid.panel_columns());
        let data = JobData::new(request, request.result()?, grid);
        let operands = (0..data.grid.bands()).map(Operand::Band).chain((0..data.grid.panels()).map(Operand::Panel));
        for operand in operands {
            let Some(digest) = data.operand(operand).ok().and_then(|part| part.known_digest()) else { continue };
            for (_, open) in self.links.iter() {
                if let OpenLink { worker: Some(worker), resident, .. } = open
                    && resident.borrow().contains(&digest)
                {
                    spec.resident.push((*worker, operand));
                }
            }
        }
        Ok(())
    }

    /// Side of the last cut of this operand.
    pub(super) fn side_of(&self, tensor: &Tensor, side: Side) -> Option<u64> {
        let key = (tensor.storage_id(), side);
        self.grids.iter().find(|(of, _)| *of == key).map(|(_, size)| *size)
    }

    pub(super) fn remember_side(&mut self, tensor: &Tensor, side: Side, size: u64) {
        let key = (tensor.storage_id(), side);
        self.grids.retain(|(of, _)| *of != key);
        if self.grids.len() >= GRIDS_MAX {
            self.grids.pop_front();
        }
        self.grids.push_back((key, size));
    }

    pub(super) fn planned(&mut self, job: JobId, grid: TileGrid) {
        let Some(Submitting { request, submitted, reply, planning }) = self.submitting.remove(&job) else {
            return;
        };
        traces::set(&planning, "pangea.bands", i64::from(grid.bands()));
        traces::set(&planning, "pangea.panels", i64::from(grid.panels()));
        drop(planning);
        let running = match request.result() {
            Ok(result) => RunningJob::new(JobData::new(&request, result, grid), request, submitted, reply),
            Err(error) => Err((reply, error)),
        };
        match running {
            Ok(running) => {
                running.reply.started(running.data.grid.bands(), running.data.grid.panels());
                running.show_progress();
                self.jobs.insert(job, running);
            }
            Err((reply, error)) => {
                reply.failed(error);
                self.events.push_back(Event::JobCancelled { job: pangea_control::schedule::JobId(job) });
            }
        }
    }
}
