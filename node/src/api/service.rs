//! A service on a thread of its own, from the bound port to the end of its last connection. This file owns the thread,
//! accepting and the shutdown with its grace period; the protocol decides what a connection does and when the service
//! is idle.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener as StdListener};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::thread::JoinHandle;
use std::time::Duration;

use pangea_client::{Error, ErrorKind, Result};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::LocalSet;

use crate::supervise::Supervisor;

/// Pause of accepting after a failure: usually other connections must close first to free descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Names of a service.
#[derive(Clone, Copy, Debug)]
pub(super) struct Description {
    /// Used in messages such as "cannot start the HTTP API".
    pub(super) name: &'static str,
    /// Used in log lines and in the thread's name.
    pub(super) short_name: &'static str,
}

/// Where a service listens.
pub(super) struct Listeners {
    /// The port.
    pub(super) tcp: StdListener,
    /// A socket in the file system, for users of this host.
    pub(super) unix: Option<StdUnixListener>,
}

/// An accepted connection.
pub(super) enum Accepted {
    /// Over TCP, from this address.
    Tcp(TcpStream, IpAddr),
    /// Over the socket in the file system, from this user's process or root's.
    Unix(UnixStream),
}

/// The connections of one protocol. All methods are called on the service's thread, in a [`LocalSet`].
pub(super) trait Connections {
    /// Serves or refuses a connection in tasks of its own; returns at once.
    fn accept(&self, accepted: Accepted);

    /// Refuses new work from now on.
    fn drain(&self);

    /// Returns when no work runs any more.
    async fn idle(&self);

    /// Called when the grace period is over: logs what is cut off.
    fn cut_off(&self);
}

/// A running service. Dropping it ends the service without a grace period.
pub struct Service {
    address: SocketAddr,
    /// `None` while the service runs; then the grace period.
    ending: watch::Sender<Option<Duration>>,
    thread: Option<JoinHandle<()>>,
}

impl Service {
    /// Serves `listeners` on a thread of its own, with the connections that `connections` creates there.
    ///
    /// # Errors
    /// `Internal` if the socket cannot be used or a thread cannot be started.
    pub(super) fn spawn<C: Connections>(
        description: Description,
        listeners: Listeners,
        supervisor: &Supervisor,
        connections: impl FnOnce() -> C + Send + 'static,
    ) -> Result<Service> {
        let Description { name, short_name } = description;
        let failed = |error: io::Error| Error::new(ErrorKind::Internal, format!("cannot start the {name}: {error}"));
        let Listeners { tcp, unix } = listeners;
        let address = tcp.local_addr().map_err(failed)?;
        tcp.set_nonblocking(true).map_err(failed)?;
        unix.as_ref().map(|unix| unix.set_nonblocking(true)).transpose().map_err(failed)?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build().map_err(failed)?;
        let (tcp, unix) = {
            let _entered = runtime.enter();
            let unix = unix.map(UnixListener::from_std).transpose().map_err(failed)?;
            (TcpListener::from_std(tcp).map_err(failed)?, unix)
        };
        let (ending, end) = watch::channel(None);
        let beating = supervisor.clone();
        let thread = supervisor
            .essential_thread(short_name, move || {
                LocalSet::new().block_on(&runtime, async {
                    beating.beat(short_name);
                    serve(short_name, (tcp, unix), connections(), end).await;
                });
                // A prompt that is still being tokenised must not delay the shutdown.
                runtime.shutdown_background();
            })
            .map_err(failed)?;
        Ok(Service { address, ending, thread: Some(thread) })
    }

    /// Address that the service listens on.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Accepts no more connections, lets running work end within `grace`, then closes what is left. Returns when the
    /// thread has ended.
    pub async fn shutdown(mut self, grace: Duration) {
        self.ending.send_replace(Some(grace));
        if let Some(thread) = self.thread.take() {
            // A panic of the thread is logged already, and no state is left to save.
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.ending.send_if_modified(|ending| ending.replace(Duration::ZERO).is_none());
    }
}

/// Accepts connections until shutdown, then drains.
async fn serve(
    short_name: &'static str,
    (tcp, unix): (TcpListener, Option<UnixListener>),
    connections: impl Connections,
    mut end: watch::Receiver<Option<Duration>>,
) {
    loop {
        let accepted = tokio::select! {
            biased;
            _ = end.wait_for(Option::is_some) => break,
            accepted = tcp.accept() => accepted.map(|(stream, from)| Some(Accepted::Tcp(stream, from.ip()))),
            accepted = accept_unix(unix.as_ref()) => accepted,
        };
        match accepted {
            Ok(Some(accepted)) => connections.accept(accepted),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(%error, "{short_name} accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    connections.drain();
    drop((tcp, unix));
    let grace = end.borrow().unwrap_or_default();
    if tokio::time::timeout(grace, connections.idle()).await.is_err() {
        connections.cut_off();
    }
}

/// A connection over the socket in the file system; `None` for one of a user who may not use it. The file's mode keeps others
/// out already; not every system looks at it.
async fn accept_unix(listener: Option<&UnixListener>) -> io::Result<Option<Accepted>> {
    let Some(listener) = listener else { return std::future::pending().await };
    let (stream, _) = listener.accept().await?;
    let user = stream.peer_cred()?.uid();
    if user == 0 || user == rustix::process::geteuid().as_raw() {
        return Ok(Some(Accepted::Unix(stream)));
    }
    tracing::warn!(event = "user_refused", user, "refused a connection of user {user} over the local socket");
    Ok(None)
}

/// Binds the port of a service without answering on it yet. `advice_in_use` says what to do about a port in use, `advice`
/// about any other failure.
///
/// # Errors
/// `Unavailable` if the port cannot be bound.
pub(super) fn bind(
    description: Description,
    address: SocketAddr,
    advice_in_use: &str,
    advice: &str,
) -> Result<StdListener> {
    let name = description.name;
    StdListener::bind(address).map_err(|error| {
        let message = match error.kind() {
            io::ErrorKind::AddrInUse => {
                let port = address.port();
                format!("port {port} for the {name} is in use (is another node running?); {advice_in_use}")
            }
            _ => format!("cannot offer the {name} on {address} ({error}); {advice}"),
        };
        Error::new(ErrorKind::Unavailable, message)
    })
}
