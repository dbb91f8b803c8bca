//! Opens streams to peers that are connected. It never dials and never tries again.

use std::future::Future;
use std::io;

use libp2p::{PeerId, Stream, StreamProtocol};
use libp2p_stream::{Control, OpenStreamError};

use super::OPEN_TIMEOUT;

/// Why a stream to a peer could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpeningError {
    /// The peer does not speak the protocol, or its connection broke.
    #[error("it gives no stream: {0}")]
    Refused(#[from] OpenStreamError),
    /// The stream broke before the peer had taken it.
    #[error("the connection broke: {0}")]
    Broken(#[from] io::Error),
    /// The peer said something else than that it takes the stream.
    #[error("it took the stream with other words")]
    Unexpected,
    /// The peer did not take the stream in time.
    #[error("no stream within {} s", OPEN_TIMEOUT.as_secs())]
    Late,
}

/// Opens a stream of `protocol` to `peer`, which is connected.
///
/// # Errors
/// [`OpeningError`].
pub async fn open(control: Control, peer: PeerId, protocol: &'static str) -> Result<Stream, OpeningError> {
    open_and(control, peer, protocol, |stream| async { Ok(stream) }).await
}

/// As [`open`], with what the protocol says at the beginning of a stream; both within the one deadline.
///
/// # Errors
/// Those of [`open`] and of `greet`.
pub async fn open_and<F: Future<Output = Result<Stream, OpeningError>>>(
    mut control: Control,
    peer: PeerId,
    protocol: &'static str,
    greet: impl FnOnce(Stream) -> F,
) -> Result<Stream, OpeningError> {
    let opening = async { greet(control.open_stream(peer, StreamProtocol::new(protocol)).await?).await };
    tokio::time::timeout(OPEN_TIMEOUT, opening).await.unwrap_or(Err(OpeningError::Late))
}
