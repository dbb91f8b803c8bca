//! The HTTP API's socket, its thread, and its connections from accepting to draining. What is asked for on them is not its
//! business.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use pangea_client::{Error, ErrorKind, Result};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::limits::{CONNECTIONS, HEAD_BYTES, HEAD_TIME};

/// Takes the port of the HTTP API, without answering on it yet.
///
/// # Errors
/// `Unavailable` for a port that cannot be had.
pub fn bind(address: SocketAddr) -> Result<StdListener> {
    StdListener::bind(address).map_err(|error| {
        let port = address.port();
        let message = match error.kind() {
            io::ErrorKind::AddrInUse => format!(
                "port {port} for the HTTP API is in use (is another node running?); stop what uses it, choose another with \
                 --api-port PORT, or do without with --no-api"
            ),
            _ => format!(
                "cannot offer the HTTP API on {address} ({error}); choose another address with --api-addr, or do without \
                 with --no-api"
            ),
        };
        Error::new(ErrorKind::Unavailable, message)
    })
}

/// The running service.
pub struct Service {
    /// None while it serves; then how long answers may take to end.
    ending: watch::Sender<Option<Duration>>,
    thread: Option<JoinHandle<()>>,
}

impl Service {
    /// Serves `routes` on `listener`, on a thread of its own.
    pub(super) fn spawn(listener: StdListener, routes: Router) -> Result<Service> {
        let failed = |error: io::Error| Error::new(ErrorKind::Internal, format!("cannot start the HTTP API: {error}"));
        listener.set_nonblocking(true).map_err(failed)?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build().map_err(failed)?;
        let listener = {
            let _entered = runtime.enter();
            TcpListener::from_std(listener).map_err(failed)?
        };
        let (ending, end) = watch::channel(None);
        let thread = std::thread::Builder::new()
            .name("pangea-http".into())
            .spawn(move || {
                runtime.block_on(serve(listener, routes, end));
                // A prompt that is being tokenised for nobody must not hold up the end.
                runtime.shutdown_background();
            })
            .map_err(failed)?;
        Ok(Service { ending, thread: Some(thread) })
    }

    /// Takes no more connections, lets answers end within `grace`, then closes what is left. Returns when the thread has
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

async fn serve(listener: TcpListener, routes: Router, mut end: watch::Receiver<Option<Duration>>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let told = end.clone();
    loop {
        tokio::select! {
            biased;
            _ = end.wait_for(Option::is_some) => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => match Arc::clone(&places).try_acquire_owned() {
                    Ok(place) => {
                        tokio::spawn(connection(stream, routes.clone(), told.clone(), place));
                    }
                    Err(_) => refuse(&stream),
                },
                Err(error) => {
                    // Out of descriptors, as a rule: those of others must close first.
                    tracing::warn!(%error, "http accept failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
    drop(listener);
    let grace = end.borrow().unwrap_or_default();
    let all_closed = places.acquire_many(CONNECTIONS as u32);
    if tokio::time::timeout(grace, all_closed).await.is_err() {
        tracing::warn!(connections = CONNECTIONS - places.available_permits(), "http clients cut off");
    }
}

/// Answers one connection's requests until it closes; told to end, after the one that is being answered.
async fn connection(
    stream: TcpStream,
    routes: Router,
    mut end: watch::Receiver<Option<Duration>>,
    _place: OwnedSemaphorePermit,
) {
    // Pieces of an answer leave at once.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "http connection gone at once");
        return;
    }
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
    let mut connection = std::pin::pin!(connection);
    // The value that is waited for is locked: nothing may be awaited with it.
    let told = async { end.wait_for(Option::is_some).await.map(drop) };
    let ended = tokio::select! {
        outcome = connection.as_mut() => Some(outcome),
        _ = told => None,
    };
    let outcome = match ended {
        Some(outcome) => outcome,
        None => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "http connection broke");
    }
}

/// Says that there are too many connections, as far as can be done without waiting.
fn refuse(stream: &TcpStream) {
    tracing::warn!(open = CONNECTIONS, "http connection refused: too many");
    const BODY: &str =
        "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    // Whether it heard is its own affair.
    let _ = stream.try_write(BODY.as_bytes());
}
