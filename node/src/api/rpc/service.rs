//! The service's socket, its thread, and its connections from accepting to draining. What a
//! connection may do is not its business.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use capnp_rpc::rpc_twoparty_capnp::Side;
use capnp_rpc::{RpcSystem, new_broken_cap, new_client};
use pangea_client::exception::to_exception;
use pangea_client::transport::network;
use pangea_client::{Error, ErrorKind, Result};
use pangea_schema::node_capnp::node;
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::LocalSet;
use tokio_util::compat::{TokioAsyncReadCompatExt, TokioAsyncWriteCompatExt};
use tokio_util::sync::CancellationToken;

use super::account::{Account, Totals};
use super::backend::Backend;
use super::limits::{FETCH_TIME, KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, Limits, REFUSAL_TIME, REFUSALS};
use super::node::NodeObject;
use super::socket::counted;
use crate::serve::Served;

/// Takes the port of the service, without answering on it yet. `InvalidInput` for an address
/// that is none, `Unavailable` for a port that cannot be had.
pub fn bind(address: &str) -> Result<StdListener> {
    let resolved: SocketAddr = address.parse().map_err(|_| {
        let message = format!(
            "{address} is not an address for the Cap'n Proto service; give IP:PORT, such as \
             127.0.0.1:8080"
        );
        Error::new(ErrorKind::InvalidInput, message)
    })?;
    StdListener::bind(resolved).map_err(|error| {
        let port = resolved.port();
        let message = match error.kind() {
            io::ErrorKind::AddrInUse => format!(
                "port {port} for the Cap'n Proto service is in use (is another node running?); \
                 stop what uses it, or choose another with --rpc-addr {}:PORT",
                resolved.ip()
            ),
            _ => format!(
                "cannot offer the Cap'n Proto service on {address} ({error}); choose another \
                 address with --rpc-addr"
            ),
        };
        Error::new(ErrorKind::Unavailable, message)
    })
}

/// The running service.
pub struct Service {
    address: SocketAddr,
    /// None while it serves; then how long jobs may take to end.
    ending: watch::Sender<Option<Duration>>,
    thread: Option<JoinHandle<()>>,
}

impl Service {
    /// Serves `backend` and the models `served` on `listener`, on a thread of its own.
    pub fn spawn<B: Backend>(listener: StdListener, backend: B, served: Served, limits: Limits) -> Result<Service> {
        let failed = |error: io::Error| {
            let message = format!("cannot start the Cap'n Proto service: {error}");
            Error::new(ErrorKind::Internal, message)
        };
        let address = listener.local_addr().map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build().map_err(failed)?;
        let listener = {
            let _entered = runtime.enter();
            TcpListener::from_std(listener).map_err(failed)?
        };
        let (ending, end) = watch::channel(None);
        let thread = std::thread::Builder::new()
            .name("pangea-rpc".into())
            .spawn(move || {
                LocalSet::new().block_on(&runtime, serve(listener, backend, served, limits, end));
            })
            .map_err(failed)?;
        Ok(Service { address, ending, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Takes no more connections and jobs, lets what runs end within `grace`, then closes every
    /// connection. Returns when the thread has ended.
    pub async fn shutdown(mut self, grace: Duration) {
        self.ending.send_replace(Some(grace));
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed already, and there is nothing left to save.
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.ending.send_if_modified(|ending| ending.replace(Duration::ZERO).is_none());
    }
}

/// Accepts connections until told to end, then drains.
async fn serve<B: Backend>(
    listener: TcpListener,
    backend: B,
    served: Served,
    limits: Limits,
    mut end: watch::Receiver<Option<Duration>>,
) {
    let totals = Arc::new(Totals::default());
    let draining = CancellationToken::new();
    let refusals = Rc::new(());
    loop {
        tokio::select! {
            biased;
            _ = end.wait_for(Option::is_some) => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => accept(stream, &backend, &served, limits, &totals, &draining, &refusals),
                Err(error) => {
                    // Out of descriptors, as a rule: those of others must close first.
                    tracing::warn!(%error, "rpc accept failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
    draining.cancel();
    drop(listener);
    let grace = end.borrow().unwrap_or_default();
    let idle = async {
        let mut busy_at = (!totals.idle()).then(Instant::now);
        let mut heard_bytes = totals.counters().bytes_in;
        // Ending is rare and nobody waits for its last millisecond.
        while busy_at.is_some_and(|at| at.elapsed() < FETCH_TIME) {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let bytes = totals.counters().bytes_in;
            if !totals.idle() || bytes != std::mem::replace(&mut heard_bytes, bytes) {
                busy_at = Some(Instant::now());
            }
        }
    };
    if tokio::time::timeout(grace, idle).await.is_err() && !totals.idle() {
        tracing::warn!(jobs = totals.counters().jobs_running, "rpc clients cut off");
    }
}

/// Starts serving one connection, or refusing it.
fn accept<B: Backend>(
    stream: TcpStream,
    backend: &B,
    served: &Served,
    limits: Limits,
    totals: &Arc<Totals>,
    draining: &CancellationToken,
    refusals: &Rc<()>,
) {
    if let Err(error) = prepare(&stream) {
        tracing::debug!(%error, "rpc connection gone at once");
        return;
    }
    let open = totals.connections.load(Ordering::Relaxed);
    if open >= limits.connections {
        refuse(stream, open, refusals);
        return;
    }
    let account = Rc::new(Account::new(backend.clone(), limits, totals.clone()));
    let object = NodeObject::new(backend.clone(), served.clone(), account.clone(), draining.clone());
    let bootstrap = new_client::<node::Client, _>(object).client;
    let (read_half, write_half) = stream.into_split();
    let (read_half, write_half) = counted(read_half.compat(), write_half.compat_write(), account);
    let network = network(read_half, write_half, Side::Server);
    let rpc_system = RpcSystem::new(Box::new(network), Some(bootstrap));
    tokio::task::spawn_local(async move {
        if let Err(error) = rpc_system.await {
            tracing::debug!(%error, "rpc connection broke");
        }
    });
}

/// Tells a client that there are too many, where not too many are being told so already.
fn refuse(stream: TcpStream, open: u32, refusals: &Rc<()>) {
    tracing::warn!(open, "rpc connection refused: too many");
    let place = Rc::clone(refusals);
    if Rc::strong_count(&place) > REFUSALS {
        return;
    }
    let why = format!("this node serves {open} connections already; try again later");
    let bootstrap = new_broken_cap(to_exception(&Error::new(ErrorKind::Overloaded, why)));
    let (read_half, write_half) = stream.into_split();
    let network = network(read_half.compat(), write_half.compat_write(), Side::Server);
    let rpc_system = RpcSystem::new(Box::new(network), Some(bootstrap));
    tokio::task::spawn_local(async move {
        // Whether it heard is its own affair.
        let _ = tokio::time::timeout(REFUSAL_TIME, rpc_system).await;
        drop(place);
    });
}

/// Small answers leave at once, and a client that vanished without a word is noticed.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    #[cfg(any(target_os = "linux", target_os = "android"))]
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL)?;
    Ok(())
}
