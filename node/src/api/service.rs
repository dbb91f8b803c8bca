//! A service on a thread of its own, from the bound port to the end of its last connection. This file owns the thread,
//! accepting and the shutdown with its grace period; the protocol decides what a connection does and when the service
//! is idle.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::thread::JoinHandle;
use std::time::Duration;

use pangea_client::{Error, ErrorKind, Result};
use tokio::net::{TcpListener, TcpStream};
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

/// The connections of one protocol. All methods are called on the service's thread, in a [`LocalSet`].
pub(super) trait Connections {
    /// Serves or refuses a connection in tasks of its own; returns at once.
    fn accept(&self, stream: TcpStream);

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
    /// Serves `listener` on a thread of its own, with the connections that `connections` creates there.
    ///
    /// # Errors
    /// `Internal` if the socket cannot be used or a thread cannot be started.
    pub(super) fn spawn<C: Connections>(
        description: Description,
        listener: StdListener,
        supervisor: &Supervisor,
        connections: impl FnOnce() -> C + Send + 'static,
    ) -> Result<Service> {
        let Description { name, short_name } = description;
        let failed = |error: io::Error| Error::new(ErrorKind::Internal, format!("cannot start the {name}: {error}"));
        let address = listener.local_addr().map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build().map_err(failed)?;
        let listener = {
            let _entered = runtime.enter();
            TcpListener::from_std(listener).map_err(failed)?
        };
        let (ending, end) = watch::channel(None);
        let beating = supervisor.clone();
        let thread = supervisor
            .essential_thread(short_name, move || {
                LocalSet::new().block_on(&runtime, async {
                    beating.beat(short_name);
                    serve(short_name, listener, connections(), end).await;
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
    listener: TcpListener,
    connections: impl Connections,
    mut end: watch::Receiver<Option<Duration>>,
) {
    loop {
        tokio::select! {
            biased;
            _ = end.wait_for(Option::is_some) => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => connections.accept(stream),
                Err(error) => {
                    tracing::warn!(%error, "{short_name} accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    connections.drain();
    drop(listener);
    let grace = end.borrow().unwrap_or_default();
    if tokio::time::timeout(grace, connections.idle()).await.is_err() {
        connections.cut_off();
    }
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
