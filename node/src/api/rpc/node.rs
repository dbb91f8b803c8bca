//! The `Node` capability, with which every connection starts. Calls become requests to the backend, its answers become
//! messages; nothing is decided here.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use capnp_rpc::new_client;
use pangea_client::exception::to_exception;
use pangea_client::{DType, Error, ErrorKind, MatmulOptions, NodeStatus, Result, TensorInfo};
use pangea_compute::Operation;
use pangea_schema::job_capnp::{self, matmul_options};
use pangea_schema::node_capnp::node;
use pangea_schema::tensor_capnp::tensor;
use tokio_util::sync::CancellationToken;

use super::account::Account;
use super::backend::Backend;
use super::job::{self, Request};
use super::limits::{
    CHECK_TIMEOUT, CONNECT_TIMEOUT, MAX_CONNECT_TIMEOUT, MAX_MODEL_TIMEOUT, MAX_PROBE_BYTES, MAX_PROBE_ROUNDS,
    MODEL_TIMEOUT,
};
use super::members::MembershipObject;
use super::model::{self, ModelObject};
use super::tensor::{SinkObject, Tensors};
use crate::serve::Served;

/// State behind the `Node` capability of one connection.
pub(super) struct NodeObject<B: Backend> {
    backend: B,
    account: Rc<Account<B>>,
    tensors: Rc<RefCell<Tensors<B>>>,
    served: Served,
    /// Cancelled when the node drains; new jobs are refused from then on.
    draining: CancellationToken,
}

impl<B: Backend> NodeObject<B> {
    pub(super) fn new(
        backend: B,
        served: Served,
        account: Rc<Account<B>>,
        draining: CancellationToken,
    ) -> NodeObject<B> {
        NodeObject { backend, account, tensors: Rc::new(RefCell::new(Tensors::new())), served, draining }
    }

    /// The same state behind another capability.
    fn again(&self) -> NodeObject<B> {
        NodeObject {
            backend: self.backend.clone(),
            account: self.account.clone(),
            tensors: self.tensors.clone(),
            served: self.served.clone(),
            draining: self.draining.clone(),
        }
    }

    /// Starts an operation on two tensors; the job and the result.
    fn start(
        &self,
        operation: Operation,
        a: tensor::Client,
        b: tensor::Client,
        options: matmul_options::Reader<'_>,
    ) -> capnp::Result<(job_capnp::job::Client, tensor::Client)> {
        if self.draining.is_cancelled() {
            let message = "this node is shutting down and takes no more jobs";
            return Err(exception(Error::new(ErrorKind::Unavailable, message)));
        }
        let request = Request { operation, a, b, options: MatmulOptions::from_wire(options)? };
        let (job, result) = job::start(&self.backend, &self.account, &self.tensors, request).map_err(exception)?;
        let mut tensors = self.tensors.borrow_mut();
        tensors.gc();
        Ok((new_client(job), tensors.new_client(result)))
    }

    /// Resolves a model's name; an empty name means the only model served.
    fn named(&self, name: &str) -> Result<String> {
        if !name.is_empty() {
            return Ok(name.to_owned());
        }
        let names = self.served.names();
        match &names[..] {
            [only] => Ok(only.clone()),
            [] => Err(Error::new(
                ErrorKind::NotFound,
                "this node serves no model; start one with `pangea node --model NAME`",
            )),
            _ => {
                let message = format!("this node serves several models; name one of {}", names.join(", "));
                Err(Error::new(ErrorKind::InvalidInput, message))
            }
        }
    }
}

/// The time that a caller gives in milliseconds, at most `max`; 0 is `default`.
fn timeout_of(milliseconds: u64, default: Duration, max: Duration) -> Duration {
    if milliseconds == 0 { default } else { Duration::from_millis(milliseconds).min(max) }
}

fn exception(error: Error) -> capnp::Error {
    to_exception(&error)
}

impl<B: Backend> node::Server for NodeObject<B> {
    async fn hello(self: Rc<Self>, _: node::HelloParams, mut results: node::HelloResults) -> capnp::Result<()> {
        self.account.prove();
        results.get().set_version(env!("CARGO_PKG_VERSION"));
        Ok(())
    }

    async fn login(self: Rc<Self>, _: node::LoginParams, mut results: node::LoginResults) -> capnp::Result<()> {
        // Whoever has this capability has shown what there is to show.
        results.get().set_node(new_client(self.again()));
        Ok(())
    }

    async fn upload(self: Rc<Self>, params: node::UploadParams, mut results: node::UploadResults) -> capnp::Result<()> {
        let params = params.get()?;
        let info = TensorInfo {
            dtype: DType::from_wire(params.get_dtype()?),
            rows: params.get_rows(),
            cols: params.get_cols(),
        };
        let sink = SinkObject::new(self.account.clone(), self.tensors.clone(), info);
        results.get().set_sink(new_client(sink.map_err(exception)?));
        Ok(())
    }

    async fn matmul(self: Rc<Self>, params: node::MatmulParams, mut results: node::MatmulResults) -> capnp::Result<()> {
        let params = params.get()?;
        let (job, product) = self.start(Operation::Matmul, params.get_a()?, params.get_b()?, params.get_options()?)?;
        results.get().set_job(job);
        results.get().set_product(product);
        Ok(())
    }

    async fn add(self: Rc<Self>, params: node::AddParams, mut results: node::AddResults) -> capnp::Result<()> {
        let params = params.get()?;
        let (job, sum) = self.start(Operation::Add, params.get_a()?, params.get_b()?, params.get_options()?)?;
        results.get().set_job(job);
        results.get().set_sum(sum);
        Ok(())
    }

    async fn peers(self: Rc<Self>, _: node::PeersParams, mut results: node::PeersResults) -> capnp::Result<()> {
        let _call = self.account.call().map_err(exception)?;
        let peers = self.backend.peers().await.map_err(exception)?;
        let mut wire = results.get().init_peers(peers.len() as u32);
        for (index, peer) in peers.iter().enumerate() {
            peer.to_wire(wire.reborrow().get(index as u32));
        }
        Ok(())
    }

    async fn status(self: Rc<Self>, _: node::StatusParams, mut results: node::StatusResults) -> capnp::Result<()> {
        let _call = self.account.call().map_err(exception)?;
        let status = self.backend.status().await.map_err(exception)?;
        let status = NodeStatus { models: self.served.states(), ..status };
        status.to_wire(results.get().init_status());
        Ok(())
    }

    async fn connect(
        self: Rc<Self>,
        params: node::ConnectParams,
        mut results: node::ConnectResults,
    ) -> capnp::Result<()> {
        let _call = self.account.call().map_err(exception)?;
        let params = params.get()?;
        let timeout = timeout_of(params.get_timeout_ms(), CONNECT_TIMEOUT, MAX_CONNECT_TIMEOUT);
        let address = params.get_address()?.to_str()?;
        let peer = self.backend.connect(address, timeout).await.map_err(exception)?;
        results.get().set_peer(&peer);
        Ok(())
    }

    async fn probe_link(
        self: Rc<Self>,
        params: node::ProbeLinkParams,
        mut results: node::ProbeLinkResults,
    ) -> capnp::Result<()> {
        let _call = self.account.call().map_err(exception)?;
        let params = params.get()?;
        let (message_bytes, rounds) = (params.get_message_bytes(), params.get_rounds());
        if message_bytes > MAX_PROBE_BYTES || rounds == 0 || rounds > MAX_PROBE_ROUNDS {
            let message = format!(
                "a link is measured with 1 to {MAX_PROBE_ROUNDS} rounds of at most \
                 {MAX_PROBE_BYTES} bytes, not {rounds} of {message_bytes}"
            );
            return Err(exception(Error::new(ErrorKind::InvalidInput, message)));
        }
        let peer = params.get_peer()?.to_str()?;
        let probe = self.backend.probe_link(peer, message_bytes, rounds).await.map_err(exception)?;
        probe.to_wire(results.get().init_probe());
        Ok(())
    }

    async fn membership(
        self: Rc<Self>,
        _: node::MembershipParams,
        mut results: node::MembershipResults,
    ) -> capnp::Result<()> {
        let none = || exception(Error::new(ErrorKind::Unavailable, "this node has no network"));
        let members = self.backend.members().ok_or_else(none)?;
        results.get().set_membership(new_client(MembershipObject::new(members, self.account.clone())));
        Ok(())
    }

    async fn jobs(self: Rc<Self>, _: node::JobsParams, mut results: node::JobsResults) -> capnp::Result<()> {
        let jobs = self.backend.jobs();
        let mut wire = results.get().init_jobs(jobs.len() as u32);
        for (index, job) in jobs.iter().enumerate() {
            job.to_wire(wire.reborrow().get(index as u32));
        }
        Ok(())
    }

    async fn topology(
        self: Rc<Self>,
        _: node::TopologyParams,
        mut results: node::TopologyResults,
    ) -> capnp::Result<()> {
        let _call = self.account.call().map_err(exception)?;
        self.backend.topology().to_wire(results.get().init_topology());
        Ok(())
    }

    async fn plan_model(
        self: Rc<Self>,
        params: node::PlanModelParams,
        mut results: node::PlanModelResults,
    ) -> capnp::Result<()> {
        let _call = self.account.call().map_err(exception)?;
        let model = params.get()?.get_model()?.to_str()?;
        let plan = self.backend.plan_model(model).map_err(|error| exception(self.served.not_planned(model, error)))?;
        plan.to_wire(results.get().init_plan());
        Ok(())
    }

    async fn check_peer(
        self: Rc<Self>,
        params: node::CheckPeerParams,
        mut results: node::CheckPeerResults,
    ) -> capnp::Result<()> {
        let _call = self.account.call().map_err(exception)?;
        let params = params.get()?;
        let timeout = timeout_of(params.get_timeout_ms(), CHECK_TIMEOUT, MAX_CONNECT_TIMEOUT);
        let round_trip = self.backend.check_peer(params.get_peer()?.to_str()?, timeout).await.map_err(exception)?;
        results.get().set_round_trip_us(round_trip.as_secs_f64() * 1e6);
        Ok(())
    }

    async fn ways_back(
        self: Rc<Self>,
        _: node::WaysBackParams,
        mut results: node::WaysBackResults,
    ) -> capnp::Result<()> {
        let _call = self.account.call().map_err(exception)?;
        let ways = self.backend.ways_back().await.map_err(exception)?;
        let mut wire = results.get().init_ways(ways.len() as u32);
        for (index, way) in ways.iter().enumerate() {
            way.to_wire(wire.reborrow().get(index as u32));
        }
        Ok(())
    }

    async fn counters(
        self: Rc<Self>,
        _: node::CountersParams,
        mut results: node::CountersResults,
    ) -> capnp::Result<()> {
        self.account.counters().to_wire(results.get().init_connection());
        self.account.totals().counters().to_wire(results.get().init_total());
        Ok(())
    }

    async fn models(self: Rc<Self>, _: node::ModelsParams, mut results: node::ModelsResults) -> capnp::Result<()> {
        let models = self.served.list();
        let mut wire = results.get().init_models(models.len() as u32);
        for (index, served) in models.into_iter().enumerate() {
            model::status(served).to_wire(wire.reborrow().get(index as u32));
        }
        Ok(())
    }

    async fn load_model(
        self: Rc<Self>,
        params: node::LoadModelParams,
        mut results: node::LoadModelResults,
    ) -> capnp::Result<()> {
        let _call = self.account.call().map_err(exception)?;
        let params = params.get()?;
        let timeout = timeout_of(params.get_timeout_ms(), MODEL_TIMEOUT, MAX_MODEL_TIMEOUT);
        let loaded = self.served.load_model(params.get_model()?.to_str()?, timeout).await.map_err(exception)?;
        model::status(loaded).to_wire(results.get().init_model());
        Ok(())
    }

    async fn drop_model(
        self: Rc<Self>,
        params: node::DropModelParams,
        mut results: node::DropModelResults,
    ) -> capnp::Result<()> {
        let _call = self.account.call().map_err(exception)?;
        let dropped = self.served.drop_model(params.get()?.get_model()?.to_str()?).map_err(exception)?;
        model::status(dropped).to_wire(results.get().init_model());
        Ok(())
    }

    async fn model(self: Rc<Self>, params: node::ModelParams, mut results: node::ModelResults) -> capnp::Result<()> {
        let _call = self.account.call().map_err(exception)?;
        let params = params.get()?;
        let name = self.named(params.get_name()?.to_str()?).map_err(exception)?;
        let patience = timeout_of(params.get_timeout_ms(), MODEL_TIMEOUT, MAX_MODEL_TIMEOUT);
        let engine = self.served.engine(&name, patience).await.map_err(exception)?;
        results.get().set_model(new_client(ModelObject::new(self.account.clone(), engine, self.draining.clone())));
        Ok(())
    }
}
