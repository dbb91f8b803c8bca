//! Connections of the Cap'n Proto service, from accepting to draining. This file does not know what a connection may do.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use capnp_rpc::rpc_twoparty_capnp::Side;
use capnp_rpc::{RpcSystem, new_broken_cap, new_client};
use pangea_client::exception::to_exception;
use pangea_client::transport::network;
use pangea_client::{Error, ErrorKind, Result};
use pangea_schema::node_capnp::node;
use rustix::net::sockopt;
use tokio::net::TcpStream;
use tokio_util::compat::{TokioAsyncReadCompatExt, TokioAsyncWriteCompatExt};
use tokio_util::sync::CancellationToken;

use super::account::{Account, Totals};
use super::backend::Backend;
use super::limits::{FETCH_TIME, KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, Limits, REFUSAL_TIME, REFUSALS};
use super::node::NodeObject;
use super::socket::counted;
use crate::api::service::{self, Description, Service};
use crate::serve::Served;
use crate::supervise::Supervisor;

/// Name of the Cap'n Proto service in logs and errors.
const DESCRIPTION: Description = Description { name: "Cap'n Proto service", short_name: "rpc" };

/// Interval at which a draining service checks whether it is idle. Shutdown is rare and a few milliseconds do not matter.
const IDLE_INTERVAL: Duration = Duration::from_millis(10);

/// Binds the port of the service without answering on it yet.
///
/// # Errors
/// `InvalidInput` for text that is no address, `Unavailable` if the port cannot be bound.
pub fn bind(address: &str) -> Result<TcpListener> {
    let resolved: SocketAddr = address.parse().map_err(|_| {
        let message = format!(
            "{address} is not an address for the Cap'n Proto service; give IP:PORT, such as \
             127.0.0.1:8080"
        );
        Error::new(ErrorKind::InvalidInput, message)
    })?;
    service::bind(
        DESCRIPTION,
        resolved,
        &format!("stop what uses it, or choose another with --rpc-addr {}:PORT", resolved.ip()),
        "choose another address with --rpc-addr",
    )
}

/// Serves `backend` and the models `served` on `listener`, on a thread of its own.
///
/// # Errors
/// `Internal` if the socket cannot be used or a thread cannot be started.
pub fn serve<B: Backend>(
    listener: TcpListener,
    backend: B,
    served: Served,
    limits: Limits,
    supervisor: &Supervisor,
) -> Result<Service> {
    Service::spawn(DESCRIPTION, listener, supervisor, move || Connections {
        backend,
        served,
        limits,
        totals: Arc::new(Totals::default()),
        draining: CancellationToken::new(),
        refusals: Rc::new(()),
    })
}

struct Connections<B> {
    backend: B,
    served: Served,
    limits: Limits,
    totals: Arc<Totals>,
    draining: CancellationToken,
    /// One clone per client that is being refused at the moment.
    refusals: Rc<()>,
}

impl<B: Backend> service::Connections for Connections<B> {
    fn accept(&self, stream: TcpStream) {
        if let Err(error) = prepare(&stream) {
            tracing::debug!(%error, "rpc connection closed before its first request");
            return;
        }
        let open = self.totals.connections.load(Ordering::Relaxed);
        if open >= self.limits.connections {
            refuse(stream, open, &self.refusals);
            return;
        }
        let account = Rc::new(Account::new(self.backend.clone(), self.limits, self.totals.clone()));
        let object = NodeObject::new(self.backend.clone(), self.served.clone(), account.clone(), self.draining.clone());
        let bootstrap = new_client::<node::Client, _>(object).client;
        let (read_half, write_half) = stream.into_split();
        let (read_half, write_half) = counted(read_half.compat(), write_half.compat_write(), account);
        let network = network(read_half, write_half, Side::Server);
        let rpc_system = RpcSystem::new(Box::new(network), Some(bootstrap));
        tokio::task::spawn_local(async move {
            if let Err(error) = rpc_system.await {
                tracing::debug!(%error, "rpc connection failed");
            }
        });
    }

    fn drain(&self) {
        self.draining.cancel();
    }

    /// Waits until no job runs and no client was active for [`FETCH_TIME`], the time to fetch a finished product.
    async fn idle(&self) {
        let mut busy_at = (!self.totals.idle()).then(Instant::now);
        let mut heard_bytes = self.totals.counters().bytes_in;
        while busy_at.is_some_and(|at| at.elapsed() < FETCH_TIME) {
            tokio::time::sleep(IDLE_INTERVAL).await;
            let bytes = self.totals.counters().bytes_in;
            if !self.totals.idle() || bytes != std::mem::replace(&mut heard_bytes, bytes) {
                busy_at = Some(Instant::now());
            }
        }
    }

    fn cut_off(&self) {
        if !self.totals.idle() {
            tracing::warn!(jobs = self.totals.counters().jobs_running, "rpc clients cut off");
        }
    }
}

/// Answers a connection beyond the limit with an error, if fewer than [`REFUSALS`] are being refused.
fn refuse(stream: TcpStream, open: u32, refusals: &Rc<()>) {
    tracing::warn!(open, "rpc connection refused: too many");
    let place = Rc::clone(refusals);
    if Rc::strong_count(&place) > REFUSALS {
        return;
    }
    let why = format!("this node already serves {open} connections; try again later");
    let bootstrap = new_broken_cap(to_exception(&Error::new(ErrorKind::Overloaded, why)));
    let (read_half, write_half) = stream.into_split();
    let network = network(read_half.compat(), write_half.compat_write(), Side::Server);
    let rpc_system = RpcSystem::new(Box::new(network), Some(bootstrap));
    tokio::task::spawn_local(async move {
        // The client may not read this; the connection closes either way.
        let _ = tokio::time::timeout(REFUSAL_TIME, rpc_system).await;
        drop(place);
    });
}

/// Socket options: small messages are sent at once, and keep-alive detects a client that vanished.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    #[cfg(any(target_os = "linux", target_os = "android"))]
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL)?;
    Ok(())
}
