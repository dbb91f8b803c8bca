//! Computes products for a command: on a node over its Cap'n Proto service, or on a fabric in this process, with the
//! same calls. Dropping the returned values ends the work and releases its memory.

use std::ops::Range;

use pangea_client::{Client, Error, ErrorKind, JobReport, MatmulOptions, Progress};
use pangea_compute::{DType, Operation, Tensor};
use pangea_control::jobs::{Api, Owner};

use super::failure::Failure;
use super::matrix::Operand;
use super::product_file::{Incoming, ProductFile};
use crate::devices::Lease;
use crate::fabric::{Fabric, Job, JobRequest};
use crate::runtime::Runtime;

/// Where products are computed.
pub(super) enum Multiplier {
    /// On a node.
    Node(Client),
    /// In this process.
    Local(Box<Runtime>),
}

/// A loaded matrix.
pub(super) enum LoadedMatrix {
    /// On the node.
    Node(pangea_client::Tensor),
    /// In this process, with its lease of memory.
    Local { tensor: Tensor, _memory: Lease },
}

/// A running product.
pub(super) enum RunningProduct {
    /// On the node.
    Node { job: pangea_client::Job, product: pangea_client::Tensor },
    /// In this process, with the lease of the product's memory.
    Local { job: Job, memory: Lease },
}

impl Multiplier {
    /// Bytes free for tensors.
    pub(super) async fn free_bytes(&self) -> Result<u64, Failure> {
        let status = match self {
            Multiplier::Node(client) => client.status().await?,
            Multiplier::Local(runtime) => runtime.fabric().status().await?,
        };
        Ok(status.memory_limit_bytes.saturating_sub(status.memory_used_bytes))
    }

    /// Loads a block of an operand; `on_bytes` receives the number of bytes loaded so far.
    pub(super) async fn put(
        &self,
        operand: &Operand,
        rows: Range<usize>,
        cols: Range<usize>,
        on_bytes: &mut dyn FnMut(u64),
    ) -> Result<LoadedMatrix, Failure> {
        match self {
            Multiplier::Node(client) => {
                Ok(LoadedMatrix::Node(client.upload(&mut operand.upload(rows, cols, on_bytes)).await?))
            }
            Multiplier::Local(runtime) => {
                let whole = rows.len() == operand.rows() && cols.len() == operand.cols();
                let bytes = rows.len() as u64 * cols.len() as u64 * operand.dtype().size_bytes() as u64;
                let memory = runtime.fabric().lease(bytes)?;
                let tensor = if whole { operand.whole().await? } else { operand.block(rows, cols).await? };
                on_bytes(bytes);
                Ok(LoadedMatrix::Local { tensor, _memory: memory })
            }
        }
    }

    /// Starts the product of two loaded matrices.
    pub(super) fn start(
        &self,
        a: &LoadedMatrix,
        b: &LoadedMatrix,
        options: &MatmulOptions,
    ) -> Result<RunningProduct, Failure> {
        match (self, a, b) {
            (Multiplier::Node(client), LoadedMatrix::Node(a), LoadedMatrix::Node(b)) => {
                let (job, product) = client.matmul(a, b, options);
                Ok(RunningProduct::Node { job, product })
            }
            (
                Multiplier::Local(runtime),
                LoadedMatrix::Local { tensor: a, .. },
                LoadedMatrix::Local { tensor: b, .. },
            ) => start_local(&runtime.fabric(), a, b, options),
            _ => Err(Failure::failed("the operands are not where the product is computed")),
        }
    }
}

fn start_local(fabric: &Fabric, a: &Tensor, b: &Tensor, options: &MatmulOptions) -> Result<RunningProduct, Failure> {
    let MatmulOptions { place, verify, priority, deadline, redundancy, max_retries } = options.clone();
    let (a, b, owner) = (a.clone(), b.clone(), Owner::of(Api::Node));
    let dtype = DType::product(a.dtype(), b.dtype())?;
    let memory = fabric.lease(a.rows() as u64 * b.cols() as u64 * dtype.size_bytes() as u64)?;
    let operation = Operation::Matmul;
    let request = JobRequest { operation, a, b, place, verify, priority, deadline, redundancy, max_retries, owner };
    let job = fabric.submit(request)?;
    Ok(RunningProduct::Local { job, memory })
}

impl RunningProduct {
    /// Waits for the product; `on_progress` receives the progress.
    pub(super) async fn finish(
        self,
        on_progress: &mut dyn FnMut(Progress),
    ) -> Result<(LoadedMatrix, JobReport), Failure> {
        match self {
            RunningProduct::Node { job, product } => {
                job.watch(on_progress).await?;
                let report = job.report().await?;
                Ok((LoadedMatrix::Node(product), report))
            }
            RunningProduct::Local { mut job, memory } => {
                let outcome = loop {
                    tokio::select! {
                        biased;
                        outcome = &mut job.outcome => break outcome,
                        Ok(()) = job.progress.changed() => on_progress(*job.progress.borrow_and_update()),
                    }
                };
                let gone = || Error::new(ErrorKind::Internal, "the local fabric ended");
                let outcome = outcome.map_err(|_| gone())??;
                Ok((LoadedMatrix::Local { tensor: outcome.result, _memory: memory }, outcome.report))
            }
        }
    }
}

impl LoadedMatrix {
    /// Writes the matrix to `file` as a block of `cols` columns whose first element is at `at`.
    pub(super) async fn write_to(
        &self,
        file: &mut ProductFile,
        dtype: DType,
        at: (usize, usize),
        cols: usize,
        on_bytes: &mut dyn FnMut(u64),
    ) -> Result<(), Failure> {
        match self {
            LoadedMatrix::Node(tensor) => {
                let mut incoming = Incoming::new(file, dtype, at, cols, on_bytes);
                tensor.read_into(&mut incoming).await?;
                incoming.flush()
            }
            LoadedMatrix::Local { tensor, .. } => {
                // Piece by piece, so that Ctrl-C is handled in between.
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
