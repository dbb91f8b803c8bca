//! Connections of the Cap'n Proto service, from accepting to draining: over its port, and over a socket in the file system
//! that only the node's own user can use. This file does not know what a connection may do.

use std::cell::RefCell;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use capnp_rpc::rpc_twoparty_capnp::Side;
use capnp_rpc::{RpcSystem, new_broken_cap, new_client};
use futures::io::{AsyncRead, AsyncWrite};
use pangea_client::exception::to_exception;
use pangea_client::transport::network;
use pangea_client::{Error, ErrorKind, Result};
use pangea_control::net::rate::{Rate, RateLimiter};
use pangea_schema::node_capnp::node;
use rustix::net::sockopt;
use tokio::net::TcpStream;
use tokio_util::compat::{TokioAsyncReadCompatExt, TokioAsyncWriteCompatExt};
use tokio_util::sync::CancellationToken;

use super::account::{Account, CallRates, Totals};
use super::backend::Backend;
use super::limits::{
    FETCH_TIME, KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, LOCAL_CONNECTIONS, Limits, PROOF_TIME, REFUSAL_TIME, REFUSALS,
};
use super::login::LockedNode;
use super::node::NodeObject;
use super::socket::counted;
use crate::api::service::{self, Accepted, Description, Listeners, Service};
use crate::net::{Caller, Doorway};
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

/// Binds a socket in the file system, which only this user's processes can open.
///
/// # Errors
/// If the path is too long for a socket, or its folder cannot be written.
pub fn bind_local(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        // Left by a node that was killed: the lock of the data directory is this node's.
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Where the service listens, and what its clients must show.
pub struct Ports {
    /// The port.
    pub tcp: TcpListener,
    /// The socket in the file system.
    pub local: Option<UnixListener>,
    /// Key that clients at the port must show.
    pub key: Option<String>,
}

impl From<TcpListener> for Ports {
    /// A port without a key, and nothing else.
    fn from(tcp: TcpListener) -> Ports {
        Ports { tcp, local: None, key: None }
    }
}

/// Serves `backend` and the models `served` at `ports`, on a thread of its own.
///
/// # Errors
/// `Internal` if a socket cannot be used or a thread cannot be started.
pub fn serve<B: Backend>(
    ports: impl Into<Ports>,
    backend: B,
    served: Served,
    limits: Limits,
    supervisor: &Supervisor,
) -> Result<Service> {
    let Ports { tcp, local, key } = ports.into();
    let key = key.map(|key| blake3::hash(key.as_bytes()));
    let calls = f64::from(limits.calls_per_second);
    let rate = Rate { per_second: calls, burst: 2.0 * calls };
    Service::spawn(DESCRIPTION, Listeners { tcp, unix: local }, supervisor, move || Connections {
        backend,
        served,
        limits,
        key,
        port: Doorway::new(limits.callers()),
        local: Doorway::new(LOCAL_CONNECTIONS),
        rates: Rc::new(RefCell::new(RateLimiter::new(rate))),
        totals: Arc::new(Totals::default()),
        draining: CancellationToken::new(),
        refusals: Rc::new(()),
    })
}

struct Connections<B> {
    backend: B,
    served: Served,
    limits: Limits,
    /// Digest of the key that clients at the port must show, so that a comparison takes constant time.
    key: Option<blake3::Hash>,
    port: Doorway,
    local: Doorway,
    rates: CallRates,
    totals: Arc<Totals>,
    draining: CancellationToken,
    /// One clone per client that is being refused at the moment.
    refusals: Rc<()>,
}

impl<B: Backend> Connections<B> {
    /// Serves a connection over these two halves; clients show `key` first.
    fn start<R, W>(&self, caller: Caller, key: Option<blake3::Hash>, read_half: R, write_half: W)
    where
        R: AsyncRead + Unpin + 'static,
        W: AsyncWrite + Unpin + 'static,
    {
        let account =
            Account::new(self.backend.clone(), self.limits, self.totals.clone(), caller, Rc::clone(&self.rates));
        let account = Rc::new(account);
        let object = NodeObject::new(self.backend.clone(), self.served.clone(), account.clone(), self.draining.clone());
        let open: node::Client = new_client(object);
        let bootstrap = match key {
            None => open,
            Some(key) => new_client(LockedNode::new(key, open, account.clone())),
        };
        let (proven, closing) = (account.proven().clone(), account.closing().clone());
        let (read_half, write_half) = counted(read_half, write_half, account);
        let network = network(read_half, write_half, Side::Server);
        let rpc_system = RpcSystem::new(Box::new(network), Some(bootstrap.client));
        let silent = async move {
            if tokio::time::timeout(PROOF_TIME, proven.cancelled()).await.is_ok() {
                std::future::pending::<()>().await;
            }
        };
        tokio::task::spawn_local(async move {
            tokio::select! {
                ended = rpc_system => if let Err(error) = ended {
                    tracing::debug!(%error, "rpc connection failed");
                },
                () = closing.cancelled() => tracing::debug!("rpc connection closed: a newer one has its place"),
                () = silent => tracing::debug!("rpc connection closed: no call within {} s", PROOF_TIME.as_secs()),
            }
        });
    }
}

impl<B: Backend> service::Connections for Connections<B> {
    fn accept(&self, accepted: Accepted) {
        match accepted {
            Accepted::Tcp(stream, from) => {
                if let Err(error) = prepare(&stream) {
                    tracing::debug!(%error, "rpc connection closed before its first request");
                    return;
                }
                let place = self.port.arrived(from);
                let (read_half, write_half) = stream.into_split();
                let (read_half, write_half) = (read_half.compat(), write_half.compat_write());
                match place {
                    Some(caller) => self.start(caller, self.key, read_half, write_half),
                    None => refuse(read_half, write_half, self.port.open(), &self.refusals),
                }
            }
            Accepted::Unix(stream) => {
                let place = self.local.arrived(std::net::Ipv4Addr::LOCALHOST.into());
                let (read_half, write_half) = stream.into_split();
                let (read_half, write_half) = (read_half.compat(), write_half.compat_write());
                match place {
                    // The file's owner needs no key: whoever can open the socket can read the key's file as well.
                    Some(caller) => self.start(caller, None, read_half, write_half),
                    None => refuse(read_half, write_half, self.local.open(), &self.refusals),
                }
            }
        }
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
fn refuse<R, W>(read_half: R, write_half: W, open: usize, refusals: &Rc<()>)
where
    R: AsyncRead + Unpin + 'static,
    W: AsyncWrite + Unpin + 'static,
{
    tracing::warn!(open, "rpc connection refused: too many");
    let place = Rc::clone(refusals);
    if Rc::strong_count(&place) > REFUSALS {
        return;
    }
    let why = format!("this node already serves {open} connections; try again later");
    let bootstrap = new_broken_cap(to_exception(&Error::new(ErrorKind::Overloaded, why)));
    let network = network(read_half, write_half, Side::Server);
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
