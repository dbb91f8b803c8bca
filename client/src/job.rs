//! Products under way on a node: how they are asked for, watched, cancelled and accounted for.

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
    /// Wherever the cost model says it finishes soonest.
    #[default]
    Auto,
    /// On the accepting node only.
    Local,
    /// Never on the accepting node while an admitted peer can; there rather than fail.
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
    /// As `Standard`, and the whole product is checked once more at the end, local tiles included.
    Full,
}

/// How a product is to be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MatmulOptions {
    /// Where its tasks may run.
    pub place: Place,
    /// How its results are checked.
    pub verify: VerifyPolicy,
    /// Higher goes first; 0 is ordinary.
    pub priority: i8,
    /// Time from the operands being there after which the job fails with `DeadlineExceeded`.
    pub deadline: Option<Duration>,
    /// How many different workers compute each task; 1 is ordinary.
    pub redundancy: u8,
    /// How often a task may be tried again after failures before the accepting node takes it.
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
    /// What travelled.
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

    /// What travels.
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

/// How far a job is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// Tasks whose results are accepted and merged.
    pub tasks_done: u32,
    /// Tasks in all; 0 until the job is planned.
    pub tasks_total: u32,
    /// Tensor bytes sent to peers for this job.
    pub bytes_sent: u64,
    /// Tensor bytes received from peers for this job.
    pub bytes_received: u64,
}

impl Progress {
    /// What travelled.
    pub fn from_wire(wire: progress::Reader<'_>) -> Progress {
        Progress {
            tasks_done: wire.get_tasks_done(),
            tasks_total: wire.get_tasks_total(),
            bytes_sent: wire.get_bytes_sent(),
            bytes_received: wire.get_bytes_received(),
        }
    }

    /// What travels.
    pub fn to_wire(self, mut wire: progress::Builder<'_>) {
        wire.set_tasks_done(self.tasks_done);
        wire.set_tasks_total(self.tasks_total);
        wire.set_bytes_sent(self.bytes_sent);
        wire.set_bytes_received(self.bytes_received);
    }
}

/// A product under way. It is cancelled once this and the product's tensor are dropped.
#[derive(Clone)]
pub struct Job {
    capability: job::Client,
    /// Open for as long as this is wanted.
    _connection: Rc<Connection>,
}

impl Job {
    pub(crate) fn new(capability: job::Client, connection: Rc<Connection>) -> Job {
        Job { capability, _connection: connection }
    }

    /// How far it is.
    pub async fn progress(&self) -> Result<Progress> {
        let response = self.capability.progress_request().send().promise.await;
        let response = response.map_err(|exception| from_exception(&exception))?;
        let progress = response.get().and_then(|results| results.get_progress());
        Ok(Progress::from_wire(progress.map_err(|exception| from_exception(&exception))?))
    }

    /// Passes its progress to `on_progress` as it changes, until it has ended, well or not.
    pub async fn watch(&self, on_progress: &mut dyn FnMut(Progress)) -> Result<()> {
        // The latest progress is all that matters: one, and the node waits with the next.
        let (updates, mut arrived) = mpsc::channel(1);
        let mut request = self.capability.watch_request();
        request.get().set_sink(new_client(Sink { updates }));
        let mut call = pin!(request.send().promise);
        loop {
            tokio::select! {
                biased;
                Some(progress) = arrived.recv() => on_progress(progress),
                outcome = &mut call => {
                    // All have arrived, but the last may not have been handed over yet; the node
                    // lets go of the sink, so that this ends.
                    while let Some(progress) = arrived.recv().await {
                        on_progress(progress);
                    }
                    outcome.map_err(|exception| from_exception(&exception))?;
                    return Ok(());
                }
            }
        }
    }

    /// Ends the work on every node. Whoever waits for the job or its product gets `Cancelled`.
    pub async fn cancel(&self) -> Result<()> {
        let response = self.capability.cancel_request().send().promise.await;
        response.map(drop).map_err(|exception| from_exception(&exception))
    }

    /// Waits for its end and says how the product was had; fails as the job failed.
    pub async fn report(&self) -> Result<JobReport> {
        let response = self.capability.report_request().send().promise.await;
        let response = response.map_err(|exception| from_exception(&exception))?;
        let report = response.get().and_then(|results| JobReport::from_wire(results.get_report()?));
        report.map_err(|exception| from_exception(&exception))
    }
}

/// Takes the updates that the node sends.
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
