//! One connection to a node: every call starts here. Asynchronous and bound to its thread; [`crate::blocking`] wraps the
//! connection for programs that are not asynchronous.

use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use capnp_rpc::RpcSystem;
use capnp_rpc::rpc_twoparty_capnp::Side;
use futures::io::{AsyncRead, AsyncWrite};
use pangea_schema::{node_capnp, tensor_capnp};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::compat::{TokioAsyncReadCompatExt, TokioAsyncWriteCompatExt};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::exception::from_exception;
use crate::jobs::JobStatus;
use crate::membership::Membership;
use crate::model::{self, Model, ModelStatus};
use crate::plan::ModelPlan;
use crate::status::{Counters, LinkProbe, NodeStatus, PeerStatus, WayBack};
use crate::tensor::{Tensor, TensorSource};
use crate::text::string;
use crate::topology::Topology;
use crate::transport::{CHUNK_BYTES, network};
use crate::{Error, ErrorKind, Result};

/// Default address of a node's Cap'n Proto service.
pub const DEFAULT_ADDRESS: &str = "127.0.0.1:8080";

/// Start of an address that is the path of a node's socket on this host, such as `unix:/home/me/.pangea/rpc.sock`.
pub const UNIX_PREFIX: &str = "unix:";

/// A connection to a node, shared by all clones. When the last clone and the last tensor, job and model of the connection
/// are dropped, the connection closes and the node frees everything that it held for this client.
///
/// All calls must run inside a [`tokio::task::LocalSet`].
#[derive(Clone)]
pub struct Client {
    pub(crate) node: node_capnp::node::Client,
    pub(crate) connection: Rc<Connection>,
}

/// Closes the connection, and cancels its calls, when dropped.
pub(crate) struct Connection {
    closed: CancellationToken,
    _close: DropGuard,
}

impl Connection {
    fn over(rpc_system: RpcSystem<Side>) -> Connection {
        let closed = CancellationToken::new();
        let connection = Connection { closed: closed.clone(), _close: closed.drop_guard() };
        // Waiting calls fail with the error that the connection ended with.
        connection.spawn(async { drop(rpc_system.await) });
        connection
    }

    /// Runs `work` until it ends or the connection closes.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + 'static) {
        let closed = self.closed.clone();
        tokio::task::spawn_local(async move { closed.run_until_cancelled(work).await });
    }
}

impl Client {
    /// Connects to the node at `address` (`host:port`, or `unix:PATH` on this host) and waits for its first answer, at most
    /// `timeout`.
    ///
    /// # Errors
    /// `Unavailable` where no node answers; `Overloaded` where the node has too many connections; `Unauthorized` where the
    /// node requires an API key.
    pub async fn connect(address: &str, timeout: Duration) -> Result<Client> {
        Client::connect_with_key(address, None, timeout).await
    }

    /// Like [`Client::connect`]; shows the node `key` where there is one. A node that requires none takes any.
    ///
    /// # Errors
    /// Those of [`Client::connect`]; `Unauthorized` where the key is wrong.
    pub async fn connect_with_key(address: &str, key: Option<&str>, timeout: Duration) -> Result<Client> {
        tokio::time::timeout(timeout, Client::reach(address, key)).await.unwrap_or_else(|_| {
            let seconds = timeout.as_secs_f64();
            Err(unreachable_node(address, &format!("no answer within {seconds} s")))
        })
    }

    async fn reach(address: &str, key: Option<&str>) -> Result<Client> {
        let unreachable = |error: std::io::Error| unreachable_node(address, &error.to_string());
        if let Some(path) = address.strip_prefix(UNIX_PREFIX) {
            let (read_half, write_half) = UnixStream::connect(path).await.map_err(unreachable)?.into_split();
            return Client::handshake(address, key, read_half.compat(), write_half.compat_write()).await;
        }
        // Apart from connecting: whoever mistypes a name need not start a node there.
        let found = tokio::net::lookup_host(address).await.map_err(|error| unknown_host(address, &error))?;
        let stream = TcpStream::connect(&found.collect::<Vec<_>>()[..]).await.map_err(unreachable)?;
        // With Nagle's algorithm a small call would wait for the acknowledgement of the previous one.
        stream.set_nodelay(true).map_err(unreachable)?;
        let (read_half, write_half) = stream.into_split();
        Client::handshake(address, key, read_half.compat(), write_half.compat_write()).await
    }

    async fn handshake<R, W>(address: &str, key: Option<&str>, read_half: R, write_half: W) -> Result<Client>
    where
        R: AsyncRead + Unpin + 'static,
        W: AsyncWrite + Unpin + 'static,
    {
        let network = network(read_half, write_half, Side::Client);
        let mut rpc_system = RpcSystem::new(Box::new(network), None);
        let bootstrap: node_capnp::node::Client = rpc_system.bootstrap(Side::Server);
        let connection = Rc::new(Connection::over(rpc_system));
        let refused = |exception: capnp::Error| match from_exception(&exception) {
            refusal if matches!(refusal.kind(), ErrorKind::Overloaded | ErrorKind::Unauthorized) => refusal,
            other => unreachable_node(address, other.message()),
        };
        let node = match key {
            None => bootstrap,
            Some(key) => {
                let mut login = bootstrap.login_request();
                login.get().set_key(key);
                match login.send().promise.await {
                    Ok(response) => response.get().and_then(|results| results.get_node()).map_err(refused)?,
                    // A node from before keys: it requires none.
                    Err(exception) if exception.kind == capnp::ErrorKind::Unimplemented => bootstrap,
                    Err(exception) => return Err(refused(exception)),
                }
            }
        };
        let client = Client { node, connection };
        client.node.hello_request().send().promise.await.map_err(refused)?;
        Ok(client)
    }

    /// Sends a tensor to the node, in chunks that `source` fills.
    ///
    /// # Errors
    /// `Overloaded` where the node has no memory for the tensor, and the error of `source`.
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

    /// Status of every peer that the node knows.
    pub async fn peers(&self) -> Result<Vec<PeerStatus>> {
        let response = self.node.peers_request().send().promise.await.map_err(error)?;
        let peers = response.get().and_then(|results| results.get_peers()).map_err(error)?;
        peers.iter().map(|peer| PeerStatus::from_wire(peer).map_err(error)).collect()
    }

    /// Status of the node.
    pub async fn status(&self) -> Result<NodeStatus> {
        let response = self.node.status_request().send().promise.await.map_err(error)?;
        let status = response.get().and_then(|results| results.get_status()).map_err(error)?;
        NodeStatus::from_wire(status).map_err(error)
    }

    /// Makes the node connect to the peer at `address` (a multiaddr) and returns the peer id once both have
    /// admitted each other. Without `timeout` the node's default applies.
    pub async fn connect_peer(&self, address: &str, timeout: Option<Duration>) -> Result<String> {
        let mut request = self.node.connect_request();
        request.get().set_address(address);
        request.get().set_timeout_ms(timeout.map_or(0, milliseconds));
        let response = request.send().promise.await.map_err(error)?;
        let peer = response.get().and_then(|results| string(results.get_peer()?)).map_err(error)?;
        Ok(peer)
    }

    /// Makes the node measure its link to `peer` with `rounds` messages of `message_bytes` and as
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

    /// What was asked of the node, products and generations alike: what runs, and the last that ended; the latest first.
    ///
    /// # Errors
    /// `Unavailable` where the node is gone.
    pub async fn jobs(&self) -> Result<Vec<JobStatus>> {
        let response = self.node.jobs_request().send().promise.await.map_err(error)?;
        let jobs = response.get().and_then(|results| results.get_jobs()).map_err(error)?;
        jobs.iter().map(|job| JobStatus::from_wire(job).map_err(error)).collect()
    }

    /// The pool as the node sees it.
    pub async fn topology(&self) -> Result<Topology> {
        let response = self.node.topology_request().send().promise.await.map_err(error)?;
        let topology = response.get().and_then(|results| results.get_topology()).map_err(error)?;
        Topology::from_wire(topology).map_err(error)
    }

    /// Who belongs to the node's pool: the calls of its owner.
    ///
    /// # Errors
    /// `Unavailable` for a node without a network.
    pub async fn membership(&self) -> Result<Membership> {
        let response = self.node.membership_request().send().promise.await.map_err(error)?;
        let remote = response.get().and_then(|results| results.get_membership()).map_err(error)?;
        Ok(Membership::new(remote, self.connection.clone()))
    }

    /// Where the layers of a model would be placed on the pool as the node sees it, and where they are placed. An empty name
    /// means the only model that the pool serves.
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

    /// Makes the node check a connected peer (by peer id or name) over the existing connection, and returns the round trip.
    /// Without `timeout` the node's default applies.
    ///
    /// # Errors
    /// `NotFound` where no such peer is connected; `DeadlineExceeded` where the peer does not answer in time.
    pub async fn check_peer(&self, peer: &str, timeout: Option<Duration>) -> Result<Duration> {
        let mut request = self.node.check_peer_request();
        request.get().set_peer(peer);
        request.get().set_timeout_ms(timeout.map_or(0, milliseconds));
        let response = request.send().promise.await.map_err(error)?;
        let round_trip_us = response.get().map_err(error)?.get_round_trip_us();
        Ok(Duration::try_from_secs_f64(round_trip_us / 1e6).unwrap_or_default())
    }

    /// What a few connected peers say of the way back to the node: whether they can open a connection to its addresses. Takes up to
    /// ten seconds. Empty where no peer can be asked.
    pub async fn ways_back(&self) -> Result<Vec<WayBack>> {
        let response = self.node.ways_back_request().send().promise.await.map_err(error)?;
        let ways = response.get().and_then(|results| results.get_ways()).map_err(error)?;
        ways.iter().map(|way| WayBack::from_wire(way).map_err(error)).collect()
    }

    /// Status of every model that the node serves.
    pub async fn models(&self) -> Result<Vec<ModelStatus>> {
        let response = self.node.models_request().send().promise.await.map_err(error)?;
        let models = response.get().and_then(|results| results.get_models()).map_err(error)?;
        models.iter().map(|model| ModelStatus::from_wire(model).map_err(error)).collect()
    }

    /// A served model, once it is loaded; a model that is not on the node's disk is fetched first. An empty name means the
    /// only model. Without `timeout` the node's default applies.
    ///
    /// # Errors
    /// `NotFound` for a model that is not served; `Unavailable` where the model is not ready in time or cannot be fetched.
    pub async fn model(&self, name: &str, timeout: Option<Duration>) -> Result<Model> {
        let mut request = self.node.model_request();
        request.get().set_name(name);
        request.get().set_timeout_ms(model::timeout_ms(timeout));
        let response = request.send().promise.await.map_err(error)?;
        let model = response.get().and_then(|results| results.get_model()).map_err(error)?;
        Ok(Model::new(model, self.connection.clone()))
    }

    /// Makes the node serve a model (by name, path or download source) besides those that it serves, and waits until the model
    /// is loaded. Without `timeout` the node's default applies.
    ///
    /// # Errors
    /// `Overloaded` with the sizes where the memory does not suffice; `NotFound` for an unknown model; `Unavailable` after
    /// the timeout, in which case loading goes on.
    pub async fn load_model(&self, model: &str, timeout: Option<Duration>) -> Result<ModelStatus> {
        let mut request = self.node.load_model_request();
        request.get().set_model(model);
        request.get().set_timeout_ms(model::timeout_ms(timeout));
        let response = request.send().promise.await.map_err(error)?;
        response.get().and_then(|results| ModelStatus::from_wire(results.get_model()?)).map_err(error)
    }

    /// Drops a model in the whole pool: no node serves it until it is loaded again.
    ///
    /// # Errors
    /// `NotFound` for a model that no node of the pool serves.
    pub async fn drop_model(&self, model: &str) -> Result<ModelStatus> {
        let mut request = self.node.drop_model_request();
        request.get().set_model(model);
        let response = request.send().promise.await.map_err(error)?;
        response.get().and_then(|results| ModelStatus::from_wire(results.get_model()?)).map_err(error)
    }

    /// Counters of this connection, and of all connections since the node started.
    pub async fn counters(&self) -> Result<(Counters, Counters)> {
        let response = self.node.counters_request().send().promise.await.map_err(error)?;
        let counters = response.get().and_then(|results| {
            Ok((Counters::from_wire(results.get_connection()?)?, Counters::from_wire(results.get_total()?)?))
        });
        counters.map_err(error)
    }
}

/// A duration in milliseconds on the wire, where 0 means none: at least 1.
pub(crate) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).max(1)
}

fn error(exception: capnp::Error) -> Error {
    from_exception(&exception)
}

fn unknown_host(address: &str, error: &std::io::Error) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        format!("the host of {address} cannot be found ({error}); check its name, or use its IP address"),
    )
}

fn unreachable_node(address: &str, why: &str) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        format!("no Pangea node answers at {address} ({why}); start one there with `pangea node`"),
    )
}
