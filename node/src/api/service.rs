//! A service on a thread of its own, from the bound port to the end of its last connection. This file owns the thread, the
//! accepting and the end with its grace; what is said on a connection, and when nothing runs any more, is the protocol's.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::thread::JoinHandle;
use std::time::Duration;

use pangea_client::{Error, ErrorKind, Result};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::LocalSet;

use crate::supervise::Supervisor;

/// How long accepting pauses after a failure: as a rule, other connections must close first to free descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What people know a service by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Description {
    /// As in "cannot start the HTTP API".
    pub(super) name: &'static str,
    /// In log lines and the thread's name.
    pub(super) short_name: &'static str,
}

/// The connections of one protocol. Everything is called on the service's thread, in a [`LocalSet`].
pub(super) trait Connections {
    /// Serves or refuses a connection, in tasks of its own; returns at once.
    fn accept(&self, stream: TcpStream);

    /// Nothing new begins from now on.
    fn drain(&self);

    /// Returns when nothing runs any more.
    async fn idle(&self);

    /// The grace is over: logs what is cut off.
    fn cut_off(&self);
}

/// A running service. Dropping it ends the service without grace.
pub struct Service {
    address: SocketAddr,
    /// None while it serves; then how long what runs may take to end.
    ending: watch::Sender<Option<Duration>>,
    thread: Option<JoinHandle<()>>,
}

impl Service {
    /// Serves `listener` on a thread of its own, with the connections that `connections` makes there.
    ///
    /// # Errors
    /// `Internal` where the socket or a thread cannot be had.
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
                // A prompt that is being tokenised for nobody must not hold up the end.
                runtime.shutdown_background();
            })
            .map_err(failed)?;
        Ok(Service { address, ending, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Takes no more connections, lets what runs end within `grace`, then closes what is left. Returns when the thread has
    /// ended.
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

/// Takes the port of a service, without answering on it yet. The advice says what to do about a port in use, and about any
/// other failure.
///
/// # Errors
/// `Unavailable` for a port that cannot be had.
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
