//! The client for programs that are not asynchronous: the same calls, each blocking this thread until its
//! answer arrives. Nothing runs between calls. Operations on tensors are in [`crate::operations`].

use std::future::Future;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::task::LocalSet;

use crate::job::Progress;
use crate::jobs::JobStatus;
use crate::model::{GenerationRequest, GenerationSummary, Model, ModelStatus, Piece};
use crate::plan::ModelPlan;
use crate::report::JobReport;
use crate::status::{LinkProbe, NodeStatus, PeerStatus, WayBack};
use crate::tensor::{Tensor, TensorDestination, TensorSource};
use crate::topology::Topology;
use crate::{Error, ErrorKind, Job, Result};

/// A connection to a node. Its tensors and jobs are used through this value.
pub struct Client {
    // Dropped in this order: the connection closes before the task set and the runtime that drive it.
    client: crate::Client,
    tasks: LocalSet,
    runtime: Runtime,
}

impl Client {
    /// See [`crate::Client::connect`].
    pub fn connect(address: &str, timeout: Duration) -> Result<Client> {
        Client::connect_with_key(address, None, timeout)
    }

    /// See [`crate::Client::connect_with_key`].
    pub fn connect_with_key(address: &str, key: Option<&str>, timeout: Duration) -> Result<Client> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build().map_err(|error| {
                Error::new(ErrorKind::Internal, format!("cannot start an asynchronous runtime: {error}"))
            })?;
        let tasks = LocalSet::new();
        let client = tasks.block_on(&runtime, crate::Client::connect_with_key(address, key, timeout))?;
        Ok(Client { client, tasks, runtime })
    }

    /// The underlying asynchronous client, for use within [`Client::block_on`].
    pub fn inner(&self) -> &crate::Client {
        &self.client
    }

    /// Blocks until a future of the asynchronous client is done.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.tasks.block_on(&self.runtime, future)
    }

    /// See [`crate::Client::upload`].
    pub fn upload(&self, source: &mut dyn TensorSource) -> Result<Tensor> {
        self.block_on(self.client.upload(source))
    }

    /// Waits for `job`, passes its progress to the callback and returns its report.
    pub fn wait(&self, job: &Job, on_progress: &mut dyn FnMut(Progress)) -> Result<JobReport> {
        self.block_on(async {
            job.watch(on_progress).await?;
            job.report().await
        })
    }

    /// See [`Job::cancel`].
    pub fn cancel(&self, job: &Job) -> Result<()> {
        self.block_on(job.cancel())
    }

    /// See [`Tensor::read_into`].
    pub fn read_into(&self, tensor: &Tensor, destination: &mut dyn TensorDestination) -> Result<()> {
        self.block_on(tensor.read_into(destination)).map(drop)
    }

    /// See [`crate::Client::models`].
    pub fn models(&self) -> Result<Vec<ModelStatus>> {
        self.block_on(self.client.models())
    }

    /// See [`crate::Client::model`].
    pub fn model(&self, name: &str, timeout: Option<Duration>) -> Result<Model> {
        self.block_on(self.client.model(name, timeout))
    }

    /// See [`crate::Client::load_model`].
    pub fn load_model(&self, model: &str, timeout: Option<Duration>) -> Result<ModelStatus> {
        self.block_on(self.client.load_model(model, timeout))
    }

    /// See [`crate::Client::drop_model`].
    pub fn drop_model(&self, model: &str) -> Result<ModelStatus> {
        self.block_on(self.client.drop_model(model))
    }

    /// See [`Model::generate`].
    pub fn generate(
        &self,
        model: &Model,
        request: &GenerationRequest,
        on_piece: &mut dyn FnMut(Piece) -> Result<()>,
    ) -> Result<GenerationSummary> {
        self.block_on(model.generate(request, on_piece))
    }

    /// See [`crate::Client::peers`].
    pub fn peers(&self) -> Result<Vec<PeerStatus>> {
        self.block_on(self.client.peers())
    }

    /// See [`crate::Client::status`].
    pub fn status(&self) -> Result<NodeStatus> {
        self.block_on(self.client.status())
    }

    /// See [`crate::Client::jobs`].
    pub fn jobs(&self) -> Result<Vec<JobStatus>> {
        self.block_on(self.client.jobs())
    }

    /// See [`crate::Client::topology`].
    pub fn topology(&self) -> Result<Topology> {
        self.block_on(self.client.topology())
    }

    /// See [`crate::Client::plan_model`].
    pub fn plan_model(&self, model: &str) -> Result<ModelPlan> {
        self.block_on(self.client.plan_model(model))
    }

    /// See [`crate::Client::check_peer`].
    pub fn check_peer(&self, peer: &str, timeout: Option<Duration>) -> Result<Duration> {
        self.block_on(self.client.check_peer(peer, timeout))
    }

    /// See [`crate::Client::ways_back`].
    pub fn ways_back(&self) -> Result<Vec<WayBack>> {
        self.block_on(self.client.ways_back())
    }

    /// See [`crate::Client::connect_peer`].
    pub fn connect_peer(&self, address: &str, timeout: Option<Duration>) -> Result<String> {
        self.block_on(self.client.connect_peer(address, timeout))
    }

    /// See [`crate::Client::probe_link`].
    pub fn probe_link(&self, peer: &str, message_bytes: u64, rounds: u32) -> Result<LinkProbe> {
        self.block_on(self.client.probe_link(peer, message_bytes, rounds))
    }
}
