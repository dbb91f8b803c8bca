//! What multiplies for a command: a node over its Cap'n Proto service, or a fabric of this process. The same calls for
//! both; dropping what they return ends the work and frees what it held.

use std::ops::Range;

use pangea_client::{Client, Error, ErrorKind, JobReport, MatmulOptions, Progress};
use pangea_compute::{DType, Tensor};

use super::failure::Failure;
use super::matrix::Operand;
use super::product_file::{Incoming, ProductFile};
use crate::fabric::{Fabric, Job, JobRequest};
use crate::runtime::Runtime;
use crate::worker::budget::Reservation;

/// What multiplies.
pub(super) enum Engine {
    /// A node.
    Node(Client),
    /// This process.
    Here(Box<Runtime>),
}

/// A matrix that the engine has.
pub(super) enum Held {
    /// At the node.
    Node(pangea_client::Tensor),
    /// Here, with its share of the memory.
    Here { tensor: Tensor, _memory: Reservation },
}

/// A product under way.
pub(super) enum Running {
    /// At the node.
    Node { job: pangea_client::Job, product: pangea_client::Tensor },
    /// Here, with the memory that the product will take.
    Here { job: Job, memory: Reservation },
}

impl Engine {
    /// Bytes of tensors that fit now.
    pub(super) async fn free_bytes(&self) -> Result<u64, Failure> {
        let status = match self {
            Engine::Node(client) => client.status().await?,
            Engine::Here(runtime) => runtime.fabric().status().await?,
        };
        Ok(status.memory_limit_bytes.saturating_sub(status.memory_used_bytes))
    }

    /// Brings a block of an operand there; `on_bytes` hears how much of it is.
    pub(super) async fn put(
        &self,
        operand: &Operand,
        rows: Range<usize>,
        cols: Range<usize>,
        on_bytes: &mut dyn FnMut(u64),
    ) -> Result<Held, Failure> {
        match self {
            Engine::Node(client) => Ok(Held::Node(client.upload(&mut operand.upload(rows, cols, on_bytes)).await?)),
            Engine::Here(runtime) => {
                let whole = rows.len() == operand.rows() && cols.len() == operand.cols();
                let bytes = rows.len() as u64 * cols.len() as u64 * operand.dtype().size_bytes() as u64;
                let memory = runtime.fabric().reserve(bytes)?;
                let tensor = if whole { operand.whole().await? } else { operand.block(rows, cols).await? };
                on_bytes(bytes);
                Ok(Held::Here { tensor, _memory: memory })
            }
        }
    }

    /// Starts a product of two matrices that are there.
    pub(super) fn start(&self, a: &Held, b: &Held, options: &MatmulOptions) -> Result<Running, Failure> {
        match (self, a, b) {
            (Engine::Node(client), Held::Node(a), Held::Node(b)) => {
                let (job, product) = client.matmul(a, b, options);
                Ok(Running::Node { job, product })
            }
            (Engine::Here(runtime), Held::Here { tensor: a, .. }, Held::Here { tensor: b, .. }) => {
                start_here(&runtime.fabric(), a, b, options)
            }
            _ => Err(Failure::failed("the operands are with another engine")),
        }
    }
}

fn start_here(fabric: &Fabric, a: &Tensor, b: &Tensor, options: &MatmulOptions) -> Result<Running, Failure> {
    let MatmulOptions { place, verify, priority, deadline, redundancy, max_retries } = options.clone();
    let (a, b) = (a.clone(), b.clone());
    let dtype = DType::product(a.dtype(), b.dtype())?;
    let memory = fabric.reserve(a.rows() as u64 * b.cols() as u64 * dtype.size_bytes() as u64)?;
    let job = fabric.submit(JobRequest { a, b, place, verify, priority, deadline, redundancy, max_retries })?;
    Ok(Running::Here { job, memory })
}

impl Running {
    /// Waits for the product; `on_progress` hears how far it is.
    pub(super) async fn finish(self, on_progress: &mut dyn FnMut(Progress)) -> Result<(Held, JobReport), Failure> {
        match self {
            Running::Node { job, product } => {
                job.watch(on_progress).await?;
                let report = job.report().await?;
                Ok((Held::Node(product), report))
            }
            Running::Here { mut job, memory } => {
                let outcome = loop {
                    tokio::select! {
                        biased;
                        outcome = &mut job.outcome => break outcome,
                        Ok(()) = job.progress.changed() => on_progress(*job.progress.borrow_and_update()),
                    }
                };
                let gone = || Error::new(ErrorKind::Internal, "the local fabric ended");
                let outcome = outcome.map_err(|_| gone())??;
                Ok((Held::Here { tensor: outcome.product, _memory: memory }, outcome.report))
            }
        }
    }
}

impl Held {
    /// Writes it to `file` as the block whose first element is at `at` and that has `cols` columns.
    pub(super) async fn write_to(
        &self,
        file: &mut ProductFile,
        dtype: DType,
        at: (usize, usize),
        cols: usize,
        on_bytes: &mut dyn FnMut(u64),
    ) -> Result<(), Failure> {
        match self {
            Held::Node(tensor) => {
                let mut incoming = Incoming::new(file, dtype, at, cols, on_bytes);
                tensor.read_into(&mut incoming).await?;
                incoming.flush()
            }
            Held::Here { tensor, .. } => {
                // Piece by piece, so that a person who has had enough is heard.
                let step = ((4 << 20) / (cols * dtype.size_bytes()).max(1)).max(1);
                for row in (0..tensor.rows()).step_by(step) {
                    let end = tensor.rows().min(row + step);
                    file.write_block(at.0 + row, at.1, &tensor.slice(row..end, 0..cols)?)?;
                    on_bytes((end * cols * dtype.size_bytes()) as u64);
                    tokio::task::yield_now().await;
                }
                Ok(())
            }
        }
    }
}
