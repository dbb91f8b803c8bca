//! The `Job` capability and the life of an operation: wait for the operands, reserve memory, submit, pass progress on. A
//! failure is reported both by the result and by the report.

use std::cell::RefCell;
use std::rc::Rc;

use capnp::capability::FromClientHook;
use pangea_client::exception::{from_exception, to_exception};
use pangea_client::{Error, ErrorKind, JobReport, MatmulOptions, Progress, Result, TensorInfo};
use pangea_compute::{Operation, TensorShape};
use pangea_control::jobs::{Api, Owner};
use pangea_schema::job_capnp::job;
use pangea_schema::tensor_capnp::tensor;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::Instrument;

use super::account::{Account, TensorMemory, TensorSeat};
use super::backend::{Backend, RunningJob};
use super::slot::{Fill, Slot, slot};
use super::tensor::{HeldTensor, TensorObject, Tensors, client_dtype, tensor_shape};
use crate::fabric::job::JobRequest;
use crate::traces::{self, entrance};

/// State behind a `Job` capability.
pub(super) struct JobObject<B: Backend> {
    account: Rc<Account<B>>,
    progress: watch::Receiver<Progress>,
    report: Slot<Rc<JobReport>>,
    cancel: CancellationToken,
    /// Cancels the job when its last holder drops it.
    _job: Rc<DropGuard>,
}

/// A requested product, before its operands are known.
pub(super) struct Request {
    pub(super) operation: Operation,
    pub(super) a: tensor::Client,
    pub(super) b: tensor::Client,
    pub(super) options: MatmulOptions,
}

/// Starts a job; `Overloaded` if the connection has no room for it.
pub(super) fn start<B: Backend>(
    backend: &B,
    account: &Rc<Account<B>>,
    tensors: &Rc<RefCell<Tensors<B>>>,
    request: Request,
) -> Result<(JobObject<B>, TensorObject<B>)> {
    let job_seat = account.job()?;
    let seat: Rc<TensorSeat<B>> = Rc::new(account.seat()?);
    let (fill_info, info) = slot();
    let (fill_value, value) = slot();
    let (fill_report, report) = slot();
    let (progress_sender, progress) = watch::channel(Progress::default());
    let cancel = CancellationToken::new();
    let guard = Rc::new(cancel.clone().drop_guard());

    let run =
        Run { backend: backend.clone(), account: account.clone(), tensors: tensors.clone(), progress: progress_sender };
    let cancelled = cancel.clone();
    let method = request.operation.result_name();
    let span = entrance!("rpc", otel.kind = "server", rpc.system.name = "capnproto", rpc.method = method);
    let ended = span.clone();
    let running = async move {
        let outcome = tokio::select! {
            biased;
            () = cancelled.cancelled() => {
                Err(Error::new(ErrorKind::Cancelled, "the job was cancelled"))
            }
            outcome = run.compute(request, fill_info) => outcome,
        };
        // The place is released before the result is published, so that the caller can start the next job.
        drop(job_seat);
        match outcome {
            Ok((held, job_report)) => {
                fill_value.fill(Ok(Rc::new(held)));
                fill_report.fill(Ok(Rc::new(job_report)));
            }
            Err(error) => {
                fill_value.fill(Err(error.clone()));
                fill_report.fill(Err(error));
            }
        }
        traces::end(&ended);
    };
    tokio::task::spawn_local(running.instrument(span));

    let job = JobObject { account: account.clone(), progress, report, cancel, _job: guard.clone() };
    let result = TensorObject { account: account.clone(), info, value, _seat: seat, _job: Some(guard) };
    Ok((job, result))
}

/// One job from request to result.
struct Run<B: Backend> {
    backend: B,
    account: Rc<Account<B>>,
    tensors: Rc<RefCell<Tensors<B>>>,
    progress: watch::Sender<Progress>,
}

/// A job whose shapes are known, before it is computed.
struct Prepared<B: Backend> {
    a: TensorObject<B>,
    b: TensorObject<B>,
    info: TensorInfo,
    holding: TensorMemory<B>,
}

impl<B: Backend> Run<B> {
    async fn compute(&self, request: Request, fill_info: Fill<TensorInfo>) -> Result<(HeldTensor<B>, JobReport)> {
        let prepared = self.prepare(&request).await;
        fill_info.fill(match &prepared {
            Ok(prepared) => Ok(prepared.info),
            Err(error) => Err(error.clone()),
        });
        let Prepared { a, b, info: _, holding } = prepared?;

        let (a, b) = (a.value.wait().await?, b.value.wait().await?);
        let MatmulOptions { place, verify, priority, deadline, redundancy, max_retries } = request.options;
        let RunningJob { mut progress, mut outcome, cancel: _cancel } = self.backend.submit(JobRequest {
            operation: request.operation,
            a: a.tensor.clone(),
            b: b.tensor.clone(),
            place,
            verify,
            priority,
            deadline,
            redundancy,
            max_retries,
            owner: Owner::of(Api::Rpc),
        })?;
        let mut progressing = true;
        let outcome = loop {
            tokio::select! {
                biased;
                outcome = &mut outcome => break outcome,
                changed = progress.changed(), if progressing => {
                    progressing = changed.is_ok();
                    self.progress.send_replace(*progress.borrow_and_update());
                }
            }
        };
        self.progress.send_replace(*progress.borrow());
        let outcome =
            outcome.unwrap_or_else(|_| Err(Error::new(ErrorKind::Unavailable, "the node is shutting down")))?;
        Ok((HeldTensor { tensor: outcome.result, _holding: holding }, outcome.report))
    }

    /// Waits until the operands' shapes are known and reserves memory for the result.
    async fn prepare(&self, request: &Request) -> Result<Prepared<B>> {
        let a = self.operand("A", &request.a).await?;
        let b = self.operand("B", &request.b).await?;
        let (a_info, b_info) = (a.info.wait().await?, b.info.wait().await?);
        let result = request.operation.gives(tensor_shape(a_info)?, tensor_shape(b_info)?);
        let TensorShape { dtype, rows, cols } = result.map_err(crate::compute_error)?;
        let info = TensorInfo { dtype: client_dtype(dtype), rows: rows as u64, cols: cols as u64 };
        // Reserved before the size is published, so that a result without room fails at once.
        let holding = self.account.hold(info.size_bytes()?)?;
        Ok(Prepared { a, b, info, holding })
    }

    /// Resolves `capability` to a tensor of this connection. If the upload or call behind it failed,
    /// that error is returned.
    async fn operand(&self, name: &str, capability: &tensor::Client) -> Result<TensorObject<B>> {
        let mut hook = capability.as_client_hook().add_ref();
        loop {
            while let Some(resolved) = hook.get_resolved() {
                hook = resolved;
            }
            let candidate: tensor::Client = FromClientHook::new(hook.add_ref());
            let object = self.tensors.borrow().get_local_server_of_resolved(&candidate);
            if let Some(object) = object {
                return Ok(TensorObject::clone(&object));
            }
            let Some(resolving) = hook.when_more_resolved() else {
                let message = format!("{name} is not a tensor of this connection; upload it here first");
                return Err(Error::new(ErrorKind::InvalidInput, message));
            };
            hook = resolving.await.map_err(|exception| {
                let error = from_exception(&exception);
                Error::new(error.kind(), format!("{name}: {}", error.message()))
            })?;
        }
    }
}

impl<B: Backend> job::Server for JobObject<B> {
    async fn progress(self: Rc<Self>, _: job::ProgressParams, mut results: job::ProgressResults) -> capnp::Result<()> {
        let progress = *self.progress.borrow();
        progress.to_wire(results.get().init_progress());
        Ok(())
    }

    async fn watch(self: Rc<Self>, params: job::WatchParams, _: job::WatchResults) -> capnp::Result<()> {
        let _call = self.account.call().map_err(|error| to_exception(&error))?;
        let sink = params.get()?.get_sink()?;
        let mut progress = self.progress.clone();
        loop {
            let mut request = sink.update_request();
            progress.borrow_and_update().to_wire(request.get().init_progress());
            request.send().await?;
            // The sender is dropped when the job ends.
            if progress.changed().await.is_err() {
                return Ok(());
            }
        }
    }

    async fn cancel(self: Rc<Self>, _: job::CancelParams, _: job::CancelResults) -> capnp::Result<()> {
        self.cancel.cancel();
        Ok(())
    }

    async fn report(self: Rc<Self>, _: job::ReportParams, mut results: job::ReportResults) -> capnp::Result<()> {
        let _call = self.account.call().map_err(|error| to_exception(&error))?;
        let report = self.report.wait().await.map_err(|error| to_exception(&error))?;
        report.to_wire(results.get().init_report());
        Ok(())
    }
}
