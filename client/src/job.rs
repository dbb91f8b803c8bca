//! Operations that a node computes: options, progress, cancelling, report.

use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use capnp_rpc::new_client;
use pangea_schema::job_capnp::{self, job, matmul_options, progress, progress_sink};
use serde::Serialize;
use tokio::sync::mpsc;

use crate::connection::{Connection, milliseconds};
use crate::exception::from_exception;
use crate::report::JobReport;
use crate::{Error, ErrorKind, Result};

/// Where the tasks of a job may run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// On the nodes where the cost model predicts the earliest end.
    #[default]
    Auto,
    /// On the accepting node only.
    Local,
    /// On peers; on the accepting node only where no admitted peer can compute.
    Remote,
}

impl Place {
    /// The place of that name (`auto`, `local`, `remote`); `InvalidInput` where there is none.
    pub fn from_name(name: &str) -> Result<Place> {
        match name {
            "auto" => Ok(Place::Auto),
            "local" => Ok(Place::Local),
            "remote" => Ok(Place::Remote),
            _ => Err(Error::new(
                ErrorKind::InvalidInput,
                format!("place {name} does not exist; use auto, local or remote"),
            )),
        }
    }
}

/// How results are checked before they count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VerifyPolicy {
    /// Every tile from a peer is checked as DESIGN §6 says.
    #[default]
    Standard,
    /// As `Standard`, and the whole result is checked again at the end, local tiles included.
    Full,
}

/// How an operation is computed and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MatmulOptions {
    /// Where the tasks may run.
    pub place: Place,
    /// How results are checked.
    pub verify: VerifyPolicy,
    /// Tasks of higher priority start first; 0 is ordinary.
    pub priority: i8,
    /// Time from the arrival of the operands after which the job fails with `DeadlineExceeded`.
    pub deadline: Option<Duration>,
    /// Different workers that compute each task; 1 is ordinary.
    pub redundancy: u8,
    /// Retries of a failed task before the accepting node computes it.
    pub max_retries: u8,
}

impl Default for MatmulOptions {
    fn default() -> MatmulOptions {
        MatmulOptions {
            place: Place::default(),
            verify: VerifyPolicy::default(),
            priority: 0,
            deadline: None,
            redundancy: 1,
            max_retries: 3,
        }
    }
}

impl MatmulOptions {
    /// Reads the wire form.
    pub fn from_wire(wire: matmul_options::Reader<'_>) -> capnp::Result<MatmulOptions> {
        Ok(MatmulOptions {
            place: match wire.get_place()? {
                job_capnp::Place::Auto => Place::Auto,
                job_capnp::Place::Local => Place::Local,
                job_capnp::Place::Remote => Place::Remote,
            },
            verify: match wire.get_verify()? {
                job_capnp::Verify::Standard => VerifyPolicy::Standard,
                job_capnp::Verify::Full => VerifyPolicy::Full,
            },
            priority: wire.get_priority(),
            deadline: match wire.get_deadline_ms() {
                0 => None,
                milliseconds => Some(Duration::from_millis(milliseconds)),
            },
            redundancy: wire.get_redundancy(),
            max_retries: wire.get_max_retries(),
        })
    }

    /// Writes the wire form.
    pub fn to_wire(&self, mut wire: matmul_options::Builder<'_>) {
        wire.set_place(match self.place {
            Place::Auto => job_capnp::Place::Auto,
            Place::Local => job_capnp::Place::Local,
            Place::Remote => job_capnp::Place::Remote,
        });
        wire.set_verify(match self.verify {
            VerifyPolicy::Standard => job_capnp::Verify::Standard,
            VerifyPolicy::Full => job_capnp::Verify::Full,
        });
        wire.set_priority(self.priority);
        wire.set_deadline_ms(self.deadline.map_or(0, milliseconds));
        wire.set_redundancy(self.redundancy);
        wire.set_max_retries(self.max_retries);
    }
}

/// Progress of a job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// Tasks whose results are accepted and merged.
    pub tasks_done: u32,
    /// All tasks of the job; 0 until the job is planned.
    pub tasks_total: u32,
    /// Tensor bytes sent to peers for this job.
    pub bytes_sent: u64,
    /// Tensor bytes received from peers for this job.
    pub bytes_received: u64,
}

impl Progress {
    /// Reads the wire form.
    pub fn from_wire(wire: progress::Reader<'_>) -> Progress {
        Progress {
            tasks_done: wire.get_tasks_done(),
            tasks_total: wire.get_tasks_total(),
            bytes_sent: wire.get_bytes_sent(),
            bytes_received: wire.get_bytes_received(),
        }
    }

    /// Writes the wire form.
    pub fn to_wire(self, mut wire: progress::Builder<'_>) {
        wire.set_tasks_done(self.tasks_done);
        wire.set_tasks_total(self.tasks_total);
        wire.set_bytes_sent(self.bytes_sent);
        wire.set_bytes_received(self.bytes_received);
    }
}

/// A running operation. The job is cancelled once this value and the result's tensor are both dropped.
#[derive(Clone)]
pub struct Job {
    capability: job::Client,
    /// Keeps the connection open for the life of this value.
    _connection: Rc<Connection>,
}

impl Job {
    pub(crate) fn new(capability: job::Client, connection: Rc<Connection>) -> Job {
        Job { capability, _connection: connection }
    }

    /// The latest progress.
    pub async fn progress(&self) -> Result<Progress> {
        let response = self.capability.progress_request().send().promise.await;
        let response = response.map_err(|exception| from_exception(&exception))?;
        let progress = response.get().and_then(|results| results.get_progress());
        Ok(Progress::from_wire(progress.map_err(|exception| from_exception(&exception))?))
    }

    /// Passes progress to `on_progress` as it changes, until the job has succeeded or failed.
    pub async fn watch(&self, on_progress: &mut dyn FnMut(Progress)) -> Result<()> {
        // One place: only the latest progress matters, and the node waits before it sends the next.
        let (updates, mut arrived) = mpsc::channel(1);
        let mut request = self.capability.watch_request();
        request.get().set_sink(new_client(Sink { updates }));
        let mut call = pin!(request.send().promise);
        loop {
            tokio::select! {
                biased;
                Some(progress) = arrived.recv() => on_progress(progress),
                outcome = &mut call => {
                    // All updates have arrived, but the last may still be in the queue. The node has dropped
                    // the sink, so the queue ends.
                    while let Some(progress) = arrived.recv().await {
                        on_progress(progress);
                    }
                    outcome.map_err(|exception| from_exception(&exception))?;
                    return Ok(());
                }
            }
        }
    }

    /// Ends the work on every node. Calls that wait for the job or its product fail with `Cancelled`.
    pub async fn cancel(&self) -> Result<()> {
        let response = self.capability.cancel_request().send().promise.await;
        response.map(drop).map_err(|exception| from_exception(&exception))
    }

    /// Waits for the end of the job and returns its report; fails as the job failed.
    pub async fn report(&self) -> Result<JobReport> {
        let response = self.capability.report_request().send().promise.await;
        let response = response.map_err(|exception| from_exception(&exception))?;
        let report = response.get().and_then(|results| JobReport::from_wire(results.get_report()?));
        report.map_err(|exception| from_exception(&exception))
    }
}

/// The receiver of the node's progress updates.
struct Sink {
    updates: mpsc::Sender<Progress>,
}

impl progress_sink::Server for Sink {
    async fn update(self: Rc<Self>, params: progress_sink::UpdateParams) -> capnp::Result<()> {
        let progress = Progress::from_wire(params.get()?.get_progress()?);
        let gone = |_| capnp::Error::failed("Cancelled: nobody watches any more".to_owned());
        self.updates.send(progress).await.map_err(gone)
    }
}
