//! One running job: its operands, its grid, the partial result, its counts.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use pangea_client::{Error, Result};
use pangea_compute::{Digest, Operation, Tensor, TensorBuf, TensorShape};
use tokio::sync::OnceCell;

use super::checker::PanelProbe;
use super::job::{JobReply, JobRequest, Progress, Rejection};
use pangea_control::schedule::{Operand, Tile, TileGrid};

/// The operands of a job and facts about them; shared with the feeders.
pub(crate) struct JobData {
    pub(crate) operation: Operation,
    pub(crate) a: Tensor,
    pub(crate) b: Tensor,
    pub(crate) result: TensorShape,
    pub(crate) grid: TileGrid,
    /// Digests, computed on first use, once for all peers.
    digests: RefCell<HashMap<Operand, std::rc::Rc<OnceCell<Digest>>>>,
    probes: RefCell<HashMap<u32, Arc<PanelProbe>>>,
    pub(crate) bytes_sent: Cell<u64>,
}

impl JobData {
    pub(crate) fn new(request: &JobRequest, result: TensorShape, grid: TileGrid) -> JobData {
        JobData {
            operation: request.operation,
            a: request.a.clone(),
            b: request.b.clone(),
            result,
            grid,
            digests: RefCell::default(),
            probes: RefCell::default(),
            bytes_sent: Cell::new(0),
        }
    }

    /// A band of A or a panel of B, without a copy.
    pub(crate) fn operand(&self, operand: Operand) -> Result<Tensor> {
        let (rows, columns) = self.grid.part(operand);
        let whole = match operand {
            Operand::Band(_) => &self.a,
            Operand::Panel(_) => &self.b,
        };
        whole.slice(as_usize(rows), as_usize(columns)).map_err(crate::compute_error)
    }

    /// The cell of an operand's digest.
    pub(crate) fn digest_cell(&self, operand: Operand) -> std::rc::Rc<OnceCell<Digest>> {
        std::rc::Rc::clone(self.digests.borrow_mut().entry(operand).or_default())
    }

    /// The operands with this digest, among those that were hashed.
    pub(crate) fn operands_of(&self, digest: &Digest) -> Vec<Operand> {
        let digests = self.digests.borrow();
        digests.iter().filter(|(_, cell)| cell.get() == Some(digest)).map(|(operand, _)| *operand).collect()
    }

    /// The probe that checks tiles of one panel.
    pub(crate) fn probe(&self, panel: u32) -> Arc<PanelProbe> {
        Arc::clone(self.probes.borrow_mut().entry(panel).or_insert_with(|| Arc::new(PanelProbe::default())))
    }

    /// Whether the result has the same bits on every node.
    pub(crate) fn is_exact(&self) -> bool {
        self.operation.is_exact(self.result.dtype)
    }

    /// Whether one task is the whole job.
    pub(crate) fn is_one_tile(&self) -> bool {
        self.grid.tiles() == 1
    }
}

/// A running job.
pub(crate) struct RunningJob {
    pub(crate) data: std::rc::Rc<JobData>,
    pub(crate) request: JobRequest,
    pub(crate) submitted: Instant,
    pub(crate) reply: JobReply,
    result: ResultParts,
    pub(crate) bytes_received: u64,
    pub(crate) check_seconds: f64,
    pub(crate) rejected: Vec<Rejection>,
    pub(crate) tasks_done: u32,
    /// Name of the method that checked its results.
    pub(crate) method: &'static str,
    /// Why this node cannot compute a part of the job.
    pub(crate) refusal: Option<Error>,
}

enum ResultParts {
    /// The result is merged from tiles.
    Buffer(Option<TensorBuf>),
    /// The only tile is the result.
    Whole(Option<Tensor>),
}

impl RunningJob {
    pub(crate) fn new(
        data: JobData,
        request: JobRequest,
        submitted: Instant,
        reply: JobReply,
    ) -> std::result::Result<RunningJob, (JobReply, Error)> {
        let result = if data.is_one_tile() {
            ResultParts::Whole(None)
        } else {
            let TensorShape { dtype, rows, cols } = data.result;
            match TensorBuf::new(dtype, rows, cols) {
                Ok(buffer) => ResultParts::Buffer(Some(buffer)),
                Err(error) => return Err((reply, crate::compute_error(error))),
            }
        };
        Ok(RunningJob {
            data: std::rc::Rc::new(data),
            request,
            submitted,
            reply,
            result,
            bytes_received: 0,
            check_seconds: 0.0,
            rejected: Vec::new(),
            tasks_done: 0,
            method: "none",
            refusal: None,
        })
    }

    /// Copies an accepted tile to its place in the result.
    pub(crate) fn merge(&mut self, tile: Tile, part: Tensor) {
        self.tasks_done += 1;
        match &mut self.result {
            ResultParts::Whole(whole) => *whole = Some(part),
            ResultParts::Buffer(Some(buffer)) => {
                let (rows, columns) = self.data.grid.place(tile);
                let written = buffer.write_block(rows.start as usize, columns.start as usize, &part);
                debug_assert!(written.is_ok(), "a tile has the dtype and the place that the grid gives it");
            }
            ResultParts::Buffer(None) => {}
        }
    }

    /// The complete result; `None` while parts are missing.
    pub(crate) fn whole(&mut self) -> Option<Tensor> {
        match &mut self.result {
            ResultParts::Whole(whole) => whole.take(),
            ResultParts::Buffer(buffer) => buffer.take().map(TensorBuf::freeze),
        }
    }

    /// Publishes the progress.
    pub(crate) fn show_progress(&self) {
        self.reply.progress(Progress {
            tasks_done: self.tasks_done,
            tasks_total: self.data.grid.tiles(),
            bytes_sent: self.data.bytes_sent.get(),
            bytes_received: self.bytes_received,
        });
    }
}

fn as_usize(range: Range<u64>) -> Range<usize> {
    range.start as usize..range.end as usize
}
