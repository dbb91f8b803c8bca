//! How a job comes in: what the scheduler is told of it, how its operands are cut, its accounts. Never starts a task.

use std::time::Instant;

use pangea_compute::{DType, Tensor};

use super::estimate::arithmetic;
use super::{Driver, Submitting};
use crate::fabric::job::{JobId, JobReply, JobRequest, Place};
use crate::fabric::open_links::OpenLink;
use crate::fabric::running::{JobData, RunningJob};
use crate::worker::executor::Side;
use pangea_control::schedule::{Event, JobSpec, Operand, ProductShape, TileGrid};

/// Grids of tensors remembered, so that products with the same operand are cut alike and find what
/// peers hold already.
const GRIDS_MAX: usize = 256;

impl Driver {
    pub(super) fn submit(&mut self, job: JobId, request: JobRequest, submitted: Instant, reply: JobReply) {
        let dtype = match pangea_compute::product_dtype(&request.a, &request.b) {
            Ok(dtype) => dtype,
            Err(error) => {
                reply.failed(crate::compute_error(error));
                return;
            }
        };
        let spec = self.spec(&request, dtype);
        self.submitting.insert(job, Submitting { request, submitted, reply, dtype });
        self.events.push_back(Event::JobSubmitted { job: pangea_control::schedule::JobId(job), spec });
    }

    /// What the scheduler is told of a job, with what peers hold of its operands already.
    pub(super) fn spec(&self, request: &JobRequest, dtype: DType) -> JobSpec {
        let (a, b) = (&request.a, &request.b);
        let shape = ProductShape {
            m: a.rows() as u64,
            k: a.cols() as u64,
            n: b.cols() as u64,
            a_element_bytes: a.dtype().size_bytes() as u64,
            b_element_bytes: b.dtype().size_bytes() as u64,
            c_element_bytes: dtype.size_bytes() as u64,
        };
        let mut spec = JobSpec::new(shape, arithmetic(a.dtype(), b.dtype()));
        spec.place = match request.place {
            Place::Auto => pangea_control::schedule::Place::Auto,
            Place::Local => pangea_control::schedule::Place::Local,
            Place::Remote => pangea_control::schedule::Place::Remote,
        };
        spec.redundancy = u32::from(request.redundancy);
        spec.priority = i32::from(request.priority);
        spec.max_retries = u32::from(request.max_retries);
        spec.deadline = request.deadline.map(|within| self.now() + within);
        spec.band_rows = self.side_of(a, Side::Left);
        spec.panel_columns = self.side_of(b, Side::Right);
        if spec.band_rows.is_some() || spec.panel_columns.is_some() {
            self.note_resident(&mut spec, request, dtype);
        }
        spec
    }

    pub(super) fn note_resident(&self, spec: &mut JobSpec, request: &JobRequest, dtype: DType) {
        let Ok(grid) = self.scheduler.plan(spec) else { return };
        spec.band_rows = Some(grid.band_rows());
        spec.panel_columns = Some(grid.panel_columns());
        let data = JobData::new(request.a.clone(), request.b.clone(), dtype, grid);
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
    }

    /// How far apart the cuts of this operand were the last time.
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
        let Some(Submitting { request, submitted, reply, dtype }) = self.submitting.remove(&job) else {
            return;
        };
        let data = JobData::new(request.a.clone(), request.b.clone(), dtype, grid);
        match RunningJob::new(data, request, submitted, reply) {
            Ok(running) => {
                running.reply.started();
                running.show_progress();
                self.jobs.insert(job, running);
            }
            Err((reply, error)) => {
                self.counters.jobs_failed += 1;
                reply.failed(error);
                self.events.push_back(Event::JobCancelled { job: pangea_control::schedule::JobId(job) });
            }
        }
    }
}
