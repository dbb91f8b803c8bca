//! Connections of the HTTP API, from accepting to draining. A connection holds a place that a newcomer may take until one of
//! its requests has passed the guard. This file does not know what is requested.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use pangea_client::Result;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::limits::{CONNECTIONS, HEAD_BYTES, HEAD_TIME, IDLE_TIME, SEND_BUFFER_BYTES, WRITE_TIME};
use super::write_deadline::WriteDeadline;
use crate::api::service::{self, Accepted, Description};
use crate::net::{Caller, Doorway};

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

/// Name of the HTTP API on Ollama's port.
pub(super) const OLLAMA: Description = Description { name: "HTTP API for Ollama's clients", short_name: "ollama" };

/// Binds the port where Ollama's clients look for it.
///
/// # Errors
/// `Unavailable` if the port cannot be bound.
pub fn bind_ollama(address: SocketAddr) -> Result<TcpListener> {
    service::bind(OLLAMA, address, "stop Ollama, or leave out --ollama", "leave out --ollama")
}

/// Interval at which a draining API checks whether its connections have ended. Shutdown is rare.
const IDLE_INTERVAL: Duration = Duration::from_millis(10);

/// Connections whose requests `routes` answers.
pub(super) struct Connections {
    routes: Router,
    doorway: Doorway,
    draining: CancellationToken,
}

impl Connections {
    pub(super) fn new(routes: Router) -> Connections {
        Connections { routes, doorway: Doorway::new(CONNECTIONS), draining: CancellationToken::new() }
    }
}

impl service::Connections for Connections {
    fn accept(&self, accepted: Accepted) {
        // The API has no socket in the file system.
        let Accepted::Tcp(stream, from) = accepted else { return };
        match self.doorway.arrived(from) {
            Some(caller) => {
                tokio::spawn(connection(stream, self.routes.clone(), self.draining.clone(), caller));
            }
            None => refuse(&stream),
        }
    }

    fn drain(&self) {
        self.draining.cancel();
    }

    async fn idle(&self) {
        while self.doorway.open() > 0 {
            tokio::time::sleep(IDLE_INTERVAL).await;
        }
    }

    fn cut_off(&self) {
        tracing::warn!(connections = self.doorway.open(), "http clients cut off");
    }
}

/// Answers one connection's requests until it closes; when draining, until the current request is answered.
async fn connection(stream: TcpStream, routes: Router, draining: CancellationToken, caller: Caller) {
    // Small chunks of an answer are sent without delay.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "http connection closed before its first request");
        return;
    }
    // A refinement: without it, a client that does not read is noticed later.
    let _ = rustix::net::sockopt::set_socket_send_buffer_size(&stream, SEND_BUFFER_BYTES);
    let (caller, heard) = (Arc::new(caller), CancellationToken::new());
    let closing = caller.closing().clone();
    let routes = TowerToHyperService::new(routes);
    let answer = {
        let heard = heard.clone();
        service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
            heard.cancel();
            request.extensions_mut().insert(Arc::clone(&caller));
            routes.call(request)
        })
    };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_TIME)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(WriteDeadline::new(stream, WRITE_TIME)), answer);
    let mut connection = std::pin::pin!(connection);
    let silent = async {
        tokio::time::sleep(HEAD_TIME).await;
        if heard.is_cancelled() {
            std::future::pending::<()>().await;
        }
    };
    let ended = tokio::select! {
        outcome = connection.as_mut() => Some(outcome),
        () = draining.cancelled() => None,
        () = closing.cancelled() => {
            tracing::debug!("http connection closed: a newer one has its place");
            return;
        }
        () = silent => {
            tracing::debug!("http connection closed: no request within {} s", HEAD_TIME.as_secs());
            return;
        }
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
    tracing::warn!(open = CONNECTIONS.total, "http connection refused: too many");
    const BODY: &str =
        "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    // The client may not read this; the connection closes either way.
    let _ = stream.try_write(BODY.as_bytes());
}
