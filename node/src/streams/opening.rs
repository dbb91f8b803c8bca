//! Opens streams to connected peers. It never dials and never retries.

use std::future::Future;
use std::io;

use libp2p::{PeerId, Stream, StreamProtocol};
use libp2p_stream::{Control, OpenStreamError};

use super::OPEN_TIMEOUT;

/// Why a stream to a peer could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpeningError {
    /// The peer does not speak the protocol, or its connection failed.
    #[error("the peer did not open a stream: {0}")]
    Refused(#[from] OpenStreamError),
    /// The stream failed before the peer accepted it.
    #[error("the connection failed: {0}")]
    Broken(#[from] io::Error),
    /// The peer answered with another message than its acceptance.
    #[error("the peer answered the opening with an unexpected message")]
    Unexpected,
    /// The peer did not accept the stream in time.
    #[error("no stream within {} s", OPEN_TIMEOUT.as_secs())]
    Late,
}

/// Opens a stream of `protocol` to the connected `peer`.
///
/// # Errors
/// [`OpeningError`].
pub async fn open(control: Control, peer: PeerId, protocol: &'static str) -> Result<Stream, OpeningError> {
    open_and(control, peer, protocol, |stream| async { Ok(stream) }).await
}

/// Like [`open`], followed by the protocol's greeting; one deadline covers both.
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
