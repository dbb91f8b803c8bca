//! Connections of the HTTP API, from accepting to draining. This file does not know what is requested on them.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use pangea_client::Result;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::limits::{CONNECTIONS, HEAD_BYTES, HEAD_TIME};
use crate::api::service::{self, Description};

/// Name of the HTTP API in logs and errors.
pub(super) const DESCRIPTION: Description = Description { name: "HTTP API", short_name: "http" };

/// Binds the port of the HTTP API without answering on it yet.
///
/// # Errors
/// `Unavailable` if the port cannot be bound.
pub fn bind(address: SocketAddr) -> Result<TcpListener> {
    service::bind(
        DESCRIPTION,
        address,
        "stop what uses it, choose another with --api-port PORT, or do without with --no-api",
        "choose another address with --api-addr, or do without with --no-api",
    )
}

/// Connections whose requests `routes` answers.
pub(super) struct Connections {
    routes: Router,
    places: Arc<Semaphore>,
    draining: CancellationToken,
}

impl Connections {
    pub(super) fn new(routes: Router) -> Connections {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        Connections { routes, places, draining: CancellationToken::new() }
    }
}

impl service::Connections for Connections {
    fn accept(&self, stream: TcpStream) {
        match Arc::clone(&self.places).try_acquire_owned() {
            Ok(place) => {
                tokio::spawn(connection(stream, self.routes.clone(), self.draining.clone(), place));
            }
            Err(_) => refuse(&stream),
        }
    }

    fn drain(&self) {
        self.draining.cancel();
    }

    async fn idle(&self) {
        // The semaphore is never closed, so acquiring cannot fail.
        let _ = self.places.acquire_many(CONNECTIONS as u32).await;
    }

    fn cut_off(&self) {
        tracing::warn!(connections = CONNECTIONS - self.places.available_permits(), "http clients cut off");
    }
}

/// Answers one connection's requests until it closes; when draining, until the current request is answered.
async fn connection(stream: TcpStream, routes: Router, draining: CancellationToken, _place: OwnedSemaphorePermit) {
    // Small chunks of an answer are sent without delay.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "http connection closed before its first request");
        return;
    }
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        outcome = connection.as_mut() => Some(outcome),
        () = draining.cancelled() => None,
    };
    let outcome = match ended {
        Some(outcome) => outcome,
        None => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "http connection failed");
    }
}

/// Sends 503 to a connection beyond the limit, without waiting for the client.
fn refuse(stream: &TcpStream) {
    tracing::warn!(open = CONNECTIONS, "http connection refused: too many");
    const BODY: &str =
        "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    // The client may not read this; the connection closes either way.
    let _ = stream.try_write(BODY.as_bytes());
}
