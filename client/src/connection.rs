//! One connection to a node: everything that is asked of a node starts here. Asynchronous and
//! bound to its thread; [`crate::blocking`] wraps it for programs that are neither.

use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use capnp::capability::{FromClientHook, RemotePromise};
use capnp_rpc::RpcSystem;
use capnp_rpc::rpc_twoparty_capnp::Side;
use pangea_schema::{node_capnp, tensor_capnp};
use tokio::net::TcpStream;
use tokio_util::compat::{TokioAsyncReadCompatExt, TokioAsyncWriteCompatExt};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::exception::from_exception;
use crate::job::{Job, MatmulOptions};
use crate::model::{self, Model, ModelStatus};
use crate::plan::ModelPlan;
use crate::status::{Counters, LinkProbe, NodeStatus, PeerStatus};
use crate::tensor::{Tensor, TensorSource};
use crate::text::string;
use crate::topology::Topology;
use crate::transport::{CHUNK_BYTES, network};
use crate::{Error, ErrorKind, Result};

/// Where a node listens for programs unless told otherwise.
pub const DEFAULT_ADDRESS: &str = "127.0.0.1:8080";

/// A connection to a node. Clones share it; it closes, and the node frees all it held for it,
/// when the last clone and the last tensor and job that came from it are dropped.
///
/// Everything here must run inside a [`tokio::task::LocalSet`].
#[derive(Clone)]
pub struct Client {
    node: node_capnp::node::Client,
    connection: Rc<Connection>,
}

/// Ends the connection, and what goes on over it, when dropped.
pub(crate) struct Connection {
    closed: CancellationToken,
    _close: DropGuard,
}

impl Connection {
    fn over(rpc_system: RpcSystem<Side>) -> Connection {
        let closed = CancellationToken::new();
        let connection = Connection { closed: closed.clone(), _close: closed.drop_guard() };
        // How the connection ended reaches whoever waits for an answer.
        connection.spawn(async { drop(rpc_system.await) });
        connection
    }

    /// Does `work` for as long as the connection is wanted.
    fn spawn(&self, work: impl Future<Output = ()> + 'static) {
        let closed = self.closed.clone();
        tokio::task::spawn_local(async move { closed.run_until_cancelled(work).await });
    }
}

impl Client {
    /// Connects to the node at `address` (`host:port`) and hears from it, within `timeout`.
    /// `Unavailable` where no node answers there.
    pub async fn connect(address: &str, timeout: Duration) -> Result<Client> {
        tokio::time::timeout(timeout, Client::handshake(address)).await.unwrap_or_else(|_| {
            let seconds = timeout.as_secs_f64();
            Err(unreachable_node(address, &format!("no answer within {seconds} s")))
        })
    }

    async fn handshake(address: &str) -> Result<Client> {
        let stream =
            TcpStream::connect(address).await.map_err(|error| unreachable_node(address, &error.to_string()))?;
        // Without it small calls wait for the acknowledgement of the one before.
        stream.set_nodelay(true).map_err(|error| unreachable_node(address, &error.to_string()))?;
        let (read_half, write_half) = stream.into_split();
        let network = network(read_half.compat(), write_half.compat_write(), Side::Client);
        let mut rpc_system = RpcSystem::new(Box::new(network), None);
        let node: node_capnp::node::Client = rpc_system.bootstrap(Side::Server);
        let client = Client { node, connection: Rc::new(Connection::over(rpc_system)) };
        let hello = client.node.hello_request().send().promise.await;
        hello.map_err(|exception| match from_exception(&exception) {
            refusal if refusal.kind() == ErrorKind::Overloaded => refusal,
            other => unreachable_node(address, other.message()),
        })?;
        Ok(client)
    }

    /// Sends a tensor to the node, chunk by chunk as `source` gives it.
    /// `Overloaded` where the node has no memory for it.
    pub async fn upload(&self, source: &mut dyn TensorSource) -> Result<Tensor> {
        let info = source.info();
        let mut request = self.node.upload_request();
        request.get().set_dtype(info.dtype.to_wire());
        request.get().set_rows(info.rows);
        request.get().set_cols(info.cols);
        let sink: tensor_capnp::tensor_sink::Client = request.send().pipeline.get_sink();
        let size_bytes = info.size_bytes()?;
        let mut offset = 0;
        while offset < size_bytes {
            let length = (size_bytes - offset).min(CHUNK_BYTES as u64);
            let mut request = sink.write_request();
            source.read(offset, request.get().init_chunk(length as u32))?;
            request.send().await.map_err(|exception| from_exception(&exception))?;
            offset += length;
        }
        let finished = sink.finish_request().send();
        let response = finished.promise.await.map_err(|exception| from_exception(&exception))?;
        let tensor =
            response.get().and_then(|results| results.get_tensor()).map_err(|exception| from_exception(&exception))?;
        Ok(Tensor::new(tensor, self.connection.clone()))
    }

    /// Asks for `C[m, n] = A[m, k] · B[k, n]` and returns at once; both operands may be products
    /// that are still being computed. The job ends when both the [`Job`] and the product are
    /// dropped. What is wrong with the operands shows in either.
    pub fn matmul(&self, a: &Tensor, b: &Tensor, options: &MatmulOptions) -> (Job, Tensor) {
        let mut request = self.node.matmul_request();
        request.get().set_a(a.capability());
        request.get().set_b(b.capability());
        options.to_wire(request.get().init_options());
        let RemotePromise { promise, pipeline } = request.send();
        let (job, product) = (pipeline.get_job(), pipeline.get_product());
        // Until they stand for themselves, job and product are pieces of one answer, and the node
        // keeps both for as long as either is wanted. That ends only if someone waits for it, and
        // has begun to before it happens.
        let resolutions = [job.as_client_hook().when_more_resolved(), product.as_client_hook().when_more_resolved()];
        self.connection.spawn(async move {
            let _answer = promise.await;
            for resolution in resolutions.into_iter().flatten() {
                // A failure is seen by whoever uses them.
                let _ = resolution.await;
            }
            drop(pipeline);
        });
        let job = Job::new(job, self.connection.clone());
        let product = Tensor::new(product, self.connection.clone());
        (job, product)
    }

    /// Every peer the node knows.
    pub async fn peers(&self) -> Result<Vec<PeerStatus>> {
        let response = self.node.peers_request().send().promise.await.map_err(error)?;
        let peers = response.get().and_then(|results| results.get_peers()).map_err(error)?;
        peers.iter().map(|peer| PeerStatus::from_wire(peer).map_err(error)).collect()
    }

    /// The node itself.
    pub async fn status(&self) -> Result<NodeStatus> {
        let response = self.node.status_request().send().promise.await.map_err(error)?;
        let status = response.get().and_then(|results| results.get_status()).map_err(error)?;
        NodeStatus::from_wire(status).map_err(error)
    }

    /// Has the node connect to the peer at `address` (a multiaddr); the peer id once both have
    /// admitted each other. With no `timeout` the node's own counts.
    pub async fn connect_peer(&self, address: &str, timeout: Option<Duration>) -> Result<String> {
        let mut request = self.node.connect_request();
        request.get().set_address(address);
        request.get().set_timeout_ms(timeout.map_or(0, milliseconds));
        let response = request.send().promise.await.map_err(error)?;
        let peer = response.get().and_then(|results| string(results.get_peer()?)).map_err(error)?;
        Ok(peer)
    }

    /// Has the node measure its link to `peer` with `rounds` messages of `message_bytes` and as
    /// many small round trips.
    pub async fn probe_link(&self, peer: &str, message_bytes: u64, rounds: u32) -> Result<LinkProbe> {
        let mut request = self.node.probe_link_request();
        request.get().set_peer(peer);
        request.get().set_message_bytes(message_bytes);
        request.get().set_rounds(rounds);
        let response = request.send().promise.await.map_err(error)?;
        let probe = response.get().and_then(|results| results.get_probe()).map_err(error)?;
        LinkProbe::from_wire(probe).map_err(error)
    }

    /// The pool as the node sees it.
    pub async fn topology(&self) -> Result<Topology> {
        let response = self.node.topology_request().send().promise.await.map_err(error)?;
        let topology = response.get().and_then(|results| results.get_topology()).map_err(error)?;
        Topology::from_wire(topology).map_err(error)
    }

    /// Where the layers of a model would be placed on the pool as the node sees it, and where they are. An empty name means the
    /// only model that the pool serves.
    ///
    /// # Errors
    /// `NotFound` for a model that no node of the pool serves; `InvalidInput` where the name is empty and there are several.
    pub async fn plan_model(&self, model: &str) -> Result<ModelPlan> {
        let mut request = self.node.plan_model_request();
        request.get().set_model(model);
        let response = request.send().promise.await.map_err(error)?;
        let plan = response.get().and_then(|results| results.get_plan()).map_err(error)?;
        ModelPlan::from_wire(plan).map_err(error)
    }

    /// Has the node ask a connected peer (by peer id or name) for a sign of life, over the connection that is there; the round
    /// trip. With no `timeout` the node's own counts.
    ///
    /// # Errors
    /// `NotFound` where no such peer is connected; `DeadlineExceeded` where it does not answer in time.
    pub async fn check_peer(&self, peer: &str, timeout: Option<Duration>) -> Result<Duration> {
        let mut request = self.node.check_peer_request();
        request.get().set_peer(peer);
        request.get().set_timeout_ms(timeout.map_or(0, milliseconds));
        let response = request.send().promise.await.map_err(error)?;
        let round_trip_us = response.get().map_err(error)?.get_round_trip_us();
        Ok(Duration::try_from_secs_f64(round_trip_us / 1e6).unwrap_or_default())
    }

    /// The models that the node serves.
    pub async fn models(&self) -> Result<Vec<ModelStatus>> {
        let response = self.node.models_request().send().promise.await.map_err(error)?;
        let models = response.get().and_then(|results| results.get_models()).map_err(error)?;
        models.iter().map(|model| ModelStatus::from_wire(model).map_err(error)).collect()
    }

    /// One of them, once it is loaded; one that is not on the node's disk is fetched first. An empty name means the only one.
    /// With no `timeout` the node's own counts.
    ///
    /// # Errors
    /// `NotFound` for a model that is not served; `Unavailable` where it is not ready in time, and where it cannot be had.
    pub async fn model(&self, name: &str, timeout: Option<Duration>) -> Result<Model> {
        let mut request = self.node.model_request();
        request.get().set_name(name);
        request.get().set_timeout_ms(model::patience(timeout));
        let response = request.send().promise.await.map_err(error)?;
        let model = response.get().and_then(|results| results.get_model()).map_err(error)?;
        Ok(Model::new(model, self.connection.clone()))
    }

    /// What this connection, and all of the node's connections, have moved and hold.
    pub async fn counters(&self) -> Result<(Counters, Counters)> {
        let response = self.node.counters_request().send().promise.await.map_err(error)?;
        let counters = response.get().and_then(|results| {
            Ok((Counters::from_wire(results.get_connection()?)?, Counters::from_wire(results.get_total()?)?))
        });
        counters.map_err(error)
    }
}

/// A duration on the wire, where 0 means none: never rounded down to that.
pub(crate) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).max(1)
}

fn error(exception: capnp::Error) -> Error {
    from_exception(&exception)
}

fn unreachable_node(address: &str, why: &str) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        format!("no Pangea node answers at {address} ({why}); start one there with `pangea node`"),
    )
}
